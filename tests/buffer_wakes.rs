//! Which task an answer wakes: the one that waits for it, and no other. A ready handle is not woken for what it has not
//! asked for: a worker around another buffer would then ask for capacity.
#![cfg(feature = "std")]

mod common;

use std::future::Ready;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use campanile::buffer::{self, Buffer, Error};
use campanile::limit::ConcurrencyLimit;
use campanile::load_shed::LoadShed;
use campanile::{Service, service_fn};
use common::{Failure, Handle, Mock, MockFuture, Task, WakeCount, mock, ready, spawn};

type MockBuffer = Buffer<u32, MockFuture<u32>>;
type Response = buffer::ResponseFuture<u32, MockFuture<u32>>;
type Worker = buffer::Worker<Mock<u32, u32>, u32>;

/// A buffer and its worker, which has asked for work.
fn idle() -> (MockBuffer, Task<Worker>, Handle<u32, u32>) {
    let (service, handle) = mock();
    let (buffer, worker) = buffer::pair(service, 4);
    let mut worker = spawn(worker);
    assert!(worker.poll().is_pending());
    (buffer, worker, handle)
}

/// Sends a request from `task`, after polling the handle ready.
fn call(task: &WakeCount, buffer: &MockBuffer, n: u32) -> Response {
    let mut buffer = buffer.clone();
    ready(task.poll_ready(&mut buffer)).unwrap();
    buffer.call(n)
}

/// Answers the one request that the worker has.
fn answer(worker: &mut Task<Worker>, handle: &mut Handle<u32, u32>) {
    assert!(worker.is_woken() && worker.poll().is_pending());
    let (n, responder) = handle.try_next().unwrap();
    responder.send(n * 10);
}

/// Whether the handle was polled ready, was only tried, or was not polled.
#[test]
fn waiter_is_woken_once() {
    fn is_woken_once<F, E>(request: impl FnOnce(&WakeCount, &MockBuffer) -> F)
    where
        F: Future<Output = Result<u32, E>> + Unpin,
        E: std::fmt::Debug,
    {
        let (buffer, mut worker, mut handle) = idle();
        let task = WakeCount::new();
        let mut response = request(&task, &buffer);
        for _ in 0..2 {
            assert!(task.poll(&mut response).is_pending());
        }
        answer(&mut worker, &mut handle);
        assert_eq!(task.get(), 1);
        assert_eq!(ready(task.poll(&mut response)).unwrap(), 10);
    }

    is_woken_once(|task, buffer| call(task, buffer, 1));
    is_woken_once(|_, buffer| buffer.clone().call(1));
    is_woken_once(|task, buffer| {
        let mut service = LoadShed::new(buffer.clone());
        ready(task.poll_ready(&mut service)).unwrap();
        service.call(1)
    });
}

#[test]
fn waiter_is_woken_but_not_a_ready_handle() {
    let (buffer, mut worker, mut handle) = idle();
    let [was_ready, waits] = [(); 2].map(|()| WakeCount::new());
    let mut response = call(&was_ready, &buffer, 1);
    assert!(waits.poll(&mut response).is_pending());
    answer(&mut worker, &mut handle);
    assert_eq!((was_ready.get(), waits.get()), (0, 1));
    assert_eq!(waits.poll(&mut response), Poll::Ready(Ok(10)));
}

#[test]
fn moved_response_spares_the_old_task() {
    let (buffer, mut worker, mut handle) = idle();
    let [first, second] = [(); 2].map(|()| WakeCount::new());
    let mut response = call(&first, &buffer, 1);
    assert!(first.poll(&mut response).is_pending());
    assert!(second.poll(&mut response).is_pending());
    answer(&mut worker, &mut handle);
    assert_eq!((first.get(), second.get()), (0, 1));
}

#[test]
fn early_answer_is_ready_at_once() {
    let (buffer, mut worker, mut handle) = idle();
    let task = WakeCount::new();
    let mut response = call(&task, &buffer, 1);
    answer(&mut worker, &mut handle);
    // No task has waited for it.
    assert_eq!(task.get(), 0);
    assert_eq!(task.poll(&mut response), Poll::Ready(Ok(10)));
}

#[test]
fn waiter_after_an_answer_is_woken() {
    let (service, mut handle) = mock();
    // Not ready for the second request before the first is done.
    let service = ConcurrencyLimit::new(service, 1);
    let (mut buffer, worker) = buffer::pair(service, 4);
    let mut worker = spawn(worker);
    let task = WakeCount::new();
    let [mut first, mut second] = [1, 2].map(|n| {
        ready(task.poll_ready(&mut buffer)).unwrap();
        buffer.call(n)
    });
    assert!(worker.poll().is_pending());
    assert!(task.poll(&mut second).is_pending());
    handle.try_next().unwrap().1.send(10);
    assert_eq!(task.poll(&mut first), Poll::Ready(Ok(10)));
    assert!(worker.is_woken() && worker.poll().is_pending());
    assert_eq!(task.get(), 1);
    handle.try_next().unwrap().1.send(20);
    assert_eq!(task.poll(&mut second), Poll::Ready(Ok(20)));
}

#[test]
fn end_around_the_first_poll_is_seen() {
    for is_polled in [false, true] {
        let (buffer, worker, _handle) = idle();
        let task = WakeCount::new();
        let mut responses = [1, 2].map(|n| call(&task, &buffer, n));
        if is_polled {
            for response in &mut responses {
                assert!(task.poll(response).is_pending());
            }
        }
        drop(worker);
        assert_eq!(task.get(), if is_polled { 2 } else { 0 });
        for response in &mut responses {
            let polled = ready(task.poll(response));
            assert!(matches!(polled, Err(Error::Closed(_))), "{polled:?}");
        }
    }
}

#[test]
fn panic_before_the_first_poll_is_seen() {
    // The worker holds the first request.
    for requests in [1, 2] {
        let panics = service_fn(|_: u32| -> Ready<Result<u32, Failure>> {
            resume_unwind(Box::new("told to"));
        });
        let (mut buffer, worker) = buffer::pair(panics, 4);
        let mut worker = spawn(worker);
        let task = WakeCount::new();
        let responses: Vec<_> = (0..requests)
            .map(|n| {
                ready(task.poll_ready(&mut buffer)).unwrap();
                buffer.call(n)
            })
            .collect();
        assert!(catch_unwind(AssertUnwindSafe(|| worker.poll())).is_err());
        assert_eq!(task.get(), 0);
        for mut response in responses {
            let polled = ready(task.poll(&mut response));
            assert!(matches!(polled, Err(Error::Panicked(_))), "{polled:?}");
        }
    }
}

/// Counts its live wakers by its clones.
struct Alive;

impl Wake for Alive {
    fn wake(self: Arc<Self>) {}
}

/// A kept waker could keep its task alive, and with it the handle, so that the worker would never end.
#[test]
fn ready_handle_keeps_no_waker() {
    let (buffer, _worker, _handle) = idle();
    let alive = Arc::new(Alive);
    let waker = Waker::from(alive.clone());
    let mut cx = Context::from_waker(&waker);
    for mut handle in [buffer.clone(), buffer.unreserved()] {
        assert!(handle.poll_ready(&mut cx).is_ready());
        assert_eq!(Arc::strong_count(&alive), 2);
        let mut response = handle.call(1);
        assert_eq!(Arc::strong_count(&alive), 2);
        assert!(Pin::new(&mut response).poll(&mut cx).is_pending());
        assert_eq!(Arc::strong_count(&alive), 3);
        drop(response);
        assert_eq!(Arc::strong_count(&alive), 2);
    }
}

/// Two buffers around handles of a `service` with capacity for one: once the first is idle, the second can use it.
fn idle_worker_keeps_nothing<S>(service: S, worker: impl Future<Output = ()>)
where
    S: Service<u32, Response = u32, Error: std::fmt::Debug> + Clone,
{
    let mut inner = spawn(worker);
    let outer = [(); 2].map(|()| buffer::pair(service.clone(), 4));
    drop(service);
    let mut outer = outer.map(|(buffer, worker)| (buffer, spawn(worker)));
    assert!(inner.poll().is_pending());
    for (buffer, worker) in &mut outer {
        assert!(worker.poll().is_pending());
        let task = WakeCount::new();
        ready(task.poll_ready(buffer)).unwrap();
        let mut response = Box::pin(buffer.call(1));
        assert!(task.poll(&mut response).is_pending());
        // The inner worker answers before any task has polled for it.
        assert!(worker.poll().is_pending());
        assert!(inner.is_woken() && inner.poll().is_pending());
        while worker.is_woken() {
            assert!(worker.poll().is_pending());
        }
        assert_eq!(ready(task.poll(&mut response)).unwrap(), 1);
    }
}

#[test]
fn idle_worker_keeps_no_inner_capacity() {
    let (inner, worker) = buffer::pair(service_fn(async |n: u32| Ok::<_, Failure>(n)), 1);
    idle_worker_keeps_nothing(inner, worker);
}

#[test]
fn idle_worker_keeps_no_outer_permit() {
    let (inner, worker) = buffer::pair(service_fn(async |n: u32| Ok::<_, Failure>(n)), 100);
    idle_worker_keeps_nothing(ConcurrencyLimit::new(inner, 1), worker);
}
