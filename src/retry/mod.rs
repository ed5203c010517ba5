//! Sends a request again when a policy asks for it.
//!
//! A [`Policy`] looks at the result of each attempt, and either returns it to the caller or asks for another attempt
//! after a wait of its choice. [`StandardPolicy`] is ready-made, with a [`backoff`], jitter, a [`budget`], and limits
//! on attempts and time.
//!
//! # Examples
//!
//! ```
//! use campanile::{Layer, Service, retry::{Policy, RetryLayer}, service_fn};
//! use core::future::{Ready, poll_fn, ready};
//!
//! /// Retries errors, at once.
//! #[derive(Clone)]
//! struct Attempts(u32);
//!
//! impl<Req: Clone, Res, E> Policy<Req, Res, E> for Attempts {
//!     type Future = Ready<()>;
//!
//!     fn retry(&mut self, _: &mut Req, result: &mut Result<Res, E>) -> Option<Ready<()>> {
//!         if result.is_ok() {
//!             return None;
//!         }
//!         self.0 = self.0.checked_sub(1)?;
//!         Some(ready(()))
//!     }
//!
//!     fn clone_request(&mut self, request: &Req) -> Option<Req> {
//!         Some(request.clone())
//!     }
//! }
//!
//! # futures::executor::block_on(async {
//! let failures = core::cell::Cell::new(2_u32);
//! let flaky = service_fn(|n: u32| {
//!     let left = failures.get();
//!     failures.set(left.saturating_sub(1));
//!     ready(if left > 0 { Err("not yet") } else { Ok(n) })
//! });
//!
//! let mut service = RetryLayer::new(Attempts(2)).layer(flaky);
//! poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
//! assert_eq!(service.call(7).await, Ok(7));
//! # });
//! ```
//!
//! # Attempts
//!
//! The ready service makes the first attempt. A clone makes each further one; it is polled ready only once the wait
//! is over. The policy is cloned for each request, so its counters are those of one request.
//!
//! If services, policies and readiness all answer at once, one poll makes at most 32 attempts and then lets other
//! tasks run, so that a timeout around a retry fires whatever is inside.
//!
//! If the clone fails to become ready, no further attempt can be made. The caller then gets the error of the last
//! attempt, as the policy left it, and not the error of the readiness, since the former says what became of the
//! request. A *response* that the policy wanted to retry, however, is dropped before the wait, because it can hold
//! what the next attempt needs, such as a connection or a permit. If readiness fails after that, its error is
//! returned.
//!
//! # Differences from tower
//!
//! - The error of an attempt is not lost if the service does not become ready for the next one.
//! - [`Policy::clone_request`] is called on the request's own clone of the policy for the first attempt too, and not
//!   on the policy that the service keeps.
//! - There is a ready-made policy.

use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::util::{before_call, call_and_keep};
use crate::{Layer, Service};

pub mod backoff;
pub mod budget;
mod standard;

pub use standard::{
    Action, Classify, CloneByClone, CloneByFn, CloneRequest, OnError, StandardPolicy,
};

/// After this many attempts in one poll other tasks run: no runtime but tokio would interrupt the retries. A buffer's
/// worker serves as many requests per poll, for the same reason.
const ATTEMPTS_PER_POLL: u32 = 32;

/// Decides which requests are sent again, and when.
///
/// The policy of a service is only cloned, once per request.
pub trait Policy<Req, Res, E> {
    /// The wait before the next attempt.
    type Future: Future<Output = ()>;

    /// Looks at the result of an attempt. `None` returns it to the caller; a future asks for another attempt once it
    /// completes.
    ///
    /// A change to `request` affects the next attempt. A change to `result` is visible to the caller.
    fn retry(&mut self, request: &mut Req, result: &mut Result<Res, E>) -> Option<Self::Future>;

    /// Returns a copy of the request to keep for another attempt. It is called before each attempt. `None` if there
    /// is to be no other: the result of this attempt is then returned without asking [`retry`](Self::retry).
    fn clone_request(&mut self, request: &Req) -> Option<Req>;
}

/// A layer of [`Retry`].
#[derive(Clone, Copy, Debug)]
pub struct RetryLayer<P> {
    policy: P,
}

impl<P> RetryLayer<P> {
    /// A layer that retries as `policy` decides.
    pub const fn new(policy: P) -> Self {
        Self { policy }
    }
}

impl<P: Clone, S> Layer<S> for RetryLayer<P> {
    type Service = Retry<P, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Retry::new(self.policy.clone(), inner)
    }
}

/// A service that sends requests again as its policy decides.
///
/// See the [module](self) for an example.
#[derive(Clone, Debug)]
pub struct Retry<P, S> {
    policy: P,
    inner: S,
}

impl<P, S> Retry<P, S> {
    /// Retries the requests to `inner` as `policy` decides.
    pub const fn new(policy: P, inner: S) -> Self {
        Self { policy, inner }
    }

    accessors!(S);
}

impl<P, S, Request> Service<Request> for Retry<P, S>
where
    P: Policy<Request, S::Response, S::Error> + Clone,
    S: Service<Request> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<P, S, Request>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let (policy, copy) = before_call(&mut self.inner, || {
            let mut policy = self.policy.clone();
            let copy = policy.clone_request(&request);
            (policy, copy)
        });
        // The ready service makes the first attempt, and is cloned only afterwards.
        let attempt = self.inner.call(request);
        ResponseFuture {
            policy,
            service: self.inner.clone(),
            state: State::Called { attempt, copy },
        }
    }
}

pin_project! {
    /// The response of a [`Retry`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the current attempt or wait, and the clone of the service with whatever it had reserved.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<P, S, Request>
    where
        P: Policy<Request, S::Response, S::Error>,
        S: Service<Request>,
    {
        policy: P,
        service: S,
        #[pin]
        state: State<S::Future, P::Future, Request, S::Error>,
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateOwned]
    enum State<F, W, Request, E> {
        Called {
            #[pin]
            attempt: F,
            // `None`: this is the last attempt.
            copy: Option<Request>,
        },
        Waiting {
            // `None`: the wait is over, and the service is being polled ready.
            #[pin]
            wait: Option<W>,
            request: Request,
            error: Option<E>,
        },
        Done,
    }
}

impl<P, S, Request> Future for ResponseFuture<P, S, Request>
where
    P: Policy<Request, S::Response, S::Error>,
    S: Service<Request>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut attempts = 0;
        loop {
            match this.state.as_mut().project() {
                StateProj::Called { attempt, copy } => {
                    let mut result = ready!(attempt.poll(cx));
                    let copy = copy.take();
                    // Drop the attempt first, so that what it holds is free before the policy decides.
                    this.state.set(State::Done);
                    let Some(mut request) = copy else {
                        return Poll::Ready(result);
                    };
                    let Some(wait) = this.policy.retry(&mut request, &mut result) else {
                        return Poll::Ready(result);
                    };
                    this.state.set(State::Waiting {
                        wait: Some(wait),
                        request,
                        error: result.err(),
                    });
                }
                StateProj::Waiting { mut wait, .. } => {
                    if let Some(unfinished) = wait.as_mut().as_pin_mut() {
                        ready!(unfinished.poll(cx));
                        wait.set(None);
                    }
                    attempts += 1;
                    if attempts == ATTEMPTS_PER_POLL {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    let polled = ready!(this.service.poll_ready(cx));
                    if let StateOwned::Waiting { request, error, .. } =
                        this.state.as_mut().project_replace(State::Done)
                    {
                        if let Err(unready) = polled {
                            return Poll::Ready(Err(error.unwrap_or(unready)));
                        }
                        let policy = &mut *this.policy;
                        let copy = before_call(this.service, || policy.clone_request(&request));
                        let attempt = call_and_keep(this.service, request);
                        this.state.set(State::Called { attempt, copy });
                    }
                }
                // Polled again after completion.
                StateProj::Done => return Poll::Pending,
            }
        }
    }
}

impl<P, S, Request> fmt::Debug for ResponseFuture<P, S, Request>
where
    P: Policy<Request, S::Response, S::Error> + fmt::Debug,
    S: Service<Request> + fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Called { .. } => "called",
            State::Waiting { wait: Some(_), .. } => "waiting",
            State::Waiting { wait: None, .. } => "waiting for readiness",
            State::Done => "done",
        };
        f.debug_struct("ResponseFuture")
            .field("policy", &self.policy)
            .field("service", &self.service)
            .field("state", &format_args!("{state}"))
            .finish()
    }
}

/// The response future, at tower's path.
pub mod future {
    pub use super::ResponseFuture;
}
