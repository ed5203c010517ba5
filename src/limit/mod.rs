//! Limits: how many requests are under way at once, and how many begin in a span of time.

pub mod concurrency;
// The state that handles share is one word of 64 bits.
#[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
pub mod rate;

#[cfg(feature = "std")]
pub use concurrency::ConcurrencyLimitLayer;
pub use concurrency::{ConcurrencyLimit, GlobalConcurrencyLimitLayer};
#[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
pub use rate::{Rate, RateLimit, RateLimitLayer};

/// How often a handle let its inner service go, ready as it was, for want of what the limit itself gives.
///
/// A handle holds neither of the two while it waits for the other. Where both are contended, handles that need both could
/// so pass them on to each other for ever, and those who need but one would always be first. Who has let go twice
/// therefore keeps what the limit gives, and waits for the inner service with it. For an inner service that is never
/// ready nothing is kept.
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
