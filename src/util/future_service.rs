//! A service that is still to be made by a future.
//!
//! # Examples
//!
//! ```
//! use campanile::{Service, ServiceExt, service_fn, util::future_service};
//!
//! # futures::executor::block_on(async {
//! let connect = Box::pin(async {
//!     Ok::<_, core::fmt::Error>(service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n)))
//! });
//! let mut service = future_service(connect);
//! assert_eq!(service.ready().await.unwrap().call(1).await.unwrap(), 1);
//! # });
//! ```
//!
//! # Differences from tower
//!
//! Calling it before the inner service exists does not panic, but fails with [`NotReady`]. For that, the error is an
//! enum, [`Error`].

use core::any::type_name;
use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::{Service, sync::own_work};

/// Returns a service made by `future`. It is ready once the future has completed and the inner service is ready.
///
/// See the [module](self) for an example.
pub const fn future_service<F, S, Request, E>(future: F) -> FutureService<F, S>
where
    F: Future<Output = Result<S, E>> + Unpin,
    S: Service<Request, Error = E>,
{
    FutureService::new(future)
}

/// A service that is still to be made by a future; see [`future_service`].
#[derive(Clone)]
pub struct FutureService<F, S> {
    state: State<F, S>,
}

#[derive(Clone)]
enum State<F, S> {
    Future(F),
    Service(S),
    // The future returned an error, and must not be polled again.
    Failed,
}

impl<F, S> FutureService<F, S> {
    /// Makes a service from the one that `future` returns.
    pub const fn new(future: F) -> Self {
        Self {
            state: State::Future(future),
        }
    }
}

impl<F, S: fmt::Debug> fmt::Debug for FutureService<F, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("FutureService");
        match &self.state {
            State::Future(_) => f.field("future", &format_args!("{}", type_name::<F>())),
            State::Service(service) => f.field("service", service),
            State::Failed => f.field("failed", &true),
        };
        f.finish()
    }
}

impl<F, S, Request, E> Service<Request> for FutureService<F, S>
where
    F: Future<Output = Result<S, E>> + Unpin,
    S: Service<Request, Error = E>,
{
    type Response = S::Response;
    type Error = Error<E>;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        loop {
            self.state = match &mut self.state {
                State::Future(future) => match ready!(own_work(cx, |cx| Pin::new(future).poll(cx)))
                {
                    Ok(service) => State::Service(service),
                    Err(error) => {
                        self.state = State::Failed;
                        return Poll::Ready(Err(Error::Service(error)));
                    }
                },
                State::Service(service) => return service.poll_ready(cx).map_err(Error::Service),
                State::Failed => return Poll::Ready(Err(Error::NotReady(NotReady::new()))),
            };
        }
    }

    fn call(&mut self, request: Request) -> Self::Future {
        ResponseFuture {
            inner: match &mut self.state {
                State::Service(service) => Some(service.call(request)),
                State::Future(_) | State::Failed => None,
            },
        }
    }
}

pin_project! {
    /// The response of a [`FutureService`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F> {
        // `None`: there was no service yet.
        #[pin]
        inner: Option<F>,
    }
}

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().inner.as_pin_mut() {
            Some(inner) => inner.poll(cx).map_err(Error::Service),
            None => Poll::Ready(Err(Error::NotReady(NotReady::new()))),
        }
    }
}

/// How a [`FutureService`] fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The service was called before its future had made it, or after the future had failed.
    NotReady(NotReady),
    /// The future or the service that it made failed.
    Service(E),
}

flatten!(Error: NotReady);

leaf_error! {
    /// There was no service: its future had not completed, or had failed.
    NotReady, "the service is not there"
}

#[cfg(test)]
mod tests {
    use core::convert::Infallible;
    use core::future::{Ready, poll_fn, ready};
    use core::task::Waker;

    use super::*;
    use crate::sync::{Mark, drive, mark, try_poll};

    /// Only to be driven.
    struct Driven;

    impl Service<()> for Driven {
        type Response = ();
        type Error = Infallible;
        type Future = Ready<Result<(), Infallible>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            assert_eq!(mark(cx), Some(Mark::Drive));
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, (): ()) -> Self::Future {
            ready(Ok(()))
        }
    }

    #[test]
    fn only_the_service_is_driven() {
        let mut polls = 0;
        let future = poll_fn(|cx| {
            polls += 1;
            assert_eq!(mark(cx), (polls == 1).then_some(Mark::Try));
            match polls {
                3 => Poll::Ready(Ok(Driven)),
                _ => Poll::Pending,
            }
        });
        let mut service = future_service(future);
        assert!(try_poll(|cx| service.poll_ready(cx)).is_pending());
        assert!(drive(Waker::noop(), |cx| service.poll_ready(cx)).is_pending());
        assert!(drive(Waker::noop(), |cx| service.poll_ready(cx)).is_ready());
    }
}
