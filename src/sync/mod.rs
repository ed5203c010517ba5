//! Building blocks of the middleware: readiness that is only tried, a gate with a line, and on top of
//! it the semaphore and the queue. No runtime, no unsafe code.
//!
//! The state machines know no lock: `gate` and `slab` are plain values, and `semaphore` and `queue` put
//! a lock around them. What belongs to the user (wakers, requests, responses) is woken and dropped
//! outside of it, always.

#[cfg(feature = "std")]
pub(crate) mod gate;
#[cfg(feature = "std")]
pub(crate) mod queue;
#[cfg(feature = "std")]
pub(crate) mod semaphore;
#[cfg(feature = "std")]
pub(crate) mod slab;

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
pub(crate) fn is_attempt(cx: &Context<'_>) -> bool {
    cx.waker().will_wake(NOBODY)
}
