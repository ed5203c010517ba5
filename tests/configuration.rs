//! Every numeric setting over its whole range: either it is refused with an error that names the value and the allowed
//! range, or it works, at any moment of a 64-bit clock.
#![cfg(feature = "testing")]

mod common;

use std::error::Error;
use std::future::pending;
use std::task::Poll;
use std::time::Duration;

use campanile::balance::quarantine::QuarantineLayer;
use campanile::buffer::{self, Buffer, BufferLayer};
use campanile::hedge::{Delay, Hedge, HedgeLayer, ShareBudget};
use campanile::limit::concurrency::{
    ConcurrencyLimit, ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer, LocalSemaphore, Semaphore,
};
use campanile::limit::rate::{Error as RateError, Limited, Rate, RateLimit};
use campanile::load::{CompleteOnResponse, Load, Outcome, PeakEwma, PendingRequests};
use campanile::retry::backoff::{Backoff, ExponentialBackoffMaker, Jitter};
use campanile::retry::budget::{Budget, TpsBudget};

use campanile::retry::{Action, CloneByClone, Policy, StandardPolicy};
use campanile::testing::Faults;
use campanile::timeout::{Deadline, Timeout};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Executor, Instant, Layer, Service, ServiceExt, Timer, service_fn};
use futures::FutureExt;

use common::{ManualTimer, WakeCount, panics_at, ready, spawn};

type Echo = campanile::util::ServiceFn<fn(u32) -> std::future::Ready<Result<u32, u32>>>;

fn echo() -> Echo {
    service_fn(|n| std::future::ready(Ok(n)))
}

const NANO: Duration = Duration::from_nanos(1);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(31_557_600);

/// In nanoseconds.
const EDGES: [u64; 18] = [
    0,
    1,
    2,
    3,
    10,
    999,
    1000,
    999_999_999,
    1_000_000_000,
    1_000_000_001,
    3_600_000_000_000,
    3_600_000_000_001,
    (1 << 62) - 1,
    1 << 62,
    (1 << 62) + 1,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// The edges, and a few numbers of every magnitude.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut rng = SplitMix64::new(seed);
    let others = (0..12).map(move |n| rng.next_u64() >> (5 * n));
    EDGES.into_iter().chain(others)
}

fn durations(seed: u64) -> impl Iterator<Item = Duration> {
    let beyond = [Duration::from_nanos(u64::MAX) + NANO, Duration::MAX - NANO];
    numbers(seed)
        .map(Duration::from_nanos)
        .chain(beyond)
        .chain([YEAR, YEAR + NANO, Duration::MAX])
}

fn sizes() -> impl Iterator<Item = usize> {
    EDGES.into_iter().map(|n| n as usize).chain([usize::MAX])
}

const FLOATS: [f64; 27] = [
    f64::NAN,
    f64::NEG_INFINITY,
    f64::MIN,
    -1.0,
    -0.4,
    -f64::MIN_POSITIVE,
    -f64::MIN_POSITIVE / 2.0,
    -0.0,
    0.0,
    f64::MIN_POSITIVE / 2.0,
    f64::MIN_POSITIVE,
    1e-9,
    0.4,
    1.0 - f64::EPSILON,
    1.0,
    1.0 + f64::EPSILON,
    99.9,
    100.0,
    100.000_000_000_1,
    999.9,
    1000.0,
    1_000.000_1,
    1e9,
    3.15576e16,
    3.155_77e16,
    f64::MAX,
    f64::INFINITY,
];

fn singles() -> impl Iterator<Item = f32> {
    let least = f32::MIN_POSITIVE;
    let own = [
        -f32::from_bits(1),
        -least / 2.0,
        least / 2.0,
        f32::EPSILON,
        1.0 + f32::EPSILON,
    ];
    FLOATS.into_iter().map(|float| float as f32).chain(own)
}

/// Where a clock may stand: at its beginning, today, and at its end.
const MOMENTS: [u64; 7] = [
    0,
    1,
    1_000_000_000_000,
    1 << 62,
    1 << 63,
    u64::MAX - 2,
    u64::MAX,
];

fn at(nanos: u64) -> ManualTimer {
    ManualTimer::at(Instant::from_nanos(nanos))
}

/// The duration in nanoseconds, capped at the clock's maximum.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Asserts that the error names the value given and the allowed range.
#[track_caller]
fn assert_says(error: &dyn Error, given: &str) {
    let message = error.to_string();
    let says = message.contains(given) && message.contains("must be");
    assert!(says, "{message:?} does not say that it was {given}");
}

/// Asserts that `$try` gives an error if and only if `$valid` is false, and that it then names `$given` and `$new`
/// panics in this line.
macro_rules! agree {
    ($valid:expr, $given:expr, $try:expr, $new:expr) => {{
        let tried = $try;
        assert_eq!(tried.is_ok(), $valid, "{}", $given);
        match tried {
            Ok(thing) => {
                let _made = $new;
                Some(thing)
            }
            Err(error) => {
                let (file, line) = panics_at(|| {
                    let _made = $new;
                });
                let lines = line!()..line!() + 7;
                assert!(file == file!() && lines.contains(&line), "{file}:{line}");
                assert_says(&error, &$given);
                None
            }
        }
    }};
}

/// Sends one request; `None` if the service is not ready.
fn send<S: Service<u32>>(service: &mut S) -> Option<Result<S::Response, S::Error>> {
    match WakeCount::new().poll_ready(service) {
        Poll::Ready(Ok(())) => service.call(1).now_or_never(),
        Poll::Ready(Err(error)) => Some(Err(error)),
        Poll::Pending => None,
    }
}

#[test]
fn rates() {
    for num in numbers(1) {
        for per in durations(2) {
            let valid = num > 0 && !per.is_zero();
            let rate = agree!(valid, "0", Rate::try_new(num, per), Rate::new(num, per));
            let Some(rate) = rate else { continue };
            for burst in [0, 1, num / 2, num, u64::MAX] {
                for rate in [rate.burst(burst), rate.strict(burst), rate.fixed_window()] {
                    for moment in MOMENTS {
                        drive_rate(rate, moment);
                    }
                }
            }
        }
    }
}

fn drive_rate(rate: Rate, moment: u64) {
    let timer = at(moment);
    let limit = RateLimit::with_timer(echo(), rate, timer.clone());
    let mut service = limit.clone().reject();
    // One token that is given back, and some that are not.
    let mut idle = limit.clone();
    let is_first = WakeCount::new().poll_ready(&mut idle).is_ready();
    // A token cannot be repaid beyond the end of time.
    assert!(is_first || moment > 1 << 63, "{rate:?} at {moment}");
    drop(idle);
    for _ in 0..4 {
        let Some(answer) = send(&mut service) else {
            // It rejects instead of waiting, except where no later moment exists.
            assert_eq!(timer.now(), Instant::MAX);
            return;
        };
        match answer {
            Ok(n) => assert_eq!(n, 1),
            Err(error @ (RateError::Overflow(_) | RateError::Service(_))) => panic!("{error}"),
            Err(RateError::Limited(limited)) => {
                // At the end of time, no wait would help.
                let now = timer.now().as_nanos();
                let wait = nanos(limited.retry_after());
                assert!(wait > 0 || now == u64::MAX, "{rate:?} at {moment}");
                drive_patience(&limit, limited);
                timer.advance(limited.retry_after());
                let answer = send(&mut service);
                let is_served = matches!(answer, Some(Ok(1)));
                // A budget that would refill only beyond the end of time grants nothing.
                assert!(
                    is_served || debt(rate, now) > 1 << 63,
                    "{rate:?} at {moment}"
                );
            }
        }
    }
    drop(service);
    timer.advance(Duration::MAX);
    let _ = send(&mut limit.reject());
}

/// The moment in nanoseconds, from the numbers in the `Debug` output, when a budget used up at `now` and one more token
/// are repaid.
fn debt(rate: Rate, now: u64) -> u128 {
    let numbers = format!("{rate:?}").replace(|c: char| !c.is_ascii_digit(), " ");
    let numbers: Vec<u128> = numbers
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    let [num, per, burst] = numbers[..] else {
        panic!("{rate:?}")
    };
    u128::from(now) + (burst + 2) * per.div_ceil(num)
}

/// A handle waits if and only if its patience is long enough.
fn drive_patience(limit: &RateLimit<Echo, ManualTimer>, limited: Limited) {
    let enough = limited.retry_after();
    let around = [
        enough - NANO.min(enough),
        enough,
        enough.saturating_add(NANO),
    ];
    let edges = [
        Duration::ZERO,
        NANO,
        Duration::from_nanos(u64::MAX),
        Duration::MAX,
    ];
    for patience in around.into_iter().chain(edges) {
        let mut service = limit.clone().wait_at_most(patience);
        let waits = WakeCount::new().poll_ready(&mut service).is_pending();
        assert_eq!(waits, patience >= enough, "{patience:?} of {enough:?}");
    }
}

#[test]
fn time_limits() {
    let never = service_fn(|_: u32| pending::<Result<u32, u32>>());
    for limit in durations(3) {
        for moment in MOMENTS {
            let end = moment.checked_add(nanos(limit));
            // A limit that would elapse at or after the clock's last moment never elapses.
            let end = end.filter(|&end| end < u64::MAX && limit < Duration::MAX);

            for from_call in [false, true] {
                let timer = at(moment);
                let timeout = Timeout::with_timer(never, limit, timer.clone());
                let mut timeout = if from_call {
                    timeout.from_call()
                } else {
                    timeout
                };
                let mut response = spawn(timeout.call(1));
                check_limit(&timer, limit, end, || response.poll().is_ready());
            }

            let timer = at(moment);
            let unready = Faults::with_timer(1, timer.clone())
                .never_ready(1.0)
                .layer(echo());
            let mut deadline = Deadline::with_timer(unready, limit, timer.clone());
            check_limit(&timer, limit, end, || {
                WakeCount::new().poll_ready(&mut deadline).is_ready()
            });
        }
    }
}

fn check_limit(
    timer: &ManualTimer,
    limit: Duration,
    end: Option<u64>,
    mut is_over: impl FnMut() -> bool,
) {
    let moment = timer.now();
    let first = is_over();
    let Some(_) = end else {
        // At the very end of the clock, both results are allowed.
        assert!(
            !first || moment.as_nanos() > 1 << 63,
            "{limit:?} at {moment:?}"
        );
        return;
    };
    assert_eq!(first, limit.is_zero(), "{limit:?} at {moment:?}");
    if !first {
        timer.advance(limit - NANO);
        assert!(!is_over(), "too early: {limit:?} at {moment:?}");
        timer.advance(NANO);
        assert!(is_over(), "too late: {limit:?} at {moment:?}");
    }
}

#[test]
fn backoffs() {
    let timer = ManualTimer::new();
    for min in durations(4) {
        for max in durations(5) {
            let jitters = [
                Jitter::None,
                Jitter::Full,
                Jitter::Equal,
                Jitter::Decorrelated,
            ];
            let factors = FLOATS.map(Jitter::Proportional);
            for jitter in jitters.into_iter().chain(factors) {
                let rng = SplitMix64::new(min.as_nanos() as u64);
                let maker =
                    ExponentialBackoffMaker::with_timer(min, max, jitter, rng, timer.clone());
                let in_order = min <= max && !max.is_zero();
                let valid = match jitter {
                    Jitter::Proportional(factor) => in_order && (0.0..=100.0).contains(&factor),
                    _ => in_order,
                };
                assert_eq!(maker.is_ok(), valid, "{min:?} {max:?} {jitter:?}");
                match maker {
                    Ok(mut maker) => drive_backoff(&mut maker, min, max, jitter),
                    Err(error) if max.is_zero() => assert_says(&error, "0s"),
                    Err(error) if min > max => assert_says(&error, &format!("{min:?}")),
                    Err(error) => match jitter {
                        Jitter::Proportional(factor) => assert_says(&error, &factor.to_string()),
                        _ => panic!("{error}"),
                    },
                }
            }
        }
    }
    for moment in MOMENTS {
        for wait in durations(6).filter(|wait| !wait.is_zero()) {
            let rng = SplitMix64::new(1);
            let maker =
                ExponentialBackoffMaker::with_timer(wait, wait, Jitter::None, rng, at(moment));
            let mut sleep = spawn(maker.unwrap().backoff().next_backoff());
            assert!(sleep.poll().is_pending(), "{wait:?} at {moment}");
        }
    }
}

fn drive_backoff(
    maker: &mut ExponentialBackoffMaker<SplitMix64, ManualTimer>,
    min: Duration,
    max: Duration,
    jitter: Jitter,
) {
    let mut backoff = maker.backoff();
    let (min, max) = (nanos(min), nanos(max));
    // The delay without jitter.
    let mut base = min;
    for n in 0..70 {
        let wait = nanos(backoff.next_delay());
        let lowest = match jitter {
            Jitter::None | Jitter::Proportional(_) => base,
            Jitter::Full => 0,
            Jitter::Equal => base / 2,
            Jitter::Decorrelated => min,
            other => panic!("a jitter without bounds: {other:?}"),
        };
        let highest = match jitter {
            Jitter::Decorrelated | Jitter::Proportional(_) => max,
            _ => base,
        };
        let bounds = lowest..=highest;
        assert!(
            bounds.contains(&wait),
            "{n}: {wait} in {bounds:?}, {jitter:?}"
        );
        base = base.saturating_mul(2).min(max);
    }
    assert!(base == max || min == 0);
}

#[test]
fn budgets() {
    for ttl in durations(7) {
        for reserve in numbers(8).map(|n| u32::try_from(n).unwrap_or(u32::MAX)) {
            for share in singles() {
                let valid_ttl = (Duration::from_secs(1)..=HOUR).contains(&ttl);
                let valid_reserve = reserve <= 1_000_000_000;
                let valid = valid_ttl && valid_reserve && (0.0..=1000.0).contains(&share);
                let given = match (valid_ttl, valid_reserve) {
                    (false, _) => format!("{ttl:?}"),
                    (_, false) => reserve.to_string(),
                    _ => share.to_string(),
                };
                let try_at = |moment| TpsBudget::try_with_timer(ttl, reserve, share, at(moment));
                let new = || TpsBudget::with_timer(ttl, reserve, share, at(0));
                if valid {
                    drop(new());
                    for moment in MOMENTS {
                        drive_budget(
                            &try_at(moment).unwrap(),
                            moment,
                            [ttl, HOUR],
                            reserve,
                            share,
                        );
                    }
                } else {
                    assert_says(&try_at(0).err().unwrap(), &given);
                    let (file, line) =
                        panics_at(|| drop(TpsBudget::with_timer(ttl, reserve, share, at(0))));
                    assert_eq!((file.as_str(), line), (file!(), line!() - 1));
                }
            }
        }
    }
}

fn drive_budget(
    budget: &TpsBudget<ManualTimer>,
    moment: u64,
    [ttl, _]: [Duration; 2],
    reserve: u32,
    share: f32,
) {
    const MOST: u128 = 100;
    let held = u128::from(reserve) * ttl.as_nanos() / 1_000_000_000;
    let earned = (f64::from(share) * 10_000.0 + 0.5) as u128 * 3 / 10_000;
    (0..3).for_each(|_| budget.deposit());
    let taken = (0..MOST).take_while(|_| budget.withdraw()).count() as u128;
    let all = (held + earned).min(MOST);
    // At the end of time there is no room for repaying the reserve.
    let is_late = moment > 1 << 63;
    assert!(
        taken == all || is_late && taken <= all,
        "{taken} of {all} at {moment}"
    );
}

#[test]
fn hedge_shares() {
    for share in singles() {
        let valid = (0.0..=1.0).contains(&share);
        let given = share.to_string();
        let budget = agree!(
            valid,
            given,
            ShareBudget::try_new(share),
            ShareBudget::new(share)
        );
        let Some(budget) = budget else { continue };
        let saved = (0..20).take_while(|_| budget.withdraw()).count();
        assert_eq!(saved, 10);
        (0..1000).for_each(|_| budget.deposit());
        let saved = (0..20).take_while(|_| budget.withdraw()).count();
        let earned = (f64::from(share) * 1000.0).round();
        assert_eq!(saved, (earned as usize).min(10), "{share}");
    }
}

#[test]
fn hedges() {
    for percentile in singles() {
        for period in durations(9) {
            let valid_percentile = (0.0..=1.0).contains(&percentile);
            let valid = valid_percentile && !period.is_zero();
            let given = match valid_percentile {
                true => "0ns".to_owned(),
                false => percentile.to_string(),
            };
            let tried = Delay::try_percentile(1, percentile, period);
            agree!(
                valid,
                given,
                tried,
                Delay::percentile(1, percentile, period)
            );
            let policy = CloneByClone;
            type Layer = HedgeLayer<CloneByClone, ManualTimer>;
            let tried = Layer::try_new(policy, 1, percentile, period);
            agree!(
                valid,
                given,
                tried,
                Layer::new(policy, 1, percentile, period)
            );
            let tried = Hedge::<_, _, ManualTimer>::try_new(echo(), policy, 1, percentile, period);
            let new = || Hedge::<_, _, ManualTimer>::new(echo(), policy, 1, percentile, period);
            assert_eq!(tried.is_ok(), valid);
            if valid {
                drop(new());
            }
            if let Ok(delay) = Delay::try_percentile(1, percentile, period) {
                drive_estimate(delay, period);
            }
        }
    }
    for delay in durations(10) {
        for moment in MOMENTS {
            drive_hedge(delay, moment);
        }
    }
    for min_data_points in numbers(11) {
        let delay = Delay::percentile(min_data_points, 0.5, HOUR);
        let hedge = Hedge::with_timer(echo(), CloneByClone, delay, at(1 << 62));
        hedge.seed([HOUR; 3]);
        assert_eq!(hedge.delay().is_some(), min_data_points <= 3);
    }
}

fn drive_estimate(delay: Delay, period: Duration) {
    for moment in MOMENTS {
        let timer = at(moment);
        let mut hedge = Hedge::with_timer(echo(), CloneByClone, delay, timer.clone());
        assert_eq!(hedge.delay(), None);
        assert_eq!(send(&mut hedge), Some(Ok(1)));
        timer.advance(period);
        assert_eq!(send(&mut hedge), Some(Ok(1)));
        assert!(hedge.delay().is_none_or(|delay| delay <= period + HOUR));
    }
    // Longer latencies give longer delays.
    let mut last = Duration::ZERO;
    let mut latencies: Vec<_> = durations(12).collect();
    latencies.sort_unstable();
    for latency in latencies {
        let hedge = Hedge::with_timer(echo(), CloneByClone, delay, at(1 << 62));
        hedge.seed([latency]);
        let delay = hedge.delay().unwrap();
        assert!(
            delay >= last,
            "{delay:?} for {latency:?}, and {last:?} for less"
        );
        assert!(delay >= latency.min(HOUR), "{delay:?} for {latency:?}");
        last = delay;
    }
}

/// A hedge is sent when its delay has elapsed, and no earlier.
fn drive_hedge(delay: Duration, moment: u64) {
    let calls = std::rc::Rc::new(std::cell::Cell::new(0));
    let counted = calls.clone();
    let timer = at(moment);
    let inner = service_fn(|_: u32| {
        counted.set(counted.get() + 1);
        pending::<Result<u32, u32>>()
    });
    let mut hedge = Hedge::with_timer(inner, CloneByClone, Delay::fixed(delay), timer.clone());
    let mut response = spawn(hedge.call(1));
    assert!(response.poll().is_pending());
    let end = moment
        .checked_add(nanos(delay))
        .filter(|&end| end < u64::MAX);
    if end.is_none() {
        assert!(
            calls.get() == 1 || moment > 1 << 63,
            "{delay:?} at {moment}"
        );
        return;
    }
    assert_eq!(
        calls.get(),
        1 + u32::from(delay.is_zero()),
        "{delay:?} at {moment}"
    );
    if !delay.is_zero() {
        timer.advance(delay - NANO);
        assert!(response.poll().is_pending());
        assert_eq!(calls.get(), 1, "too early: {delay:?} at {moment}");
        timer.advance(NANO);
        assert!(response.poll().is_pending());
        assert_eq!(calls.get(), 2, "too late: {delay:?} at {moment}");
    }
}

#[test]
fn decaying_loads() {
    for rtt in durations(13) {
        for decay in FLOATS.into_iter().chain([1e3 - 1.0, 1e3]) {
            let valid = !rtt.is_zero() && (1e3..=3.15576e16).contains(&decay);
            let given = if rtt.is_zero() {
                "0ns".to_owned()
            } else {
                decay.to_string()
            };
            let over = CompleteOnResponse;
            type Ewma = PeakEwma<Echo, CompleteOnResponse, ManualTimer>;
            let tried = Ewma::try_new(echo(), rtt, decay, over);
            agree!(valid, given, tried, Ewma::new(echo(), rtt, decay, over));
            if valid {
                for moment in MOMENTS {
                    let make = || PeakEwma::with_timer(echo(), rtt, decay, over, at(moment));
                    drive_ewma(make);
                }
            }
        }
    }
}

fn assert_sensible(load: f64) -> f64 {
    assert!(load.is_finite() && load > 0.0, "{load}");
    load
}

fn drive_ewma(make: impl Fn() -> PeakEwma<Echo, CompleteOnResponse, ManualTimer>) {
    for edge in [Duration::ZERO, NANO, HOUR, Duration::MAX] {
        let classify = |_: &Result<u32, u32>| Outcome::Penalised;
        let mut ewma = make().with_penalty(edge).with_classifier(classify);
        let idle = assert_sensible(ewma.load().as_nanos());
        let response = ewma.call(1);
        assert!(assert_sensible(ewma.load().as_nanos()) >= idle);
        assert!(response.now_or_never().is_some());
        assert_sensible(ewma.load().as_nanos());

        let ewma = make();
        ewma.set_estimate(edge);
        let estimate = ewma.estimate();
        assert!(estimate >= NANO);
        assert_sensible(ewma.load().as_nanos());
    }
}

#[test]
fn load_penalties() {
    for decay in durations(14) {
        for moment in MOMENTS {
            let timer = at(moment);
            let failing = service_fn(|n: u32| std::future::ready(Err::<u32, u32>(n)));
            let load = PendingRequests::with_timer(failing, CompleteOnResponse, timer.clone());
            let mut load = load.with_decay(decay);
            for _ in 0..3 {
                assert_eq!(send(&mut load), Some(Err(1)));
            }
            let before = load.penalty();
            // All of it counts, unless the end of time is too near to tell.
            let is_whole = (before - 3.0).abs() < 1e-3;
            assert!(is_whole || moment > 1 << 63, "{before} at {moment}");
            let mut last = before;
            for _ in 0..4 {
                timer.advance(decay.min(YEAR));
                let now = load.penalty();
                assert!((0.0..=last).contains(&now), "{now} after {last}");
                last = now;
            }
            for penalty in FLOATS {
                load.set_penalty(penalty);
                let now = load.penalty();
                assert!(now.is_finite() && now >= 0.0, "{now} for {penalty}");
                assert!(penalty > 0.0 || now == 0.0, "{now} for {penalty}");
            }
        }
    }
}

#[test]
fn request_limits() {
    for max in sizes() {
        let valid = max > 0;
        let given = max.to_string();
        let tried = ConcurrencyLimitLayer::try_new(max);
        agree!(valid, given, tried, ConcurrencyLimitLayer::new(max));
        let tried = GlobalConcurrencyLimitLayer::try_new(max);
        agree!(valid, given, tried, GlobalConcurrencyLimitLayer::new(max));
        let tried = ConcurrencyLimit::try_new(echo(), max);
        agree!(valid, given, tried, ConcurrencyLimit::new(echo(), max));
        agree!(
            valid,
            given,
            LocalSemaphore::<1>::try_new(max),
            LocalSemaphore::<1>::new(max)
        );
        let semaphore = agree!(valid, given, Semaphore::try_new(max), Semaphore::new(max));
        let Some(semaphore) = semaphore else { continue };
        // One number is reserved to mark the wait queue.
        let max = max.min(usize::MAX - 1);

        let limit = ConcurrencyLimit::with_semaphore(echo(), semaphore.clone());
        let mut handles: Vec<_> = (0..3).map(|_| limit.clone()).collect();
        for (n, handle) in handles.iter_mut().enumerate() {
            let is_ready = WakeCount::new().poll_ready(handle).is_ready();
            assert_eq!(is_ready, n < max);
        }
        assert_eq!(semaphore.available_permits(), max.saturating_sub(3));
        drop(handles);
        assert_eq!(semaphore.available_permits(), max);
    }
}

/// Drops the tasks given to it.
#[derive(Clone, Copy, Default)]
struct Never;

impl<F> Executor<F> for Never {
    fn execute(&self, _: F) {}
}

#[test]
fn buffer_bounds() {
    type Queue = Buffer<u32, std::future::Ready<Result<u32, u32>>, Never>;
    for bound in sizes() {
        let valid = bound > 0;
        let given = bound.to_string();
        let tried = BufferLayer::<u32, Never>::try_new(bound);
        agree!(valid, given, tried, BufferLayer::<u32, Never>::new(bound));
        let tried = Queue::try_new(echo(), bound);
        agree!(valid, given, tried, Queue::new(echo(), bound));
        if !valid {
            continue;
        }
        let (buffer, worker) = buffer::pair(echo(), bound);
        let mut worker = spawn(worker);
        let mut handles: Vec<_> = (0..3).map(|_| buffer.clone()).collect();
        for (n, handle) in handles.iter_mut().enumerate() {
            let is_ready = WakeCount::new().poll_ready(handle).is_ready();
            assert_eq!(is_ready, n < bound);
        }
        let mut response = spawn(handles[0].call(1));
        assert!(response.poll().is_pending());
        assert!(worker.poll().is_pending());
        assert_eq!(ready(response.poll()).unwrap(), 1);
    }
}

#[test]
fn stream_concurrency() {
    let all = || echo().call_all(futures::stream::iter([1, 2, 3]));
    for most in sizes() {
        let given = most.to_string();
        let tried = all().try_concurrency(most);
        let stream = agree!(most > 0, given, tried, all().concurrency(most));
        let Some(stream) = stream else { continue };
        let answers = futures::StreamExt::collect::<Vec<_>>(stream).now_or_never();
        assert_eq!(answers, Some(vec![Ok(1), Ok(2), Ok(3)]));
    }
}

#[test]
fn fault_probabilities() {
    for chance in FLOATS {
        let valid = (0.0..=1.0).contains(&chance);
        let given = chance.to_string();
        macro_rules! check {
            ($($method:ident $try:ident ($($range:expr)?);)+) => {$({
                let tried = Faults::new(1).$try(chance $(, $range.clone())?);
                agree!(valid, given, tried, Faults::new(1).$method(chance $(, $range.clone())?));
            })+};
        }
        for range in [
            Duration::ZERO..Duration::MAX,
            HOUR..NANO,
            HOUR..Duration::MAX,
        ] {
            check! {
                delays try_delays(range);
                pauses try_pauses(range);
            }
        }
        check! {
            errors try_errors();
            panics try_panics();
            call_panics try_call_panics();
            never_answers try_never_answers();
            never_ready try_never_ready();
            forgets_wakers try_forgets_wakers();
        }
    }
    for moment in MOMENTS {
        for edge in durations(21) {
            for range in [edge..edge, NANO..edge, edge..Duration::MAX] {
                let faults = Faults::with_timer(moment, at(moment));
                let mut service = faults
                    .delays(1.0, range.clone())
                    .pauses(1.0, range)
                    .layer(echo());
                let _ = send(&mut service);
                let _ = service.call(1).now_or_never();
            }
        }
    }
}

#[test]
fn quarantine_failures() {
    let failing = service_fn(|n: u32| std::future::ready(Err::<u32, u32>(n)));
    for limit in numbers(15).map(|n| u32::try_from(n).unwrap_or(u32::MAX)) {
        for moment in MOMENTS {
            let timer = at(moment);
            let layer = QuarantineLayer::with_timer(timer.clone()).consecutive_failures(limit);
            let mut service = layer.layer(failing);
            for n in 1..=4 {
                if send(&mut service).is_none() {
                    break;
                }
                let is_aside = limit > 0 && n >= limit;
                assert_eq!(
                    service.is_set_aside(),
                    is_aside,
                    "{n} of {limit} at {moment}"
                );
            }
            timer.advance(Duration::MAX);
            let _ = send(&mut service);
        }
    }
}

#[test]
fn retry_policies() {
    let fail = |policy: &mut StandardPolicy<_, _, _>| {
        let retry = Policy::<u32, u32, u32>::retry(policy, &mut 1, &mut Err(2));
        retry.is_some()
    };
    for retries in numbers(16).map(|n| u32::try_from(n).unwrap_or(u32::MAX)) {
        let policy = StandardPolicy::with_timer(ManualTimer::new()).max_retries(retries);
        let mut policy = policy.clone();
        Policy::<u32, u32, u32>::clone_request(&mut policy, &1);
        let made = (0..20).take_while(|_| fail(&mut policy)).count();
        assert_eq!(made, retries.min(20) as usize);
    }
    for total in durations(17) {
        for hint in durations(18) {
            for moment in MOMENTS {
                let timer = at(moment);
                let after = move |_: &Result<u32, u32>| Action::RetryAfter(hint);
                let policy = StandardPolicy::with_timer(timer)
                    .max_retry_after(Duration::MAX)
                    .total_time(total);
                let mut policy = policy.classify(after);
                Policy::<u32, u32, u32>::clone_request(&mut policy, &1);
                let retry = Policy::<u32, u32, u32>::retry(&mut policy, &mut 1, &mut Err(2));
                // The backoff is between 0 and 50 ms.
                let longest = hint.saturating_add(Duration::from_millis(50));
                let [waits_until, over] =
                    [hint, total].map(|time| moment.saturating_add(nanos(time)));
                if waits_until > over {
                    assert!(retry.is_none(), "{hint:?} of {total:?} at {moment}");
                } else if longest <= total {
                    assert!(retry.is_some(), "{hint:?} of {total:?} at {moment}");
                }
            }
        }
    }
}

#[test]
fn moments() {
    for a in numbers(19) {
        for b in durations(20) {
            let moment = Instant::from_nanos(a);
            let later = moment.saturating_add(b);
            assert_eq!(later.as_nanos(), a.saturating_add(nanos(b)));
            assert_eq!(
                moment.saturating_sub(b).as_nanos(),
                a.saturating_sub(nanos(b))
            );
            let between = later.saturating_duration_since(moment);
            assert_eq!(nanos(between), later.as_nanos() - a);
            assert_eq!(moment.saturating_duration_since(later), Duration::ZERO);
        }
    }
}
