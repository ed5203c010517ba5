//! Lets many handles share one service, through a bounded queue and a worker.
//!
//! A [`Buffer`] is cheap to clone, whatever the service inside is. Its [`Worker`], a task on an [`Executor`], owns the
//! service: it takes requests out of the queue one at a time, waits until the service is ready, calls it, and hands the
//! response's future back to the handle that sent the request. Responses are driven by the callers that wait for them,
//! not by the worker.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::ServiceExt;
//! use campanile::smol::buffer::Buffer;
//!
//! // Not `Clone`, and one for all.
//! struct Counter(u32);
//!
//! let mut counter = Counter(0);
//! let service = campanile::service_fn(move |n: u32| {
//!     counter.0 += n;
//!     std::future::ready(Ok::<_, std::convert::Infallible>(counter.0))
//! });
//!
//! let buffer = Buffer::new(service, 16);
//! assert_eq!(buffer.clone().oneshot(2).await.unwrap(), 2);
//! assert_eq!(buffer.oneshot(3).await.unwrap(), 5);
//! # });
//! ```
//!
//! # Readiness
//!
//! By default `poll_ready` reserves room in the queue, as tower's does: a handle that was polled ready keeps its room
//! until it calls or is dropped, so idle handles in that state can keep others waiting. After
//! [`unreserved`](Buffer::unreserved), readiness reserves nothing, and a request waits for room in its response future
//! instead.
//!
//! A handle that is called without having been polled ready also waits for room in the response future. A request keeps
//! its room until the service has been called with it.
//!
//! When a request is cancelled after the service was polled for it, the worker makes the service give up what it
//! reserved for the request: permits, tokens, places in a wait queue, running clocks. So an idle buffer holds nothing
//! that others could use, and the next request inherits nothing. All middleware of this crate gives up its reservations
//! this way; a service that reserves something itself keeps it for the next request, because only dropping the service
//! would take it back.
//!
//! When no request waits any more, a service of several parts, of which the last request needed one, is polled once to
//! give up what the others reserved: a [`Steer`](crate::steer), a [balancer](crate::balance), a
//! [`ReadyCache`](crate::ready_cache). Any service is polled when it has woken the worker, to continue with work of its
//! own without reserving anything: so a balancer that was used keeps following its discovery and driving its endpoints.
//! After [`keep_ready`](Buffer::keep_ready) the worker keeps the
//! service ready all the time. Without the feature `std` the worker cannot tell what has woken it, and polls the
//! service whenever it is woken and finds no request.
//!
//! # Without an allocator
//!
//! [`try_pair_in`] makes a buffer whose queue is in a [`StaticQueue`], shared by tasks and interrupts (feature
//! `critical-section`; the application provides the critical section), or in a [`LocalQueue`] on one thread. Such a
//! queue has room for `N` requests, each from its call until the response future has collected the service's answer,
//! and for `N` more that wait for room; a waiter that was given room counts among these until it is polled. A request
//! beyond that is not queued: its handle is ready, and its response is [`FixedError::Overflow`], at once and for this
//! request alone. This never happens with as many places as handles, if each handle has one request at a time. The
//! service's error is `Copy`, since each handle gets a copy.
//!
//! ```
//! # #[cfg(feature = "critical-section")] {
//! use campanile::buffer::{self, StaticQueue};
//! use campanile::{Service, ServiceExt};
//! use core::future::{Ready, ready};
//! use core::task::{Context, Poll};
//!
//! #[derive(Clone, Copy, Debug, PartialEq)]
//! struct BusError;
//!
//! /// A sensor on a bus: one for all tasks.
//! struct Sensor;
//!
//! impl Service<u8> for Sensor {
//!     type Response = u16;
//!     type Error = BusError;
//!     type Future = Ready<Result<u16, BusError>>;
//!
//!     fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BusError>> {
//!         Poll::Ready(Ok(()))
//!     }
//!
//!     fn call(&mut self, register: u8) -> Self::Future {
//!         ready(Ok(u16::from(register) << 8))
//!     }
//! }
//!
//! static QUEUE: StaticQueue<u8, Ready<Result<u16, BusError>>, 4> = StaticQueue::new();
//!
//! let (sensor, worker) = buffer::try_pair_in(Sensor, &QUEUE).unwrap();
//! // On a chip a task each, here one for both.
//! futures::executor::block_on(async {
//!     let (value, ()) = futures::join!(sensor.oneshot(0x12), worker);
//!     assert_eq!(value, Ok(0x1200));
//! });
//! # }
//! ```
//!
//! # Differences from tower
//!
//! - It runs on any executor.
//! - The bound is exact: at most `bound` requests wait. tower's worker holds one more.
//! - A request whose future is dropped leaves the queue at once, even while the service is not ready. If the future is
//!   dropped while the service is being polled for the request, the service is still called if that poll finds it
//!   ready.
//! - Failure, panic and closing are told apart: see [`Error`]. When the service fails, every handle sees the error,
//!   even those with a reservation, and the service is dropped at once.
//! - [`shutdown`](Buffer::shutdown) drains the queue and can be awaited.
//! - The worker yields to other tasks after 32 requests.
//! - A service that makes progress only when polled is still polled while the buffer is idle.
//! - A request allocates nothing. The queue's table grows with the number of requests in flight at once, and never
//!   shrinks.

use core::fmt;
use core::marker::PhantomData;
use core::task::{Context, Poll, ready};

use futures_core::TryFuture;

use self::queue::{Refusal, Sender};
use crate::sync::is_drive;
#[cfg(feature = "std")]
use crate::{Executor, Layer};
use crate::{NoRuntime, Service};

pub mod error;
pub mod future;
mod queue;
mod worker;

pub use self::error::{Closed, Error, FixedError, Overflow, Panicked, QueueInUse, ServiceError};
pub use self::future::{ResponseFuture, Shutdown};
#[cfg(feature = "critical-section")]
pub use self::queue::StaticQueue;
pub use self::queue::{FixedQueue, HeapQueue, InvalidBound, LocalQueue, Queue};
pub use self::worker::Worker;

/// A layer of [`Buffer`] that runs its workers on an `X`.
pub struct BufferLayer<Request, X> {
    bound: usize,
    unreserved: bool,
    keep_ready: bool,
    executor: X,
    request: PhantomData<fn(Request)>,
}

impl<Request, X: Default> BufferLayer<Request, X> {
    /// Lets at most `bound` requests wait.
    ///
    /// # Panics
    ///
    /// If `bound` is 0; see [`try_new`](Self::try_new).
    #[track_caller]
    pub fn new(bound: usize) -> Self {
        Self::with_executor(bound, X::default())
    }

    /// Like [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// If `bound` is 0.
    pub fn try_new(bound: usize) -> Result<Self, InvalidBound> {
        InvalidBound::check(bound)?;
        Ok(Self::new(bound))
    }
}

impl<Request, X> BufferLayer<Request, X> {
    /// Lets at most `bound` requests wait, and runs workers on `executor`.
    ///
    /// # Panics
    ///
    /// If `bound` is 0.
    #[track_caller]
    pub const fn with_executor(bound: usize, executor: X) -> Self {
        InvalidBound::assert(bound);
        Self {
            bound,
            unreserved: false,
            keep_ready: false,
            executor,
            request: PhantomData,
        }
    }

    /// See [`Buffer::unreserved`].
    #[must_use]
    pub fn unreserved(mut self) -> Self {
        self.unreserved = true;
        self
    }

    /// See [`Buffer::keep_ready`].
    #[must_use]
    pub fn keep_ready(mut self) -> Self {
        self.keep_ready = true;
        self
    }
}

#[cfg(feature = "std")]
impl<S, Request, X> Layer<S> for BufferLayer<Request, X>
where
    S: Service<Request>,
    X: Executor<Worker<S, Request>>,
{
    type Service = Buffer<Request, S::Future, X>;

    #[track_caller]
    fn layer(&self, service: S) -> Self::Service {
        let mut buffer = Buffer::with_executor(service, self.bound, &self.executor);
        buffer.unreserved = self.unreserved;
        if self.keep_ready {
            return buffer.keep_ready();
        }
        buffer
    }
}

impl<Request, X: Clone> Clone for BufferLayer<Request, X> {
    fn clone(&self) -> Self {
        Self {
            bound: self.bound,
            unreserved: self.unreserved,
            keep_ready: self.keep_ready,
            executor: self.executor.clone(),
            request: PhantomData,
        }
    }
}

impl<Request, X: Copy> Copy for BufferLayer<Request, X> {}

impl<Request, X: fmt::Debug> fmt::Debug for BufferLayer<Request, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferLayer")
            .field("bound", &self.bound)
            .field("unreserved", &self.unreserved)
            .field("keep_ready", &self.keep_ready)
            .field("executor", &self.executor)
            .finish()
    }
}

/// A handle to a service that a [`Worker`] owns.
///
/// `F` is the future of that service. `X` is the executor on which [`new`](Self::new) starts the worker; each runtime's
/// module has an alias that fills it in, such as `campanile::smol::buffer::Buffer<Request, F>`.
///
/// See the [module](self) for an example.
pub struct Buffer<Request, F, X = NoRuntime, Q = HeapQueue<Request, F>>
where
    F: TryFuture,
    Q: Queue,
{
    tx: Sender<Q>,
    unreserved: bool,
    types: PhantomData<fn(X, Request) -> F>,
}

#[cfg(feature = "std")]
impl<Request, F: TryFuture, X> Buffer<Request, F, X> {
    /// Starts a worker for `service`. At most `bound` requests wait.
    ///
    /// # Panics
    ///
    /// If `bound` is 0; see [`try_new`](Self::try_new).
    #[track_caller]
    pub fn new<S>(service: S, bound: usize) -> Self
    where
        S: Service<Request, Future = F>,
        X: Executor<Worker<S, Request>> + Default,
    {
        Self::with_executor(service, bound, &X::default())
    }

    /// Like [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// If `bound` is 0.
    #[track_caller]
    pub fn try_new<S>(service: S, bound: usize) -> Result<Self, InvalidBound>
    where
        S: Service<Request, Future = F>,
        X: Executor<Worker<S, Request>> + Default,
    {
        InvalidBound::check(bound)?;
        Ok(Self::new(service, bound))
    }

    /// Starts a worker for `service` on `executor`. At most `bound` requests wait.
    ///
    /// # Panics
    ///
    /// If `bound` is 0.
    #[track_caller]
    pub fn with_executor<S>(service: S, bound: usize, executor: &X) -> Self
    where
        S: Service<Request, Future = F>,
        X: Executor<Worker<S, Request>>,
    {
        let (buffer, worker) = Self::pair(service, bound);
        executor.execute(worker);
        buffer
    }

    /// A handle, and the worker for the caller to run. See also [`pair`](fn@pair).
    ///
    /// # Panics
    ///
    /// If `bound` is 0.
    #[track_caller]
    pub fn pair<S>(service: S, bound: usize) -> (Self, Worker<S, Request>)
    where
        S: Service<Request, Future = F>,
    {
        InvalidBound::assert(bound);
        pair_of(service, Sender::new(HeapQueue::new(bound)))
    }

    /// Stops accepting requests from any handle, and waits until the worker has served the accepted ones and has
    /// dropped the service.
    ///
    /// The queue is closed by this call, even if the future is never polled. Reservations are revoked. Responses still
    /// in flight stay with the callers that wait for them.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not affect the shutdown.
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use campanile::{ServiceExt, buffer, service_fn, smol::buffer::Buffer};
    ///
    /// let buffer = Buffer::new(service_fn(async |n: u32| Ok::<_, std::io::Error>(n)), 16);
    /// let handle = buffer.clone();
    /// buffer.shutdown().await;
    /// assert!(matches!(handle.oneshot(1).await, Err(buffer::Error::Closed(_))));
    /// # });
    /// ```
    ///
    /// In the middle of a stack, keep a handle to the buffer:
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use campanile::{ServiceExt, smol::ServiceBuilder};
    /// use std::time::Duration;
    ///
    /// let buffer = ServiceBuilder::new()
    ///     .buffer(16)
    ///     .timeout(Duration::from_secs(1))
    ///     .service_fn(async |n: u32| Ok::<_, std::io::Error>(n));
    /// let service = ServiceBuilder::new().load_shed().service(buffer.clone());
    ///
    /// let answer = smol::spawn(service.clone().oneshot(1));
    /// assert_eq!(answer.await.unwrap(), 1);
    /// buffer.shutdown().await;
    /// assert!(service.oneshot(2).await.is_err());
    /// # });
    /// ```
    pub fn shutdown(&self) -> Shutdown<Request, F> {
        self.close();
        Shutdown::new(self.tx.closing())
    }
}

impl<Request, F: TryFuture, X, Q: Queue> Buffer<Request, F, X, Q> {
    /// Reserves nothing when polled ready: a request waits for room in its response future.
    ///
    /// Then idle handles starve no other; but the handle is ready however long the queue is, so a `LoadShed` around it
    /// sheds nothing.
    #[must_use]
    pub fn unreserved(mut self) -> Self {
        self.tx.unreserve();
        self.unreserved = true;
        self
    }

    /// Makes the worker keep the service ready from the start, even while no request waits: a reconnecting service, or
    /// a balancer's endpoints, are then connected before the first request comes.
    ///
    /// What readiness reserves is kept, too: a buffer around a shared limit then holds one of its permits forever, and
    /// as many idle buffers as there are permits starve all other users. This applies to all handles.
    #[must_use]
    pub fn keep_ready(self) -> Self {
        self.tx.keep_ready();
        self
    }

    /// Stops accepting requests from any handle. The worker serves the accepted ones and ends.
    ///
    /// Reservations are revoked.
    pub fn close(&self) {
        self.tx.close();
    }

    /// Whether the buffer no longer accepts requests.
    pub fn is_closed(&self) -> bool {
        self.tx.end().is_some()
    }
}

/// A handle, and the worker for the caller to run: a [`Buffer`] that needs no executor.
///
/// # Panics
///
/// If `bound` is 0.
///
/// ```
/// use campanile::{ServiceExt, buffer, service_fn};
///
/// let (buffer, worker) = buffer::pair(service_fn(async |n: u32| Ok::<_, std::io::Error>(n * 2)), 16);
/// futures::executor::block_on(async {
///     // The worker ends when the last handle is gone.
///     let (answer, ()) = futures::join!(buffer.oneshot(21), worker);
///     assert_eq!(answer.unwrap(), 42);
/// });
/// ```
#[cfg(feature = "std")]
#[track_caller]
pub fn pair<S, Request>(
    service: S,
    bound: usize,
) -> (Buffer<Request, S::Future>, Worker<S, Request>)
where
    S: Service<Request>,
{
    Buffer::pair(service, bound)
}

/// A handle, and the worker for the caller to run, that share a `&'static` [`StaticQueue`] or a `&`[`LocalQueue`]: a
/// [`Buffer`] that needs no allocator. See the [module](self#without-an-allocator).
///
/// # Errors
///
/// If the queue has, or ever had, another buffer: it serves only one.
pub fn try_pair_in<S, Request, Q>(
    service: S,
    queue: Q,
) -> Result<InPlace<S, Request, Q>, QueueInUse>
where
    S: Service<Request>,
    Q: Queue<Message = Request, Answer = S::Future>,
{
    let tx = Sender::open(queue).ok_or_else(QueueInUse::new)?;
    Ok(pair_of(service, tx))
}

/// A handle and the worker of a buffer whose queue is a `Q`.
pub type InPlace<S, Request, Q> = (
    Buffer<Request, <S as Service<Request>>::Future, NoRuntime, Q>,
    Worker<S, Request, Q>,
);

fn pair_of<S, Request, X, Q>(
    service: S,
    tx: Sender<Q>,
) -> (Buffer<Request, S::Future, X, Q>, Worker<S, Request, Q>)
where
    S: Service<Request>,
    Q: Queue<Message = Request, Answer = S::Future>,
{
    let worker = Worker::new(service, tx.receiver());
    let buffer = Buffer {
        tx,
        unreserved: false,
        types: PhantomData,
    };
    (buffer, worker)
}

// The response and error types are taken from the queue's type, and not compared with the future's: inside a task, the
// compiler could not prove that an error containing a `dyn` is the same type in both places.
impl<Request, F, X, Q> Service<Request> for Buffer<Request, F, X, Q>
where
    F: TryFuture,
    Q: Queue<Message = Request>,
{
    type Response = <Q::Answer as TryFuture>::Ok;
    type Error = Q::Error;
    type Future = ResponseFuture<Request, F, Q>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let reserved = if self.unreserved || is_drive(cx) {
            self.tx.unreserve();
            self.tx.end().map_or(Ok(()), |end| Err(end.into()))
        } else {
            ready!(self.tx.poll_reserve(cx))
        };
        Poll::Ready(match reserved {
            // The response future tries again, and the error is this request's alone.
            Ok(()) | Err(Refusal::Full) => Ok(()),
            Err(refusal) => Err(Q::error(refusal)),
        })
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match self.tx.try_send(request) {
            Ok(sent) => ResponseFuture::sent(sent),
            Err((request, tx)) => ResponseFuture::waiting(request, tx),
        }
    }
}

impl<Request, F: TryFuture, X, Q: Queue> Clone for Buffer<Request, F, X, Q> {
    fn clone(&self) -> Self {
        Self {
            tx: self.tx.clone(),
            unreserved: self.unreserved,
            types: PhantomData,
        }
    }
}

impl<Request, F: TryFuture, X, Q: Queue> fmt::Debug for Buffer<Request, F, X, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("capacity", &self.tx.capacity())
            .field("is_closed", &self.is_closed())
            .field("unreserved", &self.unreserved)
            .finish_non_exhaustive()
    }
}
