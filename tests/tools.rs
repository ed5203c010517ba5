//! The tests' own tools: a tool that lies makes every test that uses it worthless.

mod common;

use core::time::Duration;

use campanile::{Executor, Service, Timer};
use common::{Host, ManualTimer, On, WokenBy, mock, on_every_runtime, ready, spawn, until};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_manual_timer_wakes_what_is_due_and_forgets_what_is_dropped() {
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
fn advance_to_next_goes_to_the_earliest_deadline() {
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
fn time_by_hand_and_wake_ups_of_the_runtime() {
    let native = ManualTimer::new();
    let timer = WokenBy::new(native.clone());
    let start = timer.now();
    let mut sleep = spawn(timer.sleep(SECOND));
    assert!(sleep.poll().is_pending());
    // Its own time alone is nothing, and neither is the runtime's.
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
fn a_deadline_that_is_put_off_is_not_kept_by_mistake() {
    let native = ManualTimer::new();
    let timer = WokenBy::new(native.clone());
    let wakes = common::WakeCount::new();
    let mut alarm = timer.alarm_until(timer.now().saturating_add(SECOND));
    for _ in 0..3 {
        assert!(wakes.poll(&mut alarm).is_pending());
        // It is about to ring when it is set again.
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
fn a_mock_refuses_a_call_without_readiness() {
    let (mut service, _handle) = mock::<(), ()>();
    drop(service.call(()));
}

#[test]
fn a_breach_in_a_background_task_fails_the_test() {
    let (mut service, handle) = mock::<(), ()>();
    let worker = std::thread::spawn(move || drop(service.call(())));
    assert!(worker.join().is_err());
    let dropped = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| drop(handle)));
    assert!(dropped.is_err());
}

async fn a_task_runs_and_time_moves<H: Host>(rt: On<H>) {
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

    // The task may have begun to sleep only now.
    let (request, responder) = rt.advance_until(SECOND, handle.next()).await;
    responder.send(request + 1);
    until(|| handle.alive() == 0).await;
}

on_every_runtime! { a_task_runs_and_time_moves }
