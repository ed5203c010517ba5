use core::pin::Pin;
use core::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::steps::Map;
use crate::Service;

combinator! {
    /// A layer of [`MapResult`].
    MapResultLayer;
    /// A service that transforms responses and errors with `f`.
    ///
    /// Errors of readiness do not pass through `f`; they are converted with `From`.
    ///
    /// See [`ServiceExt::map_result`](crate::ServiceExt::map_result).
    MapResult;
}

impl<S, F, T, E, Request> Service<Request> for MapResult<S, F>
where
    S: Service<Request>,
    E: From<S::Error>,
    F: FnOnce(Result<S::Response, S::Error>) -> Result<T, E> + Clone,
{
    type Response = T;
    type Error = E;
    type Future = MapResultFuture<S::Future, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.inner.poll_ready(cx).map_err(E::from)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        MapResultFuture {
            steps: Map::Incomplete {
                inner: self.inner.call(request),
                f: self.f.clone(),
            },
        }
    }
}

pin_project! {
    /// The response of a [`MapResult`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct MapResultFuture<Fut, F> {
        #[pin]
        steps: Map<Fut, F>,
    }
}

impl<Fut, F, T> Future for MapResultFuture<Fut, F>
where
    Fut: Future,
    F: FnOnce(Fut::Output) -> T,
{
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let steps = self.project().steps;
        steps.poll_with(cx, |result, f| f(result))
    }
}

opaque_debug!(MapResultFuture<Fut, F>);
