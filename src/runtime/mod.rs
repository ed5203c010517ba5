//! Runtimes: the two traits that middleware uses, and one adapter per runtime.
//!
//! [`Executor`] runs a task in the background. [`Timer`] tells the time and waits for a point in time. Middleware
//! asks only for what it uses: a [`Buffer`](crate::buffer) for an executor, a [`Timeout`](crate::timeout) for a
//! timer, most middleware for neither.
//!
//! | runtime | feature | module | executors | timers |
//! |---|---|---|---|---|
//! | tokio | `tokio` | `campanile::tokio` | `Tokio`, `TokioLocal`, `Handle`, `LocalSet` | `Tokio`, `TokioLocal`, `Handle` |
//! | smol | `smol` | `campanile::smol` | `Smol`, `smol::Executor`, `smol::LocalExecutor` | `Smol` |
//! | async-std | `async-std` | `campanile::async_std` | `AsyncStd` | `AsyncStd` |
//! | embassy | `embassy`, `embassy-executor` | `campanile::embassy` | `Spawn`, over a static pool | `Embassy` |
//! | a JavaScript host | `wasm` | `campanile::wasm`, on `wasm32-unknown-unknown` | `Wasm` | `Wasm` |
//! | any | `futures-timer` | `campanile::futures_timer` | yours | `FuturesTimer` |
//! | virtual time, for tests | `testing` | `campanile::testing` | `Sim` | `Sim` |
//!
//! Each of these also works behind `&`, `Rc` and `Arc`. A builder splits a runtime with [`Parts`]: layers get the
//! executor or the timer, so that no task keeps its own executor alive. [`Runtime`] combines an executor and a timer
//! of different origin. With [`SharedTimer`] all waits share one alarm of a timer, for services that set many waits
//! of which few ever ring.
//!
//! A runtime's module mirrors the tree of this crate with the runtime filled in, so that code written for tower
//! compiles with `use campanile::smol as tower;`. The modules are named like the runtimes, so `use campanile::*`
//! hides those: name what you import.
//!
//! # How to write an adapter
//!
//! Implement [`Executor`] and [`Timer`] for a type that is `Clone` and, if it can be made from nothing, `Default`.
//! Then pass it to [`ServiceBuilder::with_runtime`], or to the `with_executor` and `with_timer` of a middleware. This
//! is a complete adapter, with a thread per task and a timer of sleeping threads:
//!
//! ```
//! use campanile::{Executor, Instant, ServiceBuilder, ServiceExt, Timer};
//! use std::pin::Pin;
//! use std::sync::{Arc, Mutex};
//! use std::task::{Context, Poll, Waker};
//! use std::time::Duration;
//!
//! #[derive(Clone, Copy, Debug, Default)]
//! struct Threads;
//!
//! impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Threads {
//!     fn execute(&self, future: F) {
//!         std::thread::spawn(move || futures::executor::block_on(future));
//!     }
//! }
//!
//! /// Ready from `deadline` on; a thread sleeps until then and wakes the last task that asked.
//! #[derive(Debug)]
//! struct Sleep {
//!     deadline: Instant,
//!     waker: Option<Arc<Mutex<Waker>>>,
//! }
//!
//! impl Future for Sleep {
//!     type Output = ();
//!     fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
//!         let left = self.deadline.saturating_duration_since(Threads.now());
//!         if left.is_zero() {
//!             return Poll::Ready(());
//!         }
//!         match &self.waker {
//!             Some(waker) => waker.lock().unwrap().clone_from(cx.waker()),
//!             None => {
//!                 let waker = Arc::new(Mutex::new(cx.waker().clone()));
//!                 self.waker = Some(waker.clone());
//!                 std::thread::spawn(move || {
//!                     std::thread::sleep(left);
//!                     let waker = waker.lock().unwrap().clone();
//!                     waker.wake();
//!                 });
//!             }
//!         }
//!         Poll::Pending
//!     }
//! }
//!
//! impl Timer for Threads {
//!     type Sleep = Sleep;
//!     type Alarm = Sleep;
//!     fn now(&self) -> Instant {
//!         Instant::from_std(std::time::Instant::now())
//!     }
//!     fn sleep_until(&self, deadline: Instant) -> Sleep {
//!         Sleep { deadline, waker: None }
//!     }
//!     fn alarm_until(&self, deadline: Instant) -> Sleep {
//!         self.sleep_until(deadline)
//!     }
//! }
//!
//! # #[cfg(feature = "std")]
//! # futures::executor::block_on(async {
//! let service = ServiceBuilder::with_runtime(Threads)
//!     .buffer(16)
//!     .timeout(Duration::from_millis(10))
//!     .service_fn(|name: &'static str| async move {
//!         Threads.sleep(Duration::from_secs(if name == "slow" { 3600 } else { 0 })).await;
//!         Ok::<_, std::io::Error>(name.len())
//!     });
//!
//! assert_eq!(service.clone().oneshot("hello").await.unwrap(), 5);
//! assert_eq!(service.oneshot("slow").await.unwrap_err().to_string(), "request timed out");
//! # });
//! ```
//!
//! [`ServiceBuilder::with_runtime`]: crate::builder::ServiceBuilder::with_runtime

mod executor;
mod parts;
#[cfg(feature = "std")]
mod shared_timer;
#[cfg(feature = "std")]
mod std_clock;
mod timer;

#[cfg(any(
    feature = "async-std",
    feature = "futures-timer",
    feature = "smol",
    feature = "testing",
    feature = "tokio",
    all(feature = "wasm", target_family = "wasm", target_os = "unknown")
))]
#[macro_use]
mod mirror;
#[cfg(any(feature = "smol", feature = "async-std"))]
mod async_io;
#[cfg(feature = "async-std")]
pub mod async_std;
#[cfg(feature = "embassy")]
pub mod embassy;
#[cfg(feature = "futures-timer")]
pub mod futures_timer;
#[cfg(feature = "smol")]
pub mod smol;
#[cfg(feature = "tokio")]
pub mod tokio;
#[cfg(all(feature = "wasm", target_family = "wasm", target_os = "unknown"))]
pub mod wasm;

pub use executor::Executor;
pub use parts::{NoRuntime, Parts, Runtime};
#[cfg(feature = "std")]
pub use shared_timer::{SharedSleep, SharedTimer};
pub(crate) use timer::saturating_nanos;
pub use timer::{Instant, Timer};
