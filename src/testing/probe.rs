//! Watches whether middleware follows the contract of [`Service`].
//!
//! A [`Probe`] is a layer to put beneath the middleware in question. It tells the test about:
//!
//! - a call without readiness, or after an error of `poll_ready`;
//! - a `poll_ready` after an error of `poll_ready`;
//! - a response future that is polled again after completion;
//! - a `poll_ready` that is pending after it was ready, which is a breach by the service *beneath* the probe;
//! - a service that is ready and neither called nor dropped ([`Probe::reserved`]), at a moment when the test knows
//!   that there should be none.
//!
//! A breach is recorded with the line of code that caused it, and is passed on to the inner service. When the probe
//! is dropped, in the thread of the test, it panics with all of them. So a breach in a background task or in another
//! thread is not lost, and recording it does not change what the middleware does.
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
    /// Makes a probe. `layer(&probe)` makes its services.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the breaches so far, in order. The probe then forgets them.
    #[must_use = "the breaches are forgotten; `assert_kept` fails if there are any"]
    pub fn take_violations(&self) -> Vec<Violation> {
        take(&mut self.shared.lock().violations)
    }

    /// Checks the contract so far.
    ///
    /// # Panics
    ///
    /// If it was broken. The message has each rule and the line that broke it.
    #[track_caller]
    pub fn assert_kept(&self) {
        let violations = self.take_violations();
        assert!(violations.is_empty(), "{}", Report(&violations));
    }

    /// Returns how many services are reserved: polled ready, and neither called nor dropped since.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.shared.lock().reserved
    }

    /// Checks that no service is reserved.
    ///
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

    /// Returns how many calls were made.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.shared.lock().calls
    }

    /// Returns how many responses are in flight: neither complete nor dropped.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.lock().in_flight
    }

    /// Returns the largest number of responses in flight at once.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.shared.lock().max_in_flight
    }

    /// Returns how many services there are, clones included.
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
                // A service that was ready only to fail a request may be pending again before there is one.
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

// A clone starts out unpolled.
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

/// A rule of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// Call a service only after `poll_ready` was ready, and only once.
    CalledUnready,
    /// Do not call a service whose `poll_ready` failed.
    CalledAfterError,
    /// Do not poll a service whose `poll_ready` failed.
    PolledAfterError,
    /// Do not poll a response future again after completion.
    PolledAfterCompletion,
    /// A ready service stays ready until it is called. This rule is for the inner service.
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
    /// The broken rule.
    pub rule: Rule,
    /// The line that made the call or the poll.
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

/// The connection of one service to its probe.
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
        // A failed service remains failed.
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

/// A response in flight.
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
