//! Retry with its policies, backoff and budget, and the random numbers that they use.

mod common;

use core::cell::{Cell, RefCell};
use core::future::{Future, Ready, poll_fn, ready};
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use campanile::retry::backoff::{ExponentialBackoffMaker, InvalidBackoff, Jitter, MakeBackoff};
use campanile::retry::budget::{Budget, InvalidBudget, TpsBudget};
use campanile::retry::{Action, Policy, Retry, StandardPolicy};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Instant, NoRuntime, Service, ServiceExt, Timer};
use common::{Failure, Host, On, mock, on_every_runtime, spawn, until, yield_now};

/// A manual clock.
#[derive(Clone, Debug, Default)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_nanos() as u64, SeqCst);
    }
}

#[derive(Debug)]
struct Sleep(Clock, Instant);

impl Future for Sleep {
    type Output = ();
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        match self.0.now() >= self.1 {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Timer for Clock {
    type Sleep = Sleep;
    type Alarm = Sleep;
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(SeqCst))
    }
    fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep(self.clone(), deadline)
    }
    fn alarm_until(&self, deadline: Instant) -> Sleep {
        self.sleep_until(deadline)
    }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Answers from a script, and panics on a call without readiness.
#[derive(Default)]
struct Scripted {
    shared: Rc<Script>,
    is_ready: bool,
}

#[derive(Default)]
struct Script {
    answers: RefCell<Vec<Result<u32, &'static str>>>,
    unready: Cell<Option<&'static str>>,
    busy: Cell<bool>,
    polled: Cell<u32>,
    calls: Cell<u32>,
}

impl Clone for Scripted {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            is_ready: false,
        }
    }
}

impl Service<u32> for Scripted {
    type Response = u32;
    type Error = &'static str;
    type Future = Ready<Result<u32, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        self.shared.polled.set(self.shared.polled.get() + 1);
        if let Some(error) = self.shared.unready.get() {
            return Poll::Ready(Err(error));
        }
        if self.shared.busy.get() {
            return Poll::Pending;
        }
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: u32) -> Self::Future {
        assert!(core::mem::take(&mut self.is_ready), "called unready");
        self.shared.calls.set(self.shared.calls.get() + 1);
        let mut answers = self.shared.answers.borrow_mut();
        ready(if answers.is_empty() {
            Ok(0)
        } else {
            answers.remove(0)
        })
    }
}

fn scripted(answers: &[Result<u32, &'static str>]) -> Scripted {
    let service = Scripted::default();
    *service.shared.answers.borrow_mut() = answers.to_vec();
    service
}

type Maker = ExponentialBackoffMaker<SplitMix64, Clock>;

/// A policy that waits exactly one second between attempts.
fn every_second(clock: &Clock) -> StandardPolicy<Clock, Maker> {
    let second = Duration::from_secs(1);
    let rng = SplitMix64::new(1);
    let maker = Maker::with_timer(second, second, Jitter::None, rng, clock.clone()).unwrap();
    StandardPolicy::with_backoff(maker, clock.clone())
}

fn ready_call<S: Service<u32>>(service: &mut S) -> S::Future {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(service.poll_ready(&mut cx), Poll::Ready(Ok(()))));
    service.call(1)
}

#[test]
fn each_attempt_has_its_own_readiness() {
    let clock = Clock::default();
    let inner = scripted(&[Err("a"), Err("b"), Ok(3)]);
    let script = inner.shared.clone();
    let mut service = Retry::new(every_second(&clock), inner);
    let mut response = pin!(ready_call(&mut service));
    assert!(poll(response.as_mut()).is_pending());
    assert_eq!((script.polled.get(), script.calls.get()), (1, 1));
    clock.advance(Duration::from_secs(1));
    assert!(poll(response.as_mut()).is_pending());
    clock.advance(Duration::from_secs(1));
    assert_eq!(poll(response.as_mut()), Poll::Ready(Ok(3)));
    assert_eq!((script.polled.get(), script.calls.get()), (3, 3));
    // A poll after completion does not panic.
    assert!(poll(response).is_pending());
}

#[test]
fn attempt_waits_for_an_unready_service() {
    #[derive(Clone)]
    struct AtOnce;
    impl Policy<u32, u32, &'static str> for AtOnce {
        type Future = Pin<Box<dyn Future<Output = ()>>>;
        fn retry(
            &mut self,
            _: &mut u32,
            result: &mut Result<u32, &'static str>,
        ) -> Option<Self::Future> {
            // An async block panics if it is polled after completion.
            result.is_err().then(|| Box::pin(async {}) as Self::Future)
        }
        fn clone_request(&mut self, request: &u32) -> Option<u32> {
            Some(*request)
        }
    }
    let inner = scripted(&[Err("first"), Ok(2)]);
    let script = inner.shared.clone();
    let mut service = Retry::new(AtOnce, inner);
    let mut response = pin!(ready_call(&mut service));
    script.busy.set(true);
    assert!(poll(response.as_mut()).is_pending());
    assert!(poll(response.as_mut()).is_pending());
    assert_eq!(script.calls.get(), 1);
    script.busy.set(false);
    assert_eq!(poll(response), Poll::Ready(Ok(2)));
    assert_eq!(script.calls.get(), 2);
}

#[test]
fn failed_readiness_keeps_the_first_error() {
    let clock = Clock::default();
    let inner = scripted(&[Err("first")]);
    let script = inner.shared.clone();
    let mut service = Retry::new(every_second(&clock), inner);
    let mut response = pin!(ready_call(&mut service));
    assert!(poll(response.as_mut()).is_pending());
    script.unready.set(Some("unready"));
    clock.advance(Duration::from_secs(1));
    assert_eq!(poll(response.as_mut()), Poll::Ready(Err("first")));
}

#[test]
fn failed_readiness_drops_the_response() {
    let clock = Clock::default();
    let inner = scripted(&[Ok(503)]);
    let script = inner.shared.clone();
    let policy = every_second(&clock).classify(|_: &Result<u32, &str>| Action::Retry);
    let mut service = Retry::new(policy, inner);
    let mut response = pin!(ready_call(&mut service));
    assert!(poll(response.as_mut()).is_pending());
    script.unready.set(Some("unready"));
    clock.advance(Duration::from_secs(1));
    assert_eq!(poll(response.as_mut()), Poll::Ready(Err("unready")));
}

#[test]
fn dropped_response_drops_everything() {
    let clock = Clock::default();
    let inner = scripted(&[Err("a")]);
    let script = inner.shared.clone();
    let mut service = Retry::new(every_second(&clock), inner);
    let mut response = Box::pin(ready_call(&mut service));
    assert!(poll(response.as_mut()).is_pending());
    assert_eq!(Rc::strong_count(&script), 3);
    drop(response);
    assert_eq!(Rc::strong_count(&script), 2);
    assert_eq!(script.calls.get(), 1);
}

#[test]
fn retries_are_counted_per_request() {
    let clock = Clock::default();
    let inner = scripted(&[Err("x"); 6]);
    let script = inner.shared.clone();
    let mut service = Retry::new(every_second(&clock).max_retries(2), inner);
    for request in 1..=2 {
        let mut response = pin!(ready_call(&mut service));
        for _ in 0..2 {
            assert!(poll(response.as_mut()).is_pending());
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(poll(response.as_mut()), Poll::Ready(Err("x")));
        assert_eq!(script.calls.get(), request * 3);
    }
}

fn one<P: Policy<u32, u32, &'static str>>(policy: &mut P) -> Option<P::Future> {
    assert!(policy.clone_request(&1).is_some());
    policy.retry(&mut 1, &mut Err("x"))
}

#[test]
fn function_chooses_requests_to_clone() {
    for (request, attempts) in [(7, 2), (8, 1)] {
        let clock = Clock::default();
        let inner = scripted(&[Err("x"), Ok(1)]);
        let script = inner.shared.clone();
        let policy = every_second(&clock).clone_request_with(|n: &u32| (n % 2 == 1).then_some(*n));
        let mut service = Retry::new(policy, inner);
        assert!(poll(pin!(poll_fn(|cx| service.poll_ready(cx)))).is_ready());
        let mut response = pin!(service.call(request));
        let first = poll(response.as_mut());
        clock.advance(Duration::from_secs(1));
        let last = if first.is_pending() {
            poll(response)
        } else {
            first
        };
        let expected = if attempts == 2 { Ok(1) } else { Err("x") };
        assert_eq!(
            (last, script.calls.get()),
            (Poll::Ready(expected), attempts)
        );
    }
}

#[test]
fn no_wait_ends_past_the_total_time() {
    let clock = Clock::default();
    let limit = Duration::from_millis(2500);
    let mut policy = every_second(&clock).max_retries(99).total_time(limit);
    assert!(one(&mut policy).is_some());
    clock.advance(Duration::from_millis(1500));
    assert!(one(&mut policy).is_some()); // ends exactly at the limit
    clock.advance(Duration::from_nanos(1));
    assert!(one(&mut policy).is_none());
    // A clone's clock starts with its first use, and `Duration::MAX` means no limit.
    assert!(one(&mut policy.clone()).is_some());
    let mut endless = every_second(&clock).total_time(Duration::MAX);
    assert!(one(&mut endless).is_some());
}

#[test]
fn backoff_is_added_to_retry_after() {
    for (hint, expected) in [(5, 6), (0, 1)] {
        let clock = Clock::default();
        let mut policy = every_second(&clock)
            .classify(move |_: &Result<u32, &str>| Action::RetryAfter(Duration::from_secs(hint)));
        let wait = one(&mut policy).unwrap();
        assert_eq!(wait.1, Instant::from_nanos(expected * 1_000_000_000));
    }
}

#[test]
fn equal_retry_after_is_spread_out() {
    let hint = Duration::from_secs(5);
    let policy = StandardPolicy::with_rng(SplitMix64::new(1), Clock::default())
        .classify(move |_: &Result<u32, &str>| Action::RetryAfter(hint));
    let mut ends: Vec<_> = (0..100)
        .map(|_| one(&mut policy.clone()).unwrap().1)
        .collect();
    let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
    assert!(*first >= Instant::from_nanos(0).saturating_add(hint));
    assert!(last.saturating_duration_since(*first) > Duration::from_millis(40));
    ends.sort_unstable();
    ends.dedup();
    assert_eq!(ends.len(), 100);
}

#[test]
fn retry_after_is_bounded() {
    let told = |hint| {
        every_second(&Clock::default())
            .classify(move |_: &Result<u32, &str>| Action::RetryAfter(hint))
    };
    let minute = Duration::from_secs(60);
    let more = minute + Duration::from_nanos(1);
    assert!(one(&mut told(minute)).is_some());
    assert!(one(&mut told(more)).is_none());
    assert!(one(&mut told(more).max_retry_after(more)).is_some());
    assert!(one(&mut told(minute).max_retry_after(Duration::ZERO)).is_none());
    assert!(one(&mut told(Duration::MAX).max_retry_after(Duration::MAX)).is_some());
}

/// Retries every failure at once, without limit.
#[derive(Clone)]
struct AtOnce;

impl<E> Policy<u32, u32, E> for AtOnce {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut u32, result: &mut Result<u32, E>) -> Option<Ready<()>> {
        result.is_err().then(|| ready(()))
    }

    fn clone_request(&mut self, request: &u32) -> Option<u32> {
        Some(*request)
    }
}

#[test]
fn retry_yields() {
    let calls = Rc::new(Cell::new(0));
    let count = calls.clone();
    let failing = campanile::service_fn(move |n: u32| {
        count.set(count.get() + 1);
        ready(if count.get() < 1_000 {
            Err("not yet")
        } else {
            Ok(n)
        })
    });
    let mut retry = Retry::new(AtOnce, failing);
    let mut response = spawn(ready_call(&mut retry));
    loop {
        let before = calls.get();
        let polled = response.poll();
        assert!(calls.get() - before <= 32);
        if polled.is_ready() {
            break;
        }
        assert!(response.is_woken());
    }
    assert_eq!(calls.get(), 1_000);
}

#[test]
fn timeout_around_immediate_retry_fires() {
    let clock = Clock::default();
    let time = clock.clone();
    let failing = campanile::service_fn(move |_: u32| {
        time.advance(Duration::from_millis(1));
        ready(Err::<u32, _>("never"))
    });
    let retry = Retry::new(AtOnce, failing);
    let limit = Duration::from_millis(50);
    let mut service = campanile::timeout::Timeout::with_timer(retry, limit, clock.clone());
    let mut response = spawn(ready_call(&mut service));
    while response.poll().is_pending() {
        assert!(clock.now() < Instant::from_nanos(200_000_000));
    }
}

/// The same on runtimes without preemption or budgets: another task gets to run.
async fn immediate_retry_lets_tasks_run<H: Host>(rt: On<H>) {
    let stop = Arc::new(AtomicUsize::new(0));
    let stopped = stop.clone();
    let failing = campanile::service_fn(move |n: u32| {
        let stopped = stopped.load(SeqCst) > 0;
        ready(if stopped { Ok(n) } else { Err("go on") })
    });
    let answer = rt.start(Retry::new(AtOnce, failing).oneshot(7));
    yield_now().await;
    stop.store(1, SeqCst);
    assert_eq!(answer.await.unwrap(), Ok(7));
}

#[test]
fn request_deposits_once_retries_withdraw() {
    #[derive(Default)]
    struct Log(Cell<u32>, Cell<u32>);
    impl Budget for Log {
        fn deposit(&self) {
            self.0.set(self.0.get() + 1);
        }
        fn withdraw(&self) -> bool {
            self.1.set(self.1.get() + 1);
            self.1.get() < 3
        }
    }
    let log = Log::default();
    let mut policy = every_second(&Clock::default()).max_retries(9).budget(&log);
    assert!(one(&mut policy).is_some() && one(&mut policy).is_some());
    assert!(one(&mut policy).is_none(), "the budget refuses the third");
    assert_eq!((log.0.get(), log.1.get()), (1, 3));
    let mut none = every_second(&Clock::default())
        .budget(&log)
        .clone_request_with(|_: &u32| None);
    let copy = Policy::<u32, u32, &str>::clone_request(&mut none, &1);
    assert_eq!(copy, None);
}

fn maker(
    min: Duration,
    max: Duration,
    jitter: impl Into<Jitter>,
) -> Result<ExponentialBackoffMaker<SplitMix64, NoRuntime>, InvalidBackoff> {
    ExponentialBackoffMaker::with_timer(min, max, jitter, SplitMix64::new(9), NoRuntime)
}

#[test]
fn jitter_differs_between_clones() {
    let (min, max) = (Duration::from_secs(1), Duration::from_secs(1000));
    let mut maker = maker(min, max, Jitter::Full).unwrap();
    let mut clones = [maker.clone(), maker.clone()];
    let first = maker.backoff();
    let backoffs = [first.clone(), first.clone(), first, maker.backoff()];
    let mut waits: Vec<_> = backoffs
        .into_iter()
        .chain(clones.iter_mut().map(|maker| maker.backoff()))
        .map(|mut backoff| backoff.next_delay())
        .collect();
    waits.sort();
    waits.dedup();
    assert_eq!(waits.len(), 6);
    let mut policy = Maker::standard(SplitMix64::new(1), Clock::default());
    let mut clone = policy.clone();
    let mut one = policy.make_backoff();
    let mut two = clone.make_backoff();
    assert_ne!(one.next_delay(), two.next_delay());
}

#[test]
fn jitter_on_whole_seconds_is_spread() {
    let second = Duration::from_secs(1);
    for (jitter, low, high) in [
        (Jitter::Full, 0.0, 1.0),
        (Jitter::Equal, 0.5, 1.0),
        (Jitter::Decorrelated, 1.0, 3.0),
        (Jitter::Proportional(0.5), 1.0, 1.5),
    ] {
        let mut maker = maker(second, second * 100, jitter).unwrap();
        let waits: Vec<f64> = (0..4000)
            .map(|_| maker.backoff().next_delay().as_secs_f64())
            .collect();
        assert!(waits.iter().all(|wait| (low..=high).contains(wait)));
        let mean = waits.iter().sum::<f64>() / waits.len() as f64;
        let middle = f64::midpoint(low, high);
        let twentieth = 0.05 * (high - low);
        assert!((mean - middle).abs() < twentieth, "{jitter:?}");
        assert!(waits.iter().any(|wait| *wait < low + twentieth));
        assert!(waits.iter().any(|wait| *wait > high - twentieth));
    }
}

#[test]
fn decorrelated_jitter_uses_the_last_wait() {
    let second = Duration::from_secs(1);
    let mut maker = maker(second, second * 100, Jitter::Decorrelated).unwrap();
    let mut backoff = maker.backoff();
    let mut last = second;
    let mut has_shrunk = false;
    for _ in 0..100 {
        let wait = backoff.next_delay();
        assert!(second <= wait && wait <= (last * 3).min(second * 100));
        has_shrunk |= wait < last;
        last = wait;
    }
    assert!(has_shrunk);
}

#[test]
fn backoff_arguments_are_checked() {
    let second = Duration::from_secs(1);
    for wrong in [f64::NAN, -0.1, 100.1, f64::INFINITY] {
        let error = maker(second, second, wrong).unwrap_err();
        assert!(matches!(error, InvalidBackoff::Jitter(_)));
    }
    let error = maker(second, Duration::ZERO, 0.0).unwrap_err();
    assert_eq!(error, InvalidBackoff::ZeroMax);
    let error = maker(second * 2, second, 0.0).unwrap_err();
    assert!(error.to_string().contains("2s"), "{error}");
    let extremes = [Duration::ZERO, Duration::from_nanos(1), Duration::MAX];
    for min in extremes {
        for max in extremes {
            for jitter in [
                Jitter::None,
                Jitter::Full,
                Jitter::Equal,
                Jitter::Decorrelated,
                Jitter::Proportional(100.0),
            ] {
                let Ok(mut maker) = maker(min, max, jitter) else {
                    continue;
                };
                let mut backoff = maker.backoff();
                for _ in 0..200 {
                    assert!(backoff.next_delay() <= max);
                }
            }
        }
    }
}

const TEN: Duration = Duration::from_secs(10);

fn budget(per_sec: u32, share: f32) -> (Clock, TpsBudget<Clock>) {
    let clock = Clock::default();
    clock.advance(Duration::from_secs(1 << 32));
    let budget = TpsBudget::with_timer(TEN, per_sec, share, clock.clone());
    (clock, budget)
}

fn drain(budget: &impl Budget) -> usize {
    (0..10_000).take_while(|_| budget.withdraw()).count()
}

#[test]
fn retry_share_is_exact() {
    for (share, of_1000) in [(0.4, 400), (0.75, 750), (0.2, 200), (2.5, 2500), (0.0, 0)] {
        let (_, budget) = budget(0, share);
        (0..1000).for_each(|_| budget.deposit());
        assert_eq!(drain(&budget), of_1000, "{share}");
        // Small deposits lose no fraction.
        let steps = (0..1000).map(|_| {
            budget.deposit();
            drain(&budget)
        });
        assert_eq!(steps.sum::<usize>(), of_1000, "{share}");
    }
}

#[test]
fn deposits_expire_cheaply() {
    let (clock, budget) = budget(0, 1.0);
    budget.deposit();
    clock.advance(Duration::from_secs(9));
    budget.deposit();
    assert_eq!(drain(&budget), 2);
    budget.deposit();
    clock.advance(TEN);
    assert_eq!(drain(&budget), 0);
    // Ten years have so many tenths of a period that work for each of them would take long.
    for days in [30, 3650] {
        budget.deposit();
        clock.advance(Duration::from_secs(days * 24 * 3600));
        assert_eq!(drain(&budget), 0);
        budget.deposit();
        assert_eq!(drain(&budget), 1);
    }
}

#[test]
fn reserve_fills_at_its_rate() {
    let (clock, budget) = budget(3, 0.0);
    assert_eq!(drain(&budget), 30);
    clock.advance(Duration::from_millis(1001));
    assert_eq!(drain(&budget), 3);
    clock.advance(Duration::from_secs(30 * 24 * 3600));
    assert_eq!(drain(&budget), 30);
}

#[test]
fn threads_never_overdraw() {
    let (_, budget) = budget(10, 0.75);
    let taken = AtomicUsize::new(0);
    let begin = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                begin.wait();
                for _ in 0..100_000 {
                    budget.deposit();
                    let count = usize::from(budget.withdraw()) + usize::from(budget.withdraw());
                    taken.fetch_add(count, SeqCst);
                }
            });
        }
    });
    assert_eq!(taken.load(SeqCst) + drain(&budget), 400_000 * 3 / 4 + 100);
}

#[test]
fn budget_arguments_are_checked() {
    let check = |ttl, per_sec, share| TpsBudget::<Clock>::try_new(ttl, per_sec, share).err();
    for wrong in [f32::NAN, -0.1, 1000.1, f32::INFINITY] {
        let error = check(TEN, 1, wrong).unwrap();
        assert!(matches!(error, InvalidBudget::RetryPercent(_)));
    }
    for wrong in [Duration::ZERO, Duration::MAX] {
        assert_eq!(check(wrong, 1, 0.1), Some(InvalidBudget::Ttl(wrong)));
    }
    let error = check(TEN, u32::MAX, 0.1);
    assert_eq!(error, Some(InvalidBudget::MinPerSec(u32::MAX)));
    assert_eq!(check(Duration::from_secs(3600), 1_000_000_000, 1e3), None);
    let panic = std::panic::catch_unwind(|| TpsBudget::<Clock>::new(TEN, 1, -3.0)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("-3") && message.contains("1000"));
}

static FIXED: TpsBudget<NoTime> = TpsBudget::with_timer(TEN, 1, 0.5, NoTime);

/// A clock that stands still.
struct NoTime;

impl Timer for NoTime {
    type Sleep = Ready<()>;
    type Alarm = Ready<()>;
    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }
    fn sleep_until(&self, _: Instant) -> Ready<()> {
        ready(())
    }
    fn alarm_until(&self, _: Instant) -> Ready<()> {
        ready(())
    }
}

#[test]
fn a_budget_can_be_a_static() {
    assert_eq!(drain(&&FIXED), 10);
}

#[test]
fn random_ranges_are_unbiased() {
    let mut rng = SplitMix64::new(3);
    let mut counts = [0; 6];
    for _ in 0..60_000 {
        counts[(rng.next_range(10..16) - 10) as usize] += 1;
    }
    assert!(counts.iter().all(|count| (9_600..10_400).contains(count)));
    // With a plain remainder, two thirds of the numbers would lie in the lower half.
    let span = 3 << 62;
    let low = (0..10_000)
        .filter(|_| rng.next_range(0..span) < span / 2)
        .count();
    assert!((4_800..5_200).contains(&low), "{low}");
    #[allow(clippy::reversed_empty_ranges, reason = "that is what is tested")]
    let empty = [rng.next_range(5..5), rng.next_range(7..2)];
    assert_eq!(empty, [5, 7]);
    assert!(rng.next_range(0..u64::MAX) < u64::MAX);

    struct Stuck(u64);
    impl Rng for Stuck {
        fn next_u64(&mut self) -> u64 {
            self.0
        }
    }
    assert!((1..4).contains(&Stuck(0).next_range(1..4)));
    assert!((0.0..1.0).contains(&Stuck(u64::MAX).next_f64()));
    assert!((0.0..1.0).contains(&Stuck(0).next_f64()));
}

#[test]
fn waits_double_up_to_the_maximum() {
    let (min, max) = (Duration::from_millis(10), Duration::from_millis(65));
    let rng = campanile::util::rng::SplitMix64::new(1);
    let timer = Clock::default();
    let mut maker =
        ExponentialBackoffMaker::with_timer(min, max, Jitter::None, rng, timer).unwrap();
    let mut backoff = maker.backoff();
    let waits = [(); 5].map(|()| backoff.next_delay().as_millis());
    assert_eq!(waits, [10, 20, 40, 65, 65]);
}

#[test]
fn retries_are_bounded() {
    let mut policy = every_second(&Clock::default()).max_retries(1);
    let mut retry = || {
        policy
            .retry(&mut 1_u32, &mut Err::<u32, _>("broken"))
            .is_some()
    };
    assert!(retry());
    assert!(!retry());
}

/// The next attempt starts once its backoff is over and the service is ready, and not before.
async fn attempt_waits_for_backoff_and_readiness<H: Host>(rt: On<H>) {
    let ms = Duration::from_millis;
    let (service, mut handle) = mock::<u32, u32>();
    let rng = SplitMix64::new(0);
    let maker =
        ExponentialBackoffMaker::with_timer(ms(100), ms(400), Jitter::None, rng, rt.clone());
    let policy = StandardPolicy::with_backoff(maker.unwrap(), rt.clone()).max_retries(3);
    let mut call = spawn(Retry::new(policy, service).oneshot(7));
    assert!(call.poll().is_pending());
    for wait in [100, 200, 400] {
        let (request, responder) = handle.next().await;
        assert_eq!(request, 7);
        handle.set_ready(false);
        responder.fail(Failure("again"));
        assert!(call.is_woken() && call.poll().is_pending());
        rt.advance(ms(wait - 1)).await;
        handle.set_ready(true);
        assert!(call.poll().is_pending());
        assert!(handle.try_next().is_none(), "the wait is not over");

        handle.set_ready(false);
        rt.advance(ms(2)).await;
        for _ in 0..10 {
            yield_now().await;
            if call.is_woken() {
                assert!(call.poll().is_pending());
            }
        }
        assert!(handle.try_next().is_none(), "the service is not ready");
        handle.set_ready(true);
        until(|| {
            assert!(!call.is_woken() || call.poll().is_pending());
            handle.has_next()
        })
        .await;
    }
    handle.next().await.1.send(8);
    assert_eq!(call.finish().await, Ok(8));
}

on_every_runtime! {
    attempt_waits_for_backoff_and_readiness,
    immediate_retry_lets_tasks_run,
}
