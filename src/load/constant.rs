use core::pin::Pin;
use core::task::{Context, Poll};

use futures_core::Stream;
use pin_project_lite::pin_project;

use super::Load;
use crate::Service;
use crate::discover::{Change, Discover};

pin_project! {
    /// A constant load: of a service, or of every service that a [`Discover`](crate::discover::Discover) finds.
    ///
    /// ```
    /// use campanile::{load::{Constant, Load}, service_fn};
    ///
    /// let service = service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n));
    /// assert_eq!(Constant::new(service, 3).load(), 3);
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Constant<T, M> {
        #[pin]
        inner: T,
        load: M,
    }
}

impl<T, M> Constant<T, M> {
    /// Gives `inner` the load `load`.
    pub const fn new(inner: T, load: M) -> Self {
        Self { inner, load }
    }

    accessors!(T);
}

impl<T, M: Copy + PartialOrd> Load for Constant<T, M> {
    type Metric = M;

    fn load(&self) -> M {
        self.load
    }
}

impl<S, M, Request> Service<Request> for Constant<S, M>
where
    S: Service<Request>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.inner.call(request)
    }
}

impl<D: Discover, M: Copy> Stream for Constant<D, M> {
    type Item = Result<Change<D::Key, Constant<D::Service, M>>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let load = *this.load;
        let change = this.inner.poll_discover(cx);
        change.map_ok(|change| change.map(|service| Constant::new(service, load)))
    }
}
