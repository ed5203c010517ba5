//! The parts of a random stack other than the middleware, and the probes that watch it.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use campanile::retry::Policy;
use campanile::testing::{Sim, Sleep, now};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::util::{MapRequest, UnsyncBoxService};
use campanile::{BoxError, Instant, Service, Timer};
use futures::future::LocalBoxFuture;

use super::Stack;

/// In nanoseconds.
const DAY: u64 = 24 * 3600 * 1_000_000_000;

/// A service that is not necessarily `Clone`.
pub(super) type Single = UnsyncBoxService<u64, u64, BoxError>;

/// The random source of the test.
pub(super) struct Dice(SplitMix64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    pub(super) fn number(&mut self, range: Range<u64>) -> u64 {
        self.0.next_range(range)
    }

    pub(super) fn size(&mut self, range: Range<u64>) -> usize {
        self.number(range) as usize
    }

    pub(super) fn chance(&mut self, chance: f64) -> bool {
        self.0.next_f64() < chance
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.size(0..from.len() as u64)]
    }

    /// An independent source.
    pub(super) fn fork(&mut self) -> Self {
        Self::new(self.number(0..u64::MAX))
    }

    pub(super) fn millis(&mut self, range: Range<u64>) -> Duration {
        // Often whole milliseconds, so that events coincide.
        let nanos = if self.chance(0.2) {
            self.number(0..1_000_000)
        } else {
            0
        };
        Duration::from_millis(self.number(range)) + Duration::from_nanos(nanos)
    }
}

/// When requests were admitted.
#[derive(Default)]
pub(super) struct Log {
    pub(super) passed: RefCell<Vec<Instant>>,
}

pub(super) struct RateBound {
    pub(super) per: Duration,
    pub(super) in_window: usize,
    pub(super) at_once: usize,
}

impl RateBound {
    pub(super) fn check(&self, log: &Log) {
        let mut passed = log.passed.borrow().clone();
        passed.sort_unstable();
        for (n, &from) in passed.iter().enumerate() {
            for (span, allowed) in [
                (self.per, self.in_window),
                (Duration::from_nanos(1), self.at_once),
            ] {
                let end = from.saturating_add(span);
                let count = passed[n..].partition_point(|moment| *moment < end);
                assert!(
                    count <= allowed,
                    "{count} within {span:?}, where {allowed} are allowed: {:?}",
                    &passed[n..n + count]
                );
            }
        }
    }
}

/// Wraps a rate limit to record when a request counts: when its handle becomes ready and has a token. A handle that is
/// only driven becomes ready without one.
pub(super) struct Admission<S> {
    inner: S,
    ready_at: Option<Instant>,
    admitted: Rc<Cell<Option<Instant>>>,
}

impl<S> Admission<S> {
    pub(super) fn new(inner: S, admitted: Rc<Cell<Option<Instant>>>) -> Self {
        Self {
            inner,
            ready_at: None,
            admitted,
        }
    }
}

// A clone has not been told that it is ready.
impl<S: Clone> Clone for Admission<S> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.admitted.clone())
    }
}

impl<S: Service<u64> + fmt::Debug> Service<u64> for Admission<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let polled = self.inner.poll_ready(cx);
        if format!("{:?}", self.inner).ends_with("is_ready: true, .. }") {
            self.ready_at.get_or_insert_with(now);
        } else {
            self.ready_at = None;
        }
        polled
    }

    fn call(&mut self, request: u64) -> S::Future {
        self.admitted.set(self.ready_at.take());
        self.inner.call(request)
    }
}

#[derive(Clone)]
pub(super) struct Attempts {
    pub(super) left: u64,
    pub(super) wait: Duration,
}

impl<E> Policy<u64, u64, E> for Attempts {
    type Future = Sleep;

    fn retry(&mut self, _: &mut u64, result: &mut Result<u64, E>) -> Option<Sleep> {
        if result.is_ok() {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        Some(Sim.sleep(self.wait))
    }

    fn clone_request(&mut self, request: &u64) -> Option<u64> {
        Some(*request)
    }
}

/// Counts the requests above a budget and the attempts below it.
pub(super) struct Account {
    share: f64,
    saved: u64,
    asked: Cell<u64>,
    sent: Cell<u64>,
}

impl Account {
    pub(super) fn new(share: f64, saved: u64) -> Self {
        Self {
            share,
            saved,
            asked: Cell::new(0),
            sent: Cell::new(0),
        }
    }

    /// Wraps `service` to count the requests that arrive.
    pub(super) fn ask<S: Service<u64>>(
        self: &Rc<Self>,
        service: S,
    ) -> MapRequest<S, impl Fn(u64) -> u64 + Clone + use<S>> {
        let this = Rc::clone(self);
        MapRequest::new(service, move |request| {
            this.asked.set(this.asked.get() + 1);
            request
        })
    }

    /// Wraps `service` to count the attempts.
    pub(super) fn send<S: Service<u64>>(
        self: &Rc<Self>,
        service: S,
    ) -> MapRequest<S, impl Fn(u64) -> u64 + Clone + use<S>> {
        let this = Rc::clone(self);
        MapRequest::new(service, move |request| {
            this.sent.set(this.sent.get() + 1);
            request
        })
    }

    pub(super) fn check(&self) {
        let (asked, sent) = (self.asked.get(), self.sent.get());
        let most = asked + self.saved + (asked as f64 * self.share + 1e-6) as u64;
        assert!(
            sent <= most,
            "{sent} attempts of {asked} requests, where {most} are allowed"
        );
    }
}

/// Counts the futures that are alive.
#[derive(Default)]
pub(super) struct Gauge {
    inside: Cell<usize>,
    most: Cell<usize>,
}

pub(super) struct Inside(Rc<Gauge>);

impl Gauge {
    pub(super) fn enter(self: &Rc<Self>) -> Inside {
        self.inside.set(self.inside.get() + 1);
        self.most.set(self.most.get().max(self.inside.get()));
        Inside(Rc::clone(self))
    }

    pub(super) fn most(&self) -> usize {
        assert_eq!(self.inside.get(), 0, "a future is left inside");
        self.most.get()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.set(self.0.inside.get() - 1);
    }
}

/// A future that counts as inside from its first poll until it is dropped, whether it has ended or not.
pub(super) struct Held {
    future: LocalBoxFuture<'static, Result<u64, BoxError>>,
    gauge: Rc<Gauge>,
    inside: Option<Inside>,
}

impl Held {
    pub(super) fn new(
        future: impl Future<Output = Result<u64, BoxError>> + 'static,
        gauge: &Rc<Gauge>,
    ) -> Self {
        Self {
            future: Box::pin(future),
            gauge: Rc::clone(gauge),
            inside: None,
        }
    }
}

impl Future for Held {
    type Output = Result<u64, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.inside.get_or_insert_with(|| this.gauge.enter());
        this.future.as_mut().poll(cx)
    }
}

/// Dies with probability `chance` before each request. Each clone dies on its own.
pub(super) struct Mortal {
    inner: Stack,
    chance: f64,
    dice: RefCell<Dice>,
    /// Whether it was polled since the last request.
    asked: bool,
}

impl Mortal {
    pub(super) fn new(inner: Stack, chance: f64, dice: Dice) -> Self {
        Self {
            inner,
            chance,
            dice: RefCell::new(dice),
            asked: false,
        }
    }
}

impl Clone for Mortal {
    fn clone(&self) -> Self {
        let dice = self.dice.borrow_mut().fork();
        Self::new(self.inner.clone(), self.chance, dice)
    }
}

impl Service<u64> for Mortal {
    type Response = u64;
    type Error = BoxError;
    type Future = <Stack as Service<u64>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        assert!(now().as_nanos() < DAY, "the run does not end");
        if !std::mem::replace(&mut self.asked, true) && self.dice.get_mut().chance(self.chance) {
            return Poll::Ready(Err(Refused.into()));
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: u64) -> Self::Future {
        self.asked = false;
        self.inner.call(request)
    }
}

macro_rules! failure {
    ($(#[$doc:meta])* $name:ident, $message:literal) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name;

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($message)
            }
        }

        impl Error for $name {}
    };
}

failure! {
    /// No server listens.
    Refused, "connection refused"
}

failure! {
    /// Rejected by a filter.
    Rejected, "request rejected"
}

/// A service without clones: each handle is made anew.
pub(super) struct Remade {
    inner: Single,
    make: Rc<dyn Fn() -> Single>,
}

impl Remade {
    pub(super) fn new(make: impl Fn() -> Single + 'static) -> Self {
        let inner = make();
        let make = Rc::new(make);
        Self { inner, make }
    }
}

impl Clone for Remade {
    fn clone(&self) -> Self {
        let make = Rc::clone(&self.make);
        let inner = make();
        Self { inner, make }
    }
}

impl Service<u64> for Remade {
    type Response = u64;
    type Error = BoxError;
    type Future = LocalBoxFuture<'static, Result<u64, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: u64) -> Self::Future {
        self.inner.call(request)
    }
}
