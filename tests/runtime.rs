//! Every adapter obeys the contracts of `Executor` and `Timer`.
//!
//! Deadlines are in the past or beyond the end of the test, so no test waits for a real clock.

#![cfg(all(
    feature = "tokio",
    feature = "smol",
    feature = "async-std",
    feature = "futures-timer"
))]

mod common;

use core::pin::pin;
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use campanile::async_std::AsyncStd;
use campanile::futures_timer::FuturesTimer;
use campanile::runtime::{Parts, SharedTimer};
use campanile::smol::Smol;
use campanile::tokio::{Tokio, TokioLocal};
use campanile::{Executor, Instant, NoRuntime, Runtime, Timer};
use common::{Host, ManualTimer, On, Threads, on_every_runtime, ready, spawn, until};
use futures::channel::oneshot;

const HOUR: Duration = Duration::from_secs(3600);

fn current_thread() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// The contract of `Timer`, inside a running runtime.
async fn timer_contract(timer: &impl Timer) {
    let now = timer.now();
    assert!(timer.now() >= now);

    let past = now.saturating_sub(HOUR);
    timer.sleep_until(past).await;
    timer.sleep_until(Instant::from_nanos(0)).await;
    timer.alarm_until(past).await;
    timer.sleep(Duration::ZERO).await;

    assert!(spawn(timer.sleep(HOUR)).poll().is_pending());
    assert!(spawn(timer.sleep(Duration::MAX)).poll().is_pending());
    assert!(spawn(timer.sleep_until(Instant::MAX)).poll().is_pending());
    assert!(
        spawn(timer.sleep_until(now.saturating_add(Duration::MAX)))
            .poll()
            .is_pending()
    );

    // An alarm can be moved both ways, from and to "never", and again after it was ready.
    let wakes = common::WakeCount::new();
    let mut alarm = timer.alarm_until(Instant::MAX);
    assert!(wakes.poll(&mut alarm).is_pending());
    timer.reset(&mut alarm, now.saturating_add(HOUR));
    assert!(wakes.poll(&mut alarm).is_pending());
    timer.reset(&mut alarm, past);
    (&mut alarm).await;
    timer.reset(&mut alarm, Instant::MAX);
    assert!(wakes.poll(&mut alarm).is_pending());
}

/// A past deadline is ready at the first poll. Not for futures-timer, whose helper thread has to see a delay before it
/// ends. The deadline is past by more than the millisecond to which tokio rounds up.
fn past_deadline_is_ready(timer: &impl Timer) {
    let past = timer.now().saturating_sub(HOUR);
    ready(spawn(timer.sleep_until(past)).poll());
    ready(spawn(timer.alarm_until(past)).poll());
    let mut alarm = timer.alarm_until(Instant::MAX);
    timer.reset(&mut alarm, past);
    ready(spawn(alarm).poll());
}

#[test]
fn past_deadline_is_ready_at_once() {
    let runtime = current_thread();
    runtime.block_on(async {
        past_deadline_is_ready(&Tokio);
        past_deadline_is_ready(&TokioLocal);
    });
    past_deadline_is_ready(runtime.handle());
    past_deadline_is_ready(&Smol);
    past_deadline_is_ready(&AsyncStd);
    past_deadline_is_ready(&ManualTimer::new());
    past_deadline_is_ready(&SharedTimer::new(Smol));
    past_deadline_is_ready(&SharedTimer::new(runtime.handle().clone()));
}

/// A sleep ends, and not early. This is the only wait in real time here, of one millisecond.
async fn wakes_up(timer: impl Timer) {
    let deadline = timer.now().saturating_add(Duration::from_millis(1));
    timer.sleep_until(deadline).await;
    assert!(timer.now() >= deadline);
    timer.sleep(Duration::ZERO).await;
    timer.sleep_until(timer.now()).await;
    let deadline = timer.now().saturating_add(Duration::from_millis(1));
    let mut alarm = timer.alarm_until(Instant::MAX);
    timer.reset(&mut alarm, deadline);
    alarm.await;
    assert!(timer.now() >= deadline);
}

/// Runs one task, which reports that it ran.
async fn executes<E: Executor<Task>>(executor: &E) {
    let (told, ran) = oneshot::channel();
    executor.execute(task(told));
    assert_eq!(ran.await, Ok("ran"));
}

type Task = core::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn task(told: oneshot::Sender<&'static str>) -> Task {
    Box::pin(async move { told.send("ran").unwrap() })
}

/// A task without `Send`.
async fn executes_local<E: Executor<core::pin::Pin<Box<dyn Future<Output = ()>>>>>(executor: &E) {
    let (told, ran) = oneshot::channel();
    let here = Rc::new(told);
    executor.execute(Box::pin(async move {
        Rc::into_inner(here).unwrap().send("ran").unwrap();
    }));
    assert_eq!(ran.await, Ok("ran"));
}

/// `&`, `Rc` and `Arc` of a runtime behave as the runtime.
async fn forwards<R: Executor<Task> + Timer + Clone>(runtime: R) {
    forwards_executor(runtime.clone()).await;
    forwards_timer(runtime).await;
}

async fn forwards_executor(executor: impl Executor<Task>) {
    executes(&&executor).await;
    let executor = Rc::new(executor);
    executes(&executor).await;
    executes(&Rc::downgrade(&executor)).await;
    let executor = Arc::new(Rc::into_inner(executor).unwrap());
    executes(&executor).await;
    executes(&Arc::downgrade(&executor)).await;
}

async fn forwards_timer(timer: impl Timer) {
    timer_contract(&&timer).await;
    let timer = Rc::new(timer);
    timer_contract(&timer).await;
    let timer = Arc::new(Rc::into_inner(timer).unwrap());
    timer_contract(&timer).await;
    wakes_up(&timer).await;
}

#[test]
fn every_adapter_forwards_through_pointers() {
    current_thread().block_on(forwards(Tokio));
    let runtime = current_thread();
    runtime.block_on(forwards(runtime.handle().clone()));
    smol::block_on(forwards(Smol));
    async_std::task::block_on(forwards(AsyncStd));
    futures::executor::block_on(forwards_timer(FuturesTimer));
    let executor = smol::Executor::new();
    smol::block_on(executor.run(forwards_executor(&executor)));
}

/// The executor and timer that a builder takes from a runtime work while it runs.
async fn halves<R: Parts<Executor: Executor<Task>, Timer: Timer>>(runtime: R) {
    forwards_executor(runtime.executor()).await;
    forwards_timer(runtime.timer()).await;
}

#[test]
fn runtime_may_have_two_halves() {
    current_thread().block_on(halves(Runtime::new(Tokio, Smol)));
    current_thread().block_on(halves(Runtime::new(Smol, Tokio)));
    smol::block_on(halves(Runtime::new(AsyncStd, FuturesTimer)));
    futures::executor::block_on(halves(Runtime::new(Threads, FuturesTimer)));
    smol::block_on(executes(&Runtime::new(Smol, NoRuntime).executor()));
    smol::block_on(timer_contract(
        &Runtime::new(NoRuntime, ManualTimer::new()).timer(),
    ));
}

#[test]
fn every_timer_can_be_shared() {
    current_thread().block_on(forwards_timer(SharedTimer::new(Tokio)));
    let runtime = current_thread();
    let handle = runtime.handle().clone();
    runtime.block_on(forwards_timer(SharedTimer::new(handle)));
    smol::block_on(forwards_timer(SharedTimer::new(Smol)));
    async_std::task::block_on(forwards_timer(SharedTimer::new(AsyncStd)));
    futures::executor::block_on(forwards_timer(SharedTimer::new(FuturesTimer)));
    // A shared timer can be shared again.
    let timer = SharedTimer::new(SharedTimer::new(Arc::new(Smol)));
    smol::block_on(timer_contract(&timer));
    smol::block_on(wakes_up(timer));
}

#[test]
fn smol_executors_are_runtimes() {
    let executor = Arc::new(smol::Executor::new());
    smol::block_on(executor.run(halves(executor.clone())));
    smol::block_on(executor.run(executes(&&*executor)));

    let local = Rc::new(smol::LocalExecutor::new());
    smol::block_on(local.run(executes_local(&local)));
    smol::block_on(local.run(executes_local(&local.executor())));
    smol::block_on(local.run(executes_local(&&*local)));
    smol::block_on(local.run(timer_contract(&local.timer())));
}

#[test]
fn tokio_local_sets_run_local_tasks() {
    let set = tokio::task::LocalSet::new();
    let runtime = current_thread();
    set.block_on(&runtime, async {
        executes_local(&TokioLocal).await;
        timer_contract(&TokioLocal).await;
    });
    set.block_on(&runtime, executes_local(&set));
    set.block_on(&runtime, executes_local(&(&set).executor()));
    set.block_on(&runtime, timer_contract(&(&set).timer()));
    let set = Rc::new(set);
    set.block_on(&runtime, executes_local(&set));
    set.block_on(&runtime, executes_local(&set.executor()));
}

#[test]
fn handle_works_outside_the_context() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    assert!(tokio::runtime::Handle::try_current().is_err());
    futures::executor::block_on(forwards(handle));
}

#[test]
fn reading_the_clock_needs_no_runtime() {
    assert!(tokio::runtime::Handle::try_current().is_err());
    assert!(Tokio.now() <= TokioLocal.now());
    assert!(Smol.now() <= AsyncStd.now());
    assert!(FuturesTimer.now() > Instant::from_nanos(0));
    let timer = SharedTimer::<Tokio>::default();
    assert!(timer.now() >= Tokio.now().saturating_sub(HOUR));
    drop(timer.sleep(HOUR));
}

/// Outside tokio, layers, services and policies can be built, and a request that need not wait is answered.
#[test]
fn building_needs_no_runtime() {
    use campanile::tokio::ServiceBuilder;
    use campanile::tokio::buffer::BufferLayer;
    use campanile::tokio::limit::RateLimitLayer;
    use campanile::tokio::retry::{RetryLayer, StandardPolicy, budget::TpsBudget};
    use campanile::tokio::timeout::{DeadlineLayer, TimeoutLayer};
    use campanile::{Service, service_fn};

    assert!(tokio::runtime::Handle::try_current().is_err());
    let _ = BufferLayer::<u32>::new(1);
    let policy = StandardPolicy::new()
        .total_time(HOUR)
        .budget(Rc::new(TpsBudget::new(HOUR, 1, 0.5)));
    let mut service = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .layer(DeadlineLayer::new(HOUR))
        .layer(RateLimitLayer::new(1, HOUR))
        .layer(TimeoutLayer::new(HOUR).from_call())
        .concurrency_limit(1)
        .service(service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n)));
    ready(common::WakeCount::new().poll_ready(&mut service)).unwrap();
    assert_eq!(ready(spawn(service.call(1)).poll()).unwrap(), 1);
}

#[test]
fn missing_tokio_context_panics() {
    let file = Arc::new(std::sync::Mutex::new(None));
    let seen = file.clone();
    let hook = std::panic::take_hook();
    let here = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == here {
            *seen.lock().unwrap() = info.location().map(|l| (l.file().to_owned(), l.line()));
        } else {
            hook(info);
        }
    }));
    let line = line!() + 1;
    let result = std::panic::catch_unwind(|| Tokio.execute(async {}));
    assert!(result.is_err());
    let _ = std::panic::take_hook();
    assert_eq!(*file.lock().unwrap(), Some((file!().to_owned(), line)));
}

#[test]
fn paused_clock_before_the_epoch_goes_on() {
    // tokio's clock is paused first, so the adapters' epoch is later than it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        std::hint::black_box(Smol.now());
        let start = Tokio.now();
        assert_eq!(Tokio.now(), start, "the clock stands");
        timer_contract(&Tokio).await;

        let mut sleep = pin!(Tokio.sleep(HOUR));
        assert!(futures::poll!(&mut sleep).is_pending());
        tokio::time::advance(HOUR).await;
        assert!(futures::poll!(&mut sleep).is_ready());
        assert_eq!(Tokio.now(), start.saturating_add(HOUR));

        // The paused clock jumps when all tasks wait.
        Tokio.sleep_until(start.saturating_add(3 * HOUR)).await;
        assert_eq!(Tokio.now(), start.saturating_add(3 * HOUR));
    });
}

/// Records that it was dropped.
struct Guard(Arc<AtomicBool>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn guarded() -> (Arc<AtomicBool>, impl Future<Output = ()> + Send + 'static) {
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = Guard(dropped.clone());
    let task = async move {
        let _guard = guard;
        core::future::pending::<()>().await;
    };
    (dropped, task)
}

#[test]
fn stopped_executor_drops_its_tasks() {
    let (dropped, task) = guarded();
    let runtime = current_thread();
    runtime.block_on(async { Tokio.execute(task) });
    assert!(!dropped.load(Ordering::SeqCst));
    let handle = runtime.handle().clone();
    drop(runtime);
    assert!(dropped.load(Ordering::SeqCst));

    // A stopped executor drops new tasks at once.
    let (dropped, task) = guarded();
    handle.execute(task);
    assert!(dropped.load(Ordering::SeqCst));

    let (dropped, task) = guarded();
    let executor = smol::Executor::new();
    executor.execute(task);
    drop(executor);
    assert!(dropped.load(Ordering::SeqCst));

    let (dropped, task) = guarded();
    let set = tokio::task::LocalSet::new();
    set.execute(task);
    drop(set);
    assert!(dropped.load(Ordering::SeqCst));
}

async fn a_task_runs_in_the_background<H: Host>(rt: On<H>) {
    let ran = Arc::new(AtomicBool::new(false));
    let seen = ran.clone();
    rt.execute(async move { seen.store(true, Ordering::SeqCst) });
    until(|| ran.load(Ordering::SeqCst)).await;
}

async fn a_sleep_ends_when_time_moves<H: Host>(rt: On<H>) {
    timer_contract(&rt).await;
    let mut sleep = spawn(rt.sleep(HOUR));
    assert!(sleep.poll().is_pending());
    rt.advance(HOUR - Duration::from_millis(1)).await;
    assert!(sleep.poll().is_pending());
    rt.advance(Duration::from_millis(1)).await;
    sleep.finish().await;
}

on_every_runtime! { a_task_runs_in_the_background, a_sleep_ends_when_time_moves }
