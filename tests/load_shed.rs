//! `LoadShed` never waits, and leaves no waiter behind.

mod common;

use campanile::Service;
use campanile::load_shed::{Error, LoadShed, LoadShedLayer, Overloaded};
use campanile::{Layer, error::find};
use common::{Failure, WakeCount, mock, ready, spawn};

#[test]
fn sheds_when_the_service_is_not_ready() {
    let (service, mut handle) = mock::<u32, u32>();
    let mut service = LoadShedLayer::new().layer(service);
    let wakes = WakeCount::new();

    assert_eq!(ready(wakes.poll_ready(&mut service)), Ok(()));
    let mut admitted = spawn(service.call(1));
    assert!(admitted.poll().is_pending());
    let (request, responder) = handle.try_next().unwrap();
    responder.send(request + 1);
    assert!(admitted.is_woken());
    assert_eq!(ready(admitted.poll()), Ok(2));

    handle.set_ready(false);
    assert_eq!(ready(wakes.poll_ready(&mut service)), Ok(()));
    let mut shed = spawn(service.call(2));
    assert_eq!(
        ready(shed.poll()),
        Err(Error::Overloaded(Overloaded::new()))
    );
    assert_eq!(handle.calls(), 1);
}

#[test]
fn readiness_is_polled_before_every_call() {
    let (service, mut handle) = mock::<u32, u32>();
    let mut service = LoadShed::new(service);
    let wakes = WakeCount::new();

    handle.set_ready(false);
    assert_eq!(ready(wakes.poll_ready(&mut service)), Ok(()));
    handle.set_ready(true);
    assert_eq!(ready(wakes.poll_ready(&mut service)), Ok(()));
    let mut response = spawn(service.call(1));
    assert!(response.poll().is_pending());
    assert!(handle.try_next().is_some());
    // The shed call left no waiter in the inner service, so no task is woken.
    assert_eq!(wakes.get(), 0);

    // One readiness allows one call.
    let mut shed = spawn(service.call(2));
    assert_eq!(
        ready(shed.poll()),
        Err(Error::Overloaded(Overloaded::new()))
    );
}

#[test]
fn call_without_readiness_is_shed() {
    let (service, handle) = mock::<u32, u32>();
    let mut response = spawn(LoadShed::new(service).call(1));
    assert_eq!(
        ready(response.poll()),
        Err(Error::Overloaded(Overloaded::new()))
    );
    assert_eq!(handle.calls(), 0);
}

#[test]
fn a_clone_starts_as_never_polled() {
    let (service, handle) = mock::<u32, u32>();
    let mut service = LoadShed::new(service);
    assert_eq!(ready(WakeCount::new().poll_ready(&mut service)), Ok(()));
    let mut response = spawn(service.clone().call(1));
    assert!(ready(response.poll()).is_err());
    assert_eq!(handle.calls(), 0);
    // The original is still ready.
    let mut response = spawn(service.call(1));
    assert!(response.poll().is_pending());
    assert_eq!(handle.calls(), 1);
}

#[test]
fn service_error_is_not_overload() {
    let (service, mut handle) = mock::<u32, u32>();
    let mut service = LoadShed::new(service);
    let wakes = WakeCount::new();

    assert_eq!(ready(wakes.poll_ready(&mut service)), Ok(()));
    let mut response = spawn(service.call(1));
    handle.try_next().unwrap().1.fail(Failure("no"));
    let error = ready(response.poll()).unwrap_err();
    assert_eq!(error, Error::Service(Failure("no")));
    assert!(find::<Failure>(&error).is_some() && find::<Overloaded>(&error).is_none());

    handle.fail(Failure("dead"));
    let error = ready(wakes.poll_ready(&mut service)).unwrap_err();
    assert_eq!(error.into_service(), Some(Failure("dead")));
}

#[cfg(feature = "std")]
mod over_a_limit {
    use super::*;
    use crate::common::{Host, On, on_every_runtime};
    use campanile::{ServiceExt, limit::ConcurrencyLimit};

    /// A shed request leaves no waiter in the queue, though its handle still exists (vector#26457).
    async fn shed_request_leaves_its_permit<H: Host>(rt: On<H>) {
        let (service, mut handle) = mock::<u32, u32>();
        let service = LoadShed::new(ConcurrencyLimit::new(service, 1));
        for _ in 0..20 {
            let admitted = rt.start(service.clone().oneshot(1));
            let (_, responder) = handle.next().await;
            let mut idle = service.clone();
            let shed = rt.start(async move {
                let answer = idle.ready().await.unwrap().call(2).await;
                (answer, idle)
            });
            let (answer, _idle) = shed.await.unwrap();
            assert_eq!(answer, Err(Error::Overloaded(Overloaded::new())));
            responder.send(2);
            assert_eq!(admitted.await.unwrap(), Ok(2));

            let next = rt.start(service.clone().oneshot(3));
            let (_, responder) = handle.next().await;
            responder.send(4);
            assert_eq!(next.await.unwrap(), Ok(4));
        }
    }

    on_every_runtime! { shed_request_leaves_its_permit }
}
