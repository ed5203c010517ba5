//! Keeps a connection up: makes a new one when there is none, and backs off when that fails.
//!
//! A [`Reconnect`] has a [`MakeService`](crate::MakeService) that connects to a target, and at most one connection.
//! Polls for readiness drive it: the first one starts connecting, and so does one that finds the connection dead, which
//! is what an error of the connection's own readiness means. The dead connection is dropped with its error, and never
//! polled again. A response that is an error says nothing about the connection.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::smol::reconnect::Reconnect;
//! use campanile::{Service, ServiceExt, reconnect::Error, service_fn};
//! use core::{convert::Infallible, future::ready};
//!
//! // The first attempt fails.
//! let mut attempts = 0;
//! let connector = service_fn(move |_address: &'static str| {
//!     attempts += 1;
//!     ready(if attempts == 1 {
//!         Err("connection refused")
//!     } else {
//!         Ok(service_fn(async |n: u32| Ok::<_, Infallible>(n)))
//!     })
//! });
//!
//! let mut service = Reconnect::new(connector, "localhost:4000");
//! let refused = service.ready().await.unwrap().call(1).await;
//! assert_eq!(refused, Err(Error::Connect("connection refused")));
//!
//! // This waits for the backoff, and connects.
//! assert_eq!(service.ready().await.unwrap().call(2).await, Ok(2));
//! # });
//! ```
//!
//! The future of a connection is kept in the service, and so has to be `Unpin`.
//! [`map_future(Box::pin)`](crate::ServiceExt::map_future) makes that of an `async fn` so, as in the example of
//! [`ReconnectLayer`].
//!
//! # Backoff
//!
//! An attempt has failed when connecting fails, and also when the connection fails before it has shown that it works.
//! It shows that by its first successful response, or by living for five seconds, the longest wait of the default
//! backoff. So a peer that accepts and hangs up is tried no more often than one that refuses. A connection that you
//! [provide](Reconnect::connected) is assumed to work. Without an allocator, responses cannot show anything, and only
//! time decides.
//!
//! After a failed attempt, readiness is pending until the backoff allows the next attempt. When a connection that has
//! worked dies, the next attempt begins at once, and the backoff starts anew.
//!
//! The default, where std provides random numbers for it, is
//! [`ExponentialBackoffMaker::standard`](crate::retry::backoff::ExponentialBackoffMaker::standard): it doubles from 50
//! ms to 5 s, with full jitter. A poll that only tries, as a [`LoadShed`](crate::load_shed) does, also connects, but
//! arms no timer.
//!
//! # Where the error of a failed attempt is returned
//!
//! [`connect_errors`](Reconnect::connect_errors) sets this:
//!
//! | | the attempt fails | good for |
//! |---|---|---|
//! | [`InResponse`](ConnectErrors::InResponse), the default | readiness is ready, and the next call fails | callers with a request in hand |
//! | [`InReadiness`](ConnectErrors::InReadiness) | readiness fails | callers that replace the service then |
//! | [`Nowhere`](ConnectErrors::Nowhere) | readiness stays pending | balancers, which send requests elsewhere until then |
//!
//! The default is tower's. By the contract of [`Service`] an error of readiness is final: a buffer ends on it, and the
//! stack above is torn down for a failure that the next attempt may not have. Staying pending, on the other hand, would
//! hide from the caller that the peer cannot be reached. So each failed attempt fails one request. An error that no
//! request has taken by the end of the backoff is forgotten, and the next attempt begins.
//!
//! That holds for callers that poll readiness before each request. A [`Steer`](crate::steer) does not poll a service
//! that is ready, and so keeps an error for the next request to it, however late that comes. There, use
//! [`Nowhere`](ConnectErrors::Nowhere), or a [`Buffer`](crate::buffer) around each `Reconnect`.
//!
//! # Sharing a connection
//!
//! A `Reconnect` is not `Clone`: a clone would have no connection, and no backoff to keep it from connecting. If
//! middleware needs clones, as [`Retry`](crate::retry), [`Hedge`](crate::hedge) and [`Filter`](crate::filter) do, or if
//! several tasks send requests, put a [`Buffer`](crate::buffer) around it, whose clones share the one connection:
//!
//! ```
//! # #[cfg(feature = "tokio")]
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use campanile::tokio::{ServiceBuilder, reconnect::Reconnect};
//! use campanile::{ServiceExt, make::Shared, service_fn};
//!
//! let connector = Shared::new(service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n)));
//! let service = ServiceBuilder::new()
//!     .filter(|n: i64| u32::try_from(n))
//!     .buffer(16)
//!     .service(Reconnect::new(connector, "localhost:4000"));
//! assert_eq!(service.clone().oneshot(1).await.unwrap(), 1);
//! assert!(service.oneshot(-1).await.is_err()); // and the connection stays
//! # });
//! ```
//!
//! A balancer's endpoints need no clones without a [quarantine](crate::balance::quarantine). Each `Reconnect` has its
//! own backoff, so give `Balance::with_layer` the layer [`Identity`](crate::layer::Identity), and use
//! [`ConnectErrors::Nowhere`].
//!
//! # Differences from tower
//!
//! - There is a backoff. tower connects again with each request, and again and again within a single poll if
//!   connections die as soon as they are made.
//! - The error of an earlier attempt is never returned once a connection is up.
//! - When the maker's readiness fails, this is final: the maker is not polled again, and readiness fails with
//!   [`Failed`].
//! - Errors are an enum, [`Error`], and you choose where those of attempts are returned.
//! - There is a [layer](ReconnectLayer).

use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::retry::backoff::{Delays, MakeBackoff};
use crate::sync::{has_request, is_drive, is_try, own_work};
use crate::{Instant, Layer, Service, Timer};
#[cfg(feature = "std")]
use crate::{retry::backoff::ExponentialBackoffMaker, util::rng::HasherRng};

mod error;
#[cfg(all(test, feature = "testing"))]
mod tests;
mod trial;

pub use self::error::{Error, Failed, Lost, NotReady};
use self::trial::{Answered, Trial};

/// Where the error of a failed attempt to connect is returned: see the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectErrors {
    /// By the next call.
    #[default]
    InResponse,
    /// By the poll for readiness. A caller that polls again nevertheless waits for the next attempt.
    InReadiness,
    /// Nowhere: it is dropped.
    Nowhere,
}

/// A layer of [`Reconnect`], for services that connect to `Target`s.
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use campanile::smol::reconnect::ReconnectLayer;
/// use campanile::smol::{ServiceBuilder, ServiceExt};
/// use campanile::{reconnect::ConnectErrors, service_fn};
/// use core::{convert::Infallible, time::Duration};
///
/// async fn connect(_address: &'static str) -> Result<Connection, std::io::Error> {
///     let answer: fn(u32) -> _ = |n| core::future::ready(Ok(n));
///     Ok(service_fn(answer))
/// }
/// type Connection = campanile::util::ServiceFn<fn(u32) -> core::future::Ready<Result<u32, Infallible>>>;
///
/// // Requests wait for a connection, and not for longer than a second.
/// let service = ServiceBuilder::new()
///     .deadline(Duration::from_secs(1))
///     .layer(ReconnectLayer::new("localhost:4000").connect_errors(ConnectErrors::Nowhere))
///     .service(service_fn(connect).map_future(Box::pin));
/// assert_eq!(service.oneshot(1).await.unwrap(), 1);
/// # });
/// ```
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct ReconnectLayer<Target, T, B> {
    target: Target,
    timer: T,
    maker: B,
    connect_errors: ConnectErrors,
}

#[cfg(feature = "std")]
impl<Target, T: Clone> ReconnectLayer<Target, T, ExponentialBackoffMaker<HasherRng, T>> {
    /// A layer that connects to `target`, with the default backoff on the default timer.
    pub fn new(target: Target) -> Self
    where
        T: Default,
    {
        Self::with_timer(target, T::default())
    }

    /// A layer that connects to `target`, with the default backoff on `timer`.
    pub fn with_timer(target: Target, timer: T) -> Self {
        let maker = ExponentialBackoffMaker::standard(HasherRng::new(), timer.clone());
        Self::with_backoff(target, maker, timer)
    }
}

impl<Target, T, B> ReconnectLayer<Target, T, B> {
    /// A layer that connects to `target`, with the backoff of `maker` on `timer`.
    pub const fn with_backoff(target: Target, maker: B, timer: T) -> Self {
        Self {
            target,
            timer,
            maker,
            connect_errors: ConnectErrors::InResponse,
        }
    }

    /// Sets where the error of a failed attempt is returned.
    pub const fn connect_errors(mut self, place: ConnectErrors) -> Self {
        self.connect_errors = place;
        self
    }
}

impl<M, Target, T, B> Layer<M> for ReconnectLayer<Target, T, B>
where
    M: Service<Target>,
    Target: Clone,
    T: Timer + Clone,
    B: MakeBackoff + Clone,
{
    type Service = Reconnect<M, Target, T, B>;

    fn layer(&self, mk_service: M) -> Self::Service {
        let (target, maker) = (self.target.clone(), self.maker.clone());
        Reconnect::with_backoff(mk_service, target, maker, self.timer.clone())
            .connect_errors(self.connect_errors)
    }
}

/// A service that connects, and connects again when the connection fails.
///
/// `M` makes connections to the `Target`, `B` makes the backoff between failed attempts, and `T` is its timer.
///
/// See the [module](self) for its behaviour.
///
/// # Readiness
///
/// When a connection dies between readiness and the call, or the backoff ends before a call has returned the error of
/// the last attempt, readiness may be pending again until there is a new connection that is ready.
///
/// # Cancel safety
///
/// A caller that stops waiting for readiness changes nothing: the attempt or the wait continues with the next poll.
pub struct Reconnect<M, Target, T, B>
where
    M: Service<Target>,
    T: Timer,
    B: MakeBackoff,
{
    mk_service: M,
    target: Target,
    state: State<M::Future, M::Response, M::Error>,
    connect_errors: ConnectErrors,
    timer: T,
    maker: B,
    // Covers the attempts since a connection last worked.
    backoff: Option<B::Backoff>,
    // Reused from wait to wait: it is reset in place.
    alarm: Option<T::Alarm>,
}

#[derive(Debug)]
enum State<F, S, C> {
    Idle,
    Connecting(F),
    Connected {
        service: S,
        // Whether a call may be made.
        is_ready: bool,
        // `None`: it has shown that it works.
        trial: Option<Trial>,
    },
    /// The last attempt failed.
    Waiting {
        until: Instant,
        // Whether the alarm is set to `until`.
        armed: bool,
        // The error of the next call, until then.
        refusal: Option<Refusal<C>>,
    },
    /// The maker failed.
    Failed,
}

/// Why a request reaches no connection.
#[derive(Debug)]
enum Refusal<C> {
    Connect(C),
    Lost,
    Failed,
    NotReady,
}

#[cfg(feature = "std")]
impl<M, Target, T> Reconnect<M, Target, T, ExponentialBackoffMaker<HasherRng, T>>
where
    M: Service<Target>,
    T: Timer + Clone,
{
    /// Connects to `target` with `mk_service`, with the default backoff on the default timer.
    pub fn new(mk_service: M, target: Target) -> Self
    where
        T: Default,
    {
        Self::with_timer(mk_service, target, T::default())
    }

    /// As [`new`](Self::new), with a first connection.
    pub fn with_connection(connection: M::Response, mk_service: M, target: Target) -> Self
    where
        T: Default,
    {
        Self::new(mk_service, target).connected(connection)
    }

    /// Connects to `target` with `mk_service`, with the default backoff on `timer`.
    pub fn with_timer(mk_service: M, target: Target, timer: T) -> Self {
        let maker = ExponentialBackoffMaker::standard(HasherRng::new(), timer.clone());
        Self::with_backoff(mk_service, target, maker, timer)
    }
}

impl<M, Target, T, B> Reconnect<M, Target, T, B>
where
    M: Service<Target>,
    T: Timer,
    B: MakeBackoff,
{
    /// Connects to `target` with `mk_service`, with the backoff of `maker` on `timer`.
    pub const fn with_backoff(mk_service: M, target: Target, maker: B, timer: T) -> Self {
        Self {
            mk_service,
            target,
            state: State::Idle,
            connect_errors: ConnectErrors::InResponse,
            timer,
            maker,
            backoff: None,
            alarm: None,
        }
    }

    /// Starts with `connection`. If it has died meanwhile, another is made at once.
    #[must_use]
    pub fn connected(mut self, connection: M::Response) -> Self {
        self.state = State::Connected {
            service: connection,
            is_ready: false,
            trial: None,
        };
        self
    }

    /// Sets where the error of a failed attempt is returned.
    #[must_use]
    pub fn connect_errors(mut self, place: ConnectErrors) -> Self {
        self.connect_errors = place;
        self
    }

    /// Whether there was a connection at the last poll.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected { .. })
    }
}

impl<M, Target, T, B> fmt::Debug for Reconnect<M, Target, T, B>
where
    M: Service<Target> + fmt::Debug,
    Target: fmt::Debug,
    T: Timer,
    B: MakeBackoff,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Idle => "Idle",
            State::Connecting(_) => "Connecting",
            State::Connected { .. } => "Connected",
            State::Waiting { .. } => "Waiting",
            State::Failed => "Failed",
        };
        f.debug_struct("Reconnect")
            .field("mk_service", &self.mk_service)
            .field("target", &self.target)
            .field("state", &format_args!("{state}"))
            .field("connect_errors", &self.connect_errors)
            .finish_non_exhaustive()
    }
}

impl<M, S, Target, Request, T, B> Service<Request> for Reconnect<M, Target, T, B>
where
    M: Service<Target, Response = S, Future: Unpin>,
    S: Service<Request>,
    Target: Clone,
    T: Timer,
    B: MakeBackoff<Backoff: Delays>,
{
    type Response = S::Response;
    type Error = Error<S::Error, M::Error>;
    type Future = ResponseFuture<S::Future, M::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // At most one attempt may fail per poll; otherwise a zero backoff, or an alarm that fires early, would make
        // this a loop.
        let mut has_failed = false;
        loop {
            let error = match &mut self.state {
                State::Idle => {
                    let maker = &mut self.mk_service;
                    match ready!(own_work(cx, |cx| maker.poll_ready(cx))) {
                        Ok(()) => {
                            let connecting = self.mk_service.call(self.target.clone());
                            self.state = State::Connecting(connecting);
                            continue;
                        }
                        Err(error) => {
                            self.state = State::Failed;
                            return Poll::Ready(Err(Error::Connect(error)));
                        }
                    }
                }
                State::Connecting(connecting) => {
                    match ready!(own_work(cx, |cx| Pin::new(connecting).poll(cx))) {
                        Ok(service) => {
                            self.state = State::Connected {
                                service,
                                is_ready: false,
                                trial: Some(Trial::begin(self.timer.now())),
                            };
                            continue;
                        }
                        Err(error) => Error::Connect(error),
                    }
                }
                State::Connected {
                    service,
                    is_ready,
                    trial,
                } => {
                    let polled = service.poll_ready(cx);
                    *is_ready = matches!(polled, Poll::Ready(Ok(()))) && !is_drive(cx);
                    if let Some(open) = trial {
                        let is_dead = matches!(polled, Poll::Ready(Err(_)));
                        if open.is_answered() || is_dead && open.is_over(self.timer.now()) {
                            *trial = None;
                            self.backoff = None;
                        }
                    }
                    match ready!(polled) {
                        Ok(()) => return Poll::Ready(Ok(())),
                        Err(error) if trial.is_some() => Error::Service(error),
                        Err(_) => {
                            self.state = State::Idle;
                            continue;
                        }
                    }
                }
                State::Waiting {
                    until,
                    armed,
                    refusal,
                } => {
                    if !has_request(cx) {
                        *refusal = None;
                    }
                    // The clock decides, and the alarm only wakes the task: tokio's is pending, whatever the time, once
                    // the task has used up its budget.
                    if self.timer.now() < *until {
                        // A caller that is to get an error, or that only tries, does not wait.
                        if refusal.is_some() {
                            return Poll::Ready(Ok(()));
                        }
                        if is_try(cx) {
                            return Poll::Pending;
                        }
                        let alarm = match &mut self.alarm {
                            Some(alarm) => {
                                if !*armed {
                                    self.timer.reset(alarm, *until);
                                }
                                alarm
                            }
                            none => none.insert(self.timer.alarm_until(*until)),
                        };
                        *armed = true;
                        ready!(Pin::new(alarm).poll(cx));
                    }
                    // An error that no request has taken is past.
                    self.state = State::Idle;
                    if has_failed {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    continue;
                }
                State::Failed => return Poll::Ready(Err(Error::Failed(Failed::new()))),
            };
            has_failed = true;
            match self.connect_errors {
                ConnectErrors::InReadiness => {
                    self.back_off(None);
                    return Poll::Ready(Err(error));
                }
                ConnectErrors::InResponse if has_request(cx) => {
                    let refusal = match error {
                        Error::Connect(error) => Refusal::Connect(error),
                        _ => Refusal::Lost,
                    };
                    self.back_off(Some(refusal));
                    return Poll::Ready(Ok(()));
                }
                _ => self.back_off(None),
            }
        }
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let refusal = match &mut self.state {
            State::Connected {
                service,
                is_ready: is_ready @ true,
                trial,
            } => {
                *is_ready = false;
                let state = Response::Called {
                    inner: service.call(request),
                    answered: trial.as_ref().map(Trial::answered),
                };
                return ResponseFuture { state };
            }
            State::Waiting { refusal, .. } => refusal.take().unwrap_or(Refusal::NotReady),
            State::Failed => Refusal::Failed,
            _ => Refusal::NotReady,
        };
        ResponseFuture {
            state: Response::Refused {
                refusal: Some(refusal),
            },
        }
    }
}

impl<M, Target, T, B> Reconnect<M, Target, T, B>
where
    M: Service<Target>,
    T: Timer,
    B: MakeBackoff<Backoff: Delays>,
{
    /// Drops what is left of the attempt, and starts the wait.
    fn back_off(&mut self, refusal: Option<Refusal<M::Error>>) {
        let maker = &mut self.maker;
        let backoff = self.backoff.get_or_insert_with(|| maker.make_backoff());
        self.state = State::Waiting {
            until: self.timer.now().saturating_add(backoff.next_delay()),
            armed: false,
            refusal,
        };
    }
}

pin_project! {
    /// The response of a [`Reconnect`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F, C> {
        #[pin]
        state: Response<F, C>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = ResponseProj]
    enum Response<F, C> {
        Called {
            #[pin]
            inner: F,
            // `None`: nothing is left to show.
            answered: Option<Answered>,
        },
        Refused {
            refusal: Option<Refusal<C>>,
        },
    }
}

impl<F, R, E, C> Future for ResponseFuture<F, C>
where
    F: Future<Output = Result<R, E>>,
{
    type Output = Result<R, Error<E, C>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let refusal = match self.project().state.project() {
            ResponseProj::Called { inner, answered } => {
                let result = ready!(inner.poll(cx));
                if let (Ok(_), Some(answered)) = (&result, answered.take()) {
                    answered.tell();
                }
                return Poll::Ready(result.map_err(Error::Service));
            }
            ResponseProj::Refused { refusal } => refusal.take(),
        };
        Poll::Ready(Err(match refusal {
            Some(Refusal::Connect(error)) => Error::Connect(error),
            Some(Refusal::Lost) => Error::Lost(Lost::new()),
            Some(Refusal::Failed) => Error::Failed(Failed::new()),
            Some(Refusal::NotReady) | None => Error::NotReady(NotReady::new()),
        }))
    }
}
