use std::fmt;
use std::marker::PhantomData;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::task::Poll;
use std::thread;
use std::time::Duration;

#[cfg(feature = "std")]
use campanile::runtime::SharedTimer;
use campanile::{Executor, Instant, Timer};
use futures::channel::oneshot;

use super::{ManualTimer, WokenBy, spawn, yield_now};

/// A scenario that takes longer than this hangs, most likely because of a lost wake-up. No scenario waits in real time,
/// so even a slow machine stays far below it.
pub const HANG: Duration = Duration::from_secs(60);

/// A runtime that runs scenarios.
pub trait Host: Clone + Send + Sync + 'static {
    /// Its clock: virtual where the runtime has one, otherwise moved by hand with wake-ups from the runtime's own
    /// timer.
    type Time: Timer<Sleep: Send, Alarm: Send>
        + Clone
        + Default
        + fmt::Debug
        + Send
        + Sync
        + 'static;

    /// How often a scenario runs. Once, where runs do not differ.
    const RUNS: u64 = 1;

    /// Runs `future` to completion on a new runtime.
    fn block_on<T>(future: impl Future<Output = T>) -> T;

    /// The same, with a seed for random decisions.
    fn block_on_seeded<T>(_seed: u64, future: impl Future<Output = T>) -> T {
        Self::block_on(future)
    }

    /// Spawns a task through the adapter.
    fn execute<F: Future<Output = ()> + Send + 'static>(future: F);

    /// Moves the runtime's time forward.
    fn advance(time: &Self::Time, duration: Duration) -> impl Future<Output = ()> + Send;
}

/// What a scenario receives: an executor for `Send` futures, and a timer.
pub struct On<H: Host> {
    time: H::Time,
    host: PhantomData<fn() -> H>,
}

impl<H: Host> On<H> {
    /// Moves time forward and yields. Due tasks are woken, but perhaps not yet: a test can assert "not before" at once,
    /// and has to wait for "now".
    pub async fn advance(&self, duration: Duration) {
        H::advance(&self.time, duration).await;
        yield_now().await;
    }

    /// Moves time forward by `step` until `future` is ready, which is polled when woken.
    pub async fn advance_until<F: Future>(&self, step: Duration, future: F) -> F::Output {
        let mut task = spawn(future);
        let mut polled = task.poll();
        loop {
            if let Poll::Ready(output) = polled {
                return output;
            }
            self.advance(step).await;
            if task.is_woken() {
                polled = task.poll();
            }
        }
    }

    /// Runs `future` as a task, and returns its output.
    pub fn start<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (done, outcome) = oneshot::channel();
        H::execute(async move {
            let _ = done.send(future.await);
        });
        outcome
    }

    /// Only the timer.
    pub fn time(&self) -> &H::Time {
        &self.time
    }
}

impl<H: Host> Clone for On<H> {
    fn clone(&self) -> Self {
        Self {
            time: self.time.clone(),
            host: PhantomData,
        }
    }
}

impl<H: Host> Default for On<H> {
    fn default() -> Self {
        Self {
            time: H::Time::default(),
            host: PhantomData,
        }
    }
}

impl<H: Host> fmt::Debug for On<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("On").field("time", &self.time).finish()
    }
}

impl<H: Host, F: Future<Output = ()> + Send + 'static> Executor<F> for On<H> {
    fn execute(&self, future: F) {
        H::execute(future);
    }
}

impl<H: Host> Timer for On<H> {
    type Sleep = <H::Time as Timer>::Sleep;
    type Alarm = <H::Time as Timer>::Alarm;

    fn now(&self) -> Instant {
        self.time.now()
    }

    fn sleep_until(&self, deadline: Instant) -> Self::Sleep {
        self.time.sleep_until(deadline)
    }

    fn alarm_until(&self, deadline: Instant) -> Self::Alarm {
        self.time.alarm_until(deadline)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.time.sleep(duration)
    }

    fn reset(&self, alarm: &mut Self::Alarm, deadline: Instant) {
        self.time.reset(alarm, deadline);
    }
}

/// Runs `scenario` on the runtime `H`.
pub fn run<H: Host, Fut: Future<Output = ()> + 'static>(scenario: fn(On<H>) -> Fut) {
    let (done, ended) = channel();
    let name = thread::current().name().unwrap_or("scenario").to_owned();
    let scenario = thread::Builder::new()
        .name(name)
        .spawn(move || {
            for seed in 0..H::RUNS {
                H::block_on_seeded(seed, async move { scenario(On::default()).await });
            }
            let _ = done.send(());
        })
        .unwrap();
    if ended.recv_timeout(HANG) == Err(RecvTimeoutError::Timeout) {
        panic!("the scenario hangs");
    }
    if let Err(panic) = scenario.join() {
        std::panic::resume_unwind(panic);
    }
}

/// tokio, on one thread.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug)]
pub struct TokioCurrentThread;

/// tokio, on two threads plus the scenario's.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug)]
pub struct TokioMultiThread;

/// tokio, on one thread with a paused clock, which moves only by hand or when nothing else is left to do.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug)]
pub struct TokioPaused;

/// smol's global executor.
#[cfg(feature = "smol")]
#[derive(Clone, Copy, Debug)]
pub struct SmolGlobal;

/// async-std's global executor.
#[cfg(feature = "async-std")]
#[derive(Clone, Copy, Debug)]
pub struct AsyncStdGlobal;

/// futures-timer, which has no executor, on a minimal one.
#[cfg(feature = "futures-timer")]
#[derive(Clone, Copy, Debug)]
pub struct FuturesTimerOnThreads;

/// A minimal executor with one thread per task, as a user may write one, and a user's timer, which wakes due tasks at
/// once.
#[derive(Clone, Copy, Debug)]
pub struct Threads;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Threads {
    fn execute(&self, future: F) {
        thread::spawn(|| futures::executor::block_on(future));
    }
}

macro_rules! by_hand {
    ($time:ty) => {
        type Time = $time;

        async fn advance(time: &$time, duration: Duration) {
            time.advance(duration);
        }
    };
}

macro_rules! execute_on {
    ($executor:expr) => {
        fn execute<F: Future<Output = ()> + Send + 'static>(future: F) {
            $executor.execute(future);
        }
    };
}

#[cfg(feature = "tokio")]
mod on_tokio {
    use campanile::tokio::Tokio;
    use tokio::runtime::Builder;

    use super::*;

    impl Host for TokioCurrentThread {
        by_hand!(WokenBy<Tokio>);
        execute_on!(Tokio);

        fn block_on<T>(future: impl Future<Output = T>) -> T {
            let mut runtime = Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(future)
        }
    }

    impl Host for TokioMultiThread {
        by_hand!(WokenBy<Tokio>);
        execute_on!(Tokio);

        fn block_on<T>(future: impl Future<Output = T>) -> T {
            let mut runtime = Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(future)
        }
    }

    impl Host for TokioPaused {
        type Time = Tokio;
        execute_on!(Tokio);

        fn block_on<T>(future: impl Future<Output = T>) -> T {
            let mut runtime = Builder::new_current_thread();
            let runtime = runtime.enable_all().start_paused(true).build().unwrap();
            runtime.block_on(future)
        }

        fn advance(_: &Tokio, duration: Duration) -> impl Future<Output = ()> + Send {
            tokio::time::advance(duration)
        }
    }
}

#[cfg(feature = "smol")]
impl Host for SmolGlobal {
    by_hand!(WokenBy<campanile::smol::Smol>);
    execute_on!(campanile::smol::Smol);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        smol::block_on(future)
    }
}

#[cfg(feature = "async-std")]
impl Host for AsyncStdGlobal {
    by_hand!(WokenBy<campanile::async_std::AsyncStd>);
    execute_on!(campanile::async_std::AsyncStd);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        async_std::task::block_on(future)
    }
}

#[cfg(feature = "futures-timer")]
impl Host for FuturesTimerOnThreads {
    by_hand!(WokenBy<campanile::futures_timer::FuturesTimer>);
    execute_on!(Threads);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        futures::executor::block_on(future)
    }
}

impl Host for Threads {
    by_hand!(ManualTimer);
    execute_on!(Threads);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        futures::executor::block_on(future)
    }
}

/// This crate's runtime with virtual time, under several seeds.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug)]
pub struct Simulated;

#[cfg(feature = "testing")]
impl Host for Simulated {
    type Time = campanile::testing::Sim;
    execute_on!(campanile::testing::Sim);

    const RUNS: u64 = 8;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        Self::block_on_seeded(0, future)
    }

    fn block_on_seeded<T>(seed: u64, future: impl Future<Output = T>) -> T {
        // Its time starts at zero, as on a device just switched on.
        let result = campanile::testing::Runtime::new(seed).block_on(future);
        result.unwrap_or_else(|stuck| panic!("seed {seed}: {stuck}"))
    }

    fn advance(_: &campanile::testing::Sim, duration: Duration) -> impl Future<Output = ()> + Send {
        campanile::testing::advance(duration)
    }
}

/// A host on which all waits share one alarm.
#[cfg(feature = "std")]
#[derive(Clone, Copy, Debug)]
pub struct OneAlarm<H>(PhantomData<fn() -> H>);

#[cfg(all(feature = "std", feature = "tokio"))]
pub type TokioMultiThreadOneAlarm = OneAlarm<TokioMultiThread>;
#[cfg(all(feature = "std", feature = "tokio"))]
pub type TokioPausedOneAlarm = OneAlarm<TokioPaused>;
#[cfg(feature = "testing")]
pub type SimulatedOneAlarm = OneAlarm<Simulated>;

#[cfg(feature = "std")]
impl<H: Host> Host for OneAlarm<H> {
    type Time = SharedTimer<H::Time>;

    const RUNS: u64 = H::RUNS;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        H::block_on(future)
    }

    fn block_on_seeded<T>(seed: u64, future: impl Future<Output = T>) -> T {
        H::block_on_seeded(seed, future)
    }

    fn execute<F: Future<Output = ()> + Send + 'static>(future: F) {
        H::execute(future);
    }

    fn advance(time: &Self::Time, duration: Duration) -> impl Future<Output = ()> + Send {
        H::advance(time.get_ref(), duration)
    }
}

/// Mounts scenarios on one runtime: `mount! { name, Host: scenario, scenario }`.
macro_rules! mount {
    ($module:ident, $host:ident: $($scenario:ident),+) => {
        mod $module {
            $(
                #[test]
                fn $scenario() {
                    crate::common::run::<crate::common::$host, _>(super::$scenario);
                }
            )+
        }
    };
}
pub(crate) use mount;

/// Mounts scenarios on every runtime that the features offer.
macro_rules! on_every_runtime {
    ($($scenario:ident),+ $(,)?) => {
        #[cfg(feature = "tokio")]
        $crate::common::mount! { tokio_current_thread, TokioCurrentThread: $($scenario),+ }
        #[cfg(feature = "tokio")]
        $crate::common::mount! { tokio_multi_thread, TokioMultiThread: $($scenario),+ }
        #[cfg(feature = "tokio")]
        $crate::common::mount! { tokio_paused, TokioPaused: $($scenario),+ }
        #[cfg(feature = "tokio")]
        $crate::common::mount! { tokio_multi_thread_one_alarm, TokioMultiThreadOneAlarm: $($scenario),+ }
        #[cfg(feature = "tokio")]
        $crate::common::mount! { tokio_paused_one_alarm, TokioPausedOneAlarm: $($scenario),+ }
        #[cfg(feature = "smol")]
        $crate::common::mount! { smol_global, SmolGlobal: $($scenario),+ }
        #[cfg(feature = "async-std")]
        $crate::common::mount! { async_std_global, AsyncStdGlobal: $($scenario),+ }
        #[cfg(feature = "futures-timer")]
        $crate::common::mount! { futures_timer, FuturesTimerOnThreads: $($scenario),+ }
        $crate::common::mount! { threads, Threads: $($scenario),+ }
        #[cfg(feature = "testing")]
        $crate::common::mount! { simulated, Simulated: $($scenario),+ }
        #[cfg(feature = "testing")]
        $crate::common::mount! { simulated_one_alarm, SimulatedOneAlarm: $($scenario),+ }
    };
}
pub(crate) use on_every_runtime;
