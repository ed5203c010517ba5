//! Random numbers for jitter and load balancing: fast, but not for cryptography.
//!
//! [`Rng`] is the trait that middleware uses. [`SplitMix64`] works on every target and needs a seed. [`HasherRng`]
//! seeds itself and needs std.
//!
//! # Examples
//!
//! ```
//! use campanile::util::rng::{Rng, SplitMix64};
//!
//! let mut rng = SplitMix64::new(7);
//! assert!((1..7).contains(&rng.next_range(1..7)));
//! assert!((0.0..1.0).contains(&rng.next_f64()));
//! ```
//!
//! # Differences from tower
//!
//! - [`Rng::next_range`] is unbiased, and does not panic on an empty range.
//! - There is a generator for targets without std, whose numbers can also be reproduced.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

/// A source of random numbers.
pub trait Rng {
    /// Returns a number from the whole range, uniformly distributed.
    fn next_u64(&mut self) -> u64;

    /// Returns a number in `[0, 1)`: a multiple of 2⁻⁵³, uniformly distributed.
    fn next_f64(&mut self) -> f64 {
        const SCALE: f64 = 1.0 / (1_u64 << 53) as f64;
        (self.next_u64() >> 11) as f64 * SCALE
    }

    /// Returns a number in `range`, uniformly distributed. For an empty range, returns its start.
    ///
    /// By multiplication and rejection: Lemire, "Fast Random Integer Generation in an Interval", 2019.
    fn next_range(&mut self, range: Range<u64>) -> u64 {
        let span = range.end.saturating_sub(range.start);
        if span == 0 {
            return range.start;
        }
        // A draw is rejected with a probability below one half. The limit is for a generator that repeats one number
        // forever, which must not make its caller hang.
        let mut left = 64;
        let product = loop {
            let product = u128::from(self.next_u64()) * u128::from(span);
            // The low half decides whether the draw is one of the few that make some numbers more likely.
            let low = product as u64;
            if low >= span || low >= span.wrapping_neg() % span || left == 0 {
                break product;
            }
            left -= 1;
        };
        range.start + (product >> 64) as u64
    }
}

impl<R: Rng + ?Sized> Rng for &mut R {
    fn next_u64(&mut self) -> u64 {
        (**self).next_u64()
    }

    fn next_f64(&mut self) -> f64 {
        (**self).next_f64()
    }

    fn next_range(&mut self, range: Range<u64>) -> u64 {
        (**self).next_range(range)
    }
}

#[cfg(feature = "alloc")]
impl<R: Rng + ?Sized> Rng for alloc::boxed::Box<R> {
    fn next_u64(&mut self) -> u64 {
        (**self).next_u64()
    }

    fn next_f64(&mut self) -> f64 {
        (**self).next_f64()
    }

    fn next_range(&mut self, range: Range<u64>) -> u64 {
        (**self).next_range(range)
    }
}

/// A generator with a seed, for every target: the same seed gives the same numbers.
///
/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014, with the constants of Vigna's
/// `splitmix64.c`. Its period is 2⁶⁴. Devices that start with the same seed draw the same jitter, so take the seed
/// from something that differs between them: a noise source, a serial number.
///
/// # Examples
///
/// ```
/// use campanile::util::rng::{Rng, SplitMix64};
///
/// assert_eq!(SplitMix64::new(1).next_u64(), SplitMix64::new(1).next_u64());
/// assert_ne!(SplitMix64::new(1).next_u64(), SplitMix64::new(2).next_u64());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// A generator that starts from `seed`. All seeds are equally good.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }
}

/// 2⁶⁴ divided by the golden ratio: the increment of the state.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng for SplitMix64 {
    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }
}

/// A generator whose clones each give other numbers, reproducibly.
///
/// A policy is cloned for each request, and the jitter of two requests must not be the same.
#[derive(Debug)]
pub(crate) struct Splitting {
    rng: SplitMix64,
    clones: AtomicU32,
}

impl Splitting {
    pub(crate) const fn new(seed: u64) -> Self {
        Self {
            rng: SplitMix64::new(seed),
            clones: AtomicU32::new(0),
        }
    }

    fn count_clone(&self) -> u32 {
        #[cfg(target_has_atomic = "32")]
        let count = self.clones.fetch_add(1, Ordering::Relaxed);
        // A core with only loads and stores: in a race two clones draw the same numbers, but nothing worse.
        #[cfg(not(target_has_atomic = "32"))]
        let count = self.clones.load(Ordering::Relaxed);
        #[cfg(not(target_has_atomic = "32"))]
        self.clones.store(count.wrapping_add(1), Ordering::Relaxed);
        count
    }
}

impl Clone for Splitting {
    fn clone(&self) -> Self {
        let nth = mix(u64::from(self.count_clone()).wrapping_add(STEP));
        Self::new(mix(self.rng.state ^ nth))
    }
}

impl Rng for Splitting {
    fn next_u64(&mut self) -> u64 {
        self.rng.next_u64()
    }
}

#[cfg(feature = "std")]
pub use hasher::HasherRng;

#[cfg(feature = "std")]
mod hasher {
    use core::hash::{BuildHasher, Hasher};
    use std::hash::RandomState;

    use super::Rng;

    /// A generator that hashes a counter, by default with std's hasher, whose keys are random.
    ///
    /// A clone has the keys and the counter of its original, so it gives the same numbers.
    #[derive(Clone, Debug)]
    pub struct HasherRng<H = RandomState> {
        hasher: H,
        counter: u64,
    }

    impl HasherRng {
        /// A generator with random keys.
        #[must_use]
        pub fn new() -> Self {
            Self::default()
        }
    }

    impl Default for HasherRng {
        fn default() -> Self {
            Self::with_hasher(RandomState::new())
        }
    }

    impl<H> HasherRng<H> {
        /// A generator that hashes with `hasher`.
        pub const fn with_hasher(hasher: H) -> Self {
            Self { hasher, counter: 0 }
        }
    }

    impl<H: BuildHasher> Rng for HasherRng<H> {
        fn next_u64(&mut self) -> u64 {
            let mut hasher = self.hasher.build_hasher();
            hasher.write_u64(self.counter);
            self.counter = self.counter.wrapping_add(1);
            hasher.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_matches_the_reference() {
        let mut rng = SplitMix64::new(1_234_567);
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(expected.map(|_| rng.next_u64()), expected);
    }

    #[test]
    fn clones_of_clones_differ() {
        let first = Splitting::new(0);
        let second = first.clone();
        let mut all = [first.clone(), second.clone(), second.clone(), first, second]
            .map(|mut rng| rng.next_u64());
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
