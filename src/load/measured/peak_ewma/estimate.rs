//! The estimate, and what it is made of: what clones and requests share.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{Ordering, fence};
use core::time::Duration;

use super::super::DECAYS;
use super::super::decay::{Decaying, exp, nanos_between, one_minus_exp_of_minus};
use super::{Cost, InvalidEwma};
use crate::sync::atomic_word::AtomicWord;
use crate::{Instant, Timer};

/// All times are in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    default_rtt: f64,
    decay: f64,
    pub(super) penalty: f64,
}

impl Settings {
    pub(super) fn new(default_rtt: Duration, decay: f64) -> Result<Self, InvalidEwma> {
        if default_rtt.is_zero() {
            return Err(InvalidEwma::DefaultRtt(default_rtt));
        }
        let (least, most) = DECAYS;
        if !(least.as_nanos() as f64..=most.as_nanos() as f64).contains(&decay) {
            return Err(InvalidEwma::Decay(decay));
        }
        Ok(Self {
            default_rtt: nanos(default_rtt),
            decay,
            penalty: decay,
        })
    }

    pub(super) fn with_penalty(self, penalty: Duration) -> Self {
        Self {
            penalty: nanos(penalty),
            ..self
        }
    }
}

pub(super) fn nanos(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

/// What clones share.
pub(super) struct Shared<T> {
    // Only requests clone this, so counting its clones counts the requests.
    pub(super) load: Arc<Measured<T>>,
}

impl<T> Shared<T> {
    pub(super) fn new(settings: Settings, timer: T) -> Self {
        Self {
            load: Arc::new(Measured {
                estimate: Decaying::new(),
                observed: AtomicWord::new(0),
                answered: AtomicWord::new(0),
                second: AtomicWord::new(0),
                last: AtomicWord::new(0),
                settings,
                timer,
            }),
        }
    }

    #[inline]
    pub(super) fn in_flight(&self) -> usize {
        Arc::strong_count(&self.load) - 1
    }

    #[inline]
    pub(super) fn estimate(&self, now: Instant) -> f64 {
        let load = &*self.load;
        load.start(now);
        let estimate = load.estimate.get(now, load.settings.decay).unwrap_or(1.0);
        // A single request may be long, and those that others overtook are.
        let in_flight = self.in_flight();
        if in_flight <= 1 || load.answered().waiting(in_flight) <= 1 {
            return estimate;
        }
        fence(Ordering::Acquire);
        let silent = nanos_between(load.second.load(), now.as_nanos());
        if silent <= estimate {
            return estimate;
        }
        estimate.max(load.weigh(silent, now))
    }

    #[inline]
    pub(super) fn cost(&self, now: Instant) -> Cost {
        let in_flight = self.in_flight() as f64;
        Cost(self.estimate(now) * (in_flight + 1.0))
    }

    /// Whether its cost is no more than that of `other`, if that can be told without the time: an idle service costs
    /// its estimate, a busy one more. Both must be on the same clock.
    #[inline]
    pub(super) fn is_no_busier_for_sure(&self, other: &Self) -> Option<bool> {
        let (this, others) = (&*self.load, &*other.load);
        if this.settings.decay != others.settings.decay {
            return None;
        }
        let is_at_most = this.estimate.is_at_most(&others.estimate)?;
        let idler = if is_at_most { self } else { other };
        (idler.in_flight() == 0).then_some(is_at_most)
    }

    #[cold]
    pub(super) fn is_no_busier_now(&self, other: &Self) -> bool
    where
        T: Timer,
    {
        let now = self.load.timer.now();
        let others_now = if size_of::<T>() == 0 {
            now
        } else {
            other.load.timer.now()
        };
        self.cost(now) <= other.cost(others_now)
    }
}

/// The number of a response, and how many requests sent before it are still in flight.
#[derive(Clone, Copy)]
pub(super) struct Answered {
    number: u32,
    earlier: u32,
}

impl Answered {
    #[inline]
    fn from_word(word: u64) -> Self {
        Self {
            number: (word >> 32) as u32,
            earlier: word as u32,
        }
    }

    #[inline]
    fn to_word(self) -> u64 {
        u64::from(self.number) << 32 | u64::from(self.earlier)
    }

    /// How many of `in_flight` requests were sent after it.
    #[inline]
    fn waiting(self, in_flight: usize) -> usize {
        in_flight.saturating_sub(self.earlier as usize)
    }
}

/// What clones and requests share.
pub(super) struct Measured<T> {
    estimate: Decaying,
    // When the last response came: the next one stands for the time since then.
    observed: AtomicWord,
    // The last response. If several come at once, the number of requests sent before may be too high until the next.
    answered: AtomicWord,
    // When the second request since the last response was sent, not counting those cancelled before it. Not of use
    // while fewer than two wait.
    second: AtomicWord,
    // When the last request was sent, not counting one that was cancelled. No earlier than `second`.
    last: AtomicWord,
    pub(super) settings: Settings,
    pub(super) timer: T,
}

impl<T> Measured<T> {
    /// Starts the decay of the estimate at `now`, if it has not started: a constructor reads no clock.
    #[inline]
    pub(super) fn start(&self, now: Instant) {
        if self.estimate.is_unset() {
            self.start_first(now);
        }
    }

    #[cold]
    fn start_first(&self, now: Instant) {
        self.observed.store(now.as_nanos());
        let Settings {
            decay, default_rtt, ..
        } = self.settings;
        self.estimate.set_first(now, decay, default_rtt);
    }

    pub(super) fn set_estimate(&self, now: Instant, estimate: f64) {
        self.observed.store(now.as_nanos());
        self.estimate.set(now, self.settings.decay, estimate);
    }

    #[inline]
    fn answered(&self) -> Answered {
        Answered::from_word(self.answered.load())
    }

    /// A request is sent while `others` are in flight. The estimate has been started. Returns the number of the last
    /// response, for [`cancelled`](Self::cancelled).
    #[inline]
    pub(super) fn sent(&self, now: Instant, others: usize) -> u32 {
        let answered = self.answered();
        if others > 0 {
            let waiting = answered.waiting(others);
            if waiting > 0 {
                self.last.store(now.as_nanos());
            }
            if waiting == 1 {
                self.second.store(now.as_nanos());
            }
        }
        answered.number
    }

    /// A response came back while `others` are in flight.
    #[inline]
    pub(super) fn has_answered(&self, others: usize) {
        let answered = Answered {
            number: self.answered().number.wrapping_add(1),
            // Four billion handles do not fit in memory.
            earlier: others as u32,
        };
        self.answered.store(answered.to_word());
    }

    /// A request sent at `sent`, when the last response was number `after`, was cancelled after `took`: a response would
    /// have taken at least that long, unless the request was long by nature.
    #[cold]
    pub(super) fn cancelled(&self, now: Instant, sent: Instant, after: u32, took: f64) {
        if !self.is_overtaken(sent, took) {
            self.estimate.add(now, self.settings.decay, 0.0, took);
        }
        let is_earlier = self.answered.update(|word| {
            let Answered { number, earlier } = Answered::from_word(word);
            let earlier = earlier.checked_sub(1).filter(|_| number != after)?;
            Some(Answered { number, earlier }.to_word())
        });
        // It no longer shows whether those that still wait are long by nature.
        if !is_earlier && self.last.load() == sent.as_nanos() {
            self.last.store(self.second.load());
        }
    }

    /// What a silence weighs, given when a request was last sent.
    #[cold]
    fn weigh(&self, silent: f64, now: Instant) -> f64 {
        let since = nanos_between(self.last.load(), now.as_nanos());
        silent / exp(since / self.settings.decay)
    }

    /// Whether a request sent at `sent` that took `took` was long by nature: others that were sent in the second half
    /// of its time were answered before it. Only if it took longer than a decay, over which it could not be averaged.
    #[inline]
    pub(super) fn is_overtaken(&self, sent: Instant, took: f64) -> bool {
        took > self.settings.decay && self.has_overtaken(sent, took)
    }

    #[cold]
    fn has_overtaken(&self, sent: Instant, took: f64) -> bool {
        let observed = self.observed.load();
        // The last response took no longer than the estimate that it left behind.
        let at = Instant::from_nanos(observed);
        let longest = self.estimate.get(at, self.settings.decay).unwrap_or(1.0);
        nanos_between(sent.as_nanos(), observed) - longest > took / 2.0
    }

    /// A response took `took`. The estimate has been started.
    #[inline]
    pub(super) fn observe(&self, now: Instant, took: f64) {
        let decay = self.settings.decay;
        // Taken by one response even if several come at once, so no time counts twice.
        let before = self.observed.swap(now.as_nanos());
        let elapsed = nanos_between(before, now.as_nanos());
        // The estimate has already decayed, so adding this gives the average; a response that took longer is a peak.
        let share = took * one_minus_exp_of_minus(elapsed / decay);
        self.estimate.add(now, decay, share, took);
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("in_flight", &self.in_flight())
            .field("settings", &self.load.settings)
            .finish_non_exhaustive()
    }
}
