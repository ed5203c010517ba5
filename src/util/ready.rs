use core::fmt;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use super::complete;
use crate::Service;

/// Waits until a service is ready, and returns it.
///
/// See [`ServiceExt::ready_oneshot`](crate::ServiceExt::ready_oneshot).
///
/// # Cancel safety
///
/// Dropping it drops the service, with whatever it has reserved.
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct ReadyOneshot<S, Request> {
    // `None`: completed.
    inner: Option<S>,
    request: PhantomData<fn() -> Request>,
}

// The service is never pinned, since it is returned.
impl<S, Request> Unpin for ReadyOneshot<S, Request> {}

impl<S: Service<Request>, Request> ReadyOneshot<S, Request> {
    /// Waits until `service` is ready.
    pub const fn new(service: S) -> Self {
        Self {
            inner: Some(service),
            request: PhantomData,
        }
    }
}

impl<S: Service<Request>, Request> Future for ReadyOneshot<S, Request> {
    type Output = Result<S, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(service) = &mut self.inner else {
            complete();
        };
        let result = ready!(service.poll_ready(cx));
        let Some(service) = self.inner.take() else {
            complete();
        };
        Poll::Ready(result.map(|()| service))
    }
}

impl<S: fmt::Debug, Request> fmt::Debug for ReadyOneshot<S, Request> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadyOneshot")
            .field("inner", &self.inner)
            .finish()
    }
}

/// Waits until a borrowed service is ready, and returns the borrow.
///
/// See [`ServiceExt::ready`](crate::ServiceExt::ready).
///
/// # Cancel safety
///
/// Dropping it early leaves the service as it is, with its place in a wait queue. Waiting can start again.
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct Ready<'a, S, Request>(ReadyOneshot<&'a mut S, Request>);

impl<'a, S: Service<Request>, Request> Ready<'a, S, Request> {
    /// Waits until `service` is ready.
    pub const fn new(service: &'a mut S) -> Self {
        Self(ReadyOneshot::new(service))
    }
}

impl<'a, S: Service<Request>, Request> Future for Ready<'a, S, Request> {
    type Output = Result<&'a mut S, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<S: fmt::Debug, Request> fmt::Debug for Ready<'_, S, Request> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ready").field(&self.0.inner).finish()
    }
}
