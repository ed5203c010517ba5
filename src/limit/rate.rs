//! Limits how often requests go through to a service.
//!
//! A [`Rate`] is a number of requests per period and a burst. All clones of a [`RateLimit`], and all
//! services that one [`RateLimitLayer`] makes, share one budget; [`per_service`](RateLimitLayer::per_service)
//! gives each service of a layer its own.
//!
//! # The bound
//!
//! With [`Rate::new(num, per)`](Rate::new) and a burst of `b`, the budget lets through
//!
//! - at most `b` at one moment,
//! - at most `num + b - 1` in any window shorter than or as long as `per`, its end not counted,
//! - `num` for each `per` in the long run, without drift.
//!
//! The burst is `num` unless [`Rate::burst`] says otherwise: after a pause `num` requests go at once, as with
//! tower, and the rest follow evenly spaced. `burst(1)` spaces all of them evenly, and then no window of `per`
//! ever sees more than `num`: choose it where the other side counts strictly. [`Rate::strict`] keeps that bound
//! with a burst, and pays for it with the rate in the long run. [`Rate::fixed_window`] counts as tower does.
//!
//! The algorithm is the generic cell rate algorithm (ITU-T I.371), in whole nanoseconds. A rate above one per
//! nanosecond counts as one per nanosecond, and a period longer than 146 years as 146 years.
//!
//! # When a request counts
//!
//! When `poll_ready` is ready: only then is the token taken, and so after the inner service is ready. A handle
//! that was told "ready" and idles keeps its one token and holds up nobody; its request, when it comes at last,
//! counts for the moment at which the handle was told. If such a handle is
//! dropped unused, its token comes back, less what time has brought back of it already. A call without readiness
//! takes a token itself, or fails with [`Limited`] when there is none.
//!
//! # Waiting or not
//!
//! By default `poll_ready` waits. [`wait_at_most`](RateLimit::wait_at_most) and
//! [`reject`](RateLimit::reject) limit the wait; when it would be longer the service is ready, and the call
//! fails with [`Limited`], which says when to try again, and does not reach the inner service. Waiters are not
//! in a queue: each wakes when the next token is due, the first to ask takes it, and the others wait on.
//!
//! # Differences from tower
//!
//! - `RateLimit` is `Clone`, and there is one budget and not one per service.
//! - The budget comes back evenly and not all at once at the edge of a window, so two bursts cannot meet there.
//! - A call without readiness does not panic.
//! - The error is an enum, [`Error`], since a limit that does not wait for ever has a failure of its own.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")] {
//! use campanile::{Layer, Service, service_fn, smol::Smol};
//! use campanile::limit::rate::{Error, RateLimitLayer};
//! use core::{convert::Infallible, future::poll_fn, time::Duration};
//!
//! let layer = RateLimitLayer::<Smol>::new(2, Duration::from_secs(60)).reject();
//! let mut service = layer.layer(service_fn(async |n: u32| Ok::<_, Infallible>(n)));
//!
//! smol::block_on(async {
//!     for n in 0..2 {
//!         poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
//!         assert_eq!(service.call(n).await, Ok(n));
//!     }
//!     poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
//!     let Err(Error::Limited(limited)) = service.call(2).await else { panic!() };
//!     assert!(limited.retry_after() <= Duration::from_secs(30));
//! });
//! # }
//! ```

#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
use alloc::sync::Arc;
use core::fmt;
use core::mem::replace;
use core::num::NonZeroU64;
use core::ops::Deref;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;

use pin_project_lite::pin_project;

use crate::runtime::saturating_nanos;
use crate::sync::{is_attempt, word::Word};
use crate::{Instant, Layer, Service, Timer, load::Load};

/// How a budget is shared where nothing else is said: by an `Arc`, or without an allocator as a `static`.
#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
pub type Shared = Arc<Limiter>;
/// How a budget is shared where nothing else is said: by an `Arc`, or without an allocator as a `static`.
#[cfg(not(all(feature = "alloc", target_has_atomic = "ptr")))]
pub type Shared = &'static Limiter;

/// A layer of [`RateLimit`]. All services that it makes share one budget.
#[derive(Clone)]
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct RateLimitLayer<T, H = Shared> {
    limiter: H,
    patience: Duration,
    timer: T,
    // How to make a budget for each service.
    own: Option<fn(Rate) -> H>,
}

#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
impl<T: Default> RateLimitLayer<T> {
    /// A layer that lets `num` requests through in each `per`, on the default timer.
    ///
    /// # Panics
    ///
    /// If `num` or `per` is 0.
    #[track_caller]
    pub fn new(num: u64, per: Duration) -> Self {
        Self::with_timer(Rate::new(num, per), T::default())
    }
}

#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
impl<T> RateLimitLayer<T> {
    /// A layer that lets requests through at `rate`, on `timer`.
    pub fn with_timer(rate: Rate, timer: T) -> Self {
        Self::with_limiter(Arc::new(Limiter::new(rate)), timer)
    }

    /// Gives each service that the layer makes a budget of its own. Clones of it still share that.
    pub const fn per_service(mut self) -> Self {
        self.own = Some(|rate| Arc::new(Limiter::new(rate)));
        self
    }
}

impl<T, H> RateLimitLayer<T, H> {
    /// A layer whose services share `limiter`, an `Arc<Limiter>` or a `&'static Limiter`.
    pub const fn with_limiter(limiter: H, timer: T) -> Self {
        Self {
            limiter,
            patience: Duration::MAX,
            timer,
            own: None,
        }
    }

    /// Fails a request that would have to wait.
    pub const fn reject(self) -> Self {
        self.wait_at_most(Duration::ZERO)
    }

    /// Fails a request that would have to wait for more than `patience`.
    pub const fn wait_at_most(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

impl<S, T, H> Layer<S> for RateLimitLayer<T, H>
where
    T: Timer + Clone,
    H: Deref<Target = Limiter> + Clone,
{
    type Service = RateLimit<S, T, H>;

    fn layer(&self, inner: S) -> Self::Service {
        let limiter = match self.own {
            Some(own) => own(self.limiter.rate()),
            None => self.limiter.clone(),
        };
        RateLimit::with_limiter(inner, limiter, self.timer.clone()).wait_at_most(self.patience)
    }
}

impl<T: fmt::Debug, H: Deref<Target = Limiter>> fmt::Debug for RateLimitLayer<T, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("limiter", &*self.limiter)
            .field("patience", &self.patience)
            .field("per_service", &self.own.is_some())
            .field("timer", &self.timer)
            .finish()
    }
}

/// A service that lets requests through at a limited rate.
///
/// See the [module](self) for what exactly is limited.
///
/// # Cancel safety
///
/// A caller that stops waiting for readiness takes nothing. With [`wait_at_most`](RateLimit::wait_at_most)
/// the wait goes on from where it began when the same handle asks again; a clone begins afresh.
pub struct RateLimit<S, T: Timer, H: Deref<Target = Limiter> = Shared> {
    inner: S,
    token: Token<T, H>,
    patience: Duration,
    wait: Wait,
    // Kept from wait to wait, and set in place; `due` is what it is set to.
    alarm: Option<T::Alarm>,
    due: Instant,
}

#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
impl<S, T: Timer + Default> RateLimit<S, T> {
    /// Lets requests through to `inner` at `rate`, on the default timer.
    pub fn new(inner: S, rate: Rate) -> Self {
        Self::with_timer(inner, rate, T::default())
    }
}

#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
impl<S, T: Timer> RateLimit<S, T> {
    /// Lets requests through to `inner` at `rate`, on `timer`.
    pub fn with_timer(inner: S, rate: Rate, timer: T) -> Self {
        Self::with_limiter(inner, Arc::new(Limiter::new(rate)), timer)
    }
}

impl<S, T: Timer, H: Deref<Target = Limiter>> RateLimit<S, T, H> {
    /// Lets requests through to `inner` out of the budget of `limiter`, an `Arc<Limiter>` or a
    /// `&'static Limiter`.
    pub const fn with_limiter(inner: S, limiter: H, timer: T) -> Self {
        Self {
            inner,
            token: Token {
                limiter,
                timer,
                held: None,
            },
            patience: Duration::MAX,
            wait: Wait::Not,
            alarm: None,
            due: Instant::MAX,
        }
    }

    /// Fails a request that would have to wait.
    #[must_use]
    pub const fn reject(self) -> Self {
        self.wait_at_most(Duration::ZERO)
    }

    /// Fails a request that would have to wait for more than `patience`.
    #[must_use]
    pub const fn wait_at_most(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    accessors!(S);

    /// A refusal that no call took is not for the request that is waiting now.
    fn forget_refusal(&mut self) {
        if let Wait::Refused(_) = self.wait {
            self.wait = Wait::Not;
        }
    }

    /// There is no token before `due`: ready when there may be one, or when it is too long to wait for.
    #[cold]
    fn poll_due(&mut self, now: Instant, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        self.forget_refusal();
        if is_attempt(cx) {
            return Poll::Pending;
        }
        if self.patience != Duration::MAX {
            let since = match self.wait {
                Wait::Since(since) => since,
                _ => now,
            };
            if due > since.saturating_add(self.patience) {
                self.wait = Wait::Refused(Limited::until(due, now));
                return Poll::Ready(());
            }
            self.wait = Wait::Since(since);
        }
        if due == Instant::MAX {
            return Poll::Pending;
        }
        let alarm = match &mut self.alarm {
            Some(alarm) => {
                if self.due != due {
                    self.token.timer.reset(alarm, due);
                }
                alarm
            }
            none => none.insert(self.token.timer.alarm_until(due)),
        };
        self.due = due;
        Pin::new(alarm).poll(cx)
    }
}

/// What a handle has to do with the limit while it holds no token.
#[derive(Clone, Copy)]
enum Wait {
    Not,
    Since(Instant),
    /// It was too long, and the next call fails.
    Refused(Limited),
}

// A clone shares the budget, but not the readiness.
impl<S, T, H> Clone for RateLimit<S, T, H>
where
    S: Clone,
    T: Timer + Clone,
    H: Deref<Target = Limiter> + Clone,
{
    fn clone(&self) -> Self {
        let Token { limiter, timer, .. } = &self.token;
        Self::with_limiter(self.inner.clone(), limiter.clone(), timer.clone())
            .wait_at_most(self.patience)
    }
}

/// The load of the service inside.
impl<S: Load, T: Timer, H: Deref<Target = Limiter>> Load for RateLimit<S, T, H> {
    type Metric = S::Metric;

    fn load(&self) -> S::Metric {
        self.inner.load()
    }

    fn is_no_busier_than(&self, other: &Self) -> bool {
        self.inner.is_no_busier_than(&other.inner)
    }
}

impl<S: fmt::Debug, T: Timer, H: Deref<Target = Limiter>> fmt::Debug for RateLimit<S, T, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("limiter", &*self.token.limiter)
            .field("patience", &self.patience)
            .field("is_ready", &self.token.held.is_some())
            .finish_non_exhaustive()
    }
}

impl<S, Request, T, H> Service<Request> for RateLimit<S, T, H>
where
    S: Service<Request>,
    T: Timer,
    H: Deref<Target = Limiter>,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.token.held.is_some() {
            return self.inner.poll_ready(cx).map_err(Error::Service);
        }
        loop {
            let now = self.token.timer.now();
            // Nothing is asked of the inner service while the limit is reached, and no token is kept
            // while the inner service is not ready: tokens that pile up would be a burst when it is.
            let taken = match self.token.limiter.offer(now) {
                Ok(offer) => match self.inner.poll_ready(cx) {
                    Poll::Ready(Ok(())) => self.token.take(offer, now),
                    other => {
                        self.forget_refusal();
                        return other.map_err(Error::Service);
                    }
                },
                Err(due) => Err(due),
            };
            match taken {
                Ok(()) => {
                    self.wait = Wait::Not;
                    return Poll::Ready(Ok(()));
                }
                Err(due) => ready!(self.poll_due(now, due, cx)),
            }
            if let Wait::Refused(_) = self.wait {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let admitted = if self.token.spend() {
            Ok(())
        } else {
            match replace(&mut self.wait, Wait::Not) {
                Wait::Refused(limited) => Err(limited),
                // Called without readiness.
                _ => self.token.limiter.spend(self.token.timer.now()),
            }
        };
        ResponseFuture {
            state: match admitted {
                Ok(()) => State::Admitted {
                    inner: self.inner.call(request),
                },
                Err(limited) => State::Refused { limited },
            },
        }
    }
}

pin_project! {
    /// The response of a [`RateLimit`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F> {
        Admitted {
            #[pin]
            inner: F,
        },
        Refused {
            limited: Limited,
        },
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<R, E>>,
{
    type Output = Result<R, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().state.project() {
            StateProj::Admitted { inner } => ready!(inner.poll(cx)).map_err(Error::Service),
            StateProj::Refused { limited } => Err(Error::Limited(*limited)),
        })
    }
}

/// How a [`RateLimit`] fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The limit was reached, and the wait would have been too long.
    Limited(Limited),
    /// The inner service failed.
    Service(E),
}

flatten!(Error: Limited);

/// A request was refused: the rate limit was reached, and the wait would have been too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    // Nanoseconds: in a response future this takes less room than a `Duration`.
    retry_after: u64,
}

impl Limited {
    fn until(due: Instant, now: Instant) -> Self {
        Self {
            retry_after: due.as_nanos().saturating_sub(now.as_nanos()),
        }
    }

    /// How long it was, at the refusal, until the next token was due.
    #[must_use]
    pub const fn retry_after(&self) -> Duration {
        Duration::from_nanos(self.retry_after)
    }
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rate limited, retry after {:?}", self.retry_after())
    }
}

impl core::error::Error for Limited {}

/// So many requests per period, and so many at once.
///
/// ```
/// use campanile::limit::Rate;
/// use core::time::Duration;
///
/// const FIVE_A_SECOND: Rate = Rate::new(5, Duration::from_secs(1)); // five at once after a pause
/// const EVENLY: Rate = FIVE_A_SECOND.burst(1); // one every 200 ms at most
/// # let _ = EVENLY;
/// assert!(Rate::try_new(0, Duration::from_secs(1)).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    // At most `per`.
    num: u64,
    // Nanoseconds.
    per: u64,
    // At least 1.
    burst: u64,
    fixed_window: bool,
}

/// The longest period, in nanoseconds: 146 years. It leaves room to add it to any moment of today.
const LONGEST: u64 = 1 << 62;

impl Rate {
    /// `num` requests in each `per`, and after a pause as many at once.
    ///
    /// # Panics
    ///
    /// If `num` or `per` is 0.
    #[must_use]
    #[track_caller]
    pub const fn new(num: u64, per: Duration) -> Self {
        match Self::try_new(num, per) {
            Ok(rate) => rate,
            Err(InvalidRate::Num) => panic!("a rate of 0 requests: `num` must be at least 1"),
            Err(InvalidRate::Per) => panic!("a rate per 0 ns: `per` must be at least 1 ns"),
        }
    }

    /// `num` requests in each `per`, and after a pause as many at once.
    ///
    /// # Errors
    ///
    /// If `num` or `per` is 0.
    pub const fn try_new(num: u64, per: Duration) -> Result<Self, InvalidRate> {
        let nanos = saturating_nanos(per);
        let per = if nanos < LONGEST { nanos } else { LONGEST };
        if num == 0 {
            Err(InvalidRate::Num)
        } else if per == 0 {
            Err(InvalidRate::Per)
        } else {
            Ok(Self {
                num: if num < per { num } else { per },
                per,
                burst: num,
                fixed_window: false,
            })
        }
    }

    /// Lets `burst` requests through at once after a pause; 0 counts as 1.
    #[must_use]
    pub const fn burst(mut self, burst: u64) -> Self {
        self.burst = if burst == 0 { 1 } else { burst };
        self
    }

    /// Lets `burst` requests through at once after a pause, and still no more than `num` in any window of
    /// `per`: what follows the burst is slowed down to `num - burst + 1` in each `per`.
    ///
    /// A `burst` outside of 1 to `num` counts as the nearer of the two.
    #[must_use]
    pub const fn strict(mut self, burst: u64) -> Self {
        let burst = if burst < self.num { burst } else { self.num };
        self.burst = if burst == 0 { 1 } else { burst };
        self.num -= self.burst - 1;
        self
    }

    /// Counts in fixed windows, as tower does: `num` requests in each, and the whole budget is back when the
    /// next one begins.
    ///
    /// Windows of `per` follow one another from the first request on. Two bursts can meet at an edge, so that
    /// up to `2 * num` requests pass within less than `per`; a [`burst`](Self::burst) has no meaning here. This
    /// is for a server that counts in the same way.
    #[must_use]
    pub const fn fixed_window(mut self) -> Self {
        self.fixed_window = true;
        self
    }
}

/// A [`Rate`] that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidRate {
    /// No requests at all.
    Num,
    /// A period of no length.
    Per,
}

impl fmt::Display for InvalidRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Num => "a rate of 0 requests: `num` must be at least 1",
            Self::Per => "a rate per 0 ns: `per` must be at least 1 ns",
        })
    }
}

impl core::error::Error for InvalidRate {}

/// The budget that rate limits share: one word, changed without a lock.
///
/// ```
/// use campanile::limit::{Rate, RateLimit, rate::Limiter};
/// use core::time::Duration;
///
/// // Without an allocator.
/// static BUDGET: Limiter = Limiter::new(Rate::new(100, Duration::from_secs(1)));
/// # #[cfg(feature = "smol")]
/// let service = RateLimit::with_limiter((), &BUDGET, campanile::smol::Smol);
/// ```
#[derive(Debug)]
pub struct Limiter {
    rate: Rate,
    pace: Pace,
    // The width of one cell: so many nanoseconds, and `rest / num` of one.
    one: NonZeroU64,
    rest: u64,
    // All of a burst but one.
    others: Width,
    // The theoretical arrival time: the moment at which the budget is full again. With fixed windows: the
    // start of the window, and as many nanoseconds more as requests have passed in it, which are at most `per`.
    full_at: Word,
    // With fixed windows: where the latest begins that somebody has asked in; 0 before that.
    window: Word,
}

impl Limiter {
    /// A full budget.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        let rest = rate.per % rate.num;
        Self {
            rate,
            pace: match rest {
                _ if rate.fixed_window => Pace::Windows,
                0 => Pace::Even,
                _ => Pace::Uneven,
            },
            one: match NonZeroU64::new(rate.per / rate.num) {
                Some(one) => one,
                None => NonZeroU64::MIN,
            },
            rest,
            others: Width::of(rate.burst - 1, rate),
            full_at: Word::new(0),
            window: Word::new(0),
        }
    }

    /// The rate at which the budget comes back.
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// A token to be had at `now`; if there is none, when the next one is due.
    #[inline]
    fn offer(&self, now: Instant) -> Result<Offer, Instant> {
        // Nothing but this one word is shared, so no order with other memory is needed.
        self.offer_after(self.full_at.load(), now)
    }

    #[inline]
    fn offer_after(&self, full_at: u64, now: Instant) -> Result<Offer, Instant> {
        match self.pace {
            Pace::Even => self.offer_cell(full_at, now),
            Pace::Uneven => self.offer_uneven_cell(full_at, now),
            Pace::Windows => self.offer_in_window(full_at, now),
        }
    }

    #[inline]
    fn offer_cell(&self, full_at: u64, now: Instant) -> Result<Offer, Instant> {
        let mut from = now.as_nanos();
        if full_at > from {
            let due = self.back(full_at, self.others);
            if due > from {
                return Err(Instant::from_nanos(due));
            }
            from = full_at;
        }
        match self.forward(from) {
            Some(then) => Ok(Offer { full_at, then }),
            None => Err(Instant::MAX),
        }
    }

    #[cold]
    fn offer_uneven_cell(&self, full_at: u64, now: Instant) -> Result<Offer, Instant> {
        self.offer_cell(full_at, now)
    }

    #[inline]
    fn offer_in_window(&self, full_at: u64, now: Instant) -> Result<Offer, Instant> {
        let window = self.window(now.as_nanos());
        // As none has passed in it, if that is before.
        let counted = full_at.max(window);
        if counted - window < self.rate.num {
            let then = NonZeroU64::MIN.saturating_add(counted);
            return Ok(Offer { full_at, then });
        }
        Err(Instant::from_nanos(window.saturating_add(self.rate.per)))
    }

    /// Where the window of `nanos` begins; or the latest, for a clock that is behind.
    #[inline]
    fn window(&self, nanos: u64) -> u64 {
        let latest = self.window.load();
        if latest != 0 && nanos.wrapping_sub(latest) < self.rate.per {
            return latest;
        }
        self.open_window(latest, nanos)
    }

    #[cold]
    fn open_window(&self, mut latest: u64, nanos: u64) -> u64 {
        loop {
            let window = match nanos.checked_sub(latest) {
                // The first to ask begins the first.
                _ if latest == 0 => nanos.max(1),
                Some(since) if since >= self.rate.per => nanos - since % self.rate.per,
                _ => return latest,
            };
            match self.window.replace(latest, window) {
                Ok(()) => return window,
                Err(other) => latest = other,
            }
        }
    }

    /// Takes the offered token, or another if it is gone. If there is none left, when the next one is due.
    #[inline]
    fn take(&self, offer: Offer, now: Instant) -> Result<Taken, Instant> {
        let mut full_at = offer.then;
        if let Err(changed) = self.full_at.replace(offer.full_at, offer.then.get()) {
            full_at = self.take_another(changed, now)?;
        }
        Ok(Taken { at: now, full_at })
    }

    #[cold]
    fn take_another(&self, mut full_at: u64, now: Instant) -> Result<NonZeroU64, Instant> {
        loop {
            let offer = self.offer_after(full_at, now)?;
            match self.full_at.replace(full_at, offer.then.get()) {
                Ok(()) => return Ok(offer.then),
                Err(changed) => full_at = changed,
            }
        }
    }

    /// Uses a token up at `now`.
    #[cold]
    fn spend(&self, now: Instant) -> Result<(), Limited> {
        match self.take_another(self.full_at.load(), now) {
            Ok(_) => Ok(()),
            Err(due) => Err(Limited::until(due, now)),
        }
    }

    /// Gives a token back, at `now`.
    fn give_back(&self, token: Taken, now: Instant) {
        if self.rate.fixed_window {
            // Into the window that it was taken from, as long as no later one has begun.
            let window = self.window.load();
            if token.full_at.get() > window {
                let back = |full_at: u64| {
                    let passed = full_at.saturating_sub(window);
                    (0 < passed && passed <= self.rate.per).then(|| full_at - 1)
                };
                self.full_at.update(back);
            }
            return;
        }
        // Nobody took one since: it is as if this one had not been taken. Otherwise time may have brought back a
        // part of it, up to all of what has passed since, where without it the budget would have been full; and to
        // give that a second time would be too much.
        // Where cells are not all of one width, its own may be narrower by one than that which is given back.
        let elapsed = now.as_nanos().saturating_sub(token.at.as_nanos());
        let is_uneven = elapsed > 0 && self.rate.per % self.rate.num != 0;
        let elapsed = elapsed.saturating_add(u64::from(is_uneven));
        self.full_at.update(|full_at| {
            let without = self.back(full_at, self.one());
            let then = if full_at == token.full_at.get() {
                without
            } else {
                without.saturating_add(elapsed)
            };
            (then < full_at).then_some(then)
        });
    }

    // Time is divided into cells of `per / num` nanoseconds, each rounded up or down to whole ones such
    // that `num` cells are `per` exactly. A token moves the theoretical arrival time on by one cell, with
    // its offset in the cell kept, and so no rounding error adds up. Where `per` is a multiple of `num`
    // all cells are of one width, and this needs no division.
    //
    // Cell `c` begins at `c * per / num`, rounded up. What was added to round it up, in parts of `num`, says how
    // wide the cells next to it are.

    /// What was added where the cell of `nanos` begins.
    #[cold]
    fn rounded(&self, nanos: u64) -> u64 {
        let Rate { num, per, .. } = self.rate;
        // `nanos * num` is `c * per`, what was added, and `num` for each nanosecond of the offset.
        multiply_divide(num, nanos % per, per).1 % num
    }

    const fn one(&self) -> Width {
        Width {
            whole: self.one.get(),
            rest: self.rest,
        }
    }

    /// One token later; `None` if that is beyond all time.
    #[inline]
    fn forward(&self, nanos: u64) -> Option<NonZeroU64> {
        let then = self.one.checked_add(nanos)?;
        if self.pace == Pace::Uneven && self.rest > self.rounded(nanos) {
            return then.checked_add(1);
        }
        Some(then)
    }

    /// So much earlier, at least 0.
    #[inline]
    fn back(&self, nanos: u64, Width { whole, rest }: Width) -> u64 {
        let then = nanos.saturating_sub(whole);
        if self.pace == Pace::Uneven && rest + self.rounded(nanos) >= self.rate.num {
            return then.saturating_sub(1);
        }
        then
    }
}

/// How the budget comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// In cells of one width.
    Even,
    /// In cells that are one nanosecond wider, or not.
    Uneven,
    /// All at once.
    Windows,
}

/// The width of a number of cells: `whole` nanoseconds, and `rest / num` of one.
#[derive(Clone, Copy, Debug)]
struct Width {
    whole: u64,
    rest: u64,
}

impl Width {
    const fn of(tokens: u64, Rate { num, per, .. }: Rate) -> Self {
        let (more, rest) = multiply_divide(tokens, per % num, num);
        Self {
            whole: (per / num).saturating_mul(tokens).saturating_add(more),
            rest,
        }
    }
}

/// `a * b / c` and what is left, for `b < c <= 2^63`: bit by bit, from the highest of `a` on. Most processors have no
/// arithmetic of 128 bits, and what stands in for it is large.
const fn multiply_divide(a: u64, b: u64, c: u64) -> (u64, u64) {
    let (mut quotient, mut rest) = (0, 0);
    let mut bits = u64::BITS - a.leading_zeros();
    while bits > 0 {
        bits -= 1;
        quotient *= 2;
        rest *= 2;
        if rest >= c {
            rest -= c;
            quotient += 1;
        }
        if a >> bits & 1 == 1 {
            rest += b;
            if rest >= c {
                rest -= c;
                quotient += 1;
            }
        }
    }
    (quotient, rest)
}

/// A token that was there when it was looked for.
struct Offer {
    full_at: u64,
    // When the budget is full if the token is taken.
    then: NonZeroU64,
}

/// A token that was taken.
#[derive(Clone, Copy)]
struct Taken {
    at: Instant,
    // When the budget was to be full again.
    full_at: NonZeroU64,
}

/// A handle's access to the budget, and the token it may hold. Dropped, it gives that back.
struct Token<T: Timer, H: Deref<Target = Limiter>> {
    limiter: H,
    timer: T,
    held: Option<Taken>,
}

impl<T: Timer, H: Deref<Target = Limiter>> Token<T, H> {
    fn take(&mut self, offer: Offer, now: Instant) -> Result<(), Instant> {
        self.held = Some(self.limiter.take(offer, now)?);
        Ok(())
    }

    /// Uses the token up, if there is one.
    fn spend(&mut self) -> bool {
        self.held.take().is_some()
    }
}

impl<T: Timer, H: Deref<Target = Limiter>> Drop for Token<T, H> {
    fn drop(&mut self) {
        if let Some(token) = self.held.take() {
            self.limiter.give_back(token, self.timer.now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::rng::{Rng, SplitMix64};

    #[test]
    fn a_product_is_divided_as_by_128_bits() {
        let mut rng = SplitMix64::new(1);
        for n in 0..50_000 {
            let c = rng.next_range(1..1 << (n % 63 + 1)) + u64::from(n % 63 == 62);
            let b = rng.next_range(0..c);
            let a = rng.next_u64() >> (n % 64);
            let (product, wide) = (u128::from(a) * u128::from(b), u128::from(c));
            let (quotient, rest) = multiply_divide(a, b, c);
            assert_eq!(
                (quotient.into(), rest.into()),
                (product / wide, product % wide)
            );
        }
    }

    /// The start of cell `cell`, and the cell of a moment, by the definition.
    fn start(cell: u128, num: u128, per: u128) -> u128 {
        (cell * per).div_ceil(num)
    }

    #[test]
    fn a_token_is_a_cell_to_the_nanosecond() {
        let mut rng = SplitMix64::new(2);
        for n in 0..20_000_u32 {
            let per = rng.next_range(1..1 << (n % 62 + 1));
            let num = rng.next_range(1..per + 1) >> (n / 62 % 62);
            let rate = Rate::new(num.max(1), Duration::from_nanos(per))
                .burst(rng.next_u64() >> (n % 61 + 3));
            let limiter = Limiter::new(rate);
            let nanos = rng.next_u64() >> (n / 7 % 10 + 1);
            let (num, per) = (u128::from(rate.num), u128::from(rate.per));
            let cell = u128::from(nanos) * num / per;
            let offset = u128::from(nanos) - start(cell, num, per);
            assert_eq!(
                limiter.forward(nanos).map(|then| then.get().into()),
                Some(start(cell + 1, num, per) + offset)
            );
            for (tokens, width) in [(1, limiter.one()), (rate.burst - 1, limiter.others)] {
                let expected = (cell.checked_sub(tokens.into()))
                    .map_or(0, |cell| start(cell, num, per) + offset);
                let found = u128::from(limiter.back(nanos, width));
                // Before the first cell there is none, and what is left of its offset is as good as 0.
                let is_before = cell < tokens.into() && found <= offset + per;
                assert!(
                    found == expected || is_before,
                    "{rate:?} {nanos} {tokens}: {found}, not {expected}"
                );
            }
        }
    }
}
