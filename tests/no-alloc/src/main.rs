//! A whole stack without a heap: the program has no allocator, so it does not link if any part of it allocates.
//!
//! It runs on the host, and on a Cortex-M4 in an emulator; see `ci/no-alloc` and `ci/bare-metal`.
#![no_std]
#![no_main]

mod clock;
mod executor;
#[cfg_attr(target_os = "none", path = "cortex_m.rs")]
#[cfg_attr(not(target_os = "none"), path = "host.rs")]
mod machine;
#[cfg_attr(any(feature = "no-stack", feature = "one-request"), allow(dead_code))]
mod stack;

/// Runs the program; `Ok` if all answers are as expected.
fn run() -> Result<(), &'static str> {
    #[cfg(not(feature = "no-stack"))]
    let check = stack::check();
    #[cfg(feature = "no-stack")]
    let check = stack::without();
    executor::block_on(check)
}

#[cfg(feature = "one-box")]
extern crate alloc;

/// Allocates, so this must not link.
#[cfg(feature = "one-box")]
#[unsafe(no_mangle)]
pub extern "C" fn one_box() -> *const u8 {
    alloc::boxed::Box::leak(alloc::boxed::Box::new(1))
}
