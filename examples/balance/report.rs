//! What the clients saw: the shares during a run, and the chart at the end.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::backend::{Backend, State};
use crate::{SCRIPT, SLOW};

/// The outcome of a request.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Answered,
    /// The backend answered with an error.
    Failed,
    /// The connection broke in the meantime.
    CutOff,
    /// No backend received it.
    Unserved,
    /// It got the answer to another request, which must not happen.
    Mixed,
}

/// The counts of one run.
pub(crate) struct Tally {
    label: &'static str,
    /// How many requests the clients sent, and for how many of them a backend was chosen.
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
        let (sent, chosen) = (0, 0);
        Self {
            label,
            sent,
            chosen,
            outcomes,
            latencies,
        }
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// Whether each request sent has exactly one outcome, none got the answer to another, and as many reached a
    /// backend as one was chosen for.
    pub(crate) fn balances(&self) -> bool {
        self.sent == self.outcomes.iter().sum::<u64>()
            && self.sent == self.chosen + self.count(Outcome::Unserved)
            && self.count(Outcome::Mixed) == 0
    }

    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let found = self.latencies.get(last * percent / 100);
        found.copied().unwrap_or_default()
    }
}

pub(crate) fn print_heading(label: &str) {
    let names = SCRIPT.map(|(name, _)| format!("  {name:<16}")).concat();
    say(&format!("\n{label}\n      {names}"));
}

pub(crate) fn print_news(name: &str, before: State, state: State) {
    let what = match state {
        State::Unknown => "leaves",
        _ if before == State::Unknown => "joins",
        SLOW => "becomes slow",
        State::Works(_) => "works well again",
        State::Fails => "fails every request, at once",
        State::Down => "is down: its connection is cut, others are refused",
    };
    say(&format!("        {name} {what}"));
}

/// Prints each backend's share of the requests since `before`.
pub(crate) fn print_shares(at: Duration, backends: &[Arc<Backend>], before: &mut [u64]) {
    let mut new = Vec::new();
    for (backend, before) in backends.iter().zip(before) {
        let chosen = backend.chosen.load(Relaxed);
        new.push(chosen - std::mem::replace(before, chosen));
    }
    let total = new.iter().sum::<u64>().max(1);

    let mut line = format!("{:4.1} s", at.as_secs_f64());
    for (backend, new) in backends.iter().zip(new) {
        let mark = match backend.state() {
            State::Unknown if new == 0 => {
                line += &format!("  {:<16}", "-");
                continue;
            }
            SLOW => "slow",
            State::Works(_) | State::Unknown => "",
            State::Fails => "fails",
            State::Down => "down",
        };
        let share = new as f64 / total as f64;
        let bar = bar(share * 10.0);
        line += &format!("  {bar:<5.5}{:>3.0} % {mark:<5}", share * 100.0);
    }
    say(line.trim_end());
}

pub(crate) fn print_report(tallies: &[Tally; 3]) {
    say("\nhow long an answer took (a bar that is a place longer: half as long again)");
    for (name, percent) in [("p50", 50), ("p90", 90), ("p99", 99), ("max", 100)] {
        for (place, tally) in tallies.iter().enumerate() {
            let name = if place == 0 { name } else { "" };
            let ms = tally.percentile(percent).as_secs_f64() * 1e3;
            let bar = bar(ms.max(1.0).ln() / 1.5_f64.ln());
            say(&format!(
                "{name:>5}  {:<17}{ms:>7.1} ms  {bar}",
                tally.label
            ));
        }
    }
    say("\nhow many had no answer");
    for tally in tallies {
        let [_, failed, cut_off, unserved, _] = tally.outcomes;
        let (label, sent, errors) = (tally.label, tally.sent, failed + cut_off + unserved);
        let details = format!("{failed} failed by the backend, {cut_off} cut off");
        say(&format!(
            "       {label:<17}{errors:>4} of {sent:>4}: {details}"
        ));
    }
    say(
        "\nWhat to see: chance puts clients into the line of the slow backend and in front of the broken one;\n\
         to count requests keeps that line short, but not empty; to measure time goes round both.",
    );
}

/// A bar of this length, drawn in eighths, with at least a sliver for any nonzero value.
fn bar(places: f64) -> String {
    let eighths = (places * 8.0).ceil() as usize;
    let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    format!("{}{rest}", "█".repeat(eighths / 8))
}

fn say(line: &str) {
    // A reader that went away, such as `head`, is not a failure of the run.
    let _ = writeln!(io::stdout(), "{line}");
}
