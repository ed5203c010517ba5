//! A service whose requests arrive at a handle, where the test answers them.
//!
//! [`pair`] makes the service and its [`Handle`]. [`spawn_layer`] wraps the service in a layer and in a [`Spawn`],
//! with which the test polls it by hand. They need no runtime, and work on any.
//!
//! A mock is ready unless the handle says otherwise ([`Handle::allow`], [`Handle::send_error`]). It panics if it is
//! called without being ready, since that is a bug of the middleware around it.
//!
//! # Examples
//!
//! ```
//! use campanile::Service;
//! use campanile::limit::ConcurrencyLimitLayer;
//! use campanile::testing::mock;
//! use std::task::Poll;
//!
//! let (mut service, mut handle) = mock::spawn_layer::<&str, &str, _>(ConcurrencyLimitLayer::new(1));
//!
//! assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))));
//! let response = service.call("first");
//! assert!(service.poll_ready().is_pending());
//!
//! let Poll::Ready(Some((request, send))) = handle.poll_request() else { panic!() };
//! assert_eq!(request, "first");
//! send.send_response("done");
//! assert_eq!(futures::executor::block_on(response).unwrap(), "done");
//!
//! assert!(service.is_woken());
//! assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))));
//! ```
//!
//! # Differences from tower-test
//!
//! - The error is a parameter, a `BoxError` by default. Another type needs a `From<Closed>`, for when the handle is
//!   gone.
//! - A poll that only tries whether the mock is ready, like that of [`LoadShed`](crate::load_shed), registers no
//!   waiter. If no task waits for the readiness any longer, as in an idle [`Buffer`](crate::buffer), it is given up.

use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::mem::take;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_channel::{mpsc, oneshot};
use futures_core::Stream;

use crate::sync::{Mark, mark, try_poll};
use crate::{BoxError, Layer, Service};

/// Makes a mock in a [`Spawn`], and its handle.
pub fn spawn<T, U>() -> (Spawn<Mock<T, U>>, Handle<T, U>) {
    spawn_with(|mock| mock)
}

/// Makes a mock wrapped by `wrap` in a [`Spawn`], and the mock's handle.
pub fn spawn_with<T, U, F, S>(wrap: F) -> (Spawn<S>, Handle<T, U>)
where
    F: FnOnce(Mock<T, U>) -> S,
{
    let (mock, handle) = pair();
    (Spawn::new(wrap(mock)), handle)
}

/// Makes a mock wrapped by `layer` in a [`Spawn`], and the mock's handle.
pub fn spawn_layer<T, U, L>(layer: L) -> (Spawn<L::Service>, Handle<T, U>)
where
    L: Layer<Mock<T, U>>,
{
    spawn_with(|mock| layer.layer(mock))
}

/// Makes a mock and its handle. See [`Mock::pair`] for another error type.
pub fn pair<T, U>() -> (Mock<T, U>, Handle<T, U>) {
    Mock::pair()
}

/// A service whose requests arrive at a [`Handle`].
///
/// A clone has its own readiness, and the same handle. See the [module](self) for an example.
pub struct Mock<T, U, E = BoxError> {
    requests: mpsc::UnboundedSender<Request<T, U, E>>,
    shared: Arc<Shared<E>>,
    // Identifies its waker.
    id: u64,
    is_ready: bool,
}

type Request<T, U, E> = (T, SendResponse<U, E>);

impl<T, U, E> Mock<T, U, E> {
    /// Makes a mock with the error type `E`, and its handle.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::testing::mock::{Closed, Mock};
    ///
    /// #[derive(Debug)]
    /// enum Failure { Closed }
    /// impl From<Closed> for Failure {
    ///     fn from(_: Closed) -> Self { Self::Closed }
    /// }
    /// let (service, handle) = Mock::<u32, u32, Failure>::pair();
    /// # let _ = (service, handle);
    /// ```
    pub fn pair() -> (Self, Handle<T, U, E>) {
        let (send, receive) = mpsc::unbounded();
        let shared = Arc::new(Shared(Mutex::new(State {
            allowed: u64::MAX,
            error: None,
            is_closed: false,
            waiting: Vec::new(),
            next_id: 1,
        })));
        let mock = Self {
            requests: send,
            shared: Arc::clone(&shared),
            id: 0,
            is_ready: false,
        };
        let handle = Handle {
            requests: receive,
            shared,
        };
        (mock, handle)
    }
}

impl<T, U, E: From<Closed>> Service<T> for Mock<T, U, E> {
    type Response = U;
    type Error = E;
    type Future = ResponseFuture<U, E>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        let mark = mark(cx);
        let waker = mark.is_none().then(|| cx.waker().clone());
        let mut state = self.shared.lock();
        if state.is_closed {
            drop(state);
            return Poll::Ready(Err(Closed::new().into()));
        }
        if let Some(error) = state.error.take() {
            return Poll::Ready(Err(error));
        }
        if mark == Some(Mark::Drive) {
            self.is_ready = false;
            let left = state.leave(self.id);
            drop(state);
            drop(left);
            return Poll::Ready(Ok(()));
        }
        self.is_ready |= state.allowed > 0;
        if self.is_ready {
            return Poll::Ready(Ok(()));
        }
        let replaced = waker.and_then(|waker| state.wait(self.id, waker));
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    #[track_caller]
    fn call(&mut self, request: T) -> ResponseFuture<U, E> {
        let closed = ResponseFuture { answer: None };
        {
            let mut state = self.shared.lock();
            if state.is_closed {
                drop(state);
                return closed;
            }
            if take(&mut self.is_ready) {
                state.allowed = state.allowed.saturating_sub(1);
            } else {
                drop(state);
                panic!("a mock was called that was not ready: `poll_ready` must be `Ready` first");
            }
        }
        let (send, answer) = oneshot::channel();
        match self.requests.unbounded_send((request, SendResponse(send))) {
            Ok(()) => ResponseFuture {
                answer: Some(answer),
            },
            Err(_) => closed,
        }
    }
}

// A clone starts out unpolled.
impl<T, U, E> Clone for Mock<T, U, E> {
    fn clone(&self) -> Self {
        let id = {
            let mut state = self.shared.lock();
            state.next_id += 1;
            state.next_id - 1
        };
        Self {
            requests: self.requests.clone(),
            shared: Arc::clone(&self.shared),
            id,
            is_ready: false,
        }
    }
}

impl<T, U, E> Drop for Mock<T, U, E> {
    fn drop(&mut self) {
        let waker = self.shared.lock().leave(self.id);
        drop(waker);
    }
}

impl<T, U, E> fmt::Debug for Mock<T, U, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mock")
            .field("is_ready", &self.is_ready)
            .finish_non_exhaustive()
    }
}

/// The response of a [`Mock`].
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct ResponseFuture<U, E = BoxError> {
    // `None`: the handle was gone.
    answer: Option<oneshot::Receiver<Result<U, E>>>,
}

impl<U, E: From<Closed>> Future for ResponseFuture<U, E> {
    type Output = Result<U, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.answer {
            Some(answer) => Pin::new(answer)
                .poll(cx)
                .map(|answer| answer.unwrap_or_else(|_| Err(Closed::new().into()))),
            None => Poll::Ready(Err(Closed::new().into())),
        }
    }
}

impl<U, E> fmt::Debug for ResponseFuture<U, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

leaf_error! {
    /// The handle of a mock is gone, or a request was dropped without an answer.
    Closed, "mock closed"
}

/// Receives the requests of a [`Mock`].
///
/// When it is dropped, the mock fails with [`Closed`].
pub struct Handle<T, U, E = BoxError> {
    requests: mpsc::UnboundedReceiver<Request<T, U, E>>,
    shared: Arc<Shared<E>>,
}

impl<T, U, E> Handle<T, U, E> {
    /// Waits for the next request. `None` if all clones of the mock are gone.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not lose a request.
    pub async fn next_request(&mut self) -> Option<(T, SendResponse<U, E>)> {
        poll_fn(|cx| Pin::new(&mut self.requests).poll_next(cx)).await
    }

    /// Returns the next request, if there is one. No task is woken when one arrives.
    pub fn poll_request(&mut self) -> Poll<Option<(T, SendResponse<U, E>)>> {
        try_poll(|cx| Pin::new(&mut self.requests).poll_next(cx))
    }

    /// Makes the mock ready for `num` more requests, and for no others until this is called again. Initially there is
    /// no limit.
    ///
    /// A mock that was ready remains ready.
    pub fn allow(&mut self, num: u64) {
        let woken = {
            let mut state = self.shared.lock();
            state.allowed = num;
            if num > 0 {
                take(&mut state.waiting)
            } else {
                Vec::new()
            }
        };
        wake(woken);
    }

    /// Fails the next `poll_ready` of any clone.
    pub fn send_error(&mut self, error: impl Into<E>) {
        let error = Some(error.into());
        let (woken, replaced) = {
            let mut state = self.shared.lock();
            let replaced = core::mem::replace(&mut state.error, error);
            (take(&mut state.waiting), replaced)
        };
        drop(replaced);
        wake(woken);
    }
}

impl<T, U, E> Drop for Handle<T, U, E> {
    fn drop(&mut self) {
        let woken = {
            let mut state = self.shared.lock();
            state.is_closed = true;
            take(&mut state.waiting)
        };
        wake(woken);
    }
}

impl<T, U, E> fmt::Debug for Handle<T, U, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("allowed", &self.shared.lock().allowed)
            .finish_non_exhaustive()
    }
}

/// Answers one request. If it is dropped, the request fails with [`Closed`].
#[must_use = "a request is not answered unless something is sent"]
pub struct SendResponse<U, E = BoxError>(oneshot::Sender<Result<U, E>>);

impl<U, E> SendResponse<U, E> {
    /// Answers with `response`. Does nothing if the response future is gone.
    pub fn send_response(self, response: U) {
        let _ = self.0.send(Ok(response));
    }

    /// Answers with `error`. Does nothing if the response future is gone.
    pub fn send_error(self, error: impl Into<E>) {
        let _ = self.0.send(Err(error.into()));
    }

    /// Whether the response future is gone.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_canceled()
    }
}

impl<U, E> fmt::Debug for SendResponse<U, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendResponse")
            .field("is_cancelled", &self.is_cancelled())
            .finish()
    }
}

/// A service or future that is polled by hand, and knows whether it was woken.
///
/// # Examples
///
/// ```
/// use campanile::testing::mock::Spawn;
///
/// let (send, receive) = futures::channel::oneshot::channel();
/// let mut task = Spawn::new(receive);
/// assert!(task.poll().is_pending());
/// send.send(1).unwrap();
/// assert!(task.is_woken() && task.poll().is_ready());
/// ```
#[derive(Debug)]
pub struct Spawn<S> {
    inner: S,
    woken: Arc<Woken>,
}

#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl<S> Spawn<S> {
    /// Wraps `inner`, to be polled by hand.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            woken: Arc::default(),
        }
    }

    /// Whether it was woken since the last poll.
    pub fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::SeqCst)
    }

    /// How many references to its waker there are, including its own: never 0.
    pub fn waker_ref_count(&self) -> usize {
        Arc::strong_count(&self.woken)
    }

    /// Polls the service once for readiness.
    #[track_caller]
    pub fn poll_ready<Request>(&mut self) -> Poll<Result<(), S::Error>>
    where
        S: Service<Request>,
    {
        self.woken.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&self.woken));
        self.inner.poll_ready(&mut Context::from_waker(&waker))
    }

    /// Calls the service.
    #[track_caller]
    pub fn call<Request>(&mut self, request: Request) -> S::Future
    where
        S: Service<Request>,
    {
        self.inner.call(request)
    }

    /// Polls the future once.
    #[track_caller]
    pub fn poll(&mut self) -> Poll<S::Output>
    where
        S: Future + Unpin,
    {
        self.woken.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&self.woken));
        Pin::new(&mut self.inner).poll(&mut Context::from_waker(&waker))
    }

    accessors!(S);
}

impl<S: Clone> Clone for Spawn<S> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone())
    }
}

/// The shared state of a mock and its handle. Wakers are neither cloned, woken nor dropped under the lock.
struct Shared<E>(Mutex<State<E>>);

struct State<E> {
    allowed: u64,
    error: Option<E>,
    is_closed: bool,
    // At most one per clone.
    waiting: Vec<(u64, Waker)>,
    next_id: u64,
}

impl<E> Shared<E> {
    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> State<E> {
    fn wait(&mut self, id: u64, waker: Waker) -> Option<Waker> {
        let replaced = self.leave(id);
        self.waiting.push((id, waker));
        replaced
    }

    fn leave(&mut self, id: u64) -> Option<Waker> {
        let place = self.waiting.iter().position(|(other, _)| *other == id)?;
        Some(self.waiting.remove(place).1)
    }
}

fn wake(waiting: Vec<(u64, Waker)>) {
    waiting.into_iter().for_each(|(_, waker)| waker.wake());
}
