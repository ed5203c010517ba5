use core::cell::RefCell;

/// A state that one at a time may use.
///
/// What runs inside is this crate's code alone: it neither comes back here nor panics. So a `RefCell` is never borrowed
/// twice. That it would panic is better than a state that is not lent, for which no `R` could be given but one by which a
/// permit or a wake-up is lost in silence.
pub(crate) trait Lock<T> {
    /// Lends the state to `f`.
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R;
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
impl<T> Lock<T> for super::primitives::Mutex<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // Nothing panics inside, so that a lock which is poisoned all the same guards a state that is whole.
        f(&mut self
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }
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
