//! Each room beside tower's, over the same service. Every answer is checked and counted.
//!
//! ```text
//! rooms list                       the names of the rooms
//! rooms run ROOM WHOSE LEAF COUNT  sends COUNT requests: WHOSE is `ours` or `tower`, LEAF `ready` or `pending`.
//!                                  Prints the right answers, the allocations and their bytes that came after the
//!                                  first requests, and the bytes of a response future.
//! rooms polls                      how often handles of rate limits are polled that are waited for
//! rooms clock [ROOM..]             wall clock, in rounds that take turns
//! rooms buffers                    wall clock of buffers, by callers and bound
//! rooms limits                     wall clock of concurrency limits, by callers and limit
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
        ["list"] => rooms().for_each(|room| println!("{}", room.name)),
        ["polls"] => contended::polls(),
        ["run", room, whose, leaf, count] => return run(room, whose, leaf, count),
        #[cfg(all(feature = "async-std", feature = "smol"))]
        ["clock", ref rooms @ ..] => clock::run(rooms),
        #[cfg(all(feature = "async-std", feature = "smol"))]
        ["buffers"] => shared::run_buffers(),
        #[cfg(all(feature = "async-std", feature = "smol"))]
        ["limits"] => shared::run_limits(),
        _ => println!(
            "rooms list | run ROOM WHOSE LEAF COUNT | polls | clock [ROOM..] | buffers | limits"
        ),
    }
    ExitCode::SUCCESS
}

fn rooms() -> impl Iterator<Item = list::Room> {
    list::rooms().into_iter().chain(contended::rooms())
}

fn run(name: &str, whose: &str, leaf: &str, count: &str) -> ExitCode {
    let room = rooms().find(|room| room.name == name);
    let (Some(room), Ok(count)) = (room, count.parse()) else {
        eprintln!("no such room, or no such count: {name} {count}");
        return ExitCode::FAILURE;
    };
    let pair = match whose {
        "ours" => room.ours,
        "tower" => room.tower,
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
