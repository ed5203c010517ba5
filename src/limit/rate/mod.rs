//! Limits how many requests per period reach a service.
//!
//! A [`Rate`] is a number of requests per period, and a burst. All clones of a [`RateLimit`], and all services made by
//! one [`RateLimitLayer`], share one budget; [`per_service`](RateLimitLayer::per_service) gives each service of a layer
//! its own.
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
//!
//! # The bound
//!
//! With [`Rate::new(num, per)`](Rate::new) and a burst of `b`, the budget lets through
//!
//! - at most `b` at one moment,
//! - at most `num + b - 1` in any window no longer than `per`, its end not counted,
//! - `num` for each `per` in the long run, without drift.
//!
//! The burst is `num` unless [`Rate::burst`] sets another: after a pause `num` requests pass at once, as in tower, and
//! the rest follow evenly spaced. `burst(1)` spaces all of them evenly, and then no window of `per` ever sees more than
//! `num`: choose it if the other side counts strictly. [`Rate::strict`] keeps that bound with a burst, at the cost of a
//! lower rate in the long run. [`Rate::fixed_window`] counts as tower does.
//!
//! The algorithm is the generic cell rate algorithm (ITU-T I.371), in whole nanoseconds. A rate above one per
//! nanosecond counts as one per nanosecond, a period longer than 146 years as 146 years. A burst that would take longer
//! than that to come back is cut to one that does not.
//!
//! # When a request counts
//!
//! A request counts when its token is taken: when `poll_ready` is ready, or, for a handle in the queue, at its turn. A
//! handle that stays idle from then on keeps its one token and holds up no other; its request, when it finally comes,
//! counts for the moment the token was taken. If such a handle is dropped unused, it returns the token, less what time
//! has already brought back. A call without readiness takes a token itself, or fails with [`Limited`] if there is none.
//!
//! # Waiting or rejecting
//!
//! By default `poll_ready` waits. [`wait_at_most`](RateLimit::wait_at_most) and [`reject`](RateLimit::reject) limit the
//! wait; if it would be longer, the service is ready, and the call fails with [`Limited`], which says when to try
//! again, without reaching the inner service.
//!
//! Waiting handles are served first come, first served, whatever the executor. Each handle in the queue sets an alarm for
//! its own turn, and a handle polled at or after its turn makes sure that all handles before it have their tokens. So a
//! handle in the queue that is no longer polled stalls no other: it costs those behind it one token, and the time until one
//! of them is polled. A handle that is dropped or gives up costs them nothing: they move up. A newcomer does not pass
//! handles in the queue, even if it would not have to wait.
//!
//! # The inner service
//!
//! The inner service is not polled while a handle waits for its turn, so it reserves nothing meanwhile. If it is not
//! ready at the turn, the token goes to the next in the queue, and the handle is first in the queue when it is next polled. So a
//! handle whose inner service is never ready takes nothing from the others. As in a
//! [concurrency limit](super::concurrency#readiness), a handle whose inner service was ready twice, each time without a
//! token, keeps its next token until it is polled once more.
//!
//! # Without an allocator
//!
//! A [`StaticLimiter`] is shared by tasks and interrupts (feature `critical-section`; the application provides the
//! critical section), a [`LocalLimiter`] on one thread. There is room for `N` in the queue. A request beyond that does not
//! wait: its handle is ready, and the call fails with [`Overflow`], for this request alone. This never happens with as
//! many places as handles.
//!
//! A plain [`Limiter`] has a wait queue only with the feature `std`. Without it, handles wait until the next token is
//! due, the first one polled takes it, and the others wait on; [`wait_at_most`](RateLimit::wait_at_most) then looks no
//! further ahead than that token.
//!
//! # Differences from tower
//!
//! - `RateLimit` is `Clone`, and clones share one budget.
//! - The budget comes back evenly and not all at once at the edge of a window, so two bursts cannot meet there.
//! - A call without readiness does not panic.
//! - The error is an enum, [`Error`], since a limit that does not wait forever can fail by itself.

#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
use alloc::sync::Arc;
use core::fmt;
use core::mem::{replace, take};
use core::ops::Deref;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;

use pin_project_lite::pin_project;

use super::LetGo;
use crate::runtime::saturating_nanos;
#[cfg(not(all(feature = "alloc", target_has_atomic = "ptr")))]
use crate::sync::shared::Shared as Arc;
use crate::sync::{drive, has_request, is_drive, is_try, try_poll, withdraw};
use crate::{Instant, Layer, Service, Timer, load::Load};

mod budget;
mod limiter;
mod turn_queue;

pub use self::budget::{InvalidRate, Rate};
#[cfg(feature = "critical-section")]
pub use self::limiter::StaticLimiter;
pub use self::limiter::{AnyLimiter, FixedLimiter, Limiter, LocalLimiter};
use self::turn_queue::{Ask, Refusal, TokenState, Turn};

/// The default way to share a [`Limiter`]: on the heap. Without an allocator there is no value of this type.
#[derive(Clone)]
pub struct Shared(Arc<Limiter>);

#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
impl From<Arc<Limiter>> for Shared {
    fn from(limiter: Arc<Limiter>) -> Self {
        Self(limiter)
    }
}

#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
impl From<Limiter> for Shared {
    fn from(limiter: Limiter) -> Self {
        Self(Arc::new(limiter))
    }
}

impl Deref for Shared {
    type Target = Limiter;

    fn deref(&self) -> &Limiter {
        &self.0
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// A layer of [`RateLimit`]. All its services share one budget.
#[derive(Clone)]
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct RateLimitLayer<T, H = Shared> {
    limiter: H,
    patience: Duration,
    timer: T,
    // Makes a budget for each service.
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
        Self::with_limiter(Limiter::new(rate).into(), timer)
    }

    /// Gives each service of the layer a budget of its own, which its clones share.
    pub const fn per_service(mut self) -> Self {
        self.own = Some(|rate| Limiter::new(rate).into());
        self
    }
}

impl<T, H> RateLimitLayer<T, H> {
    /// A layer whose services share `limiter`: an `Arc<Limiter>`, a `&'static Limiter`, a `&StaticLimiter<N>`, ...
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
    H: Deref<Target: AnyLimiter> + Clone,
{
    type Service = RateLimit<S, T, H>;

    fn layer(&self, inner: S) -> Self::Service {
        let limiter = match self.own {
            Some(own) => own(self.limiter.budget().rate()),
            None => self.limiter.clone(),
        };
        RateLimit::with_limiter(inner, limiter, self.timer.clone()).wait_at_most(self.patience)
    }
}

impl<T: fmt::Debug, H: Deref<Target: AnyLimiter>> fmt::Debug for RateLimitLayer<T, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("rate", &self.limiter.budget().rate())
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
/// A caller that stops waiting for readiness keeps its place in the queue for the next poll of the same handle, and gives it
/// up when the handle is dropped. A clone starts without one.
pub struct RateLimit<S, T: Timer, H: Deref<Target: AnyLimiter> = Shared> {
    inner: S,
    token: Token<T, H>,
    // Nanoseconds.
    patience: u64,
    // Reset in place after it has fired. `due` is the moment it is set to; `Instant::MAX`: none.
    alarm: Option<T::Alarm>,
    due: Instant,
    // The inner service was polled to no avail, and may hold a reservation or a place in a wait queue of its own.
    is_asked: bool,
    let_go: LetGo,
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
        Self::with_limiter(inner, Limiter::new(rate).into(), timer)
    }
}

impl<S, T: Timer, H: Deref<Target: AnyLimiter>> RateLimit<S, T, H> {
    /// Lets requests through to `inner` from the budget of `limiter`: an `Arc<Limiter>`, a `&'static Limiter`, or
    /// without an allocator a `&StaticLimiter<N>` or a `&LocalLimiter<N>`.
    pub const fn with_limiter(inner: S, limiter: H, timer: T) -> Self {
        Self {
            inner,
            token: Token {
                limiter,
                timer,
                place: TokenState::Outside,
                until: Instant::MAX,
            },
            patience: u64::MAX,
            alarm: None,
            due: Instant::MAX,
            is_asked: false,
            let_go: LetGo::NEVER,
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
        self.patience = saturating_nanos(patience);
        self
    }

    accessors!(S);

    /// A poll that is not the first, or that only drives.
    #[cold]
    fn poll_again<Request>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error<S::Error>>>
    where
        S: Service<Request>,
    {
        if is_drive(cx) {
            self.alarm = None;
            self.is_asked = false;
            self.let_go = LetGo::NEVER;
            self.token.release();
            return self.inner.poll_ready(cx).map_err(Error::Service);
        }
        if let TokenState::Held(_) = self.token.place {
            return self.poll_inner(None, cx);
        }
        self.poll_turn(self.token.timer.now(), false, cx)
    }

    /// There is no token without waiting, or others already wait. `is_ready`: this poll found the inner service ready.
    #[cold]
    fn poll_turn<Request>(
        &mut self,
        mut now: Instant,
        mut is_ready: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error<S::Error>>>
    where
        S: Service<Request>,
    {
        let has_request = has_request(cx);
        // A handle whose request is to fail is ready, and stays so.
        let refusal = match self.token.place {
            TokenState::Refused(refusal) if has_request => Some(refusal),
            _ => None,
        };
        // A request's patience begins with the request.
        let patience = if has_request { self.patience } else { u64::MAX };
        let waits = refusal.is_none() && !is_try(cx);
        // A turn is useless before the inner service is ready. Until then, the handle would only take turns that others
        // need and pass them on, again and again.
        if let TokenState::Passed = self.token.place {
            self.is_asked = true;
            ready!(self.inner.poll_ready(cx)).map_err(Error::Service)?;
            self.let_go.count();
            is_ready = true;
        }
        // An alarm may fire before its time; two attempts are enough for one poll.
        for _ in 0..2 {
            match (self.token.poll(now, patience, waits, cx), refusal) {
                (Turn::Settled, _) => {
                    self.disarm(now);
                    if let TokenState::Refused(_) = self.token.place {
                        // The refusal of a request that is still to come would be too early.
                        if !has_request {
                            self.token.place = TokenState::Outside;
                        }
                        return Poll::Ready(self.withdraw(cx));
                    }
                    if is_ready {
                        self.let_go = LetGo::NEVER;
                        return Poll::Ready(Ok(()));
                    }
                    return self.poll_inner(refusal, cx);
                }
                (Turn::At(due), Some(refusal)) => {
                    self.token.place = match refusal {
                        Refusal::Limited(_) => TokenState::refused(due, now),
                        Refusal::Overflow => TokenState::Refused(refusal),
                    };
                    return Poll::Ready(self.withdraw(cx));
                }
                (Turn::At(due), None) => {
                    if !waits || self.poll_alarm(due, cx).is_pending() {
                        self.withdraw(cx)?;
                        return Poll::Pending;
                    }
                }
            }
            now = self.token.timer.now();
        }
        cx.waker().wake_by_ref();
        self.withdraw(cx)?;
        Poll::Pending
    }

    /// Makes an inner service that was polled give up what it reserved, since there is no token for it. Fails if that
    /// service does.
    fn withdraw<Request>(&mut self, cx: &mut Context<'_>) -> Result<(), Error<S::Error>>
    where
        S: Service<Request>,
    {
        if !replace(&mut self.is_asked, false) {
            return Ok(());
        }
        match drive(cx.waker(), |cx| self.inner.poll_ready(cx)) {
            Poll::Ready(Err(error)) => {
                self.token.release();
                Err(Error::Service(error))
            }
            _ => Ok(()),
        }
    }

    /// The turn has come. If the inner service is not ready, the token goes to others, except as [`LetGo`] says.
    fn poll_inner<Request>(
        &mut self,
        refusal: Option<Refusal>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error<S::Error>>>
    where
        S: Service<Request>,
    {
        let polled = self.inner.poll_ready(cx);
        if let Poll::Ready(Ok(())) = polled {
            self.let_go = LetGo::NEVER;
            return Poll::Ready(Ok(()));
        }
        let waits = polled.is_pending() && refusal.is_none() && !is_try(cx);
        if waits && self.let_go.keeps(cx) {
            return Poll::Pending;
        }
        self.is_asked = true;
        self.token.release();
        if let Some(refusal) = refusal.filter(|_| polled.is_pending()) {
            self.token.place = TokenState::Refused(refusal);
            return Poll::Ready(self.withdraw(cx));
        }
        self.token.place = TokenState::Passed;
        polled.map_err(Error::Service)
    }

    /// Takes a token for a call without readiness, or returns why there is none.
    #[cold]
    fn call_unready<Request>(&mut self) -> Option<Refusal>
    where
        S: Service<Request>,
    {
        self.alarm = None;
        self.let_go = LetGo::NEVER;
        let refusal = self.token.spend().err()?;
        if replace(&mut self.is_asked, false) {
            let _ = withdraw(|cx| self.inner.poll_ready(cx));
        }
        Some(refusal)
    }

    /// The inner service is not ready, though there is a token.
    #[cold]
    fn inner_unready<E>(&mut self, polled: Poll<Result<(), E>>) -> Poll<Result<(), Error<E>>> {
        self.is_asked = true;
        polled.map_err(Error::Service)
    }

    /// Nothing waits at `now`, so no alarm stays armed. An alarm whose time has come is kept, to be reset later.
    fn disarm(&mut self, now: Instant) {
        if self.due > now {
            self.alarm = None;
        }
        self.due = Instant::MAX;
    }

    fn poll_alarm(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if due == Instant::MAX {
            self.alarm = None;
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
        let polled = Pin::new(alarm).poll(cx);
        if polled.is_ready() {
            // Reset before it is polled again.
            self.due = Instant::MAX;
        }
        polled
    }
}

// A clone shares the budget, but not the readiness.
impl<S, T, H> Clone for RateLimit<S, T, H>
where
    S: Clone,
    T: Timer + Clone,
    H: Deref<Target: AnyLimiter> + Clone,
{
    fn clone(&self) -> Self {
        let Token { limiter, timer, .. } = &self.token;
        let inner = self.inner.clone();
        Self {
            patience: self.patience,
            ..Self::with_limiter(inner, limiter.clone(), timer.clone())
        }
    }
}

/// The load of the inner service.
impl<S: Load, T: Timer, H: Deref<Target: AnyLimiter>> Load for RateLimit<S, T, H> {
    type Metric = S::Metric;

    fn load(&self) -> S::Metric {
        self.inner.load()
    }

    fn is_no_busier_than(&self, other: &Self) -> bool {
        self.inner.is_no_busier_than(&other.inner)
    }

    fn take_over(&mut self, predecessor: &mut Self) {
        self.inner.take_over(&mut predecessor.inner);
    }
}

impl<S: fmt::Debug, T: Timer, H: Deref<Target: AnyLimiter>> fmt::Debug for RateLimit<S, T, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("rate", &self.token.limiter.budget().rate())
            .field("patience", &Duration::from_nanos(self.patience))
            .field("is_ready", &matches!(self.token.place, TokenState::Held(_)))
            .finish_non_exhaustive()
    }
}

impl<S, Request, T, H> Service<Request> for RateLimit<S, T, H>
where
    S: Service<Request>,
    T: Timer,
    H: Deref<Target: AnyLimiter>,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if !matches!(self.token.place, TokenState::Outside) || is_drive(cx) {
            return self.poll_again(cx);
        }
        let now = self.token.timer.now();
        if let Some(offer) = self.token.limiter.budget().offer(now) {
            // No token is taken before the inner service is ready: tokens held until then would become a burst.
            match self.inner.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                other => return self.inner_unready(other),
            }
            if let Some(token) = self.token.limiter.budget().take(offer, now) {
                self.token.place = TokenState::Held(token);
                return Poll::Ready(Ok(()));
            }
            self.is_asked = true;
            return self.poll_turn(now, true, cx);
        }
        self.poll_turn(now, false, cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let refusal = if let TokenState::Held(_) = self.token.place {
            self.token.place = TokenState::Outside;
            None
        } else {
            self.call_unready::<Request>()
        };
        ResponseFuture {
            state: match refusal {
                None => State::Admitted {
                    inner: self.inner.call(request),
                },
                Some(Refusal::Limited(limited)) => State::Limited { limited },
                Some(Refusal::Overflow) => State::Overflow,
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
        Limited {
            limited: Limited,
        },
        Overflow,
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
            StateProj::Limited { limited } => Err(Error::Limited(*limited)),
            StateProj::Overflow => Err(Error::Overflow(Overflow::new())),
        })
    }
}

/// How a [`RateLimit`] fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The limit was reached, and the wait would have been too long.
    Limited(Limited),
    /// Too many requests already wait; never with a plain [`Limiter`].
    Overflow(Overflow),
    /// The inner service failed.
    Service(E),
}

flatten!(Error: Limited, Overflow);

leaf_error! {
    /// Too many requests already wait for a rate limit.
    Overflow, "more requests wait for a rate limit than there is room for"
}

/// A request was refused: the rate limit was reached, and the wait would have been too long.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    // Nanoseconds: smaller than a `Duration` in a response future.
    retry_after: u64,
}

impl Limited {
    fn until(due: Instant, now: Instant) -> Self {
        Self {
            retry_after: due.as_nanos().saturating_sub(now.as_nanos()),
        }
    }

    /// How long, at the refusal, the request would have had to wait: until the first token that no handle in the queue was
    /// to get.
    #[must_use]
    pub const fn retry_after(&self) -> Duration {
        Duration::from_nanos(self.retry_after)
    }
}

impl fmt::Debug for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited")
            .field("retry_after", &self.retry_after())
            .finish()
    }
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rate limited, retry after {:?}", self.retry_after())
    }
}

impl core::error::Error for Limited {}

/// A handle's access to the budget, with its token or place in the queue, if any. Dropping it gives that up.
struct Token<T: Timer, H: Deref<Target: AnyLimiter>> {
    limiter: H,
    timer: T,
    place: TokenState,
    // When a waiting handle gives up, even if its turn was passed on meanwhile.
    until: Instant,
}

impl<T: Timer, H: Deref<Target: AnyLimiter>> Token<T, H> {
    fn poll(&mut self, now: Instant, patience: u64, waits: bool, cx: &Context<'_>) -> Turn {
        if !matches!(self.place, TokenState::Queued(_) | TokenState::Passed) {
            self.until = Instant::from_nanos(now.as_nanos().saturating_add(patience));
        }
        let ask = Ask {
            now,
            until: self.until,
            waits,
        };
        limiter::poll(&*self.limiter, ask, &mut self.place, cx)
    }

    /// Uses up a token, or returns when one is due.
    #[cold]
    fn spend(&mut self) -> Result<(), Refusal> {
        if let TokenState::Refused(refusal) = self.place {
            self.place = TokenState::Outside;
            return Err(refusal);
        }
        let now = self.timer.now();
        if let Turn::At(due) = try_poll(|cx| self.poll(now, 0, false, cx)) {
            self.release();
            self.place = TokenState::refused(due, now);
        }
        match take(&mut self.place) {
            TokenState::Refused(refusal) => Err(refusal),
            _ => Ok(()),
        }
    }

    fn release(&mut self) {
        if let TokenState::Queued(_) | TokenState::Held(_) = self.place {
            limiter::leave(&*self.limiter, &mut self.place, self.timer.now());
        }
        self.place = TokenState::Outside;
    }
}

impl<T: Timer, H: Deref<Target: AnyLimiter>> Drop for Token<T, H> {
    fn drop(&mut self) {
        self.release();
    }
}
