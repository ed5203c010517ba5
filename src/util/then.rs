use core::pin::Pin;
use core::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::steps::Chain;
use crate::Service;

combinator! {
    /// A layer of [`Then`].
    ThenLayer;
    /// A service that runs an asynchronous function on every result.
    ///
    /// Errors of readiness do not pass through `f`; they are converted with `Into`.
    ///
    /// See [`ServiceExt::then`](crate::ServiceExt::then).
    Then;
}

impl<S, F, Fut, T, E, Request> Service<Request> for Then<S, F>
where
    S: Service<Request>,
    S::Error: Into<E>,
    F: FnOnce(Result<S::Response, S::Error>) -> Fut + Clone,
    Fut: Future<Output = Result<T, E>>,
{
    type Response = T;
    type Error = E;
    type Future = ThenFuture<S::Future, Fut, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        ThenFuture {
            steps: Chain::First {
                inner: self.inner.call(request),
                f: self.f.clone(),
            },
        }
    }
}

pin_project! {
    /// The response of a [`Then`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ThenFuture<F1, F2, F> {
        #[pin]
        steps: Chain<F1, F2, F>,
    }
}

impl<F1, F2, F> Future for ThenFuture<F1, F2, F>
where
    F1: Future,
    F2: Future,
    F: FnOnce(F1::Output) -> F2,
{
    type Output = F2::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let steps = self.project().steps;
        steps.poll_with(cx, |result, f| Ok(f(result)))
    }
}

opaque_debug!(ThenFuture<F1, F2, F>);
