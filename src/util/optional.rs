//! A service that may be absent.
//!
//! # Examples
//!
//! ```
//! use campanile::{ServiceExt, service_fn, util::Optional, util::optional};
//!
//! # futures::executor::block_on(async {
//! let echo = service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n));
//! let present = Optional::new(Some(echo));
//! assert_eq!(present.clone().oneshot(1).await, Ok(1));
//!
//! let absent = Optional::new(present.into_inner().filter(|_| false));
//! assert!(matches!(absent.oneshot(1).await, Err(optional::Error::None(_))));
//! # });
//! ```
//!
//! # Differences from tower
//!
//! - The error is an enum, [`Error`], instead of a box.
//! - [`Optional::new`] does not name the request type.

use core::pin::Pin;
use core::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::Service;

/// A service that is ready and fails with [`Error::None`] if there is no inner service.
///
/// See the [module](self) for an example.
#[derive(Clone, Copy, Debug)]
pub struct Optional<S> {
    inner: Option<S>,
}

impl<S> Optional<S> {
    /// Calls `inner`, if there is one.
    pub const fn new(inner: Option<S>) -> Self {
        Self { inner }
    }

    accessors!(Option<S>);
}

impl<S, Request> Service<Request> for Optional<S>
where
    S: Service<Request>,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match &mut self.inner {
            Some(inner) => inner.poll_ready(cx).map_err(Error::Service),
            None => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Request) -> Self::Future {
        ResponseFuture {
            inner: self.inner.as_mut().map(|inner| inner.call(request)),
        }
    }
}

pin_project! {
    /// The response of an [`Optional`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F> {
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
            None => Poll::Ready(Err(Error::None(error::None::new()))),
        }
    }
}

/// How an [`Optional`] fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// There is no service.
    None(error::None),
    /// The inner service failed.
    Service(E),
}

flatten!(Error: None);

/// The failures of an [`Optional`], at tower's path.
pub mod error {
    leaf_error! {
        /// There is no service.
        None, "no service"
    }
}
