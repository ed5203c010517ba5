//! How the test doubles respond to a driven poll, whose mark is private.

use core::future::poll_fn;
use core::panic::AssertUnwindSafe;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use futures::FutureExt;

use super::mock;
use super::probe::Rule;
use super::{Faults, Probe, Runtime, sleep};
use crate::sync::{drive, try_poll};
use crate::{Layer, Service, service_fn};

const SECOND: Duration = Duration::from_secs(1);

fn poll<S: Service<u32>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut Context::from_waker(Waker::noop()))
}

fn driven<S: Service<u32>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    drive(Waker::noop(), |cx| service.poll_ready(cx))
}

fn echo() -> impl Service<u32, Response = u32, Error = &'static str> + Clone {
    service_fn(async |n: u32| Ok(n))
}

fn panics<T>(act: impl FnOnce() -> T) -> bool {
    std::panic::catch_unwind(AssertUnwindSafe(act)).is_err()
}

#[test]
fn driven_mock_is_not_ready() {
    let (mut mock, _handle) = mock::pair::<u32, u32>();
    assert!(matches!(driven(&mut mock), Poll::Ready(Ok(()))));
    assert!(panics(|| mock.call(1)));
    // And the earlier readiness is given up.
    assert!(poll(&mut mock).is_ready());
    assert!(driven(&mut mock).is_ready());
    assert!(panics(|| mock.call(1)));
}

#[test]
fn a_driven_mock_reserves_nothing() {
    let (mut mock, mut handle) = mock::pair::<u32, u32>();
    handle.allow(1);
    let mut other = mock.clone();
    assert!(driven(&mut mock).is_ready());
    assert!(poll(&mut other).is_ready());
    drop(other.call(1));
    assert!(poll(&mut mock).is_pending());
}

#[test]
fn driven_mock_stops_waiting() {
    let (mut mock, mut handle) = mock::spawn::<u32, u32>();
    handle.allow(0);
    assert!(mock.poll_ready().is_pending());
    assert_eq!(mock.waker_ref_count(), 2);
    assert!(driven(mock.get_mut()).is_ready());
    assert_eq!(mock.waker_ref_count(), 1);
    handle.allow(1);
    assert!(!mock.is_woken());
}

#[test]
fn a_driven_mock_fails() {
    let (mut mock, mut handle) = mock::spawn::<u32, u32>();
    handle.send_error("broken");
    assert!(matches!(driven(mock.get_mut()), Poll::Ready(Err(_))));
    drop(handle);
    assert!(matches!(driven(mock.get_mut()), Poll::Ready(Err(_))));
}

#[test]
fn driven_request_carries_its_fault() {
    let scenario = async {
        let faults = Faults::new(1).pauses(1.0, SECOND..SECOND);
        let mut service = faults.layer(echo());
        assert!(poll(&mut service).is_pending());
        sleep(SECOND).await;
        assert!(driven(&mut service).is_ready());
        // The next request has its own pause, and a driven poll does not start it before there is such a request.
        assert!(driven(&mut service).is_ready());
        assert!(poll(&mut service).is_pending());
        poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
        assert_eq!(service.call(1).await.unwrap(), 1);
    };
    let runtime = Runtime::new(1);
    runtime.block_on(scenario).unwrap();
    assert_eq!(runtime.elapsed(), 2 * SECOND);
}

#[test]
fn drive_draws_no_fault() {
    let scenario = |drives: bool| async move {
        let faults = Faults::new(7).errors(0.5);
        let mut service = faults.layer(echo());
        let mut answers = [false; 32];
        for answer in &mut answers {
            if drives {
                assert!(driven(&mut service).is_ready());
            }
            assert!(poll(&mut service).is_ready());
            *answer = service.call(1).await.is_ok();
        }
        answers
    };
    let run = |drives| Runtime::new(1).block_on(scenario(drives)).unwrap();
    assert_eq!(run(true), run(false));
}

#[test]
fn driven_answer_does_not_allow_a_call() {
    let probe = Probe::new();
    let mut service = probe.layer(echo());
    assert!(driven(&mut service).is_ready());
    assert_eq!(probe.reserved(), 0);
    let _ = service.call(1).now_or_never();
    let [violation] = probe.take_violations()[..] else {
        panic!("one rule was broken")
    };
    assert_eq!(violation.rule, Rule::CalledUnready);
}

#[test]
fn readiness_may_be_given_up_when_driven() {
    let probe = Probe::new();
    let (mut mock, mut handle) = mock::pair::<u32, u32>();
    handle.allow(1);
    let mut service = probe.layer(mock.clone());
    assert!(poll(&mut service).is_ready());
    assert_eq!(probe.reserved(), 1);
    assert!(driven(&mut service).is_ready());
    assert_eq!(probe.reserved(), 0);
    // Another task takes it.
    assert!(poll(&mut mock).is_ready());
    drop(mock.call(1));
    assert!(poll(&mut service).is_pending());
    assert!(try_poll(|cx| Service::<u32>::poll_ready(&mut service, cx)).is_pending());
    probe.assert_kept();
    // A failure is a failure, driven or not.
    handle.send_error("broken");
    assert!(matches!(driven(&mut service), Poll::Ready(Err(_))));
    let _ = driven(&mut service);
    let [violation] = probe.take_violations()[..] else {
        panic!("one rule was broken")
    };
    assert_eq!(violation.rule, Rule::PolledAfterError);
}
