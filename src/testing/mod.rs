//! Tools to test services and middleware: a runtime with virtual time, a mock service, a probe, fault injection.
//!
//! - [`Runtime`] runs a test in virtual time, in an order drawn from a seed. A lost wake-up becomes a [`Deadlock`]
//!   that names the waiting tasks. [`Sim`] is the runtime for middleware: this module mirrors the tree of this crate,
//!   so `campanile::testing::ServiceBuilder` builds stacks that run in it.
//! - [`mock`] is a service whose requests the test answers, on any runtime or without one, like tower-test's.
//! - [`Probe`] watches whether middleware follows the contract of [`Service`].
//! - [`Faults`] makes a service slow, flaky or broken, from a seed.
//!
//! It needs the feature `testing`, which belongs in `[dev-dependencies]`.
//!
//! # Examples
//!
//! ```
//! use campanile::testing::{self, Runtime, ServiceBuilder, assert_request_eq, mock};
//! use campanile::{BoxError, ServiceExt, timeout::Elapsed};
//! use std::time::Duration;
//!
//! let runtime = Runtime::new(1);
//! runtime.block_on(async {
//!     let (inner, mut handle) = mock::pair::<u32, u32>();
//!     let service = ServiceBuilder::new()
//!         .buffer(4)
//!         .timeout(Duration::from_secs(10))
//!         .service(inner);
//!
//!     let fast = testing::spawn(service.clone().oneshot(1));
//!     assert_request_eq!(handle, 1).send_response(2);
//!     assert_eq!(fast.await.unwrap(), 2);
//!
//!     let slow = testing::spawn(service.oneshot(2));
//!     let _unanswered = assert_request_eq!(handle, 2);
//!     assert!(BoxError::from(slow.await.unwrap_err()).is::<Elapsed>());
//! }).unwrap();
//! // No real time has passed.
//! assert_eq!(runtime.elapsed(), Duration::from_secs(10));
//! ```
//!
//! # Differences from tower-test
//!
//! - It does not need tokio.
//! - A mock's error can be your own type: [`Mock::pair`](mock::Mock::pair).

#[cfg(test)]
mod driven;
pub mod faults;
pub mod mock;
pub mod probe;
mod runtime;
mod sim;
mod stuck;
mod trace;

pub use faults::{Faults, Faulty};
pub use probe::{Probe, Probed};
pub use runtime::Runtime;
pub use sim::{JoinHandle, Sim, Sleep, advance, idle, now, sleep, spawn, spawn_named, yield_now};
pub use stuck::{Deadlock, Livelock, Stuck, TaskInfo};
pub use trace::{Event, Trace, What};

/// Asserts that the next request at a mock's [`Handle`](mock::Handle) equals a value, and returns the
/// [`SendResponse`](mock::SendResponse) for it.
///
/// Use it in an `async` block or function, since it waits for the request. A message may follow, as in `assert_eq!`.
///
/// # Panics
///
/// If the request is another one, or if there will be none because the mock is gone.
///
/// # Examples
///
/// ```
/// use campanile::testing::{assert_request_eq, mock};
/// use campanile::ServiceExt;
///
/// futures::executor::block_on(async {
///     let (service, mut handle) = mock::pair();
///     let test = async { assert_request_eq!(handle, "ping", "the first").send_response("pong") };
///     let (answer, ()) = futures::join!(service.oneshot("ping"), test);
///     assert_eq!(answer.unwrap(), "pong");
/// });
/// ```
#[doc(inline)]
pub use crate::__assert_request_eq as assert_request_eq;

#[doc(hidden)]
#[macro_export]
macro_rules! __assert_request_eq {
    ($handle:expr, $expected:expr $(, $($message:tt)*)?) => {
        match $handle.next_request().await {
            ::core::option::Option::Some((request, send_response)) => {
                ::core::assert_eq!(request, $expected $(, $($message)*)?);
                send_response
            }
            ::core::option::Option::None => {
                ::core::panic!("expected a request, and there will be none: the mock was dropped")
            }
        }
    };
}

mirror!(Sim);
