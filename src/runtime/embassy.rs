//! embassy: for bare metal, without an allocator.
//!
//! [`ServiceBuilder`] uses [`Embassy`] as its runtime; elsewhere, pass it to `with_timer`. Unlike for runtimes with a
//! heap, this crate's tree is not mirrored: whatever would start a task or share a state needs a place in a `static`,
//! which you provide.
//!
//! | what | runs a task | time |
//! |---|---|---|
//! | [`Embassy`] | | embassy-time |
//! | [`Spawn`], feature `embassy-executor` | in a static `TaskPool`, by a `Spawner` or `SendSpawner` of embassy-executor 0.9 | |
//!
//! A program can link only one version of embassy-executor. The timer works with any of them.
//!
//! # Examples
//!
//! embassy allocates nothing, so every task needs a place that exists from the start. Run the worker of a buffer in a
//! task of your own, with [`buffer::try_pair_in`](crate::buffer::try_pair_in):
//!
//! ```no_run
//! use campanile::buffer::{self, StaticQueue, Worker};
//! use campanile::embassy::ServiceBuilder;
//! use campanile::{Service, ServiceExt};
//! use core::future::{Ready, ready};
//! use core::task::{Context, Poll};
//! use embassy_executor::Spawner;
//! use embassy_time::Duration;
//!
//! #[derive(Clone, Copy, Debug)]
//! struct BusError;
//!
//! struct Sensor;
//!
//! impl Service<u8> for Sensor {
//!     type Response = u16;
//!     type Error = BusError;
//!     type Future = Ready<Result<u16, BusError>>;
//!
//!     fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BusError>> {
//!         Poll::Ready(Ok(()))
//!     }
//!
//!     fn call(&mut self, register: u8) -> Self::Future {
//!         ready(Ok(u16::from(register)))
//!     }
//! }
//!
//! type Queue = StaticQueue<u8, Ready<Result<u16, BusError>>, 8>;
//! static QUEUE: Queue = Queue::new();
//!
//! #[embassy_executor::task]
//! async fn sensor(worker: Worker<Sensor, u8, &'static Queue>) {
//!     worker.await;
//! }
//!
//! #[embassy_executor::main]
//! async fn main(spawner: Spawner) {
//!     let (buffer, worker) = buffer::try_pair_in(Sensor, &QUEUE).unwrap();
//!     spawner.spawn(sensor(worker)).unwrap();
//!
//!     let sensor = ServiceBuilder::new()
//!         .timeout(Duration::from_millis(10).into())
//!         .service(buffer);
//!     let value = sensor.clone().oneshot(0x12).await;
//! }
//! ```
//!
//! Or run it with [`Spawn`], an [`Executor`](crate::Executor) over a static pool of tasks of one type.
//!
//! # embassy-time
//!
//! embassy-time's timers only accept the wakers of embassy's executor, and panic on others, unless one of
//! embassy-time's features `generic-queue-*` is on. So that feature is needed if a timer is polled by something with
//! its own wakers, such as a `FuturesUnordered`.
//!
//! embassy-time's clock is that of the board's support crate. Without one, the program does not link.

use embassy_time::TICK_HZ;

#[cfg(feature = "embassy-executor")]
pub use self::spawn::Spawn;
use crate::{Instant, Timer};

/// embassy-time's clock and timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Embassy;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Nanoseconds per tick, if that is a whole number, which saves the processor a long division.
const WHOLE: Option<u64> = if NANOS_PER_SECOND % TICK_HZ == 0 {
    Some(NANOS_PER_SECOND / TICK_HZ)
} else {
    None
};

fn to_embassy(deadline: Instant) -> embassy_time::Instant {
    // Rounded up, since a timer must not fire early. "Never" remains "never".
    let nanos = deadline.as_nanos();
    embassy_time::Instant::from_ticks(match WHOLE {
        _ if deadline == Instant::MAX => u64::MAX,
        Some(whole) => nanos.div_ceil(whole),
        None => {
            let ticks = u128::from(nanos) * u128::from(TICK_HZ);
            ticks
                .div_ceil(u128::from(NANOS_PER_SECOND))
                .try_into()
                .unwrap_or(u64::MAX)
        }
    })
}

impl Timer for Embassy {
    type Sleep = embassy_time::Timer;
    type Alarm = embassy_time::Timer;

    fn now(&self) -> Instant {
        let ticks = embassy_time::Instant::now().as_ticks();
        Instant::from_nanos(match WHOLE {
            Some(whole) => ticks.saturating_mul(whole),
            None => {
                let nanos = u128::from(ticks) * u128::from(NANOS_PER_SECOND) / u128::from(TICK_HZ);
                nanos.try_into().unwrap_or(u64::MAX)
            }
        })
    }

    fn sleep_until(&self, deadline: Instant) -> embassy_time::Timer {
        embassy_time::Timer::at(to_embassy(deadline))
    }

    fn alarm_until(&self, deadline: Instant) -> embassy_time::Timer {
        self.sleep_until(deadline)
    }
}

/// [`ServiceBuilder`](crate::builder::ServiceBuilder) on this runtime.
pub type ServiceBuilder<L = crate::layer::Identity> = crate::builder::ServiceBuilder<L, Embassy>;

#[cfg(feature = "embassy-executor")]
mod spawn {
    use core::fmt;

    use embassy_executor::raw::TaskPool;
    use embassy_executor::{SendSpawner, Spawner};

    use crate::Executor;

    /// Runs tasks of type `F` in a static pool with room for `N` at a time: with a `Spawner`, or with a `SendSpawner`
    /// from another executor's tasks and from interrupts.
    ///
    /// A task for which there is no room is dropped, in keeping with the contract of [`Executor`].
    pub struct Spawn<S, F: Future + 'static, const N: usize = 1> {
        spawner: S,
        pool: &'static TaskPool<F, N>,
    }

    impl<S, F: Future + 'static, const N: usize> Spawn<S, F, N> {
        /// Runs tasks in `pool`, with `spawner`.
        pub const fn new(spawner: S, pool: &'static TaskPool<F, N>) -> Self {
            Self { spawner, pool }
        }
    }

    impl<F, const N: usize> Executor<F> for Spawn<Spawner, F, N>
    where
        F: Future<Output = ()> + 'static,
    {
        fn execute(&self, future: F) {
            // Without room the future has been dropped. No error can be returned here.
            let _ = self.spawner.spawn(self.pool.spawn(|| future));
        }
    }

    impl<F, const N: usize> Executor<F> for Spawn<SendSpawner, F, N>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        fn execute(&self, future: F) {
            let _ = self.spawner.spawn(self.pool.spawn(|| future));
        }
    }

    impl<S: Clone, F: Future + 'static, const N: usize> Clone for Spawn<S, F, N> {
        fn clone(&self) -> Self {
            Self::new(self.spawner.clone(), self.pool)
        }
    }

    impl<S, F: Future + 'static, const N: usize> fmt::Debug for Spawn<S, F, N> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Spawn")
                .field("room", &N)
                .finish_non_exhaustive()
        }
    }
}
