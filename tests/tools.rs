//! Tests of the shared test tools, because a wrong tool invalidates every test that uses it.

mod common;

use core::time::Duration;

use campanile::{Executor, Service, Timer};
use common::{Host, ManualTimer, On, WokenBy, mock, on_every_runtime, ready, spawn, until};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn manual_timer_wakes_only_due_sleeps() {
    let timer = ManualTimer::new();
    let mut first = spawn(timer.sleep(SECOND));
    let mut second = spawn(timer.sleep(2 * SECOND));
    let mut never = spawn(timer.sleep(Duration::MAX));
    assert_eq!(timer.armed(), 0);
    assert!(first.poll().is_pending() && second.poll().is_pending() && never.poll().is_pending());
    assert_eq!(timer.armed(), 3);

    timer.advance(SECOND);
    assert!(first.is_woken() && !second.is_woken());
    ready(first.poll());

    drop(second);
    assert_eq!(timer.armed(), 1);
    timer.advance(Duration::MAX);
    assert!(never.poll().is_pending());
}

#[test]
fn advance_to_next_stops_at_the_earliest() {
    let timer = ManualTimer::new();
    let start = timer.now();
    let mut late = spawn(timer.sleep(5 * SECOND));
    let mut early = spawn(timer.sleep(3 * SECOND));
    assert!(late.poll().is_pending() && early.poll().is_pending());
    assert!(timer.advance_to_next());
    assert_eq!(timer.now(), start.saturating_add(3 * SECOND));
    assert!(early.is_woken() && !late.is_woken());
}

#[test]
fn manual_time_needs_the_runtimes_wake_up() {
    let native = ManualTimer::new();
    let timer = WokenBy::new(native.clone());
    let start = timer.now();
    let mut sleep = spawn(timer.sleep(SECOND));
    assert!(sleep.poll().is_pending());
    // Neither the manual time nor the runtime's time alone is enough.
    native.advance(SECOND);
    assert!(!sleep.is_woken() && sleep.poll().is_pending());
    timer.advance(SECOND);
    assert!(!sleep.is_woken() && sleep.poll().is_pending());
    native.advance(SECOND);
    assert!(sleep.is_woken());
    ready(sleep.poll());
    assert_eq!(timer.now(), start.saturating_add(SECOND));
}

#[test]
fn postponed_deadline_is_not_kept() {
    let native = ManualTimer::new();
    let timer = WokenBy::new(native.clone());
    let wakes = common::WakeCount::new();
    let mut alarm = timer.alarm_until(timer.now().saturating_add(SECOND));
    for _ in 0..3 {
        assert!(wakes.poll(&mut alarm).is_pending());
        // The alarm is due when it is reset.
        timer.advance(SECOND);
        timer.reset(&mut alarm, timer.now().saturating_add(SECOND));
        native.advance(SECOND);
        assert!(wakes.poll(&mut alarm).is_pending());
        timer.advance(SECOND);
        native.advance(SECOND);
        assert_eq!(wakes.poll(&mut alarm), core::task::Poll::Ready(()));
        timer.reset(&mut alarm, timer.now().saturating_add(SECOND));
    }
}

#[test]
#[should_panic(expected = "`call` without readiness")]
fn mock_refuses_an_unready_call() {
    let (mut service, _handle) = mock::<(), ()>();
    drop(service.call(()));
}

#[test]
fn breach_in_a_task_fails_the_test() {
    let (mut service, handle) = mock::<(), ()>();
    let worker = std::thread::spawn(move || drop(service.call(())));
    assert!(worker.join().is_err());
    let dropped = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| drop(handle)));
    assert!(dropped.is_err());
}

async fn task_runs_and_time_moves<H: Host>(rt: On<H>) {
    let (mut service, mut handle) = mock::<u32, u32>();
    let time = rt.clone();
    let start = rt.now();
    rt.execute(async move {
        time.sleep(SECOND).await;
        core::future::poll_fn(|cx| service.poll_ready(cx))
            .await
            .unwrap();
        assert_eq!(service.call(1).await, Ok(2));
    });
    let mut woke = spawn(rt.sleep(SECOND));
    assert!(woke.poll().is_pending());
    rt.advance(SECOND).await;
    woke.finish().await;
    assert!(rt.now() >= start.saturating_add(SECOND));

    // The task may have started to sleep only now.
    let (request, responder) = rt.advance_until(SECOND, handle.next()).await;
    responder.send(request + 1);
    until(|| handle.alive() == 0).await;
}

on_every_runtime! { task_runs_and_time_moves }
