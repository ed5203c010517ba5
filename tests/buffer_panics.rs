//! User code may panic when it is woken or dropped. That costs no other handle or request a wake-up, a slot or an
//! answer.
#![cfg(feature = "std")]

mod common;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Wake, Waker};

use campanile::Service;
use campanile::buffer::{self, Buffer, Error, LocalQueue};
use common::{Failure, WakeCount, ready, spawn};

fn panics(act: impl FnOnce()) {
    assert!(catch_unwind(AssertUnwindSafe(act)).is_err(), "no panic");
}

fn make_ready<S: Service<R>, R>(service: &mut S)
where
    S::Error: std::fmt::Debug,
{
    ready(WakeCount::new().poll_ready(service)).unwrap();
}

/// A waker that panics when it is woken.
struct BadWaker;

impl Wake for BadWaker {
    fn wake(self: Arc<Self>) {
        panic!("woken");
    }
}

fn bad_waker() -> Waker {
    Waker::from(Arc::new(BadWaker))
}

/// A response that panics when it is dropped.
struct Answer {
    n: u32,
    is_bomb: bool,
}

impl Future for Answer {
    type Output = Result<u32, Failure>;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(self.n))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        assert!(!self.is_bomb, "dropped");
    }
}

type Kept<Q> = Rc<RefCell<Option<buffer::ResponseFuture<u32, Answer, Q>>>>;
type Heap = buffer::HeapQueue<u32, Answer>;

/// Without care, the waiter that gets the slot of the taken request would lose its wake-up.
#[test]
fn panicking_response_drop_wakes_waiters() {
    let first = Kept::<Heap>::default();
    let service = {
        let first = first.clone();
        move |n: u32| {
            drop(first.take());
            Answer { n, is_bomb: n == 0 }
        }
    };
    let (mut buffer, worker) = buffer::pair(Calls(service), 2);
    make_ready(&mut buffer);
    first.replace(Some(buffer.call(0)));
    make_ready(&mut buffer);
    let mut second = spawn(buffer.call(1));
    assert!(second.poll().is_pending());
    let mut others = [2, 3].map(|n| {
        let mut response = spawn(buffer.call(n));
        assert!(response.poll().is_pending());
        response
    });
    let mut worker = spawn(worker);
    panics(|| _ = worker.poll());
    assert!(second.is_woken());
    for other in &mut others {
        assert!(other.is_woken(), "never woken");
        assert!(matches!(ready(other.poll()), Err(Error::Panicked(_))));
    }
}

/// A service from a closure that returns an `Answer`.
struct Calls<F>(F);

impl<F: FnMut(u32) -> Answer> Service<u32> for Calls<F> {
    type Response = u32;
    type Error = Failure;
    type Future = Answer;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, n: u32) -> Answer {
        (self.0)(n)
    }
}

/// Without care, the response of a cancelled request would go to another.
#[test]
fn panic_never_mixes_up_responses() {
    let queue = LocalQueue::<u32, Answer, 2>::new();
    let first = Kept::default();
    let service = Calls({
        let first = first.clone();
        move |n: u32| {
            drop(first.take());
            Answer { n, is_bomb: false }
        }
    });
    let (mut buffer, worker) = buffer::try_pair_in(service, &queue).unwrap();
    make_ready(&mut buffer);
    first.replace(Some(buffer.call(1)));
    make_ready(&mut buffer);
    let mut second = spawn(buffer.call(2));
    assert!(second.poll().is_pending());
    let waker = bad_waker();
    let mut third = Box::pin(buffer.call(3));
    let polled = third.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    let mut worker = spawn(worker);
    assert!(worker.poll().is_pending());
    assert_eq!(ready(second.poll()), Ok(2));
}

/// A caller that is answered or given capacity runs in another task than the worker.
#[test]
fn panicking_caller_wakers_keep_the_buffer() {
    for bound in [2, 8] {
        let service = Calls(|n: u32| Answer { n, is_bomb: false });
        let (mut buffer, worker) = buffer::pair(service, bound);
        let waker = bad_waker();
        let mut cx = Context::from_waker(&waker);
        let mut bad = [0, 1, 2, 3].map(|n| {
            let mut response = Box::pin(buffer.call(n));
            assert!(response.as_mut().poll(&mut cx).is_pending());
            response
        });
        let mut good = spawn(buffer.call(4));
        assert!(good.poll().is_pending());
        let mut worker = spawn(worker);
        assert!(worker.poll().is_pending());
        // The callers that were given capacity use it.
        for response in &mut bad {
            _ = WakeCount::new().poll(response);
        }
        assert!(worker.poll().is_pending());
        let mut answer = good.poll();
        if answer.is_pending() {
            assert!(worker.poll().is_pending());
            answer = good.poll();
        }
        assert_eq!(answer, Poll::Ready(Ok(4)));
    }
}

/// Two panics at once, which would abort the process, are avoided too.
#[test]
fn callers_waker_and_service_may_both_panic() {
    let (mut buffer, worker) = buffer::pair(Calls(|_| panic!("called")), 2);
    make_ready(&mut buffer);
    let mut bad = Box::pin(buffer.call(1));
    let waker = bad_waker();
    let polled = bad.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    make_ready(&mut buffer);
    let mut good = spawn(buffer.call(2));
    assert!(good.poll().is_pending());
    let mut worker = spawn(worker);
    panics(|| _ = worker.poll());
    assert!(good.is_woken());
    assert!(matches!(ready(good.poll()), Err(Error::Panicked(_))));
}

/// A caller that cancels while the service is polled for it makes room for one whose waker panics.
#[test]
fn panicking_waiter_wakers_keep_the_buffer() {
    let asked = Rc::new(RefCell::new(None));
    let service = Asks {
        given_up: asked.clone(),
    };
    let (mut buffer, worker) = buffer::pair(service, 1);
    make_ready(&mut buffer);
    asked.replace(Some(buffer.call(1)));
    let waker = bad_waker();
    let mut other = buffer.clone();
    let polled = other.poll_ready(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    let mut worker = spawn(worker);
    assert!(worker.poll().is_pending());
    make_ready(&mut other);
    let mut response = spawn(other.call(2));
    assert!(response.poll().is_pending());
    assert!(worker.poll().is_pending());
    assert_eq!(response.poll(), Poll::Ready(Ok(2)));
}

/// Pending while it still has a response to cancel.
struct Asks {
    given_up: Kept<Heap>,
}

impl Service<u32> for Asks {
    type Response = u32;
    type Error = Failure;
    type Future = Answer;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self.given_up.take() {
            Some(_response) => Poll::Pending,
            None => Poll::Ready(Ok(())),
        }
    }
    fn call(&mut self, n: u32) -> Answer {
        Answer { n, is_bomb: false }
    }
}

/// Without care, an answered request would be cancelled again when its slot is free or reused.
#[test]
fn panicking_response_poll_spares_others() {
    let queue = LocalQueue::<u32, Answer, 1>::new();
    let service = Calls(|n: u32| Answer { n, is_bomb: false });
    let (mut buffer, worker) = buffer::try_pair_in(service, &queue).unwrap();
    make_ready(&mut buffer);
    let mut worker = spawn(worker);
    let mut first = spawn(buffer.call(1));
    assert!(worker.poll().is_pending());
    let waker = bad_waker();
    let mut second = Box::pin(buffer.call(2));
    let polled = second.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    // This makes room for the second, whose waker panics.
    panics(|| _ = first.poll());
    drop(first);
    let wakes = WakeCount::new();
    assert!(wakes.poll(&mut second).is_pending());
    assert!(worker.poll().is_pending());
    assert_eq!(wakes.get(), 1, "never answered");
    assert_eq!(wakes.poll(&mut second), Poll::Ready(Ok(2)));
}

struct DropWaker;

impl Wake for DropWaker {
    fn wake(self: Arc<Self>) {}
}

impl Drop for DropWaker {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

/// Without care, a worker's waker that panics on drop would keep `close` from refusing the rest.
#[test]
fn panicking_waker_drop_wakes_waiters() {
    let service = Calls(|n: u32| Answer { n, is_bomb: false });
    let (mut buffer, worker) = buffer::pair(service, 1);
    let mut worker = Box::pin(worker);
    {
        let waker = Waker::from(Arc::new(DropWaker));
        let polled = worker.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        // `send` would take the waker of an idle worker, so this handle only reserves.
    }
    make_ready(&mut buffer);
    let mut other = buffer.clone();
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut other).is_pending());
    panics(|| drop(worker));
    assert_eq!(wakes.get(), 1, "never woken");
    assert!(matches!(
        ready(wakes.poll_ready(&mut other)),
        Err(Error::Closed(_))
    ));
}

/// Without care, an orphaned request would stay in the queue and occupy a slot for ever.
#[test]
fn panicking_call_holds_no_capacity() {
    let queue = LocalQueue::<u32, Answer, 1>::new();
    let service = Calls(|n: u32| Answer { n, is_bomb: false });
    let (mut buffer, worker) = buffer::try_pair_in(service, &queue).unwrap();
    let mut worker = Box::pin(worker);
    let polled = worker.as_mut().poll(&mut Context::from_waker(&bad_waker()));
    assert!(polled.is_pending());
    make_ready(&mut buffer);
    panics(|| drop(buffer.call(1)));
    let wakes = WakeCount::new();
    assert!(wakes.poll(&mut worker).is_pending());
    assert!(wakes.poll_ready(&mut buffer).is_ready(), "no room for ever");
}

/// Without care, a worker whose waker panics would keep `close` from waking those that wait for capacity.
#[test]
fn panicking_worker_waker_spares_shutdown() {
    let service = Calls(|n: u32| Answer { n, is_bomb: false });
    let (mut buffer, worker) = buffer::pair(service, 1);
    let mut worker = Box::pin(worker);
    let polled = worker.as_mut().poll(&mut Context::from_waker(&bad_waker()));
    assert!(polled.is_pending());
    make_ready(&mut buffer);
    let mut other: Buffer<_, _> = buffer.clone();
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut other).is_pending());
    panics(|| buffer.close());
    assert_eq!(wakes.get(), 1, "asleep");
}

/// Without care, a handle would be counted for ever and the worker would never end.
#[test]
fn handle_is_gone_if_the_next_waker_panics() {
    let service = Calls(|n: u32| Answer { n, is_bomb: false });
    let (mut buffer, worker) = buffer::pair(service, 1);
    make_ready(&mut buffer);
    let mut other = buffer.clone();
    let polled = other.poll_ready(&mut Context::from_waker(&bad_waker()));
    assert!(polled.is_pending());
    panics(|| drop(buffer));
    drop(other);
    assert!(spawn(worker).poll().is_ready());
}

/// Without care, the first waiter's panic at the shutdown would leave the other waiters asleep.
#[test]
fn panicking_shutdown_waker_spares_others() {
    let service = Calls(|n: u32| Answer { n, is_bomb: false });
    let (mut buffer, worker) = buffer::pair(service, 1);
    make_ready(&mut buffer);
    let mut first = buffer.clone();
    let polled = first.poll_ready(&mut Context::from_waker(&bad_waker()));
    assert!(polled.is_pending());
    let mut second: Buffer<_, _> = buffer.clone();
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut second).is_pending());
    panics(|| buffer.close());
    assert_eq!(wakes.get(), 1, "asleep");
    drop(worker);
}

/// Polls with a panicking waker; the poll has to be pending.
fn wait_with_panicking_waker<S: Service<u32>>(service: &mut S) {
    let polled = service.poll_ready(&mut Context::from_waker(&bad_waker()));
    assert!(polled.is_pending());
}

/// Several wakers panic, yet every waiter learns of the end.
#[test]
fn panicking_wakers_spare_other_waiters() {
    type Close = fn(Buffer<u32, Answer>, Box<dyn std::any::Any>);
    let ends: [Close; 2] = [|buffer, _| buffer.close(), |_, worker| drop(worker)];
    for end in ends {
        let service = Calls(|n: u32| Answer { n, is_bomb: false });
        let (mut buffer, worker) = buffer::pair(service, 1);
        make_ready(&mut buffer);
        let mut handles: [Buffer<_, _>; 6] = std::array::from_fn(|_| buffer.clone());
        let wakes = WakeCount::new();
        for (n, handle) in handles.iter_mut().enumerate() {
            if n % 3 < 2 {
                wait_with_panicking_waker(handle);
            } else {
                assert!(wakes.poll_ready(handle).is_pending());
            }
        }
        panics(|| end(buffer.clone(), Box::new(worker)));
        assert_eq!(wakes.get(), 2);
    }
}

/// A request that panics when it is dropped.
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.0, "dropped");
    }
}

/// Requests that panic when the queue ends, and panicking wakers of others.
#[test]
fn panicking_request_drops_spare_others() {
    let service = campanile::service_fn(|bomb: Bomb| {
        std::mem::forget(bomb);
        std::future::ready(Ok::<_, Failure>(()))
    });
    let (mut buffer, worker) = buffer::pair(service, 8);
    let mut responses: Vec<_> = (0..8)
        .map(|n| {
            ready(WakeCount::new().poll_ready(&mut buffer)).unwrap();
            spawn(buffer.call(Bomb(n % 3 < 2)))
        })
        .collect();
    assert!(responses.iter_mut().all(|r| r.poll().is_pending()));
    panics(|| drop(worker));
    for response in &mut responses {
        assert!(response.is_woken());
        assert!(matches!(ready(response.poll()), Err(Error::Closed(_))));
    }
}

/// Records whether something is alive when woken.
struct Look {
    at: Weak<()>,
    was_alive: Mutex<Option<bool>>,
}

impl Look {
    fn new(at: &Arc<()>) -> Arc<Self> {
        Arc::new(Self {
            at: Arc::downgrade(at),
            was_alive: Mutex::new(None),
        })
    }

    #[track_caller]
    fn assert_gone(&self) {
        assert_eq!(*self.was_alive.lock().unwrap(), Some(false));
    }
}

impl Wake for Look {
    fn wake(self: Arc<Self>) {
        *self.was_alive.lock().unwrap() = Some(self.at.strong_count() > 0);
    }
}

/// Every caller that learns of the panic finds the service dropped, though the worker still exists.
#[test]
fn panicked_service_is_dropped_before_wakes() {
    let service = Arc::new(());
    let look = Look::new(&service);
    let calls = Calls(move |_| {
        let _ = &service;
        panic!("called")
    });
    let (mut buffer, worker) = buffer::pair(calls, 1);
    make_ready(&mut buffer);
    let mut response = Box::pin(buffer.call(1));
    let waker = Waker::from(look.clone());
    let mut cx = Context::from_waker(&waker);
    assert!(response.as_mut().poll(&mut cx).is_pending());
    let mut worker = spawn(worker);
    panics(|| _ = worker.poll());
    look.assert_gone();
    let answer = ready(response.as_mut().poll(&mut cx));
    assert!(matches!(answer, Err(Error::Panicked(_))));
}

/// A cancelled request is dropped before its slot goes to another.
#[test]
fn slot_is_reused_after_the_request_is_gone() {
    let service = campanile::service_fn(|_: Arc<()>| std::future::ready(Ok::<_, Failure>(())));
    let (mut buffer, _worker) = buffer::pair(service, 1);
    ready(WakeCount::new().poll_ready(&mut buffer)).unwrap();
    let request = Arc::new(());
    let look = Look::new(&request);
    let response = buffer.call(request);
    let waker = Waker::from(look.clone());
    let mut other = buffer.clone();
    assert!(
        other
            .poll_ready(&mut Context::from_waker(&waker))
            .is_pending()
    );
    drop(response);
    look.assert_gone();
}
