//! [`ServiceExt`].

#[cfg(feature = "std")]
use super::CallAll;
use super::{
    AndThen, ErrInto, MapErr, MapFuture, MapRequest, MapResponse, MapResult, Oneshot, Ready,
    ReadyOneshot, Then,
};
#[cfg(feature = "alloc")]
use super::{BoxCloneService, BoxCloneSyncService, BoxService};
use crate::Service;
use crate::filter::{AsyncFilter, AsyncPredicate, Filter, Predicate};
#[cfg(feature = "std")]
use crate::limit::ConcurrencyLimit;
use crate::load_shed::LoadShed;
use crate::retry::Retry;

/// Extension methods for every [`Service`]: waiting for it, and wrapping it in middleware.
///
/// In `a.x().y()`, `y` is the outermost: requests pass through `y` first. A
/// [`ServiceBuilder`](crate::builder::ServiceBuilder) is written in the opposite order.
pub trait ServiceExt<Request>: Service<Request> {
    /// Waits until the service is ready for a call.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{Service, ServiceExt, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let mut service = service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n));
    /// assert_eq!(service.ready().await.unwrap().call(1).await, Ok(1));
    /// # });
    /// ```
    fn ready(&mut self) -> Ready<'_, Self, Request>
    where
        Self: Sized,
    {
        Ready::new(self)
    }

    /// Waits until the service is ready for a call, and returns it.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{Service, ServiceExt, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let service = service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n));
    /// let mut service = service.ready_oneshot().await.unwrap();
    /// assert_eq!(service.call(1).await, Ok(1));
    /// # });
    /// ```
    fn ready_oneshot(self) -> ReadyOneshot<Self, Request>
    where
        Self: Sized,
    {
        ReadyOneshot::new(self)
    }

    /// Calls the service once, as soon as it is ready.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let service = service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n));
    /// assert_eq!(service.oneshot(1).await, Ok(1));
    /// # });
    /// ```
    fn oneshot(self, request: Request) -> Oneshot<Self, Request>
    where
        Self: Sized,
    {
        Oneshot::new(self, request)
    }

    /// Calls the service with each request of a stream. The result is the stream of the responses, in the
    /// same order.
    ///
    /// At most 1024 requests are in flight at once, so a service that answers only after it has received more
    /// never answers. [`call_all`](crate::util::call_all) says how to change the limit, and how to get the
    /// responses as they arrive.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    /// use futures::{StreamExt, executor::block_on, stream};
    ///
    /// let service = service_fn(async |n: u32| Ok::<_, std::convert::Infallible>(n + 1));
    /// let responses = service.call_all(stream::iter([1, 2]));
    /// assert_eq!(block_on(responses.collect::<Vec<_>>()), [Ok(2), Ok(3)]);
    /// ```
    #[cfg(feature = "std")]
    fn call_all<St>(self, requests: St) -> CallAll<Self, St>
    where
        Self: Sized,
        St: futures_core::Stream<Item = Request>,
    {
        CallAll::new(self, requests)
    }

    /// Runs the asynchronous function `f` on every response.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let service = service_fn(async |id: u32| Ok::<_, core::num::ParseIntError>(format!("{id}0")))
    ///     .and_then(async |text: String| text.parse::<u32>());
    /// assert_eq!(service.oneshot(4).await, Ok(40));
    /// # });
    /// ```
    fn and_then<F>(self, f: F) -> AndThen<Self, F>
    where
        Self: Sized,
        F: Clone,
    {
        AndThen::new(self, f)
    }

    /// Transforms responses with `f`.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let service = service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n))
    ///     .map_response(|n| n.to_string());
    /// assert_eq!(service.oneshot(1).await.unwrap(), "1");
    /// # });
    /// ```
    fn map_response<F, Response>(self, f: F) -> MapResponse<Self, F>
    where
        Self: Sized,
        F: FnOnce(Self::Response) -> Response + Clone,
    {
        MapResponse::new(self, f)
    }

    /// Transforms errors with `f`, including those of readiness.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let service = service_fn(async |text: &str| text.parse::<u32>())
    ///     .map_err(|error| format!("not a number: {error}"));
    /// assert!(service.oneshot("one").await.unwrap_err().starts_with("not a number"));
    /// # });
    /// ```
    fn map_err<F, Error>(self, f: F) -> MapErr<Self, F>
    where
        Self: Sized,
        F: FnOnce(Self::Error) -> Error + Clone,
    {
        MapErr::new(self, f)
    }

    /// Transforms results with `f`, both responses and errors.
    ///
    /// Errors of readiness do not pass through `f`; they are converted with `From`.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let service = service_fn(async |text: &str| text.parse::<u32>())
    ///     .map_result(|result| Ok::<_, core::num::ParseIntError>(result.unwrap_or(0)));
    /// assert_eq!(service.oneshot("one").await, Ok(0));
    /// # });
    /// ```
    fn map_result<F, Response, Error>(self, f: F) -> MapResult<Self, F>
    where
        Self: Sized,
        Error: From<Self::Error>,
        F: FnOnce(Result<Self::Response, Self::Error>) -> Result<Response, Error> + Clone,
    {
        MapResult::new(self, f)
    }

    /// Makes the requests from others with `f`.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let service = service_fn(async |n: usize| Ok::<_, core::fmt::Error>(n))
    ///     .map_request(|text: &str| text.len());
    /// assert_eq!(service.oneshot("four").await, Ok(4));
    /// # });
    /// ```
    fn map_request<F, NewRequest>(self, f: F) -> MapRequest<Self, F>
    where
        Self: Sized,
        F: FnMut(NewRequest) -> Request,
    {
        MapRequest::new(self, f)
    }

    /// Transforms response futures with `f`.
    ///
    /// Errors of readiness do not pass through `f`; they are converted with `From`.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let service = service_fn(|n: u32| async move { Ok::<_, core::fmt::Error>(n) })
    ///     .map_future(|response| async move { Ok::<_, core::fmt::Error>(response.await? + 1) });
    /// assert_eq!(service.oneshot(1).await, Ok(2));
    /// # });
    /// ```
    fn map_future<F, Fut, Response, Error>(self, f: F) -> MapFuture<Self, F>
    where
        Self: Sized,
        F: FnMut(Self::Future) -> Fut,
        Error: From<Self::Error>,
        Fut: Future<Output = Result<Response, Error>>,
    {
        MapFuture::new(self, f)
    }

    /// Lets a request through if `predicate` accepts it; `predicate` may change the request.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, filter, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let service = service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n))
    ///     .filter(|text: &str| text.parse::<u32>());
    /// assert_eq!(service.clone().oneshot("1").await, Ok(1));
    /// assert!(matches!(service.oneshot("one").await, Err(filter::Error::Rejected(_))));
    /// # });
    /// ```
    fn filter<F, NewRequest>(self, predicate: F) -> Filter<Self, F>
    where
        Self: Sized,
        F: Predicate<NewRequest>,
    {
        Filter::new(self, predicate)
    }

    /// Lets a request through if the future returned by `predicate` accepts it.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, filter, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let service = service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n))
    ///     .filter_async(|text: &'static str| async move { text.parse::<u32>() });
    /// assert_eq!(service.clone().oneshot("1").await, Ok(1));
    /// assert!(matches!(service.oneshot("one").await, Err(filter::Error::Rejected(_))));
    /// # });
    /// ```
    fn filter_async<F, NewRequest>(self, predicate: F) -> AsyncFilter<Self, F>
    where
        Self: Sized,
        F: AsyncPredicate<NewRequest>,
    {
        AsyncFilter::new(self, predicate)
    }

    /// Runs the asynchronous function `f` on every result, both responses and errors.
    ///
    /// Errors of readiness do not pass through `f`; they are converted with `From`.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # futures::executor::block_on(async {
    /// let service = service_fn(async |text: &str| text.parse::<u32>())
    ///     .then(async |result: Result<u32, _>| Ok::<_, core::num::ParseIntError>(result.unwrap_or(0)));
    /// assert_eq!(service.oneshot("one").await, Ok(0));
    /// # });
    /// ```
    fn then<F, Response, Error, Fut>(self, f: F) -> Then<Self, F>
    where
        Self: Sized,
        Error: From<Self::Error>,
        F: FnOnce(Result<Self::Response, Self::Error>) -> Fut + Clone,
        Fut: Future<Output = Result<Response, Error>>,
    {
        Then::new(self, f)
    }

    /// Converts errors into `E` with [`Into`], including those of readiness. The type can be named.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # #[cfg(feature = "alloc")]
    /// # futures::executor::block_on(async {
    /// let service = service_fn(async |text: &str| text.parse::<u32>())
    ///     .err_into::<campanile::BoxError>();
    /// assert!(service.oneshot("one").await.unwrap_err().is::<core::num::ParseIntError>());
    /// # });
    /// ```
    fn err_into<E>(self) -> ErrInto<Self, E>
    where
        Self: Sized,
        Self::Error: Into<E>,
    {
        ErrInto::new(self)
    }

    /// Fails at once when the service is not ready.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, load_shed, util::future_service};
    ///
    /// # futures::executor::block_on(async {
    /// type Never = core::future::Pending<Result<Echo, core::fmt::Error>>;
    /// type Echo = campanile::util::ServiceFn<fn(u32) -> core::future::Ready<Result<u32, core::fmt::Error>>>;
    /// let never: Never = core::future::pending();
    /// let error = future_service(never).load_shed().oneshot(1).await.unwrap_err();
    /// assert!(matches!(error, load_shed::Error::Overloaded(_)));
    /// # });
    /// ```
    fn load_shed(self) -> LoadShed<Self>
    where
        Self: Sized,
    {
        LoadShed::new(self)
    }

    /// Allows at most `max` requests in flight: see [`limit::concurrency`](crate::limit::concurrency).
    ///
    /// # Panics
    ///
    /// If `max` is 0.
    #[cfg(feature = "std")]
    #[track_caller]
    fn concurrency_limit(self, max: usize) -> ConcurrencyLimit<Self>
    where
        Self: Sized,
    {
        ConcurrencyLimit::new(self, max)
    }

    /// Retries requests as `policy` decides: see [`retry`](crate::retry).
    fn retry<P>(self, policy: P) -> Retry<P, Self>
    where
        Self: Sized,
    {
        Retry::new(policy, self)
    }

    /// Boxes the service: one type for all services with the same requests, responses and errors.
    ///
    /// See [`boxed`](crate::util::boxed) for what it allocates.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # #[cfg(feature = "alloc")]
    /// # futures::executor::block_on(async {
    /// let echo = service_fn(|n: u32| async move { Ok::<_, core::fmt::Error>(n) });
    /// for service in [echo.boxed(), echo.map_response(|n| n * 2).boxed()] {
    ///     assert!([Ok(1), Ok(2)].contains(&service.oneshot(1).await));
    /// }
    /// # });
    /// ```
    #[cfg(feature = "alloc")]
    fn boxed(self) -> BoxService<Request, Self::Response, Self::Error>
    where
        Self: Sized + Send + 'static,
        Self::Future: Send + 'static,
    {
        BoxService::new(self)
    }

    /// Boxes the service, in a box that is `Clone`.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # #[cfg(feature = "alloc")]
    /// # futures::executor::block_on(async {
    /// let service = service_fn(|n: u32| async move { Ok::<_, core::fmt::Error>(n) }).boxed_clone();
    /// assert_eq!(service.clone().oneshot(1).await, Ok(1));
    /// assert_eq!(service.oneshot(2).await, Ok(2));
    /// # });
    /// ```
    #[cfg(feature = "alloc")]
    fn boxed_clone(self) -> BoxCloneService<Request, Self::Response, Self::Error>
    where
        Self: Clone + Sized + Send + 'static,
        Self::Future: Send + 'static,
    {
        BoxCloneService::new(self)
    }

    /// Boxes the service, in a box that is `Clone` and can be shared between threads.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, service_fn};
    ///
    /// # #[cfg(feature = "alloc")]
    /// # futures::executor::block_on(async {
    /// let service = service_fn(|n: u32| async move { Ok::<_, core::fmt::Error>(n) });
    /// let shared = std::sync::Arc::new(service.boxed_clone_sync());
    /// let there = shared.clone();
    /// std::thread::spawn(move || drop((*there).clone())).join().unwrap();
    /// assert_eq!((*shared).clone().oneshot(1).await, Ok(1));
    /// # });
    /// ```
    #[cfg(feature = "alloc")]
    fn boxed_clone_sync(self) -> BoxCloneSyncService<Request, Self::Response, Self::Error>
    where
        Self: Clone + Sized + Send + Sync + 'static,
        Self::Future: Send + 'static,
    {
        BoxCloneSyncService::new(self)
    }
}

impl<S, Request> ServiceExt<Request> for S where S: Service<Request> + ?Sized {}
