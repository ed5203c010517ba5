//! The futures of a buffer.

use core::fmt;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use futures_core::TryFuture;
use pin_project_lite::pin_project;

use super::queue::{Closing, End, HeapQueue, Queue, Refusal, Reply, Sender};

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
            tx: Sender<Q>,
        },
        // Waits for the worker, and then for the response. Both share a variant so that the response is moved only
        // once, from its slot to its final place.
        Sent {
            reply: Reply<Q>,
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
    /// The response to a request that had room in the queue.
    pub(super) fn sent(sent: Result<Reply<Q>, End<Q::Failure>>) -> Self {
        Self {
            state: State::sent(sent),
            types: PhantomData,
        }
    }

    /// The response to a request that waits for room.
    pub(super) fn waiting(request: Request, tx: Sender<Q>) -> Self {
        Self {
            state: State::Waiting {
                request: Some(request),
                tx,
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
                StateProj::Waiting { request, tx } => {
                    let room = ready!(tx.poll_reserve(cx));
                    match (room, request.take()) {
                        (Ok(()), Some(request)) => State::sent(tx.send(request)),
                        (Ok(()), None) => State::Refused { refusal: None },
                        (Err(refusal), _) => State::Refused {
                            refusal: Some(refusal),
                        },
                    }
                }
                StateProj::Sent {
                    reply,
                    mut response,
                } => {
                    if let Some(polled) = response.as_mut().as_pin_mut() {
                        let result = ready!(polled.try_poll(cx)).map_err(Q::Error::from);
                        // Dropped before the caller learns of the result.
                        response.set(None);
                        return Poll::Ready(result);
                    }
                    match ready!(reply.poll(response, cx)) {
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
    fn sent(sent: Result<Reply<Q>, End<Q::Failure>>) -> Self {
        match sent {
            Ok(reply) => Self::Sent {
                reply,
                response: None,
            },
            Err(end) => Self::Refused {
                refusal: Some(end.into()),
            },
        }
    }
}

/// Waits until a buffer has drained: see [`Buffer::shutdown`](super::Buffer::shutdown).
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct Shutdown<Request, F: TryFuture> {
    closing: Closing<HeapQueue<Request, F>>,
}

impl<Request, F: TryFuture> Shutdown<Request, F> {
    #[cfg(feature = "std")]
    pub(super) const fn new(closing: Closing<HeapQueue<Request, F>>) -> Self {
        Self { closing }
    }
}

impl<Request, F: TryFuture> Future for Shutdown<Request, F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.closing.poll(cx)
    }
}

impl<Request, F: TryFuture> fmt::Debug for Shutdown<Request, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").finish_non_exhaustive()
    }
}
