//! Runs one future to completion, and lets the machine sleep while there is nothing to do.

use core::pin::pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use crate::machine;

static WOKEN: AtomicBool = AtomicBool::new(true);

// There is only one task, so its waker needs no data.
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
        // A Cortex-M0 has no `swap`. A wake between load and store is seen by the poll that follows.
        while WOKEN.load(Ordering::Acquire) {
            WOKEN.store(false, Ordering::Release);
            if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                return output;
            }
        }
        machine::rest();
    }
}
