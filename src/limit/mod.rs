//! Limits: how many requests are under way at once, and how many begin in a span of time.

pub mod concurrency;
// Without 64-bit atomics there is no place yet for the state that handles share.
#[cfg(target_has_atomic = "64")]
pub mod rate;

#[cfg(feature = "std")]
pub use concurrency::ConcurrencyLimitLayer;
pub use concurrency::{ConcurrencyLimit, GlobalConcurrencyLimitLayer};
#[cfg(target_has_atomic = "64")]
pub use rate::{Rate, RateLimit, RateLimitLayer};
