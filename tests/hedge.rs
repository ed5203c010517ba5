//! `Hedge`: which answer wins, when a hedge is sent, how the delay is estimated, and how many hedges there are.
#![cfg(all(feature = "alloc", target_has_atomic = "64"))]

mod common;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use campanile::hedge::{Delay, Hedge, HedgeLayer, InvalidHedge, Policy, ShareBudget};
use campanile::retry::CloneByClone;
use campanile::retry::budget::{Budget, TpsBudget, Unlimited};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Instant, Layer, Service, Timer, service_fn};
use common::{
    Failure, Handle, Host, ManualTimer, Mock, On, WakeCount, mock, on_every_runtime, panics_at,
    spawn, yield_now,
};

const MS: Duration = Duration::from_millis(1);
const LATE: Duration = Duration::from_millis(10);

type Fixed = Hedge<Mock<u32, u32>, CloneByClone, ManualTimer>;

fn after_10_ms() -> (Fixed, Handle<u32, u32>, ManualTimer) {
    let (service, handle) = mock();
    let timer = ManualTimer::new();
    let hedge = Hedge::with_timer(service, CloneByClone, Delay::fixed(LATE), timer.clone());
    (hedge, handle, timer)
}

fn ready_call<S: Service<u32>>(service: &mut S) -> S::Future {
    assert!(matches!(
        WakeCount::new().poll_ready(service),
        Poll::Ready(Ok(()))
    ));
    service.call(1)
}

#[test]
fn failed_hedge_does_not_win() {
    let (mut service, mut handle, timer) = after_10_ms();
    let mut response = spawn(ready_call(&mut service));
    assert!(response.poll().is_pending());
    let (_, first) = handle.try_next().unwrap();
    timer.advance(LATE);
    assert!(response.is_woken());
    assert!(response.poll().is_pending());
    let (request, hedge) = handle.try_next().unwrap();
    assert_eq!(request, 1);
    hedge.fail(Failure("the hedge"));
    assert!(response.is_woken());
    assert!(response.poll().is_pending());
    first.send(2);
    assert!(response.is_woken());
    assert_eq!(response.poll(), Poll::Ready(Ok(2)));
}

#[test]
fn first_error_is_returned_when_all_fail() {
    for hedge_first in [false, true] {
        let (mut service, mut handle, timer) = after_10_ms();
        let mut response = spawn(ready_call(&mut service));
        assert!(response.poll().is_pending());
        timer.advance(LATE);
        assert!(response.poll().is_pending());
        let mut attempts = [Failure("the first"), Failure("the hedge")]
            .map(|failure| (handle.try_next().unwrap().1, failure));
        if hedge_first {
            attempts.reverse();
        }
        let [(one, failure), (other, other_failure)] = attempts;
        one.fail(failure);
        assert!(response.poll().is_pending(), "hedge first: {hedge_first}");
        other.fail(other_failure);
        assert!(response.is_woken());
        assert_eq!(response.poll(), Poll::Ready(Err(Failure("the first"))));
        assert!(response.poll().is_pending(), "over, and not polled further");
    }
}

#[test]
fn hedge_in_flight_survives_first_failure() {
    let (mut service, mut handle, timer) = after_10_ms();
    let mut response = spawn(ready_call(&mut service));
    assert!(response.poll().is_pending());
    timer.advance(LATE);
    assert!(response.poll().is_pending());
    handle.try_next().unwrap().1.fail(Failure("the first"));
    assert!(response.poll().is_pending());
    handle.try_next().unwrap().1.send(2);
    assert_eq!(response.poll(), Poll::Ready(Ok(2)));
}

#[test]
fn failure_before_the_hedge_is_returned() {
    let (mut service, mut handle, timer) = after_10_ms();
    let mut response = spawn(ready_call(&mut service));
    assert!(response.poll().is_pending());
    handle.try_next().unwrap().1.fail(Failure("at once"));
    assert_eq!(response.poll(), Poll::Ready(Err(Failure("at once"))));
    assert_eq!((timer.armed(), handle.alive()), (0, 1), "nothing is left");

    // The same while the hedge waits for its service.
    let mut response = spawn(ready_call(&mut service));
    assert!(response.poll().is_pending());
    handle.set_ready(false);
    timer.advance(LATE);
    assert!(response.poll().is_pending());
    handle.try_next().unwrap().1.fail(Failure("before"));
    assert_eq!(response.poll(), Poll::Ready(Err(Failure("before"))));
    assert_eq!((handle.calls(), handle.alive()), (2, 1));
}

#[test]
fn hedge_waits_for_its_own_readiness() {
    let (mut service, mut handle, timer) = after_10_ms();
    for first_wins in [true, false] {
        handle.set_ready(true);
        let mut response = spawn(ready_call(&mut service));
        assert!(response.poll().is_pending());
        let (_, first) = handle.try_next().unwrap();
        handle.set_ready(false);
        timer.advance(LATE);
        assert!(response.poll().is_pending());
        assert!(handle.try_next().is_none());
        if first_wins {
            first.send(2);
            assert_eq!(response.poll(), Poll::Ready(Ok(2)));
        } else {
            handle.set_ready(true);
            assert!(response.is_woken());
            assert!(response.poll().is_pending());
            handle.try_next().unwrap().1.send(3);
            assert_eq!(response.poll(), Poll::Ready(Ok(3)));
            assert!(first.is_cancelled(), "the loser goes with the answer");
        }
        assert_eq!(handle.alive(), 1);
    }
}

#[test]
fn unready_hedge_spares_the_first_attempt() {
    let (mut service, mut handle, timer) = after_10_ms();
    let mut response = spawn(ready_call(&mut service));
    assert!(response.poll().is_pending());
    handle.fail(Failure("the clone"));
    timer.advance(LATE);
    assert!(response.poll().is_pending());
    assert_eq!(handle.alive(), 1, "the clone that failed is gone");
    handle.try_next().unwrap().1.send(2);
    assert_eq!(response.poll(), Poll::Ready(Ok(2)));
}

#[test]
fn dropped_response_cancels_all_attempts() {
    let (mut service, mut handle, timer) = after_10_ms();
    let mut response = spawn(ready_call(&mut service));
    assert!(response.poll().is_pending());
    assert_eq!((timer.armed(), handle.alive()), (1, 2));
    drop(response);
    assert_eq!((timer.armed(), handle.alive()), (0, 1));

    let mut response = spawn(ready_call(&mut service));
    assert!(response.poll().is_pending());
    timer.advance(LATE);
    assert!(response.poll().is_pending());
    drop(response);
    let left: Vec<_> = std::iter::from_fn(|| handle.try_next()).collect();
    assert_eq!(left.len(), 3);
    assert!(left.iter().all(|(_, responder)| responder.is_cancelled()));
    assert_eq!((timer.armed(), handle.alive()), (0, 1));
}

/// Refuses as configured, and counts the questions.
#[derive(Clone, Default)]
struct Picky {
    no_copy: bool,
    no_retry: bool,
    copies: Rc<Cell<u32>>,
    asked: Rc<Cell<u32>>,
}

impl Policy<u32> for Picky {
    fn clone_request(&self, request: &u32) -> Option<u32> {
        self.copies.set(self.copies.get() + 1);
        (!self.no_copy).then_some(*request)
    }

    fn can_retry(&self, _: &u32) -> bool {
        self.asked.set(self.asked.get() + 1);
        !self.no_retry
    }
}

#[test]
fn the_policy_decides() {
    for (no_copy, no_retry) in [(true, false), (false, true), (false, false)] {
        let policy = Picky {
            no_copy,
            no_retry,
            ..Picky::default()
        };
        let (service, mut handle) = mock::<u32, u32>();
        let timer = ManualTimer::new();
        let delay = Delay::fixed(LATE);
        let mut service = Hedge::with_timer(service, policy.clone(), delay, timer.clone());
        let mut response = spawn(ready_call(&mut service));
        assert!(response.poll().is_pending());
        timer.advance(LATE);
        assert!(response.poll().is_pending());
        assert_eq!(handle.calls(), if no_copy || no_retry { 1 } else { 2 });
        assert_eq!(policy.copies.get(), 1);
        assert_eq!(policy.asked.get(), u32::from(!no_copy));
        handle.try_next().unwrap().1.send(2);
        assert_eq!(response.poll(), Poll::Ready(Ok(2)));
    }
}

#[test]
fn zero_and_maximum_delay() {
    let (inner, mut handle) = mock::<u32, u32>();
    let timer = ManualTimer::new();
    let with = |delay| {
        Hedge::with_timer(
            inner.clone(),
            CloneByClone,
            Delay::fixed(delay),
            timer.clone(),
        )
    };
    let mut service = with(Duration::ZERO);
    let mut response = spawn(ready_call(&mut service));
    handle.try_next().unwrap().1.send(1);
    assert_eq!(response.poll(), Poll::Ready(Ok(1)));
    let mut response = spawn(ready_call(&mut service));
    assert!(response.poll().is_pending());
    assert_eq!(handle.calls(), 3);

    for greatest in [Duration::MAX, Duration::from_nanos(u64::MAX)] {
        let mut response = spawn(ready_call(&mut with(greatest)));
        assert!(response.poll().is_pending());
    }
    assert_eq!((handle.calls(), timer.made()), (5, 0));
}

/// Counts the requests to it.
#[derive(Clone, Debug, Default)]
struct Counting {
    timer: ManualTimer,
    reads: Rc<Cell<u32>>,
}

impl Timer for Counting {
    type Sleep = common::ManualSleep;
    type Alarm = common::ManualSleep;

    fn now(&self) -> Instant {
        self.reads.set(self.reads.get() + 1);
        self.timer.now()
    }

    fn sleep_until(&self, deadline: Instant) -> Self::Sleep {
        self.timer.sleep_until(deadline)
    }

    fn alarm_until(&self, deadline: Instant) -> Self::Alarm {
        self.timer.alarm_until(deadline)
    }
}

#[test]
fn timer_is_used_sparingly() {
    let timer = Counting::default();
    let (inner, mut handle) = mock::<u32, u32>();
    let policy = Picky::default();
    let percentile = Delay::percentile(10, 0.9, Duration::from_secs(60));
    let mut service = Hedge::with_timer(inner.clone(), policy.clone(), percentile, timer.clone());
    let mut call = |service: &mut Hedge<_, _, Counting>, pends: bool| {
        timer.reads.set(0);
        let made = timer.timer.made();
        let mut response = spawn(ready_call(service));
        if pends {
            assert!(response.poll().is_pending());
        }
        handle.try_next().unwrap().1.send(1);
        assert_eq!(response.poll(), Poll::Ready(Ok(1)));
        (timer.reads.get(), timer.timer.made() - made)
    };

    // Too little data, so neither a copy nor a timer.
    assert_eq!(call(&mut service, true), (2, 0));
    assert_eq!((service.delay(), policy.copies.get()), (None, 0));
    service.seed([MS; 9]);
    assert!(service.delay().is_some(), "nine and the one call");
    assert_eq!(call(&mut service, false), (2, 0));
    assert_eq!(call(&mut service, true), (2, 1));

    // A fixed delay needs no measurements.
    let mut service = Hedge::with_timer(inner, policy, Delay::fixed(LATE), timer.clone());
    assert_eq!(call(&mut service, false), (0, 0));
    assert_eq!(call(&mut service, true), (1, 1));
}

#[test]
fn invalid_arguments_are_refused() {
    type On<S> = Hedge<S, CloneByClone, ManualTimer>;
    type Layer = HedgeLayer<CloneByClone, ManualTimer>;
    let second = Duration::from_secs(1);
    for wrong in [-0.1, 1.1, 95.0, f32::INFINITY, f32::NEG_INFINITY] {
        let error = On::try_new((), CloneByClone, 1, wrong, second).unwrap_err();
        assert_eq!(error, InvalidHedge::Percentile(wrong));
        assert!(error.to_string().contains(&wrong.to_string()), "{error}");
        assert!(ShareBudget::try_new(wrong).is_err());
    }
    assert!(matches!(
        Layer::try_new(CloneByClone, 1, f32::NAN, second),
        Err(InvalidHedge::Percentile(nan)) if nan.is_nan()
    ));
    assert!(matches!(
        ShareBudget::try_new(f32::NAN),
        Err(InvalidHedge::Share(_))
    ));
    let error = Layer::try_new(CloneByClone, 1, 0.9, Duration::ZERO).unwrap_err();
    assert_eq!(error, InvalidHedge::Period);
    assert!(error.to_string().contains("0ns"), "{error}");
    for right in [0.0, 0.5, 1.0] {
        assert!(On::try_new((), CloneByClone, 0, right, Duration::from_nanos(1)).is_ok());
    }

    type Act<'a> = &'a dyn Fn();
    let builder = || campanile::ServiceBuilder::with_runtime(ManualTimer::new());
    let acts: [(u32, Act<'_>); 5] = [
        (line!(), &|| drop(On::new((), CloneByClone, 1, 2.0, second))),
        (line!(), &|| drop(Layer::new(CloneByClone, 1, f32::NAN, MS))),
        (line!(), &|| _ = Delay::percentile(1, 0.5, Duration::ZERO)),
        (line!(), &|| drop(ShareBudget::new(2.0))),
        (line!(), &|| drop(builder().hedge(CloneByClone, 1, 2.0, MS))),
    ];
    for (line, act) in acts {
        assert_eq!(panics_at(act), (file!().to_owned(), line));
    }
}

/// Answers each request after the next latency.
fn slow(
    timer: &ManualTimer,
    latencies: impl FnMut() -> Duration + 'static,
) -> impl Service<u32, Response = u32, Error = Failure> + Clone {
    let timer = timer.clone();
    let latencies = Rc::new(RefCell::new(latencies));
    service_fn(move |n: u32| {
        let took = (latencies.borrow_mut())();
        let sleep = timer.sleep(took);
        async move {
            sleep.await;
            Ok(n)
        }
    })
}

/// Sends a request and moves time forward until it is answered.
fn call<S: Service<u32>>(service: &mut S, timer: &ManualTimer) -> Result<S::Response, S::Error> {
    let mut response = spawn(ready_call(service));
    loop {
        if let Poll::Ready(result) = response.poll() {
            return result;
        }
        assert!(timer.advance_to_next(), "no deadline is armed");
    }
}

#[test]
fn winning_hedges_do_not_shrink_the_delay() {
    let timer = ManualTimer::new();
    // Hedges are answered fast, first attempts slowly.
    let mut calls = 0;
    let inner = slow(&timer, move || {
        calls += 1;
        Duration::from_millis(if calls % 2 == 0 { 2 } else { 2_000 })
    });
    let delay = Delay::percentile(1, 0.9, Duration::from_secs(1));
    let mut service =
        Hedge::with_timer(inner, CloneByClone, delay, timer.clone()).budget(Unlimited);
    service.seed([Duration::from_millis(500)]);
    let mut hedged = 0;
    for _ in 0..10 {
        let before = timer.now();
        call(&mut service, &timer).unwrap();
        let took = timer.now().saturating_duration_since(before);
        hedged += u32::from(took < Duration::from_millis(2_000));
        let delay = service.delay().unwrap();
        assert!(delay >= Duration::from_millis(500), "{delay:?}");
    }
    assert_eq!(hedged, 10, "each of them was hedged, and the hedge won");
}

#[test]
fn delay_is_stable_under_bimodal_latency() {
    for (slow_share, percentile) in [(0.2, 0.9), (0.6, 0.6), (0.1, 0.98)] {
        let timer = ManualTimer::new();
        let mut rng = SplitMix64::new(27);
        let inner = slow(&timer, move || match rng.next_f64() < slow_share {
            true => Duration::from_millis(500 + rng.next_range(0..100)),
            false => Duration::from_millis(1 + rng.next_range(0..5)),
        });
        let delay = Delay::percentile(20, percentile, Duration::from_secs(15));
        let mut service =
            Hedge::with_timer(inner, CloneByClone, delay, timer.clone()).budget(Unlimited);
        let (mut estimates, mut overtaken) = (0, 0);
        for _ in 0..1_000 {
            let before = timer.now();
            call(&mut service, &timer).unwrap();
            let took = timer.now().saturating_duration_since(before);
            if let Some(delay) = service.delay() {
                estimates += 1;
                assert!(delay >= Duration::from_millis(500), "{delay:?}");
                assert!(delay <= Duration::from_millis(640), "{delay:?}");
                overtaken += u32::from(took > delay && took < delay + LATE);
            }
        }
        assert!(estimates > 300, "{estimates} for {slow_share}");
        assert!(overtaken >= 5, "{overtaken}");
    }
}

#[test]
fn cancelled_calls_count_as_latency() {
    let timer = ManualTimer::new();
    let (inner, mut handle) = mock::<u32, u32>();
    let second = Duration::from_secs(1);
    let delay = Delay::percentile(1, 0.5, second);
    let mut service = Hedge::with_timer(inner, CloneByClone, delay, timer.clone());
    let next_period = |service: &mut Hedge<_, _, _>, handle: &mut Handle<u32, u32>| {
        timer.advance(second);
        let mut response = spawn(ready_call(service));
        assert!(response.poll().is_pending());
        let delay = service.delay();
        while let Some((_, responder)) = handle.try_next() {
            responder.fail(Failure("not counted"));
        }
        assert!(response.poll().is_ready());
        delay
    };

    // One call that is answered, then two that are cancelled.
    let mut answered = spawn(ready_call(&mut service));
    handle.try_next().unwrap().1.send(1);
    assert!(answered.poll().is_ready());
    for _ in 0..2 {
        let mut response = spawn(ready_call(&mut service));
        assert!(response.poll().is_pending());
        timer.advance(100 * MS);
    }
    let delay = next_period(&mut service, &mut handle).unwrap();
    assert!(delay > 100 * MS && delay < 110 * MS, "{delay:?}");

    // A failure does not count, nor does a response that was never polled.
    let mut failed = spawn(ready_call(&mut service));
    timer.advance(20 * MS);
    handle.try_next().unwrap().1.fail(Failure("no"));
    assert!(failed.poll().is_ready());
    let unpolled = ready_call(&mut service);
    timer.advance(20 * MS);
    drop(unpolled);
    assert_eq!(next_period(&mut service, &mut handle), None);
}

#[test]
fn an_attempt_counts_once() {
    let timer = ManualTimer::new();
    let (inner, mut handle) = mock::<u32, u32>();
    let second = Duration::from_secs(1);
    let delay = Delay::percentile(2, 0.5, second);
    let mut service = Hedge::with_timer(inner, CloneByClone, delay, timer.clone());
    let mut response = spawn(ready_call(&mut service));
    assert!(response.poll().is_pending());
    handle.try_next().unwrap().1.send(1);
    assert!(response.poll().is_ready());
    drop(response);
    timer.advance(second);
    drop(ready_call(&mut service));
    assert_eq!(service.delay(), None, "one data point, and two are needed");
}

#[test]
fn latency_ends_with_the_answer() {
    for hedge_wins in [false, true] {
        let timer = ManualTimer::new();
        let (inner, mut handle) = mock::<u32, u32>();
        let second = Duration::from_secs(1);
        let delay = Delay::percentile(1, 1.0, second);
        let mut service = Hedge::with_timer(inner, CloneByClone, delay, timer.clone());
        service.seed([MS]);
        timer.advance(second);
        let mut response = spawn(ready_call(&mut service));
        assert!(response.poll().is_pending());
        timer.advance(20 * MS);
        assert!(response.poll().is_pending());
        let (first, second_attempt) = (handle.try_next().unwrap(), handle.try_next().unwrap());
        let (winner, _other) = if hedge_wins {
            (second_attempt, first)
        } else {
            (first, second_attempt)
        };
        winner.1.send(1);
        assert!(response.poll().is_ready());
        timer.advance(500 * MS);
        drop(response);
        timer.advance(second);
        drop(ready_call(&mut service));
        let delay = service.delay().unwrap();
        assert!(delay >= 20 * MS && delay < 22 * MS, "{delay:?}");
    }
}

#[test]
fn budget_saves_up_to_ten_hedges() {
    let budget = ShareBudget::new(0.4);
    let drain = || std::iter::from_fn(|| budget.withdraw().then_some(())).count();
    (0..100).for_each(|_| budget.deposit());
    assert_eq!(drain(), 10);
    (0..100).for_each(|_| budget.deposit());
    assert_eq!(drain(), 10);

    // Fractions of a further hedge are not saved.
    let budget = ShareBudget::new(0.75);
    assert!(budget.withdraw());
    (0..2).for_each(|_| budget.deposit());
    assert_eq!(
        std::iter::from_fn(|| budget.withdraw().then_some(())).count(),
        10
    );
    budget.deposit();
    assert!(!budget.withdraw());
}

#[test]
fn hedges_stay_within_the_budget() {
    let hour = Duration::from_secs(3600);
    let budgets = [
        (Delay::percentile(1, 0.9, hour), 0.1),
        (Delay::percentile(1, 0.995, hour), 0.01),
        (Delay::fixed(MS), 0.05),
    ];
    for (delay, share) in budgets {
        let timer = ManualTimer::new();
        let calls = Rc::new(Cell::new(0));
        // All calls have become slow, hedges included.
        let inner = slow(&timer, {
            let calls = calls.clone();
            move || {
                calls.set(calls.get() + 1);
                Duration::from_secs(1)
            }
        });
        let mut service = Hedge::with_timer(inner, CloneByClone, delay, timer.clone());
        for _ in 0..1_000 {
            service.seed([MS; 1_000]);
            call(&mut service, &timer).unwrap();
        }
        let expected = 1_010 + (1_000.0 * share) as u32;
        assert!(
            (expected - 1..=expected).contains(&calls.get()),
            "{} for {share}",
            calls.get()
        );
    }
}

#[test]
fn budget_can_be_shared_with_retries() {
    let timer = ManualTimer::new();
    let hour = Duration::from_secs(3600);
    let budget = TpsBudget::with_timer(hour, 0, 0.5, timer.clone());
    let (inner, handle) = mock::<u32, u32>();
    let layer =
        HedgeLayer::with_timer(CloneByClone, Delay::fixed(LATE), timer.clone()).budget(&budget);
    let mut service = layer.layer(inner);
    let mut late = Vec::new();
    for _ in 0..4 {
        late.push(spawn(ready_call(&mut service)));
    }
    assert!(late.iter_mut().all(|response| response.poll().is_pending()));
    timer.advance(LATE);
    assert!(late.iter_mut().all(|response| response.poll().is_pending()));
    assert_eq!(handle.calls(), 6, "half of four");
    assert!(!budget.withdraw());
}

#[test]
fn clones_share_only_the_estimate() {
    let layer = HedgeLayer::with_timer(
        CloneByClone,
        Delay::percentile(3, 1.0, Duration::from_secs(1)),
        ManualTimer::new(),
    );
    let (inner, handle) = mock::<u32, u32>();
    let mut service = layer.layer(inner.clone());
    let other = layer.clone().layer(inner);
    handle.set_ready(false);
    let mut clone = service.clone();
    assert!(WakeCount::new().poll_ready(&mut clone).is_pending());
    handle.set_ready(true);
    assert!(WakeCount::new().poll_ready(&mut service).is_ready());
    handle.set_ready(false);
    assert!(
        WakeCount::new()
            .poll_ready(&mut service.clone())
            .is_pending()
    );

    service.seed([MS, 2 * MS]);
    assert_eq!(other.delay(), None);
    clone.seed([3 * MS]);
    let delay = layer.delay().unwrap();
    assert!(delay > 3 * MS && delay < 4 * MS, "{delay:?}");
    assert_eq!([service.delay(), other.delay()], [Some(delay); 2]);
    assert_eq!(service.budget(Unlimited).delay(), None, "anew");
    let text = format!("{layer:?} {other:?} {:?}", ShareBudget::new(0.5));
    assert!(
        text.contains("HedgeLayer") && text.contains("inner"),
        "{text}"
    );
}

#[cfg(feature = "tokio")]
#[test]
fn only_a_wait_needs_a_runtime() {
    let (inner, mut handle) = mock::<u32, u32>();
    let mut service = campanile::tokio::ServiceBuilder::new()
        .hedge(CloneByClone, 1, 0.9, MS)
        .service(inner);
    let mut response = spawn(ready_call(&mut service));
    assert!(
        response.poll().is_pending(),
        "there is no data, and so no wait"
    );
    handle.try_next().unwrap().1.send(2);
    assert_eq!(response.poll(), Poll::Ready(Ok(2)));
}

#[cfg(feature = "tokio")]
#[tokio::test(start_paused = true)]
async fn hedge_is_sent_despite_a_used_up_budget() {
    use campanile::tokio::Tokio;
    use std::pin::pin;

    let (polls, calls) = (Cell::new(0), Cell::new(0));
    // Uses up the task's budget on each poll and lets a millisecond pass.
    let greedy = || {
        poll_fn(|cx| {
            polls.set(polls.get() + 1);
            let mut step = pin!(tokio::time::advance(MS));
            let _ = step.as_mut().poll(cx);
            while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
            cx.waker().wake_by_ref();
            if polls.get() < 1_000 {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
    };
    let inner = service_fn(|n: u32| {
        calls.set(calls.get() + 1);
        let first = calls.get() == 1;
        async move {
            if first {
                greedy().await;
            }
            Ok::<_, Failure>(n)
        }
    });
    let inner = Rc::new(RefCell::new(inner));
    let inner = service_fn(move |n: u32| inner.borrow_mut().call(n));
    let mut service = Hedge::<_, _, Tokio>::with_delay(inner, CloneByClone, Delay::fixed(LATE));
    assert_eq!(service.call(7).await, Ok(7));
    assert_eq!(calls.get(), 2);
    assert!(polls.get() <= 12, "{}", polls.get());
}

/// Asserts that the future can move to another thread.
fn sent<T: Send>(future: T) -> T {
    future
}

async fn first_answer_wins<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock::<u32, u32>();
    let layer = HedgeLayer::with_timer(CloneByClone, Delay::fixed(LATE), rt.clone());
    let mut service = layer.layer(service);
    for hedge_wins in [true, false] {
        poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
        let response = sent(service.call(1));
        let answers = async {
            let (_, first) = handle.next().await;
            rt.advance(LATE).await;
            rt.advance(MS).await; // tokio rounds up to the millisecond
            let (request, hedge) = handle.next().await;
            assert_eq!(request, 1);
            let (one, other) = if hedge_wins {
                (hedge, first)
            } else {
                (first, hedge)
            };
            one.send(2);
            while !other.is_cancelled() {
                yield_now().await;
            }
        };
        let (answer, ()) = futures::join!(response, answers);
        assert_eq!(answer, Ok(2));
    }
}

async fn delays_use_the_runtimes_clock<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock::<u32, u32>();
    let second = Duration::from_secs(1);
    let delay = Delay::percentile(3, 1.0, second);
    let mut service = Hedge::with_timer(service, CloneByClone, delay, rt.clone());
    for _ in 0..3 {
        poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
        let response = service.call(1);
        let (answer, ()) = futures::join!(response, async {
            rt.advance(50 * MS).await;
            handle.next().await.1.send(1);
        });
        assert_eq!(answer, Ok(1));
    }
    rt.advance(second).await;
    poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
    drop(service.call(1));
    let delay = service.delay().unwrap();
    assert!(delay > 50 * MS && delay < 60 * MS, "{delay:?}");
}

on_every_runtime! {
    first_answer_wins,
    delays_use_the_runtimes_clock,
}
