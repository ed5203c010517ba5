use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::sync::PoisonError;

use crate::sync::primitives::atomic::{AtomicBool, Ordering::AcqRel};
use crate::sync::primitives::{Mutex, MutexGuard};

/// Futures under way together, of which those are polled that were woken.
///
/// A future has a slot: a box, and a waker that notes which slot to poll. Slots are made when they are
/// needed and used again, so that nothing allocates once there are enough. A waker that outlives its future
/// gets the next one in the slot polled once too often, or nothing at all.
pub(super) struct InFlight<F: Future> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    // Taken out of the inbox, and to be polled.
    woken: VecDeque<usize>,
    // The slots in use, in the order in which outputs go out; `None`: as they come.
    order: Option<VecDeque<usize>>,
    len: usize,
    inbox: Arc<Inbox>,
}

struct Slot<F: Future> {
    future: Pin<Box<Option<F>>>,
    // There, and not yet its turn.
    output: Option<F::Output>,
    note: Arc<Note>,
    waker: Waker,
}

/// Where wakers leave their notes.
#[derive(Default)]
struct Inbox(Mutex<Mail>);

#[derive(Default)]
struct Mail {
    woken: Vec<usize>,
    // Whom to wake at the next note.
    task: Option<Waker>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        // Nothing under the lock panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot's waker.
struct Note {
    slot: usize,
    // In the inbox or among the `woken`.
    sent: AtomicBool,
    inbox: Arc<Inbox>,
}

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.sent.swap(true, AcqRel) {
            return;
        }
        let task = {
            let mut mail = self.inbox.lock();
            mail.woken.push(self.slot);
            mail.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F: Future> InFlight<F> {
    pub(super) fn new(ordered: bool) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            woken: VecDeque::new(),
            order: ordered.then(VecDeque::new),
            len: 0,
            inbox: Arc::default(),
        }
    }

    /// Lets outputs go out as they come.
    pub(super) fn unordered(&mut self) {
        for slot in self.order.take().into_iter().flatten() {
            if self.slots[slot].output.is_some() {
                self.woken.push_back(slot);
            }
        }
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.order.is_some()
    }

    /// How many there are, those included whose output has not gone out.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a future, to be polled by the next [`next`](Self::next).
    pub(super) fn push(&mut self, future: F) {
        let index = self.free.pop().unwrap_or(self.slots.len());
        if index == self.slots.len() {
            let note = Arc::new(Note {
                slot: index,
                sent: AtomicBool::new(true),
                inbox: self.inbox.clone(),
            });
            self.slots.push(Slot {
                future: Box::pin(Some(future)),
                output: None,
                waker: Waker::from(note.clone()),
                note,
            });
            // A waker is not to allocate: there is room for a note from each.
            let mail = &mut self.inbox.lock().woken;
            mail.reserve(self.slots.len() - mail.len());
        } else {
            let slot = &mut self.slots[index];
            slot.future.set(Some(future));
            if slot.note.sent.swap(true, AcqRel) {
                // A waker of the last future's has sent a note already.
                return self.count(index);
            }
        }
        self.woken.push_back(index);
        self.count(index);
    }

    fn count(&mut self, index: usize) {
        self.len += 1;
        if let Some(order) = &mut self.order {
            order.push_back(index);
        }
    }

    /// Wakes `task` from now on, and looks who was woken.
    pub(super) fn listen(&mut self, task: &Waker) {
        let mut old = None;
        let mut mail = self.inbox.lock();
        let known = mail.task.as_ref().is_some_and(|old| old.will_wake(task));
        if !known {
            // A waker is neither cloned nor dropped under the lock.
            drop(mail);
            let task = task.clone();
            mail = self.inbox.lock();
            old = mail.task.replace(task);
        }
        self.woken.extend(mail.woken.drain(..));
        drop(mail);
        drop(old);
    }

    /// The next output whose turn it is. Adds its polls to `polls`, up to `most`.
    pub(super) fn next(&mut self, polls: &mut u32, most: u32) -> Option<F::Output> {
        loop {
            if let Some(output) = self.take_first() {
                return Some(output);
            }
            if *polls >= most {
                return None;
            }
            let index = self.woken.pop_front()?;
            let slot = &mut self.slots[index];
            // Before the poll: what happens from here on is worth another note. What has happened
            // before is seen, by the ordering.
            slot.note.sent.swap(false, AcqRel);
            if let Some(future) = slot.future.as_mut().as_pin_mut() {
                *polls += 1;
                if let Poll::Ready(output) = future.poll(&mut Context::from_waker(&slot.waker)) {
                    slot.future.set(None);
                    slot.output = Some(output);
                }
            }
            if self.order.is_none() {
                if let Some(output) = self.take(index) {
                    return Some(output);
                }
            }
        }
    }

    fn take_first(&mut self) -> Option<F::Output> {
        let first = *self.order.as_ref()?.front()?;
        let output = self.take(first)?;
        self.order.as_mut()?.pop_front();
        Some(output)
    }

    /// Takes an output out, which frees its slot.
    fn take(&mut self, index: usize) -> Option<F::Output> {
        let output = self.slots[index].output.take()?;
        self.free.push(index);
        self.len -= 1;
        Some(output)
    }
}

impl<F: Future> Drop for InFlight<F> {
    fn drop(&mut self) {
        // Wakers that are left somewhere have nobody to wake, and do not keep the task.
        let task = self.inbox.lock().task.take();
        drop(task);
    }
}
