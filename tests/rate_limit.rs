//! `RateLimit` on a manual timer.
#![cfg(all(feature = "alloc", target_has_atomic = "64"))]

mod common;

use core::cell::Cell;
use core::future::{Future, Ready, poll_fn, ready};
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use core::task::{Context, Poll};
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use campanile::limit::rate::{Error, InvalidRate, Limiter, Rate, RateLimit, RateLimitLayer};
use campanile::load_shed::LoadShed;
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Instant, Layer, Service, ServiceExt, Timer, service_fn};

use common::{
    Failure, Host, ManualSleep, ManualTimer, On, WakeCount, on_every_runtime, spawn, yield_now,
};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    WakeCount::new().enter(|cx| future.poll(cx))
}

fn poll_ready<S: Service<()>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    poll(pin!(poll_fn(|cx| service.poll_ready(cx))))
}

/// A service that answers at once.
#[derive(Clone, Debug)]
struct Inner;

impl Service<()> for Inner {
    type Response = ();
    type Error = &'static str;
    type Future = Ready<Result<(), &'static str>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

/// Polls readiness and calls: admitted, pending (`None`), or refused with the time after which to retry.
fn request<S>(service: &mut S) -> Option<Result<(), Duration>>
where
    S: Service<(), Response = (), Error = Error<&'static str>>,
{
    if poll_ready(service).is_pending() {
        return None;
    }
    match poll(pin!(service.call(()))) {
        Poll::Ready(Ok(())) => Some(Ok(())),
        Poll::Ready(Err(Error::Limited(limited))) => Some(Err(limited.retry_after())),
        other => panic!("{other:?}"),
    }
}

/// How many requests are admitted right now.
fn burst(service: &mut RateLimit<Inner, ManualTimer>) -> usize {
    (0..1000)
        .take_while(|_| request(service) == Some(Ok(())))
        .count()
}

#[test]
fn burst_passes_at_once_then_evenly() {
    let timer = ManualTimer::new();
    let mut service = RateLimit::with_timer(Inner, Rate::new(5, SECOND), timer.clone());
    assert_eq!(burst(&mut service), 5);
    timer.advance(200 * MS - Duration::from_nanos(1));
    assert_eq!(burst(&mut service), 0);
    timer.advance(Duration::from_nanos(1));
    assert_eq!(burst(&mut service), 1);
    timer.advance(3600 * SECOND);
    assert_eq!(burst(&mut service), 5, "a long pause saves up no more");
}

#[test]
fn bursts_do_not_meet_at_an_edge() {
    // With tower, after one request and a pause until just before the window's edge, 19 requests pass in 6 ms.
    let timer = ManualTimer::new();
    let mut service = RateLimit::with_timer(Inner, Rate::new(10, SECOND), timer.clone());
    assert_eq!(request(&mut service), Some(Ok(())));
    timer.advance(997 * MS);
    let before = burst(&mut service);
    timer.advance(6 * MS);
    assert_eq!(before + burst(&mut service), 10);
}

#[test]
fn fixed_windows_refill_at_their_edges() {
    for (num, per) in [(3, 1_000_000_000), (7, 1_000), (5, 5)] {
        let timer = ManualTimer::new();
        let rate = Rate::new(num, Duration::from_nanos(per)).fixed_window();
        let mut service = RateLimit::with_timer(Inner, rate, timer.clone()).reject();
        assert_eq!(burst(&mut service) as u64, num);
        // No token returns within the window.
        timer.advance(Duration::from_nanos(per - 1));
        assert_eq!(
            request(&mut service),
            Some(Err(Duration::from_nanos(1))),
            "{num} per {per}"
        );
        timer.advance(Duration::from_nanos(1));
        assert_eq!(burst(&mut service) as u64, num);
        // Unused budgets do not accumulate.
        timer.advance(Duration::from_nanos(10 * per));
        assert_eq!(burst(&mut service) as u64, num);
        // A window starts at a multiple of the period, not with its first request.
        timer.advance(Duration::from_nanos(2 * per + per / 3));
        assert_eq!(burst(&mut service) as u64, num);
        timer.advance(Duration::from_nanos(per - per / 3));
        assert_eq!(burst(&mut service) as u64, num);
    }
}

#[test]
fn unused_token_returns_to_its_own_window() {
    let timer = ManualTimer::new();
    let rate = Rate::new(2, Duration::from_secs(1)).fixed_window();
    let mut service = RateLimit::with_timer(Inner, rate, timer.clone()).reject();
    let mut idle = service.clone();
    assert!(poll_ready(&mut idle).is_ready());
    assert_eq!(burst(&mut service), 1);
    drop(idle);
    assert_eq!(burst(&mut service), 1);

    timer.advance(Duration::from_secs(1));
    let mut idle = service.clone();
    assert!(poll_ready(&mut idle).is_ready());
    timer.advance(Duration::from_secs(1));
    assert_eq!(burst(&mut service), 2);
    drop(idle);
    assert_eq!(burst(&mut service), 0);
}

#[test]
fn clones_and_layers_share_one_budget() {
    let timer = ManualTimer::new();
    let layer = RateLimitLayer::with_timer(Rate::new(3, SECOND), timer.clone());
    let (mut one, mut other) = (layer.layer(Inner), layer.clone().layer(Inner));
    assert_eq!(request(&mut one), Some(Ok(())));
    assert_eq!(request(&mut other), Some(Ok(())));
    assert_eq!(burst(&mut one.clone()), 1);
    assert_eq!(burst(&mut other), 0);

    let layer = RateLimitLayer::with_timer(Rate::new(3, SECOND), timer).per_service();
    let (mut one, mut other) = (layer.layer(Inner), layer.layer(Inner));
    assert_eq!(burst(&mut one), 3);
    assert_eq!(burst(&mut other), 3);
    assert_eq!(burst(&mut one.clone()), 0);
}

#[test]
fn each_waiter_is_woken_at_its_turn() {
    let timer = ManualTimer::new();
    let rate = Rate::new(10, SECOND).burst(1);
    let mut service = RateLimit::with_timer(Inner, rate, timer.clone());
    assert_eq!(request(&mut service), Some(Ok(())));

    let mut waiters: Vec<_> = (0..3)
        .map(|_| (service.clone(), WakeCount::new()))
        .collect();
    for (waiter, wakes) in &mut waiters {
        assert!(wakes.poll_ready(waiter).is_pending());
    }
    for turn in 0..3 {
        timer.advance(100 * MS);
        for (n, (_, wakes)) in waiters.iter().enumerate() {
            assert_eq!(wakes.get(), usize::from(n <= turn));
        }
        assert_eq!(request(&mut waiters[turn].0), Some(Ok(())));
    }
    assert_eq!(timer.armed(), 0);
}

/// A timer whose first alarm, when it rings, lets another request take the token first.
#[derive(Clone)]
struct Overtaken {
    timer: ManualTimer,
    other: Rc<Cell<Option<RateLimit<Inner, ManualTimer, Arc<Limiter>>>>>,
}

impl Timer for Overtaken {
    type Sleep = ManualSleep;
    type Alarm = Pin<Box<dyn Future<Output = ()>>>;
    fn now(&self) -> Instant {
        self.timer.now()
    }
    fn sleep_until(&self, deadline: Instant) -> ManualSleep {
        self.timer.sleep_until(deadline)
    }
    fn alarm_until(&self, deadline: Instant) -> Self::Alarm {
        let Self { timer, other } = self.clone();
        let mut alarm = timer.alarm_until(deadline);
        Box::pin(poll_fn(move |cx| {
            if let Some(mut other) = other.take() {
                timer.advance(100 * MS);
                assert_eq!(request(&mut other), None, "it does not pass who waits");
            }
            Pin::new(&mut alarm).poll(cx)
        }))
    }
}

#[test]
fn late_newcomer_passes_no_waiter() {
    let timer = ManualTimer::new();
    let limiter = Arc::new(Limiter::new(Rate::new(10, SECOND).burst(1)));
    let mut first = RateLimit::with_limiter(Inner, limiter.clone(), timer.clone());
    assert_eq!(request(&mut first), Some(Ok(())));
    let overtaken = Overtaken {
        timer: timer.clone(),
        other: Rc::new(Cell::new(Some(first))),
    };
    let mut service = RateLimit::with_limiter(Inner, limiter, overtaken.clone());
    assert_eq!(request(&mut service), Some(Ok(())));
    assert!(overtaken.other.take().is_none(), "the other has come");
}

#[test]
fn rejects_or_waits_up_to_a_limit() {
    let timer = ManualTimer::new();
    let rate = Rate::new(10, SECOND).burst(1);
    let layer = RateLimitLayer::with_timer(rate, timer.clone()).reject();
    let mut service = layer.layer(Inner);
    assert_eq!(request(&mut service), Some(Ok(())));
    assert_eq!(request(&mut service), Some(Err(100 * MS)));
    assert_eq!(timer.made(), 0);
    let mut late = service.clone();
    assert!(poll_ready(&mut late).is_ready());

    let mut patient = service.clone().wait_at_most(100 * MS);
    let mut less = service.clone().wait_at_most(99 * MS);
    assert_eq!(request(&mut less), Some(Err(100 * MS)));
    assert_eq!(request(&mut patient), None);
    // From here on the wait of the queued handle counts too.
    assert_eq!(request(&mut less), Some(Err(200 * MS)));
    assert_eq!(request(&mut service), Some(Err(200 * MS)));
    timer.advance(100 * MS);
    assert_eq!(request(&mut service), Some(Err(100 * MS)));
    assert_eq!(request(&mut patient), Some(Ok(())));
    timer.advance(100 * MS);
    assert_eq!(
        request(&mut late),
        Some(Ok(())),
        "an old refusal is forgotten"
    );
}

/// A token that is taken while no waiter is polled delays the waiters, perhaps beyond their patience.
#[test]
fn refusal_leaves_the_next_its_full_wait() {
    let timer = ManualTimer::new();
    let rate = Rate::new(10, SECOND).burst(1);
    let mut service = RateLimit::with_timer(Inner, rate, timer.clone());
    let mut idle = service.clone();
    let mut patient = service.clone().wait_at_most(200 * MS);
    assert_eq!(request(&mut service), Some(Ok(())));
    assert_eq!(request(&mut idle), None);
    assert_eq!(request(&mut patient), None);
    // Another request has just taken the token, which was due earlier.
    timer.advance(200 * MS);
    assert_eq!(request(&mut patient), Some(Err(100 * MS)));
    // The wait of the next request starts now.
    assert_eq!(request(&mut patient), None);
    timer.advance(100 * MS);
    assert_eq!(request(&mut patient), Some(Ok(())));
}

#[test]
fn refusal_stays_ready_until_the_call() {
    /// Ready at the second poll.
    struct Slow(bool);
    impl Service<()> for Slow {
        type Response = ();
        type Error = &'static str;
        type Future = Ready<Result<(), &'static str>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
            match std::mem::replace(&mut self.0, true) {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        }
        fn call(&mut self, (): ()) -> Self::Future {
            ready(Ok(()))
        }
    }
    let refused = || {
        let timer = ManualTimer::new();
        let rate = Rate::new(1, SECOND);
        let mut service = RateLimit::with_timer(Slow(true), rate, timer.clone()).reject();
        assert_eq!(request(&mut service), Some(Ok(())));
        assert!(poll_ready(&mut service).is_ready());
        (timer, service)
    };
    // An inner service that is not ready changes nothing.
    let (timer, mut service) = refused();
    timer.advance(SECOND);
    service.get_mut().0 = false;
    assert!(poll_ready(&mut service).is_ready());
    assert!(matches!(poll(pin!(service.call(()))), Poll::Ready(Err(_))));
    // Neither does a try, nor a next token that would be soon enough.
    let (timer, service) = refused();
    timer.advance(SECOND / 2);
    let mut service = LoadShed::new(service.wait_at_most(SECOND));
    assert!(poll_ready(&mut service).is_ready());
    let Poll::Ready(Err(error)) = poll(pin!(service.call(()))) else {
        panic!("it went through");
    };
    assert_eq!(error.to_string(), "rate limited, retry after 500ms");
    assert_eq!(
        format!("{error:?}"),
        "Service(Limited(Limited { retry_after: 500ms }))"
    );
    // If a token is available by then, the request takes it.
    let (timer, mut service) = refused();
    timer.advance(SECOND);
    assert!(poll_ready(&mut service).is_ready());
    assert_eq!(poll(pin!(service.call(()))), Poll::Ready(Ok(())));
}

#[test]
fn unready_call_takes_a_token_or_fails() {
    let mut service = RateLimit::with_timer(Inner, Rate::new(1, SECOND), ManualTimer::new());
    assert_eq!(poll(pin!(service.call(()))), Poll::Ready(Ok(())));
    let Poll::Ready(Err(error)) = poll(pin!(service.call(()))) else {
        panic!("it went through");
    };
    assert_eq!(error.to_string(), "rate limited, retry after 1s");
}

#[test]
fn unused_token_is_returned_once() {
    let timer = ManualTimer::new();
    for rate in [Rate::new(2, SECOND), Rate::new(3, SECOND).burst(2)] {
        let mut service = RateLimit::with_timer(Inner, rate, timer.clone()).reject();
        let mut idle = service.clone();
        assert!(poll_ready(&mut idle).is_ready());
        assert!(
            poll_ready(&mut idle).is_ready(),
            "it is still the same token"
        );
        assert_eq!(burst(&mut service), 1);
        let clone = idle.clone();
        drop(idle);
        drop(clone);
        assert_eq!(burst(&mut service), 1);

        // Time has restored the token already, so it is not returned a second time.
        timer.advance(10 * SECOND);
        let mut idle = service.clone();
        assert!(poll_ready(&mut idle).is_ready());
        timer.advance(10 * SECOND);
        assert_eq!(burst(&mut service), 2);
        drop(idle);
        assert_eq!(burst(&mut service), 0);
        timer.advance(10 * SECOND);
    }
}

/// A full budget cannot accumulate further, so a token that is returned late is worth less.
#[test]
fn late_return_enlarges_no_burst() {
    for (rate, most) in [
        (Rate::new(2, SECOND), 3),
        (Rate::new(7, SECOND).burst(3), 9),
    ] {
        let timer = ManualTimer::new();
        let mut service = RateLimit::with_timer(Inner, rate, timer.clone());
        let mut idle = service.clone();
        assert!(poll_ready(&mut idle).is_ready());
        // The budget is almost full again when another token is taken and the first is returned.
        let nearly = SECOND / if most == 3 { 2 } else { 7 } - MS;
        timer.advance(nearly);
        assert_eq!(request(&mut service), Some(Ok(())));
        drop(idle);
        let mut passed = 1;
        // The bound holds for a second from that request on.
        for _ in 0..999 {
            passed += burst(&mut service);
            timer.advance(MS);
        }
        assert_eq!(passed, most);
    }
}

#[test]
fn returned_token_adds_no_extra_nanosecond() {
    // Two of the cells last 66,666,667 ns, the third one nanosecond less.
    let (most, per) = (3, 200_000_000);
    let rate = Rate::new(most, Duration::from_nanos(per)).burst(1);
    for offset in (0..per).step_by(9_999_991) {
        let timer = ManualTimer::at(Instant::from_nanos(1000 * per + offset));
        let layer = RateLimitLayer::with_timer(rate, timer.clone()).reject();
        let mut passed = Vec::new();
        let mut unused = layer.layer(Inner);
        assert!(poll_ready(&mut unused).is_ready());
        let mut service = layer.layer(Inner);
        while passed.len() < 8 {
            match request(&mut service) {
                Some(Ok(())) => passed.push(timer.nanos()),
                Some(Err(retry)) => timer.advance(retry),
                None => panic!("it waits"),
            }
            if passed.len() == 1 {
                // Time has restored the whole budget.
                unused = layer.layer(Inner);
            }
        }
        assert_bound(&passed, most as usize, per, rate);
        drop(unused);
    }
}

#[test]
fn idle_handle_delays_no_other() {
    let timer = ManualTimer::new();
    let rate = Rate::new(10, SECOND).burst(1);
    let mut service = RateLimit::with_timer(Inner, rate, timer.clone());
    let mut idle = service.clone();
    assert!(poll_ready(&mut idle).is_ready());
    for _ in 0..10 {
        timer.advance(100 * MS);
        assert_eq!(request(&mut service), Some(Ok(())));
    }
}

#[test]
fn unready_inner_service_takes_no_token() {
    struct Busy(Rc<Cell<bool>>);
    impl Service<()> for Busy {
        type Response = ();
        type Error = &'static str;
        type Future = Ready<Result<(), &'static str>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
            if self.0.get() {
                Poll::Pending
            } else {
                Poll::Ready(Ok(()))
            }
        }
        fn call(&mut self, (): ()) -> Self::Future {
            ready(Ok(()))
        }
    }
    let timer = ManualTimer::new();
    let layer = RateLimitLayer::with_timer(Rate::new(1, SECOND), timer);
    let busy = Rc::new(Cell::new(true));
    let (mut one, mut other) = (
        layer.layer(Busy(busy.clone())),
        layer.layer(Busy(busy.clone())),
    );
    assert_eq!(request(&mut one), None);
    assert_eq!(request(&mut other), None);
    busy.set(false);
    assert_eq!(request(&mut other), Some(Ok(())));
    assert_eq!(request(&mut one), None);
}

#[test]
fn token_lost_to_another_is_waited_for() {
    /// Lets another request take the token first.
    struct Slow(RateLimit<Inner, ManualTimer>);
    impl Service<()> for Slow {
        type Response = ();
        type Error = &'static str;
        type Future = Ready<Result<(), &'static str>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
            let _ = request(&mut self.0);
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, (): ()) -> Self::Future {
            ready(Ok(()))
        }
    }
    let layer = RateLimitLayer::with_timer(Rate::new(1, SECOND), ManualTimer::new());
    let mut service = layer.layer(Slow(layer.layer(Inner)));
    assert_eq!(request(&mut service), None);
}

#[test]
fn shed_request_leaves_no_timer() {
    let timer = ManualTimer::new();
    let rate = Rate::new(1, SECOND);
    let mut service = LoadShed::new(RateLimit::with_timer(Inner, rate, timer.clone()));
    assert!(poll_ready(&mut service).is_ready());
    assert!(matches!(poll(pin!(service.call(()))), Poll::Ready(Ok(()))));
    assert!(poll_ready(&mut service).is_ready());
    assert!(matches!(poll(pin!(service.call(()))), Poll::Ready(Err(_))));
    assert_eq!(timer.made(), 0);
}

#[test]
fn inner_panic_costs_only_its_own_token() {
    let timer = ManualTimer::new();
    let inner = service_fn(|()| -> Ready<Result<(), &'static str>> { panic!("inner") });
    let layer = RateLimitLayer::with_timer(Rate::new(2, SECOND), timer);
    let mut panics = layer.layer(inner);
    assert!(poll_ready(&mut panics).is_ready());
    let call = core::panic::AssertUnwindSafe(|| drop(panics.call(())));
    assert!(std::panic::catch_unwind(call).is_err());
    drop(panics);
    assert_eq!(burst(&mut layer.layer(Inner)), 1);
}

#[test]
fn ready_path_reads_the_clock_once() {
    let timer = ManualTimer::new();
    let layer = RateLimitLayer::with_timer(Rate::new(1, SECOND), timer.clone());
    let mut service = layer.layer(Inner).clone();
    assert_eq!(timer.asked()[0], 0);
    assert_eq!(request(&mut service), Some(Ok(())));
    assert_eq!(timer.asked()[0], 1);
}

#[test]
fn a_budget_can_be_a_static() {
    static BUDGET: Limiter = Limiter::new(Rate::new(1, SECOND));
    let timer = ManualTimer::new();
    let layer = RateLimitLayer::with_limiter(&BUDGET, timer.clone());
    assert_eq!(request(&mut layer.layer(Inner)), Some(Ok(())));
    let mut other = RateLimit::with_limiter(Inner, &BUDGET, timer);
    assert_eq!(request(&mut other), None);
}

#[test]
fn zero_rate_is_refused() {
    assert_eq!(Rate::try_new(0, SECOND), Err(InvalidRate::Num));
    assert_eq!(Rate::try_new(1, Duration::ZERO), Err(InvalidRate::Per));
    let line = Arc::new(AtomicU32::new(0));
    let seen = line.clone();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload().downcast_ref::<&str>();
        let here = info.location().is_some_and(|at| at.file() == file!());
        if here && message.is_some_and(|text| text.contains("`num` must be at least 1")) {
            seen.fetch_add(1, SeqCst);
        }
        usual(info);
    }));
    let rate = std::panic::catch_unwind(|| Rate::new(0, SECOND));
    let layer = std::panic::catch_unwind(|| {
        fn layer<T: Default>() -> RateLimitLayer<T> {
            RateLimitLayer::new(0, SECOND)
        }
        layer::<()>()
    });
    drop(std::panic::take_hook());
    assert!(rate.is_err() && layer.is_err());
    assert_eq!(line.load(SeqCst), 2, "both at the caller's line");
}

/// Asserts that no window of `per` holds more than `most` of the admission times.
fn assert_bound(passed: &[u64], most: usize, per: u64, rate: Rate) {
    for window in passed.windows(most.saturating_add(1)) {
        let length = window[window.len() - 1] - window[0];
        assert!(length >= per, "{rate:?}: {} in {length} ns", window.len());
    }
}

#[test]
fn no_window_holds_more_than_the_bound() {
    let mut rng = SplitMix64::new(7);
    for round in 0..600 {
        // All magnitudes, so that cells last from 1 ns to years and have uneven widths.
        let num = (rng.next_u64() >> (rng.next_u64() % 64)).max(1);
        let per = (rng.next_u64() >> (2 + rng.next_u64() % 62)).max(1);
        let (num, per) = match round {
            0..400 => (num % 40 + 1, per),
            400..420 => (u64::MAX, per),
            _ => (num, per),
        };
        let b = rng.next_u64() % 50 + 1;
        let rate = Rate::new(num, Duration::from_nanos(per));
        let strict = round % 3 == 0;
        let rate = if strict {
            rate.strict(b)
        } else {
            rate.burst(b)
        };
        let most = if strict {
            num
        } else {
            num.saturating_add(b - 1)
        };
        let start = [0, 1 << 40, 1 << 62][round % 3];
        let timer = ManualTimer::at(Instant::from_nanos(start));
        let mut service = RateLimit::with_timer(Inner, rate, timer.clone()).reject();
        let mut passed = Vec::new();
        let end = start.saturating_add(1 << 63);
        for _ in 0..400 {
            let retry = match request(&mut service) {
                Some(Ok(())) => {
                    passed.push(timer.nanos());
                    Duration::ZERO
                }
                Some(Err(retry)) => retry,
                None => panic!("it waits"),
            };
            let pause = match rng.next_u64() % 8 {
                0 => Duration::from_nanos(rng.next_u64() % per.saturating_mul(2)),
                1 => Duration::from_nanos(rng.next_u64() % (per / num + 2)),
                2 => retry.saturating_sub(Duration::from_nanos(1)),
                _ => retry,
            };
            let then = u128::from(timer.nanos()) + pause.as_nanos();
            if then >= u128::from(end) {
                break;
            }
            timer.advance(pause);
        }
        assert!(!passed.is_empty());
        assert_bound(&passed, usize::try_from(most).unwrap(), per, rate);
    }
}

#[test]
fn the_rate_does_not_drift() {
    for (num, per) in [
        (3, 1_000_000_000),
        (7, 10),
        (9_973, 10_007),
        (1, 1),
        (6, 60),
    ] {
        for start in [0, 12_345, 1 << 62] {
            let timer = ManualTimer::at(Instant::from_nanos(start));
            let rate = Rate::new(num, Duration::from_nanos(per)).burst(1);
            let mut service = RateLimit::with_timer(Inner, rate, timer.clone()).reject();
            let tokens = if num < 10 { 2000 * num } else { 2 * num };
            let mut through = 0;
            while through < tokens {
                match request(&mut service) {
                    Some(Ok(())) => through += 1,
                    Some(Err(retry)) => timer.advance(retry),
                    None => panic!("it waits"),
                }
            }
            // The last token is taken one cell before the end of the last period.
            let took = timer.nanos() - start;
            let exact = tokens / num * per - per / num;
            assert!(
                took.abs_diff(exact) <= per / num + 2,
                "{num}/{per}: {took}, {exact}"
            );
        }
    }
}

#[test]
fn longest_period_admits_exactly_its_burst() {
    let timer = ManualTimer::new();
    for num in [1, 7, 100] {
        let rate = Rate::new(num, Duration::MAX);
        let mut service = RateLimit::with_timer(Inner, rate, timer.clone());
        assert_eq!(burst(&mut service), num as usize);
        timer.advance(SECOND);
        assert_eq!(burst(&mut service), 0);
    }
    let unlimited = Rate::new(u64::MAX, Duration::from_nanos(1));
    let mut service = RateLimit::with_timer(Inner, unlimited, timer);
    assert_eq!(burst(&mut service), 1000);
}

#[test]
fn threads_spend_the_budget_exactly() {
    let timer = ManualTimer::new();
    let rate = Rate::new(300, SECOND);
    let layer = RateLimitLayer::with_timer(rate, timer.clone()).reject();
    for (advance, expected) in [(0, 300), (100, 30), (5000, 300), (1000, 300)] {
        timer.advance(advance * MS);
        let through = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut service = layer.layer(Inner);
                    for n in 0..1000 {
                        if n % 5 == 0 {
                            // Ready and dropped unused, so the token is returned.
                            let _ = poll_ready(&mut service.clone());
                        } else if request(&mut service) == Some(Ok(())) {
                            through.fetch_add(1, SeqCst);
                        }
                    }
                });
            }
        });
        assert_eq!(through.load(SeqCst), expected);
    }
}

#[cfg(feature = "tokio")]
#[test]
fn waits_on_tokio_and_is_built_outside_it() {
    use campanile::tokio::Tokio;

    let rate = Rate::new(10, SECOND).burst(1);
    let service = RateLimit::<_, Tokio>::new(Inner, rate);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let start = tokio::time::Instant::now();
        let one = |mut service: RateLimit<_, Tokio>| async move {
            poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(()).await
        };
        let all = futures::future::join_all((0..4).map(|_| one(service.clone())));
        assert!(all.await.iter().all(Result::is_ok));
        let took = start.elapsed();
        assert!(took >= 300 * MS && took < 310 * MS, "{took:?}");
    });
}

/// A cancelled wait has no claim: the next token goes to the remaining waiter.
async fn cancelled_wait_leaves_its_token<H: Host>(rt: On<H>) {
    let service = service_fn(async |n: u32| Ok::<_, Failure>(n));
    let limit = RateLimit::with_timer(service, Rate::new(1, SECOND), rt.clone());
    assert_eq!(limit.clone().oneshot(0).await, Ok(0));
    let given_up: Vec<_> = (1..=3)
        .map(|n| {
            let (wait, give_up) = futures::future::abortable(limit.clone().oneshot(n));
            (rt.start(wait), give_up)
        })
        .collect();
    let mut next = rt.start(limit.clone().oneshot(4));
    for _ in 0..10 {
        yield_now().await;
    }
    rt.advance(SECOND - MS).await;
    assert_eq!(next.try_recv(), Ok(None));
    for (wait, give_up) in given_up {
        give_up.abort();
        assert!(wait.await.unwrap().is_err());
    }
    rt.advance(MS).await;
    // tokio rounds up to the millisecond.
    rt.advance(MS).await;
    assert_eq!(next.await.unwrap(), Ok(4));
}

async fn too_long_a_wait_is_refused_at_once<H: Host>(rt: On<H>) {
    let service = service_fn(async |n: u32| Ok::<_, Failure>(n));
    let limit = RateLimit::with_timer(service, Rate::new(1, SECOND), rt.clone());
    let limit = limit.wait_at_most(SECOND);
    assert_eq!(limit.clone().oneshot(0).await, Ok(0));
    let mut waiting = spawn(limit.clone().oneshot(1));
    assert!(waiting.poll().is_pending());
    let refused = limit.clone().wait_at_most(SECOND / 2).oneshot(2).await;
    let Err(Error::Limited(limited)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(limited.retry_after(), 2 * SECOND, "one is in line");
    // tokio rounds up to the millisecond.
    rt.advance(SECOND + MS).await;
    assert_eq!(waiting.finish().await, Ok(1));
}

on_every_runtime! { cancelled_wait_leaves_its_token, too_long_a_wait_is_refused_at_once }
