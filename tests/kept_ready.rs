//! A buffer that is kept ready polls its service before there is a request. Such polls start no clock of a request, but
//! the service's own work continues.
#![cfg(feature = "std")]

mod common;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Ready, ready as done};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use campanile::balance::p2c::Balance;
use campanile::buffer::{self, Buffer, Worker};
use campanile::discover::{Change, ServiceList};
use campanile::layer::Identity;
use campanile::limit::concurrency::{ConcurrencyLimit, Semaphore};
use campanile::limit::rate::{LocalLimiter, Rate, RateLimit};
use campanile::load::Constant;
use campanile::reconnect::Reconnect;
use campanile::spawn_ready::SpawnReady;
use campanile::timeout::Deadline;
use campanile::{Executor, Service, ServiceExt, service_fn};
use common::{ManualTimer, Task, WakeCount, ready, spawn};

const SECOND: Duration = Duration::from_secs(1);

type Boxed = Pin<Box<dyn Future<Output = ()>>>;

/// An executor whose tasks the test polls.
#[derive(Clone, Default)]
struct ByHand(Rc<RefCell<Vec<Task<Boxed>>>>);

impl<F: Future<Output = ()> + 'static> Executor<F> for ByHand {
    fn execute(&self, future: F) {
        let mut task = spawn(Box::pin(future) as Boxed);
        assert!(task.poll().is_pending());
        self.0.borrow_mut().push(task);
    }
}

/// A buffer that is kept ready, and the tasks of its service.
struct KeptReady<S: Service<u32, Response = u32>> {
    buffer: Buffer<u32, S::Future>,
    worker: Task<Worker<S, u32>>,
    tasks: ByHand,
    timer: ManualTimer,
}

impl<S: Service<u32, Response = u32>> KeptReady<S> {
    fn new(service: S, tasks: ByHand, timer: &ManualTimer) -> Self {
        let (buffer, worker) = buffer::pair(service, 4);
        let mut kept = Self {
            buffer: buffer.keep_ready(),
            worker: spawn(worker),
            tasks,
            timer: timer.clone(),
        };
        assert!(kept.worker.poll().is_pending());
        kept.settle();
        kept
    }

    /// Polls the worker and the tasks until no task is woken.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let mut is_busy = false;
            for task in self.tasks.0.borrow_mut().iter_mut() {
                if task.is_woken() {
                    is_busy = true;
                    assert!(task.poll().is_pending());
                }
            }
            if self.worker.is_woken() {
                is_busy = true;
                assert!(self.worker.poll().is_pending());
            }
            if !is_busy {
                return;
            }
        }
        panic!("the worker does not rest");
    }

    fn wait(&mut self, time: Duration) {
        self.timer.advance(time);
        self.settle();
    }

    /// Sends a request and returns its answer if it is immediate.
    fn send(&mut self, request: u32) -> Option<u32> {
        let mut response = spawn(self.buffer.clone().oneshot(request));
        assert!(response.poll().is_pending());
        self.settle();
        match response.poll() {
            Poll::Ready(answer) => answer.ok(),
            Poll::Pending => None,
        }
    }
}

/// A service that answers with its request.
#[derive(Clone)]
struct Echo;

impl Service<u32> for Echo {
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, n: u32) -> Self::Future {
        done(Ok(n))
    }
}

type Limit = ConcurrencyLimit<Echo>;

/// A limit of one, and a handle that holds the permit.
fn busy() -> (Limit, Limit) {
    let limit = ConcurrencyLimit::with_semaphore(Echo, Semaphore::new(1));
    let mut first = limit.clone();
    ready(WakeCount::new().poll_ready(&mut first)).unwrap();
    (limit, first)
}

/// Wraps a deadline of one second over a service that is busy for a while. The first request, an hour later, still gets
/// the whole second.
fn starts_no_clock<S: Service<u32, Response = u32>>(
    wrap: impl Fn(Deadline<Limit, ManualTimer>, ByHand) -> S,
) {
    for busy_for in [SECOND / 2, SECOND, 10 * SECOND] {
        let (timer, tasks) = (ManualTimer::new(), ByHand::default());
        let (limit, first) = busy();
        let deadline = Deadline::with_timer(limit, SECOND, timer.clone());
        let mut kept = KeptReady::new(wrap(deadline, tasks.clone()), tasks, &timer);
        assert_eq!(timer.armed(), 0);
        kept.wait(busy_for);
        drop(first);
        kept.settle();
        kept.wait(3600 * SECOND);
        assert_eq!(kept.send(1), Some(1), "busy for {busy_for:?}");
    }
}

#[test]
fn deadline_starts_no_clock() {
    starts_no_clock(|deadline, _| deadline);
}

#[test]
fn deadline_in_a_task_starts_no_clock() {
    starts_no_clock(SpawnReady::with_executor);
}

#[test]
fn deadline_in_a_balancer_starts_no_clock() {
    starts_no_clock(|deadline, _| {
        let endpoints = ServiceList::new([Constant::new(deadline, 1)]);
        Balance::with_layer(endpoints, Identity::new())
    });
}

/// The service waits for a permit when the request arrives, and the deadline elapses.
fn request_starts_the_clock<S: Service<u32, Response = u32>>(
    wrap: impl Fn(Deadline<Limit, ManualTimer>, ByHand) -> S,
) {
    let (timer, tasks) = (ManualTimer::new(), ByHand::default());
    let (limit, _first) = busy();
    let deadline = Deadline::with_timer(limit, SECOND, timer.clone());
    let mut kept = KeptReady::new(wrap(deadline, tasks.clone()), tasks, &timer);
    kept.wait(10 * SECOND);
    let mut response = spawn(kept.buffer.clone().oneshot(1));
    assert!(response.poll().is_pending());
    kept.settle();
    kept.wait(SECOND * 9 / 10);
    assert!(response.poll().is_pending());
    kept.wait(SECOND / 10);
    assert!(ready(response.poll()).is_err());
}

#[test]
fn request_starts_the_clock_of_a_deadline() {
    request_starts_the_clock(|deadline, _| deadline);
    request_starts_the_clock(SpawnReady::with_executor);
}

/// Without a request to report it to, a refused connection does not count as readiness.
#[test]
fn reconnect_goes_on_after_a_refusal() {
    let timer = ManualTimer::new();
    let attempts = Rc::new(Cell::new(0));
    let counted = attempts.clone();
    let connector = service_fn(move |()| {
        counted.set(counted.get() + 1);
        done(if counted.get() < 3 {
            Err("refused")
        } else {
            Ok(Echo)
        })
    });
    let service = Reconnect::with_timer(connector, (), timer.clone());
    let mut kept = KeptReady::new(service, ByHand::default(), &timer);
    assert_eq!(attempts.get(), 1);
    // The longest wait of the default backoff is five seconds.
    kept.wait(5 * SECOND);
    kept.wait(5 * SECOND);
    assert_eq!(attempts.get(), 3);
    assert_eq!(kept.send(1), Some(1));
}

/// A rate limit of one in a second, whose token is taken.
fn spent<H>(limiter: H, timer: &ManualTimer) -> RateLimit<Echo, ManualTimer, H>
where
    H: std::ops::Deref<Target: campanile::limit::rate::AnyLimiter> + Clone,
{
    let limit = RateLimit::with_limiter(Echo, limiter, timer.clone());
    let mut other = limit.clone();
    ready(WakeCount::new().poll_ready(&mut other)).unwrap();
    drop(other.call(0));
    limit
}

#[test]
fn patience_begins_with_a_request() {
    let timer = ManualTimer::new();
    let limiter = Rc::new(campanile::limit::rate::Limiter::new(Rate::new(1, SECOND)));
    let limit = spent(limiter, &timer).wait_at_most(SECOND / 2);
    let mut kept = KeptReady::new(limit, ByHand::default(), &timer);
    kept.wait(SECOND * 8 / 10);
    // The token is due in 200 ms, and the request may wait for 500.
    let mut response = spawn(kept.buffer.clone().oneshot(1));
    assert!(response.poll().is_pending());
    kept.settle();
    kept.wait(SECOND * 2 / 10);
    assert_eq!(ready(response.poll()).ok(), Some(1));
}

/// The wait for a token ends before there is a request, even for a limit that rejects.
#[test]
fn token_is_waited_for_before_a_request() {
    let timer = ManualTimer::new();
    let limiter = Rc::new(campanile::limit::rate::Limiter::new(Rate::new(1, SECOND)));
    let limit = spent(limiter, &timer);
    let mut other = limit.clone();
    let mut kept = KeptReady::new(limit.reject(), ByHand::default(), &timer);
    kept.wait(SECOND);
    assert!(WakeCount::new().poll_ready(&mut other).is_pending());
    assert_eq!(kept.send(1), Some(1));
}

#[test]
fn full_queue_refuses_no_future_request() {
    let timer = ManualTimer::new();
    let limiter = LocalLimiter::<1>::new(Rate::new(1, SECOND));
    let limit = spent(&limiter, &timer);
    let mut waiter = limit.clone();
    assert!(WakeCount::new().poll_ready(&mut waiter).is_pending());
    let mut kept = KeptReady::new(limit, ByHand::default(), &timer);
    drop(waiter);
    // The wait queue has a free place now.
    let mut response = spawn(kept.buffer.clone().oneshot(1));
    assert!(response.poll().is_pending());
    kept.settle();
    kept.wait(SECOND);
    assert_eq!(ready(response.poll()).ok(), Some(1));
}

/// Waits for a resolver, then discovers one endpoint.
struct Resolve<R> {
    resolver: R,
    is_done: Rc<Cell<bool>>,
}

impl<R: Service<u32> + Unpin> futures::Stream for Resolve<R> {
    type Item = Result<Change<u32, Constant<Echo, u32>>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_done.get() {
            return Poll::Ready(None);
        }
        if self.resolver.poll_ready(cx).is_pending() {
            return Poll::Pending;
        }
        self.is_done.set(true);
        let endpoint = Constant::new(Echo, 1);
        Poll::Ready(Some(Ok(Change::Insert(0, endpoint))))
    }
}

/// Discovery sends requests of its own, so their clocks do run.
#[test]
fn discovery_has_clocks() {
    let timer = ManualTimer::new();
    let (limit, _first) = busy();
    let is_done = Rc::new(Cell::new(false));
    let discover = Resolve {
        resolver: Deadline::with_timer(limit, SECOND, timer.clone()),
        is_done: is_done.clone(),
    };
    let balance = Balance::with_layer(discover, Identity::new());
    let mut kept = KeptReady::new(balance, ByHand::default(), &timer);
    assert!(!is_done.get());
    kept.wait(SECOND);
    assert!(is_done.get());
    assert_eq!(kept.send(1), Some(1));
}

/// An echo whose readiness fails once the flag is set.
#[derive(Clone, Default)]
struct Fragile(Rc<Cell<bool>>);

impl Service<u32> for Fragile {
    type Response = u32;
    type Error = &'static str;
    type Future = Ready<Result<u32, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(if self.0.get() { Err("gone") } else { Ok(()) })
    }

    fn call(&mut self, n: u32) -> Self::Future {
        done(Ok(n))
    }
}

/// The deadline of the busy endpoint starts with the request, though it was polled before.
#[test]
fn request_polls_a_waiting_endpoint() {
    let timer = ManualTimer::new();
    let [fragile, other] = [(); 2].map(|()| Fragile::default());
    let [free, busy] = [&fragile, &other]
        .map(|inner| ConcurrencyLimit::with_semaphore(inner.clone(), Semaphore::new(1)));
    let mut first = busy.clone();
    ready(WakeCount::new().poll_ready(&mut first)).unwrap();
    let endpoints = [free, busy].map(|limit| {
        let deadline = Deadline::with_timer(limit, SECOND, timer.clone());
        Constant::new(deadline, 1)
    });
    let balance = Balance::with_layer(ServiceList::new(endpoints), Identity::new());
    let mut kept = KeptReady::new(balance, ByHand::default(), &timer);
    assert_eq!(timer.armed(), 0);
    fragile.0.set(true);
    let mut response = spawn(kept.buffer.clone().oneshot(1));
    assert!(response.poll().is_pending());
    kept.settle();
    kept.wait(SECOND);
    assert!(ready(response.poll()).is_err());
}
