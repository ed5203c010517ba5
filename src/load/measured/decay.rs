//! Numbers that decay exponentially, each in one word.

use core::f64::consts::{LN_2, LOG2_E, SQRT_2};

use crate::{Instant, sync::atomic_word::AtomicWord};

/// A number that falls by a factor of e in each span, and counts as nothing once it has fallen to one.
///
/// The word holds the moment at which the number falls to one, in nanoseconds: at `t` it is `exp((moment - t) / span)`.
/// So there is no pair of a value and the time of its last update that two threads could tear, and time passes without
/// a write. 0: it was never set.
///
/// Spans are in nanoseconds.
#[derive(Debug)]
pub(super) struct Decaying(AtomicWord);

impl Decaying {
    pub(super) const fn new() -> Self {
        Self(AtomicWord::new(0))
    }

    /// Whether it is nothing, without reading the clock.
    #[inline]
    pub(super) fn is_unset(&self) -> bool {
        self.0.load() == 0
    }

    /// Whether both are nothing, without reading the clock.
    #[inline]
    pub(super) fn both_unset(&self, other: &Self) -> bool {
        self.0.load() | other.0.load() == 0
    }

    /// Whether it is at most `other`, now and at any other time; `None` if one of them was never set. Both have the
    /// same span.
    #[inline]
    pub(super) fn is_at_most(&self, other: &Self) -> Option<bool> {
        let (this, other) = (self.0.load(), other.0.load());
        (this != 0 && other != 0).then_some(this <= other)
    }

    /// The number at `now`; `None` if it is nothing.
    #[inline]
    pub(super) fn get(&self, now: Instant, span: f64) -> Option<f64> {
        value(self.0.load(), now, span)
    }

    /// Sets it to `number` at `now`.
    pub(super) fn set(&self, now: Instant, span: f64, number: f64) {
        self.0.store(moment(number, now, span));
    }

    /// Sets it to `number` at `now`, if it was never set.
    pub(super) fn set_first(&self, now: Instant, span: f64, number: f64) {
        let first = moment(number, now, span);
        let _ = self.0.replace(0, first);
    }

    /// Adds `more` to it at `now`, then raises it to at least `least`.
    #[inline]
    pub(super) fn add(&self, now: Instant, span: f64, more: f64, least: f64) {
        let old = self.0.load();
        if self
            .0
            .replace(old, added(old, now, span, more, least))
            .is_err()
        {
            self.add_later(now, span, more, least);
        }
    }

    /// Adds after another thread was faster.
    #[cold]
    fn add_later(&self, now: Instant, span: f64, more: f64, least: f64) {
        // Not in `update`, which may hold off interrupts: this takes long.
        let mut old = self.0.load();
        while let Err(other) = self.0.replace(old, added(old, now, span, more, least)) {
            old = other;
        }
    }

    /// Sets it to nothing.
    pub(super) fn unset(&self) {
        self.0.store(0);
    }

    /// Unsets it if it has fallen to nothing at `now`.
    pub(super) fn unset_if_spent(&self, now: Instant) {
        let moment = self.0.load();
        if moment <= now.as_nanos() {
            let _ = self.0.replace(moment, 0);
        }
    }
}

/// The moment for `more` than the number of `old`, and for at least `least`.
#[inline]
fn added(old: u64, now: Instant, span: f64, more: f64, least: f64) -> u64 {
    match value(old, now, span) {
        // The change of the moment depends on the ratio alone. Converting the sum to a moment instead would add up the
        // errors of many small additions.
        Some(number) if number + more > least => {
            // A signed number converts faster, and half the range is enough.
            let later = (span * ln_1p(more / number) + 0.5) as i64;
            old.saturating_add(later as u64)
        }
        Some(_) => moment(least, now, span),
        None => moment(least.max(more), now, span),
    }
}

#[inline]
fn value(moment: u64, now: Instant, span: f64) -> Option<f64> {
    let left = nanos_between(now.as_nanos(), moment);
    (left > 0.0).then(|| exp(left / span))
}

/// When `number` at `now` will have fallen to one.
#[cold]
fn moment(number: f64, now: Instant, span: f64) -> u64 {
    // The cast saturates, and turns NaN into 0.
    let left = (span * ln(number) + 0.5) as u64;
    now.as_nanos().saturating_add(left).max(1)
}

/// The nanoseconds from `earlier` to `later`, or 0 if they are the other way round.
#[inline]
pub(super) fn nanos_between(earlier: u64, later: u64) -> f64 {
    // Half the range is enough, and a signed number converts faster.
    const MOST: u64 = i64::MAX as u64;
    later.saturating_sub(earlier).min(MOST) as i64 as f64
}

/// `1 - e^-x` for `x >= 0`, with a relative error below 10⁻⁷.
#[inline]
pub(super) fn one_minus_exp_of_minus(x: f64) -> f64 {
    if x < SMALL {
        // Taylor's series.
        return x * (1.0 - x * (1.0 / 2.0 - x * (1.0 / 6.0)));
    }
    1.0 - 1.0 / exp(x)
}

/// Below this a few terms of a series are as precise as the function.
const SMALL: f64 = 1.0 / 256.0;

/// `e^x` for `x >= 0`, with a relative error below 10⁻⁸. Above 700 it is `e^700`.
///
/// core has no `f64::exp`. `x` is `n ln 2 + r`, with `n` whole and `|r| <= ln 2 / 2`; the result is 2^n times Taylor's
/// series of `e^r` to r⁷, whose next term is below 5.2 · 10⁻⁹.
#[inline]
pub(super) fn exp(x: f64) -> f64 {
    // Adding this rounds to a whole number, which is then in the lowest bits.
    const ROUND: f64 = (3_u64 << 51) as f64;
    let x = x.min(700.0);
    let rounded = x * LOG2_E + ROUND;
    let r = x - (rounded - ROUND) * LN_2;
    let mut sum = 1.0 / 5040.0;
    for term in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        1.0 / 2.0,
        1.0,
        1.0,
    ] {
        sum = sum * r + term;
    }
    // From 2^0 to 2^1010.
    let power = (rounded.to_bits() << 52).wrapping_add(1.0_f64.to_bits());
    sum * f64::from_bits(power)
}

/// `ln (1 + y)` for `y >= 0`, with a relative error below 10⁻⁷.
#[inline]
fn ln_1p(y: f64) -> f64 {
    if y < SMALL {
        // Taylor's series.
        return y * (1.0 - y * (1.0 / 2.0 - y * (1.0 / 3.0)));
    }
    ln(1.0 + y)
}

/// `ln x` with a relative error below 10⁻¹², for `x` from 1 to 10³⁰⁰. 0 for everything below 1 and for NaN.
///
/// core has no `f64::ln`. `x` is `m 2^k`, with `m` from √½ to √2, and with `s = (m - 1) / (m + 1)` the logarithm of
/// `m` is `2 (s + s³/3 + s⁵/5 + ...)`, here to s¹⁵.
fn ln(x: f64) -> f64 {
    if x.is_nan() || x <= 1.0 {
        return 0.0;
    }
    let bits = x.to_bits();
    let mut k = (bits >> 52) as i64 - 1023;
    let mut m = f64::from_bits(bits & ((1 << 52) - 1) | 1.0_f64.to_bits());
    if m > SQRT_2 {
        m *= 0.5;
        k += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut sum = 1.0 / 15.0;
    for term in [
        1.0 / 13.0,
        1.0 / 11.0,
        1.0 / 9.0,
        1.0 / 7.0,
        1.0 / 5.0,
        1.0 / 3.0,
        1.0,
    ] {
        sum = sum * z + term;
    }
    2.0 * s * sum + k as f64 * LN_2
}

#[cfg(test)]
mod tests {
    // Threads, and the functions to compare with.
    extern crate std;

    use super::*;
    use crate::util::rng::{Rng, SplitMix64};

    fn error(found: f64, expected: f64) -> f64 {
        ((found - expected) / expected).abs()
    }

    #[test]
    fn exp_matches_std() {
        let mut rng = SplitMix64::new(1);
        for _ in 0..200_000 {
            // Every order of magnitude from subnormal on, and evenly spread.
            let small = f64::from_bits(rng.next_range(0..700_f64.to_bits()));
            let any = rng.next_f64() * 700.0;
            for x in [small, any] {
                assert!(error(exp(x), x.exp()) < 1e-8, "{x}");
            }
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::from_bits(1)), 1.0);
        assert!(exp(700.0).is_finite());
        for x in [701.0, f64::MAX, f64::INFINITY] {
            assert_eq!(exp(x), exp(700.0));
        }
    }

    #[test]
    fn decay_and_sum_match_std() {
        let mut rng = SplitMix64::new(4);
        for _ in 0..200_000 {
            let small = f64::from_bits(rng.next_range(0..700_f64.to_bits()));
            let beside = SMALL * (0.9 + 0.2 * rng.next_f64());
            let any = rng.next_f64() * 700.0;
            for x in [small, beside, any] {
                if x >= f64::MIN_POSITIVE {
                    assert!(
                        error(one_minus_exp_of_minus(x), -(-x).exp_m1()) < 1e-7,
                        "{x}"
                    );
                    assert!(error(ln_1p(x), x.ln_1p()) < 1e-7, "{x}");
                }
            }
        }
        assert_eq!(one_minus_exp_of_minus(0.0), 0.0);
        assert_eq!(one_minus_exp_of_minus(f64::INFINITY), 1.0);
        assert_eq!(ln_1p(0.0), 0.0);
        assert!(error(ln_1p(1e300), 1e300_f64.ln()) < 1e-12);
    }

    #[test]
    fn small_additions_equal_a_large_one() {
        let (now, span) = (Instant::from_nanos(1 << 62), 1e10);
        let decaying = Decaying::new();
        decaying.set(now, span, 1e9);
        for _ in 0..100_000 {
            decaying.add(now, span, 1e4, 0.0);
        }
        let found = decaying.get(now, span).unwrap();
        assert!(error(found, 2e9) < 1e-6, "{found}");
    }

    #[test]
    fn ln_matches_std() {
        let mut rng = SplitMix64::new(2);
        let mut worst = 0.0_f64;
        for _ in 0..200_000 {
            let any = f64::from_bits(rng.next_range(1_f64.to_bits()..1e300_f64.to_bits()));
            let near = 1.0 + rng.next_f64();
            let beside = 1.0 + rng.next_f64() * 1e-9;
            for x in [any, near, beside] {
                if x > 1.0 {
                    worst = worst.max(error(ln(x), x.ln()));
                }
            }
        }
        assert!(worst < 1e-12, "{worst}");
        for x in [1.0, 0.5, 0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(ln(x), 0.0);
        }
    }

    #[test]
    fn number_decays_and_is_recovered() {
        let mut rng = SplitMix64::new(3);
        for _ in 0..100_000 {
            // A span from a microsecond to a year.
            let span = 1e3 * 10_f64.powf(rng.next_f64() * 13.5);
            let now = Instant::from_nanos(rng.next_range(0..1 << 63));
            let number = 1.5 * 10_f64.powf(rng.next_f64() * 18.0);
            let decaying = Decaying::new();
            decaying.set(now, span, number);
            // The moment is exact to a nanosecond.
            let precision = 1.0 / span + 1e-8;
            let found = decaying.get(now, span).unwrap();
            assert!(error(found, number) < precision, "{number} {found} {span}");

            let spans = rng.next_f64() * number.ln();
            let passed = (spans * span) as u64;
            let later = Instant::from_nanos(now.as_nanos() + passed);
            let expected = number * (-(passed as f64) / span).exp();
            if let Some(found) = decaying.get(later, span) {
                assert!(error(found, expected) < precision, "{expected} {found}");
            } else {
                assert!(expected < 1.0 + precision);
            }
        }
    }

    #[test]
    fn no_addition_is_lost() {
        // A span so long that a nanosecond makes no difference.
        let (now, span) = (Instant::from_nanos(5), 1e16);
        let decaying = Decaying::new();
        // Fewer of them if each instruction is interpreted.
        let each = if cfg!(miri) { 100_u32 } else { 50_000 };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..each {
                        decaying.add(now, span, 2.0, 0.0);
                    }
                });
            }
        });
        let found = decaying.get(now, span).unwrap();
        let expected = 8.0 * f64::from(each);
        assert!((found - expected).abs() < 1.0, "{found} {expected}");
    }

    #[test]
    fn zero_before_set_and_after_decay() {
        let now = Instant::from_nanos(1_000);
        let decaying = Decaying::new();
        assert!(decaying.is_unset());
        assert_eq!(decaying.get(now, 1e3), None);
        decaying.set_first(now, 1e3, 2.0);
        decaying.set_first(now, 1e3, 7.0);
        assert!((decaying.get(now, 1e3).unwrap() - 2.0).abs() < 0.01);
        decaying.unset_if_spent(now);
        assert!(!decaying.is_unset());

        let later = Instant::from_nanos(2_000);
        assert_eq!(decaying.get(later, 1e3), None);
        decaying.unset_if_spent(later);
        assert!(decaying.is_unset());
    }

    #[test]
    fn invalid_numbers_do_no_harm() {
        let now = Instant::from_nanos(5);
        let decaying = Decaying::new();
        for number in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
            decaying.set(now, 1e9, number);
            assert_eq!(decaying.get(now, 1e9), None);
        }
        decaying.set(Instant::MAX, 1e9, 1e300);
        assert_eq!(decaying.get(Instant::MAX, 1e9), None);
    }
}
