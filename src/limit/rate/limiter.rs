use core::cell::RefCell;
use core::fmt;
use core::task::Context;

use super::budget::{Budget, Rate};
use super::turn_queue::{Ask, Deferred, TokenState, Turn, TurnQueue, Waiter};
use crate::Instant;
#[cfg(feature = "critical-section")]
use crate::sync::lock::CriticalSection;
use crate::sync::lock::{Lock, Sharing, SingleThread};
#[cfg(feature = "std")]
use crate::sync::primitives::Mutex;
use crate::sync::slab::{Node, Nodes, Slab};
use crate::sync::with_waker;

/// A budget shared by rate limits, with the queue of the handles that wait for it.
///
/// While no handle waits it is one word, changed without a lock. The table of waiters grows to the largest number that
/// ever waited at once; nothing else allocates. Without the feature `std` there is no queue: see
/// [`limit::rate`](crate::limit::rate#without-an-allocator).
///
/// ```
/// use campanile::limit::{Rate, RateLimit, rate::Limiter};
/// use core::time::Duration;
///
/// static BUDGET: Limiter = Limiter::new(Rate::new(100, Duration::from_secs(1)));
/// # #[cfg(feature = "smol")]
/// let service = RateLimit::with_limiter((), &BUDGET, campanile::smol::Smol);
/// ```
pub struct Limiter {
    budget: Budget,
    #[cfg(feature = "std")]
    queue: Mutex<TurnQueue<alloc::vec::Vec<Node<Waiter>>>>,
}

impl Limiter {
    /// A full budget.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self {
            budget: Budget::new(rate),
            #[cfg(feature = "std")]
            queue: Mutex::new(TurnQueue::new(Slab::new())),
        }
    }
}

impl AnyLimiter for Limiter {
    #[cfg(feature = "std")]
    type Nodes = alloc::vec::Vec<Node<Waiter>>;
    #[cfg(not(feature = "std"))]
    type Nodes = [Node<Waiter>];

    #[inline]
    fn budget(&self) -> &Budget {
        &self.budget
    }

    #[cfg(feature = "std")]
    fn with_queue<R>(&self, f: impl FnOnce(&mut TurnQueue<Self::Nodes>) -> R) -> Option<R> {
        Some(self.queue.with(f))
    }

    #[cfg(not(feature = "std"))]
    fn with_queue<R>(&self, _: impl FnOnce(&mut TurnQueue<Self::Nodes>) -> R) -> Option<R> {
        None
    }
}

/// A [`Limiter`] without an allocator, shared by reference.
///
/// A handle that finds no token waits in the queue, first come, first served. There is room for `N` waiters;
/// [`limit::rate`](crate::limit::rate#without-an-allocator) says what happens to one more.
pub struct FixedLimiter<L: Sharing, const N: usize> {
    budget: Budget,
    queue: L::Lock<TurnQueue<[Node<Waiter>; N]>>,
}

/// A [`FixedLimiter`] for a `static`, shared by tasks and interrupts.
#[cfg(feature = "critical-section")]
pub type StaticLimiter<const N: usize> = FixedLimiter<CriticalSection, N>;

/// A [`FixedLimiter`] on one thread.
pub type LocalLimiter<const N: usize> = FixedLimiter<SingleThread, N>;

#[cfg(feature = "critical-section")]
impl<const N: usize> FixedLimiter<CriticalSection, N> {
    /// A full budget.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        let queue = RefCell::new(TurnQueue::new(Slab::inline()));
        Self {
            budget: Budget::new(rate),
            queue: critical_section::Mutex::new(queue),
        }
    }
}

impl<const N: usize> FixedLimiter<SingleThread, N> {
    /// A full budget.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self {
            budget: Budget::new(rate),
            queue: RefCell::new(TurnQueue::new(Slab::inline())),
        }
    }
}

impl<L: Sharing, const N: usize> AnyLimiter for FixedLimiter<L, N> {
    // Without the array length, so that lines of all lengths share their code.
    type Nodes = [Node<Waiter>];

    #[inline]
    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn with_queue<R>(&self, f: impl FnOnce(&mut TurnQueue<Self::Nodes>) -> R) -> Option<R> {
        Some(self.queue.with(|queue| f(queue)))
    }
}

impl Limiter {
    /// The rate at which the budget comes back.
    pub const fn rate(&self) -> Rate {
        self.budget.rate()
    }
}

impl<L: Sharing, const N: usize> FixedLimiter<L, N> {
    /// The rate at which the budget comes back.
    pub const fn rate(&self) -> Rate {
        self.budget.rate()
    }
}

impl Sealed for Limiter {}

impl<L: Sharing, const N: usize> Sealed for FixedLimiter<L, N> {}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("rate", &self.rate())
            .finish_non_exhaustive()
    }
}

impl<L: Sharing, const N: usize> fmt::Debug for FixedLimiter<L, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FixedLimiter")
            .field("rate", &self.rate())
            .finish_non_exhaustive()
    }
}

/// A [`Limiter`], or without an allocator a [`StaticLimiter`] or a [`LocalLimiter`].
pub trait AnyLimiter: Sealed + Sized {
    /// Where the waiters are stored.
    #[doc(hidden)]
    type Nodes: Nodes<Value = Waiter> + ?Sized;

    /// The budget.
    #[doc(hidden)]
    fn budget(&self) -> &Budget;

    /// Lends the queue, if there is one.
    #[doc(hidden)]
    fn with_queue<R>(&self, f: impl FnOnce(&mut TurnQueue<Self::Nodes>) -> R) -> Option<R>;
}

/// Keeps [`AnyLimiter`] from being implemented elsewhere.
pub trait Sealed {}

/// See [`TurnQueue::poll`].
pub(super) fn poll<L: AnyLimiter>(
    limiter: &L,
    ask: Ask,
    place: &mut TokenState,
    cx: &Context<'_>,
) -> Turn {
    let budget = limiter.budget();
    let mut next = Instant::MAX;
    // While the queue is empty, a handle that does not join it needs no lock.
    if !matches!(place, TokenState::Queued(_)) {
        match poll_without_line(budget, ask, place) {
            Some(Turn::At(due)) if ask.waits => next = due,
            Some(turn) => return turn,
            None => {}
        }
    }
    let mut deferred = Deferred::new();
    with_waker(cx, |waker| {
        let polled =
            limiter.with_queue(|queue| queue.poll(budget, ask, place, cx, waker, &mut deferred));
        polled.unwrap_or_else(|| {
            *place = TokenState::Alone;
            Some(Turn::At(next))
        })
    })
}

/// Takes a token, or returns when the next one is due; `None` if handles are in the queue.
fn poll_without_line(budget: &Budget, ask: Ask, place: &mut TokenState) -> Option<Turn> {
    let tat = match budget.take_any(ask.now) {
        Ok(token) => {
            *place = TokenState::Held(token);
            return Some(Turn::Settled);
        }
        Err(tat) if Budget::is_queued(tat) => return None,
        Err(tat) => tat,
    };
    let due = budget.turn(tat, 0, ask.now);
    if ask.waits && due > ask.until {
        *place = TokenState::refused(due, ask.now);
        return Some(Turn::Settled);
    }
    Some(Turn::At(due))
}

/// Leaves `place`, and gives back what the handle had there.
pub(super) fn leave<L: AnyLimiter>(limiter: &L, place: &mut TokenState, now: Instant) {
    let budget = limiter.budget();
    let mut deferred = Deferred::new();
    match core::mem::take(place) {
        TokenState::Queued(index) => {
            limiter.with_queue(|queue| queue.leave(budget, index, now, &mut deferred));
        }
        TokenState::Held(token) if budget.give_back(token, now).is_err() => {
            limiter.with_queue(|queue| queue.give_back(budget, token, now, &mut deferred));
        }
        _ => {}
    }
}
