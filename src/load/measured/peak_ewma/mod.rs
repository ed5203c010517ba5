//! Load as the duration of recent responses, times the requests in flight.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::load::{CompleteOnResponse, Load};
//! use campanile::smol::load::PeakEwma;
//! use campanile::{Service, service_fn};
//! use core::{future::ready, time::Duration};
//!
//! let service = service_fn(|ok: bool| ready(if ok { Ok(()) } else { Err(core::fmt::Error) }));
//! let (default_rtt, decay_ns) = (Duration::from_millis(50), 10e9);
//! let mut service = PeakEwma::new(service, default_rtt, decay_ns, CompleteOnResponse);
//!
//! assert!(service.estimate() <= default_rtt);
//! service.call(false).await.unwrap_err();
//! assert!(service.estimate() > default_rtt); // nearly the ten seconds of the penalty
//! # });
//! ```
//!
//! # The estimate
//!
//! > cost = estimate × (requests in flight + 1)
//!
//! The estimate is an exponentially weighted moving average that jumps to peaks: Peak-EWMA, from Twitter's Finagle
//! ([`PeakEwma.scala`]). A response that took `r` changes the estimate to
//!
//! > max(r, w × estimate + (1 − w) × r), w = e<sup>−elapsed / decay</sup>
//!
//! where `elapsed` is the time since the previous response. Between responses the estimate falls by a factor of e in
//! each decay, down to one nanosecond. So an endpoint that looked slow is tried again, and among endpoints that have
//! long been idle, those with the fewest requests in flight are chosen.
//!
//! At first the estimate is `default_rtt`. It decays from the first time that the load is read or a request is sent.
//! Such a service is tried when its cost falls below that of the others: a large `default_rtt` keeps a new endpoint
//! from being flooded, a small one has it tried at once.
//!
//! # Silence, and long requests
//!
//! An endpoint that hangs gives no responses, and must not look better with time. An endpoint with a long request in
//! flight, such as a watch or a body that is held, must not look worse for it as long as it answers its other requests.
//! So silence counts only if more than one request waits. A request waits if it was sent after the last response, and is
//! still in flight; one sent before it was overtaken, and may be long. While two or more wait, the estimate is at least
//!
//! > (now − second) × e<sup>−(now − last) / decay</sup>
//!
//! where `second` is when the second of them was sent, and `last` is when the last request was sent. If requests were
//! cancelled until only one waits, the next to be sent is the second. One request may be long, and says nothing about
//! others. Two may be long as well; so once no further requests are sent, their silence weighs less and less, and after
//! some decays the endpoint is tried again. While that request waits, the whole silence counts again; a response ends
//! it. So an endpoint that hangs gets a request or so in several decays, and one with several long requests is avoided
//! for no longer than that. If the last request is cancelled, `second` takes the place of `last`: a client that gives up
//! early says nothing about the requests that still wait.
//!
//! A request that took longer than a decay does not count at its end if others that were sent in the second half of its
//! time were answered before it: they show that it was long by nature. If it failed, it still gets the penalty.
//!
//! A long request still counts among the requests in flight that multiply the estimate.
//!
//! # Results that do not count
//!
//! - A [penalised](Outcome::Penalised) one counts as a response that took at least the
//!   [penalty](PeakEwma::with_penalty): the estimate jumps up, and decays. The penalty is one decay by default.
//!   Responses that took that long could not be averaged over the decay, so the penalty is above the cost of an
//!   endpoint that works. Falling from a penalty `p` to a cost `c` takes `decay × ln(p / c)`.
//! - A cancelled request would have taken at least as long as it was in flight. That counts if it raises the estimate,
//!   unless the request was [long by nature](#silence-and-long-requests).
//! - An [ignored](Outcome::Ignored) one leaves the estimate unchanged.
//!
//! # Differences from tower
//!
//! - Results that do not count are treated as described above; tower counts failures and cancelled requests like
//!   responses.
//! - An endpoint that hangs looks worse with time. In tower the estimate decays to nothing, and attracts more requests.
//! - The end of a long request that others overtook is no peak.
//! - Reading the load does not change the estimate. In tower it restarts `elapsed`, so the more often the load is read,
//!   the less a response that is not a peak counts.
//! - The time comes from a [`Timer`], which is read at most once each for a load, a call and a response; there is no
//!   lock. [Comparing](Load::is_no_busier_than) two services reads the time once on the runtimes' timers, and not at
//!   all if the one that looks faster is idle.
//!
//! [`PeakEwma.scala`]: https://github.com/twitter/finagle/blob/9cc08d15216497bb03a1cafda96b7266cfbbcff1/finagle-core/src/main/scala/com/twitter/finagle/loadbalancer/PeakEwma.scala

use alloc::sync::Arc;
use core::fmt;
use core::pin::Pin;
use core::sync::atomic::{Ordering, fence};
use core::task::{Context, Poll};
use core::time::Duration;

use futures_core::Stream;
use pin_project_lite::pin_project;

use super::decay::nanos_between;
use crate::discover::{Change, Discover};
use crate::load::completion::{
    Classified, CompleteOnResponse, TrackCompletion, TrackCompletionFuture, judge::Record,
};
use crate::load::{Classify, Load, OnError, Outcome};
use crate::{Instant, NoRuntime, Service, Timer};

mod estimate;

use self::estimate::{Measured, Settings, Shared, nanos};

/// A service whose load is the duration of its recent responses, times its requests in flight.
///
/// See the [module](self) for the formula and the effect of failures. Clones share one load.
pub struct PeakEwma<S, C = CompleteOnResponse, T = NoRuntime, K = OnError> {
    inner: S,
    completion: C,
    classifier: K,
    shared: Arc<Shared<T>>,
}

impl<S, C, T: Default> PeakEwma<S, C, T> {
    /// Measures `service` on the default timer; `completion` decides when each request is over.
    ///
    /// The estimate is `default_rtt` at first, and decays by a factor of e in each `decay_ns` nanoseconds.
    ///
    /// # Panics
    ///
    /// If [`try_new`](Self::try_new) returns an error.
    #[track_caller]
    pub fn new(service: S, default_rtt: Duration, decay_ns: f64, completion: C) -> Self {
        Self::with_timer(service, default_rtt, decay_ns, completion, T::default())
    }

    /// As [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// If `default_rtt` is 0, or `decay_ns` is not from a microsecond to a year.
    pub fn try_new(
        service: S,
        default_rtt: Duration,
        decay_ns: f64,
        completion: C,
    ) -> Result<Self, InvalidEwma> {
        Self::try_with_timer(service, default_rtt, decay_ns, completion, T::default())
    }
}

impl<S, C, T> PeakEwma<S, C, T> {
    /// Like [`new`](Self::new), but on `timer`.
    ///
    /// # Panics
    ///
    /// If [`try_with_timer`](Self::try_with_timer) returns an error.
    #[track_caller]
    pub fn with_timer(
        service: S,
        default_rtt: Duration,
        decay_ns: f64,
        completion: C,
        timer: T,
    ) -> Self {
        match Self::try_with_timer(service, default_rtt, decay_ns, completion, timer) {
            Ok(service) => service,
            Err(invalid) => panic!("{invalid}"),
        }
    }

    /// Like [`new`](Self::new), but on `timer`.
    ///
    /// # Errors
    ///
    /// If `default_rtt` is 0, or `decay_ns` is not from a microsecond to a year.
    pub fn try_with_timer(
        service: S,
        default_rtt: Duration,
        decay_ns: f64,
        completion: C,
        timer: T,
    ) -> Result<Self, InvalidEwma> {
        let settings = Settings::new(default_rtt, decay_ns)?;
        Ok(Self {
            inner: service,
            completion,
            classifier: OnError,
            shared: Arc::new(Shared::new(settings, timer)),
        })
    }
}

impl<S, C, T, K> PeakEwma<S, C, T, K> {
    /// Lets `classifier`, a [`Classify`] such as a closure, decide which results are penalised.
    ///
    /// A closure needs its argument types written out.
    #[must_use]
    pub fn with_classifier<K2>(self, classifier: K2) -> PeakEwma<S, C, T, K2> {
        PeakEwma {
            inner: self.inner,
            completion: self.completion,
            classifier,
            shared: self.shared,
        }
    }

    /// Lets a penalised result count as a response that took at least `penalty`. With [`Duration::ZERO`] it
    /// counts like any response.
    ///
    /// This starts a new load, so make clones afterwards.
    #[must_use]
    pub fn with_penalty(mut self, penalty: Duration) -> Self
    where
        T: Clone,
    {
        let Measured {
            settings, timer, ..
        } = &*self.shared.load;
        let settings = settings.with_penalty(penalty);
        self.shared = Arc::new(Shared::new(settings, timer.clone()));
        self
    }

    /// How many requests are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight()
    }

    accessors!(S);
}

impl<S, C, T: Timer, K> PeakEwma<S, C, T, K> {
    /// How long a response is expected to take.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let estimate = self.shared.estimate(self.shared.load.timer.now());
        Duration::from_nanos((estimate + 0.5) as u64)
    }

    /// Sets the estimate, which continues from there. Less than a nanosecond counts as one.
    pub fn set_estimate(&self, estimate: Duration) {
        let load = &self.shared.load;
        load.set_estimate(load.timer.now(), nanos(estimate));
    }
}

impl<S, C, T: Timer, K> Load for PeakEwma<S, C, T, K> {
    type Metric = Cost;

    fn load(&self) -> Cost {
        self.shared.cost(self.shared.load.timer.now())
    }

    fn is_no_busier_than(&self, other: &Self) -> bool {
        let (this, other) = (&*self.shared, &*other.shared);
        // A timer of zero size tells the same time everywhere.
        let is_one_clock = size_of::<T>() == 0;
        match this.is_no_busier_for_sure(other) {
            Some(is_no_busier) if is_one_clock => is_no_busier,
            _ => this.is_no_busier_now(other),
        }
    }

    /// From now on both share one load, with the predecessor's settings.
    fn take_over(&mut self, predecessor: &mut Self) {
        self.shared = predecessor.shared.clone();
    }
}

tracked!(PeakEwma);

/// A load of [`PeakEwma`]: nanoseconds of expected work.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Cost(f64);

impl Cost {
    /// The expected work in nanoseconds: the estimate, times one more than the requests in flight.
    #[must_use]
    pub const fn as_nanos(self) -> f64 {
        self.0
    }
}

/// A request in flight. It is over when this is dropped.
pub struct Handle<T: Timer> {
    load: Arc<Measured<T>>,
    sent: Instant,
    // The number of the last response before it was sent.
    after: u32,
    // `None`: cancelled, as far as is known.
    outcome: Option<Outcome>,
}

impl<T: Timer> Handle<T> {
    fn new(shared: &Shared<T>) -> Self {
        let load = &shared.load;
        let sent = load.timer.now();
        load.start(sent);
        let after = load.sent(sent, shared.in_flight());
        // A thread that sees the request in the count also sees since when there is silence.
        fence(Ordering::Release);
        Self {
            load: load.clone(),
            sent,
            after,
            outcome: None,
        }
    }

    /// Reports the outcome of the request. The last report counts, when the handle is dropped.
    ///
    /// The service's classifier reports when the result is ready. A [`TrackCompletion`] that keeps the handle may
    /// report again when a body breaks off.
    pub fn record(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl<T: Timer> Drop for Handle<T> {
    fn drop(&mut self) {
        let load = &*self.load;
        let now = load.timer.now();
        let took = nanos_between(self.sent.as_nanos(), now.as_nanos());
        let Some(outcome) = self.outcome else {
            return load.cancelled(now, self.sent, self.after, took);
        };
        let is_overtaken = load.is_overtaken(self.sent, took);
        match outcome {
            Outcome::Penalised if is_overtaken => load.observe(now, load.settings.penalty),
            Outcome::Penalised => load.observe(now, took.max(load.settings.penalty)),
            Outcome::Counted if !is_overtaken => load.observe(now, took),
            Outcome::Counted | Outcome::Ignored => {}
        }
        // The service holds one count, and this request another. If the service was dropped, nothing reads the number.
        load.has_answered(Arc::strong_count(&self.load).wrapping_sub(2));
    }
}

impl<T: Timer> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("sent", &self.sent)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// A [`Discover`] whose services are [`PeakEwma`].
    pub struct PeakEwmaDiscover<D, C = CompleteOnResponse, T = NoRuntime, K = OnError> {
        #[pin]
        discover: D,
        completion: C,
        timer: T,
        classifier: K,
        settings: Settings,
    }
}

impl<D, C, T: Default> PeakEwmaDiscover<D, C, T> {
    /// Measures each service that `discover` finds, on the default timer: see [`PeakEwma::new`].
    ///
    /// # Panics
    ///
    /// If [`try_new`](Self::try_new) returns an error.
    #[track_caller]
    pub fn new<Request>(discover: D, default_rtt: Duration, decay: Duration, completion: C) -> Self
    where
        D: Discover,
        D::Service: Service<Request>,
        C: TrackCompletion<Handle<T>, <D::Service as Service<Request>>::Response>,
        T: Timer,
    {
        Self::with_timer(discover, default_rtt, decay, completion, T::default())
    }

    /// As [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// If `default_rtt` is 0, or `decay` is not from a microsecond to a year.
    pub fn try_new(
        discover: D,
        default_rtt: Duration,
        decay: Duration,
        completion: C,
    ) -> Result<Self, InvalidEwma> {
        Self::try_with_timer(discover, default_rtt, decay, completion, T::default())
    }
}

impl<D, C, T> PeakEwmaDiscover<D, C, T> {
    /// Like [`new`](Self::new), but on `timer`.
    ///
    /// # Panics
    ///
    /// If [`try_with_timer`](Self::try_with_timer) returns an error.
    #[track_caller]
    pub fn with_timer(
        discover: D,
        default_rtt: Duration,
        decay: Duration,
        completion: C,
        timer: T,
    ) -> Self {
        match Self::try_with_timer(discover, default_rtt, decay, completion, timer) {
            Ok(discover) => discover,
            Err(invalid) => panic!("{invalid}"),
        }
    }

    /// Like [`new`](Self::new), but on `timer`.
    ///
    /// # Errors
    ///
    /// If `default_rtt` is 0, or `decay` is not from a microsecond to a year.
    pub fn try_with_timer(
        discover: D,
        default_rtt: Duration,
        decay: Duration,
        completion: C,
        timer: T,
    ) -> Result<Self, InvalidEwma> {
        Ok(Self {
            discover,
            completion,
            timer,
            classifier: OnError,
            settings: Settings::new(default_rtt, decay.as_nanos() as f64)?,
        })
    }
}

impl<D, C, T, K> PeakEwmaDiscover<D, C, T, K> {
    /// Lets `classifier` decide which results are penalised: see [`PeakEwma::with_classifier`].
    #[must_use]
    pub fn with_classifier<K2>(self, classifier: K2) -> PeakEwmaDiscover<D, C, T, K2> {
        PeakEwmaDiscover {
            discover: self.discover,
            completion: self.completion,
            timer: self.timer,
            classifier,
            settings: self.settings,
        }
    }

    /// Lets a penalised result count as a response that took at least `penalty`: see [`PeakEwma::with_penalty`].
    #[must_use]
    pub fn with_penalty(mut self, penalty: Duration) -> Self {
        self.settings = self.settings.with_penalty(penalty);
        self
    }
}

impl<D: Discover, C: Clone, T: Clone, K: Clone> Stream for PeakEwmaDiscover<D, C, T, K> {
    type Item = Result<Change<D::Key, PeakEwma<D::Service, C, T, K>>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        this.discover.poll_discover(cx).map_ok(|change| {
            change.map(|inner| PeakEwma {
                inner,
                completion: this.completion.clone(),
                classifier: this.classifier.clone(),
                shared: Arc::new(Shared::new(*this.settings, this.timer.clone())),
            })
        })
    }
}

impl<D: fmt::Debug, C, T, K> fmt::Debug for PeakEwmaDiscover<D, C, T, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeakEwmaDiscover")
            .field("discover", &self.discover)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// An argument that a [`PeakEwma`] does not accept.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum InvalidEwma {
    /// The first estimate is zero.
    DefaultRtt(Duration),
    /// The decay, in nanoseconds, is not from a microsecond to a year.
    Decay(f64),
}

impl fmt::Display for InvalidEwma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRtt(rtt) => write!(
                f,
                "invalid load: the default rtt is {rtt:?}, and must be more than 0"
            ),
            Self::Decay(nanos) => write!(
                f,
                "invalid load: the decay is {nanos} ns, and must be from 1e3 (a microsecond) to 3.15576e16 (a year)"
            ),
        }
    }
}

impl core::error::Error for InvalidEwma {}
