//! Conversions between this crate's instants and std's.

use core::hash::{Hash, Hasher};
use core::time::Duration;
use std::sync::OnceLock;
use std::time::Instant as StdInstant;

use super::Instant;

const SECOND: u64 = 1_000_000_000;

/// This crate's epoch lies this many seconds before the first converted instant. tokio's paused clock can be before
/// that instant, so there has to be room: 136 years.
const ROOM: u64 = 1 << 32;

/// "Never", if the platform's clock cannot represent the deadline: a century.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// For adapters whose runtime reads std's clock.
impl Instant {
    /// The same instant on this crate's scale, whose epoch is 136 years before the first instant that is converted.
    ///
    /// ```
    /// use campanile::Instant;
    /// use std::time::{self, Duration};
    ///
    /// let now = time::Instant::now();
    /// let later = Instant::from_std(now).saturating_add(Duration::from_secs(1));
    /// assert_eq!(later.into_std(), now + Duration::from_secs(1));
    /// ```
    ///
    /// # Panics
    ///
    /// Where std has no clock, as on `wasm32-unknown-unknown`.
    #[must_use]
    #[inline]
    pub fn from_std(moment: StdInstant) -> Self {
        from_std(moment)
    }

    /// The same instant on std's scale, or one about a century away if std cannot represent it.
    ///
    /// # Panics
    ///
    /// As [`from_std`](Self::from_std).
    #[must_use]
    pub fn into_std(self) -> StdInstant {
        to_std(self)
    }
}

#[allow(dead_code, reason = "no adapter may be there to use it")]
#[inline]
pub(crate) fn now() -> Instant {
    from_std(StdInstant::now())
}

/// All that std tells of an instant is its distance to another one, in a call that costs as much as reading the
/// clock. But an instant consists of seconds and nanoseconds, and its `Hash` reveals them: see [`Told`].
#[inline]
fn from_std(moment: StdInstant) -> Instant {
    if let Some((secs, nanos)) = Told::by(&moment) {
        // One comparison for both: before the first conversion no second is in range.
        let secs = secs.wrapping_sub(zero::get());
        if secs < u64::MAX / SECOND {
            return Instant::from_nanos(secs * SECOND + u64::from(nanos));
        }
    }
    from_difference(moment)
}

#[cold]
fn from_difference(moment: StdInstant) -> Instant {
    let epoch = epoch();
    match moment.checked_duration_since(epoch.moment) {
        Some(after) => epoch.ours.saturating_add(after),
        None => epoch
            .ours
            .saturating_sub(epoch.moment.duration_since(moment)),
    }
}

fn to_std(moment: Instant) -> StdInstant {
    let epoch = epoch();
    if moment < epoch.ours {
        let before = epoch.ours.saturating_duration_since(moment);
        return epoch.moment.checked_sub(before).unwrap_or(epoch.moment);
    }
    let after = moment.saturating_duration_since(epoch.ours);
    (epoch.moment.checked_add(after)).unwrap_or_else(|| far(epoch.moment))
}

#[cold]
fn far(epoch: StdInstant) -> StdInstant {
    epoch.checked_add(FAR).unwrap_or(epoch)
}

/// One instant on both scales.
#[derive(Clone, Copy)]
struct Epoch {
    moment: StdInstant,
    ours: Instant,
}

#[inline]
fn epoch() -> Epoch {
    static FIRST: OnceLock<Epoch> = OnceLock::new();
    *FIRST.get_or_init(first)
}

#[cold]
fn first() -> Epoch {
    let moment = StdInstant::now();
    let nanos = match Told::by(&moment) {
        Some((secs, nanos)) if Told::is_true(moment) => {
            zero::set(secs.wrapping_sub(ROOM));
            nanos
        }
        _ => 0,
    };
    Epoch {
        moment,
        ours: Instant::from_nanos(ROOM * SECOND + u64::from(nanos)),
    }
}

/// A hasher that keeps the parts of an instant. The optimizer reduces it to two numbers.
///
/// What std writes into it is not specified. If that is anything but seconds and then nanoseconds, it is not used;
/// and before it is used, it is checked against instants whose distance is known.
#[derive(Default)]
struct Told {
    secs: u64,
    nanos: u32,
    shape: Shape,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Shape {
    #[default]
    Nothing,
    Seconds,
    Both,
    Other,
}

impl Told {
    #[inline]
    fn by(moment: &impl Hash) -> Option<(u64, u32)> {
        let mut told = Self::default();
        moment.hash(&mut told);
        (told.shape == Shape::Both).then_some((told.secs, told.nanos))
    }

    fn is_true(moment: StdInstant) -> bool {
        let nanos = |moment| {
            let (secs, nanos) = Self::by(&moment)?;
            Some(secs.wrapping_mul(SECOND).wrapping_add(u64::from(nanos)))
        };
        [1, SECOND - 1, SECOND, SECOND + 1, 1 << 50]
            .into_iter()
            .all(|distance| {
                let later = moment.checked_add(Duration::from_nanos(distance));
                let later = later.and_then(nanos);
                later.is_some() && later == nanos(moment).map(|now| now.wrapping_add(distance))
            })
    }
}

impl Hasher for Told {
    // Signed numbers also end up here.
    #[inline]
    fn write_u64(&mut self, secs: u64) {
        self.secs = secs;
        self.shape = match self.shape {
            Shape::Nothing => Shape::Seconds,
            _ => Shape::Other,
        };
    }

    #[inline]
    fn write_u32(&mut self, nanos: u32) {
        self.nanos = nanos;
        self.shape = match self.shape {
            Shape::Seconds => Shape::Both,
            _ => Shape::Other,
        };
    }

    #[inline]
    fn write(&mut self, _: &[u8]) {
        self.shape = Shape::Other;
    }

    fn finish(&self) -> u64 {
        self.secs
    }
}

/// The second on std's scale at which this crate's scale begins.
#[cfg(target_has_atomic = "64")]
mod zero {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

    /// As far from every second as possible.
    const UNKNOWN: u64 = 1 << 63;

    // It orders no other memory: a thread that does not see it yet uses the difference, which gives the same instant.
    static ZERO: AtomicU64 = AtomicU64::new(UNKNOWN);

    #[inline]
    pub(super) fn get() -> u64 {
        ZERO.load(Relaxed)
    }

    pub(super) fn set(second: u64) {
        ZERO.store(second, Relaxed);
    }
}

// Without a 64-bit atomic load, the difference is always used.
#[cfg(not(target_has_atomic = "64"))]
mod zero {
    pub(super) fn get() -> u64 {
        1 << 63
    }

    pub(super) fn set(_: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::rng::{Rng, SplitMix64};

    /// Instants before and after the epoch.
    fn moments() -> impl Iterator<Item = (StdInstant, u64)> {
        let Epoch { moment, ours } = epoch();
        let mut rng = SplitMix64::new(1);
        let around = (0..10_000).map(move |n| {
            // Of every order of magnitude, up to a century.
            let away = rng.next_range(0..1 << (n % 62));
            (away, n % 2 == 0)
        });
        let beside =
            [0, 1, SECOND - 1, SECOND, SECOND + 1].map(|away| [(away, true), (away, false)]);
        (around.chain(beside.into_iter().flatten())).filter_map(move |(away, after)| {
            let duration = Duration::from_nanos(away);
            // A platform's clock may begin when the machine started, with nothing before.
            let (moment, ours) = if after {
                (moment.checked_add(duration)?, ours.as_nanos() + away)
            } else {
                (
                    moment.checked_sub(duration)?,
                    ours.as_nanos().saturating_sub(away),
                )
            };
            Some((moment, ours))
        })
    }

    #[test]
    fn conversion_is_exact_both_ways() {
        for (moment, ours) in moments() {
            assert_eq!(from_std(moment).as_nanos(), ours);
            assert_eq!(from_difference(moment).as_nanos(), ours);
            assert_eq!(to_std(Instant::from_nanos(ours)), moment);
        }
    }

    #[test]
    fn out_of_range_saturates() {
        let Epoch { moment, .. } = epoch();
        let centuries = |n: u64| Duration::from_secs(n * 100 * 365 * 24 * 60 * 60);
        for (moment, ours) in [
            (moment.checked_add(centuries(5)), Instant::MAX),
            (moment.checked_add(centuries(100)), Instant::MAX),
            (moment.checked_sub(centuries(2)), Instant::from_nanos(0)),
            (moment.checked_sub(centuries(100)), Instant::from_nanos(0)),
        ] {
            if let Some(moment) = moment {
                assert_eq!(from_std(moment), ours);
            }
        }
        // What the platform cannot represent is at least a century away.
        assert!(to_std(Instant::MAX) >= moment + FAR);
    }

    /// If std ever hashes something else, the difference is used.
    #[test]
    fn order_is_seconds_then_nanoseconds() {
        assert_eq!(Told::by(&(-7_i64, 5_u32)), Some((-7_i64 as u64, 5)));
        assert_eq!(Told::by(&Duration::new(3, 4)), Some((3, 4)));
        assert_eq!(Told::by(&7_u64), None);
        assert_eq!(Told::by(&(5_u32, 7_u64)), None);
        assert_eq!(Told::by(&(7_u64, 5_u32, 0_u8)), None);
        assert_eq!(Told::by(&(7_u64, 5_u32, 5_u32)), None);
        assert_eq!(Told::by(&(7_u64, 7_u64, 5_u32)), None);
        assert_eq!(Told::by(&(7_u128, 5_u32)), None);
        assert_eq!(Told::by(&[7_u8; 12]), None);
    }

    // All of the above relies on this. If it fails, the clock is right, but slower.
    #[test]
    fn std_tells() {
        assert!(Told::is_true(StdInstant::now()));
    }
}
