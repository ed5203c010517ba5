use core::pin::Pin;
use core::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::steps::Map;
use crate::Service;

combinator! {
    /// A layer of [`MapErr`].
    MapErrLayer;
    /// A service that transforms errors with `f`, including those of readiness.
    ///
    /// See [`ServiceExt::map_err`](crate::ServiceExt::map_err).
    MapErr;
}

impl<S, F, E, Request> Service<Request> for MapErr<S, F>
where
    S: Service<Request>,
    F: FnOnce(S::Error) -> E + Clone,
{
    type Response = S::Response;
    type Error = E;
    type Future = MapErrFuture<S::Future, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.inner
            .poll_ready(cx)
            .map_err(|error| (self.f.clone())(error))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        MapErrFuture {
            steps: Map::Incomplete {
                inner: self.inner.call(request),
                f: self.f.clone(),
            },
        }
    }
}

pin_project! {
    /// The response of a [`MapErr`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct MapErrFuture<Fut, F> {
        #[pin]
        steps: Map<Fut, F>,
    }
}

impl<Fut, F, T, E1, E2> Future for MapErrFuture<Fut, F>
where
    Fut: Future<Output = Result<T, E1>>,
    F: FnOnce(E1) -> E2,
{
    type Output = Result<T, E2>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let steps = self.project().steps;
        steps.poll_with(cx, |result, f| result.map_err(f))
    }
}

opaque_debug!(MapErrFuture<Fut, F>);
