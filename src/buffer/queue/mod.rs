//! The queue of a buffer: its [`State`] behind a lock, and its ends.
//!
//! # The life of a request
//!
//! 1. `poll_ready` of a buffer has its [`Sender`] reserve room: from the fast permits if there are any, otherwise under the
//!    lock. Without room the sender joins the wait queue, and is woken when room is given to it.
//! 2. `call` sends the request in that room. The request gets a slot and joins the line, and the [`Reply`] stays with the
//!    response future. The worker is woken if it waits for a request. A sender without room moves into the response
//!    future, which waits for room and then does the same.
//! 3. The worker takes the first request of the line through its [`Receiver`]. If its service is not ready, it puts the
//!    request back, and the service wakes the worker later.
//! 4. The worker calls the service and leaves the future of the response in the slot as the answer. The room goes to the
//!    first sender that waits for some, which is woken, and so is the task that waits for the answer.
//! 5. The response future takes the answer out of the slot, which is free then, and polls it from there on.
//!
//! A reply that is dropped takes its request out of the line, or drops the answer; if the worker has the request, it drops
//! the answer later. Its room goes to the next sender, and the worker is woken if it waits for readiness on behalf of that
//! request. When the last sender is gone, or the queue was shut down, the queue drains: it accepts nothing more, and the
//! worker ends after the last request. When the worker ends, for whatever reason, all that wait are woken and learn of it.

use core::cell::RefCell;
use core::fmt;

#[cfg(feature = "critical-section")]
use critical_section::Mutex;
use futures_core::TryFuture;

use super::error::{Closed, Error, FixedError, Overflow, Panicked, ServiceError};
use crate::sync::fast_permits::FastPermits;
#[cfg(feature = "critical-section")]
use crate::sync::lock::CriticalSection;
use crate::sync::lock::{Lock, Sharing, SingleThread};
use crate::sync::shared::{Heap, Shared, shared};
use crate::sync::slab::Slab;
use crate::sync::storage::{Growing, Inline, Storage};

mod ends;
mod state;

pub(super) use self::ends::{Closing, Receiver, Reply, Sender};
use self::state::State;
pub(super) use self::state::{End, Refusal, Work};

/// How the handles and the worker of a buffer share its queue: a [`HeapQueue`], a `&`[`StaticQueue`] or a
/// `&`[`LocalQueue`]. Only this crate implements it.
// What it carries are associated types and not parameters: the compiler could not prove that a future with a `dyn` in it
// is `Send` if it had to match one with the other.
pub trait Queue: Clone {
    /// How a buffer with this queue fails.
    type Error: From<<Self::Answer as TryFuture>::Error>;

    /// A request.
    #[doc(hidden)]
    type Message;

    /// The future of a response.
    #[doc(hidden)]
    type Answer: TryFuture;

    /// What all handles see of the error of the service. It is cloned under the lock: a pointer, or a copy.
    #[doc(hidden)]
    type Failure: Clone;

    #[doc(hidden)]
    type Storage: Storage;

    /// Calls `f` with the state, under the lock.
    #[doc(hidden)]
    fn with<O>(&self, f: impl FnOnce(&mut StateOf<Self>) -> O) -> O;

    /// Room that can be taken without the lock.
    #[doc(hidden)]
    fn fast_permits(&self) -> Option<&FastPermits> {
        None
    }

    #[doc(hidden)]
    fn revoke_fast_permits(&self) {
        if let Some(fast_permits) = self.fast_permits() {
            fast_permits.revoke();
        }
    }

    #[doc(hidden)]
    fn share(&self, error: <Self::Answer as TryFuture>::Error) -> Self::Failure;

    #[doc(hidden)]
    fn error(refusal: Refusal<Self::Failure>) -> Self::Error;
}

/// The state of a queue shared as a `Q`.
type StateOf<Q> = State<
    <Q as Queue>::Message,
    <Q as Queue>::Answer,
    <Q as Queue>::Failure,
    <Q as Queue>::Storage,
>;

/// The queue of a buffer on the heap, shared through pointers.
pub struct HeapQueue<Request, F: TryFuture> {
    state: Heap<State<Request, F, Shared<F::Error>, Growing>>,
}

/// The queue of a buffer without an allocator, shared by reference: for `N` requests, and `N` more waiting for room.
///
/// See [`buffer`](crate::buffer#without-an-allocator).
pub struct FixedQueue<L: Sharing, Request, F: TryFuture, const N: usize> {
    state: L::Lock<State<Request, F, F::Error, Inline<N>>>,
}

/// A [`FixedQueue`] for a `static`, shared by tasks and interrupts.
#[cfg(feature = "critical-section")]
pub type StaticQueue<Request, F, const N: usize> = FixedQueue<CriticalSection, Request, F, N>;

/// A [`FixedQueue`] on one thread.
pub type LocalQueue<Request, F, const N: usize> = FixedQueue<SingleThread, Request, F, N>;

impl<Request, F: TryFuture> HeapQueue<Request, F> {
    /// An empty queue for `bound` messages.
    #[cfg(feature = "std")]
    pub(super) fn new(bound: usize) -> Self {
        Self {
            state: Heap::new(State::new(bound, Slab::new(), Slab::new())),
        }
    }
}

impl<Request, F: TryFuture> Clone for HeapQueue<Request, F> {
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
        }
    }
}

#[cfg(feature = "critical-section")]
impl<Request, F: TryFuture<Error: Copy>, const N: usize>
    FixedQueue<CriticalSection, Request, F, N>
{
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        const { InvalidBound::assert(N) };
        let state = State::new(N, Slab::inline(), Slab::inline());
        Self {
            state: Mutex::new(RefCell::new(state)),
        }
    }
}

#[cfg(feature = "critical-section")]
impl<Request, F: TryFuture<Error: Copy>, const N: usize> Default
    for FixedQueue<CriticalSection, Request, F, N>
{
    fn default() -> Self {
        Self::new()
    }
}

impl<Request, F: TryFuture<Error: Copy>, const N: usize> FixedQueue<SingleThread, Request, F, N> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        const { InvalidBound::assert(N) };
        Self {
            state: RefCell::new(State::new(N, Slab::inline(), Slab::inline())),
        }
    }
}

impl<Request, F: TryFuture<Error: Copy>, const N: usize> Default
    for FixedQueue<SingleThread, Request, F, N>
{
    fn default() -> Self {
        Self::new()
    }
}

impl<Request, F: TryFuture> fmt::Debug for HeapQueue<Request, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapQueue").finish_non_exhaustive()
    }
}

impl<Request, F: TryFuture> Queue for HeapQueue<Request, F> {
    type Error = Error<F::Error>;
    type Message = Request;
    type Answer = F;
    type Failure = Shared<F::Error>;
    type Storage = Growing;

    fn with<O>(&self, f: impl FnOnce(&mut StateOf<Self>) -> O) -> O {
        self.state.with(f)
    }

    fn fast_permits(&self) -> Option<&FastPermits> {
        Some(self.state.fast_permits())
    }

    fn share(&self, error: F::Error) -> Self::Failure {
        shared(&self.state, error)
    }

    fn error(refusal: Refusal<Self::Failure>) -> Self::Error {
        match refusal {
            Refusal::Ended(End::Failed(error)) => Error::Failed(ServiceError::new(error)),
            Refusal::Ended(End::Panicked) => Error::Panicked(Panicked::new()),
            // A wait queue on the heap is never full.
            Refusal::Ended(End::Closed) | Refusal::Full => Error::Closed(Closed::new()),
        }
    }
}

impl<L: Sharing, Request, F: TryFuture, const N: usize> fmt::Debug
    for FixedQueue<L, Request, F, N>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FixedQueue").finish_non_exhaustive()
    }
}

impl<L, Request, F, const N: usize> Queue for &FixedQueue<L, Request, F, N>
where
    L: Sharing,
    F: TryFuture<Error: Copy>,
{
    type Error = FixedError<F::Error>;
    type Message = Request;
    type Answer = F;
    type Failure = F::Error;
    type Storage = Inline<N>;

    fn with<O>(&self, f: impl FnOnce(&mut StateOf<Self>) -> O) -> O {
        self.state.with(f)
    }

    fn share(&self, error: F::Error) -> F::Error {
        error
    }

    fn error(refusal: Refusal<F::Error>) -> Self::Error {
        match refusal {
            Refusal::Full => FixedError::Overflow(Overflow::new()),
            Refusal::Ended(End::Closed) => FixedError::Closed(Closed::new()),
            Refusal::Ended(End::Panicked) => FixedError::Panicked(Panicked::new()),
            Refusal::Ended(End::Failed(error)) => FixedError::Failed(error),
        }
    }
}

/// A bound of 0: no request could ever be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidBound(());

impl InvalidBound {
    const MESSAGE: &'static str = "a buffer's bound is 0, and must be at least 1";

    pub(super) const fn check(bound: usize) -> Result<(), Self> {
        if bound == 0 { Err(Self(())) } else { Ok(()) }
    }

    #[track_caller]
    pub(super) const fn assert(bound: usize) {
        assert!(bound != 0, "{}", Self::MESSAGE);
    }
}

impl fmt::Display for InvalidBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::MESSAGE)
    }
}

impl core::error::Error for InvalidBound {}

#[cfg(all(test, feature = "std"))]
mod tests {
    use alloc::format;

    use super::{HeapQueue, LocalQueue};

    type Answer = core::future::Ready<Result<u8, u8>>;

    #[test]
    fn debug_hides_the_contents() {
        let heap = HeapQueue::<u8, Answer>::new(1);
        assert_eq!(format!("{heap:?}"), "HeapQueue { .. }");
        let local = LocalQueue::<u8, Answer, 1>::new();
        assert_eq!(format!("{local:?}"), "FixedQueue { .. }");
        #[cfg(feature = "critical-section")]
        {
            let fixed = super::StaticQueue::<u8, Answer, 1>::new();
            assert_eq!(format!("{fixed:?}"), "FixedQueue { .. }");
        }
    }
}
