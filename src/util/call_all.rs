//! Calls a service with each request of a stream.
//!
//! [`CallAll`] takes requests from a stream, calls a service with each, and is itself the stream of the responses, in
//! the order of the requests. [`unordered`](CallAll::unordered) returns them as they arrive. Make one with
//! [`ServiceExt::call_all`](crate::ServiceExt::call_all).
//!
//! # Examples
//!
//! ```
//! use campanile::{ServiceExt, service_fn};
//! use futures::{StreamExt, executor::block_on, stream};
//!
//! let service = service_fn(async |n: u32| Ok::<_, std::convert::Infallible>(n * 2));
//! let responses = service.call_all(stream::iter([1, 2, 3])).concurrency(2);
//! let doubled: Vec<_> = block_on(responses.collect());
//! assert_eq!(doubled, [Ok(2), Ok(4), Ok(6)]);
//! ```
//!
//! # Concurrency
//!
//! At most [1024](DEFAULT_CONCURRENCY) requests are in flight at once, so that a list of any length fits into memory;
//! [`concurrency`](CallAll::concurrency) sets another limit. A response that waits for its turn counts as well.
//!
//! A request is taken when there is room for it and all available responses have been returned; the service is then
//! polled ready for it.
//!
//! # Failures
//!
//! If the service fails to become ready, the request that it was for is lost, and no other is taken. The responses of
//! the requests in flight still arrive, then the error ([`CallAllUnordered`] returns it at once), and then the stream
//! ends.
//!
//! A response future that panics is lost; the others continue.
//!
//! # Differences from tower
//!
//! - At most [`DEFAULT_CONCURRENCY`] requests are in flight at once, or as many as set by
//!   [`concurrency`](CallAll::concurrency). tower has no limit, so an endless stream of requests takes unlimited
//!   memory.
//! - It lets other tasks run: after 128 polls of responses without a pause it wakes its task and is pending.
//! - In ordered mode, an error of readiness comes after the responses, and not before.
//! - [`into_inner`](CallAll::into_inner) and [`take_service`](CallAll::take_service) return `None` if the service was
//!   taken before; tower's panic. [`unordered`](CallAll::unordered) can be called at any time.
//! - Room is allocated when it is first needed, and reused, so a request allocates nothing.

use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_core::stream::FusedStream;
use pin_project_lite::pin_project;

use super::call_and_keep;
use super::in_flight::InFlight;
use crate::Service;

/// The default limit on requests in flight: 1024.
///
/// More than a service behind a network usually bears, so that the limit does not make a list slow; and few enough
/// that the futures of an endless stream, and the responses that wait for their turn, take little memory. A service
/// that bears less limits the requests by its readiness.
pub const DEFAULT_CONCURRENCY: usize = 1024;

/// Polls of responses without a pause: as many as tokio allows a task at a time.
const POLLS: u32 = 128;

macro_rules! call_all {
    ($(#[$meta:meta])* $name:ident, $ordered:literal) => {
        pin_project! {
            $(#[$meta])*
            #[must_use = "streams do nothing unless polled"]
            pub struct $name<S, St>
            where
                S: Service<St::Item>,
                St: Stream,
            {
                #[pin]
                inner: Inner<S, St, St::Item, S::Future, S::Error>,
            }
        }

        impl<S, St> $name<S, St>
        where
            S: Service<St::Item>,
            St: Stream,
        {
            /// Calls `service` with each of the `requests`.
            pub fn new(service: S, requests: St) -> Self {
                Self {
                    inner: Inner::new(service, requests, $ordered),
                }
            }

            /// Limits the requests in flight to `requests`, including those whose response has not been returned yet.
            ///
            /// # Panics
            ///
            /// If `requests` is 0.
            #[track_caller]
            pub fn concurrency(self, requests: usize) -> Self {
                match self.try_concurrency(requests) {
                    Ok(this) => this,
                    Err(error) => panic!("{error}"),
                }
            }

            /// Like [`concurrency`](Self::concurrency), but returns a typed error.
            ///
            /// # Errors
            ///
            /// If `requests` is 0.
            pub fn try_concurrency(mut self, requests: usize) -> Result<Self, InvalidConcurrency> {
                if requests == 0 {
                    return Err(InvalidConcurrency::new());
                }
                self.inner.most = requests;
                Ok(self)
            }

            /// Returns the service, and drops the requests in flight. `None` if the service was taken before.
            pub fn into_inner(self) -> Option<S> {
                self.inner.service
            }

            /// Returns the service, and takes no further requests. The responses of the requests in flight still
            /// arrive. `None` if the service was taken before.
            pub fn take_service(self: Pin<&mut Self>) -> Option<S> {
                self.project().inner.take_service()
            }
        }

        impl<S, St> Stream for $name<S, St>
        where
            S: Service<St::Item>,
            St: Stream,
        {
            type Item = Result<S::Response, S::Error>;

            fn poll_next(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Self::Item>> {
                self.project().inner.poll_next(cx)
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                self.inner.size_hint()
            }
        }

        impl<S, St> FusedStream for $name<S, St>
        where
            S: Service<St::Item>,
            St: Stream,
        {
            fn is_terminated(&self) -> bool {
                self.inner.is_terminated()
            }
        }

        impl<S, St> fmt::Debug for $name<S, St>
        where
            S: Service<St::Item> + fmt::Debug,
            St: Stream + fmt::Debug,
        {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("service", &self.inner.service)
                    .field("requests", &self.inner.requests)
                    .field("concurrency", &self.inner.most)
                    .field("in_flight", &self.inner.in_flight.len())
                    .finish()
            }
        }
    };
}

call_all! {
    /// The responses of a service to a stream of requests, in the order of the requests.
    ///
    /// See the [module](self) for an example.
    ///
    /// # Cancel safety
    ///
    /// Dropping a `next` loses nothing. Dropping the stream drops the requests in flight.
    CallAll, true
}

call_all! {
    /// The responses of a service to a stream of requests, as they arrive.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    /// use futures::{StreamExt, executor::block_on, future::pending, stream};
    ///
    /// let service = service_fn(async |n: u32| {
    ///     if n == 1 {
    ///         pending::<()>().await;
    ///     }
    ///     Ok::<_, std::convert::Infallible>(n)
    /// });
    /// let mut responses = service.call_all(stream::iter([1, 2])).unordered();
    /// # let mut responses = std::pin::pin!(responses);
    /// assert_eq!(block_on(responses.next()), Some(Ok(2)));
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping a `next` loses nothing. Dropping the stream drops the requests in flight.
    CallAllUnordered, false
}

impl<S, St> CallAll<S, St>
where
    S: Service<St::Item>,
    St: Stream,
{
    /// Returns the responses as they arrive, starting with those that were waiting for their turn.
    pub fn unordered(mut self) -> CallAllUnordered<S, St> {
        self.inner.in_flight.unordered();
        CallAllUnordered { inner: self.inner }
    }
}

leaf_error! {
    /// The limit on requests in flight is 0.
    InvalidConcurrency, "the concurrency is 0, and must be at least 1"
}

pin_project! {
    struct Inner<S, St, Request, F, E>
    where
        F: Future,
    {
        service: Option<S>,
        #[pin]
        requests: St,
        // Taken, but the service is not ready for it yet.
        request: Option<Request>,
        // No more requests: the stream has ended, or the service has failed or was taken.
        ended: bool,
        failure: Option<E>,
        in_flight: InFlight<F>,
        most: usize,
        // Polls of responses since this was last pending.
        polls: u32,
    }
}

impl<S, St> Inner<S, St, St::Item, S::Future, S::Error>
where
    S: Service<St::Item>,
    St: Stream,
{
    fn new(service: S, requests: St, ordered: bool) -> Self {
        Self {
            service: Some(service),
            requests,
            request: None,
            ended: false,
            failure: None,
            in_flight: InFlight::new(ordered),
            most: DEFAULT_CONCURRENCY,
            polls: 0,
        }
    }

    fn take_service(self: Pin<&mut Self>) -> Option<S> {
        let this = self.project();
        *this.ended = true;
        *this.request = None;
        this.service.take()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<S::Response, S::Error>>> {
        self.as_mut().project().in_flight.listen(cx.waker());
        let polled = self.as_mut().poll_item(cx);
        if polled.is_pending() {
            *self.project().polls = 0;
        }
        polled
    }

    fn poll_item(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<S::Response, S::Error>>> {
        let mut this = self.project();
        loop {
            if let Some(result) = this.in_flight.next(this.polls, POLLS) {
                return Poll::Ready(Some(result));
            }
            if *this.polls >= POLLS {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if this.in_flight.len() == 0 || !this.in_flight.is_ordered() {
                if let Some(error) = this.failure.take() {
                    return Poll::Ready(Some(Err(error)));
                }
            }
            if *this.ended {
                return match this.in_flight.len() {
                    0 => Poll::Ready(None),
                    _ => Poll::Pending,
                };
            }
            if this.in_flight.len() >= *this.most {
                return Poll::Pending;
            }
            if this.request.is_none() {
                *this.request = ready!(this.requests.as_mut().poll_next(cx));
            }
            let ready = match (this.service.as_mut(), &this.request) {
                (Some(service), Some(_)) => ready!(service.poll_ready(cx)).map(|()| service),
                _ => {
                    *this.ended = true;
                    continue;
                }
            };
            match (ready, this.request.take()) {
                (Ok(service), Some(request)) => {
                    this.in_flight.push(call_and_keep(service, request));
                }
                (Ok(_), None) => {}
                (Err(error), _) => {
                    *this.failure = Some(error);
                    *this.ended = true;
                }
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let coming = self.in_flight.len()
            + usize::from(self.failure.is_some())
            + usize::from(self.request.is_some());
        if self.ended {
            return (coming, Some(coming));
        }
        // If the service fails, its error is the last item.
        let (least, most) = self.requests.size_hint();
        let one = usize::from(self.request.is_none() && least > 0);
        let most = most.and_then(|most| most.checked_add(coming));
        (coming + one, most)
    }

    fn is_terminated(&self) -> bool {
        self.ended && self.in_flight.len() == 0 && self.failure.is_none()
    }
}
