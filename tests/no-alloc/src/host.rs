//! The program on the host: no interrupts, no heap, and nothing of the C library but `abort`.

use core::panic::PanicInfo;

use crate::clock;

unsafe extern "C" {
    fn abort() -> !;
}

struct NoInterrupts;

critical_section::set_impl!(NoInterrupts);

// SAFETY: there is one thread and no interrupt, so every section is critical.
unsafe impl critical_section::Impl for NoInterrupts {
    unsafe fn acquire() -> bool {
        false
    }

    unsafe fn release(_: bool) {}
}

/// There is nothing to do until time passes, so this advances the clock.
pub fn rest() {
    clock::tick();
}

#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    i32::from(crate::run().is_err())
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // SAFETY: `abort` has no preconditions.
    unsafe { abort() }
}

/// Never called, since panics abort; debug builds of `core` name it.
#[cfg(debug_assertions)]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
