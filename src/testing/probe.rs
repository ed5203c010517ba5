//! Watches whether middleware keeps the contract of [`Service`].
//!
//! A [`Probe`] is a layer to be put beneath the middleware in question, and tells the test what it saw:
//!
//! - a call without readiness, or after an error of `poll_ready`;
//! - a `poll_ready` after an error of `poll_ready`;
//! - a response future polled again after it was complete;
//! - a `poll_ready` that is pending after it was ready, which is a breach of the service *beneath* the probe;
//! - readiness that is kept, and neither used nor dropped ([`Probe::reserved`]), at a moment when the test
//!   knows that there should be none.
//!
//! A breach is noted with the line of code that did it, and goes on to the inner service; the probe panics
//! with all of them when it is dropped, in the thread of the test. So one that happens in a background task or in another
//! thread is not lost, and does not change what the middleware does.
//!
//! # Examples
//!
//! ```
//! use campanile::testing::{Probe, probe::Rule};
//! use campanile::{ServiceBuilder, ServiceExt, service_fn};
//!
//! let probe = Probe::new();
//! let service = ServiceBuilder::new()
//!     .concurrency_limit(1)
//!     .layer(&probe)
//!     .service_fn(async |n: u32| Ok::<_, std::io::Error>(n));
//!
//! # futures::executor::block_on(async {
//! let ready = service.clone().ready_oneshot().await.unwrap();
//! assert_eq!(probe.reserved(), 1);
//! drop(ready);
//! probe.assert_released();
//!
//! service.oneshot(1).await.unwrap();
//! assert_eq!((probe.calls(), probe.in_flight(), probe.max_in_flight()), (1, 0, 1));
//! # });
//! ```

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem::{replace, take};
use core::panic::Location;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pin_project_lite::pin_project;

use crate::sync::{has_request, is_drive};
use crate::{Layer, Service};

/// A layer that watches how its services are used. See the [module](self).
///
/// # Panics
///
/// When it is dropped, if the contract was broken.
#[derive(Debug, Default)]
pub struct Probe {
    shared: Arc<Shared>,
}

impl Probe {
    /// A probe that has seen nothing. Its services are made by `layer(&probe)`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The breaches so far, in order, for the test to judge: after this the probe has forgotten them.
    #[must_use = "the breaches are forgotten; `assert_kept` fails if there are any"]
    pub fn take_violations(&self) -> Vec<Violation> {
        take(&mut self.shared.lock().violations)
    }

    /// # Panics
    ///
    /// If the contract was broken so far. The message has each rule and the line that broke it.
    #[track_caller]
    pub fn assert_kept(&self) {
        let violations = self.take_violations();
        assert!(violations.is_empty(), "{}", Report(&violations));
    }

    /// How many services are reserved: were polled ready, and neither called nor dropped.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.shared.lock().reserved
    }

    /// # Panics
    ///
    /// If a service is [reserved](Self::reserved).
    #[track_caller]
    pub fn assert_released(&self) {
        let reserved = self.reserved();
        assert!(
            reserved == 0,
            "{reserved} services were polled ready, and are kept without a call"
        );
    }

    /// How many calls were made.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.shared.lock().calls
    }

    /// How many responses are under way: neither complete nor dropped.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.lock().in_flight
    }

    /// How many responses were under way at once, at the most.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.shared.lock().max_in_flight
    }

    /// How many services and clones of them there are.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.shared.lock().alive
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let violations = self.take_violations();
        if !violations.is_empty() && !std::thread::panicking() {
            panic!("{}", Report(&violations));
        }
    }
}

impl<S> Layer<S> for Probe {
    type Service = Probed<S>;

    fn layer(&self, inner: S) -> Probed<S> {
        self.shared.lock().alive += 1;
        Probed {
            inner,
            link: Link {
                shared: Arc::clone(&self.shared),
                asked: Asked::Nothing,
            },
        }
    }
}

/// A service that a [`Probe`] watches.
#[derive(Debug)]
pub struct Probed<S> {
    inner: S,
    link: Link,
}

impl<S, Request> Service<Request> for Probed<S>
where
    S: Service<Request>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    #[track_caller]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if self.link.asked == Asked::Failed {
            self.link.note(Rule::PolledAfterError);
        }
        let polled = self.inner.poll_ready(cx);
        match &polled {
            Poll::Ready(Err(_)) => self.link.set(Asked::Failed),
            // It has given up what it had reserved.
            _ if is_drive(cx) => self.link.set(Asked::Nothing),
            Poll::Pending => {
                // What was ready only to fail its request is no longer so when there is no request yet.
                if self.link.asked == Asked::Ready && has_request(cx) {
                    self.link.note(Rule::ReadinessLost);
                }
                self.link.set(Asked::Nothing);
            }
            Poll::Ready(Ok(())) => self.link.set(Asked::Ready),
        }
        polled
    }

    #[track_caller]
    fn call(&mut self, request: Request) -> Self::Future {
        match self.link.asked {
            Asked::Ready => {}
            Asked::Nothing => self.link.note(Rule::CalledUnready),
            Asked::Failed => self.link.note(Rule::CalledAfterError),
        }
        self.link.set(Asked::Nothing);
        self.link.shared.lock().calls += 1;
        ResponseFuture {
            inner: self.inner.call(request),
            flight: Flight::begin(&self.link.shared),
        }
    }
}

// A clone was never polled ready.
impl<S: Clone> Clone for Probed<S> {
    fn clone(&self) -> Self {
        let inner = self.inner.clone();
        self.link.shared.lock().alive += 1;
        Self {
            inner,
            link: Link {
                shared: Arc::clone(&self.link.shared),
                asked: Asked::Nothing,
            },
        }
    }
}

pin_project! {
    /// The response of a [`Probed`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        flight: Flight,
    }
}

impl<F: Future> Future for ResponseFuture<F> {
    type Output = F::Output;

    #[track_caller]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.flight.is_over {
            // The inner future would panic, or worse.
            this.flight.shared.note(Rule::PolledAfterCompletion);
            return Poll::Pending;
        }
        let polled = this.inner.poll(cx);
        if polled.is_ready() {
            this.flight.end();
        }
        polled
    }
}

/// A part of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// A call is made after `poll_ready` was ready, and one only.
    CalledUnready,
    /// A service whose `poll_ready` failed is not called.
    CalledAfterError,
    /// A service whose `poll_ready` failed is not polled again.
    PolledAfterError,
    /// A response future that was ready is not polled again.
    PolledAfterCompletion,
    /// A service that was ready stays so until it is called. Here it is the inner service that broke it.
    ReadinessLost,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CalledUnready => "`call` without readiness",
            Self::CalledAfterError => "`call` after an error of `poll_ready`",
            Self::PolledAfterError => "`poll_ready` after an error of `poll_ready`",
            Self::PolledAfterCompletion => "a response future polled after it was complete",
            Self::ReadinessLost => "the inner service was ready, and then pending without a call",
        })
    }
}

/// A breach of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// What was broken.
    pub rule: Rule,
    /// Where the call or the poll was made.
    pub caller: &'static Location<'static>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, at {}", self.rule, self.caller)
    }
}

struct Report<'a>(&'a [Violation]);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the contract of `Service` was broken:")?;
        self.0
            .iter()
            .try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

#[derive(Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    violations: Vec<Violation>,
    reserved: usize,
    calls: u64,
    in_flight: usize,
    max_in_flight: usize,
    alive: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    fn note(&self, rule: Rule) {
        let caller = Location::caller();
        self.lock().violations.push(Violation { rule, caller });
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.lock(), f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Not polled since the last call, or pending.
    Nothing,
    Ready,
    Failed,
}

/// One service's connection to its probe.
struct Link {
    shared: Arc<Shared>,
    asked: Asked,
}

impl Link {
    #[track_caller]
    fn note(&self, rule: Rule) {
        self.shared.note(rule);
    }

    fn set(&mut self, asked: Asked) {
        // A service that failed has failed.
        if self.asked == Asked::Failed {
            return;
        }
        let before = replace(&mut self.asked, asked);
        let (was, is) = (before == Asked::Ready, asked == Asked::Ready);
        if was != is {
            let mut state = self.shared.lock();
            state.reserved = state.reserved + usize::from(is) - usize::from(was);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.reserved -= usize::from(self.asked == Asked::Ready);
        state.alive -= 1;
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.asked, f)
    }
}

/// A response that is under way.
struct Flight {
    shared: Arc<Shared>,
    is_over: bool,
}

impl Flight {
    fn begin(shared: &Arc<Shared>) -> Self {
        let mut state = shared.lock();
        state.in_flight += 1;
        state.max_in_flight = state.max_in_flight.max(state.in_flight);
        drop(state);
        Self {
            shared: Arc::clone(shared),
            is_over: false,
        }
    }

    fn end(&mut self) {
        if !replace(&mut self.is_over, true) {
            self.shared.lock().in_flight -= 1;
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight")
            .field("is_over", &self.is_over)
            .finish_non_exhaustive()
    }
}
