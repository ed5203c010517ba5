//! `SpawnReady`: a task drives readiness, polled by hand and on every runtime.
#![cfg(feature = "std")]

mod common;

use core::cell::{Cell, RefCell};
use core::future::{Ready, ready};
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use campanile::limit::concurrency::{ConcurrencyLimit, Semaphore};
use campanile::load_shed::{self, LoadShed};
use campanile::reconnect::Reconnect;
use campanile::retry::backoff::{ExponentialBackoffMaker, Jitter};
use campanile::spawn_ready::{
    BackgroundReady, Closed, Error, Failed, NotReady, Panicked, SpawnReady, SpawnReadyLayer,
};
use campanile::timeout::{self, Deadline};
use campanile::util::rng::SplitMix64;
use campanile::{Executor, Layer, Service, ServiceExt, buffer};
use common::{
    Failure, Handle, Host, ManualTimer, Mock, On, Task, WakeCount, mock, on_every_runtime, spawn,
    until,
};
use futures::FutureExt;

const MS: Duration = Duration::from_millis(1);
const DEAD: Failure = Failure("dead");

type Boxed = Pin<Box<dyn Future<Output = ()>>>;

/// An executor whose tasks the test polls.
#[derive(Clone, Default)]
struct ByHand(Rc<RefCell<Vec<Task<Boxed>>>>);

impl<F: Future<Output = ()> + 'static> Executor<F> for ByHand {
    fn execute(&self, future: F) {
        self.0.borrow_mut().push(spawn(Box::pin(future)));
    }
}

impl ByHand {
    /// The number of tasks started so far.
    fn tasks(&self) -> usize {
        self.0.borrow().len()
    }

    fn poll(&self) -> Poll<()> {
        self.0.borrow_mut().last_mut().unwrap().poll()
    }

    fn is_woken(&self) -> bool {
        self.0.borrow().last().unwrap().is_woken()
    }

    /// Drops the tasks before they complete.
    fn stop(&self) {
        let tasks = self.0.take();
        drop(tasks);
    }
}

struct Set {
    service: SpawnReady<Mock<u32, u32>, u32, ByHand>,
    handle: Handle<u32, u32>,
    executor: ByHand,
    wakes: WakeCount,
}

impl Set {
    fn new() -> Self {
        let (service, handle) = mock();
        let executor = ByHand::default();
        Self {
            service: SpawnReady::with_executor(service, executor.clone()),
            handle,
            executor,
            wakes: WakeCount::new(),
        }
    }

    /// A set whose task has the service, which is pending.
    fn waiting() -> Self {
        let mut set = Self::new();
        set.handle.set_ready(false);
        assert!(set.poll().is_pending());
        assert!(set.executor.poll().is_pending());
        set
    }

    fn poll(&mut self) -> Poll<Result<(), Error<Failure>>> {
        self.wakes.poll_ready(&mut self.service)
    }

    fn call(&mut self) -> Option<Result<u32, Error<Failure>>> {
        self.service.call(1).now_or_never()
    }

    /// Asserts that polls and calls return `error`.
    #[track_caller]
    fn assert_ended(&mut self, error: &Error<Failure>) {
        for _ in 0..3 {
            assert_eq!(self.poll(), Poll::Ready(Err(error.clone())));
            assert_eq!(self.call(), Some(Err(error.clone())));
        }
        assert_eq!(self.handle.alive(), 0);
    }
}

#[test]
fn ready_service_starts_no_task() {
    let mut set = Set::new();
    for n in 1..4 {
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
        assert_eq!(set.call(), None);
        assert_eq!((set.handle.calls(), set.executor.tasks()), (n, 0));
    }
}

#[test]
fn task_drives_readiness_between_polls() {
    let mut set = Set::new();
    set.handle.set_ready(false);
    assert!(set.poll().is_pending());
    assert_eq!(set.executor.tasks(), 1);
    assert!(set.executor.poll().is_pending());
    // The task's poll replaced the waker of the first poll.
    assert!(set.poll().is_pending());
    set.handle.set_ready(true);
    assert!(set.executor.is_woken());
    let woken = set.wakes.get();
    assert!(set.executor.poll().is_pending());
    assert_eq!(set.wakes.get(), woken + 1);
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!(set.call(), None);
    assert_eq!(set.handle.calls(), 1);
}

#[test]
fn all_waits_share_one_task() {
    let mut set = Set::waiting();
    for n in 1..5 {
        set.handle.set_ready(true);
        assert!(set.executor.is_woken());
        assert!(set.executor.poll().is_pending());
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
        assert_eq!(set.call(), None);
        // The task is idle meanwhile.
        assert!(!set.executor.is_woken());
        assert!(set.executor.poll().is_pending());
        set.handle.set_ready(false);
        assert!(set.poll().is_pending());
        assert!(set.executor.is_woken());
        assert!(set.executor.poll().is_pending());
        assert_eq!((set.handle.calls(), set.executor.tasks()), (n, 1));
    }
}

#[test]
fn reported_readiness_may_be_polled_again() {
    let mut set = Set::waiting();
    set.handle.set_ready(true);
    assert!(set.executor.poll().is_pending());
    for _ in 0..3 {
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
    }
    set.handle.set_ready(false);
    assert!(set.poll().is_pending());
    assert_eq!(set.call(), Some(Err(Error::NotReady(NotReady::new()))));
}

#[test]
fn uncollected_readiness_is_polled_again() {
    let mut set = Set::waiting();
    set.handle.set_ready(true);
    assert!(set.executor.poll().is_pending());
    // Much later the service is no longer ready.
    set.handle.set_ready(false);
    assert!(set.poll().is_pending());
    assert!(set.executor.is_woken());
    assert!(set.executor.poll().is_pending());
    set.handle.set_ready(true);
    assert!(set.executor.poll().is_pending());
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!(set.call(), None);
    assert_eq!((set.handle.calls(), set.executor.tasks()), (1, 1));
}

#[test]
fn momentary_readiness_is_used() {
    let mut set = Set::waiting();
    for _ in 0..2 {
        assert!(set.poll().is_pending());
        // Ready in the task, but not anymore when the handle is polled.
        set.handle.set_ready(true);
        assert!(set.executor.poll().is_pending());
        set.handle.set_ready(false);
    }
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!(set.call(), None);
    // The next request starts over.
    assert!(set.poll().is_pending());
    assert!(set.executor.poll().is_pending());
    set.handle.set_ready(true);
    assert!(set.executor.poll().is_pending());
    set.handle.set_ready(false);
    assert!(set.poll().is_pending());
}

#[test]
fn error_in_the_task_is_final() {
    let mut set = Set::waiting();
    assert!(set.poll().is_pending());
    // The mock also wakes the first pending poll.
    set.handle.fail(DEAD);
    let woken = set.wakes.get();
    assert!(set.executor.poll().is_ready());
    assert_eq!((set.wakes.get(), set.handle.alive()), (woken + 1, 0));
    assert_eq!(set.poll(), Poll::Ready(Err(Error::Service(DEAD))));
    set.assert_ended(&Error::Failed(Failed::new()));
    assert_eq!(set.executor.tasks(), 1);
}

#[test]
fn immediate_error_is_final() {
    let mut set = Set::new();
    set.handle.fail(DEAD);
    assert_eq!(set.poll(), Poll::Ready(Err(Error::Service(DEAD))));
    set.assert_ended(&Error::Failed(Failed::new()));
    assert_eq!(set.executor.tasks(), 0);
}

#[test]
fn task_and_service_end_with_the_handle() {
    let set = Set::waiting();
    drop(set.service);
    assert_eq!(set.handle.alive(), 1);
    assert!(set.executor.is_woken());
    assert!(set.executor.poll().is_ready());
    assert_eq!(set.handle.alive(), 0);
}

#[test]
fn unstarted_task_ends_with_the_handle() {
    let mut set = Set::new();
    set.handle.set_ready(false);
    assert!(set.poll().is_pending());
    drop(set.service);
    assert!(set.executor.poll().is_ready());
    assert_eq!(set.handle.alive(), 0);
}

#[test]
fn service_in_transit_ends_with_the_handle() {
    // In transit to the handle.
    let set = Set::waiting();
    set.handle.set_ready(true);
    assert!(set.executor.poll().is_pending());
    drop(set.service);
    assert_eq!(set.handle.alive(), 0);
    assert!(set.executor.is_woken());
    assert!(set.executor.poll().is_ready());

    // In transit to the task.
    let mut set = Set::waiting();
    set.handle.set_ready(true);
    assert!(set.executor.poll().is_pending());
    assert!(set.poll().is_ready());
    set.handle.set_ready(false);
    assert!(set.poll().is_pending());
    drop(set.service);
    assert_eq!(set.handle.alive(), 0);
    assert!(set.executor.poll().is_ready());
}

#[test]
fn idle_task_ends_with_the_handle() {
    let mut set = Set::waiting();
    set.handle.set_ready(true);
    assert!(set.executor.poll().is_pending());
    assert!(set.poll().is_ready());
    assert!(!set.executor.is_woken());
    drop(set.service);
    assert_eq!(set.handle.alive(), 0);
    assert!(set.executor.is_woken());
    assert!(set.executor.poll().is_ready());
}

#[test]
fn dropped_task_closes_the_handle() {
    let mut set = Set::waiting();
    assert!(set.poll().is_pending());
    let woken = set.wakes.get();
    set.executor.stop();
    assert_eq!((set.wakes.get(), set.handle.alive()), (woken + 1, 0));
    set.assert_ended(&Error::Closed(Closed::new()));

    /// Drops every task.
    struct Stopped;
    impl<F> Executor<F> for Stopped {
        fn execute(&self, _: F) {}
    }
    let (service, handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let mut service = SpawnReady::with_executor(service, Stopped);
    let closed = Error::Closed(Closed::new());
    let polled = WakeCount::new().poll_ready(&mut service);
    assert_eq!(polled, Poll::Ready(Err(closed)));
}

#[test]
fn unstarted_dropped_task_closes_the_handle() {
    let mut set = Set::waiting();
    set.handle.set_ready(true);
    assert!(set.executor.poll().is_pending());
    assert!(set.poll().is_ready());
    set.handle.set_ready(false);
    assert!(set.poll().is_pending());
    let woken = set.wakes.get();
    set.executor.stop();
    assert_eq!((set.wakes.get(), set.handle.alive()), (woken + 1, 0));
    set.assert_ended(&Error::Closed(Closed::new()));
}

#[test]
fn returned_service_survives_the_executor() {
    // The service is on its way back.
    let mut set = Set::waiting();
    set.handle.set_ready(true);
    assert!(set.executor.poll().is_pending());
    set.executor.stop();
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    // The next wait starts a new task.
    for _ in 0..2 {
        set.handle.set_ready(false);
        assert!(set.poll().is_pending());
        assert_eq!(set.executor.tasks(), 1);
        assert!(set.executor.poll().is_pending());
        set.handle.set_ready(true);
        assert!(set.executor.poll().is_pending());
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
        set.executor.stop();
    }
    assert_eq!(set.call(), None);
    assert_eq!(set.handle.calls(), 1);
}

/// Panics at its second poll, which is in the task.
struct Bomb {
    polls: u32,
    _alive: Rc<()>,
}

impl Service<u32> for Bomb {
    type Response = u32;
    type Error = Failure;
    type Future = Ready<Result<u32, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.polls += 1;
        assert_eq!(self.polls, 1, "boom");
        Poll::Pending
    }

    fn call(&mut self, n: u32) -> Self::Future {
        ready(Ok(n))
    }
}

#[test]
fn panic_in_the_task_is_distinguished() {
    let executor = ByHand::default();
    let alive = Rc::new(());
    let bomb = Bomb {
        polls: 0,
        _alive: alive.clone(),
    };
    let mut service = SpawnReady::with_executor(bomb, executor.clone());
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut service).is_pending());
    assert_eq!(Rc::strong_count(&alive), 2);
    common::panics_at(|| assert!(executor.poll().is_ready()));
    assert_eq!((wakes.get(), Rc::strong_count(&alive)), (1, 1));
    // The task may be polled again after the panic.
    assert!(
        catch_unwind(AssertUnwindSafe(|| executor.poll())).is_ok_and(|polled| polled.is_ready())
    );
    for _ in 0..3 {
        let panicked = || Error::Panicked(Panicked::new());
        assert_eq!(wakes.poll_ready(&mut service), Poll::Ready(Err(panicked())));
        assert_eq!(service.call(1).now_or_never(), Some(Err(panicked())));
    }
}

/// Drops its `SpawnReady` at its second poll, which is in the task, and is ready.
struct Leaver {
    owner: Rc<RefCell<Option<SpawnReady<Leaver, u32, ByHand>>>>,
    polls: u32,
    _alive: Rc<()>,
}

impl Service<u32> for Leaver {
    type Response = u32;
    type Error = Failure;
    type Future = Ready<Result<u32, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.polls += 1;
        if self.polls == 1 {
            return Poll::Pending;
        }
        self.owner.take();
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, n: u32) -> Self::Future {
        ready(Ok(n))
    }
}

#[test]
fn service_ready_without_handle_is_dropped() {
    let executor = ByHand::default();
    let (owner, alive) = (Rc::new(RefCell::default()), Rc::new(()));
    let leaver = Leaver {
        owner: owner.clone(),
        polls: 0,
        _alive: alive.clone(),
    };
    let mut service = SpawnReady::with_executor(leaver, executor.clone());
    assert!(WakeCount::new().poll_ready(&mut service).is_pending());
    owner.replace(Some(service));
    assert!(executor.poll().is_pending());
    assert_eq!(Rc::strong_count(&alive), 1);
    assert!(executor.is_woken());
    assert!(executor.poll().is_ready());
}

/// Whether the next request is shed.
fn sheds<S>(service: &mut LoadShed<S>, wakes: &WakeCount) -> bool
where
    S: Service<u32, Response = u32, Error: core::fmt::Debug>,
{
    assert!(matches!(wakes.poll_ready(service), Poll::Ready(Ok(()))));
    let answer = service.call(1).now_or_never();
    matches!(answer, Some(Err(load_shed::Error::Overloaded(_))))
}

#[test]
fn tried_service_is_driven() {
    let (service, handle) = mock::<u32, u32>();
    let executor = ByHand::default();
    let mut service = LoadShed::new(SpawnReady::with_executor(service, executor.clone()));
    let wakes = WakeCount::new();
    handle.set_ready(false);
    for n in 1..4 {
        assert!(sheds(&mut service, &wakes));
        assert_eq!(executor.is_woken(), n > 1);
        assert!(executor.poll().is_pending());
        // One task serves all requests.
        assert_eq!((executor.tasks(), handle.calls()), (1, n - 1));
        handle.set_ready(true);
        assert!(executor.is_woken());
        // The try takes the service back and polls it at once, whether or not the task has polled it.
        if n == 2 {
            assert!(executor.poll().is_pending());
        }
        assert!(!sheds(&mut service, &wakes));
        assert_eq!(handle.calls(), n);
        assert!(executor.poll().is_pending());
        handle.set_ready(false);
    }
    assert_eq!(wakes.get(), 0);
}

#[test]
fn try_takes_the_readiness_of_the_task() {
    let mut set = Set::waiting();
    let (wakes, executor) = (set.wakes.clone(), set.executor.clone());
    assert!(set.poll().is_pending());
    let mut service = LoadShed::new(set.service);
    // While a request waits, the service stays with the task.
    assert!(sheds(&mut service, &wakes));
    set.handle.set_ready(true);
    let woken = wakes.get();
    assert!(executor.poll().is_pending());
    assert_eq!(wakes.get(), woken + 1);
    assert!(!sheds(&mut service, &wakes));
    assert_eq!((executor.tasks(), set.handle.calls()), (1, 1));
    // If a try finds the readiness lost, a call cannot use it.
    assert!(wakes.poll_ready(service.get_mut()).is_ready());
    set.handle.set_ready(false);
    assert!(wakes.poll_ready(&mut service).is_ready());
    let answer = service.get_mut().call(1).now_or_never();
    assert_eq!(answer, Some(Err(Error::NotReady(NotReady::new()))));
}

#[test]
fn failure_while_driven_is_final() {
    let (service, handle) = mock::<u32, u32>();
    let executor = ByHand::default();
    let mut service = LoadShed::new(SpawnReady::with_executor(service, executor.clone()));
    handle.set_ready(false);
    assert!(sheds(&mut service, &WakeCount::new()));
    assert!(executor.poll().is_pending());
    handle.fail(DEAD);
    assert!(executor.poll().is_ready());
    assert_eq!(handle.alive(), 0);
    let failed = WakeCount::new().poll_ready(service.get_mut());
    assert_eq!(failed, Poll::Ready(Err(Error::Service(DEAD))));
}

#[test]
fn driven_service_survives_the_executor() {
    let (service, handle) = mock::<u32, u32>();
    let executor = ByHand::default();
    let mut service = LoadShed::new(SpawnReady::with_executor(service, executor.clone()));
    let wakes = WakeCount::new();
    handle.set_ready(false);
    for runs in [false, true] {
        assert!(sheds(&mut service, &wakes));
        if runs {
            assert!(executor.poll().is_pending());
        }
        executor.stop();
        assert_eq!(handle.alive(), 1);
    }
    handle.set_ready(true);
    assert!(!sheds(&mut service, &wakes));
}

#[test]
fn driven_service_ends_with_the_handle() {
    for runs in [false, true] {
        let (service, handle) = mock::<u32, u32>();
        let executor = ByHand::default();
        let mut service = LoadShed::new(SpawnReady::with_executor(service, executor.clone()));
        handle.set_ready(false);
        assert!(sheds(&mut service, &WakeCount::new()));
        if runs {
            assert!(executor.poll().is_pending());
        }
        drop(service);
        assert_eq!(handle.alive(), 0);
        assert_eq!(executor.is_woken(), runs);
        assert!(executor.poll().is_ready());
    }
}

/// A limit of one whose permit another handle holds.
struct Limited {
    service: ConcurrencyLimit<Mock<u32, u32>>,
    permits: Semaphore,
    other: ConcurrencyLimit<Mock<u32, u32>>,
    executor: ByHand,
    wakes: WakeCount,
}

impl Limited {
    fn new() -> Self {
        let permits = Semaphore::new(1);
        let service = ConcurrencyLimit::with_semaphore(mock().0, permits.clone());
        let mut other = service.clone();
        let wakes = WakeCount::new();
        assert!(wakes.poll_ready(&mut other).is_ready());
        Self {
            service,
            permits,
            other,
            executor: ByHand::default(),
            wakes,
        }
    }
}

#[test]
fn shed_request_reserves_nothing() {
    let set = Limited::new();
    let spawned = SpawnReady::with_executor(set.service, set.executor.clone());
    let mut service = LoadShed::new(spawned);
    for _ in 0..3 {
        assert!(sheds(&mut service, &set.wakes));
        assert!(set.executor.poll().is_pending());
    }
    drop(set.other);
    // No request waits for the permit, so the task does not take it.
    assert!(!set.executor.is_woken());
    assert!(set.executor.poll().is_pending());
    assert_eq!(set.permits.available_permits(), 1);
    assert!(!sheds(&mut service, &set.wakes));
}

#[test]
fn wait_after_a_try_joins_the_queue() {
    let set = Limited::new();
    let spawned = SpawnReady::with_executor(set.service, set.executor.clone());
    let mut service = LoadShed::new(spawned);
    assert!(sheds(&mut service, &set.wakes));
    assert!(set.executor.poll().is_pending());
    let waits = WakeCount::new();
    assert!(waits.poll_ready(service.get_mut()).is_pending());
    assert!(set.executor.poll().is_pending());
    drop(set.other);
    assert_eq!(set.permits.available_permits(), 0);
    assert!(set.executor.is_woken());
    assert!(set.executor.poll().is_pending());
    assert_eq!(waits.get(), 1);
    assert!(waits.poll_ready(service.get_mut()).is_ready());
}

#[test]
fn cancelled_wait_leaves_the_queue() {
    // The task waits for the permit until the deadline elapses.
    let set = Limited::new();
    let timer = ManualTimer::new();
    let spawned = SpawnReady::with_executor(set.service, set.executor.clone());
    let mut service = Deadline::with_timer(spawned, MS, timer.clone());
    assert!(set.wakes.poll_ready(&mut service).is_pending());
    assert!(set.executor.poll().is_pending());
    timer.advance(MS);
    assert!(set.wakes.poll_ready(&mut service).is_ready());
    assert!(set.executor.is_woken());
    assert!(set.executor.poll().is_pending());
    drop(set.other);
    assert_eq!(set.permits.available_permits(), 1);

    // The next request starts its own wait.
    let answer = service.call(1).now_or_never();
    assert!(matches!(answer, Some(Err(timeout::Error::Elapsed(_)))));
    assert!(set.wakes.poll_ready(&mut service).is_ready());
    assert_eq!(set.permits.available_permits(), 0);
}

/// A service that runs a hook during a poll, as another thread might.
struct Hooked<S> {
    inner: S,
    hook: Rc<RefCell<Option<Box<dyn FnOnce()>>>>,
}

impl<S: Service<u32>> Service<u32> for Hooked<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let hook = self.hook.take();
        hook.into_iter().for_each(|hook| hook());
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: u32) -> S::Future {
        self.inner.call(request)
    }
}

#[test]
fn wait_cancelled_in_a_poll_takes_no_permit() {
    let set = Limited::new();
    let timer = ManualTimer::new();
    let hook = Rc::default();
    let hooked = Hooked {
        inner: set.service,
        hook: Rc::clone(&hook),
    };
    let spawned = SpawnReady::with_executor(hooked, set.executor.clone());
    let deadline = Deadline::with_timer(spawned, MS, timer.clone());
    let service = Rc::new(RefCell::new(deadline));
    assert!(
        set.wakes
            .poll_ready(&mut *service.borrow_mut())
            .is_pending()
    );
    let there = service.clone();
    *hook.borrow_mut() = Some(Box::new(move || {
        timer.advance(MS);
        let mut service = there.borrow_mut();
        assert!(set.wakes.poll_ready(&mut *service).is_ready());
        drop(set.other);
    }));
    assert!(set.executor.poll().is_pending());
    assert_eq!(set.permits.available_permits(), 1);
}

/// The worker cancels its wait and waits again before the task has run.
#[test]
fn queued_request_has_its_own_deadline() {
    let set = Limited::new();
    let timer = ManualTimer::new();
    let deadline = Deadline::with_timer(set.service, 10 * MS, timer.clone());
    let spawned = SpawnReady::with_executor(deadline, set.executor.clone());
    let (handle, worker) = buffer::pair(spawned, 4);
    let mut worker = spawn(worker);
    let settle = |worker: &mut Task<_>| {
        while worker.is_woken() || set.executor.is_woken() {
            assert!(worker.poll().is_pending());
            assert!(set.executor.poll().is_pending());
        }
    };
    let mut given_up = spawn(handle.clone().oneshot(1));
    assert!(given_up.poll().is_pending());
    assert!(worker.poll().is_pending());
    assert!(set.executor.poll().is_pending());
    settle(&mut worker);
    timer.advance(9 * MS);
    let mut queued = spawn(handle.clone().oneshot(2));
    assert!(queued.poll().is_pending());
    drop(given_up);
    settle(&mut worker);
    timer.advance(5 * MS);
    settle(&mut worker);
    drop(set.other);
    settle(&mut worker);
    // The service holds the permit.
    assert!(queued.poll().is_pending());
    assert_eq!(set.permits.available_permits(), 0);
}

#[test]
fn cancelled_wait_returns_permits() {
    // The permit was granted and is on its way back from the task.
    let set = Limited::new();
    let timer = ManualTimer::new();
    let spawned = SpawnReady::with_executor(set.service, set.executor.clone());
    let (mut handle, mut worker) = buffer::pair(Deadline::with_timer(spawned, MS, timer), 1);
    assert!(set.wakes.poll_ready(&mut handle).is_ready());
    let response = handle.call(1);
    assert!(set.wakes.poll(&mut worker).is_pending());
    assert!(set.executor.poll().is_pending());
    drop(set.other);
    assert!(set.executor.poll().is_pending());
    assert_eq!(set.permits.available_permits(), 0);
    drop(response);
    assert!(set.wakes.poll(&mut worker).is_pending());
    assert_eq!(set.permits.available_permits(), 1);
}

/// Polls its own `SpawnReady` for a request while it is driven, as another thread might.
struct Overtaken {
    owner: Rc<RefCell<Option<SpawnReady<Overtaken, u32, ByHand>>>>,
    wakes: WakeCount,
    polls: u32,
}

impl Service<u32> for Overtaken {
    type Response = u32;
    type Error = Failure;
    type Future = Ready<Result<u32, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.polls += 1;
        if self.polls == 2 {
            let mut owner = self.owner.borrow_mut();
            let polled = self.wakes.poll_ready(owner.as_mut().unwrap());
            assert!(polled.is_pending());
        }
        match self.polls {
            1 | 2 => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, n: u32) -> Self::Future {
        ready(Ok(n))
    }
}

#[test]
fn wait_begun_during_a_drive_is_noticed() {
    let (executor, wakes, owner) = (ByHand::default(), WakeCount::new(), Rc::default());
    let overtaken = Overtaken {
        owner: Rc::clone(&owner),
        wakes: wakes.clone(),
        polls: 0,
    };
    let spawned = SpawnReady::with_executor(overtaken, executor.clone());
    let mut shed = LoadShed::new(spawned);
    assert!(sheds(&mut shed, &WakeCount::new()));
    owner.replace(Some(shed.into_inner()));
    // It is driven, and polled for a request during that.
    assert!(executor.poll().is_pending());
    assert_eq!(wakes.get(), 1);
    let mut service = owner.take().unwrap();
    assert_eq!(wakes.poll_ready(&mut service), Poll::Ready(Ok(())));
    assert_eq!(service.call(1).now_or_never(), Some(Ok(1)));
}

#[test]
fn try_connects() {
    let (maker, mut connector) = mock::<(), Mock<u32, u32>>();
    let timer = ManualTimer::new();
    let rng = SplitMix64::new(1);
    let backoff = ExponentialBackoffMaker::with_timer(MS, MS, Jitter::None, rng, timer.clone());
    let reconnect = Reconnect::with_backoff(maker, (), backoff.unwrap(), timer.clone());
    let executor = ByHand::default();
    let mut service = LoadShed::new(SpawnReady::with_executor(reconnect, executor.clone()));
    let wakes = WakeCount::new();
    assert!(sheds(&mut service, &wakes));
    assert!(executor.poll().is_pending());
    // Even without a request, a second attempt follows after the backoff.
    connector.try_next().unwrap().1.fail(DEAD);
    assert!(executor.is_woken());
    assert!(executor.poll().is_pending());
    assert_eq!(timer.armed(), 1);
    timer.advance(MS);
    assert!(executor.is_woken());
    assert!(executor.poll().is_pending());
    let (connection, handle) = mock();
    connector.try_next().unwrap().1.send(connection);
    assert!(executor.poll().is_pending());
    assert!(!sheds(&mut service, &wakes));
    assert_eq!((handle.calls(), connector.calls()), (1, 2));
}

#[test]
fn old_refusal_answers_no_new_request() {
    let (maker, mut connector) = mock::<(), Mock<u32, u32>>();
    let timer = ManualTimer::new();
    let rng = SplitMix64::new(1);
    let backoff = ExponentialBackoffMaker::with_timer(MS, MS, Jitter::None, rng, timer.clone());
    let reconnect = Reconnect::with_backoff(maker, (), backoff.unwrap(), timer.clone());
    let executor = ByHand::default();
    let mut service = SpawnReady::with_executor(reconnect, executor.clone());
    let wakes = WakeCount::new();
    // The waiting request is cancelled, then the attempt fails.
    assert!(wakes.poll_ready(&mut service).is_pending());
    assert!(executor.poll().is_pending());
    connector.try_next().unwrap().1.fail(DEAD);
    assert!(executor.poll().is_pending());
    // The next request, an hour later, gets the result of the next attempt.
    timer.advance(Duration::from_secs(3600));
    assert!(wakes.poll_ready(&mut service).is_pending());
    assert!(executor.poll().is_pending());
    let (connection, handle) = mock();
    connector.try_next().unwrap().1.send(connection);
    assert!(executor.poll().is_pending());
    assert_eq!(wakes.poll_ready(&mut service), Poll::Ready(Ok(())));
    assert_eq!(service.call(1).now_or_never(), None);
    assert_eq!((handle.calls(), connector.calls()), (1, 2));
}

/// Panics in user code, none of which costs another task its wake-up.
mod panics {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::task::{Wake, Waker};

    /// Panics when it is dropped.
    struct Bomb(Rc<Wiring>);

    struct Wiring {
        is_armed: Cell<bool>,
        readiness: Cell<Poll<Result<(), Failure>>>,
    }

    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(!self.0.is_armed.take(), "a destructor panics");
        }
    }

    impl Service<u32> for Bomb {
        type Response = u32;
        type Error = Failure;
        type Future = Ready<Result<u32, Failure>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
            self.0.readiness.get()
        }

        fn call(&mut self, n: u32) -> Self::Future {
            ready(Ok(n))
        }
    }

    /// A waker that panics once, when it is woken or dropped.
    struct Fuse {
        in_wake: bool,
        is_armed: AtomicBool,
    }

    impl Fuse {
        fn waker(in_wake: bool) -> Waker {
            Waker::from(Arc::new(Self {
                in_wake,
                is_armed: AtomicBool::new(true),
            }))
        }

        fn go_off(&self) {
            assert!(!self.is_armed.swap(false, SeqCst), "a waker panics");
        }
    }

    impl Wake for Fuse {
        fn wake(self: Arc<Self>) {
            self.wake_by_ref();
        }

        fn wake_by_ref(self: &Arc<Self>) {
            if self.in_wake {
                self.go_off();
            }
        }
    }

    impl Drop for Fuse {
        fn drop(&mut self) {
            if !self.in_wake {
                self.go_off();
            }
        }
    }

    fn is_panic<T>(act: impl FnOnce() -> T) -> bool {
        catch_unwind(AssertUnwindSafe(act)).is_err()
    }

    /// A service that was handed to a task and panics when dropped, and a waiting handle.
    struct Waiting {
        service: SpawnReady<Bomb, u32, ByHand>,
        executor: ByHand,
        wakes: WakeCount,
        bomb: Rc<Wiring>,
    }

    impl Waiting {
        fn new() -> Self {
            let bomb = Rc::new(Wiring {
                is_armed: Cell::new(true),
                readiness: Cell::new(Poll::Pending),
            });
            let (executor, wakes) = (ByHand::default(), WakeCount::new());
            let mut service = SpawnReady::with_executor(Bomb(bomb.clone()), executor.clone());
            assert!(wakes.poll_ready(&mut service).is_pending());
            Self {
                service,
                executor,
                wakes,
                bomb,
            }
        }
    }

    #[test]
    fn dropped_task_wakes_the_handle() {
        // Before the task has taken the service, and after.
        for runs in [false, true] {
            let Waiting {
                mut service,
                executor,
                wakes,
                ..
            } = Waiting::new();
            if runs {
                assert!(executor.poll().is_pending());
            }
            assert!(is_panic(|| executor.stop()));
            assert_eq!(wakes.get(), 1);
            let closed = Poll::Ready(Err(Error::Closed(Closed::new())));
            assert_eq!(wakes.poll_ready(&mut service), closed);
        }
    }

    #[test]
    fn failed_service_wakes_the_handle() {
        let Waiting {
            mut service,
            executor,
            wakes,
            bomb,
        } = Waiting::new();
        bomb.readiness.set(Poll::Ready(Err(DEAD)));
        assert!(is_panic(|| executor.poll()));
        assert_eq!(wakes.get(), 1);
        let panicked = Poll::Ready(Err(Error::Panicked(Panicked::new())));
        assert_eq!(wakes.poll_ready(&mut service), panicked);
    }

    #[test]
    fn dropped_handle_wakes_the_task() {
        // The service is on its way to the task, in the task, and on its way back.
        for steps in 0..3 {
            let Waiting {
                service,
                executor,
                bomb,
                ..
            } = Waiting::new();
            if steps > 0 {
                assert!(executor.poll().is_pending());
            }
            if steps > 1 {
                bomb.readiness.set(Poll::Ready(Ok(())));
                assert!(executor.poll().is_pending());
            }
            // In the task, the task drops it.
            assert_eq!(is_panic(|| drop(service)), steps != 1);
            assert!(executor.is_woken() || steps == 0);
            assert_eq!(is_panic(|| executor.poll()), steps == 1);
        }
    }

    #[test]
    fn panicking_waker_costs_the_task_nothing() {
        let Waiting {
            mut service,
            executor,
            bomb,
            ..
        } = Waiting::new();
        bomb.is_armed.set(false);
        assert!(executor.poll().is_pending());
        let fuse = Fuse::waker(false);
        let mut cx = Context::from_waker(&fuse);
        assert!(service.poll_ready(&mut cx).is_pending());
        drop(fuse);
        assert!(!executor.is_woken());
        assert!(is_panic(|| drop(service)));
        assert!(executor.is_woken());
    }

    #[test]
    fn panicking_waker_costs_no_service() {
        let Waiting {
            mut service,
            executor,
            wakes,
            bomb,
        } = Waiting::new();
        assert!(executor.poll().is_pending());
        let fuse = Fuse::waker(true);
        let mut cx = Context::from_waker(&fuse);
        assert!(service.poll_ready(&mut cx).is_pending());
        bomb.readiness.set(Poll::Ready(Ok(())));
        assert!(is_panic(|| executor.poll()));
        // The service was already on its way.
        assert_eq!(wakes.poll_ready(&mut service), Poll::Ready(Ok(())));
        assert_eq!(service.call(1).now_or_never(), Some(Ok(1)));
        bomb.is_armed.set(false);
    }
}

#[test]
fn unready_call_reaches_no_service() {
    let mut set = Set::new();
    let not_ready = || Some(Err(Error::NotReady(NotReady::new())));
    assert_eq!(set.call(), not_ready());
    assert!(set.poll().is_ready());
    assert_eq!(set.call(), None);
    assert_eq!(set.call(), not_ready());
    set.handle.set_ready(false);
    assert!(set.poll().is_pending());
    assert_eq!(set.call(), not_ready());
    assert_eq!(set.handle.calls(), 1);
}

#[test]
fn layer_and_task_can_be_named() {
    /// An executor for this task type only.
    #[derive(Clone, Default)]
    struct Only;
    impl<S: Service<u32>> Executor<BackgroundReady<S, u32>> for Only {
        fn execute(&self, mut task: BackgroundReady<S, u32>) {
            assert!(WakeCount::new().poll(&mut task).is_pending());
        }
    }
    let layer: SpawnReadyLayer<u32, Only> = SpawnReady::<Mock<u32, u32>, _, _>::layer();
    let (service, handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let mut service = layer.clone().layer(service);
    let closed = Error::Closed(Closed::new());
    let polled = WakeCount::new().poll_ready(&mut service);
    assert_eq!(polled, Poll::Ready(Err(closed)));
}

#[test]
fn errors_flatten() {
    use campanile::BoxError;

    let error: Error<load_shed::Error<Failure>> = Error::Service(load_shed::Error::Service(DEAD));
    assert_eq!(BoxError::from(error).downcast_ref(), Some(&DEAD));
    let error: Error<Failure> = Error::Panicked(Panicked::new());
    assert!(BoxError::from(error).is::<Panicked>());
}

/// A service without `Send` or `'static`, pending for the first few polls after each call.
struct Slow<'a> {
    served: &'a RefCell<Vec<u32>>,
    left: u32,
}

impl Service<u32> for Slow<'_> {
    type Response = u32;
    type Error = Failure;
    type Future = Ready<Result<u32, Failure>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.left == 0 {
            return Poll::Ready(Ok(()));
        }
        self.left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, n: u32) -> Self::Future {
        self.left = 3;
        self.served.borrow_mut().push(n);
        ready(Ok(n))
    }
}

#[cfg(feature = "smol")]
#[test]
fn local_executor_drives_local_services() {
    let served = RefCell::new(Vec::new());
    let executor = smol::LocalExecutor::new();
    let slow = Slow {
        served: &served,
        left: 3,
    };
    let service = SpawnReady::with_executor(slow, &executor);
    smol::block_on(executor.run(async {
        let mut service = service;
        for n in 0..3 {
            let answer = service.ready().await.unwrap().call(n).await;
            assert_eq!(answer, Ok(n));
        }
    }));
    assert_eq!(*served.borrow(), [0, 1, 2]);
}

#[cfg(feature = "tokio")]
#[tokio::test]
async fn local_set_drives_services_without_send() {
    use campanile::tokio::local::ServiceBuilder;

    tokio::task::LocalSet::new()
        .run_until(async {
            let served: &RefCell<Vec<u32>> = Box::leak(Box::default());
            let slow = Slow { served, left: 3 };
            let mut service = ServiceBuilder::new().spawn_ready().service(slow);
            for n in 0..3 {
                let answer = service.ready().await.unwrap().call(n).await;
                assert_eq!(answer, Ok(n));
            }
            assert_eq!(*served.borrow(), [0, 1, 2]);
        })
        .await;
}

/// The task drives the service although its owner polls only now and then.
async fn background_task_drives_readiness<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let mut service = SpawnReady::with_executor(service, rt);
    assert!(WakeCount::new().poll_ready(&mut service).is_pending());
    handle.set_ready(true);
    let response = service.ready().await.unwrap().call(1);
    let (request, responder) = handle.next().await;
    responder.send(request + 1);
    assert_eq!(response.await, Ok(2));

    handle.set_ready(false);
    assert!(WakeCount::new().poll_ready(&mut service).is_pending());
    handle.fail(DEAD);
    assert_eq!(service.ready().await.unwrap_err(), Error::Service(DEAD));
    assert_eq!(handle.alive(), 0);
    let failed = Error::Failed(Failed::new());
    assert_eq!(service.ready().await.unwrap_err(), failed);
}

async fn a_dropped_handle_ends_the_task<H: Host>(rt: On<H>) {
    let (service, handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let mut service = SpawnReady::with_executor(service, rt);
    assert!(WakeCount::new().poll_ready(&mut service).is_pending());
    drop(service);
    until(|| handle.alive() == 0).await;
}

/// Pending twice before each call: once in the caller, once in the task.
struct Often {
    left: u32,
    served: u32,
}

impl Service<u32> for Often {
    type Response = u32;
    type Error = Failure;
    type Future = Ready<Result<u32, Failure>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.left == 0 {
            return Poll::Ready(Ok(()));
        }
        self.left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, n: u32) -> Self::Future {
        self.left = 2;
        self.served += 1;
        ready(Ok(n + self.served))
    }
}

/// A single try leads to a connection.
async fn one_try_connects_in_the_background<H: Host>(rt: On<H>) {
    let (maker, mut connector) = mock::<(), Mock<u32, u32>>();
    let rng = SplitMix64::new(1);
    let backoff = ExponentialBackoffMaker::with_timer(MS, MS, Jitter::None, rng, rt.clone());
    let reconnect = Reconnect::with_backoff(maker, (), backoff.unwrap(), rt.clone());
    let mut service = LoadShed::new(SpawnReady::with_executor(reconnect, rt.clone()));
    let wakes = WakeCount::new();
    assert!(sheds(&mut service, &wakes));
    connector.next().await.1.fail(DEAD);
    let attempt = async { connector.next().await.1 };
    let attempt = rt.advance_until(MS, Box::pin(attempt)).await;
    let (connection, handle) = mock();
    handle.set_ready(false);
    attempt.send(connection);
    until(|| handle.is_waited_for()).await;
    handle.set_ready(true);
    until(|| !sheds(&mut service, &wakes)).await;
    assert_eq!(handle.calls(), 1);
}

/// Many handovers, so that a race would lose a wake-up.
async fn no_wake_up_is_lost<H: Host>(rt: On<H>) {
    let often = Often { left: 2, served: 0 };
    let mut service = SpawnReady::with_executor(often, rt);
    let mut sum = 0;
    for n in 0..2_000 {
        sum += service.ready().await.unwrap().call(n).await.unwrap();
    }
    assert_eq!(sum, (0..2_000).map(|n| 2 * n + 1).sum());
}

on_every_runtime! {
    background_task_drives_readiness,
    a_dropped_handle_ends_the_task,
    no_wake_up_is_lost,
    one_try_connects_in_the_background,
}

/// The same code against tower and against this crate, except for the request type in the service's type.
#[cfg(all(feature = "tower", feature = "tokio"))]
mod parity {
    use crate::common::mock;

    macro_rules! program {
        ($tower:path $(, $request:ty)?) => {{
            use tower::spawn_ready::{SpawnReady, SpawnReadyLayer};
            use tower::{BoxError, Layer, Service, ServiceExt, util::BoxService};
            use $tower as tower;

            struct Kept {
                service: SpawnReady<BoxService<u32, u32, BoxError> $(, $request)?>,
            }

            let (service, mut handle) = mock::<u32, u32>();
            handle.set_ready(false);
            let service = BoxService::new(service.map_err(BoxError::from));
            let mut kept = Kept {
                service: SpawnReady::new(service),
            };
            let response = {
                let waiting = kept.service.ready();
                let (ready, ()) = futures::join!(waiting, async { handle.set_ready(true) });
                ready.unwrap().call(1)
            };
            handle.next().await.1.send(2);
            let mut outer = SpawnReadyLayer::new().layer(kept.service);
            assert!(outer.ready().await.is_ok());
            response.await.unwrap()
        }};
    }

    #[tokio::test]
    async fn code_for_tower_compiles_against_this() {
        assert_eq!(program!(::tower), 2);
        assert_eq!(program!(campanile::tokio, u32), 2);
    }
}
