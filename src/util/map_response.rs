use core::pin::Pin;
use core::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::steps::Map;
use crate::Service;

combinator! {
    /// A layer of [`MapResponse`].
    MapResponseLayer;
    /// A service that transforms responses with `f`.
    ///
    /// See [`ServiceExt::map_response`](crate::ServiceExt::map_response).
    MapResponse;
}

impl<S, F, T, Request> Service<Request> for MapResponse<S, F>
where
    S: Service<Request>,
    F: FnOnce(S::Response) -> T + Clone,
{
    type Response = T;
    type Error = S::Error;
    type Future = MapResponseFuture<S::Future, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        MapResponseFuture {
            steps: Map::Incomplete {
                inner: self.inner.call(request),
                f: self.f.clone(),
            },
        }
    }
}

pin_project! {
    /// The response of a [`MapResponse`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct MapResponseFuture<Fut, F> {
        #[pin]
        steps: Map<Fut, F>,
    }
}

impl<Fut, F, T1, T2, E> Future for MapResponseFuture<Fut, F>
where
    Fut: Future<Output = Result<T1, E>>,
    F: FnOnce(T1) -> T2,
{
    type Output = Result<T2, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let steps = self.project().steps;
        steps.poll_with(cx, |result, f| result.map(f))
    }
}

opaque_debug!(MapResponseFuture<Fut, F>);
