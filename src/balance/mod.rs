//! Spreads requests over endpoints that come and go, by their load.
//!
//! [`p2c::Balance`] follows a [`Discover`](crate::discover::Discover), which says what endpoints there are,
//! and asks each of them for its [`Load`](crate::load::Load). For each request it draws two of the ready
//! endpoints by chance and takes the one with the lower load: the *power of two choices*.
//!
//! An endpoint that fails waits out a backoff and comes back: see [`quarantine`]. Which layer looks after
//! failing endpoints is the balancer's choice, and can be any other, or none.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::smol::balance::p2c::Balance;
//! use campanile::{ServiceExt, discover::ServiceList, load::Load, service_fn};
//! use core::{convert::Infallible, task::{Context, Poll}};
//! # use campanile::Service;
//!
//! /// An endpoint that says how busy it is; `load` has ready-made ones.
//! #[derive(Clone)]
//! struct Endpoint {
//!     name: &'static str,
//!     busy: u32,
//! }
//! # impl Service<()> for Endpoint {
//! #     type Response = &'static str;
//! #     type Error = Infallible;
//! #     type Future = core::future::Ready<Result<&'static str, Infallible>>;
//! #     fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
//! #         Poll::Ready(Ok(()))
//! #     }
//! #     fn call(&mut self, (): ()) -> Self::Future {
//! #         core::future::ready(Ok(self.name))
//! #     }
//! # }
//!
//! impl Load for Endpoint {
//!     type Metric = u32;
//!     fn load(&self) -> u32 {
//!         self.busy
//!     }
//! }
//!
//! let endpoints = [
//!     Endpoint { name: "ada", busy: 7 },
//!     Endpoint { name: "grace", busy: 2 },
//! ];
//! let balance = Balance::new(ServiceList::new(endpoints));
//! assert_eq!(balance.oneshot(()).await.unwrap(), "grace");
//! # });
//! ```

pub mod error;
pub mod p2c;
pub mod quarantine;
