//! Wakers of endpoints: what they wake is put on a list, and the task that polls the cache is woken.

use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One endpoint, whatever its index becomes. It is none that has its slot later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(super) slot: usize,
    pub(super) generation: u32,
}

/// Who was woken, and who is to hear of it.
pub(super) struct Wakes {
    shared: Arc<Shared>,
    // What was woken is handed over in it, and then it is kept, for its room.
    pub(super) batch: Vec<Ticket>,
    // The task that was registered last. Whether it is the same again can be asked without the lock.
    parent: Option<Waker>,
    // Where the last try ended.
    pub(super) turn: usize,
}

struct Shared {
    /// Whether anything is woken.
    any: AtomicBool,
    /// Whether a task is registered.
    awaited: AtomicBool,
    state: Mutex<State>,
}

struct State {
    woken: Vec<Ticket>,
    parent: Option<Waker>,
}

/// What an endpoint's waker wakes: it puts the endpoint on the list, and wakes the task.
pub(super) struct Node {
    shared: Arc<Shared>,
    ticket: Ticket,
    /// On the list, or out of the cache: not to be put on the list.
    queued: AtomicBool,
}

impl Wakes {
    pub(super) fn new() -> Self {
        let shared = Shared {
            any: AtomicBool::new(false),
            awaited: AtomicBool::new(false),
            state: Mutex::new(State {
                woken: Vec::new(),
                parent: None,
            }),
        };
        Self {
            shared: Arc::new(shared),
            batch: Vec::new(),
            parent: None,
            turn: 0,
        }
    }

    pub(super) fn node(&self, ticket: Ticket) -> Arc<Node> {
        Arc::new(Node {
            shared: self.shared.clone(),
            ticket,
            queued: AtomicBool::new(false),
        })
    }

    pub(super) fn any(&self) -> bool {
        self.shared.any.load(Ordering::Acquire)
    }

    pub(super) fn collect(&mut self) -> Vec<Ticket> {
        let mut woken = core::mem::take(&mut self.batch);
        let mut state = self.shared.lock();
        core::mem::swap(&mut state.woken, &mut woken);
        self.shared.any.store(false, Ordering::Relaxed);
        woken
    }

    /// `false` if somebody has been woken already.
    pub(super) fn register(&mut self, waker: &Waker) -> bool {
        let is_same = self
            .parent
            .as_ref()
            .is_some_and(|parent| parent.will_wake(waker));
        // If it is not so any more, then because the task is being woken at this moment.
        if is_same && self.shared.awaited.load(Ordering::Acquire) {
            return true;
        }
        let mut parent = Some(waker.clone());
        let mut state = self.shared.lock();
        let is_quiet = state.woken.is_empty();
        if is_quiet {
            core::mem::swap(&mut state.parent, &mut parent);
            self.shared.awaited.store(true, Ordering::Release);
        }
        drop(state);
        drop(parent);
        if !is_same {
            self.parent = Some(waker.clone());
        }
        is_quiet
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        // Wakers of endpoints may be left, and have nobody to wake.
        let parent = self.shared.lock().parent.take();
        drop(parent);
    }
}

impl Shared {
    // Nothing of the user's runs under the lock, and so nothing panics there. A lock that is poisoned all
    // the same guards a state that is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// The endpoint is gone: its wakers wake nobody.
    pub(super) fn retire(&self) {
        self.queued.store(true, Ordering::Relaxed);
    }

    /// The endpoint is off the list and about to be polled.
    pub(super) fn unqueue(&self) {
        // Reads what a wake-up wrote that found the endpoint on the list: the poll sees what led to it.
        self.queued.swap(false, Ordering::AcqRel);
    }
}

impl Wake for Node {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let parent = {
            let mut state = self.shared.lock();
            state.woken.push(self.ticket);
            self.shared.any.store(true, Ordering::Release);
            self.shared.awaited.store(false, Ordering::Release);
            state.parent.take()
        };
        if let Some(parent) = parent {
            parent.wake();
        }
    }
}
