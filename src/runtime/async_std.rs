//! async-std: this crate's tree with [`AsyncStd`] as the runtime.
//!
//! Code written for tower compiles on async-std with `use campanile::async_std as tower;`.
//!
//! | what | runs a task | time |
//! |---|---|---|
//! | [`AsyncStd`] | [`async_std::task::spawn`], on its global executor | async-io, which async-std's own sleep uses |
//!
//! Each wait is added to async-io's reactor and removed again. For many waits of which few ever elapse, such as
//! timeouts, one alarm for all of them costs less: `Runtime::new(AsyncStd, SharedTimer::new(AsyncStd))`, see
//! [`SharedTimer`](crate::runtime::SharedTimer).
//!
//! [`async_std::task::spawn`]: ::async_std::task::spawn

use ::async_std::task;

pub use super::async_io::Sleep;
use super::{async_io::AsyncIo, timer::forward_timer};
use crate::{Executor, Timer};

/// async-std's global executor, and async-io's timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AsyncStd;

impl<F> Executor<F> for AsyncStd
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        drop(task::spawn(future));
    }
}

impl Timer for AsyncStd {
    forward_timer!(self => &AsyncIo, Sleep, Sleep);
}

mirror!(AsyncStd);
