use core::mem::{swap, take};
use core::task::{Context, Poll, Waker};

use super::slab::{Index, List, Nodes, Slab};
use super::{is_attempt, wake};

/// Permits, and the line of those who wait for one: first come, first served.
///
/// The state of a semaphore without its lock. It never wakes or drops a waker itself: what is to be
/// woken or dropped is handed out, for the caller to see to once it has let go of the lock.
#[expect(missing_debug_implementations, reason = "nobody outside sees one")]
pub struct Gate<N: ?Sized> {
    permits: usize,
    line: List,
    // Of each who has a place: the waker while in line, and nothing once a permit is set aside there.
    waiters: Slab<N>,
}

/// Where somebody stands at a [`Gate`].
#[derive(Debug, Default)]
pub enum Place {
    /// Nowhere.
    #[default]
    Outside,
    /// In line.
    InLine(Index),
    /// Has a permit.
    Inside,
}

/// The line of those who wait is full, and there was no place for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl<N: Nodes> Gate<N> {
    pub(crate) const fn new(permits: usize, waiters: Slab<N>) -> Self {
        Self {
            permits,
            line: List::new(),
            waiters,
        }
    }
}

impl<N: Nodes<Value = Option<Waker>> + ?Sized> Gate<N> {
    pub(crate) fn permits(&self) -> usize {
        self.permits
    }

    /// Takes all permits that nobody has.
    pub(crate) fn take_permits(&mut self) -> usize {
        take(&mut self.permits)
    }

    /// Whether nobody is in line.
    #[cfg(feature = "std")]
    pub(crate) fn nobody_waits(&self) -> bool {
        self.line.is_empty()
    }

    /// Takes a permit, or joins the line. An [attempt](super::attempt) joins no line.
    ///
    /// `None`: to be polled again with a clone of the task's waker, see [`with_waker`](super::with_waker).
    #[inline]
    pub(crate) fn poll(
        &mut self,
        place: &mut Place,
        cx: &Context<'_>,
        waker: &mut Option<Waker>,
    ) -> Option<Poll<Result<(), Full>>> {
        match *place {
            Place::Inside => {}
            Place::InLine(index) => match self.waiters.get_mut(index) {
                Some(Some(old)) if old.will_wake(cx.waker()) || is_attempt(cx) => {
                    return Some(Poll::Pending);
                }
                Some(Some(old)) => {
                    swap(old, waker.as_mut()?);
                    return Some(Poll::Pending);
                }
                _ => {
                    self.waiters.release(index);
                    *place = Place::Inside;
                }
            },
            // A permit that is free while somebody waits does not exist: it would have been granted.
            Place::Outside if self.permits > 0 => {
                self.permits -= 1;
                *place = Place::Inside;
            }
            Place::Outside if is_attempt(cx) => return Some(Poll::Pending),
            Place::Outside => {
                // Not taken before there is a place for it: else it is the caller's to drop.
                waker.as_ref()?;
                let Some((index, place_in_line)) = self.waiters.claim() else {
                    return Some(Poll::Ready(Err(Full)));
                };
                swap(place_in_line, waker);
                self.line.push_back(&mut self.waiters, index);
                *place = Place::InLine(index);
                return Some(Poll::Pending);
            }
        }
        Some(Poll::Ready(Ok(())))
    }

    /// Gives a permit to the first in line, who is to be woken, or back.
    #[must_use = "the waker is to be woken outside the lock"]
    pub(crate) fn release(&mut self) -> Option<Waker> {
        match self.line.pop_front(&mut self.waiters) {
            Some(index) => self.waiters.get_mut(index)?.take(),
            None => {
                // A gate that is opened for all has no count to keep.
                self.permits = self.permits.saturating_add(1);
                None
            }
        }
    }

    /// Goes away from wherever `place` is, and gives back what was had there.
    pub(crate) fn leave(&mut self, place: &mut Place) -> Farewell {
        match take(place) {
            Place::Outside => return Farewell::Wake(None),
            Place::Inside => {}
            Place::InLine(index) => {
                let waiting = self.waiters.get_mut(index).and_then(Option::take);
                if waiting.is_some() {
                    self.line.unlink(&mut self.waiters, index);
                }
                self.waiters.release(index);
                if let Some(waker) = waiting {
                    return Farewell::Discard(waker);
                }
            }
        }
        Farewell::Wake(self.release())
    }
}

/// What [`Gate::leave`] leaves to be done outside the lock.
#[must_use = "the waker is to be woken outside the lock"]
pub(crate) enum Farewell {
    Wake(Option<Waker>),
    Discard(Waker),
}

impl Farewell {
    /// Wakes who is next. Not to be called under a lock.
    pub(crate) fn finish(self) {
        match self {
            Self::Wake(waker) => wake(waker),
            Self::Discard(waker) => drop(waker),
        }
    }
}
