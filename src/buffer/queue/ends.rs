//! The ends of a queue: a [`Sender`] for each handle, a [`Reply`] for each message, the worker's [`Receiver`], and a
//! [`Closing`] for each task that waits for the worker's end.

use core::iter::from_fn;
use core::mem::{swap, take};
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use futures_core::TryFuture;

use super::Queue;
use super::state::{End, Phase, Refusal, Refused, Removed, Ticket, Work};
use crate::sync::fast_permits::FastPermits;
use crate::sync::slab::Index;
use crate::sync::storage::Storage;
use crate::sync::wait_queue::{Acquisition, Full};
use crate::sync::{
    WakeAllIgnoringPanics, WakeAllOnDrop, WakeOnDrop, for_all, register, wake, wake_all, with_waker,
};

/// A handle of a queue, with the room that it has reserved for one message, or its place in the wait queue for room.
///
/// The queue drains once its last sender is gone.
pub(crate) struct Sender<Q: Queue> {
    queue: Q,
    acquisition: Acquisition,
}

impl<Q: Queue> Sender<Q> {
    /// One more sender of `queue`.
    pub(crate) fn new(queue: Q) -> Self {
        queue.with(|state| state.handles += 1);
        Self {
            queue,
            acquisition: Acquisition::Idle,
        }
    }

    /// The first sender of `queue`; `None` if that has, or ever had, another.
    pub(crate) fn open(queue: Q) -> Option<Self> {
        let is_new = queue.with(|state| {
            let is_new = state.handles == 0 && matches!(state.phase, Phase::Open);
            state.handles += usize::from(is_new);
            is_new
        });
        is_new.then(|| Self {
            queue,
            acquisition: Acquisition::Idle,
        })
    }

    /// The worker's end. There is only one for a queue.
    pub(crate) fn receiver(&self) -> Receiver<Q> {
        Receiver {
            queue: self.queue.clone(),
        }
    }

    /// Waits until the worker has ended.
    #[cfg(feature = "std")]
    pub(crate) fn closing(&self) -> Closing<Q> {
        Closing {
            queue: self.queue.clone(),
            acquisition: Acquisition::Idle,
        }
    }

    /// Why the queue accepts no more messages, if it does not.
    pub(crate) fn end(&self) -> Option<End<Q::Failure>> {
        self.queue.with(|state| state.end())
    }

    /// For how many more messages there is room.
    pub(crate) fn capacity(&self) -> usize {
        self.queue.with(|state| {
            let fast_permits = self.queue.fast_permits().map_or(0, FastPermits::count);
            Q::Storage::view(&mut state.room).permits() + fast_permits
        })
    }

    /// Reserves room for one message.
    #[inline]
    pub(crate) fn poll_reserve(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Refusal<Q::Failure>>> {
        if self.takes_fast_permit() {
            return Poll::Ready(Ok(()));
        }
        self.poll_room(cx)
    }

    /// Takes a fast permit, if nothing is reserved and there is one.
    #[inline]
    fn takes_fast_permit(&mut self) -> bool {
        let takes = matches!(self.acquisition, Acquisition::Idle)
            && self.queue.fast_permits().is_some_and(FastPermits::take);
        if takes {
            self.acquisition = Acquisition::Acquired;
        }
        takes
    }

    /// Reserves room for one message, and turns the rest into fast permits; or joins the wait queue.
    #[cold]
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal<Q::Failure>>> {
        let Self { queue, acquisition } = self;
        with_waker(cx, |waker| {
            queue.with(|state| {
                if let Some(end) = state.end() {
                    return Some(Poll::Ready(Err(end.into())));
                }
                let fast_permits = queue.fast_permits();
                // Another task may have added some since.
                if matches!(acquisition, Acquisition::Idle)
                    && fast_permits.is_some_and(FastPermits::take)
                {
                    *acquisition = Acquisition::Acquired;
                }
                let room = Q::Storage::view(&mut state.room);
                let polled = room.poll(acquisition, cx, waker)?;
                if let Some(fast_permits) = fast_permits.filter(|_| room.permits() > 0) {
                    fast_permits.add(room.take_permits());
                }
                Some(polled.map(|room| room.map_err(|Full| Refusal::Full)))
            })
        })
    }

    /// Gives up the room, or the place in the wait queue.
    pub(crate) fn unreserve(&mut self) {
        let Self { queue, acquisition } = self;
        if !matches!(acquisition, Acquisition::Idle) {
            let released = queue.with(|state| Q::Storage::view(&mut state.room).leave(acquisition));
            released.finish();
        }
    }

    /// Sends a message in the reserved room. Without room it comes back, with what was reserved, in a sender of its own.
    #[inline]
    pub(crate) fn try_send(
        &mut self,
        message: Q::Message,
    ) -> Result<Result<Reply<Q>, End<Q::Failure>>, (Q::Message, Self)> {
        if let Acquisition::Acquired = self.acquisition {
            return Ok(self.send(message));
        }
        let mut waiting = self.clone();
        swap(&mut waiting.acquisition, &mut self.acquisition);
        Err((message, waiting))
    }

    /// Sends a message in the reserved room. The worker is woken if it waits for a message.
    #[inline]
    pub(crate) fn send(&mut self, message: Q::Message) -> Result<Reply<Q>, End<Q::Failure>> {
        self.acquisition = Acquisition::Idle;
        let mut reply = Reply {
            queue: self.queue.clone(),
            ticket: Ticket::Void,
        };
        let sent = self.queue.with(|state| {
            if let Some(end) = state.end() {
                return Err((message, end));
            }
            // There is a slot, since there was room.
            let Some((index, slot)) = state.slots.claim() else {
                return Err((message, End::Closed));
            };
            slot.message = Some(message);
            state.line.push_back(&mut state.slots, index);
            reply.ticket = Ticket::New(index);
            Ok(if take(&mut state.worker_is_idle) {
                state.worker.take()
            } else {
                None
            })
        });
        match sent {
            Ok(worker) => {
                wake(worker);
                Ok(reply)
            }
            Err((message, end)) => {
                drop(message);
                Err(end)
            }
        }
    }

    /// Makes the worker keep its service ready while there is no message.
    pub(crate) fn keep_ready(&self) {
        wake(self.queue.with(|state| {
            state.keep_ready = true;
            state.worker.take()
        }));
    }

    /// Makes the queue accept no more messages; queued ones are still served.
    pub(crate) fn close(&self) {
        let worker = self.queue.with(|state| {
            matches!(state.phase, Phase::Open).then(|| {
                state.phase = Phase::Draining;
                self.queue.revoke_fast_permits();
                state.worker.take()
            })
        });
        if let Some(mut worker) = worker {
            let room = || {
                self.queue
                    .with(|state| Q::Storage::view(&mut state.room).release())
            };
            wake_all(from_fn(|| worker.take().or_else(room)));
        }
    }
}

/// A clone has reserved nothing.
impl<Q: Queue> Clone for Sender<Q> {
    fn clone(&self) -> Self {
        Self::new(self.queue.clone())
    }
}

impl<Q: Queue> Drop for Sender<Q> {
    fn drop(&mut self) {
        let Self { queue, acquisition } = self;
        let (worker, released) = queue.with(|state| {
            let released = Q::Storage::view(&mut state.room).leave(acquisition);
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
}

/// A message that was sent, whose answer is awaited. Dropping it takes the message out of the queue, or drops the answer.
pub(crate) struct Reply<Q: Queue> {
    queue: Q,
    ticket: Ticket,
}

impl<Q: Queue> Reply<Q> {
    /// Waits for the answer, or for the end of the queue. The answer is then in `answer`, which must be empty before, and
    /// the slot is free. Pending once it is complete.
    #[inline]
    pub(crate) fn poll(
        &mut self,
        mut answer: Pin<&mut Option<Q::Answer>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End<Q::Failure>>> {
        let Self { queue, ticket } = self;
        let (index, mut waker) = match *ticket {
            // The waker will be needed.
            Ticket::New(index) => (index, Some(cx.waker().clone())),
            Ticket::Polled(index) => (index, None),
            // Polled again after completion.
            Ticket::Void => return Poll::Pending,
        };
        let (removed, end) = loop {
            let polled = queue.with(|state| {
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

    /// Gives up the message, wherever it is, or its answer.
    #[cold]
    fn abandon(&self, index: Index) {
        let mut answer = None;
        let (removed, worker) = self.queue.with(|state| {
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
}

impl<Q: Queue> Drop for Reply<Q> {
    #[inline]
    fn drop(&mut self) {
        if let Ticket::New(index) | Ticket::Polled(index) = self.ticket {
            self.abandon(index);
        }
    }
}

/// The worker's end of a queue. Dropping it closes the queue.
pub(crate) struct Receiver<Q: Queue> {
    queue: Q,
}

impl<Q: Queue> Receiver<Q> {
    /// Takes the first message from the queue. If there is none, the worker is woken when that changes.
    ///
    /// [Answer](Self::answer) the message or [put it back](Self::put_back).
    #[inline]
    pub(crate) fn next(&self, cx: &mut Context<'_>) -> Work<Q::Message> {
        with_waker(cx, |waker| self.queue.with(|state| state.next(cx, waker)))
    }

    /// Puts the message taken last back, since the service is not ready for it. The worker is woken when there is nothing
    /// left to be ready for; returns `Ready` if that is already so. A message that was given up stays in `message`.
    #[inline]
    pub(crate) fn put_back(
        &self,
        message: &mut Option<Q::Message>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        // A waker that panics must not end the worker.
        let mut next = WakeAllIgnoringPanics([None]);
        with_waker(cx, |waker| {
            self.queue.with(|state| {
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
    #[inline]
    pub(crate) fn answer(
        &self,
        answer: &mut Option<Q::Answer>,
        is_last: bool,
        cx: &mut Context<'_>,
    ) -> Work<Q::Message> {
        // The waker will be needed.
        let mut waker = is_last.then(|| cx.waker().clone());
        let (answered, work) =
            (self.queue).with(|state| (state.answer(answer), state.next(cx, &mut waker)));
        answered.finish(answer);
        work.unwrap_or_else(|| self.next(cx))
    }

    /// The end of a queue whose service has failed.
    pub(crate) fn failed(&self, error: <Q::Answer as TryFuture>::Error) -> End<Q::Failure> {
        End::Failed(self.queue.share(error))
    }

    /// Ends the queue: drops whatever is not answered, and tells all that wait why.
    pub(crate) fn close(&self, end: End<Q::Failure>) {
        let ended = self.queue.with(|state| {
            if let Phase::Ended(_) = state.phase {
                return None;
            }
            state.phase = Phase::Ended(end);
            self.queue.revoke_fast_permits();
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
        let all = from_fn(|| {
            first
                .take()
                .or_else(|| self.queue.with(|state| state.refuse()))
        });
        for_all(all, |refused| {
            let _waiter = WakeOnDrop(refused.waiter);
            drop((refused.message, refused.worker));
        });
    }
}

impl<Q: Queue> Drop for Receiver<Q> {
    fn drop(&mut self) {
        self.close(End::Closed);
    }
}

/// Waits until the worker has ended.
pub(crate) struct Closing<Q: Queue> {
    queue: Q,
    acquisition: Acquisition,
}

impl<Q: Queue> Closing<Q> {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { queue, acquisition } = self;
        with_waker(cx, |waker| {
            queue.with(|state| match state.phase {
                Phase::Ended(_) => Some(Poll::Ready(())),
                Phase::Open | Phase::Draining => {
                    Some(state.end.poll(acquisition, cx, waker)?.map(|_| ()))
                }
            })
        })
    }
}

impl<Q: Queue> Drop for Closing<Q> {
    fn drop(&mut self) {
        let Self { queue, acquisition } = self;
        let released = queue.with(|state| state.end.leave(acquisition));
        released.finish();
    }
}
