//! Combinators and adaptors: services and futures made from services, functions and options.
//!
//! The combinators, as methods of [`ServiceExt`] or as layers:
//!
//! | to change | with a function | with a future |
//! |---|---|---|
//! | the request | [`MapRequest`] | [`filter_async`](ServiceExt::filter_async) |
//! | the response | [`MapResponse`] | [`AndThen`] |
//! | the error | [`MapErr`], [`ErrInto`] | |
//! | the result | [`MapResult`] | [`Then`], [`MapFuture`] |
//!
//! A response future panics if it is polled again after completion, like that of an `async` block.
//!
//! # Differences from tower
//!
//! - [`ErrInto`] is new: `map_err(Into::into)` with a type that can be named.
//! - [`Optional`] and [`FutureService`] have typed errors, and calling a [`FutureService`] that is not ready does not
//!   panic.
//! - Every combinator provides access to its inner service (`get_ref`, `get_mut`, `into_inner`), and its layer is
//!   `Debug` whatever the function.

#[macro_use]
mod combinator;

mod and_then;
#[cfg(feature = "alloc")]
pub mod boxed;
#[cfg(feature = "std")]
pub mod call_all;
mod either;
mod err_into;
pub mod future_service;
#[cfg(feature = "std")]
mod in_flight;
mod map_err;
mod map_future;
mod map_request;
mod map_response;
mod map_result;
mod oneshot;
pub mod optional;
mod ready;
pub mod rng;
mod service_ext;
mod service_fn;
mod steps;
mod then;

use core::marker::PhantomData;
use core::mem::forget;

use crate::Service;
use crate::sync::{ignore_panic, leaves_rest, withdraw};

pub use and_then::{AndThen, AndThenLayer};
#[cfg(feature = "alloc")]
pub use boxed::{
    BoxCloneService, BoxCloneSyncService, BoxService, UnsyncBoxCloneService, UnsyncBoxService,
};
#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
pub use boxed::{BoxCloneServiceLayer, BoxCloneSyncServiceLayer, BoxLayer};
#[cfg(feature = "std")]
pub use call_all::{CallAll, CallAllUnordered};
pub use either::{Either, option_layer};
pub use err_into::{ErrInto, ErrIntoLayer};
pub use future_service::{FutureService, future_service};
pub use map_err::{MapErr, MapErrLayer};
pub use map_future::{MapFuture, MapFutureLayer};
pub use map_request::{MapRequest, MapRequestLayer};
pub use map_response::{MapResponse, MapResponseLayer};
pub use map_result::{MapResult, MapResultLayer};
pub use oneshot::Oneshot;
pub use optional::Optional;
pub use ready::{Ready, ReadyOneshot};
pub use service_ext::ServiceExt;
pub use service_fn::{ServiceFn, service_fn};
pub use then::{Then, ThenLayer};

/// A future was polled after completion. One place for all, since each that panics takes room in a program.
#[cold]
#[inline(never)]
pub(crate) fn complete() -> ! {
    panic!("a future was polled after it was complete")
}

/// Runs user code between readiness and the call of `service`. If it panics, the service gives up what it has
/// reserved, since the service may be kept by code that catches the panic.
#[inline]
pub(crate) fn before_call<S, Request, T>(service: &mut S, act: impl FnOnce() -> T) -> T
where
    S: Service<Request>,
{
    struct Panicking<'a, S: Service<Request>, Request>(&'a mut S, PhantomData<Request>);

    impl<S: Service<Request>, Request> Drop for Panicking<'_, S, Request> {
        fn drop(&mut self) {
            // A second panic would abort the process.
            ignore_panic(|| drop(withdraw(|cx| self.0.poll_ready(cx))));
        }
    }

    let panicking = Panicking(service, PhantomData);
    let done = act();
    forget(panicking);
    done
}

/// Calls a service that is kept, but may not be polled for a while. What it reserved and does not use for this request
/// is given up: see [`leaves_rest`].
#[inline]
pub(crate) fn call_and_keep<S, Request>(service: &mut S, request: Request) -> S::Future
where
    S: Service<Request>,
{
    let (future, leaves_rest) = leaves_rest(|| service.call(request));
    if leaves_rest {
        // If it fails, so does its next poll.
        let _ = withdraw(|cx| service.poll_ready(cx));
    }
    future
}

/// The response futures, at tower's path.
pub mod future {
    pub use super::and_then::AndThenFuture;
    pub use super::either::EitherResponseFuture;
    pub use super::err_into::ErrIntoFuture;
    pub use super::map_err::MapErrFuture;
    pub use super::map_response::MapResponseFuture;
    pub use super::map_result::MapResultFuture;
    pub use super::then::ThenFuture;

    /// The response future of an [`Optional`](super::Optional).
    pub mod optional {
        pub use crate::util::optional::ResponseFuture;
    }
}

/// The failures, at tower's path.
pub mod error {
    pub use super::optional::error as optional;
}
