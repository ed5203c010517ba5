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
// Where 64 bits are two registers, copies of it add up.
#[cfg_attr(target_pointer_width = "32", inline(never))]
#[cfg_attr(not(target_pointer_width = "32"), inline)]
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
/// - A waker may use the timer: while one is woken, by the runtime or within a poll, no lock is held that is needed to
///   ask for `now`, or to make, reset, poll or drop a wait. `SharedTimer` depends on that. All adapters here keep it but
///   embassy's.
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

    /// Sets `alarm` to another deadline, in place where the runtime can. It has to be polled again, or it wakes nobody:
    /// async-io forgets the waker.
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
#[cfg(feature = "tokio")]
pub(super) use forward_timer;

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
