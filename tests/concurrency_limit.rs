//! The concurrency limit, poll by poll.
#![cfg(feature = "std")]

mod common;

use std::convert::Infallible;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use campanile::limit::concurrency::{InvalidLimit, Permitted, Semaphore};
use campanile::limit::{ConcurrencyLimit, ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer};
use campanile::load_shed::{self, LoadShed};
use campanile::timeout::{Deadline, Timeout};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Layer, Service, ServiceExt, buffer, service_fn};
use futures::{FutureExt, Stream, StreamExt, stream};

use common::{
    Failure, Host, ManualTimer, On, WakeCount, mock, on_every_runtime, panics_at, ready, spawn,
    yield_now,
};

#[track_caller]
fn make_ready<S: Service<R>, R>(service: &mut S)
where
    S::Error: std::fmt::Debug,
{
    ready(WakeCount::new().poll_ready(service)).unwrap();
}

/// A waker that panics when it is woken.
struct BadWaker;

impl Wake for BadWaker {
    fn wake(self: Arc<Self>) {
        panic!("woken");
    }
}

/// The next waiter gets the permit of a request that is answered, and its waker panics.
#[test]
fn panicking_waker_costs_no_answer() {
    let (service, mut handle) = mock::<u32, u32>();
    let mut limit = ConcurrencyLimit::new(service, 1);
    let mut next = limit.clone();
    make_ready(&mut limit);
    let mut response = spawn(limit.call(1));
    let waker = Arc::new(BadWaker).into();
    let mut cx = Context::from_waker(&waker);
    assert!(next.poll_ready(&mut cx).is_pending());
    handle.try_next().unwrap().1.send(2);
    assert_eq!(ready(response.poll()), Ok(2));
    ready(next.poll_ready(&mut cx)).unwrap();
}

/// The worker gives up a permit that it shares with a task whose waker panics.
#[test]
fn panicking_waker_ends_no_buffer() {
    let limit = ConcurrencyLimit::new(service_fn(async |n: u32| Ok::<_, Infallible>(n)), 1);
    let (mut holder, mut next) = (limit.clone(), limit.clone());
    make_ready(&mut holder);
    let (buffer, worker) = buffer::pair(limit, 4);
    let mut worker = spawn(worker);
    let mut cancelled = spawn(buffer.clone().oneshot(1));
    assert!(cancelled.poll().is_pending());
    assert!(worker.poll().is_pending());
    let waker = Arc::new(BadWaker).into();
    assert!(
        next.poll_ready(&mut Context::from_waker(&waker))
            .is_pending()
    );
    drop((cancelled, holder));
    assert!(worker.poll().is_pending());
    drop(next);
    let mut response = spawn(buffer.clone().oneshot(2));
    assert!(response.poll().is_pending());
    assert!(worker.poll().is_pending());
    assert_eq!(ready(response.poll()).ok(), Some(2));
}

#[test]
fn permit_is_held_until_the_response() {
    let (service, mut handle) = mock::<u32, u32>();
    let mut limit = ConcurrencyLimit::new(service, 1);
    make_ready(&mut limit);
    let mut response = spawn(limit.call(1));
    assert!(response.poll().is_pending());
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut limit).is_pending());

    handle.try_next().unwrap().1.send(2);
    assert_eq!(ready(response.poll()), Ok(2));
    // The response future still exists.
    assert_eq!(wakes.get(), 1);
    ready(wakes.poll_ready(&mut limit)).unwrap();
    drop(response);
    // Dropping it does not return the permit a second time.
    let mut other = limit.clone();
    assert!(wakes.poll_ready(&mut other).is_pending());
}

#[test]
fn permit_can_travel_with_the_response() {
    let (service, mut handle) = mock::<u32, u32>();
    let semaphore = Semaphore::new(1);
    let mut limit = ConcurrencyLimit::with_semaphore(service, semaphore.clone()).with_permit();
    make_ready(&mut limit);
    let mut response = spawn(limit.call(1));
    assert!(response.poll().is_pending());
    handle.try_next().unwrap().1.send(2);
    let answer = ready(response.poll()).unwrap();
    assert_eq!(*answer, 2);
    drop(response);
    assert_eq!(semaphore.available_permits(), 0);
    let (answer, permit) = answer.into_parts();
    assert_eq!(answer, 2);
    assert_eq!(semaphore.available_permits(), 0);
    drop(permit);
    assert_eq!(semaphore.available_permits(), 1);

    // An error takes no permit along.
    make_ready(&mut limit);
    let mut response = spawn(limit.call(1));
    assert!(response.poll().is_pending());
    handle.try_next().unwrap().1.fail(Failure("no"));
    assert!(ready(response.poll()).is_err());
    assert_eq!(semaphore.available_permits(), 1);
}

/// Counts the live futures of a service, and their maximum.
#[derive(Clone, Default)]
struct Alive(Arc<(AtomicUsize, AtomicUsize)>);

impl Alive {
    fn enter(&self) -> Self {
        let alive = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.fetch_max(alive, Ordering::SeqCst);
        self.clone()
    }

    fn leave(&self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }

    fn most(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

/// Alive from its first poll until it is dropped. It is ready at once, or never.
struct Response(Alive, Option<Alive>, bool);

impl Future for Response {
    type Output = Result<u32, Failure>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if self.1.is_none() {
            self.1 = Some(self.0.enter());
        }
        if self.2 {
            Poll::Ready(Ok(1))
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        if let Some(alive) = &self.1 {
            alive.leave();
        }
    }
}

fn counted(
    alive: &Alive,
) -> impl Service<u32, Response = u32, Error = Failure, Future = Response> + Clone + use<> {
    let alive = alive.clone();
    service_fn(move |n: u32| Response(alive.clone(), None, n > 0))
}

#[test]
fn permit_is_free_once_the_future_is_gone() {
    let alive = Alive::default();
    let limit = ConcurrencyLimit::new(counted(&alive), 1);
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut handle = limit.clone();
        make_ready(&mut handle);
        let mut response = spawn(handle.call(1));
        assert_eq!(ready(response.poll()), Ok(1));
        kept.push(response);
    }
    let mut kept_with_permit = Vec::new();
    for _ in 0..3 {
        let mut handle = limit.clone().with_permit();
        make_ready(&mut handle);
        let mut response = spawn(handle.call(1));
        drop(ready(response.poll()).unwrap().into_parts().1);
        kept_with_permit.push(response);
    }
    assert_eq!(alive.most(), 1);
}

#[test]
fn limit_counts_timed_out_futures() {
    let alive = Alive::default();
    let timer = ManualTimer::new();
    let second = Duration::from_secs(1);
    let inner = Timeout::with_timer(counted(&alive), second, timer.clone());
    let limit = ConcurrencyLimit::new(inner, 1);
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut handle = limit.clone();
        make_ready(&mut handle);
        let mut response = spawn(handle.call(0));
        assert!(response.poll().is_pending());
        timer.advance(second);
        assert!(ready(response.poll()).is_err());
        kept.push(response);
    }
    assert_eq!(alive.most(), 1);
}

#[test]
fn unready_service_takes_no_permit() {
    let (service, handle) = mock::<u32, u32>();
    let (other, _other_handle) = mock::<u32, u32>();
    let semaphore = Semaphore::new(1);
    let mut stuck = ConcurrencyLimit::with_semaphore(service, semaphore.clone());
    let mut other = ConcurrencyLimit::with_semaphore(other, semaphore.clone());
    handle.set_ready(false);
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut stuck).is_pending());
    make_ready(&mut other);
    let response = other.call(1);
    // The service is ready now, and the handle waits for the permit.
    handle.set_ready(true);
    assert!(wakes.poll_ready(&mut stuck).is_pending());
    // The service is no longer ready when the permit arrives, so the permit goes to a handle that can proceed.
    handle.set_ready(false);
    drop(response);
    assert!(wakes.poll_ready(&mut stuck).is_pending());
    assert_eq!(semaphore.available_permits(), 1);
    make_ready(&mut other);
}

/// Two limits of one permit each, with services behind one or both of them.
struct TwoLimits {
    outer: Semaphore,
    inner: Semaphore,
}

impl TwoLimits {
    fn new() -> Self {
        let [outer, inner] = [(); 2].map(|()| Semaphore::new(1));
        Self { outer, inner }
    }

    fn one(
        semaphore: &Semaphore,
    ) -> impl Service<u32, Future: Unpin, Error: Debug> + Clone + use<> {
        let echo = service_fn(|n: u32| std::future::ready(Ok::<_, Infallible>(n)));
        ConcurrencyLimit::with_semaphore(echo, semaphore.clone())
    }

    fn both(&self) -> impl Service<u32, Future: Unpin, Error: Debug> + Clone + use<> {
        ConcurrencyLimit::with_semaphore(Self::one(&self.inner), self.outer.clone())
    }

    fn reversed(&self) -> Self {
        Self {
            outer: self.inner.clone(),
            inner: self.outer.clone(),
        }
    }
}

/// A client of nested limits, in an executor that picks any woken task.
struct NestedClient<S: Service<u32>> {
    service: S,
    wakes: WakeCount,
    seen: usize,
    in_flight: Option<S::Future>,
}

impl<S: Service<u32, Error: Debug>> NestedClient<S> {
    fn new(service: S) -> Self {
        Self {
            service,
            wakes: WakeCount::new(),
            seen: usize::MAX,
            in_flight: None,
        }
    }

    fn is_woken(&self) -> bool {
        self.in_flight.is_some() || self.seen != self.wakes.get()
    }

    /// Ends its request, or waits for the permits of the next one. Returns whether that has begun.
    fn step(&mut self) -> bool {
        if self.in_flight.take().is_some() {
            self.seen = usize::MAX;
            return false;
        }
        self.seen = self.wakes.get();
        let is_ready = self.wakes.poll_ready(&mut self.service).is_ready();
        if is_ready {
            self.in_flight = Some(self.service.call(1));
        }
        is_ready
    }
}

/// Neither a deadlock nor permits that go round in a circle, also if limits are nested in opposite orders.
fn nested_limits_let_somebody_through(orders: &[bool]) {
    for seed in 0..300 {
        let limits = TwoLimits::new();
        let reversed = limits.reversed();
        let mut clients: Vec<_> = (orders.iter())
            .map(|&is_forward| {
                let limits = if is_forward { &limits } else { &reversed };
                NestedClient::new(limits.both())
            })
            .collect();
        let mut rng = SplitMix64::new(seed);
        let mut steps = 0;
        for _ in 0..2_000 {
            let woken: Vec<_> = clients.iter_mut().filter(|it| it.is_woken()).collect();
            assert!(!woken.is_empty(), "a deadlock with the seed {seed}");
            let at = rng.next_range(0..woken.len() as u64) as usize;
            let has_begun = woken.into_iter().nth(at).unwrap().step();
            steps = if has_begun { 0 } else { steps + 1 };
            assert!(steps < 200, "{steps} steps in vain with the seed {seed}");
        }
    }
}

#[test]
fn two_limits_in_one_order_always_progress() {
    nested_limits_let_somebody_through(&[true; 3]);
    nested_limits_let_somebody_through(&[true; 5]);
}

#[test]
fn two_limits_in_opposite_orders_progress() {
    nested_limits_let_somebody_through(&[true, false]);
    nested_limits_let_somebody_through(&[true, false, true, false]);
    nested_limits_let_somebody_through(&[true, true, true, false]);
}

#[test]
fn contended_service_that_fails_keeps_no_permit() {
    let semaphore = Semaphore::new(1);
    let (service, handle) = mock::<u32, u32>();
    let (other, _other_handle) = mock::<u32, u32>();
    let mut down = ConcurrencyLimit::with_semaphore(service, semaphore.clone());
    let mut other = ConcurrencyLimit::with_semaphore(other, semaphore.clone());
    let wakes = WakeCount::new();
    for _ in 0..10 {
        handle.set_ready(true);
        make_ready(&mut other);
        assert!(wakes.poll_ready(&mut down).is_pending());
        // The permit arrives when the service is no longer ready.
        handle.set_ready(false);
        drop(other.call(1));
        // It may keep the permit for one more poll.
        for _ in 0..2 {
            assert!(wakes.poll_ready(&mut down).is_pending());
        }
        assert_eq!(semaphore.available_permits(), 1);
    }
}

#[test]
fn two_permits_do_not_circulate() {
    let limits = TwoLimits::new();
    let mut outer = TwoLimits::one(&limits.outer);
    let mut inner = TwoLimits::one(&limits.inner);
    let mut handles = [(); 3].map(|()| (limits.both(), WakeCount::new()));
    let mut poll = |n: usize| {
        let (handle, wakes) = &mut handles[n];
        wakes.poll_ready(handle).is_ready()
    };
    make_ready(&mut outer);
    assert!(!poll(0) && !poll(2), "both wait for the first permit");
    make_ready(&mut inner);
    assert!(!poll(1), "it waits for the second one");
    drop((outer, inner));
    assert!(
        (0..30).any(|turn| poll(turn % 3)),
        "both permits are free and unclaimed"
    );
}

#[test]
fn unready_call_leaves_the_inner_queue() {
    let limits = TwoLimits::new();
    let mut outer = TwoLimits::one(&limits.outer);
    let mut inner = TwoLimits::one(&limits.inner);
    make_ready(&mut outer);
    make_ready(&mut inner);
    let (mut first, mut second) = (limits.both(), limits.both());
    assert!(WakeCount::new().poll_ready(&mut first).is_pending());
    let mut second = spawn(second.call(2));
    assert!(second.poll().is_pending());
    // This was the first to wait for the second permit.
    let mut first = spawn(first.call(1));
    assert!(first.poll().is_pending());
    drop((outer, inner));
    assert!(ready(second.poll()).is_ok());
    assert!(ready(first.poll()).is_ok());
}

#[test]
fn permit_waiter_holds_no_inner_capacity() {
    let (service, mut handle) = mock::<u32, u32>();
    let (buffer, worker) = campanile::buffer::pair(service, 1);
    let mut worker = spawn(worker);
    let limit = ConcurrencyLimit::new(buffer.clone(), 1);
    let (mut first, mut second) = (limit.clone(), limit.clone());
    make_ready(&mut first);
    let mut response = spawn(first.call(1));
    assert!(worker.poll().is_pending());
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut second).is_pending());
    // A shed request holds none either.
    let mut shed = LoadShed::new(limit.clone());
    make_ready(&mut shed);
    // Like another attempt of the first request.
    make_ready(&mut buffer.clone());
    assert!(wakes.poll_ready(&mut second).is_pending());
    make_ready(&mut buffer.clone());
    handle.try_next().unwrap().1.send(2);
    assert!(ready(response.poll()).is_ok());
    assert_eq!(wakes.get(), 1);
    // The handle gets the permit but no capacity, so it leaves the permit to others.
    let mut room = buffer.clone();
    make_ready(&mut room);
    assert!(wakes.poll_ready(&mut second).is_pending());
    let mut other = LoadShed::new(ConcurrencyLimit::new(limit.clone(), 1));
    make_ready(&mut other);
    drop(room);
    assert_eq!(wakes.get(), 2);
    ready(wakes.poll_ready(&mut second)).unwrap();
}

#[test]
fn elapsed_deadline_leaves_the_queue() {
    let (service, _handle) = mock::<u32, u32>();
    let timer = ManualTimer::new();
    let second = Duration::from_secs(1);
    let mut first = ConcurrencyLimit::new(service, 1);
    let mut late = Deadline::with_timer(first.clone(), second, timer.clone());
    let mut last = first.clone();
    make_ready(&mut first);
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut late).is_pending());
    assert!(wakes.poll_ready(&mut last).is_pending());
    timer.advance(second);
    make_ready(&mut late);
    // The permit is free before the request is refused, though the handle is kept.
    drop(first);
    make_ready(&mut last);
    assert!(ready(spawn(late.call(1)).poll()).is_err());
    assert_eq!(timer.armed(), 0);
}

/// A limit of one around a service that answers with a stream; the test sees when it is dropped.
fn streamed(
    semaphore: &Semaphore,
) -> impl Service<u32, Response = Permitted<Body>, Error = Failure> + Clone {
    let inner = service_fn(|n: u32| std::future::ready(Ok(Body(stream::iter(0..n)))));
    GlobalConcurrencyLimitLayer::with_semaphore(semaphore.clone())
        .with_permit()
        .layer(inner)
}

#[derive(Debug)]
struct Body(stream::Iter<std::ops::Range<u32>>);

impl Stream for Body {
    type Item = u32;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u32>> {
        Pin::new(&mut self.0).poll_next(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

fn answer<S: Service<u32>>(service: &mut S, request: u32) -> S::Response
where
    S::Error: std::fmt::Debug,
{
    make_ready(service);
    ready(spawn(service.call(request)).poll()).unwrap()
}

#[test]
fn stream_holds_its_permit_to_the_end() {
    let semaphore = Semaphore::new(1);
    let mut limit = streamed(&semaphore);
    let mut other = limit.clone();
    let mut body = answer(&mut limit, 2);
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut other).is_pending());
    assert_eq!(body.size_hint(), (2, Some(2)));
    for n in [Some(0), Some(1)] {
        assert_eq!(body.next().now_or_never(), Some(n));
        assert_eq!(wakes.get(), 0);
    }
    assert_eq!(body.next().now_or_never(), Some(None));
    assert_eq!(wakes.get(), 1);
    ready(wakes.poll_ready(&mut other)).unwrap();

    // Dropping it does not return the permit a second time.
    assert_eq!(body.next().now_or_never(), Some(None));
    drop(body);
    assert_eq!(semaphore.available_permits(), 0);
    drop(other);
    assert_eq!(semaphore.available_permits(), 1);
}

#[test]
fn stream_holds_its_permit_until_dropped() {
    let semaphore = Semaphore::new(1);
    let mut limit = streamed(&semaphore);
    let mut body = answer(&mut limit, 2);
    assert_eq!(body.next().now_or_never(), Some(Some(0)));
    assert_eq!(semaphore.available_permits(), 0);
    drop(body);
    assert_eq!(semaphore.available_permits(), 1);

    // Taken apart, put together, and mapped.
    let (body, permit) = answer(&mut limit, 2).into_parts();
    let body = Permitted::from_parts(body.map(|n| n + 10), permit);
    let mut body = Permitted::map(body, StreamExt::enumerate);
    assert_eq!(body.next().now_or_never(), Some(Some((0, 10))));
    assert_eq!(semaphore.available_permits(), 0);
    assert_eq!(body.collect::<Vec<_>>().now_or_never(), Some(vec![(1, 11)]));
    assert_eq!(semaphore.available_permits(), 1);
}

#[test]
fn permit_returns_after_its_response() {
    struct Watch(Semaphore, Arc<AtomicUsize>);

    impl Drop for Watch {
        fn drop(&mut self) {
            self.1
                .fetch_add(1 + self.0.available_permits(), Ordering::SeqCst);
        }
    }

    let (semaphore, seen) = (Semaphore::new(1), Arc::new(AtomicUsize::new(0)));
    let watch = (semaphore.clone(), seen.clone());
    let inner = service_fn(move |_: u32| {
        std::future::ready(Ok::<_, Failure>(Watch(watch.0.clone(), watch.1.clone())))
    });
    let mut limit = ConcurrencyLimit::with_semaphore(inner, semaphore.clone()).with_permit();
    drop(answer(&mut limit, 1));
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    // A panic loses no permit.
    let answer = answer(&mut limit, 1);
    let panics = AssertUnwindSafe(|| Permitted::map(answer, |_| panic!("here")));
    assert!(catch_unwind(panics).is_err());
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    assert_eq!(semaphore.available_permits(), 1);
}

#[test]
fn layer_passes_permits_to_responses() {
    let inner = || service_fn(async |n: u32| Ok::<_, Failure>(n));
    let own = ConcurrencyLimitLayer::new(1).unreserved().with_permit();
    let (mut a, mut b) = (own.layer(inner()), own.layer(inner()));
    let held = answer(&mut a, 1);
    drop(answer(&mut b, 1));
    assert!(spawn(a.call(1)).poll().is_pending());
    drop(held);
    drop(answer(&mut a, 1));

    let shared = GlobalConcurrencyLimitLayer::new(1).with_permit();
    let (mut a, mut b) = (shared.layer(inner()), shared.layer(inner()));
    let held = answer(&mut a, 1);
    assert!(WakeCount::new().poll_ready(&mut b).is_pending());
    drop(held);
    drop(answer(&mut b, 1));
}

#[test]
fn a_shed_request_leaves_nothing_behind() {
    let (service, mut handle) = mock::<u32, u32>();
    let limit = ConcurrencyLimit::new(service, 1);
    let (mut a, mut b, mut c) = (
        LoadShed::new(limit.clone()),
        LoadShed::new(limit.clone()),
        LoadShed::new(limit),
    );
    make_ready(&mut a);
    let mut in_flight = spawn(a.call(1));
    assert!(in_flight.poll().is_pending());
    make_ready(&mut b);
    assert!(matches!(
        ready(spawn(b.call(2)).poll()),
        Err(load_shed::Error::Overloaded(_))
    ));
    handle.try_next().unwrap().1.send(1);
    assert_eq!(ready(in_flight.poll()), Ok(1));
    // The handle `b` still exists and idles.
    make_ready(&mut c);
    let mut admitted = spawn(c.call(3));
    assert!(admitted.poll().is_pending());
    handle.try_next().unwrap().1.send(3);
    assert_eq!(ready(admitted.poll()), Ok(3));
    drop(b);
}

#[test]
fn shed_request_returns_permit_if_unready() {
    let (service, handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let semaphore = Semaphore::new(1);
    let limit = ConcurrencyLimit::with_semaphore(service, semaphore.clone());
    let mut shedding = LoadShed::new(limit);
    make_ready(&mut shedding);
    assert_eq!(semaphore.available_permits(), 1);
}

#[test]
fn failed_service_keeps_no_permit() {
    let (service, handle) = mock::<u32, u32>();
    handle.fail(Failure("broken"));
    let semaphore = Semaphore::new(1);
    let mut limit = ConcurrencyLimit::with_semaphore(service, semaphore.clone());
    assert!(ready(WakeCount::new().poll_ready(&mut limit)).is_err());
    assert_eq!(semaphore.available_permits(), 1);
}

#[test]
fn shed_poll_keeps_the_waiters_waker() {
    let mut holder = ConcurrencyLimit::new(mock::<u32, u32>().0, 1);
    let mut waiting = holder.clone();
    make_ready(&mut holder);
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut waiting).is_pending());
    make_ready(&mut LoadShed::new(&mut waiting));
    drop(holder);
    assert_eq!(wakes.get(), 1);
}

#[test]
fn first_come_first_served() {
    let (service, _handle) = mock::<u32, u32>();
    let mut holder = ConcurrencyLimit::new(service, 1);
    make_ready(&mut holder);
    let wakes: Vec<_> = (0..3).map(|_| WakeCount::new()).collect();
    let mut waiting: Vec<_> = wakes
        .iter()
        .map(|wakes| {
            let mut handle = holder.clone();
            assert!(wakes.poll_ready(&mut handle).is_pending());
            handle
        })
        .collect();
    drop(holder);
    for n in 0..3 {
        // Only the first waiter is woken; none overtakes it.
        let woken: Vec<_> = wakes.iter().map(WakeCount::get).collect();
        assert_eq!(woken.iter().sum::<usize>(), n + 1);
        assert_eq!(woken[n], 1);
        let mut late = waiting[0].clone();
        assert!(WakeCount::new().poll_ready(&mut late).is_pending());
        drop(late);
        let mut first = waiting.remove(0);
        ready(wakes[n].poll_ready(&mut first)).unwrap();
    }
}

#[test]
fn cancelled_waiter_passes_its_permit_on() {
    let (service, _handle) = mock::<u32, u32>();
    let mut holder = ConcurrencyLimit::new(service, 1);
    make_ready(&mut holder);
    let (a, b) = (WakeCount::new(), WakeCount::new());
    let (mut first, mut second) = (holder.clone(), holder.clone());
    assert!(a.poll_ready(&mut first).is_pending());
    assert!(b.poll_ready(&mut second).is_pending());
    drop(holder);
    assert_eq!((a.get(), b.get()), (1, 0));
    // Granted, and dropped before it was polled again.
    drop(first);
    assert_eq!(b.get(), 1);
    ready(b.poll_ready(&mut second)).unwrap();
}

#[test]
fn last_waker_is_the_one_woken() {
    let (service, _handle) = mock::<u32, u32>();
    let mut holder = ConcurrencyLimit::new(service, 1);
    make_ready(&mut holder);
    let mut waiting = holder.clone();
    let (old, new) = (WakeCount::new(), WakeCount::new());
    assert!(old.poll_ready(&mut waiting).is_pending());
    assert!(new.poll_ready(&mut waiting).is_pending());
    drop(holder);
    assert_eq!((old.get(), new.get()), (0, 1));
}

#[test]
fn a_call_without_readiness_waits() {
    let (service, mut handle) = mock::<u32, u32>();
    // The inner service waits for readiness of its own; only the limit is called unready.
    let service = service_fn(move |n| {
        let mut service = service.clone();
        async move {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(n).await
        }
    });
    let mut limit = ConcurrencyLimit::new(service, 1);
    let mut first = spawn(limit.call(1));
    let mut second = spawn(limit.call(2));
    assert!(first.poll().is_pending());
    assert!(second.poll().is_pending());
    assert_eq!(handle.calls(), 1);
    handle.try_next().unwrap().1.send(10);
    assert_eq!(ready(first.poll()), Ok(10));
    assert!(second.is_woken());
    assert!(second.poll().is_pending());
    handle.try_next().unwrap().1.send(20);
    assert_eq!(ready(second.poll()), Ok(20));
}

#[test]
fn idle_unreserved_handles_starve_no_caller() {
    let (service, mut handle) = mock::<u32, u32>();
    let limit = ConcurrencyLimitLayer::new(1).unreserved().layer(service);
    let mut idle: Vec<_> = (0..5).map(|_| limit.clone()).collect();
    idle.iter_mut().for_each(make_ready);
    let mut caller = limit.clone();
    make_ready(&mut caller);
    let mut response = spawn(caller.call(1));
    assert!(response.poll().is_pending());
    handle.try_next().unwrap().1.send(2);
    assert_eq!(ready(response.poll()), Ok(2));
}

#[test]
fn a_global_limit_can_be_unreserved_too() {
    let layer = GlobalConcurrencyLimitLayer::new(1).unreserved();
    let mut idle = layer.layer(mock::<u32, u32>().0);
    make_ready(&mut idle);
    let mut other = layer.layer(mock::<u32, u32>().0);
    make_ready(&mut other);
}

#[test]
fn unreserved_returns_the_reserved_permit() {
    let semaphore = Semaphore::new(1);
    let (service, _handle) = mock::<u32, u32>();
    let mut limit = ConcurrencyLimit::with_semaphore(service, semaphore.clone());
    make_ready(&mut limit);
    let mut idle = limit.unreserved();
    assert_eq!(semaphore.available_permits(), 1);
    make_ready(&mut idle);
    assert_eq!(semaphore.available_permits(), 1);
}

#[test]
fn a_panic_gives_the_permit_back() {
    let semaphore = Semaphore::new(1);
    let in_call =
        service_fn(|n: u32| -> std::future::Ready<Result<u32, Failure>> { panic!("told to: {n}") });
    let mut limit = ConcurrencyLimit::with_semaphore(in_call, semaphore.clone());
    make_ready(&mut limit);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| limit.call(1)));
    assert!(caught.is_err());
    assert_eq!(semaphore.available_permits(), 1);

    let in_poll = service_fn(async |n: u32| -> Result<u32, Failure> { panic!("told to: {n}") });
    let mut limit = ConcurrencyLimit::with_semaphore(in_poll, semaphore.clone());
    make_ready(&mut limit);
    let mut response = spawn(limit.call(1));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| response.poll()));
    assert!(caught.is_err());
    drop(response);
    assert_eq!(semaphore.available_permits(), 1);
}

#[test]
fn semaphore_can_be_shared() {
    let semaphore = Semaphore::new(2);
    let layer = GlobalConcurrencyLimitLayer::with_semaphore(semaphore.clone());
    let (mut a, mut b, mut c) = (
        layer.layer(mock::<u32, u32>().0),
        layer.layer(mock::<u32, u32>().0),
        ConcurrencyLimit::with_semaphore(mock::<u32, u32>().0, semaphore.clone()),
    );
    make_ready(&mut a);
    make_ready(&mut b);
    assert!(WakeCount::new().poll_ready(&mut c).is_pending());
    assert_eq!(semaphore.available_permits(), 0);
    drop((a, b, c));
    assert_eq!(semaphore.available_permits(), 2);
}

#[test]
fn a_limit_of_zero_is_refused() {
    let message = "a concurrency limit is 0, and must be at least 1";
    let error: InvalidLimit = ConcurrencyLimitLayer::try_new(0).unwrap_err();
    assert_eq!(error.to_string(), message);
    assert!(ConcurrencyLimit::try_new((), 0).is_err());
    assert!(GlobalConcurrencyLimitLayer::try_new(0).is_err());
    let panic = std::panic::catch_unwind(|| Semaphore::new(0)).unwrap_err();
    let found = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied());
    assert_eq!(found, Some(message));

    let here = |line| (file!().to_owned(), line);
    assert_eq!(panics_at(|| drop(Semaphore::new(0))), here(line!()));
    let layer = || drop(GlobalConcurrencyLimitLayer::new(0));
    assert_eq!(panics_at(layer), here(line!() - 1));
    let layer = || _ = ConcurrencyLimitLayer::new(0);
    assert_eq!(panics_at(layer), here(line!() - 1));
    let service = || drop(ConcurrencyLimit::new((), 0));
    assert_eq!(panics_at(service), here(line!() - 1));
}

#[cfg(feature = "async-lock")]
mod shared_with_the_application {
    use super::*;

    #[test]
    fn shed_poll_keeps_the_waiters_waker() {
        let semaphore = Arc::new(async_lock::Semaphore::new(1));
        let mut holder = ConcurrencyLimit::with_semaphore(mock::<u32, u32>().0, semaphore);
        let mut waiting = holder.clone();
        make_ready(&mut holder);
        let wakes = WakeCount::new();
        assert!(wakes.poll_ready(&mut waiting).is_pending());
        make_ready(&mut LoadShed::new(&mut waiting));
        drop(holder);
        assert_eq!(wakes.get(), 1);
    }

    #[test]
    fn permits_are_acquired_and_returned() {
        let semaphore = Arc::new(async_lock::Semaphore::new(1));
        let (service, mut handle) = mock::<u32, u32>();
        let mut limit = ConcurrencyLimit::with_semaphore(service, semaphore.clone());
        let elsewhere = semaphore.try_acquire().unwrap();
        // Polled first, so that it would take the wake-up if it were in the wait queue.
        let mut shedding = LoadShed::new(limit.clone());
        make_ready(&mut shedding);
        let wakes = WakeCount::new();
        assert!(wakes.poll_ready(&mut limit).is_pending());
        drop(elsewhere);
        assert_eq!(wakes.get(), 1);
        ready(wakes.poll_ready(&mut limit)).unwrap();
        let mut response = spawn(limit.call(1));
        assert!(response.poll().is_pending());
        assert!(semaphore.try_acquire().is_none());
        handle.try_next().unwrap().1.send(2);
        assert_eq!(ready(response.poll()), Ok(2));
        assert!(semaphore.try_acquire().is_some());
        drop(shedding);
    }
}

#[cfg(feature = "tokio")]
mod shared_with_tokio {
    use super::*;
    use campanile::tokio::{SemaphoreClosed, SemaphoreError};
    use tokio::sync::Semaphore;

    #[test]
    fn shed_poll_keeps_the_waiters_waker() {
        let semaphore = Arc::new(Semaphore::new(1));
        let mut holder = ConcurrencyLimit::with_semaphore(mock::<u32, u32>().0, semaphore);
        let mut waiting = holder.clone();
        make_ready(&mut holder);
        let wakes = WakeCount::new();
        assert!(wakes.poll_ready(&mut waiting).is_pending());
        make_ready(&mut LoadShed::new(&mut waiting));
        drop(holder);
        assert_eq!(wakes.get(), 1);
        // The permit was granted to the waiting handle; a shed poll can use it, too.
        let mut shedding = LoadShed::new(waiting);
        make_ready(&mut shedding);
        assert!(spawn(shedding.call(1)).poll().is_pending());
    }

    #[test]
    fn permits_are_acquired_and_returned() {
        let semaphore = Arc::new(Semaphore::new(1));
        let (service, mut handle) = mock::<u32, u32>();
        let mut limit = ConcurrencyLimit::with_semaphore(service, semaphore.clone());
        let elsewhere = semaphore.try_acquire().unwrap();
        // Polled first, so that it would take the permit if it were in the wait queue.
        let mut shedding = LoadShed::new(limit.clone());
        make_ready(&mut shedding);
        let wakes = WakeCount::new();
        assert!(wakes.poll_ready(&mut limit).is_pending());
        let mut gone = limit.clone();
        assert!(WakeCount::new().poll_ready(&mut gone).is_pending());
        drop(gone);
        drop(elsewhere);
        assert_eq!(wakes.get(), 1);
        ready(wakes.poll_ready(&mut limit)).unwrap();
        let mut response = spawn(limit.call(1));
        assert!(response.poll().is_pending());
        assert_eq!(semaphore.available_permits(), 0);
        handle.try_next().unwrap().1.send(2);
        assert_eq!(ready(response.poll()), Ok(2));
        assert_eq!(semaphore.available_permits(), 1);
        drop(shedding);
    }

    #[test]
    fn a_closed_semaphore_is_an_error() {
        let semaphore = Arc::new(Semaphore::new(1));
        let (service, _handle) = mock::<u32, u32>();
        let mut limit = ConcurrencyLimit::with_semaphore(service, semaphore.clone());
        let _elsewhere = semaphore.try_acquire().unwrap();
        let mut waiting = limit.clone();
        let wakes = WakeCount::new();
        assert!(wakes.poll_ready(&mut waiting).is_pending());
        semaphore.close();
        assert_eq!(wakes.get(), 1);
        for limit in [&mut limit, &mut waiting] {
            make_ready(limit);
            let closed = SemaphoreError::Closed(SemaphoreClosed::new());
            assert_eq!(ready(spawn(limit.call(1)).poll()), Err(closed));
        }
    }
}

async fn never_more_than_the_limit<H: Host>(rt: On<H>) {
    let now = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let service = {
        let (now, most) = (now.clone(), most.clone());
        service_fn(move |n: u32| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                let here = now.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(here, Ordering::SeqCst);
                for _ in 0..n % 5 {
                    yield_now().await;
                }
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Failure>(n)
            }
        })
    };
    let limit = ConcurrencyLimit::new(service, 3);
    let answered = Arc::new(AtomicUsize::new(0));
    for n in 0..100 {
        let (mut limit, answered) = (limit.clone(), answered.clone());
        campanile::Executor::execute(&rt, async move {
            std::future::poll_fn(|cx| limit.poll_ready(cx))
                .await
                .unwrap();
            assert_eq!(limit.call(n).await, Ok(n));
            answered.fetch_add(1, Ordering::SeqCst);
        });
    }
    common::until(|| answered.load(Ordering::SeqCst) == 100).await;
    assert!(most.load(Ordering::SeqCst) <= 3);
}

/// A request may be cancelled while it waits, with a new permit, or after its call: none blocks the next.
async fn cancelled_request_passes_its_permit_on<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock::<u32, u32>();
    let limit = ConcurrencyLimit::new(service, 1);
    for _ in 0..20 {
        let first = rt.start(limit.clone().oneshot(1));
        let (_, responder) = handle.next().await;
        let (given_up, give_up) = futures::future::abortable(limit.clone().oneshot(2));
        let given_up = rt.start(given_up);
        yield_now().await;
        let next = rt.start(limit.clone().oneshot(3));
        responder.send(1);
        give_up.abort();
        assert_eq!(first.await.unwrap(), Ok(1));
        let responder = loop {
            match handle.next().await {
                (3, responder) => break responder,
                (_, given_up) => common::until(|| given_up.is_cancelled()).await,
            }
        };
        responder.send(3);
        assert_eq!(next.await.unwrap(), Ok(3));
        assert!(given_up.await.unwrap().is_err());
    }
}

/// Requests time out and their futures are kept, yet nothing inside them is alive.
async fn limit_counts_live_futures<H: Host>(rt: On<H>) {
    let alive = Alive::default();
    let second = Duration::from_secs(1);
    let inner = Timeout::with_timer(counted(&alive), second, rt.clone());
    let limit = ConcurrencyLimit::new(inner, 1);
    let elapsed = (0..10).map(|_| {
        let mut limit = limit.clone();
        rt.start(async move {
            std::future::poll_fn(|cx| limit.poll_ready(cx))
                .await
                .unwrap();
            let mut response = Box::pin(limit.call(0));
            response.as_mut().await.unwrap_err();
            [response]
        })
    });
    // All the futures are kept.
    let elapsed = futures::future::join_all(elapsed);
    rt.advance_until(second / 4, elapsed).await;
    assert_eq!(alive.most(), 1);
}

on_every_runtime! {
    limit_counts_live_futures,
    never_more_than_the_limit,
    cancelled_request_passes_its_permit_on,
}

/// Several threads cancel waits and calls at random; at the end all permits are free.
#[test]
fn random_drops_lose_no_permit() {
    let semaphore = Semaphore::new(2);
    let service = service_fn(async |n: u32| {
        for _ in 0..n {
            yield_now().await;
        }
        Ok::<_, Failure>(n)
    });
    let threads: Vec<_> = (0..4_u32)
        .map(|seed| {
            let limit = ConcurrencyLimit::with_semaphore(service, semaphore.clone());
            std::thread::spawn(move || {
                let mut answered = 0;
                for n in 0..5_000 {
                    let mut limit = limit.clone();
                    let mut polls = n * 7 % 5 + seed;
                    let request = async {
                        std::future::poll_fn(|cx| limit.poll_ready(cx)).await?;
                        limit.call(n % 3).await
                    };
                    let mut request = std::pin::pin!(request);
                    let patient = n % 2 == 0;
                    let outcome = futures::executor::block_on(std::future::poll_fn(|cx| {
                        if !patient && polls == 0 {
                            return Poll::Ready(None);
                        }
                        if !patient {
                            polls -= 1;
                            cx.waker().wake_by_ref();
                        }
                        request.as_mut().poll(cx).map(Some)
                    }));
                    answered += usize::from(outcome.is_some());
                }
                answered
            })
        })
        .collect();
    let answered: usize = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert!(answered >= 10_000);
    assert_eq!(semaphore.available_permits(), 2);
}
