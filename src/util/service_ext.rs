//! The trait `ServiceExt`, once for the crate root and once per runtime.

/// Defines `ServiceExt`. With a runtime, it includes the methods that need one.
macro_rules! service_ext {
    ($($runtime:ty)?) => {
        /// Extension methods for every [`Service`](crate::Service): waiting for it, and wrapping it in middleware.
        ///
        /// In `a.x().y()`, `y` is the outermost: requests pass through `y` first. A
        /// [`ServiceBuilder`](crate::builder::ServiceBuilder) is written in the opposite order.
        pub trait ServiceExt<Request>: $crate::Service<Request> {
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
            fn ready(&mut self) -> $crate::util::Ready<'_, Self, Request>
            where
                Self: Sized,
            {
                $crate::util::Ready::new(self)
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
            fn ready_oneshot(self) -> $crate::util::ReadyOneshot<Self, Request>
            where
                Self: Sized,
            {
                $crate::util::ReadyOneshot::new(self)
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
            fn oneshot(self, request: Request) -> $crate::util::Oneshot<Self, Request>
            where
                Self: Sized,
            {
                $crate::util::Oneshot::new(self, request)
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
            fn call_all<St>(self, requests: St) -> $crate::util::CallAll<Self, St>
            where
                Self: Sized,
                St: futures_core::Stream<Item = Request>,
            {
                $crate::util::CallAll::new(self, requests)
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
            fn and_then<F>(self, f: F) -> $crate::util::AndThen<Self, F>
            where
                Self: Sized,
                F: Clone,
            {
                $crate::util::AndThen::new(self, f)
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
            fn map_response<F, Response>(self, f: F) -> $crate::util::MapResponse<Self, F>
            where
                Self: Sized,
                F: FnOnce(Self::Response) -> Response + Clone,
            {
                $crate::util::MapResponse::new(self, f)
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
            fn map_err<F, Error>(self, f: F) -> $crate::util::MapErr<Self, F>
            where
                Self: Sized,
                F: FnOnce(Self::Error) -> Error + Clone,
            {
                $crate::util::MapErr::new(self, f)
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
            fn map_result<F, Response, Error>(self, f: F) -> $crate::util::MapResult<Self, F>
            where
                Self: Sized,
                Error: From<Self::Error>,
                F: FnOnce(Result<Self::Response, Self::Error>) -> Result<Response, Error> + Clone,
            {
                $crate::util::MapResult::new(self, f)
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
            fn map_request<F, NewRequest>(self, f: F) -> $crate::util::MapRequest<Self, F>
            where
                Self: Sized,
                F: FnMut(NewRequest) -> Request,
            {
                $crate::util::MapRequest::new(self, f)
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
            fn map_future<F, Fut, Response, Error>(self, f: F) -> $crate::util::MapFuture<Self, F>
            where
                Self: Sized,
                F: FnMut(Self::Future) -> Fut,
                Error: From<Self::Error>,
                Fut: Future<Output = Result<Response, Error>>,
            {
                $crate::util::MapFuture::new(self, f)
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
            fn filter<F, NewRequest>(self, predicate: F) -> $crate::filter::Filter<Self, F>
            where
                Self: Sized,
                F: $crate::filter::Predicate<NewRequest>,
            {
                $crate::filter::Filter::new(self, predicate)
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
            fn filter_async<F, NewRequest>(
                self,
                predicate: F,
            ) -> $crate::filter::AsyncFilter<Self, F>
            where
                Self: Sized,
                F: $crate::filter::AsyncPredicate<NewRequest>,
            {
                $crate::filter::AsyncFilter::new(self, predicate)
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
            fn then<F, Response, Error, Fut>(self, f: F) -> $crate::util::Then<Self, F>
            where
                Self: Sized,
                Error: From<Self::Error>,
                F: FnOnce(Result<Self::Response, Self::Error>) -> Fut + Clone,
                Fut: Future<Output = Result<Response, Error>>,
            {
                $crate::util::Then::new(self, f)
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
            fn err_into<E>(self) -> $crate::util::ErrInto<Self, E>
            where
                Self: Sized,
                Self::Error: Into<E>,
            {
                $crate::util::ErrInto::new(self)
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
            fn load_shed(self) -> $crate::load_shed::LoadShed<Self>
            where
                Self: Sized,
            {
                $crate::load_shed::LoadShed::new(self)
            }

            /// Allows at most `max` requests in flight: see [`limit::concurrency`](crate::limit::concurrency).
            ///
            /// # Panics
            ///
            /// If `max` is 0.
            #[cfg(feature = "std")]
            #[track_caller]
            fn concurrency_limit(self, max: usize) -> $crate::limit::ConcurrencyLimit<Self>
            where
                Self: Sized,
            {
                $crate::limit::ConcurrencyLimit::new(self, max)
            }

            /// Retries requests as `policy` decides: see [`retry`](crate::retry).
            fn retry<P>(self, policy: P) -> $crate::retry::Retry<P, Self>
            where
                Self: Sized,
            {
                $crate::retry::Retry::new(policy, self)
            }

            $(
            /// Fails a request whose response takes longer than `limit`: see [`timeout`](crate::timeout).
            fn timeout(self, limit: core::time::Duration) -> $crate::timeout::Timeout<Self, $runtime>
            where
                Self: Sized,
                $runtime: $crate::Timer,
            {
                $crate::timeout::Timeout::new(self, limit)
            }

            /// Lets `num` requests through per `per`, and after a pause `num` at once.
            /// [`limit::rate`](crate::limit::rate) says what that guarantees, and has other limits.
            ///
            /// # Panics
            ///
            /// If `num` or `per` is 0.
            #[cfg(all(
                feature = "alloc",
                target_has_atomic = "ptr",
                any(target_has_atomic = "64", feature = "critical-section")
            ))]
            #[track_caller]
            fn rate_limit(
                self,
                num: u64,
                per: core::time::Duration,
            ) -> $crate::limit::RateLimit<Self, $runtime>
            where
                Self: Sized,
                $runtime: $crate::Timer,
            {
                $crate::limit::RateLimit::new(self, $crate::limit::Rate::new(num, per))
            }

            /// Lets clones share the service through a queue of at most `bound` requests: see
            /// [`buffer`](crate::buffer).
            ///
            /// # Panics
            ///
            /// If `bound` is 0.
            #[track_caller]
            fn buffered(
                self,
                bound: usize,
            ) -> $crate::buffer::Buffer<Request, Self::Future, $runtime>
            where
                Self: Sized,
                $runtime: $crate::Executor<$crate::buffer::Worker<Self, Request>>,
            {
                $crate::buffer::Buffer::new(self, bound)
            }
            )?

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
            fn boxed(self) -> $crate::util::BoxService<Request, Self::Response, Self::Error>
            where
                Self: Sized + Send + 'static,
                Self::Future: Send + 'static,
            {
                $crate::util::BoxService::new(self)
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
            fn boxed_clone(
                self,
            ) -> $crate::util::BoxCloneService<Request, Self::Response, Self::Error>
            where
                Self: Clone + Sized + Send + 'static,
                Self::Future: Send + 'static,
            {
                $crate::util::BoxCloneService::new(self)
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
            fn boxed_clone_sync(
                self,
            ) -> $crate::util::BoxCloneSyncService<Request, Self::Response, Self::Error>
            where
                Self: Clone + Sized + Send + Sync + 'static,
                Self::Future: Send + 'static,
            {
                $crate::util::BoxCloneSyncService::new(self)
            }
        }

        impl<S, Request> ServiceExt<Request> for S where S: $crate::Service<Request> + ?Sized {}
    };
}

#[allow(
    unused_imports,
    reason = "only the modules of the runtimes use it by this path"
)]
pub(crate) use service_ext;

service_ext!();
