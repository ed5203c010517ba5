//! Combinators and adaptors: services and futures made of services, functions and options.

mod service_fn;

pub use service_fn::{ServiceFn, service_fn};
