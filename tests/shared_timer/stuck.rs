//! Waits that are not polled delay no other wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

use crate::common::{ManualSleep, ManualTimer, Task, WakeCount, mock, spawn};
use crate::{MS, Shared, shared, waiting};
use campanile::runtime::SharedTimer;
use campanile::timeout::Deadline;
use campanile::{Instant, Service, Timer};

/// No woken task is polled, and each of the others is still woken.
#[test]
fn stuck_waits_delay_no_other() {
    let (timer, clock) = shared();
    let stuck: Vec<_> = [5, 10, 20, 200].map(|ms| waiting(&timer, ms * MS)).into();
    let mut others: Vec<_> = (1..=10).map(|n| waiting(&timer, 10 * n * MS)).collect();
    for other in &mut others {
        assert!(!other.is_woken());
        clock.advance(10 * MS);
        assert!(other.is_woken(), "late: {:?}", clock.next_deadline());
        assert!(other.poll().is_ready());
    }
    assert_eq!(stuck.iter().filter(|sleep| sleep.is_woken()).count(), 3);
    assert_eq!(clock.armed(), 1);
}

/// All waits are stuck, and none is polled until the last deadline.
#[test]
fn alarm_is_reset_without_polls() {
    let (timer, clock) = shared();
    let stuck = [10, 20, 30].map(|ms| waiting(&timer, ms * MS));
    for n in 1..=3 {
        clock.advance(10 * MS);
        assert_eq!(stuck.iter().filter(|sleep| sleep.is_woken()).count(), n);
        assert_eq!(clock.armed(), usize::from(n < 3));
    }
}

/// The library's services keep their alarms after a wait.
#[test]
fn idle_deadlines_lose_no_timeout() {
    let (timer, clock) = shared();
    let mut hung = waiting(&timer, 100 * MS);
    let mut idle = Vec::new();
    for _ in 0..2 {
        let (service, handle) = mock::<u32, u32>();
        handle.set_ready(false);
        let mut service = Deadline::with_timer(service, 30 * MS, timer.clone());
        let wakes = WakeCount::new();
        assert!(wakes.poll_ready::<_, u32>(&mut service).is_pending());
        handle.set_ready(true);
        assert!(wakes.poll_ready::<_, u32>(&mut service).is_ready());
        let future = service.call(1);
        drop(future);
        idle.push((service, handle, wakes));
    }
    clock.advance(30 * MS);
    clock.advance(70 * MS);
    assert!(hung.is_woken(), "armed {}", clock.armed());
    assert!(hung.poll().is_ready());
}

/// On tokio, a task without budget sets the alarm and is not polled again.
#[cfg(feature = "tokio")]
#[tokio::test(start_paused = true)]
async fn task_without_budget_sets_the_alarm() {
    use campanile::tokio::Tokio;
    use std::pin::pin;
    let timer = SharedTimer::new(Tokio);
    let mut stuck = spawn(timer.sleep(100 * MS));
    let other = tokio::spawn(timer.sleep(200 * MS));
    let mut sleep = timer.sleep(50 * MS);
    let mut is_first = true;
    let busy = tokio::spawn(std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut is_first, false) {
            while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
            assert!(Pin::new(&mut sleep).poll(cx).is_pending());
        }
        Poll::<()>::Pending
    }));
    tokio::task::yield_now().await;
    assert!(stuck.poll().is_pending());
    let late = tokio::time::timeout(1000 * MS, other).await;
    assert!(late.is_ok(), "lost");
    assert!(stuck.is_woken());
    busy.abort();
}

/// The same outside tokio's tasks, where no worker polls and tokio cannot defer the alarm.
#[cfg(feature = "tokio")]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn main_future_without_budget_loses_no_wait() {
    use crate::common::WokenBy;
    use campanile::tokio::Tokio;
    use std::pin::pin;
    let clock = WokenBy::new(Tokio);
    let timer = SharedTimer::new(clock.clone());
    let mut sleep = timer.sleep(MS);
    let others: Vec<_> = (2..5).map(|n| tokio::spawn(timer.sleep(n * MS))).collect();
    std::future::poll_fn(|cx| {
        while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
        assert!(Pin::new(&mut sleep).poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    clock.advance(5 * MS);
    for other in others {
        other.await.unwrap();
    }
    sleep.await;
}

/// A waker that panics when it is dropped because another one replaces it.
struct Bomb;
impl Wake for Bomb {
    fn wake(self: Arc<Self>) {}
}
impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("a task's destructor");
        }
    }
}

#[test]
fn waker_panicking_in_drop_stops_no_other() {
    let (timer, clock) = shared();
    let mut sleep = timer.sleep(50 * MS);
    {
        let waker = Waker::from(Arc::new(Bomb));
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut sleep).poll(&mut cx).is_pending());
    }
    let mut other = waiting(&timer, 60 * MS);
    let wakes = WakeCount::new();
    assert!(catch_unwind(AssertUnwindSafe(|| wakes.poll(&mut sleep))).is_err());
    clock.advance(50 * MS);
    assert!(wakes.get() == 1 && !other.is_woken());
    clock.advance(10 * MS);
    assert!(other.is_woken() && other.poll().is_ready());
}

/// A timer whose alarm wakes itself a given number of times without ringing.
#[derive(Clone, Default)]
struct Tired(ManualTimer, Arc<AtomicU32>);
struct TiredSleep(ManualSleep, Arc<AtomicU32>);
impl Timer for Tired {
    type Sleep = TiredSleep;
    type Alarm = TiredSleep;
    fn now(&self) -> Instant {
        self.0.now()
    }
    fn sleep_until(&self, deadline: Instant) -> TiredSleep {
        TiredSleep(self.0.sleep_until(deadline), self.1.clone())
    }
    fn alarm_until(&self, deadline: Instant) -> TiredSleep {
        self.sleep_until(deadline)
    }
}
impl Future for TiredSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let is_tired = |left: u32| left.checked_sub(1);
        if self.1.fetch_update(Relaxed, Relaxed, is_tired).is_ok() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.0).poll(cx)
    }
}

#[test]
fn self_waking_alarm_is_polled_again() {
    for by_alarm in [false, true] {
        let tired = Tired::default();
        let timer = SharedTimer::new(tired.clone());
        let all = [10, 20, 30].map(|ms| (ms, spawn(timer.sleep(ms * MS))));
        let (mut first, mut stuck) = (spawn(timer.sleep(5 * MS)), all);
        assert!(by_alarm || first.poll().is_pending());
        tired.1.store(3, Relaxed);
        for (_, sleep) in &mut stuck {
            assert!(sleep.poll().is_pending());
        }
        if !by_alarm {
            tired.0.advance(5 * MS);
        }
        assert_eq!(tired.1.load(Relaxed), 0);
        tired.0.advance(10 * MS);
        tired.0.advance(10 * MS);
        tired.0.advance(10 * MS);
        assert!(stuck.iter().all(|(_, sleep)| sleep.is_woken()));
    }
}

/// The alarm is not polled forever: all waits are woken, and the first that is polled sets it again.
#[test]
fn endlessly_waking_alarm_wakes_all() {
    for ringing in [false, true] {
        let tired = Tired::default();
        let timer = SharedTimer::new(tired.clone());
        let first = timer.sleep(5 * MS);
        let mut all = [10, 20, 30].map(|ms| spawn(timer.sleep(ms * MS)));
        let mut first = spawn(first);
        assert!(first.poll().is_pending());
        if ringing {
            assert!(all.iter_mut().all(|sleep| sleep.poll().is_pending()));
            tired.1.store(u32::MAX, Relaxed);
            tired.0.advance(5 * MS);
        } else {
            assert!(all[1..].iter_mut().all(|sleep| sleep.poll().is_pending()));
            drop(first);
            // It is first, now that the other is dropped.
            all[0] = spawn(timer.sleep(MS));
            tired.1.store(u32::MAX, Relaxed);
            assert!(all[0].poll().is_pending());
        }
        assert!(u32::MAX - tired.1.load(Relaxed) < 100);
        assert!(all.iter().all(Task::is_woken));
        tired.1.store(0, Relaxed);
        assert!(all[2].poll().is_pending());
        let next = tired.0.next_deadline().unwrap();
        assert!(next <= tired.0.now().saturating_add(5 * MS));
        tired.0.advance(30 * MS);
        assert!(all[2].is_woken() && all[2].poll().is_ready());
    }
}

/// The waits of a stack end by the clock, without polling the alarm that woke them.
fn loses_no_timeout<S: Service<u32>>(make: impl Fn(Shared) -> (S, Box<dyn Fn(&mut S)>), ms: u32) {
    let (timer, clock) = shared();
    let mut hung = waiting(&timer, 100 * MS);
    let mut all: Vec<_> = (0..2).map(|_| make(timer.clone())).collect();
    let wakes: Vec<_> = all.iter().map(|_| WakeCount::new()).collect();
    for ((service, prepare), wakes) in all.iter_mut().zip(&wakes) {
        prepare(service);
        assert!(wakes.poll_ready::<_, u32>(service).is_pending());
    }
    clock.advance(ms * MS);
    for ((service, _), wakes) in all.iter_mut().zip(&wakes) {
        assert_eq!(wakes.get(), 1);
        let _ = wakes.poll_ready::<_, u32>(service);
    }
    clock.advance(100 * MS - ms * MS);
    assert!(hung.is_woken(), "armed {}", clock.armed());
    assert!(hung.poll().is_ready());
}

#[test]
fn rate_limits_lose_no_timeout() {
    use campanile::limit::rate::{Rate, RateLimit};
    loses_no_timeout(
        |timer| {
            let inner = campanile::service_fn(async |_: u32| Ok::<_, ()>(()));
            let service = RateLimit::with_timer(inner, Rate::new(1, 30 * MS), timer);
            (service, Box::new(|service| drop(service.call(0))))
        },
        30,
    );
}

#[test]
fn lapsed_deadlines_lose_no_timeout() {
    loses_no_timeout(
        |timer| {
            let (service, handle) = mock::<u32, u32>();
            handle.set_ready(false);
            let service = Deadline::with_timer(service, 30 * MS, timer);
            (service, Box::new(move |_| handle.set_ready(false)))
        },
        30,
    );
}

#[test]
fn kept_timeouts_lose_no_timeout() {
    use campanile::timeout::Timeout;
    let (timer, clock) = shared();
    let mut hung = waiting(&timer, 100 * MS);
    let mut calls: Vec<_> = (0..2)
        .map(|_| {
            let hangs = async |_: u32| std::future::pending::<Result<(), ()>>().await;
            let mut service =
                Timeout::with_timer(campanile::service_fn(hangs), 30 * MS, timer.clone());
            spawn(service.call(1))
        })
        .collect();
    calls
        .iter_mut()
        .for_each(|call| assert!(call.poll().is_pending()));
    clock.advance(30 * MS);
    // Like `select!` with futures that are pinned outside of it.
    for call in &mut calls {
        assert!(call.is_woken() && call.poll().is_ready());
    }
    clock.advance(70 * MS);
    assert!(hung.is_woken() && hung.poll().is_ready());
}
