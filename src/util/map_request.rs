use core::task::{Context, Poll};

use super::before_call;
use crate::Service;

combinator! {
    /// A layer of [`MapRequest`].
    MapRequestLayer;
    /// A service that makes its requests from others with `f`.
    ///
    /// See [`ServiceExt::map_request`](crate::ServiceExt::map_request).
    MapRequest;
}

impl<S, F, R1, R2> Service<R1> for MapRequest<S, F>
where
    S: Service<R2>,
    F: FnMut(R1) -> R2,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R1) -> S::Future {
        let f = &mut self.f;
        let request = before_call(&mut self.inner, || f(request));
        self.inner.call(request)
    }
}
