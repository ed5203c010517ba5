//! Limits on how many requests are in flight at once, and on how many begin in a period.

use core::task::Context;

pub mod concurrency;
// Handles share their state in one 64-bit word.
#[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
pub mod rate;

#[cfg(feature = "std")]
pub use concurrency::ConcurrencyLimitLayer;
pub use concurrency::{ConcurrencyLimit, GlobalConcurrencyLimitLayer};
#[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
pub use rate::{Rate, RateLimit, RateLimitLayer};

/// How often a handle gave up a ready inner service because the limit had nothing to give.
///
/// A handle holds neither of the two while it waits for the other: an inner service that is never ready must not keep
/// permits from others, and a request that holds a permit may need the inner service again. But handles that all need
/// both could then pass them to each other in a circle, each polled when the other half has just been granted to the
/// next. So a handle that has given up twice keeps what the limit gives until it is polled once more, and is polled at
/// once: by then those that were granted the inner service, but not the limit, have given it back.
#[derive(Clone, Copy, Debug, Default)]
struct LetGo {
    times: u8,
    keeps: bool,
}

impl LetGo {
    const NEVER: Self = Self {
        times: 0,
        keeps: false,
    };

    fn count(&mut self) {
        self.times = self.times.saturating_add(1);
    }

    /// Whether to keep what the limit gave for one more poll, although the inner service is pending.
    fn keeps(&mut self, cx: &Context<'_>) -> bool {
        self.keeps = self.times >= 2 && !self.keeps;
        if self.keeps {
            cx.waker().wake_by_ref();
        }
        self.keeps
    }
}
