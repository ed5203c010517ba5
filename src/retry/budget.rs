//! A limit on retries in proportion to requests, so that retries cannot overload a struggling service.
//!
//! A limit on the attempts of each request does not limit their sum: if everything fails, three attempts each are
//! three times the load. A [`Budget`] is shared by all requests instead. Each request makes a deposit and each retry
//! a withdrawal, and a retry that cannot be paid for is not made.
//!
//! A budget is shared behind a `&'static`, an `Rc` or an `Arc`, since a policy is cloned for each request.
//!
//! # Examples
//!
//! ```
//! # #[cfg(all(feature = "futures-timer", target_has_atomic = "64"))] {
//! use campanile::futures_timer::FuturesTimer;
//! use campanile::retry::budget::{Budget, TpsBudget};
//! use core::time::Duration;
//!
//! let budget: TpsBudget<FuturesTimer> = TpsBudget::new(Duration::from_secs(10), 0, 0.4);
//! for _ in 0..5 {
//!     budget.deposit();
//! }
//! assert!(budget.withdraw());
//! assert!(budget.withdraw());
//! assert!(!budget.withdraw()); // 40 % of 5 are 2
//! # }
//! ```
//!
//! # Differences from tower
//!
//! - [`TpsBudget`] takes no lock and needs no allocator. However many threads withdraw at once, they never withdraw
//!   more than there is. There is nothing to catch up on after an idle time.
//! - A share of 0.4 is 40 %, and one of 0.75 is 75 %. In tower they are 50 % and 100 %.
//! - A withdrawal from the reserve is refilled at the rate of the reserve, and not all at once when it leaves the
//!   window.

use core::fmt;
use core::time::Duration;

/// A store of retries that many requests share.
pub trait Budget {
    /// Makes the deposit of one request.
    fn deposit(&self);

    /// Withdraws one retry. Returns `false`, and changes nothing, if there is none.
    fn withdraw(&self) -> bool;
}

impl<B: Budget + ?Sized> Budget for &B {
    fn deposit(&self) {
        (**self).deposit();
    }

    fn withdraw(&self) -> bool {
        (**self).withdraw()
    }
}

#[cfg(feature = "alloc")]
impl<B: Budget + ?Sized> Budget for alloc::rc::Rc<B> {
    fn deposit(&self) {
        (**self).deposit();
    }

    fn withdraw(&self) -> bool {
        (**self).withdraw()
    }
}

#[cfg(feature = "std")]
impl<B: Budget + ?Sized> Budget for alloc::sync::Arc<B> {
    fn deposit(&self) {
        (**self).deposit();
    }

    fn withdraw(&self) -> bool {
        (**self).withdraw()
    }
}

/// No budget: every retry is paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlimited;

impl Budget for Unlimited {
    fn deposit(&self) {}

    fn withdraw(&self) -> bool {
        true
    }
}

// One word holds a moment and a number, so targets without 64-bit atomics have no `TpsBudget`.
#[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
pub use tps::TpsBudget;

/// The budget, at tower's path.
#[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
pub mod tps_budget {
    pub use super::TpsBudget;
}

/// Why a budget cannot be made with these arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum InvalidBudget {
    /// The lifetime of a deposit is not from a second to an hour.
    Ttl(Duration),
    /// The reserve is more than 10⁹ retries a second.
    MinPerSec(u32),
    /// The share of retries is not from 0 to 1000.
    RetryPercent(f32),
}

impl fmt::Display for InvalidBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ttl(ttl) => write!(
                f,
                "invalid budget: the ttl is {ttl:?}, and must be from 1s to 3600s"
            ),
            Self::MinPerSec(rate) => write!(
                f,
                "invalid budget: the reserve is {rate} a second, and must be at most 1000000000"
            ),
            Self::RetryPercent(share) => write!(
                f,
                "invalid budget: the share of retries is {share}, and must be from 0 to 1000"
            ),
        }
    }
}

impl core::error::Error for InvalidBudget {}

#[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
mod tps {
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
        // The moment, in nanoseconds, at which the reserve will be full again.
        full_at: AtomicWord,
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
        period: u64,
        // How far ahead `full_at` may be: a whole number of periods; 0 without a reserve.
        reserve: u64,
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
            let (period, reserve) = if min_per_sec == 0 {
                (0, 0)
            } else {
                let period = SECOND.div_ceil(min_per_sec as u64);
                let count = min_per_sec as u128 * nanos as u128 / SECOND as u128;
                // At most 3600 * (10⁹ + `min_per_sec`) nanoseconds. A second or more holds at least one.
                (period, period * count as u64)
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
                period,
                reserve,
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
            Self::with_timer(ttl, min_per_sec, retry_percent, T::default())
        }

        /// Like [`new`](Self::new), with the given timer.
        ///
        /// # Panics
        ///
        /// If an argument is out of its range.
        #[track_caller]
        pub fn with_timer(ttl: Duration, min_per_sec: u32, retry_percent: f32, timer: T) -> Self {
            match Limits::new(ttl, min_per_sec, retry_percent) {
                Ok(limits) => Self::of(limits, timer),
                Err(error) => panic!("{error}"),
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

        /// Like [`with_timer`](Self::with_timer), for a `static`. The panic message cannot name the value, but the
        /// compiler shows the line.
        ///
        /// # Panics
        ///
        /// If an argument is out of its range.
        #[track_caller]
        pub const fn const_new(
            ttl: Duration,
            min_per_sec: u32,
            retry_percent: f32,
            timer: T,
        ) -> Self {
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

        const fn of(limits: Limits, timer: T) -> Self {
            Self {
                limits,
                fraction: AtomicWord::new(0),
                slots: [const { AtomicWord::new(0) }; SLOTS as usize],
                full_at: AtomicWord::new(0),
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
                period, reserve, ..
            } = self.limits;
            if reserve == 0 {
                return false;
            }
            self.full_at.update(|full_at| {
                let next = full_at.max(now).checked_add(period)?;
                (next - now <= reserve).then_some(next)
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
            Self::const_new(Duration::from_secs(10), 10, 0.2, T::default())
        }
    }

    impl<T> fmt::Debug for TpsBudget<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("TpsBudget")
                .field("limits", &self.limits)
                .finish_non_exhaustive()
        }
    }
}
