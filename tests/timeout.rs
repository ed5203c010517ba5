//! `Timeout` and `Deadline` on a manual timer, and on tokio for its budget.

mod common;

use core::cell::{Cell, RefCell};
use core::future::{Future, pending, poll_fn, ready};
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::rc::Rc;

use campanile::timeout::{Deadline, DeadlineLayer, Elapsed, Error, Timeout, TimeoutLayer};
use campanile::{Layer, Service, ServiceExt, service_fn};

use common::{Host, ManualTimer, On, WakeCount, mock, on_every_runtime, spawn};

const MS: Duration = Duration::from_millis(1);

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    WakeCount::new().enter(|cx| future.poll(cx))
}

type Answer = Result<u32, &'static str>;
type Boxed = Pin<Box<dyn Future<Output = Answer>>>;

/// Ready once the switch is on; counts its calls, and answers at once if the request is `true`.
#[derive(Clone, Default)]
struct Inner {
    ready: Rc<Cell<bool>>,
    calls: Rc<Cell<u32>>,
}

impl Service<bool> for Inner {
    type Response = u32;
    type Error = &'static str;
    type Future = Boxed;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        if self.ready.get() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
    fn call(&mut self, now: bool) -> Boxed {
        self.calls.set(self.calls.get() + 1);
        if now {
            Box::pin(ready(Ok(1)))
        } else {
            Box::pin(pending())
        }
    }
}

fn elapsed() -> Poll<Result<u32, Error<&'static str>>> {
    Poll::Ready(Err(Error::Elapsed(Elapsed::new())))
}

fn poll_ready<S: Service<bool>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    poll(pin!(poll_fn(|cx| service.poll_ready(cx))))
}

#[test]
fn ready_response_does_not_use_the_timer() {
    let timer = ManualTimer::new();
    let mut service = TimeoutLayer::with_timer(MS, timer.clone()).layer(Inner::default());
    assert_eq!(poll(pin!(service.call(true))), Poll::Ready(Ok(1)));
    assert_eq!(timer.asked(), [0; 4]);
}

#[test]
fn clock_starts_at_the_first_pending_poll() {
    let timer = ManualTimer::new();
    let mut service = Timeout::with_timer(Inner::default(), 5 * MS, timer.clone());
    let mut response = pin!(service.call(false));
    timer.advance(100 * MS);
    let wakes = WakeCount::new();
    let waker = wakes.waker();
    let mut cx = Context::from_waker(&waker);
    assert!(response.as_mut().poll(&mut cx).is_pending());
    timer.advance(5 * MS - Duration::from_nanos(1));
    assert!(response.as_mut().poll(&mut cx).is_pending());
    timer.advance(Duration::from_nanos(1));
    assert!(wakes.get() > 0);
    assert_eq!(response.as_mut().poll(&mut cx), elapsed());
    assert_eq!(timer.asked()[1], 1, "one sleep, armed once");
}

#[test]
fn clock_may_start_at_the_call() {
    let timer = ManualTimer::new();
    let layer = TimeoutLayer::with_timer(5 * MS, timer.clone()).from_call();
    let by_layer = layer.layer(Inner::default());
    let by_service = Timeout::with_timer(Inner::default(), 5 * MS, timer.clone()).from_call();
    for mut service in [by_layer, by_service] {
        let mut late = pin!(service.call(false));
        let mut ready = pin!(service.call(true));
        timer.advance(5 * MS);
        assert!(matches!(
            poll(late.as_mut()),
            Poll::Ready(Err(Error::Elapsed(_)))
        ));
        assert_eq!(poll(ready.as_mut()), Poll::Ready(Ok(1)), "an answer wins");
    }
    assert_eq!(timer.asked()[1], 0, "over at the first poll: no sleep");
}

#[test]
fn maximum_is_no_limit_and_zero_is_one() {
    let timer = ManualTimer::new();
    let inner = Inner::default();
    for limit in [Duration::MAX, Duration::from_nanos(u64::MAX)] {
        let mut service = Timeout::with_timer(inner.clone(), limit, timer.clone());
        assert!(poll(pin!(service.call(false))).is_pending());
    }
    let mut service = Timeout::with_timer(inner.clone(), Duration::MAX, timer.clone()).from_call();
    assert!(poll(pin!(service.call(false))).is_pending());
    let mut service = Deadline::with_timer(inner.clone(), Duration::MAX, timer.clone());
    assert!(poll_ready(&mut service).is_pending());
    assert!(poll(pin!(service.call(false))).is_pending());
    assert_eq!(timer.asked(), [0; 4]);

    timer.advance(Duration::from_nanos(1 << 62));
    let nearly = Duration::from_nanos(u64::MAX - 1);
    let mut service = Timeout::with_timer(inner.clone(), nearly, timer.clone());
    assert!(poll(pin!(service.call(false))).is_pending());

    let mut service = Timeout::with_timer(inner, Duration::ZERO, timer.clone());
    assert_eq!(poll(pin!(service.call(true))), Poll::Ready(Ok(1)));
    assert!(matches!(
        poll(pin!(service.call(false))),
        Poll::Ready(Err(Error::Elapsed(_)))
    ));
    assert_eq!(timer.asked()[1..], [0; 3]);
}

#[test]
fn deadline_covers_readiness_and_response() {
    let timer = ManualTimer::new();
    let inner = Inner::default();
    let mut service = DeadlineLayer::with_timer(10 * MS, timer.clone()).layer(inner.clone());

    assert!(poll_ready(&mut service).is_pending());
    timer.advance(7 * MS);
    inner.ready.set(true);
    assert!(poll_ready(&mut service).is_ready());
    let mut response = pin!(service.call(false));
    assert!(poll(response.as_mut()).is_pending());
    timer.advance(3 * MS);
    assert!(matches!(
        poll(response.as_mut()),
        Poll::Ready(Err(Error::Elapsed(_)))
    ));

    // The next request has the whole time again, from its call on.
    let mut response = pin!(service.call(false));
    timer.advance(9 * MS);
    assert!(poll(response.as_mut()).is_pending());
    timer.advance(MS);
    assert!(poll(response.as_mut()).is_ready());
}

#[test]
fn zero_deadline_admits_ready_responses() {
    let timer = ManualTimer::new();
    let inner = Inner::default();
    let mut service = Deadline::with_timer(inner.clone(), Duration::ZERO, timer.clone());

    assert_eq!(poll_ready(&mut service), Poll::Ready(Ok(())));
    assert_eq!(poll(pin!(service.call(true))), elapsed());
    assert_eq!(inner.calls.get(), 0);
    inner.ready.set(true);
    assert_eq!(poll_ready(&mut service), Poll::Ready(Ok(())));
    assert_eq!(poll(pin!(service.call(true))), Poll::Ready(Ok(1)));
    assert_eq!(poll(pin!(service.call(false))), elapsed());
    assert_eq!(timer.asked()[1..], [0; 3]);
}

#[test]
fn elapsed_deadline_fails_only_the_call() {
    let timer = ManualTimer::new();
    let inner = Inner::default();
    let mut service = Deadline::with_timer(inner.clone(), 10 * MS, timer.clone());

    for round in 0..2 {
        assert!(poll_ready(&mut service).is_pending(), "round {round}");
        timer.advance(10 * MS);
        assert_eq!(poll_ready(&mut service), Poll::Ready(Ok(())));
        assert_eq!(poll(pin!(service.call(true))), elapsed());
    }
    assert_eq!(inner.calls.get(), 0);
    assert_eq!(timer.armed(), 0, "no alarm is armed without a request");

    inner.ready.set(true);
    assert_eq!(poll_ready(&mut service), Poll::Ready(Ok(())));
    assert_eq!(poll(pin!(service.call(true))), Poll::Ready(Ok(1)));
}

/// A service whose futures hold a reference until they are dropped.
fn holds(held: &Rc<()>) -> impl Service<bool, Response = u32, Error = &'static str> + use<> {
    let held = held.clone();
    service_fn(move |_: bool| {
        let held = held.clone();
        async move {
            pending::<()>().await;
            drop(held);
            Ok(1)
        }
    })
}

#[test]
fn inner_future_is_dropped_before_answering() {
    let held = Rc::new(());
    let timer = ManualTimer::new();
    let mut timeout = Timeout::with_timer(holds(&held), 10 * MS, timer.clone());
    let mut deadline = Deadline::with_timer(holds(&held), 10 * MS, timer.clone());
    let mut responses = (spawn(timeout.call(true)), spawn(deadline.call(true)));
    assert!(responses.0.poll().is_pending() && responses.1.poll().is_pending());
    assert_eq!(Rc::strong_count(&held), 5);
    timer.advance(10 * MS);
    assert_eq!(responses.0.poll(), elapsed());
    assert_eq!(responses.1.poll(), elapsed());
    assert_eq!(Rc::strong_count(&held), 3);
    // A second poll returns the same.
    assert_eq!(responses.0.poll(), elapsed());
    assert_eq!(timer.armed(), 0);
}

/// A future that is kept after its answer holds no timer and no part of the request.
#[track_caller]
fn keeps_nothing<S: Service<bool>>(service: &mut S, timer: &ManualTimer, held: &Rc<()>) {
    let mut response = spawn(service.call(true));
    assert!(response.poll().is_pending());
    assert_eq!((timer.armed(), Rc::strong_count(held)), (1, 3));
    assert!(response.poll().is_ready());
    assert_eq!((timer.armed(), Rc::strong_count(held)), (0, 2));
    timer.advance(20 * MS);
    assert!(response.poll().is_pending(), "answered already");
}

#[test]
fn answered_future_holds_nothing() {
    let timer = ManualTimer::new();
    let held = Rc::new(());
    let inner = {
        let held = held.clone();
        service_fn(move |_: bool| {
            let (held, mut polls) = (held.clone(), 0);
            poll_fn(move |_| {
                let _ = &held;
                polls += 1;
                if polls == 2 {
                    return Poll::Ready(Ok::<_, &'static str>(1));
                }
                Poll::Pending
            })
        })
    };
    let mut timeout = Timeout::with_timer(inner, 10 * MS, timer.clone());
    keeps_nothing(&mut timeout, &timer, &held);
    let mut timeout = timeout.from_call();
    keeps_nothing(&mut timeout, &timer, &held);
    let mut deadline = Deadline::with_timer(timeout.into_inner(), 10 * MS, timer.clone());
    keeps_nothing(&mut deadline, &timer, &held);
}

/// Never ready; keeps the waker.
#[derive(Clone, Default)]
struct Connecting(Rc<RefCell<Option<Waker>>>);

impl Service<bool> for Connecting {
    type Response = u32;
    type Error = &'static str;
    type Future = Boxed;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        self.0.replace(Some(cx.waker().clone()));
        Poll::Pending
    }
    fn call(&mut self, _: bool) -> Boxed {
        Box::pin(pending())
    }
}

#[test]
fn elapsed_deadline_keeps_the_inner_waker() {
    let timer = ManualTimer::new();
    let inner = Connecting::default();
    let mut service = Deadline::with_timer(inner.clone(), 10 * MS, timer.clone());
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut service).is_pending());
    timer.advance(10 * MS);
    assert!(wakes.poll_ready(&mut service).is_ready());
    let before = wakes.get();
    inner.0.take().unwrap().wake();
    assert_eq!(wakes.get(), before + 1);
}

#[test]
fn ready_handle_keeps_no_alarm() {
    let timer = ManualTimer::new();
    let inner = Inner::default();
    let mut service = Deadline::with_timer(inner.clone(), 10 * MS, timer.clone());
    assert!(poll_ready(&mut service).is_pending());
    assert_eq!(timer.armed(), 1);
    inner.ready.set(true);
    assert_eq!(poll_ready(&mut service), Poll::Ready(Ok(())));
    assert_eq!(timer.armed(), 0);
    // The deadline still applies if the service is no longer ready.
    inner.ready.set(false);
    timer.advance(5 * MS);
    assert!(poll_ready(&mut service).is_pending());
    timer.advance(5 * MS);
    assert_eq!(poll_ready(&mut service), Poll::Ready(Ok(())));
    assert_eq!(poll(pin!(service.call(true))), elapsed());
}

#[test]
fn clone_has_its_own_deadline() {
    let timer = ManualTimer::new();
    let mut service = Deadline::with_timer(Inner::default(), 10 * MS, timer.clone());
    assert!(poll_ready(&mut service).is_pending());
    timer.advance(10 * MS);
    assert!(poll_ready(&mut service).is_ready());
    assert!(poll_ready(&mut service.clone()).is_pending());
}

#[test]
fn try_starts_no_clock() {
    let timer = ManualTimer::new();
    let inner = Inner::default();
    let service = Deadline::with_timer(inner, 10 * MS, timer.clone());
    let mut service = campanile::load_shed::LoadShed::new(service);
    assert!(poll_ready(&mut service).is_ready());
    assert_eq!(timer.asked(), [0; 4]);
}

#[test]
fn inner_errors_pass_through() {
    let inner = service_fn(|()| ready(Err::<(), _>("broken")));
    let mut service = Timeout::with_timer(inner, MS, ManualTimer::new());
    assert_eq!(
        poll(pin!(service.call(()))),
        Poll::Ready(Err(Error::Service("broken")))
    );
}

#[cfg(feature = "smol")]
#[test]
fn response_future_is_small() {
    type Of<F> = campanile::timeout::ResponseFuture<F, campanile::smol::Smol>;
    assert!(
        size_of::<Of<core::future::Ready<Answer>>>()
            <= 64 + size_of::<core::future::Ready<Answer>>()
    );
}

#[test]
fn debug_shows_the_limit() {
    let answer = || service_fn(|n: u32| ready(Ok::<_, ()>(n)));
    let mut timeout = Timeout::with_timer(answer(), Duration::from_secs(1), ManualTimer::new());
    let response = format!("{:?}", timeout.call(7));
    assert!(response.starts_with("ResponseFuture"), "{response}");
    assert!(response.contains("Ok(7)"), "{response}");
    let deadline = Deadline::with_timer(answer(), Duration::from_secs(1), ManualTimer::new());
    let deadline = format!("{deadline:?}");
    assert!(deadline.starts_with("Deadline"), "{deadline}");
    assert!(deadline.contains("limit: 1s"), "{deadline}");
}

#[cfg(feature = "tokio")]
mod tokio_budget {
    use super::*;
    use campanile::tokio::Tokio;

    /// Spends the task's budget on each poll and lets a millisecond pass; fails after 1000 polls.
    fn greedy(polls: Rc<Cell<u32>>) -> impl Future<Output = Result<(), &'static str>> {
        poll_fn(move |cx| {
            polls.set(polls.get() + 1);
            if polls.get() == 1000 {
                return Poll::Ready(Err("never interrupted"));
            }
            let mut step = pin!(tokio::time::advance(MS));
            let _ = step.as_mut().poll(cx);
            while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    #[tokio::test(start_paused = true)]
    async fn fires_though_the_future_uses_up_budget() {
        let polls = Rc::new(Cell::new(0));
        let inner = service_fn(|()| greedy(polls.clone()));
        let mut service = Timeout::<_, Tokio>::new(inner, 10 * MS);
        assert!(matches!(service.call(()).await, Err(Error::Elapsed(_))));
        assert!(polls.get() <= 12, "{}", polls.get());
    }

    #[tokio::test(start_paused = true)]
    async fn fires_though_the_budget_is_spent_before() {
        let inner = service_fn(|()| pending::<Result<(), ()>>());
        let mut service = Timeout::<_, Tokio>::new(inner, 10 * MS);
        let mut response = pin!(service.call(()));
        let mut other = pin!(greedy(Rc::default()));
        let first = poll_fn(|cx| {
            if other.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            response.as_mut().poll(cx).map(Some)
        });
        assert!(matches!(first.await, Some(Err(Error::Elapsed(_)))));
    }

    #[test]
    fn building_needs_no_runtime() {
        let layer = TimeoutLayer::<Tokio>::new(MS);
        let mut service = layer.layer(service_fn(|()| ready(Ok::<_, ()>(()))));
        assert_eq!(poll(pin!(service.call(()))), Poll::Ready(Ok(())));
        let mut service = DeadlineLayer::<Tokio>::new(MS).layer(Inner {
            ready: Rc::new(Cell::new(true)),
            ..Inner::default()
        });
        assert!(poll_ready(&mut service).is_ready());
    }
}

/// Time spent on readiness is not available for the response.
async fn deadline_spans_readiness_and_response<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let deadline = Deadline::with_timer(service, 1000 * MS, rt.clone());
    let mut late = spawn(deadline.clone().oneshot(1));
    let mut in_time = spawn(deadline.oneshot(2));
    assert!(late.poll().is_pending() && in_time.poll().is_pending());
    rt.advance(600 * MS).await;
    handle.set_ready(true);
    assert!(late.is_woken() && in_time.is_woken());
    assert!(late.poll().is_pending() && in_time.poll().is_pending());
    rt.advance(390 * MS).await;
    assert!(late.poll().is_pending());
    let ((_, silent), (_, responder)) = (handle.next().await, handle.next().await);
    responder.send(3);
    assert_eq!(in_time.finish().await, Ok(3));
    rt.advance(11 * MS).await;
    assert!(matches!(late.finish().await, Err(Error::Elapsed(_))));
    drop(late);
    assert!(silent.is_cancelled());
}

/// The service never becomes ready, and the deadline elapses.
async fn deadline_ends_a_wait_for_readiness<H: Host>(rt: On<H>) {
    let (service, handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let deadline = DeadlineLayer::with_timer(1000 * MS, rt.clone()).layer(service);
    let outcome = rt.start(deadline.oneshot(1));
    let outcome = rt.advance_until(100 * MS, outcome).await.unwrap();
    assert!(matches!(outcome, Err(Error::Elapsed(_))));
    assert_eq!(handle.calls(), 0);
}

on_every_runtime! {
    deadline_spans_readiness_and_response,
    deadline_ends_a_wait_for_readiness,
}
