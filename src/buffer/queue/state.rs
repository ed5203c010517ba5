//! The state of a queue: a plain value, without a lock.

use core::mem::swap;
use core::task::{Context, Waker};

use crate::sync::slab::{Index, List, Nodes, Slab, Vacant};
use crate::sync::storage::{Growing, Storage, Waiters};
use crate::sync::wait_queue::WaitQueue;
use crate::sync::{WakeAllIgnoringPanics, ignore_panic, register, wake};

/// Requests on their way to a worker, and answers on their way back: a queue without its lock.
///
/// `T` is the message, `R` the answer, and `P` what all senders see of the error of the worker's service. A message
/// has a slot from [`send`](super::Sender::send) until its answer is taken or given up. Slots are reused, so nothing
/// allocates once the table has reached its working size.
#[expect(missing_debug_implementations, reason = "nobody outside sees one")]
pub struct State<T, R, P, S: Storage> {
    pub(super) slots: Slab<S::Nodes<Slot<T, R>>>,
    pub(super) line: List,
    /// A permit for each message that is queued or with the worker; if slots are `FIXED`, for each slot.
    pub(super) room: WaitQueue<Waiters<S>>,
    pub(super) handles: usize,
    pub(super) worker: Option<Waker>,
    /// The worker waits for a message, and not for its service.
    pub(super) worker_is_idle: bool,
    /// The worker keeps its service ready while there is no message.
    pub(super) keep_ready: bool,
    /// The message that the worker is busy with.
    pub(super) taken: Option<Index>,
    /// The first message, if the worker has put it back: the service waits for readiness on its behalf.
    pub(super) put_back: Option<Index>,
    pub(super) phase: Phase<P>,
    /// Closed until the worker has ended.
    pub(super) end: WaitQueue<Waiters<Growing>>,
}

/// A message on its way. Message and answer are separate, so that neither moves with the other.
pub(crate) struct Slot<T, R> {
    /// Present while it is queued; then the worker has it.
    pub(super) message: Option<T>,
    /// Present once the worker has answered.
    pub(super) answer: Option<R>,
    /// The waker of the waiting sender.
    pub(super) sender: Option<Waker>,
    /// The sender gave up while the worker had the message.
    pub(super) is_abandoned: bool,
}

impl<T, R> Vacant for Slot<T, R> {
    const VACANT: Self = Self {
        message: None,
        answer: None,
        sender: None,
        is_abandoned: false,
    };
}

pub(super) enum Phase<P> {
    Open,
    /// No more messages are accepted; queued ones are still served.
    Draining,
    Ended(End<P>),
}

/// A sender's reference to its message.
///
/// It changes under the lock, together with the slot: whatever panics afterwards, no sender gives up a slot that has
/// become another's.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ticket {
    /// In the queue, and not polled yet.
    New(Index),
    Polled(Index),
    /// Without a slot.
    Void,
}

/// Why a queue accepts no more messages.
#[derive(Clone, Debug)]
pub enum End<P> {
    /// It was shut down, or the executor dropped the worker.
    Closed,
    /// The worker panicked.
    Panicked,
    /// The service failed.
    Failed(P),
}

/// Why a queue does not accept a message.
#[derive(Debug)]
pub enum Refusal<P> {
    /// The queue of tasks that wait for room is full.
    Full,
    /// It accepts no more messages.
    Ended(End<P>),
}

impl<P> From<End<P>> for Refusal<P> {
    fn from(end: End<P>) -> Self {
        Self::Ended(end)
    }
}

/// What a worker finds when it looks for work.
#[derive(Debug)]
pub(crate) enum Work<T> {
    /// A message, which the worker now has.
    Message {
        /// The message.
        message: T,
        /// No other is queued.
        is_last: bool,
        /// It is the one that was put back last.
        is_same: bool,
    },
    /// There is none. The worker will be woken.
    None {
        /// The service is to be kept ready nevertheless.
        keep_ready: bool,
    },
    /// There is none, and there will be none.
    Ended,
}

impl<T, R, P: Clone, S: Storage> State<T, R, P, S> {
    pub(super) const fn new(
        bound: usize,
        slots: Slab<S::Nodes<Slot<T, R>>>,
        waiters: Slab<Waiters<S>>,
    ) -> Self {
        Self {
            slots,
            line: List::new(),
            room: WaitQueue::new(bound, waiters),
            handles: 0,
            worker: None,
            worker_is_idle: false,
            keep_ready: false,
            taken: None,
            put_back: None,
            phase: Phase::Open,
            end: WaitQueue::new(0, Slab::new()),
        }
    }

    #[inline]
    pub(super) fn end(&self) -> Option<End<P>> {
        match &self.phase {
            Phase::Open => None,
            Phase::Draining => Some(End::Closed),
            Phase::Ended(end) => Some(end.clone()),
        }
    }

    /// There is no message, and there will be none.
    pub(super) fn is_done(&self) -> bool {
        self.line.is_empty() && !matches!(self.phase, Phase::Open)
    }

    /// Removes a message, wherever it is, and makes room. An answer must be taken out of the slot before.
    pub(super) fn remove(&mut self, index: Index) -> Removed<T> {
        let Some(slot) = self.slots.get_mut(index) else {
            return Removed::default();
        };
        slot.is_abandoned = false;
        let message = slot.message.take();
        let sender = slot.sender.take();
        if message.is_some() {
            self.line.unlink(&mut self.slots, index);
            self.put_back.take_if(|first| *first == index);
        }
        self.slots.release(index);
        let makes_room = message.is_some() || S::View::FIXED;
        Removed {
            message,
            sender,
            next: makes_room
                .then(|| S::view(&mut self.room).release())
                .flatten(),
        }
    }

    /// Takes the first message from the queue. It keeps its room until it is answered.
    fn take(&mut self) -> Option<T> {
        self.taken = self.line.pop_front(&mut self.slots);
        self.slots.get_mut(self.taken?)?.message.take()
    }

    /// Takes the first message. If there is none, registers the worker to be woken when that changes.
    ///
    /// `None`: call again with a clone of the task's waker, see [`with_waker`](crate::sync::with_waker).
    pub(super) fn next(&mut self, cx: &Context<'_>, waker: &mut Option<Waker>) -> Option<Work<T>> {
        if let Some(message) = self.take() {
            return Some(Work::Message {
                message,
                is_last: self.line.is_empty(),
                is_same: self.put_back.take() == self.taken,
            });
        }
        if !matches!(self.phase, Phase::Open) {
            return Some(Work::Ended);
        }
        register(&mut self.worker, cx, waker)?;
        self.worker_is_idle = true;
        Some(Work::None {
            keep_ready: self.keep_ready,
        })
    }

    /// Puts the message taken last back where it was. If it was given up, it stays in `message`, and its slot is
    /// free.
    pub(super) fn put_back(&mut self, message: &mut Option<T>) -> Option<Waker> {
        let index = message.as_ref().and(self.taken.take())?;
        let slot = self.slots.get_mut(index)?;
        if slot.is_abandoned {
            let Removed { next, .. } = self.remove(index);
            return next.or_else(|| self.make_room());
        }
        swap(&mut slot.message, message);
        self.line.push_front(&mut self.slots, index);
        self.put_back = Some(index);
        None
    }

    /// Answers the message taken last. An answer that is not wanted stays in `answer`.
    pub(super) fn answer(&mut self, answer: &mut Option<R>) -> Answered {
        let next = self.make_room();
        let taken = self.taken.take();
        match taken.and_then(|index| Some((index, self.slots.get_mut(index)?))) {
            Some((_, slot)) if !slot.is_abandoned => {
                // Not moved through anything else: it may be large.
                swap(&mut slot.answer, answer);
                let sender = slot.sender.take();
                Answered { sender, next }
            }
            Some((index, _)) => Answered {
                sender: None,
                next: next.or(self.remove(index).next),
            },
            None => Answered { sender: None, next },
        }
    }

    /// Removes a queued message, or a task that waits for room or for the end; `None` when none is left.
    pub(super) fn refuse(&mut self) -> Option<Refused<T>> {
        let mut refused = Refused::default();
        if let Some(index) = self.line.pop_front(&mut self.slots) {
            let slot = self.slots.get_mut(index)?;
            refused.message = slot.message.take();
            refused.waiter = slot.sender.take();
            return Some(refused);
        }
        let room = S::view(&mut self.room).release();
        refused.waiter = Some(room.or_else(|| self.end.release())?);
        Some(refused)
    }

    /// Gives the room of a taken message to the next task, unless the slot keeps it.
    fn make_room(&mut self) -> Option<Waker> {
        (!S::View::FIXED)
            .then(|| S::view(&mut self.room).release())
            .flatten()
    }
}

/// What is left to do outside the lock when a queue ends.
#[must_use = "the waiter is to be woken outside the lock"]
pub(super) struct Refused<T> {
    pub(super) message: Option<T>,
    /// The worker's waker, to be dropped.
    pub(super) worker: Option<Waker>,
    /// The task to notify.
    pub(super) waiter: Option<Waker>,
}

impl<T> Default for Refused<T> {
    fn default() -> Self {
        Self {
            message: None,
            worker: None,
            waiter: None,
        }
    }
}

/// What is left to do outside the lock after [`State::remove`].
#[must_use = "the wakers are to be woken or dropped outside the lock"]
pub(super) struct Removed<T> {
    pub(super) message: Option<T>,
    pub(super) sender: Option<Waker>,
    /// The task that gets the room.
    pub(super) next: Option<Waker>,
}

impl<T> Default for Removed<T> {
    fn default() -> Self {
        Self {
            message: None,
            sender: None,
            next: None,
        }
    }
}

/// What is left to do outside the lock after [`State::answer`].
#[must_use = "the wakers are to be woken outside the lock"]
pub(super) struct Answered {
    pub(super) sender: Option<Waker>,
    /// The task that gets the room.
    pub(super) next: Option<Waker>,
}

impl Answered {
    /// Drops an unwanted answer, or wakes the sender. A waker that panics must not end the worker.
    #[inline]
    pub(super) fn finish<R>(self, unwanted: &mut Option<R>) {
        if self.next.is_none() && unwanted.is_none() {
            return ignore_panic(|| wake(self.sender));
        }
        self.finish_all(unwanted);
    }

    fn finish_all<R>(self, unwanted: &mut Option<R>) {
        let _wakes = WakeAllIgnoringPanics([self.next, self.sender]);
        *unwanted = None;
    }
}
