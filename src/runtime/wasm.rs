//! WebAssembly in a JavaScript host (a browser, Node, Deno): this crate's tree with [`Wasm`] as the runtime.
//!
//! Tasks run on the host's event loop through wasm-bindgen-futures, and may be `!Send`. The clock is the host's
//! monotonic clock, through web-time. Waits use the host's `setTimeout`, through gloo-timers, in whole milliseconds.

use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::sync::OnceLock;

use gloo_timers::future::TimeoutFuture;

use crate::{Executor, Instant, Timer};

/// The host's event loop, its clock and its timers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wasm;

impl<F> Executor<F> for Wasm
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        wasm_bindgen_futures::spawn_local(future);
    }
}

impl Timer for Wasm {
    type Sleep = Sleep;
    type Alarm = Sleep;

    fn now(&self) -> Instant {
        static EPOCH: OnceLock<web_time::Instant> = OnceLock::new();
        let since = EPOCH.get_or_init(web_time::Instant::now).elapsed();
        Instant::from_nanos(0).saturating_add(since)
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep {
            deadline,
            timeout: None,
        }
    }

    fn alarm_until(&self, deadline: Instant) -> Sleep {
        self.sleep_until(deadline)
    }
}

/// A wait for the host's `setTimeout`.
pub struct Sleep {
    deadline: Instant,
    timeout: Option<TimeoutFuture>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(timeout) = &mut self.timeout {
                ready!(Pin::new(timeout).poll(cx));
            }
            // The host rounds and may be early, and its longest wait is shorter than many deadlines.
            let left = self.deadline.saturating_duration_since(Wasm.now());
            if left.is_zero() {
                return Poll::Ready(());
            }
            // `setTimeout` takes a signed 32-bit number.
            let millis = left.as_nanos().div_ceil(1_000_000).min(0x7fff_ffff);
            self.timeout = Some(TimeoutFuture::new(millis as u32));
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

mirror!(Wasm);
