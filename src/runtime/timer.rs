use core::time::Duration;

/// A point in time: nanoseconds since an epoch that the timer chose.
///
/// Instants of the same timer can be compared; those of two timers cannot. All arithmetic saturates: the last
/// instant, 584 years after the epoch, stands for "never".
///
/// # Examples
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
    /// The last instant, which a timer never reaches.
    pub const MAX: Self = Self(u64::MAX);

    /// The instant `nanos` nanoseconds after the epoch.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the epoch.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The instant `duration` later, at most [`Instant::MAX`].
    #[must_use]
    pub const fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(saturating_nanos(duration)))
    }

    /// The instant `duration` earlier, at least the epoch.
    #[must_use]
    pub const fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(saturating_nanos(duration)))
    }

    /// The time from `earlier` to this instant, or zero if `earlier` is later.
    #[must_use]
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// `duration` in nanoseconds, at most `u64::MAX` (584 years).
// Where 64 bits take two registers, inlined copies add up.
#[cfg_attr(target_pointer_width = "32", inline(never))]
#[cfg_attr(not(target_pointer_width = "32"), inline)]
pub(crate) const fn saturating_nanos(duration: Duration) -> u64 {
    // Not `as_nanos`, and no checked multiplication: most processors have no 128-bit arithmetic.
    const SECOND: u64 = 1_000_000_000;
    if duration.as_secs() > u64::MAX / SECOND {
        return u64::MAX;
    }
    (duration.as_secs() * SECOND).saturating_add(duration.subsec_nanos() as u64)
}

/// Tells the time and waits for a point in time.
///
/// Middleware takes all time from its timer, including `now`, so a timer that is moved by hand moves the whole stack.
///
/// # Contract
///
/// - Making a timer and calling `now` work anywhere. A sleep may need the runtime's context. Without it, the sleep
///   may panic at the caller's line, when it is made or first polled, but not earlier.
/// - A sleep or alarm may be late, but never early: when it is ready, `now() >= deadline`. One whose deadline has
///   passed becomes ready soon, but not on every runtime at its first poll: tokio rounds up to the millisecond, and
///   futures-timer's thread has to see it first.
/// - A deadline beyond what the runtime can represent never comes.
/// - A sleep that is dropped leaves nothing behind.
/// - A waker may use the timer: while the runtime or a poll wakes one, it holds no lock that is needed to call `now`,
///   or to make, reset, poll or drop a wait. `SharedTimer` depends on this. All adapters here except embassy's
///   guarantee it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no timer, and this middleware needs one",
    label = "a timer is needed, and `{Self}` is not one",
    note = "import the builder or the middleware from a runtime's module: `campanile::tokio::ServiceBuilder`, `campanile::smol::ServiceBuilder`, `campanile::async_std::ServiceBuilder`",
    note = "or name a timer yourself: `ServiceBuilder::with_runtime(..)`, `TimeoutLayer::with_timer(..)`"
)]
pub trait Timer {
    /// A wait inside a response future, where it is pinned. Making one does not allocate.
    type Sleep: Future<Output = ()>;

    /// A wait inside a service, polled from `poll_ready(&mut self)`.
    type Alarm: Future<Output = ()> + Unpin;

    /// Returns the current instant.
    fn now(&self) -> Instant;

    /// Waits until `deadline`.
    fn sleep_until(&self, deadline: Instant) -> Self::Sleep;

    /// Waits until `deadline`, and can be reset.
    fn alarm_until(&self, deadline: Instant) -> Self::Alarm;

    /// Waits for `duration`. [`Duration::MAX`] means forever.
    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.sleep_until(self.now().saturating_add(duration))
    }

    /// Sets `alarm` to another deadline, in place if the runtime can. Poll it again afterwards, or it wakes no task:
    /// async-io forgets the waker.
    fn reset(&self, alarm: &mut Self::Alarm, deadline: Instant) {
        *alarm = self.alarm_until(deadline);
    }
}

/// The methods of a [`Timer`] that forwards everything to `$inner`.
macro_rules! forward_timer {
    ($self:ident => $inner:expr, $sleep:ty, $alarm:ty) => {
        type Sleep = $sleep;
        type Alarm = $alarm;

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
#[cfg(any(feature = "async-std", feature = "smol", feature = "tokio"))]
pub(super) use forward_timer;

impl<T: Timer + ?Sized> Timer for &T {
    forward_timer!(self => &**self, T::Sleep, T::Alarm);
}

#[cfg(feature = "alloc")]
impl<T: Timer + ?Sized> Timer for alloc::rc::Rc<T> {
    forward_timer!(self => &**self, T::Sleep, T::Alarm);
}

#[cfg(feature = "std")]
impl<T: Timer + ?Sized> Timer for alloc::sync::Arc<T> {
    forward_timer!(self => &**self, T::Sleep, T::Alarm);
}
