//! Load metrics: what they count, what they penalise, and how they decay.
#![cfg(all(
    feature = "alloc",
    any(target_has_atomic = "64", feature = "critical-section")
))]

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "testing")]
mod long_requests;
mod peak_ewma_estimates;

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

/// A timer that counts how often its clock is read.
#[derive(Clone, Debug, Default)]
struct Counting {
    timer: ManualTimer,
    asked: Arc<AtomicUsize>,
}

impl Counting {
    /// How often the clock was read since the last `take`.
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

/// A service that returns each request as its result, at once.
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

/// Sends one request and polls it to completion.
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

fn by_status(result: &Result<u8, u8>) -> Outcome {
    match result {
        Ok(0) => Outcome::Counted,
        Ok(_) => Outcome::Penalised,
        Err(_) => Outcome::Ignored,
    }
}

mod simulation {
    use super::*;

    /// Answers after a latency; the latency and whether it fails can be changed.
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

    /// Sends `requests`, one every 10 ms, each to the endpoint with the lower load. Returns the share of the second
    /// endpoint.
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
use simulation::{Endpoint, share_of_second};

mod pending_count {
    use super::*;

    fn new<S>(
        inner: S,
        timer: &ManualTimer,
    ) -> PendingRequests<S, CompleteOnResponse, ManualTimer> {
        PendingRequests::with_timer(inner, CompleteOnResponse, timer.clone())
    }

    #[test]
    fn counts_from_call_to_result() {
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
            // The future still exists, but its request is complete.
            assert_eq!(service.in_flight(), 2 - usize::from(n));
        }
        assert_eq!(service.load(), pending_requests::Count::default());
    }

    #[test]
    fn cancelled_request_is_no_failure() {
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
    fn clones_share_the_count() {
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
    fn counts_until_the_handle_is_dropped() {
        let timer = ManualTimer::new();
        let mut service = PendingRequests::with_timer(obedient(), Keep, timer.clone());
        let (mut handle, _) = done(spawn(service.call(Ok(1))).poll()).unwrap();
        assert_eq!(service.load().get(), 1.0);
        // The response body is cut short.
        handle.record(Outcome::Penalised);
        assert_eq!(service.load().get(), 2.0);
        drop(handle);
        assert_eq!(service.load().get(), 1.0);
    }

    #[test]
    fn count_survives_panics() {
        let timer = ManualTimer::new();
        let broken = service_fn(|n: u8| async move {
            assert!(n > 0, "the service");
            Ok::<_, u8>(n)
        });
        let mut service =
            new(broken, &timer).with_classifier(|_: &Result<u8, u8>| panic!("the classifier"));
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

mod pending_penalties {
    use super::*;

    fn new<S>(
        inner: S,
        timer: &ManualTimer,
    ) -> PendingRequests<S, CompleteOnResponse, ManualTimer> {
        PendingRequests::with_timer(inner, CompleteOnResponse, timer.clone())
    }

    #[test]
    fn each_failure_adds_and_decays() {
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
            // A penalty that has decayed to 1/16 is forgotten.
            let forgotten = 1.0 / 16.0;
            assert!(
                found <= expected + 1e-6 && found >= expected - 2.0 * forgotten,
                "{found} {expected}"
            );
            assert!(found == 0.0 || found > forgotten - 1e-6);
        }
    }

    #[test]
    fn recover_by_time_alone() {
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
    fn count_towards_the_comparison() {
        let timer = ManualTimer::new();
        let [mut a, mut b] = [(); 2].map(|()| new(obedient(), &timer));
        let mut under_way = vec![];
        for _ in 0..2 {
            assert!(a.is_no_busier_than(&b) && b.is_no_busier_than(&a));
            under_way.push(a.call(Ok(0)));
            assert!(!a.is_no_busier_than(&b) && b.is_no_busier_than(&a));
            under_way.push(b.call(Ok(0)));
            // A load of 1.5 lies between loads of 1 and 2.
            a.set_penalty(0.5);
            assert!(!a.is_no_busier_than(&b) && b.is_no_busier_than(&a));
            under_way.push(b.call(Ok(0)));
            assert!(a.is_no_busier_than(&b) && !b.is_no_busier_than(&a));
            a.set_penalty(0.0);
            under_way.push(a.call(Ok(0)));
        }
    }

    #[test]
    fn read_the_clock_only_while_penalised() {
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
    fn follow_the_classifier() {
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
    fn are_printed() {
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
    fn invalid_decays_are_refused() {
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

    /// Fast failures must not make an endpoint look best.
    #[test]
    fn failing_endpoint_is_avoided_for_a_time() {
        let timer = ManualTimer::new();
        let slow = Endpoint::new(timer.clone(), 55 * MILLI, true);
        let broken = Endpoint::new(timer.clone(), MILLI, false);
        let count = |_: &Result<(), Failure>| Outcome::Counted;
        let mut both = [
            new(slow.clone(), &timer).with_classifier(count),
            new(broken.clone(), &timer).with_classifier(count),
        ];
        // Without a penalty the failing endpoint attracts nearly all requests.
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
    fn recovery_under_traffic_is_noticed() {
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

mod constant {
    use super::*;

    #[test]
    fn ignores_requests_in_flight() {
        let mut service = Constant::new(obedient(), 7);
        let response = service.call(Ok(1));
        assert_eq!((service.load(), service.clone().load()), (7, 7));
        assert_eq!(done(spawn(response).poll()), Ok(1));
        assert_eq!(service.load(), 7);
        send(service.get_mut(), Ok(1));
    }

    #[test]
    fn applies_to_each_discovered_service() {
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

/// A service that replaces another at the same endpoint continues its load.
#[test]
fn takeover_shares_the_load() {
    let timer = ManualTimer::new();
    let pending = || PendingRequests::with_timer(obedient(), CompleteOnResponse, timer.clone());
    let (mut old, mut new) = (pending(), pending());
    let mut under_way = spawn(old.call(Ok(1)));
    send(&mut old, Err(1));
    new.take_over(&mut old);
    assert_eq!((new.in_flight(), new.load().get()), (1, 2.0));
    send(&mut new, Err(1));
    assert_eq!(old.load(), new.load());
    assert_eq!(done(under_way.poll()), Ok(1));
    assert_eq!((new.in_flight(), new.load().get()), (0, 2.0));

    let ewma = || PeakEwma::with_timer(obedient(), MILLI, 1e9, CompleteOnResponse, timer.clone());
    let (mut old, mut new) = (ewma(), ewma());
    old.set_estimate(SECOND);
    let under_way = old.call(Ok(1));
    new.take_over(&mut old);
    assert_eq!(new.in_flight(), 1);
    assert!(near(nanos(new.estimate()), nanos(SECOND)));
    new.set_estimate(3 * SECOND);
    assert_eq!(old.load(), new.load());
    drop((old, under_way));
    assert_eq!(new.in_flight(), 0);
}

#[test]
fn middleware_forwards_a_takeover() {
    use campanile::limit::concurrency::{ConcurrencyLimit, LocalSemaphore};
    use campanile::limit::rate::{Rate, RateLimit};

    fn takes_over<L: Load<Metric = pending_requests::Count>>(
        mut old: L,
        mut new: L,
        penalise: impl FnOnce(&L),
    ) {
        new.take_over(&mut old);
        penalise(&old);
        assert_eq!(new.load().get(), 3.0);
    }

    let timer = ManualTimer::new();
    let leaf = || PendingRequests::with_timer((), CompleteOnResponse, timer.clone());
    takes_over(leaf(), leaf(), |old| old.set_penalty(3.0));

    let permits = Box::leak(Box::new(LocalSemaphore::<1>::new(1)));
    let limit = || ConcurrencyLimit::with_semaphore(leaf(), &*permits);
    takes_over(limit(), limit(), |old| old.get_ref().set_penalty(3.0));

    let limit = |inner| ConcurrencyLimit::with_semaphore(inner, &*permits).with_permit();
    let inside = leaf();
    takes_over(limit(inside.clone()), limit(leaf()), |_| {
        inside.set_penalty(3.0)
    });

    let limit = || RateLimit::with_timer(leaf(), Rate::new(1, SECOND), timer.clone());
    takes_over(limit(), limit(), |old| old.get_ref().set_penalty(3.0));

    type Either2 = Either<
        PendingRequests<(), CompleteOnResponse, ManualTimer>,
        PendingRequests<(), CompleteOnResponse, ManualTimer>,
    >;
    let penalise = |either: &Either2| match either {
        Either::Left(leaf) | Either::Right(leaf) => leaf.set_penalty(3.0),
    };
    takes_over(Either2::Left(leaf()), Either2::Left(leaf()), penalise);
    takes_over(Either2::Right(leaf()), Either2::Right(leaf()), penalise);
    // Different variants have no state to share.
    let (mut old, mut new) = (Either2::Left(leaf()), Either2::Right(leaf()));
    new.take_over(&mut old);
    penalise(&old);
    assert_eq!(new.load().get(), 0.0);
}

/// All changes of `discover` in order; a removal is `None`.
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
fn each_discovered_service_has_its_own_load() {
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
fn failure_drops_a_custom_handle() {
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

/// When the handle reports the end of a request, the inner future has been dropped.
#[test]
fn inner_future_is_dropped_before_handle() {
    /// Answers at once, and records when dropped whether the handle still exists.
    struct Last {
        answer: Result<u8, u8>,
        handle: Rc<()>,
        had_handle: Rc<Cell<Option<bool>>>,
    }
    impl Future for Last {
        type Output = Result<u8, u8>;
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            Poll::Ready(self.answer)
        }
    }
    impl Drop for Last {
        fn drop(&mut self) {
            // References: the test's, this future's, and the tracked handle's.
            let had_handle = Rc::strong_count(&self.handle) == 3;
            self.had_handle.set(Some(had_handle));
        }
    }

    let track = |answer, had_handle: &Rc<Cell<_>>| {
        let handle = Rc::new(());
        let last = Last {
            answer,
            handle: handle.clone(),
            had_handle: had_handle.clone(),
        };
        let tracked = handle.clone();
        (
            handle,
            spawn(TrackCompletionFuture::new(
                CompleteOnResponse,
                tracked,
                last,
            )),
        )
    };
    for answer in [Ok(1), Err(1)] {
        let had_handle = Rc::new(Cell::new(None));
        let (handle, mut response) = track(answer, &had_handle);
        assert_eq!(done(response.poll()), answer);
        assert_eq!(had_handle.get(), Some(true));
        assert_eq!(Rc::strong_count(&handle), 1);
        // The same for a cancelled request.
        let (_handle, response) = track(answer, &had_handle);
        had_handle.set(None);
        drop(response);
        assert_eq!(had_handle.get(), Some(true));
    }
}

#[test]
fn readiness_is_forwarded() {
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

/// Building one does not read the clock.
#[test]
fn building_needs_no_runtime() {
    let pending = PendingRequests::with_timer((), CompleteOnResponse, NoRuntime).with_decay(SECOND);
    let ewma = PeakEwma::with_timer((), SECOND, 1e9, CompleteOnResponse, NoRuntime);
    let ewma = ewma.with_penalty(SECOND);
    assert_eq!((pending.in_flight(), ewma.in_flight()), (0, 0));
}

async fn peak_ewma_tells_slow_from_fast<H: Host>(rt: On<H>) {
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
        let (mut one, mut other) = (spawn(slow.call(())), spawn(fast.call(())));
        assert!(one.poll().is_pending() && other.poll().is_pending());
        rt.advance(6 * MILLI).await;
        assert_eq!(other.finish().await, Ok(()));
        rt.advance(100 * MILLI).await;
        assert_eq!(one.finish().await, Ok(()));
        rt.advance(SECOND).await;
    }
    assert!(fast.load() < slow.load());
    // With enough requests in flight, the fast endpoint has the higher load.
    let under_way: Vec<_> = (0..50).map(|_| fast.call(())).collect();
    assert!(fast.load() > slow.load());
    drop(under_way);
    assert!(fast.load() < slow.load());

    fast_inner.set(5 * MILLI, false);
    let mut failing = spawn(fast.call(()));
    assert!(failing.poll().is_pending());
    rt.advance(6 * MILLI).await;
    assert!(failing.finish().await.is_err());
    assert!(fast.load() > slow.load());
    rt.advance(1_000 * SECOND).await;
    assert!(fast.load() <= slow.load());
}

async fn penalties_decay<H: Host>(rt: On<H>) {
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
    peak_ewma_tells_slow_from_fast,
    penalties_decay,
}

/// A program written for tower.
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
