//! Random tests of the rate limit against its documented bounds.
#![cfg(feature = "std")]
mod common;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use campanile::limit::rate::{Error, Limiter, Rate, RateLimit};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Instant, Service, Timer, service_fn};
use common::WakeCount;

#[derive(Clone)]
struct T(Arc<AtomicU64>);
impl Timer for T {
    type Sleep = std::future::Pending<()>;
    type Alarm = std::future::Pending<()>;
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(SeqCst))
    }
    fn sleep_until(&self, _: Instant) -> Self::Sleep {
        std::future::pending()
    }
    fn alarm_until(&self, _: Instant) -> Self::Alarm {
        std::future::pending()
    }
}

/// The exact generic cell rate algorithm: cells of `per / num`, cell `c` begins at `ceil(c * per / num)`.
struct Gcra {
    num: u128,
    per: u128,
    burst: u128,
    // (cell, offset)
    tat: u128,
}
impl Gcra {
    fn start(&self, cell: u128) -> u128 {
        (cell * self.per).div_ceil(self.num)
    }
    fn forward(&self, t: u128) -> u128 {
        let cell = t * self.num / self.per;
        self.start(cell + 1) + (t - self.start(cell))
    }
    fn back(&self, t: u128, n: u128) -> u128 {
        let cell = t * self.num / self.per;
        let off = t - self.start(cell);
        if n > cell {
            0
        } else {
            self.start(cell - n) + off
        }
    }
    fn due(&self, now: u128) -> Option<u128> {
        let due = self.back(self.tat, self.burst - 1);
        (self.tat > now && due > now).then_some(due)
    }
    fn take(&mut self, now: u128) {
        self.tat = self.forward(self.tat.max(now));
    }
}

fn check_windows(times: &[u64], num: u128, per: u64, burst: u128, what: &str) {
    // At most num + burst - 1 in any window of per, excluding its end.
    let mut lo = 0;
    for hi in 0..times.len() {
        while times[hi] - times[lo] >= per {
            lo += 1;
        }
        let n = (hi - lo + 1) as u128;
        assert!(n < num + burst, "{what}: {n} in a window");
    }
    let mut run = 0u128;
    for i in 0..times.len() {
        run = if i > 0 && times[i] == times[i - 1] {
            run + 1
        } else {
            1
        };
        assert!(run <= burst, "{what}: {run} at once");
    }
}

#[test]
fn limit_matches_the_reference() {
    let mut rng = SplitMix64::new(7);
    for n in 0..6_000u64 {
        let per = rng.next_range(1..1 << (n % 62 + 1));
        let num = 1 + (rng.next_u64() >> (rng.next_range(1..64)));
        let kind = n % 3;
        let mut rate = Rate::new(num, Duration::from_nanos(per));
        let num_c = num.min(per);
        let mut burst = num;
        let mut eff = num_c;
        if kind == 1 {
            burst = rng.next_u64() >> rng.next_range(1..64);
            rate = rate.burst(burst);
            burst = burst.max(1);
        } else if kind == 2 {
            burst = rng.next_u64() >> rng.next_range(1..64);
            rate = rate.strict(burst);
            burst = burst.min(num_c).max(1);
            eff = num_c - (burst - 1);
        }
        if (per as u128) * (burst as u128) / eff as u128 >= 1 << 62 {
            continue;
        }
        let base = rng.next_range(per.max(1)..(1 << 62) + per);
        let clock = T(Arc::new(AtomicU64::new(base)));
        let limiter = Arc::new(Limiter::new(rate));
        let mut s = RateLimit::with_limiter(
            service_fn(async |()| Ok::<_, ()>(())),
            limiter,
            clock.clone(),
        )
        .reject();
        let mut r = Gcra {
            num: eff as u128,
            per: per as u128,
            burst: burst as u128,
            tat: 0,
        };
        let mut times = Vec::new();
        let what = format!("{num}/{per} burst {burst} kind {kind}");
        for _ in 0..150 {
            let now = clock.0.load(SeqCst);
            assert!(matches!(
                WakeCount::new().poll_ready(&mut s),
                Poll::Ready(Ok(()))
            ));
            let got = futures::executor::block_on(s.call(()));
            match (got, r.due(now as u128)) {
                (Ok(()), None) => {
                    r.take(now as u128);
                    times.push(now);
                }
                (Err(Error::Limited(l)), Some(due)) => {
                    let after = l.retry_after().as_nanos();
                    let want = due.min(u64::MAX as u128) - now as u128;
                    assert_eq!(after, want, "{what}");
                    let next = match rng.next_range(0..3) {
                        0 => now.saturating_add(after as u64),
                        1 => now.saturating_add((after as u64).saturating_sub(1)),
                        _ => now.saturating_add(rng.next_range(0..per.max(2))),
                    };
                    if next >= 1 << 63 {
                        break;
                    }
                    clock.0.store(next, SeqCst);
                }
                (got, due) => panic!("{what}: {got:?} {due:?} at {now}"),
            }
            if rng.next_range(0..8) == 0 {
                let now = clock.0.load(SeqCst);
                let next = now + rng.next_range(0..per.saturating_mul(2).clamp(2, 1 << 40));
                if next >= 1 << 63 {
                    break;
                }
                clock.0.store(next, SeqCst);
            }
        }
        if kind == 2 {
            check_windows(&times, eff as u128, per, burst as u128, &what);
            check_windows(&times, num_c as u128, per, u128::MAX >> 2, &what);
        } else {
            check_windows(&times, eff as u128, per, burst as u128, &what);
        }
    }
}

/// Handles take and return tokens; the clock may go back a little.
#[test]
fn returned_tokens_break_no_bound() {
    let mut rng = SplitMix64::new(11);
    for n in 0..20_000u64 {
        let per = rng.next_range(1..60);
        let num = rng.next_range(1..12);
        let fixed = n % 4 == 3;
        let mut rate = Rate::new(num, Duration::from_nanos(per));
        let num = num.min(per);
        let mut burst = rng.next_range(1..8);
        rate = rate.burst(burst);
        if fixed {
            rate = rate.fixed_window();
            burst = 1;
        }
        let base = 1000;
        let back = n % 5 == 4;
        let clock = T(Arc::new(AtomicU64::new(base)));
        let limiter = Arc::new(Limiter::new(rate));
        let inner = service_fn(async |()| Ok::<_, ()>(()));
        let first = RateLimit::with_limiter(inner, limiter, clock.clone()).reject();
        let mut held: Vec<(u64, _)> = Vec::new();
        let mut times = Vec::new();
        let what = format!("#{n} {num}/{per} burst {burst} fixed {fixed} back {back}");
        for _ in 0..80 {
            let now = clock.0.load(SeqCst);
            match rng.next_range(0..6) {
                0 | 1 => {
                    let mut s = first.clone();
                    let _ = WakeCount::new().poll_ready(&mut s);
                    let has = format!("{s:?}").contains("is_ready: true");
                    if has {
                        held.push((now, s));
                    }
                }
                2 | 3 if !held.is_empty() => {
                    let at = rng.next_range(0..held.len() as u64) as usize;
                    let (at, mut s) = held.swap_remove(at);
                    futures::executor::block_on(s.call(())).unwrap();
                    times.push(at);
                }
                4 if !held.is_empty() => {
                    let at = rng.next_range(0..held.len() as u64) as usize;
                    drop(held.swap_remove(at));
                }
                _ => {
                    let step = rng.next_range(0..per);
                    if back && rng.next_range(0..3) == 0 {
                        clock.0.store(now.saturating_sub(step).max(base), SeqCst);
                    } else {
                        clock.0.store(now + step, SeqCst);
                    }
                }
            }
        }
        for (at, mut s) in held {
            futures::executor::block_on(s.call(())).unwrap();
            times.push(at);
        }
        if back {
            continue;
        }
        times.sort_unstable();
        if fixed {
            let starts = times.iter().min().copied().unwrap_or(base);
            // The origin is unknown, as its token may have been returned, so some origin must fit.
            let fits = (base..=starts).any(|origin| {
                let mut counts = std::collections::HashMap::new();
                times.iter().all(|t| {
                    let c = counts.entry((t - origin) / per).or_insert(0u64);
                    *c += 1;
                    *c <= num
                })
            });
            assert!(fits, "{what}: {times:?}");
        } else {
            check_windows(&times, num as u128, per, burst as u128, &what);
        }
    }
}

#[test]
fn fixed_windows_keep_their_bound() {
    let mut rng = SplitMix64::new(13);
    for n in 0..5_000u64 {
        let per = rng.next_range(1..1 << (n % 62 + 1));
        let num = (1 + (rng.next_u64() >> rng.next_range(54..64))).min(per);
        let rate = Rate::new(num, Duration::from_nanos(per)).fixed_window();
        let mut now = if n % 9 == 0 {
            0
        } else {
            rng.next_range(0..1 << 62)
        };
        let clock = T(Arc::new(AtomicU64::new(now)));
        let mut s = RateLimit::with_limiter(
            service_fn(async |()| Ok::<_, ()>(())),
            Arc::new(Limiter::new(rate)),
            clock.clone(),
        )
        .reject();
        let origin = now.max(1);
        let (mut window, mut count) = (0, 0);
        for _ in 0..200 {
            clock.0.store(now, SeqCst);
            let this = now.saturating_sub(origin) / per;
            if this != window {
                (window, count) = (this, 0);
            }
            let _ = WakeCount::new().poll_ready(&mut s);
            let got = futures::executor::block_on(s.call(()));
            if count < num {
                assert!(got.is_ok(), "{num}/{per} at {now} from {origin}: {got:?}");
                count += 1;
            } else {
                let Err(Error::Limited(l)) = got else {
                    panic!("{num}/{per} {got:?}")
                };
                let end = origin + (window + 1) * per;
                assert_eq!(l.retry_after().as_nanos() as u64, end - now);
                now = match rng.next_range(0..3) {
                    0 => end,
                    1 => end - 1,
                    _ => now,
                };
            }
            if rng.next_range(0..4) == 0 {
                now += rng.next_range(0..per.saturating_mul(2).clamp(2, 1 << 50));
            }
            if now >= 1 << 63 {
                break;
            }
        }
    }
}

/// Returning a token late does not return another handle's token.
#[test]
fn lookalike_token_is_not_returned_twice() {
    let clock = T(Arc::new(AtomicU64::new(1_000)));
    let limiter = Arc::new(Limiter::new(
        Rate::new(1, Duration::from_nanos(27)).burst(2),
    ));
    let inner = service_fn(async |()| Ok::<_, ()>(()));
    let fresh = RateLimit::with_limiter(inner, limiter, clock.clone()).reject();
    let ready = || {
        let mut s = fresh.clone();
        let _ = WakeCount::new().poll_ready(&mut s);
        s
    };
    let passes = |now: u64| {
        clock.0.store(now, SeqCst);
        futures::executor::block_on(ready().call(())).is_ok()
    };
    let (a, b) = (ready(), ready());
    drop(a);
    assert!(passes(1_026));
    drop(b);
    // At most `num + burst - 1` in a window of `per`, which is two.
    assert!(passes(1_026));
    assert!(
        !passes(1_027),
        "three within 2 ns, of one in 27 ns and a burst of two"
    );
}

#[test]
fn burst_beyond_all_time_is_restored() {
    let day = 24 * 3_600_000_000_000_u64;
    let start = (1 << 32) * 1_000_000_000_u64;
    let clock = T(Arc::new(AtomicU64::new(start)));
    let rate = Rate::new(1, Duration::from_nanos(day)).burst(1_000_000);
    let limiter = Arc::new(Limiter::new(rate));
    let inner = service_fn(async |()| Ok::<_, ()>(()));
    let mut service = RateLimit::with_limiter(inner, limiter, clock.clone()).reject();
    let mut passed = 0;
    let refused = loop {
        match futures::executor::block_on(service.call(())) {
            Ok(()) => passed += 1,
            Err(refused) => break refused,
        }
    };
    clock.0.fetch_add(2 * day, SeqCst);
    let again = futures::executor::block_on(service.call(()));
    assert!(
        again.is_ok(),
        "{passed} passed, then {refused:?}, and two days later {again:?}"
    );
}
