//! What a connection has to show before it counts as working.

#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
use alloc::sync::Arc;
#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use crate::Instant;

/// How long a connection has to live to count as working without a successful response: the longest wait of the
/// standard backoff. So a peer that hangs up later than that is connected to no more often than one that refuses.
const LONG_ENOUGH: Duration = Duration::from_secs(5);

/// A connection's trial period.
#[derive(Debug)]
pub(super) struct Trial {
    since: Instant,
    answered: Answered,
}

impl Trial {
    pub(super) fn begin(now: Instant) -> Self {
        Self {
            since: now,
            answered: Answered::new(),
        }
    }

    /// Reports a successful response.
    pub(super) fn answered(&self) -> Answered {
        self.answered.clone()
    }

    /// Whether there was a successful response.
    pub(super) fn is_answered(&self) -> bool {
        self.answered.is_told()
    }

    /// Whether the connection has lived long enough.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= LONG_ENOUGH
    }
}

/// Whether there was a successful response, as reported by the response futures.
#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
#[derive(Clone, Debug)]
pub(super) struct Answered(Arc<AtomicBool>);

#[cfg(all(feature = "alloc", target_has_atomic = "ptr"))]
impl Answered {
    fn new() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }

    pub(super) fn tell(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Without an allocator a response can share nothing with its connection.
#[cfg(not(all(feature = "alloc", target_has_atomic = "ptr")))]
#[derive(Clone, Debug)]
pub(super) struct Answered;

#[cfg(not(all(feature = "alloc", target_has_atomic = "ptr")))]
impl Answered {
    const fn new() -> Self {
        Self
    }

    pub(super) fn tell(&self) {}

    fn is_told(&self) -> bool {
        false
    }
}
