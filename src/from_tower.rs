//! For those who come from tower: each of its names, what it is here, and what differs and why.
//!
//! This module holds nothing but this page. A runtime's module has all of tower's names at tower's paths, so
//! that in each file mostly one line changes, and the types of errors where they are named:
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::smol as tower; // or campanile::tokio, campanile::async_std
//!
//! use std::time::Duration;
//! use tower::{BoxError, ServiceBuilder, ServiceExt, timeout::error::Elapsed};
//!
//! let service = ServiceBuilder::new()
//!     .timeout(Duration::from_millis(1))
//!     .service_fn(async |()| Ok::<(), BoxError>(std::future::pending().await));
//!
//! let error = BoxError::from(service.oneshot(()).await.unwrap_err());
//! assert!(error.is::<Elapsed>());
//! # });
//! ```
//!
//! The test `parity` compiles and runs the same code against tower 0.5 and against each runtime, name by name.
//!
//! # What differs everywhere
//!
//! - **Errors.** tower's middleware mostly answers with a `BoxError`. Here each has an enum of its own around the
//!   error of the service inside, such as [`timeout::Error`], and nothing is boxed unless asked for: a `match` sees
//!   each case. By `?`, `BoxError::from` or [`err_into`] it becomes a `BoxError` as tower gives one, in which
//!   `is::<Elapsed>()` finds what it finds there. See [`error`](crate::error). tower's own middleware goes around
//!   it as it is, since that asks for `Into<BoxError>`.
//! - **Parameters.** At the root of this crate a type that needs an executor or a timer has a parameter for it. In a
//!   runtime's module that is filled in, and what is left are tower's parameters, except where a
//!   row below says otherwise. What else there is to choose has defaults.
//! - **Constructors.** `new` in a runtime's module is not `const` where it takes the runtime's default, as with
//!   [`TimeoutLayer::new`], [`BufferLayer::new`] and `ServiceBuilder::new`. Nor does it ask the runtime for
//!   anything, so it works outside of it, but for a [`Buffer`], which starts its worker. `with_timer` and
//!   `with_executor` take any other runtime, of the type at the root of the crate. Where an argument makes no sense,
//!   `new` panics and says so, and `try_new` is an error.
//! - **Readiness.** A `call` that was not polled ready does not panic: it waits, or fails. A clone starts
//!   as never polled.
//! - **Features.** tower has one for each middleware. Here they say what there is to build upon: an
//!   allocator, std, a runtime.
//! - **`tracing`.** There are no events.
//!
//! # The traits, and putting layers together
//!
//! | tower | here | what differs and why |
//! |---|---|---|
//! | `Service`, `Layer` | [`Service`], [`Layer`] | With the feature `tower` they are tower's own. Without it they are the same traits, for cores without std. |
//! | `BoxError` | [`BoxError`] | The same type. |
//! | `MakeService` | [`MakeService`] | As in [`make`](#services-that-make-or-find-services), below. |
//! | `layer`, `layer::util` | [`layer`] | `Layer` for `&T`, `()` and tuples, `layer_fn`, `LayerFn`, `Identity` and `Stack` are tower's own. |
//! | `ServiceBuilder`, `builder` | [`ServiceBuilder`] | The same methods. It knows the runtime: [`runtime`] and [`with_runtime`] take another. New: [`hedge`], [`spawn_ready`], [`global_concurrency_limit`], [`deadline`], [`err_into`]. |
//! | `ServiceExt` | [`ServiceExt`] | The same methods. New: `load_shed`, `concurrency_limit`, `retry`, `err_into`, `boxed_clone_sync`. |
//! | `service_fn`, `util::ServiceFn` | [`service_fn`] | |
//!
//! # Middleware
//!
//! | tower | here | what differs and why |
//! |---|---|---|
//! | `buffer::{Buffer, BufferLayer}` | [`buffer`] | Any executor. The bound is exact: tower's worker holds one request more. A request that is given up leaves the queue at once. The worker can be named, [`Worker`]; [`shutdown`] can be awaited. |
//! | `buffer::error::{ServiceError, Closed}` | [`buffer::error`] | [`ServiceError`] holds the error of the service, with its type. A panic is neither of them but a [`Panicked`]. |
//! | `buffer::future::ResponseFuture` | [`buffer::ResponseFuture`] | Its parameters are the request and the future of the service; it may still wait for room in the queue. |
//! | `filter::{Filter, FilterLayer, Predicate}` | [`filter`] | A [`Predicate`] names its error. The service inside is `Clone`: after a rejected request a clone takes its place, so that what its readiness had reserved, such as a permit, is given back. |
//! | `filter::{AsyncFilter, AsyncFilterLayer, AsyncPredicate}` | [`AsyncFilter`] | [`AsyncFilter::layer`] is the asynchronous layer; tower's is the other one. |
//! | `hedge::{Hedge, Policy}` | [`hedge`](mod@crate::hedge) | A hedge that fails does not beat a first attempt that may yet succeed, and slow attempts count even when they lost. There is a budget, a [`HedgeLayer`], a [fixed delay]. [`Hedge::new`] does not ask for the type of requests. |
//! | `hedge::Future`, `Hedge::new_with_mock_latencies` | [`hedge::ResponseFuture`], [`Hedge::seed`] | Other names: the one as everywhere else, the other because it is good for more than tests. |
//! | `limit::concurrency::{ConcurrencyLimit, ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer}` | [`limit::concurrency`] | The permit is free when the response is there, and not when its future is dropped. |
//! | `with_semaphore` of these | [`ConcurrencyLimit::with_semaphore`] | Takes a [`Semaphore`], which does on every runtime, an `Arc` of tokio's as in tower or of async-lock's, or one in a `static`. That tokio's was closed is an error; tower panics. |
//! | `limit::rate::{RateLimit, RateLimitLayer, Rate}` | [`limit::rate`] | `Clone`, and one budget for all clones and all services of a layer; with [`per_service`] each service has its own, as in tower. The budget comes back evenly, so that no two bursts meet at the edge of a window; but while a burst is served it comes back already, and after a pause a window can see `2 * num - 1`, where tower's first one sees `num`. [`strict`] keeps every window to `num`; [`fixed_window`] counts as tower does. It can reject. |
//! | `load_shed::{LoadShed, LoadShedLayer, error::Overloaded}` | [`load_shed`] | What is shed is not in the line of a limit beneath. |
//! | `reconnect::{Reconnect, ResponseFuture}` | [`reconnect`] | A backoff, where tower connects over and over within one poll. No stale error out of a connection that is up. A [`ReconnectLayer`], and a choice of where errors come out. |
//! | `retry::{Retry, RetryLayer, Policy}` | [`retry`] | The error of an attempt is not lost when the next one cannot be made. There is a ready-made policy, [`StandardPolicy`]. |
//! | `retry::backoff::{MakeBackoff, Backoff, ExponentialBackoffMaker, ExponentialBackoff}` | [`retry::backoff`] | No two backoffs draw the same jitter. [`ExponentialBackoff`] has no parameter for its generator. |
//! | `retry::backoff::InvalidBackoff` | [`InvalidBackoff`] | An enum that says what is wrong. |
//! | `retry::budget::{Budget, TpsBudget}` | [`retry::budget`] | 40 % are 40 %; in tower they are 50 %. No lock, no allocation, and nothing to catch up on after a pause. |
//! | `spawn_ready::{SpawnReady, SpawnReadyLayer}` | [`spawn_ready`](mod@crate::spawn_ready) | The type of the request is a parameter, which is inferred. One task serves all waits. An error stays an error: tower's panics when it is polled again. |
//! | `steer::{Steer, Picker}` | [`steer`] | A clone has no readiness. An index out of range is an error. The services can be in an array. |
//! | `timeout::{Timeout, TimeoutLayer, error::Elapsed}` | [`timeout`] | It fires also where the service uses up tokio's cooperative budget. The clock starts when the response is first pending; [`from_call`] is as tower's. [`Deadline`] covers readiness, too. New: [`SharedTimer`], for `with_timer` of the type at the root. |
//!
//! # Many endpoints
//!
//! | tower | here | what differs and why |
//! |---|---|---|
//! | `balance::p2c::Balance` | [`Balance`] | An endpoint that failed comes back after a backoff, for which it is `Clone`; [`with_layer`] of the type at the root, with an [`Identity`], drops it, as tower does. The choice is made again when the chosen endpoint is gone. Discovery that has ended without an endpoint is an error. [`from_rng`] takes a seed from its generator, and no more. |
//! | `balance::p2c::{MakeBalance, MakeBalanceLayer, MakeFuture}` | [`balance::p2c`] | |
//! | `balance::error::Discover` | [`balance::error`] | It holds the error of discovery, with its type; in a `BoxError` it is tower's. |
//! | `load::{Load, Constant}` | [`load`] | |
//! | `load::{PeakEwma, PeakEwmaDiscover, peak_ewma::{Cost, Handle}}` | [`load::peak_ewma`] | A failure does not count as a fast response, and an endpoint that hangs looks worse with time, not better. To ask does not change the estimate. `Clone`. |
//! | `load::{PendingRequests, PendingRequestsDiscover, pending_requests::{Count, Handle}}` | [`load::pending_requests`] | Failures count for a time, as requests would. `Clone`. |
//! | `load::{TrackCompletion, CompleteOnResponse, completion::TrackCompletionFuture}` | [`load::completion`] | |
//! | `Load` of limits | [`Load`] | That of the service inside, as in tower. |
//! | `ready_cache::ReadyCache` | [`ReadyCache`] | An evicted service is dropped at once. A key is found by what it can be borrowed as, as in a `HashMap`, and not by `indexmap::Equivalent`, which would put that crate into the interface. |
//! | `ready_cache::error::Failed` | [`ready_cache::error::Failed`] | It holds the error of the service, with its type. |
//!
//! # Services that make or find services
//!
//! | tower | here | what differs and why |
//! |---|---|---|
//! | `make::{MakeService, IntoService, AsService, Shared, future::SharedFuture}` | [`make`] | |
//! | `make::MakeConnection` | [`MakeConnection`] | The connection may be anything. tower's has to be tokio's I/O, which other runtimes do not have. |
//! | `discover::{Discover, Change, ServiceList}` | [`discover`] | A [`Change`] can be compared and mapped. With the feature `futures-channel` there is a channel of changes. |
//!
//! # Combinators and adaptors
//!
//! | tower | here | what differs and why |
//! |---|---|---|
//! | `util::{MapRequest, MapResponse, MapErr, MapResult, MapFuture, AndThen, Then}` and their layers | [`util`] | All of them give back the service inside. [`ErrInto`] is new. |
//! | `util::{BoxService, UnsyncBoxService, BoxCloneService, BoxCloneSyncService}` and the box layers | [`util::boxed`] | [`UnsyncBoxCloneService`] is new, for one thread. |
//! | `util::Either`, `util::option_layer` | [`Either`], [`option_layer`] | The errors of the right side convert into those of the left; in tower they are the same type. That is how [`option_layer`] works with a layer that has an error of its own. |
//! | `util::{Optional, error::optional::None}` | [`Optional`] | [`Optional::new`] does not ask for the type of requests. |
//! | `util::{FutureService, future_service}` | [`FutureService`] | |
//! | `util::{Oneshot, Ready, ReadyOneshot}` | [`Oneshot`], [`Ready`], [`ReadyOneshot`] | |
//! | `util::{CallAll, CallAllUnordered}` | [`CallAll`], [`CallAllUnordered`] | At most 1024 requests under way, or as many as said; in tower there is no bound. `into_inner` and `take_service` give an `Option`: where tower panics, it is `None`. |
//! | `util::future` | [`util::future`] | |
//! | `util::rng::{Rng, HasherRng}` | [`util::rng`] | [`Rng::next_range`] has no bias, and an empty range gives its start. [`SplitMix64`] is new, for cores without std. |
//!
//! # Tests
//!
//! | tower-test | here | what differs and why |
//! |---|---|---|
//! | `mock::{pair, spawn, spawn_with, spawn_layer, Mock, Handle, SendResponse, Spawn}` | [`testing::mock`] | No tokio. The error can be a type of one's own, as those of the middleware are. |
//! | `mock::error::Closed` | `testing::mock::Closed` | What a mock fails with whose handle is gone. |
//! | `assert_request_eq!` | [`testing::assert_request_eq!`] | The path. |
//!
//! New in [`testing`]: a runtime with virtual time, a probe of the contract of [`Service`], and an injector of faults.
//!
//! [`timeout::Error`]: crate::timeout::Error
//! [`err_into`]: crate::builder::ServiceBuilder::err_into
//! [`TimeoutLayer::new`]: crate::timeout::TimeoutLayer::new
//! [`BufferLayer::new`]: crate::buffer::BufferLayer::new
//! [`Buffer`]: crate::buffer::Buffer
//! [`Service`]: crate::Service
//! [`Layer`]: crate::Layer
//! [`BoxError`]: crate::BoxError
//! [`MakeService`]: crate::MakeService
//! [`layer`]: crate::layer
//! [`ServiceBuilder`]: crate::builder::ServiceBuilder
//! [`runtime`]: crate::builder::ServiceBuilder::runtime
//! [`with_runtime`]: crate::builder::ServiceBuilder::with_runtime
//! [`hedge`]: crate::builder::ServiceBuilder::hedge
//! [`spawn_ready`]: crate::builder::ServiceBuilder::spawn_ready
//! [`global_concurrency_limit`]: crate::builder::ServiceBuilder::global_concurrency_limit
//! [`deadline`]: crate::builder::ServiceBuilder::deadline
//! [`ServiceExt`]: crate::ServiceExt
//! [`service_fn`]: crate::service_fn
//! [`buffer`]: crate::buffer
//! [`Worker`]: crate::buffer::Worker
//! [`shutdown`]: crate::buffer::Buffer::shutdown
//! [`buffer::error`]: crate::buffer::error
//! [`ServiceError`]: crate::buffer::ServiceError
//! [`Panicked`]: crate::buffer::Panicked
//! [`buffer::ResponseFuture`]: crate::buffer::ResponseFuture
//! [`filter`]: crate::filter
//! [`Predicate`]: crate::filter::Predicate
//! [`AsyncFilter`]: crate::filter::AsyncFilter
//! [`AsyncFilter::layer`]: crate::filter::AsyncFilter::layer
//! [`HedgeLayer`]: crate::hedge::HedgeLayer
//! [fixed delay]: crate::hedge::Delay::fixed
//! [`Hedge::new`]: crate::hedge::Hedge::new
//! [`Hedge::seed`]: crate::hedge::Hedge::seed
//! [`hedge::ResponseFuture`]: crate::hedge::ResponseFuture
//! [`limit::concurrency`]: crate::limit::concurrency
//! [`ConcurrencyLimit::with_semaphore`]: crate::limit::ConcurrencyLimit::with_semaphore
//! [`Semaphore`]: crate::limit::concurrency::Semaphore
//! [`limit::rate`]: crate::limit::rate
//! [`per_service`]: crate::limit::RateLimitLayer::per_service
//! [`strict`]: crate::limit::rate::Rate::strict
//! [`fixed_window`]: crate::limit::Rate::fixed_window
//! [`load_shed`]: crate::load_shed
//! [`reconnect`]: crate::reconnect
//! [`ReconnectLayer`]: crate::reconnect::ReconnectLayer
//! [`retry`]: crate::retry
//! [`StandardPolicy`]: crate::retry::StandardPolicy
//! [`retry::backoff`]: crate::retry::backoff
//! [`ExponentialBackoff`]: crate::retry::backoff::ExponentialBackoff
//! [`InvalidBackoff`]: crate::retry::backoff::InvalidBackoff
//! [`retry::budget`]: crate::retry::budget
//! [`steer`]: crate::steer
//! [`timeout`]: crate::timeout
//! [`SharedTimer`]: crate::runtime::SharedTimer
//! [`from_call`]: crate::timeout::TimeoutLayer::from_call
//! [`Deadline`]: crate::timeout::Deadline
//! [`Balance`]: crate::balance::p2c::Balance
//! [`with_layer`]: crate::balance::p2c::Balance::with_layer
//! [`Identity`]: crate::layer::Identity
//! [`from_rng`]: crate::balance::p2c::Balance::from_rng
//! [`balance::p2c`]: crate::balance::p2c
//! [`balance::error`]: crate::balance::error
//! [`load`]: crate::load
//! [`Load`]: crate::load::Load
//! [`load::peak_ewma`]: crate::load::peak_ewma
//! [`load::pending_requests`]: crate::load::pending_requests
//! [`load::completion`]: crate::load::completion
//! [`ReadyCache`]: crate::ready_cache::ReadyCache
//! [`ready_cache::error::Failed`]: crate::ready_cache::error::Failed
//! [`make`]: crate::make
//! [`MakeConnection`]: crate::make::MakeConnection
//! [`discover`]: crate::discover
//! [`Change`]: crate::discover::Change
//! [`util`]: crate::util
//! [`ErrInto`]: crate::util::ErrInto
//! [`util::boxed`]: crate::util::boxed
//! [`testing`]: crate::testing
//! [`testing::mock`]: crate::testing::mock
//! [`testing::assert_request_eq!`]: crate::testing::assert_request_eq
//! [`UnsyncBoxCloneService`]: crate::util::UnsyncBoxCloneService
//! [`Either`]: crate::util::Either
//! [`option_layer`]: crate::util::option_layer
//! [`Optional`]: crate::util::Optional
//! [`Optional::new`]: crate::util::Optional::new
//! [`FutureService`]: crate::util::FutureService
//! [`Oneshot`]: crate::util::Oneshot
//! [`Ready`]: crate::util::Ready
//! [`ReadyOneshot`]: crate::util::ReadyOneshot
//! [`CallAll`]: crate::util::CallAll
//! [`CallAllUnordered`]: crate::util::CallAllUnordered
//! [`util::future`]: crate::util::future
//! [`util::rng`]: crate::util::rng
//! [`Rng::next_range`]: crate::util::rng::Rng::next_range
//! [`SplitMix64`]: crate::util::rng::SplitMix64
