//! Each case beside tower's, over the same service. Every answer is checked and counted.
//!
//! ```text
//! cases list                       the names of the cases
//! cases run ROOM WHOSE LEAF COUNT  sends COUNT requests: WHOSE is `ours` or `tower`, LEAF `ready` or `pending`.
//!                                  Prints the right answers, the allocations and their bytes that came after the
//!                                  first requests, and the bytes of a response future.
//! cases polls                      how often handles of rate limits are polled that are waited for
//! cases clock [ROOM..]             wall clock, in rounds that take turns
//! cases buffers                    wall clock of buffers, by callers and bound
//! cases limits                     wall clock of concurrency limits, by callers and limit
//! ```
//!
//! The last three need the features `async-std` and `smol`: without them this builds in half the time.
//!
//! `benches/instructions` runs it under cachegrind, `benches/clock` without.

#[cfg(all(feature = "async-std", feature = "smol"))]
mod clock;
mod contended;
mod count;
mod host;
mod leaf;
mod list;
#[cfg(all(feature = "async-std", feature = "smol"))]
mod shared;

use std::process::ExitCode;

fn main() -> ExitCode {
    // cargo adds `--bench`.
    let words: Vec<String> = (std::env::args().skip(1))
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["list"] => cases().for_each(|case| println!("{}", case.name)),
        ["polls"] => contended::polls(),
        ["run", case, whose, leaf, count] => return run(case, whose, leaf, count),
        #[cfg(all(feature = "async-std", feature = "smol"))]
        ["clock", ref cases @ ..] => clock::run(cases),
        #[cfg(all(feature = "async-std", feature = "smol"))]
        ["buffers"] => shared::run_buffers(),
        #[cfg(all(feature = "async-std", feature = "smol"))]
        ["limits"] => shared::run_limits(),
        _ => println!(
            "cases list | run ROOM WHOSE LEAF COUNT | polls | clock [ROOM..] | buffers | limits"
        ),
    }
    ExitCode::SUCCESS
}

fn cases() -> impl Iterator<Item = list::Case> {
    list::cases().into_iter().chain(contended::cases())
}

fn run(name: &str, whose: &str, leaf: &str, count: &str) -> ExitCode {
    let case = cases().find(|case| case.name == name);
    let (Some(case), Ok(count)) = (case, count.parse()) else {
        eprintln!("no such case, or no such count: {name} {count}");
        return ExitCode::FAILURE;
    };
    let pair = match whose {
        "ours" => case.ours,
        "tower" => case.tower,
        _ => {
            eprintln!("neither ours nor tower: {whose}");
            return ExitCode::FAILURE;
        }
    };
    let run = if leaf == "pending" {
        pair.pending
    } else {
        pair.ready
    };
    let outcome = run(count);
    println!(
        "{} {} {} {}",
        outcome.right, outcome.allocations, outcome.bytes, outcome.future
    );
    if outcome.right == count {
        ExitCode::SUCCESS
    } else {
        eprintln!(
            "{name} {whose} {leaf}: {} of {count} answers are right",
            outcome.right
        );
        ExitCode::FAILURE
    }
}
