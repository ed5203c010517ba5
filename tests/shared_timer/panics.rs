//! A panic of a waker or of the timer costs no other wait its wake-up.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use campanile::runtime::SharedSleep;
use campanile::{Instant, Timer};

use crate::common::{ManualSleep, ManualTimer, Task, WakeCount, spawn};
use crate::{MS, Shared, SharedTimer, shared, waiting};

/// A waker that panics, silently.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        // The panic itself panics when it is dropped.
        resume_unwind(Box::new(Worse));
    }
}

struct Worse;

impl Drop for Worse {
    fn drop(&mut self) {
        resume_unwind(Box::new(()));
    }
}

fn poll_with<T: Timer>(sleep: &mut SharedSleep<T>, waker: impl Wake + Send + Sync + 'static) {
    let waker = Waker::from(Arc::new(waker));
    let mut cx = Context::from_waker(&waker);
    assert!(Pin::new(sleep).poll(&mut cx).is_pending());
}

/// Ten waits with equal deadlines; the wakers of some panic.
fn ten_waits(timer: &Shared, panicking: &[usize]) -> Vec<(bool, Task<Wait>)> {
    (0..10)
        .map(|n| {
            let mut sleep = timer.sleep(10 * MS);
            let panics = panicking.contains(&n);
            if panics {
                poll_with(&mut sleep, Panics);
                return (panics, spawn(sleep));
            }
            let mut sleep = spawn(sleep);
            assert!(sleep.poll().is_pending());
            (panics, sleep)
        })
        .collect()
}

type Wait = SharedSleep<ManualTimer>;

#[test]
fn panicking_wakers_cost_no_wake() {
    for panicking in [&[0][..], &[4], &[9], &[0, 1], &[3, 7], &[0, 1, 2, 3, 4, 5]] {
        let (timer, clock) = shared();
        let ten = ten_waits(&timer, panicking);
        let mut next = waiting(&timer, 20 * MS);
        // The panics do not reach the timer that rings the alarm.
        clock.advance(10 * MS);
        for (panics, sleep) in &ten {
            assert_eq!(sleep.is_woken(), !panics, "{panicking:?}");
        }
        clock.advance(10 * MS);
        assert!(next.is_woken() && next.poll().is_ready());
    }
}

/// The same if the alarm rings late, so that a poll wakes the due waits.
#[test]
fn panicking_wakers_cost_only_the_poller() {
    let late = Late::default();
    let timer = SharedTimer::new(late.clone());
    let mut waits: Vec<_> = (0..10)
        .map(|_| (WakeCount::new(), timer.sleep(10 * MS)))
        .collect();
    let panics = |n| n == 2 || n == 5;
    for (n, (wakes, sleep)) in waits.iter_mut().enumerate() {
        if panics(n) {
            poll_with(sleep, Panics);
        } else {
            assert!(wakes.poll(sleep).is_pending());
        }
    }
    late.0.advance(10 * MS);
    // Its deadline is first, so it sets the alarm.
    let mut first = spawn(timer.sleep_until(late.0.now().saturating_sub(MS)));
    let told = catch_unwind(AssertUnwindSafe(|| first.poll()));
    std::mem::forget(told.unwrap_err());
    for (n, (wakes, _)) in waits.iter().enumerate() {
        assert_eq!(wakes.get(), usize::from(!panics(n)));
    }
    assert!(first.poll().is_ready());
    // The alarm finally rings and is reset.
    let mut next = spawn(timer.sleep(MS));
    assert!(next.poll().is_pending());
    late.ring();
    assert!(!next.is_woken());
    late.0.advance(MS);
    late.ring();
    assert!(next.is_woken() && next.poll().is_ready());
}

/// A timer that rings only on request.
#[derive(Clone, Debug, Default)]
struct Late(ManualTimer, Arc<Mutex<Option<Waker>>>);

impl Late {
    fn ring(&self) {
        let waker = self.1.lock().unwrap().take();
        waker.unwrap().wake();
    }
}

struct LateSleep(ManualSleep, Late);

impl Timer for Late {
    type Sleep = LateSleep;
    type Alarm = LateSleep;

    fn now(&self) -> Instant {
        self.0.now()
    }

    fn sleep_until(&self, deadline: Instant) -> LateSleep {
        LateSleep(self.0.sleep_until(deadline), self.clone())
    }

    fn alarm_until(&self, deadline: Instant) -> LateSleep {
        self.sleep_until(deadline)
    }
}

impl Future for LateSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let replaced = (self.1.1.lock().unwrap()).replace(cx.waker().clone());
        drop(replaced);
        Pin::new(&mut self.0).poll(&mut Context::from_waker(Waker::noop()))
    }
}

/// A waker that drops waits of the same timer and starts others.
struct Gardener {
    timer: Shared,
    drops: Mutex<Vec<Task<Wait>>>,
    begins: Mutex<Vec<Task<Wait>>>,
}

impl Wake for Gardener {
    fn wake(self: Arc<Self>) {
        drop(std::mem::take(&mut *self.drops.lock().unwrap()));
        // A wait that is due, one earlier than all others, and a later one.
        assert!(
            spawn(self.timer.sleep_until(self.timer.now()))
                .poll()
                .is_ready()
        );
        let new = [2, 50].map(|ms| waiting(&self.timer, ms * MS));
        self.begins.lock().unwrap().extend(new);
    }
}

#[test]
fn waker_may_drop_and_start_waits() {
    let (timer, clock) = shared();
    let gardener = Arc::new(Gardener {
        timer: timer.clone(),
        drops: Mutex::default(),
        begins: Mutex::default(),
    });
    let mut sleeps: Vec<_> = (0..3).map(|_| timer.sleep(10 * MS)).collect();
    let before = waiting(&timer, 10 * MS);
    for sleep in &mut sleeps {
        let waker = Waker::from(gardener.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(sleep).poll(&mut cx).is_pending());
    }
    let after = waiting(&timer, 10 * MS);
    let dropped = [10, 10, 11, 90].map(|ms| waiting(&timer, ms * MS));
    gardener.drops.lock().unwrap().extend(dropped);
    clock.advance(10 * MS);
    assert!(before.is_woken() && after.is_woken());
    let begun = std::mem::take(&mut *gardener.begins.lock().unwrap());
    assert_eq!((begun.len(), clock.armed()), (6, 1));
    clock.advance(2 * MS);
    assert_eq!(begun.iter().filter(|sleep| sleep.is_woken()).count(), 3);
    clock.advance(48 * MS);
    assert!(begun.iter().all(Task::is_woken));
    assert_eq!(clock.armed(), 0);
}

/// A timer that panics at the `n`th operation from now on.
#[derive(Clone, Default)]
struct Breaks(ManualTimer, Arc<AtomicU32>);

struct BreaksSleep(ManualSleep, Breaks);

impl Breaks {
    fn asked(&self) {
        let left = self.1.load(Relaxed);
        self.1.store(left.saturating_sub(1), Relaxed);
        if left == 1 {
            resume_unwind(Box::new(Worse));
        }
    }
}

impl Timer for Breaks {
    type Sleep = BreaksSleep;
    type Alarm = BreaksSleep;

    fn now(&self) -> Instant {
        self.asked();
        self.0.now()
    }

    fn sleep_until(&self, deadline: Instant) -> BreaksSleep {
        self.asked();
        BreaksSleep(self.0.sleep_until(deadline), self.clone())
    }

    fn alarm_until(&self, deadline: Instant) -> BreaksSleep {
        self.sleep_until(deadline)
    }
}

impl Future for BreaksSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.1.asked();
        Pin::new(&mut self.0).poll(cx)
    }
}

/// The next wait that is polled sets the alarm.
#[test]
fn panic_on_ring_wakes_all() {
    // The operations are reading the clock, `reset` and a poll.
    for nth in 1..=3 {
        let breaks = Breaks::default();
        let timer = SharedTimer::new(breaks.clone());
        let mut all = [10, 10, 20, 30].map(|ms| spawn(timer.sleep(ms * MS)));
        assert!(all.iter_mut().all(|sleep| sleep.poll().is_pending()));
        breaks.1.store(nth, Relaxed);
        breaks.0.advance(10 * MS);
        assert_eq!(breaks.1.load(Relaxed), 0);
        assert!(all.iter().all(Task::is_woken));
        assert_eq!(breaks.0.armed(), 0);
        assert!(all[3].poll().is_pending());
        assert_eq!(breaks.0.armed(), 1);
        breaks.0.advance(20 * MS);
        assert!(all[3].is_woken() && all[3].poll().is_ready());
    }
}

/// The poll that sets the alarm panics, and the other waits continue.
#[test]
fn panic_in_a_poll_wakes_all() {
    for nth in 1..=3 {
        let breaks = Breaks::default();
        let timer = SharedTimer::new(breaks.clone());
        let now = breaks.0.now();
        let until = |ms: u32| spawn(timer.sleep_until(now.saturating_add(ms * MS)));
        let (mut late, mut first) = ([20, 30].map(until), until(10));
        assert!(late.iter_mut().all(|sleep| sleep.poll().is_pending()));
        breaks.1.store(nth, Relaxed);
        let told = catch_unwind(AssertUnwindSafe(|| first.poll()));
        std::mem::forget(told.unwrap_err());
        assert!(late.iter().all(Task::is_woken));
        assert!(late[1].poll().is_pending());
        assert_eq!(breaks.0.next_deadline(), Some(now.saturating_add(10 * MS)));
        drop(first);
        breaks.0.advance(30 * MS);
        assert!(late[1].is_woken() && late[1].poll().is_ready());
    }
}

/// When the alarm's runtime is shut down, waits on other threads are woken.
#[cfg(feature = "tokio")]
#[test]
fn runtime_shutdown_wakes_all() {
    use campanile::tokio::Tokio;
    let timer = SharedTimer::new(Tokio);
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap()
    };
    // Far away, because real time passes between the two runtimes.
    let hour = 3_600_000 * MS;
    let mut waits = [1, 2, 3].map(|n| spawn(timer.sleep(n * hour)));
    let first = runtime();
    first.block_on(async {
        assert!(waits.iter_mut().all(|wait| wait.poll().is_pending()));
    });
    drop(first);
    assert!(waits.iter().all(Task::is_woken));
    runtime().block_on(async {
        assert!(waits[1].poll().is_pending());
        tokio::time::sleep(3 * hour).await;
        assert!(waits[1].is_woken() && waits[1].poll().is_ready());
    });
}
