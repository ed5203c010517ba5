//! Lets many handles share one service, through a queue of bounded length and a worker.
//!
//! A [`Buffer`] is cheap to clone whatever the service inside is. Its [`Worker`], a task on an
//! [`Executor`], owns the service: it takes requests out of the queue one at a time, waits until the
//! service is ready, calls it, and hands the response's future back to the handle that asked. Responses
//! are driven by those who wait for them, not by the worker.
//!
//! # Readiness
//!
//! By default `poll_ready` reserves room in the queue, as tower's does: a handle that was polled ready
//! keeps its room until it calls or is dropped, and handles that idle in that state can keep the others
//! waiting. After [`unreserved`](Buffer::unreserved) readiness reserves nothing, and a request waits for
//! room in its response future instead.
//!
//! A handle that is called without having been polled ready waits for room in the response future, too.
//!
//! A service that was polled ready for a request which is then cancelled stays ready, and keeps what it reserved
//! for that, until the next request: nothing but dropping a service takes readiness back.
//!
//! While no request waits, the worker does not ask the service whether it is ready, unless the service has woken it:
//! so a [balancer](crate::balance) that was used goes on following its discovery and driving its endpoints. After
//! [`keep_ready`](Buffer::keep_ready) the worker keeps the service ready all the time.
//!
//! # Without an allocator
//!
//! [`try_pair_in`] makes a buffer whose queue is in a [`StaticQueue`], to be shared by tasks and interrupts
//! (feature `critical-section`; the application brings the critical section), or in a [`LocalQueue`] on one thread.
//! Such a queue has room for `N` requests, from the call until the response future has collected what the
//! service made of it, and for `N` more that wait for room. A request beyond that is not queued: its handle is ready, and
//! its response is [`FixedError::Overflow`], at once and for this request alone. With as many places as there are
//! handles that never happens. The service's error is `Copy`, since each handle gets one.
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
//! static QUEUE: StaticQueue<u8, Ready<Result<u16, BusError>>, BusError, 4> = StaticQueue::new();
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
//! - The bound is exact: at most `bound` requests wait. tower's worker holds one more in its hand.
//! - A request whose future is dropped leaves the queue at once, also while the service is not ready.
//! - Failure, panic and closing are told apart: see [`Error`]. When the service fails, every handle
//!   sees the error, also those with a reservation, and the service is dropped at once.
//! - [`shutdown`](Buffer::shutdown) drains the queue and can be awaited.
//! - The worker gives way to other tasks after 32 requests.
//! - A service that makes progress when it is polled is not forgotten while the buffer is idle.
//! - A request allocates nothing. The queue's table grows with the number of requests that are under
//!   way at once, and never shrinks.
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

#[cfg(feature = "std")]
use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::pin::Pin;
#[cfg(feature = "std")]
use core::task::Waker;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::sync::gate::Place;
use crate::sync::heap::{Shared, shared};
pub use crate::sync::queue::LocalQueue;
#[cfg(feature = "critical-section")]
pub use crate::sync::queue::StaticQueue;
#[cfg(feature = "std")]
use crate::sync::queue::on_heap;
use crate::sync::queue::{Channel, End, OnHeap, Refusal, Work};
use crate::sync::slab::Index;
#[cfg(feature = "std")]
use crate::sync::wakes::{Node, Wakes};
#[cfg(feature = "std")]
use crate::{Executor, Layer};
use crate::{NoRuntime, Service};

/// After so many requests in one poll the worker lets other tasks run: no runtime but tokio would
/// interrupt it. A quarter of tokio's own budget of 128 operations, since a request is several.
const REQUESTS_PER_POLL: u32 = 32;

/// A layer of [`Buffer`], whose workers run on an `X`.
pub struct BufferLayer<Request, X> {
    bound: usize,
    unreserved: bool,
    keep_ready: bool,
    executor: X,
    request: PhantomData<fn(Request)>,
}

impl<Request, X: Default> BufferLayer<Request, X> {
    /// At most `bound` requests wait.
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
    /// At most `bound` requests wait; workers run on `executor`.
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
    type Service = Buffer<Request, S::Future, S::Error, X>;

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
/// `F` and `E` are the future and the error of that service. `X` is the executor that
/// [`new`](Self::new) starts the worker on; a runtime's module has an alias that fills in `E` and `X`,
/// such as `campanile::smol::buffer::Buffer<Request, F>`.
///
/// See the [module](self) for an example.
pub struct Buffer<Request, F, E, X = NoRuntime, Q = OnHeap<Request, F, E>>
where
    Q: Queue,
{
    queue: Q,
    place: Place,
    unreserved: bool,
    types: PhantomData<fn(X, Request) -> Result<F, E>>,
}

#[cfg(feature = "std")]
impl<Request, F, E, X> Buffer<Request, F, E, X> {
    /// Starts a worker for `service`. At most `bound` requests wait.
    ///
    /// # Panics
    ///
    /// If `bound` is 0; see [`try_new`](Self::try_new).
    #[track_caller]
    pub fn new<S>(service: S, bound: usize) -> Self
    where
        S: Service<Request, Future = F, Error = E>,
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
        S: Service<Request, Future = F, Error = E>,
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
        S: Service<Request, Future = F, Error = E>,
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
        S: Service<Request, Future = F, Error = E>,
    {
        InvalidBound::assert(bound);
        pair_in(service, on_heap(bound))
    }

    /// Accepts no more requests, from any handle, and waits until the worker has served those that
    /// were accepted and has dropped the service.
    ///
    /// The queue is closed when this is called, whether the future is polled or not. Reservations are
    /// revoked. Responses still under way stay with those who wait for them.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing about the shutdown.
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
    pub fn shutdown(&self) -> Shutdown<Request, F, E> {
        self.close();
        Shutdown {
            queue: self.queue.clone(),
            place: Place::Outside,
        }
    }
}

impl<Request, F, E, X, Q: Queue> Buffer<Request, F, E, X, Q> {
    /// Reserves nothing when polled ready: a request waits for room in its response future.
    ///
    /// Handles that idle then starve nobody; but the handle is ready whatever the length of the
    /// queue, so that a `LoadShed` around it has nothing to go by.
    #[must_use]
    pub fn unreserved(mut self) -> Self {
        self.queue.unreserve(&mut self.place);
        self.unreserved = true;
        self
    }

    /// Has the worker keep the service ready while no request waits, from its start on: a reconnecting service is then
    /// connected, and a balancer's endpoints are, before the first request comes.
    ///
    /// What readiness reserves is kept, too: a buffer around a limit that others share then holds one permit of it
    /// for ever, and as many idle buffers as there are permits starve all others. This is for all handles.
    #[must_use]
    pub fn keep_ready(self) -> Self {
        self.queue.keep_ready();
        self
    }

    /// Accepts no more requests, from any handle. The worker serves those that were accepted, and ends.
    ///
    /// Reservations are revoked.
    pub fn close(&self) {
        self.queue.shut_down();
    }

    /// Whether requests are no longer accepted.
    pub fn is_closed(&self) -> bool {
        self.queue.end().is_some()
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
) -> (Buffer<Request, S::Future, S::Error>, Worker<S, Request>)
where
    S: Service<Request>,
{
    Buffer::pair(service, bound)
}

/// A handle, and the worker for the caller to run, that share a `&'static` [`StaticQueue`] or a `&`[`LocalQueue`]:
/// a [`Buffer`] that needs no allocator. See the [module](self#without-an-allocator).
///
/// # Errors
///
/// If the queue has another buffer, or had one: it is for one alone.
pub fn try_pair_in<S, Request, Q>(
    service: S,
    queue: Q,
) -> Result<InPlace<S, Request, Q>, QueueInUse>
where
    S: Service<Request>,
    Q: Queue<Message = Request, Answer = S::Future, Fault = S::Error>,
{
    if !queue.open() {
        return Err(QueueInUse::new());
    }
    Ok(pair_in(service, queue))
}

/// A handle, and the worker, of a buffer whose queue is a `Q`.
pub type InPlace<S, Request, Q> = (
    Buffer<Request, <S as Service<Request>>::Future, <S as Service<Request>>::Error, NoRuntime, Q>,
    Worker<S, Request, Q>,
);

/// `queue` has the one handle that is made here.
fn pair_in<S, Request, X, Q>(
    service: S,
    queue: Q,
) -> (
    Buffer<Request, S::Future, S::Error, X, Q>,
    Worker<S, Request, Q>,
)
where
    S: Service<Request>,
    Q: Queue<Message = Request, Answer = S::Future, Fault = S::Error>,
{
    let buffer = Buffer {
        queue: queue.clone(),
        place: Place::Outside,
        unreserved: false,
        types: PhantomData,
    };
    let worker = Worker {
        driven: Some(Driven::new(service)),
        closer: Closer { queue },
        request: PhantomData,
    };
    (buffer, worker)
}

// Of `F` and `E` nothing is asked: they are the queue's, and in a task the compiler could not tell that they are.
impl<Request, F, T, E, X, Q> Service<Request> for Buffer<Request, F, E, X, Q>
where
    Q: Queue<Message = Request, Answer: Future<Output = Result<T, Q::Fault>>>,
{
    type Response = T;
    type Error = Q::Error;
    type Future = ResponseFuture<Request, F, E, Q>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.unreserved {
            let end = self.queue.end();
            return Poll::Ready(end.map_or(Ok(()), |end| Err(Q::error(end.into()))));
        }
        Poll::Ready(match ready!(self.queue.poll_reserve(&mut self.place, cx)) {
            // The response future asks once more, and the error is the request's alone.
            Ok(()) | Err(Refusal::Full) => Ok(()),
            Err(refusal) => Err(Q::error(refusal)),
        })
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let state = match core::mem::take(&mut self.place) {
            Place::Inside => State::send(&self.queue, request),
            place => {
                self.queue.add_handle();
                State::Waiting {
                    request: Some(request),
                    admission: Admission {
                        queue: self.queue.clone(),
                        place,
                    },
                }
            }
        };
        ResponseFuture {
            state,
            types: PhantomData,
        }
    }
}

impl<Request, F, E, X, Q: Queue> Clone for Buffer<Request, F, E, X, Q> {
    fn clone(&self) -> Self {
        self.queue.add_handle();
        Self {
            queue: self.queue.clone(),
            place: Place::Outside,
            unreserved: self.unreserved,
            types: PhantomData,
        }
    }
}

impl<Request, F, E, X, Q: Queue> Drop for Buffer<Request, F, E, X, Q> {
    fn drop(&mut self) {
        self.queue.unreserve(&mut self.place);
        self.queue.drop_handle();
    }
}

impl<Request, F, E, X, Q: Queue> fmt::Debug for Buffer<Request, F, E, X, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("is_closed", &self.is_closed())
            .field("unreserved", &self.unreserved)
            .finish_non_exhaustive()
    }
}

/// The task that owns the service of a [`Buffer`].
///
/// It ends when the last handle is gone or the buffer was [shut down](Buffer::shutdown), once it has
/// served what was accepted; and when the service fails. Dropped before that, it closes the queue.
#[must_use = "a buffer answers nothing unless its worker runs"]
pub struct Worker<
    S: Service<Request>,
    Request,
    Q = OnHeap<Request, <S as Service<Request>>::Future, <S as Service<Request>>::Error>,
> where
    Q: Queue,
{
    // `None` once it has ended: then the service is gone, and need not wait for the executor.
    driven: Option<Driven<S>>,
    closer: Closer<Q>,
    request: PhantomData<fn(Request)>,
}

impl<S, Request, Q> Future for Worker<S, Request, Q>
where
    S: Service<Request>,
    Q: Queue<Message = Request, Answer = S::Future, Fault = S::Error>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { driven, closer, .. } = &mut *self;
        // Not left to the worker's drop: whoever catches the panic may keep the worker.
        let panicked = Panicking(&closer.queue);
        if let Some(service) = driven {
            let Poll::Ready(end) = service.work(&closer.queue, cx) else {
                core::mem::forget(panicked);
                return Poll::Pending;
            };
            // The service goes first: who learns of the end may rely on it.
            *driven = None;
            closer.queue.close(end);
        }
        core::mem::forget(panicked);
        Poll::Ready(())
    }
}

// The service and its futures are moved and never pinned here.
impl<S, Request, Q> Unpin for Worker<S, Request, Q>
where
    S: Service<Request>,
    Q: Queue<Message = Request, Answer = S::Future, Fault = S::Error>,
{
}

impl<S, Request, Q> fmt::Debug for Worker<S, Request, Q>
where
    S: Service<Request> + fmt::Debug,
    Q: Queue<Message = Request, Answer = S::Future, Fault = S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field(
                "service",
                &self.driven.as_ref().map(|driven| &driven.service),
            )
            .finish_non_exhaustive()
    }
}

/// A worker's service, and what the worker knows of it.
struct Driven<S> {
    service: S,
    bell: Bell,
    // It was ready when it was last asked, and was not called since.
    is_ready: bool,
}

impl<S> Driven<S> {
    fn new(service: S) -> Self {
        Self {
            service,
            bell: Bell::new(),
            is_ready: false,
        }
    }

    /// Hands requests to the service until it is not ready or there are none; and says why, when there will be
    /// none any more.
    fn work<Request, Q>(&mut self, queue: &Q, cx: &mut Context<'_>) -> Poll<End<Q::Failure>>
    where
        S: Service<Request>,
        Q: Queue<Message = Request, Answer = S::Future, Fault = S::Error>,
    {
        let mut has_rung = self.bell.has_rung();
        for _ in 0..REQUESTS_PER_POLL {
            let is_wanted = match queue.poll_work(cx) {
                Work::Waiting => true,
                // Without a request the service is not asked, since its readiness may reserve what others wait
                // for. But if it has asked to be polled, it has something to go on with.
                Work::None { keep_ready } if has_rung || keep_ready && !self.is_ready => false,
                Work::None { .. } => {
                    self.bell.listen(cx);
                    return Poll::Pending;
                }
                Work::Ended => return Poll::Ready(End::Closed),
            };
            has_rung = false;
            self.is_ready = false;
            if let Err(error) = ready!(self.bell.poll_ready(&mut self.service, cx)) {
                return Poll::Ready(End::Failed(queue.share(error)));
            }
            self.is_ready = true;
            // A request stays in the queue until the service is ready for it, and can be cancelled there.
            if let Some(request) = is_wanted.then(|| queue.take()).flatten() {
                self.is_ready = false;
                queue.answer(self.service.call(request));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The service's waker, apart from the worker's, so that one wake-up can be told from the other.
#[cfg(feature = "std")]
struct Bell {
    wakes: Wakes<()>,
    node: Arc<Node<()>>,
    waker: Waker,
}

#[cfg(feature = "std")]
impl Bell {
    fn new() -> Self {
        let wakes = Wakes::new();
        let node = wakes.node(());
        Self {
            waker: Waker::from(node.clone()),
            node,
            wakes,
        }
    }

    /// Whether the service was woken since this was last asked.
    fn has_rung(&mut self) -> bool {
        let has_rung = self.wakes.any();
        if has_rung {
            let mut woken = self.wakes.collect();
            woken.clear();
            self.wakes.give_back(woken);
            self.node.unqueue();
        }
        has_rung
    }

    /// Wakes the worker when the service is woken.
    fn listen(&mut self, cx: &mut Context<'_>) {
        if !self.wakes.register(cx.waker()) {
            cx.waker().wake_by_ref();
        }
    }

    fn poll_ready<S, Request>(
        &mut self,
        service: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>>
    where
        S: Service<Request>,
    {
        let polled = service.poll_ready(&mut Context::from_waker(&self.waker));
        if polled.is_pending() {
            self.listen(cx);
        }
        polled
    }
}

/// Without an allocator there is one waker for both, and the service is asked only for a request.
#[cfg(not(feature = "std"))]
struct Bell;

#[cfg(not(feature = "std"))]
impl Bell {
    const fn new() -> Self {
        Self
    }

    fn has_rung(&self) -> bool {
        false
    }

    fn listen(&self, _: &mut Context<'_>) {}

    fn poll_ready<S, Request>(
        &self,
        service: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>>
    where
        S: Service<Request>,
    {
        service.poll_ready(cx)
    }
}

/// Closes the queue when the worker goes, in whatever way it goes.
struct Closer<Q: Queue> {
    queue: Q,
}

impl<Q: Queue> Drop for Closer<Q> {
    fn drop(&mut self) {
        self.queue.close(End::Closed);
    }
}

/// Closes the queue when it is dropped by a panic that passes.
struct Panicking<'a, Q: Queue>(&'a Q);

impl<Q: Queue> Drop for Panicking<'_, Q> {
    fn drop(&mut self) {
        self.0.close(End::Panicked);
    }
}

/// Waits until a buffer has drained: see [`Buffer::shutdown`].
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct Shutdown<Request, F, E> {
    queue: OnHeap<Request, F, E>,
    place: Place,
}

impl<Request, F, E> Future for Shutdown<Request, F, E> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.queue.poll_end(&mut this.place, cx)
    }
}

impl<Request, F, E> Drop for Shutdown<Request, F, E> {
    fn drop(&mut self) {
        self.queue.leave_end(&mut self.place);
    }
}

impl<Request, F, E> fmt::Debug for Shutdown<Request, F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").finish_non_exhaustive()
    }
}

/// The future at the path where tower has it.
pub mod future {
    pub use super::ResponseFuture;
}

pin_project! {
    /// The response of a [`Buffer`].
    ///
    /// # Cancel safety
    ///
    /// Dropped, it takes its request out of the queue, or drops the response's future.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<Request, F, E, Q = OnHeap<Request, F, E>>
    where
        Q: Queue,
    {
        #[pin]
        state: State<Q>,
        types: PhantomData<fn(Request) -> Result<F, E>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<Q>
    where
        Q: Queue,
    {
        // For room in the queue.
        Waiting {
            request: Option<Q::Message>,
            admission: Admission<Q>,
        },
        // For the worker.
        Queued {
            message: Message<Q>,
        },
        // For the response.
        Called {
            #[pin]
            response: Q::Answer,
        },
        // For nothing.
        Refused {
            refusal: Option<Refusal<Q::Failure>>,
        },
    }
}

impl<Request, F, T, E, Q> Future for ResponseFuture<Request, F, E, Q>
where
    Q: Queue<Answer: Future<Output = Result<T, Q::Fault>>>,
{
    type Output = Result<T, Q::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Waiting { request, admission } => {
                    let room = ready!(admission.queue.poll_reserve(&mut admission.place, cx));
                    match (room, request.take()) {
                        (Ok(()), Some(request)) => {
                            admission.place = Place::Outside;
                            State::send(&admission.queue, request)
                        }
                        (Ok(()), None) => State::Refused { refusal: None },
                        (Err(refusal), _) => State::Refused {
                            refusal: Some(refusal),
                        },
                    }
                }
                StateProj::Queued { message } => match ready!(message.poll_answer(cx)) {
                    Ok(response) => State::Called { response },
                    Err(end) => State::Refused {
                        refusal: Some(end.into()),
                    },
                },
                StateProj::Called { response } => {
                    return response.poll(cx).map_err(Q::Error::from);
                }
                StateProj::Refused { refusal } => {
                    let refusal = refusal.take().unwrap_or(Refusal::Ended(End::Closed));
                    return Poll::Ready(Err(Q::error(refusal)));
                }
            };
            state.set(next);
        }
    }
}

impl<Request, F, E, Q: Queue> fmt::Debug for ResponseFuture<Request, F, E, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<Q: Queue> State<Q> {
    /// Fills the room that was reserved, which is the message's from then on.
    fn send(queue: &Q, request: Q::Message) -> Self {
        match queue.send(request) {
            Ok(index) => Self::Queued {
                message: Message {
                    queue: queue.clone(),
                    index: Some(index),
                },
            },
            Err((request, end)) => {
                drop(request);
                Self::Refused {
                    refusal: Some(end.into()),
                }
            }
        }
    }
}

/// A request that waits for room: outside the queue, and a handle to it, since the worker is not to end before.
struct Admission<Q: Queue> {
    queue: Q,
    place: Place,
}

impl<Q: Queue> Drop for Admission<Q> {
    fn drop(&mut self) {
        self.queue.unreserve(&mut self.place);
        self.queue.drop_handle();
    }
}

/// A request in the queue, with the worker, or answered.
struct Message<Q: Queue> {
    queue: Q,
    // `None` once it was answered.
    index: Option<Index>,
}

impl<Q: Queue> Message<Q> {
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Q::Answer, End<Q::Failure>>> {
        let Some(index) = self.index else {
            return Poll::Ready(Err(End::Closed));
        };
        let answer = ready!(self.queue.poll_answer(index, cx));
        self.index = None;
        Poll::Ready(answer)
    }
}

impl<Q: Queue> Drop for Message<Q> {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            self.queue.abandon(index);
        }
    }
}

/// Where the requests of a buffer wait: on the heap, or in a `&`[`StaticQueue`] or a `&`[`LocalQueue`].
pub trait Queue: Channel {
    /// How a buffer with this queue fails.
    type Error: From<Self::Fault>;

    #[doc(hidden)]
    fn share(&self, error: Self::Fault) -> Self::Failure;

    #[doc(hidden)]
    fn error(refusal: Refusal<Self::Failure>) -> Self::Error;
}

impl<Request, F, E> Queue for OnHeap<Request, F, E> {
    type Error = Error<E>;

    fn share(&self, error: E) -> Self::Failure {
        shared(self, error)
    }

    fn error(refusal: Refusal<Self::Failure>) -> Error<E> {
        match refusal {
            Refusal::Ended(End::Failed(error)) => Error::Failed(ServiceError(error)),
            Refusal::Ended(End::Panicked) => Error::Panicked(Panicked::new()),
            // A line on the heap is never full.
            Refusal::Ended(End::Closed) | Refusal::Full => Error::Closed(Closed::new()),
        }
    }
}

/// The queues that need no allocator.
macro_rules! fixed {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        impl<Request, F, E: Copy, const N: usize> Queue for &$name<Request, F, E, N> {
            type Error = FixedError<E>;

            fn share(&self, error: E) -> E {
                error
            }

            fn error(refusal: Refusal<E>) -> FixedError<E> {
                match refusal {
                    Refusal::Full => FixedError::Overflow(Overflow::new()),
                    Refusal::Ended(End::Closed) => FixedError::Closed(Closed::new()),
                    Refusal::Ended(End::Panicked) => FixedError::Panicked(Panicked::new()),
                    Refusal::Ended(End::Failed(error)) => FixedError::Failed(error),
                }
            }
        }
    };
}

fixed!(
    #[cfg(feature = "critical-section")]
    StaticQueue
);
fixed!(LocalQueue);

/// How a [`Buffer`] fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The buffer was shut down, or its executor dropped the worker.
    Closed(Closed),
    /// The service panicked, and is gone.
    Panicked(Panicked),
    /// The service failed when it was asked whether it is ready, and is gone. All handles see this.
    Failed(ServiceError<E>),
    /// The service answered this request with an error.
    Service(E),
}

impl<E> Error<E> {
    /// The error with which the service answered this request, if that is what this is.
    pub fn into_service(self) -> Option<E> {
        match self {
            Self::Service(error) => Some(error),
            _ => None,
        }
    }
}

impl<E> From<E> for Error<E> {
    fn from(error: E) -> Self {
        Self::Service(error)
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(error) => error.fmt(f),
            Self::Panicked(error) => error.fmt(f),
            Self::Failed(error) => error.fmt(f),
            Self::Service(error) => error.fmt(f),
        }
    }
}

impl<E: crate::error::AsError> crate::error::AsError for Error<E> {
    fn as_error(&self) -> &(dyn core::error::Error + 'static) {
        match self {
            Self::Closed(error) => error,
            Self::Panicked(error) => error,
            Self::Failed(error) => error.0.as_error(),
            Self::Service(error) => error.as_error(),
        }
    }
}

#[cfg(feature = "std")]
impl<'a, E> From<Error<E>> for crate::error::AnyBoxError<'a>
where
    E: Into<crate::error::AnyBoxError<'a>> + fmt::Debug + fmt::Display + Send + Sync + 'static,
{
    fn from(error: Error<E>) -> Self {
        match error {
            Error::Closed(error) => error.into(),
            Error::Panicked(error) => error.into(),
            Error::Failed(error) => error.into(),
            Error::Service(error) => error.into(),
        }
    }
}

/// How a [`Buffer`] fails whose queue needs no allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixedError<E> {
    /// The buffer was closed, or its worker was dropped.
    Closed(Closed),
    /// The service panicked, and is gone.
    Panicked(Panicked),
    /// The line of those who wait for room in the queue was full.
    Overflow(Overflow),
    /// The service failed when it was asked whether it is ready, and is gone. All handles see this.
    Failed(E),
    /// The service answered this request with an error.
    Service(E),
}

impl<E> FixedError<E> {
    /// The error with which the service answered this request, if that is what this is.
    pub fn into_service(self) -> Option<E> {
        match self {
            Self::Service(error) => Some(error),
            _ => None,
        }
    }
}

impl<E> From<E> for FixedError<E> {
    fn from(error: E) -> Self {
        Self::Service(error)
    }
}

impl<E: fmt::Display> fmt::Display for FixedError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(error) => error.fmt(f),
            Self::Panicked(error) => error.fmt(f),
            Self::Overflow(error) => error.fmt(f),
            Self::Failed(error) => write!(f, "buffer's service failed: {error}"),
            Self::Service(error) => error.fmt(f),
        }
    }
}

impl<E: crate::error::AsError> crate::error::AsError for FixedError<E> {
    fn as_error(&self) -> &(dyn core::error::Error + 'static) {
        match self {
            Self::Closed(error) => error,
            Self::Panicked(error) => error,
            Self::Overflow(error) => error,
            Self::Failed(error) | Self::Service(error) => error.as_error(),
        }
    }
}

#[cfg(feature = "alloc")]
impl<'a, E: Into<crate::error::AnyBoxError<'a>>> From<FixedError<E>>
    for crate::error::AnyBoxError<'a>
{
    fn from(error: FixedError<E>) -> Self {
        match error {
            FixedError::Closed(error) => error.into(),
            FixedError::Panicked(error) => error.into(),
            FixedError::Overflow(error) => error.into(),
            FixedError::Failed(error) | FixedError::Service(error) => error.into(),
        }
    }
}

/// The failures of this middleware, at the path where tower has them.
pub mod error {
    pub use super::{Closed, Overflow, Panicked, ServiceError};
}

leaf_error! {
    /// The buffer accepts no requests any more: it was shut down, or its worker was dropped.
    Closed, "buffer closed"
}

leaf_error! {
    /// The service of a buffer panicked.
    Panicked, "buffer's service panicked"
}

leaf_error! {
    /// The line of those who wait for room in the queue was full.
    Overflow, "more requests wait for room in a buffer than there is room for"
}

leaf_error! {
    /// A queue that has a buffer was to have another.
    QueueInUse, "the queue has a buffer already"
}

/// The error with which a buffer's service failed, shared by all handles.
pub struct ServiceError<E>(Shared<E>);

impl<E> ServiceError<E> {
    /// The service's error.
    pub fn get_ref(&self) -> &E {
        &self.0
    }
}

impl<E> Clone for ServiceError<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: PartialEq> PartialEq for ServiceError<E> {
    fn eq(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }
}

impl<E: Eq> Eq for ServiceError<E> {}

impl<E: fmt::Debug> fmt::Debug for ServiceError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServiceError").field(&*self.0).finish()
    }
}

impl<E: fmt::Display> fmt::Display for ServiceError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "buffer's service failed: {}", *self.0)
    }
}

// A typed `E` has no way to a `dyn Error` here, since the enums implement no `Error`; a boxed one
// has, and it is the source.
impl<E: fmt::Debug + fmt::Display + 'static> core::error::Error for ServiceError<E> {
    #[cfg(feature = "alloc")]
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        let error: &dyn core::any::Any = &*self.0;
        let error = error.downcast_ref::<crate::BoxError>()?;
        Some(&**error)
    }
}

/// A bound of 0: no request could ever be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidBound(());

impl InvalidBound {
    const MESSAGE: &'static str = "a buffer's bound is 0, and must be at least 1";

    const fn check(bound: usize) -> Result<(), Self> {
        if bound == 0 { Err(Self(())) } else { Ok(()) }
    }

    #[track_caller]
    pub(crate) const fn assert(bound: usize) {
        assert!(bound != 0, "{}", Self::MESSAGE);
    }
}

impl fmt::Display for InvalidBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::MESSAGE)
    }
}

impl core::error::Error for InvalidBound {}
