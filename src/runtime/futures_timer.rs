//! futures-timer: a timer that works on any executor. One helper thread serves all of its delays.
//!
//! | what | runs a task | time |
//! |---|---|---|
//! | [`FuturesTimer`] | no | futures-timer |
//!
//! Combine it with an executor in a [`Runtime`](crate::Runtime):
//!
//! # Examples
//!
//! ```
//! use campanile::{Executor, Runtime, ServiceBuilder, ServiceExt, futures_timer::FuturesTimer};
//! use std::time::Duration;
//!
//! #[derive(Clone)]
//! struct Threads;
//! impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Threads {
//!     fn execute(&self, future: F) {
//!         std::thread::spawn(|| futures::executor::block_on(future));
//!     }
//! }
//!
//! let service = ServiceBuilder::with_runtime(Runtime::new(Threads, FuturesTimer))
//!     .buffer(16)
//!     .timeout(Duration::from_secs(1))
//!     .service_fn(async |n: u32| Ok::<_, std::convert::Infallible>(n + 1));
//! assert_eq!(futures::executor::block_on(service.oneshot(1)).unwrap(), 2);
//! ```

use core::time::Duration;

use ::futures_timer::Delay;

use super::std_clock;
use crate::{Instant, Timer};

/// futures-timer's delays, each of which allocates its entry in the helper thread's heap. It is no executor: combine
/// it with one in a [`Runtime`](crate::Runtime).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FuturesTimer;

/// `Delay` adds its argument to the clock, and panics on overflow. A century stands for "never".
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

fn until(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(std_clock::now())
        .min(FAR)
}

impl Timer for FuturesTimer {
    type Sleep = Delay;
    type Alarm = Delay;

    #[inline]
    fn now(&self) -> Instant {
        std_clock::now()
    }

    fn sleep_until(&self, deadline: Instant) -> Delay {
        Delay::new(until(deadline))
    }

    fn alarm_until(&self, deadline: Instant) -> Delay {
        Delay::new(until(deadline))
    }

    fn sleep(&self, duration: Duration) -> Delay {
        Delay::new(duration.min(FAR))
    }

    fn reset(&self, alarm: &mut Delay, deadline: Instant) {
        alarm.reset(until(deadline));
    }
}

mirror!(FuturesTimer);
