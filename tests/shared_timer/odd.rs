//! With an inner timer that panics and wakes at random, all waits still end in time.
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use campanile::runtime::{SharedSleep, SharedTimer};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Instant, Timer};

use crate::common::{ManualSleep, ManualTimer, Task, spawn};

const MS: Duration = Duration::from_millis(1);

#[derive(Clone)]
struct Odd(ManualTimer, Arc<AtomicU64>);
struct OddSleep(ManualSleep, Arc<AtomicU64>);
fn odd(c: &AtomicU64, n: u64) -> bool {
    let mut r = SplitMix64::new(c.load(Relaxed));
    c.store(r.next_u64(), Relaxed);
    r.next_range(0..n) == 0
}
impl Timer for Odd {
    type Sleep = OddSleep;
    type Alarm = OddSleep;
    fn now(&self) -> Instant {
        if odd(&self.1, 4000) {
            std::panic::resume_unwind(Box::new(()))
        }
        self.0.now()
    }
    fn sleep_until(&self, d: Instant) -> OddSleep {
        if odd(&self.1, 40) {
            std::panic::resume_unwind(Box::new(()))
        }
        OddSleep(self.0.sleep_until(d), self.1.clone())
    }
    fn alarm_until(&self, d: Instant) -> OddSleep {
        self.sleep_until(d)
    }
}
impl Future for OddSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if odd(&self.1, 8) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if odd(&self.1, 60) {
            std::panic::resume_unwind(Box::new(()))
        }
        Pin::new(&mut self.0).poll(cx)
    }
}

#[test]
fn odd_inner_timer_makes_no_wait_late() {
    let catch = |f: &mut dyn FnMut() -> bool| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).ok()
    };
    let mut panics = 0;
    for seed in 0..4000u64 {
        let clock = ManualTimer::new();
        let timer = SharedTimer::new(Odd(clock.clone(), Arc::new(AtomicU64::new(seed))));
        let mut rng = SplitMix64::new(seed ^ 0xabcdef);
        let mut sleeps: Vec<(Instant, Task<SharedSleep<Odd>>)> = vec![];
        for step in 0..80 {
            match rng.next_range(0..8) {
                0..=2 => {
                    let deadline = clock
                        .now()
                        .saturating_add(MS * rng.next_range(0..30) as u32);
                    let mut s = spawn(timer.sleep_until(deadline));
                    match catch(&mut || s.poll().is_ready()) {
                        Some(true) => assert!(clock.now() >= deadline),
                        Some(false) => sleeps.push((deadline, s)),
                        None => {
                            panics += 1;
                        }
                    }
                }
                3 if !sleeps.is_empty() => {
                    let at = rng.next_range(0..sleeps.len() as u64) as usize;
                    drop(sleeps.swap_remove(at));
                }
                _ => clock.advance(MS * rng.next_range(0..10) as u32),
            }
            // Woken waits are polled; a wait whose poll panics is dropped.
            let mut rounds = 0;
            while sleeps.iter().any(|(_, s)| s.is_woken()) {
                rounds += 1;
                assert!(rounds < 500);
                sleeps.retain_mut(|(deadline, s)| {
                    if !s.is_woken() {
                        return true;
                    }
                    match catch(&mut || s.poll().is_ready()) {
                        Some(true) => {
                            assert!(clock.now() >= *deadline);
                            false
                        }
                        Some(false) => true,
                        None => {
                            panics += 1;
                            false
                        }
                    }
                });
            }
            let first = sleeps.iter().map(|(d, _)| *d).min();
            if let Some(first) = first {
                assert!(first > clock.now(), "seed {seed} step {step}: late");
                let next = clock.next_deadline();
                assert!(
                    next.is_some_and(|next| next <= first),
                    "seed {seed} step {step}: {next:?} {first:?}"
                );
            }
        }
    }
    assert!(panics > 100, "{panics}");
}
