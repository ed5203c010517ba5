//! Drives the readiness of a service in the background.
//!
//! A service that has work to do before it is ready, such as a [`Reconnect`](crate::reconnect) or a balancer, does it
//! only when it is polled. If its caller stops polling for a while, nothing happens. A [`SpawnReady`] hands a service
//! that is not ready to a task on an [`Executor`], which polls it until it is ready, and hands it back. A service that
//! comes back is polled once more, since it may have become ready long ago, and no longer be.
//!
//! A service that is ready at once stays where it is, and no task is started. The task is started when the service is
//! first pending, and then stays for the next time, so nothing is allocated from then on. It ends when the `SpawnReady`
//! is dropped; if the service is with the task then, the task drops it.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::smol::{ServiceBuilder, reconnect::Reconnect};
//! use campanile::{Service, ServiceExt, make::Shared, service_fn};
//!
//! let connector = Shared::new(service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n)));
//! let mut service = ServiceBuilder::new()
//!     .spawn_ready()
//!     .service(Reconnect::new(connector, "localhost:4000"));
//!
//! // The connection is made even if this is no longer polled.
//! assert_eq!(service.ready().await.unwrap().call(1).await.unwrap(), 1);
//! # });
//! ```
//!
//! # Without a waiting caller
//!
//! A service whose readiness is only tried, as by a [`LoadShed`](crate::load_shed), is handed to the task too;
//! otherwise it would not connect unless requests kept coming. But the task reserves nothing with it, neither a permit
//! nor a place in a wait queue: it only lets the service do work of its own. The same happens when a service's owner
//! stops waiting, as an idle [`Buffer`](crate::buffer) does. For the next request the service is taken back and polled
//! on the spot.
//!
//! # When it fails
//!
//! An error of readiness is returned once, as [`Error::Service`]; the service is dropped, and from then on the error is
//! [`Failed`]. A `SpawnReady` also ends for good when its executor drops the task while a caller waits for the service
//! there ([`Closed`]), and when the service panics there ([`Panicked`]).
//!
//! # Differences from tower
//!
//! - It runs on any executor, even with services that are not `Send` if the executor allows them.
//! - One task and one allocation serve all waits. tower starts a task per wait.
//! - A poll after an error and a call without readiness are typed errors. tower's [`SpawnReady`] panics when it is
//!   polled again after its task has failed, and when it is called while that task runs.
//! - The error is an enum, [`Error`]. The request type is a parameter of the service and the layer, as for a buffer. It
//!   is inferred.

mod slot;

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{forget, replace};
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use self::slot::{Back, End, Order, Purpose, Slot};
use crate::sync::{Mark, mark};
use crate::{Executor, Layer, NoRuntime, Service};

/// A layer of [`SpawnReady`] that runs its tasks on an `X`.
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct SpawnReadyLayer<Request, X> {
    executor: X,
    request: PhantomData<fn(Request)>,
}

impl<Request, X: Default> SpawnReadyLayer<Request, X> {
    /// A layer on the default executor.
    pub fn new() -> Self {
        Self::with_executor(X::default())
    }
}

impl<Request, X> SpawnReadyLayer<Request, X> {
    /// A layer on `executor`.
    pub const fn with_executor(executor: X) -> Self {
        Self {
            executor,
            request: PhantomData,
        }
    }
}

impl<S: Service<Request>, Request, X: Clone> Layer<S> for SpawnReadyLayer<Request, X> {
    type Service = SpawnReady<S, Request, X>;

    fn layer(&self, service: S) -> Self::Service {
        SpawnReady::with_executor(service, self.executor.clone())
    }
}

impl<Request, X: Clone> Clone for SpawnReadyLayer<Request, X> {
    fn clone(&self) -> Self {
        Self::with_executor(self.executor.clone())
    }
}

impl<Request, X: Default> Default for SpawnReadyLayer<Request, X> {
    fn default() -> Self {
        Self::new()
    }
}

impl<Request, X: fmt::Debug> fmt::Debug for SpawnReadyLayer<Request, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnReadyLayer")
            .field("executor", &self.executor)
            .finish()
    }
}

/// A service driven to readiness by a task on an `X`, its [`BackgroundReady`].
///
/// See the [module](self) for an example.
///
/// # Cancel safety
///
/// A caller that stops waiting for readiness loses nothing: the task continues, and the next poll takes the service
/// back from it.
pub struct SpawnReady<S: Service<Request>, Request, X = NoRuntime> {
    place: Location<S>,
    task: Handle<S, S::Error>,
    executor: X,
}

/// Where the service is.
#[derive(Debug)]
enum Location<S> {
    Here {
        service: S,
        is_ready: bool,
    },
    WithTask {
        // The task had found the service ready, and it no longer was when it came back.
        was_lost: bool,
    },
    Gone(Gone),
}

/// Why the service is gone.
#[derive(Clone, Copy, Debug)]
enum Gone {
    Failed,
    Closed,
    Panicked,
}

impl Gone {
    const fn error<E>(self) -> Error<E> {
        match self {
            Self::Failed => Error::Failed(Failed::new()),
            Self::Closed => Error::Closed(Closed::new()),
            Self::Panicked => Error::Panicked(Panicked::new()),
        }
    }
}

impl<S: Service<Request>, Request, X: Default> SpawnReady<S, Request, X> {
    /// Drives `service` on the default executor.
    pub fn new(service: S) -> Self {
        Self::with_executor(service, X::default())
    }

    /// A layer on the default executor.
    pub fn layer() -> SpawnReadyLayer<Request, X> {
        SpawnReadyLayer::new()
    }
}

impl<S: Service<Request>, Request, X> SpawnReady<S, Request, X> {
    /// Drives `service` on `executor`.
    pub const fn with_executor(service: S, executor: X) -> Self {
        Self {
            place: Location::Here {
                service,
                is_ready: false,
            },
            task: Handle(None),
            executor,
        }
    }

    /// Hands the service over to the existing task, or to a new one.
    #[track_caller]
    fn hand_over(&mut self, purpose: Purpose, was_lost: bool)
    where
        X: Executor<BackgroundReady<S, Request>>,
    {
        let service = match replace(&mut self.place, Location::WithTask { was_lost }) {
            Location::Here { service, .. } => service,
            elsewhere => {
                self.place = elsewhere;
                return;
            }
        };
        let service = match &self.task.0 {
            Some(slot) => slot.give(service, purpose),
            None => Err(service),
        };
        if let Err(service) = service {
            let slot = Arc::new(Slot::new(service, purpose));
            let task = BackgroundReady {
                service: None,
                end: TaskEnd(Arc::clone(&slot)),
                request: PhantomData,
            };
            // Dropped once the new task runs: dropping it may panic.
            let _before = replace(&mut self.task, Handle(Some(slot)));
            self.executor.execute(task);
        }
    }
}

impl<S, Request, X> Service<Request> for SpawnReady<S, Request, X>
where
    S: Service<Request>,
    X: Executor<BackgroundReady<S, Request>>,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = ResponseFuture<S::Future>;

    #[track_caller]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let mark = mark(cx);
        let mut was_ready = false;
        loop {
            match &mut self.place {
                Location::Here { service, is_ready } => {
                    let polled = service.poll_ready(cx);
                    *is_ready = polled.is_ready() && mark != Some(Mark::Drive);
                    match polled {
                        Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                        Poll::Ready(Err(error)) => {
                            self.place = Location::Gone(Gone::Failed);
                            return Poll::Ready(Err(Error::Service(error)));
                        }
                        // The poll that drives it will come again.
                        Poll::Pending if mark == Some(Mark::Drive) => return Poll::Pending,
                        Poll::Pending if mark == Some(Mark::Try) => {
                            self.hand_over(Purpose::Drive, was_ready);
                            return Poll::Pending;
                        }
                        Poll::Pending => self.hand_over(Purpose::of(cx), was_ready),
                    }
                }
                Location::WithTask { .. } => {}
                Location::Gone(gone) => return Poll::Ready(Err(gone.error())),
            }
            let back = match &self.task.0 {
                Some(slot) => ready!(slot.poll_back(cx)),
                None => Err(End::Gone(Gone::Closed)),
            };
            match back {
                Ok(Back { service, is_ready }) => {
                    // The task may have found it ready long ago, so it is polled once more. If that finds it not ready,
                    // the task's next finding is trusted: otherwise a service that is ready only for a moment would
                    // never be called.
                    was_ready = is_ready;
                    let was_lost = matches!(self.place, Location::WithTask { was_lost: true });
                    let is_ready = is_ready && was_lost && mark != Some(Mark::Drive);
                    self.place = Location::Here { service, is_ready };
                    if is_ready {
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(End::Failed(error)) => {
                    self.place = Location::Gone(Gone::Failed);
                    return Poll::Ready(Err(Error::Service(error)));
                }
                Err(End::Gone(gone)) => {
                    self.place = Location::Gone(gone);
                    return Poll::Ready(Err(gone.error()));
                }
            }
        }
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let state = match &mut self.place {
            Location::Here {
                service,
                is_ready: is_ready @ true,
            } => {
                *is_ready = false;
                let inner = service.call(request);
                State::Called { inner }
            }
            Location::Here { .. } | Location::WithTask { .. } => State::Refused { gone: None },
            Location::Gone(gone) => State::Refused { gone: Some(*gone) },
        };
        ResponseFuture { state }
    }
}

impl<S, Request, X: fmt::Debug> fmt::Debug for SpawnReady<S, Request, X>
where
    S: Service<Request> + fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnReady")
            .field("place", &self.place)
            .field("executor", &self.executor)
            .finish_non_exhaustive()
    }
}

/// The task of a [`SpawnReady`], for its executor to run.
///
/// It ends when the `SpawnReady` is gone or the service has failed. If it is dropped before that, it drops the service,
/// if it has it, and the `SpawnReady` has ended.
#[must_use = "the service is not driven unless this runs"]
pub struct BackgroundReady<S: Service<Request>, Request> {
    // Dropped before `end` announces it.
    service: Option<S>,
    end: TaskEnd<S, S::Error>,
    request: PhantomData<fn(Request)>,
}

impl<S: Service<Request>, Request> Future for BackgroundReady<S, Request> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Not left to the task's destructor: the code that catches a panic may keep the task.
        let panicking = Panicking(&mut *self);
        let polled = panicking.0.work(cx);
        forget(panicking);
        polled
    }
}

impl<S: Service<Request>, Request> BackgroundReady<S, Request> {
    fn work(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let slot = &*self.end.0;
        loop {
            let purpose = match slot.poll_task(cx) {
                Order::Wait => return Poll::Pending,
                Order::End => {
                    self.service = None;
                    return Poll::Ready(());
                }
                Order::Poll { service, purpose } => {
                    if service.is_some() {
                        self.service = service;
                    }
                    purpose
                }
            };
            let Some(service) = &mut self.service else {
                return Poll::Ready(());
            };
            let polled = purpose.poll(service, cx);
            if let Poll::Ready(Err(error)) = polled {
                // Drop the service first: a caller that learns of the end may rely on that.
                self.service = None;
                slot.end(End::Failed(error));
                return Poll::Ready(());
            }
            let is_done = match purpose {
                Purpose::Drive => slot.put_down(&mut self.service),
                _ if polled.is_ready() => slot.give_back(&mut self.service),
                _ => true,
            };
            if is_done {
                return Poll::Pending;
            }
            // The handle wants something else meanwhile.
        }
    }
}

// The service is never pinned here.
impl<S: Service<Request>, Request> Unpin for BackgroundReady<S, Request> {}

impl<S, Request> fmt::Debug for BackgroundReady<S, Request>
where
    S: Service<Request> + fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackgroundReady")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// Ends the task when a panic drops it.
struct Panicking<'a, S: Service<Request>, Request>(&'a mut BackgroundReady<S, Request>);

impl<S: Service<Request>, Request> Drop for Panicking<'_, S, Request> {
    fn drop(&mut self) {
        self.0.service = None;
        self.0.end.0.end(End::Gone(Gone::Panicked));
    }
}

/// The task's side of the slot.
struct TaskEnd<S, E>(Arc<Slot<S, E>>);

impl<S, E> Drop for TaskEnd<S, E> {
    fn drop(&mut self) {
        self.0.end(End::Gone(Gone::Closed));
    }
}

/// The [`SpawnReady`]'s side of the slot; `None` before there is a task.
struct Handle<S, E>(Option<Arc<Slot<S, E>>>);

impl<S, E> Drop for Handle<S, E> {
    fn drop(&mut self) {
        if let Some(slot) = &self.0 {
            slot.leave();
        }
    }
}

pin_project! {
    /// The response of a [`SpawnReady`].
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
        Called {
            #[pin]
            inner: F,
        },
        // `None`: there is a service, but it is not ready.
        Refused {
            gone: Option<Gone>,
        },
    }
}

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Called { inner } => inner.poll(cx).map_err(Error::Service),
            StateProj::Refused { gone: Some(gone) } => Poll::Ready(Err(gone.error())),
            StateProj::Refused { gone: None } => Poll::Ready(Err(Error::NotReady(NotReady::new()))),
        }
    }
}

/// How a [`SpawnReady`] fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The executor dropped the task, and with it the service.
    Closed(Closed),
    /// The service failed earlier, when it was polled for readiness, and was dropped.
    Failed(Failed),
    /// The call came without readiness.
    NotReady(NotReady),
    /// The service panicked in the task, and was dropped.
    Panicked(Panicked),
    /// The service failed.
    Service(E),
}

flatten!(Error: Closed, Failed, NotReady, Panicked);

leaf_error! {
    /// The executor dropped the task that had the service.
    Closed, "background task dropped by its executor"
}

leaf_error! {
    /// The service failed earlier, and its error was returned then.
    Failed, "service has failed"
}

leaf_error! {
    /// A request came before the service was ready.
    NotReady, "service called before it was ready"
}

leaf_error! {
    /// The service panicked in the background.
    Panicked, "service panicked in the background"
}

/// The future, at the path it has in tower.
pub mod future {
    pub use super::ResponseFuture;
}

#[cfg(test)]
mod tests {
    use alloc::rc::Rc;
    use core::cell::Cell;
    use core::convert::Infallible;
    use core::future::{Ready, ready};
    use core::task::Waker;

    use super::*;
    use crate::sync::{drive, is_drive};

    /// Pending when it is driven, otherwise ready.
    struct Driven(Rc<Cell<u32>>);

    impl Service<()> for Driven {
        type Response = ();
        type Error = Infallible;
        type Future = Ready<Result<(), Infallible>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            if is_drive(cx) {
                self.0.set(self.0.get() + 1);
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, (): ()) -> Self::Future {
            ready(Ok(()))
        }
    }

    struct NoTask;

    impl<F> Executor<F> for NoTask {
        fn execute(&self, _: F) {
            panic!("it is driven where it is")
        }
    }

    #[test]
    fn drive_polls_at_once() {
        let drives = Rc::new(Cell::new(0));
        let mut service = SpawnReady::with_executor(Driven(drives.clone()), NoTask);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut cx).is_ready());
        for n in 1..4 {
            let polled = drive(Waker::noop(), |cx| service.poll_ready(cx));
            assert!(polled.is_pending());
            assert_eq!(drives.get(), n);
        }
        // Its readiness was given up.
        let refused = service.call(());
        assert!(matches!(refused.state, State::Refused { gone: None }));
        assert!(service.poll_ready(&mut cx).is_ready());
    }
}
