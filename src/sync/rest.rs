//! What a call leaves reserved: several parts may have been ready for a request, and one of them is called.
//!
//! A service of several parts says in its call that the others may hold something, and an idle
//! [`Buffer`](crate::buffer) then makes it give that up. No other service is polled after a call: one that does not
//! know the [marks](super::Mark) would reserve something for a request that is not there.
//!
//! This is said through the thread. A call has no context, and nothing else reaches the worker through the middleware
//! and boxes in between.

#[cfg(feature = "std")]
mod on_this_thread {
    use core::cell::Cell;

    std::thread_local! {
        static LEFT: Cell<bool> = const { Cell::new(false) };
    }

    /// Says, in a call, that other parts of the service may hold what they reserved for the request.
    #[inline]
    pub(crate) fn leave_rest() {
        LEFT.set(true);
    }

    /// Runs a call. `true` if it may have [left](leave_rest) something reserved.
    #[inline]
    pub(crate) fn leaves_rest<T>(call: impl FnOnce() -> T) -> (T, bool) {
        let before = LEFT.replace(false);
        let called = call();
        (called, LEFT.replace(before))
    }
}

/// Without `std` the threads share a counter: a call that another thread makes meanwhile may count, too.
#[cfg(all(not(feature = "std"), target_has_atomic = "ptr"))]
mod on_this_thread {
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    static LEFT: AtomicUsize = AtomicUsize::new(0);

    #[inline]
    pub(crate) fn leave_rest() {
        LEFT.fetch_add(1, Relaxed);
    }

    #[inline]
    pub(crate) fn leaves_rest<T>(call: impl FnOnce() -> T) -> (T, bool) {
        let before = LEFT.load(Relaxed);
        let called = call();
        (called, LEFT.load(Relaxed) != before)
    }
}

/// Without atomic additions there is nothing to say it through, and every call may have left something.
#[cfg(all(not(feature = "std"), not(target_has_atomic = "ptr")))]
mod on_this_thread {
    #[inline]
    pub(crate) fn leave_rest() {}

    #[inline]
    pub(crate) fn leaves_rest<T>(call: impl FnOnce() -> T) -> (T, bool) {
        (call(), true)
    }
}

pub(crate) use on_this_thread::{leave_rest, leaves_rest};
