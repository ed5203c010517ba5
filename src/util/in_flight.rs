use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::forget;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use crate::sync::wakes::{Node, Wakes};

/// Futures under way together, of which those are polled that were woken.
///
/// A future has a slot: a box, and a waker that notes which slot to poll. Slots are made when they are
/// needed and used again, so that nothing allocates once there are enough. A waker that outlives its future
/// gets the next one in the slot polled once too often, or nothing at all.
pub(super) struct InFlight<F: Future> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    // To be polled.
    woken: VecDeque<usize>,
    // The slots in use, in the order in which outputs go out; `None`: as they come.
    order: Option<VecDeque<usize>>,
    len: usize,
    wakes: Wakes<usize>,
}

struct Slot<F: Future> {
    future: Pin<Box<Option<F>>>,
    // There, and not yet its turn.
    output: Option<F::Output>,
    node: Arc<Node<usize>>,
    waker: Waker,
}

impl<F: Future> InFlight<F> {
    pub(super) fn new(ordered: bool) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            woken: VecDeque::new(),
            order: ordered.then(VecDeque::new),
            len: 0,
            wakes: Wakes::new(),
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
            let node = self.wakes.node(index);
            node.queue();
            self.slots.push(Slot {
                future: Box::pin(Some(future)),
                output: None,
                waker: Waker::from(node.clone()),
                node,
            });
        } else {
            let slot = &mut self.slots[index];
            slot.future.set(Some(future));
            if !slot.node.queue() {
                // A waker of the last future's has put it on the list already.
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
        while !self.wakes.register(task) {
            let mut woken = self.wakes.collect();
            self.woken.extend(woken.drain(..));
            self.wakes.give_back(woken);
        }
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
            let guard = Polling { all: self, index };
            let slot = &mut guard.all.slots[index];
            // Before the poll: what happens from here on puts it on the list again. What has happened
            // before is seen, by the ordering.
            slot.node.unqueue();
            if let Some(future) = slot.future.as_mut().as_pin_mut() {
                *polls += 1;
                if let Poll::Ready(output) = future.poll(&mut Context::from_waker(&slot.waker)) {
                    slot.future.set(None);
                    slot.output = Some(output);
                }
            }
            forget(guard);
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

/// While a future is polled: if it panics, it is no longer under way. To be forgotten when it has been polled.
struct Polling<'a, F: Future> {
    all: &'a mut InFlight<F>,
    index: usize,
}

impl<F: Future> Drop for Polling<'_, F> {
    #[cold]
    fn drop(&mut self) {
        let Self { all, index } = self;
        if let Some(order) = &mut all.order {
            order.retain(|slot| slot != index);
        }
        all.free.push(*index);
        all.len -= 1;
        all.slots[*index].future.set(None);
    }
}
