//! Nobody is late because those who were woken to set the alarm do not poll their waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::common::{ManualSleep, ManualTimer, Task, WakeCount, mock, spawn};
use campanile::runtime::{SharedSleep, SharedTimer};
use campanile::timeout::Deadline;
use campanile::{Instant, Service, Timer};

const MS: Duration = Duration::from_millis(1);

type Shared = SharedTimer<ManualTimer>;

fn shared() -> (Shared, ManualTimer) {
    let timer = ManualTimer::new();
    (SharedTimer::new(timer.clone()), timer)
}

fn waiting(timer: &Shared, duration: Duration) -> Task<SharedSleep<ManualTimer>> {
    let mut sleep = spawn(timer.sleep(duration));
    assert!(sleep.poll().is_pending());
    sleep
}

/// The first of those woken is stuck, and the other one goes: "the first that is polled or drops its wait sees to all".
#[test]
fn the_one_of_two_that_goes_hands_on_though_the_other_is_stuck() {
    let (timer, clock) = shared();
    let stuck = waiting(&timer, 10 * MS);
    let mut middle = waiting(&timer, 20 * MS);
    let last = waiting(&timer, 30 * MS);
    clock.advance(10 * MS);
    assert!(stuck.is_woken() && last.is_woken() && !middle.is_woken());
    drop(last);
    clock.advance(10 * MS);
    assert!(middle.is_woken(), "late: {:?}", clock.armed());
    assert!(middle.poll().is_ready());
}

/// The library's own services keep their alarms after the wait is over.
#[test]
fn the_alarms_of_idle_deadlines_do_not_lose_a_timeout() {
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

/// Tokio. A task without budget sets the alarm while the first in line was woken and is not polled.
#[cfg(feature = "tokio")]
#[tokio::test(start_paused = true)]
async fn a_task_without_budget_sees_to_the_alarm_though_the_first_is_stuck() {
    use campanile::tokio::Tokio;
    use std::pin::pin;
    let timer = SharedTimer::new(Tokio);
    let mut early = spawn(timer.sleep(10 * MS));
    assert!(early.poll().is_pending());
    let mut stuck = spawn(timer.sleep(100 * MS));
    assert!(stuck.poll().is_pending());
    let start = timer.now();
    let mut sleep = timer.sleep(200 * MS);
    let mut polls = 0;
    let task = tokio::spawn(std::future::poll_fn(move |cx| {
        polls += 1;
        // It is busy when it is woken for the first time.
        if polls == 2 {
            for _ in 0..128 {
                assert!(pin!(tokio::task::consume_budget()).poll(cx).is_ready());
            }
        }
        Pin::new(&mut sleep).poll(cx)
    }));
    tokio::task::yield_now().await;
    drop(early);
    // Time goes on for other reasons.
    let late = tokio::time::timeout(1000 * MS, task).await;
    assert!(late.is_ok(), "lost");
    let _ = start;
    assert!(stuck.is_woken());
}

/// The waker that is replaced panics when it is dropped, in a task that is to see to the alarm.
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
fn a_waker_that_panics_when_dropped_stops_nobody() {
    let (timer, clock) = shared();
    let early = waiting(&timer, 10 * MS);
    let mut x = timer.sleep(50 * MS);
    let mut y = waiting(&timer, 60 * MS);
    {
        let waker = Waker::from(Arc::new(Bomb));
        assert!(
            Pin::new(&mut x)
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
    }
    let last = waiting(&timer, 70 * MS);
    clock.advance(10 * MS);
    assert!(early.is_woken() && last.is_woken() && !y.is_woken());
    let wakes = WakeCount::new();
    assert!(catch_unwind(AssertUnwindSafe(|| wakes.poll(&mut x))).is_err());
    assert!(y.poll().is_pending());
    assert_eq!(clock.armed(), 1, "nobody sees to the alarm ever again");
}

/// A timer whose alarm says once, when told to, that it is to be polled again, and registers nobody.
#[derive(Clone, Default)]
struct Tired(ManualTimer, std::rc::Rc<std::cell::Cell<bool>>);
struct TiredSleep(ManualSleep, std::rc::Rc<std::cell::Cell<bool>>);
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
        if self.1.replace(false) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.0).poll(cx)
    }
}

#[test]
fn who_sees_to_the_alarm_is_woken_again_if_it_asks_for_that_and_the_others_are_stuck() {
    let tired = Tired::default();
    let timer = SharedTimer::new(tired.clone());
    let start = timer.now();
    let wait = |ms: u32| {
        let mut sleep = spawn(timer.sleep_until(start.saturating_add(ms * MS)));
        assert!(sleep.poll().is_pending());
        sleep
    };
    let (early, stuck, last, mut x) = (wait(10), wait(100), wait(200), wait(300));
    drop(early);
    tired.0.advance(10 * MS);
    assert!(stuck.is_woken() && last.is_woken());
    tired.1.set(true);
    assert!(x.poll().is_pending());
    tired.0.advance(90 * MS);
    for _ in 0..3 {
        if x.is_woken() {
            assert!(x.poll().is_pending());
        }
    }
    tired.0.advance(200 * MS);
    assert!(x.is_woken(), "lost, armed: {}", tired.0.armed());
}

/// A stack's own waits end by the clock, and do not ask the alarm that has woken them.
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
fn rate_limits_that_go_on_hand_the_alarm_on() {
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
fn deadlines_that_lapse_hand_the_alarm_on() {
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
fn timeouts_that_are_over_and_kept_hand_the_alarm_on() {
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
    // As by `select!` with futures that are pinned outside of it.
    for call in &mut calls {
        assert!(call.is_woken() && call.poll().is_ready());
    }
    clock.advance(70 * MS);
    assert!(hung.is_woken() && hung.poll().is_ready());
}
