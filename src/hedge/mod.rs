//! Sends a request a second time when its answer is late, and takes the first answer.
//!
//! A few answers of a service take much longer than the rest: because of a queue, a garbage collection pause, a lost
//! packet. [`Hedge`] waits as long as most answers take and then makes a second attempt, the hedge, which is usually
//! answered at once (Dean and Barroso, "The Tail at Scale", CACM 2013). A [`Policy`] decides which requests may be
//! sent twice.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::ServiceExt;
//! use campanile::smol::{ServiceBuilder, hedge::{Delay, HedgeLayer}};
//! use campanile::retry::CloneByClone;
//! use core::{cell::Cell, convert::Infallible, future::pending, time::Duration};
//!
//! let calls = Cell::new(0);
//! let service = ServiceBuilder::new()
//!     .layer(HedgeLayer::with_delay(CloneByClone, Delay::fixed(Duration::from_millis(5))))
//!     .service_fn(async |n: u32| {
//!         calls.set(calls.get() + 1);
//!         if calls.get() == 1 {
//!             pending::<()>().await; // the first attempt hangs
//!         }
//!         Ok::<_, Infallible>(n)
//!     });
//!
//! assert_eq!(service.oneshot(7).await, Ok(7));
//! assert_eq!(calls.get(), 2);
//! # });
//! ```
//!
//! # When a hedge is sent
//!
//! With [`Delay::percentile`], a hedge is sent when the first attempt has taken longer than a percentile of the
//! latencies: with 0.95, one request in twenty is late. The percentile is computed at the end of each period, from
//! the requests of that period; it is an upper bound, at most 1/16 (or 1 µs) too high. There are no hedges in the
//! first period, nor after a period with no requests or fewer than `min_data_points`, unless the estimate was
//! [seeded](Hedge::seed). With [`Delay::fixed`], a hedge is sent after a fixed delay, which needs no statistics.
//!
//! Each request counts once, with the latency of its first attempt. If the hedge was answered first or the caller
//! gave up, it counts with the time it had run until then, since it would have taken at least that long. A first
//! attempt that failed or was never polled does not count.
//!
//! # Which answer is returned
//!
//! - The first successful response. The other attempt, if still in flight, is dropped with it.
//! - A hedge that fails, or whose service fails to become ready, changes nothing: the first attempt continues.
//! - If the first attempt fails before the hedge was sent, its error is returned; see [`retry`](crate::retry) to make
//!   another attempt. If it fails later, the hedge continues; if that fails too, the error of the first attempt is
//!   returned.
//!
//! # How many hedges are sent
//!
//! Each hedge is paid for from a [`Budget`], so that a service that becomes slow as a whole does not get twice the
//! load. Unless [`budget`](Hedge::budget) sets another, it is a [`ShareBudget`]: of the share above the percentile,
//! which is 5 % for 0.95, but at least 1 %; with a fixed delay, of 5 %. A hedge is paid for when its delay has
//! elapsed, even if it is not sent in the end.
//!
//! # Differences from tower
//!
//! - A hedge that fails does not fail a request whose first attempt is still in flight.
//! - A slow attempt counts even if the hedge was answered first, so hedging does not shorten its own delay.
//! - There is a budget, a fixed delay, a [`HedgeLayer`], and [`Clone`]: clones share estimate and budget.
//! - [`new`](Hedge::new) rejects an invalid percentile and a period of 0.
//! - The service for the hedge is polled ready only once the delay has elapsed, alongside the first attempt.
//! - The estimate can be [read](Hedge::delay) and [seeded](Hedge::seed). Errors are those of the service.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::task::{Context, Poll};
use core::time::Duration;

use crate::retry::CloneByClone;
use crate::retry::budget::Budget;
use crate::runtime::saturating_nanos;
use crate::util::before_call;
use crate::{Instant, Layer, Service, Timer};

mod budget;
mod delay;
mod future;
mod latencies;

pub use budget::ShareBudget;
use delay::Kind;
pub use delay::{Delay, InvalidHedge};
pub use future::ResponseFuture;
use latencies::Latencies;

/// Decides which requests are hedged.
///
/// [`CloneByClone`] hedges all requests. Hedge only requests that can be carried out twice.
pub trait Policy<Request> {
    /// Returns the copy to send as the hedge. It is called before the first attempt, while hedging is possible.
    /// `None` if the request is not to be hedged.
    fn clone_request(&self, request: &Request) -> Option<Request>;

    /// Decides whether to send the copy, once the delay has elapsed.
    fn can_retry(&self, request: &Request) -> bool;
}

/// Hedges every request.
impl<Request: Clone> Policy<Request> for CloneByClone {
    fn clone_request(&self, request: &Request) -> Option<Request> {
        Some(request.clone())
    }

    fn can_retry(&self, _: &Request) -> bool {
        true
    }
}

/// A layer of [`Hedge`]. All services that it makes share one latency estimate and one budget.
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct HedgeLayer<P, T, B = ShareBudget> {
    policy: P,
    state: Arc<State<B>>,
    timer: T,
}

impl<P, T: Default> HedgeLayer<P, T> {
    /// A layer that hedges at a percentile of the latencies, as in [`Delay::percentile`], on the default timer.
    ///
    /// # Panics
    ///
    /// If `latency_percentile` is not from 0 to 1, or `period` is 0.
    #[track_caller]
    pub fn new(policy: P, min_data_points: u64, latency_percentile: f32, period: Duration) -> Self {
        let delay = Delay::percentile(min_data_points, latency_percentile, period);
        Self::with_delay(policy, delay)
    }

    /// Like [`new`](Self::new), but returns a typed error.
    ///
    /// # Errors
    ///
    /// If `latency_percentile` is not from 0 to 1, or `period` is 0.
    pub fn try_new(
        policy: P,
        min_data_points: u64,
        latency_percentile: f32,
        period: Duration,
    ) -> Result<Self, InvalidHedge> {
        let delay = Delay::try_percentile(min_data_points, latency_percentile, period)?;
        Ok(Self::with_delay(policy, delay))
    }

    /// A layer that hedges after `delay`, on the default timer.
    pub fn with_delay(policy: P, delay: Delay) -> Self {
        Self::with_timer(policy, delay, T::default())
    }
}

impl<P, T> HedgeLayer<P, T> {
    /// A layer that hedges after `delay`, on `timer`.
    pub fn with_timer(policy: P, delay: Delay, timer: T) -> Self {
        Self {
            policy,
            state: State::new(delay, delay.budget()),
            timer,
        }
    }
}

impl<P, T, B> HedgeLayer<P, T, B> {
    /// Pays for hedges from `budget`: see [`Hedge::budget`].
    pub fn budget<C: Budget>(self, budget: C) -> HedgeLayer<P, T, C> {
        HedgeLayer {
            policy: self.policy,
            state: State::new(self.state.estimate.settings(), budget),
            timer: self.timer,
        }
    }

    /// The current delay of a hedge; `None` while there is too little data.
    pub fn delay(&self) -> Option<Duration> {
        self.state.estimate.delay().map(Duration::from_nanos)
    }

    /// Counts `latencies` as if they were those of requests, and updates the delay at once.
    ///
    /// They count towards the current period. With a fixed delay this does nothing.
    pub fn seed(&self, latencies: impl IntoIterator<Item = Duration>) {
        self.state.estimate.seed(latencies);
    }
}

impl<P: Clone, T: Clone, B> Clone for HedgeLayer<P, T, B> {
    fn clone(&self) -> Self {
        Self {
            policy: self.policy.clone(),
            state: self.state.clone(),
            timer: self.timer.clone(),
        }
    }
}

impl<S, P: Clone, T: Clone, B> Layer<S> for HedgeLayer<P, T, B> {
    type Service = Hedge<S, P, T, B>;

    fn layer(&self, inner: S) -> Self::Service {
        Hedge {
            inner,
            policy: self.policy.clone(),
            state: self.state.clone(),
            timer: self.timer.clone(),
        }
    }
}

impl<P: fmt::Debug, T, B> fmt::Debug for HedgeLayer<P, T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeLayer")
            .field("policy", &self.policy)
            .field("estimate", &self.state.estimate)
            .finish_non_exhaustive()
    }
}

/// A service that sends a request a second time when its answer is late.
///
/// The ready service makes the first attempt, and a clone the second. See the [module](self) for when this happens
/// and for an example.
pub struct Hedge<S, P, T, B = ShareBudget> {
    inner: S,
    policy: P,
    state: Arc<State<B>>,
    timer: T,
}

impl<S, P, T: Default> Hedge<S, P, T> {
    /// Hedges the requests to `service` at a percentile of the latencies, as in [`Delay::percentile`], on the default
    /// timer.
    ///
    /// # Panics
    ///
    /// If `latency_percentile` is not from 0 to 1, or `period` is 0.
    #[track_caller]
    pub fn new(
        service: S,
        policy: P,
        min_data_points: u64,
        latency_percentile: f32,
        period: Duration,
    ) -> Self {
        let delay = Delay::percentile(min_data_points, latency_percentile, period);
        Self::with_delay(service, policy, delay)
    }

    /// Like [`new`](Self::new), but returns a typed error.
    ///
    /// # Errors
    ///
    /// If `latency_percentile` is not from 0 to 1, or `period` is 0.
    pub fn try_new(
        service: S,
        policy: P,
        min_data_points: u64,
        latency_percentile: f32,
        period: Duration,
    ) -> Result<Self, InvalidHedge> {
        let delay = Delay::try_percentile(min_data_points, latency_percentile, period)?;
        Ok(Self::with_delay(service, policy, delay))
    }

    /// Hedges the requests to `service` after `delay`, on the default timer.
    pub fn with_delay(service: S, policy: P, delay: Delay) -> Self {
        Self::with_timer(service, policy, delay, T::default())
    }
}

impl<S, P, T> Hedge<S, P, T> {
    /// Hedges the requests to `service` after `delay`, on `timer`.
    pub fn with_timer(service: S, policy: P, delay: Delay, timer: T) -> Self {
        Self {
            inner: service,
            policy,
            state: State::new(delay, delay.budget()),
            timer,
        }
    }
}

impl<S, P, T, B> Hedge<S, P, T, B> {
    /// Pays for hedges from `budget`: each request makes a deposit, each hedge a withdrawal. Without a limit:
    /// [`Unlimited`](crate::retry::budget::Unlimited).
    ///
    /// If the budget is shared with a [`StandardPolicy`](crate::retry::StandardPolicy) outside or inside, both make a
    /// deposit. The latency estimate starts anew, and is no longer shared with earlier clones.
    pub fn budget<C: Budget>(self, budget: C) -> Hedge<S, P, T, C> {
        Hedge {
            inner: self.inner,
            policy: self.policy,
            state: State::new(self.state.estimate.settings(), budget),
            timer: self.timer,
        }
    }

    /// The current delay of a hedge; `None` while there is too little data.
    pub fn delay(&self) -> Option<Duration> {
        self.state.estimate.delay().map(Duration::from_nanos)
    }

    /// Counts `latencies` as if they were those of requests, and updates the delay at once.
    ///
    /// They count towards the current period. With a fixed delay this does nothing.
    pub fn seed(&self, latencies: impl IntoIterator<Item = Duration>) {
        self.state.estimate.seed(latencies);
    }

    accessors!(S);
}

// The clone of the inner service starts out unpolled.
impl<S: Clone, P: Clone, T: Clone, B> Clone for Hedge<S, P, T, B> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            policy: self.policy.clone(),
            state: self.state.clone(),
            timer: self.timer.clone(),
        }
    }
}

impl<S: fmt::Debug, P: fmt::Debug, T, B> fmt::Debug for Hedge<S, P, T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedge")
            .field("inner", &self.inner)
            .field("policy", &self.policy)
            .field("estimate", &self.state.estimate)
            .finish_non_exhaustive()
    }
}

impl<S, P, T, B, Request> Service<Request> for Hedge<S, P, T, B>
where
    S: Service<Request> + Clone,
    P: Policy<Request> + Clone,
    T: Timer + Clone,
    B: Budget,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, P, Request, T, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let (start, delay, copy) = before_call(&mut self.inner, || {
            self.state.budget.deposit();
            let (start, delay) = self.state.estimate.start(&self.timer);
            let copy = delay.and_then(|_| self.policy.clone_request(&request));
            (start, delay, copy)
        });
        // The ready service makes the first attempt, and is cloned only afterwards.
        let response = self.inner.call(request);
        let plan = copy.map(|request| (self.inner.clone(), request));
        ResponseFuture::new(
            response,
            plan,
            self.policy.clone(),
            self.timer.clone(),
            self.state.clone(),
            start,
            delay.unwrap_or(0),
        )
    }
}

/// The state that clones share.
struct State<B> {
    estimate: Estimate,
    budget: B,
}

impl<B> State<B> {
    fn new(delay: Delay, budget: B) -> Arc<Self> {
        let estimate = match delay.0 {
            Kind::Fixed(nanos) => Estimate::Fixed(nanos),
            Kind::Percentile(settings) => Estimate::Measured(Box::new(Latencies::new(settings))),
        };
        Arc::new(Self { estimate, budget })
    }
}

/// The source of the delay.
#[derive(Debug)]
enum Estimate {
    // Nanoseconds.
    Fixed(u64),
    Measured(Box<Latencies>),
}

impl Estimate {
    /// When a call starts, if that matters, and after how many nanoseconds it is hedged.
    fn start(&self, timer: &impl Timer) -> (Instant, Option<u64>) {
        match self {
            Self::Fixed(_) => (Instant::from_nanos(0), self.delay()),
            Self::Measured(latencies) => {
                let now = timer.now();
                (now, latencies.delay_at(now))
            }
        }
    }

    /// Nanoseconds.
    fn delay(&self) -> Option<u64> {
        match self {
            Self::Fixed(delay) => Some(*delay).filter(|delay| *delay != u64::MAX),
            Self::Measured(latencies) => latencies.delay(),
        }
    }

    const fn is_measured(&self) -> bool {
        matches!(self, Self::Measured(_))
    }

    fn record(&self, nanos: u64) {
        if let Self::Measured(latencies) = self {
            latencies.record(nanos);
        }
    }

    fn seed(&self, latencies: impl IntoIterator<Item = Duration>) {
        if let Self::Measured(measured) = self {
            latencies
                .into_iter()
                .for_each(|latency| measured.record(saturating_nanos(latency)));
            measured.estimate();
        }
    }

    const fn settings(&self) -> Delay {
        Delay(match self {
            Self::Fixed(nanos) => Kind::Fixed(*nanos),
            Self::Measured(latencies) => Kind::Percentile(latencies.settings()),
        })
    }
}
