use core::mem::{replace, swap};
use core::task::{Context, Poll, Waker};

use super::Gone;
use crate::sync::is_try;
use crate::sync::lock::lock;
use crate::sync::primitives::{Mutex, MutexGuard};

/// What a service goes through on its way to the task and back.
///
/// Wakers and services are cloned, woken and dropped outside of the lock.
pub(super) struct Slot<S, E> {
    state: Mutex<Transfer<S, E>>,
}

struct Transfer<S, E> {
    step: Step<S, E>,
    has_task: bool,
    task: Option<Waker>,
    handle: Option<Waker>,
}

enum Step<S, E> {
    /// The handle has the service.
    Idle,
    ToTask(S),
    /// The task has the service.
    Working,
    ToHandle(S),
    /// The task has ended, and the service with it.
    Ended(End<E>),
    /// The handle is gone.
    Left,
}

/// Why the task ended.
pub(super) enum End<E> {
    Failed(E),
    Gone(Gone),
}

/// What the task is to do.
pub(super) enum Order<S> {
    Wait,
    Take(S),
    GoOn,
    End,
}

impl<S, E> Slot<S, E> {
    /// For a task that starts with the service.
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(Transfer {
                step: Step::Working,
                has_task: true,
                task: None,
                handle: None,
            }),
        }
    }

    // Nothing of the user's runs under the lock.
    fn lock(&self) -> MutexGuard<'_, Transfer<S, E>> {
        lock(&self.state)
    }

    /// Gives the service to the task. Back it comes where that has ended.
    pub(super) fn give(&self, service: S) -> Result<(), S> {
        let mut state = self.lock();
        if !state.has_task || !matches!(state.step, Step::Idle) {
            return Err(service);
        }
        state.step = Step::ToTask(service);
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
        Ok(())
    }

    /// Waits for the service to come back.
    pub(super) fn poll_back(&self, cx: &mut Context<'_>) -> Poll<Result<S, End<E>>> {
        let mut fresh = None;
        loop {
            let mut state = self.lock();
            match replace(&mut state.step, Step::Idle) {
                Step::ToHandle(service) => return Poll::Ready(Ok(service)),
                Step::Ended(end) => return Poll::Ready(Err(end)),
                step => state.step = step,
            }
            // Who only tries does not wait.
            if is_try(cx) || register(&mut state.handle, cx, &mut fresh) {
                drop(state);
                return Poll::Pending;
            }
            drop(state);
            fresh = Some(cx.waker().clone());
        }
    }

    /// What there is to do for the task, which is woken when that changes.
    pub(super) fn poll_task(&self, cx: &mut Context<'_>) -> Order<S> {
        let mut fresh = None;
        loop {
            let mut state = self.lock();
            if !state.has_task || matches!(state.step, Step::Left) {
                return Order::End;
            }
            if register(&mut state.task, cx, &mut fresh) {
                return match replace(&mut state.step, Step::Working) {
                    Step::Working => Order::GoOn,
                    Step::ToTask(service) => Order::Take(service),
                    step => {
                        state.step = step;
                        Order::Wait
                    }
                };
            }
            drop(state);
            fresh = Some(cx.waker().clone());
        }
    }

    /// Gives the service, now ready, to the handle.
    pub(super) fn give_back(&self, service: Option<S>) {
        let Some(service) = service else { return };
        let mut state = self.lock();
        if !matches!(state.step, Step::Working) {
            drop(state);
            drop(service);
            return;
        }
        state.step = Step::ToHandle(service);
        let handle = state.handle.take();
        drop(state);
        if let Some(handle) = handle {
            handle.wake();
        }
    }

    /// The task has ended; the service, if it was not on its way back, has gone with it.
    pub(super) fn end(&self, end: End<E>) {
        let mut state = self.lock();
        state.has_task = false;
        let dropped = match state.step {
            Step::ToTask(_) | Step::Working => replace(&mut state.step, Step::Ended(end)),
            Step::Idle | Step::ToHandle(_) | Step::Ended(_) | Step::Left => Step::Ended(end),
        };
        let (task, handle) = (state.task.take(), state.handle.take());
        drop(state);
        drop((dropped, task));
        if let Some(handle) = handle {
            handle.wake();
        }
    }

    /// The handle is gone.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        let given = replace(&mut state.step, Step::Left);
        let (task, handle) = (state.task.take(), state.handle.take());
        drop(state);
        drop(given);
        drop(handle);
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// Remembers the waker of `cx`. False where a clone of it is needed for that, in `fresh`, made outside of the lock.
fn register(waker: &mut Option<Waker>, cx: &Context<'_>, fresh: &mut Option<Waker>) -> bool {
    if matches!(waker, Some(waker) if waker.will_wake(cx.waker())) {
        return true;
    }
    if fresh.is_none() {
        return false;
    }
    // What was there leaves in `fresh`, to be dropped outside of the lock.
    swap(waker, fresh);
    true
}
