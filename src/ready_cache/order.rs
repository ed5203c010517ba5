//! The order of the endpoints, by what is to be done with them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Waker;

use crate::sync::wakes::{Node, Wakes};

/// Endpoints: first the ready ones, then those due to be polled, then those waiting to be woken.
///
/// An endpoint changes its part by a swap with the one at the edge, which costs the same however large a service is.
pub(super) struct Order<K, S> {
    pub(super) endpoints: Vec<Box<Endpoint<K, S>>>,
    /// The end of the ready endpoints.
    pub(super) ready: usize,
    /// The end of the due endpoints.
    pub(super) due: usize,
    /// How many due endpoints, from the first on, have nothing left to drive: they are polled when a caller waits.
    driven: usize,
    pub(super) last: Last,
    // Where each endpoint is. An endpoint keeps its slot.
    slots: Vec<Slot>,
    vacant: Vec<usize>,
}

/// A ready endpoint that is remembered, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Nobody,
    /// It was called last. It counts as if it had been swapped with the last ready endpoint and made due. Most likely
    /// it is ready when polled, and no swap is needed.
    Called(usize),
    /// It was chosen to be called next.
    Chosen(usize),
}

/// The place of a slot without an endpoint.
const NOWHERE: usize = usize::MAX;

#[derive(Clone, Copy)]
struct Slot {
    // How many endpoints have left the slot. It tells their wakers from those of the present endpoint.
    generation: u32,
    /// Where the endpoint is, or `NOWHERE`.
    at: usize,
}

/// Identifies one endpoint wherever it is, and no later one in the same slot.
#[derive(Clone, Copy)]
pub(super) struct Ticket {
    pub(super) slot: usize,
    pub(super) generation: u32,
}

pub(super) struct Endpoint<K, S> {
    pub(super) service: S,
    /// `node` as a waker.
    pub(super) waker: Waker,
    pub(super) node: Arc<Node<Ticket>>,
    pub(super) key: K,
    slot: usize,
    /// Whether it was ever ready.
    pub(super) has_worked: bool,
    /// The slot of the endpoint with the same key, already ready once, that this new one is to replace.
    pub(super) older: Option<usize>,
    /// The slot of the endpoint that is to replace this one.
    pub(super) newer: Option<usize>,
}

impl<K, S> Order<K, S> {
    pub(super) const fn new() -> Self {
        Self {
            endpoints: Vec::new(),
            ready: 0,
            due: 0,
            driven: 0,
            last: Last::Nobody,
            slots: Vec::new(),
            vacant: Vec::new(),
        }
    }

    /// How many are ready.
    pub(super) fn ready_len(&self) -> usize {
        self.ready - usize::from(matches!(self.last, Last::Called(_)))
    }

    /// The index that the endpoint at a place counts as having; also maps such an index to a place.
    pub(super) fn counted(&self, at: usize) -> usize {
        let last = self.ready.wrapping_sub(1);
        match self.last {
            Last::Called(called) if at == called => last,
            Last::Called(called) if at == last => called,
            _ => at,
        }
    }

    /// Where the endpoint of a slot is.
    pub(super) fn place_of(&self, slot: usize) -> Option<usize> {
        let at = self.slots.get(slot)?.at;
        (at != NOWHERE).then_some(at)
    }

    pub(super) fn endpoint_of(&mut self, slot: usize) -> Option<&mut Endpoint<K, S>> {
        let at = self.place_of(slot)?;
        self.endpoints.get_mut(at).map(|endpoint| &mut **endpoint)
    }

    /// Where the endpoint of a wake-up is, if it is still there.
    pub(super) fn place_of_woken(&self, woken: Ticket) -> Option<usize> {
        let slot = self.slots.get(woken.slot)?;
        (slot.generation == woken.generation && slot.at != NOWHERE).then_some(slot.at)
    }

    /// Makes the called endpoint due like any other, so that indices are places.
    pub(super) fn settle(&mut self) {
        self.settled_len();
    }

    #[cold]
    fn settle_called(&mut self, at: usize) {
        self.last = Last::Nobody;
        self.ready_to_due(at);
    }

    /// How many are ready; from now on their indices are their places.
    #[inline(always)]
    pub(super) fn settled_len(&mut self) -> usize {
        if let Last::Called(at) = self.last {
            self.settle_called(at);
        }
        self.ready
    }

    /// Adds a due endpoint, and returns its slot.
    pub(super) fn push(
        &mut self,
        key: K,
        service: S,
        older: Option<usize>,
        wakes: &Wakes<Ticket>,
    ) -> usize {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                at: NOWHERE,
            });
            self.slots.len() - 1
        });
        let at = self.endpoints.len();
        self.slots[slot].at = at;
        let generation = self.slots[slot].generation;
        let node = wakes.node(Ticket { slot, generation });
        self.endpoints.push(Box::new(Endpoint {
            service,
            waker: Waker::from(node.clone()),
            node,
            key,
            slot,
            has_worked: false,
            older,
            newer: None,
        }));
        self.waiting_to_due(at);
        slot
    }

    #[inline]
    fn swap(&mut self, a: usize, b: usize) {
        if a == b {
            return;
        }
        self.endpoints.swap(a, b);
        for at in [a, b] {
            self.slots[self.endpoints[at].slot].at = at;
        }
        self.last = match self.last {
            Last::Chosen(at) if at == a => Last::Chosen(b),
            Last::Chosen(at) if at == b => Last::Chosen(a),
            last => last,
        };
    }

    /// Where the due endpoints with something to drive begin.
    pub(super) fn undriven(&self) -> usize {
        self.ready + self.driven
    }

    /// The first endpoint with something to drive has nothing left.
    pub(super) fn drove(&mut self) {
        self.driven += 1;
    }

    /// Makes a due endpoint be driven again.
    pub(super) fn undrive(&mut self, at: usize) {
        if at < self.undriven() {
            self.driven -= 1;
            self.swap(at, self.undriven());
        }
    }

    /// Makes all endpoints due that may hold something for a request: the ready ones, and if some `were_asked` for a
    /// caller, the waiting ones.
    pub(super) fn unready(&mut self, were_asked: bool) {
        self.last = Last::Nobody;
        if self.ready > 0 {
            self.ready = 0;
            self.driven = 0;
        }
        if were_asked {
            self.all_to_due();
        }
    }

    /// Makes all waiting endpoints due.
    pub(super) fn all_to_due(&mut self) {
        self.due = self.endpoints.len();
        self.driven = 0;
    }

    /// Makes a ready endpoint due.
    pub(super) fn ready_to_due(&mut self, at: usize) {
        self.ready -= 1;
        self.driven = 0;
        self.swap(at, self.ready);
        if self.last == Last::Chosen(self.ready) {
            self.last = Last::Nobody;
        }
    }

    /// Makes a due endpoint wait until it is woken.
    pub(super) fn due_to_waiting(&mut self, at: usize) {
        self.due -= 1;
        self.driven = self.driven.min(at - self.ready);
        self.swap(at, self.due);
    }

    /// Makes a waiting endpoint due.
    pub(super) fn waiting_to_due(&mut self, at: usize) {
        self.swap(at, self.due);
        self.due += 1;
    }

    /// Makes a due endpoint ready, and drops the one it replaces.
    pub(super) fn due_to_ready(&mut self, at: usize) {
        self.swap(at, self.ready);
        let endpoint = &mut self.endpoints[self.ready];
        endpoint.has_worked = true;
        let older = endpoint.older.take();
        self.ready += 1;
        self.driven = 0;
        if let Some(older) = older {
            self.drop_older(older);
        }
    }

    #[cold]
    fn drop_older(&mut self, slot: usize) {
        let at = self.place_of(slot);
        drop(at.and_then(|at| self.detach(at)));
    }

    /// Takes an endpoint out. Its key still leads to its slot, and so do the links from its neighbours of the same key.
    pub(super) fn detach(&mut self, mut at: usize) -> Option<Box<Endpoint<K, S>>> {
        if at < self.ready {
            self.ready_to_due(at);
            at = self.ready;
        }
        if at < self.due {
            self.due_to_waiting(at);
            at = self.due;
        }
        self.swap(at, self.endpoints.len() - 1);
        let endpoint = self.endpoints.pop()?;
        let slot = &mut self.slots[endpoint.slot];
        slot.at = NOWHERE;
        slot.generation = slot.generation.wrapping_add(1);
        self.vacant.push(endpoint.slot);
        endpoint.node.retire();
        Some(endpoint)
    }
}
