//! What the integration tests share: a clock moved by hand, futures polled by hand, a mock service, and scenarios that
//! are written once and run on every runtime.
//!
//! A scenario is a generic function, and a test file mounts its scenarios in one place:
//!
//! ```ignore
//! mod common;
//! use common::{Host, On, mock, on_every_runtime};
//!
//! async fn a_request_reaches_the_service<H: Host>(rt: On<H>) {
//!     let (service, mut handle) = mock::<u32, u32>();
//!     let mut buffer = Buffer::with_executor(service, 1, rt.clone());
//!     rt.advance(Duration::from_secs(1)).await;
//! }
//!
//! on_every_runtime! { a_request_reaches_the_service }
//! ```
//!
//! The macro makes one module per runtime and one `#[test]` per scenario in each, such as
//! `smol_global::a_request_reaches_the_service`. A scenario that hangs fails after [`HANG`].
//!
//! The test moves time by hand on every runtime, but wake-ups come from the runtime's own timer, from its reactor,
//! thread or driver: see [`WokenBy`].

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    unreachable_pub,
    reason = "every test file compiles this module for itself, and uses what it needs of it"
)]

mod manual_timer;
mod mock;
mod panics;
mod scenario;
mod task;
mod woken_by;

pub use manual_timer::{ManualSleep, ManualTimer};
pub use mock::{Failure, Handle, Mock, MockFuture, Responder, mock};
pub use panics::panics_at;
#[cfg(feature = "async-std")]
pub use scenario::AsyncStdGlobal;
#[cfg(feature = "futures-timer")]
pub use scenario::FuturesTimerOnThreads;
#[cfg(feature = "smol")]
pub use scenario::SmolGlobal;
pub use scenario::{HANG, Host, On, Threads, run};
#[cfg(feature = "testing")]
pub use scenario::{Simulated, SimulatedOneAlarm};
#[cfg(feature = "tokio")]
pub use scenario::{
    TokioCurrentThread, TokioMultiThread, TokioMultiThreadOneAlarm, TokioPaused,
    TokioPausedOneAlarm,
};
pub(crate) use scenario::{mount, on_every_runtime};
pub use task::{Task, WakeCount, ready, spawn, until, yield_now};
pub use woken_by::{WokenBy, WokenBySleep};
