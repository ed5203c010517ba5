//! Limits on how many requests are in flight at once, and on how many begin in a period.

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
/// A handle does not hold one of the two while it waits for the other. If both are contended, handles that need both
/// could pass them to each other forever, and handles that need only one would always win. So a handle that has given
/// up twice keeps what the limit gives while it waits for the inner service. If the inner service is never ready,
/// nothing is kept.
#[derive(Clone, Copy, Debug, Default)]
struct LetGo(u8);

impl LetGo {
    const NEVER: Self = Self(0);

    fn count(&mut self) {
        self.0 = self.0.saturating_add(1);
    }

    fn is_enough(self) -> bool {
        self.0 >= 2
    }
}
