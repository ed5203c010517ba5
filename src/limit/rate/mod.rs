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
//! nanosecond counts as one per nanosecond, a period longer than 146 years as 146 years, and a burst that takes longer
//! than that to come back as one that does not.
//!
//! # When a request counts
//!
//! When `poll_ready` is ready: only then is the token taken, and so after the inner service is ready. A handle
//! that was told "ready" and idles keeps its one token and holds up nobody; its request, when it comes at last,
//! counts for the moment at which the handle was told. If such a handle is
//! dropped unused, its token comes back, or what time has not brought back of it already. A call without readiness
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
use core::ops::Deref;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;

use pin_project_lite::pin_project;

use crate::runtime::saturating_nanos;
use crate::sync::is_try;
use crate::{Instant, Layer, Service, Timer, load::Load};

mod limiter;

pub use self::limiter::{InvalidRate, Limiter, Rate};
use self::limiter::{Offer, Taken};

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
    // Nanoseconds.
    patience: u64,
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
            patience: u64::MAX,
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
        self.patience = saturating_nanos(patience);
        self
    }

    accessors!(S);

    /// There is no token before `due`: ready when there may be one, or when it is too long to wait for.
    #[cold]
    fn poll_due(&mut self, now: Instant, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let is_too_long = match self.wait {
            Wait::Refused(_) => true,
            _ if is_try(cx) => return Poll::Pending,
            Wait::Not | Wait::Since(_) => {
                let since = match self.wait {
                    Wait::Since(since) => since,
                    _ => now,
                };
                self.wait = Wait::Since(since);
                due.as_nanos() > since.as_nanos().saturating_add(self.patience)
            }
        };
        if is_too_long {
            self.wait = Wait::Refused(Limited::until(due, now));
            return Poll::Ready(());
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
    /// It was too long, and the next call fails, unless the handle is polled before that and finds a token.
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
        let inner = self.inner.clone();
        Self {
            patience: self.patience,
            ..Self::with_limiter(inner, limiter.clone(), timer.clone())
        }
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

    fn take_over(&mut self, predecessor: &mut Self) {
        self.inner.take_over(&mut predecessor.inner);
    }
}

impl<S: fmt::Debug, T: Timer, H: Deref<Target = Limiter>> fmt::Debug for RateLimit<S, T, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("limiter", &*self.token.limiter)
            .field("patience", &Duration::from_nanos(self.patience))
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
                    // It was ready, to fail, and stays so until the call.
                    Poll::Pending if matches!(self.wait, Wait::Refused(_)) => {
                        return Poll::Ready(Ok(()));
                    }
                    other => return other.map_err(Error::Service),
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
