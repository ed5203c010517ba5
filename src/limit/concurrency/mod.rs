//! Limits how many requests are in flight at once.
//!
//! A request needs a permit, and has it until its response is ready and its future is gone: the inner future is dropped
//! before the permit is returned, so that the limit counts what is alive. Permits come from a [`Semaphore`] that is a
//! service's own ([`ConcurrencyLimitLayer`]), that all services of a layer share ([`GlobalConcurrencyLimitLayer`]), or
//! that you provide ([`ConcurrencyLimit::with_semaphore`]); with the feature `async-lock` it can be an
//! `Arc<async_lock::Semaphore>` that the rest of an application also uses.
//!
//! # Examples
//!
//! ```
//! use campanile::{ServiceBuilder, ServiceExt};
//!
//! # futures::executor::block_on(async {
//! let service = ServiceBuilder::new()
//!     .concurrency_limit(2)
//!     .service_fn(async |n: u32| Ok::<_, std::convert::Infallible>(n + 1));
//!
//! assert_eq!(service.oneshot(1).await.unwrap(), 2);
//! # });
//! ```
//!
//! # Readiness
//!
//! By default `poll_ready` takes the permit, as tower's does, but polls the inner service first: a permit is only taken
//! for a request that can proceed, and is returned when the inner service is no longer ready. So a caller of a service
//! that is never ready starves no other caller on the same semaphore. While a handle waits for a permit, its
//! inner service reserves nothing, since requests that hold a permit may need that reservation, for example for another
//! attempt. Handles that need both a permit and a contended inner service could pass them to each other in a circle;
//! to prevent that, a handle whose inner service was ready twice, each time without a permit, keeps its next permit
//! until it is polled once more. Some handle always proceeds, but one that needs both can wait for as long as others
//! that need only one of the two leave neither of them free.
//!
//! A handle that was polled ready keeps its permit until it calls or is dropped, so idle handles in that state can keep
//! others waiting. After [`unreserved`](ConcurrencyLimit::unreserved), readiness takes no permit, and a response future
//! waits for its permit before it first polls the inner future. The same happens when a handle is called without having
//! been polled ready.
//!
//! # Without an allocator
//!
//! A [`StaticSemaphore`] is shared by tasks and interrupts (feature `critical-section`; the application provides the
//! critical section), a [`LocalSemaphore`] on one thread. There is room for `N` waiters. A request beyond that is not
//! queued: its handle is ready, and its response is [`Error::Overflow`], at once and for this request alone, unless a
//! permit has become free by then. The inner service is still called, but its future is dropped before it is polled.
//! This never happens with as many places as handles, if each handle has one request at a time.
//!
//! ```
//! # #[cfg(feature = "critical-section")] {
//! use campanile::limit::ConcurrencyLimit;
//! use campanile::limit::concurrency::StaticSemaphore;
//! use campanile::{ServiceExt, service_fn};
//!
//! // One permit, and room for 8 waiters.
//! static RADIO: StaticSemaphore<8> = StaticSemaphore::new(1);
//!
//! let send = service_fn(async |byte: u8| Ok::<_, core::convert::Infallible>(byte.count_ones()));
//! let send = ConcurrencyLimit::with_semaphore(send, &RADIO);
//! let sent = futures::executor::block_on(send.oneshot(0b111));
//! assert_eq!(sent.unwrap(), 3);
//! # }
//! ```
//!
//! # Differences from tower
//!
//! - The permit is returned as soon as the response is ready, and not when its future is dropped.
//! - The inner service is polled before the permit is taken, and not after.
//! - A response can keep the permit for as long as its body lasts: [`with_permit`](ConcurrencyLimit::with_permit).
//! - A poll that only tries, as [`LoadShed`](crate::load_shed) does, leaves no waiter behind.
//! - A call without readiness waits, and does not panic.

use core::mem::replace;
use core::task::{Context, Poll};

use super::LetGo;
use crate::sync::{drive, is_drive, is_try, mark, withdraw};
use crate::{Layer, Service, load::Load};

#[cfg(feature = "async-lock")]
mod async_lock;
pub mod future;
mod permit;
mod permitted;
mod semaphore;

#[cfg(feature = "async-lock")]
pub use self::async_lock::AsyncLockAcquisition;
use self::future::Limited;
pub use self::future::{PermittedFuture, ResponseFuture};
pub use self::permit::{Permit, Permits};
pub use self::permitted::{Permitted, WithPermit, WithPermitLayer};
#[cfg(feature = "critical-section")]
pub use self::semaphore::StaticSemaphore;
pub use self::semaphore::{FixedSemaphore, InvalidLimit, LocalSemaphore, Semaphore};

/// A layer of [`ConcurrencyLimit`] that gives each service its own permits.
#[cfg(feature = "std")]
#[derive(Clone, Copy, Debug)]
pub struct ConcurrencyLimitLayer {
    max: usize,
    unreserved: bool,
}

#[cfg(feature = "std")]
impl ConcurrencyLimitLayer {
    /// Lets at most `max` requests of a service be in flight at once.
    ///
    /// # Panics
    ///
    /// If `max` is 0; see [`try_new`](Self::try_new).
    #[track_caller]
    pub const fn new(max: usize) -> Self {
        InvalidLimit::assert(max);
        Self {
            max,
            unreserved: false,
        }
    }

    /// Like [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// If `max` is 0.
    pub const fn try_new(max: usize) -> Result<Self, InvalidLimit> {
        match InvalidLimit::check(max) {
            Ok(()) => Ok(Self::new(max)),
            Err(error) => Err(error),
        }
    }

    /// See [`ConcurrencyLimit::unreserved`].
    #[must_use]
    pub const fn unreserved(mut self) -> Self {
        self.unreserved = true;
        self
    }

    /// See [`ConcurrencyLimit::with_permit`].
    pub const fn with_permit(self) -> WithPermitLayer<Self> {
        WithPermitLayer { limit: self }
    }
}

#[cfg(feature = "std")]
impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let mut service = ConcurrencyLimit::new(inner, self.max);
        service.unreserved = self.unreserved;
        service
    }
}

/// A layer of [`ConcurrencyLimit`] whose services share their permits.
#[derive(Clone, Debug)]
pub struct GlobalConcurrencyLimitLayer<M = Semaphore> {
    semaphore: M,
    unreserved: bool,
}

#[cfg(feature = "std")]
impl GlobalConcurrencyLimitLayer {
    /// Lets at most `max` requests, over all services of this layer, be in flight at once.
    ///
    /// # Panics
    ///
    /// If `max` is 0; see [`try_new`](Self::try_new).
    #[track_caller]
    pub fn new(max: usize) -> Self {
        Self::with_semaphore(Semaphore::new(max))
    }

    /// Like [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// If `max` is 0.
    pub fn try_new(max: usize) -> Result<Self, InvalidLimit> {
        Semaphore::try_new(max).map(Self::with_semaphore)
    }
}

impl<M: Permits> GlobalConcurrencyLimitLayer<M> {
    /// Takes the permits from `semaphore`.
    pub const fn with_semaphore(semaphore: M) -> Self {
        Self {
            semaphore,
            unreserved: false,
        }
    }

    /// See [`ConcurrencyLimit::unreserved`].
    #[must_use]
    pub fn unreserved(mut self) -> Self {
        self.unreserved = true;
        self
    }

    /// See [`ConcurrencyLimit::with_permit`].
    pub const fn with_permit(self) -> WithPermitLayer<Self> {
        WithPermitLayer { limit: self }
    }
}

impl<S, M: Permits> Layer<S> for GlobalConcurrencyLimitLayer<M> {
    type Service = ConcurrencyLimit<S, M>;

    fn layer(&self, inner: S) -> Self::Service {
        let mut service = ConcurrencyLimit::with_semaphore(inner, self.semaphore.clone());
        service.unreserved = self.unreserved;
        service
    }
}

/// A service with a limited number of requests in flight.
///
/// Clones share the permits. See the [module](self) for an example.
#[derive(Debug)]
pub struct ConcurrencyLimit<S, M: Permits = Semaphore> {
    inner: S,
    permit: Permit<M>,
    unreserved: bool,
    waits: Waits,
    let_go: LetGo,
}

/// What a handle was waiting for at its last poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// Nothing.
    No,
    /// The inner service, where it may have a place in another wait queue.
    ForInner,
    /// The permit.
    InLine,
}

#[cfg(feature = "std")]
impl<S> ConcurrencyLimit<S> {
    /// Lets at most `max` requests be in flight at once.
    ///
    /// # Panics
    ///
    /// If `max` is 0; see [`try_new`](Self::try_new).
    #[track_caller]
    pub fn new(inner: S, max: usize) -> Self {
        Self::with_semaphore(inner, Semaphore::new(max))
    }

    /// Like [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// If `max` is 0.
    pub fn try_new(inner: S, max: usize) -> Result<Self, InvalidLimit> {
        Ok(Self::with_semaphore(inner, Semaphore::try_new(max)?))
    }
}

impl<S, M: Permits> ConcurrencyLimit<S, M> {
    /// Takes the permits from `semaphore`, which others may use too.
    ///
    /// ```
    /// use campanile::limit::ConcurrencyLimit;
    /// use campanile::limit::concurrency::Semaphore;
    ///
    /// let semaphore = Semaphore::new(10);
    /// let reads = ConcurrencyLimit::with_semaphore("reads", semaphore.clone());
    /// let writes = ConcurrencyLimit::with_semaphore("writes", semaphore);
    /// # let _ = (reads, writes);
    /// ```
    pub fn with_semaphore(inner: S, semaphore: M) -> Self {
        Self {
            inner,
            permit: Permit::new(semaphore),
            unreserved: false,
            waits: Waits::No,
            let_go: LetGo::NEVER,
        }
    }

    /// Takes no permit when polled ready: the response future waits for one before it first polls the inner future.
    ///
    /// The inner service is called at once, so this limits services whose work is done in their futures, as with an
    /// `async fn`, and not one that begins it in the call, as a [`Buffer`](crate::buffer) does. Then idle handles
    /// starve no other; but the limit itself is always ready, so a `LoadShed` around it sheds nothing on its account.
    #[must_use]
    pub fn unreserved(mut self) -> Self {
        self.leave();
        self.unreserved = true;
        self
    }

    /// Passes the permit on with the response, instead of returning it when the response is ready: for a response that
    /// continues, such as a streamed body.
    ///
    /// ```
    /// use campanile::limit::concurrency::Semaphore;
    /// use campanile::{ServiceExt, limit::ConcurrencyLimit, service_fn};
    /// use futures::{StreamExt, stream};
    ///
    /// # futures::executor::block_on(async {
    /// let inner = service_fn(async |n: u32| Ok::<_, std::convert::Infallible>(stream::iter(0..n)));
    /// let semaphore = Semaphore::new(1);
    /// let service = ConcurrencyLimit::with_semaphore(inner, semaphore.clone()).with_permit();
    ///
    /// let mut body = service.oneshot(1).await.unwrap();
    /// assert_eq!(body.next().await, Some(0));
    /// assert_eq!(semaphore.available_permits(), 0);
    /// assert_eq!(body.next().await, None);
    /// assert_eq!(semaphore.available_permits(), 1); // now the next request may begin
    /// # });
    /// ```
    ///
    /// See [`Permitted`] for a response with a body inside it.
    pub fn with_permit(self) -> WithPermit<S, M> {
        WithPermit { limit: self }
    }

    accessors!(S);

    /// Polls the inner service first, so that the holder of a permit can proceed. Neither is held while waiting for the
    /// other: requests that hold a permit may need what the inner service would have reserved here.
    fn poll_limited<Request>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), M::Error<S::Error>>>
    where
        S: Service<Request>,
    {
        if self.waits != Waits::No {
            if self.waits == Waits::InLine
                && !is_drive(cx)
                && self.permit.poll_acquire::<S::Error>(cx).is_pending()
            {
                return self.wait_in_line(cx);
            }
            self.waits = Waits::No;
        }
        let polled = self.inner.poll_ready(cx);
        if !matches!(polled, Poll::Ready(Ok(()))) || is_drive(cx) {
            return self.inner_unready(polled, cx);
        }
        // After a refusal the response future tries again; its error is this request's alone.
        if !self.unreserved && self.permit.poll_acquire::<S::Error>(cx).is_pending() {
            if !is_try(cx) {
                self.waits = Waits::InLine;
                self.let_go.count();
            }
            return self.wait_in_line(cx);
        }
        Poll::Ready(Ok(()))
    }

    /// The inner service is not ready, or was only driven: the permit goes to others, except as [`LetGo`] says.
    #[cold]
    fn inner_unready<E>(
        &mut self,
        polled: Poll<Result<(), E>>,
        cx: &Context<'_>,
    ) -> Poll<Result<(), M::Error<E>>> {
        if polled.is_ready() || is_drive(cx) {
            self.let_go = LetGo::NEVER;
        }
        let waits = polled.is_pending() && mark(cx).is_none();
        if !waits || !self.let_go.keeps(cx) {
            self.leave();
        }
        if waits {
            self.waits = Waits::ForInner;
        }
        polled.map_err(M::Error::from)
    }

    /// Waits for a permit; meanwhile the inner service reserves nothing, but continues with work of its own.
    #[cold]
    fn wait_in_line<Request>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), M::Error<S::Error>>>
    where
        S: Service<Request>,
    {
        match drive(cx.waker(), |cx| self.inner.poll_ready(cx)) {
            Poll::Ready(Err(error)) => {
                self.leave();
                Poll::Ready(Err(error.into()))
            }
            _ => Poll::Pending,
        }
    }

    /// Gives up the permit or the place in the wait queue.
    fn leave(&mut self) {
        self.permit.release();
        self.waits = Waits::No;
    }

    fn start<Request>(&mut self, request: Request) -> Limited<S::Future, M>
    where
        S: Service<Request>,
    {
        self.let_go = LetGo::NEVER;
        // A call without readiness waits for the permit, and must not hold a place in an inner wait queue meanwhile.
        if replace(&mut self.waits, Waits::No) == Waits::ForInner {
            let _ = withdraw(|cx| self.inner.poll_ready(cx));
        }
        let next = self.permit.another();
        // Taken out of the service first: if the call panics, it is dropped.
        let permit = replace(&mut self.permit, next);
        Limited {
            inner: Some(self.inner.call(request)),
            permit,
        }
    }
}

impl<S, Request, M> Service<Request> for ConcurrencyLimit<S, M>
where
    S: Service<Request>,
    M: Permits,
{
    type Response = S::Response;
    type Error = M::Error<S::Error>;
    type Future = ResponseFuture<S::Future, M>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.poll_limited(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        ResponseFuture {
            limited: self.start(request),
        }
    }
}

// A clone has neither permit nor place in the wait queue, whatever its original has.
impl<S: Clone, M: Permits> Clone for ConcurrencyLimit<S, M> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            permit: self.permit.another(),
            unreserved: self.unreserved,
            waits: Waits::No,
            let_go: LetGo::NEVER,
        }
    }
}

/// The load of the inner service.
impl<S: Load, M: Permits> Load for ConcurrencyLimit<S, M> {
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

/// How a [`ConcurrencyLimit`] fails if its semaphore has room for a limited number of waiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// Too many requests already wait for a permit.
    Overflow(Overflow),
    /// The inner service failed.
    Service(E),
}

flatten!(Error: Overflow);

leaf_error! {
    /// Too many requests already wait for a permit.
    Overflow, "more requests wait for a permit than there is room for"
}
