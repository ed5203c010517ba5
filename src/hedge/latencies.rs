use core::fmt;
use core::sync::atomic::AtomicU32;

use super::delay::Percentile;
use crate::Instant;
use crate::sync::atomic_word::AtomicWord;
use crate::sync::primitives::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

/// Computes from the latencies of one period when to hedge in the next.
///
/// Two histograms take turns: one counts the current period, the other holds the last one. The percentile is computed
/// when a period ends, and a call only loads it.
///
/// Nothing here blocks. Counts recorded while the halves are swapped may end up in either, or be lost. The delay is
/// one word, so it is always one that was computed as a whole.
pub(super) struct Latencies {
    settings: Percentile,
    // Those of `core` in the models too, for which there are too many.
    halves: [[AtomicU32; BUCKETS]; 2],
    // Which half counts.
    current: AtomicUsize,
    // Nanoseconds: the start of the current period; 0 before the first call.
    started: AtomicWord,
    // A thread is swapping the halves or computing the delay.
    rotating: AtomicBool,
    // Nanoseconds, or `NONE`.
    delay: AtomicWord,
}

/// There is too little data for a delay.
const NONE: u64 = u64::MAX;

// Buckets as in HdrHistogram (Tene): linear up to 16 units, then 16 per power of two, so that the width of a bucket
// is at most a sixteenth of the values it counts. A unit is 1024 ns. More than 2³² units, 73 minutes, count as that.
const UNIT: u32 = 10;
const STEPS: u32 = 4;
const MAX_UNITS: u64 = u32::MAX as u64;
const BUCKETS: usize = ((32 - STEPS as usize) + 1) << STEPS;

/// A bucket stops counting here: so far below the maximum that no number of threads can make it wrap.
const FULL: u32 = 1 << 31;

const fn bucket(nanos: u64) -> usize {
    let units = nanos >> UNIT;
    let units = if units < MAX_UNITS { units } else { MAX_UNITS };
    if units >> STEPS == 0 {
        return units as usize;
    }
    let shift = units.ilog2() - STEPS;
    // The leading one of the shifted units makes this `shift + 1`.
    ((shift as usize) << STEPS) + (units >> shift) as usize
}

/// Nanoseconds: just above all values of the bucket.
const fn upper_edge(bucket: usize) -> u64 {
    let row = bucket as u64 >> STEPS;
    if row == 0 {
        return (bucket as u64 + 1) << UNIT;
    }
    let shift = row - 1;
    let leading = bucket as u64 - (shift << STEPS);
    (leading + 1) << shift << UNIT
}

impl Latencies {
    pub(super) fn new(settings: Percentile) -> Self {
        Self {
            settings,
            halves: [const { [const { AtomicU32::new(0) }; BUCKETS] }; 2],
            current: AtomicUsize::new(0),
            started: AtomicWord::new(0),
            rotating: AtomicBool::new(false),
            delay: AtomicWord::new(NONE),
        }
    }

    pub(super) const fn settings(&self) -> Percentile {
        self.settings
    }

    /// Nanoseconds: the delay computed last.
    pub(super) fn delay(&self) -> Option<u64> {
        Some(self.delay.load()).filter(|delay| *delay != NONE)
    }

    /// Nanoseconds: the delay for a call at `now`.
    pub(super) fn delay_at(&self, now: Instant) -> Option<u64> {
        // Another thread may have read its clock slightly later, and started a period with that.
        let started = self.started.load();
        let age = now.as_nanos().saturating_sub(started);
        // The first period begins with the first call, even if the clock is younger than a period.
        if started == 0 || age >= self.settings.period {
            self.rotate(now);
        }
        self.delay()
    }

    pub(super) fn record(&self, nanos: u64) {
        let half = &self.halves[self.current.load(Acquire) & 1];
        let count = &half[bucket(nanos)];
        if count.load(Relaxed) < FULL {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Computes the delay from what the current period has counted so far.
    pub(super) fn estimate(&self) {
        self.alone(|| {
            let delay = self.percentile(self.current.load(Relaxed));
            self.delay.update(|_| Some(delay));
        });
    }

    #[cold]
    fn rotate(&self, now: Instant) {
        let Percentile { period, .. } = self.settings;
        let now = now.as_nanos().max(1);
        self.alone(|| {
            let started = self.started.load();
            let age = now.saturating_sub(started);
            if started == 0 {
                self.started.update(|_| Some(now));
            } else if age >= period {
                let full = self.current.load(Relaxed) & 1;
                self.halves[full ^ 1]
                    .iter()
                    .for_each(|count| count.store(0, Relaxed));
                self.current.store(full ^ 1, Release);
                // Without a call in the whole of the last period, there is no data.
                let stale = age >= period.saturating_mul(2);
                let delay = if stale { NONE } else { self.percentile(full) };
                self.delay.update(|_| Some(delay));
                self.started.update(|_| Some(now));
            }
        });
    }

    /// Runs `change`, unless another thread is making a change, which suffices.
    fn alone(&self, change: impl FnOnce()) {
        if !self.rotating.swap(true, Acquire) {
            change();
            self.rotating.store(false, Release);
        }
    }

    fn percentile(&self, half: usize) -> u64 {
        let counts = &self.halves[half & 1];
        let total: u64 = counts.iter().map(|n| u64::from(n.load(Relaxed))).sum();
        if total < self.settings.min_data_points.max(1) {
            return NONE;
        }
        let wanted = (total * self.settings.millionths).div_ceil(1_000_000);
        let mut below = 0;
        let found = counts.iter().position(|n| {
            below += u64::from(n.load(Relaxed));
            below >= wanted.max(1)
        });
        // Counts only grow during this loop, so the bucket is found.
        found.map_or(NONE, upper_edge)
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latencies")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::util::rng::{Rng, SplitMix64};

    fn latencies(min_data_points: u64, millionths: u64, period: u64) -> Latencies {
        Latencies::new(Percentile {
            min_data_points,
            millionths,
            period,
        })
    }

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn buckets_are_contiguous() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for n in 0..BUCKETS {
            let edge = upper_edge(n);
            assert_eq!(bucket(edge - 1), n);
            assert_eq!(bucket(edge), (n + 1).min(BUCKETS - 1));
            let lower = if n == 0 { 0 } else { upper_edge(n - 1) };
            assert!(edge - lower <= (lower / 16).max(1 << UNIT));
        }
    }

    #[test]
    fn percentiles_match_the_sorted_samples() {
        let mut rng = SplitMix64::new(1);
        for millionths in [0, 1, 500_000, 900_000, 950_000, 999_000, 1_000_000] {
            for scale in [1, 100, 10_000, 100_000] {
                let all = latencies(1, millionths, 1);
                let mut samples: Vec<u64> = (0..997)
                    .map(|_| {
                        // Spread over many powers of two.
                        let octave = rng.next_range(0..20);
                        rng.next_range(0..scale << octave)
                    })
                    .collect();
                samples.iter().for_each(|sample| all.record(*sample));
                all.estimate();
                samples.sort_unstable();
                let rank = (997 * millionths).div_ceil(1_000_000).max(1) as usize;
                let exact = samples[rank - 1];
                let delay = all.delay().unwrap();
                assert!(delay > exact, "{delay} is not above {exact}");
                assert!(
                    delay - exact <= (exact / 16).max(1 << UNIT),
                    "{delay} is too far above {exact}"
                );
            }
        }
    }

    #[test]
    fn period_decides_for_the_next_only() {
        let all = latencies(2, 1_000_000, 100);
        let delay = |count: usize| Some(upper_edge(bucket(count as u64 * 1_000_000)));
        assert_eq!(all.delay_at(at(1_000)), None);
        all.record(1_000_000);
        assert_eq!(all.delay_at(at(1_100)), None, "one is too few");
        all.record(2_000_000);
        all.record(1_000_000);
        assert_eq!(all.delay_at(at(1_199)), None, "the period has not ended");
        assert_eq!(all.delay_at(at(1_200)), delay(2));
        all.record(3_000_000);
        all.record(3_000_000);
        assert_eq!(all.delay_at(at(1_150)), delay(2), "a clock that was late");
        assert_eq!(all.delay_at(at(1_300)), delay(3));
        all.record(3_000_000);
        all.record(3_000_000);
        assert_eq!(all.delay_at(at(1_500)), None, "nobody called for a period");
        assert_eq!(all.delay_at(at(u64::MAX)), None);
    }

    #[test]
    fn earlier_periods_are_forgotten() {
        let all = latencies(1, 1_000_000, 100);
        assert_eq!(all.delay_at(at(1_000)), None);
        for (n, sample) in [3_000_000, 1_000_000, 2_000_000, 1_000_000]
            .into_iter()
            .enumerate()
        {
            all.record(sample);
            let delay = all.delay_at(at(1_100 + 100 * n as u64));
            assert_eq!(delay, Some(upper_edge(bucket(sample))));
        }
    }

    #[test]
    fn first_period_begins_with_the_first_call() {
        for first in [0, 1, 99] {
            let all = latencies(1, 1_000_000, 100);
            assert_eq!(all.delay_at(at(first)), None);
            all.record(1_000_000);
            assert_eq!(all.delay_at(at(first + 98)), None);
            assert!(all.delay_at(at(first.max(1) + 100)).is_some());
        }
    }

    #[test]
    fn a_full_bucket_stays_full() {
        let all = latencies(1, 500_000, 1);
        all.halves[0][0].store(FULL, Relaxed);
        all.record(0);
        assert_eq!(all.halves[0][0].load(Relaxed), FULL);
        all.halves[0]
            .iter()
            .for_each(|count| count.store(FULL, Relaxed));
        all.estimate();
        assert_eq!(all.delay(), Some(upper_edge(BUCKETS / 2 - 1)));
    }

    /// Any delay is one that the samples of some moment give, whatever happens at once.
    #[cfg(feature = "std")]
    #[test]
    fn threads_rotate_and_record_at_once() {
        let all = latencies(1, 950_000, 10);
        let clock = core::sync::atomic::AtomicU64::new(1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..2_000_u64 {
                        let now = clock.fetch_add(1, Relaxed);
                        if let Some(delay) = all.delay_at(at(now)) {
                            let least = upper_edge(bucket(1_000_000));
                            let most = upper_edge(bucket(2_000_000));
                            assert!((least..=most).contains(&delay), "{delay}");
                        }
                        all.record(1_000_000 + n % 2 * 1_000_000);
                    }
                });
            }
        });
        let total: u64 = (all.halves.iter().flatten())
            .map(|count| u64::from(count.load(Relaxed)))
            .sum();
        assert!(total <= 8_000);
        assert!(!all.rotating.load(Relaxed));
    }
}

#[cfg(all(test, loom))]
mod models {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn a_period_is_read_once() {
        loom::model(|| {
            let all = Arc::new(Latencies::new(Percentile {
                min_data_points: 1,
                millionths: 1_000_000,
                period: 100,
            }));
            // The first period begins.
            all.delay_at(Instant::from_nanos(1_000));
            all.record(1_000_000);
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let all = all.clone();
                    loom::thread::spawn(move || all.delay_at(Instant::from_nanos(1_100)))
                })
                .collect();
            let delay = Some(upper_edge(bucket(1_000_000)));
            for thread in threads {
                let seen = thread.join().unwrap();
                assert!(seen.is_none() || seen == delay);
            }
            assert_eq!(all.delay(), delay);
        });
    }
}
