//! tower's middleware, independent of any runtime.
//!
//! A [`Service`] is an asynchronous function from a request to a response that can also say when it is ready. A
//! [`Layer`] wraps a service in middleware: a queue, a limit, a timeout. Names and meanings are those of [tower], but
//! nothing here is written against tokio. Middleware asks for what it uses, an [`Executor`] or a [`Timer`], and most
//! of it needs neither.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::ServiceExt;
//! use campanile::smol::ServiceBuilder; // or campanile::tokio, campanile::async_std
//! use std::time::Duration;
//!
//! let service = ServiceBuilder::new()
//!     .load_shed()
//!     .buffer(64)
//!     .concurrency_limit(16)
//!     .timeout(Duration::from_secs(1))
//!     .service_fn(async |name: &'static str| Ok::<_, std::io::Error>(format!("hello, {name}")));
//!
//! assert_eq!(service.oneshot("campanile").await.unwrap(), "hello, campanile");
//! # });
//! ```
//!
//! # Middleware
//!
//! | module | what it does | needs |
//! |---|---|---|
//! | [`balance`] | spreads requests over a changing set of endpoints, by their load | a timer, for endpoints that failed |
//! | [`buffer`] | shares one service among many handles, through a bounded queue | an executor |
//! | [`limit::concurrency`] | limits the number of requests in flight | |
//! | [`limit::rate`] | limits the number of requests per period | a timer |
//! | [`load_shed`] | fails at once instead of waiting | |
//! | [`timeout`] | limits the time of a response, or of readiness and response together | a timer |
//! | [`retry`] | sends a request again, as a policy decides, with backoff and a budget | a timer, for the backoff |
//! | [`hedge`] | makes a second attempt when the first is late, and takes the first answer | a timer |
//! | [`filter`] | accepts or rejects requests | |
//! | [`steer`] | chooses one of several services, by the request | |
//! | [`reconnect`] | makes a service anew when it fails, with backoff | a timer |
//! | [`spawn_ready`] | drives readiness in the background | an executor |
//! | [`make`] | services that make services | |
//! | [`load`] | measures how busy a service is, for a balancer | a timer, except for a constant |
//! | [`discover`] | says which endpoints there are, for a balancer | |
//! | [`ready_cache`] | holds services by key, and knows which are ready | |
//! | `testing` | for tests: a runtime with virtual time, a mock service, a probe, fault injection | |
//! | [`util`] | combinators, boxed services and adaptors | |
//!
//! [`builder::ServiceBuilder`] stacks them, and [`ServiceExt`] has many of them as methods.
//!
//! # Runtimes
//!
//! Each adapter is a module that mirrors this crate's tree with the runtime filled in, so that code written for tower
//! compiles with `use campanile::smol as tower;`. [`runtime`] lists the adapters and explains how to write one. Using
//! middleware that needs a runtime without one is a compile error. With [`runtime::SharedTimer`], all waits of a
//! layer or a stack share one alarm of the runtime.
//!
//! # From tower
//!
//! [`from_tower`] lists each of tower's names, with its counterpart here, what differs and why.
//!
//! # Errors
//!
//! Each middleware has its own enum around the error of the inner service. [`mod@error`] shows how to match, search,
//! report and flatten a stack of them into a `BoxError`.
//!
//! # Crate features
//!
//! - `tower` (default): `Service` and `Layer` are those of tower-service and tower-layer.
//! - `std`: [`spawn_ready`], [`balance`], [`ready_cache`], a shared timer, and buffers and concurrency limits whose
//!   state is on the heap, behind a lock.
//! - `alloc`: `BoxError`, boxed services, [`hedge`], measured [`load`], and rate limits whose state is behind an
//!   `Arc`.
//! - `tokio`, `smol`, `async-std`, `futures-timer`, `embassy`, `wasm`: one adapter each; `embassy-executor` adds
//!   embassy's tasks to the timer of `embassy`.
//! - `critical-section`: buffers and limits whose state is in a `static`, without an allocator, and 64-bit state on
//!   processors without 64-bit atomics. The application provides the critical section.
//! - `async-lock`: a concurrency limit over an `Arc<async_lock::Semaphore>`.
//! - `futures-channel`: [`discover::channel`].
//! - `testing`: the `testing` module.
//!
//! Without any of them the crate is `no_std` and uses no allocator. A feature only adds items and never changes one.
//!
//! [tower]: https://docs.rs/tower/0.5
#![no_std]
// Only `sync::mark` has unsafe code, and explains why.
#![deny(unsafe_code)]
// Take from `core` and `alloc` what they have. Tests and examples have std.
#![warn(
    clippy::alloc_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core
)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// The docs link to items of every feature. `ci/doc` checks the links with all features.
#![cfg_attr(
    not(all(
        feature = "critical-section",
        feature = "futures-channel",
        feature = "smol",
        feature = "std",
        feature = "testing"
    )),
    allow(rustdoc::broken_intra_doc_links)
)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

#[macro_use]
mod macros;

mod sync;

#[cfg(feature = "std")]
pub mod balance;
pub mod buffer;
pub mod builder;
pub mod discover;
pub mod error;
pub mod filter;
pub mod fixed;
pub mod from_tower;
// The shared state is behind an `Arc` and has 64-bit words.
#[cfg(all(
    feature = "alloc",
    target_has_atomic = "ptr",
    any(target_has_atomic = "64", feature = "critical-section")
))]
pub mod hedge;
pub mod layer;
pub mod limit;
pub mod load;
pub mod load_shed;
pub mod make;
#[cfg(feature = "std")]
pub mod ready_cache;
pub mod reconnect;
pub mod retry;
#[macro_use]
pub mod runtime;
pub mod service;
#[cfg(feature = "std")]
pub mod spawn_ready;
pub mod steer;
#[cfg(feature = "testing")]
pub mod testing;
pub mod timeout;
pub mod util;

#[cfg(feature = "alloc")]
pub use error::BoxError;
pub use layer::Layer;
pub use make::MakeService;
pub use runtime::{Executor, Instant, NoRuntime, Runtime, Timer};
pub use service::Service;
pub use util::{ServiceExt, service_fn};

/// The builder without a runtime: [`builder::ServiceBuilder`] for middleware that needs neither a timer nor an
/// executor.
pub type ServiceBuilder<L = layer::Identity> = builder::ServiceBuilder<L, NoRuntime>;

#[cfg(feature = "async-std")]
#[doc(inline)]
pub use runtime::async_std;
#[cfg(feature = "embassy")]
#[doc(inline)]
pub use runtime::embassy;
#[cfg(feature = "futures-timer")]
#[doc(inline)]
pub use runtime::futures_timer;
#[cfg(feature = "smol")]
#[doc(inline)]
pub use runtime::smol;
#[cfg(feature = "tokio")]
#[doc(inline)]
pub use runtime::tokio;
#[cfg(all(feature = "wasm", target_family = "wasm", target_os = "unknown"))]
#[doc(inline)]
pub use runtime::wasm;
