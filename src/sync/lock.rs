use core::cell::RefCell;
#[cfg(all(feature = "std", not(loom)))]
use core::hint::spin_loop;
#[cfg(feature = "std")]
use std::sync::PoisonError;
#[cfg(all(feature = "std", not(loom)))]
use std::sync::TryLockError;

#[cfg(feature = "std")]
use super::primitives::{Mutex, MutexGuard};

/// A state that one at a time may use.
///
/// What runs inside is this crate's code alone: it neither comes back here nor panics. So a `RefCell` is never borrowed
/// twice. That it would panic is better than a state that is not lent, for which no `R` could be given but one by which a
/// permit or a wake-up is lost in silence.
pub trait Lock<T> {
    /// Lends the state to `f`.
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R;
}

/// How a state in fixed storage is shared: by a [`CriticalSection`], or on a [`SingleThread`].
pub trait Sharing {
    /// The lock around a `T`.
    #[doc(hidden)]
    type Lock<T>: Lock<T>;
}

/// Shared by tasks and interrupts, by the critical section that the application provides.
#[cfg(feature = "critical-section")]
#[derive(Debug)]
pub enum CriticalSection {}

#[cfg(feature = "critical-section")]
impl Sharing for CriticalSection {
    type Lock<T> = critical_section::Mutex<RefCell<T>>;
}

/// Shared on one thread.
#[derive(Debug)]
pub enum SingleThread {}

impl Sharing for SingleThread {
    type Lock<T> = RefCell<T>;
}

impl<T, L: Lock<T>> Lock<T> for &L {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        (**self).with(f)
    }
}

/// On one thread.
impl<T> Lock<T> for RefCell<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.borrow_mut())
    }
}

/// Between threads.
#[cfg(feature = "std")]
impl<T> Lock<T> for Mutex<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut lock(self))
    }
}

// Nothing panics under a lock of this crate's, so that one which is poisoned all the same guards a state that is whole.

/// Locks, and waits for whoever has it.
#[cfg(all(feature = "std", not(loom)))]
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.try_lock() {
        Ok(state) => state,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => back_off(mutex),
    }
}

/// So many turns are spent before the second look at a lock that is held, as an exponent of two, and before the last one
/// that does not let the thread sleep: some microseconds in all.
#[cfg(all(feature = "std", not(loom)))]
const BACK_OFF: core::ops::RangeInclusive<u32> = 4..=7;

/// Stays away from a lock that is held, for longer each time. Who holds it is done in less time than a thread takes to
/// sleep and to wake, and is held up by everybody who looks: exponential back-off, after T. E. Anderson, "The Performance
/// of Spin Lock Alternatives for Shared-Memory Multiprocessors" (IEEE Transactions on Parallel and Distributed Systems,
/// 1990). With std's own way to wait two threads on one buffer take up to twice as long.
#[cfg(all(feature = "std", not(loom)))]
#[cold]
fn back_off<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    for exponent in BACK_OFF {
        (0..1 << exponent).for_each(|_| spin_loop());
        match mutex.try_lock() {
            Ok(state) => return state,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As loom has it: a model has no time to spend.
#[cfg(all(feature = "std", loom))]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(feature = "std")]
impl<T, L: Lock<T>> Lock<T> for alloc::sync::Arc<L> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        (**self).with(f)
    }
}

/// Between tasks and interrupts, by whatever critical section the application brings.
#[cfg(feature = "critical-section")]
impl<T> Lock<T> for critical_section::Mutex<RefCell<T>> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        critical_section::with(|section| f(&mut self.borrow_ref_mut(section)))
    }
}
