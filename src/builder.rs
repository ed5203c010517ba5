//! [`ServiceBuilder`]: a stack of layers, written from the outermost to the innermost.

use core::fmt;
use core::time::Duration;

use crate::filter::{AsyncFilterLayer, FilterLayer};
#[cfg(all(
    feature = "alloc",
    target_has_atomic = "ptr",
    any(target_has_atomic = "64", feature = "critical-section")
))]
use crate::hedge::{Delay, HedgeLayer};
use crate::layer::{Identity, LayerFn, Stack, layer_fn};
#[cfg(all(
    feature = "alloc",
    target_has_atomic = "ptr",
    any(target_has_atomic = "64", feature = "critical-section")
))]
use crate::limit::{Rate, RateLimitLayer};
use crate::load_shed::LoadShedLayer;
use crate::retry::RetryLayer;
use crate::timeout::{DeadlineLayer, TimeoutLayer};
use crate::util::{
    AndThenLayer, Either, ErrIntoLayer, MapErrLayer, MapFutureLayer, MapRequestLayer,
    MapResponseLayer, MapResultLayer, ServiceFn, ThenLayer, option_layer,
};
#[cfg(feature = "alloc")]
use crate::util::{BoxCloneService, BoxCloneSyncService, BoxService};
use crate::{Layer, NoRuntime, Service, Timer, runtime::Parts};
#[cfg(feature = "std")]
use crate::{
    buffer::BufferLayer,
    limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer},
    spawn_ready::SpawnReadyLayer,
};

/// Builds a stack of middleware around a service.
///
/// The first layer added is the outermost: it is the first to see a request. `R` is the runtime: its [`Parts`]
/// provide layers with a timer or an executor. The alias at the crate root has no runtime, and each runtime's module
/// has an alias with that runtime ([`campanile::smol::ServiceBuilder`](crate::smol::ServiceBuilder), …).
/// [`with_runtime`](ServiceBuilder::with_runtime) takes any other runtime as a value.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use campanile::ServiceExt;
/// use campanile::smol::ServiceBuilder;
/// use std::time::Duration;
///
/// let service = ServiceBuilder::new()
///     .load_shed()
///     .buffer(64)
///     .concurrency_limit(16)
///     .rate_limit(100, Duration::from_secs(1))
///     .timeout(Duration::from_secs(5))
///     .service_fn(async |name: &'static str| Ok::<_, std::io::Error>(name.len()));
///
/// assert_eq!(service.oneshot("hello").await.unwrap(), 5);
/// # });
/// ```
///
/// # Order
///
/// The order matters. With a buffer outside a limit, requests wait in the buffer until the limit admits them. With a
/// limit outside a buffer, callers wait for the limit, and the buffer stays empty. A timeout inside both measures the
/// service alone; outside, it includes the waiting.
///
/// # Without an allocator
///
/// `concurrency_limit` and `buffer` keep their state on the heap and are not available without an allocator. Instead
/// of the former, add a layer whose semaphore is in a `static`,
/// `.layer(GlobalConcurrencyLimitLayer::with_semaphore(&SEMAPHORE))`. Instead of the latter, wrap the finished stack
/// with [`buffer::try_pair_in`](crate::buffer::try_pair_in).
#[derive(Clone)]
pub struct ServiceBuilder<L, R> {
    layer: L,
    runtime: R,
}

impl<R: Default> ServiceBuilder<Identity, R> {
    /// A builder with no layers.
    #[must_use]
    pub fn new() -> Self {
        Self {
            layer: Identity::new(),
            runtime: R::default(),
        }
    }
}

impl<R: Default> Default for ServiceBuilder<Identity, R> {
    fn default() -> Self {
        Self::new()
    }
}

impl ServiceBuilder<Identity, NoRuntime> {
    /// A builder on `runtime`: an executor and timer in one, a timer alone, a pair of both
    /// ([`Runtime`](crate::Runtime)), or one of the executors listed at [`Parts`].
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "tokio")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use campanile::{ServiceBuilder, ServiceExt};
    /// use std::time::Duration;
    ///
    /// let service = ServiceBuilder::with_runtime(tokio::runtime::Handle::current())
    ///     .buffer(16)
    ///     .timeout(Duration::from_secs(1))
    ///     .service_fn(async |n: u32| Ok::<_, std::io::Error>(n));
    /// assert_eq!(service.oneshot(1).await.unwrap(), 1);
    /// # });
    /// ```
    #[must_use]
    pub fn with_runtime<R: Parts>(runtime: R) -> ServiceBuilder<Identity, R> {
        ServiceBuilder {
            layer: Identity::new(),
            runtime,
        }
    }
}

impl<L, R> ServiceBuilder<L, R> {
    /// Changes the runtime of the layers that follow.
    #[must_use]
    pub fn runtime<Q: Parts>(self, runtime: Q) -> ServiceBuilder<L, Q> {
        ServiceBuilder {
            layer: self.layer,
            runtime,
        }
    }

    /// Adds a layer.
    pub fn layer<T>(self, layer: T) -> ServiceBuilder<Stack<T, L>, R> {
        ServiceBuilder {
            layer: Stack::new(layer, self.layer),
            runtime: self.runtime,
        }
    }

    /// Adds a layer if it is `Some`.
    pub fn option_layer<T>(
        self,
        layer: Option<T>,
    ) -> ServiceBuilder<Stack<Either<T, Identity>, L>, R> {
        self.layer(option_layer(layer))
    }

    /// Adds a layer made from a function from a service to a service.
    pub fn layer_fn<F>(self, f: F) -> ServiceBuilder<Stack<LayerFn<F>, L>, R> {
        self.layer(layer_fn(f))
    }

    /// Lets clones share the service through a queue of at most `bound` requests: see [`buffer`](crate::buffer).
    ///
    /// # Panics
    ///
    /// If `bound` is 0.
    #[cfg(feature = "std")]
    #[track_caller]
    pub fn buffer<Request>(
        self,
        bound: usize,
    ) -> ServiceBuilder<Stack<BufferLayer<Request, R::Executor>, L>, R>
    where
        R: Parts<Executor: crate::Executor<core::future::Ready<()>>>,
    {
        let layer = BufferLayer::with_executor(bound, self.runtime.executor());
        self.layer(layer)
    }

    /// Allows each service at most `max` requests in flight: see [`limit::concurrency`](crate::limit::concurrency).
    ///
    /// # Panics
    ///
    /// If `max` is 0.
    #[cfg(feature = "std")]
    #[track_caller]
    pub fn concurrency_limit(
        self,
        max: usize,
    ) -> ServiceBuilder<Stack<ConcurrencyLimitLayer, L>, R> {
        self.layer(ConcurrencyLimitLayer::new(max))
    }

    /// Like [`concurrency_limit`](Self::concurrency_limit), but with one limit for all services built from this
    /// stack.
    ///
    /// # Panics
    ///
    /// If `max` is 0.
    #[cfg(feature = "std")]
    #[track_caller]
    pub fn global_concurrency_limit(
        self,
        max: usize,
    ) -> ServiceBuilder<Stack<GlobalConcurrencyLimitLayer, L>, R> {
        self.layer(GlobalConcurrencyLimitLayer::new(max))
    }

    /// Sends a request a second time when its answer is late: see [`hedge`](crate::hedge). For other settings, add a
    /// [`HedgeLayer`] with [`layer`](Self::layer).
    ///
    /// # Panics
    ///
    /// If `latency_percentile` is not from 0 to 1, or `period` is 0.
    #[cfg(all(
        feature = "alloc",
        target_has_atomic = "ptr",
        any(target_has_atomic = "64", feature = "critical-section")
    ))]
    #[track_caller]
    pub fn hedge<P>(
        self,
        policy: P,
        min_data_points: u64,
        latency_percentile: f32,
        period: Duration,
    ) -> ServiceBuilder<Stack<HedgeLayer<P, R::Timer>, L>, R>
    where
        R: Parts<Timer: Timer>,
    {
        let delay = Delay::percentile(min_data_points, latency_percentile, period);
        let layer = HedgeLayer::with_timer(policy, delay, self.runtime.timer());
        self.layer(layer)
    }

    /// Fails at once when the service is not ready: see [`load_shed`](crate::load_shed).
    pub fn load_shed(self) -> ServiceBuilder<Stack<LoadShedLayer, L>, R> {
        self.layer(LoadShedLayer::new())
    }

    /// Lets `num` requests through per `per`. After a pause it lets `num` through at once, and so up to `2 * num - 1`
    /// in one `per`. If the other side counts strictly, use a [`strict`](Rate::strict) [`Rate`]: see
    /// [`limit::rate`](crate::limit::rate).
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
    pub fn rate_limit(
        self,
        num: u64,
        per: Duration,
    ) -> ServiceBuilder<Stack<RateLimitLayer<R::Timer>, L>, R>
    where
        R: Parts<Timer: Timer>,
    {
        let layer = RateLimitLayer::with_timer(Rate::new(num, per), self.runtime.timer());
        self.layer(layer)
    }

    /// Retries requests as `policy` decides: see [`retry`](crate::retry).
    pub fn retry<P>(self, policy: P) -> ServiceBuilder<Stack<RetryLayer<P>, L>, R> {
        self.layer(RetryLayer::new(policy))
    }

    /// Drives readiness in the background: see [`spawn_ready`](crate::spawn_ready).
    #[cfg(feature = "std")]
    pub fn spawn_ready<Request>(
        self,
    ) -> ServiceBuilder<Stack<SpawnReadyLayer<Request, R::Executor>, L>, R>
    where
        R: Parts<Executor: crate::Executor<core::future::Ready<()>>>,
    {
        let layer = SpawnReadyLayer::with_executor(self.runtime.executor());
        self.layer(layer)
    }

    /// Fails a request whose response takes longer than `limit`: see [`timeout`](crate::timeout).
    pub fn timeout(self, limit: Duration) -> ServiceBuilder<Stack<TimeoutLayer<R::Timer>, L>, R>
    where
        R: Parts<Timer: Timer>,
    {
        let layer = TimeoutLayer::with_timer(limit, self.runtime.timer());
        self.layer(layer)
    }

    /// Like [`timeout`](Self::timeout), but covers the wait for readiness together with the response.
    pub fn deadline(self, limit: Duration) -> ServiceBuilder<Stack<DeadlineLayer<R::Timer>, L>, R>
    where
        R: Parts<Timer: Timer>,
    {
        let layer = DeadlineLayer::with_timer(limit, self.runtime.timer());
        self.layer(layer)
    }

    /// Lets requests through that `predicate` accepts: see [`filter`](crate::filter).
    pub fn filter<P>(self, predicate: P) -> ServiceBuilder<Stack<FilterLayer<P>, L>, R> {
        self.layer(FilterLayer::new(predicate))
    }

    /// Lets requests through that an asynchronous `predicate` accepts: see [`filter`](crate::filter).
    pub fn filter_async<P>(self, predicate: P) -> ServiceBuilder<Stack<AsyncFilterLayer<P>, L>, R> {
        self.layer(AsyncFilterLayer::new(predicate))
    }

    /// Transforms requests.
    pub fn map_request<F, R1, R2>(self, f: F) -> ServiceBuilder<Stack<MapRequestLayer<F>, L>, R>
    where
        F: FnMut(R1) -> R2 + Clone,
    {
        self.layer(MapRequestLayer::new(f))
    }

    /// Transforms responses.
    pub fn map_response<F>(self, f: F) -> ServiceBuilder<Stack<MapResponseLayer<F>, L>, R> {
        self.layer(MapResponseLayer::new(f))
    }

    /// Transforms errors, including those of readiness.
    pub fn map_err<F>(self, f: F) -> ServiceBuilder<Stack<MapErrLayer<F>, L>, R> {
        self.layer(MapErrLayer::new(f))
    }

    /// Converts errors into `E`, including those of readiness.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{BoxError, ServiceBuilder, ServiceExt, load_shed::Overloaded};
    ///
    /// # futures::executor::block_on(async {
    /// let service = ServiceBuilder::new()
    ///     .err_into::<BoxError>()
    ///     .load_shed()
    ///     .concurrency_limit(1)
    ///     .service_fn(async |n: u32| Ok::<_, std::io::Error>(n));
    ///
    /// let first = service.clone().ready_oneshot().await.unwrap();
    /// let error = service.oneshot(1).await.unwrap_err();
    /// assert!(error.is::<Overloaded>());
    /// # drop(first);
    /// # });
    /// ```
    pub fn err_into<E>(self) -> ServiceBuilder<Stack<ErrIntoLayer<E>, L>, R> {
        self.layer(ErrIntoLayer::new())
    }

    /// Transforms the response future.
    pub fn map_future<F>(self, f: F) -> ServiceBuilder<Stack<MapFutureLayer<F>, L>, R> {
        self.layer(MapFutureLayer::new(f))
    }

    /// Transforms results, both responses and errors.
    pub fn map_result<F>(self, f: F) -> ServiceBuilder<Stack<MapResultLayer<F>, L>, R> {
        self.layer(MapResultLayer::new(f))
    }

    /// Runs an asynchronous function on every result.
    pub fn then<F>(self, f: F) -> ServiceBuilder<Stack<ThenLayer<F>, L>, R> {
        self.layer(ThenLayer::new(f))
    }

    /// Runs an asynchronous function on every response.
    pub fn and_then<F>(self, f: F) -> ServiceBuilder<Stack<AndThenLayer<F>, L>, R> {
        self.layer(AndThenLayer::new(f))
    }

    /// Returns the layers as one layer.
    pub fn into_inner(self) -> L {
        self.layer
    }

    /// Wraps `service` in the stack.
    #[track_caller]
    pub fn service<S>(&self, service: S) -> L::Service
    where
        L: Layer<S>,
    {
        self.layer.layer(service)
    }

    /// Wraps a function in the stack.
    #[track_caller]
    pub fn service_fn<F>(self, f: F) -> L::Service
    where
        L: Layer<ServiceFn<F>>,
    {
        self.service(crate::service_fn(f))
    }

    /// Fails to compile if the layers are not `Clone`.
    #[inline]
    pub fn check_clone(self) -> Self
    where
        Self: Clone,
    {
        self
    }

    /// Fails to compile if the stack around an `S` is not `Clone`.
    #[inline]
    pub fn check_service_clone<S>(self) -> Self
    where
        L: Layer<S>,
        L::Service: Clone,
    {
        self
    }

    /// Fails to compile if the stack around an `S` does not answer a `Request` with a `T` or an error `E`.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceBuilder, layer::Identity};
    /// use std::convert::Infallible;
    ///
    /// # type Inner = campanile::util::ServiceFn<fn(String) -> std::future::Ready<Result<usize, Infallible>>>;
    /// let builder = ServiceBuilder::new()
    ///     .map_response(|n: usize| n > 3)
    ///     .check_service::<Inner, String, bool, Infallible>();
    /// # let _ = builder;
    /// ```
    #[inline]
    pub fn check_service<S, Request, T, E>(self) -> Self
    where
        L: Layer<S>,
        L::Service: Service<Request, Response = T, Error = E>,
    {
        self
    }
}

#[cfg(feature = "alloc")]
impl<L, R> ServiceBuilder<L, R> {
    /// Boxes the service beneath. The box is `Send`, but not `Clone`.
    pub fn boxed<S, Request>(
        self,
    ) -> ServiceBuilder<Stack<LayerFn<fn(S) -> BoxService<Request, S::Response, S::Error>>, L>, R>
    where
        S: Service<Request, Future: Send + 'static> + Send + 'static,
    {
        self.layer(layer_fn(BoxService::new))
    }

    /// Boxes the service beneath. The box is `Send` and `Clone`.
    pub fn boxed_clone<S, Request>(
        self,
    ) -> ServiceBuilder<
        Stack<LayerFn<fn(S) -> BoxCloneService<Request, S::Response, S::Error>>, L>,
        R,
    >
    where
        S: Service<Request, Future: Send + 'static> + Clone + Send + 'static,
    {
        self.layer(layer_fn(BoxCloneService::new))
    }

    /// Boxes the service beneath. The box is `Send`, `Sync` and `Clone`.
    pub fn boxed_clone_sync<S, Request>(
        self,
    ) -> ServiceBuilder<
        Stack<LayerFn<fn(S) -> BoxCloneSyncService<Request, S::Response, S::Error>>, L>,
        R,
    >
    where
        S: Service<Request, Future: Send + 'static> + Clone + Send + Sync + 'static,
    {
        self.layer(layer_fn(BoxCloneSyncService::new))
    }
}

impl<S, L: Layer<S>, R> Layer<S> for ServiceBuilder<L, R> {
    type Service = L::Service;

    #[track_caller]
    fn layer(&self, inner: S) -> Self::Service {
        self.layer.layer(inner)
    }
}

impl<L: fmt::Debug, R> fmt::Debug for ServiceBuilder<L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServiceBuilder").field(&self.layer).finish()
    }
}
