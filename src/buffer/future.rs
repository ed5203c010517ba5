//! The futures of a buffer.

use core::fmt;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use futures_core::TryFuture;
use pin_project_lite::pin_project;

use super::Queue;
use crate::sync::queue::{Channel, HeapQueue, Refusal, Ticket};
use crate::sync::wait_queue::Acquisition;

pin_project! {
    /// The response of a [`Buffer`](super::Buffer).
    ///
    /// # Cancel safety
    ///
    /// Dropping it takes its request out of the queue, or drops the response's future.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<Request, F, Q = HeapQueue<Request, F>>
    where
        F: TryFuture,
        Q: Queue,
    {
        #[pin]
        state: State<Q>,
        types: PhantomData<fn(Request) -> F>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<Q>
    where
        Q: Queue,
    {
        // Waits for room in the queue.
        Waiting {
            request: Option<Q::Message>,
            admission: Admission<Q>,
        },
        // Waits for the worker, and then for the response. Both share a variant so that the response is moved only
        // once, from its slot to its final place.
        Sent {
            message: Message<Q>,
            #[pin]
            response: Option<Q::Answer>,
        },
        // Waits for nothing.
        Refused {
            refusal: Option<Refusal<Q::Failure>>,
        },
    }
}

impl<Request, F: TryFuture, Q: Queue<Message = Request>> ResponseFuture<Request, F, Q> {
    /// The response to a request that has room in the queue.
    pub(super) fn sent(queue: &Q, request: Request) -> Self {
        Self {
            state: State::send(queue, request),
            types: PhantomData,
        }
    }

    /// The response to a request without room, which waits from its handle's place.
    pub(super) fn waiting(queue: &Q, acquisition: Acquisition, request: Request) -> Self {
        queue.add_handle();
        Self {
            state: State::Waiting {
                request: Some(request),
                admission: Admission {
                    queue: queue.clone(),
                    acquisition,
                },
            },
            types: PhantomData,
        }
    }
}

impl<Request, F, Q> Future for ResponseFuture<Request, F, Q>
where
    F: TryFuture,
    Q: Queue,
{
    type Output = Result<<Q::Answer as TryFuture>::Ok, Q::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Waiting { request, admission } => {
                    let room = ready!(admission.queue.poll_reserve(&mut admission.acquisition, cx));
                    match (room, request.take()) {
                        (Ok(()), Some(request)) => {
                            admission.acquisition = Acquisition::Idle;
                            State::send(&admission.queue, request)
                        }
                        (Ok(()), None) => State::Refused { refusal: None },
                        (Err(refusal), _) => State::Refused {
                            refusal: Some(refusal),
                        },
                    }
                }
                StateProj::Sent {
                    message,
                    mut response,
                } => {
                    if let Some(polled) = response.as_mut().as_pin_mut() {
                        let result = ready!(polled.try_poll(cx)).map_err(Q::Error::from);
                        // Dropped before the caller learns of the result.
                        response.set(None);
                        return Poll::Ready(result);
                    }
                    let ticket = &mut message.ticket;
                    match ready!(message.queue.poll_answer(ticket, response, cx)) {
                        Ok(()) => continue,
                        Err(end) => return Poll::Ready(Err(Q::error(end.into()))),
                    }
                }
                StateProj::Refused { refusal } => {
                    return match refusal.take() {
                        Some(refusal) => Poll::Ready(Err(Q::error(refusal))),
                        // Polled again after its end.
                        None => Poll::Pending,
                    };
                }
            };
            state.set(next);
        }
    }
}

impl<Request, F: TryFuture, Q: Queue> fmt::Debug for ResponseFuture<Request, F, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<Q: Queue> State<Q> {
    /// Fills the reserved room, which from then on belongs to the message.
    fn send(queue: &Q, request: Q::Message) -> Self {
        let mut message = Message {
            queue: queue.clone(),
            ticket: Ticket::Void,
        };
        match queue.send(request, &mut message.ticket) {
            Ok(()) => Self::Sent {
                message,
                response: None,
            },
            Err((request, end)) => {
                drop(request);
                Self::Refused {
                    refusal: Some(end.into()),
                }
            }
        }
    }
}

/// A request that waits for room. It counts as a handle, so that the worker does not end before it.
struct Admission<Q: Queue> {
    queue: Q,
    acquisition: Acquisition,
}

impl<Q: Queue> Drop for Admission<Q> {
    fn drop(&mut self) {
        self.queue.drop_handle(&mut self.acquisition);
    }
}

/// A request in the queue, with the worker, or answered.
struct Message<Q: Queue> {
    queue: Q,
    ticket: Ticket,
}

impl<Q: Queue> Drop for Message<Q> {
    #[inline]
    fn drop(&mut self) {
        if let Ticket::New(index) | Ticket::Polled(index) = self.ticket {
            self.queue.abandon(index);
        }
    }
}

/// Waits until a buffer has drained: see [`Buffer::shutdown`](super::Buffer::shutdown).
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct Shutdown<Request, F: TryFuture> {
    queue: HeapQueue<Request, F>,
    acquisition: Acquisition,
}

impl<Request, F: TryFuture> Shutdown<Request, F> {
    #[cfg(feature = "std")]
    pub(super) const fn new(queue: HeapQueue<Request, F>) -> Self {
        Self {
            queue,
            acquisition: Acquisition::Idle,
        }
    }
}

impl<Request, F: TryFuture> Future for Shutdown<Request, F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.queue.poll_end(&mut this.acquisition, cx)
    }
}

impl<Request, F: TryFuture> Drop for Shutdown<Request, F> {
    fn drop(&mut self) {
        self.queue.leave_end(&mut self.acquisition);
    }
}

impl<Request, F: TryFuture> fmt::Debug for Shutdown<Request, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").finish_non_exhaustive()
    }
}
