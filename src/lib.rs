//! tower's middleware, free of any runtime.
//!
//! A [`Service`] is an asynchronous function from a request to a response that can say when it is ready. A
//! [`Layer`] puts middleware around one: a queue, a limit, a timeout. The names and their meaning are
//! [tower]'s; what is different is that nothing here is written against tokio. Middleware asks for what it uses,
//! an [`Executor`] or a [`Timer`], and mostly for neither.
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
//! | [`balance`] | spreads requests over endpoints that come and go, by their load | a timer, for endpoints that failed |
//! | [`buffer`] | lets many handles share one service, through a bounded queue | an executor |
//! | [`limit::concurrency`] | so many requests under way at once | |
//! | [`limit::rate`] | so many requests in a span of time | a timer |
//! | [`load_shed`] | an error at once instead of a wait | |
//! | [`timeout`] | a limit on the response, or a deadline over readiness and response | a timer |
//! | [`retry`] | another attempt, by a policy, with backoff and a budget | a timer, for the backoff |
//! | [`hedge`] | a second attempt when the first is late, and the first answer of the two | a timer |
//! | [`filter`] | requests let through or rejected | |
//! | [`steer`] | a choice among services, by the request | |
//! | [`reconnect`] | a service that is made anew when it fails, with backoff | a timer |
//! | [`spawn_ready`] | readiness driven in the background | an executor |
//! | [`make`] | services that make services | |
//! | [`load`] | how busy a service is, for a balancer | a timer, but for a constant |
//! | [`discover`] | which endpoints there are, for a balancer | |
//! | [`ready_cache`] | services by key, and which of them are ready | |
//! | `testing` | for tests: a runtime with virtual time, a mock service, a probe, faults | |
//! | [`util`] | combinators, boxes and adaptors | |
//!
//! [`builder::ServiceBuilder`] stacks them, [`ServiceExt`] has them as methods.
//!
//! # Runtimes
//!
//! Each adapter is a module that mirrors this crate's tree with the runtime filled in, so that
//! `use campanile::smol as tower;` makes code compile that was written for tower. [`runtime`] has the table of
//! adapters, and how to write one. To use middleware that needs a runtime without one is a compile error.
//! [`runtime::SharedTimer`] lets all waits of a layer or a stack share one alarm of the runtime.
//!
//! # From tower
//!
//! [`from_tower`] has each of tower's names, what it is here, and what differs and why.
//!
//! # Errors
//!
//! Each middleware has an enum of its own around the error of the service inside: see [`mod@error`] for how a
//! stack of them is matched, searched, reported and flattened into a `BoxError`.
//!
//! # Crate features
//!
//! - `tower` (default): `Service` and `Layer` are those of tower-service and tower-layer.
//! - `std`: [`spawn_ready`], [`balance`], [`ready_cache`], a timer that is shared, and buffers and concurrency limits
//!   whose state is on the heap, behind a lock.
//! - `alloc`: `BoxError`, boxed services, [`hedge`], a [`load`] that is measured, and a rate limit's state behind an
//!   `Arc`.
//! - `tokio`, `smol`, `async-std`, `futures-timer`, `embassy`, `wasm`: an adapter each; `embassy-executor` adds
//!   embassy's tasks to the timer of `embassy`.
//! - `critical-section`: buffers and limits whose state is in a `static`, without an allocator, and 64-bit state on
//!   processors that have no atomics for it; the application brings the critical section.
//! - `async-lock`: a concurrency limit over an `Arc<async_lock::Semaphore>`.
//! - `futures-channel`: [`discover::channel`].
//! - `testing`: the module of that name.
//!
//! Without any of them the crate is `no_std` and has no allocator. Features add items, and change nothing.
//!
//! [tower]: https://docs.rs/tower/0.5
#![no_std]
// `sync::mark` alone has some, and says why.
#![deny(unsafe_code)]
// What `core` and `alloc` have is taken from there; tests and examples have std.
#![warn(
    clippy::alloc_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core
)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// The docs link to what any feature adds. `ci/doc` checks the links, with all of them.
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
// The state that handles share is behind an `Arc`, and has words of 64 bits.
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

/// The builder without a runtime: [`builder::ServiceBuilder`] for what needs neither a timer nor an executor.
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
