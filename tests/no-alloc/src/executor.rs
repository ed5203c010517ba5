//! Runs one future to its end, and lets the machine rest while nothing is to be done.

use core::pin::pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use crate::machine;

static WOKEN: AtomicBool = AtomicBool::new(true);

// There is one task, so its waker has nothing to carry.
static VTABLE: RawWakerVTable = RawWakerVTable::new(
    |_| RawWaker::new(core::ptr::null(), &VTABLE),
    |_| WOKEN.store(true, Ordering::Release),
    |_| WOKEN.store(true, Ordering::Release),
    |_| {},
);

pub fn block_on<F: Future>(future: F) -> F::Output {
    // SAFETY: no function of the table uses the pointer.
    let waker = unsafe { Waker::from_raw(RawWaker::new(core::ptr::null(), &VTABLE)) };
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        // Not `swap`, which a Cortex-M0 does not have; a wake in between is seen by the poll that follows.
        while WOKEN.load(Ordering::Acquire) {
            WOKEN.store(false, Ordering::Release);
            if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                return output;
            }
        }
        machine::rest();
    }
}
