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
use core::ops::Deref;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;

use pin_project_lite::pin_project;

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
    // When the present wait began.
    waiting_since: Option<Instant>,
    refused: Option<Limited>,
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
            waiting_since: None,
            refused: None,
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

    /// There is no token before `due`: ready when there may be one, or when it is too long to wait for.
    fn poll_due(&mut self, now: Instant, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if is_attempt(cx) {
            return Poll::Pending;
        }
        if self.patience != Duration::MAX {
            let since = *self.waiting_since.get_or_insert(now);
            if due > since.saturating_add(self.patience) {
                self.refused = Some(Limited {
                    retry_after: due.saturating_duration_since(now),
                });
                return Poll::Ready(());
            }
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
        // A refusal that no call took is not for the request that is waiting now.
        self.refused = None;
        if self.token.held.is_some() {
            return self.inner.poll_ready(cx).map_err(Error::Service);
        }
        loop {
            let now = self.token.timer.now();
            // Nothing is asked of the inner service while the limit is reached, and no token is kept
            // while the inner service is not ready: tokens that pile up would be a burst when it is.
            let taken = match self.token.limiter.offer(now) {
                Ok(offer) => {
                    ready!(self.inner.poll_ready(cx)).map_err(Error::Service)?;
                    self.token.take(offer, now)
                }
                Err(due) => Err(due),
            };
            match taken {
                Ok(()) => {
                    self.waiting_since = None;
                    return Poll::Ready(Ok(()));
                }
                Err(due) => ready!(self.poll_due(now, due, cx)),
            }
            if self.refused.is_some() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.waiting_since = None;
        let admitted = match self.refused.take() {
            Some(limited) => Err(limited),
            None if self.token.spend() => Ok(()),
            // Called without readiness.
            None => {
                let now = self.token.timer.now();
                let limiter = &self.token.limiter;
                let taken = limiter
                    .offer(now)
                    .and_then(|offer| limiter.take(offer, now));
                taken.map(drop).map_err(|due| Limited {
                    retry_after: due.saturating_duration_since(now),
                })
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
    retry_after: Duration,
}

impl Limited {
    /// How long it was, at the refusal, until the next token was due.
    #[must_use]
    pub const fn retry_after(&self) -> Duration {
        self.retry_after
    }
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rate limited, retry after {:?}", self.retry_after)
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
const LONGEST: u128 = 1 << 62;

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
        let nanos = per.as_nanos();
        let per = if nanos < LONGEST { nanos } else { LONGEST } as u64;
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
    // Nanoseconds per token, where that is a whole number.
    step: Option<u64>,
    // The theoretical arrival time: the moment at which the budget is full again. With fixed windows: the
    // start of the window, and as many nanoseconds more as requests have passed in it, which are at most `per`.
    full_at: Word,
    // With fixed windows: where the first of them began; 0 before that.
    origin: Word,
}

impl Limiter {
    /// A full budget.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self {
            rate,
            step: if rate.per % rate.num == 0 {
                Some(rate.per / rate.num)
            } else {
                None
            },
            full_at: Word::new(0),
            origin: Word::new(0),
        }
    }

    /// The rate at which the budget comes back.
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// A token to be had at `now`; if there is none, when the next one is due.
    fn offer(&self, now: Instant) -> Result<Offer, Instant> {
        // Nothing but this one word is shared, so no order with other memory is needed.
        self.offer_after(self.full_at.load(), now)
    }

    fn offer_after(&self, full_at: u64, now: Instant) -> Result<Offer, Instant> {
        if self.rate.fixed_window {
            return self.offer_in_window(full_at, now);
        }
        if full_at > now.as_nanos() {
            let due = self.back(full_at, self.rate.burst - 1);
            if due > now.as_nanos() {
                return Err(Instant::from_nanos(due));
            }
        }
        match self.forward(full_at.max(now.as_nanos())) {
            Some(then) => Ok(Offer { full_at, then }),
            None => Err(Instant::MAX),
        }
    }

    fn offer_in_window(&self, full_at: u64, now: Instant) -> Result<Offer, Instant> {
        let window = self.window(now.as_nanos());
        let passed = full_at.saturating_sub(window);
        if passed < self.rate.num {
            return Ok(Offer {
                full_at,
                then: window.saturating_add(passed + 1),
            });
        }
        Err(Instant::from_nanos(window.saturating_add(self.rate.per)))
    }

    /// Where the window of `nanos` begins.
    fn window(&self, nanos: u64) -> u64 {
        let origin = match self.origin.load() {
            // The first to ask sets it, and all others find what it has set.
            0 => {
                let first = nanos.max(1);
                self.origin.replace(0, first).err().unwrap_or(first)
            }
            origin => origin,
        };
        let since = nanos.saturating_sub(origin);
        origin + (since - since % self.rate.per)
    }

    /// Takes the offered token, or another if it is gone. If there is none left, when the next one is due.
    fn take(&self, mut offer: Offer, now: Instant) -> Result<Taken, Instant> {
        while let Err(changed) = self.full_at.replace(offer.full_at, offer.then) {
            offer = self.offer_after(changed, now)?;
        }
        Ok(Taken {
            at: now,
            full_at: offer.then,
        })
    }

    /// Gives a token back, at `now`.
    fn give_back(&self, token: Taken, now: Instant) {
        if self.rate.fixed_window {
            // Into the window that it was taken from, if that is still the latest.
            let window = self.window(token.full_at - 1);
            let back = |full_at| (self.window(full_at - 1) == window).then(|| full_at - 1);
            self.full_at.update(back);
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
            let without = self.back(full_at, 1);
            let then = if full_at == token.full_at {
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
    // Cell `c` begins at `c * per / num`, rounded up. Of that division only the remainder is needed.

    /// The remainder of `c * per / num`, where `c` is the cell in which `nanos` lies.
    fn remainder(&self, nanos: u64) -> u64 {
        let Rate { num, per, .. } = self.rate;
        // `nanos * num` is `c * per` and `past` more.
        let past = (u128::from(nanos) * u128::from(num) % u128::from(per)) as u64;
        match past % num {
            0 => 0,
            past => num - past,
        }
    }

    /// One token later; `None` if that is beyond all time.
    fn forward(&self, nanos: u64) -> Option<u64> {
        let width = self.step.unwrap_or_else(|| {
            let Rate { num, per, .. } = self.rate;
            let remainder = self.remainder(nanos);
            (remainder + per).div_ceil(num) - u64::from(remainder > 0)
        });
        nanos.checked_add(width)
    }

    /// `tokens` tokens earlier, at least 0.
    fn back(&self, nanos: u64, tokens: u64) -> u64 {
        if tokens == 0 {
            return nanos;
        }
        let width = self.step.map_or_else(
            || {
                let Rate { num, per, .. } = self.rate;
                let remainder = self.remainder(nanos);
                let exact = u128::from(tokens) * u128::from(per);
                let width = (exact - u128::from(remainder)) / u128::from(num);
                u64::try_from(width)
                    .unwrap_or(u64::MAX)
                    .saturating_add(u64::from(remainder > 0))
            },
            |step| step.saturating_mul(tokens),
        );
        nanos.saturating_sub(width)
    }
}

/// A token that was there when it was looked for.
struct Offer {
    full_at: u64,
    // When the budget is full if the token is taken.
    then: u64,
}

/// A token that was taken.
#[derive(Clone, Copy)]
struct Taken {
    at: Instant,
    // When the budget was to be full again.
    full_at: u64,
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
