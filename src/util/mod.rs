//! Combinators and adaptors: services and futures made of services, functions and options.

pub mod rng;
mod service_fn;

pub use service_fn::{ServiceFn, service_fn};
