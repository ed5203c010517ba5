//! A whole stack where there is no heap: a program without an allocator, which therefore does not link if
//! anything of it allocates.
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

/// The program: `Ok` if all answers were as expected.
fn run() -> Result<(), &'static str> {
    #[cfg(not(feature = "no-stack"))]
    let check = stack::check();
    #[cfg(feature = "no-stack")]
    let check = stack::without();
    executor::block_on(check)
}

#[cfg(feature = "one-box")]
extern crate alloc;

/// What must not link.
#[cfg(feature = "one-box")]
#[unsafe(no_mangle)]
pub extern "C" fn one_box() -> *const u8 {
    alloc::boxed::Box::leak(alloc::boxed::Box::new(1))
}
