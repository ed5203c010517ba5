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
