//! A cache of services by key, which knows which of them are ready.
//!
//! A [`ReadyCache`] polls its services until they are ready and keeps the ready ones at hand, by key and by
//! index: what a balancer picks from. Only a service that was woken, called or pushed is polled, so what a
//! poll costs does not depend on how many services there are. Calls and polls neither allocate nor hash.
//!
//! # Differences from tower
//!
//! - An evicted service is dropped in [`evict`](ReadyCache::evict), and not in the next
//!   [`poll_pending`](ReadyCache::poll_pending). So is a pending one for whose key another is pushed.
//! - The error of a service that failed is not boxed: [`Failed<K, E>`](error::Failed).
//! - A key is found by whatever it can be borrowed as, as in a `HashMap`.
//! - One poll asks at most 256 services, and lets others run before it goes on: only tokio would stop it.
//! - When a service panics in `poll_ready` or `call`, that service is gone and the cache is whole.
//! - A poll that only tries, as [`LoadShed`](crate::load_shed) does, leaves no waiter in the services.
//!
//! # Examples
//!
//! ```
//! use campanile::{ready_cache::ReadyCache, service_fn};
//! use core::{convert::Infallible, future::poll_fn};
//!
//! # futures::executor::block_on(async {
//! let mut cache = ReadyCache::new();
//! cache.push("double", service_fn(async |n: u32| Ok::<_, Infallible>(2 * n)));
//! assert_eq!((cache.ready_len(), cache.pending_len()), (0, 1));
//!
//! poll_fn(|cx| cache.poll_pending(cx)).await.unwrap();
//! assert_eq!((cache.ready_len(), cache.pending_len()), (1, 0));
//!
//! assert_eq!(cache.call_ready("double", 4).await, Ok(8));
//! assert!(cache.pending_contains("double")); // until it is polled ready again
//! # });
//! ```

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::fmt;
use core::hash::Hash;
use core::marker::PhantomData;
use core::num::NonZeroU32;
use core::task::{Context, Poll, Waker};
use std::collections::HashMap;

use crate::Service;
use crate::sync::is_attempt;
use crate::sync::wakes::{Node, Wakes};

/// One endpoint, whatever its index becomes. It is none that has its slot later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    slot: usize,
    generation: NonZeroU32,
}

/// Whether an endpoint is ready, or how it failed.
pub(crate) type Checked<K, E> = Result<bool, error::Failed<K, E>>;

/// Services by key, each either ready or pending.
///
/// The services are pushed and evicted, polled by [`poll_pending`](Self::poll_pending) until they are ready,
/// and called. A called service is pending again. See the [module](self) for an example.
///
/// The ready ones have indices from 0 to [`ready_len`](Self::ready_len), which are good until the cache is
/// next changed.
///
/// # Cancel safety
///
/// There is nothing to cancel: a poll that is not followed by another loses nothing.
pub struct ReadyCache<K, S, Req> {
    // Dropped before the services, so that what they wake while they are dropped wakes nobody.
    wakes: Wakes<Ticket>,
    // Where the last try ended.
    turn: u32,
    slots: Vec<Slot<K, S>>,
    vacant: Vec<usize>,
    // The slots in use: first the ready ones, then those that are to be polled, then those that wait to be
    // woken. To go from one part to another is to swap with the one at the edge.
    order: Vec<usize>,
    /// Where the ready ones end.
    ready: usize,
    /// Where those end that are to be polled.
    due: usize,
    // The slot that was called last, if it is still among the ready ones, or `NOBODY`. It counts as if it had been
    // swapped with the last of them, and is to be polled. Most likely it is ready then, and no swap is needed.
    called: usize,
    // The last poll did not get to all that were due.
    is_behind: bool,
    // The slot that was pushed last for each key. Not asked by calls and polls.
    keys: HashMap<K, usize>,
    request: PhantomData<fn(Req)>,
}

/// No slot.
const NOBODY: usize = usize::MAX;

/// How many services one poll asks. It is far more than are woken between two polls in a balancer that is
/// used, and takes some microseconds where readiness is cheap.
pub(crate) const POLLS: usize = 256;

/// How many services a try asks once it has a ready one to offer.
const TRIES: usize = 16;

// What is always inlined here is what a request through a balancer goes through, a few lines each. To enter and leave
// them as functions took as long as they do.

struct Slot<K, S> {
    // How many endpoints have left the slot: a waker of one of them is told by it from one of the present's.
    generation: NonZeroU32,
    /// Where in the order the endpoint is.
    at: usize,
    endpoint: Option<Endpoint<K, S>>,
}

struct Endpoint<K, S> {
    key: K,
    service: S,
    node: Arc<Node<Ticket>>,
    /// `node` as a waker.
    waker: Waker,
    /// The slot of the ready endpoint of the same key that this one is to replace.
    older: Option<usize>,
    /// The slot of the pending endpoint that is to replace this one.
    newer: Option<usize>,
}

impl<K, S, Req> ReadyCache<K, S, Req> {
    /// How many services there are, ready and pending.
    ///
    /// A ready service and the one that is to replace it count as two.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is no service.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// How many services are ready.
    pub fn ready_len(&self) -> usize {
        self.ready - usize::from(self.called != NOBODY)
    }

    /// How many services are pending.
    pub fn pending_len(&self) -> usize {
        self.order.len() - self.ready_len()
    }

    /// The ready service at `index`, and its key.
    pub fn get_ready_index(&self, index: usize) -> Option<(&K, &S)> {
        let slot = self.slot_at(index)?;
        let endpoint = self.slots[slot].endpoint.as_ref()?;
        Some((&endpoint.key, &endpoint.service))
    }

    /// The ready service at `index`, mutably, and its key.
    pub fn get_ready_index_mut(&mut self, index: usize) -> Option<(&K, &mut S)> {
        let slot = self.slot_at(index)?;
        let endpoint = self.slots[slot].endpoint.as_mut()?;
        Some((&endpoint.key, &mut endpoint.service))
    }

    /// The ready services and their keys, by index.
    pub fn iter_ready(&self) -> impl Iterator<Item = (&K, &S)> {
        (0..self.ready_len()).filter_map(|index| self.get_ready_index(index))
    }

    /// The ready services, mutably, and their keys, in any order.
    pub fn iter_ready_mut(&mut self) -> impl Iterator<Item = (&K, &mut S)> {
        self.settle();
        let ready = self.ready;
        self.slots
            .iter_mut()
            .filter(move |slot| slot.at < ready)
            .filter_map(|slot| slot.endpoint.as_mut())
            .map(|endpoint| (&endpoint.key, &mut endpoint.service))
    }

    /// The ready slot at `index`.
    #[inline]
    fn slot_at(&self, index: usize) -> Option<usize> {
        let slot = *self.order[..self.ready_len()].get(index)?;
        if slot == self.called {
            return self.order.get(self.ready - 1).copied();
        }
        Some(slot)
    }

    /// The index of a slot in use; if it is pending, not less than that of every ready one.
    fn place_of(&self, slot: usize) -> Option<usize> {
        let found = self.slots.get(slot)?;
        found.endpoint.as_ref()?;
        Some(match self.called {
            NOBODY => found.at,
            called if called == slot => self.ready - 1,
            called if found.at == self.ready - 1 => self.slots[called].at,
            _ => found.at,
        })
    }

    /// Lets the one that was called be polled next, as others that are due: the order is what it counts as.
    fn settle(&mut self) {
        self.settled_len();
    }

    #[cold]
    fn settle_called(&mut self, slot: usize) {
        self.called = NOBODY;
        self.ready_to_due(self.slots[slot].at);
    }

    /// The ready endpoint at `index`, whatever its index becomes.
    #[inline]
    pub(crate) fn ticket(&self, index: usize) -> Option<Ticket> {
        let slot = self.slot_at(index)?;
        let generation = self.slots[slot].generation;
        Some(Ticket { slot, generation })
    }

    /// How many are ready; from here on their indices are places in the order.
    #[inline(always)]
    pub(crate) fn settled_len(&mut self) -> usize {
        if self.called != NOBODY {
            self.settle_called(self.called);
        }
        self.ready
    }

    /// Whether there is nothing to wait for.
    #[inline]
    pub(crate) fn is_all_ready(&self) -> bool {
        self.ready == self.order.len() && self.called == NOBODY
    }

    /// Of the ready endpoints at two indices, once they are [settled](Self::settled_len), the first, if `is_first` says
    /// so of their services, or the second.
    #[inline(always)]
    pub(crate) fn ticket_of(
        &mut self,
        first: usize,
        second: usize,
        is_first: impl FnOnce(&S, &S) -> bool,
    ) -> Option<Ticket> {
        let (first, second) = (*self.order.get(first)?, *self.order.get(second)?);
        let (one, other) = (self.slots.get(first)?, self.slots.get(second)?);
        let is_first = is_first(
            &one.endpoint.as_ref()?.service,
            &other.endpoint.as_ref()?.service,
        );
        Some(if is_first {
            Ticket {
                slot: first,
                generation: one.generation,
            }
        } else {
            Ticket {
                slot: second,
                generation: other.generation,
            }
        })
    }

    /// Whether the endpoint is still there and ready.
    #[cold]
    pub(crate) fn is_ready(&self, ticket: Ticket) -> bool {
        let slot = &self.slots[ticket.slot];
        slot.endpoint.is_some()
            && slot.at < self.ready
            && slot.generation == ticket.generation
            && self.called != ticket.slot
    }

    #[inline]
    fn swap(&mut self, a: usize, b: usize) {
        if a == b {
            return;
        }
        let (first, second) = (self.order[a], self.order[b]);
        self.put(second, a);
        self.put(first, b);
    }

    #[inline]
    fn put(&mut self, slot: usize, at: usize) {
        self.order[at] = slot;
        self.slots[slot].at = at;
    }

    /// Lets a ready endpoint be polled next.
    fn ready_to_due(&mut self, at: usize) {
        self.ready -= 1;
        self.swap(at, self.ready);
    }

    /// Lets an endpoint that is due wait until it is woken.
    fn due_to_waiting(&mut self, at: usize) {
        self.due -= 1;
        self.swap(at, self.due);
    }

    /// Lets an endpoint that waits be polled.
    fn waiting_to_due(&mut self, at: usize) {
        self.swap(at, self.due);
        self.due += 1;
    }

    /// Lets an endpoint that is due be called, in place of the one that it replaces.
    fn due_to_ready(&mut self, at: usize) {
        self.swap(at, self.ready);
        let slot = self.order[self.ready];
        self.ready += 1;
        let endpoint = self.slots[slot].endpoint.as_ref();
        if endpoint.is_some_and(|endpoint| endpoint.older.is_some()) {
            self.drop_older(slot);
        }
    }

    #[cold]
    fn drop_older(&mut self, slot: usize) {
        let endpoint = self.slots[slot].endpoint.as_mut();
        let older = endpoint.and_then(|endpoint| endpoint.older.take());
        let at = older.and_then(|older| self.place_of(older));
        drop(at.and_then(|at| self.detach(at)));
    }

    /// Takes an endpoint out. Its key still leads to its slot, and its neighbours of the same key to it.
    fn detach(&mut self, mut at: usize) -> Option<Endpoint<K, S>> {
        if at < self.ready {
            self.ready_to_due(at);
            at = self.ready;
        }
        if at < self.due {
            self.due_to_waiting(at);
            at = self.due;
        }
        self.swap(at, self.order.len() - 1);
        let vacant = self.order.pop()?;
        self.vacant.push(vacant);
        let slot = &mut self.slots[vacant];
        slot.generation = slot.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        let endpoint = slot.endpoint.take()?;
        endpoint.node.retire();
        Some(endpoint)
    }

    /// Lets those be polled that were woken.
    #[inline]
    fn collect_woken(&mut self) {
        if self.wakes.any() {
            self.collect_some();
        }
    }

    #[cold]
    fn collect_some(&mut self) {
        let mut woken = self.wakes.collect();
        for Ticket { slot, generation } in woken.drain(..) {
            let slot = &self.slots[slot];
            let Some(endpoint) = &slot.endpoint else {
                continue;
            };
            if slot.generation != generation {
                continue;
            }
            endpoint.node.unqueue();
            // A ready one is polled when it is picked.
            if slot.at >= self.due {
                self.waiting_to_due(slot.at);
            }
        }
        self.wakes.give_back(woken);
    }
}

impl<K, S, Req> ReadyCache<K, S, Req>
where
    K: Eq + Hash,
{
    /// A cache without services.
    #[must_use]
    pub fn new() -> Self {
        Self {
            wakes: Wakes::new(),
            turn: 0,
            slots: Vec::new(),
            vacant: Vec::new(),
            order: Vec::new(),
            ready: 0,
            due: 0,
            called: NOBODY,
            is_behind: false,
            keys: HashMap::new(),
            request: PhantomData,
        }
    }

    /// Whether a pending service has this key.
    pub fn pending_contains<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let slot = self.keys.get(key);
        slot.and_then(|slot| self.place_of(*slot))
            .is_some_and(|at| at >= self.ready_len())
    }

    /// The ready service with this key, and its index.
    pub fn get_ready<Q>(&self, key: &Q) -> Option<(usize, &K, &S)>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let index = self.ready_index(key)?;
        let (key, service) = self.get_ready_index(index)?;
        Some((index, key, service))
    }

    /// The ready service with this key, mutably, and its index.
    pub fn get_ready_mut<Q>(&mut self, key: &Q) -> Option<(usize, &K, &mut S)>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let index = self.ready_index(key)?;
        let (key, service) = self.get_ready_index_mut(index)?;
        Some((index, key, service))
    }

    /// Drops the services with this key, at once, whether ready or pending. `false` if there was none.
    pub fn evict<Q>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let Some(slot) = self.keys.remove(key) else {
            return false;
        };
        self.settle();
        let newest = self.place_of(slot).and_then(|at| self.detach(at));
        let older = newest.as_ref().and_then(|endpoint| endpoint.older);
        let older = older
            .and_then(|slot| self.place_of(slot))
            .and_then(|at| self.detach(at));
        // Both are out before either is dropped: a destructor may panic.
        drop((newest, older));
        true
    }

    fn ready_index<Q>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let newest = *self.keys.get(key)?;
        let older = self.slots[newest].endpoint.as_ref()?.older;
        let at = self.place_of(older.unwrap_or(newest))?;
        (at < self.ready_len()).then_some(at)
    }

    /// Takes an endpoint out, and whatever refers to it.
    fn remove(&mut self, at: usize) -> Option<Endpoint<K, S>> {
        let endpoint = self.detach(at)?;
        match (endpoint.older, endpoint.newer) {
            // The one that it was to replace stays.
            (Some(older), _) => {
                if let Some(older) = &mut self.slots[older].endpoint {
                    older.newer = None;
                }
                if let Some(slot) = self.keys.get_mut(&endpoint.key) {
                    *slot = older;
                }
            }
            (None, Some(newer)) => {
                if let Some(newer) = &mut self.slots[newer].endpoint {
                    newer.older = None;
                }
            }
            (None, None) => {
                self.keys.remove(&endpoint.key);
            }
        }
        Some(endpoint)
    }

    #[cold]
    fn drop_replaced(&mut self, at: usize) {
        drop(self.remove(at));
    }

    fn is_replaced(&self, slot: usize) -> bool {
        self.slots[slot]
            .endpoint
            .as_ref()
            .is_some_and(|endpoint| endpoint.newer.is_some())
    }
}

impl<K, S, Req> ReadyCache<K, S, Req>
where
    K: Clone + Eq + Hash,
    S: Service<Req>,
{
    /// Adds a service, as a pending one.
    ///
    /// If a pending service has the same key it is dropped. If a ready one has, it stays, and can be called,
    /// until the new one is ready and takes its place; once called, or found not to be ready any more, it is
    /// dropped.
    pub fn push(&mut self, key: K, service: S) {
        self.settle();
        let (mut older, mut replaced) = (None, None);
        if let Some(&newest) = self.keys.get(&key) {
            match self.place_of(newest) {
                Some(at) if at >= self.ready => {
                    replaced = self.detach(at);
                    older = replaced.as_ref().and_then(|endpoint| endpoint.older);
                }
                at => older = at.map(|_| newest),
            }
        }
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: NonZeroU32::MIN,
                at: 0,
                endpoint: None,
            });
            self.slots.len() - 1
        });
        if let Some(older) = older.and_then(|older| self.slots[older].endpoint.as_mut()) {
            older.newer = Some(slot);
        }
        self.keys.insert(key.clone(), slot);
        let at = self.order.len();
        self.slots[slot].at = at;
        let generation = self.slots[slot].generation;
        let node = self.wakes.node(Ticket { slot, generation });
        self.slots[slot].endpoint = Some(Endpoint {
            key,
            service,
            waker: Waker::from(node.clone()),
            node,
            older,
            newer: None,
        });
        self.order.push(slot);
        self.waiting_to_due(at);
        drop(replaced);
    }

    /// Polls the pending services that were pushed, called or woken. Ready when none is pending.
    ///
    /// To be called again after a [`push`](Self::push), a call, or a check that found a service not ready.
    ///
    /// # Errors
    ///
    /// When a service fails. It has been dropped, and the others are as they were: poll again.
    pub fn poll_pending(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), error::Failed<K, S::Error>>> {
        let tries = is_attempt(cx);
        if tries {
            self.try_due(cx)?;
        } else {
            self.poll_due(&mut { POLLS })?;
        }
        if self.pending_len() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !tries {
            self.register(cx);
        }
        Poll::Pending
    }

    /// Whether the service with this key is ready, and still so when it is polled now.
    ///
    /// # Errors
    ///
    /// As for [`check_ready_index`](Self::check_ready_index).
    pub fn check_ready<Q>(
        &mut self,
        cx: &mut Context<'_>,
        key: &Q,
    ) -> Result<bool, error::Failed<K, S::Error>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        match self.ready_index(key) {
            Some(index) => self.check_ready_index(cx, index),
            None => Ok(false),
        }
    }

    /// Whether the service at `index` is ready, and still so when it is polled now. If it is not, it is
    /// pending from now on.
    ///
    /// # Errors
    ///
    /// When the service fails. It has been dropped.
    pub fn check_ready_index(
        &mut self,
        cx: &mut Context<'_>,
        index: usize,
    ) -> Result<bool, error::Failed<K, S::Error>> {
        match self.ticket(index) {
            Some(ticket) if is_attempt(cx) => self.check_in(ticket, cx),
            Some(ticket) => self.check(ticket),
            None => Ok(false),
        }
    }

    /// As [`check_ready_index`](Self::check_ready_index), for one that was ready a moment ago.
    #[inline(always)]
    pub(crate) fn check(&mut self, ticket: Ticket) -> Checked<K, S::Error> {
        match self.poll_slot(ticket.slot) {
            Poll::Ready(Ok(())) => Ok(true),
            other => self.checked(ticket.slot, other, false),
        }
    }

    /// As `check`, in the context of a try.
    #[cold]
    pub(crate) fn check_in(
        &mut self,
        ticket: Ticket,
        cx: &mut Context<'_>,
    ) -> Checked<K, S::Error> {
        match self.try_slot(ticket.slot, cx) {
            Poll::Ready(Ok(())) => Ok(true),
            other => self.checked(ticket.slot, other, true),
        }
    }

    #[cold]
    fn checked(
        &mut self,
        slot: usize,
        polled: Poll<Result<(), S::Error>>,
        was_tried: bool,
    ) -> Checked<K, S::Error> {
        self.settle();
        match polled {
            Poll::Ready(Ok(())) => return Ok(true),
            Poll::Ready(Err(error)) => self.failed(slot, error)?,
            Poll::Pending => self.not_ready(slot, was_tried),
        }
        Ok(false)
    }

    fn not_ready(&mut self, slot: usize, was_tried: bool) {
        let Some(at) = self.place_of(slot) else {
            return;
        };
        if self.is_replaced(slot) {
            drop(self.remove(at));
            return;
        }
        self.ready_to_due(at);
        // A try has left no waker with it.
        if !was_tried {
            self.due_to_waiting(self.ready);
        }
    }

    /// Calls the ready service with this key, which is pending afterwards.
    ///
    /// # Panics
    ///
    /// If there is no such service, or it is not ready.
    #[track_caller]
    pub fn call_ready<Q>(&mut self, key: &Q, request: Req) -> S::Future
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        match self.ready_index(key) {
            Some(index) => self.call_ready_index(index, request),
            None => panic!("no service with this key is ready: ask `check_ready` first"),
        }
    }

    /// Calls the ready service at `index`, which is pending afterwards.
    ///
    /// # Panics
    ///
    /// If `index` is not less than [`ready_len`](Self::ready_len).
    #[track_caller]
    pub fn call_ready_index(&mut self, index: usize, request: Req) -> S::Future {
        let ticket = self.ticket(index);
        match ticket.and_then(|ticket| self.try_call(ticket, request).ok()) {
            Some(future) => future,
            None => panic!(
                "the index of a ready service is {index}, and must be less than {}",
                self.ready
            ),
        }
    }

    /// Calls a ready service, or gives the request back if it is there no more.
    #[inline(always)]
    pub(crate) fn try_call(&mut self, ticket: Ticket, request: Req) -> Result<S::Future, Req> {
        let ready = self.settled_len();
        let Ticket { slot, generation } = ticket;
        let guard = Asking { cache: self, slot };
        let found = &mut guard.cache.slots[slot];
        let at = found.at;
        match &mut found.endpoint {
            Some(endpoint) if at < ready && found.generation == generation => {
                let is_replaced = endpoint.newer.is_some();
                let future = endpoint.service.call(request);
                core::mem::forget(guard);
                if is_replaced {
                    self.drop_replaced(at);
                } else {
                    self.called = slot;
                }
                Ok(future)
            }
            _ => {
                core::mem::forget(guard);
                Err(request)
            }
        }
    }

    /// Polls those that are due, as far as `budget` reaches, up to the first that fails.
    #[inline(always)]
    pub(crate) fn poll_due(
        &mut self,
        budget: &mut usize,
    ) -> Result<(), error::Failed<K, S::Error>> {
        match self.called {
            // As a rule there is nobody else.
            slot if slot != NOBODY && self.ready == self.due && !self.wakes.any() => {
                *budget = budget.saturating_sub(1);
                match self.poll_slot(slot) {
                    Poll::Ready(Ok(())) => {
                        self.called = NOBODY;
                        Ok(())
                    }
                    other => self.called_is_not_ready(slot, other),
                }
            }
            _ => self.poll_all_due(budget),
        }
    }

    #[cold]
    fn called_is_not_ready(
        &mut self,
        slot: usize,
        polled: Poll<Result<(), S::Error>>,
    ) -> Result<(), error::Failed<K, S::Error>> {
        self.settle();
        match polled {
            Poll::Ready(Ok(())) => self.due_to_ready(self.ready),
            Poll::Ready(Err(error)) => self.failed(slot, error)?,
            Poll::Pending => self.due_to_waiting(self.ready),
        }
        Ok(())
    }

    #[inline(never)]
    fn poll_all_due(&mut self, budget: &mut usize) -> Result<(), error::Failed<K, S::Error>> {
        self.settle();
        // Who was left over is asked before others are: those that wake themselves would keep it waiting for ever.
        if !self.is_behind {
            self.collect_woken();
        }
        while self.ready < self.due && *budget > 0 {
            *budget -= 1;
            let slot = self.order[self.ready];
            match self.poll_slot(slot) {
                Poll::Ready(Ok(())) => self.due_to_ready(self.ready),
                Poll::Ready(Err(error)) => self.failed(slot, error)?,
                Poll::Pending => self.due_to_waiting(self.ready),
            }
        }
        self.is_behind = self.ready < self.due;
        Ok(())
    }

    /// As [`poll_due`](Self::poll_due), for a try: whoever is not ready stays due, as no waker was left with it.
    #[cold]
    pub(crate) fn try_due(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Result<(), error::Failed<K, S::Error>> {
        self.settle();
        self.collect_woken();
        // The one that was called last is the first of those that are due, and most likely ready.
        let mut skip = 0;
        for tried in 0..self.due - self.ready {
            let first = self.ready + skip;
            if first >= self.due || (self.ready > 0 && tried >= TRIES) {
                break;
            }
            let at = if tried == 0 {
                skip = 1;
                first
            } else {
                // The next try goes on where this one ends.
                self.turn = self.turn.wrapping_add(1);
                first + self.turn as usize % (self.due - first)
            };
            let slot = self.order[at];
            match self.try_slot(slot, cx) {
                Poll::Ready(Ok(())) => {
                    self.due_to_ready(at);
                    skip = 0;
                }
                Poll::Ready(Err(error)) => self.failed(slot, error)?,
                Poll::Pending => {}
            }
        }
        Ok(())
    }

    /// Sees to it that the task is woken when there is something to poll again, at once if there is already.
    pub(crate) fn register(&mut self, cx: &mut Context<'_>) {
        if self.ready_len() < self.due || !self.wakes.register(cx.waker()) {
            cx.waker().wake_by_ref();
        }
    }

    #[cold]
    fn failed(&mut self, slot: usize, error: S::Error) -> Result<(), error::Failed<K, S::Error>> {
        match self.place_of(slot).and_then(|at| self.remove(at)) {
            Some(endpoint) => Err(error::Failed(endpoint.key, error)),
            None => Ok(()),
        }
    }

    /// Polls one, with its own waker.
    #[inline(always)]
    fn poll_slot(&mut self, slot: usize) -> Poll<Result<(), S::Error>> {
        self.ask(slot, |endpoint| {
            let mut cx = Context::from_waker(&endpoint.waker);
            endpoint.service.poll_ready(&mut cx)
        })
    }

    /// Polls one, with the waker of a try, which wakes nobody.
    #[cold]
    fn try_slot(&mut self, slot: usize, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.ask(slot, |endpoint| endpoint.service.poll_ready(cx))
    }

    /// If the service panics, it leaves the cache.
    #[inline(always)]
    fn ask(
        &mut self,
        slot: usize,
        poll: impl FnOnce(&mut Endpoint<K, S>) -> Poll<Result<(), S::Error>>,
    ) -> Poll<Result<(), S::Error>> {
        let guard = Asking { cache: self, slot };
        let polled = match &mut guard.cache.slots[slot].endpoint {
            Some(endpoint) => poll(endpoint),
            None => Poll::Pending,
        };
        core::mem::forget(guard);
        polled
    }
}

impl<K: Eq + Hash, S, Req> Default for ReadyCache<K, S, Req> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: fmt::Debug, S, Req> fmt::Debug for ReadyCache<K, S, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = |slot: usize| Some(&self.slots[slot].endpoint.as_ref()?.key);
        let ready = (0..self.ready_len()).filter_map(|index| self.slot_at(index));
        let called = Some(self.called).filter(|called| *called != NOBODY);
        let pending = called
            .into_iter()
            .chain(self.order[self.ready..].iter().copied());
        f.debug_struct("ReadyCache")
            .field("ready", &ready.filter_map(key).collect::<Vec<_>>())
            .field("pending", &pending.filter_map(key).collect::<Vec<_>>())
            .finish()
    }
}

/// The cache, at the path where tower has it, too.
pub mod cache {
    pub use super::ReadyCache;
}

/// The failure of one service, at the path where tower has it.
pub mod error {
    use core::error::Error;
    use core::fmt;

    use crate::error::AsError;

    /// A service of a [`ReadyCache`](super::ReadyCache) failed, and is gone: its key, and its error.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Failed<K, E>(
        /// The key that the service had.
        pub K,
        /// What its `poll_ready` gave.
        pub E,
    );

    impl<K: fmt::Debug, E> fmt::Display for Failed<K, E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "the service {:?} failed", self.0)
        }
    }

    /// Its source is the service's error.
    impl<K: fmt::Debug, E: AsError + fmt::Debug> Error for Failed<K, E> {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self.1.as_error())
        }
    }
}

/// While a service is asked: if it panics, it leaves the cache. To be forgotten when it has answered.
struct Asking<'a, K: Eq + Hash, S, Req> {
    cache: &'a mut ReadyCache<K, S, Req>,
    slot: usize,
}

impl<K: Eq + Hash, S, Req> Drop for Asking<'_, K, S, Req> {
    #[cold]
    fn drop(&mut self) {
        self.cache.settle();
        let at = self.cache.place_of(self.slot);
        drop(at.and_then(|at| self.cache.remove(at)));
    }
}

#[cfg(test)]
mod tests {
    use alloc::rc::Rc;
    use alloc::task::Wake;
    use core::cell::Cell;
    use core::convert::Infallible;
    use core::future::Ready;
    use core::task::{Context, Poll};

    use super::*;

    struct Busy(Rc<Cell<u32>>);

    impl Service<()> for Busy {
        type Response = ();
        type Error = Infallible;
        type Future = Ready<Result<(), Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            self.0.set(self.0.get() + 1);
            Poll::Pending
        }

        fn call(&mut self, (): ()) -> Self::Future {
            core::future::ready(Ok(()))
        }
    }

    struct Unheard;

    impl Wake for Unheard {
        fn wake(self: Arc<Self>) {}
    }

    /// A wake-up that has begun when its endpoint leaves can reach the list when another has its slot.
    #[test]
    fn a_wake_up_that_comes_too_late_is_for_nobody() {
        let waker = Waker::from(Arc::new(Unheard));
        let mut cx = Context::from_waker(&waker);
        let polls = Rc::new(Cell::new(0));
        let mut cache = ReadyCache::new();
        cache.push(0, Busy(Rc::default()));
        let late = Ticket {
            slot: 0,
            generation: cache.slots[0].generation,
        };
        cache.evict(&0);
        cache.push(1, Busy(polls.clone()));
        assert!(cache.slots[0].endpoint.is_some());
        assert!(cache.poll_pending(&mut cx).is_pending());
        cache.wakes.node(late).wake();
        assert!(cache.poll_pending(&mut cx).is_pending());
        assert_eq!(polls.get(), 1);
    }
}
