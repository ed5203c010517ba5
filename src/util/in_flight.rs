use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::forget;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use crate::sync::wakes::{Node, Wakes};

/// Futures in flight together. Only those that were woken are polled.
///
/// Each future has a slot: a box, and a waker that notes which slot to poll. Slots are made as needed and reused, so
/// nothing allocates once there are enough. A waker that outlives its future causes at most one needless poll of the
/// slot's next future.
pub(super) struct InFlight<F: Future> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    // The slots to be polled.
    woken: VecDeque<usize>,
    // The slots in use, in the order in which outputs are returned; `None`: as they arrive.
    order: Option<VecDeque<usize>>,
    len: usize,
    wakes: Wakes<usize>,
}

struct Slot<F: Future> {
    future: Pin<Box<Option<F>>>,
    // Complete, but not yet its turn.
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

    /// Returns outputs as they arrive.
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

    /// The number of futures, including those whose output has not been returned yet.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a future, which is polled by the following [`next`](Self::next).
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
                // A waker of the previous future has put it on the list already.
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

    /// Registers `task` to be woken from now on, and collects the slots that were woken.
    pub(super) fn listen(&mut self, task: &Waker) {
        while !self.wakes.register(task) {
            let mut woken = self.wakes.collect();
            self.woken.extend(woken.drain(..));
            self.wakes.give_back(woken);
        }
    }

    /// Returns the next output. Adds its polls to `polls`, up to `most`.
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
            // Before the poll: a later wake-up puts the future on the list again, and the poll sees what led to
            // earlier ones.
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

    /// Takes an output, and frees its slot.
    fn take(&mut self, index: usize) -> Option<F::Output> {
        let output = self.slots[index].output.take()?;
        self.free.push(index);
        self.len -= 1;
        Some(output)
    }
}

/// While a future is polled: if it panics, it is removed. To be forgotten after the poll.
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
