use core::fmt;

use super::delay::InvalidHedge;
use crate::retry::budget::Budget;
use crate::sync::atomic_word::AtomicWord;

/// A [`Budget`] of a share of the requests, which needs no clock.
///
/// Each request pays in exactly its share. At most ten hedges are saved up, and there are ten at the start, so `n`
/// requests lead to at most `n * share + 10` hedges. It is the token bucket of gRPC's retry throttling (gRFC A6,
/// "Retry Throttling Policy", which also applies to hedges), with its usual ten tokens.
///
/// # Examples
///
/// ```
/// use campanile::hedge::ShareBudget;
/// use campanile::retry::budget::Budget;
///
/// let budget = ShareBudget::new(0.25);
/// while budget.withdraw() {}
/// for _ in 0..4 {
///     assert!(!budget.withdraw());
///     budget.deposit();
/// }
/// assert!(budget.withdraw());
/// ```
pub struct ShareBudget {
    // Millionths of a hedge.
    share: u64,
    saved: AtomicWord,
}

const HEDGE: u64 = 1_000_000;
const MOST: u64 = 10 * HEDGE;

impl ShareBudget {
    /// A budget of `share` hedges per request, from 0 to 1: 0.05 allows one request in twenty to be hedged.
    ///
    /// # Panics
    ///
    /// If `share` is not from 0 to 1.
    #[must_use]
    #[track_caller]
    pub fn new(share: f32) -> Self {
        match Self::try_new(share) {
            Ok(budget) => budget,
            Err(error) => panic!("{error}"),
        }
    }

    /// Like [`new`](Self::new), but returns a typed error.
    ///
    /// # Errors
    ///
    /// If `share` is not from 0 to 1.
    pub const fn try_new(share: f32) -> Result<Self, InvalidHedge> {
        match millionths(share) {
            Some(share) => Ok(Self::of_millionths(share)),
            None => Err(InvalidHedge::Share(share)),
        }
    }

    pub(super) const fn of_millionths(share: u64) -> Self {
        Self {
            share,
            saved: AtomicWord::new(MOST),
        }
    }
}

/// Undoes the rounding of an `f32`, where 0.9 is 0.899999976.
pub(super) const fn millionths(share: f32) -> Option<u64> {
    if share >= 0.0 && share <= 1.0 {
        Some((share as f64 * HEDGE as f64 + 0.5) as u64)
    } else {
        None
    }
}

impl Budget for ShareBudget {
    fn deposit(&self) {
        // It is usually full, and then threads only read it.
        self.saved
            .update(|saved| (saved < MOST).then(|| MOST.min(saved + self.share)));
    }

    fn withdraw(&self) -> bool {
        self.saved.update(|saved| saved.checked_sub(HEDGE))
    }
}

impl fmt::Debug for ShareBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShareBudget")
            .field("millionths", &self.share)
            .finish_non_exhaustive()
    }
}
