//! What it was to the clients: the shares while it goes on, and the chart at the end.

use std::io::{self, IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::SLOW;
use crate::backend::{Backend, Health};

/// What became of a request.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Answered,
    /// The backend answered with an error.
    Failed,
    /// The connection broke meanwhile.
    CutOff,
    /// No backend had it.
    Unserved,
    /// It was given the answer to another one, which must not be.
    Mixed,
}

/// The books of one run.
pub(crate) struct Tally {
    pub(crate) label: &'static str,
    /// How many requests the clients sent, and for how many a backend was chosen.
    pub(crate) sent: u64,
    pub(crate) chosen: u64,
    outcomes: [u64; 5],
    latencies: Vec<Duration>, // of the answered ones, in order
}

impl Tally {
    pub(crate) fn new(label: &'static str, results: Vec<(Outcome, Duration)>) -> Self {
        let (mut outcomes, mut latencies) = ([0; 5], Vec::new());
        for (outcome, latency) in results {
            outcomes[outcome as usize] += 1;
            if outcome == Outcome::Answered {
                latencies.push(latency);
            }
        }
        latencies.sort();
        Self {
            label,
            sent: 0,
            chosen: 0,
            outcomes,
            latencies,
        }
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// Every request that was sent has one outcome and its own answer, and those that reached a backend are
    /// those for which one was chosen.
    pub(crate) fn balances(&self) -> bool {
        self.sent == self.outcomes.iter().sum()
            && self.sent == self.chosen + self.count(Outcome::Unserved)
            && self.count(Outcome::Mixed) == 0
    }

    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies
            .get(last * percent / 100)
            .copied()
            .unwrap_or_default()
    }
}

/// Prints which backend had which share of the requests since the last time.
pub(crate) fn print_shares(
    at: Duration,
    backends: &[Arc<Backend>],
    known: &[&str],
    before: &mut Vec<u64>,
) {
    let chosen = backends.iter().map(|backend| backend.chosen.load(Relaxed));
    let chosen: Vec<u64> = chosen.collect();
    before.resize(chosen.len(), 0);
    let new: Vec<u64> = (chosen.iter().zip(&*before))
        .map(|(now, then)| now - then)
        .collect();
    let total = new.iter().sum::<u64>().max(1);

    let mut line = format!("{:4.1} s", at.as_secs_f64());
    for (backend, new) in backends.iter().zip(new) {
        let share = new as f64 / total as f64;
        let (colour, mark) = match backend.health() {
            Health::Works(latency) if latency >= SLOW => (YELLOW, "slow"),
            Health::Works(_) => (GREEN, ""),
            Health::Fails => (RED, "fails"),
            Health::Refuses => (RED, "down"),
        };
        line += &if known.contains(&backend.name) || new > 0 {
            // A bar of five places for up to 50 %.
            let bar = paint(colour, &format!("{:<5}", bar(share * 10.0)));
            format!("  {bar}{:>3.0} % {mark:<5}", share * 100.0)
        } else {
            format!("  {:<16}", "-")
        };
    }
    *before = chosen;
    say(line.trim_end());
}

/// Prints what the shares are of.
pub(crate) fn print_heading(label: &str, backends: &[Arc<Backend>]) {
    let names = backends
        .iter()
        .map(|backend| format!("  {:<16}", backend.name));
    say(&paint(
        BOLD,
        &format!("\n{label}\n      {}", names.collect::<String>()),
    ));
}

pub(crate) fn print_report(tallies: &[Tally; 3]) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    say(&paint(
        BOLD,
        "\nhow long an answer took (each further place of a bar: 1.5 times as long)",
    ));
    for percent in [50, 90, 99, 100] {
        for (place, tally) in tallies.iter().enumerate() {
            let name = match percent {
                _ if place > 0 => String::new(),
                100 => "max".to_owned(),
                _ => format!("p{percent}"),
            };
            let time = ms(tally.percentile(percent));
            let bar = bar(time.max(1.0).ln() / 1.5_f64.ln());
            say(&format!(
                "{name:>5}  {:<17}{time:>7.1} ms  {bar}",
                tally.label
            ));
        }
    }
    say(&paint(BOLD, "\nhow many had no answer"));
    for tally in tallies {
        let (failed, cut_off) = (tally.count(Outcome::Failed), tally.count(Outcome::CutOff));
        let errors = failed + cut_off + tally.count(Outcome::Unserved);
        say(&format!(
            "       {:<17}{errors:>4} of {:>4}: {failed} failed by the backend, {cut_off} cut off",
            tally.label, tally.sent,
        ));
    }
    say(
        "\nWhat to see: chance sends everyone into the line of the slow backend and into the broken one; to count \
         requests keeps that line short, but fills it; and who measures time stays out of it.",
    );
}

/// So many places, in eighths, and at least a sliver for whatever is there at all.
fn bar(places: f64) -> String {
    let eighths = (places * 8.0).ceil() as usize;
    let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    format!("{}{rest}", "█".repeat(eighths / 8))
}

const BOLD: u8 = 1;
const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;

fn paint(colour: u8, text: &str) -> String {
    if io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|x| x.is_empty()) {
        format!("\x1b[{colour}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

pub(crate) fn say(line: &str) {
    // A reader that went away, such as `head`, is no failure of the run.
    let _ = writeln!(io::stdout(), "{line}");
}
