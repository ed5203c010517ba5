//! Wall-clock time: rounds in which the two take turns, and the ratio within each.

use std::time::Duration;

use crate::host::{AsyncStd, CurrentThread, Host, Smol, TwoThreads};
use crate::list::{Case, Pair, cases};

const ROUNDS: usize = 21;
/// How long each of the two runs per round.
const TURN: Duration = Duration::from_millis(4);

/// The median, and the 10th and 90th percentiles.
pub(crate) fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    [at(0.5), at(0.1), at(0.9)]
}

/// Nanoseconds per request.
fn time(run: fn(u64) -> crate::count::Outcome, count: u64) -> f64 {
    let outcome = run(count);
    assert_eq!(outcome.right, count, "not each answer was right");
    outcome.elapsed.as_nanos() as f64 / count as f64
}

pub(crate) fn run(wanted: &[&str]) {
    println!(
        "ns per request: median [a tenth below, a tenth above]; ratio: tower's by ours within a round"
    );
    for case in cases() {
        if wanted.is_empty() || wanted.contains(&case.name) {
            println!("\n{}", case.name);
            measure(&case);
        }
    }
}

fn measure(case: &Case) {
    for (leaf, pick) in [
        (
            "ready",
            (|pair: Pair| pair.ready) as fn(Pair) -> fn(u64) -> crate::count::Outcome,
        ),
        ("pending", |pair| pair.pending),
    ] {
        let pairs = [
            (CurrentThread::NAME, case.ours, case.tower),
            (TwoThreads::NAME, case.ours_on_two, case.tower_on_two),
            (Smol::NAME, case.ours_on_smol, case.tower),
            (AsyncStd::NAME, case.ours_on_async_std, case.tower),
        ];
        for (host, ours, tower) in pairs {
            let (ours, tower) = (pick(ours), pick(tower));
            let once = time(tower, 2_000);
            let count = (TURN.as_nanos() as f64 / once).max(1_000.0) as u64;
            let (mut all_ours, mut all_tower, mut ratios) = (vec![], vec![], vec![]);
            for round in 0..ROUNDS {
                let (a, b) = if round % 2 == 0 {
                    let a = time(ours, count);
                    (a, time(tower, count))
                } else {
                    let b = time(tower, count);
                    (time(ours, count), b)
                };
                all_ours.push(a);
                all_tower.push(b);
                ratios.push(b / a);
            }
            let [ours, ..] = spread(all_ours);
            let [tower, ..] = spread(all_tower);
            let [ratio, below, above] = spread(ratios);
            println!(
                "  {leaf:8} {host:18} ours {ours:7.1}  tower {tower:7.1}  ratio {ratio:5.2} [{below:.2}, {above:.2}]"
            );
        }
    }
    println!("  (smol and async-std: beside tower's on tokio, one thread)");
}
