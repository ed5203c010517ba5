use core::fmt;
use core::num::NonZeroU64;
use core::time::Duration;

use crate::Instant;
use crate::runtime::saturating_nanos;
use crate::sync::atomic_word::AtomicWord;

/// A number of requests per period, and how many may pass at once.
///
/// ```
/// use campanile::limit::Rate;
/// use core::time::Duration;
///
/// const FIVE_A_SECOND: Rate = Rate::new(5, Duration::from_secs(1)); // five at once after a pause
/// const EVENLY: Rate = FIVE_A_SECOND.burst(1); // one every 200 ms at most
/// # let _ = EVENLY;
/// assert!(Rate::try_new(0, Duration::from_secs(1)).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    // At most `per`.
    num: NonZeroU64,
    // Nanoseconds.
    per: NonZeroU64,
    // At least 1.
    burst: u64,
    fixed_window: bool,
}

/// The longest period, in nanoseconds: 146 years. It can be added to any present time without overflow.
const LONGEST: u64 = 1 << 62;

impl Rate {
    /// `num` requests in each `per`, and as many at once after a pause.
    ///
    /// # Panics
    ///
    /// If `num` or `per` is 0.
    #[must_use]
    #[track_caller]
    pub const fn new(num: u64, per: Duration) -> Self {
        match Self::try_new(num, per) {
            Ok(rate) => rate,
            Err(InvalidRate::Num) => panic!("a rate of 0 requests: `num` must be at least 1"),
            Err(InvalidRate::Per) => panic!("a rate per 0 ns: `per` must be at least 1 ns"),
        }
    }

    /// `num` requests in each `per`, and as many at once after a pause.
    ///
    /// # Errors
    ///
    /// If `num` or `per` is 0.
    pub const fn try_new(num: u64, per: Duration) -> Result<Self, InvalidRate> {
        let Some(num) = NonZeroU64::new(num) else {
            return Err(InvalidRate::Num);
        };
        let nanos = saturating_nanos(per);
        let Some(per) = NonZeroU64::new(if nanos < LONGEST { nanos } else { LONGEST }) else {
            return Err(InvalidRate::Per);
        };
        Ok(Self {
            num: if num.get() < per.get() { num } else { per },
            per,
            burst: num.get(),
            fixed_window: false,
        })
    }

    /// Lets `burst` requests through at once after a pause; 0 counts as 1.
    #[must_use]
    pub const fn burst(mut self, burst: u64) -> Self {
        self.burst = if burst == 0 { 1 } else { burst };
        self
    }

    /// Lets `burst` requests through at once after a pause, and still no more than `num` in any window of `per`: after
    /// the burst the rate is only `num - burst + 1` in each `per`.
    ///
    /// A `burst` outside of 1 to `num` counts as the nearer of the two.
    #[must_use]
    pub const fn strict(mut self, burst: u64) -> Self {
        let num = self.num.get();
        let burst = if burst < num { burst } else { num };
        self.burst = if burst == 0 { 1 } else { burst };
        if let Some(rest) = NonZeroU64::new(num - (self.burst - 1)) {
            self.num = rest;
        }
        self
    }

    /// The burst without its first request, limited to what comes back within the longest period: with more, the budget
    /// could be overdrawn until the end of time, and never come back.
    const fn tolerance(self) -> u64 {
        let most = LONGEST / (self.per.get() / self.num.get());
        let others = self.burst - 1;
        if others < most { others } else { most }
    }

    /// Counts in fixed windows, as tower does: `num` requests in each, and the whole budget is back at the start of the
    /// next window.
    ///
    /// Windows of `per` follow one another from the first request on. Two bursts can meet at an edge, so up to
    /// `2 * num` requests can pass within less than `per`; [`burst`](Self::burst) has no effect. Use this for a server
    /// that counts in the same way.
    #[must_use]
    pub const fn fixed_window(mut self) -> Self {
        self.fixed_window = true;
        self
    }
}

/// A [`Rate`] that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidRate {
    /// No requests.
    Num,
    /// A period of zero length.
    Per,
}

impl fmt::Display for InvalidRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Num => "a rate of 0 requests: `num` must be at least 1",
            Self::Per => "a rate per 0 ns: `per` must be at least 1 ns",
        })
    }
}

impl core::error::Error for InvalidRate {}

/// The value of a budget's word while handles are in the queue: tokens are available only through the queue's lock, which
/// also guards the real value.
const QUEUED: u64 = u64::MAX;

/// The budget of a limiter: one word, changed without a lock while no handle waits.
#[derive(Debug)]
pub struct Budget {
    rate: Rate,
    pace: Pace,
    // The emission interval, the width of one cell: `interval` nanoseconds, and `rest / num` of one.
    interval: NonZeroU64,
    rest: u64,
    // The delay variation tolerance: the width of the burst without its first request.
    tolerance: Width,
    // The theoretical arrival time: when the budget is full again. With fixed windows it counts instead: the start of the
    // window, plus a nanosecond for each request that has passed in it, at most `per`. Or `QUEUED`.
    tat: AtomicWord,
    // The latest `tat` at which a token was returned that was not the last one taken. A token that led to this moment or
    // an earlier one can no longer be told to be the last.
    returned: AtomicWord,
    // With fixed windows: the start of the latest window in which a token was requested; 0 before the first.
    window: AtomicWord,
}

impl Budget {
    /// A full budget.
    pub(super) const fn new(rate: Rate) -> Self {
        let (num, per) = (rate.num.get(), rate.per.get());
        let rest = per % num;
        Self {
            rate,
            pace: match rest {
                _ if rate.fixed_window => Pace::Windows,
                0 => Pace::Even,
                _ => Pace::Uneven,
            },
            interval: match NonZeroU64::new(per / num) {
                Some(interval) => interval,
                None => NonZeroU64::MIN,
            },
            rest,
            tolerance: Width::of(rate.tolerance(), rate),
            tat: AtomicWord::new(0),
            returned: AtomicWord::new(0),
            window: AtomicWord::new(0),
        }
    }

    /// The rate at which it comes back.
    pub(super) const fn rate(&self) -> Rate {
        self.rate
    }

    /// A token available at `now`.
    #[inline]
    pub(super) fn offer(&self, now: Instant) -> Option<Offer> {
        // Only this one word is shared, so no ordering with other memory is needed.
        self.offer_after(self.tat.load(), now)
    }

    // On a small processor the call costs little beside the rest, and two copies of the code are large.
    #[cfg_attr(target_has_atomic = "64", inline)]
    #[cfg_attr(not(target_has_atomic = "64"), inline(never))]
    pub(super) fn offer_after(&self, tat: u64, now: Instant) -> Option<Offer> {
        match self.pace {
            Pace::Even => self.offer_cell(tat, now),
            Pace::Uneven => self.offer_uneven_cell(tat, now),
            Pace::Windows => self.offer_in_window(tat, now),
        }
    }

    #[inline]
    fn offer_cell(&self, tat: u64, now: Instant) -> Option<Offer> {
        let mut from = now.as_nanos();
        if tat > from {
            let due = self.back(tat, self.tolerance);
            if due > from {
                return None;
            }
            from = tat;
        }
        let then = self.forward(from)?;
        Some(Offer { tat, then })
    }

    #[cold]
    fn offer_uneven_cell(&self, tat: u64, now: Instant) -> Option<Offer> {
        self.offer_cell(tat, now)
    }

    #[inline]
    fn offer_in_window(&self, tat: u64, now: Instant) -> Option<Offer> {
        let window = self.window(now.as_nanos());
        // If `tat` lies before the window, no request has passed in it.
        let counted = tat.max(window);
        if counted - window >= self.rate.num.get() {
            return None;
        }
        let then = NonZeroU64::MIN.checked_add(counted)?;
        Some(Offer { tat, then })
    }

    /// The start of the window of `nanos`; of the latest window, if the clock is behind.
    #[inline]
    fn window(&self, nanos: u64) -> u64 {
        let latest = self.window.load();
        if latest != 0 && nanos.wrapping_sub(latest) < self.rate.per.get() {
            return latest;
        }
        self.open_window(nanos)
    }

    #[cold]
    fn open_window(&self, nanos: u64) -> u64 {
        self.window
            .update(|latest| match nanos.checked_sub(latest) {
                // The first request begins the first window.
                _ if latest == 0 => Some(nanos.max(1)),
                Some(since) if since >= self.rate.per.get() => Some(nanos - since % self.rate.per),
                _ => None,
            });
        self.window.load()
    }

    /// Takes the offered token, or another if that one is gone.
    #[inline]
    pub(super) fn take(&self, offer: Offer, now: Instant) -> Option<Taken> {
        let mut tat = offer.then;
        if let Err(changed) = self.tat.replace(offer.tat, offer.then.get()) {
            tat = self.take_another(changed, now).ok()?;
        }
        Some(Taken { at: now, tat })
    }

    /// Takes another token. If none is left, returns the word.
    #[cold]
    fn take_another(&self, mut tat: u64, now: Instant) -> Result<NonZeroU64, u64> {
        loop {
            let offer = self.offer_after(tat, now).ok_or(tat)?;
            match self.tat.replace(tat, offer.then.get()) {
                Ok(()) => return Ok(offer.then),
                Err(changed) => tat = changed,
            }
        }
    }

    /// Takes a token. If there is none, returns when the budget is full again; only the queue knows that if the value
    /// [`is_queued`](Self::is_queued).
    pub(super) fn take_any(&self, now: Instant) -> Result<Taken, u64> {
        let tat = self.take_another(self.tat.load(), now)?;
        Ok(Taken { at: now, tat })
    }

    /// Whether this is the word's value while handles are in the queue.
    pub(super) const fn is_queued(tat: u64) -> bool {
        tat == QUEUED
    }

    /// Gives a token back, at `now`.
    ///
    /// # Errors
    ///
    /// If handles are in the queue; the token belongs to them.
    pub(super) fn give_back(&self, token: Taken, now: Instant) -> Result<(), Queued> {
        // Not in `update`, which may hold off interrupts: this can involve a division of many steps.
        let mut tat = self.tat.load();
        loop {
            if tat == QUEUED {
                return Err(Queued);
            }
            let Some(then) = self.without(token, tat, now) else {
                return Ok(());
            };
            match self.tat.replace(tat, then) {
                Ok(()) => return Ok(()),
                Err(changed) => tat = changed,
            }
        }
    }

    /// The value of `tat` after `token` is given back at `now`, if that changes it.
    pub(super) fn without(&self, token: Taken, tat: u64, now: Instant) -> Option<u64> {
        if self.rate.fixed_window {
            // Back into the window it was taken from, unless a later one has begun.
            let window = self.window.load();
            let passed = tat.saturating_sub(window);
            let is_current = token.tat.get() > window;
            return (is_current && 0 < passed && passed <= self.rate.per.get()).then(|| tat - 1);
        }
        // If no token was taken since, it is as if this one had not been taken. Otherwise time may already have brought
        // back a part of it, up to the time passed since, if the budget would have been full without it; giving that
        // back a second time would be too much. If cells differ in width, this token's cell may be a nanosecond
        // narrower than the one given back.
        let elapsed = now.as_nanos().saturating_sub(token.at.as_nanos());
        let is_uneven = elapsed > 0 && self.rest != 0;
        let elapsed = elapsed.saturating_add(u64::from(is_uneven));
        // After tokens were given back in between, another token may have led to the same moment.
        let is_last = tat == token.tat.get() && tat > self.returned.load();
        let mut then = self.back(tat, self.interval());
        if !is_last {
            then = then.saturating_add(elapsed);
        }
        if then >= tat {
            return None;
        }
        if !is_last {
            self.returned.update(|latest| (latest < tat).then_some(tat));
        }
        Some(then)
    }

    /// When a token is due for a handle with `ahead` others before it, if the budget is full again at `tat`.
    ///
    /// If it is already due, this is any moment up to `now`.
    pub(super) fn turn(&self, tat: u64, ahead: u64, now: Instant) -> Instant {
        // `None`: beyond the end of time.
        let turn = if self.rate.fixed_window {
            self.turn_in_window(tat, ahead, now)
        } else {
            let tat = self.cells_later(tat.max(now.as_nanos()), ahead);
            tat.filter(|&tat| self.forward(tat).is_some())
                .map(|tat| self.back(tat, self.tolerance))
        };
        Instant::from_nanos(turn.unwrap_or(u64::MAX))
    }

    fn turn_in_window(&self, tat: u64, ahead: u64, now: Instant) -> Option<u64> {
        let window = self.window(now.as_nanos());
        let tat = tat.max(window).checked_add(ahead)?;
        tat.checked_add(1)?;
        let windows = (tat - window) / self.rate.num;
        window.checked_add(windows.checked_mul(self.rate.per.get())?)
    }

    /// Makes tokens available only through the queue, unless `tat` has changed meanwhile.
    ///
    /// Called under the lock of the queue, as is [`end_queue`](Self::end_queue).
    pub(super) fn begin_queue(&self, tat: u64) -> bool {
        self.tat.replace(tat, QUEUED).is_ok()
    }

    /// The queue is empty again.
    pub(super) fn end_queue(&self, tat: u64) {
        self.tat.store(tat);
    }

    // Time is divided into cells of `per / num` nanoseconds, each rounded up or down to whole nanoseconds such that
    // `num` cells are exactly `per`. A token moves the theoretical arrival time on by one cell and keeps its offset in
    // the cell, so rounding errors do not add up. If `per` is a multiple of `num`, all cells have the same width, and
    // no division is needed.
    //
    // Cell `c` begins at `c * per / num`, rounded up. The amount added by rounding, in parts of `num`, determines the
    // width of the neighbouring cells.

    /// The amount added by rounding at the start of the cell of `nanos`.
    #[cold]
    fn rounded(&self, nanos: u64) -> u64 {
        let Rate { num, per, .. } = self.rate;
        // `nanos * num` is `c * per`, plus the amount added, plus `num` for each nanosecond of the offset.
        multiply_divide(num.get(), nanos % per, per.get()).1 % num
    }

    const fn interval(&self) -> Width {
        Width {
            whole: self.interval.get(),
            rest: self.rest,
        }
    }

    /// One token later; `None` if beyond the end of time.
    #[inline]
    fn forward(&self, nanos: u64) -> Option<NonZeroU64> {
        let then = self.interval.checked_add(nanos)?;
        if self.pace == Pace::Uneven && self.rest > self.rounded(nanos) {
            return then.checked_add(1);
        }
        Some(then)
    }

    /// `tokens` tokens later; `None` if beyond the end of time.
    fn cells_later(&self, nanos: u64, tokens: u64) -> Option<u64> {
        let Width { whole, rest } =
            Width::of_cells(tokens, self.interval.get(), self.rest, self.rate);
        let then = nanos.checked_add(whole)?;
        if rest > 0 && rest > self.rounded(nanos) {
            return then.checked_add(1);
        }
        Some(then)
    }

    /// Earlier by a width, but at least 0.
    #[inline]
    fn back(&self, nanos: u64, Width { whole, rest }: Width) -> u64 {
        let then = nanos.saturating_sub(whole);
        if self.pace == Pace::Uneven && rest + self.rounded(nanos) >= self.rate.num.get() {
            return then.saturating_sub(1);
        }
        then
    }
}

/// How the budget comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// In cells of equal width.
    Even,
    /// In cells that differ in width by one nanosecond.
    Uneven,
    /// All at once.
    Windows,
}

/// The width of a number of cells: `whole` nanoseconds, and `rest / num` of one.
#[derive(Clone, Copy, Debug)]
struct Width {
    whole: u64,
    rest: u64,
}

impl Width {
    const fn of(tokens: u64, rate: Rate) -> Self {
        let (num, per) = (rate.num.get(), rate.per.get());
        Self::of_cells(tokens, per / num, per % num, rate)
    }

    /// The width of `tokens` cells of `one` nanoseconds and `rest / num` of one each.
    const fn of_cells(tokens: u64, one: u64, rest: u64, rate: Rate) -> Self {
        let (more, rest) = multiply_divide(tokens, rest, rate.num.get());
        Self {
            whole: one.saturating_mul(tokens).saturating_add(more),
            rest,
        }
    }
}

/// `a * b / c` and the remainder, for `b < c <= 2^63`: bit by bit, from the lowest bit of `a`. Most processors have no
/// 128-bit arithmetic, and its emulation is large.
const fn multiply_divide(mut a: u64, b: u64, c: u64) -> (u64, u64) {
    let (mut quotient, mut rest) = (0, 0);
    // What this bit of `a` adds.
    let (mut whole, mut part) = (0, b);
    loop {
        if a % 2 == 1 {
            quotient += whole;
            rest += part;
            if rest >= c {
                rest -= c;
                quotient += 1;
            }
        }
        a /= 2;
        if a == 0 {
            return (quotient, rest);
        }
        whole *= 2;
        part *= 2;
        if part >= c {
            part -= c;
            whole += 1;
        }
    }
}

/// Handles are in the queue.
pub(super) struct Queued;

/// A token that was available when it was looked for.
pub(super) struct Offer {
    tat: u64,
    // When the budget is full again if the token is taken.
    then: NonZeroU64,
}

impl Offer {
    /// When the budget is full again if the token is taken.
    pub(super) const fn tat(&self) -> u64 {
        self.then.get()
    }

    /// The token, if nothing else can have taken it.
    pub(super) const fn taken(self, now: Instant) -> Taken {
        Taken {
            at: now,
            tat: self.then,
        }
    }
}

/// A token that was taken.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    at: Instant,
    // When the budget was to be full again, as of taking it.
    tat: NonZeroU64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::rng::{Rng, SplitMix64};

    #[test]
    fn product_division_matches_128_bits() {
        let mut rng = SplitMix64::new(1);
        for n in 0..50_000 {
            let c = rng.next_range(1..1 << (n % 63 + 1)) + u64::from(n % 63 == 62);
            let b = rng.next_range(0..c);
            let a = rng.next_u64() >> (n % 64);
            let (product, wide) = (u128::from(a) * u128::from(b), u128::from(c));
            let (quotient, rest) = multiply_divide(a, b, c);
            assert_eq!(
                (quotient.into(), rest.into()),
                (product / wide, product % wide)
            );
        }
    }

    /// The start of cell `cell`, and the cell of a moment, by the definition.
    fn start(cell: u128, num: u128, per: u128) -> u128 {
        (cell * per).div_ceil(num)
    }

    #[test]
    fn token_is_exactly_one_cell() {
        let mut rng = SplitMix64::new(2);
        for n in 0..20_000_u32 {
            let per = rng.next_range(1..1 << (n % 62 + 1));
            let num = rng.next_range(1..per + 1) >> (n / 62 % 62);
            let rate = Rate::new(num.max(1), Duration::from_nanos(per))
                .burst(rng.next_u64() >> (n % 61 + 3));
            let budget = Budget::new(rate);
            let nanos = rng.next_u64() >> (n / 7 % 10 + 1);
            let (num, per) = (u128::from(rate.num.get()), u128::from(rate.per.get()));
            let cell = u128::from(nanos) * num / per;
            let offset = u128::from(nanos) - start(cell, num, per);
            assert_eq!(
                budget.forward(nanos).map(|then| then.get().into()),
                Some(start(cell + 1, num, per) + offset)
            );
            for (tokens, width) in [(1, budget.interval()), (rate.tolerance(), budget.tolerance)] {
                let expected = (cell.checked_sub(tokens.into()))
                    .map_or(0, |cell| start(cell, num, per) + offset);
                let found = u128::from(budget.back(nanos, width));
                // Before the first cell there is no other, and what is left of the offset is as good as 0.
                let is_before = cell < tokens.into() && found <= offset + per;
                assert!(
                    found == expected || is_before,
                    "{rate:?} {nanos} {tokens}: {found}, not {expected}"
                );
            }
        }
    }
}
