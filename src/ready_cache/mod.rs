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

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::fmt;
use core::hash::Hash;
use core::marker::PhantomData;
use core::task::{Context, Poll, Waker};
use std::collections::HashMap;

use crate::Service;
use crate::sync::is_attempt;
use crate::sync::wakes::{Node, Wakes};

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
    // First the ready ones, then those that are to be polled, then those that wait to be woken. To go from one part
    // to another is to swap with the one at the edge, and costs the same however large a service is.
    endpoints: Vec<Box<Endpoint<K, S>>>,
    /// Where the ready ones end.
    ready: usize,
    /// Where those end that are to be polled.
    due: usize,
    last: Last,
    // The last poll did not get to all that were due.
    is_behind: bool,
    // Where each endpoint is: its slot stays the same.
    slots: Vec<Slot>,
    vacant: Vec<usize>,
    // The slot that was pushed last for each key. Not asked by calls and polls.
    keys: HashMap<K, usize>,
    request: PhantomData<fn(Req)>,
}

/// A ready endpoint that is remembered, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Nobody,
    /// It was called last. It counts as if it had been swapped with the last of the ready ones, and is to be polled.
    /// Most likely it is ready then, and no swap is needed.
    Called(usize),
    /// It was chosen to be called next.
    Chosen(usize),
}

/// The place of nobody.
const NOWHERE: usize = usize::MAX;

/// How many services one poll asks. It is far more than are woken between two polls in a balancer that is
/// used, and takes some microseconds where readiness is cheap.
pub(crate) const POLLS: usize = 256;

/// How many services a try asks once it has a ready one to offer.
const TRIES: usize = 16;

// What is always inlined here is what a request through a balancer goes through, a few lines each. To enter and leave
// them as functions took as long as they do.

#[derive(Clone, Copy)]
struct Slot {
    // How many endpoints have left the slot: a waker of one of them is told by it from one of the present's.
    generation: u32,
    /// Where the endpoint is, or `NOWHERE`.
    at: usize,
}

/// One endpoint, wherever it is. It is none that has its slot later.
#[derive(Clone, Copy)]
struct Ticket {
    slot: usize,
    generation: u32,
}

struct Endpoint<K, S> {
    service: S,
    /// `node` as a waker.
    waker: Waker,
    node: Arc<Node<Ticket>>,
    key: K,
    slot: usize,
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
        self.endpoints.len()
    }

    /// Whether there is no service.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// How many services are ready.
    pub fn ready_len(&self) -> usize {
        self.ready - usize::from(matches!(self.last, Last::Called(_)))
    }

    /// How many services are pending.
    pub fn pending_len(&self) -> usize {
        self.endpoints.len() - self.ready_len()
    }

    /// The ready service at `index`, and its key.
    pub fn get_ready_index(&self, index: usize) -> Option<(&K, &S)> {
        let endpoint = self.endpoints.get(self.place(index)?)?;
        Some((&endpoint.key, &endpoint.service))
    }

    /// The ready service at `index`, mutably, and its key.
    pub fn get_ready_index_mut(&mut self, index: usize) -> Option<(&K, &mut S)> {
        let at = self.place(index)?;
        let endpoint = self.endpoints.get_mut(at)?;
        Some((&endpoint.key, &mut endpoint.service))
    }

    /// The ready services and their keys, by index.
    pub fn iter_ready(&self) -> impl Iterator<Item = (&K, &S)> {
        (0..self.ready_len()).filter_map(|index| self.get_ready_index(index))
    }

    /// The ready services, mutably, and their keys, in any order.
    pub fn iter_ready_mut(&mut self) -> impl Iterator<Item = (&K, &mut S)> {
        self.settle();
        (self.endpoints[..self.ready].iter_mut())
            .map(|endpoint| (&endpoint.key, &mut endpoint.service))
    }

    /// The place of the ready endpoint at `index`.
    fn place(&self, index: usize) -> Option<usize> {
        (index < self.ready_len()).then(|| self.counted(index))
    }

    /// The index that an endpoint at a place counts as having; the other way round it is the same.
    fn counted(&self, at: usize) -> usize {
        let last = self.ready.wrapping_sub(1);
        match self.last {
            Last::Called(called) if at == called => last,
            Last::Called(called) if at == last => called,
            _ => at,
        }
    }

    /// Where the endpoint of a slot is.
    fn place_of(&self, slot: usize) -> Option<usize> {
        let at = self.slots.get(slot)?.at;
        (at != NOWHERE).then_some(at)
    }

    fn endpoint_of(&mut self, slot: usize) -> Option<&mut Endpoint<K, S>> {
        let at = self.place_of(slot)?;
        self.endpoints.get_mut(at).map(|endpoint| &mut **endpoint)
    }

    /// Lets the one that was called be polled next, as others that are due: the places are what they count as.
    fn settle(&mut self) {
        self.settled_len();
    }

    #[cold]
    fn settle_called(&mut self, at: usize) {
        self.last = Last::Nobody;
        self.ready_to_due(at);
    }

    /// How many are ready; from here on their indices are their places.
    #[inline(always)]
    pub(crate) fn settled_len(&mut self) -> usize {
        if let Last::Called(at) = self.last {
            self.settle_called(at);
        }
        self.ready
    }

    /// Whether there is nothing to wait for.
    #[inline(always)]
    pub(crate) fn is_all_ready(&self) -> bool {
        self.ready == self.endpoints.len() && !matches!(self.last, Last::Called(_))
    }

    /// Of the ready endpoints at two indices, once they are [settled](Self::settled_len), the first, if `is_first` says
    /// so of their services, or the second.
    #[inline(always)]
    pub(crate) fn better_of(
        &self,
        first: usize,
        second: usize,
        is_first: impl FnOnce(&S, &S) -> bool,
    ) -> usize {
        let (one, other) = (&self.endpoints[first], &self.endpoints[second]);
        if is_first(&one.service, &other.service) {
            first
        } else {
            second
        }
    }

    /// Remembers the ready endpoint at a settled index, for as long as it is there and ready, or until another is
    /// called or chosen.
    #[inline(always)]
    pub(crate) fn choose(&mut self, index: usize) {
        self.last = Last::Chosen(index);
    }

    /// The index of the one that was chosen.
    pub(crate) fn chosen(&self) -> Option<usize> {
        match self.last {
            Last::Chosen(at) => Some(at),
            _ => None,
        }
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

    /// Lets a ready endpoint be polled next.
    fn ready_to_due(&mut self, at: usize) {
        self.ready -= 1;
        self.swap(at, self.ready);
        if self.last == Last::Chosen(self.ready) {
            self.last = Last::Nobody;
        }
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
        let older = self.endpoints[self.ready].older.take();
        self.ready += 1;
        if let Some(older) = older {
            self.drop_older(older);
        }
    }

    #[cold]
    fn drop_older(&mut self, slot: usize) {
        let at = self.place_of(slot);
        drop(at.and_then(|at| self.detach(at)));
    }

    /// Takes an endpoint out. Its key still leads to its slot, and its neighbours of the same key to it.
    fn detach(&mut self, mut at: usize) -> Option<Box<Endpoint<K, S>>> {
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
            let Slot {
                generation: now,
                at,
            } = self.slots[slot];
            if generation != now || at == NOWHERE {
                continue;
            }
            self.endpoints[at].node.unqueue();
            // A ready one is polled when it is picked.
            if at >= self.due {
                self.waiting_to_due(at);
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
            endpoints: Vec::new(),
            ready: 0,
            due: 0,
            last: Last::Nobody,
            is_behind: false,
            slots: Vec::new(),
            vacant: Vec::new(),
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
            .is_some_and(|at| self.counted(at) >= self.ready_len())
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
        let newest = self.place_of(*self.keys.get(key)?)?;
        let older = self.endpoints[newest].older;
        let at = older.and_then(|older| self.place_of(older));
        let index = self.counted(at.unwrap_or(newest));
        (index < self.ready_len()).then_some(index)
    }

    /// Takes an endpoint out, and whatever refers to it.
    fn remove(&mut self, at: usize) -> Option<Box<Endpoint<K, S>>> {
        let endpoint = self.detach(at)?;
        match (endpoint.older, endpoint.newer) {
            // The one that it was to replace stays.
            (Some(older), _) => {
                if let Some(older) = self.endpoint_of(older) {
                    older.newer = None;
                }
                if let Some(slot) = self.keys.get_mut(&endpoint.key) {
                    *slot = older;
                }
            }
            (None, Some(newer)) => {
                if let Some(newer) = self.endpoint_of(newer) {
                    newer.older = None;
                }
            }
            (None, None) => {
                self.keys.remove(&endpoint.key);
            }
        }
        Some(endpoint)
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
                generation: 0,
                at: NOWHERE,
            });
            self.slots.len() - 1
        });
        if let Some(older) = older.and_then(|older| self.endpoint_of(older)) {
            older.newer = Some(slot);
        }
        self.keys.insert(key.clone(), slot);
        let at = self.endpoints.len();
        self.slots[slot].at = at;
        let generation = self.slots[slot].generation;
        let node = self.wakes.node(Ticket { slot, generation });
        self.endpoints.push(Box::new(Endpoint {
            service,
            waker: Waker::from(node.clone()),
            node,
            key,
            slot,
            older,
            newer: None,
        }));
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
        if index >= self.ready_len() {
            return Ok(false);
        }
        self.settle();
        if is_attempt(cx) {
            self.check_in(index, cx)
        } else {
            self.check(index)
        }
    }

    /// As [`check_ready_index`](Self::check_ready_index), for one that was ready a moment ago, and is
    /// [settled](Self::settled_len).
    #[inline(always)]
    pub(crate) fn check(&mut self, at: usize) -> Checked<K, S::Error> {
        match self.poll_at(at) {
            Poll::Ready(Ok(())) => Ok(true),
            other => self.checked(at, other, false),
        }
    }

    /// As `check`, in the context of a try.
    #[cold]
    pub(crate) fn check_in(&mut self, at: usize, cx: &mut Context<'_>) -> Checked<K, S::Error> {
        match self.try_at(at, cx) {
            Poll::Ready(Ok(())) => Ok(true),
            other => self.checked(at, other, true),
        }
    }

    #[cold]
    fn checked(
        &mut self,
        at: usize,
        polled: Poll<Result<(), S::Error>>,
        was_tried: bool,
    ) -> Checked<K, S::Error> {
        match polled {
            Poll::Ready(Ok(())) => return Ok(true),
            Poll::Ready(Err(error)) => self.failed(at, error)?,
            Poll::Pending => self.not_ready(at, was_tried),
        }
        Ok(false)
    }

    fn not_ready(&mut self, at: usize, was_tried: bool) {
        if self.endpoints[at].newer.is_some() {
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
        self.settle();
        assert!(
            index < self.ready,
            "the index of a ready service is {index}, and must be less than {}",
            self.ready
        );
        self.call_at(index, request)
    }

    /// Calls the ready one at a settled index.
    #[inline(always)]
    pub(crate) fn call_at(&mut self, at: usize, request: Req) -> S::Future {
        if self.endpoints[at].newer.is_some() {
            return self.call_replaced(at, request);
        }
        self.last = Last::Called(at);
        let guard = Asking { cache: self, at };
        let future = guard.cache.endpoints[at].service.call(request);
        core::mem::forget(guard);
        future
    }

    #[cold]
    fn call_replaced(&mut self, at: usize, request: Req) -> S::Future {
        self.last = Last::Nobody;
        let guard = Asking { cache: self, at };
        let future = guard.cache.endpoints[at].service.call(request);
        drop(guard);
        future
    }

    /// Polls those that are due, as far as `budget` reaches, up to the first that fails.
    #[inline(always)]
    pub(crate) fn poll_due(
        &mut self,
        budget: &mut usize,
    ) -> Result<(), error::Failed<K, S::Error>> {
        match self.called() {
            Some(at) => {
                *budget = budget.saturating_sub(1);
                self.poll_called(at)
            }
            None => self.poll_all_due(budget),
        }
    }

    /// The one that was called last, if nobody else is due, as is the rule.
    #[inline(always)]
    pub(crate) fn called(&self) -> Option<usize> {
        match self.last {
            Last::Called(at) if self.ready == self.due && !self.wakes.any() => Some(at),
            _ => None,
        }
    }

    /// Polls the one that was [called](Self::called).
    #[inline(always)]
    pub(crate) fn poll_called(&mut self, at: usize) -> Result<(), error::Failed<K, S::Error>> {
        match self.poll_at(at) {
            Poll::Ready(Ok(())) => {
                self.last = Last::Nobody;
                Ok(())
            }
            other => self.called_is_not_ready(at, other),
        }
    }

    #[cold]
    fn called_is_not_ready(
        &mut self,
        at: usize,
        polled: Poll<Result<(), S::Error>>,
    ) -> Result<(), error::Failed<K, S::Error>> {
        self.last = Last::Nobody;
        match polled {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => self.failed(at, error)?,
            Poll::Pending => {
                self.ready_to_due(at);
                self.due_to_waiting(self.ready);
            }
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
            match self.poll_at(self.ready) {
                Poll::Ready(Ok(())) => self.due_to_ready(self.ready),
                Poll::Ready(Err(error)) => self.failed(self.ready, error)?,
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
            match self.try_at(at, cx) {
                Poll::Ready(Ok(())) => {
                    self.due_to_ready(at);
                    skip = 0;
                }
                Poll::Ready(Err(error)) => self.failed(at, error)?,
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
    fn failed(&mut self, at: usize, error: S::Error) -> Result<(), error::Failed<K, S::Error>> {
        match self.remove(at) {
            Some(endpoint) => Err(error::Failed(endpoint.key, error)),
            None => Ok(()),
        }
    }

    /// Polls one, with its own waker.
    #[inline(always)]
    fn poll_at(&mut self, at: usize) -> Poll<Result<(), S::Error>> {
        self.ask(at, |endpoint| {
            let mut cx = Context::from_waker(&endpoint.waker);
            endpoint.service.poll_ready(&mut cx)
        })
    }

    /// Polls one, with the waker of a try, which wakes nobody.
    #[cold]
    fn try_at(&mut self, at: usize, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.ask(at, |endpoint| endpoint.service.poll_ready(cx))
    }

    /// If the service panics, it leaves the cache.
    #[inline(always)]
    fn ask(
        &mut self,
        at: usize,
        poll: impl FnOnce(&mut Endpoint<K, S>) -> Poll<Result<(), S::Error>>,
    ) -> Poll<Result<(), S::Error>> {
        let guard = Asking { cache: self, at };
        let polled = poll(&mut guard.cache.endpoints[at]);
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
        let key = |index| &self.endpoints[self.counted(index)].key;
        let ready = (0..self.ready_len()).map(key);
        let pending = (self.ready_len()..self.len()).map(key);
        f.debug_struct("ReadyCache")
            .field("ready", &ready.collect::<Vec<_>>())
            .field("pending", &pending.collect::<Vec<_>>())
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
    at: usize,
}

impl<K: Eq + Hash, S, Req> Drop for Asking<'_, K, S, Req> {
    #[cold]
    fn drop(&mut self) {
        // If one is remembered as called, it is this one: others are asked once it is settled.
        if let Last::Called(_) = self.cache.last {
            self.cache.last = Last::Nobody;
        }
        drop(self.cache.remove(self.at));
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
        assert_eq!(cache.slots[0].at, 0);
        assert!(cache.poll_pending(&mut cx).is_pending());
        cache.wakes.node(late).wake();
        assert!(cache.poll_pending(&mut cx).is_pending());
        assert_eq!(polls.get(), 1);
    }
}
