//! smol: this crate's tree with [`Smol`] as the runtime.
//!
//! Code written for tower compiles on smol with `use campanile::smol as tower;`.
//!
//! | what | runs a task | time |
//! |---|---|---|
//! | [`Smol`] | [`smol::spawn`], on smol's global executor | async-io |
//! | [`smol::Executor`], behind `&` or `Arc` | its `spawn` | async-io |
//! | [`smol::LocalExecutor`], behind `&` or `Rc` | its `spawn`, also for `!Send` tasks | async-io |
//!
//! # Examples
//!
//! ```
//! use campanile::{ServiceBuilder, ServiceExt};
//! use std::{rc::Rc, time::Duration};
//!
//! let executor = Rc::new(smol::LocalExecutor::new());
//! let greeting = Rc::new("hello"); // not `Send`
//! let service = ServiceBuilder::with_runtime(executor.clone())
//!     .buffer(16)
//!     .timeout(Duration::from_secs(1))
//!     .service_fn(move |name: String| {
//!         let greeting = greeting.clone();
//!         async move { Ok::<_, std::convert::Infallible>(format!("{greeting}, {name}")) }
//!     });
//! let answer = smol::block_on(executor.run(service.oneshot("smol".to_owned())));
//! assert_eq!(answer.unwrap(), "hello, smol");
//! ```
//!
//! # Executors of your own
//!
//! If you pass an executor in an `Rc` or an `Arc`, layers get a `Weak` of it. Keep it where you run it: when it is
//! dropped, so are its tasks with their services. You can also pass a reference, such as the one from
//! `#[apply(main!)]` of smol-macros, as long as nothing inside a buffer starts tasks of its own: a task cannot borrow
//! its executor, so `spawn_ready` inside a buffer does not compile then.
//!
//! # Many waits
//!
//! Each wait is added to async-io's reactor and removed again. For many waits of which few ever elapse, such as
//! timeouts, one alarm for all of them costs less: `Runtime::new(Smol, SharedTimer::new(Smol))`, see
//! [`SharedTimer`](crate::runtime::SharedTimer).
//!
//! [`smol::spawn`]: ::smol::spawn
//! [`smol::Executor`]: ::smol::Executor
//! [`smol::LocalExecutor`]: ::smol::LocalExecutor

use ::smol::{Executor as SmolExecutor, LocalExecutor};

pub use super::async_io::Sleep;
use super::{async_io::AsyncIo, parts::shared_executor, timer::forward_timer};
use crate::{Executor, Timer};

/// smol's global executor, and async-io's timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Smol;

impl<F> Executor<F> for Smol
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        ::smol::spawn(future).detach();
    }
}

impl Timer for Smol {
    forward_timer!(self => &AsyncIo, Sleep, Sleep);
}

impl<'a, F> Executor<F> for SmolExecutor<'a>
where
    F: Future<Output = ()> + Send + 'a,
{
    fn execute(&self, future: F) {
        self.spawn(future).detach();
    }
}

shared_executor!(SmolExecutor<'a>, Smol);

impl<'a, F> Executor<F> for LocalExecutor<'a>
where
    F: Future<Output = ()> + 'a,
{
    fn execute(&self, future: F) {
        self.spawn(future).detach();
    }
}

shared_executor!(LocalExecutor<'a>, Smol);

mirror!(Smol);
