use core::mem::{replace, take};
use core::task::{Context, Waker};

use super::Limited;
use super::budget::{Budget, Taken};
use crate::Instant;
use crate::sync::slab::{Index, List, Nodes, Slab, Vacant};
use crate::sync::{ignore_panic, register, wake_all};

/// The handles that wait for a token, first come, first served.
///
/// This is the state of a limiter behind its lock. It never wakes, clones or drops a waker itself: it puts them into a
/// [`Deferred`], which the caller drops after releasing the lock.
///
/// Each handle sets an alarm for its own turn, so that none depends on another being polled. A handle polled in the queue
/// hands out all available tokens in order, even to handles that are not polled.
#[expect(missing_debug_implementations, reason = "nobody outside sees one")]
pub struct TurnQueue<N: ?Sized> {
    // While handles are in the queue: when the budget is full again. The budget's word does not hold it then.
    tat: u64,
    // How many are in the queue.
    len: u64,
    queue: List,
    waiters: Slab<N>,
}

/// The occupant of a place in a [`TurnQueue`].
#[derive(Debug, Default)]
pub enum Waiter {
    /// None.
    #[default]
    Vacant,
    /// In the queue.
    Waits(Waits),
    /// No longer in the queue.
    Granted(Taken),
}

impl Vacant for Waiter {
    const VACANT: Self = Self::Vacant;
}

/// A handle in the queue.
#[derive(Debug)]
pub struct Waits {
    // `None` from when it is woken until it is polled.
    waker: Option<Waker>,
    // The number of the first in the queue, plus how many are before this one; or more, if some have left from the middle
    // since it joined. That of the first in the queue is exact.
    number: u64,
    // When it will be polled next if nothing wakes it earlier.
    looks_at: Instant,
}

/// Where a handle stands.
#[derive(Debug, Default)]
pub(super) enum TokenState {
    /// Nowhere.
    #[default]
    Outside,
    /// Its turn came when its inner service was not ready. When it next waits, it is first in the queue.
    Passed,
    /// In the queue.
    Queued(Index),
    /// Waits where there is no queue.
    Alone,
    /// Has a token.
    Held(Taken),
    /// Would have to wait too long, or found the queue full: its request fails.
    Refused(Refusal),
}

/// Why a request fails.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    Limited(Limited),
    Overflow,
}

impl TokenState {
    pub(super) fn refused(due: Instant, now: Instant) -> Self {
        Self::Refused(Refusal::Limited(Limited::until(due, now)))
    }
}

/// The conditions under which a handle asks for a token.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    pub(super) now: Instant,
    /// When its patience ends.
    pub(super) until: Instant,
    /// Whether it waits if there is no token.
    pub(super) waits: bool,
}

/// The answer to a handle.
pub(super) enum Turn {
    /// It has a token, or is refused: its place says which.
    Settled,
    /// It should ask again then.
    At(Instant),
}

/// How many tokens are granted in one go.
const GRANTS: usize = 8;

/// What a [`TurnQueue`] leaves to do outside the lock. Dropping this does it.
pub(super) struct Deferred {
    // Handles that were granted tokens, and two that have to reset their alarms: the one after a handle that leaves,
    // and the first.
    woken: [Option<Waker>; GRANTS + 2],
    len: usize,
    // The waker of the handle being polled, which need not be woken.
    discarded: Option<Waker>,
}

impl Deferred {
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

impl Drop for Deferred {
    fn drop(&mut self) {
        // A waker that panics belongs to another task, which must not end this one.
        ignore_panic(|| wake_all(self.woken.iter_mut().filter_map(Option::take)));
    }
}

impl<N: Nodes> TurnQueue<N> {
    pub(super) const fn new(waiters: Slab<N>) -> Self {
        Self {
            tat: 0,
            len: 0,
            queue: List::new(),
            waiters,
        }
    }
}

impl<N: Nodes<Value = Waiter> + ?Sized> TurnQueue<N> {
    /// Takes a token, or joins the queue if there is none.
    ///
    /// `None`: poll again with a clone of the task's waker, see [`with_waker`](crate::sync::with_waker).
    pub(super) fn poll(
        &mut self,
        budget: &Budget,
        ask: Ask,
        place: &mut TokenState,
        cx: &Context<'_>,
        waker: &mut Option<Waker>,
        deferred: &mut Deferred,
    ) -> Option<Turn> {
        let own = match *place {
            TokenState::Queued(index) => Some(index),
            _ => None,
        };
        self.grant(budget, ask.now, own, deferred);
        let turn = match *place {
            TokenState::Queued(index) => {
                let ahead = self.ahead(index);
                let due = budget.turn(self.tat, ahead, ask.now);
                let next = budget.turn(self.tat, 0, ask.now);
                match self.waiters.get_mut(index) {
                    // Others may have left before it, so the only certain wait is that of the first in the queue.
                    Some(Waiter::Waits(_))
                        if due > ask.now
                            && (ask.until <= ask.now || ahead == 0 && due > ask.until) =>
                    {
                        *place = TokenState::refused(due, ask.now);
                        self.leave(budget, index, ask.now, deferred);
                        Turn::Settled
                    }
                    Some(Waiter::Waits(waits)) => {
                        // The handles just granted tokens were not polled in time; the one that is first now may not be
                        // either.
                        let looks_at = if deferred.len > 0 { next } else { due };
                        let mut looks_at = looks_at.min(ask.until);
                        // Its number may be too high by now, and its turn earlier.
                        if waits.looks_at > ask.now {
                            looks_at = looks_at.min(waits.looks_at);
                        }
                        if ask.waits {
                            register(&mut waits.waker, cx, waker)?;
                            waits.looks_at = looks_at;
                        }
                        Turn::At(looks_at)
                    }
                    _ => {
                        let granted = self.vacate(index, deferred);
                        *place = granted.map_or(TokenState::Outside, TokenState::Held);
                        Turn::Settled
                    }
                }
            }
            _ => self.join(budget, ask, place, waker)?,
        };
        self.hasten_first(budget, ask.now, deferred);
        Some(turn)
    }

    /// Takes a token if the queue is empty, or joins it.
    fn join(
        &mut self,
        budget: &Budget,
        ask: Ask,
        place: &mut TokenState,
        waker: &mut Option<Waker>,
    ) -> Option<Turn> {
        let passed = matches!(place, TokenState::Passed);
        loop {
            let is_alone = self.queue.is_empty();
            if is_alone {
                match budget.take_any(ask.now) {
                    Ok(token) => {
                        *place = TokenState::Held(token);
                        return Some(Turn::Settled);
                    }
                    Err(tat) => self.tat = tat,
                }
            }
            let ahead = if passed { 0 } else { self.len };
            let due = budget.turn(self.tat, ahead, ask.now);
            if !ask.waits {
                return Some(Turn::At(due));
            }
            if due > ask.until {
                *place = TokenState::refused(due, ask.now);
                return Some(Turn::Settled);
            }
            waker.as_ref()?;
            let first = self.queue.front().map_or(0, |first| self.number(first));
            let Some((index, waiter)) = self.waiters.claim() else {
                *place = TokenState::Refused(Refusal::Overflow);
                return Some(Turn::Settled);
            };
            if is_alone && !budget.begin_queue(self.tat) {
                // A token was taken or given back meanwhile.
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
            *place = TokenState::Queued(index);
            return Some(Turn::At(due));
        }
    }

    /// Grants available tokens to the first in the queue.
    fn grant(
        &mut self,
        budget: &Budget,
        now: Instant,
        own: Option<Index>,
        deferred: &mut Deferred,
    ) {
        while deferred.len < GRANTS && !self.queue.is_empty() {
            let Some(offer) = budget.offer_after(self.tat, now) else {
                return;
            };
            let Some(first) = self.queue.pop_front(&mut self.waiters) else {
                return;
            };
            self.len -= 1;
            self.tat = offer.tat();
            if self.queue.is_empty() {
                budget.end_queue(self.tat);
            }
            let granted = Waiter::Granted(offer.taken(now));
            let waiter = self.waiters.get_mut(first).map(|it| replace(it, granted));
            if let Some(Waiter::Waits(Waits { waker, number, .. })) = waiter {
                self.set_number(self.queue.front(), number.wrapping_add(1));
                if own == Some(first) {
                    deferred.discarded = waker;
                } else {
                    deferred.push(waker);
                }
            }
        }
    }

    /// Takes a token back for the first in the queue.
    pub(super) fn give_back(
        &mut self,
        budget: &Budget,
        token: Taken,
        now: Instant,
        deferred: &mut Deferred,
    ) {
        if self.queue.is_empty() {
            // This fails only if the budget is full again at the end of time.
            let _ = budget.give_back(token, now);
            return;
        }
        if let Some(tat) = budget.without(token, self.tat, now) {
            self.tat = tat;
            self.grant(budget, now, None, deferred);
            self.hasten_first(budget, now, deferred);
        }
    }

    /// Gives up a place, and a token that was granted to it.
    pub(super) fn leave(
        &mut self,
        budget: &Budget,
        index: Index,
        now: Instant,
        deferred: &mut Deferred,
    ) {
        if let Some(Waiter::Waits(_)) = self.waiters.get_mut(index) {
            self.unlink(budget, index, now, deferred);
        }
        if let Some(token) = self.vacate(index, deferred) {
            self.give_back(budget, token, now, deferred);
        }
    }

    /// Takes a waiting handle out of the queue. The next one moves up, and is woken if its alarm is set later than its
    /// turn.
    fn unlink(&mut self, budget: &Budget, index: Index, now: Instant, deferred: &mut Deferred) {
        let (number, ahead) = (self.number(index), self.ahead(index));
        let next = self.queue.after(&mut self.waiters, index);
        if ahead == 0 {
            self.set_number(next, number.wrapping_add(1));
        } else if next.is_some_and(|next| self.ahead(next) > ahead) {
            self.set_number(next, number);
        }
        self.queue.unlink(&mut self.waiters, index);
        self.len -= 1;
        if self.queue.is_empty() {
            budget.end_queue(self.tat);
        }
        if let Some(next) = next {
            self.hasten(budget, next, now, deferred);
        }
    }

    /// Frees the place of a handle no longer in the queue, and returns the token granted to it, if any.
    fn vacate(&mut self, index: Index, deferred: &mut Deferred) -> Option<Taken> {
        let waiter = self.waiters.get_mut(index).map(take);
        self.waiters.release(index);
        match waiter? {
            Waiter::Vacant => None,
            Waiter::Waits(Waits { waker, .. }) => {
                deferred.discarded = waker;
                None
            }
            Waiter::Granted(token) => Some(token),
        }
    }

    /// Wakes the first in the queue if its alarm is set later than its turn.
    fn hasten_first(&mut self, budget: &Budget, now: Instant, deferred: &mut Deferred) {
        if let Some(first) = self.queue.front() {
            self.hasten(budget, first, now, deferred);
        }
    }

    /// Wakes one handle in the queue if its alarm is set later than its turn.
    fn hasten(&mut self, budget: &Budget, index: Index, now: Instant, deferred: &mut Deferred) {
        let due = budget.turn(self.tat, self.ahead(index), now);
        if let Some(Waiter::Waits(waits)) = self.waiters.get_mut(index) {
            if waits.looks_at > due {
                waits.looks_at = due;
                deferred.push(waits.waker.take());
            }
        }
    }

    /// How many handles in the queue are before this one; may be too high.
    fn ahead(&mut self, index: Index) -> u64 {
        let first = self.queue.front().unwrap_or(index);
        self.number(index).wrapping_sub(self.number(first))
    }

    fn set_number(&mut self, index: Option<Index>, number: u64) {
        if let Some(Waiter::Waits(waits)) = index.and_then(|index| self.waiters.get_mut(index)) {
            waits.number = number;
        }
    }

    fn number(&mut self, index: Index) -> u64 {
        match self.waiters.get_mut(index) {
            Some(Waiter::Waits(waits)) => waits.number,
            _ => 0,
        }
    }
}
