//! Keeps a connection up: makes a new one when there is none, and backs off when that fails.
//!
//! A [`Reconnect`] has a [`MakeService`](crate::MakeService) that connects to a target, and at most one connection. Whoever asks
//! whether it is ready drives it: connecting starts with the first such poll, and again with the one that finds the
//! connection dead, which is what an error of the connection's own readiness means. The dead connection is dropped,
//! its error too, and never asked again. A response that is an error says nothing about the connection.
//!
//! # Backoff
//!
//! An attempt has failed when connecting fails, and just as well when the connection fails before it has shown that it
//! works. It has shown that by its first successful response, or by having lived for five seconds, the longest wait of the
//! default backoff. So a peer that accepts and hangs up is asked no more often than one that refuses. A connection that is
//! [given](Reconnect::connected) is taken to work. Without an allocator, responses tell nothing, and time alone decides.
//!
//! After a failed attempt readiness is pending until the backoff lets the next attempt begin. When a connection dies that
//! has worked, the next attempt begins at once, and the backoff starts anew.
//!
//! The default, where std has the random numbers for it, is
//! [`ExponentialBackoffMaker::standard`](crate::retry::backoff::ExponentialBackoffMaker::standard): 50 ms doubling to 5 s, full jitter. A readiness that is tried and
//! not waited for, as a [`LoadShed`](crate::load_shed) does it, connects too, but arms no timer.
//!
//! # Where the error of a failed attempt comes out
//!
//! [`connect_errors`](Reconnect::connect_errors) says it:
//!
//! | | the attempt fails | good for |
//! |---|---|---|
//! | [`InResponse`](ConnectErrors::InResponse), the default | readiness is ready, and the next call fails | callers with a request in hand |
//! | [`InReadiness`](ConnectErrors::InReadiness) | readiness fails | callers that replace the service then |
//! | [`Nowhere`](ConnectErrors::Nowhere) | readiness stays pending | balancers, which send requests elsewhere until then |
//!
//! The default is tower's. By the contract of [`Service`] an error of readiness is final: a buffer ends on it, and a
//! stack above is torn down for a failure that the next attempt may not have. And pending for ever would hide from
//! the caller that nobody listens at the other end. So each attempt that fails, fails one request. An error that no
//! request has taken by the end of the backoff is forgotten, and the next attempt begins.
//!
//! That is so for whoever asks for readiness again before each request. A [`Steer`](crate::steer) does not ask a service
//! that is ready, and so keeps an error for the next request to it, however late that comes. There,
//! [`Nowhere`](ConnectErrors::Nowhere) is the choice, or a [`Buffer`](crate::buffer) around each `Reconnect`.
//!
//! # Sharing a connection
//!
//! A `Reconnect` is not `Clone`: a clone would have no connection, and no backoff to keep it from connecting. Where
//! middleware wants clones, as [`Retry`](crate::retry), [`Hedge`](crate::hedge) and [`Filter`](crate::filter) do, or several
//! tasks send requests, put a [`Buffer`](crate::buffer) around it, whose clones share the one connection:
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
//! A balancer's endpoints need no clones without a [quarantine](crate::balance::quarantine). Each `Reconnect` backs off by
//! itself, so that [`Identity`](crate::layer::Identity) is the layer in `Balance::with_layer`, and [`ConnectErrors::Nowhere`]
//! the place of its errors.
//!
//! # Differences from tower
//!
//! - There is a backoff. tower connects again with each request, and over and over within a single poll
//!   where connections die as soon as they are made.
//! - The error of an earlier attempt does not come out of a connection that is up.
//! - When the maker's readiness fails, this is final: the maker is not asked again, [`Failed`] says so.
//! - Errors are an enum, [`Error`], and where they come out can be chosen.
//! - There is a [layer](ReconnectLayer).
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
//! The future of a connection is kept in the service and so has to be `Unpin`. One of an `async fn` is made so by
//! [`map_future(Box::pin)`](crate::ServiceExt::map_future), as in the example of [`ReconnectLayer`].

use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::retry::backoff::{Delays, MakeBackoff};
use crate::sync::{is_drive, is_try, own_work};
use crate::{Instant, Layer, Service, Timer};
#[cfg(feature = "std")]
use crate::{retry::backoff::ExponentialBackoffMaker, util::rng::HasherRng};

mod error;
#[cfg(all(test, feature = "testing"))]
mod tests;
mod trial;

pub use self::error::{Error, Failed, Lost, NotReady};
use self::trial::{Answered, Trial};

/// Where the error of a failed attempt to connect comes out: see the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectErrors {
    /// Out of the next call.
    #[default]
    InResponse,
    /// Out of the poll for readiness. Whoever goes on polling all the same waits for the next attempt.
    InReadiness,
    /// Not at all.
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

    /// Says where the error of a failed attempt comes out.
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
/// `M` makes connections to the `Target`, `B` the backoff between failed attempts, and `T` tells the time for that.
///
/// See the [module](self) for what it does when.
///
/// # Readiness
///
/// When a connection dies after it was ready and before the call, or the backoff ends while an error was to be the answer,
/// readiness may be pending again until there is a new connection that is ready.
///
/// # Cancel safety
///
/// A caller that stops waiting for readiness changes nothing: the attempt or the wait goes on with the next poll.
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
    // Of the attempts since a connection has worked.
    backoff: Option<B::Backoff>,
    // Kept from wait to wait, and set in place.
    alarm: Option<T::Alarm>,
}

#[derive(Debug)]
enum State<F, S, C> {
    Idle,
    Connecting(F),
    Connected {
        service: S,
        // A call may be made.
        is_ready: bool,
        // `None`: it has shown that it works.
        trial: Option<Trial>,
    },
    /// The last attempt failed.
    Waiting {
        until: Instant,
        // Whether the alarm is set to that.
        armed: bool,
        // What the next call fails with, until then.
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
    /// Connects to `target` by `mk_service`, with the default backoff on the default timer.
    pub fn new(mk_service: M, target: Target) -> Self
    where
        T: Default,
    {
        Self::with_timer(mk_service, target, T::default())
    }

    /// As [`new`](Self::new), and the first connection is there already.
    pub fn with_connection(connection: M::Response, mk_service: M, target: Target) -> Self
    where
        T: Default,
    {
        Self::new(mk_service, target).connected(connection)
    }

    /// Connects to `target` by `mk_service`, with the default backoff on `timer`.
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
    /// Connects to `target` by `mk_service`, with the backoff of `maker` on `timer`.
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

    /// Starts with `connection`, which may have died in the meantime: then another is made at once.
    #[must_use]
    pub fn connected(mut self, connection: M::Response) -> Self {
        self.state = State::Connected {
            service: connection,
            is_ready: false,
            trial: None,
        };
        self
    }

    /// Says where the error of a failed attempt comes out.
    #[must_use]
    pub fn connect_errors(mut self, place: ConnectErrors) -> Self {
        self.connect_errors = place;
        self
    }

    /// Whether there is a connection, as far as the last poll knows.
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
        // One attempt may fail per poll, or a backoff of no time, or with an alarm that is early, would be a loop.
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
                    if is_drive(cx) {
                        *refusal = None;
                    }
                    // The clock decides, and the alarm wakes: tokio's is pending, whatever the time, in a
                    // task that has used up its share of a poll.
                    if self.timer.now() < *until {
                        // Who is promised a call, or only tries, does not wait.
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
                ConnectErrors::InResponse if !is_drive(cx) => {
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
    /// Drops what is left of the attempt, and waits.
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
