//! The waits between the attempts of a request.
//!
//! A [`MakeBackoff`] makes one [`Backoff`] per request. [`ExponentialBackoffMaker`] makes backoffs that double from a
//! shortest to a longest wait, with a [`Jitter`] that keeps clients that failed together from coming back together.
//!
//! Waits are whole nanoseconds and saturate: the longest is `u64::MAX` nanoseconds, 584 years.
//!
//! # Examples
//!
//! ```
//! use campanile::{NoRuntime, util::rng::SplitMix64};
//! use campanile::retry::backoff::{ExponentialBackoffMaker, InvalidBackoff, Jitter};
//! use core::time::Duration;
//!
//! let (min, max) = (Duration::from_millis(50), Duration::from_millis(300));
//! let mut maker =
//!     ExponentialBackoffMaker::with_timer(min, max, Jitter::None, SplitMix64::new(1), NoRuntime)?;
//!
//! let mut backoff = maker.backoff();
//! let waits = [(); 4].map(|()| backoff.next_delay().as_millis());
//! assert_eq!(waits, [50, 100, 200, 300]);
//! # Ok::<_, InvalidBackoff>(())
//! ```
//!
//! # Differences from tower
//!
//! - Two backoffs never share their jitter: neither two of one maker, nor two of clones of a maker, nor a backoff and
//!   its clone.
//! - There are five kinds of jitter. tower's is [`Jitter::Proportional`]; a plain `f64` converts into it.
//! - Invalid arguments are reported as an enum, [`InvalidBackoff`].
//! - [`ExponentialBackoff::next_delay`] returns the next wait without needing a timer.

use core::error::Error;
use core::fmt;
use core::time::Duration;

use crate::Timer;
use crate::runtime::saturating_nanos;
use crate::util::rng::{Rng, Splitting};

/// Makes a [`Backoff`] for each request.
pub trait MakeBackoff {
    /// The backoff.
    type Backoff: Backoff;

    /// Makes a backoff that starts with its first wait.
    fn make_backoff(&mut self) -> Self::Backoff;
}

/// The waits between the attempts of one request.
pub trait Backoff {
    /// The future of a wait.
    type Future: Future<Output = ()>;

    /// Starts the next wait.
    fn next_backoff(&mut self) -> Self::Future;
}

/// The waits between the attempts of one request, as durations.
///
/// Separate from [`Backoff`], so that code written for tower's trait still compiles.
pub trait Delays {
    /// The length of the next wait.
    fn next_delay(&mut self) -> Duration;
}

/// How randomness changes a wait that would otherwise be `base`.
///
/// `Full`, `Equal` and `Decorrelated` are from Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
/// 2015. There, `Full` and `Decorrelated` cause the least work until all clients are done.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Jitter {
    /// `base` as it is.
    None,
    /// From zero to `base`.
    Full,
    /// From half of `base` to `base`.
    Equal,
    /// From the shortest wait to three times the previous wait, at most the longest wait. `base` is ignored.
    Decorrelated,
    /// From `base` to `base * (1 + factor)`, at most the longest wait; this is tower's jitter. `factor` is from 0 to
    /// 100, and is rounded to a multiple of 2⁻³².
    Proportional(f64),
}

impl From<f64> for Jitter {
    fn from(factor: f64) -> Self {
        Self::Proportional(factor)
    }
}

/// Makes [`ExponentialBackoff`]s.
///
/// If `min` equals `max` with [`Jitter::None`], the wait is always the same. If `min` is zero, the wait is always
/// zero.
///
/// The backoffs of a clone have other jitter than those of its original.
#[derive(Clone, Debug)]
pub struct ExponentialBackoffMaker<R, T> {
    shape: Shape,
    rng: R,
    // Two clones have the same `rng`, and differ in this.
    salt: Splitting,
    timer: T,
}

/// Nanoseconds, and a valid jitter.
#[derive(Clone, Copy, Debug)]
struct Shape {
    min: u64,
    max: u64,
    jitter: Draw,
}

/// A [`Jitter`] with its factor as a multiple of 2⁻³².
#[derive(Clone, Copy, Debug)]
enum Draw {
    None,
    Full,
    Equal,
    Decorrelated,
    Proportional(u64),
}

impl<R: Rng, T> ExponentialBackoffMaker<R, T> {
    /// Waits from `min` to `max`, each twice the previous one, changed by `jitter`. A plain `f64` is a
    /// [`Jitter::Proportional`]. `rng` provides the seed of each backoff.
    ///
    /// # Errors
    ///
    /// If `min` is longer than `max`, if `max` is zero, or if a proportional jitter is not from 0 to 100.
    pub fn new(
        min: Duration,
        max: Duration,
        jitter: impl Into<Jitter>,
        rng: R,
    ) -> Result<Self, InvalidBackoff>
    where
        T: Default,
    {
        Self::with_timer(min, max, jitter, rng, T::default())
    }

    /// Like [`new`](Self::new), with the given timer.
    ///
    /// # Errors
    ///
    /// See [`new`](Self::new).
    pub fn with_timer(
        min: Duration,
        max: Duration,
        jitter: impl Into<Jitter>,
        rng: R,
        timer: T,
    ) -> Result<Self, InvalidBackoff> {
        if max.is_zero() {
            return Err(InvalidBackoff::ZeroMax);
        }
        if min > max {
            return Err(InvalidBackoff::MinAboveMax { min, max });
        }
        let jitter = match jitter.into() {
            Jitter::None => Draw::None,
            Jitter::Full => Draw::Full,
            Jitter::Equal => Draw::Equal,
            Jitter::Decorrelated => Draw::Decorrelated,
            // False for a NaN as well.
            Jitter::Proportional(factor) if (0.0..=100.0).contains(&factor) => {
                Draw::Proportional((factor * ONE as f64 + 0.5) as u64)
            }
            Jitter::Proportional(factor) => return Err(InvalidBackoff::Jitter(factor)),
        };
        let shape = Shape {
            min: saturating_nanos(min),
            max: saturating_nanos(max),
            jitter,
        };
        Ok(Self::of(shape, rng, timer))
    }

    /// From 50 ms to 5 s, with full jitter.
    ///
    /// 50 ms is about one slow round trip, and 5 s about as long as a person waits. Full jitter spreads clients the
    /// most.
    pub fn standard(rng: R, timer: T) -> Self {
        let shape = Shape {
            min: 50_000_000,
            max: 5_000_000_000,
            jitter: Draw::Full,
        };
        Self::of(shape, rng, timer)
    }

    const fn of(shape: Shape, rng: R, timer: T) -> Self {
        Self {
            shape,
            rng,
            salt: Splitting::new(0),
            timer,
        }
    }

    /// Makes a backoff that starts with its first wait. Unlike [`MakeBackoff::make_backoff`], it needs no timer.
    pub fn backoff(&mut self) -> ExponentialBackoff<T>
    where
        T: Clone,
    {
        let seed = self.rng.next_u64() ^ self.salt.next_u64();
        ExponentialBackoff::start(self.shape, Splitting::new(seed), self.timer.clone())
    }
}

#[cfg(feature = "std")]
impl<T: Default> Default for ExponentialBackoffMaker<crate::util::rng::HasherRng, T> {
    /// [`standard`](Self::standard), randomly seeded.
    fn default() -> Self {
        Self::standard(crate::util::rng::HasherRng::new(), T::default())
    }
}

impl<R: Rng, T: Timer + Clone> MakeBackoff for ExponentialBackoffMaker<R, T> {
    type Backoff = ExponentialBackoff<T>;

    fn make_backoff(&mut self) -> Self::Backoff {
        self.backoff()
    }
}

/// Waits that double, with jitter; see [`ExponentialBackoffMaker`].
///
/// A clone starts with the first wait, with its own jitter.
#[derive(Debug)]
pub struct ExponentialBackoff<T> {
    shape: Shape,
    // The next wait without jitter. With decorrelated jitter: the last wait.
    base: u64,
    rng: Splitting,
    timer: T,
}

/// A proportional jitter of 1, as a multiple of 2⁻³².
const ONE: u64 = 1 << 32;

impl<T> ExponentialBackoff<T> {
    const fn start(shape: Shape, rng: Splitting, timer: T) -> Self {
        Self {
            shape,
            base: shape.min,
            rng,
            timer,
        }
    }

    /// Returns the next wait, and moves on to the one after it.
    pub fn next_delay(&mut self) -> Duration {
        let Shape { min, max, jitter } = self.shape;
        let base = self.base;
        self.base = base.saturating_mul(2).min(max);
        Duration::from_nanos(match jitter {
            Draw::None => base,
            Draw::Full => self.up_to(base),
            Draw::Equal => base / 2 + self.up_to(base - base / 2),
            Draw::Decorrelated => {
                let widest = base.saturating_mul(3).min(max);
                self.base = min + self.up_to(widest - min);
                self.base
            }
            Draw::Proportional(factor) => {
                let widest = (u128::from(base) * u128::from(factor)) >> 32;
                let room = u128::from(max - base);
                // At most `room`, which fits.
                base + self.up_to(widest.min(room) as u64)
            }
        })
    }

    /// A number from zero to `most`, inclusive.
    fn up_to(&mut self, most: u64) -> u64 {
        match most.checked_add(1) {
            Some(end) => self.rng.next_range(0..end),
            None => self.rng.next_u64(),
        }
    }
}

impl<T: Clone> Clone for ExponentialBackoff<T> {
    fn clone(&self) -> Self {
        Self::start(self.shape, self.rng.clone(), self.timer.clone())
    }
}

impl<T> Delays for ExponentialBackoff<T> {
    fn next_delay(&mut self) -> Duration {
        self.next_delay()
    }
}

impl<T: Timer> Backoff for ExponentialBackoff<T> {
    type Future = T::Sleep;

    #[track_caller]
    fn next_backoff(&mut self) -> T::Sleep {
        let delay = self.next_delay();
        self.timer.sleep(delay)
    }
}

/// Why a backoff cannot be made with these arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum InvalidBackoff {
    /// The shortest wait is longer than the longest.
    MinAboveMax {
        /// The shortest wait.
        min: Duration,
        /// The longest wait.
        max: Duration,
    },
    /// The longest wait is zero.
    ZeroMax,
    /// A proportional jitter that is not from 0 to 100.
    Jitter(f64),
}

impl fmt::Display for InvalidBackoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinAboveMax { min, max } => write!(
                f,
                "invalid backoff: the shortest wait is {min:?}, and must be at most the longest, {max:?}"
            ),
            Self::ZeroMax => f.write_str(
                "invalid backoff: the longest wait is 0s, and must be at least a nanosecond",
            ),
            Self::Jitter(factor) => write!(
                f,
                "invalid backoff: the jitter is {factor}, and must be from 0 to 100"
            ),
        }
    }
}

impl Error for InvalidBackoff {}
