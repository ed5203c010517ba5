//! The buffer: polled by hand where order matters, and on every runtime where the runtime matters.
#![cfg(feature = "std")]

mod common;

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use campanile::buffer::{self, Buffer, BufferLayer, Closed, Error, FixedError, InvalidBound};
use campanile::load_shed::{self, LoadShed};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{BoxError, Layer, NoRuntime, Service, ServiceExt, service_fn};

use common::{
    Failure, Host, Mock, MockFuture, On, Threads, WakeCount, mock, on_every_runtime, panics_at,
    ready, spawn, until, yield_now,
};

type MockBuffer<Request = u32> = Buffer<Request, MockFuture<u32>>;

fn mock_pair(
    bound: usize,
) -> (
    MockBuffer,
    buffer::Worker<Mock<u32, u32>, u32>,
    common::Handle<u32, u32>,
) {
    let (service, handle) = mock();
    let (buffer, worker) = buffer::pair(service, bound);
    (buffer, worker, handle)
}

/// Polls `service`, which has to be ready at once.
#[track_caller]
fn make_ready<S: Service<R>, R>(service: &mut S)
where
    S::Error: std::fmt::Debug,
{
    ready(WakeCount::new().poll_ready(service)).unwrap();
}

#[test]
fn the_bound_is_exact() {
    for bound in [1, 2, 5] {
        let (buffer, worker, handle) = mock_pair(bound);
        handle.set_ready(false);
        let mut worker = spawn(worker);
        let mut responses = Vec::new();
        for n in 0..bound {
            let mut buffer = buffer.clone();
            make_ready(&mut buffer);
            responses.push(buffer.call(n as u32));
            assert!(worker.poll().is_pending());
        }
        // The worker has received all of them and holds none outside the queue.
        let mut one_more = buffer.clone();
        let wakes = WakeCount::new();
        assert!(wakes.poll_ready(&mut one_more).is_pending());

        handle.set_ready(true);
        assert!(worker.is_woken());
        assert!(worker.poll().is_pending());
        assert_eq!(handle.calls(), bound);
        assert_eq!(wakes.get(), 1);
        ready(wakes.poll_ready(&mut one_more)).unwrap();
    }
}

#[test]
fn unready_service_keeps_request_order() {
    let (mut buffer, worker, mut handle) = mock_pair(3);
    handle.set_ready(false);
    let mut worker = spawn(worker);
    let _responses = [0, 1, 2].map(|n| {
        make_ready(&mut buffer);
        buffer.call(n)
    });
    // The service is polled for the first request repeatedly.
    for _ in 0..2 {
        assert!(worker.poll().is_pending());
    }
    handle.set_ready(true);
    assert!(worker.poll().is_pending());
    let served = std::iter::from_fn(|| handle.try_next()).map(|(request, _)| request);
    assert_eq!(served.collect::<Vec<_>>(), [0, 1, 2]);
}

/// Capacity that no waiter has been told about yet.
#[test]
fn no_capacity_after_the_end() {
    let ends: [fn(&MockBuffer, &common::Handle<u32, u32>); 3] = [
        |buffer, _| buffer.close(),
        |buffer, _| drop(buffer.shutdown()),
        |_, handle| handle.fail(Failure("broken")),
    ];
    for end in ends {
        let (mut buffer, worker, handle) = mock_pair(3);
        let mut worker = spawn(worker);
        make_ready(&mut buffer);
        let mut others = [buffer.clone(), buffer.clone()];
        end(&buffer, &handle);
        // The worker discovers the failure when it polls the service for this request.
        let _response = buffer.call(0);
        let _ = worker.poll();
        for other in &mut others {
            let polled = ready(WakeCount::new().poll_ready(other));
            assert!(
                matches!(polled, Err(Error::Closed(_) | Error::Failed(_))),
                "{polled:?}"
            );
        }
    }
}

#[test]
fn a_bound_of_zero_is_refused() {
    let error = buffer::InvalidBound::clone(
        &BufferLayer::<(), NoRuntime>::try_new(0).expect_err("0 is no bound"),
    );
    assert_eq!(
        error.to_string(),
        "a buffer's bound is 0, and must be at least 1"
    );
    let _: InvalidBound = error;

    let panic = std::panic::catch_unwind(|| buffer::pair(mock::<(), ()>().0, 0)).unwrap_err();
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied());
    assert_eq!(
        message,
        Some("a buffer's bound is 0, and must be at least 1")
    );
    // The panic names the caller's line, whichever way the buffer is made.
    let here = |line| (file!().to_owned(), line);
    let pair = || drop(buffer::pair(mock::<(), ()>().0, 0));
    assert_eq!(panics_at(pair), here(line!() - 1));
    let buffer = || drop(Buffer::with_executor(mock::<u32, u32>().0, 0, &Threads));
    assert_eq!(panics_at(buffer), here(line!() - 1));
    let layer = || _ = BufferLayer::<(), NoRuntime>::new(0);
    assert_eq!(panics_at(layer), here(line!() - 1));
    let layer = || _ = BufferLayer::<(), _>::with_executor(0, Threads);
    assert_eq!(panics_at(layer), here(line!() - 1));
}

#[test]
fn a_cancelled_request_is_dropped_at_once() {
    // Each request holds a reference.
    let request = Rc::new(());
    let (service, handle) = mock::<Rc<()>, u32>();
    handle.set_ready(false);
    let (mut buffer, worker) = buffer::pair(service, 1);
    let mut worker = spawn(worker);

    make_ready(&mut buffer);
    let response = buffer.call(request.clone());
    assert!(worker.poll().is_pending(), "the service is not ready");
    assert_eq!(Rc::strong_count(&request), 2);

    let mut other = buffer.clone();
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut other).is_pending());
    drop(response);
    assert_eq!(Rc::strong_count(&request), 1);
    // Its slot is free.
    assert_eq!(wakes.get(), 1);
    ready(wakes.poll_ready(&mut other)).unwrap();
}

#[test]
fn a_cancelled_response_is_dropped_at_once() {
    let (mut buffer, worker, mut handle) = mock_pair(1);
    let mut worker = spawn(worker);
    make_ready(&mut buffer);
    let response = buffer.call(1);
    assert!(worker.poll().is_pending());
    let (_, responder) = handle.try_next().unwrap();
    assert!(!responder.is_cancelled());
    // The response future is still with its caller.
    drop(response);
    assert!(responder.is_cancelled());
}

#[test]
fn answered_request_is_answered_once() {
    let (buffer, worker, mut handle) = mock_pair(1);
    let mut worker = spawn(worker);
    let mut response = spawn(buffer.clone().call(3));
    assert!(response.poll().is_pending());
    assert!(worker.poll().is_pending());
    handle.try_next().unwrap().1.send(4);
    assert_eq!(ready(response.poll()).unwrap(), 4);
    assert!(response.poll().is_pending());
    buffer.close();
    let mut refused = spawn(buffer.clone().call(5));
    ready(refused.poll()).unwrap_err();
    assert!(refused.poll().is_pending());
}

#[test]
fn unpolled_response_holds_no_capacity() {
    let (mut buffer, worker, mut handle) = mock_pair(1);
    let mut worker = spawn(worker);
    let mut responses = Vec::new();
    for n in 0..3 {
        make_ready(&mut buffer);
        responses.push(buffer.call(n));
        assert!(worker.poll().is_pending());
        handle.try_next().unwrap().1.send(n * 10);
    }
    for (n, response) in responses.into_iter().enumerate() {
        assert_eq!(ready(spawn(response).poll()), Ok(n as u32 * 10));
    }
}

#[test]
fn every_handle_sees_the_failure() {
    let (buffer, worker, handle) = mock_pair(2);
    let mut worker = spawn(worker);
    handle.set_ready(false);

    let mut caller = buffer.clone();
    make_ready(&mut caller);
    let mut response = spawn(caller.call(1));
    assert!(response.poll().is_pending());
    let mut idle = buffer.clone();
    make_ready(&mut idle);
    let mut waiting = buffer.clone();
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut waiting).is_pending());
    assert!(worker.poll().is_pending());

    handle.fail(Failure("broken"));
    assert!(worker.is_woken());
    assert!(worker.poll().is_ready());
    // The service is dropped even though handles live, one of them with a reservation, and the executor still has the
    // task.
    assert_eq!(handle.alive(), 0);

    let is_failure = |error: &Error<Failure>| match error {
        Error::Failed(error) => *error.get_ref() == Failure("broken"),
        _ => false,
    };
    assert!(response.is_woken());
    assert!(is_failure(&ready(response.poll()).unwrap_err()));
    assert_eq!(wakes.get(), 1);
    assert!(is_failure(
        &ready(wakes.poll_ready(&mut waiting)).unwrap_err()
    ));
    assert!(is_failure(&ready(wakes.poll_ready(&mut idle)).unwrap_err()));
    // The reservation is void.
    assert!(is_failure(&ready(spawn(idle.call(2)).poll()).unwrap_err()));
    drop(worker);
}

#[test]
fn failure_flattens_into_a_box() {
    let (service, handle) = mock::<u32, u32>();
    handle.fail(Failure("broken"));
    let service = service_fn({
        let service = service.clone();
        move |n| service.clone().call(n)
    });
    drop(service);

    let (mut buffer, worker, handle) = mock_pair(1);
    let mut worker = spawn(worker);
    make_ready(&mut buffer);
    let response = buffer.call(1);
    handle.fail(Failure("broken"));
    assert!(worker.poll().is_ready());
    let error = ready(spawn(response).poll()).unwrap_err();
    assert_eq!(
        campanile::error::find::<Failure>(&error),
        Some(&Failure("broken"))
    );
    assert_eq!(error.to_string(), "buffer's service failed: broken");
    let boxed = BoxError::from(error);
    let error = boxed
        .downcast_ref::<buffer::error::ServiceError<Failure>>()
        .unwrap();
    assert_eq!(error.get_ref(), &Failure("broken"));
}

#[test]
fn panic_differs_from_closing() {
    let (buffer, worker) = buffer::pair(
        service_fn(|n: u32| {
            assert_ne!(n, 13, "unlucky");
            std::future::ready(Ok::<_, Failure>(n))
        }),
        4,
    );
    let mut panicking = buffer.clone();
    let mut queued = buffer.clone();
    make_ready(&mut panicking);
    make_ready(&mut queued);
    let mut panicked = spawn(panicking.call(13));
    let mut behind = spawn(queued.call(1));
    assert!(panicked.poll().is_pending());
    assert!(behind.poll().is_pending());

    // Like an executor: catch the panic of the poll, then drop the task.
    let mut worker = spawn(worker);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.poll()));
    assert!(caught.is_err());
    drop(worker);
    assert!(panicked.is_woken() && behind.is_woken());
    assert!(matches!(ready(panicked.poll()), Err(Error::Panicked(_))));
    assert!(matches!(ready(behind.poll()), Err(Error::Panicked(_))));

    let (mut buffer, worker, _handle) = mock_pair(1);
    drop(worker);
    assert_eq!(
        ready(WakeCount::new().poll_ready(&mut buffer)),
        Err(Error::Closed(Closed::new()))
    );
}

#[test]
fn worker_drains_after_the_last_handle() {
    let (mut buffer, worker, mut handle) = mock_pair(4);
    let mut worker = spawn(worker);
    assert!(worker.poll().is_pending());
    let mut responses = Vec::new();
    for n in 0..4 {
        make_ready(&mut buffer);
        responses.push(spawn(buffer.call(n)));
    }
    drop(buffer);
    assert!(worker.is_woken());
    assert!(worker.poll().is_ready());
    assert_eq!(handle.calls(), 4);
    assert_eq!(handle.alive(), 0);
    for (n, mut response) in responses.into_iter().enumerate() {
        handle.try_next().unwrap().1.send(n as u32 + 1);
        assert_eq!(ready(response.poll()), Ok(n as u32 + 1));
    }
}

#[test]
fn last_handle_ends_an_unready_worker() {
    let (mut buffer, worker, handle) = mock_pair(1);
    handle.set_ready(false);
    let mut worker = spawn(worker);
    make_ready(&mut buffer);
    let response = buffer.call(1);
    assert!(worker.poll().is_pending());
    drop(response);
    drop(buffer);
    assert!(worker.is_woken());
    assert!(worker.poll().is_ready());
    assert_eq!(handle.alive(), 0);
}

#[test]
fn shutdown_drains_and_can_be_awaited() {
    let (buffer, worker, handle) = mock_pair(2);
    handle.set_ready(false);
    let mut worker = spawn(worker);
    let mut caller = buffer.clone();
    make_ready(&mut caller);
    let _response = caller.call(1);
    let mut idle = buffer.clone();
    make_ready(&mut idle);
    let mut waiting = buffer.clone();
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut waiting).is_pending());
    assert!(worker.poll().is_pending());

    assert!(!buffer.is_closed());
    let mut shutdown = spawn(buffer.shutdown());
    let mut another = spawn(buffer.shutdown());
    let given_up = buffer.shutdown();
    assert!(buffer.is_closed());
    assert!(shutdown.poll().is_pending());
    assert!(another.poll().is_pending());
    drop(given_up);
    // No new request is accepted, with or without a reservation.
    assert_eq!(wakes.get(), 1);
    assert_eq!(
        ready(wakes.poll_ready(&mut waiting)),
        Err(Error::Closed(Closed::new()))
    );
    assert_eq!(
        ready(spawn(idle.call(2)).poll()),
        Err(Error::Closed(Closed::new()))
    );
    // Accepted requests are served.
    assert!(worker.poll().is_pending());
    handle.set_ready(true);
    assert!(worker.poll().is_ready());
    assert_eq!(handle.calls(), 1);
    assert!(shutdown.is_woken() && another.is_woken());
    assert!(shutdown.poll().is_ready());
    assert!(another.poll().is_ready());
}

#[test]
fn shutdown_wakes_every_waiter() {
    for shut_down in [false, true] {
        let (mut buffer, worker, _handle) = mock_pair(1);
        make_ready(&mut buffer);
        let wakes = [(); 4].map(|()| WakeCount::new());
        let mut waiting = [(); 4].map(|()| buffer.clone());
        for (wakes, waiting) in wakes.iter().zip(&mut waiting) {
            assert!(wakes.poll_ready(waiting).is_pending());
        }
        let mut ends = Vec::new();
        if shut_down {
            ends = Vec::from([(); 4].map(|()| spawn(buffer.shutdown())));
            assert!(ends.iter_mut().all(|end| end.poll().is_pending()));
            assert!(wakes.iter().all(|wakes| wakes.get() == 1));
        }
        drop(worker);
        assert!(wakes.iter().all(|wakes| wakes.get() == 1));
        assert!(ends.iter().all(|end| end.is_woken()));
    }
}

#[test]
fn waiter_dropped_in_its_wake_spares_others() {
    /// Drops a future when woken.
    struct Cancel(Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>);
    impl Wake for Cancel {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
        }
    }
    let (buffer, worker, _handle) = mock_pair(1);
    let mut first = Box::pin(buffer.shutdown());
    let cancel = Arc::new(Cancel(Mutex::new(None)));
    let waker = Waker::from(cancel.clone());
    assert!(
        first
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    *cancel.0.lock().unwrap() = Some(first);
    let mut second = spawn(buffer.shutdown());
    assert!(second.poll().is_pending());
    drop(worker);
    assert!(cancel.0.lock().unwrap().is_none());
    assert!(second.is_woken());
    assert!(second.poll().is_ready());
}

#[test]
fn request_error_differs_from_buffer_errors() {
    let error = Error::Service(Failure("refused"));
    assert_eq!(error.into_service(), Some(Failure("refused")));
    assert_eq!(Error::<Failure>::Closed(Closed::new()).into_service(), None);
    let error = FixedError::Service(Failure("refused"));
    assert_eq!(error.into_service(), Some(Failure("refused")));
    let error = FixedError::Failed(Failure("dead"));
    assert!(error.to_string().contains("dead"), "{error}");
    assert_eq!(error.into_service(), None);
}

#[test]
fn service_error_is_shared_with_its_source() {
    let failed = |text| {
        let (mut buffer, worker, handle) = mock_pair(1);
        handle.fail(Failure(text));
        make_ready(&mut buffer);
        let mut response = spawn(buffer.call(1));
        assert!(spawn(worker).poll().is_ready());
        match ready(response.poll()) {
            Err(Error::Failed(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let error = failed("broken");
    assert!(error == failed("broken") && error != failed("dead"));
    assert!(format!("{error:?}").contains("broken"));

    let (service, handle) = mock::<u32, u32>();
    handle.fail(Failure("boxed"));
    let (mut buffer, worker) = buffer::pair(service.map_err(BoxError::from), 1);
    make_ready(&mut buffer);
    let mut response = spawn(buffer.call(1));
    assert!(spawn(worker).poll().is_ready());
    let Err(Error::Failed(error)) = ready(response.poll()) else {
        panic!("it has failed");
    };
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.is::<Failure>());
}

#[test]
fn debug_shows_the_capacity() {
    let (mut buffer, worker, _handle) = mock_pair(2);
    let shown = |capacity, is_closed| {
        format!("Buffer {{ capacity: {capacity}, is_closed: {is_closed}, unreserved: false, .. }}")
    };
    assert_eq!(format!("{buffer:?}"), shown(2, false));
    make_ready(&mut buffer);
    assert_eq!(format!("{buffer:?}"), shown(1, false));
    drop(worker);
    assert!(format!("{buffer:?}").contains("is_closed: true"));
    let layer = BufferLayer::<u32, _>::with_executor(2, Threads);
    assert!(format!("{layer:?}").contains("bound: 2"));
}

/// Does nothing when woken.
struct NoWake;

impl Wake for NoWake {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn cancelled_shutdown_wait_drops_its_waker() {
    let (buffer, _worker, _handle) = mock_pair(1);
    let mut shutdown = Box::pin(buffer.shutdown());
    let count = Arc::new(NoWake);
    let waker = Waker::from(count.clone());
    let polled = shutdown.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    drop((shutdown, waker));
    assert_eq!(Arc::strong_count(&count), 1);
}

#[test]
fn cancelling_wakes_the_polling_worker() {
    let (mut buffer, worker, handle) = mock_pair(2);
    handle.set_ready(false);
    let mut worker = spawn(worker);
    let [first, second] = [1, 2].map(|n| {
        make_ready(&mut buffer);
        buffer.call(n)
    });
    let _shutdown = buffer.shutdown();
    assert!(worker.poll().is_pending());
    // The worker is not polling the service for the second request.
    drop(second);
    assert!(!worker.is_woken());
    drop(first);
    assert!(worker.is_woken());
    assert!(worker.poll().is_ready());
}

#[test]
fn worker_yields() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let (mut buffer, worker) = buffer::pair(
        service_fn(move |n: u32| {
            count.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok::<_, Failure>(n))
        }),
        1_000,
    );
    let _responses: Vec<_> = (0..1_000)
        .map(|n| {
            make_ready(&mut buffer);
            buffer.call(n)
        })
        .collect();
    let mut worker = spawn(worker);
    let mut polls = 0;
    while calls.load(Ordering::Relaxed) < 1_000 {
        let before = calls.load(Ordering::Relaxed);
        assert!(worker.poll().is_pending());
        assert!(calls.load(Ordering::Relaxed) - before <= 32);
        polls += 1;
        assert!(worker.is_woken() || calls.load(Ordering::Relaxed) == 1_000);
    }
    assert!(polls >= 31);
}

#[test]
fn unready_call_waits_for_capacity() {
    let (mut buffer, worker, mut handle) = mock_pair(1);
    handle.set_ready(false);
    let mut worker = spawn(worker);
    make_ready(&mut buffer);
    let mut first = spawn(buffer.call(1));
    let mut second = spawn(buffer.call(2));
    assert!(second.poll().is_pending());
    assert!(worker.poll().is_pending());
    handle.set_ready(true);
    assert!(worker.poll().is_pending());
    assert_eq!(handle.calls(), 1);
    assert!(second.is_woken());
    assert!(second.poll().is_pending());
    assert!(worker.is_woken());
    assert!(worker.poll().is_pending());
    handle.try_next().unwrap().1.send(10);
    handle.try_next().unwrap().1.send(20);
    assert_eq!(ready(first.poll()), Ok(10));
    assert_eq!(ready(second.poll()), Ok(20));
}

#[test]
fn idle_unreserved_handles_starve_no_caller() {
    let (buffer, worker, mut handle) = mock_pair(1);
    let buffer = buffer.unreserved();
    let mut worker = spawn(worker);
    let mut idle: Vec<_> = (0..10).map(|_| buffer.clone()).collect();
    idle.iter_mut().for_each(make_ready);
    let mut caller = buffer.clone();
    make_ready(&mut caller);
    let mut response = spawn(caller.call(1));
    assert!(response.poll().is_pending());
    assert!(worker.poll().is_pending());
    handle.try_next().unwrap().1.send(2);
    assert_eq!(ready(response.poll()), Ok(2));
}

#[test]
fn unreserved_is_inherited_and_releases() {
    let layer = BufferLayer::with_executor(1, Threads).unreserved();
    let buffer = layer.clone().layer(mock::<u32, u32>().0);
    let mut idle = buffer.clone();
    make_ready(&mut idle);
    make_ready(&mut buffer.clone());

    let (buffer, _worker, _handle) = mock_pair(1);
    let mut idle = buffer.clone();
    make_ready(&mut idle);
    let _idle = idle.unreserved();
    make_ready(&mut buffer.clone());
}

#[test]
fn dropped_waiter_leaves_the_queue() {
    let (buffer, _worker, handle) = mock_pair(1);
    handle.set_ready(false);
    let mut holder = buffer.clone();
    make_ready(&mut holder);
    let mut first = buffer.clone();
    let mut second = buffer.clone();
    let (a, b) = (WakeCount::new(), WakeCount::new());
    assert!(a.poll_ready(&mut first).is_pending());
    assert!(b.poll_ready(&mut second).is_pending());
    // The first is granted the slot and goes away before polling again.
    drop(holder);
    assert_eq!((a.get(), b.get()), (1, 0));
    drop(first);
    assert_eq!(b.get(), 1);
    ready(b.poll_ready(&mut second)).unwrap();
}

#[test]
fn dropped_unready_call_leaves_the_queue() {
    let (mut buffer, _worker, _handle) = mock_pair(1);
    let mut holder = buffer.clone();
    make_ready(&mut holder);
    let mut response = spawn(buffer.call(1));
    assert!(response.poll().is_pending());
    drop(response);
    drop(holder);
    make_ready(&mut buffer);
}

#[test]
fn response_dropped_in_call_spares_others() {
    type Answer = std::future::Ready<Result<u32, Failure>>;
    type Slot = Rc<RefCell<Option<buffer::ResponseFuture<u32, Answer>>>>;
    let (first, second) = (Slot::default(), Slot::default());
    let handle = Rc::new(RefCell::new(None));
    let service = service_fn({
        let (first, second, handle) = (first.clone(), second.clone(), handle.clone());
        move |n: u32| -> Answer {
            // The next request arrives when the slot of the first would be free.
            if let Some(mut buffer) = handle.take() {
                drop(first.take());
                let buffer: &mut Buffer<u32, Answer> = &mut buffer;
                make_ready(buffer);
                second.replace(Some(buffer.call(2)));
            }
            std::future::ready(Ok(n))
        }
    });
    let (mut buffer, worker) = buffer::pair(service, 2);
    handle.replace(Some(buffer.clone()));
    make_ready(&mut buffer);
    first.replace(Some(buffer.call(1)));
    assert!(spawn(worker).poll().is_pending());
    let response = second.take().unwrap();
    assert_eq!(ready(spawn(response).poll()), Ok(2));
}

#[test]
fn request_dropped_in_poll_frees_capacity() {
    type Answer = std::future::Ready<Result<(), Failure>>;

    /// Never ready; drops the future it holds when polled.
    struct GivesUp<F>(Rc<RefCell<Option<F>>>);

    impl<F> Service<()> for GivesUp<F> {
        type Response = ();
        type Error = Failure;
        type Future = Answer;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Failure>> {
            drop(self.0.take());
            Poll::Pending
        }

        fn call(&mut self, (): ()) -> Answer {
            std::future::ready(Ok(()))
        }
    }

    macro_rules! check {
        ($response:expr, $pair:expr) => {
            let (mut buffer, worker) = $pair;
            let mut worker = spawn(worker);
            for _ in 0..3 {
                make_ready(&mut buffer);
                $response.replace(Some(buffer.call(())));
                let mut other = buffer.clone();
                let wakes = WakeCount::new();
                assert!(wakes.poll_ready(&mut other).is_pending());
                assert!(worker.poll().is_pending());
                assert_eq!(wakes.get(), 1);
            }
        };
    }

    let response = Rc::new(RefCell::new(None));
    check!(response, buffer::pair(GivesUp(response.clone()), 1));
    let queue = buffer::LocalQueue::<(), Answer, 1>::new();
    let response = Rc::new(RefCell::new(None));
    check!(
        response,
        buffer::try_pair_in(GivesUp(response.clone()), &queue).unwrap()
    );
}

#[test]
fn shedding_leaves_no_waiter() {
    let (buffer, worker, handle) = mock_pair(1);
    handle.set_ready(false);
    let mut worker = spawn(worker);
    let mut caller = buffer.clone();
    make_ready(&mut caller);
    let response = caller.call(1);
    assert!(worker.poll().is_pending());

    let mut shedding = LoadShed::new(buffer.clone());
    make_ready(&mut shedding);
    assert!(matches!(
        ready(spawn(shedding.call(2)).poll()),
        Err(load_shed::Error::Overloaded(_))
    ));
    drop(response);
    // The slot goes to another caller, though the shed handle still exists.
    let mut other = buffer.clone();
    make_ready(&mut other);
}

#[test]
fn waiter_outlives_the_last_handle() {
    for unreserved in [false, true] {
        let (mut buffer, worker, handle) = mock_pair(1);
        if unreserved {
            buffer = buffer.unreserved();
        }
        let mut worker = spawn(worker);
        assert!(worker.poll().is_pending());
        let mut response = spawn(buffer.call(1));
        drop(buffer);
        assert!(worker.poll().is_pending());
        assert!(response.poll().is_pending());
        assert!(worker.is_woken());
        // No handle is left.
        assert!(worker.poll().is_ready());
        assert_eq!(handle.calls(), 1);
    }
}

#[test]
fn cancelled_last_request_ends_draining() {
    for shut_down in [false, true] {
        let (mut buffer, worker, handle) = mock_pair(1);
        handle.set_ready(false);
        let mut worker = spawn(worker);
        make_ready(&mut buffer);
        let response = buffer.call(1);
        assert!(worker.poll().is_pending());
        let mut shutdown = spawn(buffer.shutdown());
        let keep = (!shut_down).then_some(buffer);
        assert!(worker.poll().is_pending());
        assert!(shutdown.poll().is_pending());
        drop(response);
        assert!(worker.is_woken());
        assert!(worker.poll().is_ready());
        assert!(shutdown.poll().is_ready());
        drop(keep);
    }
}

#[test]
fn huge_bound_is_accepted() {
    let (buffer, worker, _handle) = mock_pair(usize::MAX);
    let mut worker = spawn(worker);
    let mut shutdown = spawn(buffer.shutdown());
    assert!(worker.poll().is_ready());
    assert!(shutdown.poll().is_ready());

    let (buffer, worker, _handle) = mock_pair(usize::MAX);
    drop(worker);
    assert!(buffer.is_closed());
}

#[test]
fn panicking_request_drop_wakes_waiters() {
    struct Bomb(bool);
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(!self.0, "dropped");
        }
    }
    let service = service_fn(|_: Bomb| std::future::pending::<Result<(), Failure>>());
    let (mut buffer, worker) = buffer::pair(service, 4);
    let mut responses: Vec<_> = (0..3)
        .map(|n| {
            make_ready(&mut buffer);
            let mut response = spawn(buffer.call(Bomb(n == 0)));
            assert!(response.poll().is_pending());
            response
        })
        .collect();
    let mut shutdown = spawn(buffer.shutdown());
    assert!(shutdown.poll().is_pending());
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(worker)));
    assert!(caught.is_err());
    for response in &mut responses {
        assert!(response.is_woken());
        assert!(matches!(ready(response.poll()), Err(Error::Closed(_))));
    }
    assert!(shutdown.is_woken());
    assert!(shutdown.poll().is_ready());
}

#[test]
fn panic_is_seen_while_the_worker_lives() {
    let (mut buffer, worker) = buffer::pair(
        service_fn(|n: u32| -> std::future::Ready<Result<u32, Failure>> { panic!("told to: {n}") }),
        4,
    );
    let mut worker = spawn(worker);
    let mut responses: Vec<_> = (0..2)
        .map(|n| {
            make_ready(&mut buffer);
            let mut response = spawn(buffer.call(n));
            assert!(response.poll().is_pending());
            response
        })
        .collect();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.poll()));
    assert!(caught.is_err());
    for response in &mut responses {
        assert!(response.is_woken());
        assert!(matches!(ready(response.poll()), Err(Error::Panicked(_))));
    }
    // Polled again, the worker has ended and does not call the service.
    assert!(worker.poll().is_ready());
}

/// Ready for one request, then as configured.
struct Then(Poll<Result<(), Failure>>, u32);

impl Service<u32> for Then {
    type Response = u32;
    type Error = Failure;
    type Future = std::future::Ready<Result<u32, Failure>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Failure>> {
        match (self.1, &self.0) {
            (0, _) => Poll::Ready(Ok(())),
            (_, Poll::Ready(Ok(()))) => panic!("told to"),
            (_, then) => *then,
        }
    }

    fn call(&mut self, n: u32) -> Self::Future {
        self.1 += 1;
        std::future::ready(Ok(n))
    }
}

#[test]
fn answer_survives_the_next_failure() {
    for then in [
        Poll::Pending,
        Poll::Ready(Err(Failure("told to"))),
        Poll::Ready(Ok(())),
    ] {
        let is_panic = matches!(then, Poll::Ready(Ok(())));
        let (buffer, worker) = buffer::pair(Then(then, 0), 4);
        let mut worker = spawn(worker);
        let [mut first, mut second] = [1, 2].map(|n| {
            let mut buffer = buffer.clone();
            make_ready(&mut buffer);
            let mut response = spawn(buffer.call(n));
            assert!(response.poll().is_pending());
            response
        });
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.poll()));
        assert_eq!(caught.is_err(), is_panic);
        assert!(first.is_woken());
        assert_eq!(ready(first.poll()), Ok(1));
        drop(worker);
        assert!(ready(second.poll()).is_err());
    }
}

#[test]
fn a_clone_has_no_reservation() {
    let (mut buffer, _worker, _handle) = mock_pair(1);
    make_ready(&mut buffer);
    let mut clone = buffer.clone();
    assert!(WakeCount::new().poll_ready(&mut clone).is_pending());
}

async fn many_handles_share_one_service<H: Host>(rt: On<H>) {
    let mut sum = 0;
    // Neither `Clone` nor behind a lock.
    let service = service_fn(move |n: u64| {
        sum += n;
        std::future::ready(Ok::<_, Failure>(sum))
    });
    let buffer = Buffer::with_executor(service, 4, &rt);
    let answers = futures::future::join_all((1..=100).map(|n| {
        let mut buffer = buffer.clone();
        async move {
            std::future::poll_fn(|cx| buffer.poll_ready(cx)).await?;
            buffer.call(n).await
        }
    }))
    .await;
    let last = answers.into_iter().map(Result::unwrap).max();
    assert_eq!(last, Some(5_050));
    buffer.shutdown().await;
}

async fn cancelled_request_frees_capacity<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock::<Arc<u32>, u32>();
    handle.set_ready(false);
    let buffer = Buffer::with_executor(service, 2, &rt);
    let request = Arc::new(1);
    let given_up = buffer.clone().ready().await.unwrap().call(request.clone());
    let other = buffer.clone().ready().await.unwrap().call(Arc::new(2));
    let mut third = buffer.clone();
    let mut waiting = spawn(third.ready());
    assert!(waiting.poll().is_pending());

    // The service is not ready, yet the request is dropped and its slot is free.
    drop(given_up);
    until(|| Arc::strong_count(&request) == 1).await;
    waiting.finish().await.unwrap();
    drop(waiting);
    let third = third.call(Arc::new(3));
    handle.set_ready(true);
    for _ in 2..=3 {
        let (request, responder) = handle.next().await;
        responder.send(10 * *request);
    }
    assert_eq!(futures::join!(other, third), (Ok(20), Ok(30)));
}

async fn shutdown_waits_for_accepted_requests<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let buffer = Buffer::with_executor(service, 2, &rt);
    let accepted = buffer.clone().ready().await.unwrap().call(1);
    let mut ended = rt.start(buffer.shutdown());
    until(|| buffer.is_closed()).await;
    assert!(matches!(
        buffer.clone().ready().await,
        Err(Error::Closed(_))
    ));
    for _ in 0..10 {
        yield_now().await;
    }
    assert!(ended.try_recv().unwrap().is_none());

    handle.set_ready(true);
    let (_, responder) = handle.next().await;
    responder.send(2);
    assert_eq!(accepted.await, Ok(2));
    ended.await.unwrap();
    until(|| handle.alive() == 0).await;
}

async fn failure_reaches_every_caller<H: Host>(rt: On<H>) {
    let (service, handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let mut buffer = BufferLayer::with_executor(2, rt).layer(service);
    std::future::poll_fn(|cx| buffer.poll_ready(cx))
        .await
        .unwrap();
    let response = buffer.call(1);
    handle.fail(Failure("broken"));
    assert!(matches!(response.await, Err(Error::Failed(_))));
    until(|| handle.alive() == 0).await;
}

async fn panic_reaches_every_caller<H: Host>(rt: On<H>) {
    let service =
        service_fn(|n: u32| -> std::future::Ready<Result<u32, Failure>> { panic!("told to: {n}") });
    let mut buffer = Buffer::with_executor(service, 2, &rt);
    std::future::poll_fn(|cx| buffer.poll_ready(cx))
        .await
        .unwrap();
    assert!(matches!(buffer.call(1).await, Err(Error::Panicked(_))));
}

async fn last_handle_ends_the_worker<H: Host>(rt: On<H>) {
    let (service, handle) = mock::<u32, u32>();
    let buffer = Buffer::with_executor(service, 2, &rt);
    drop(buffer);
    until(|| handle.alive() == 0).await;
}

on_every_runtime! {
    many_handles_share_one_service,
    cancelled_request_frees_capacity,
    shutdown_waits_for_accepted_requests,
    failure_reaches_every_caller,
    panic_reaches_every_caller,
    last_handle_ends_the_worker,
}

/// Ready on command; counts its polls and keeps the last waker.
#[derive(Clone, Default)]
struct Background(Arc<std::sync::Mutex<(bool, usize, Option<std::task::Waker>)>>);

impl Background {
    fn set_ready(&self, is_ready: bool) {
        self.0.lock().unwrap().0 = is_ready;
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().1
    }

    fn wake(&self) {
        let waker = self.0.lock().unwrap().2.clone();
        waker.expect("it was polled").wake();
    }
}

impl Service<u32> for Background {
    type Response = u32;
    type Error = Failure;
    type Future = std::future::Ready<Result<u32, Failure>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), Failure>> {
        let mut state = self.0.lock().unwrap();
        state.1 += 1;
        state.2 = Some(cx.waker().clone());
        match state.0 {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }

    fn call(&mut self, n: u32) -> Self::Future {
        std::future::ready(Ok(n))
    }
}

#[test]
fn idle_buffer_polls_a_woken_service() {
    let service = Background::default();
    service.set_ready(true);
    let (mut buffer, worker) = buffer::pair(service.clone(), 2);
    let mut worker = spawn(worker);
    make_ready(&mut buffer);
    let mut response = spawn(buffer.call(1));
    assert!(worker.poll().is_pending());
    assert_eq!(ready(response.poll()), Ok(1));
    // Not polled after the call, since it has not been woken.
    assert!(worker.poll().is_pending());
    assert_eq!(service.asked(), 1);

    for asked in 2..5 {
        service.wake();
        service.wake();
        assert!(worker.is_woken());
        assert!(worker.poll().is_pending());
        assert_eq!(service.asked(), asked);
        // Once for each wake-up, and not for other polls.
        assert!(worker.poll().is_pending());
        assert_eq!(service.asked(), asked);
        assert!(!worker.is_woken());
    }

    service.set_ready(false);
    service.wake();
    assert!(worker.poll().is_pending());
    service.wake();
    assert!(worker.is_woken());
    // Also when a request and the service wake the worker at once.
    make_ready(&mut buffer);
    let mut response = spawn(buffer.call(2));
    assert!(response.poll().is_pending());
    service.set_ready(true);
    assert!(worker.poll().is_pending());
    assert_eq!(ready(response.poll()), Ok(2));
}

#[test]
fn unneeded_service_is_not_polled() {
    let service = Background::default();
    let (mut buffer, worker) = buffer::pair(service.clone(), 2);
    let mut worker = spawn(worker);
    assert!(worker.poll().is_pending());
    assert_eq!(service.asked(), 0);
    // The request that woke the worker is gone when the worker runs.
    make_ready(&mut buffer);
    drop(spawn(buffer.call(1)));
    assert!(worker.is_woken());
    assert!(worker.poll().is_pending());
    assert_eq!(service.asked(), 0);
}

#[test]
fn a_service_can_be_kept_ready() {
    let service = Background::default();
    let (buffer, worker) = buffer::pair(service.clone(), 2);
    let mut worker = spawn(worker);
    assert!(worker.poll().is_pending());
    let mut buffer = buffer.keep_ready();
    assert!(worker.is_woken());
    assert!(worker.poll().is_pending());
    assert_eq!(service.asked(), 1);
    service.set_ready(true);
    service.wake();
    assert!(worker.poll().is_pending());
    assert!(worker.poll().is_pending());
    assert_eq!(service.asked(), 2);

    // It is polled again after a call.
    make_ready(&mut buffer);
    let mut response = spawn(buffer.call(1));
    assert!(worker.poll().is_pending());
    assert_eq!(ready(response.poll()), Ok(1));
    assert_eq!(service.asked(), 4);
    assert!(worker.poll().is_pending());
    assert_eq!(service.asked(), 4);
}

#[test]
fn failed_kept_ready_service_is_dropped() {
    let (service, handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let layer = BufferLayer::with_executor(1, Threads).keep_ready();
    let mut buffer = layer.layer(service);
    handle.fail(Failure("gone"));
    futures::executor::block_on(until(|| handle.alive() == 0));
    futures::executor::block_on(until(|| buffer.is_closed()));
    let failed = ready(WakeCount::new().poll_ready(&mut buffer)).unwrap_err();
    assert!(matches!(failed, Error::Failed(_)), "{failed}");
}

/// Inside a task, the compiler checks whether a future that contains a `dyn` is `Send` for every lifetime that the
/// `dyn` may have.
#[test]
fn buffer_of_boxed_futures_is_send() {
    type Boxed = Pin<Box<dyn Future<Output = Result<u32, Failure>> + Send>>;

    fn is_send<F: Future + Send>(task: F) -> F {
        task
    }

    let service = service_fn(|n: u32| -> Boxed { Box::pin(async move { Ok(n + 1) }) });
    let (buffer, worker) = buffer::pair(service, 1);
    #[expect(
        clippy::redundant_async_block,
        reason = "the contents of the async block have to be `Send`"
    )]
    let worker = is_send(async move { worker.await });
    let task = is_send(async move {
        let mut buffer = buffer.clone();
        std::future::poll_fn(|cx| buffer.poll_ready(cx)).await?;
        buffer.call(1).await
    });
    let (answer, ()) = futures::executor::block_on(async { futures::join!(task, worker) });
    assert_eq!(answer, Ok(2));
}

/// Several threads drop handles, requests and responses at random; at the end everything is accounted for.
#[test]
fn random_drops_lose_nothing() {
    let (service, handle) = mock::<Arc<()>, u32>();
    let token = Arc::new(());
    let (buffer, worker) = buffer::pair(service, 3);
    let worker = std::thread::spawn(move || futures::executor::block_on(worker));
    let answering = std::thread::spawn({
        let mut handle = handle;
        move || {
            let mut random = SplitMix64::new(7);
            loop {
                match handle.try_next() {
                    Some((_, responder)) if random.next_range(0..3) == 0 => drop(responder),
                    Some((_, responder)) => responder.send(1),
                    None if handle.alive() == 0 => return handle.calls(),
                    None => std::thread::yield_now(),
                }
                handle.set_ready(random.next_range(0..4) != 0);
            }
        }
    });
    let callers: Vec<_> = (0..4)
        .map(|seed| {
            let (buffer, token) = (buffer.clone(), token.clone());
            std::thread::spawn(move || {
                let mut random = SplitMix64::new(seed + 1);
                let mut answered = 0;
                for _ in 0..2_000 {
                    let mut buffer = buffer.clone();
                    let mut polls = random.next_range(0..6);
                    let request = async {
                        std::future::poll_fn(|cx| buffer.poll_ready(cx)).await?;
                        buffer.call(token.clone()).await
                    };
                    let mut request = std::pin::pin!(request);
                    // Cancelled after a few polls, or never.
                    let patient = random.next_range(0..2) == 0;
                    let outcome = futures::executor::block_on(std::future::poll_fn(|cx| {
                        if !patient {
                            if polls == 0 {
                                return Poll::Ready(None);
                            }
                            polls -= 1;
                            cx.waker().wake_by_ref();
                        }
                        request.as_mut().poll(cx).map(Some)
                    }));
                    match outcome {
                        Some(Ok(1)) => answered += 1,
                        None | Some(Err(Error::Service(_))) => {}
                        Some(other) => panic!("{other:?}"),
                    }
                }
                answered
            })
        })
        .collect();
    let answered: usize = callers
        .into_iter()
        .map(|caller| caller.join().unwrap())
        .sum();
    // All capacity is available again.
    let mut handles: Vec<_> = (0..3).map(|_| buffer.clone()).collect();
    handles.iter_mut().for_each(make_ready);
    drop((handles, buffer));
    worker.join().unwrap();
    let calls = answering.join().unwrap();
    assert!(answered > 0 && answered <= calls);
    assert_eq!(Arc::strong_count(&token), 1);
}
