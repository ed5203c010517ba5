use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc::sync::Arc;
use core::mem::{replace, take};
use core::task::{Context, Poll, Waker};

use super::gate::{Gate, Place, Step};
use super::slab::{Index, List, Slab};

/// Requests on their way to a worker, and what the worker made of them on its way back.
///
/// `T` is what is sent, `R` what comes back for it, `E` why the worker ended. A message has a slot
/// from [`send`](Queue::send) until its answer is taken or given up; a slot is used again, so nothing
/// allocates once the table has its working size.
#[derive(Debug)]
pub(crate) struct Queue<T, R, E> {
    state: Mutex<State<T, R, E>>,
}

#[derive(Debug)]
struct State<T, R, E> {
    slots: Slab<Slot<T, R>>,
    line: List,
    /// A permit for each message that may be in line.
    room: Gate,
    handles: usize,
    worker: Option<Waker>,
    /// The worker waits for a message, and not for its service.
    worker_is_idle: bool,
    /// What the worker is busy with.
    taken: Option<Index>,
    phase: Phase<E>,
    /// Closed until the worker has ended.
    end: Gate,
}

#[derive(Debug)]
enum Slot<T, R> {
    /// In line; the sender waits with this waker.
    Queued(T, Option<Waker>),
    /// With the worker.
    Taken(Option<Waker>),
    /// The sender went away while the worker had the message.
    Abandoned,
    Answered(R),
}

#[derive(Debug)]
enum Phase<E> {
    Open,
    /// No message is accepted any more; those in line are still served.
    Draining,
    Ended(End<E>),
}

/// Why a queue accepts nothing any more.
#[derive(Debug)]
pub(crate) enum End<E> {
    /// It was shut down, or the executor dropped the worker.
    Closed,
    /// The worker panicked.
    Panicked,
    /// The service failed.
    Failed(Arc<E>),
}

impl<E> Clone for End<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Closed => Self::Closed,
            Self::Panicked => Self::Panicked,
            Self::Failed(error) => Self::Failed(Arc::clone(error)),
        }
    }
}

/// What a worker finds when it looks for work.
pub(crate) enum Work {
    /// There is a message in line.
    Waiting,
    /// There is none. The worker will be woken.
    None,
    /// There is none, and there will be none.
    Ended,
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl<T, R, E> State<T, R, E> {
    fn end(&self) -> Option<End<E>> {
        match &self.phase {
            Phase::Open => None,
            Phase::Draining => Some(End::Closed),
            Phase::Ended(end) => Some(end.clone()),
        }
    }

    /// There is no message, and there will be none.
    fn is_done(&self) -> bool {
        self.line.is_empty() && (self.handles == 0 || !matches!(self.phase, Phase::Open))
    }

    /// Takes a slot away, out of the line if it is there.
    fn remove(&mut self, index: Index) -> Slot<T, R> {
        if let Slot::Queued(..) = self.slots.get_mut(index) {
            self.line.unlink(&mut self.slots, index);
        }
        self.slots.remove(index)
    }
}

/// The senders' side.
impl<T, R, E> Queue<T, R, E> {
    /// A queue of `bound` messages with one handle.
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            state: Mutex::new(State {
                slots: Slab::new(),
                line: List::new(),
                room: Gate::new(bound),
                handles: 1,
                worker: None,
                worker_is_idle: false,
                taken: None,
                phase: Phase::Open,
                end: Gate::new(0),
            }),
        }
    }

    // What runs under the lock is this crate's code alone and does not panic, so a lock that is
    // poisoned all the same guards a state that is whole.
    fn lock(&self) -> MutexGuard<'_, State<T, R, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add_handle(&self) {
        self.lock().handles += 1;
    }

    pub(crate) fn drop_handle(&self) {
        let mut state = self.lock();
        state.handles -= 1;
        let worker = if state.handles == 0 {
            state.worker.take()
        } else {
            None
        };
        drop(state);
        wake(worker);
    }

    /// Why nothing is accepted any more, if that is so.
    pub(crate) fn end(&self) -> Option<End<E>> {
        self.lock().end()
    }

    /// Takes room for one message.
    pub(crate) fn poll_reserve(
        &self,
        place: &mut Place,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End<E>>> {
        let mut waker = None;
        loop {
            let mut state = self.lock();
            if let Some(end) = state.end() {
                return Poll::Ready(Err(end));
            }
            let step = state.room.poll(place, cx, &mut waker);
            drop(state);
            match step {
                Step::Ready => return Poll::Ready(Ok(())),
                Step::Pending => return Poll::Pending,
                Step::NeedsWaker => waker = Some(cx.waker().clone()),
            }
        }
    }

    /// Gives back room, or the place in the line for it.
    pub(crate) fn unreserve(&self, place: &mut Place) {
        if !matches!(place, Place::Outside) {
            let farewell = self.lock().room.leave(place);
            farewell.finish();
        }
    }

    /// Puts a message in line, in the room that was [reserved](Self::poll_reserve) for it.
    pub(crate) fn send(&self, message: T) -> Result<Index, (T, End<E>)> {
        let mut state = self.lock();
        if let Some(end) = state.end() {
            return Err((message, end));
        }
        let state_ref = &mut *state;
        let index = state_ref.slots.insert(Slot::Queued(message, None));
        state_ref.line.push_back(&mut state_ref.slots, index);
        let worker = if take(&mut state_ref.worker_is_idle) {
            state_ref.worker.take()
        } else {
            None
        };
        drop(state);
        wake(worker);
        Ok(index)
    }

    /// Waits for the answer. Once it is ready the slot is gone.
    pub(crate) fn poll_answer(
        &self,
        index: Index,
        cx: &mut Context<'_>,
    ) -> Poll<Result<R, End<E>>> {
        let mut fresh: Option<Waker> = None;
        loop {
            let mut state = self.lock();
            let end = match &state.phase {
                Phase::Ended(end) => Some(end.clone()),
                Phase::Open | Phase::Draining => None,
            };
            match state.slots.get_mut(index) {
                Slot::Queued(_, waker) | Slot::Taken(waker) if end.is_none() => match waker {
                    Some(waker) if waker.will_wake(cx.waker()) => return Poll::Pending,
                    waker => match fresh.take() {
                        Some(new) => {
                            let old = waker.replace(new);
                            drop(state);
                            drop(old);
                            return Poll::Pending;
                        }
                        None => {
                            drop(state);
                            fresh = Some(cx.waker().clone());
                        }
                    },
                },
                _ => {
                    let slot = state.remove(index);
                    drop(state);
                    return Poll::Ready(match slot {
                        Slot::Answered(answer) => Ok(answer),
                        // The worker has ended, or all that is left of this is a slot.
                        _ => Err(end.unwrap_or(End::Closed)),
                    });
                }
            }
        }
    }

    /// Gives up a message wherever it is, or its answer.
    pub(crate) fn abandon(&self, index: Index) {
        let mut state = self.lock();
        let ended = matches!(state.phase, Phase::Ended(_));
        let (mut next, mut worker) = (None, None);
        let given_up = match state.slots.get_mut(index) {
            slot @ Slot::Taken(_) if !ended => replace(slot, Slot::Abandoned),
            Slot::Queued(..) => {
                next = state.room.release();
                let message = state.remove(index);
                // The worker may have waited for nothing but this.
                if state.is_done() {
                    worker = state.worker.take();
                }
                message
            }
            _ => state.remove(index),
        };
        drop(state);
        wake(next);
        wake(worker);
        drop(given_up);
    }

    /// Accepts no more messages; those in line are still served.
    pub(crate) fn shut_down(&self) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Open) {
            return;
        }
        state.phase = Phase::Draining;
        let worker = state.worker.take();
        drop(state);
        wake(worker);
        self.wake_all(|state| &mut state.room);
    }

    /// Waits until the worker has ended.
    pub(crate) fn poll_end(&self, place: &mut Place, cx: &mut Context<'_>) -> Poll<()> {
        let mut waker = None;
        loop {
            let mut state = self.lock();
            if let Phase::Ended(_) = state.phase {
                return Poll::Ready(());
            }
            let step = state.end.poll(place, cx, &mut waker);
            drop(state);
            match step {
                Step::Ready => return Poll::Ready(()),
                Step::Pending => return Poll::Pending,
                Step::NeedsWaker => waker = Some(cx.waker().clone()),
            }
        }
    }

    /// Gives up waiting for the end.
    pub(crate) fn leave_end(&self, place: &mut Place) {
        let farewell = self.lock().end.leave(place);
        farewell.finish();
    }

    /// Wakes all who wait at a gate, one at a time and outside the lock.
    fn wake_all(&self, gate: impl Fn(&mut State<T, R, E>) -> &mut Gate) {
        loop {
            let waker = gate(&mut self.lock()).release();
            match waker {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }
}

/// The worker's side.
impl<T, R, E> Queue<T, R, E> {
    /// Looks whether there is work. The worker is woken when that changes.
    pub(crate) fn poll_work(&self, cx: &mut Context<'_>) -> Work {
        let mut fresh: Option<Waker> = None;
        loop {
            let mut state = self.lock();
            let is_empty = state.line.is_empty();
            if state.is_done() {
                return Work::Ended;
            }
            state.worker_is_idle = is_empty;
            if !matches!(&state.worker, Some(worker) if worker.will_wake(cx.waker())) {
                let Some(new) = fresh.take() else {
                    drop(state);
                    fresh = Some(cx.waker().clone());
                    continue;
                };
                let old = state.worker.replace(new);
                drop(state);
                drop(old);
            }
            return if is_empty { Work::None } else { Work::Waiting };
        }
    }

    /// Takes the first message out of the line, and with that makes room for another.
    pub(crate) fn take(&self) -> Option<T> {
        let mut state = self.lock();
        let state_ref = &mut *state;
        let index = state_ref.line.pop_front(&mut state_ref.slots)?;
        let slot = state_ref.slots.get_mut(index);
        let Slot::Queued(message, waker) = replace(slot, Slot::Abandoned) else {
            return None;
        };
        *slot = Slot::Taken(waker);
        state_ref.taken = Some(index);
        let next = state_ref.room.release();
        drop(state);
        wake(next);
        Some(message)
    }

    /// Answers the message that was [taken](Self::take).
    pub(crate) fn answer(&self, answer: R) {
        let mut state = self.lock();
        let Some(index) = state.taken.take() else {
            return;
        };
        let (waker, unwanted) = match replace(state.slots.get_mut(index), Slot::Abandoned) {
            Slot::Taken(waker) => {
                *state.slots.get_mut(index) = Slot::Answered(answer);
                (waker, None)
            }
            _ => (None, Some((state.slots.remove(index), answer))),
        };
        drop(state);
        drop(unwanted);
        wake(waker);
    }

    /// Ends the queue: whatever is not answered is dropped, and all who wait learn why.
    pub(crate) fn close(&self, end: End<E>) {
        let mut state = self.lock();
        if let Phase::Ended(_) = state.phase {
            return;
        }
        state.phase = Phase::Ended(end);
        let mut taken = None;
        if let Some(index) = state.taken.take() {
            match state.slots.get_mut(index) {
                Slot::Taken(waker) => taken = waker.take(),
                _ => drop(state.slots.remove(index)),
            }
        }
        let worker = state.worker.take();
        drop(state);
        drop(worker);
        let _rest = Rest(self);
        wake(taken);
        self.refuse_all();
    }

    /// Drops all messages, and wakes all who wait.
    fn refuse_all(&self) {
        loop {
            let mut state = self.lock();
            let state_ref = &mut *state;
            let Some(index) = state_ref.line.pop_front(&mut state_ref.slots) else {
                break;
            };
            // The slot stays for its sender, who takes the reason from it.
            let message = replace(state_ref.slots.get_mut(index), Slot::Taken(None));
            drop(state);
            if let Slot::Queued(message, waker) = message {
                wake(waker);
                drop(message);
            }
        }
        self.wake_all(|state| &mut state.room);
        self.wake_all(|state| &mut state.end);
    }
}

/// Goes on with refusing where a message panicked when it was dropped.
struct Rest<'a, T, R, E>(&'a Queue<T, R, E>);

impl<T, R, E> Drop for Rest<'_, T, R, E> {
    fn drop(&mut self) {
        self.0.refuse_all();
    }
}
