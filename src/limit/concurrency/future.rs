//! The futures of a concurrency limit.

use core::mem::replace;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::{Claim, Permit, Permitted};

pin_project! {
    /// The response of a [`ConcurrencyLimit`](super::ConcurrencyLimit).
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives up its permit or its place in line.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F, C = Permit> {
        #[pin]
        pub(super) limited: Limited<F, C>,
    }
}

impl<F, C, T, E> Future for ResponseFuture<F, C>
where
    F: Future<Output = Result<T, E>>,
    C: Claim,
{
    type Output = Result<T, C::Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut limited = self.project().limited;
        let output = ready!(limited.as_mut().poll(cx));
        limited.project().claim.release();
        Poll::Ready(output)
    }
}

pin_project! {
    /// The response of a [`WithPermit`](super::WithPermit).
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives up its permit or its place in line.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct PermittedFuture<F, C = Permit> {
        #[pin]
        pub(super) limited: Limited<F, C>,
    }
}

impl<F, C, T, E> Future for PermittedFuture<F, C>
where
    F: Future<Output = Result<T, E>>,
    C: Claim,
{
    type Output = Result<Permitted<T, C>, C::Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut limited = self.project().limited;
        let output = ready!(limited.as_mut().poll(cx));
        let claim = limited.project().claim;
        let next = claim.another();
        let permit = replace(claim, next);
        Poll::Ready(output.map(|response| Permitted { response, permit }))
    }
}

pin_project! {
    #[derive(Debug)]
    pub(super) struct Limited<F, C> {
        // Dropped before the permit is returned. `None`: it has ended.
        #[pin]
        pub(super) inner: Option<F>,
        pub(super) claim: C,
    }
}

impl<F, C, T, E> Limited<F, C>
where
    F: Future<Output = Result<T, E>>,
    C: Claim,
{
    /// Waits for the permit first, if the call had none. When this is ready the inner future has been dropped, so
    /// nothing of this request is alive when the permit goes to the next one.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, C::Error<E>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            // Polled again after its end.
            return Poll::Pending;
        };
        let result = match ready!(this.claim.poll_acquire::<E>(cx)) {
            Ok(()) => ready!(inner.poll(cx)).map_err(C::Error::from),
            Err(refused) => Err(refused),
        };
        this.inner.set(None);
        Poll::Ready(result)
    }
}
