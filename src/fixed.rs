//! Storage without an allocator: how queues, semaphores and limiters of a fixed size are shared.
//!
//! Each of them is one type over a [`Sharing`], with a name for either kind:
//!
//! | type | in a `static`, by tasks and interrupts | on one thread |
//! |---|---|---|
//! | [`FixedQueue`](crate::buffer::FixedQueue) | [`StaticQueue`](crate::buffer::StaticQueue) | [`LocalQueue`](crate::buffer::LocalQueue) |
//! | [`FixedSemaphore`](crate::limit::concurrency::FixedSemaphore) | [`StaticSemaphore`](crate::limit::concurrency::StaticSemaphore) | [`LocalSemaphore`](crate::limit::concurrency::LocalSemaphore) |
//! | [`FixedLimiter`](crate::limit::rate::FixedLimiter) | [`StaticLimiter`](crate::limit::rate::StaticLimiter) | [`LocalLimiter`](crate::limit::rate::LocalLimiter) |

#[cfg(feature = "critical-section")]
pub use crate::sync::lock::CriticalSection;
pub use crate::sync::lock::{Sharing, SingleThread};
