//! Buffers and limits in fixed storage, in a `static` and on one thread. `tests/allocations.rs` and the program without
//! an allocator in `tests/no-alloc` show that they allocate nothing.

mod common;

use std::cell::{Cell, RefCell};
use std::future::{Ready, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;

use campanile::buffer::{self, FixedError, LocalQueue};
use campanile::limit::ConcurrencyLimit;
use campanile::limit::concurrency::{self, InvalidLimit, LocalSemaphore};
use campanile::load_shed::{self, LoadShed};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Service, service_fn};

use common::{Failure, MockFuture, WakeCount, mock, panics_at, ready, spawn, yield_now};

#[track_caller]
fn make_ready<S: Service<R>, R>(service: &mut S)
where
    S::Error: std::fmt::Debug,
{
    ready(WakeCount::new().poll_ready(service)).unwrap();
}

#[test]
fn a_buffer_needs_no_allocator() {
    let queue = LocalQueue::<_, _, 2>::new();
    let (mut buffer, worker) =
        buffer::try_pair_in(service_fn(async |n: u32| Ok::<_, Failure>(n * 2)), &queue).unwrap();
    let mut worker = spawn(worker);
    make_ready(&mut buffer);
    let mut response = spawn(buffer.call(21));
    assert!(response.poll().is_pending());
    assert!(worker.poll().is_pending());
    assert!(response.is_woken());
    assert_eq!(ready(response.poll()), Ok(42));
    drop((buffer, response));
    assert!(worker.is_woken());
    assert!(worker.poll().is_ready());
}

#[test]
fn capacity_is_exact() {
    let (service, mut handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let queue = LocalQueue::<_, MockFuture<u32>, 2>::new();
    let (mut buffer, worker) = buffer::try_pair_in(service, &queue).unwrap();
    let mut worker = spawn(worker);
    let mut responses = Vec::new();
    for n in 0..2 {
        make_ready(&mut buffer);
        responses.push(spawn(buffer.call(n)));
    }
    assert!(worker.poll().is_pending());
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut buffer).is_pending());

    // A request uses capacity until its response is collected.
    handle.set_ready(true);
    assert!(worker.poll().is_pending());
    let (request, _responder) = handle.try_next().unwrap();
    assert_eq!(request, 0);
    assert!(wakes.poll_ready(&mut buffer).is_pending());
    assert!(responses[0].poll().is_pending());
    assert_eq!(wakes.get(), 1);
    make_ready(&mut buffer);
}

#[test]
fn full_capacity_queue_refuses_one_request() {
    let (service, mut handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let queue = LocalQueue::<_, _, 1>::new();
    let (mut first, worker) = buffer::try_pair_in(service, &queue).unwrap();
    let mut worker = spawn(worker);
    let (mut second, mut third) = (first.clone(), first.clone());
    make_ready(&mut first);
    let mut served = spawn(first.call(1));
    let in_line = WakeCount::new();
    assert!(in_line.poll_ready(&mut second).is_pending());

    // The capacity and the only place in the wait queue are taken: this handle is ready, but its request fails.
    make_ready(&mut third);
    let mut refused = spawn(third.call(3));
    let error = ready(refused.poll()).unwrap_err();
    assert!(matches!(error, FixedError::Overflow(_)), "{error:?}");
    // A refusal causes no busy loop.
    assert!(!refused.is_woken());
    assert_eq!(in_line.get(), 0);

    // Load shedding acts first and takes no place in the queue.
    let mut shed = LoadShed::new(third.clone());
    make_ready(&mut shed);
    let error = ready(spawn(shed.call(4)).poll()).unwrap_err();
    assert!(
        matches!(error, load_shed::Error::Overloaded(_)),
        "{error:?}"
    );

    handle.set_ready(true);
    assert!(worker.poll().is_pending());
    handle.try_next().unwrap().1.send(10);
    assert_eq!(ready(served.poll()), Ok(10));
    assert_eq!(in_line.get(), 1);
    make_ready(&mut second);
    drop(second);
    make_ready(&mut third);
}

#[test]
fn every_handle_sees_the_failure() {
    let (service, handle) = mock::<u32, u32>();
    let queue = LocalQueue::<_, _, 4>::new();
    let (mut buffer, worker) = buffer::try_pair_in(service, &queue).unwrap();
    let mut worker = spawn(worker);
    let mut idle = buffer.clone();
    make_ready(&mut idle);
    make_ready(&mut buffer);
    let mut response = spawn(buffer.call(1));
    handle.fail(Failure("broken"));
    assert!(worker.poll().is_ready());
    assert_eq!(handle.alive(), 0);
    let failed = Err(FixedError::Failed(Failure("broken")));
    assert_eq!(ready(response.poll()), failed);
    let mut response = spawn(idle.call(2));
    assert_eq!(ready(response.poll()), failed);
    let polled = WakeCount::new().poll_ready(&mut idle.clone());
    assert_eq!(ready(polled), Err(FixedError::Failed(Failure("broken"))));
}

#[test]
fn queue_serves_one_buffer() {
    let service = service_fn(async |n: u32| Ok::<_, Failure>(n));
    let queue = LocalQueue::<_, _, 1>::new();
    let (buffer, worker) = buffer::try_pair_in(service, &queue).unwrap();
    let error = buffer::try_pair_in(service, &queue).unwrap_err();
    assert_eq!(error.to_string(), "the queue has a buffer already");
    drop((buffer, worker));
    buffer::try_pair_in(service, &queue).unwrap_err();
}

#[test]
fn queue_without_handles_is_not_reused() {
    let queue = LocalQueue::<_, _, 1>::new();
    let (service, handle) = mock::<u32, u32>();
    let (buffer, worker) = buffer::try_pair_in(service.clone(), &queue).unwrap();
    drop(buffer);
    // The worker has not seen the end of the handles yet, so it still owns the queue.
    assert!(buffer::try_pair_in(service, &queue).is_err());
    assert!(spawn(worker).poll().is_ready());
    assert_eq!(handle.alive(), 0);
}

/// Cancels a request while the service is called with it and another request waits for capacity. Then the service
/// panics or answers. Returns what the waiter gets; it must be woken once.
#[track_caller]
fn cancel_during_the_call(panics: bool) -> Result<(), FixedError<Failure>> {
    type Response<'a> = buffer::ResponseFuture<u32, Ready<Answer>, &'a Queue>;
    type Queue = LocalQueue<u32, Ready<Answer>, 1>;
    type Answer = Result<u32, Failure>;
    let queue = Queue::new();
    let given_up: Rc<RefCell<Option<Pin<Box<Response<'_>>>>>> = Rc::default();
    let response = given_up.clone();
    let service = service_fn(move |n: u32| {
        response.take();
        if panics {
            std::panic::resume_unwind(Box::new("call"));
        }
        std::future::ready(Ok(n))
    });
    let (mut buffer, worker) = buffer::try_pair_in(service, &queue).unwrap();
    let mut worker = spawn(worker);
    make_ready(&mut buffer);
    given_up.replace(Some(Box::pin(buffer.call(1))));
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut buffer).is_pending());
    let worked = catch_unwind(AssertUnwindSafe(|| worker.poll()));
    assert_eq!((worked.is_err(), wakes.get()), (panics, 1));
    ready(wakes.poll_ready(&mut buffer))
}

#[test]
fn cancelled_call_frees_its_capacity() {
    assert_eq!(cancel_during_the_call(false), Ok(()));
}

#[test]
fn panic_after_a_cancel_wakes_waiters() {
    let error = cancel_during_the_call(true).unwrap_err();
    assert!(matches!(error, FixedError::Panicked(_)), "{error:?}");
}

#[test]
fn a_closed_buffer_drains() {
    let queue = LocalQueue::<_, _, 2>::new();
    let (mut buffer, worker) =
        buffer::try_pair_in(service_fn(async |n: u32| Ok::<_, Failure>(n)), &queue).unwrap();
    make_ready(&mut buffer);
    let mut response = spawn(buffer.call(1));
    buffer.close();
    assert!(buffer.is_closed());
    assert!(spawn(worker).poll().is_ready());
    assert_eq!(ready(response.poll()), Ok(1));
    let polled = WakeCount::new().poll_ready(&mut buffer);
    assert!(matches!(ready(polled), Err(FixedError::Closed(_))));
}

#[test]
fn a_limit_needs_no_allocator() {
    let semaphore = LocalSemaphore::<2>::new(1);
    let (service, mut handle) = mock::<u32, u32>();
    let mut limit = ConcurrencyLimit::with_semaphore(service, &semaphore);
    make_ready(&mut limit);
    let mut response = spawn(limit.call(1));
    assert!(response.poll().is_pending());
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut limit).is_pending());
    handle.try_next().unwrap().1.send(2);
    assert_eq!(ready(response.poll()), Ok(2));
    assert_eq!(wakes.get(), 1);
    make_ready(&mut limit);
    assert_eq!(semaphore.available_permits(), 0);
    drop(limit);
    assert_eq!(semaphore.available_permits(), 1);
}

#[test]
fn full_wait_queue_refuses_one_request() {
    let semaphore = LocalSemaphore::<1>::new(1);
    let (service, mut handle) = mock::<u32, u32>();
    let limit = ConcurrencyLimit::with_semaphore(service, &semaphore);
    let (mut first, mut second, mut third) = (limit.clone(), limit.clone(), limit);
    make_ready(&mut first);
    let mut response = spawn(first.call(1));
    assert!(response.poll().is_pending());
    let in_line = WakeCount::new();
    assert!(in_line.poll_ready(&mut second).is_pending());
    make_ready(&mut third);
    let mut refused = spawn(third.call(3));
    let error = ready(refused.poll()).unwrap_err();
    assert!(
        matches!(error, concurrency::Error::Overflow(_)),
        "{error:?}"
    );
    // A refusal causes no busy loop.
    assert!(!refused.is_woken());
    assert_eq!(in_line.get(), 0);

    handle.try_next().unwrap().1.send(2);
    assert_eq!(ready(response.poll()), Ok(2));
    assert_eq!(in_line.get(), 1);
    make_ready(&mut second);
    drop(second);
    // The refused request took no permit, and its handle still works.
    assert_eq!(semaphore.available_permits(), 1);
    make_ready(&mut third);
}

#[test]
fn refused_claim_is_retried_in_the_response() {
    let semaphore = LocalSemaphore::<0>::new(1);
    let service = service_fn(async |n: u32| Ok::<_, Failure>(n));
    let mut first = ConcurrencyLimit::with_semaphore(service, &semaphore);
    let mut second = first.clone();
    make_ready(&mut first);
    make_ready(&mut second);
    let mut response = spawn(second.call(2));
    drop(first);
    assert_eq!(ready(response.poll()), Ok(2));
}

#[test]
fn a_limit_of_zero_is_refused() {
    assert!(matches!(
        LocalSemaphore::<1>::try_new(0),
        Err(InvalidLimit { .. })
    ));
    let (file, line) = panics_at(|| {
        let _ = LocalSemaphore::<1>::new(0);
    });
    assert_eq!((file.as_str(), line), (file!(), line!() - 2));
}

/// Tasks that run only when woken, in random order. Dropping a task cancels it.
struct Tasks<'a> {
    tasks: Vec<(Pin<Box<dyn Future<Output = ()> + 'a>>, WakeCount, usize)>,
}

impl<'a> Tasks<'a> {
    fn push(&mut self, task: impl Future<Output = ()> + 'a) {
        let wakes = WakeCount::new();
        wakes.waker().wake();
        self.tasks.push((Box::pin(task), wakes, 0));
    }

    /// Polls one woken task; `false` if there is none.
    fn step(&mut self, rng: &mut SplitMix64) -> bool {
        let woken: Vec<_> = (0..self.tasks.len())
            .filter(|&at| self.tasks[at].1.get() != self.tasks[at].2)
            .collect();
        if woken.is_empty() {
            return false;
        }
        let at = woken[rng.next_range(0..woken.len() as u64) as usize];
        let (task, wakes, seen) = &mut self.tasks[at];
        *seen = wakes.get();
        if wakes.enter(|cx| task.as_mut().poll(cx)).is_ready() {
            drop(self.tasks.swap_remove(at));
        }
        true
    }
}

/// Clients of one stack wait, call, are polled again and are cancelled at random; they are more than any wait queue
/// holds. Every client that is not cancelled is answered or refused, and no permit or capacity is lost.
#[test]
fn random_drops_lose_nothing() {
    for seed in 0..if cfg!(miri) { 3 } else { 300 } {
        let mut rng = SplitMix64::new(seed);
        let token = Rc::new(());
        let permits = LocalSemaphore::<2>::new(2);
        let outer = LocalSemaphore::<3>::new(5);
        let queue = LocalQueue::<_, _, 2>::new();
        let [answered, refused, given_up, started] = [const { Cell::new(0) }; 4];
        let under_way = Rc::new(Cell::new(0));
        let service = service_fn(|(token, steps): (Rc<()>, u64)| {
            let under_way = under_way.clone();
            async move {
                under_way.set(under_way.get() + 1);
                let guard = Guard(under_way);
                assert!(guard.0.get() <= 2);
                for _ in 0..steps {
                    yield_now().await;
                }
                drop((guard, token));
                Ok::<_, Failure>(steps)
            }
        });
        let inner = ConcurrencyLimit::with_semaphore(service, &permits);
        let (buffer, worker) = buffer::try_pair_in(inner, &queue).unwrap();
        let stack = ConcurrencyLimit::with_semaphore(buffer, &outer);
        let tasks = RefCell::new(Tasks { tasks: Vec::new() });
        let client = |patient: bool, steps: u64, unready: bool| {
            let mut stack = stack.clone();
            let token = token.clone();
            let (answered, refused, given_up) = (&answered, &refused, &given_up);
            let ended = Ended(given_up, Cell::new(true));
            async move {
                let ended = ended;
                if !unready {
                    poll_fn(|cx| stack.poll_ready(cx)).await.unwrap();
                }
                if patient || steps % 2 == 0 {
                    let counter = match stack.call((token, steps)).await {
                        Ok(n) => {
                            assert_eq!(n, steps);
                            answered
                        }
                        Err(concurrency::Error::Overflow(_)) => refused,
                        Err(concurrency::Error::Service(FixedError::Overflow(_))) => refused,
                        Err(concurrency::Error::Service(FixedError::Service(
                            concurrency::Error::Overflow(_),
                        ))) => refused,
                        Err(other) => panic!("{other}"),
                    };
                    counter.set(counter.get() + 1);
                    ended.1.set(false);
                }
            }
        };
        tasks.borrow_mut().push(worker);
        for _ in 0..200 {
            match rng.next_range(0..4) {
                0 => {
                    started.set(started.get() + 1);
                    let client = client(
                        rng.next_range(0..2) == 0,
                        rng.next_range(0..5),
                        rng.next_range(0..4) == 0,
                    );
                    tasks.borrow_mut().push(client);
                }
                // The first task is the worker, which is not cancelled.
                1 if rng.next_range(0..3) == 0 && tasks.borrow().tasks.len() > 1 => {
                    let among = tasks.borrow().tasks.len() as u64;
                    let at = rng.next_range(1..among) as usize;
                    let task = tasks.borrow_mut().tasks.remove(at);
                    drop(task);
                }
                _ => {
                    tasks.borrow_mut().step(&mut rng);
                }
            }
        }
        while tasks.borrow_mut().step(&mut rng) {}
        // Only the worker is left, so no client sleeps forever.
        assert_eq!(tasks.borrow().tasks.len(), 1, "seed {seed}");
        assert_eq!(outer.available_permits(), 5, "seed {seed}");
        assert_eq!(under_way.get(), 0, "seed {seed}");
        assert_eq!(Rc::strong_count(&token), 1, "seed {seed}");
        let ended = answered.get() + refused.get() + given_up.get();
        assert_eq!(ended, started.get(), "seed {seed}");
        assert!(answered.get() > 0, "seed {seed}");
        // The whole capacity is available again.
        let mut handles = [stack.clone(), stack.clone()];
        handles.iter_mut().for_each(make_ready);
        drop(handles);
        drop(stack);
        while tasks.borrow_mut().step(&mut rng) {}
        assert_eq!(tasks.borrow().tasks.len(), 0, "seed {seed}");
        // The worker may have kept a permit for a cancelled request until now.
        assert_eq!(permits.available_permits(), 2, "seed {seed}");
    }
}

struct Guard(Rc<Cell<u32>>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Counts cancelled clients.
struct Ended<'a>(&'a Cell<u32>, Cell<bool>);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if self.1.get() {
            self.0.set(self.0.get() + 1);
        }
    }
}

#[cfg(feature = "critical-section")]
mod in_a_static {
    use std::future::{Ready, ready};
    use std::task::{Context, Poll};

    use campanile::buffer::{Buffer, StaticQueue};
    use campanile::limit::concurrency::StaticSemaphore;
    use futures::executor::block_on;

    use super::*;

    type Future = <Sensor as Service<u64>>::Future;

    // A client may hold capacity and wait for a permit while its last cancelled request is still queued.
    static QUEUE: StaticQueue<u64, Future, 8> = StaticQueue::new();
    static PERMITS: StaticSemaphore<4> = StaticSemaphore::new(2);

    #[derive(Clone)]
    struct Sensor;

    impl Service<u64> for Sensor {
        type Response = u64;
        type Error = Failure;
        type Future = Ready<Result<u64, Failure>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, n: u64) -> Self::Future {
            ready(Ok(n + 1))
        }
    }

    fn is_send_and_static<T: Send + 'static>(_: &T) {}

    #[test]
    fn random_drops_on_threads_lose_nothing() {
        let (buffer, worker) = buffer::try_pair_in(Sensor, &QUEUE).unwrap();
        let stack = ConcurrencyLimit::with_semaphore(buffer, &PERMITS);
        is_send_and_static(&stack);
        is_send_and_static(&worker);
        let worker = std::thread::spawn(move || block_on(worker));
        let clients: Vec<_> = (0..4)
            .map(|seed| {
                let stack = stack.clone();
                std::thread::spawn(move || {
                    let mut rng = SplitMix64::new(seed);
                    let mut answered = 0;
                    for n in 0..if cfg!(miri) { 20 } else { 2_000 } {
                        let mut stack: ConcurrencyLimit<Buffer<_, _, _, _>, _> = stack.clone();
                        let mut polls = rng.next_range(0..6);
                        let patient = n % 2 == 0;
                        let request = async {
                            poll_fn(|cx| stack.poll_ready(cx)).await?;
                            stack.call(n).await
                        };
                        let mut request = std::pin::pin!(request);
                        let outcome = block_on(poll_fn(|cx| {
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
                            Some(answer) => {
                                // Each of the four clients has a place in every wait queue, so none is refused.
                                assert_eq!(answer.unwrap(), n + 1);
                                answered += 1;
                            }
                            None => assert!(!patient),
                        }
                    }
                    answered
                })
            })
            .collect();
        for client in clients {
            assert!(client.join().unwrap() > 0);
        }
        assert_eq!(PERMITS.available_permits(), 2);
        drop(stack);
        worker.join().unwrap();
    }
}
