//! What the clients saw: the counts, the progress while they change, and the table at the end.

use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use campanile::BoxError;
use campanile::load_shed::Overloaded;
use campanile::timeout::Elapsed;

/// The outcome of a request.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Answered,
    Shed,
    TimedOut,
    Failed,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Answered, Self::Shed, Self::TimedOut, Self::Failed];

    /// The stack's error is typed through all layers; as a `BoxError` it is the innermost one.
    pub(crate) fn of(error: &BoxError) -> Self {
        if error.is::<Overloaded>() {
            Self::Shed
        } else if error.is::<Elapsed>() {
            Self::TimedOut
        } else {
            Self::Failed
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Shed => "shed",
            Self::TimedOut => "timed out",
            Self::Failed => "failed",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.word() == word)
    }
}

pub(crate) enum Event {
    Sent,
    Done(Outcome, Duration),
}

/// What the clients saw in one run.
pub(crate) struct Tally {
    label: &'static str,
    planned: u64,
    sent: u64,
    outcomes: [u64; 4],
    latencies: Vec<Duration>, // of the answered ones
    pub(crate) elapsed: Duration,
    pub(crate) calls: u64,
}

impl Tally {
    pub(crate) fn new(label: &'static str, planned: u64) -> Self {
        let (latencies, elapsed) = (Vec::new(), Duration::ZERO);
        Self {
            label,
            planned,
            sent: 0,
            outcomes: [0; 4],
            latencies,
            elapsed,
            calls: 0,
        }
    }

    pub(crate) fn add(&mut self, event: Event) {
        match event {
            Event::Sent => self.sent += 1,
            Event::Done(outcome, latency) => {
                self.outcomes[outcome as usize] += 1;
                if outcome == Outcome::Answered {
                    let place = self.latencies.partition_point(|other| *other <= latency);
                    self.latencies.insert(place, latency);
                }
            }
        }
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    fn done(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// Calls of the backend beyond one per request that was let in.
    fn retries(&self) -> u64 {
        self.calls
            .saturating_sub(self.sent - self.count(Outcome::Shed))
    }

    /// Whether each request sent has one outcome, and each that was let in reached the backend.
    pub(crate) fn balances(&self) -> bool {
        self.sent == self.planned
            && self.done() == self.sent
            && self.calls >= self.sent - self.count(Outcome::Shed)
    }

    fn percentile(&self, percent: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies
            .get(last * percent / 100)
            .copied()
            .unwrap_or_default()
    }

    /// The share of answers that took from `from` to `to` milliseconds.
    fn share(&self, from: u64, to: u64) -> f64 {
        let below = |ms| {
            self.latencies
                .partition_point(|x| *x < Duration::from_millis(ms))
        };
        (below(to) - below(from)) as f64 / self.latencies.len().max(1) as f64
    }
}

/// On a terminal, one line that is rewritten; otherwise one line per quarter of the run.
pub(crate) struct Progress {
    label: &'static str,
    live: bool,
    shown: u64,
}

impl Progress {
    pub(crate) fn new(label: &'static str) -> Self {
        Self {
            label,
            live: io::stderr().is_terminal(),
            shown: 0,
        }
    }

    pub(crate) fn show(&mut self, tally: &Tally) {
        let steps = if self.live { 100 } else { 4 };
        let step = tally.done() * steps / tally.planned;
        if step > self.shown {
            self.shown = step;
            let bar = "█".repeat((step * 24 / steps) as usize);
            let (done, under_way) = (tally.done(), tally.sent - tally.done());
            let line = format!(
                "{:>14} {bar:·<24} {done:>5} done, {under_way:>3} under way",
                self.label
            );
            if self.live {
                eprint!("\r{line}\x1b[K");
            } else {
                eprintln!("{line}");
            }
        }
    }

    pub(crate) fn end(&self, tally: &Tally) {
        if self.live {
            eprint!("\r\x1b[K");
        }
        eprintln!(
            "{:>14} took {:.1} s",
            self.label,
            tally.elapsed.as_secs_f64()
        );
    }
}

pub(crate) fn print_report(bare: &Tally, stack: &Tally) {
    let colour = io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (bold, plain) = if colour {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    let row = |name: &str, cell: &dyn Fn(&Tally) -> String| {
        format!("{name:<22}{:>24}   {:>24}\n", cell(bare), cell(stack))
    };
    let of_sent = |count: u64, tally: &Tally| {
        format!(
            "{count} ({:4.1} %)",
            100.0 * count as f64 / tally.sent.max(1) as f64
        )
    };
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);

    let mut text = format!(
        "\n{bold}{}{plain}",
        row("", &|tally| tally.label.to_owned())
    );
    text += &row("sent", &|tally| tally.sent.to_string());
    for outcome in Outcome::ALL {
        text += &row(outcome.word(), &|tally| {
            of_sent(tally.count(outcome), tally)
        });
    }
    text += &row("retries", &|tally| tally.retries().to_string());
    text += &row("answers per second", &|tally| {
        format!(
            "{:.0}",
            tally.count(Outcome::Answered) as f64 / tally.elapsed.as_secs_f64()
        )
    });

    text += &format!("\n{bold}how long an answer took{plain}\n");
    for percent in [50, 90, 99, 100] {
        let name = if percent == 100 {
            "max".to_owned()
        } else {
            format!("p{percent}")
        };
        text += &row(&name, &|tally| ms(tally.percentile(percent)));
    }
    text.push('\n');
    const EDGES: [u64; 10] = [0, 10, 20, 50, 100, 200, 500, 1_000, 2_000, u64::MAX];
    for edge in EDGES.windows(2) {
        let bar = |tally: &Tally| {
            let share = tally.share(edge[0], edge[1]);
            // At least a sliver for any nonzero value.
            let eighths = (share * 160.0).ceil() as usize;
            let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
            format!("{}{rest}", "█".repeat(eighths / 8))
        };
        let name = match edge[1] {
            u64::MAX => format!("over {} ms", edge[0]),
            below => format!("under {below} ms"),
        };
        text += format!("{name:>16}      {:<24}   {:<24}", bar(bare), bar(stack)).trim_end();
        text.push('\n');
    }
    // A reader that went away, such as `head`, is not a failure of the run.
    let _ = io::stdout().write_all(text.as_bytes());
}
