use core::mem::{replace, take};
use core::task::{Context, Poll, Waker};

use super::Gone;
use crate::Service;
use crate::sync::lock::lock;
use crate::sync::primitives::{Mutex, MutexGuard};
use crate::sync::{WakeOnDrop, drive, has_request, is_drive, is_try, prepare, register, wake};

/// Transfers a service to the task and back.
///
/// Wakers, services and errors are cloned, woken and dropped outside the lock. A destructor that panics costs neither
/// side its wake-up.
pub(super) struct Slot<S, E> {
    state: Mutex<Transfer<S, E>>,
}

struct Transfer<S, E> {
    step: Step<S, E>,
    // What the task polls for. A service that is only driven rests here between polls.
    purpose: Purpose,
    // The task drives the service once before it polls it for anything else: the handle asked for that meanwhile.
    drives_first: bool,
    has_task: bool,
    task: Option<Waker>,
    handle: Option<Waker>,
}

enum Step<S, E> {
    /// The handle has the service.
    Idle,
    /// The task is to take the service.
    ToTask(S),
    /// The task has the service.
    Working,
    /// The service was ready, and the handle is to take it.
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

/// A service that the handle has back.
pub(super) struct Back<S> {
    pub(super) service: S,
    pub(super) is_ready: bool,
}

/// The next action of the task.
pub(super) enum Order<S> {
    Wait,
    /// `None`: with the service it already has.
    Poll {
        service: Option<S>,
        purpose: Purpose,
    },
    End,
}

/// What a service is polled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Request,
    /// A request that is still to come.
    Prepare,
    /// Only to drive it.
    Drive,
}

impl Purpose {
    pub(super) fn of(cx: &Context<'_>) -> Self {
        match (is_drive(cx), has_request(cx)) {
            (true, _) => Self::Drive,
            (false, true) => Self::Request,
            (false, false) => Self::Prepare,
        }
    }

    /// Polls `service` for this in a task of its own.
    pub(super) fn poll<S, Request>(
        self,
        service: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>>
    where
        S: Service<Request>,
    {
        match self {
            Self::Request => service.poll_ready(cx),
            Self::Prepare => prepare(cx.waker(), |cx| service.poll_ready(cx)),
            Self::Drive => drive(cx.waker(), |cx| service.poll_ready(cx)),
        }
    }
}

impl<S, E> Slot<S, E> {
    /// A slot for a task that is about to start.
    pub(super) fn new(service: S, purpose: Purpose) -> Self {
        Self {
            state: Mutex::new(Transfer {
                step: Step::ToTask(service),
                purpose,
                drives_first: false,
                has_task: true,
                task: None,
                handle: None,
            }),
        }
    }

    // No user code runs under the lock.
    fn lock(&self) -> MutexGuard<'_, Transfer<S, E>> {
        lock(&self.state)
    }

    /// Gives the service to the task. Returns it if the task has ended.
    pub(super) fn give(&self, service: S, purpose: Purpose) -> Result<(), S> {
        let mut state = self.lock();
        if !state.has_task || !matches!(state.step, Step::Idle) {
            return Err(service);
        }
        state.step = Step::ToTask(service);
        state.purpose = purpose;
        state.drives_first = false;
        let task = state.task.take();
        drop(state);
        wake(task);
        Ok(())
    }

    /// Takes the service back, or waits for it. A service that is only driven comes back at once, unless it is being
    /// polled.
    pub(super) fn poll_back(&self, cx: &mut Context<'_>) -> Poll<Result<Back<S>, End<E>>> {
        let purpose = Purpose::of(cx);
        // Not `with_waker`: the service would be moved once more.
        let mut fresh = None;
        loop {
            let mut state = self.lock();
            let back = match replace(&mut state.step, Step::Idle) {
                Step::ToHandle(service) => Ok(Back {
                    service,
                    is_ready: true,
                }),
                Step::ToTask(service)
                    if state.purpose == Purpose::Drive || purpose == Purpose::Drive =>
                {
                    Ok(Back {
                        service,
                        is_ready: false,
                    })
                }
                Step::Ended(end) => Err(end),
                // It was lost to a panic on its way to the handle.
                Step::Idle => Err(End::Gone(Gone::Panicked)),
                step => {
                    state.step = step;
                    // A caller that only tries does not wait.
                    if is_try(cx) {
                        return Poll::Pending;
                    }
                    if register(&mut state.handle, cx, &mut fresh).is_none() {
                        drop(state);
                        fresh = Some(cx.waker().clone());
                        continue;
                    }
                    let before = replace(&mut state.purpose, purpose);
                    state.drives_first |= purpose == Purpose::Drive;
                    // A service that was driven and is not here is being polled, and the task looks here afterwards.
                    let task = if purpose != before && before != Purpose::Drive {
                        state.task.take()
                    } else {
                        None
                    };
                    drop(state);
                    wake(task);
                    return Poll::Pending;
                }
            };
            return Poll::Ready(back);
        }
    }

    /// The next action for the task, which is woken when that changes.
    pub(super) fn poll_task(&self, cx: &mut Context<'_>) -> Order<S> {
        let mut fresh = None;
        loop {
            let mut state = self.lock();
            if !state.has_task || matches!(state.step, Step::Left) {
                return Order::End;
            }
            if register(&mut state.task, cx, &mut fresh).is_some() {
                let service = match replace(&mut state.step, Step::Working) {
                    Step::Working => None,
                    Step::ToTask(service) => Some(service),
                    step => {
                        state.step = step;
                        return Order::Wait;
                    }
                };
                let purpose = if take(&mut state.drives_first) {
                    Purpose::Drive
                } else {
                    state.purpose
                };
                return Order::Poll { service, purpose };
            }
            drop(state);
            fresh = Some(cx.waker().clone());
        }
    }

    /// Gives the service, now ready, to the handle. `false` if it is to be driven first, and the task keeps it.
    pub(super) fn give_back(&self, service: &mut Option<S>) -> bool {
        let mut state = self.lock();
        // The handle is gone, and the task is woken to end.
        let Step::Working = state.step else {
            drop(state);
            drop(service.take());
            return true;
        };
        if state.drives_first {
            return false;
        }
        let Some(service) = service.take() else {
            return true;
        };
        state.step = Step::ToHandle(service);
        let handle = state.handle.take();
        drop(state);
        wake(handle);
        true
    }

    /// Puts the service down after it was driven. `false` if a caller waits for it now, and the task keeps it.
    pub(super) fn put_down(&self, service: &mut Option<S>) -> bool {
        let mut state = self.lock();
        match state.step {
            Step::Working if state.purpose != Purpose::Drive => return false,
            Step::Working => {
                if let Some(service) = service.take() {
                    state.step = Step::ToTask(service);
                }
            }
            // The handle is gone, and the task is woken to end.
            _ => {}
        }
        true
    }

    /// The task has ended, and the service with it, unless it was on its way back or was only driven.
    pub(super) fn end(&self, end: End<E>) {
        let mut state = self.lock();
        state.has_task = false;
        let dropped = match state.step {
            Step::ToTask(_) if state.purpose == Purpose::Drive => Step::Ended(end),
            Step::ToTask(_) | Step::Working => replace(&mut state.step, Step::Ended(end)),
            Step::Idle | Step::ToHandle(_) | Step::Ended(_) | Step::Left => Step::Ended(end),
        };
        let task = state.task.take();
        let handle = WakeOnDrop(state.handle.take());
        drop(state);
        drop((dropped, task));
        drop(handle);
    }

    /// The handle is gone.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        let given = replace(&mut state.step, Step::Left);
        let handle = state.handle.take();
        let task = WakeOnDrop(state.task.take());
        drop(state);
        drop((given, handle));
        drop(task);
    }
}
