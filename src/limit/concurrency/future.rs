//! The futures of a concurrency limit.

use core::mem::replace;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::{Permit, Permits, Permitted, Semaphore};

pin_project! {
    /// The response of a [`ConcurrencyLimit`](super::ConcurrencyLimit).
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives up its permit or its place in the wait queue.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F, M = Semaphore>
    where
        M: Permits,
    {
        #[pin]
        pub(super) limited: Limited<F, M>,
    }
}

impl<F, M, T, E> Future for ResponseFuture<F, M>
where
    F: Future<Output = Result<T, E>>,
    M: Permits,
{
    type Output = Result<T, M::Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut limited = self.project().limited;
        let output = ready!(limited.as_mut().poll(cx));
        limited.project().permit.release();
        Poll::Ready(output)
    }
}

pin_project! {
    /// The response of a [`WithPermit`](super::WithPermit).
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives up its permit or its place in the wait queue.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct PermittedFuture<F, M = Semaphore>
    where
        M: Permits,
    {
        #[pin]
        pub(super) limited: Limited<F, M>,
    }
}

impl<F, M, T, E> Future for PermittedFuture<F, M>
where
    F: Future<Output = Result<T, E>>,
    M: Permits,
{
    type Output = Result<Permitted<T, M>, M::Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut limited = self.project().limited;
        let output = ready!(limited.as_mut().poll(cx));
        let held = limited.project().permit;
        let next = held.another();
        let permit = replace(held, next);
        Poll::Ready(output.map(|response| Permitted { response, permit }))
    }
}

pin_project! {
    #[derive(Debug)]
    pub(super) struct Limited<F, M>
    where
        M: Permits,
    {
        // Dropped before the permit is returned. `None`: it has ended.
        #[pin]
        pub(super) inner: Option<F>,
        pub(super) permit: Permit<M>,
    }
}

impl<F, M, T, E> Limited<F, M>
where
    F: Future<Output = Result<T, E>>,
    M: Permits,
{
    /// Waits for the permit first, if the call had none. When this is ready the inner future has been dropped, so
    /// nothing of this request is alive when the permit goes to the next one.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, M::Error<E>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            // Polled again after its end.
            return Poll::Pending;
        };
        let result = match ready!(this.permit.poll_acquire::<E>(cx)) {
            Ok(()) => ready!(inner.poll(cx)).map_err(M::Error::from),
            Err(refused) => Err(refused),
        };
        this.inner.set(None);
        Poll::Ready(result)
    }
}
