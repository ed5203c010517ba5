//! Models of shared state: loom runs each in all the orders in which its threads can take turns, and with all the
//! values that a relaxed load can see. `ci/loom` runs them.
//!
//! The final state is asserted. A lost wake-up leaves a thread waiting forever, which loom reports as a deadlock.
//! Counters that are not part of a model are core's, so that loom does not try their orders.

use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::future::{Pending, Ready, pending, poll_fn, ready};
use core::pin::pin;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use loom::sync::Notify;
use loom::thread::{self, JoinHandle};

use super::atomic_word::AtomicWord;
use super::primitives::atomic::{AtomicBool, Ordering::Relaxed};
use super::wakes::Wakes;
use super::{try_poll, withdraw};
use crate::buffer::{self, Buffer, Error};
use crate::limit::RateLimit;
use crate::limit::concurrency::{ConcurrencyLimit, Permit, Semaphore};
use crate::limit::rate::{Limiter, Rate};
use crate::retry::budget::{Budget, TpsBudget};
use crate::spawn_ready::SpawnReady;
use crate::{Executor, Instant, Service, Timer, service_fn};

/// A thread that waits.
#[derive(Default)]
struct Notifying(Notify);

impl Wake for Notifying {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

/// Polls to completion. It waits only for its waker; loom also tries a spurious poll.
fn block_on<F: Future>(future: F) -> F::Output {
    let notifying = Arc::new(Notifying::default());
    let waker = Waker::from(notifying.clone());
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => notifying.0.wait(),
        }
    }
}

/// Polls once, with a waker that does nothing.
fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    let waker = Waker::from(Arc::new(Notifying::default()));
    pin!(future).poll(&mut Context::from_waker(&waker))
}

/// Joins all threads.
fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

// The semaphore.

async fn acquire(permit: &mut Permit) {
    let Ok(()) = poll_fn(|cx| permit.poll_acquire::<Infallible>(cx)).await;
}

/// The holder of the permit continues the count of the previous holder, and so sees its writes.
fn count_on(semaphore: &Semaphore, count: &AtomicWord) {
    let mut permit = Permit::new(semaphore.clone());
    block_on(acquire(&mut permit));
    count.store(count.load() + 1);
}

#[test]
fn permit_passes_to_the_next_waiter() {
    loom::model(|| {
        let semaphore = Semaphore::new(1);
        let count = Arc::new(AtomicWord::new(7));
        count.store(0);
        let threads = [(); 2].map(|()| {
            let (semaphore, count) = (semaphore.clone(), count.clone());
            thread::spawn(move || count_on(&semaphore, &count))
        });
        count_on(&semaphore, &count);
        join(threads);
        assert_eq!((count.load(), semaphore.available_permits()), (3, 1));
    });
}

#[test]
fn permit_passes_on_when_a_waiter_leaves() {
    loom::model(|| {
        let semaphore = Semaphore::new(1);
        let mut held = Permit::new(semaphore.clone());
        assert!(poll_once(acquire(&mut held)).is_ready());
        let count = Arc::new(AtomicWord::new(7));
        count.store(0);
        let cancelled = {
            let semaphore = semaphore.clone();
            thread::spawn(move || {
                let mut permit = Permit::new(semaphore);
                let _ = poll_once(acquire(&mut permit));
            })
        };
        let waits = {
            let (semaphore, count) = (semaphore.clone(), count.clone());
            thread::spawn(move || count_on(&semaphore, &count))
        };
        count.store(1);
        held.release();
        join([cancelled, waits]);
        assert_eq!((count.load(), semaphore.available_permits()), (2, 1));
    });
}

#[test]
fn try_takes_no_permit_from_a_waiter() {
    loom::model(|| {
        let semaphore = Semaphore::new(1);
        let mut held = Permit::new(semaphore.clone());
        assert!(poll_once(acquire(&mut held)).is_ready());
        let count = Arc::new(AtomicWord::new(7));
        count.store(0);
        let tries = {
            let semaphore = semaphore.clone();
            thread::spawn(move || {
                let mut permit = Permit::new(semaphore);
                let _ = try_poll(|cx| permit.poll_acquire::<Infallible>(cx));
            })
        };
        let waits = {
            let (semaphore, count) = (semaphore.clone(), count.clone());
            thread::spawn(move || count_on(&semaphore, &count))
        };
        count.store(1);
        held.release();
        join([tries, waits]);
        assert_eq!((count.load(), semaphore.available_permits()), (2, 1));
    });
}

#[test]
fn permits_returned_as_the_queue_ends_count() {
    loom::model(|| {
        let semaphore = Semaphore::new(2);
        let holders = [(); 2].map(|()| {
            let mut permit = Permit::new(semaphore.clone());
            assert!(poll_once(acquire(&mut permit)).is_ready());
            thread::spawn(|| drop(permit))
        });
        let mut permit = Permit::new(semaphore.clone());
        let _ = poll_once(acquire(&mut permit));
        drop(permit);
        join(holders);
        assert_eq!(semaphore.available_permits(), 2);
    });
}

// The queue, as a buffer.

/// A request that is counted until it is dropped.
struct Request(Arc<AtomicUsize>);

impl Request {
    fn new(alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, SeqCst);
        Self(alive.clone())
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

// Together with the request, so that an answer that is left behind counts.
type Answer = Ready<Result<Request, Infallible>>;
type Handle = Buffer<Request, Answer>;
type Sent = Result<(), Error<Infallible>>;

/// A buffer whose service answers at once, with the request.
fn pair(bound: usize) -> (Handle, impl Future<Output = ()> + Send + 'static) {
    buffer::pair(service_fn(|request| ready(Ok(request))), bound)
}

/// The same, with its worker on its own thread.
fn answering(bound: usize) -> (Handle, JoinHandle<()>) {
    let (buffer, worker) = pair(bound);
    (buffer, thread::spawn(|| block_on(worker)))
}

/// Sends a request, which waits for capacity in the response future.
fn send(buffer: &mut Handle, alive: &Arc<AtomicUsize>) -> Sent {
    block_on(buffer.call(Request::new(alive))).map(drop)
}

/// Sends a request from another thread, and checks how it `ends`.
fn send_elsewhere(
    buffer: &Handle,
    alive: &Arc<AtomicUsize>,
    ends: fn(&Sent) -> bool,
) -> JoinHandle<()> {
    let (mut buffer, alive) = (buffer.clone(), Arc::clone(alive));
    thread::spawn(move || assert!(ends(&send(&mut buffer, &alive))))
}

fn is_closed(sent: &Sent) -> bool {
    matches!(sent, Err(Error::Closed(_)))
}

#[test]
fn idle_worker_is_woken() {
    loom::model(|| {
        let alive = Arc::default();
        let (mut buffer, worker) = answering(1);
        send(&mut buffer, &alive).unwrap();
        drop(buffer);
        join([worker]);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn the_last_of_two_handles_ends_the_worker() {
    loom::model(|| {
        let (buffer, worker) = answering(1);
        let other = buffer.clone();
        let other = thread::spawn(move || drop(other));
        drop(buffer);
        join([other, worker]);
    });
}

#[test]
fn waiting_senders_get_capacity() {
    loom::model(|| {
        let alive = Arc::default();
        let (mut buffer, worker) = answering(1);
        let other = send_elsewhere(&buffer, &alive, Result::is_ok);
        send(&mut buffer, &alive).unwrap();
        drop(buffer);
        join([other, worker]);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

/// Two concurrent tasks get the whole capacity, and no third task gets any.
fn capacity_of_two(has_fast_permits: bool) {
    loom::model(move || {
        let (mut other, worker) = pair(2 + usize::from(has_fast_permits));
        let is_ready =
            |handle: &mut Handle| poll_once(poll_fn(|cx| handle.poll_ready(cx))).is_ready();
        let mut first = has_fast_permits.then(|| other.clone());
        // From here on, the remaining capacity can be taken without the lock.
        assert!(first.iter_mut().all(is_ready));
        let threads = [(); 2].map(|()| {
            let mut handle = other.clone();
            thread::spawn(move || {
                assert!(is_ready(&mut handle));
                handle
            })
        });
        let handles = threads.map(|thread| thread.join().unwrap());
        assert!(!is_ready(&mut other));
        drop(handles);
        assert!(is_ready(&mut other));
        drop((first, other, worker));
    });
}

#[test]
fn capacity_of_two_admits_only_two() {
    capacity_of_two(false);
}

#[test]
fn capacity_of_two_fast_permits_admits_two() {
    capacity_of_two(true);
}

#[test]
fn capacity_taken_during_close_is_void() {
    loom::model(|| {
        let alive = Arc::default();
        let (mut buffer, worker) = pair(2);
        // From here on, the remaining capacity can be taken without the lock.
        assert!(poll_once(poll_fn(|cx| buffer.poll_ready(cx))).is_ready());
        let sender = send_elsewhere(&buffer, &alive, is_closed);
        buffer.close();
        assert!(is_closed(&send(&mut buffer, &alive)));
        // A request sent before that would be served.
        drop(worker);
        join([sender]);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn cancelled_request_frees_its_capacity() {
    loom::model(|| {
        let alive = Arc::default();
        let (mut buffer, worker) = answering(1);
        // Dropped while it is in the queue, with the worker, or answered.
        let _ = poll_once(buffer.call(Request::new(&alive)));
        send(&mut buffer, &alive).unwrap();
        assert_eq!(alive.load(SeqCst), 0);
        drop(buffer);
        join([worker]);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn cancelled_request_spares_the_one_ahead() {
    let mut model = loom::model::Builder::new();
    // With one more preemption it takes minutes.
    model.preemption_bound = Some(2);
    model.check(|| {
        let alive = Arc::default();
        let (mut buffer, worker) = answering(2);
        let first = buffer.call(Request::new(&alive));
        let second = buffer.call(Request::new(&alive));
        drop(buffer);
        // Given up before, while or after the first is answered, at which point the worker takes the second.
        let second = thread::spawn(move || {
            let _ = poll_once(second);
        });
        drop(block_on(first).unwrap());
        join([second, worker]);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn waiters_learn_that_the_worker_is_gone() {
    loom::model(|| {
        let alive = Arc::default();
        let (mut buffer, worker) = pair(1);
        let other = send_elsewhere(&buffer, &alive, is_closed);
        let worker = thread::spawn(|| drop(worker));
        assert!(is_closed(&send(&mut buffer, &alive)));
        join([other, worker]);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn senders_learn_that_the_worker_is_gone() {
    loom::model(|| {
        let alive = Arc::default();
        let (mut buffer, worker) = pair(1);
        assert!(poll_once(poll_fn(|cx| buffer.poll_ready(cx))).is_ready());
        let senders = [(); 2].map(|()| send_elsewhere(&buffer, &alive, is_closed));
        drop(worker);
        join(senders);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn sender_learns_of_close_before_the_worker() {
    loom::model(|| {
        let alive = Arc::default();
        let (mut buffer, worker) = pair(1);
        assert!(poll_once(poll_fn(|cx| buffer.poll_ready(cx))).is_ready());
        let sender = send_elsewhere(&buffer, &alive, is_closed);
        buffer.close();
        join([sender]);
        drop(worker);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn shutdown_reaches_worker_and_waiter() {
    loom::model(|| {
        let alive = Arc::default();
        let (mut buffer, worker) = answering(1);
        let other = send_elsewhere(&buffer, &alive, |sent| sent.is_ok() || is_closed(sent));
        block_on(buffer.shutdown());
        assert!(send(&mut buffer, &alive).is_err());
        join([other, worker]);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

/// A service that is ready once the `gate` is open.
struct Gated(Arc<Gate>);

struct Gate {
    is_open: AtomicBool,
    waker: loom::future::AtomicWaker,
}

impl Gate {
    fn new() -> Arc<Self> {
        let waker = loom::future::AtomicWaker::new();
        let is_open = AtomicBool::new(false);
        Arc::new(Self { is_open, waker })
    }

    fn open(&self) {
        self.is_open.store(true, Relaxed);
        self.waker.wake();
    }
}

impl Service<Request> for Gated {
    type Response = Request;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.waker.register_by_ref(cx.waker());
        if self.0.is_open.load(Relaxed) {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    fn call(&mut self, request: Request) -> Answer {
        ready(Ok(request))
    }
}

#[test]
fn waiting_worker_is_woken_by_its_service() {
    loom::model(|| {
        let alive = Arc::default();
        let gate = Gate::new();
        let (mut buffer, worker) = buffer::pair(Gated(gate.clone()), 1);
        let worker = thread::spawn(|| block_on(worker));
        let opens = thread::spawn(move || gate.open());
        send(&mut buffer, &alive).unwrap();
        drop(buffer);
        join([opens, worker]);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn waiting_worker_ends_when_all_cancel() {
    loom::model(|| {
        let alive = Arc::default();
        let (mut buffer, worker) = buffer::pair(Gated(Gate::new()), 1);
        let worker = thread::spawn(|| block_on(worker));
        let response = buffer.call(Request::new(&alive));
        drop(buffer);
        let _ = poll_once(response);
        join([worker]);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn permit_of_a_cancelled_request_moves_on() {
    loom::model(|| {
        let alive = Arc::default();
        let semaphore = Semaphore::new(1);
        let mut held = Permit::new(semaphore.clone());
        assert!(poll_once(acquire(&mut held)).is_ready());
        let service = service_fn(|request| ready(Ok::<_, Infallible>(request)));
        let limit = ConcurrencyLimit::with_semaphore(service, semaphore);
        let (mut buffer, worker) = buffer::pair(limit, 1);
        let worker = thread::spawn(|| block_on(worker));
        let given_up = buffer.call(Request::new(&alive));
        let gives_up = thread::spawn(move || drop(given_up));
        held.release();
        // Ahead of the service in the wait queue, or behind it: the idle worker keeps neither the permit nor the
        // place.
        block_on(acquire(&mut held));
        join([gives_up]);
        drop(buffer);
        join([worker]);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn capacity_of_a_cancelled_request_moves_on() {
    loom::model(|| {
        let alive = Arc::default();
        let gate = Gate::new();
        let (mut buffer, worker) = buffer::pair(Gated(gate.clone()), 1);
        assert!(poll_once(poll_fn(|cx| buffer.poll_ready(cx))).is_ready());
        let given_up = buffer.call(Request::new(&alive));
        let worker = thread::spawn(|| block_on(worker));
        // Queued, with the worker, or put back.
        let gives_up = thread::spawn(move || {
            drop(given_up);
            gate.open();
        });
        send(&mut buffer, &alive).unwrap();
        drop(buffer);
        join([gives_up, worker]);
        assert_eq!(alive.load(SeqCst), 0);
    });
}

// The slot of `SpawnReady`.

struct Threads;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Threads {
    fn execute(&self, future: F) {
        thread::spawn(|| block_on(future));
    }
}

#[test]
fn service_returns_from_its_task() {
    loom::model(|| {
        let gate = Gate::new();
        let mut service = SpawnReady::with_executor(Gated(gate.clone()), Threads);
        let opens = thread::spawn(move || gate.open());
        block_on(poll_fn(|cx| service.poll_ready(cx))).unwrap();
        drop(service.call(Request::new(&Arc::default())));
        join([opens]);
        // loom also waits for the task.
    });
}

#[test]
fn driven_service_is_waited_for() {
    loom::model(|| {
        let gate = Gate::new();
        let mut service = SpawnReady::with_executor(Gated(gate.clone()), Threads);
        let _ = try_poll(|cx| service.poll_ready(cx));
        let opens = thread::spawn(move || gate.open());
        block_on(poll_fn(|cx| service.poll_ready(cx))).unwrap();
        drop(service.call(Request::new(&Arc::default())));
        join([opens]);
    });
}

#[test]
fn cancelled_wait_is_resumed() {
    loom::model(|| {
        let gate = Gate::new();
        let mut service = SpawnReady::with_executor(Gated(gate.clone()), Threads);
        let _ = poll_once(poll_fn(|cx| service.poll_ready(cx)));
        let opens = thread::spawn(move || gate.open());
        let _ = withdraw(|cx| service.poll_ready(cx));
        block_on(poll_fn(|cx| service.poll_ready(cx))).unwrap();
        drop(service.call(Request::new(&Arc::default())));
        join([opens]);
    });
}

#[test]
fn dropped_handle_ends_its_task() {
    loom::model(|| {
        let mut service = SpawnReady::with_executor(Gated(Gate::new()), Threads);
        let _ = poll_once(poll_fn(|cx| service.poll_ready(cx)));
        drop(service);
    });
}

// Wakers of parts.

/// Two threads report something and wake `nodes`; the task acts on what was reported before.
fn all_wakes_are_heard(parts: usize) {
    let mut wakes = Wakes::new();
    let nodes: Vec<_> = (0..parts).map(|id| wakes.node(id)).collect();
    let told: Vec<_> = (0..2).map(|_| Arc::new(AtomicBool::new(false))).collect();
    let threads: Vec<_> = (0..2)
        .map(|n| {
            let (waker, told) = (Waker::from(nodes[n % parts].clone()), told[n].clone());
            thread::spawn(move || {
                told.store(true, Relaxed);
                waker.wake();
            })
        })
        .collect();
    let mut heard = [false; 2];
    block_on(poll_fn(|cx| {
        loop {
            if wakes.any() {
                let mut woken = wakes.collect();
                for part in woken.drain(..) {
                    nodes[part].unqueue();
                    for n in (0..2).filter(|n| n % parts == part) {
                        heard[n] |= told[n].load(Relaxed);
                    }
                }
                wakes.give_back(woken);
            }
            if heard == [true; 2] {
                return Poll::Ready(());
            }
            if wakes.register(cx.waker()) {
                return Poll::Pending;
            }
        }
    }));
    join(threads);
}

#[test]
fn part_woken_twice_is_polled_after_both() {
    loom::model(|| all_wakes_are_heard(1));
}

#[test]
fn both_woken_parts_are_polled() {
    loom::model(|| all_wakes_are_heard(2));
}

// Words. Each is used first by the thread that created it, as `primitives` requires.

#[test]
fn no_update_of_a_word_is_lost() {
    loom::model(|| {
        let word = Arc::new(AtomicWord::new(7));
        word.store(0);
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let word = word.clone();
                thread::spawn(move || assert!(word.update(|n| Some(n + 1))))
            })
            .collect();
        assert!(word.update(|n| Some(n + 1)));
        join(threads);
        assert_eq!(word.load(), 3);
    });
}

/// A clock that stands still.
#[derive(Clone, Copy)]
struct Still;

impl Timer for Still {
    type Sleep = Pending<()>;
    type Alarm = Pending<()>;

    fn now(&self) -> Instant {
        Instant::from_nanos(10_000_000_000)
    }

    fn sleep_until(&self, _: Instant) -> Pending<()> {
        pending()
    }

    fn alarm_until(&self, _: Instant) -> Pending<()> {
        pending()
    }
}

/// Takes a token, if there is one, and gives it back unless it is to be spent.
fn take_token(limiter: &Arc<Limiter>, spend: bool) -> bool {
    let inner = service_fn(|(): ()| ready(Ok::<_, Infallible>(())));
    let mut limit = RateLimit::with_limiter(inner, limiter.clone(), Still);
    let is_ready = try_poll(|cx| limit.poll_ready(cx)).is_ready();
    if is_ready && spend {
        drop(limit.call(()));
    }
    is_ready
}

/// Two threads run `take`, and then it is run until nothing is left. Returns how often it succeeded.
fn taken_by_all(take: impl Fn() -> bool + Clone + Send + 'static) -> usize {
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let take = take.clone();
            thread::spawn(move || usize::from(take()))
        })
        .collect();
    let by_threads: usize = threads.into_iter().map(|it| it.join().unwrap()).sum();
    by_threads + core::iter::repeat_with(take).take_while(|it| *it).count()
}

fn every_token_is_taken_once(rate: Rate) {
    let limiter = Arc::new(Limiter::new(rate));
    assert!(take_token(&limiter, true));
    let tokens = taken_by_all(move || take_token(&limiter, true));
    assert_eq!(tokens, 1);
}

/// One token for the threads, after the first.
const TWO: Rate = Rate::new(2, Duration::from_secs(1));

#[test]
fn a_rate_limit_gives_each_token_to_one() {
    loom::model(|| every_token_is_taken_once(TWO));
}

#[test]
fn a_fixed_window_gives_each_token_to_one() {
    loom::model(|| every_token_is_taken_once(TWO.fixed_window()));
}

fn a_token_comes_back_once(rate: Rate) {
    let limiter = Arc::new(Limiter::new(rate));
    assert!(take_token(&limiter, true));
    let returns = {
        let limiter = limiter.clone();
        thread::spawn(move || {
            take_token(&limiter, false);
        })
    };
    let mut spent = usize::from(take_token(&limiter, true));
    join([returns]);
    while take_token(&limiter, true) {
        spent += 1;
    }
    assert_eq!(spent, 1);
}

#[test]
fn a_rate_limit_gets_a_token_back_once() {
    loom::model(|| a_token_comes_back_once(TWO));
}

#[test]
fn a_fixed_window_gets_a_token_back_once() {
    loom::model(|| a_token_comes_back_once(TWO.fixed_window()));
}

/// One task waits, one gives up waiting, and the returned token goes to the one that waits, whichever it was granted
/// to.
fn token_returns_to_a_waiter(rate: Rate) {
    let limit = |limiter: &Arc<Limiter>| {
        let inner = service_fn(|(): ()| ready(Ok::<_, Infallible>(())));
        RateLimit::with_limiter(inner, limiter.clone(), Still)
    };
    let limiter = Arc::new(Limiter::new(rate));
    assert!(take_token(&limiter, true));
    // What loom watches is created by the thread that uses it first, which has to be this one.
    assert!(take_token(&limiter, false));
    let mut held = limit(&limiter);
    assert!(poll_once(poll_fn(|cx| held.poll_ready(cx))).is_ready());
    let mut first = limit(&limiter);
    assert!(poll_once(poll_fn(|cx| first.poll_ready(cx))).is_pending());
    drop(first);
    let cancelled = {
        let limiter = limiter.clone();
        thread::spawn(move || {
            let mut limit = limit(&limiter);
            let _ = poll_once(poll_fn(|cx| limit.poll_ready(cx)));
        })
    };
    let waits = {
        let limiter = limiter.clone();
        thread::spawn(move || {
            let mut limit = limit(&limiter);
            block_on(poll_fn(|cx| limit.poll_ready(cx))).unwrap();
            drop(limit.call(()));
        })
    };
    drop(held);
    join([cancelled, waits]);
    assert!(!take_token(&limiter, true));
}

#[test]
fn a_rate_limit_token_returns_to_a_waiter() {
    loom::model(|| token_returns_to_a_waiter(TWO));
}

#[test]
fn a_fixed_window_token_returns_to_a_waiter() {
    loom::model(|| token_returns_to_a_waiter(TWO.fixed_window()));
}

const TTL: Duration = Duration::from_secs(1);

#[test]
fn a_retry_in_reserve_is_withdrawn_once() {
    loom::model(|| {
        let budget = Arc::new(TpsBudget::with_timer(TTL, 2, 0.0, Still));
        assert!(budget.withdraw());
        assert_eq!(taken_by_all(move || budget.withdraw()), 1);
    });
}

#[test]
fn a_retry_paid_in_is_withdrawn_once() {
    loom::model(|| {
        let budget = Arc::new(TpsBudget::with_timer(TTL, 0, 1.0, Still));
        assert!(!budget.withdraw());
        budget.deposit();
        assert_eq!(taken_by_all(move || budget.withdraw()), 1);
    });
}

#[test]
fn deposits_at_once_add_up() {
    loom::model(|| {
        let budget = Arc::new(TpsBudget::with_timer(TTL, 0, 0.5, Still));
        assert!(!budget.withdraw());
        budget.deposit();
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let budget = budget.clone();
                thread::spawn(move || budget.deposit())
            })
            .collect();
        let mut withdrawn = usize::from(budget.withdraw());
        join(threads);
        budget.deposit();
        while budget.withdraw() {
            withdrawn += 1;
        }
        assert_eq!(withdrawn, 2);
    });
}
