//! `SharedTimer`: one alarm for all waits, which rings for each wait regardless of the others.
//!
//! The scenarios of all middleware also run on it; see `OneAlarm` in `common`.
#![cfg(feature = "std")]

#[path = "../common/mod.rs"]
mod common;
mod odd;
mod panics;
mod stuck;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use campanile::runtime::{SharedSleep, SharedTimer};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Instant, Timer};
use common::{Host, ManualSleep, ManualTimer, On, Task, WakeCount, on_every_runtime, spawn, until};

const MS: Duration = Duration::from_millis(1);

type Shared = SharedTimer<ManualTimer>;

fn shared() -> (Shared, ManualTimer) {
    let timer = ManualTimer::new();
    (SharedTimer::new(timer.clone()), timer)
}

/// A wait that was polled once.
fn waiting(timer: &Shared, duration: Duration) -> Task<SharedSleep<ManualTimer>> {
    let mut sleep = spawn(timer.sleep(duration));
    assert!(sleep.poll().is_pending());
    sleep
}

#[test]
fn thousand_waits_share_one_alarm() {
    let (timer, clock) = shared();
    let mut rng = SplitMix64::new(1);
    let start = clock.now();
    let mut sleeps: Vec<_> = (0..1_000)
        .map(|_| {
            let after = rng.next_range(1..500) as u32 * MS;
            (start.saturating_add(after), waiting(&timer, after))
        })
        .collect();
    assert_eq!(clock.armed(), 1);
    while clock.advance_to_next() {
        // Poll woken tasks until none is left.
        while sleeps.iter().any(|(_, sleep)| sleep.is_woken()) {
            sleeps.retain_mut(|(deadline, sleep)| {
                if !sleep.is_woken() {
                    return true;
                }
                let is_over = sleep.poll().is_ready();
                assert_eq!(is_over, clock.now() >= *deadline);
                !is_over
            });
        }
        assert!(sleeps.iter().all(|(deadline, _)| clock.now() < *deadline));
        assert_eq!(clock.armed(), usize::from(!sleeps.is_empty()));
    }
    assert!(sleeps.is_empty());
}

#[test]
fn endless_wait_has_no_alarm() {
    let (timer, clock) = shared();
    let mut sleep = spawn(timer.sleep_until(Instant::MAX));
    assert!(sleep.poll().is_pending());
    assert_eq!((clock.armed(), clock.made()), (0, 0));
}

#[test]
fn dropped_waits_do_not_reset_the_alarm() {
    let (timer, clock) = shared();
    for _ in 0..1_000 {
        let first = waiting(&timer, 100 * MS);
        let _second = waiting(&timer, 200 * MS);
        drop(first);
    }
    assert_eq!((clock.armed(), clock.made()), (1, 1));
    assert_eq!(
        clock.next_deadline(),
        Some(clock.now().saturating_add(100 * MS))
    );

    // The alarm rings without effect, and the next wait sets it again.
    clock.advance(100 * MS);
    assert_eq!(clock.armed(), 0);
    let mut sleep = waiting(&timer, 50 * MS);
    assert_eq!((clock.armed(), clock.made()), (1, 2));
    clock.advance(50 * MS);
    assert!(sleep.is_woken());
    assert!(sleep.poll().is_ready());
}

#[test]
fn earlier_deadline_resets_the_alarm() {
    let (timer, clock) = shared();
    let late = waiting(&timer, 100 * MS);
    let mut early = waiting(&timer, 10 * MS);
    assert_eq!(
        clock.next_deadline(),
        Some(clock.now().saturating_add(10 * MS))
    );
    clock.advance(10 * MS);
    assert!(early.is_woken() && early.poll().is_ready());
    assert_eq!(
        clock.next_deadline(),
        Some(clock.now().saturating_add(90 * MS))
    );
    drop(late);
}

#[test]
fn early_ring_resets_the_alarm() {
    let (timer, clock) = shared();
    drop(waiting(&timer, 10 * MS));
    let mut sleeps: Vec<_> = (3..=5).map(|n| waiting(&timer, 10 * n * MS)).collect();
    clock.advance(10 * MS);
    assert!(!sleeps.iter().any(Task::is_woken));
    assert_eq!(
        clock.next_deadline(),
        Some(clock.now().saturating_add(20 * MS))
    );
    clock.advance(20 * MS);
    for sleep in &mut sleeps {
        assert!(sleep.is_woken() && sleep.poll().is_ready());
        clock.advance(10 * MS);
    }
    assert_eq!(clock.armed(), 0);
}

#[test]
fn each_wait_is_woken_once() {
    let (timer, clock) = shared();
    let mut waits: Vec<_> = [40, 10, 30, 10, 20]
        .map(|ms| (ms * MS, timer.sleep(ms * MS), WakeCount::new()))
        .into();
    for (_, sleep, wakes) in &mut waits {
        assert!(wakes.poll(sleep).is_pending());
    }
    for now in [10, 20, 30, 40, 50].map(|ms| ms * MS) {
        clock.advance(10 * MS);
        for (deadline, _, wakes) in &waits {
            assert_eq!(wakes.get(), usize::from(*deadline <= now));
        }
    }
}

#[test]
fn past_deadline_is_ready() {
    let (timer, clock) = shared();
    let late = waiting(&timer, 100 * MS);
    let (wakes, other) = (WakeCount::new(), waiting(&timer, 10 * MS));
    clock.advance(5 * MS);
    let mut sleep = timer.sleep_until(clock.now().saturating_sub(MS));
    assert!(wakes.poll(&mut sleep).is_ready());
    assert_eq!(wakes.get(), 0);
    assert!(!late.is_woken() && !other.is_woken());
    clock.advance(5 * MS);
    assert!(other.is_woken() && !late.is_woken());
}

#[test]
fn alarm_is_created_once() {
    let (timer, clock) = shared();
    let mut all: Vec<_> = (1..=9).map(|n| spawn(timer.sleep(n * MS))).collect();
    assert!(all.iter_mut().all(|sleep| sleep.poll().is_pending()));
    clock.advance(3 * MS);
    clock.advance(5 * MS);
    let [_, sleeps, alarms, resets] = clock.asked();
    assert_eq!((sleeps, alarms, resets), (0, 1, 2));
}

#[test]
fn leftover_alarms_delay_no_other() {
    let (timer, clock) = shared();
    let wakes = WakeCount::new();
    let in_10_ms = clock.now().saturating_add(10 * MS);
    let mut alarms =
        [10 * MS, 30 * MS].map(|after| timer.alarm_until(clock.now().saturating_add(after)));
    for alarm in &mut alarms {
        assert!(wakes.poll(alarm).is_pending());
    }
    let mut sleep = waiting(&timer, 20 * MS);
    clock.advance(10 * MS);
    assert_eq!(wakes.get(), 1);
    clock.advance(10 * MS);
    assert!(sleep.is_woken() && sleep.poll().is_ready());
    timer.reset(&mut alarms[1], in_10_ms);
    assert!(wakes.poll(&mut alarms[1]).is_ready());
}

#[test]
fn last_clone_drops_the_alarm() {
    let (timer, clock) = shared();
    let clone = timer.clone();
    let sleep = waiting(&timer, 10 * MS);
    drop((timer, sleep));
    assert_eq!(clock.armed(), 1);
    let text = format!("{clone:?} {:?}", clone.sleep(MS));
    assert!(
        text.contains("SharedTimer") && text.contains("deadline"),
        "{text}"
    );
    drop(clone);
    assert_eq!(clock.armed(), 0);
}

/// A timer that never wakes a task, and counts how often its clock is read.
#[derive(Clone, Debug, Default)]
struct Deaf(ManualTimer, Arc<AtomicU32>);

impl Timer for Deaf {
    type Sleep = DeafSleep;
    type Alarm = DeafSleep;

    fn now(&self) -> Instant {
        self.1.fetch_add(1, Relaxed);
        self.0.now()
    }

    fn sleep_until(&self, deadline: Instant) -> DeafSleep {
        DeafSleep(self.0.sleep_until(deadline))
    }

    fn alarm_until(&self, deadline: Instant) -> DeafSleep {
        DeafSleep(self.0.alarm_until(deadline))
    }
}

struct DeafSleep(#[allow(dead_code, reason = "it is held")] ManualSleep);

impl Future for DeafSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

#[test]
fn clock_decides_without_an_alarm() {
    let deaf = Deaf::default();
    let timer = SharedTimer::new(deaf.clone());
    let reads = || deaf.1.swap(0, Relaxed);
    let start = timer.now();
    reads();
    let mut first = spawn(timer.sleep_until(start.saturating_add(10 * MS)));
    assert!(first.poll().is_pending());
    assert_eq!(reads(), 1, "by who sets the alarm");
    let mut second = spawn(timer.sleep_until(start.saturating_add(20 * MS)));
    assert!(second.poll().is_pending());
    assert_eq!(reads(), 0, "not by who only waits");
    assert!(second.poll().is_pending());
    assert_eq!(reads(), 1, "but when it is polled again");
    deaf.0.advance(20 * MS);
    assert!(second.poll().is_ready());
    assert!(first.poll().is_ready());
}

/// A waker that starts and drops a wait of the same timer when it is woken and when it is dropped.
struct Meddler(Shared);

impl Meddler {
    fn meddle(&self) {
        assert!(WakeCount::new().poll(&mut self.0.sleep(MS)).is_pending());
    }
}

impl Wake for Meddler {
    fn wake(self: Arc<Self>) {
        self.meddle();
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.meddle();
    }
}

#[test]
fn wakers_run_outside_the_lock() {
    let (timer, clock) = shared();
    let meddler = || Waker::from(Arc::new(Meddler(timer.clone())));
    for act in 0..4 {
        let mut sleeps: Vec<_> = (0..40).map(|_| timer.sleep(10 * MS)).collect();
        for sleep in &mut sleeps {
            let waker = meddler();
            let mut cx = Context::from_waker(&waker);
            assert!(Pin::new(sleep).poll(&mut cx).is_pending());
        }
        match act {
            // Each wait gets another waker, and the previous one is dropped.
            0 => sleeps.iter_mut().for_each(|sleep| {
                assert!(WakeCount::new().poll(sleep).is_pending());
            }),
            1 => drop(sleeps),
            // The alarm rings during the polls.
            2 => {
                clock.advance(10 * MS);
                assert!(WakeCount::new().poll(&mut sleeps[7]).is_ready());
            }
            _ => {
                clock.advance(10 * MS);
                let waker = meddler();
                let mut cx = Context::from_waker(&waker);
                assert!(Pin::new(&mut sleeps[7]).poll(&mut cx).is_ready());
            }
        }
    }
}

#[test]
fn shared_timer_is_send_if_its_alarm_is() {
    fn goes<T: Send + Sync>(_: &T) {}
    let (timer, _) = shared();
    goes(&timer);
    goes(&timer.sleep(MS));
    #[cfg(feature = "tokio")]
    goes(&SharedTimer::new(campanile::tokio::Tokio));
    #[cfg(feature = "smol")]
    goes(&SharedTimer::new(campanile::smol::Smol));
    #[cfg(feature = "futures-timer")]
    goes(&SharedTimer::new(campanile::futures_timer::FuturesTimer));
    #[cfg(feature = "testing")]
    goes(&SharedTimer::new(campanile::testing::Sim));
}

#[cfg(feature = "tokio")]
mod on_tokio {
    use std::future::poll_fn;
    use std::pin::pin;

    use super::*;
    use campanile::tokio::Tokio;

    #[test]
    fn alarm_recovers_from_a_missing_context() {
        let timer = SharedTimer::new(Tokio);
        let mut lost = spawn(timer.sleep(60 * 60_000 * MS));
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lost.poll()));
        assert!(polled.is_err());
        drop(lost);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(timer.sleep(10 * MS));
        runtime.block_on(async { futures::join!(timer.sleep(10 * MS), timer.sleep(MS)) });
    }

    #[test]
    fn runtimes_may_follow_each_other() {
        let timer = SharedTimer::new(Tokio);
        let hour = 60 * 60_000 * MS;
        for leaves_it_set in [true, false, true, true, false, false] {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_time().start_paused(true).build().unwrap();
            runtime.block_on(timer.sleep(10 * MS));
            if leaves_it_set {
                runtime.block_on(async { assert!(spawn(timer.sleep(hour)).poll().is_pending()) });
            }
        }
    }

    /// Spends the task's budget.
    fn spend(cx: &mut Context<'_>) {
        while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
    }

    #[tokio::test(start_paused = true)]
    async fn exhausted_budget_delays_no_other() {
        let timer = SharedTimer::new(Tokio);
        // Its deadline is first, so it polls the alarm, each time without budget.
        let start = timer.now();
        let greedy = tokio::spawn({
            let mut sleep = timer.sleep(50 * MS);
            poll_fn(move |cx| {
                spend(cx);
                cx.waker().wake_by_ref();
                let mut step = pin!(tokio::time::advance(MS));
                let _ = step.as_mut().poll(cx);
                Pin::new(&mut sleep).poll(cx)
            })
        });
        tokio::task::yield_now().await;
        let others: Vec<_> = (60..70)
            .map(|n| {
                let sleep = timer.sleep_until(start.saturating_add(n * MS));
                tokio::spawn(sleep)
            })
            .collect();
        greedy.await.unwrap();
        assert!(timer.now() <= start.saturating_add(52 * MS));
        for (n, other) in others.into_iter().enumerate() {
            other.await.unwrap();
            let late = timer.now().saturating_duration_since(start) - (60 + n as u32) * MS;
            assert!(late <= MS, "{late:?}");
        }
    }
}

/// One wait is never polled again, and ten others end in time.
async fn stuck_wait_delays_no_other<H: Host>(rt: On<H>) {
    let timer = SharedTimer::new(rt.time().clone());
    let mut stuck: Vec<_> = [1, 5, 100].map(|n| waiting_on(&timer, n * MS)).into();
    let mut others: Vec<_> = (1..=10).map(|n| waiting_on(&timer, n * MS)).collect();
    for n in 1..=10 {
        rt.advance(MS).await;
        assert!(others[n..].iter().all(|sleep| !sleep.is_woken()), "early");
        // This hangs if the wake-up is lost.
        if n > 1 {
            // tokio rounds up to the millisecond.
            until(|| others[n - 2].is_woken()).await;
        }
    }
    rt.advance(MS).await;
    until(|| others[9].is_woken()).await;
    assert!(others.iter_mut().all(|sleep| sleep.poll().is_ready()));
    let last = stuck.pop().unwrap();
    assert!(!last.is_woken());
    assert!(stuck.iter().all(Task::is_woken));
}

async fn waits_end_in_time_as_others_leave<H: Host>(rt: On<H>) {
    let timer = SharedTimer::new(rt.time().clone());
    let mut rng = SplitMix64::new(3);
    let start = timer.now();
    let mut sleeps = Vec::new();
    let mut late = Duration::ZERO;
    for _ in 1..300 {
        for _ in 0..rng.next_range(0..4) {
            let after = MS * rng.next_range(1..40) as u32;
            sleeps.push((timer.now().saturating_add(after), waiting_on(&timer, after)));
        }
        // Some waits are dropped; some are polled without a wake-up.
        sleeps.retain(|_| rng.next_range(0..16) > 0);
        for (deadline, sleep) in &mut sleeps {
            if rng.next_range(0..16) == 0 && timer.now() < *deadline {
                assert!(sleep.poll().is_pending());
            }
        }
        rt.advance(MS).await;
        // tokio rounds up to the millisecond.
        let latest = timer.now().saturating_sub(MS);
        // This hangs if a wake-up is lost.
        until(|| {
            sleeps.retain_mut(|(deadline, sleep)| {
                if !sleep.is_woken() || sleep.poll().is_pending() {
                    return true;
                }
                assert!(timer.now() >= *deadline, "too early");
                late = late.max(timer.now().saturating_duration_since(*deadline));
                false
            });
            sleeps.iter().all(|(deadline, _)| *deadline > latest)
        })
        .await;
    }
    assert!(timer.now() > start);
    assert!(late <= 2 * MS, "{late:?}");
}

fn waiting_on<T: Timer>(timer: &SharedTimer<T>, duration: Duration) -> Task<SharedSleep<T>> {
    let mut sleep = spawn(timer.sleep(duration));
    assert!(sleep.poll().is_pending());
    sleep
}

async fn waiting_task_is_woken<H: Host>(rt: On<H>) {
    let timer = SharedTimer::new(rt.time().clone());
    let (told, heard) = futures::channel::mpsc::unbounded();
    for n in 1..=20_u32 {
        let (sleep, told) = (timer.sleep(n * MS), told.clone());
        campanile::Executor::execute(&rt, async move {
            // Every second wait is dropped before its deadline.
            if n % 2 == 0 {
                sleep.await;
            } else {
                drop(futures::future::select(sleep, futures::future::ready(())).await);
            }
            told.unbounded_send(n).unwrap();
        });
    }
    drop(told);
    let mut all: Vec<u32> = Vec::new();
    let mut heard = std::pin::pin!(heard);
    while all.len() < 20 {
        while let Ok(n) = heard.as_mut().get_mut().try_recv() {
            all.push(n);
        }
        rt.advance(MS).await;
    }
    all.sort_unstable();
    assert_eq!(all, (1..=20).collect::<Vec<_>>());
}

on_every_runtime! {
    stuck_wait_delays_no_other,
    waits_end_in_time_as_others_leave,
    waiting_task_is_woken,
}
