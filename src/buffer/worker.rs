#[cfg(feature = "std")]
use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::mem::forget;
use core::pin::Pin;
#[cfg(feature = "std")]
use core::task::Waker;
use core::task::{Context, Poll};

use super::queue::{End, HeapQueue, Queue, Receiver, Work};
use crate::Service;
#[cfg(feature = "std")]
use crate::sync::wakes::{Node, Wakes};
use crate::sync::{drive, ignore_panic, leaves_rest, prepare};

/// How many requests one poll serves before the worker yields to other tasks: only tokio would interrupt it. A quarter
/// of tokio's own budget of 128 operations, since a request takes several.
const REQUESTS_PER_POLL: u32 = 32;

/// The task that owns the service of a [`Buffer`](super::Buffer).
///
/// It ends once the last handle is gone or the buffer was [shut down](super::Buffer::shutdown) and all accepted
/// requests are served, or when the service fails. If it is dropped before that, it closes the queue.
#[must_use = "a buffer answers nothing unless its worker runs"]
pub struct Worker<
    S: Service<Request>,
    Request,
    Q = HeapQueue<Request, <S as Service<Request>>::Future>,
> where
    Q: Queue,
{
    // `None` once it has ended: the service is dropped then, even if the executor keeps the worker.
    driven: Option<Driven<S>>,
    rx: Receiver<Q>,
    request: PhantomData<fn(Request)>,
}

impl<S, Request, Q> Worker<S, Request, Q>
where
    S: Service<Request>,
    Q: Queue,
{
    pub(super) fn new(service: S, rx: Receiver<Q>) -> Self {
        Self {
            driven: Some(Driven::new(service)),
            rx,
            request: PhantomData,
        }
    }
}

impl<S, Request, Q> Future for Worker<S, Request, Q>
where
    S: Service<Request>,
    Q: Queue<Message = Request, Answer = S::Future>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { driven, rx, .. } = &mut *self;
        // Not left to the worker's destructor: the code that catches the panic may keep the worker.
        let panicking = Panicking { driven, rx };
        let polled = match &mut *panicking.driven {
            Some(service) => service.work(rx, cx).map(|end| {
                // Drop the service first: a caller that learns of the end may rely on that.
                *panicking.driven = None;
                rx.close(end);
            }),
            None => Poll::Ready(()),
        };
        forget(panicking);
        polled
    }
}

// The service and its futures are never pinned here.
impl<S, Request, Q> Unpin for Worker<S, Request, Q>
where
    S: Service<Request>,
    Q: Queue<Message = Request, Answer = S::Future>,
{
}

impl<S, Request, Q> fmt::Debug for Worker<S, Request, Q>
where
    S: Service<Request> + fmt::Debug,
    Q: Queue<Message = Request, Answer = S::Future>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field(
                "service",
                &self.driven.as_ref().map(|driven| &driven.service),
            )
            .finish_non_exhaustive()
    }
}

/// A worker's service, and what the worker knows about it.
struct Driven<S> {
    service: S,
    service_waker: ServiceWaker,
    held: Held,
    // Calls may have left something reserved: see `leaves_rest`.
    has_rest: bool,
}

/// What a service may have reserved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Nothing: it was not polled for readiness since it was last driven.
    Nothing,
    /// Part of what a request needs: it was not ready at the last poll.
    Part,
    /// All that a request needs: it was ready at the last poll, and was not called since.
    All,
}

impl<S> Driven<S> {
    fn new(service: S) -> Self {
        Self {
            service,
            service_waker: ServiceWaker::new(),
            held: Held::Nothing,
            has_rest: false,
        }
    }

    /// Hands requests to the service until it is not ready or none are left. Ready with the reason when there will be
    /// no more.
    fn work<Request, Q>(&mut self, rx: &Receiver<Q>, cx: &mut Context<'_>) -> Poll<End<Q::Failure>>
    where
        S: Service<Request>,
        Q: Queue<Message = Request, Answer = S::Future>,
    {
        let mut is_woken = self.service_waker.is_woken();
        let mut work = rx.next(cx);
        for _ in 0..REQUESTS_PER_POLL {
            let gives_up = match &work {
                // The request for which the service was polled is gone, and this one must inherit nothing from it.
                Work::Message { is_same, .. } => self.held == Held::Part && !is_same,
                Work::None { keep_ready: false } => {
                    is_woken || self.has_rest || self.held != Held::Nothing
                }
                Work::None { keep_ready: true } | Work::Ended => false,
            };
            if gives_up {
                self.held = Held::Nothing;
                self.has_rest = false;
                if let Poll::Ready(Err(error)) = self.service_waker.drive(&mut self.service, cx) {
                    return Poll::Ready(rx.failed(error));
                }
            }
            let (mut request, is_last) = match work {
                Work::Message {
                    message, is_last, ..
                } => (Some(message), is_last),
                Work::None { keep_ready: true } if is_woken || self.held != Held::All => {
                    (None, true)
                }
                Work::None { .. } => {
                    self.service_waker.register(cx);
                    return Poll::Pending;
                }
                Work::Ended => return Poll::Ready(End::Closed),
            };
            is_woken = false;
            self.held = Held::Part;
            match self
                .service_waker
                .poll_ready(&mut self.service, request.is_some(), cx)
            {
                // The request waits for the service in the queue, where it can be cancelled.
                Poll::Pending => {
                    let polled = rx.put_back(&mut request, cx);
                    if request.is_none() || polled.is_ready() {
                        return polled.map(|()| End::Closed);
                    }
                    // The request was cancelled just now.
                    drop(request);
                    work = rx.next(cx);
                    continue;
                }
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(rx.failed(error));
                }
                Poll::Ready(Ok(())) => self.held = Held::All,
            }
            work = match request {
                Some(request) => {
                    self.held = Held::Nothing;
                    let (response, leaves_rest) = leaves_rest(|| self.service.call(request));
                    self.has_rest |= leaves_rest;
                    let mut response = Some(response);
                    rx.answer(&mut response, is_last, cx)
                }
                None => rx.next(cx),
            };
        }
        cx.waker().wake_by_ref();
        match work {
            Work::Message { message, .. } => {
                rx.put_back(&mut Some(message), cx).map(|()| End::Closed)
            }
            Work::None { .. } | Work::Ended => Poll::Pending,
        }
    }
}

/// The service's waker, separate from the worker's, so that their wake-ups can be told apart.
#[cfg(feature = "std")]
struct ServiceWaker {
    wakes: Wakes<()>,
    node: Arc<Node<()>>,
    waker: Waker,
}

#[cfg(feature = "std")]
impl ServiceWaker {
    fn new() -> Self {
        let wakes = Wakes::new();
        let node = wakes.node(());
        Self {
            waker: Waker::from(node.clone()),
            node,
            wakes,
        }
    }

    /// Whether the service was woken since the last time this was asked.
    #[inline]
    fn is_woken(&mut self) -> bool {
        let is_woken = self.wakes.any();
        if is_woken {
            let mut woken = self.wakes.collect();
            woken.clear();
            self.wakes.give_back(woken);
            self.node.unqueue();
        }
        is_woken
    }

    /// Wakes the worker when the service is woken.
    #[inline]
    fn register(&mut self, cx: &mut Context<'_>) {
        if !self.wakes.register(cx.waker()) {
            cx.waker().wake_by_ref();
        }
    }

    /// Polls for readiness, for a request or before there is one.
    fn poll_ready<S, Request>(
        &mut self,
        service: &mut S,
        has_request: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>>
    where
        S: Service<Request>,
    {
        let polled = if has_request {
            service.poll_ready(&mut Context::from_waker(&self.waker))
        } else {
            prepare(&self.waker, |cx| service.poll_ready(cx))
        };
        if polled.is_pending() {
            self.register(cx);
        }
        polled
    }

    /// Makes the service give up what it has reserved, and continue with work of its own.
    #[cold]
    fn drive<S, Request>(
        &mut self,
        service: &mut S,
        _: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>>
    where
        S: Service<Request>,
    {
        drive(&self.waker, |cx| service.poll_ready(cx))
    }
}

/// Without `std` the worker and the service share one waker: a worker that is woken and finds no request assumes that
/// the service was woken.
#[cfg(not(feature = "std"))]
struct ServiceWaker {
    is_used: bool,
}

#[cfg(not(feature = "std"))]
impl ServiceWaker {
    const fn new() -> Self {
        Self { is_used: false }
    }

    fn is_woken(&self) -> bool {
        self.is_used
    }

    fn register(&self, _: &mut Context<'_>) {}

    /// Polls for readiness, for a request or before there is one.
    fn poll_ready<S, Request>(
        &mut self,
        service: &mut S,
        has_request: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>>
    where
        S: Service<Request>,
    {
        self.is_used = true;
        if has_request {
            service.poll_ready(cx)
        } else {
            prepare(cx.waker(), |cx| service.poll_ready(cx))
        }
    }

    /// Makes the service give up what it has reserved, and continue with work of its own.
    fn drive<S, Request>(
        &mut self,
        service: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>>
    where
        S: Service<Request>,
    {
        drive(cx.waker(), |cx| service.poll_ready(cx))
    }
}

/// Drops the service and closes the queue when a panic drops it.
struct Panicking<'a, S, Q: Queue> {
    driven: &'a mut Option<Driven<S>>,
    rx: &'a Receiver<Q>,
}

impl<S, Q: Queue> Drop for Panicking<'_, S, Q> {
    fn drop(&mut self) {
        *self.driven = None;
        // A second panic would end the process.
        ignore_panic(|| self.rx.close(End::Panicked));
    }
}
