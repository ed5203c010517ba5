//! Building blocks of the middleware: readiness that is only tried, a gate with a line, and on top of
//! it the semaphore and the queue. No runtime, no allocator, no unsafe code.
//!
//! The state machines know neither lock nor storage. `gate` and `queue` are plain values over a `slab`, whose
//! nodes are on the heap or in place; a `lock` lends them to one at a time. What belongs to the user (wakers,
//! requests, responses) is woken and dropped outside of it, always.

pub(crate) mod counter;
pub(crate) mod credits;
pub(crate) mod gate;
pub(crate) mod heap;
pub(crate) mod lock;
#[cfg(all(test, loom))]
pub(crate) mod models;
pub(crate) mod primitives;
pub(crate) mod queue;
pub(crate) mod semaphore;
pub(crate) mod slab;
pub(crate) mod storage;
#[cfg(feature = "std")]
pub(crate) mod wakes;
#[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
pub(crate) mod word;

use core::mem::swap;
use core::task::{Context, Waker};

/// The waker of a poll that does not wait: it wakes nobody, so there is no use in remembering it.
///
/// A static of this crate's, because `Waker::noop()` may give another address in each crate that
/// calls it, and `will_wake` compares addresses.
static NOBODY: &Waker = Waker::noop();

/// Polls once, without waiting: a limiter that is not free then enqueues no waiter.
pub(crate) fn attempt<T>(poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
    poll(&mut Context::from_waker(NOBODY))
}

/// Whether this poll is an [`attempt`].
#[inline]
pub(crate) fn is_attempt(cx: &Context<'_>) -> bool {
    // Its data says nothing, so that the functions are enough to tell.
    core::ptr::eq(cx.waker().vtable(), NOBODY.vtable())
}

/// Polls under a lock, and where that needs a waker of its own once more with a clone of the task's.
///
/// To clone a waker is to run code of the user's, and so is to drop the one that `poll` leaves in its
/// place: both happen here, outside the lock.
pub(crate) fn with_waker<T>(
    cx: &Context<'_>,
    mut poll: impl FnMut(&mut Option<Waker>) -> Option<T>,
) -> T {
    let mut waker = None;
    loop {
        if let Some(polled) = poll(&mut waker) {
            return polled;
        }
        waker = Some(cx.waker().clone());
    }
}

/// Has `slot` wake the task: it does already, or it swaps its waker for the one that [`with_waker`] brings.
///
/// `None` where that is not there yet.
pub(crate) fn register(
    slot: &mut Option<Waker>,
    cx: &Context<'_>,
    waker: &mut Option<Waker>,
) -> Option<()> {
    if !matches!(slot, Some(slot) if slot.will_wake(cx.waker())) {
        waker.as_ref()?;
        swap(slot, waker);
    }
    Some(())
}

/// Wakes when it is dropped, and so also when something of the user's panics before.
pub(crate) struct Late(pub(crate) Option<Waker>);

impl Drop for Late {
    fn drop(&mut self) {
        wake(self.0.take());
    }
}

/// Wakes who is next, outside the lock.
pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
