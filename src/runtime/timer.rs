use core::time::Duration;

/// A moment: nanoseconds since an epoch that the timer chose.
///
/// Moments of one timer can be compared; those of two timers cannot. All arithmetic saturates: the
/// last moment, 584 years after the epoch, stands for "never".
///
/// ```
/// use campanile::Instant;
/// use core::time::Duration;
///
/// let start = Instant::from_nanos(1_000);
/// let later = start.saturating_add(Duration::from_micros(1));
/// assert_eq!(later.saturating_duration_since(start), Duration::from_micros(1));
/// assert_eq!(start.saturating_duration_since(later), Duration::ZERO);
/// assert_eq!(start.saturating_add(Duration::MAX), Instant::MAX);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The last moment, which a timer never reaches.
    pub const MAX: Self = Self(u64::MAX);

    /// The moment `nanos` nanoseconds after the epoch.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the epoch.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The moment `duration` later, at most [`Instant::MAX`].
    #[must_use]
    pub const fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(saturating_nanos(duration)))
    }

    /// The moment `duration` earlier, at least the epoch.
    #[must_use]
    pub const fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(saturating_nanos(duration)))
    }

    /// The time from `earlier` to this moment, or zero if `earlier` is the later one.
    #[must_use]
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// `duration` in nanoseconds, at most `u64::MAX` (584 years).
#[inline]
pub(crate) const fn saturating_nanos(duration: Duration) -> u64 {
    // Not `as_nanos`, and no multiplication that is checked: most processors have no arithmetic of 128 bits.
    const SECOND: u64 = 1_000_000_000;
    if duration.as_secs() > u64::MAX / SECOND {
        return u64::MAX;
    }
    (duration.as_secs() * SECOND).saturating_add(duration.subsec_nanos() as u64)
}

/// Tells the time and waits for it.
///
/// All time that middleware knows comes from its timer, `now` included, so a timer that is moved by
/// hand moves the whole stack.
///
/// # Contract
///
/// - Making a timer, and asking it for `now`, works anywhere. A sleep may need the runtime's context;
///   it may panic for want of it, at the caller's line, when it is made or first polled, not before.
/// - A sleep or alarm may be late, never early: when it is ready, `now() >= deadline`. One whose deadline has
///   passed is ready soon, though not at its first poll on every runtime: tokio rounds up to the
///   millisecond, and futures-timer's thread has to see it first.
/// - A deadline beyond what the runtime can represent is one that never comes.
/// - A sleep that is dropped leaves nothing behind.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no timer, and this middleware needs one",
    label = "a timer is needed, and `{Self}` is not one",
    note = "import the builder or the middleware from a runtime's module: `campanile::tokio::ServiceBuilder`, `campanile::smol::ServiceBuilder`, `campanile::async_std::ServiceBuilder`",
    note = "or name a timer yourself: `ServiceBuilder::with_runtime(..)`, `TimeoutLayer::with_timer(..)`"
)]
pub trait Timer {
    /// A wait inside a response future. It is pinned there, and making one does not allocate.
    type Sleep: Future<Output = ()>;

    /// A wait inside a service, polled from `poll_ready(&mut self)`.
    type Alarm: Future<Output = ()> + Unpin;

    /// The moment it is.
    fn now(&self) -> Instant;

    /// Waits until `deadline`.
    fn sleep_until(&self, deadline: Instant) -> Self::Sleep;

    /// Waits until `deadline`, movable.
    fn alarm_until(&self, deadline: Instant) -> Self::Alarm;

    /// Waits for `duration`. [`Duration::MAX`] is for ever.
    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.sleep_until(self.now().saturating_add(duration))
    }

    /// Sets `alarm` to another deadline, in place where the runtime can.
    fn reset(&self, alarm: &mut Self::Alarm, deadline: Instant) {
        *alarm = self.alarm_until(deadline);
    }
}

/// The methods of a [`Timer`] that hands everything on to `$inner`.
macro_rules! forward_timer {
    ($self:ident => $inner:expr, $timer:ty) => {
        type Sleep = <$timer as $crate::Timer>::Sleep;
        type Alarm = <$timer as $crate::Timer>::Alarm;

        #[inline]
        fn now(&$self) -> $crate::Instant {
            $crate::Timer::now($inner)
        }

        #[track_caller]
        fn sleep_until(&$self, deadline: $crate::Instant) -> Self::Sleep {
            $crate::Timer::sleep_until($inner, deadline)
        }

        #[track_caller]
        fn alarm_until(&$self, deadline: $crate::Instant) -> Self::Alarm {
            $crate::Timer::alarm_until($inner, deadline)
        }

        #[track_caller]
        fn sleep(&$self, duration: core::time::Duration) -> Self::Sleep {
            $crate::Timer::sleep($inner, duration)
        }

        #[track_caller]
        fn reset(&$self, alarm: &mut Self::Alarm, deadline: $crate::Instant) {
            $crate::Timer::reset($inner, alarm, deadline);
        }
    };
}
pub(crate) use forward_timer;

impl<T: Timer + ?Sized> Timer for &T {
    forward_timer!(self => &**self, T);
}

#[cfg(feature = "alloc")]
impl<T: Timer + ?Sized> Timer for alloc::rc::Rc<T> {
    forward_timer!(self => &**self, T);
}

#[cfg(feature = "std")]
impl<T: Timer + ?Sized> Timer for alloc::sync::Arc<T> {
    forward_timer!(self => &**self, T);
}

/// Our moments as std's and back.
#[cfg(feature = "std")]
#[allow(dead_code, reason = "each adapter uses the half it needs")]
pub(crate) mod std_clock {
    use core::hash::{Hash, Hasher};
    use core::time::Duration;
    use std::sync::OnceLock;
    use std::time::Instant as StdInstant;

    use super::Instant;

    const SECOND: u64 = 1_000_000_000;

    /// So many seconds before std's moment of the first conversion our scale begins. tokio's paused clock can lie before
    /// that moment, so there has to be room, here 136 years.
    const ROOM: u64 = 1 << 32;

    /// "Never", where the platform's clock cannot represent the deadline: a century.
    const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

    #[inline]
    pub(crate) fn now() -> Instant {
        from_std(StdInstant::now())
    }

    /// What std gives of a moment is the time to another one, in a call that costs as much as to read the clock. But a
    /// moment is a number of seconds and of nanoseconds, and its `Hash` tells them: see [`Told`].
    #[inline]
    pub(crate) fn from_std(moment: StdInstant) -> Instant {
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

    pub(crate) fn to_std(moment: Instant) -> StdInstant {
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

    /// One moment on both scales.
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

    /// A hasher that keeps what a moment is made of. The optimiser leaves nothing of it but two numbers.
    ///
    /// What std writes into it is not specified. So where that is anything but seconds and then nanoseconds nothing is
    /// told; and what is told is not used before it was tried on moments whose distance is known.
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
        // A signed number comes here, too.
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

    /// The second of std's at which our scale begins.
    #[cfg(target_has_atomic = "64")]
    mod zero {
        use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

        /// As far from every second as can be.
        const UNKNOWN: u64 = 1 << 63;

        // It stands alone: whoever does not see it yet takes the difference, which is the same moment.
        static ZERO: AtomicU64 = AtomicU64::new(UNKNOWN);

        #[inline]
        pub(super) fn get() -> u64 {
            ZERO.load(Relaxed)
        }

        pub(super) fn set(second: u64) {
            ZERO.store(second, Relaxed);
        }
    }

    // Where that is no single load the difference is always taken.
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

        /// Moments around the epoch, from before it on.
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
                // A platform's clock may begin when it was started, with nothing before.
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
        fn what_is_told_is_the_difference_to_the_nanosecond_and_comes_back() {
            for (moment, ours) in moments() {
                assert_eq!(from_std(moment).as_nanos(), ours);
                assert_eq!(from_difference(moment).as_nanos(), ours);
                assert_eq!(to_std(Instant::from_nanos(ours)), moment);
            }
        }

        #[test]
        fn what_is_out_of_range_saturates() {
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
            // What the platform cannot represent is a century away at least.
            assert!(to_std(Instant::MAX) >= moment + FAR);
        }

        /// Were std to hash something else one day, the difference would be taken.
        #[test]
        fn nothing_is_told_but_by_seconds_and_then_nanoseconds() {
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

        // It is what all of this is for; where it fails the clock is right, and slower.
        #[test]
        fn std_tells() {
            assert!(Told::is_true(StdInstant::now()));
        }
    }
}
