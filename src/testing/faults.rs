//! Injects faults from a seed: delays, errors, panics, and services that never answer or are never ready.
//!
//! [`Faults`] is a layer. Each fault has its own chance, initially 0, and is drawn for each request: the same seed
//! and the same order of requests give the same faults. All services of a layer, and their clones, share one
//! generator.
//!
//! | method | what happens to a request |
//! |---|---|
//! | [`delays`](Faults::delays) | its response, or any of the following faults, comes later |
//! | [`errors`](Faults::errors) | it fails with [`Injected`], and does not reach the inner service |
//! | [`panics`](Faults::panics) | its response future panics, and it does not reach the inner service |
//! | [`call_panics`](Faults::call_panics) | its `call` panics |
//! | [`never_answers`](Faults::never_answers) | its response never comes, and it does not reach the inner service |
//! | [`forgets_wakers`](Faults::forgets_wakers) | its response future is pending once without waking the task: a bug, which a [`Runtime`](super::Runtime) reports as a deadlock |
//! | [`pauses`](Faults::pauses) | the service is not ready for some time before it |
//! | [`never_ready`](Faults::never_ready) | the service never becomes ready for it; a clone may |
//!
//! If a request does not reach the inner service, that service remains ready for the next one.
//!
//! # Examples
//!
//! ```
//! use campanile::testing::{Faults, Runtime, ServiceBuilder};
//! use campanile::ServiceExt;
//! use std::time::Duration;
//!
//! let runtime = Runtime::new(1);
//! let failed = runtime.block_on(async {
//!     let millis = Duration::from_millis;
//!     let service = ServiceBuilder::new()
//!         .layer(Faults::new(1).errors(0.1).delays(0.5, millis(1)..millis(100)))
//!         .service_fn(async |n: u32| Ok::<_, std::io::Error>(n));
//!     let mut failed = 0;
//!     for n in 0..1000 {
//!         failed += u32::from(service.clone().oneshot(n).await.is_err());
//!     }
//!     failed
//! });
//! assert!((70..130).contains(&failed.unwrap()));
//! assert!(runtime.elapsed() > Duration::from_secs(20));
//! ```

use alloc::sync::Arc;
use core::fmt;
use core::ops::Range;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;
use std::sync::{Mutex, PoisonError};

use pin_project_lite::pin_project;

use super::Sim;
use crate::sync::{is_drive, is_try};
use crate::util::rng::{Rng, SplitMix64};
use crate::{Instant, Layer, Service, Timer};

/// A layer of [`Faulty`]. See the [module](self) for the faults and an example.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct Faults<T = Sim> {
    plan: Plan,
    rng: Arc<Mutex<SplitMix64>>,
    timer: T,
}

#[derive(Clone, Debug, Default)]
struct Plan {
    delay: (f64, Range<Duration>),
    pause: (f64, Range<Duration>),
    error: f64,
    panic: f64,
    call_panic: f64,
    never_answer: f64,
    never_ready: f64,
    forget: f64,
}

impl Faults {
    /// A layer without faults yet. They are drawn from `seed`, and delays use the virtual time of [`Sim`].
    pub fn new(seed: u64) -> Self {
        Self::with_timer(seed, Sim)
    }
}

macro_rules! chances {
    ($($(#[$doc:meta])* $method:ident, $try:ident: $field:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Panics
        ///
        /// If `chance` is not in 0 to 1.
        #[track_caller]
        pub fn $method(self, chance: f64) -> Self {
            valid(self.$try(chance))
        }

        #[doc = concat!("Like [`", stringify!($method), "`](Self::", stringify!($method), "), with a typed error.")]
        ///
        /// # Errors
        ///
        /// If `chance` is not in 0 to 1.
        pub fn $try(mut self, chance: f64) -> Result<Self, InvalidChance> {
            self.plan.$field = check(chance)?;
            Ok(self)
        }
    )*};
}

impl<T> Faults<T> {
    /// A layer without faults yet. They are drawn from `seed`, and delays use `timer`.
    pub fn with_timer(seed: u64, timer: T) -> Self {
        Self {
            plan: Plan::default(),
            rng: Arc::new(Mutex::new(SplitMix64::new(seed))),
            timer,
        }
    }

    /// Delays a request by a time in `range`, before anything else happens to it.
    ///
    /// # Panics
    ///
    /// If `chance` is not in 0 to 1.
    #[track_caller]
    pub fn delays(self, chance: f64, range: Range<Duration>) -> Self {
        valid(self.try_delays(chance, range))
    }

    /// Like [`delays`](Self::delays), but returns a typed error.
    ///
    /// # Errors
    ///
    /// If `chance` is not in 0 to 1.
    pub fn try_delays(
        mut self,
        chance: f64,
        range: Range<Duration>,
    ) -> Result<Self, InvalidChance> {
        self.plan.delay = (check(chance)?, range);
        Ok(self)
    }

    /// Is not ready for a time in `range` before a request.
    ///
    /// # Panics
    ///
    /// If `chance` is not in 0 to 1.
    #[track_caller]
    pub fn pauses(self, chance: f64, range: Range<Duration>) -> Self {
        valid(self.try_pauses(chance, range))
    }

    /// Like [`pauses`](Self::pauses), but returns a typed error.
    ///
    /// # Errors
    ///
    /// If `chance` is not in 0 to 1.
    pub fn try_pauses(
        mut self,
        chance: f64,
        range: Range<Duration>,
    ) -> Result<Self, InvalidChance> {
        self.plan.pause = (check(chance)?, range);
        Ok(self)
    }

    chances! {
        /// Fails a request with [`Injected`].
        errors, try_errors: error;
        /// Panics when the response future is polled.
        panics, try_panics: panic;
        /// Panics when the service is called.
        call_panics, try_call_panics: call_panic;
        /// Never answers a request.
        never_answers, try_never_answers: never_answer;
        /// Never becomes ready.
        never_ready, try_never_ready: never_ready;
        /// Is pending once when the response future is polled, without waking the task later.
        forgets_wakers, try_forgets_wakers: forget;
    }
}

#[track_caller]
fn valid<T>(faults: Result<Faults<T>, InvalidChance>) -> Faults<T> {
    match faults {
        Ok(faults) => faults,
        Err(error) => panic!("{error}"),
    }
}

fn check(chance: f64) -> Result<f64, InvalidChance> {
    // False for a NaN as well.
    match (0.0..=1.0).contains(&chance) {
        true => Ok(chance),
        false => Err(InvalidChance(chance)),
    }
}

impl<S, T: Timer + Clone> Layer<S> for Faults<T> {
    type Service = Faulty<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        Faulty {
            inner,
            faults: self.clone(),
            readiness: Readiness::Fresh,
        }
    }
}

/// A service into which faults are injected.
pub struct Faulty<S, T: Timer = Sim> {
    inner: S,
    faults: Faults<T>,
    readiness: Readiness<T::Alarm>,
}

enum Readiness<A> {
    /// Nothing was drawn yet.
    Fresh,
    Paused {
        alarm: A,
        until: Instant,
    },
    Never,
    /// As ready as the inner service.
    Open,
}

impl<S, T: Timer> Faulty<S, T> {
    accessors!(S);
}

impl<S, Request, T> Service<Request> for Faulty<S, T>
where
    S: Service<Request>,
    T: Timer + Clone,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = ResponseFuture<S::Future, T>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if is_drive(cx) {
            // Drop the draw, together with the request it was for.
            self.readiness = Readiness::Fresh;
            return self.inner.poll_ready(cx).map_err(Error::Service);
        }
        if let Readiness::Fresh = self.readiness {
            self.readiness = self.faults.draw_readiness();
        }
        match &mut self.readiness {
            Readiness::Never => return Poll::Pending,
            Readiness::Paused { alarm, until } => {
                if self.faults.timer.now() < *until {
                    if is_try(cx) {
                        return Poll::Pending;
                    }
                    ready!(Pin::new(alarm).poll(cx));
                }
                self.readiness = Readiness::Open;
            }
            Readiness::Fresh | Readiness::Open => {}
        }
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.readiness = Readiness::Fresh;
        let (delay, fate) = self.faults.draw_fate();
        let inner = match fate {
            Fate::CallPanic => panic!("an injected panic in `call`"),
            Fate::Pass | Fate::Forget => Some(self.inner.call(request)),
            Fate::Error | Fate::Panic | Fate::Never => None,
        };
        ResponseFuture {
            inner,
            fate,
            delay,
            sleep: None,
            timer: self.faults.timer.clone(),
        }
    }
}

// A clone starts out unpolled.
impl<S: Clone, T: Timer + Clone> Clone for Faulty<S, T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            faults: self.faults.clone(),
            readiness: Readiness::Fresh,
        }
    }
}

impl<S: fmt::Debug, T: Timer> fmt::Debug for Faulty<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("inner", &self.inner)
            .field("plan", &self.faults.plan)
            .finish_non_exhaustive()
    }
}

/// What happens to a request after its delay.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Pass,
    Error,
    Panic,
    CallPanic,
    Never,
    Forget,
}

impl<T: Timer> Faults<T> {
    fn draw<const N: usize>(&self) -> [f64; N] {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        core::array::from_fn(|_| rng.next_f64())
    }

    fn time((chance, range): &(f64, Range<Duration>), drawn: [f64; 2]) -> Option<Duration> {
        let span = range.end.saturating_sub(range.start);
        // A draw is below 1, so the time is within the range.
        (drawn[0] < *chance).then(|| range.start.saturating_add(span.mul_f64(drawn[1])))
    }

    fn draw_readiness(&self) -> Readiness<T::Alarm> {
        let [never, pause, time] = self.draw();
        if never < self.plan.never_ready {
            return Readiness::Never;
        }
        match Self::time(&self.plan.pause, [pause, time]) {
            Some(time) => {
                let until = self.timer.now().saturating_add(time);
                let alarm = self.timer.alarm_until(until);
                Readiness::Paused { alarm, until }
            }
            None => Readiness::Open,
        }
    }

    /// The number of draws per request is fixed, so that adding a fault does not change the others.
    fn draw_fate(&self) -> (Option<Duration>, Fate) {
        let [delay, time, call_panic, panic, error, never, forget] = self.draw();
        let plan = &self.plan;
        let fate = if call_panic < plan.call_panic {
            Fate::CallPanic
        } else if panic < plan.panic {
            Fate::Panic
        } else if error < plan.error {
            Fate::Error
        } else if never < plan.never_answer {
            Fate::Never
        } else if forget < plan.forget {
            Fate::Forget
        } else {
            Fate::Pass
        };
        (Self::time(&plan.delay, [delay, time]), fate)
    }
}

pin_project! {
    /// The response of a [`Faulty`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F, T = Sim>
    where
        T: Timer,
    {
        #[pin]
        inner: Option<F>,
        fate: Fate,
        // Set until the first poll; then `sleep` has it.
        delay: Option<Duration>,
        #[pin]
        sleep: Option<T::Sleep>,
        timer: T,
    }
}

impl<F, T, R, E> Future for ResponseFuture<F, T>
where
    F: Future<Output = Result<R, E>>,
    T: Timer,
{
    type Output = Result<R, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(delay) = this.delay.take() {
            this.sleep.set(Some(this.timer.sleep(delay)));
        }
        if let Some(sleep) = this.sleep.as_mut().as_pin_mut() {
            ready!(sleep.poll(cx));
            this.sleep.set(None);
        }
        match this.fate {
            Fate::Error => return Poll::Ready(Err(Error::Injected(Injected::new()))),
            Fate::Panic | Fate::CallPanic => panic!("an injected panic"),
            Fate::Never => return Poll::Pending,
            Fate::Forget => {
                *this.fate = Fate::Pass;
                return Poll::Pending;
            }
            Fate::Pass => {}
        }
        match this.inner.as_pin_mut() {
            Some(inner) => inner.poll(cx).map_err(Error::Service),
            None => Poll::Pending,
        }
    }
}

impl<F: fmt::Debug, T: Timer> fmt::Debug for ResponseFuture<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("inner", &self.inner)
            .field("fate", &self.fate)
            .finish_non_exhaustive()
    }
}

/// How a [`Faulty`] fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The fault was drawn.
    Injected(Injected),
    /// The inner service failed.
    Service(E),
}

flatten!(Error: Injected);

leaf_error! {
    /// An injected error.
    Injected, "injected fault"
}

/// A chance that is not in 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InvalidChance(
    /// The chance.
    pub f64,
);

impl fmt::Display for InvalidChance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a chance of {}: it must be in 0 to 1", self.0)
    }
}

impl core::error::Error for InvalidChance {}
