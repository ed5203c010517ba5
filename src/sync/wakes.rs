//! Wakers of parts: who is woken is put on a list, and the task that polls the whole is woken.
//!
//! So one task has many futures or services, and polls only those that something has happened to; and it can tell
//! their wake-ups from others.

use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::task::Waker;
use std::sync::PoisonError;

use super::primitives::atomic::{
    AtomicBool,
    Ordering::{Acquire, Relaxed, Release},
};
use super::primitives::{Mutex, MutexGuard};

/// Who was woken, each by its `I`, and who is to hear of it.
pub(crate) struct Wakes<I> {
    shared: Arc<Shared<I>>,
    // What was woken is handed over in it, and then it is kept, for its room.
    batch: Vec<I>,
    // The task that was registered last. Whether it is the same again can be asked without the lock.
    parent: Option<Waker>,
}

// Both flags are changed under the lock, and only save taking it: what they tell of is read under it. Who sees one too
// late has a wake-up of the task's before him, and that brings the news.
struct Shared<I> {
    /// Whether anything is woken.
    any: AtomicBool,
    /// Whether a task is registered.
    awaited: AtomicBool,
    state: Mutex<State<I>>,
}

struct State<I> {
    woken: Vec<I>,
    parent: Option<Waker>,
}

/// What the waker of a part wakes: it puts the part on the list, and wakes the task.
pub(crate) struct Node<I> {
    shared: Arc<Shared<I>>,
    id: I,
    /// On the list, or gone: not to be put on the list.
    queued: AtomicBool,
}

impl<I: Copy> Wakes<I> {
    pub(crate) fn new() -> Self {
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
        }
    }

    /// A new part.
    pub(crate) fn node(&self, id: I) -> Arc<Node<I>> {
        Arc::new(Node {
            shared: self.shared.clone(),
            id,
            queued: AtomicBool::new(false),
        })
    }

    /// Whether there is somebody on the list.
    pub(crate) fn any(&self) -> bool {
        self.shared.any.load(Relaxed)
    }

    /// Takes all from the list. They are to be [taken off it](Node::unqueue) before they are polled, and the list to be
    /// [given back](Self::give_back), for its room.
    pub(crate) fn collect(&mut self) -> Vec<I> {
        let mut woken = core::mem::take(&mut self.batch);
        let mut state = self.shared.lock();
        core::mem::swap(&mut state.woken, &mut woken);
        self.shared.any.store(false, Relaxed);
        woken
    }

    /// Takes the emptied list back.
    pub(crate) fn give_back(&mut self, batch: Vec<I>) {
        self.batch = batch;
    }

    /// Wakes `waker` at the next wake-up. `false` if somebody has been woken already.
    #[inline]
    pub(crate) fn register(&mut self, waker: &Waker) -> bool {
        let is_same = self
            .parent
            .as_ref()
            .is_some_and(|parent| parent.will_wake(waker));
        // If it is not so any more, then because the task is being woken at this moment.
        is_same && self.shared.awaited.load(Relaxed) || self.register_anew(waker, is_same)
    }

    #[cold]
    fn register_anew(&mut self, waker: &Waker, is_same: bool) -> bool {
        let mut parent = Some(waker.clone());
        let mut state = self.shared.lock();
        let is_quiet = state.woken.is_empty();
        if is_quiet {
            core::mem::swap(&mut state.parent, &mut parent);
            self.shared.awaited.store(true, Relaxed);
        }
        drop(state);
        drop(parent);
        if !is_same {
            self.parent = Some(waker.clone());
        }
        is_quiet
    }
}

impl<I> Drop for Wakes<I> {
    fn drop(&mut self) {
        // Wakers of parts may be left, and have nobody to wake.
        let _parent = self.shared.lock().parent.take();
    }
}

impl<I> Shared<I> {
    // Nothing of the user's runs under the lock, and so nothing panics there. A lock that is poisoned all
    // the same guards a state that is whole.
    fn lock(&self) -> MutexGuard<'_, State<I>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I> Node<I> {
    /// The part is gone: its wakers wake nobody.
    pub(crate) fn retire(&self) {
        self.queued.store(true, Relaxed);
    }

    /// The part is to be polled anyway, as if it were on the list. `false` if it is there.
    pub(crate) fn queue(&self) -> bool {
        // It is the task that asks, and has nothing to tell itself.
        !self.queued.swap(true, Relaxed)
    }

    /// The part is off the list and about to be polled.
    pub(crate) fn unqueue(&self) {
        // Reads what a wake-up wrote that found the part on the list: the poll sees what led to it.
        self.queued.swap(false, Acquire);
    }
}

impl<I: Copy + Send + Sync> Wake for Node<I> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // If it is there already, the poll to come is to see what led to this: it reads what is written here. The lock
        // does as much for who puts it there.
        if self.queued.swap(true, Release) {
            return;
        }
        let parent = {
            let mut state = self.shared.lock();
            state.woken.push(self.id);
            self.shared.any.store(true, Relaxed);
            self.shared.awaited.store(false, Relaxed);
            state.parent.take()
        };
        if let Some(parent) = parent {
            parent.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wakes a part when it is dropped.
    struct Last(Waker);

    impl Wake for Last {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Last {
        fn drop(&mut self) {
            self.0.wake_by_ref();
        }
    }

    #[test]
    fn a_tasks_waker_is_let_go_outside_of_the_lock() {
        let mut wakes = Wakes::new();
        let node = wakes.node(1);
        assert!(wakes.register(&Waker::from(Arc::new(Last(node.into())))));
        assert!(wakes.register(Waker::noop()));
        assert_eq!(wakes.collect(), [1]);
    }

    #[test]
    fn a_part_is_on_the_list_once_and_one_that_is_gone_is_not() {
        let mut wakes = Wakes::new();
        let node = wakes.node(1);
        assert!(node.queue());
        assert!(!node.queue());
        node.wake_by_ref();
        assert!(!wakes.any());
        node.unqueue();
        node.wake_by_ref();
        assert!(wakes.any() && !node.queue());
        node.wake_by_ref();
        assert_eq!(wakes.collect(), [1]);
        node.unqueue();
        node.retire();
        node.wake_by_ref();
        assert!(!wakes.any());
    }

    #[test]
    fn a_list_that_is_given_back_is_the_next() {
        let mut wakes = Wakes::new();
        wakes.node(1).wake_by_ref();
        let mut woken = wakes.collect();
        woken.clear();
        wakes.give_back(woken);
        drop(wakes.collect());
        assert!(wakes.shared.lock().woken.capacity() > 0);
    }
}
