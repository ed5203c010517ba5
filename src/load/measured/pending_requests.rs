//! Load as the number of requests in flight.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::load::{CompleteOnResponse, Load};
//! use campanile::smol::load::PendingRequests;
//! use campanile::{Service, service_fn};
//! use core::future::ready;
//!
//! let service = service_fn(|ok: bool| ready(if ok { Ok(()) } else { Err(core::fmt::Error) }));
//! let mut service = PendingRequests::new(service, CompleteOnResponse);
//! let idle = service.load();
//!
//! let response = service.call(true);
//! assert!(service.load() > idle);
//! response.await.unwrap();
//! assert!(service.load() == idle);
//!
//! service.call(false).await.unwrap_err();
//! assert!(service.load() > idle); // and less from moment to moment
//! # });
//! ```
//!
//! # The penalty
//!
//! A [penalised](Outcome::Penalised) result continues to count as a request in flight, with decreasing weight:
//!
//! > load = requests in flight + Σ e<sup>−(now − tᵢ) / decay</sup>
//!
//! where tᵢ are the moments at which results were penalised. The sum counts as nothing once it has fallen to 1/16. So
//! an endpoint that failed once is as good as new after 2.8 decays ([`DEFAULT_DECAY`] is 5 s, so after 14 s), and is
//! tried earlier when the others are busy. An endpoint that keeps failing beside others with `n` requests in flight
//! each is tried about `n` times in a decay.
//!
//! The clock is read when a result is penalised, and for the load while there is a penalty. A service that does not
//! fail reads no clock.

use alloc::sync::Arc;
use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;

use futures_core::Stream;
use pin_project_lite::pin_project;

use super::decay::Decaying;
use crate::discover::{Change, Discover};
use crate::load::completion::{
    Classified, CompleteOnResponse, TrackCompletion, TrackCompletionFuture, judge::Record,
};
use crate::load::{Classify, Load, OnError, Outcome};
use crate::{NoRuntime, Service, Timer};

/// The time in which a penalty falls by a factor of e by default.
///
/// It is about the time it takes to restart a process or to reconnect.
pub const DEFAULT_DECAY: Duration = Duration::from_secs(5);

/// A service whose load is the number of its requests in flight.
///
/// See the [module](self) for the effect of failures. Clones share one load.
pub struct PendingRequests<S, C = CompleteOnResponse, T = NoRuntime, K = OnError> {
    inner: S,
    completion: C,
    classifier: K,
    shared: Arc<Shared<T>>,
}

impl<S, C, T: Default> PendingRequests<S, C, T> {
    /// Counts the requests of `service` on the default timer; `completion` decides when each is over.
    pub fn new(service: S, completion: C) -> Self {
        Self::with_timer(service, completion, T::default())
    }
}

impl<S, C, T> PendingRequests<S, C, T> {
    /// Counts the requests of `service` on `timer`; `completion` decides when each is over.
    pub fn with_timer(service: S, completion: C, timer: T) -> Self {
        Self {
            inner: service,
            completion,
            classifier: OnError,
            shared: Arc::new(Shared::new(timer, span(DEFAULT_DECAY))),
        }
    }
}

impl<S, C, T, K> PendingRequests<S, C, T, K> {
    /// Lets `classifier`, a [`Classify`] such as a closure, decide which results are penalised.
    ///
    /// A closure needs its argument types written out.
    #[must_use]
    pub fn with_classifier<K2>(self, classifier: K2) -> PendingRequests<S, C, T, K2> {
        PendingRequests {
            inner: self.inner,
            completion: self.completion,
            classifier,
            shared: self.shared,
        }
    }

    /// Lets penalties fall by a factor of e in each `decay`.
    ///
    /// Less than a microsecond counts as one, which is practically no penalty; more than a year counts as a year. This
    /// starts a new load, so make clones afterwards.
    #[must_use]
    pub fn with_decay(mut self, decay: Duration) -> Self
    where
        T: Clone,
    {
        let timer = self.shared.load.timer.clone();
        self.shared = Arc::new(Shared::new(timer, span(decay)));
        self
    }

    /// How many requests are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight()
    }

    accessors!(S);
}

impl<S, C, T: Timer, K> PendingRequests<S, C, T, K> {
    /// The present penalty, in requests.
    #[must_use]
    pub fn penalty(&self) -> f64 {
        self.shared.load.penalty()
    }

    /// Sets the penalty to `requests`, from which it decays. 1/16 or less counts as nothing.
    pub fn set_penalty(&self, requests: f64) {
        self.shared.load.set_penalty(requests);
    }
}

impl<S, C, T: Timer, K> Load for PendingRequests<S, C, T, K> {
    type Metric = Count;

    fn load(&self) -> Count {
        self.shared.count()
    }

    fn is_no_busier_than(&self, other: &Self) -> bool {
        let (this, other) = (&self.shared, &other.shared);
        if this.load.penalty.both_unset(&other.load.penalty) {
            return Arc::strong_count(&this.load) <= Arc::strong_count(&other.load);
        }
        this.count_at_most(other)
    }

    /// From now on both share one load, with the predecessor's settings.
    fn take_over(&mut self, predecessor: &mut Self) {
        self.shared = predecessor.shared.clone();
    }
}

tracked!(PendingRequests);

/// A load of [`PendingRequests`]: requests in flight, plus the penalty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count(u64);

/// The value of one request in a `Count`.
const REQUEST: u64 = 1 << 16;

impl Count {
    fn new(in_flight: usize, penalty: f64) -> Self {
        let in_flight = (in_flight as u64).saturating_mul(REQUEST);
        let penalty = (penalty * REQUEST as f64 + 0.5) as u64;
        Self(in_flight.saturating_add(penalty))
    }

    /// The load, in requests.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0 as f64 / REQUEST as f64
    }
}

/// A request in flight. It is over when this is dropped.
pub struct Handle<T: Timer> {
    load: Arc<Measured<T>>,
}

impl<T: Timer> Handle<T> {
    fn new(shared: &Shared<T>) -> Self {
        Self {
            load: shared.load.clone(),
        }
    }

    /// Reports the outcome of the request. A penalty counts from now on.
    ///
    /// The service's classifier reports when the result is ready. A [`TrackCompletion`] that keeps the handle may
    /// report again when a body breaks off; penalties add up.
    pub fn record(&mut self, outcome: Outcome) {
        if outcome == Outcome::Penalised {
            self.load.penalise();
        }
    }
}

impl<T: Timer> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.load).finish()
    }
}

pin_project! {
    /// A [`Discover`] whose services are [`PendingRequests`].
    pub struct PendingRequestsDiscover<D, C = CompleteOnResponse, T = NoRuntime, K = OnError> {
        #[pin]
        discover: D,
        completion: C,
        timer: T,
        classifier: K,
        decay: Duration,
    }
}

impl<D, C, T: Default> PendingRequestsDiscover<D, C, T> {
    /// Counts the requests of each service that `discover` finds, on the default timer.
    pub fn new<Request>(discover: D, completion: C) -> Self
    where
        D: Discover,
        D::Service: Service<Request>,
        C: TrackCompletion<Handle<T>, <D::Service as Service<Request>>::Response>,
        T: Timer,
    {
        Self::with_timer(discover, completion, T::default())
    }
}

impl<D, C, T> PendingRequestsDiscover<D, C, T> {
    /// Counts the requests of each service that `discover` finds, on `timer`.
    pub const fn with_timer(discover: D, completion: C, timer: T) -> Self {
        Self {
            discover,
            completion,
            timer,
            classifier: OnError,
            decay: DEFAULT_DECAY,
        }
    }
}

impl<D, C, T, K> PendingRequestsDiscover<D, C, T, K> {
    /// Lets `classifier` decide which results are penalised: see [`PendingRequests::with_classifier`].
    #[must_use]
    pub fn with_classifier<K2>(self, classifier: K2) -> PendingRequestsDiscover<D, C, T, K2> {
        PendingRequestsDiscover {
            discover: self.discover,
            completion: self.completion,
            timer: self.timer,
            classifier,
            decay: self.decay,
        }
    }

    /// Lets penalties fall by a factor of e in each `decay`: see [`PendingRequests::with_decay`].
    #[must_use]
    pub fn with_decay(mut self, decay: Duration) -> Self {
        self.decay = decay;
        self
    }
}

impl<D: Discover, C: Clone, T: Clone, K: Clone> Stream for PendingRequestsDiscover<D, C, T, K> {
    type Item = Result<Change<D::Key, PendingRequests<D::Service, C, T, K>>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        this.discover.poll_discover(cx).map_ok(|change| {
            change.map(|inner| PendingRequests {
                inner,
                completion: this.completion.clone(),
                classifier: this.classifier.clone(),
                shared: Arc::new(Shared::new(this.timer.clone(), span(*this.decay))),
            })
        })
    }
}

impl<D: fmt::Debug, C, T, K> fmt::Debug for PendingRequestsDiscover<D, C, T, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingRequestsDiscover")
            .field("discover", &self.discover)
            .field("decay", &self.decay)
            .finish_non_exhaustive()
    }
}

/// What clones share.
struct Shared<T> {
    // Only requests clone this, so counting its clones counts the requests.
    load: Arc<Measured<T>>,
}

/// What clones and requests share.
struct Measured<T> {
    // In `PART`s of a request.
    penalty: Decaying,
    // The decay, in nanoseconds.
    span: f64,
    timer: T,
}

/// The part of a request at which a penalty counts as nothing.
const PART: f64 = 1.0 / 16.0;

fn span(decay: Duration) -> f64 {
    let (least, most) = super::DECAYS;
    decay.clamp(least, most).as_nanos() as f64
}

impl<T> Shared<T> {
    fn new(timer: T, span: f64) -> Self {
        Self {
            load: Arc::new(Measured {
                penalty: Decaying::new(),
                span,
                timer,
            }),
        }
    }

    fn in_flight(&self) -> usize {
        Arc::strong_count(&self.load) - 1
    }
}

impl<T: Timer> Shared<T> {
    fn count(&self) -> Count {
        Count::new(self.in_flight(), self.load.penalty())
    }

    #[cold]
    fn count_at_most(&self, other: &Self) -> bool {
        self.count() <= other.count()
    }
}

impl<T: Timer> Measured<T> {
    fn penalty(&self) -> f64 {
        if self.penalty.is_unset() {
            return 0.0;
        }
        let now = self.timer.now();
        let Some(parts) = self.penalty.get(now, self.span) else {
            self.penalty.unset_if_spent(now);
            return 0.0;
        };
        parts * PART
    }

    fn set_penalty(&self, requests: f64) {
        if requests > PART {
            let parts = requests.min(u64::MAX as f64) / PART;
            self.penalty.set(self.timer.now(), self.span, parts);
        } else {
            self.penalty.unset();
        }
    }

    fn penalise(&self) {
        self.penalty
            .add(self.timer.now(), self.span, 1.0 / PART, 0.0);
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("in_flight", &self.in_flight())
            .field("load", &self.load)
            .finish()
    }
}

impl<T> fmt::Debug for Measured<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Measured")
            .field("decay", &Duration::from_nanos(self.span as u64))
            .finish_non_exhaustive()
    }
}
