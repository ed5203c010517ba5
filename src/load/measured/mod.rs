//! Loads that are measured.

use core::time::Duration;

mod decay;
pub mod peak_ewma;
pub mod pending_requests;

pub use peak_ewma::{PeakEwma, PeakEwmaDiscover};
pub use pending_requests::{PendingRequests, PendingRequestsDiscover};

/// The shortest and the longest decay: a microsecond, below which whole nanoseconds are too coarse, and a year.
const DECAYS: (Duration, Duration) = (Duration::from_micros(1), Duration::from_secs(31_557_600));
