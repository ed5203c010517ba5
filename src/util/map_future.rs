use core::task::{Context, Poll};

use crate::Service;

combinator! {
    /// A layer of [`MapFuture`].
    MapFutureLayer;
    /// A service that transforms response futures with `f`.
    ///
    /// Errors of readiness do not pass through `f`; they are converted with `From`.
    ///
    /// See [`ServiceExt::map_future`](crate::ServiceExt::map_future).
    MapFuture;
}

impl<S, F, Fut, T, E, Request> Service<Request> for MapFuture<S, F>
where
    S: Service<Request>,
    F: FnMut(S::Future) -> Fut,
    E: From<S::Error>,
    Fut: Future<Output = Result<T, E>>,
{
    type Response = T;
    type Error = E;
    type Future = Fut;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.inner.poll_ready(cx).map_err(E::from)
    }

    fn call(&mut self, request: Request) -> Fut {
        (self.f)(self.inner.call(request))
    }
}
