//! The ends of a queue: a [`Sender`] for each handle, a [`Reply`] for each message, and the worker's [`Receiver`].

use core::mem::take;
use core::pin::Pin;
use core::task::{Context, Poll};

use super::{Channel, End, Refusal, Ticket, Work};
use crate::sync::wait_queue::Acquisition;

/// A handle of a queue, with the room that it has reserved for one message, or its place in the wait queue for room.
///
/// The queue drains once its last sender is gone.
pub(crate) struct Sender<Q: Channel> {
    queue: Q,
    acquisition: Acquisition,
}

impl<Q: Channel> Sender<Q> {
    /// The first sender, which `queue` counts already.
    pub(crate) const fn new(queue: Q) -> Self {
        Self {
            queue,
            acquisition: Acquisition::Idle,
        }
    }

    pub(crate) const fn queue(&self) -> &Q {
        &self.queue
    }

    /// Reserves room for one message.
    #[inline]
    pub(crate) fn poll_reserve(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Refusal<Q::Failure>>> {
        self.queue.poll_reserve(&mut self.acquisition, cx)
    }

    /// Gives up the room, or the place in the wait queue.
    pub(crate) fn unreserve(&mut self) {
        self.queue.unreserve(&mut self.acquisition);
    }

    /// Sends a message in the reserved room. Without room it comes back, with what was there of a reservation in a sender
    /// of its own.
    #[inline]
    pub(crate) fn try_send(
        &mut self,
        message: Q::Message,
    ) -> Result<Result<Reply<Q>, End<Q::Failure>>, (Q::Message, Self)> {
        match take(&mut self.acquisition) {
            Acquisition::Acquired => Ok(Reply::new(&self.queue, message)),
            acquisition => {
                let mut waiting = self.clone();
                waiting.acquisition = acquisition;
                Err((message, waiting))
            }
        }
    }

    /// Sends a message in the room that was just reserved.
    pub(crate) fn send(&mut self, message: Q::Message) -> Result<Reply<Q>, End<Q::Failure>> {
        self.acquisition = Acquisition::Idle;
        Reply::new(&self.queue, message)
    }
}

/// A clone has reserved nothing.
impl<Q: Channel> Clone for Sender<Q> {
    fn clone(&self) -> Self {
        self.queue.add_handle();
        Self::new(self.queue.clone())
    }
}

impl<Q: Channel> Drop for Sender<Q> {
    fn drop(&mut self) {
        self.queue.drop_handle(&mut self.acquisition);
    }
}

/// What a sender has of a message: it waits for the answer. Dropped before, it takes the message out of the queue, or
/// drops the answer.
pub(crate) struct Reply<Q: Channel> {
    queue: Q,
    ticket: Ticket,
}

impl<Q: Channel> Reply<Q> {
    #[inline]
    fn new(queue: &Q, message: Q::Message) -> Result<Self, End<Q::Failure>> {
        let mut reply = Self {
            queue: queue.clone(),
            ticket: Ticket::Void,
        };
        match queue.send(message, &mut reply.ticket) {
            Ok(()) => Ok(reply),
            Err((message, end)) => {
                drop(message);
                Err(end)
            }
        }
    }

    /// Waits for the answer, which is then in `answer`, or for the end of the queue. Pending once it is complete.
    #[inline]
    pub(crate) fn poll(
        &mut self,
        answer: Pin<&mut Option<Q::Answer>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End<Q::Failure>>> {
        self.queue.poll_answer(&mut self.ticket, answer, cx)
    }
}

impl<Q: Channel> Drop for Reply<Q> {
    #[inline]
    fn drop(&mut self) {
        if let Ticket::New(index) | Ticket::Polled(index) = self.ticket {
            self.queue.abandon(index);
        }
    }
}

/// The worker's end of a queue. Dropped, it closes the queue.
pub(crate) struct Receiver<Q: Channel> {
    queue: Q,
}

impl<Q: Channel> Receiver<Q> {
    pub(crate) const fn new(queue: Q) -> Self {
        Self { queue }
    }

    pub(crate) const fn queue(&self) -> &Q {
        &self.queue
    }

    /// See [`Channel::next`].
    #[inline]
    pub(crate) fn next(&self, cx: &mut Context<'_>) -> Work<Q::Message> {
        self.queue.next(cx)
    }

    /// See [`Channel::put_back`].
    #[inline]
    pub(crate) fn put_back(
        &self,
        message: &mut Option<Q::Message>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        self.queue.put_back(message, cx)
    }

    /// See [`Channel::answer`].
    #[inline]
    pub(crate) fn answer(
        &self,
        answer: &mut Option<Q::Answer>,
        is_last: bool,
        cx: &mut Context<'_>,
    ) -> Work<Q::Message> {
        self.queue.answer(answer, is_last, cx)
    }

    /// Ends the queue, once: see [`Channel::close`].
    pub(crate) fn close(&self, end: End<Q::Failure>) {
        self.queue.close(end);
    }
}

impl<Q: Channel> Drop for Receiver<Q> {
    fn drop(&mut self) {
        self.queue.close(End::Closed);
    }
}
