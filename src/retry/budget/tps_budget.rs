//! The ready-made budget, at tower's path.

use core::fmt;
use core::num::{NonZeroU32, NonZeroU64};
use core::time::Duration;

use super::{Budget, InvalidBudget};
use crate::Timer;
use crate::sync::atomic_word::AtomicWord;

/// A share of the requests, plus a reserve for when there are few.
///
/// There are two stores, and a withdrawal takes from the first that has a retry:
///
/// 1. *Deposits.* Each deposit adds exactly `retry_percent` retries: `n` deposits make `n * retry_percent`
///    retries, rounded down, and the fraction of a retry is kept for the next deposits. A whole retry is valid
///    for the tenth of `ttl` in which it was made and for nine more, so for 0.9 to 1 `ttl`. The oldest is taken
///    first.
/// 2. *Reserve.* It holds `min_per_sec * ttl` retries, rounded down, but at least one unless `min_per_sec` is 0.
///    It is full at the start, and refills at `min_per_sec` a second (a token bucket, implemented as the generic
///    cell rate algorithm of ITU-T I.371). Its rate is rounded down to a whole number of nanoseconds between
///    retries.
///
/// Every operation is lock-free and takes the same time after any pause: old slots are recognized by their number
/// and need no sweeping. A retry is taken by one compare-and-swap, so no two withdrawals take the same one.
pub struct TpsBudget<T> {
    limits: Limits,
    // Fractions of a retry from deposits: less than `limits.cost`.
    fraction: AtomicWord,
    slots: [AtomicWord; SLOTS as usize],
    // The theoretical arrival time of the reserve, in nanoseconds: when it will be full again.
    tat: AtomicWord,
    timer: T,
}

const SLOTS: u32 = 10;

/// The number of parts in one unit of `retry_percent`.
const PARTS: u32 = 10_000;

#[derive(Clone, Copy, Debug)]
struct Limits {
    // A deposit is `gain` parts and a retry `cost` parts, without a common divisor.
    gain: u32,
    cost: NonZeroU32,
    // Nanoseconds.
    slot: NonZeroU64,
    // The emission interval of the reserve, in nanoseconds.
    interval: u64,
    // How far ahead `tat` may be, in nanoseconds: a whole number of intervals; 0 without a reserve.
    tolerance: u64,
}

impl Limits {
    const fn new(
        ttl: Duration,
        min_per_sec: u32,
        retry_percent: f32,
    ) -> Result<Self, InvalidBudget> {
        const SECOND: u64 = 1_000_000_000;
        let nanos = ttl.as_nanos();
        if nanos < SECOND as u128 || nanos > 3600 * SECOND as u128 {
            return Err(InvalidBudget::Ttl(ttl));
        }
        if min_per_sec as u64 > SECOND {
            return Err(InvalidBudget::MinPerSec(min_per_sec));
        }
        if retry_percent.is_nan() || retry_percent < 0.0 || retry_percent > 1000.0 {
            return Err(InvalidBudget::RetryPercent(retry_percent));
        }
        let nanos = nanos as u64;
        // Undo the rounding of an `f32`, where 0.4 is 0.400000006.
        let gain = (retry_percent as f64 * PARTS as f64 + 0.5) as u32;
        let divisor = greatest_common_divisor(PARTS, gain);
        let (interval, tolerance) = if min_per_sec == 0 {
            (0, 0)
        } else {
            let interval = SECOND.div_ceil(min_per_sec as u64);
            let count = min_per_sec as u128 * nanos as u128 / SECOND as u128;
            // At most 3600 * (10⁹ + `min_per_sec`) nanoseconds. A second or more holds at least one.
            (interval, interval * count as u64)
        };
        Ok(Self {
            gain: gain / divisor,
            cost: match NonZeroU32::new(PARTS / divisor) {
                Some(cost) => cost,
                None => NonZeroU32::MIN,
            },
            slot: match NonZeroU64::new(nanos / SLOTS as u64) {
                Some(slot) => slot,
                None => NonZeroU64::MIN,
            },
            interval,
            tolerance,
        })
    }
}

const fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The number of a tenth of `ttl`, and how many of the retries deposited in it are left: one word.
///
/// The number wraps after 2³² tenths, at least 13 years.
#[derive(Clone, Copy)]
struct Slot {
    number: u32,
    retries: u32,
}

impl Slot {
    const fn unpack(word: u64) -> Self {
        Self {
            number: (word >> 32) as u32,
            retries: word as u32,
        }
    }

    const fn pack(self) -> u64 {
        (self.number as u64) << 32 | self.retries as u64
    }

    /// Whether this is still valid in the tenth `now`. It may be from a later tenth, if another thread read its
    /// clock later.
    const fn counts(self, now: u32) -> bool {
        (now.wrapping_sub(self.number) as i32).unsigned_abs() < SLOTS
    }
}

impl<T: Timer> TpsBudget<T> {
    /// A budget of `retry_percent` retries per request, plus `min_per_sec` retries a second.
    ///
    /// `ttl` is the lifetime of a deposit, from a second to an hour. `retry_percent` is a share from 0 to 1000,
    /// not a percentage: with 0.2 one request in five can be retried, with 2.0 each request twice. It is rounded
    /// to a hundredth of a percent. `min_per_sec` is at most 10⁹.
    ///
    /// # Panics
    ///
    /// If an argument is out of its range.
    #[track_caller]
    pub fn new(ttl: Duration, min_per_sec: u32, retry_percent: f32) -> Self
    where
        T: Default,
    {
        match Self::try_new(ttl, min_per_sec, retry_percent) {
            Ok(budget) => budget,
            Err(error) => panic!("{error}"),
        }
    }

    /// Like [`new`](Self::new), with the given timer; also for a `static`.
    ///
    /// # Panics
    ///
    /// If an argument is out of its range. In a `static` that is a compile error.
    #[track_caller]
    pub const fn with_timer(ttl: Duration, min_per_sec: u32, retry_percent: f32, timer: T) -> Self {
        // A constant function cannot print the value.
        match Limits::new(ttl, min_per_sec, retry_percent) {
            Ok(limits) => Self::of(limits, timer),
            Err(InvalidBudget::Ttl(_)) => {
                panic!("invalid budget: the ttl must be from 1s to 3600s")
            }
            Err(InvalidBudget::MinPerSec(_)) => {
                panic!("invalid budget: the reserve must be at most 1000000000 a second")
            }
            Err(InvalidBudget::RetryPercent(_)) => {
                panic!("invalid budget: the share of retries must be from 0 to 1000")
            }
        }
    }

    /// Like [`new`](Self::new), but returns a typed error.
    ///
    /// # Errors
    ///
    /// If an argument is out of its range.
    pub fn try_new(
        ttl: Duration,
        min_per_sec: u32,
        retry_percent: f32,
    ) -> Result<Self, InvalidBudget>
    where
        T: Default,
    {
        Self::try_with_timer(ttl, min_per_sec, retry_percent, T::default())
    }

    /// Like [`with_timer`](Self::with_timer), but returns a typed error.
    ///
    /// # Errors
    ///
    /// If an argument is out of its range.
    pub fn try_with_timer(
        ttl: Duration,
        min_per_sec: u32,
        retry_percent: f32,
        timer: T,
    ) -> Result<Self, InvalidBudget> {
        Limits::new(ttl, min_per_sec, retry_percent).map(|limits| Self::of(limits, timer))
    }

    const fn of(limits: Limits, timer: T) -> Self {
        Self {
            limits,
            fraction: AtomicWord::new(0),
            slots: [const { AtomicWord::new(0) }; SLOTS as usize],
            tat: AtomicWord::new(0),
            timer,
        }
    }

    /// The number of the tenth that contains `now`.
    fn number(&self, now: u64) -> u32 {
        (now / self.limits.slot) as u32
    }

    fn slot(&self, number: u32) -> &AtomicWord {
        &self.slots[(number % SLOTS) as usize]
    }

    fn take_deposit(&self, now: u32) -> bool {
        // The oldest first.
        (0..SLOTS).rev().any(|age| {
            let slot = self.slot(now.wrapping_sub(age));
            slot.update(|word| {
                let mut slot = Slot::unpack(word);
                if !slot.counts(now) {
                    return None;
                }
                slot.retries = slot.retries.checked_sub(1)?;
                Some(slot.pack())
            })
        })
    }

    fn take_reserve(&self, now: u64) -> bool {
        let Limits {
            interval,
            tolerance,
            ..
        } = self.limits;
        if tolerance == 0 {
            return false;
        }
        self.tat.update(|tat| {
            let next = tat.max(now).checked_add(interval)?;
            (next - now <= tolerance).then_some(next)
        })
    }
}

impl<T: Timer> Budget for TpsBudget<T> {
    fn deposit(&self) {
        let Limits { gain, cost, .. } = self.limits;
        if gain == 0 {
            return;
        }
        let mut earned = 0;
        self.fraction.update(|fraction| {
            // Less than `cost`.
            let sum = fraction as u32 + gain;
            // At most 1000.
            earned = sum / cost;
            Some(u64::from(sum % cost))
        });
        if earned == 0 {
            return;
        }
        let number = self.number(self.timer.now().as_nanos());
        self.slot(number).update(|word| {
            let slot = Slot::unpack(word);
            let next = if slot.counts(number) {
                Slot {
                    retries: slot.retries.saturating_add(earned),
                    ..slot
                }
            } else {
                Slot {
                    number,
                    retries: earned,
                }
            };
            Some(next.pack())
        });
    }

    fn withdraw(&self) -> bool {
        let now = self.timer.now().as_nanos();
        self.take_deposit(self.number(now)) || self.take_reserve(now)
    }
}

impl<T: Timer + Default> Default for TpsBudget<T> {
    /// A share of one in five requests, valid for ten seconds, plus ten retries a second: tower's default.
    fn default() -> Self {
        Self::with_timer(Duration::from_secs(10), 10, 0.2, T::default())
    }
}

impl<T> fmt::Debug for TpsBudget<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TpsBudget")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
