//! A cache of services by key, which knows which of them are ready.
//!
//! A [`ReadyCache`] polls its services until they are ready, and keeps the ready ones by key and by index for a
//! balancer to pick from. Only a service that was woken, called or pushed is polled, so the cost of a poll does not
//! depend on how many services there are. Calls and polls neither allocate nor hash.
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
//!
//! # Differences from tower
//!
//! - An evicted service is dropped in [`evict`](ReadyCache::evict), and not in the next
//!   [`poll_pending`](ReadyCache::poll_pending). A service that was never ready is dropped as soon as another is pushed
//!   for its key.
//! - A service that was ready once is used until the one pushed for its key is ready, even if it is not ready at the
//!   moment of the push. tower drops it then.
//! - The error of a service that failed is not boxed: [`Failed<K, E>`](error::Failed).
//! - A key is looked up by any borrowed form of it, as in a `HashMap`.
//! - One poll asks at most 256 services, then lets other tasks run before it continues. In tower, only tokio's budget
//!   stops it.
//! - When a service panics in `poll_ready` or `call`, it is removed, and the cache stays usable.
//! - A poll that only tries, as [`LoadShed`](crate::load_shed) does, leaves no waiter in the services. A poll for which
//!   no caller waits, as in an idle [`Buffer`](crate::buffer), makes them give up what they have reserved: all are
//!   pending afterwards.

use alloc::vec::Vec;
use core::borrow::Borrow;
use core::fmt;
use core::hash::Hash;
use core::marker::PhantomData;
use core::task::{Context, Poll};
use std::collections::HashMap;

use crate::Service;
use crate::sync::{Mark, has_request, mark, wakes::Wakes};

mod ask;
mod order;

pub(crate) use self::ask::{Checked, POLLS};
use self::order::{Order, Ticket};

/// Services by key, each either ready or pending.
///
/// Services are pushed and evicted, polled by [`poll_pending`](Self::poll_pending) until they are ready, and called. A
/// called service is pending again. See the [module](self) for an example.
///
/// The ready ones have the indices from 0 to [`ready_len`](Self::ready_len), which are valid until the cache next
/// changes.
///
/// # Cancel safety
///
/// There is nothing to cancel: a poll that is never repeated loses nothing.
pub struct ReadyCache<K, S, Req> {
    // Dropped before the services: whatever they wake while they are dropped then wakes no task.
    wakes: Wakes<Ticket>,
    // Where the next try continues.
    turn: u32,
    order: Order<K, S>,
    // The last poll did not reach all services that were due.
    is_behind: bool,
    // Some of the waiting services were polled for a caller, and may have a place in a wait queue or an alarm.
    were_asked: bool,
    // Some of the waiting services were driven since, and are polled when a caller next asks.
    were_driven: bool,
    // Some of the waiting services were polled before there was a request, and are polled again when there is one.
    were_prepared: bool,
    // The slot that was pushed last for each key. Calls and polls do not look here.
    keys: HashMap<K, usize>,
    request: PhantomData<fn(Req)>,
}

impl<K, S, Req> ReadyCache<K, S, Req> {
    /// How many services there are, ready and pending.
    ///
    /// A service and its replacement count as two.
    pub fn len(&self) -> usize {
        self.order.endpoints.len()
    }

    /// Whether there is no service.
    pub fn is_empty(&self) -> bool {
        self.order.endpoints.is_empty()
    }

    /// How many services are ready.
    pub fn ready_len(&self) -> usize {
        self.order.ready_len()
    }

    /// How many services are pending.
    pub fn pending_len(&self) -> usize {
        self.order.endpoints.len() - self.ready_len()
    }

    /// The ready service at `index`, and its key.
    pub fn get_ready_index(&self, index: usize) -> Option<(&K, &S)> {
        let endpoint = self.order.endpoints.get(self.place(index)?)?;
        Some((&endpoint.key, &endpoint.service))
    }

    /// The ready service at `index`, mutably, and its key.
    pub fn get_ready_index_mut(&mut self, index: usize) -> Option<(&K, &mut S)> {
        let at = self.place(index)?;
        let endpoint = self.order.endpoints.get_mut(at)?;
        Some((&endpoint.key, &mut endpoint.service))
    }

    /// The ready services and their keys, by index.
    pub fn iter_ready(&self) -> impl Iterator<Item = (&K, &S)> {
        (0..self.ready_len()).filter_map(|index| self.get_ready_index(index))
    }

    /// The ready services, mutably, and their keys, in any order.
    pub fn iter_ready_mut(&mut self) -> impl Iterator<Item = (&K, &mut S)> {
        self.order.settle();
        (self.order.endpoints[..self.order.ready].iter_mut())
            .map(|endpoint| (&endpoint.key, &mut endpoint.service))
    }

    /// The place of the ready endpoint at `index`.
    fn place(&self, index: usize) -> Option<usize> {
        (index < self.ready_len()).then(|| self.order.counted(index))
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
            order: Order::new(),
            is_behind: false,
            were_asked: false,
            were_driven: false,
            were_prepared: false,
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
        slot.and_then(|slot| self.order.place_of(*slot))
            .is_some_and(|at| self.order.counted(at) >= self.ready_len())
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

    /// Drops the services with this key at once, whether ready or pending. `false` if there are none.
    pub fn evict<Q>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let Some(slot) = self.keys.remove(key) else {
            return false;
        };
        self.order.settle();
        let newest = self
            .order
            .place_of(slot)
            .and_then(|at| self.order.detach(at));
        let older = newest.as_ref().and_then(|endpoint| endpoint.older);
        let older = older
            .and_then(|slot| self.order.place_of(slot))
            .and_then(|at| self.order.detach(at));
        // Take both out before dropping either: a destructor may panic.
        drop((newest, older));
        true
    }

    fn ready_index<Q>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let newest = self.order.place_of(*self.keys.get(key)?)?;
        let older = self.order.endpoints[newest].older;
        let at = older.and_then(|older| self.order.place_of(older));
        let index = self.order.counted(at.unwrap_or(newest));
        (index < self.ready_len()).then_some(index)
    }
}

impl<K, S, Req> ReadyCache<K, S, Req>
where
    K: Clone + Eq + Hash,
    S: Service<Req>,
{
    /// Adds a service, which is pending.
    ///
    /// If the service that has this key was ever ready, it stays: it is polled and called as before until the new one
    /// is ready and replaces it. One that was never ready is dropped.
    pub fn push(&mut self, key: K, service: S) {
        self.order.settle();
        let (mut older, mut replaced) = (None, None);
        if let Some(&newest) = self.keys.get(&key) {
            match self.order.place_of(newest) {
                Some(at) if !self.order.endpoints[at].has_worked => {
                    replaced = self.order.detach(at);
                    older = replaced.as_ref().and_then(|endpoint| endpoint.older);
                }
                at => older = at.map(|_| newest),
            }
        }
        let slot = (self.order).push(key.clone(), service, older, &self.wakes);
        if let Some(older) = older.and_then(|older| self.order.endpoint_of(older)) {
            older.newer = Some(slot);
        }
        self.keys.insert(key, slot);
        drop(replaced);
    }

    /// Polls the pending services that were pushed, called or woken. Ready when none is pending.
    ///
    /// Call it again after a [`push`](Self::push), a call, or a check that found a service not ready.
    ///
    /// # Errors
    ///
    /// When a service fails. That service has been dropped, and the others are unchanged: poll again.
    pub fn poll_pending(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), error::Failed<K, S::Error>>> {
        let mark = mark(cx);
        match mark {
            None if has_request(cx) => self.poll_due(&mut { POLLS })?,
            None => self.prepare_due(&mut { POLLS })?,
            Some(Mark::Try) => self.try_due(cx)?,
            Some(Mark::Drive) => {
                self.drive_due(&mut { POLLS })?;
                return self.poll_driven(cx).map(Ok);
            }
        }
        if self.pending_len() == 0 {
            return Poll::Ready(Ok(()));
        }
        if mark.is_none() {
            self.register(cx);
        }
        Poll::Pending
    }

    /// Whether the service with this key is ready, and still is when polled now.
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

    /// Whether the service at `index` is ready, and still is when polled now. If it is not, it becomes pending.
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
        self.order.settle();
        match mark(cx) {
            None if has_request(cx) => self.check(index),
            None => self.prepare_check(index),
            Some(Mark::Try) => self.try_check(index, cx),
            Some(Mark::Drive) => self.drive_check(index),
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
        self.order.settle();
        assert!(
            index < self.order.ready,
            "the index of a ready service is {index}, and must be less than {}",
            self.order.ready
        );
        self.call_at(index, request)
    }
}

impl<K: Eq + Hash, S, Req> Default for ReadyCache<K, S, Req> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: fmt::Debug, S, Req> fmt::Debug for ReadyCache<K, S, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = |index| &self.order.endpoints[self.order.counted(index)].key;
        let ready = (0..self.ready_len()).map(key);
        let pending = (self.ready_len()..self.len()).map(key);
        f.debug_struct("ReadyCache")
            .field("ready", &ready.collect::<Vec<_>>())
            .field("pending", &pending.collect::<Vec<_>>())
            .finish()
    }
}

/// The cache, at the path it also has in tower.
pub mod cache {
    pub use super::ReadyCache;
}

/// The failure of one service, at the path it has in tower.
pub mod error {
    use core::error::Error;
    use core::fmt;

    use crate::error::AsError;

    /// A service of a [`ReadyCache`](super::ReadyCache) failed and was removed: its key and its error.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Failed<K, E>(
        /// The key that the service had.
        pub K,
        /// The error from its `poll_ready`.
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

#[cfg(test)]
mod tests {
    use alloc::rc::Rc;
    use alloc::sync::Arc;
    use alloc::task::Wake;
    use core::cell::{Cell, RefCell};
    use core::convert::Infallible;
    use core::future::Ready;
    use core::sync::atomic::Ordering::Relaxed;
    use core::task::{Context, Poll, Waker};

    use super::*;
    use crate::sync::{WakeCount, drive, is_drive};
    use crate::util::rng::{Rng, SplitMix64};

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

    #[derive(Clone, Copy, PartialEq)]
    enum Mood {
        Ready,
        Busy,
        Broken,
    }

    /// What the test knows about a service that reserves something when it is ready.
    struct State {
        mood: Cell<Mood>,
        holds: Cell<bool>,
        polls: Cell<u32>,
        drives: Cell<u32>,
        waker: RefCell<Option<Waker>>,
        is_woken: Cell<bool>,
    }

    struct Reserving(Rc<State>);

    impl Reserving {
        fn new(mood: Mood) -> (Self, Rc<State>) {
            let state = Rc::new(State {
                mood: Cell::new(mood),
                holds: Cell::new(false),
                polls: Cell::new(0),
                drives: Cell::new(0),
                waker: RefCell::default(),
                is_woken: Cell::new(false),
            });
            (Self(state.clone()), state)
        }
    }

    impl Service<()> for Reserving {
        type Response = ();
        type Error = ();
        type Future = Ready<Result<(), ()>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
            let state = &self.0;
            let is_driven = is_drive(cx);
            let count = if is_driven {
                &state.drives
            } else {
                &state.polls
            };
            count.set(count.get() + 1);
            // Also when it is ready: it may have more to drive later.
            state.waker.replace(Some(cx.waker().clone()));
            state.is_woken.set(false);
            let mood = state.mood.get();
            state.holds.set(!is_driven && mood == Mood::Ready);
            match mood {
                Mood::Ready => Poll::Ready(Ok(())),
                Mood::Busy => Poll::Pending,
                Mood::Broken => Poll::Ready(Err(())),
            }
        }

        fn call(&mut self, (): ()) -> Self::Future {
            assert!(self.0.holds.take(), "called unready");
            core::future::ready(Ok(()))
        }
    }

    impl Drop for Reserving {
        fn drop(&mut self) {
            self.0.holds.set(false);
        }
    }

    /// Mixes driving polls with pushes, calls and other polls: they reserve nothing, drive no service twice that has
    /// nothing to do, and lose no wake-up.
    #[test]
    fn driven_polls_hold_nothing() {
        let wakes = Arc::new(WakeCount::default());
        let waker = Waker::from(wakes.clone());
        let woken = || wakes.0.swap(0, Relaxed) > 0;
        for seed in 0..200 {
            let mut rng = SplitMix64::new(seed);
            let mut below = move |n: u64| rng.next_range(0..n);
            let mut cache = ReadyCache::new();
            let mut all: Vec<Rc<State>> = Vec::new();
            for step in 0..200 {
                let at = &alloc::format!("seed {seed} step {step}");
                let mood = match below(10) {
                    0 => Mood::Broken,
                    1..=4 => Mood::Busy,
                    _ => Mood::Ready,
                };
                match below(8) {
                    0 | 1 => {
                        let (service, state) = Reserving::new(mood);
                        cache.push(below(6), service);
                        all.push(state);
                    }
                    2 if below(4) == 0 => {
                        cache.evict(&below(6));
                    }
                    2 | 3 if !all.is_empty() => {
                        let state = &all[below(all.len() as u64) as usize];
                        state.mood.set(mood);
                        if let Some(waker) = state.waker.take() {
                            state.is_woken.set(true);
                            waker.wake();
                        }
                    }
                    4 if cache.ready_len() > 0 => {
                        let index = below(cache.ready_len() as u64) as usize;
                        drop(cache.call_ready_index(index, ()));
                    }
                    5 => {
                        let index = below(6) as usize;
                        let check = |cx: &mut Context<'_>| cache.check_ready_index(cx, index);
                        assert_ne!(drive(&waker, check), Ok(true), "{at}");
                    }
                    6 => {
                        let mut polled = Poll::Pending;
                        for _ in 0..20 {
                            woken();
                            polled = drive(&waker, |cx| cache.poll_pending(cx));
                            if !woken() && !matches!(polled, Poll::Ready(Err(_))) {
                                break;
                            }
                        }
                        assert_eq!(cache.ready_len(), 0);
                        assert!(all.iter().all(|state| !state.holds.get()), "{at}");
                        let drives = || all.iter().map(|state| state.drives.get()).sum::<u32>();
                        let alive = || all.iter().filter(|state| Rc::strong_count(state) > 1);
                        assert!(alive().all(|state| !state.is_woken.get()), "{at}");
                        let is_waited = alive().any(|state| state.mood.get() != Mood::Ready);
                        assert_eq!(polled.is_pending(), is_waited, "{at}");
                        let before = drives();
                        assert_eq!(drive(&waker, |cx| cache.poll_pending(cx)), polled);
                        assert!(!woken() && drives() == before, "{at}");
                    }
                    _ => {
                        let mut cx = Context::from_waker(&waker);
                        for _ in 0..20 {
                            woken();
                            let polled = cache.poll_pending(&mut cx);
                            if !woken() && !matches!(polled, Poll::Ready(Err(_))) {
                                break;
                            }
                        }
                        for state in all.iter().filter(|state| Rc::strong_count(state) > 1) {
                            let is_waited = state.mood.get() == Mood::Busy;
                            assert!(state.holds.get() || is_waited, "{at}");
                        }
                    }
                }
            }
        }
    }

    /// A wake-up that has begun when its endpoint leaves may reach the list after another endpoint has taken the slot.
    #[test]
    fn late_wake_up_is_ignored() {
        let waker = Waker::from(Arc::new(Unheard));
        let mut cx = Context::from_waker(&waker);
        let polls = Rc::new(Cell::new(0));
        let mut cache = ReadyCache::new();
        cache.push(0, Busy(Rc::default()));
        let late = Ticket {
            slot: 0,
            generation: 0,
        };
        assert_eq!(cache.order.place_of_woken(late), Some(0));
        cache.evict(&0);
        cache.push(1, Busy(polls.clone()));
        assert_eq!(cache.order.place_of(0), Some(0));
        assert!(cache.poll_pending(&mut cx).is_pending());
        cache.wakes.node(late).wake();
        assert!(cache.poll_pending(&mut cx).is_pending());
        assert_eq!(polls.get(), 1);
    }
}
