//! An idle buffer holds nothing that others could use, and a request inherits nothing from a cancelled one.
#![cfg(feature = "std")]

mod common;

use std::convert::Infallible;
use std::future::{Ready, ready as done};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use campanile::balance::p2c::Balance;
use campanile::buffer::{self, Buffer};
use campanile::discover::ServiceList;
use campanile::layer::Identity;
use campanile::limit::concurrency::{ConcurrencyLimit, Semaphore};
use campanile::limit::rate::{Rate, RateLimit};
use campanile::load::Constant;
use campanile::load_shed::LoadShed;
use campanile::steer::Steer;
use campanile::timeout::{self, Deadline};
use campanile::{Service, ServiceExt, service_fn};
use common::{Host, ManualTimer, On, WakeCount, on_every_runtime, ready, spawn, yield_now};

const SECOND: Duration = Duration::from_secs(1);

fn echo()
-> impl Service<u32, Response = u32, Error = Infallible, Future = Ready<Result<u32, Infallible>>> + Clone
{
    service_fn(|n: u32| done(Ok(n)))
}

fn make_ready<S: Service<u32, Error: std::fmt::Debug>>(service: &mut S) {
    ready(WakeCount::new().poll_ready(service)).unwrap();
}

/// A limit of one, with a handle that holds its permit.
fn busy() -> (
    impl Service<u32, Response = u32, Error = Infallible, Future: Send> + Clone + Send + 'static,
    Semaphore,
) {
    let semaphore = Semaphore::new(1);
    (
        ConcurrencyLimit::with_semaphore(echo(), semaphore.clone()),
        semaphore,
    )
}

#[test]
fn cancelled_request_leaves_the_queue() {
    let (limit, semaphore) = busy();
    let (mut first, mut last) = (limit.clone(), limit.clone());
    make_ready(&mut first);
    let (buffer, worker) = buffer::pair(limit, 4);
    let mut worker = spawn(worker);
    let mut response = spawn(buffer.clone().oneshot(1));
    assert!(response.poll().is_pending());
    assert!(worker.poll().is_pending());
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut last).is_pending());
    drop(response);
    assert!(worker.is_woken());
    assert!(worker.poll().is_pending());
    drop(first);
    assert_eq!(wakes.get(), 1);
    make_ready(&mut last);
    drop(last);
    assert_eq!(semaphore.available_permits(), 1);
}

#[test]
fn cancelled_request_releases_its_permit() {
    let (limit, semaphore) = busy();
    let mut first = limit.clone();
    make_ready(&mut first);
    let (buffer, worker) = buffer::pair(limit, 4);
    let mut worker = spawn(worker);
    let mut response = spawn(buffer.clone().oneshot(1));
    assert!(response.poll().is_pending());
    assert!(worker.poll().is_pending());
    // The permit is granted, and the request is cancelled before the worker notices.
    drop(first);
    assert_eq!(semaphore.available_permits(), 0);
    drop(response);
    assert!(worker.poll().is_pending());
    assert_eq!(semaphore.available_permits(), 1);
}

#[test]
fn queued_request_has_its_own_deadline() {
    let timer = ManualTimer::new();
    let (limit, _semaphore) = busy();
    let mut first = limit.clone();
    make_ready(&mut first);
    let deadline = Deadline::with_timer(limit, SECOND, timer.clone());
    let (buffer, worker) = buffer::pair(deadline, 4);
    let mut worker = spawn(worker);
    let mut given_up = spawn(buffer.clone().oneshot(1));
    assert!(given_up.poll().is_pending());
    assert!(worker.poll().is_pending());
    timer.advance(SECOND * 9 / 10);
    let mut queued = spawn(buffer.clone().oneshot(2));
    assert!(queued.poll().is_pending());
    drop(given_up);
    assert!(worker.poll().is_pending());
    // The first request's second has started.
    timer.advance(SECOND / 2);
    assert!(worker.poll().is_pending());
    assert!(queued.poll().is_pending());
    drop(first);
    assert!(worker.poll().is_pending());
    assert_eq!(ready(queued.poll()).unwrap(), 2);
    assert_eq!(timer.armed(), 0);
}

#[test]
fn queued_request_gets_its_full_timeout() {
    let timer = ManualTimer::new();
    let (limit, _semaphore) = busy();
    let mut first = limit.clone();
    make_ready(&mut first);
    let deadline = Deadline::with_timer(limit, SECOND, timer.clone());
    let (buffer, worker) = buffer::pair(deadline, 4);
    let mut worker = spawn(worker);
    let [mut given_up, mut queued] = [1, 2].map(|n| spawn(buffer.clone().oneshot(n)));
    assert!(given_up.poll().is_pending());
    assert!(queued.poll().is_pending());
    assert!(worker.poll().is_pending());
    timer.advance(SECOND / 2);
    drop(given_up);
    assert!(worker.poll().is_pending());
    timer.advance(SECOND * 9 / 10);
    assert!(worker.poll().is_pending());
    assert!(queued.poll().is_pending());
    timer.advance(SECOND / 10);
    assert!(worker.poll().is_pending());
    let error = ready(queued.poll()).unwrap_err();
    assert!(matches!(
        error.into_service(),
        Some(timeout::Error::Elapsed(_))
    ));
}

/// Whoever waited and whatever happened in the meantime, a request an hour later gets its own full second.
#[track_caller]
fn kept_ready_starts_no_deadline(meanwhile: impl FnOnce(&ManualTimer)) {
    let timer = ManualTimer::new();
    let (limit, _semaphore) = busy();
    let mut first = limit.clone();
    make_ready(&mut first);
    let deadline = Deadline::with_timer(limit, SECOND, timer.clone());
    let (buffer, worker) = buffer::pair(deadline, 4);
    let buffer = buffer.keep_ready();
    let mut worker = spawn(worker);
    let mut given_up = spawn(buffer.clone().oneshot(1));
    assert!(given_up.poll().is_pending());
    assert!(worker.poll().is_pending());
    assert_eq!(timer.armed(), 1);
    drop(given_up);
    assert!(worker.poll().is_pending());
    assert_eq!(timer.armed(), 0);
    meanwhile(&timer);
    drop(first);
    assert!(worker.is_woken());
    assert!(worker.poll().is_pending());
    timer.advance(3600 * SECOND);
    let mut response = spawn(buffer.clone().oneshot(2));
    assert!(response.poll().is_pending());
    assert!(worker.poll().is_pending());
    assert_eq!(ready(response.poll()).ok(), Some(2));
}

#[test]
fn kept_ready_deadline_starts_with_request() {
    kept_ready_starts_no_deadline(|_| {});
    kept_ready_starts_no_deadline(|timer| timer.advance(SECOND / 2));
    kept_ready_starts_no_deadline(|timer| timer.advance(2 * SECOND));
}

/// Counts its polls, keeps the last waker, and reserves nothing.
#[derive(Clone, Default)]
struct Busy {
    polls: std::rc::Rc<std::cell::Cell<u32>>,
    waker: std::rc::Rc<std::cell::RefCell<Option<Waker>>>,
}

impl Service<u32> for Busy {
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.polls.set(self.polls.get() + 1);
        self.waker.replace(Some(cx.waker().clone()));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, n: u32) -> Self::Future {
        done(Ok(n))
    }
}

#[test]
fn idle_service_is_polled_once_per_wake_up() {
    let service = Busy::default();
    let Busy { polls, waker } = service.clone();
    let (buffer, worker) = buffer::pair(service, 4);
    let mut worker = spawn(worker);
    let mut response = spawn(buffer.clone().oneshot(1));
    assert!(response.poll().is_pending());
    assert!(worker.poll().is_pending());
    assert_eq!(ready(response.poll()), Ok(1));
    // It was polled for the request, but not after the call: a service that does not know the marks would reserve
    // something without a request.
    assert!(worker.poll().is_pending());
    assert_eq!(polls.get(), 1);
    for n in 2..5 {
        waker.borrow().as_ref().unwrap().wake_by_ref();
        assert!(worker.is_woken());
        assert!(worker.poll().is_pending());
        assert!(worker.poll().is_pending());
        assert_eq!(polls.get(), n);
        assert!(!worker.is_woken());
    }
}

#[test]
fn busy_service_is_polled_once_per_request() {
    let service = Busy::default();
    let polls = service.polls.clone();
    let (buffer, worker) = buffer::pair(service, 4);
    let mut worker = spawn(worker);
    let mut responses = [1, 2, 3, 4].map(|n| spawn(buffer.clone().oneshot(n)));
    assert!(responses.iter_mut().all(|r| r.poll().is_pending()));
    assert!(worker.poll().is_pending());
    assert!(responses.iter_mut().all(|r| r.poll().is_ready()));
    assert_eq!(polls.get(), 4);
}

/// A request goes to one of several services, though all of them became ready for it.
#[track_caller]
fn holds_no_permit_after_a_call<S>(service: S, permits: &[Semaphore])
where
    S: Service<u32, Response = u32, Error: std::fmt::Debug>,
{
    let (buffer, worker) = buffer::pair(service, 4);
    let mut worker = spawn(worker);
    for n in 0..3 {
        let mut response = spawn(buffer.clone().oneshot(n));
        assert!(response.poll().is_pending());
        assert!(worker.poll().is_pending());
        assert_eq!(ready(response.poll()).ok(), Some(n));
        assert!(!worker.is_woken());
        assert!(permits.iter().all(|p| p.available_permits() == 1), "{n}");
    }
}

#[test]
fn parts_hold_no_permit_after_a_call() {
    let permits = [(); 3].map(|()| Semaphore::new(1));
    let parts = || {
        permits
            .iter()
            .map(|p| ConcurrencyLimit::with_semaphore(echo(), p.clone()))
    };
    let steer = Steer::new(parts().collect::<Vec<_>>(), |_: &u32, _: &[_]| 0);
    holds_no_permit_after_a_call(steer, &permits);
    let endpoints = parts().map(|part| Constant::new(part, 1));
    let balance = Balance::with_layer(ServiceList::new(endpoints), Identity::new());
    holds_no_permit_after_a_call(balance, &permits);
}

/// A shed request calls none of the parts, which became ready for the one before it.
#[test]
fn parts_hold_no_permit_after_shedding() {
    let timer = ManualTimer::new();
    let permits = [(); 2].map(|()| Semaphore::new(1));
    let parts = permits
        .each_ref()
        .map(|p| ConcurrencyLimit::with_semaphore(echo(), p.clone()));
    let steer = Steer::new(parts, |_: &u32, _: &[_]| 0);
    let rate = RateLimit::with_timer(steer, Rate::new(1, SECOND), timer);
    let (buffer, worker) = buffer::pair(LoadShed::new(rate), 4);
    let mut worker = spawn(worker);
    let mut responses = [1, 2].map(|n| spawn(buffer.clone().oneshot(n)));
    assert!(responses.iter_mut().all(|r| r.poll().is_pending()));
    assert!(worker.poll().is_pending());
    let answers = responses.map(|mut response| ready(response.poll()).ok());
    assert_eq!(answers, [Some(1), None]);
    assert!(permits.iter().all(|p| p.available_permits() == 1));
}

/// A service that does not know the marks would take a permit when polled without a request.
#[cfg(feature = "tower")]
#[test]
fn idle_buffer_takes_no_foreign_permit() {
    let semaphore = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
    let mut buffers = [(); 2].map(|()| {
        let limit = tower::limit::ConcurrencyLimit::with_semaphore(echo(), semaphore.clone());
        let (buffer, worker) = buffer::pair(limit, 4);
        (buffer, spawn(worker))
    });
    for n in 0..4 {
        let (buffer, worker) = &mut buffers[n as usize % 2];
        let mut response = spawn(buffer.clone().oneshot(n));
        assert!(response.poll().is_pending());
        assert!(worker.poll().is_pending());
        assert_eq!(ready(response.poll()).ok(), Some(n));
        drop(response);
        assert!(worker.poll().is_pending());
        assert_eq!(semaphore.available_permits(), 1);
    }
}

#[test]
fn idle_buffer_holds_no_token() {
    let timer = ManualTimer::new();
    let (limit, _semaphore) = busy();
    let mut first = limit.clone();
    make_ready(&mut first);
    let rate = RateLimit::with_timer(echo(), Rate::new(1, SECOND), timer.clone());
    let mut other = rate.clone();
    let (buffer, worker) = buffer::pair(rate, 4);
    let mut worker = spawn(worker);
    // The only token is taken.
    make_ready(&mut other);
    assert_eq!(ready(spawn(other.call(0)).poll()).unwrap(), 0);
    let mut given_up = spawn(buffer.clone().oneshot(1));
    assert!(given_up.poll().is_pending());
    assert!(worker.poll().is_pending());
    assert_eq!(timer.armed(), 1);
    drop(given_up);
    assert!(worker.poll().is_pending());
    assert_eq!(timer.armed(), 0);
    timer.advance(SECOND);
    make_ready(&mut other);
}

/// The permit that a request waited for goes to the next caller, and the request's deadline ends with it.
async fn idle_buffer_holds_no_permit<H: Host>(rt: On<H>) {
    let (limit, semaphore) = busy();
    let deadline = Deadline::with_timer(limit.clone(), SECOND, rt.clone());
    let buffer = Buffer::with_executor(deadline, 4, &rt);
    for _ in 0..5 {
        let mut first = limit.clone();
        first.ready().await.unwrap();
        let (given_up, give_up) = futures::future::abortable(buffer.clone().oneshot(1));
        let given_up = rt.start(given_up);
        yield_now().await;
        give_up.abort();
        given_up.await.unwrap().unwrap_err();
        drop(first);
        common::until(|| semaphore.available_permits() == 1).await;
        // No earlier alarm makes the service take it again.
        rt.advance(3600 * SECOND).await;
        yield_now().await;
        assert_eq!(semaphore.available_permits(), 1);
        // A request an hour later gets its own full second.
        assert_eq!(buffer.clone().oneshot(2).await.unwrap(), 2);
    }
}

/// The alarm of a deadline is disarmed once its request is answered.
async fn answered_request_leaves_no_alarm<H: Host>(rt: On<H>) {
    let (limit, semaphore) = busy();
    let deadline = Deadline::with_timer(limit.clone(), SECOND, rt.clone());
    let buffer = Buffer::with_executor(deadline, 4, &rt);
    let mut first = limit.clone();
    first.ready().await.unwrap();
    let answer = rt.start(buffer.clone().oneshot(1));
    for _ in 0..10 {
        yield_now().await;
    }
    drop(first);
    assert_eq!(answer.await.unwrap().unwrap(), 1);
    for _ in 0..10 {
        rt.advance(SECOND / 2).await;
        assert_eq!(semaphore.available_permits(), 1);
    }
}

on_every_runtime! {
    answered_request_leaves_no_alarm,
    idle_buffer_holds_no_permit,
}
