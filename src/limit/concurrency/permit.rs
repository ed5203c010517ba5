use core::fmt;
use core::task::{Context, Poll};

use super::Semaphore;

/// A semaphore that a limit takes its permits from: a [`Semaphore`]; without an allocator a `&StaticSemaphore` or a
/// `&LocalSemaphore`; with the feature `async-lock` an `Arc<async_lock::Semaphore>`, with `tokio` an
/// `Arc<tokio::sync::Semaphore>`.
///
/// A clone is the same semaphore.
pub trait Permits: Clone {
    /// How far a permit is acquired: not at all, which is the default, a place in the wait queue, or the permit itself.
    type Acquisition: Default + fmt::Debug;

    /// How a request fails if its service fails with `E`: just with `E`, if no task is ever refused.
    type Error<E>: From<E>;

    /// Acquires a permit, or joins the wait queue. Ready once the permit is held, and whenever it is polled after that.
    ///
    /// # Errors
    ///
    /// If the semaphore refuses the task. It is not in the wait queue then.
    fn poll_acquire<E>(
        &self,
        acquisition: &mut Self::Acquisition,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Self::Error<E>>>;

    /// Returns the permit, or leaves the wait queue.
    fn release(&self, acquisition: &mut Self::Acquisition);
}

/// A permit, a place in the wait queue of its semaphore, or neither yet. Dropping it gives that up.
pub struct Permit<M: Permits = Semaphore> {
    semaphore: M,
    acquisition: M::Acquisition,
}

impl<M: Permits> Permit<M> {
    /// Not yet acquired.
    pub(crate) fn new(semaphore: M) -> Self {
        Self {
            semaphore,
            acquisition: M::Acquisition::default(),
        }
    }

    /// Another one from the same semaphore, not yet acquired.
    pub(super) fn another(&self) -> Self {
        Self::new(self.semaphore.clone())
    }

    #[inline]
    pub(crate) fn poll_acquire<E>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), M::Error<E>>> {
        self.semaphore.poll_acquire(&mut self.acquisition, cx)
    }

    #[inline]
    pub(crate) fn release(&mut self) {
        self.semaphore.release(&mut self.acquisition);
    }
}

impl<M: Permits> Drop for Permit<M> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<M: Permits> fmt::Debug for Permit<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("acquisition", &self.acquisition)
            .finish_non_exhaustive()
    }
}
