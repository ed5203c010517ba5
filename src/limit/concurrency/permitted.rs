use core::ops::{Deref, DerefMut};
use core::pin::Pin;
use core::task::{Context, Poll};

use futures_core::Stream;
use pin_project_lite::pin_project;

use super::{ConcurrencyLimit, Permit, Permits, PermittedFuture, Semaphore};
use crate::{Layer, Service, load::Load};

/// A layer of [`WithPermit`]: a layer `L` of a [`ConcurrencyLimit`] whose responses keep their permits.
///
/// [`ConcurrencyLimitLayer::with_permit`](super::ConcurrencyLimitLayer::with_permit) and
/// [`GlobalConcurrencyLimitLayer::with_permit`](super::GlobalConcurrencyLimitLayer::with_permit) make one.
#[derive(Clone, Copy, Debug)]
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct WithPermitLayer<L> {
    pub(super) limit: L,
}

impl<S, L, M> Layer<S> for WithPermitLayer<L>
where
    L: Layer<S, Service = ConcurrencyLimit<S, M>>,
    M: Permits,
{
    type Service = WithPermit<S, M>;

    fn layer(&self, inner: S) -> Self::Service {
        WithPermit {
            limit: self.limit.layer(inner),
        }
    }
}

/// A [`ConcurrencyLimit`] that passes the permit on with the response: see
/// [`with_permit`](ConcurrencyLimit::with_permit).
#[derive(Debug)]
pub struct WithPermit<S, M: Permits = Semaphore> {
    pub(super) limit: ConcurrencyLimit<S, M>,
}

// The limit's clone holds nothing.
impl<S: Clone, M: Permits> Clone for WithPermit<S, M> {
    fn clone(&self) -> Self {
        Self {
            limit: self.limit.clone(),
        }
    }
}

impl<S, Request, M> Service<Request> for WithPermit<S, M>
where
    S: Service<Request>,
    M: Permits,
{
    type Response = Permitted<S::Response, M>;
    type Error = M::Error<S::Error>;
    type Future = PermittedFuture<S::Future, M>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.limit.poll_limited(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        PermittedFuture {
            limited: self.limit.start(request),
        }
    }
}

/// The load of the inner service.
impl<S: Load, M: Permits> Load for WithPermit<S, M> {
    type Metric = S::Metric;

    fn load(&self) -> S::Metric {
        self.limit.load()
    }

    fn is_no_busier_than(&self, other: &Self) -> bool {
        self.limit.is_no_busier_than(&other.limit)
    }

    fn take_over(&mut self, predecessor: &mut Self) {
        self.limit.take_over(&mut predecessor.limit);
    }
}

pin_project! {
    /// A response with its permit. Dropping it drops the response, then returns the permit.
    ///
    /// If the response is a [`Stream`], so is this. The permit is returned when the stream ends, or when this is
    /// dropped before that.
    ///
    /// If the body is part of the response, move the permit from the whole to that part:
    ///
    /// ```
    /// use campanile::limit::concurrency::{Permitted, Semaphore};
    /// use campanile::{ServiceExt, limit::ConcurrencyLimit, service_fn};
    /// use futures::{StreamExt, stream};
    ///
    /// struct Response<B> {
    ///     status: u16,
    ///     body: B,
    /// }
    ///
    /// # futures::executor::block_on(async {
    /// let inner = service_fn(async |lines: u32| {
    ///     let body = stream::iter(0..lines);
    ///     Ok::<_, std::convert::Infallible>(Response { status: 200, body })
    /// });
    /// let semaphore = Semaphore::new(1);
    /// let service = ConcurrencyLimit::with_semaphore(inner, semaphore.clone())
    ///     .with_permit()
    ///     .map_response(|response| {
    ///         let (Response { status, body }, permit) = response.into_parts();
    ///         let body = Permitted::from_parts(body, permit);
    ///         Response { status, body }
    ///     });
    ///
    /// let mut response = service.oneshot(2).await.unwrap();
    /// assert_eq!(response.status, 200);
    /// assert_eq!(response.body.next().await, Some(0));
    /// assert_eq!(semaphore.available_permits(), 0);
    /// assert_eq!(response.body.collect::<Vec<_>>().await, [1]);
    /// assert_eq!(semaphore.available_permits(), 1);
    /// # });
    /// ```
    #[derive(Debug)]
    pub struct Permitted<T, M = Semaphore>
    where
        M: Permits,
    {
        // Dropped before the permit is returned.
        #[pin]
        pub(super) response: T,
        pub(super) permit: Permit<M>,
    }
}

impl<T, M: Permits> Permitted<T, M> {
    /// Puts the result of [`into_parts`](Self::into_parts), or a part of the response, together again.
    pub const fn from_parts(response: T, permit: Permit<M>) -> Self {
        Self { response, permit }
    }

    /// The response, and the permit, which is returned when it is dropped.
    pub fn into_parts(self) -> (T, Permit<M>) {
        (self.response, self.permit)
    }

    /// Changes the response and keeps its permit.
    ///
    /// An associated function, so that it hides no method of the response.
    ///
    /// ```
    /// use campanile::limit::{ConcurrencyLimitLayer, concurrency::Permitted};
    /// use campanile::{ServiceBuilder, ServiceExt};
    ///
    /// # futures::executor::block_on(async {
    /// let service = ServiceBuilder::new()
    ///     .map_response(|body| Permitted::map(body, str::to_uppercase))
    ///     .layer(ConcurrencyLimitLayer::new(1).with_permit())
    ///     .service_fn(async |_: ()| Ok::<_, std::convert::Infallible>("body"));
    /// assert_eq!(*service.oneshot(()).await.unwrap(), "BODY");
    /// # });
    /// ```
    pub fn map<U>(this: Self, f: impl FnOnce(T) -> U) -> Permitted<U, M> {
        let Self { response, permit } = this;
        Permitted {
            response: f(response),
            permit,
        }
    }
}

impl<T: Stream, M: Permits> Stream for Permitted<T, M> {
    type Item = T::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        let this = self.project();
        let polled = this.response.poll_next(cx);
        if let Poll::Ready(None) = polled {
            this.permit.release();
        }
        polled
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.response.size_hint()
    }
}

impl<T, M: Permits> Deref for Permitted<T, M> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.response
    }
}

impl<T, M: Permits> DerefMut for Permitted<T, M> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.response
    }
}
