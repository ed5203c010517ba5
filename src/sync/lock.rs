use core::cell::RefCell;
#[cfg(all(feature = "std", not(loom)))]
use core::hint::spin_loop;
#[cfg(feature = "std")]
use std::sync::PoisonError;
#[cfg(all(feature = "std", not(loom)))]
use std::sync::TryLockError;

#[cfg(feature = "std")]
use super::primitives::{Mutex, MutexGuard};

/// A state with exclusive access.
///
/// Only this crate's code runs inside, and it neither locks again nor panics. So a `RefCell` is never borrowed twice.
/// A panic would still be better than refusing access: then the only `R` to return would be one that silently loses a
/// permit or a wake-up.
#[allow(unreachable_pub, reason = "`Sharing` names it in a bound")]
pub trait Lock<T> {
    /// Calls `f` with the state.
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

// Nothing panics under a lock of this crate, so the state behind a poisoned lock is still consistent.

/// Locks, and waits while the lock is held.
#[cfg(all(feature = "std", not(loom)))]
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.try_lock() {
        Ok(state) => state,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => back_off(mutex),
    }
}

/// Spins before each further look at a held lock, as exponents of two, from the second look to the last one before
/// the thread may sleep: some microseconds in all.
#[cfg(all(feature = "std", not(loom)))]
const BACK_OFF: core::ops::RangeInclusive<u32> = 4..=7;

/// Looks at a held lock again, at growing intervals. The holder needs less time than a thread takes to sleep and
/// wake, and every look slows it down: exponential backoff, after T. E. Anderson, "The Performance of Spin Lock
/// Alternatives for Shared-Memory Multiprocessors" (IEEE Transactions on Parallel and Distributed Systems, 1990).
/// With std's own way of waiting, two threads on one buffer take up to twice as long.
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

/// With loom: a model has no time to spend.
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

/// Between tasks and interrupts, with the application's critical section.
#[cfg(feature = "critical-section")]
impl<T> Lock<T> for critical_section::Mutex<RefCell<T>> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        critical_section::with(|section| f(&mut self.borrow_ref_mut(section)))
    }
}
