use alloc::{boxed::Box, sync::Arc};
use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use ::async_lock::futures::AcquireArc;
use ::async_lock::{Semaphore, SemaphoreGuardArc};

use super::Permits;
use crate::sync::is_try;

/// How far a permit of an `async_lock::Semaphore` is acquired. Waiting for one allocates; taking one does not.
#[derive(Default)]
pub struct AsyncLockAcquisition(State);

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Queued(Pin<Box<AcquireArc>>),
    Acquired(#[expect(dead_code, reason = "held to be dropped")] SemaphoreGuardArc),
}

impl Permits for Arc<Semaphore> {
    type Acquisition = AsyncLockAcquisition;
    type Error<E> = E;

    fn poll_acquire<E>(
        &self,
        AsyncLockAcquisition(state): &mut AsyncLockAcquisition,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), E>> {
        if let State::Acquired(_) = state {
            return Poll::Ready(Ok(()));
        }
        // A try does not poll a future that waits: that would replace its waker with one that wakes no task.
        if matches!(state, State::Idle) || is_try(cx) {
            if let Some(guard) = self.try_acquire_arc() {
                *state = State::Acquired(guard);
                return Poll::Ready(Ok(()));
            }
            if is_try(cx) {
                return Poll::Pending;
            }
            *state = State::Queued(Box::pin(self.acquire_arc()));
        }
        if let State::Queued(acquire) = state {
            let guard = ready!(acquire.as_mut().poll(cx));
            *state = State::Acquired(guard);
        }
        Poll::Ready(Ok(()))
    }

    fn release(&self, acquisition: &mut AsyncLockAcquisition) {
        acquisition.0 = State::Idle;
    }
}

impl fmt::Debug for AsyncLockAcquisition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Idle => "Idle",
            State::Queued(_) => "Queued",
            State::Acquired(_) => "Acquired",
        })
    }
}
