//! How busy services are: what counts, what is penalised, and how it decays.
#![cfg(all(
    feature = "alloc",
    any(target_has_atomic = "64", feature = "critical-section")
))]

mod common;

use std::cell::Cell;
use std::fmt::Debug;
use std::future::{Future, Ready, pending, ready};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use campanile::discover::{Change, Discover, ServiceList};
use campanile::load::completion::TrackCompletionFuture;
use campanile::load::peak_ewma::InvalidEwma;
use campanile::load::pending_requests::DEFAULT_DECAY;
use campanile::load::{
    CompleteOnResponse, Constant, Load, OnError, Outcome, PeakEwma, PeakEwmaDiscover,
    PendingRequests, PendingRequestsDiscover, TrackCompletion, pending_requests,
};
use campanile::util::Either;
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Instant, NoRuntime, Service, Timer, service_fn};
use common::{
    Failure, Host, ManualTimer, On, Task, mock, on_every_runtime, panics_at, ready as done, spawn,
};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A timer that counts how often it is asked what time it is.
#[derive(Clone, Debug, Default)]
struct Counting {
    timer: ManualTimer,
    asked: Arc<AtomicUsize>,
}

impl Counting {
    /// How often it was asked since the last time.
    fn take(&self) -> usize {
        self.asked.swap(0, SeqCst)
    }
}

impl Timer for Counting {
    type Sleep = common::ManualSleep;
    type Alarm = common::ManualSleep;
    fn now(&self) -> Instant {
        self.asked.fetch_add(1, SeqCst);
        self.timer.now()
    }
    fn sleep_until(&self, deadline: Instant) -> Self::Sleep {
        self.timer.sleep_until(deadline)
    }
    fn alarm_until(&self, deadline: Instant) -> Self::Alarm {
        self.timer.alarm_until(deadline)
    }
}

/// Answers `Ok` and `Err` as it is asked to, at once.
fn obedient()
-> impl Service<Result<u8, u8>, Response = u8, Error = u8, Future = Obeyed> + Clone + Debug {
    #[derive(Clone, Debug)]
    struct Obedient;
    impl Service<Result<u8, u8>> for Obedient {
        type Response = u8;
        type Error = u8;
        type Future = Obeyed;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), u8>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, answer: Result<u8, u8>) -> Obeyed {
            ready(answer)
        }
    }
    Obedient
}
type Obeyed = Ready<Result<u8, u8>>;

/// Sends one request, and polls it to its end.
#[track_caller]
fn send<S: Service<Result<u8, u8>>>(service: &mut S, answer: Result<u8, u8>) {
    let mut response = spawn(service.call(answer));
    let _ = done(response.poll());
}

fn near(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= expected.abs() * 1e-6 + 1e-6
}

fn nanos(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

/// Keeps the handle in the response.
#[derive(Clone)]
struct Keep;
impl<H, V> TrackCompletion<H, V> for Keep {
    type Output = (H, V);
    fn track_completion(&self, handle: H, value: V) -> (H, V) {
        (handle, value)
    }
}

fn by_status(result: Result<&u8, &u8>) -> Outcome {
    match result {
        Ok(0) => Outcome::Counted,
        Ok(_) => Outcome::Penalised,
        Err(_) => Outcome::Ignored,
    }
}

mod a_simulation {
    use super::*;

    /// Answers after a latency, and fails or not; both can be changed.
    #[derive(Clone)]
    pub(super) struct Endpoint<T> {
        timer: T,
        does: Rc<Cell<(Duration, bool)>>,
    }

    impl<T: Timer> Endpoint<T> {
        pub(super) fn new(timer: T, latency: Duration, works: bool) -> Self {
            Self {
                timer,
                does: Rc::new(Cell::new((latency, works))),
            }
        }

        pub(super) fn set(&self, latency: Duration, works: bool) {
            self.does.set((latency, works));
        }
    }

    impl<T: Timer<Sleep: 'static>> Service<()> for Endpoint<T> {
        type Response = ();
        type Error = Failure;
        type Future = Pin<Box<dyn Future<Output = Result<(), Failure>>>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, (): ()) -> Self::Future {
            let (latency, works) = self.does.get();
            let sleep = self.timer.sleep(latency);
            Box::pin(async move {
                sleep.await;
                if works {
                    Ok(())
                } else {
                    Err(Failure("broken"))
                }
            })
        }
    }

    /// Sends `requests`, one every 10 ms, each to the endpoint with the lower load, and gives the share of the
    /// second endpoint.
    pub(super) fn share_of_second<S>(timer: &ManualTimer, both: &mut [S; 2], requests: u32) -> f64
    where
        S: Service<(), Response = (), Error = Failure> + Load,
    {
        let mut rng = SplitMix64::new(7);
        let mut under_way: Vec<Task<S::Future>> = Vec::new();
        let mut second = 0;
        for _ in 0..requests {
            let choice = match both[0].load().partial_cmp(&both[1].load()).unwrap() {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Greater => 1,
                std::cmp::Ordering::Equal => rng.next_range(0..2) as usize,
            };
            second += choice;
            under_way.push(spawn(both[choice].call(())));
            under_way.retain_mut(|request| request.poll().is_pending());
            timer.advance(10 * MILLI);
            under_way.retain_mut(|request| request.poll().is_pending());
        }
        second as f64 / f64::from(requests)
    }
}
use a_simulation::{Endpoint, share_of_second};

mod pending_requests_are_counted {
    use super::*;

    fn new<S>(
        inner: S,
        timer: &ManualTimer,
    ) -> PendingRequests<S, CompleteOnResponse, ManualTimer> {
        PendingRequests::with_timer(inner, CompleteOnResponse, timer.clone())
    }

    #[test]
    fn from_the_call_to_the_result() {
        let (service, mut handle) = mock::<u8, u8>();
        let mut service = new(service, &ManualTimer::new());
        let mut responses = Vec::new();
        for n in 0..3 {
            assert_eq!(service.load().get(), f64::from(n));
            assert!(done(common::WakeCount::new().poll_ready(&mut service)).is_ok());
            responses.push(spawn(service.call(n)));
        }
        assert_eq!(service.in_flight(), 3);
        for (n, mut response) in (0..3).zip(responses) {
            assert!(response.poll().is_pending());
            handle.try_next().unwrap().1.send(n);
            assert_eq!(done(response.poll()), Ok(n));
            // The future is still there; the request is not.
            assert_eq!(service.in_flight(), 2 - usize::from(n));
        }
        assert_eq!(service.load(), pending_requests::Count::default());
    }

    #[test]
    fn until_a_cancelled_one_is_dropped_which_is_no_failure() {
        let (service, _handle) = mock::<u8, u8>();
        let mut service = new(service, &ManualTimer::new());
        let wakes = common::WakeCount::new();
        assert!(done(wakes.poll_ready(&mut service)).is_ok());
        let unpolled = service.call(1);
        assert!(done(wakes.poll_ready(&mut service)).is_ok());
        let mut polled = spawn(service.call(2));
        assert!(polled.poll().is_pending());
        assert_eq!(service.load().get(), 2.0);
        drop(unpolled);
        assert_eq!(service.load().get(), 1.0);
        drop(polled);
        assert_eq!(service.load().get(), 0.0);
    }

    #[test]
    fn for_all_clones_together() {
        let timer = ManualTimer::new();
        let mut first = new(obedient(), &timer);
        let second = first.clone();
        let response = first.call(Ok(1));
        assert_eq!(second.in_flight(), 1);
        drop(first);
        assert_eq!(second.in_flight(), 1);
        drop(response);
        assert_eq!(second.in_flight(), 0);

        send(&mut second.clone(), Err(1));
        assert_eq!(second.load().get(), 1.0);
    }

    #[test]
    fn until_the_handle_in_the_response_is_dropped() {
        let timer = ManualTimer::new();
        let mut service = PendingRequests::with_timer(obedient(), Keep, timer.clone());
        let (mut handle, _) = done(spawn(service.call(Ok(1))).poll()).unwrap();
        assert_eq!(service.load().get(), 1.0);
        // The body breaks off.
        handle.record(Outcome::Penalised);
        assert_eq!(service.load().get(), 2.0);
        drop(handle);
        assert_eq!(service.load().get(), 1.0);
    }

    #[test]
    fn and_come_back_when_the_service_or_the_classifier_panics() {
        let timer = ManualTimer::new();
        let broken = service_fn(|n: u8| async move {
            assert!(n > 0, "the service");
            Ok::<_, u8>(n)
        });
        let mut service =
            new(broken, &timer).with_classifier(|_: Result<&u8, &u8>| panic!("the classifier"));
        for n in 0..2 {
            let mut response = spawn(service.call(n));
            assert_eq!(service.in_flight(), 1);
            panics_at(|| {
                let _ = response.poll();
            });
            drop(response);
            assert_eq!(service.in_flight(), 0);
        }
        assert_eq!(service.load().get(), 0.0);
    }

    #[test]
    fn on_many_threads() {
        let service =
            PendingRequests::with_timer(obedient(), CompleteOnResponse, ManualTimer::new());
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let mut service = service.clone();
                scope.spawn(move || {
                    let mut rng = SplitMix64::new(seed);
                    for _ in 0..1_000 {
                        let response = service.call(Ok(1));
                        if rng.next_range(0..2) == 0 {
                            assert_eq!(done(spawn(response).poll()), Ok(1));
                        }
                        send(&mut service, Err(1));
                    }
                });
            }
        });
        assert_eq!(service.in_flight(), 0);
        // No penalty is lost.
        assert!(near(service.penalty(), 4_000.0), "{}", service.penalty());
    }
}

mod pending_requests_are_penalised {
    use super::*;

    fn new<S>(
        inner: S,
        timer: &ManualTimer,
    ) -> PendingRequests<S, CompleteOnResponse, ManualTimer> {
        PendingRequests::with_timer(inner, CompleteOnResponse, timer.clone())
    }

    #[test]
    fn one_for_each_failure_and_less_from_moment_to_moment() {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer);
        let decay = DEFAULT_DECAY.as_secs_f64();
        let mut rng = SplitMix64::new(11);
        let mut failed_at = Vec::new();
        let mut now = 0.0;
        for _ in 0..2_000 {
            match rng.next_range(0..4) {
                0 => {
                    send(&mut service, Err(0));
                    failed_at.push(now);
                }
                1 => send(&mut service, Ok(0)),
                _ => {
                    let passed = Duration::from_micros(rng.next_range(0..3_000_000));
                    timer.advance(passed);
                    now += passed.as_secs_f64();
                }
            }
            let expected: f64 = failed_at
                .iter()
                .map(|at| f64::exp((at - now) / decay))
                .sum();
            let found = service.penalty();
            // What has come down to 1/16 is forgotten, and is not in the next sum.
            let forgotten = 1.0 / 16.0;
            assert!(
                found <= expected + 1e-6 && found >= expected - 2.0 * forgotten,
                "{found} {expected}"
            );
            assert!(found == 0.0 || found > forgotten - 1e-6);
        }
    }

    #[test]
    fn and_recover_by_time_alone() {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer);
        let unused = service.load();
        send(&mut service, Err(0));
        let mut before = service.load();
        assert_eq!(before.get(), 1.0);
        for _ in 0..13 {
            timer.advance(SECOND);
            let load = service.load();
            assert!(unused < load && load < before);
            before = load;
        }
        timer.advance(SECOND);
        assert_eq!(service.load(), unused);
    }

    #[test]
    fn and_tell_who_is_busier_while_they_are() {
        let timer = ManualTimer::new();
        let [mut a, mut b] = [(); 2].map(|()| new(obedient(), &timer));
        let mut under_way = vec![];
        for _ in 0..2 {
            assert!(a.is_no_busier_than(&b) && b.is_no_busier_than(&a));
            under_way.push(a.call(Ok(0)));
            assert!(!a.is_no_busier_than(&b) && b.is_no_busier_than(&a));
            under_way.push(b.call(Ok(0)));
            // One and a half is more than one, and less than two.
            a.set_penalty(0.5);
            assert!(!a.is_no_busier_than(&b) && b.is_no_busier_than(&a));
            under_way.push(b.call(Ok(0)));
            assert!(a.is_no_busier_than(&b) && !b.is_no_busier_than(&a));
            a.set_penalty(0.0);
            under_way.push(a.call(Ok(0)));
        }
    }

    #[test]
    fn and_ask_the_clock_only_while_they_are() {
        let timer = Counting::default();
        let mut service =
            PendingRequests::with_timer(obedient(), CompleteOnResponse, timer.clone());
        for _ in 0..10 {
            send(&mut service, Ok(0));
            let _ = service.load();
        }
        assert_eq!(timer.take(), 0);

        send(&mut service, Err(0));
        assert_eq!(timer.take(), 1);
        let _ = service.load();
        assert_eq!(timer.take(), 1);

        timer.timer.advance(60 * SECOND);
        assert_eq!(service.load().get(), 0.0);
        assert_eq!(timer.take(), 1);
        let _ = service.load();
        send(&mut service, Ok(0));
        assert_eq!(timer.take(), 0);
    }

    #[test]
    fn as_the_classifier_says() {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer).with_classifier(by_status);
        send(&mut service, Ok(0));
        send(&mut service, Err(1));
        assert_eq!(service.penalty(), 0.0);
        send(&mut service, Ok(1));
        assert!(near(service.penalty(), 1.0));
        let mut service = service.with_classifier(OnError);
        send(&mut service, Ok(1));
        assert!(near(service.penalty(), 1.0));
        send(&mut service, Err(1));
        assert!(near(service.penalty(), 2.0));
    }

    #[test]
    fn as_is_written() {
        let timer = ManualTimer::new();
        let service = new(obedient(), &timer).with_decay(SECOND);
        service.set_penalty(8.0);
        assert!(near(service.penalty(), 8.0));
        timer.advance(SECOND);
        assert!(near(service.penalty(), 8.0 / std::f64::consts::E));
        for none in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
            service.set_penalty(1.0);
            service.set_penalty(none);
            assert_eq!(service.penalty(), 0.0);
        }
        service.set_penalty(f64::INFINITY);
        assert!(service.penalty() > 1e18 && service.load().get() > 1e14);
    }

    #[test]
    fn for_as_long_as_makes_sense() {
        let timer = ManualTimer::new();
        let mut shortest = new(obedient(), &timer).with_decay(Duration::ZERO);
        let mut longest = new(obedient(), &timer).with_decay(Duration::MAX);
        send(&mut shortest, Err(0));
        send(&mut longest, Err(0));
        timer.advance(3 * Duration::from_micros(1));
        assert_eq!(shortest.penalty(), 0.0);
        timer.advance(3600 * SECOND);
        assert!(longest.penalty() > 0.99);
    }

    /// Hazard: fast failures must not make an endpoint look best.
    #[test]
    fn so_that_a_failing_endpoint_is_not_chosen_and_comes_back_when_it_works() {
        let timer = ManualTimer::new();
        let slow = Endpoint::new(timer.clone(), 55 * MILLI, true);
        let broken = Endpoint::new(timer.clone(), MILLI, false);
        let count = |_: Result<&(), &Failure>| Outcome::Counted;
        let mut both = [
            new(slow.clone(), &timer).with_classifier(count),
            new(broken.clone(), &timer).with_classifier(count),
        ];
        // As it would be: the failing one draws nearly everything.
        assert!(share_of_second(&timer, &mut both, 1_000) > 0.8);

        let mut both = [new(slow, &timer), new(broken.clone(), &timer)];
        let share = share_of_second(&timer, &mut both, 1_000);
        assert!(share < 0.05, "{share}");
        broken.set(MILLI, true);
        timer.advance(30 * SECOND);
        let share = share_of_second(&timer, &mut both, 1_000);
        assert!(share > 0.5, "{share}");
    }

    #[test]
    fn so_that_an_endpoint_which_recovers_under_traffic_is_found_to() {
        let timer = ManualTimer::new();
        let slow = Endpoint::new(timer.clone(), 55 * MILLI, true);
        let broken = Endpoint::new(timer.clone(), MILLI, false);
        let mut both = [new(slow, &timer), new(broken.clone(), &timer)];
        share_of_second(&timer, &mut both, 1_000);
        broken.set(MILLI, true);
        share_of_second(&timer, &mut both, 1_000);
        let share = share_of_second(&timer, &mut both, 1_000);
        assert!(share > 0.5, "{share}");
    }
}

mod peak_ewma_estimates {
    use super::*;

    const DECAY: Duration = Duration::from_secs(10);

    fn new<S>(inner: S, timer: &ManualTimer) -> PeakEwma<S, CompleteOnResponse, ManualTimer> {
        let decay = nanos(DECAY);
        PeakEwma::with_timer(inner, 100 * MILLI, decay, CompleteOnResponse, timer.clone())
    }

    /// Sends one request whose answer takes `took`.
    fn send_for<S: Service<Result<u8, u8>>>(
        service: &mut S,
        answer: Result<u8, u8>,
        timer: &ManualTimer,
        took: Duration,
    ) {
        let mut response = spawn(service.call(answer));
        timer.advance(took);
        let _ = done(response.poll());
    }

    #[track_caller]
    fn assert_estimate<S, C, T: Timer, K>(service: &PeakEwma<S, C, T, K>, expected: f64) {
        let found = nanos(service.estimate());
        assert!(
            (found - expected).abs() <= 2.0 + expected * 1e-8,
            "{found} {expected}"
        );
    }

    #[test]
    fn the_default_at_first_from_the_first_use_on() {
        let timer = ManualTimer::new();
        let service = new(obedient(), &timer);
        timer.advance(3600 * SECOND);
        assert!(near(service.load().as_nanos(), nanos(100 * MILLI)));
        timer.advance(DECAY);
        let expected = nanos(100 * MILLI) / std::f64::consts::E;
        assert_estimate(&service, expected);
        assert!(near(service.load().as_nanos(), expected));
    }

    #[test]
    fn a_peak_at_once_and_the_average_after_a_while() {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer);
        send_for(&mut service, Ok(0), &timer, SECOND);
        assert_estimate(&service, nanos(SECOND));
        // Whether the load is asked for or not.
        for ask in [false, true] {
            let mut clone = new(obedient(), &timer);
            send_for(&mut clone, Ok(0), &timer, SECOND);
            for _ in 0..10_000 {
                timer.advance(9 * MILLI);
                if ask {
                    let _ = clone.load();
                }
                send_for(&mut clone, Ok(0), &timer, MILLI);
            }
            let estimate = clone.estimate();
            assert!(MILLI <= estimate && estimate < 2 * MILLI, "{estimate:?}");
        }
    }

    #[test]
    fn what_the_formula_says() {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer);
        let mut rng = SplitMix64::new(5);
        let decay = nanos(DECAY);
        let start = timer.now();
        let _ = service.load();
        let (mut estimate, mut at) = (nanos(100 * MILLI), start);
        let (mut responded, mut silent) = (at, at);
        // Request and when it was sent.
        let mut under_way: Vec<(Task<_>, Instant)> = Vec::new();
        let decayed = |estimate: f64, from: Instant, to: Instant| {
            let elapsed = nanos(to.saturating_duration_since(from));
            (estimate * f64::exp(-elapsed / decay)).max(1.0)
        };
        for _ in 0..20_000 {
            let scale = 10_u64.pow(rng.next_range(0..10) as u32);
            timer.advance(Duration::from_nanos(rng.next_range(0..10) * scale));
            let now = timer.now();
            match rng.next_range(0..4) {
                0 => {
                    let answer = match rng.next_range(0..4) {
                        0 => Err(0),
                        _ => Ok(0),
                    };
                    if under_way.is_empty() {
                        silent = now;
                    }
                    under_way.push((spawn(service.call(answer)), now));
                }
                1 if !under_way.is_empty() => {
                    let place = rng.next_range(0..under_way.len() as u64) as usize;
                    let (mut request, sent) = under_way.swap_remove(place);
                    let mut took = nanos(now.saturating_duration_since(sent));
                    estimate = decayed(estimate, at, now);
                    at = now;
                    if rng.next_range(0..4) == 0 {
                        drop(request);
                        estimate = estimate.max(took);
                        continue;
                    }
                    if done(request.poll()).is_err() {
                        took = took.max(decay);
                    }
                    let elapsed = nanos(now.saturating_duration_since(responded));
                    responded = now;
                    silent = now;
                    let w = f64::exp(-elapsed / decay);
                    estimate = took.max(estimate + (1.0 - w) * took).max(1.0);
                }
                _ => {}
            }
            let mut expected = decayed(estimate, at, now);
            if !under_way.is_empty() {
                expected = expected.max(nanos(now.saturating_duration_since(silent)));
            }
            let found = nanos(service.estimate());
            assert!(
                (found - expected).abs() < 2.0 + expected * 1e-6,
                "{found} {expected}"
            );
            let cost = service.load().as_nanos() / (under_way.len() as f64 + 1.0);
            assert!((cost - expected).abs() < 2.0 + expected * 1e-6);
        }
    }

    #[test]
    fn nothing_less_than_a_nanosecond_so_that_requests_under_way_still_tell() {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer);
        send_for(&mut service, Ok(0), &timer, SECOND);
        timer.advance(1_000_000 * SECOND);
        let mut under_way = Vec::new();
        for n in 1..5 {
            assert_eq!(service.load().as_nanos(), f64::from(n));
            under_way.push(service.call(Ok(0)));
        }
    }

    #[test]
    fn at_least_the_time_for_which_requests_are_under_way_and_none_comes_back() {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer);
        send_for(&mut service, Ok(0), &timer, SECOND);
        timer.advance(100 * SECOND);
        let mut first = spawn(service.call(Ok(0)));
        timer.advance(20 * SECOND);
        assert_estimate(&service, nanos(20 * SECOND));
        let second = service.call(Ok(0));
        timer.advance(20 * SECOND);
        assert_estimate(&service, nanos(40 * SECOND));
        // One is cancelled; that is no answer.
        drop(second);
        timer.advance(DECAY);
        assert_estimate(&service, nanos(40 * SECOND + DECAY));
        let third = service.call(Ok(0));
        assert_eq!(done(first.poll()), Ok(0));
        timer.advance(20 * SECOND);
        assert_estimate(&service, nanos(20 * SECOND));
        // Nobody waits: it is not silent, there is nothing to say.
        drop(third);
        service.set_estimate(MILLI);
        timer.advance(100 * SECOND);
        assert!(service.estimate() < MILLI);
    }

    #[test]
    fn so_that_an_endpoint_that_hangs_is_not_chosen() {
        let timer = ManualTimer::new();
        let slow = Endpoint::new(timer.clone(), 55 * MILLI, true);
        let hangs = Endpoint::new(timer.clone(), Duration::MAX, true);
        let mut both = [&slow, &hangs].map(|inner| {
            let (rtt, decay) = (100 * MILLI, nanos(SECOND));
            PeakEwma::with_timer(inner.clone(), rtt, decay, CompleteOnResponse, timer.clone())
        });
        let share = share_of_second(&timer, &mut both, 2_000);
        assert!(share < 0.05, "{share}");
    }

    #[test]
    fn a_cancelled_request_where_it_raises_them() {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer);
        let twin = new(obedient(), &timer);
        let _ = twin.load();
        // Shorter than what is expected: it says nothing.
        let cancelled = service.call(Ok(0));
        assert_eq!(service.in_flight(), 1);
        timer.advance(10 * MILLI);
        drop(cancelled);
        assert_eq!(service.in_flight(), 0);
        assert_eq!(service.load(), twin.load());
        // Nor does it take the time since the last response from the next one.
        send_for(&mut service, Ok(0), &timer, MILLI);
        let w = f64::exp(-0.0011);
        assert_estimate(&service, nanos(100 * MILLI) * w + nanos(MILLI) * (1.0 - w));

        // Longer: it would have taken at least that long.
        let cancelled = service.call(Ok(0));
        timer.advance(3 * SECOND);
        drop(cancelled);
        assert_estimate(&service, nanos(3 * SECOND));

        service.set_estimate(Duration::ZERO);
        let cancelled = service.call(Ok(0));
        timer.advance(SECOND);
        drop(cancelled);
        assert_estimate(&service, nanos(SECOND));
    }

    #[test]
    fn nothing_for_an_ignored_result() {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer).with_classifier(by_status);
        let _ = service.load();
        send_for(&mut service, Err(0), &timer, 3 * SECOND);
        assert_estimate(&service, nanos(100 * MILLI) * f64::exp(-0.3));
        assert_eq!(service.in_flight(), 0);
        send_for(&mut service, Ok(1), &timer, 3 * SECOND);
        assert_estimate(&service, nanos(DECAY));
    }

    #[test]
    fn at_least_the_penalty_for_a_failure() {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer);
        send_for(&mut service, Err(0), &timer, MILLI);
        assert_estimate(&service, nanos(DECAY));
        timer.advance(DECAY);
        assert_estimate(&service, nanos(DECAY) / std::f64::consts::E);

        let mut service = new(obedient(), &timer).with_penalty(2 * SECOND);
        send_for(&mut service, Err(0), &timer, MILLI);
        assert_estimate(&service, nanos(2 * SECOND));
        send_for(&mut service, Err(0), &timer, 3 * SECOND);
        assert_estimate(&service, nanos(3 * SECOND));

        let mut service = new(obedient(), &timer).with_penalty(Duration::ZERO);
        send_for(&mut service, Err(0), &timer, 200 * MILLI);
        assert_estimate(&service, nanos(200 * MILLI));
    }

    #[test]
    fn until_the_handle_in_the_response_is_dropped_which_may_have_the_last_word() {
        let timer = ManualTimer::new();
        let decay = nanos(DECAY);
        let mut service = PeakEwma::with_timer(obedient(), MILLI, decay, Keep, timer.clone());
        let (handle, _) = done(spawn(service.call(Ok(1))).poll()).unwrap();
        assert_eq!(service.in_flight(), 1);
        timer.advance(SECOND);
        drop(handle);
        assert_eq!(service.in_flight(), 0);
        assert_estimate(&service, nanos(SECOND));

        let (mut handle, _) = done(spawn(service.call(Ok(1))).poll()).unwrap();
        handle.record(Outcome::Penalised);
        drop(handle);
        assert_estimate(&service, decay);
    }

    #[test]
    fn for_all_clones_together() {
        let timer = ManualTimer::new();
        let mut first = new(obedient(), &timer);
        let second = first.clone();
        send_for(&mut first, Ok(0), &timer, SECOND);
        assert_eq!(first.load(), second.load());
        assert_estimate(&second, nanos(SECOND));
        let response = first.call(Ok(0));
        assert_eq!(second.in_flight(), 1);
        drop((first, response));
        assert_eq!(second.in_flight(), 0);
    }

    #[test]
    fn as_is_written() {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer);
        service.set_estimate(SECOND);
        assert_estimate(&service, nanos(SECOND));
        timer.advance(DECAY);
        assert_estimate(&service, nanos(SECOND) / std::f64::consts::E);
        service.set_estimate(Duration::ZERO);
        assert_estimate(&service, 1.0);
        service.set_estimate(Duration::MAX);
        let alone = service.load();
        let _under_way = service.call(Ok(0));
        assert!(alone < service.load());
    }

    #[test]
    fn with_one_look_at_the_clock_for_each_of_load_call_and_response() {
        let timer = Counting::default();
        let decay = nanos(DECAY);
        let mut service =
            PeakEwma::with_timer(obedient(), MILLI, decay, CompleteOnResponse, timer.clone());
        assert_eq!(timer.take(), 0);
        for _ in 0..2 {
            let _ = service.load();
            assert_eq!(timer.take(), 1);
            let mut response = spawn(service.call(Ok(0)));
            assert_eq!(timer.take(), 1);
            let _ = done(response.poll());
            assert_eq!(timer.take(), 1);
        }
    }

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(1 << 62) };
        static ASKED: Cell<usize> = const { Cell::new(0) };
    }

    /// A timer without a value, as those of the runtimes are.
    #[derive(Clone, Copy, Debug, Default)]
    struct Global;

    impl Timer for Global {
        type Sleep = std::future::Pending<()>;
        type Alarm = std::future::Pending<()>;
        fn now(&self) -> Instant {
            ASKED.set(ASKED.get() + 1);
            Instant::from_nanos(NOW.get())
        }
        fn sleep_until(&self, _: Instant) -> Self::Sleep {
            pending()
        }
        fn alarm_until(&self, _: Instant) -> Self::Alarm {
            pending()
        }
    }

    /// Two endpoints at random, and whether the comparison says of them what their loads say. Also how many of the
    /// comparisons needed the time.
    fn compare<T: Timer + Clone>(
        timers: [T; 2],
        advance: impl Fn(u64),
        asked: impl Fn() -> usize,
    ) -> (u32, u32) {
        let mut rng = SplitMix64::new(5);
        let (mut compared, mut timed) = (0, 0);
        for _ in 0..3_000 {
            let mut below = |n: u64| rng.next_range(0..n);
            let decay = |n: u64| if n == 0 { 2e9 } else { 1e9 };
            let mut both = timers.clone().map(|timer| {
                let decay = decay(below(8));
                PeakEwma::with_timer(obedient(), MILLI, decay, CompleteOnResponse, timer)
            });
            let mut under_way = Vec::new();
            for service in &mut both {
                if below(8) > 0 {
                    service.set_estimate(Duration::from_nanos(1 << below(30)));
                }
                let requests = if below(2) == 0 { 0 } else { below(3) };
                under_way.extend((0..requests).map(|_| service.call(Ok(0))));
            }
            advance(1 << below(32));
            let before = asked();
            let [a, b] = &both;
            let found = [a.is_no_busier_than(b), b.is_no_busier_than(a)];
            timed += u32::from(asked() > before);
            compared += 1;
            let [x, y] = [a.load(), b.load()].map(|cost| cost.as_nanos());
            // As good as equal: either answer will do.
            if (x - y).abs() > 1e-6 * x.max(y) {
                assert_eq!(found, [x < y, x > y], "{x} {y}");
            }
        }
        (compared, timed)
    }

    #[test]
    fn that_are_compared_as_they_are_with_the_time_only_where_it_matters() {
        let advance = |nanos| NOW.set(NOW.get() + nanos);
        let (compared, timed) = compare([Global; 2], advance, || ASKED.get());
        assert!(timed > compared / 5 && timed < compared * 4 / 5, "{timed}");

        // Once for both of them.
        let both = [(); 2].map(|()| {
            let mut service =
                PeakEwma::with_timer(obedient(), MILLI, 1e9, CompleteOnResponse, Global);
            let response = service.call(Ok(0));
            (service, response)
        });
        let [(a, _under_way), (b, _too)] = &both;
        let before = ASKED.get();
        assert!(a.is_no_busier_than(b) || b.is_no_busier_than(a));
        assert!(ASKED.get() - before <= 2);

        // Two clocks have nothing to do with each other.
        let [one, other] = [Counting::default(), Counting::default()];
        other.timer.advance(1_000 * SECOND);
        let both = [one.clone(), other.clone()];
        let advance = |nanos| {
            both.iter()
                .for_each(|t| t.timer.advance(Duration::from_nanos(nanos)))
        };
        let asked = || one.asked.load(SeqCst) + other.asked.load(SeqCst);
        let (compared, timed) = compare([one.clone(), other.clone()], advance, asked);
        assert_eq!(timed, compared);
    }

    #[test]
    fn of_finite_times_however_the_clock_behaves() {
        /// Shows what it is set to.
        #[derive(Clone, Default)]
        struct Wild(Arc<std::sync::atomic::AtomicU64>);
        impl Timer for Wild {
            type Sleep = Ready<()>;
            type Alarm = Ready<()>;
            fn now(&self) -> Instant {
                Instant::from_nanos(self.0.load(SeqCst))
            }
            fn sleep_until(&self, _: Instant) -> Ready<()> {
                ready(())
            }
            fn alarm_until(&self, _: Instant) -> Ready<()> {
                ready(())
            }
        }
        let timer = Wild::default();
        let mut rng = SplitMix64::new(9);
        let mut service =
            PeakEwma::with_timer(obedient(), MILLI, 1e3, CompleteOnResponse, timer.clone());
        for _ in 0..10_000 {
            let mut response = spawn(service.call(if rng.next_range(0..2) == 0 {
                Ok(0)
            } else {
                Err(0)
            }));
            let moment = rng.next_u64() >> rng.next_range(0..64);
            timer.0.store(moment, SeqCst);
            let _ = done(response.poll());
            let cost = service.load().as_nanos();
            assert!(cost.is_finite() && cost >= 1.0, "{cost}");
            if rng.next_range(0..4) == 0 {
                service.set_estimate(Duration::from_nanos(rng.next_u64()));
            }
        }
        for moment in [0, 1, u64::MAX] {
            timer.0.store(moment, SeqCst);
            send(&mut service, Ok(0));
            assert!(service.load().as_nanos() >= 1.0);
        }
    }

    #[test]
    fn on_many_threads() {
        let timer = ManualTimer::new();
        let service = new(obedient(), &timer);
        let _ = service.load();
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let mut service = service.clone();
                let timer = &timer;
                scope.spawn(move || {
                    let mut rng = SplitMix64::new(seed);
                    for n in 0..1_000 {
                        let response = service.call(Ok(1));
                        if n == 500 && seed == 0 {
                            timer.advance(SECOND);
                        }
                        if rng.next_range(0..2) == 0 {
                            assert_eq!(done(spawn(response).poll()), Ok(1));
                        }
                    }
                });
            }
        });
        assert_eq!(service.in_flight(), 0);
        // One request at least took the second, and no peak is lost.
        assert!(
            service.estimate() >= SECOND - MILLI,
            "{:?}",
            service.estimate()
        );
    }

    /// Hazard: fast failures must not make an endpoint look best.
    #[test]
    fn so_that_a_failing_endpoint_is_not_chosen_and_comes_back_when_it_works() {
        let timer = ManualTimer::new();
        let slow = Endpoint::new(timer.clone(), 55 * MILLI, true);
        let broken = Endpoint::new(timer.clone(), MILLI, false);
        let new = |inner: &Endpoint<_>| {
            let (rtt, decay) = (100 * MILLI, nanos(SECOND));
            PeakEwma::with_timer(inner.clone(), rtt, decay, CompleteOnResponse, timer.clone())
        };
        let count = |_: Result<&(), &Failure>| Outcome::Counted;
        let mut both = [&slow, &broken].map(|inner| new(inner).with_classifier(count));
        // As it would be: the failing one draws nearly everything.
        assert!(share_of_second(&timer, &mut both, 1_000) > 0.8);

        let mut both = [&slow, &broken].map(new);
        let share = share_of_second(&timer, &mut both, 1_000);
        assert!(share < 0.05, "{share}");
        broken.set(MILLI, true);
        timer.advance(30 * SECOND);
        let share = share_of_second(&timer, &mut both, 1_000);
        assert!(share > 0.5, "{share}");
    }

    #[test]
    fn so_that_an_endpoint_which_recovers_under_traffic_is_found_to() {
        let timer = ManualTimer::new();
        let slow = Endpoint::new(timer.clone(), 55 * MILLI, true);
        let broken = Endpoint::new(timer.clone(), MILLI, false);
        let mut both = [&slow, &broken].map(|inner| {
            let (rtt, decay) = (100 * MILLI, nanos(SECOND));
            PeakEwma::with_timer(inner.clone(), rtt, decay, CompleteOnResponse, timer.clone())
        });
        share_of_second(&timer, &mut both, 1_000);
        broken.set(MILLI, true);
        share_of_second(&timer, &mut both, 1_000);
        let share = share_of_second(&timer, &mut both, 1_000);
        assert!(share > 0.5, "{share}");
    }

    #[test]
    fn from_values_that_make_sense() {
        let try_new = |rtt, decay| {
            let ewma =
                PeakEwma::<_, _, ManualTimer>::try_new(obedient(), rtt, decay, CompleteOnResponse);
            ewma.map(drop)
        };
        assert_eq!(
            try_new(Duration::ZERO, 1e9),
            Err(InvalidEwma::DefaultRtt(Duration::ZERO))
        );
        for decay in [0.0, -1.0, 999.0, 1e17, f64::INFINITY] {
            assert_eq!(try_new(SECOND, decay), Err(InvalidEwma::Decay(decay)));
        }
        assert!(matches!(
            try_new(SECOND, f64::NAN),
            Err(InvalidEwma::Decay(_))
        ));
        for decay in [1e3, 3.15e16] {
            assert_eq!(try_new(Duration::MAX, decay), Ok(()));
            assert_eq!(try_new(Duration::from_nanos(1), decay), Ok(()));
        }
        let error: &dyn std::error::Error = &InvalidEwma::Decay(0.0);
        assert!(error.to_string().contains("the decay is 0 ns"));
        let error: &dyn std::error::Error = &InvalidEwma::DefaultRtt(Duration::ZERO);
        assert!(error.to_string().contains("the default rtt is 0ns"));
    }

    #[test]
    fn or_panic_at_the_callers_line() {
        let new = || {
            PeakEwma::<_, _, ManualTimer>::new(obedient(), Duration::ZERO, 1e9, CompleteOnResponse)
        };
        let here = line!() - 2;
        let (file, line) = panics_at(|| drop(new()));
        assert_eq!((file.as_str(), line), (file!(), here));

        let list = || ServiceList::new([obedient()]);
        let new = || {
            PeakEwmaDiscover::<_, _, ManualTimer>::new(
                list(),
                SECOND,
                Duration::ZERO,
                CompleteOnResponse,
            )
        };
        let (file, _) = panics_at(|| drop(new()));
        assert_eq!(file, file!());
        let invalid = PeakEwmaDiscover::<_, _, ManualTimer>::try_new(
            list(),
            Duration::ZERO,
            SECOND,
            CompleteOnResponse,
        );
        assert_eq!(
            invalid.map(drop),
            Err(InvalidEwma::DefaultRtt(Duration::ZERO))
        );
        let invalid = PeakEwmaDiscover::try_with_timer(
            list(),
            SECOND,
            Duration::ZERO,
            CompleteOnResponse,
            NoRuntime,
        );
        assert_eq!(invalid.map(drop), Err(InvalidEwma::Decay(0.0)));
    }
}

mod a_constant {
    use super::*;

    #[test]
    fn is_what_was_said_whatever_is_under_way() {
        let mut service = Constant::new(obedient(), 7);
        let response = service.call(Ok(1));
        assert_eq!((service.load(), service.clone().load()), (7, 7));
        assert_eq!(done(spawn(response).poll()), Ok(1));
        assert_eq!(service.load(), 7);
        send(service.get_mut(), Ok(1));
    }

    #[test]
    fn is_that_of_each_service_of_a_discover() {
        let stream = futures::stream::iter([
            Ok(Change::Insert(1, "one")),
            Ok(Change::Remove(1)),
            Err("no more"),
        ]);
        let mut discover = Constant::new(stream, 7);
        let mut next =
            || common::WakeCount::new().enter(|cx| Pin::new(&mut discover).poll_discover(cx));
        assert_eq!(
            next(),
            Poll::Ready(Some(Ok(Change::Insert(1, Constant::new("one", 7)))))
        );
        assert_eq!(next(), Poll::Ready(Some(Ok(Change::Remove(1)))));
        assert_eq!(next(), Poll::Ready(Some(Err("no more"))));
        assert_eq!(next(), Poll::Ready(None));
    }
}

#[test]
fn loads_of_references_boxes_and_either() {
    fn load<L: Load<Metric = u8>>(load: L) -> u8 {
        load.load()
    }
    let mut one = Constant::new((), 1);
    let shared: &Constant<(), u8> = &one;
    assert_eq!(load(shared), 1);
    let unique: &mut Constant<(), u8> = &mut one;
    assert_eq!(load(unique), 1);
    assert_eq!(load(Box::new(one)), 1);
    let boxed: Box<dyn Load<Metric = u8>> = Box::new(one);
    assert_eq!(load(boxed), 1);
    for (either, expected) in [
        (Either::Left(one), 1),
        (Either::Right(Constant::new("other", 2)), 2),
    ] {
        assert_eq!(load(either), expected);
    }
}

/// Every service that `discover` finds, in order; a removal is `None`.
fn all<D: Discover>(discover: D) -> Vec<Option<D::Service>>
where
    D::Error: Debug,
{
    let mut discover = pin!(discover);
    let mut found = Vec::new();
    common::WakeCount::new().enter(|cx| {
        while let Some(change) = done(discover.as_mut().poll_discover(cx)) {
            found.push(match change.unwrap() {
                Change::Insert(_, service) => Some(service),
                Change::Remove(_) => None,
            });
        }
    });
    found
}

#[test]
fn each_service_of_a_discover_has_a_load_of_its_own_with_its_settings() {
    let timer = ManualTimer::new();
    let stream = || {
        futures::stream::iter([
            Ok::<_, u8>(Change::Insert(1, obedient())),
            Ok(Change::Insert(2, obedient())),
            Ok(Change::Remove(1)),
        ])
    };
    let discover = PendingRequestsDiscover::with_timer(stream(), CompleteOnResponse, timer.clone())
        .with_classifier(by_status)
        .with_decay(SECOND);
    let [Some(first), Some(second), None] = &mut all(discover)[..] else {
        panic!("two services and a removal");
    };
    send(first, Err(1));
    assert_eq!(first.load(), second.load());
    send(first, Ok(1));
    assert!(first.load() > second.load());
    timer.advance(3 * SECOND);
    assert_eq!(first.load(), second.load());

    let complete = CompleteOnResponse;
    let discover = PeakEwmaDiscover::with_timer(stream(), MILLI, SECOND, complete, timer.clone())
        .with_classifier(by_status)
        .with_penalty(2 * SECOND);
    let [Some(first), Some(second), None] = &mut all(discover)[..] else {
        panic!("two services and a removal");
    };
    assert_eq!(first.load(), second.load());
    send(first, Ok(1));
    assert!(first.load() > second.load());
    assert!(near(nanos(first.estimate()), nanos(2 * SECOND)));
}

#[test]
fn a_handle_of_ones_own_is_dropped_with_a_failure_and_a_future_polled_again_gives_nothing() {
    let handle = Rc::new(());
    let attach =
        |answer: Result<u8, u8>| TrackCompletionFuture::new(Keep, handle.clone(), ready(answer));
    let mut failed = spawn(attach(Err(1)));
    assert_eq!(done(failed.poll()), Err(1));
    assert_eq!(Rc::strong_count(&handle), 1);
    assert!(failed.poll().is_pending());

    let mut answered = spawn(attach(Ok(1)));
    let (kept, _) = done(answered.poll()).unwrap();
    assert_eq!(Rc::strong_count(&handle), 2);
    assert!(answered.poll().is_pending());
    drop(kept);
    assert_eq!(Rc::strong_count(&handle), 1);

    let cancelled = TrackCompletionFuture::new(Keep, handle.clone(), pending::<Result<u8, u8>>());
    drop(cancelled);
    assert_eq!(Rc::strong_count(&handle), 1);
}

#[test]
fn readiness_is_that_of_the_service() {
    let timer = ManualTimer::new();
    let wakes = common::WakeCount::new();
    let (service, handle) = mock::<u8, u8>();
    let mut pending =
        PendingRequests::with_timer(service.clone(), CompleteOnResponse, timer.clone());
    let mut ewma = PeakEwma::with_timer(service, SECOND, 1e9, CompleteOnResponse, timer);
    handle.set_ready(false);
    assert!(wakes.poll_ready(&mut pending).is_pending());
    assert!(wakes.poll_ready(&mut ewma).is_pending());
    handle.set_ready(true);
    assert_eq!(wakes.get(), 2);
    assert_eq!(wakes.poll_ready(&mut pending), Poll::Ready(Ok(())));
    assert_eq!(wakes.poll_ready(&mut ewma), Poll::Ready(Ok(())));
    handle.fail(Failure("gone"));
    assert_eq!(
        wakes.poll_ready(&mut pending),
        Poll::Ready(Err(Failure("gone")))
    );
    assert_eq!(
        wakes.poll_ready(&mut ewma),
        Poll::Ready(Err(Failure("gone")))
    );
    assert_eq!((pending.in_flight(), ewma.in_flight()), (0, 0));
}

/// Making one asks no clock.
#[test]
fn constructing_needs_no_runtime() {
    let pending = PendingRequests::with_timer((), CompleteOnResponse, NoRuntime).with_decay(SECOND);
    let ewma = PeakEwma::with_timer((), SECOND, 1e9, CompleteOnResponse, NoRuntime);
    let ewma = ewma.with_penalty(SECOND);
    assert_eq!((pending.in_flight(), ewma.in_flight()), (0, 0));
}

async fn peak_ewma_tells_the_slow_from_the_fast<H: Host>(rt: On<H>) {
    let endpoint = |latency| {
        let inner = Endpoint::new(rt.time().clone(), latency, true);
        let (default_rtt, decay) = (SECOND, nanos(10 * SECOND));
        let ewma = PeakEwma::with_timer(
            inner.clone(),
            default_rtt,
            decay,
            CompleteOnResponse,
            rt.time().clone(),
        );
        (inner, ewma)
    };
    let (_, mut slow) = endpoint(100 * MILLI);
    let (fast_inner, mut fast) = endpoint(5 * MILLI);
    for _ in 0..50 {
        let mut both = pin!(futures::future::join(slow.call(()), fast.call(())));
        loop {
            if let Poll::Ready((one, other)) = futures::poll!(both.as_mut()) {
                assert_eq!((one, other), (Ok(()), Ok(())));
                break;
            }
            rt.advance(5 * MILLI).await;
        }
        rt.advance(SECOND).await;
    }
    assert!(fast.load() < slow.load());
    // Busy enough, the fast one costs more.
    let under_way: Vec<_> = (0..50).map(|_| fast.call(())).collect();
    assert!(fast.load() > slow.load());
    drop(under_way);
    assert!(fast.load() < slow.load());

    fast_inner.set(5 * MILLI, false);
    let mut failing = pin!(fast.call(()));
    while futures::poll!(failing.as_mut()).is_pending() {
        rt.advance(5 * MILLI).await;
    }
    assert!(fast.load() > slow.load());
    rt.advance(1_000 * SECOND).await;
    assert!(fast.load() <= slow.load());
}

async fn penalties_of_pending_requests_pass<H: Host>(rt: On<H>) {
    let new = || PendingRequests::with_timer(obedient(), CompleteOnResponse, rt.time().clone());
    let (mut failing, other) = (new(), new());
    assert_eq!(failing.call(Err(1)).await, Err(1));
    let first = failing.load();
    assert!(first > other.load());
    rt.advance(SECOND).await;
    let second = failing.load();
    assert!(other.load() < second && second < first);
    rt.advance(60 * SECOND).await;
    assert_eq!(failing.load(), other.load());
}

on_every_runtime! {
    peak_ewma_tells_the_slow_from_the_fast,
    penalties_of_pending_requests_pass,
}

/// A program as a user of tower writes it.
#[cfg(feature = "tower")]
mod tower_code {
    macro_rules! program {
        ($name:ident, $tower:path) => {
            #[test]
            fn $name() {
                use std::time::Duration;
                use tower::discover::{Change, Discover, ServiceList};
                use tower::load::completion::{CompleteOnResponse, TrackCompletion};
                use tower::load::{Constant, Load, PeakEwma, PeakEwmaDiscover, peak_ewma};
                use tower::load::{PendingRequests, PendingRequestsDiscover, pending_requests};
                use tower::{Service, service_fn};
                use $tower as tower;

                #[derive(Clone)]
                struct IntoHandle;
                impl TrackCompletion<pending_requests::Handle, u32> for IntoHandle {
                    type Output = pending_requests::Handle;
                    fn track_completion(
                        &self,
                        handle: pending_requests::Handle,
                        _: u32,
                    ) -> Self::Output {
                        handle
                    }
                }

                #[derive(Clone)]
                struct InTuple;
                impl TrackCompletion<peak_ewma::Handle, u32> for InTuple {
                    type Output = (peak_ewma::Handle, u32);
                    fn track_completion(&self, handle: peak_ewma::Handle, n: u32) -> Self::Output {
                        (handle, n)
                    }
                }

                #[allow(dead_code, reason = "it is there to be named")]
                struct Named<S> {
                    pending: PendingRequests<S>,
                    pending_to_end: PendingRequests<S, IntoHandle>,
                    ewma: PeakEwma<S>,
                    discover: PendingRequestsDiscover<ServiceList<Vec<S>>>,
                    constant: Constant<S, u32>,
                }

                fn count<D: Discover<Service: Load>>(discover: D) -> usize {
                    let mut discover = std::pin::pin!(discover);
                    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                    let mut count = 0;
                    while let std::task::Poll::Ready(Some(Ok(change))) =
                        discover.as_mut().poll_discover(&mut cx)
                    {
                        if let Change::Insert(_, service) = change {
                            assert!(service.load() >= service.load());
                            count += 1;
                        }
                    }
                    count
                }

                let leaf = service_fn(async |n: u32| Ok::<_, std::io::Error>(n));
                let (rtt, decay) = (Duration::from_millis(30), Duration::from_secs(10));

                let mut pending = PendingRequests::new(leaf, IntoHandle);
                let handle = futures::executor::block_on(pending.call(1)).unwrap();
                let busy: pending_requests::Count = pending.load();
                drop(handle);
                assert!(pending.load() < busy);

                let mut ewma = PeakEwma::new(leaf, rtt, 10e9, InTuple);
                let (handle, n) = futures::executor::block_on(ewma.call(1)).unwrap();
                assert_eq!(n, 1);
                let busy: peak_ewma::Cost = ewma.load();
                drop(handle);
                assert!(ewma.load() < busy);

                let list = || ServiceList::new(vec![leaf, leaf]);
                assert_eq!(
                    count(PendingRequestsDiscover::new(
                        list(),
                        CompleteOnResponse::default()
                    )),
                    2
                );
                assert_eq!(
                    count(PendingRequestsDiscover::new::<u32>(list(), IntoHandle)),
                    2
                );
                assert_eq!(
                    count(PeakEwmaDiscover::new(
                        list(),
                        rtt,
                        decay,
                        CompleteOnResponse::default()
                    )),
                    2
                );
                assert_eq!(
                    count(PeakEwmaDiscover::new::<u32>(list(), rtt, decay, InTuple)),
                    2
                );
                assert_eq!(count(Constant::new(list(), 1)), 2);
            }
        };
    }

    program!(on_tower, ::tower);
    #[cfg(feature = "tokio")]
    program!(on_tokio, campanile::tokio);
    #[cfg(feature = "smol")]
    program!(on_smol, campanile::smol);
    #[cfg(feature = "async-std")]
    program!(on_async_std, campanile::async_std);
    #[cfg(feature = "futures-timer")]
    program!(on_futures_timer, campanile::futures_timer);
}
