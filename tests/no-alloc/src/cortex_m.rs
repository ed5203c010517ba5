//! The program on a Cortex-M: the SysTick interrupt drives the clock, and the result goes to the debugger's console.

use core::panic::PanicInfo;

use cortex_m::peripheral::syst::SystClkSource;
use cortex_m_rt::{entry, exception};
use cortex_m_semihosting::debug::{self, EXIT_FAILURE, EXIT_SUCCESS};
use cortex_m_semihosting::hio;

use crate::clock;

/// The clock rate of the MPS2 board.
const CYCLES_PER_SECOND: u32 = 25_000_000;

#[exception]
fn SysTick() {
    clock::tick();
}

/// Sleeps until an interrupt.
pub fn rest() {
    cortex_m::asm::wfi();
}

#[entry]
fn main() -> ! {
    if let Some(peripherals) = cortex_m::Peripherals::take() {
        let mut systick = peripherals.SYST;
        systick.set_clock_source(SystClkSource::Core);
        systick.set_reload(CYCLES_PER_SECOND / 1_000 - 1);
        systick.clear_current();
        systick.enable_counter();
        systick.enable_interrupt();
    }
    match crate::run() {
        Ok(()) => {
            say("ok");
            debug::exit(EXIT_SUCCESS);
        }
        Err(wrong) => {
            say(wrong);
            debug::exit(EXIT_FAILURE);
        }
    }
    loop {
        rest();
    }
}

/// Plain text only: formatting code would be larger than the stack under test.
fn say(text: &str) {
    if let Ok(mut console) = hio::hstdout() {
        let _ = console.write_all(text.as_bytes());
        let _ = console.write_all(b"\n");
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say("panicked in");
    say(info.location().map_or("?", |at| at.file()));
    debug::exit(EXIT_FAILURE);
    loop {
        rest();
    }
}
