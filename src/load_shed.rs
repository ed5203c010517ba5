//! Fails requests at once when the inner service is not ready, instead of letting them wait.
//!
//! [`LoadShed`] is always ready. A request that comes while the inner service is not ready fails with [`Overloaded`];
//! this keeps a queue from growing where the caller has something better to do. So does a call without a poll for
//! readiness, since the inner service was not polled.
//!
//! # Examples
//!
//! ```
//! use campanile::{ServiceBuilder, ServiceExt, load_shed};
//!
//! # #[cfg(feature = "std")]
//! # futures::executor::block_on(async {
//! let service = ServiceBuilder::new()
//!     .load_shed()
//!     .concurrency_limit(1)
//!     .service_fn(async |n: u32| Ok::<_, std::convert::Infallible>(n));
//!
//! let first = service.clone().ready_oneshot().await.unwrap(); // takes the one permit, and keeps it
//! let error = service.clone().oneshot(2).await.unwrap_err();
//! assert!(matches!(error, load_shed::Error::Overloaded(_)));
//!
//! drop(first);
//! assert_eq!(service.oneshot(3).await.unwrap(), 3);
//! # });
//! ```
//!
//! # Differences from tower
//!
//! - A shed request leaves nothing behind. Readiness is tried and not waited for, so a limit of this crate inside
//!   queues no waiter, and a permit that is returned later goes to a request that still exists. tower's own limits
//!   cannot tell a try from a wait: inside, they keep the handle in their wait queue.
//! - The error is an enum, [`Error`], and not a box.

use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::sync::{is_drive, try_poll};
use crate::{Layer, Service};

/// A layer of [`LoadShed`].
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadShedLayer(());

impl LoadShedLayer {
    /// A layer that sheds requests for which the inner service is not ready.
    pub const fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for LoadShedLayer {
    type Service = LoadShed<S>;

    fn layer(&self, inner: S) -> Self::Service {
        LoadShed::new(inner)
    }
}

/// A service that is always ready, and sheds requests for which the inner service is not.
///
/// See the [module](self) for an example.
#[derive(Debug)]
pub struct LoadShed<S> {
    inner: S,
    is_ready: bool,
}

impl<S> LoadShed<S> {
    /// Sheds requests for which `inner` is not ready.
    pub const fn new(inner: S) -> Self {
        Self {
            inner,
            is_ready: false,
        }
    }

    accessors!(S);
}

// A clone was never polled, whatever its original was.
impl<S: Clone> Clone for LoadShed<S> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone())
    }
}

impl<S, Request> Service<Request> for LoadShed<S>
where
    S: Service<Request>,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let drives = is_drive(cx);
        let polled = if drives {
            self.inner.poll_ready(cx)
        } else {
            try_poll(|cx| self.inner.poll_ready(cx))
        };
        self.is_ready = match polled {
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::Service(error))),
            polled => polled.is_ready() && !drives,
        };
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let admitted = core::mem::take(&mut self.is_ready);
        ResponseFuture {
            inner: admitted.then(|| self.inner.call(request)),
        }
    }
}

pin_project! {
    /// The response of a [`LoadShed`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F> {
        // `None`: shed.
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
        Poll::Ready(match self.project().inner.as_pin_mut() {
            Some(inner) => ready!(inner.poll(cx)).map_err(Error::Service),
            None => Err(Error::Overloaded(Overloaded::new())),
        })
    }
}

/// How a [`LoadShed`] fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The inner service was not ready.
    Overloaded(Overloaded),
    /// The inner service failed.
    Service(E),
}

flatten!(Error: Overloaded);

leaf_error! {
    /// A request was shed: the inner service was not ready for it.
    Overloaded, "service overloaded"
}

/// The response future, at the path it has in tower.
pub mod future {
    pub use super::ResponseFuture;
}

/// The errors of this middleware, at the path they have in tower.
pub mod error {
    pub use super::Overloaded;
}
