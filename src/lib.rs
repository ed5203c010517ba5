//! tower's middleware, free of any runtime.
#![no_std]
#![forbid(unsafe_code)]
// What `core` and `alloc` have is taken from there; tests and examples have std.
#![warn(
    clippy::alloc_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

#[macro_use]
mod macros;

mod sync;

#[cfg(feature = "std")]
pub mod buffer;
pub mod builder;
pub mod error;
pub mod filter;
pub mod layer;
pub mod limit;
pub mod load_shed;
pub mod retry;
pub mod runtime;
pub mod service;
pub mod timeout;
pub mod util;

#[cfg(feature = "alloc")]
pub use error::BoxError;
pub use layer::Layer;
pub use runtime::{Executor, Instant, NoRuntime, Runtime, Timer};
pub use service::Service;
pub use util::{ServiceExt, service_fn};

/// The builder without a runtime: [`builder::ServiceBuilder`] for what needs neither a timer nor an executor.
pub type ServiceBuilder<L = layer::Identity> = builder::ServiceBuilder<L, NoRuntime>;

#[cfg(feature = "async-std")]
pub use runtime::async_std;
#[cfg(feature = "futures-timer")]
pub use runtime::futures_timer;
#[cfg(feature = "smol")]
pub use runtime::smol;
#[cfg(feature = "tokio")]
pub use runtime::tokio;
