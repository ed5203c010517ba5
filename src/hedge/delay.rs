use core::fmt;
use core::time::Duration;

use super::budget::{ShareBudget, millionths};
use crate::runtime::saturating_nanos;

/// How long a [`Hedge`](super::Hedge) waits for the first attempt before it sends a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay(pub(super) Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    // Nanoseconds.
    Fixed(u64),
    Percentile(Percentile),
}

/// The settings of an estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Percentile {
    pub(super) min_data_points: u64,
    pub(super) millionths: u64,
    // Nanoseconds.
    pub(super) period: u64,
}

impl Delay {
    /// A fixed `delay`, from the moment at which the first attempt is first pending.
    ///
    /// [`Duration::ZERO`] hedges every request that is not answered at the first poll, [`Duration::MAX`] none.
    #[must_use]
    pub const fn fixed(delay: Duration) -> Self {
        Self(Kind::Fixed(saturating_nanos(delay)))
    }

    /// The time within which `latency_percentile` of the last period's requests were answered, counted from the call.
    /// Without at least `min_data_points` requests in that period, there are no hedges.
    ///
    /// `latency_percentile` is a share from 0 to 1, not a percentage: 0.95 hedges one request in twenty.
    ///
    /// # Panics
    ///
    /// If `latency_percentile` is not from 0 to 1, or `period` is 0.
    #[must_use]
    #[track_caller]
    pub fn percentile(min_data_points: u64, latency_percentile: f32, period: Duration) -> Self {
        match Self::try_percentile(min_data_points, latency_percentile, period) {
            Ok(delay) => delay,
            Err(error) => panic!("{error}"),
        }
    }

    /// Like [`percentile`](Self::percentile), but returns a typed error.
    ///
    /// # Errors
    ///
    /// If `latency_percentile` is not from 0 to 1, or `period` is 0.
    pub const fn try_percentile(
        min_data_points: u64,
        latency_percentile: f32,
        period: Duration,
    ) -> Result<Self, InvalidHedge> {
        let Some(millionths) = millionths(latency_percentile) else {
            return Err(InvalidHedge::Percentile(latency_percentile));
        };
        if period.is_zero() {
            return Err(InvalidHedge::Period);
        }
        Ok(Self(Kind::Percentile(Percentile {
            min_data_points,
            millionths,
            period: saturating_nanos(period),
        })))
    }

    /// The default budget for this delay.
    pub(super) const fn budget(self) -> ShareBudget {
        ShareBudget::of_millionths(match self.0 {
            Kind::Fixed(_) => 50_000,
            // The share above the percentile, and at least 1 %.
            Kind::Percentile(Percentile { millionths, .. }) if millionths < 990_000 => {
                1_000_000 - millionths
            }
            Kind::Percentile(_) => 10_000,
        })
    }
}

/// Why a hedge cannot be made with these arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum InvalidHedge {
    /// The latency percentile is not from 0 to 1.
    Percentile(f32),
    /// The period of the latency estimate is 0.
    Period,
    /// The share of hedges is not from 0 to 1.
    Share(f32),
}

impl fmt::Display for InvalidHedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percentile(percentile) => write!(
                f,
                "invalid hedge: the latency percentile is {percentile}, and must be from 0 to 1"
            ),
            Self::Period => {
                f.write_str("invalid hedge: the period is 0ns, and must be at least 1ns")
            }
            Self::Share(share) => write!(
                f,
                "invalid hedge: the share of hedges is {share}, and must be from 0 to 1"
            ),
        }
    }
}

impl core::error::Error for InvalidHedge {}
