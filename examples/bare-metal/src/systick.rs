//! embassy's clock, driven by the processor's SysTick: a tick is a millisecond. A real chip's HAL has a better one.

use core::cell::RefCell;
use core::task::Waker;

use cortex_m::peripheral::syst::SystClkSource;
use cortex_m_rt::exception;
use critical_section::Mutex;
use embassy_time_driver::Driver;
use embassy_time_queue_utils::Queue;

/// The clock of the emulated board.
const CYCLES_PER_SECOND: u32 = 25_000_000;

struct SysTickDriver {
    state: Mutex<RefCell<State>>,
}

struct State {
    ticks: u64,
    queue: Queue,
}

embassy_time_driver::time_driver_impl!(static DRIVER: SysTickDriver = SysTickDriver {
    state: Mutex::new(RefCell::new(State { ticks: 0, queue: Queue::new() })),
});

impl Driver for SysTickDriver {
    fn now(&self) -> u64 {
        critical_section::with(|cs| self.state.borrow_ref(cs).ticks)
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        // Nothing to set up: every tick looks at the queue.
        critical_section::with(|cs| {
            self.state.borrow_ref_mut(cs).queue.schedule_wake(at, waker);
        });
    }
}

#[exception]
fn SysTick() {
    critical_section::with(|cs| {
        let state = &mut *DRIVER.state.borrow_ref_mut(cs);
        state.ticks += 1;
        state.queue.next_expiration(state.ticks);
    });
}

/// Starts the clock.
pub fn start() {
    if let Some(peripherals) = cortex_m::Peripherals::take() {
        let mut systick = peripherals.SYST;
        systick.set_clock_source(SystClkSource::Core);
        systick.set_reload(CYCLES_PER_SECOND / 1_000 - 1);
        systick.clear_current();
        systick.enable_counter();
        systick.enable_interrupt();
    }
}
