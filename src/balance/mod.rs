//! Spreads requests over a changing set of endpoints, by their load.
//!
//! [`p2c::Balance`] follows a [`Discover`](crate::discover::Discover), which says which endpoints there are, and asks
//! each of them for its [`Load`](crate::load::Load). For each request it draws two of the ready endpoints at random
//! and takes the one with the lower load: the *power of two choices*.
//!
//! An endpoint that fails waits for a backoff and comes back: see [`quarantine`]. A layer handles failing endpoints;
//! you can give the balancer any other layer, or none.
//!
//! # Examples
//!
//! Endpoints that come and go, with the number of requests in flight as their load:
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::smol::{balance::p2c::Balance, load::PendingRequestsDiscover};
//! use campanile::{Service, ServiceExt, discover::Change, load::CompleteOnResponse, service_fn};
//! use std::convert::Infallible;
//!
//! // What would be a connection.
//! let connect = |name: &'static str| service_fn(move |()| async move { Ok::<_, Infallible>(name) });
//!
//! let (changes, discover) = futures::channel::mpsc::unbounded::<Result<_, Infallible>>();
//! let discover = PendingRequestsDiscover::new(discover, CompleteOnResponse);
//! let mut balance = Balance::new(discover);
//!
//! changes.unbounded_send(Ok(Change::Insert(1, connect("ada")))).unwrap();
//! assert_eq!(balance.ready().await.unwrap().call(()).await.unwrap(), "ada");
//!
//! changes.unbounded_send(Ok(Change::Insert(2, connect("grace")))).unwrap();
//! changes.unbounded_send(Ok(Change::Remove(1))).unwrap();
//! assert_eq!(balance.ready().await.unwrap().call(()).await.unwrap(), "grace");
//! # });
//! ```

pub mod error;
pub mod p2c;
pub mod quarantine;
