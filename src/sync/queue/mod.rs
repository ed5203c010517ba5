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
use core::iter::from_fn;
use core::mem::{swap, take};
use core::pin::Pin;
use core::task::{Context, Poll, ready};

#[cfg(feature = "critical-section")]
use critical_section::Mutex;
use futures_core::TryFuture;

use self::state::{Phase, Refused, Removed};
use crate::sync::fast_permits::FastPermits;
#[cfg(feature = "critical-section")]
use crate::sync::lock::CriticalSection;
use crate::sync::lock::{Lock, Sharing, SingleThread};
use crate::sync::shared::{Heap, Shared};
use crate::sync::slab::{Index, Slab};
use crate::sync::storage::{Growing, Inline, Storage};
use crate::sync::wait_queue::{Acquisition, Full};
use crate::sync::{
    WakeAllIgnoringPanics, WakeAllOnDrop, WakeOnDrop, for_all, register, wake, wake_all, with_waker,
};

mod ends;
mod state;

pub(crate) use self::ends::{Receiver, Reply, Sender};
pub(crate) use self::state::{End, Refusal, State, Ticket, Work};

/// The state of a queue shared as a `Q`.
type StateOf<Q> = State<
    <Q as Channel>::Message,
    <Q as Channel>::Answer,
    <Q as Channel>::Failure,
    <Q as Channel>::Storage,
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
    /// An empty queue for `bound` messages, with one handle.
    #[cfg(feature = "std")]
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            state: Heap::new(State::new(bound, 1, Slab::new(), Slab::new())),
        }
    }

    /// Shares `value` like the state.
    pub(crate) fn shared<T>(&self, value: T) -> Shared<T> {
        super::shared::shared(&self.state, value)
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
        let state = State::new(N, 0, Slab::inline(), Slab::inline());
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
            state: RefCell::new(State::new(N, 0, Slab::inline(), Slab::inline())),
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

impl<T, F: TryFuture> Channel for HeapQueue<T, F> {
    type Message = T;
    type Answer = F;
    type Failure = Shared<F::Error>;
    type Storage = Growing;

    fn with<O>(&self, f: impl FnOnce(&mut StateOf<Self>) -> O) -> O {
        self.state.with(f)
    }

    fn fast_permits(&self) -> Option<&FastPermits> {
        Some(self.state.fast_permits())
    }
}

impl<L: Sharing, Request, F: TryFuture, const N: usize> fmt::Debug
    for FixedQueue<L, Request, F, N>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FixedQueue").finish_non_exhaustive()
    }
}

impl<L, Request, F, const N: usize> Channel for &FixedQueue<L, Request, F, N>
where
    L: Sharing,
    F: TryFuture<Error: Copy>,
{
    type Message = Request;
    type Answer = F;
    type Failure = F::Error;
    type Storage = Inline<N>;

    fn with<O>(&self, f: impl FnOnce(&mut StateOf<Self>) -> O) -> O {
        self.state.with(f)
    }
}

/// A handle to a queue, however it is shared.
///
/// What it carries are associated types and not parameters of the trait: the compiler could not prove that a future
/// with a `dyn` in it is `Send` if it had to match one with the other.
pub trait Channel: Clone {
    /// The message that is sent.
    type Message;
    /// The answer. Its error type is that of the worker's service.
    type Answer: TryFuture;
    /// What all senders see of the error of the worker's service.
    ///
    /// It is cloned under the lock: a pointer, or a copy.
    type Failure: Clone;
    /// How messages are stored.
    type Storage: Storage;

    /// Calls `f` with the state.
    fn with<O>(&self, f: impl FnOnce(&mut StateOf<Self>) -> O) -> O;

    /// Room that can be taken without the state.
    fn fast_permits(&self) -> Option<&FastPermits> {
        None
    }

    /// Takes room without the state.
    fn take_fast_permit(&self) -> bool {
        self.fast_permits().is_some_and(FastPermits::take)
    }

    /// Removes all room that could be taken without the state.
    fn revoke_fast_permits(&self) {
        if let Some(fast_permits) = self.fast_permits() {
            fast_permits.revoke();
        }
    }

    // The senders' side.

    /// Makes the first handle, once.
    fn open(&self) -> bool {
        self.with(|state| {
            let fresh = state.handles == 0 && matches!(state.phase, Phase::Open);
            state.handles += usize::from(fresh);
            fresh
        })
    }

    fn add_handle(&self) {
        self.with(|state| state.handles += 1);
    }

    /// Removes a handle, and gives back its room or its place in the wait queue.
    fn drop_handle(&self, acquisition: &mut Acquisition) {
        let (worker, released) = self.with(|state| {
            let released = Self::Storage::view(&mut state.room).leave(acquisition);
            state.handles -= 1;
            if state.handles > 0 {
                return (None, released);
            }
            // For good: a queue is opened only once.
            if let Phase::Open = state.phase {
                state.phase = Phase::Draining;
            }
            (state.worker.take(), released)
        });
        let (next, left) = released.into_parts();
        let _wakes = WakeAllOnDrop([next, worker]);
        drop(left);
    }

    /// Why the queue accepts no more messages, if it does not.
    fn end(&self) -> Option<End<Self::Failure>> {
        self.with(|state| state.end())
    }

    /// Takes room for one message.
    #[inline]
    fn poll_reserve(
        &self,
        acquisition: &mut Acquisition,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Refusal<Self::Failure>>> {
        if matches!(acquisition, Acquisition::Idle) && self.take_fast_permit() {
            *acquisition = Acquisition::Acquired;
            return Poll::Ready(Ok(()));
        }
        self.poll_room(acquisition, cx)
    }

    /// Takes room for one message, and turns the rest into fast permits; or joins the wait queue.
    #[cold]
    fn poll_room(
        &self,
        acquisition: &mut Acquisition,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Refusal<Self::Failure>>> {
        with_waker(cx, |waker| {
            self.with(|state| {
                if let Some(end) = state.end() {
                    return Some(Poll::Ready(Err(end.into())));
                }
                // Another task may have made some since.
                if matches!(acquisition, Acquisition::Idle) && self.take_fast_permit() {
                    *acquisition = Acquisition::Acquired;
                }
                let room = Self::Storage::view(&mut state.room);
                let polled = room.poll(acquisition, cx, waker)?;
                if let Some(fast_permits) = self.fast_permits().filter(|_| room.permits() > 0) {
                    fast_permits.add(room.take_permits());
                }
                Some(polled.map(|room| room.map_err(|Full| Refusal::Full)))
            })
        })
    }

    /// Gives back room, or the place in the wait queue.
    fn unreserve(&self, acquisition: &mut Acquisition) {
        if !matches!(acquisition, Acquisition::Idle) {
            let released =
                self.with(|state| Self::Storage::view(&mut state.room).leave(acquisition));
            released.finish();
        }
    }

    /// Queues a message, in the room that was [reserved](Self::poll_reserve) for it.
    fn send(
        &self,
        message: Self::Message,
        ticket: &mut Ticket,
    ) -> Result<(), (Self::Message, End<Self::Failure>)> {
        let worker = self.with(|state| {
            if let Some(end) = state.end() {
                return Err((message, end));
            }
            // There is a slot, since there was room.
            let Some((index, slot)) = state.slots.claim() else {
                return Err((message, End::Closed));
            };
            slot.message = Some(message);
            state.line.push_back(&mut state.slots, index);
            *ticket = Ticket::New(index);
            Ok(if take(&mut state.worker_is_idle) {
                state.worker.take()
            } else {
                None
            })
        })?;
        wake(worker);
        Ok(())
    }

    /// Waits for the answer, or for the end of the queue. The answer is then in `answer`, which must be empty before,
    /// and the slot is free.
    fn poll_answer(
        &self,
        ticket: &mut Ticket,
        mut answer: Pin<&mut Option<Self::Answer>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End<Self::Failure>>> {
        let (index, mut waker) = match *ticket {
            // The waker will be needed.
            Ticket::New(index) => (index, Some(cx.waker().clone())),
            Ticket::Polled(index) => (index, None),
            // Polled again after completion.
            Ticket::Void => return Poll::Pending,
        };
        let (removed, end) = loop {
            let polled = self.with(|state| {
                let Some(slot) = state.slots.get_mut(index) else {
                    return Some(Poll::Ready((Removed::default(), None)));
                };
                let end = match &state.phase {
                    Phase::Ended(end) => Some(end.clone()),
                    Phase::Open | Phase::Draining => None,
                };
                if slot.answer.is_some() {
                    answer.set(slot.answer.take());
                } else if end.is_none() {
                    register(&mut slot.sender, cx, &mut waker)?;
                    *ticket = Ticket::Polled(index);
                    return Some(Poll::Pending);
                }
                *ticket = Ticket::Void;
                Some(Poll::Ready((state.remove(index), end)))
            });
            match polled {
                Some(polled) => break ready!(polled),
                None => waker = Some(cx.waker().clone()),
            }
        };
        wake(removed.next);
        Poll::Ready(if answer.is_some() {
            Ok(())
        } else {
            Err(end.unwrap_or(End::Closed))
        })
    }

    /// Gives up a message wherever it is, or its answer.
    #[cold]
    fn abandon(&self, index: Index) {
        let mut answer = None;
        let (removed, worker) = self.with(|state| {
            let ended = matches!(state.phase, Phase::Ended(_));
            if let Some(slot) = state.slots.get_mut(index) {
                swap(&mut answer, &mut slot.answer);
                if slot.message.is_none() && answer.is_none() && !ended {
                    slot.is_abandoned = true;
                    let sender = slot.sender.take();
                    return (
                        Removed {
                            sender,
                            ..Removed::default()
                        },
                        None,
                    );
                }
            }
            // The worker waits on behalf of this message, and may wait for nothing else.
            let is_awaited = state.put_back == Some(index);
            let removed = state.remove(index);
            let is_over = removed.message.is_some() && state.is_done();
            let worker = (is_awaited || is_over).then(|| state.worker.take());
            (removed, worker.flatten())
        });
        // The task that gets the room finds the message already dropped.
        let _wakes = WakeAllOnDrop([removed.next, worker]);
        drop((removed.message, answer, removed.sender));
    }

    /// Makes the worker keep its service ready while there is no message.
    fn keep_ready(&self) {
        wake(self.with(|state| {
            state.keep_ready = true;
            state.worker.take()
        }));
    }

    /// Accepts no more messages; queued ones are still served.
    fn shut_down(&self) {
        let worker = self.with(|state| {
            matches!(state.phase, Phase::Open).then(|| {
                state.phase = Phase::Draining;
                self.revoke_fast_permits();
                state.worker.take()
            })
        });
        if let Some(mut worker) = worker {
            let room = || self.with(|state| Self::Storage::view(&mut state.room).release());
            wake_all(from_fn(|| worker.take().or_else(room)));
        }
    }

    /// Waits until the worker has ended.
    fn poll_end(&self, acquisition: &mut Acquisition, cx: &mut Context<'_>) -> Poll<()> {
        with_waker(cx, |waker| {
            self.with(|state| match state.phase {
                Phase::Ended(_) => Some(Poll::Ready(())),
                Phase::Open | Phase::Draining => {
                    Some(state.end.poll(acquisition, cx, waker)?.map(|_| ()))
                }
            })
        })
    }

    /// Stops waiting for the end.
    fn leave_end(&self, acquisition: &mut Acquisition) {
        let released = self.with(|state| state.end.leave(acquisition));
        released.finish();
    }

    // The worker's side.

    /// Takes the first message from the queue. If there is none, the worker is woken when that changes.
    ///
    /// [Answer](Self::answer) the message or [put it back](Self::put_back).
    fn next(&self, cx: &mut Context<'_>) -> Work<Self::Message> {
        with_waker(cx, |waker| self.with(|state| state.next(cx, waker)))
    }

    /// Puts the message taken last back, since the service is not ready for it. The worker is woken when there is
    /// nothing left to be ready for; returns `Ready` if that is already so. A message that was given up stays in
    /// `message`.
    fn put_back(&self, message: &mut Option<Self::Message>, cx: &mut Context<'_>) -> Poll<()> {
        // A waker that panics must not end the worker.
        let mut next = WakeAllIgnoringPanics([None]);
        with_waker(cx, |waker| {
            self.with(|state| {
                next.0 = [state.put_back(message).or(next.0[0].take())];
                if state.is_done() {
                    return Some(Poll::Ready(()));
                }
                register(&mut state.worker, cx, waker)?;
                Some(Poll::Pending)
            })
        })
    }

    /// Answers the message taken last, and takes the [next](Self::next), if there is one.
    fn answer(
        &self,
        answer: &mut Option<Self::Answer>,
        is_last: bool,
        cx: &mut Context<'_>,
    ) -> Work<Self::Message> {
        // The waker will be needed.
        let mut waker = is_last.then(|| cx.waker().clone());
        let (answered, work) =
            self.with(|state| (state.answer(answer), state.next(cx, &mut waker)));
        answered.finish(answer);
        work.unwrap_or_else(|| self.next(cx))
    }

    /// Ends the queue: drops whatever is not answered, and tells all waiters why.
    fn close(&self, end: End<Self::Failure>) {
        let ended = self.with(|state| {
            if let Phase::Ended(_) = state.phase {
                return None;
            }
            state.phase = Phase::Ended(end);
            self.revoke_fast_permits();
            // A message that was given up has no sender.
            let taken = state.taken.take();
            let sender = taken.and_then(|index| state.slots.get_mut(index)?.sender.take());
            Some((sender, state.worker.take()))
        });
        let Some((sender, worker)) = ended else {
            return;
        };
        // The slots stay for their senders, which take the reason from them.
        let mut first = Some(Refused {
            waiter: sender,
            worker,
            ..Refused::default()
        });
        let all = from_fn(|| first.take().or_else(|| self.with(State::refuse)));
        for_all(all, |refused| {
            let _waiter = WakeOnDrop(refused.waiter);
            drop((refused.message, refused.worker));
        });
    }
}
/// A bound of 0: no request could ever be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidBound(());

impl InvalidBound {
    const MESSAGE: &'static str = "a buffer's bound is 0, and must be at least 1";

    pub(crate) const fn check(bound: usize) -> Result<(), Self> {
        if bound == 0 { Err(Self(())) } else { Ok(()) }
    }

    #[track_caller]
    pub(crate) const fn assert(bound: usize) {
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
