//! Accepts or rejects requests, as a predicate decides.
//!
//! A predicate looks at a request and returns the request for the inner service, the same or another, or an error.
//! [`Filter`] asks a [`Predicate`], which answers at once. [`AsyncFilter`] asks an [`AsyncPredicate`], which answers
//! with a future. Functions are predicates.
//!
//! # Examples
//!
//! ```
//! use campanile::{ServiceExt, filter, service_fn};
//!
//! # futures::executor::block_on(async {
//! #[derive(Debug, PartialEq)]
//! struct TooLarge(u32);
//!
//! let service = service_fn(async |n: u8| Ok::<_, core::fmt::Error>(n))
//!     .filter(|n: u32| u8::try_from(n).map_err(|_| TooLarge(n)));
//!
//! assert_eq!(service.clone().oneshot(255).await, Ok(255));
//! assert_eq!(service.oneshot(256).await, Err(filter::Error::Rejected(TooLarge(256))));
//! # });
//! ```
//!
//! # Differences from tower
//!
//! - Rejecting a request gives back at once whatever the inner service had reserved by being ready, such as a permit
//!   of a concurrency limit. `Service` has no method for this, but dropping the ready service does it; so a
//!   [`Filter`] replaces the inner service with an unpolled clone. This is why the inner service must be `Clone`,
//!   which tower requires only for `AsyncFilter`. Nothing is cloned for a request that is accepted.
//! - A predicate names its error type, and the error of a filter is an enum, [`Error`], instead of a box.
//! - [`AsyncFilter::layer`] returns an [`AsyncFilterLayer`].
//! - [`AsyncFilter`] drops its clone of the inner service as soon as it has called it.

use core::fmt;
use core::mem::replace;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::error::AsError;
use crate::util::{before_call, complete};
use crate::{Layer, Service};

/// Decides at once whether to accept a request.
///
/// Every function `FnMut(Request) -> Result<NewRequest, E>` is one.
pub trait Predicate<Request> {
    /// What the inner service is called with.
    type Request;
    /// Why a request is rejected.
    type Error;

    /// Checks `request`.
    ///
    /// # Errors
    ///
    /// Returns an error if the request is rejected.
    fn check(&mut self, request: Request) -> Result<Self::Request, Self::Error>;
}

impl<F, Request, T, E> Predicate<Request> for F
where
    F: FnMut(Request) -> Result<T, E>,
{
    type Request = T;
    type Error = E;

    fn check(&mut self, request: Request) -> Result<T, E> {
        self(request)
    }
}

/// Decides with a future whether to accept a request.
///
/// Every function `FnMut(Request) -> impl Future<Output = Result<NewRequest, E>>` is one.
pub trait AsyncPredicate<Request> {
    /// What the inner service is called with.
    type Request;
    /// Why a request is rejected.
    type Error;
    /// The future of the decision.
    type Future: Future<Output = Result<Self::Request, Self::Error>>;

    /// Checks `request`.
    fn check(&mut self, request: Request) -> Self::Future;
}

impl<F, Request, Fut, T, E> AsyncPredicate<Request> for F
where
    F: FnMut(Request) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    type Request = T;
    type Error = E;
    type Future = Fut;

    fn check(&mut self, request: Request) -> Fut {
        self(request)
    }
}

/// A layer of [`Filter`].
#[derive(Clone, Copy, Debug)]
pub struct FilterLayer<P> {
    predicate: P,
}

impl<P> FilterLayer<P> {
    /// A layer that accepts the requests that `predicate` accepts.
    pub const fn new(predicate: P) -> Self {
        Self { predicate }
    }
}

impl<S, P: Clone> Layer<S> for FilterLayer<P> {
    type Service = Filter<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        Filter::new(inner, self.predicate.clone())
    }
}

/// A service that calls the inner service with the requests that a [`Predicate`] accepts.
///
/// See the [module](self) for an example.
#[derive(Clone, Copy, Debug)]
pub struct Filter<S, P> {
    inner: S,
    predicate: P,
}

impl<S, P> Filter<S, P> {
    /// Calls `inner` with the requests that `predicate` accepts.
    pub const fn new(inner: S, predicate: P) -> Self {
        Self { inner, predicate }
    }

    /// A layer that accepts the requests that `predicate` accepts.
    pub const fn layer(predicate: P) -> FilterLayer<P> {
        FilterLayer::new(predicate)
    }

    /// Asks the predicate, without calling the service.
    ///
    /// # Errors
    ///
    /// Returns an error if the request is rejected.
    pub fn check<Request>(&mut self, request: Request) -> Result<P::Request, P::Error>
    where
        P: Predicate<Request>,
    {
        self.predicate.check(request)
    }

    accessors!(S);
}

impl<S, P, Request> Service<Request> for Filter<S, P>
where
    P: Predicate<Request>,
    S: Service<P::Request> + Clone,
{
    type Response = S::Response;
    type Error = Error<S::Error, P::Error>;
    type Future = ResponseFuture<S::Future, P::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let predicate = &mut self.predicate;
        let answer = match before_call(&mut self.inner, || predicate.check(request)) {
            Ok(request) => Answer::Response {
                inner: self.inner.call(request),
            },
            Err(error) => {
                // Dropping the ready service gives back what it had reserved.
                self.inner = self.inner.clone();
                Answer::Rejected { error: Some(error) }
            }
        };
        ResponseFuture { answer }
    }
}

pin_project! {
    /// The response of a [`Filter`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F, P> {
        #[pin]
        answer: Answer<F, P>,
    }
}

pin_project! {
    #[project = AnswerProj]
    enum Answer<F, P> {
        Response { #[pin] inner: F },
        Rejected { error: Option<P> },
    }
}

impl<F, P, T, E> Future for ResponseFuture<F, P>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, Error<E, P>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().answer.project() {
            AnswerProj::Response { inner } => inner.poll(cx).map_err(Error::Service),
            AnswerProj::Rejected { error } => {
                let Some(error) = error.take() else {
                    complete();
                };
                Poll::Ready(Err(Error::Rejected(error)))
            }
        }
    }
}

impl<F, P> fmt::Debug for ResponseFuture<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// A layer of [`AsyncFilter`].
#[derive(Clone, Copy, Debug)]
pub struct AsyncFilterLayer<P> {
    predicate: P,
}

impl<P> AsyncFilterLayer<P> {
    /// A layer that accepts the requests that `predicate` accepts.
    pub const fn new(predicate: P) -> Self {
        Self { predicate }
    }
}

impl<S, P: Clone> Layer<S> for AsyncFilterLayer<P> {
    type Service = AsyncFilter<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        AsyncFilter::new(inner, self.predicate.clone())
    }
}

/// A service that calls the inner service with the requests that an [`AsyncPredicate`] accepts.
///
/// The ready service, with whatever it has reserved, moves into the response future and waits there for the
/// predicate's answer; a clone takes its place.
///
/// # Examples
///
/// ```
/// use campanile::{ServiceExt, filter::AsyncFilter, service_fn};
///
/// # futures::executor::block_on(async {
/// let echo = service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n));
/// let service = AsyncFilter::new(echo, |text: &'static str| async move { text.parse::<u32>() });
/// assert_eq!(service.oneshot("1").await, Ok(1));
/// # });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct AsyncFilter<S, P> {
    inner: S,
    predicate: P,
}

impl<S, P> AsyncFilter<S, P> {
    /// Calls `inner` with the requests that `predicate` accepts.
    pub const fn new(inner: S, predicate: P) -> Self {
        Self { inner, predicate }
    }

    /// A layer that accepts the requests that `predicate` accepts.
    pub const fn layer(predicate: P) -> AsyncFilterLayer<P> {
        AsyncFilterLayer::new(predicate)
    }

    /// Asks the predicate, without calling the service.
    ///
    /// # Errors
    ///
    /// Returns an error if the request is rejected.
    pub async fn check<Request>(&mut self, request: Request) -> Result<P::Request, P::Error>
    where
        P: AsyncPredicate<Request>,
    {
        self.predicate.check(request).await
    }

    accessors!(S);
}

impl<S, P, Request> Service<Request> for AsyncFilter<S, P>
where
    P: AsyncPredicate<Request>,
    S: Service<P::Request> + Clone,
{
    type Response = S::Response;
    type Error = Error<S::Error, P::Error>;
    type Future = AsyncResponseFuture<P, S, Request>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // Move the ready service out first: if the predicate panics, it is dropped, and gives back what it had
        // reserved.
        let clone = self.inner.clone();
        let service = replace(&mut self.inner, clone);
        AsyncResponseFuture {
            state: State::Check {
                check: self.predicate.check(request),
                service,
            },
        }
    }
}

pin_project! {
    /// The response of an [`AsyncFilter`].
    ///
    /// # Cancel safety
    ///
    /// If dropped during the check, it drops the service that waits in it, which gives back what it had reserved.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct AsyncResponseFuture<P, S, Request>
    where
        P: AsyncPredicate<Request>,
        S: Service<P::Request>,
    {
        #[pin]
        state: State<P::Future, S, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateOwn]
    enum State<C, S, F> {
        Check {
            #[pin]
            check: C,
            service: S,
        },
        Response {
            #[pin]
            response: F,
        },
        Done,
    }
}

impl<P, S, Request> Future for AsyncResponseFuture<P, S, Request>
where
    P: AsyncPredicate<Request>,
    S: Service<P::Request>,
{
    type Output = Result<S::Response, Error<S::Error, P::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        if let StateProj::Check { check, .. } = state.as_mut().project() {
            let checked = ready!(check.poll(cx));
            let StateOwn::Check { mut service, .. } = state.as_mut().project_replace(State::Done)
            else {
                complete();
            };
            // A rejection drops the service here, which gives back what it had reserved.
            let request = checked.map_err(Error::Rejected)?;
            let response = service.call(request);
            state.set(State::Response { response });
        }
        let StateProj::Response { response } = state.as_mut().project() else {
            complete();
        };
        let result = ready!(response.poll(cx));
        state.set(State::Done);
        Poll::Ready(result.map_err(Error::Service))
    }
}

impl<P, S, Request> fmt::Debug for AsyncResponseFuture<P, S, Request>
where
    P: AsyncPredicate<Request>,
    S: Service<P::Request>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResponseFuture")
            .finish_non_exhaustive()
    }
}

/// How a filter fails. `E` is the error of the inner service, `P` that of the predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E, P> {
    /// The predicate rejected the request.
    Rejected(P),
    /// The inner service failed.
    Service(E),
}

impl<E, P> From<E> for Error<E, P> {
    fn from(error: E) -> Self {
        Self::Service(error)
    }
}

impl<E, P> Error<E, P> {
    /// Returns the predicate's error, if it is one.
    pub fn into_rejected(self) -> Option<P> {
        match self {
            Self::Rejected(error) => Some(error),
            Self::Service(_) => None,
        }
    }

    /// Returns the inner service's error, if it is one.
    pub fn into_service(self) -> Option<E> {
        match self {
            Self::Rejected(_) => None,
            Self::Service(error) => Some(error),
        }
    }
}

// Not by `flatten!`: here the leaf is a type of the user.
impl<E: fmt::Display, P: fmt::Display> fmt::Display for Error<E, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(error) => fmt::Display::fmt(error, f),
            Self::Service(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl<E: AsError, P: AsError> AsError for Error<E, P> {
    fn as_error(&self) -> &(dyn core::error::Error + 'static) {
        match self {
            Self::Rejected(error) => error.as_error(),
            Self::Service(error) => error.as_error(),
        }
    }
}

#[cfg(feature = "alloc")]
impl<'a, E: Into<crate::error::AnyBoxError<'a>>, P: Into<crate::error::AnyBoxError<'a>>>
    From<Error<E, P>> for crate::error::AnyBoxError<'a>
{
    fn from(error: Error<E, P>) -> Self {
        match error {
            Error::Rejected(error) => error.into(),
            Error::Service(error) => error.into(),
        }
    }
}

/// The response futures, at tower's path.
pub mod future {
    pub use super::{AsyncResponseFuture, ResponseFuture};
}
