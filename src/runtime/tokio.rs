//! tokio: this crate's tree with [`Tokio`] as the runtime.
//!
//! Code written for tower compiles on tokio with `use campanile::tokio as tower;`.
//!
//! | what | runs a task | time |
//! |---|---|---|
//! | [`Tokio`] | [`tokio::spawn`], on the runtime of the calling context | tokio's, paused or not |
//! | [`TokioLocal`] | [`tokio::task::spawn_local`], also for `!Send` tasks; mirrored in [`local`] | the same |
//! | [`Handle`] | its `spawn`, from anywhere | the same, from anywhere |
//! | [`LocalSet`], behind `&` or `Rc` | its `spawn_local` | the same |
//!
//! [`Tokio`] and [`TokioLocal`] are zero-sized, and look for the context when they are used: when a buffer is made,
//! or when a timeout's future is first pending. Outside a runtime, tokio panics at that point, at the caller's line.
//! A [`Handle`] needs no context.
//!
//! A concurrency limit can share a [`tokio::sync::Semaphore`] with the rest of an application: see
//! [`SemaphoreAcquisition`].
//!
//! [`tokio::spawn`]: ::tokio::spawn
//! [`tokio::sync::Semaphore`]: ::tokio::sync::Semaphore
//! [`tokio::task::spawn_local`]: ::tokio::task::spawn_local

mod semaphore;

use alloc::boxed::Box;
use core::pin::Pin;
use core::time::Duration;

use ::tokio::runtime::Handle;
use ::tokio::task::{self, LocalSet};
use ::tokio::time::{self, Sleep};

pub use self::semaphore::{SemaphoreAcquisition, SemaphoreClosed, SemaphoreError};
use super::{parts::shared_executor, timer::forward_timer};
use crate::{Executor, Instant, Timer};

/// The tokio runtime of the calling context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokio;

impl<F> Executor<F> for Tokio
where
    F: Future<Output = ()> + Send + 'static,
{
    #[track_caller]
    fn execute(&self, future: F) {
        drop(::tokio::spawn(future));
    }
}

fn to_tokio(moment: Instant) -> time::Instant {
    time::Instant::from_std(moment.into_std())
}

impl Timer for Tokio {
    type Sleep = Sleep;
    // One box, reset again and again for the whole life of the service.
    type Alarm = Pin<Box<Sleep>>;

    // tokio's clock, not std's: it is the one that `tokio::time::pause` stops.
    #[inline]
    fn now(&self) -> Instant {
        Instant::from_std(time::Instant::now().into_std())
    }

    #[track_caller]
    fn sleep_until(&self, deadline: Instant) -> Sleep {
        time::sleep_until(to_tokio(deadline))
    }

    #[track_caller]
    fn alarm_until(&self, deadline: Instant) -> Self::Alarm {
        Box::pin(time::sleep_until(to_tokio(deadline)))
    }

    #[track_caller]
    fn sleep(&self, duration: Duration) -> Sleep {
        time::sleep(duration)
    }

    fn reset(&self, alarm: &mut Self::Alarm, deadline: Instant) {
        alarm.as_mut().reset(to_tokio(deadline));
    }
}

/// The [`LocalSet`] of the calling context. Its tasks need not be `Send`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokioLocal;

impl<F> Executor<F> for TokioLocal
where
    F: Future<Output = ()> + 'static,
{
    #[track_caller]
    fn execute(&self, future: F) {
        drop(task::spawn_local(future));
    }
}

impl Timer for TokioLocal {
    forward_timer!(self => &Tokio, Sleep, Pin<Box<Sleep>>);
}

impl<F> Executor<F> for Handle
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        drop(self.spawn(future));
    }
}

impl Timer for Handle {
    type Sleep = Sleep;
    type Alarm = Pin<Box<Sleep>>;

    #[inline]
    fn now(&self) -> Instant {
        let _context = self.enter();
        Tokio.now()
    }

    #[track_caller]
    fn sleep_until(&self, deadline: Instant) -> Sleep {
        let _context = self.enter();
        Tokio.sleep_until(deadline)
    }

    #[track_caller]
    fn alarm_until(&self, deadline: Instant) -> Self::Alarm {
        let _context = self.enter();
        Tokio.alarm_until(deadline)
    }

    #[track_caller]
    fn sleep(&self, duration: Duration) -> Sleep {
        let _context = self.enter();
        Tokio.sleep(duration)
    }

    fn reset(&self, alarm: &mut Self::Alarm, deadline: Instant) {
        Tokio.reset(alarm, deadline);
    }
}

impl<F> Executor<F> for LocalSet
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        drop(self.spawn_local(future));
    }
}

shared_executor!(LocalSet, Tokio);

mirror!(Tokio);

/// This crate's tree again, for [`TokioLocal`]: services and futures need not be `Send`.
pub mod local {
    use super::TokioLocal;

    mirror!(TokioLocal);
}
