use core::task::{Context, Poll, ready};

use super::{Error, Overflow};
use crate::sync::lock::Sharing;
use crate::sync::semaphore::{FixedSemaphore, Permit, Semaphore};
use crate::sync::wait_queue::Full;

/// A source of permits: a [`Semaphore`]; without an allocator a `&StaticSemaphore` or a `&LocalSemaphore`; with the
/// feature `async-lock` an `Arc<async_lock::Semaphore>`, with `tokio` an `Arc<tokio::sync::Semaphore>`.
pub trait Permits: Clone {
    /// A service's claim to a permit.
    type Claim: Claim;

    /// A claim that holds nothing yet.
    fn claim(&self) -> Self::Claim;
}

/// A claim to a permit: it holds nothing yet, a place in line, or the permit. Dropping it gives that up.
pub trait Claim: Sized {
    /// How a request fails if its service fails with `E`: just with `E`, if claims are never refused.
    type Error<E>: From<E>;

    /// A claim to another permit from the same source, which holds nothing yet.
    #[must_use]
    fn another(&self) -> Self;

    /// Takes the permit, or a place in line. Ready once it holds the permit.
    ///
    /// # Errors
    ///
    /// If the wait queue is full.
    fn poll_acquire<E>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error<E>>>;

    /// Gives up what the claim holds.
    fn release(&mut self);
}

impl Permits for Semaphore {
    type Claim = Permit;

    fn claim(&self) -> Permit {
        Permit::new(self.clone())
    }
}

impl Claim for Permit {
    type Error<E> = E;

    fn another(&self) -> Self {
        Self::new(self.semaphore().clone())
    }

    fn poll_acquire<E>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        // A wait queue on the heap is never full.
        ready!(Self::poll_acquire(self, cx)).map_or(Poll::Pending, |()| Poll::Ready(Ok(())))
    }

    fn release(&mut self) {
        Self::release(self);
    }
}

impl<'a, L: Sharing, const N: usize> Permits for &'a FixedSemaphore<L, N> {
    type Claim = Permit<&'a FixedSemaphore<L, N>>;

    fn claim(&self) -> Self::Claim {
        Permit::new(self)
    }
}

impl<L: Sharing, const N: usize> Claim for Permit<&FixedSemaphore<L, N>> {
    type Error<E> = Error<E>;

    fn another(&self) -> Self {
        Self::new(self.semaphore())
    }

    fn poll_acquire<E>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error<E>>> {
        Self::poll_acquire(self, cx).map_err(|Full| Error::Overflow(Overflow::new()))
    }

    fn release(&mut self) {
        Self::release(self);
    }
}
