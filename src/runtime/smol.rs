//! smol: this crate's tree with [`Smol`] as the runtime.
//!
//! `use campanile::smol as tower;` makes tower's code compile on smol.
//!
//! | what | runs a task | time |
//! |---|---|---|
//! | [`Smol`] | [`smol::spawn`], on smol's global executor | async-io |
//! | [`smol::Executor`], behind `&` or `Arc` | its `spawn` | async-io |
//! | [`smol::LocalExecutor`], behind `&` or `Rc` | its `spawn`; `!Send` tasks too | async-io |
//!
//! Each wait is entered with async-io's reactor and taken out again. Where many begin that are hardly ever over, such as
//! timeouts, one alarm for all of them costs less: `Runtime::new(Smol, SharedTimer::new(Smol))`, see
//! [`SharedTimer`](crate::runtime::SharedTimer).
//!
//! An executor is handed over behind an `Rc` or an `Arc`, of which layers get a `Weak`: who runs the executor keeps it, and
//! when it is dropped, so are its tasks with their services. It can be a reference too, such as the one that
//! `#[apply(main!)]` of smol-macros gives, as long as nothing inside of a buffer starts tasks of its own: a task may not
//! borrow its executor, and `spawn_ready` inside of a buffer does not compile then.
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
//! [`smol::spawn`]: ::smol::spawn
//! [`smol::Executor`]: ::smol::Executor
//! [`smol::LocalExecutor`]: ::smol::LocalExecutor

use core::time::Duration;

use ::smol::{Executor as SmolExecutor, LocalExecutor};

pub use super::async_io::Sleep;
use super::{async_io::async_io_timer, parts::shared_executor, std_clock};
use crate::{Executor, Instant, Timer};

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
    async_io_timer!();
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
