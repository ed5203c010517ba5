use core::mem::{replace, take};
use core::task::{Context, Waker};

use super::is_attempt;
use super::slab::{Index, List, Slab};

/// Permits, and the line of those who wait for one: first come, first served.
///
/// The state of a semaphore without its lock. It never wakes or drops a waker itself: what is to be
/// woken or dropped is handed out, for the caller to see to once it has let go of the lock.
#[derive(Debug)]
pub(crate) struct Gate {
    permits: usize,
    waiters: Slab<Waiter>,
    line: List,
}

#[derive(Debug)]
enum Waiter {
    Waiting(Waker),
    /// A permit is set aside for whoever has the place.
    Granted,
}

/// Where somebody stands at a [`Gate`].
#[derive(Debug, Default)]
pub(crate) enum Place {
    /// Nowhere.
    #[default]
    Outside,
    /// In line.
    InLine(Index),
    /// Has a permit.
    Inside,
}

/// What became of a [`Gate::poll`].
pub(crate) enum Step {
    Ready,
    Pending,
    /// Poll again with a clone of the task's waker, made outside the lock.
    NeedsWaker,
}

impl Gate {
    pub(crate) const fn new(permits: usize) -> Self {
        Self {
            permits,
            waiters: Slab::new(),
            line: List::new(),
        }
    }

    pub(crate) fn permits(&self) -> usize {
        self.permits
    }

    /// Takes a permit, or joins the line. An [attempt](super::attempt) joins no line.
    ///
    /// `waker` is taken if it is needed; what it holds afterwards is to be dropped outside the lock.
    pub(crate) fn poll(
        &mut self,
        place: &mut Place,
        cx: &Context<'_>,
        waker: &mut Option<Waker>,
    ) -> Step {
        match *place {
            Place::Inside => Step::Ready,
            Place::InLine(index) => match self.waiters.get_mut(index) {
                Waiter::Granted => {
                    self.waiters.remove(index);
                    *place = Place::Inside;
                    Step::Ready
                }
                Waiter::Waiting(old) if old.will_wake(cx.waker()) || is_attempt(cx) => {
                    Step::Pending
                }
                Waiter::Waiting(old) => match waker {
                    Some(new) => {
                        core::mem::swap(old, new);
                        Step::Pending
                    }
                    None => Step::NeedsWaker,
                },
            },
            // A permit that is free while somebody waits does not exist: it would have been granted.
            Place::Outside if self.permits > 0 => {
                self.permits -= 1;
                *place = Place::Inside;
                Step::Ready
            }
            Place::Outside if is_attempt(cx) => Step::Pending,
            Place::Outside => match waker.take() {
                Some(waker) => {
                    let index = self.waiters.insert(Waiter::Waiting(waker));
                    self.line.push_back(&mut self.waiters, index);
                    *place = Place::InLine(index);
                    Step::Pending
                }
                None => Step::NeedsWaker,
            },
        }
    }

    /// Gives a permit to the first in line, who is to be woken, or back.
    #[must_use = "the waker is to be woken outside the lock"]
    pub(crate) fn release(&mut self) -> Option<Waker> {
        match self.line.pop_front(&mut self.waiters) {
            Some(index) => match replace(self.waiters.get_mut(index), Waiter::Granted) {
                Waiter::Waiting(waker) => Some(waker),
                Waiter::Granted => None,
            },
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
            Place::Outside => Farewell::default(),
            Place::Inside => Farewell {
                wake: self.release(),
                discard: None,
            },
            Place::InLine(index) => {
                if let Waiter::Waiting(_) = self.waiters.get_mut(index) {
                    self.line.unlink(&mut self.waiters, index);
                }
                match self.waiters.remove(index) {
                    Waiter::Waiting(waker) => Farewell {
                        wake: None,
                        discard: Some(waker),
                    },
                    Waiter::Granted => Farewell {
                        wake: self.release(),
                        discard: None,
                    },
                }
            }
        }
    }
}

/// What [`Gate::leave`] leaves to be done outside the lock.
#[derive(Default)]
#[must_use = "the waker is to be woken outside the lock"]
pub(crate) struct Farewell {
    wake: Option<Waker>,
    discard: Option<Waker>,
}

impl Farewell {
    /// Wakes who is next. Not to be called under a lock.
    pub(crate) fn finish(self) {
        drop(self.discard);
        if let Some(waker) = self.wake {
            waker.wake();
        }
    }
}
