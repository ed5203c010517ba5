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

// One word holds a moment and a number, so targets without 64-bit atomics have no `TpsBudget`.
#[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
pub mod tps_budget;

#[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
pub use self::tps_budget::TpsBudget;

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
