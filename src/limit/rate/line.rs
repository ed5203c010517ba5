use core::mem::{replace, take};
use core::task::{Context, Waker};

use super::Limited;
use super::budget::{Budget, Taken};
use crate::Instant;
use crate::sync::slab::{Index, List, Nodes, Slab, Vacant};
use crate::sync::{register, wake_all};

/// Those who wait for a token, first come, first served.
///
/// The state of a limiter behind its lock. It never wakes, clones or drops a waker itself: what is to be woken or dropped is
/// put into a [`Farewell`], for the caller to see to once it has let go of the lock.
///
/// Each waits with an alarm of its own for its own turn, so that nobody depends on another's being polled. Who is polled in
/// line hands out all tokens that are to be had, in order, and also to those who are not polled.
#[expect(missing_debug_implementations, reason = "nobody outside sees one")]
pub struct Line<N: ?Sized> {
    // While somebody is in line: when the budget is full again. Its word does not say so then.
    full_at: u64,
    // So many are in line.
    len: u64,
    queue: List,
    waiters: Slab<N>,
}

/// Who has a place of a [`Line`].
#[derive(Debug, Default)]
pub enum Waiter {
    /// Nobody.
    #[default]
    Vacant,
    /// In line.
    Waits(Waits),
    /// Not in line any more.
    Granted(Taken),
}

impl Vacant for Waiter {
    const VACANT: Self = Self::Vacant;
}

/// One in line.
#[derive(Debug)]
pub struct Waits {
    // Nothing once it was woken and until it is polled.
    waker: Option<Waker>,
    // By so much larger than that of the first in line as others are before this one, or by more, where some of them have
    // left from the middle.
    number: u64,
    // When it is polled next if nobody wakes it.
    looks_at: Instant,
}

/// Where a handle stands.
#[derive(Debug, Default)]
pub(super) enum Place {
    /// Nowhere.
    #[default]
    Outside,
    /// It had its turn, when its inner service was not ready. Its next place in line is the first.
    Passed,
    /// In line.
    InLine(Index),
    /// Waits where there is no line.
    Alone,
    /// Has a token.
    Held(Taken),
    /// Would wait too long, or has no place: its request fails.
    Refused(Refusal),
}

/// Why a request fails.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    Limited(Limited),
    Overflow,
}

impl Place {
    pub(super) fn refused(due: Instant, now: Instant) -> Self {
        Self::Refused(Refusal::Limited(Limited::until(due, now)))
    }
}

/// What a handle asks for.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    pub(super) now: Instant,
    /// It waits until then at the most.
    pub(super) until: Instant,
    /// If there is no token, it waits.
    pub(super) waits: bool,
}

/// What a handle is told.
pub(super) enum Turn {
    /// It has a token, or is refused: its place says which.
    Settled,
    /// It is to ask again then.
    At(Instant),
}

/// So many tokens are granted in one go.
const GRANTS: usize = 8;

/// What a [`Line`] leaves to be done outside the lock. It is done when this is dropped.
pub(super) struct Farewell {
    // Those who were granted tokens, and two who are to set their alarms anew: who comes after one that leaves, and the first.
    woken: [Option<Waker>; GRANTS + 2],
    len: usize,
    // Of who is polled, which need not be woken.
    discarded: Option<Waker>,
}

impl Farewell {
    pub(super) const fn new() -> Self {
        Self {
            woken: [const { None }; GRANTS + 2],
            len: 0,
            discarded: None,
        }
    }

    fn push(&mut self, waker: Option<Waker>) {
        if let Some(place) = self.woken.get_mut(self.len) {
            *place = waker;
            self.len += 1;
        }
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        wake_all(self.woken.iter_mut().filter_map(Option::take));
    }
}

impl<N: Nodes> Line<N> {
    pub(super) const fn new(waiters: Slab<N>) -> Self {
        Self {
            full_at: 0,
            len: 0,
            queue: List::new(),
            waiters,
        }
    }
}

impl<N: Nodes<Value = Waiter> + ?Sized> Line<N> {
    /// Takes a token, or joins the line where there is none.
    ///
    /// `None`: to be polled again with a clone of the task's waker, see [`with_waker`](crate::sync::with_waker).
    pub(super) fn poll(
        &mut self,
        budget: &Budget,
        ask: Ask,
        place: &mut Place,
        cx: &Context<'_>,
        waker: &mut Option<Waker>,
        farewell: &mut Farewell,
    ) -> Option<Turn> {
        let own = match *place {
            Place::InLine(index) => Some(index),
            _ => None,
        };
        self.grant(budget, ask.now, own, farewell);
        let turn = match *place {
            Place::InLine(index) => {
                let ahead = self.ahead(index);
                let due = budget.turn(self.full_at, ahead, ask.now);
                let next = budget.turn(self.full_at, 0, ask.now);
                match self.waiters.get_mut(index) {
                    // Others may have left before it, so that nothing else is sure but how long the first has to wait.
                    Some(Waiter::Waits(_))
                        if due > ask.now
                            && (ask.until <= ask.now || ahead == 0 && due > ask.until) =>
                    {
                        *place = Place::refused(due, ask.now);
                        self.leave(budget, index, ask.now, farewell);
                        Turn::Settled
                    }
                    Some(Waiter::Waits(waits)) => {
                        // Who had to be seen to was not polled in time, nor may who is first now be.
                        let looks_at = if farewell.len > 0 { next } else { due };
                        let looks_at = looks_at.min(ask.until);
                        if ask.waits {
                            register(&mut waits.waker, cx, waker)?;
                            waits.looks_at = looks_at;
                        }
                        Turn::At(looks_at)
                    }
                    _ => {
                        let granted = self.vacate(index, farewell);
                        *place = granted.map_or(Place::Outside, Place::Held);
                        Turn::Settled
                    }
                }
            }
            _ => self.join(budget, ask, place, waker)?,
        };
        self.hasten_first(budget, ask.now, farewell);
        Some(turn)
    }

    /// Takes a token if nobody is in line, or joins those who are.
    fn join(
        &mut self,
        budget: &Budget,
        ask: Ask,
        place: &mut Place,
        waker: &mut Option<Waker>,
    ) -> Option<Turn> {
        let passed = matches!(place, Place::Passed);
        loop {
            let is_alone = self.queue.is_empty();
            if is_alone {
                match budget.take_any(ask.now) {
                    Ok(token) => {
                        *place = Place::Held(token);
                        return Some(Turn::Settled);
                    }
                    Err(full_at) => self.full_at = full_at,
                }
            }
            let ahead = if passed { 0 } else { self.len };
            let due = budget.turn(self.full_at, ahead, ask.now);
            if !ask.waits {
                return Some(Turn::At(due));
            }
            if due > ask.until {
                *place = Place::refused(due, ask.now);
                return Some(Turn::Settled);
            }
            waker.as_ref()?;
            let first = self.queue.front().map_or(0, |first| self.number(first));
            let Some((index, waiter)) = self.waiters.claim() else {
                *place = Place::Refused(Refusal::Overflow);
                return Some(Turn::Settled);
            };
            if is_alone && !budget.begin_line(self.full_at) {
                // Somebody took or returned a token meanwhile.
                self.waiters.release(index);
                continue;
            }
            let number = if passed {
                first.wrapping_sub(1)
            } else {
                first.wrapping_add(ahead)
            };
            *waiter = Waiter::Waits(Waits {
                waker: waker.take(),
                number,
                looks_at: due,
            });
            self.len += 1;
            if passed {
                self.queue.push_front(&mut self.waiters, index);
            } else {
                self.queue.push_back(&mut self.waiters, index);
            }
            *place = Place::InLine(index);
            return Some(Turn::At(due));
        }
    }

    /// Grants the first in line the tokens that are to be had.
    fn grant(
        &mut self,
        budget: &Budget,
        now: Instant,
        own: Option<Index>,
        farewell: &mut Farewell,
    ) {
        while farewell.len < GRANTS && !self.queue.is_empty() {
            let Some(offer) = budget.offer_after(self.full_at, now) else {
                return;
            };
            let Some(first) = self.queue.pop_front(&mut self.waiters) else {
                return;
            };
            self.len -= 1;
            self.full_at = offer.full_at();
            if self.queue.is_empty() {
                budget.end_line(self.full_at);
            }
            let granted = Waiter::Granted(offer.taken(now));
            let waiter = self.waiters.get_mut(first).map(|it| replace(it, granted));
            if let Some(Waiter::Waits(Waits { waker, .. })) = waiter {
                if own == Some(first) {
                    farewell.discarded = waker;
                } else {
                    farewell.push(waker);
                }
            }
        }
    }

    /// Takes a token back, for the first in line.
    pub(super) fn give_back(
        &mut self,
        budget: &Budget,
        token: Taken,
        now: Instant,
        farewell: &mut Farewell,
    ) {
        if self.queue.is_empty() {
            // What it is not given back to is beyond all time.
            let _ = budget.give_back(token, now);
            return;
        }
        if let Some(full_at) = budget.without(token, self.full_at, now) {
            self.full_at = full_at;
            self.grant(budget, now, None, farewell);
            self.hasten_first(budget, now, farewell);
        }
    }

    /// Gives up a place, and a token that was granted to it.
    pub(super) fn leave(
        &mut self,
        budget: &Budget,
        index: Index,
        now: Instant,
        farewell: &mut Farewell,
    ) {
        if let Some(Waiter::Waits(_)) = self.waiters.get_mut(index) {
            self.unlink(budget, index, now, farewell);
        }
        if let Some(token) = self.vacate(index, farewell) {
            self.give_back(budget, token, now, farewell);
        }
    }

    /// Takes who waits out of the line. Who comes next moves up, and is woken where its alarm is set to later than its turn.
    fn unlink(&mut self, budget: &Budget, index: Index, now: Instant, farewell: &mut Farewell) {
        let (number, ahead) = (self.number(index), self.ahead(index));
        let next = self.queue.after(&mut self.waiters, index);
        let moves_up = next.is_some_and(|next| ahead > 0 && self.ahead(next) > ahead);
        self.queue.unlink(&mut self.waiters, index);
        self.len -= 1;
        if self.queue.is_empty() {
            budget.end_line(self.full_at);
        }
        let Some(next) = next else { return };
        if let (true, Some(Waiter::Waits(waits))) = (moves_up, self.waiters.get_mut(next)) {
            waits.number = number;
        }
        self.hasten(budget, next, now, farewell);
    }

    /// What is left at a place of who is not in line; it is another's from here on.
    fn vacate(&mut self, index: Index, farewell: &mut Farewell) -> Option<Taken> {
        let waiter = self.waiters.get_mut(index).map(take);
        self.waiters.release(index);
        match waiter? {
            Waiter::Vacant => None,
            Waiter::Waits(Waits { waker, .. }) => {
                farewell.discarded = waker;
                None
            }
            Waiter::Granted(token) => Some(token),
        }
    }

    /// Wakes the first in line where its alarm is set to later than its turn.
    fn hasten_first(&mut self, budget: &Budget, now: Instant, farewell: &mut Farewell) {
        if let Some(first) = self.queue.front() {
            self.hasten(budget, first, now, farewell);
        }
    }

    /// The same for one of them.
    fn hasten(&mut self, budget: &Budget, index: Index, now: Instant, farewell: &mut Farewell) {
        let due = budget.turn(self.full_at, self.ahead(index), now);
        if let Some(Waiter::Waits(waits)) = self.waiters.get_mut(index) {
            if waits.looks_at > due {
                waits.looks_at = due;
                farewell.push(waits.waker.take());
            }
        }
    }

    /// How many are in line before one of them, or more.
    fn ahead(&mut self, index: Index) -> u64 {
        let first = self.queue.front().unwrap_or(index);
        self.number(index).wrapping_sub(self.number(first))
    }

    fn number(&mut self, index: Index) -> u64 {
        match self.waiters.get_mut(index) {
            Some(Waiter::Waits(waits)) => waits.number,
            _ => 0,
        }
    }
}
