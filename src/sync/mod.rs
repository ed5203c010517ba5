//! Building blocks of the middleware: marks on polls for readiness, permits with a wait queue, locks, and storage. No
//! runtime, no allocator, and unsafe code in `mark` alone.
//!
//! The state machines know neither lock nor storage. A `wait_queue` is a plain value over a `slab`, whose nodes are on
//! the heap or in place; a `lock` lends it to one thread at a time. What belongs to the user (wakers, requests,
//! responses) is always woken and dropped outside of it.

#[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
pub(crate) mod atomic_word;
pub(crate) mod counter;
pub(crate) mod fast_permits;
pub(crate) mod lock;
mod mark;
#[cfg(all(test, loom))]
pub(crate) mod models;
pub(crate) mod primitives;
mod rest;
pub(crate) mod shared;
pub(crate) mod slab;
pub(crate) mod storage;
pub(crate) mod wait_queue;
#[cfg(feature = "std")]
pub(crate) mod wakes;

use core::mem::swap;
#[cfg(feature = "std")]
use core::panic::AssertUnwindSafe;
use core::task::{Context, Waker};
#[cfg(feature = "std")]
use std::panic::{catch_unwind, resume_unwind};

#[cfg(feature = "std")]
pub(crate) use self::mark::is_marked;
pub(crate) use self::mark::{
    Mark, drive, has_request, is_drive, is_try, mark, own_work, prepare, try_poll, withdraw,
};
pub(crate) use self::rest::{leave_rest, leaves_rest};

/// Polls under a lock; if `poll` needs a waker of its own, polls again with a clone of the task's.
///
/// Cloning a waker runs user code, and so does dropping the one that `poll` leaves in its place: both happen here,
/// outside the lock.
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

/// Makes `slot` wake the task: it already does, or it takes the waker that [`with_waker`] brings.
///
/// `None` if that waker is not there yet.
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

/// Wakes when it is dropped, and so even if user code panics before.
pub(crate) struct WakeOnDrop(pub(crate) Option<Waker>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        wake(self.0.take());
    }
}

/// Wakes several tasks when it is dropped, as [`WakeOnDrop`] wakes one.
pub(crate) struct WakeAllOnDrop<const N: usize>(pub(crate) [Option<Waker>; N]);

impl<const N: usize> Drop for WakeAllOnDrop<N> {
    fn drop(&mut self) {
        wake_all(self.0.iter_mut().filter_map(Option::take));
    }
}

/// Wakes several tasks when it is dropped, and contains the panics of their wakers: for a task that serves others, and
/// must not end because of one of them.
pub(crate) struct WakeAllIgnoringPanics<const N: usize>(pub(crate) [Option<Waker>; N]);

impl<const N: usize> Drop for WakeAllIgnoringPanics<N> {
    fn drop(&mut self) {
        ignore_panic(|| wake_all(self.0.iter_mut().filter_map(Option::take)));
    }
}

/// Runs code that may panic without any effect on this task.
#[cfg(feature = "std")]
#[inline]
pub(crate) fn ignore_panic(f: impl FnOnce()) {
    // What panics is not used again. Dropping a panic's payload may panic again.
    core::mem::forget(catch_unwind(AssertUnwindSafe(f)));
}

/// Without `std` no panic is caught.
#[cfg(not(feature = "std"))]
#[inline]
pub(crate) fn ignore_panic(f: impl FnOnce()) {
    f();
}

/// Wakes the next task, outside the lock.
pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Wakes all, outside the lock. A waker that panics does not keep the others from being woken.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for_all(wakers, Waker::wake);
}

/// Applies `f` to all, outside the lock. A panic does not keep the others from their turn: the first one resumes at the
/// end.
#[cfg(feature = "std")]
pub(crate) fn for_all<T>(items: impl IntoIterator<Item = T>, mut f: impl FnMut(T)) {
    let mut panicked = None;
    for item in items {
        // What panics is not used again, so nothing sees the state it was left in.
        match (catch_unwind(AssertUnwindSafe(|| f(item))), &panicked) {
            (Ok(()), _) => {}
            (Err(panic), None) => panicked = Some(panic),
            // Dropping a panic's payload may panic again.
            (Err(panic), Some(_)) => core::mem::forget(panic),
        }
    }
    if let Some(panic) = panicked {
        resume_unwind(panic);
    }
}

/// Applies `f` to all, outside the lock. A panic does not keep the others from their turn.
#[cfg(not(feature = "std"))]
pub(crate) fn for_all<T>(items: impl IntoIterator<Item = T>, f: impl FnMut(T)) {
    struct Rest<I: Iterator, F: FnMut(I::Item)> {
        items: I,
        f: F,
    }

    impl<I: Iterator, F: FnMut(I::Item)> Drop for Rest<I, F> {
        fn drop(&mut self) {
            for item in &mut self.items {
                (self.f)(item);
            }
        }
    }

    let items = items.into_iter();
    let mut rest = Rest { items, f };
    for item in rest.items.by_ref() {
        (rest.f)(item);
    }
}

/// A waker that counts how often it wakes.
#[cfg(all(test, feature = "alloc"))]
#[derive(Default)]
pub(crate) struct WakeCount(pub(crate) core::sync::atomic::AtomicUsize);

#[cfg(all(test, feature = "alloc"))]
impl alloc::task::Wake for WakeCount {
    fn wake(self: alloc::sync::Arc<Self>) {
        self.0.fetch_add(1, core::sync::atomic::Ordering::SeqCst);
    }
}
