use alloc::{boxed::Box, sync::Arc};
use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use super::{Claim, Permits};
use crate::sync::is_try;

/// A claim to a permit of an `async_lock::Semaphore`. Waiting for one allocates; taking one does not.
pub struct AsyncLockPermit {
    semaphore: Arc<::async_lock::Semaphore>,
    state: AsyncLockState,
}

enum AsyncLockState {
    Idle,
    Waiting(Pin<Box<::async_lock::futures::AcquireArc>>),
    Held(#[expect(dead_code, reason = "held to be dropped")] ::async_lock::SemaphoreGuardArc),
}

impl Permits for Arc<::async_lock::Semaphore> {
    type Claim = AsyncLockPermit;

    fn claim(&self) -> AsyncLockPermit {
        AsyncLockPermit {
            semaphore: Arc::clone(self),
            state: AsyncLockState::Idle,
        }
    }
}

impl Claim for AsyncLockPermit {
    type Error<E> = E;

    fn another(&self) -> Self {
        self.semaphore.claim()
    }

    fn poll_acquire<E>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        if let AsyncLockState::Idle = self.state {
            match self.semaphore.try_acquire_arc() {
                Some(guard) => self.state = AsyncLockState::Held(guard),
                None if is_try(cx) => return Poll::Pending,
                None => {
                    let acquire = self.semaphore.acquire_arc();
                    self.state = AsyncLockState::Waiting(Box::pin(acquire));
                }
            }
        }
        if let AsyncLockState::Waiting(acquire) = &mut self.state {
            if is_try(cx) {
                // A poll would replace the waiting task's waker with one that wakes no task.
                let Some(guard) = self.semaphore.try_acquire_arc() else {
                    return Poll::Pending;
                };
                self.state = AsyncLockState::Held(guard);
                return Poll::Ready(Ok(()));
            }
            let guard = ready!(acquire.as_mut().poll(cx));
            self.state = AsyncLockState::Held(guard);
        }
        Poll::Ready(Ok(()))
    }

    fn release(&mut self) {
        self.state = AsyncLockState::Idle;
    }
}

impl fmt::Debug for AsyncLockPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncLockPermit")
            .field("held", &matches!(self.state, AsyncLockState::Held(_)))
            .finish_non_exhaustive()
    }
}
