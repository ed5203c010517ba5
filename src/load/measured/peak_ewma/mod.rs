//! Load as the time that responses took lately, times the requests under way.
//!
//! # The estimate
//!
//! > cost = estimate × (requests under way + 1)
//!
//! The estimate is an exponentially weighted moving average that jumps to peaks: Peak-EWMA, of Twitter's Finagle
//! ([`PeakEwma.scala`]). A response that took `r` makes of the estimate
//!
//! > max(r, w × estimate + (1 − w) × r), w = e<sup>−elapsed / decay</sup>
//!
//! where `elapsed` is the time since the response before it. Between responses the estimate falls by a factor of
//! e in each decay, down to one nanosecond; so an endpoint that looked slow is tried again, and among endpoints that were
//! idle for long those with the fewest requests under way are chosen.
//!
//! At first the estimate is `default_rtt`, and it decays from the first time that the load is asked for or a
//! request is sent. Such a service is tried when its cost comes below that of the others: a large `default_rtt` keeps a
//! new endpoint from being flooded, a small one has it tried at once.
//!
//! # Silence, and long requests
//!
//! An endpoint that hangs gives no responses, and must not look better with time. One that has a long request under way, such
//! as a watch or a body that is held, must not look worse for it, as long as it answers the others. So silence counts only
//! where more than one request waits for an answer: while two or more are under way, the estimate is at least
//!
//! > (now − second) × e<sup>−(now − last) / decay</sup>
//!
//! where `second` is when the second request was sent since the last response, and `last` is when the last one was. Where
//! requests were cancelled until only one is left, the next to be sent is the second. One
//! request may be long, and says nothing of others. Two may be long as well; so when no further requests are sent, that they
//! are silent weighs less and less, and after some decays the endpoint is tried again. A response ends the silence; if
//! there is none, all of it counts again. So an endpoint that hangs gets a request or so in several decays, and one with
//! several long requests is avoided for no longer than that.
//!
//! A request that took longer than a decay does not count at its end, if others that were sent in the second half of its
//! time were answered before it: they show that it was long by nature. If it failed, it has the penalty all the same.
//!
//! A long request is still one of those under way, by which the estimate is multiplied.
//!
//! # Results that do not count
//!
//! - A [penalised](Outcome::Penalised) one counts as a response that took at least the
//!   [penalty](PeakEwma::with_penalty): the estimate jumps up, and decays. The penalty is one decay unless said
//!   otherwise. Responses that took so long could not be averaged over the decay, so it is above what an
//!   endpoint that works costs. To come from a penalty `p` down to a cost `c` takes `decay × ln(p / c)`.
//! - A request that was cancelled would have taken at least the time that it was under way. That counts where it raises
//!   the estimate, unless it was [long by nature](#silence-and-long-requests).
//! - An [ignored](Outcome::Ignored) one leaves the estimate as it is.
//!
//! # Differences from tower
//!
//! - What is said above of results that do not count; tower counts failures and cancelled requests like responses.
//! - An endpoint that hangs looks worse with time. In tower the estimate decays to nothing, and draws more requests.
//! - The end of a long request that others overtook is no peak.
//! - To ask for the load does not change the estimate. In tower it restarts `elapsed`, so a response
//!   that is not a peak counts the less the more often the load is asked for.
//! - Finding the time is left to a [`Timer`], at most once for a load, a call and a response each; there is no lock.
//!   To [compare](Load::is_no_busier_than) two services takes the time once on the timers of the runtimes, and not at all
//!   when the one that looks faster is idle.
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

/// A service whose load is the time that its responses took lately, times its requests under way.
///
/// See the [module](self) for the formula, and what failures do to it. Clones share one load.
pub struct PeakEwma<S, C = CompleteOnResponse, T = NoRuntime, K = OnError> {
    inner: S,
    completion: C,
    classifier: K,
    shared: Arc<Shared<T>>,
}

impl<S, C, T: Default> PeakEwma<S, C, T> {
    /// Measures `service`, each request until `completion` has it over, on the default timer.
    ///
    /// The estimate is `default_rtt` at first, and decays by a factor of e in each `decay_ns` nanoseconds.
    ///
    /// # Panics
    ///
    /// Where [`try_new`](Self::try_new) gives an error.
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
    /// As [`new`](Self::new), on `timer`.
    ///
    /// # Panics
    ///
    /// Where [`try_with_timer`](Self::try_with_timer) gives an error.
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

    /// As [`new`](Self::new), on `timer`.
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
    /// Lets `classifier` decide which results are penalised: a [`Classify`], such as a closure.
    ///
    /// The types of a closure's argument have to be written out.
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
    /// This makes a load of its own, so clones have to be made afterwards.
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

    /// How many requests are under way.
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

    /// Makes the estimate `estimate`, from which it goes on. Less than a nanosecond counts as one.
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
        // A timer without a value tells the same time wherever it is.
        let is_one_clock = size_of::<T>() == 0;
        match this.is_no_busier_for_sure(other) {
            Some(is_no_busier) if is_one_clock => is_no_busier,
            _ => this.is_no_busier_now(other),
        }
    }

    /// Both have one load from here on, with the settings that the predecessor has.
    fn take_over(&mut self, predecessor: &mut Self) {
        self.shared = predecessor.shared.clone();
    }
}

tracked!(PeakEwma);

/// A load of [`PeakEwma`]: nanoseconds of expected work.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Cost(f64);

impl Cost {
    /// The expected work in nanoseconds: the estimate, times the requests under way and one more.
    #[must_use]
    pub const fn as_nanos(self) -> f64 {
        self.0
    }
}

/// A request under way. It is over when this is dropped.
pub struct Handle<T: Timer> {
    load: Arc<Measured<T>>,
    sent: Instant,
    // `None`: cancelled, as far as is known.
    outcome: Option<Outcome>,
}

impl<T: Timer> Handle<T> {
    fn new(shared: &Shared<T>) -> Self {
        let load = &shared.load;
        let sent = load.timer.now();
        load.start(sent);
        load.sent(sent, shared.in_flight());
        // Whoever sees the request sees since when it is silent.
        fence(Ordering::Release);
        Self {
            load: load.clone(),
            sent,
            outcome: None,
        }
    }

    /// Says what came of the request; the last word counts, when the handle is dropped.
    ///
    /// The service's classifier does this when the result is there. A [`TrackCompletion`] that keeps the
    /// handle may do it again when a body breaks off.
    pub fn record(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl<T: Timer> Drop for Handle<T> {
    fn drop(&mut self) {
        let load = &*self.load;
        let now = load.timer.now();
        let took = nanos_between(self.sent.as_nanos(), now.as_nanos());
        let is_overtaken = load.is_overtaken(self.sent, took);
        match self.outcome {
            Some(Outcome::Penalised) if is_overtaken => load.observe(now, load.settings.penalty),
            Some(Outcome::Penalised) => load.observe(now, took.max(load.settings.penalty)),
            _ if is_overtaken => {}
            Some(Outcome::Counted) => load.observe(now, took),
            Some(Outcome::Ignored) => {}
            None => load.raise(now, took),
        }
        // A request that is cancelled says nothing of the others, and they may hang as it did.
        if self.outcome.is_some() {
            load.answered();
        }
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
    /// Where [`try_new`](Self::try_new) gives an error.
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
    /// As [`new`](Self::new), on `timer`.
    ///
    /// # Panics
    ///
    /// Where [`try_with_timer`](Self::try_with_timer) gives an error.
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

    /// As [`new`](Self::new), on `timer`.
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

/// Why there is no [`PeakEwma`] with these arguments.
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
