//! Sets a failing service aside, and lets it come back after a backoff.
//!
//! [`Quarantine`] uses the service it is given, and keeps a clone that is never used. When the service's readiness
//! fails, it is dropped; the quarantine is not ready for the length of a backoff, and then continues with another
//! clone. So a balancer does not lose an endpoint forever because a connection broke. The quarantine is also useful by
//! itself, around a service whose readiness fails and which a clone can replace.
//!
//! With [`consecutive_failures`](QuarantineLayer::consecutive_failures) responses count too: after that many failures
//! in a row the service is set aside in the same way. After it comes back, its first failure sets it aside again, for
//! longer, until a success shows that it works. Envoy calls this outlier detection, with `consecutive_5xx` and
//! `base_ejection_time`. It is off by default: a service that answers every request with an error may be healthy and
//! merely report what is wrong with the requests, and when all endpoints of a balancer are set aside, the balancer
//! waits.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")] {
//! use campanile::smol::balance::quarantine::QuarantineLayer;
//! use campanile::{Layer, Service, service_fn};
//! use core::future::poll_fn;
//!
//! let layer = QuarantineLayer::new().consecutive_failures(2);
//! let mut service = layer.layer(service_fn(async |()| Err::<(), _>("out of order")));
//!
//! smol::block_on(async {
//!     for _ in 0..2 {
//!         poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
//!         service.call(()).await.unwrap_err();
//!     }
//!     assert!(service.is_set_aside());
//!     poll_fn(|cx| service.poll_ready(cx)).await.unwrap(); // after 50 to 100 ms
//!     assert!(!service.is_set_aside());
//! });
//! # }
//! ```
//!
//! # The backoff
//!
//! By default it doubles from 100 ms to 30 s, with equal jitter (half of each wait is random);
//! [`backoff`](QuarantineLayer::backoff) sets another. 100 ms is longer than a round trip, and hardly an outage even
//! with a single endpoint; 30 s is Envoy's `base_ejection_time`; and with [`Jitter::Equal`], balancers that lost an
//! endpoint together do not return to it together, and none returns at once.
//!
//! It begins with the failure, even if nobody polls the service at that time. A success restarts it from the shortest
//! wait. A success is a response that [`classify`](QuarantineLayer::classify)
//! takes for one, or, where responses are not counted, a service that is ready again after it was called. A service
//! that is ready but fails its first request has not shown that it works.
//!
//! # A service that is replaced
//!
//! When discovery inserts another service under a known key, the endpoint is still the same: the new service is set
//! aside until the old one is due to come back, and it continues the old one's backoff and failures in a row. So does
//! the old one, which is used until the new one is ready. A removal before the insertion forgets all that.
//!
//! # Reconnect
//!
//! An endpoint that is a [`Reconnect`](crate::reconnect) has a backoff of its own, and no clone. It needs no
//! quarantine: with [`ConnectErrors::Nowhere`](crate::reconnect::ConnectErrors::Nowhere) it is not ready while it backs
//! off. Give [`Balance::with_layer`](crate::balance::p2c::Balance::with_layer) the layer
//! [`Identity`](crate::layer::Identity).

use alloc::sync::Arc;
use core::any::type_name;
use core::fmt;
use core::mem::replace;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::task::{Context, Poll, ready};
use core::time::Duration;

use pin_project_lite::pin_project;

use crate::load::{Classify, Load, OnError, Outcome};
use crate::retry::backoff::{Delays, ExponentialBackoffMaker, Jitter, MakeBackoff};
use crate::sync::atomic_word::AtomicWord;
use crate::sync::{is_drive, is_try};
use crate::util::rng::HasherRng;
use crate::{Instant, Layer, Service, Timer};

/// A layer of [`Quarantine`].
#[derive(Clone)]
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct QuarantineLayer<T, M = ExponentialBackoffMaker<HasherRng, T>, C = OnError> {
    timer: T,
    maker: M,
    classify: C,
    failures: u32,
}

impl<T: Clone + Default> QuarantineLayer<T> {
    /// A layer that sets a service aside when its readiness fails, on the default timer.
    pub fn new() -> Self {
        Self::with_timer(T::default())
    }
}

impl<T: Clone + Default> Default for QuarantineLayer<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone> QuarantineLayer<T> {
    /// A layer that sets a service aside when its readiness fails, on `timer`.
    pub fn with_timer(timer: T) -> Self {
        const SHORTEST: Duration = Duration::from_millis(100);
        const LONGEST: Duration = Duration::from_secs(30);
        let rng = HasherRng::new();
        let maker = ExponentialBackoffMaker::with_timer(
            SHORTEST,
            LONGEST,
            Jitter::Equal,
            rng,
            timer.clone(),
        );
        Self {
            maker: maker.expect("the waits are in order"),
            timer,
            classify: OnError,
            failures: 0,
        }
    }
}

impl<T, M, C> QuarantineLayer<T, M, C> {
    /// Waits as long as the backoffs made by `maker` say.
    pub fn backoff<N: MakeBackoff>(self, maker: N) -> QuarantineLayer<T, N, C> {
        QuarantineLayer {
            timer: self.timer,
            maker,
            classify: self.classify,
            failures: self.failures,
        }
    }

    /// Also sets a service aside after `failures` failed responses in a row. Zero, the default, ignores responses.
    pub fn consecutive_failures(mut self, failures: u32) -> Self {
        self.failures = failures;
        self
    }

    /// Lets `f` decide which responses are failures, which are successes, and which are neither. By default every error
    /// is a failure. A measured [load](crate::load) takes the same function.
    pub fn classify<Res, E, F>(self, f: F) -> QuarantineLayer<T, M, F>
    where
        F: Fn(&Result<Res, E>) -> Outcome,
    {
        QuarantineLayer {
            timer: self.timer,
            maker: self.maker,
            classify: f,
            failures: self.failures,
        }
    }
}

impl<S, T, M, C> Layer<S> for QuarantineLayer<T, M, C>
where
    S: Clone,
    T: Timer + Clone,
    M: MakeBackoff<Backoff: Delays> + Clone,
    C: Clone,
{
    type Service = Quarantine<S, T, M, C>;

    fn layer(&self, inner: S) -> Self::Service {
        let record = Record::of(self.failures, &self.classify, &self.timer);
        let spare = inner.clone();
        Quarantine {
            // The original: it may already be connected or have reserved something.
            instance: Instance::good(inner, record.as_ref()),
            record,
            spare,
            timer: self.timer.clone(),
            maker: self.maker.clone(),
            backoff: None,
            drawn: 0,
            alarm: None,
        }
    }
}

impl<T: fmt::Debug, M: fmt::Debug, C> fmt::Debug for QuarantineLayer<T, M, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuarantineLayer")
            .field("timer", &self.timer)
            .field("backoff", &self.maker)
            .field("classify", &format_args!("{}", type_name::<C>()))
            .field("consecutive_failures", &self.failures)
            .finish()
    }
}

/// A service that is set aside when it fails, and comes back after a backoff.
///
/// Its readiness never fails. See the [module](self) for what counts as a failure, and for an example.
///
/// It is not `Clone`, since a clone would not know what this one has learned; wrap it in a [`Buffer`](crate::buffer),
/// which is.
///
/// A poll that only tries, as [`LoadShed`](crate::load_shed::LoadShed) does, sets no timer.
///
/// A call without readiness while the service is set aside goes to a fresh clone of it.
///
/// # Panics
///
/// When it first waits, if its timer needs the runtime's context and there is none.
///
/// # Cancel safety
///
/// A caller that stops waiting for readiness loses nothing: the backoff keeps running.
pub struct Quarantine<
    S,
    T: Timer,
    M: MakeBackoff = ExponentialBackoffMaker<HasherRng, T>,
    C = OnError,
> {
    instance: Instance<S>,
    spare: S,
    timer: T,
    maker: M,
    // `None`: responses are not counted.
    record: Option<Arc<Record<C, T>>>,
    // `None`: not made yet; when it is, `drawn` of its waits are skipped.
    backoff: Option<M::Backoff>,
    drawn: u8,
    // Reused from wait to wait: it is reset in place.
    alarm: Option<T::Alarm>,
}

/// A nanosecond doubled this often reaches the longest wait there is. Skipping more would only take time.
const MOST_DRAWN: u8 = 64;

/// The present instance and its standing.
#[derive(Debug)]
enum Instance<S> {
    /// It works, and responses are not counted: only its readiness has to be watched.
    Trusted(S),
    Watched(S, Standing),
    /// It is gone. The next one comes at `until`: `original` if that was not used yet, otherwise a clone. `armed`: the
    /// alarm is set to `until`.
    Aside {
        until: Instant,
        armed: bool,
        original: Option<S>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It works.
    Good,
    /// It has come back, and has not yet shown that it works.
    Fresh,
    /// As `Fresh`, but it was called.
    Called,
}

impl<S> Instance<S> {
    /// A placeholder: no instance, and none to come.
    const NONE: Self = Self::Aside {
        until: Instant::MAX,
        armed: false,
        original: None,
    };

    fn good<C, T>(inner: S, record: Option<&Arc<Record<C, T>>>) -> Self {
        match record {
            None => Self::Trusted(inner),
            Some(_) => Self::Watched(inner, Standing::Good),
        }
    }

    fn take_over(&mut self, predecessor: &mut S)
    where
        S: Load,
    {
        let (Self::Trusted(inner)
        | Self::Watched(inner, _)
        | Self::Aside {
            original: Some(inner),
            ..
        }) = self
        else {
            return;
        };
        inner.take_over(predecessor);
    }

    /// Sets it aside, unused so far, until `until` or later.
    fn postpone(&mut self, until: Instant) {
        let (until, original) = match replace(self, Self::NONE) {
            Self::Trusted(inner) | Self::Watched(inner, _) => (until, Some(inner)),
            Self::Aside {
                until: own,
                original,
                ..
            } => (until.max(own), original),
        };
        *self = Self::Aside {
            until,
            armed: false,
            original,
        };
    }

    /// Makes it show that it works.
    fn doubt(&mut self) {
        *self = match replace(self, Self::NONE) {
            Self::Trusted(inner) | Self::Watched(inner, _) => Self::Watched(inner, Standing::Fresh),
            aside @ Self::Aside { .. } => aside,
        };
    }
}

/// The outcomes of one instance's responses. The next instance has a record of its own, so late responses of the last
/// one do not count.
struct Record<C, T> {
    classify: C,
    timer: T,
    /// How many failures in a row set aside an instance that has worked.
    limit: u32,
    /// How many failures in a row there were.
    failures: AtomicU32,
    /// When the last failure was.
    failed_at: AtomicWord,
    /// Whether there was a success.
    worked: AtomicBool,
}

impl<C, T> Record<C, T> {
    fn of(limit: u32, classify: &C, timer: &T) -> Option<Arc<Self>>
    where
        C: Clone,
        T: Clone,
    {
        (limit > 0).then(|| {
            Arc::new(Self {
                classify: classify.clone(),
                timer: timer.clone(),
                limit,
                failures: AtomicU32::new(0),
                failed_at: AtomicWord::new(0),
                worked: AtomicBool::new(false),
            })
        })
    }

    fn continue_from(&self, before: &Self) {
        let (failures, worked) = (&before.failures, &before.worked);
        self.failed_at.store(before.failed_at.load());
        (self.failures).store(failures.load(Ordering::Relaxed), Ordering::Relaxed);
        (self.worked).store(worked.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn note<Res, E>(&self, result: &Result<Res, E>)
    where
        C: Classify<Res, E>,
        T: Timer,
    {
        match self.classify.classify(result) {
            Outcome::Counted => {
                self.worked.store(true, Ordering::Relaxed);
                self.failures.store(0, Ordering::Relaxed);
            }
            Outcome::Penalised => {
                self.failed_at.store(self.timer.now().as_nanos());
                // Whoever sees the failure also sees when it was.
                self.failures.fetch_add(1, Ordering::Release);
            }
            Outcome::Ignored => {}
        }
    }
}

impl<S: Clone, T: Timer + Clone> Quarantine<S, T> {
    /// Sets `inner` aside when its readiness fails, on the default timer. For other settings, use the
    /// [layer](QuarantineLayer).
    pub fn new(inner: S) -> Self
    where
        T: Default,
    {
        Self::with_timer(inner, T::default())
    }

    /// Sets `inner` aside when its readiness fails, on `timer`.
    pub fn with_timer(inner: S, timer: T) -> Self {
        QuarantineLayer::with_timer(timer).layer(inner)
    }
}

impl<S, T, M, C> Quarantine<S, T, M, C>
where
    T: Timer + Clone,
    M: MakeBackoff<Backoff: Delays>,
    C: Clone,
{
    /// Whether the service is set aside at the moment, so that `poll_ready` would wait.
    pub fn is_set_aside(&self) -> bool {
        match self.instance {
            Instance::Aside { until, .. } => self.timer.now() < until,
            _ => self.has_failed(),
        }
    }

    /// Whether the present instance has had too many failed responses.
    fn has_failed(&self) -> bool {
        let Instance::Watched(_, standing) = self.instance else {
            return false;
        };
        self.record.as_ref().is_some_and(|record| {
            let limit = match standing {
                Standing::Good => record.limit,
                _ if record.worked.load(Ordering::Relaxed) => record.limit,
                _ => 1,
            };
            record.failures.load(Ordering::Acquire) >= limit
        })
    }

    /// The readiness of the instance has failed.
    #[cold]
    fn set_aside(&mut self) {
        self.set_aside_since(self.timer.now());
    }

    /// Sets the instance aside if it has had too many failed responses; its backoff began with the last of them.
    fn set_aside_failed(&mut self) {
        if let Some(record) = self.record.as_ref().filter(|_| self.has_failed()) {
            self.set_aside_since(Instant::from_nanos(record.failed_at.load()));
        }
    }

    #[cold]
    fn set_aside_since(&mut self, start: Instant) {
        if let Some(record) = &self.record {
            let worked = record.worked.load(Ordering::Relaxed);
            self.record = Record::of(record.limit, &record.classify, &self.timer);
            if worked {
                self.restart_backoff();
            }
        }
        let wait = self.next_wait();
        self.instance = Instance::Aside {
            until: start.saturating_add(wait),
            armed: false,
            original: None,
        };
    }

    fn next_wait(&mut self) -> Duration {
        let Self { maker, drawn, .. } = self;
        let backoff = self.backoff.get_or_insert_with(|| {
            let mut backoff = maker.make_backoff();
            for _ in 0..*drawn {
                backoff.next_delay();
            }
            backoff
        });
        *drawn = (*drawn + 1).min(MOST_DRAWN);
        backoff.next_delay()
    }

    fn restart_backoff(&mut self) {
        self.backoff = None;
        self.drawn = 0;
    }
}

impl<S, T, M, C> Quarantine<S, T, M, C>
where
    S: Clone,
    T: Timer + Clone,
    M: MakeBackoff<Backoff: Delays>,
    C: Clone,
{
    /// Takes a new instance once the wait is over.
    #[cold]
    fn poll_return(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Instance::Aside {
            until,
            armed,
            original,
        } = &mut self.instance
        else {
            return Poll::Ready(());
        };
        let until = *until;
        // The clock decides; the alarm only wakes the task. tokio's is pending whenever the task's budget is used up,
        // whatever the time.
        if self.timer.now() < until {
            if is_try(cx) || until == Instant::MAX {
                return Poll::Pending;
            }
            let alarm = match &mut self.alarm {
                Some(alarm) if *armed => alarm,
                Some(alarm) => {
                    self.timer.reset(alarm, until);
                    alarm
                }
                alarm @ None => alarm.insert(self.timer.alarm_until(until)),
            };
            *armed = true;
            ready!(Pin::new(alarm).poll(cx));
        }
        let inner = original.take().unwrap_or_else(|| self.spare.clone());
        self.instance = Instance::Watched(inner, Standing::Fresh);
        Poll::Ready(())
    }

    /// Polls an instance that may have failed or has to show that it works, or takes the next one.
    #[inline(never)]
    fn poll_watched<Request>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>>
    where
        S: Service<Request>,
    {
        self.set_aside_failed();
        ready!(self.poll_return(cx));
        let Instance::Watched(inner, standing) = &mut self.instance else {
            return Poll::Pending;
        };
        ready!(inner.poll_ready(cx))?;
        let works = match &self.record {
            Some(record) => record.worked.load(Ordering::Relaxed),
            None => *standing == Standing::Called,
        };
        // Readiness to a driving poll proves nothing.
        if works && *standing != Standing::Good && !is_drive(cx) {
            self.restart_backoff();
            let instance = replace(&mut self.instance, Instance::NONE);
            if let Instance::Watched(inner, _) = instance {
                self.instance = Instance::good(inner, self.record.as_ref());
            }
        }
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call_watched<Request>(&mut self, request: Request) -> ResponseFuture<S::Future, C, T>
    where
        S: Service<Request>,
    {
        let inner = match &mut self.instance {
            Instance::Trusted(inner) => inner.call(request),
            Instance::Watched(inner, standing) => {
                if *standing == Standing::Fresh {
                    *standing = Standing::Called;
                }
                inner.call(request)
            }
            Instance::Aside { .. } => self.spare.clone().call(request),
        };
        ResponseFuture {
            inner,
            record: self.record.clone(),
        }
    }

    /// Waits, after the readiness of the instance has failed.
    #[cold]
    fn wait(&mut self, cx: &mut Context<'_>) {
        self.set_aside();
        if self.poll_return(cx).is_ready() {
            // The wait was over at once. Take only one instance per poll, so that this cannot become a loop.
            cx.waker().wake_by_ref();
        }
    }
}

impl<S, T, M, C, Request> Service<Request> for Quarantine<S, T, M, C>
where
    S: Service<Request> + Clone,
    T: Timer + Clone,
    M: MakeBackoff<Backoff: Delays>,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, C, T>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let polled = match &mut self.instance {
            Instance::Trusted(inner) => inner.poll_ready(cx),
            _ => self.poll_watched(cx),
        };
        match ready!(polled) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(_) => {
                self.wait(cx);
                Poll::Pending
            }
        }
    }

    #[inline]
    fn call(&mut self, request: Request) -> Self::Future {
        if let Instance::Trusted(inner) = &mut self.instance {
            return ResponseFuture {
                inner: inner.call(request),
                record: None,
            };
        }
        self.call_watched(request)
    }
}

impl<S, T: Timer, M: MakeBackoff, C> Quarantine<S, T, M, C> {
    #[inline]
    fn present(&self) -> &S {
        match &self.instance {
            Instance::Trusted(inner) | Instance::Watched(inner, _) => inner,
            Instance::Aside { .. } => &self.spare,
        }
    }

    #[cold]
    fn present_is_no_busier_than(&self, other: &Self) -> bool
    where
        S: Load,
    {
        self.present().is_no_busier_than(other.present())
    }
}

/// The load of the present instance; while there is none, that of the clone that is never used.
impl<S, T, M, C> Load for Quarantine<S, T, M, C>
where
    S: Load,
    T: Timer + Clone,
    M: MakeBackoff<Backoff: Delays>,
    C: Clone,
{
    type Metric = S::Metric;

    fn load(&self) -> S::Metric {
        self.present().load()
    }

    #[inline]
    fn is_no_busier_than(&self, other: &Self) -> bool {
        match (&self.instance, &other.instance) {
            (Instance::Trusted(this), Instance::Trusted(other)) => this.is_no_busier_than(other),
            _ => self.present_is_no_busier_than(other),
        }
    }

    /// It is set aside for as long as its predecessor is, and continues the predecessor's backoff and failures in a
    /// row.
    fn take_over(&mut self, predecessor: &mut Self) {
        // What the predecessor's responses have said so far holds for the endpoint.
        predecessor.set_aside_failed();
        self.spare.take_over(&mut predecessor.spare);
        // The predecessor may stay in use, and keeps its own.
        self.backoff = None;
        self.drawn = self.drawn.max(predecessor.drawn);
        // Not shared: what becomes of the predecessor's requests from here on says nothing about this service.
        if let (Some(record), Some(before)) = (&self.record, &predecessor.record) {
            record.continue_from(before);
        }
        let standing = match &mut predecessor.instance {
            Instance::Trusted(inner) => {
                self.instance.take_over(inner);
                Standing::Good
            }
            Instance::Watched(inner, standing) => {
                self.instance.take_over(inner);
                *standing
            }
            Instance::Aside { until, .. } => {
                self.instance.take_over(&mut predecessor.spare);
                return self.instance.postpone(*until);
            }
        };
        if standing != Standing::Good {
            self.instance.doubt();
        }
    }
}

impl<S: fmt::Debug, T: Timer, M: MakeBackoff, C> fmt::Debug for Quarantine<S, T, M, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quarantine")
            .field("instance", &self.instance)
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

impl<C, T> fmt::Debug for Record<C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("classify", &format_args!("{}", type_name::<C>()))
            .field("limit", &self.limit)
            .field("failures", &self.failures)
            .field("worked", &self.worked)
            .finish()
    }
}

pin_project! {
    /// The response of a [`Quarantine`].
    ///
    /// # Cancel safety
    ///
    /// A response that is dropped is neither a failure nor a success.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    #[derive(Debug)]
    pub struct ResponseFuture<F, C, T> {
        #[pin]
        inner: F,
        record: Option<Arc<Record<C, T>>>,
    }
}

impl<F, C, T, Res, E> Future for ResponseFuture<F, C, T>
where
    F: Future<Output = Result<Res, E>>,
    C: Classify<Res, E>,
    T: Timer,
{
    type Output = Result<Res, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        if let Some(record) = this.record {
            record.note(&result);
        }
        Poll::Ready(result)
    }
}
