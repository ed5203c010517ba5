//! Limits the time of a response, or of readiness and response together.
//!
//! [`Timeout`] watches the response. [`Deadline`] watches a request from the moment it has to wait for readiness. Both
//! fail with [`Error::Elapsed`]. They drop the inner future first: what it holds, such as a permit or a connection, is
//! free by the time the caller sees the error.
//!
//! A pending response registers its wait with the runtime's timers, and removes it when the response is ready. If that
//! costs too much, use [`SharedTimer`](crate::runtime::SharedTimer), a timer with one alarm for all waits of a layer.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")] {
//! use campanile::{Layer, Service, service_fn, smol::Smol};
//! use campanile::timeout::{Error, TimeoutLayer};
//! use core::{convert::Infallible, future::pending, time::Duration};
//!
//! let layer = TimeoutLayer::<Smol>::new(Duration::from_millis(5));
//! let mut service = layer.layer(service_fn(async |slow: bool| {
//!     if slow {
//!         pending::<()>().await;
//!     }
//!     Ok::<_, Infallible>("done")
//! }));
//!
//! smol::block_on(async {
//!     assert_eq!(service.call(false).await, Ok("done"));
//!     assert!(matches!(service.call(true).await, Err(Error::Elapsed(_))));
//! });
//! # }
//! ```
//!
//! # Differences from tower
//!
//! - The clock of a [`Timeout`] starts when the response is first pending, so a response that is ready at once costs
//!   neither a clock read nor a timer. [`from_call`](TimeoutLayer::from_call) starts it at the call, as tower does;
//!   that reads the clock once per call.
//! - It fires however busy the inner future is. tokio's timers are pending for a task that has used up its budget, so
//!   besides the timer the clock is read whenever the inner future is still pending.
//! - [`Duration::MAX`] means "no limit" and arms no timer. [`Duration::ZERO`] lets through only what is ready at the
//!   first poll.
//! - The error is an enum, [`Error`], and not a box.
//! - [`Deadline`] is new.

use core::fmt;
use core::mem::replace;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;

use pin_project_lite::pin_project;

use crate::runtime::saturating_nanos;
use crate::sync::{drive, has_request, is_try};
use crate::{Instant, Layer, Service, Timer};

/// A layer of [`Timeout`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct TimeoutLayer<T> {
    limit: Duration,
    from_call: bool,
    timer: T,
}

impl<T: Default> TimeoutLayer<T> {
    /// A layer that gives every response `limit`, on the default timer.
    pub fn new(limit: Duration) -> Self {
        Self::with_timer(limit, T::default())
    }
}

impl<T> TimeoutLayer<T> {
    /// A layer that gives every response `limit`, on `timer`.
    pub const fn with_timer(limit: Duration, timer: T) -> Self {
        Self {
            limit,
            from_call: false,
            timer,
        }
    }

    /// Starts the clock at the call, instead of when the response is first pending.
    pub const fn from_call(mut self) -> Self {
        self.from_call = true;
        self
    }
}

impl<S, T: Clone> Layer<S> for TimeoutLayer<T> {
    type Service = Timeout<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        Timeout {
            inner,
            limit: self.limit,
            from_call: self.from_call,
            timer: self.timer.clone(),
        }
    }
}

/// A service with a limited time for each response.
///
/// See the [module](self) for an example.
#[derive(Clone, Copy, Debug)]
pub struct Timeout<S, T> {
    inner: S,
    limit: Duration,
    from_call: bool,
    timer: T,
}

impl<S, T: Default> Timeout<S, T> {
    /// Gives every response of `inner` at most `limit`, on the default timer.
    pub fn new(inner: S, limit: Duration) -> Self {
        Self::with_timer(inner, limit, T::default())
    }
}

impl<S, T> Timeout<S, T> {
    /// Gives every response of `inner` at most `limit`, on `timer`.
    pub const fn with_timer(inner: S, limit: Duration, timer: T) -> Self {
        Self {
            inner,
            limit,
            from_call: false,
            timer,
        }
    }

    /// Starts the clock at the call, instead of when the response is first pending.
    #[must_use]
    pub const fn from_call(mut self) -> Self {
        self.from_call = true;
        self
    }

    accessors!(S);
}

impl<S, Request, T> Service<Request> for Timeout<S, T>
where
    S: Service<Request>,
    T: Timer + Clone,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = ResponseFuture<S::Future, T>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // Read the clock before the call: the time that the inner service spends in it counts. A limit of more than 584
        // years saturates, and is none.
        let limit = saturating_nanos(self.limit);
        let (wait, nanos) = if self.from_call && limit != NEVER {
            let now = self.timer.now().as_nanos();
            (Wait::Until, now.saturating_add(limit))
        } else {
            (Wait::After, limit)
        };
        let clock = Clock {
            wait,
            nanos,
            timer: self.timer.clone(),
        };
        ResponseFuture {
            timed: Timed {
                inner: Some(self.inner.call(request)),
                clock,
            },
        }
    }
}

pin_project! {
    /// The response of a [`Timeout`].
    ///
    /// # Panics
    ///
    /// When it is first pending, if its timer needs the runtime's context and there is none.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F, T>
    where
        T: Timer,
    {
        #[pin]
        timed: Timed<F, T>,
    }
}

impl<F, T, R, E> Future for ResponseFuture<F, T>
where
    F: Future<Output = Result<R, E>>,
    T: Timer,
{
    type Output = Result<R, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().timed.poll(cx)
    }
}

impl<F: fmt::Debug, T: Timer> fmt::Debug for ResponseFuture<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.timed.debug(f, "ResponseFuture")
    }
}

/// A layer of [`Deadline`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct DeadlineLayer<T> {
    limit: Duration,
    timer: T,
}

impl<T: Default> DeadlineLayer<T> {
    /// A layer that gives readiness and response together `limit`, on the default timer.
    pub fn new(limit: Duration) -> Self {
        Self::with_timer(limit, T::default())
    }
}

impl<T> DeadlineLayer<T> {
    /// A layer that gives readiness and response together `limit`, on `timer`.
    pub const fn with_timer(limit: Duration, timer: T) -> Self {
        Self { limit, timer }
    }
}

impl<S, T: Timer + Clone> Layer<S> for DeadlineLayer<T> {
    type Service = Deadline<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline::with_timer(inner, self.limit, self.timer.clone())
    }
}

/// A service with a limited time for readiness and response together.
///
/// The clock starts when readiness is first pending, or at the call if that comes first; the response has what is left
/// at the call. When the time is over and the inner service is still not ready, this service reports itself ready, and
/// the next call fails with [`Elapsed`] at once. (An error from `poll_ready` would say that the service is dead, which
/// it is not.) The request does not reach the inner service. A handle that waited in the inner service's wait queue
/// leaves it, but the inner service continues with work of its own, such as connecting. The failed call ends the
/// deadline; the next request has a new one. A clone has one of its own, too.
///
/// Behind a [`Buffer`](crate::buffer), and all other middleware of this crate that waits for one request after another,
/// a cancelled request takes its clock along. A poll without a request starts no clock: one that only tries, as
/// [`LoadShed`](crate::load_shed::LoadShed) does, and one of a buffer that is
/// [kept ready](crate::buffer::Buffer::keep_ready).
///
/// Services that poll several parts for one request, such as a [`Steer`](crate::steer) or a [balancer](crate::balance),
/// start the clocks of all. So put a `Deadline` around them, and a [`Timeout`] inside.
///
/// # Cancel safety
///
/// A caller that stops waiting for readiness and later returns with the same handle finds the clock still running. Drop
/// the handle and use a clone instead.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "smol")] {
/// use campanile::{Service, service_fn, smol::Smol};
/// use campanile::timeout::Deadline;
/// use core::{convert::Infallible, time::Duration};
///
/// let inner = service_fn(async |n: u32| Ok::<_, Infallible>(n));
/// let mut service = Deadline::<_, Smol>::new(inner, Duration::from_secs(1));
/// assert_eq!(smol::block_on(service.call(1)), Ok(1));
/// # }
/// ```
pub struct Deadline<S, T: Timer> {
    inner: S,
    limit: Duration,
    timer: T,
    phase: Phase,
    // Present while readiness is pending.
    alarm: Option<T::Alarm>,
}

/// The progress of the request that a [`Deadline`] waits with.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// No readiness has been pending.
    Idle,
    /// Readiness has been pending; the alarm is set to this moment.
    Waiting(Instant),
    /// The time was over before the inner service was ready.
    Lapsed,
}

impl<S, T: Timer + Default> Deadline<S, T> {
    /// Gives readiness and response of `inner` together at most `limit`, on the default timer.
    pub fn new(inner: S, limit: Duration) -> Self {
        Self::with_timer(inner, limit, T::default())
    }
}

impl<S, T: Timer> Deadline<S, T> {
    /// Gives readiness and response of `inner` together at most `limit`, on `timer`.
    pub const fn with_timer(inner: S, limit: Duration, timer: T) -> Self {
        Self {
            inner,
            limit,
            timer,
            phase: Phase::Idle,
            alarm: None,
        }
    }

    accessors!(S);

    /// Ready if the time is over. Called while the inner service is not ready.
    fn poll_lapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.limit == Duration::MAX {
            return Poll::Pending;
        }
        let now = self.timer.now();
        let deadline = match self.phase {
            Phase::Waiting(deadline) => deadline,
            Phase::Idle | Phase::Lapsed => now.saturating_add(self.limit),
        };
        self.phase = Phase::Waiting(deadline);
        if now < deadline && self.alarm.is_none() {
            self.alarm = Some(self.timer.alarm_until(deadline));
        }
        // The clock decides, as in a `Clock`; the alarm only wakes the task.
        let over = now >= deadline
            || self
                .alarm
                .as_mut()
                .is_some_and(|alarm| Pin::new(alarm).poll(cx).is_ready());
        if over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ends the wait for readiness, and returns its progress.
    fn end_wait(&mut self, phase: Phase) -> Phase {
        self.alarm = None;
        replace(&mut self.phase, phase)
    }
}

// A clone was never polled, so no clock runs for it.
impl<S: Clone, T: Timer + Clone> Clone for Deadline<S, T> {
    fn clone(&self) -> Self {
        Self::with_timer(self.inner.clone(), self.limit, self.timer.clone())
    }
}

impl<S: fmt::Debug, T: Timer> fmt::Debug for Deadline<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadline")
            .field("inner", &self.inner)
            .field("limit", &self.limit)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl<S, Request, T> Service<Request> for Deadline<S, T>
where
    S: Service<Request>,
    T: Timer + Clone,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = DeadlineFuture<S::Future, T>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let has_request = has_request(cx);
        if !has_request {
            self.end_wait(Phase::Idle);
        } else if let Phase::Lapsed = self.phase {
            return Poll::Ready(Ok(()));
        }
        match self.inner.poll_ready(cx) {
            Poll::Ready(result) => {
                self.alarm = None;
                Poll::Ready(result.map_err(Error::Service))
            }
            Poll::Pending if !has_request || is_try(cx) => Poll::Pending,
            Poll::Pending => {
                ready!(self.poll_lapsed(cx));
                self.end_wait(Phase::Lapsed);
                // This handle waits no more. It gives up what it waited for, while the inner service continues with
                // work of its own.
                let driven = drive(cx.waker(), |cx| self.inner.poll_ready(cx));
                if let Poll::Ready(Err(error)) = driven {
                    return Poll::Ready(Err(Error::Service(error)));
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let clock = match self.end_wait(Phase::Idle) {
            Phase::Lapsed => {
                return DeadlineFuture {
                    timed: Timed {
                        inner: None,
                        clock: Clock::until(Instant::MAX, self.timer.clone()),
                    },
                };
            }
            Phase::Waiting(deadline) => Clock::until(deadline, self.timer.clone()),
            Phase::Idle if self.limit == Duration::MAX => {
                Clock::until(Instant::MAX, self.timer.clone())
            }
            Phase::Idle => Clock::until(
                self.timer.now().saturating_add(self.limit),
                self.timer.clone(),
            ),
        };
        DeadlineFuture {
            timed: Timed {
                inner: Some(self.inner.call(request)),
                clock,
            },
        }
    }
}

pin_project! {
    /// The response of a [`Deadline`].
    ///
    /// # Panics
    ///
    /// When it is first pending, if its timer needs the runtime's context and there is none.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct DeadlineFuture<F, T>
    where
        T: Timer,
    {
        #[pin]
        timed: Timed<F, T>,
    }
}

impl<F, T, R, E> Future for DeadlineFuture<F, T>
where
    F: Future<Output = Result<R, E>>,
    T: Timer,
{
    type Output = Result<R, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().timed.poll(cx)
    }
}

impl<F: fmt::Debug, T: Timer> fmt::Debug for DeadlineFuture<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.timed.debug(f, "DeadlineFuture")
    }
}

/// How a [`Timeout`] or a [`Deadline`] fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The time was over.
    Elapsed(Elapsed),
    /// The inner service failed.
    Service(E),
}

flatten!(Error: Elapsed);

leaf_error! {
    /// A request got no response in time.
    Elapsed, "request timed out"
}

/// The response future of a [`Timeout`], at the path it has in tower.
pub mod future {
    pub use super::ResponseFuture;
}

/// The errors of this middleware, at the path they have in tower.
pub mod error {
    pub use super::Elapsed;
}

pin_project! {
    /// A response and its remaining time.
    struct Timed<F, T>
    where
        T: Timer,
    {
        // `None`: the time was over, or the response was returned.
        #[pin]
        inner: Option<F>,
        #[pin]
        clock: Clock<T>,
    }
}

impl<F, T: Timer> Timed<F, T> {
    /// The response, or an error if it was not ready in time.
    fn poll<R, E>(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<R, Error<E>>>
    where
        F: Future<Output = Result<R, E>>,
    {
        let mut this = self.project();
        if let Some(inner) = this.inner.as_mut().as_pin_mut() {
            // A response that is ready wins over a limit that has passed.
            if let Poll::Ready(result) = inner.poll(cx) {
                // Drop everything of the request, even if the caller keeps this future.
                this.clock.project().wait.set(Wait::Answered);
                this.inner.set(None);
                return Poll::Ready(result.map_err(Error::Service));
            }
            ready!(this.clock.poll_elapsed(cx));
            this.inner.set(None);
        } else if let Wait::Answered = this.clock.wait {
            // Polled again after its end.
            return Poll::Pending;
        }
        Poll::Ready(Err(Error::Elapsed(Elapsed::new())))
    }

    fn debug(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result
    where
        F: fmt::Debug,
    {
        f.debug_struct(name)
            .field("inner", &self.inner)
            .field("clock", &self.clock)
            .finish()
    }
}

pin_project! {
    /// The remaining time of a response.
    struct Clock<T>
    where
        T: Timer,
    {
        #[pin]
        wait: Wait<T::Sleep>,
        // Nanoseconds: the limit itself while `wait` is `After`, otherwise the moment at which it is over; or `NEVER`.
        // One word for both keeps the future small.
        nanos: u64,
        timer: T,
    }
}

pin_project! {
    #[project = WaitProj]
    enum Wait<S> {
        After,
        Until,
        Armed {
            #[pin]
            sleep: S,
        },
        // The response was ready in time.
        Answered,
    }
}

/// Stands for no limit.
const NEVER: u64 = u64::MAX;

impl<T: Timer> Clock<T> {
    /// Runs until `deadline`.
    fn until(deadline: Instant, timer: T) -> Self {
        Self {
            wait: Wait::Until,
            nanos: deadline.as_nanos(),
            timer,
        }
    }

    /// Ready when the time is over. Polled while the response is pending.
    fn poll_elapsed(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if *this.nanos == NEVER {
            return Poll::Pending;
        }
        // The clock decides, and the sleep only wakes the task. The sleep alone is not enough: tokio's is pending,
        // whatever the time, once the inner future or something polled before this one has used up the task's budget,
        // which can happen at every poll.
        let now = this.timer.now().as_nanos();
        let deadline = match *this.wait {
            Wait::After => now.saturating_add(*this.nanos),
            Wait::Until | Wait::Armed { .. } | Wait::Answered => *this.nanos,
        };
        if now >= deadline {
            // Drop the wait, even if the caller keeps this future.
            *this.nanos = NEVER;
            this.wait.set(Wait::Until);
            return Poll::Ready(());
        }
        if let Wait::After | Wait::Until = *this.wait {
            *this.nanos = deadline;
            if deadline == NEVER {
                return Poll::Pending;
            }
            let sleep = this.timer.sleep_until(Instant::from_nanos(deadline));
            this.wait.set(Wait::Armed { sleep });
        }
        match this.wait.project() {
            WaitProj::Armed { sleep } => sleep.poll(cx),
            _ => Poll::Pending,
        }
    }
}

impl<T: Timer> fmt::Debug for Clock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.wait {
            Wait::Answered => f.write_str("Answered"),
            _ if self.nanos == NEVER => f.write_str("Never"),
            Wait::After => write!(f, "After({:?})", Duration::from_nanos(self.nanos)),
            Wait::Until | Wait::Armed { .. } => write!(f, "Until({} ns)", self.nanos),
        }
    }
}
