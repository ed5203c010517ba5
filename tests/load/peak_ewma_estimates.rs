//! How `PeakEwma` turns latencies into estimates.

use super::*;

const DECAY: Duration = Duration::from_secs(10);

fn new<S>(inner: S, timer: &ManualTimer) -> PeakEwma<S, CompleteOnResponse, ManualTimer> {
    let decay = nanos(DECAY);
    PeakEwma::with_timer(inner, 100 * MILLI, decay, CompleteOnResponse, timer.clone())
}

/// Sends one request that is answered after `took`.
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
fn starts_at_the_default() {
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
fn peak_counts_at_once_then_decays() {
    let timer = ManualTimer::new();
    let mut service = new(obedient(), &timer);
    send_for(&mut service, Ok(0), &timer, SECOND);
    assert_estimate(&service, nanos(SECOND));
    // Reading the load in between makes no difference.
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
fn matches_the_formula() {
    let timer = ManualTimer::new();
    let mut service = new(obedient(), &timer);
    let mut rng = SplitMix64::new(5);
    let decay = nanos(DECAY);
    let start = timer.now();
    let _ = service.load();
    let (mut estimate, mut at) = (nanos(100 * MILLI), start);
    let mut responded = at;
    // How many requests sent since the last response wait, and when the second and the last were sent.
    let (mut waiting, mut second, mut last) = (0, at, at);
    let mut overtaken = 0;
    // Each request, when it was sent, and after how many responses.
    let mut under_way: Vec<(Task<_>, Instant, u32)> = Vec::new();
    let mut responses = 0;
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
                waiting += 1;
                if waiting == 2 {
                    second = now;
                }
                last = now;
                under_way.push((spawn(service.call(answer)), now, responses));
            }
            1 if !under_way.is_empty() => {
                let place = rng.next_range(0..under_way.len() as u64) as usize;
                let (mut request, sent, after) = under_way.swap_remove(place);
                let mut took = nanos(now.saturating_duration_since(sent));
                estimate = decayed(estimate, at, now);
                at = now;
                let seconds = |a: Instant, b: Instant| a.as_nanos() as f64 - b.as_nanos() as f64;
                let longest = (estimate * f64::exp(seconds(now, responded) / decay)).max(1.0);
                let is_overtaken = took > decay && seconds(responded, sent) - longest > took / 2.0;
                overtaken += u32::from(is_overtaken);
                if rng.next_range(0..4) == 0 {
                    drop(request);
                    if !is_overtaken {
                        estimate = estimate.max(took);
                    }
                    if after == responses {
                        waiting -= 1;
                        if last == sent {
                            last = second;
                        }
                    }
                    continue;
                }
                (waiting, responses) = (0, responses + 1);
                match (done(request.poll()).is_err(), is_overtaken) {
                    (true, true) => took = decay,
                    (true, false) => took = took.max(decay),
                    (false, true) => continue,
                    (false, false) => {}
                }
                let elapsed = nanos(now.saturating_duration_since(responded));
                responded = now;
                let w = f64::exp(-elapsed / decay);
                estimate = took.max(estimate + (1.0 - w) * took).max(1.0);
            }
            _ => {}
        }
        let mut expected = decayed(estimate, at, now);
        if waiting >= 2 {
            let since = nanos(now.saturating_duration_since(last));
            let silent = nanos(now.saturating_duration_since(second));
            expected = expected.max(silent * f64::exp(-since / decay));
        }
        let found = nanos(service.estimate());
        assert!(
            (found - expected).abs() < 2.0 + expected * 1e-6,
            "{found} {expected}"
        );
        let cost = service.load().as_nanos() / (under_way.len() as f64 + 1.0);
        assert!((cost - expected).abs() < 2.0 + expected * 1e-6);
    }
    assert!(overtaken > 100, "{overtaken}");
}

#[test]
fn is_at_least_a_nanosecond() {
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
fn silence_counts_from_the_second_request() {
    let timer = ManualTimer::new();
    let mut service = new(obedient(), &timer);
    send_for(&mut service, Ok(0), &timer, SECOND);
    let mut first = spawn(service.call(Ok(0)));
    // One request may simply be long, so alone it raises nothing.
    timer.advance(100 * SECOND);
    assert_estimate(&service, nanos(SECOND) * f64::exp(-10.0));
    let second = service.call(Ok(0));
    timer.advance(5 * SECOND);
    let third = service.call(Ok(0));
    assert_estimate(&service, nanos(5 * SECOND));
    // Without new requests the silence weighs less and less.
    timer.advance(20 * SECOND);
    assert_estimate(&service, nanos(25 * SECOND) * f64::exp(-2.0));
    // A new unanswered request makes the whole silence count.
    let fourth = service.call(Ok(0));
    assert_estimate(&service, nanos(25 * SECOND));
    // A cancelled request is no answer.
    drop(second);
    timer.advance(SECOND);
    assert_estimate(&service, nanos(26 * SECOND) * f64::exp(-0.1));
    // Any answer ends the silence.
    service.set_estimate(MILLI);
    assert_eq!(done(first.poll()), Ok(0));
    service.set_estimate(MILLI);
    timer.advance(20 * SECOND);
    assert_estimate(&service, nanos(MILLI) * f64::exp(-2.0));
    drop((third, fourth));
}

#[test]
fn cancelled_request_causes_no_silence() {
    let timer = ManualTimer::new();
    let mut service = new(obedient(), &timer);
    let both = [service.call(Ok(0)), service.call(Ok(0))];
    timer.advance(SECOND);
    drop(both);
    service.set_estimate(MILLI);
    // The next request counts as the first.
    let next = service.call(Ok(0));
    timer.advance(DECAY);
    assert_estimate(&service, nanos(MILLI) / std::f64::consts::E);
    // A long request and a cancelled one, as by a faster hedge, cause no silence either.
    service.set_estimate(SECOND);
    let other = service.call(Ok(0));
    timer.advance(MILLI);
    drop(other);
    timer.advance(10 * DECAY);
    assert_estimate(&service, nanos(SECOND) * f64::exp(-10.0001));
    // The next request starts a new silence.
    let third = service.call(Ok(0));
    timer.advance(SECOND);
    assert_estimate(&service, nanos(SECOND) * f64::exp(-0.1));
    drop((next, third));
}

/// A request that takes longer than the decay, while later ones are answered, is long by nature and no peak.
#[test]
fn end_of_a_long_request_is_no_peak() {
    let hour = 3600 * SECOND;
    for (result, counts_as) in [(Ok(0), None), (Err(0), Some(DECAY))] {
        for is_cancelled in [false, true] {
            let timer = ManualTimer::new();
            let mut service = new(obedient(), &timer);
            let mut long = spawn(service.call(result));
            timer.advance(hour);
            send_for(&mut service, Ok(0), &timer, 10 * MILLI);
            service.set_estimate(20 * MILLI);
            if is_cancelled {
                drop(long);
                assert_estimate(&service, nanos(20 * MILLI));
            } else {
                let _ = done(long.poll());
                assert_estimate(&service, nanos(counts_as.unwrap_or(20 * MILLI)));
            }
        }
    }
    // It is a peak if nothing was answered meanwhile, or only a request that was sent as early.
    for answered in [false, true] {
        let timer = ManualTimer::new();
        let mut service = new(obedient(), &timer);
        let mut long = spawn(service.call(Ok(0)));
        let mut other = spawn(service.call(Ok(0)));
        timer.advance(60 * SECOND);
        if answered {
            assert_eq!(done(other.poll()), Ok(0));
            timer.advance(SECOND);
        }
        assert_eq!(done(long.poll()), Ok(0));
        assert!(service.estimate() >= 60 * SECOND);
    }
}

#[test]
fn hanging_endpoint_is_avoided() {
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
fn cancelled_request_may_raise_the_estimate() {
    let timer = ManualTimer::new();
    let mut service = new(obedient(), &timer);
    let twin = new(obedient(), &timer);
    let _ = twin.load();
    // Cancelled earlier than the estimate: this says nothing.
    let cancelled = service.call(Ok(0));
    assert_eq!(service.in_flight(), 1);
    timer.advance(10 * MILLI);
    drop(cancelled);
    assert_eq!(service.in_flight(), 0);
    assert_eq!(service.load(), twin.load());
    // The next response still counts all the time since the last one.
    send_for(&mut service, Ok(0), &timer, MILLI);
    let w = f64::exp(-0.0011);
    assert_estimate(&service, nanos(100 * MILLI) * w + nanos(MILLI) * (1.0 - w));

    // Cancelled later than the estimate: the answer would have taken at least that long.
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
fn ignored_result_changes_nothing() {
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
fn failure_counts_at_least_the_penalty() {
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
fn handle_may_set_the_outcome() {
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
fn clones_share_the_estimate() {
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
fn is_printed() {
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
fn clock_is_read_once_per_operation() {
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

/// A zero-sized timer, as the runtimes' timers are.
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

/// Asserts that random pairs of endpoints compare as their loads do. Returns how many comparisons read the clock.
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
        // For nearly equal loads either answer is correct.
        if (x - y).abs() > 1e-6 * x.max(y) {
            assert_eq!(found, [x < y, x > y], "{x} {y}");
        }
    }
    (compared, timed)
}

#[test]
fn comparison_reads_the_clock_if_needed() {
    let advance = |nanos| NOW.set(NOW.get() + nanos);
    let (compared, timed) = compare([Global; 2], advance, || ASKED.get());
    assert!(timed > compared / 5 && timed < compared * 4 / 5, "{timed}");

    // The clock is read once for both.
    let both = [(); 2].map(|()| {
        let mut service = PeakEwma::with_timer(obedient(), MILLI, 1e9, CompleteOnResponse, Global);
        let response = service.call(Ok(0));
        (service, response)
    });
    let [(a, _under_way), (b, _too)] = &both;
    let before = ASKED.get();
    assert!(a.is_no_busier_than(b) || b.is_no_busier_than(a));
    assert!(ASKED.get() - before <= 2);

    // Times of different clocks cannot be compared.
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
fn stays_finite_under_any_clock() {
    /// A clock that shows the time it is set to.
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
    // At least one request took a whole second, and no peak is lost.
    assert!(
        service.estimate() >= SECOND - MILLI,
        "{:?}",
        service.estimate()
    );
}

/// Fast failures must not make an endpoint look best.
#[test]
fn failing_endpoint_is_avoided_for_a_time() {
    let timer = ManualTimer::new();
    let slow = Endpoint::new(timer.clone(), 55 * MILLI, true);
    let broken = Endpoint::new(timer.clone(), MILLI, false);
    let new = |inner: &Endpoint<_>| {
        let (rtt, decay) = (100 * MILLI, nanos(SECOND));
        PeakEwma::with_timer(inner.clone(), rtt, decay, CompleteOnResponse, timer.clone())
    };
    let count = |_: &Result<(), Failure>| Outcome::Counted;
    let mut both = [&slow, &broken].map(|inner| new(inner).with_classifier(count));
    // Without a penalty the failing endpoint attracts nearly all requests.
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
fn recovery_under_traffic_is_noticed() {
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
fn invalid_values_are_refused() {
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
fn invalid_values_panic_at_the_callers_line() {
    let new =
        || PeakEwma::<_, _, ManualTimer>::new(obedient(), Duration::ZERO, 1e9, CompleteOnResponse);
    let here = line!() - 1;
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
