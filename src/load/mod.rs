//! How busy a service is: the measure by which a balancer chooses.
//!
//! A [`Load`] returns a value; smaller is less busy. There are
//!
//! - [`PendingRequests`]: how many requests are in flight;
//! - [`PeakEwma`]: the duration of recent responses, times the requests in flight;
//! - [`Constant`]: a value that you set.
//!
//! Each wraps a service; [`PendingRequestsDiscover`], [`PeakEwmaDiscover`] and [`Constant`] also wrap a
//! [`Discover`](crate::discover::Discover), and with it every service that it finds. Clones of a wrapped service share
//! one load.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::load::{CompleteOnResponse, Load, Outcome};
//! use campanile::smol::load::PendingRequests;
//! use campanile::{ServiceExt, service_fn};
//! use std::io::{Error, ErrorKind};
//!
//! let endpoint = service_fn(async |found: bool| match found {
//!     true => Ok(()),
//!     false => Err(Error::from(ErrorKind::NotFound)),
//! });
//!
//! // An answer that there is nothing is no fault of the endpoint's.
//! let endpoint = PendingRequests::new(endpoint, CompleteOnResponse).with_classifier(
//!     |result: &Result<(), Error>| match result {
//!         Err(error) if error.kind() != ErrorKind::NotFound => Outcome::Penalised,
//!         _ => Outcome::Counted,
//!     },
//! );
//! let unused = endpoint.load();
//! endpoint.clone().oneshot(false).await.unwrap_err();
//! assert_eq!(endpoint.load(), unused);
//! # });
//! ```
//!
//! # When a request is over
//!
//! With [`CompleteOnResponse`] a request is over when its response is ready. If a body continues after that, a
//! [`TrackCompletion`] of your own moves the request's handle into the response, and the request is over when the
//! handle is dropped.
//!
//! # When a request fails
//!
//! A broken endpoint often fails at once. If failures counted like other results, it would look the fastest and least
//! busy of all, and attract every request. So a [`Classify`] looks at each result and returns an [`Outcome`]. A
//! [penalised](Outcome::Penalised) result makes the endpoint look worse for a time: see [`pending_requests`] and
//! [`peak_ewma`] for the formulas. By default, with [`OnError`], errors are penalised. An endpoint needs no success to
//! come back: time passes, and it is tried again.
//!
//! # Differences from tower
//!
//! - Results are classified, as described. tower counts a failure like a response.
//! - Services with a load are `Clone` if the inner service is, and clones share one count.
//! - When discovery inserts another service under a known key, the endpoint's load [continues](Load::take_over).
//! - A load can be read and [written](PeakEwma::set_estimate), in documented units.
//! - [`PendingRequests`] also has a timer, which it reads only while there is a penalty.

use crate::util::Either;

pub mod completion;
mod constant;
// Requests share the measurements with the service: an `Arc` with words of 64 bits in it.
#[cfg(all(
    feature = "alloc",
    target_has_atomic = "ptr",
    any(target_has_atomic = "64", feature = "critical-section")
))]
mod measured;

pub use completion::{CompleteOnResponse, TrackCompletion};
pub use constant::Constant;
#[cfg(all(
    feature = "alloc",
    target_has_atomic = "ptr",
    any(target_has_atomic = "64", feature = "critical-section")
))]
pub use measured::{
    PeakEwma, PeakEwmaDiscover, PendingRequests, PendingRequestsDiscover, peak_ewma,
    pending_requests,
};

/// Tells how busy a service is.
pub trait Load {
    /// A measure; smaller is less busy.
    type Metric: PartialOrd;

    /// How busy the service is now.
    fn load(&self) -> Self::Metric;

    /// Whether it is no busier than `other`: this is how a balancer compares two endpoints. If both are equally busy,
    /// either answer will do.
    ///
    /// By default it compares the loads; an implementation may have a cheaper way. A service that forwards the load of
    /// another should forward this, too.
    fn is_no_busier_than(&self, other: &Self) -> bool
    where
        Self: Sized,
    {
        self.load() <= other.load()
    }

    /// Continues from what `predecessor` has learned: the endpoint is the same, and has a new service.
    ///
    /// A balancer calls this on a service that discovery inserts under a known key. The predecessor may stay in use
    /// until this one is ready.
    ///
    /// By default it does nothing. A service that forwards the load of another should forward this, too. References and
    /// boxes do not, since what is in them may be unsized.
    fn take_over(&mut self, predecessor: &mut Self)
    where
        Self: Sized,
    {
        let _ = predecessor;
    }
}

impl<L: Load + ?Sized> Load for &L {
    type Metric = L::Metric;

    fn load(&self) -> L::Metric {
        (**self).load()
    }
}

impl<L: Load + ?Sized> Load for &mut L {
    type Metric = L::Metric;

    fn load(&self) -> L::Metric {
        (**self).load()
    }
}

#[cfg(feature = "alloc")]
impl<L: Load + ?Sized> Load for alloc::boxed::Box<L> {
    type Metric = L::Metric;

    fn load(&self) -> L::Metric {
        (**self).load()
    }
}

impl<A: Load, B: Load<Metric = A::Metric>> Load for Either<A, B> {
    type Metric = A::Metric;

    fn load(&self) -> A::Metric {
        match self {
            Self::Left(load) => load.load(),
            Self::Right(load) => load.load(),
        }
    }

    fn is_no_busier_than(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Left(load), Self::Left(other)) => load.is_no_busier_than(other),
            (Self::Right(load), Self::Right(other)) => load.is_no_busier_than(other),
            _ => self.load() <= other.load(),
        }
    }

    fn take_over(&mut self, predecessor: &mut Self) {
        match (self, predecessor) {
            (Self::Left(load), Self::Left(before)) => load.take_over(before),
            (Self::Right(load), Self::Right(before)) => load.take_over(before),
            _ => {}
        }
    }
}

/// What a result says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The endpoint works: the request counts, with its duration.
    Counted,
    /// The endpoint failed: it looks worse for a time.
    Penalised,
    /// Nothing: neither a penalty nor a measurement.
    Ignored,
}

/// Decides what a result says about the endpoint: any `Fn(&Result<T, E>) -> Outcome`, or [`OnError`].
///
/// A response may be a failure, such as one with status 503; and an error may not be the endpoint's fault, such as that
/// of a bad request.
pub trait Classify<T, E> {
    /// What `result` says about the endpoint.
    fn classify(&self, result: &Result<T, E>) -> Outcome;
}

impl<F, T, E> Classify<T, E> for F
where
    F: Fn(&Result<T, E>) -> Outcome,
{
    fn classify(&self, result: &Result<T, E>) -> Outcome {
        self(result)
    }
}

/// Penalises every error, and counts every response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnError;

impl<T, E> Classify<T, E> for OnError {
    fn classify(&self, result: &Result<T, E>) -> Outcome {
        match result {
            Ok(_) => Outcome::Counted,
            Err(_) => Outcome::Penalised,
        }
    }
}
