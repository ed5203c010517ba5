//! Limits on how much goes on at once, and on how often.

// Without 64-bit atomics there is no place yet for the state that handles share.
#[cfg(target_has_atomic = "64")]
pub mod rate;
#[cfg(target_has_atomic = "64")]
pub use rate::{Rate, RateLimit, RateLimitLayer};
