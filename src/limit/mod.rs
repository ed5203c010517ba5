//! Limits: how many requests are under way at once, and how many start in a span of time.

#[cfg(feature = "std")]
pub mod concurrency;

#[cfg(feature = "std")]
pub use concurrency::{ConcurrencyLimit, ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer};
