use core::pin::Pin;
use core::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::steps::Chain;
use crate::Service;

combinator! {
    /// A layer of [`AndThen`].
    AndThenLayer;
    /// A service that runs an asynchronous function on every response.
    ///
    /// See [`ServiceExt::and_then`](crate::ServiceExt::and_then).
    AndThen;
}

impl<S, F, Fut, T, E, Request> Service<Request> for AndThen<S, F>
where
    S: Service<Request>,
    S::Error: Into<E>,
    F: FnOnce(S::Response) -> Fut + Clone,
    Fut: Future<Output = Result<T, E>>,
{
    type Response = T;
    type Error = E;
    type Future = AndThenFuture<S::Future, Fut, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        AndThenFuture {
            steps: Chain::First {
                inner: self.inner.call(request),
                f: self.f.clone(),
            },
        }
    }
}

pin_project! {
    /// The response of an [`AndThen`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct AndThenFuture<F1, F2, F> {
        #[pin]
        steps: Chain<F1, F2, F>,
    }
}

impl<F1, F2, F, T1, E1, T2, E2> Future for AndThenFuture<F1, F2, F>
where
    F1: Future<Output = Result<T1, E1>>,
    F2: Future<Output = Result<T2, E2>>,
    E1: Into<E2>,
    F: FnOnce(T1) -> F2,
{
    type Output = Result<T2, E2>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let steps = self.project().steps;
        steps.poll_with(cx, |result, f| match result {
            Ok(response) => Ok(f(response)),
            Err(error) => Err(Err(error.into())),
        })
    }
}

opaque_debug!(AndThenFuture<F1, F2, F>);
