use core::any::type_name;
use core::fmt;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::{Layer, Service};

/// A layer of [`ErrInto`].
pub struct ErrIntoLayer<E> {
    error: PhantomData<fn() -> E>,
}

impl<E> ErrIntoLayer<E> {
    /// A layer that converts errors into `E`.
    pub const fn new() -> Self {
        Self { error: PhantomData }
    }
}

impl<S, E> Layer<S> for ErrIntoLayer<E> {
    type Service = ErrInto<S, E>;

    fn layer(&self, inner: S) -> Self::Service {
        ErrInto::new(inner)
    }
}

// Not derived, since that would require `E` to implement the trait.
impl<E> Clone for ErrIntoLayer<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for ErrIntoLayer<E> {}

impl<E> Default for ErrIntoLayer<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> fmt::Debug for ErrIntoLayer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrIntoLayer")
            .field("error", &format_args!("{}", type_name::<E>()))
            .finish()
    }
}

/// A service that converts errors into `E` with [`Into`], including those of readiness.
///
/// Like [`map_err(Into::into)`](crate::ServiceExt::map_err), but with a type that can be named.
///
/// See [`ServiceExt::err_into`](crate::ServiceExt::err_into).
pub struct ErrInto<S, E> {
    inner: S,
    error: PhantomData<fn() -> E>,
}

impl<S, E> ErrInto<S, E> {
    /// Converts the errors of `inner`.
    pub const fn new(inner: S) -> Self {
        Self {
            inner,
            error: PhantomData,
        }
    }

    /// A layer that converts errors into `E`.
    pub const fn layer() -> ErrIntoLayer<E> {
        ErrIntoLayer::new()
    }

    accessors!(S);
}

impl<S: Clone, E> Clone for ErrInto<S, E> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone())
    }
}

impl<S: fmt::Debug, E> fmt::Debug for ErrInto<S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrInto")
            .field("inner", &self.inner)
            .field("error", &format_args!("{}", type_name::<E>()))
            .finish()
    }
}

impl<S, E, Request> Service<Request> for ErrInto<S, E>
where
    S: Service<Request>,
    S::Error: Into<E>,
{
    type Response = S::Response;
    type Error = E;
    type Future = ErrIntoFuture<S::Future, E>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        ErrIntoFuture {
            inner: self.inner.call(request),
            error: PhantomData,
        }
    }
}

pin_project! {
    /// The response of an [`ErrInto`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ErrIntoFuture<Fut, E> {
        #[pin]
        inner: Fut,
        error: PhantomData<fn() -> E>,
    }
}

impl<Fut, T, E1, E2> Future for ErrIntoFuture<Fut, E2>
where
    Fut: Future<Output = Result<T, E1>>,
    E1: Into<E2>,
{
    type Output = Result<T, E2>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx).map_err(Into::into)
    }
}

opaque_debug!(ErrIntoFuture<Fut, E>);
