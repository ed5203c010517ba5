//! tokio's semaphore as the source of a concurrency limit's permits.

use alloc::{boxed::Box, sync::Arc};
use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, Waker, ready};

use ::tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::limit::concurrency::{Claim, Permits};
use crate::sync::is_try;

impl Permits for Arc<Semaphore> {
    type Claim = SemaphorePermit;

    fn claim(&self) -> SemaphorePermit {
        SemaphorePermit {
            semaphore: Arc::clone(self),
            state: State::Idle,
        }
    }
}

/// A claim to a permit of tokio's [`Semaphore`]. Waiting for a permit allocates; taking one does not.
///
/// # Examples
///
/// ```
/// use campanile::limit::ConcurrencyLimit;
/// use campanile::{ServiceExt, service_fn};
/// use std::{convert::Infallible, sync::Arc};
/// use tokio::sync::Semaphore;
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// // The rest of the application takes permits, too.
/// let connections = Arc::new(Semaphore::new(10));
/// let service = service_fn(async |n: u32| Ok::<_, Infallible>(n));
/// let service = ConcurrencyLimit::with_semaphore(service, connections.clone());
/// assert_eq!(service.oneshot(1).await.unwrap(), 1);
/// # });
/// ```
pub struct SemaphorePermit {
    semaphore: Arc<Semaphore>,
    state: State,
}

type Acquire = dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send + Sync;

enum State {
    Idle,
    Waiting {
        acquire: Pin<Box<Acquire>>,
        waker: Waker,
    },
    Held(#[expect(dead_code, reason = "held to be dropped")] OwnedSemaphorePermit),
}

impl Claim for SemaphorePermit {
    type Error<E> = SemaphoreError<E>;

    fn another(&self) -> Self {
        self.semaphore.claim()
    }

    fn poll_acquire<E>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SemaphoreError<E>>> {
        loop {
            match &mut self.state {
                State::Idle => match Arc::clone(&self.semaphore).try_acquire_owned() {
                    Ok(permit) => self.state = State::Held(permit),
                    Err(TryAcquireError::Closed) => {
                        return Poll::Ready(Err(SemaphoreError::Closed(SemaphoreClosed::new())));
                    }
                    Err(TryAcquireError::NoPermits) if is_try(cx) => return Poll::Pending,
                    Err(TryAcquireError::NoPermits) => {
                        self.state = State::Waiting {
                            acquire: Box::pin(Arc::clone(&self.semaphore).acquire_owned()),
                            waker: cx.waker().clone(),
                        }
                    }
                },
                State::Waiting { acquire, waker } => {
                    // A try polls with the waiter's waker, since its own would replace that.
                    if !is_try(cx) {
                        waker.clone_from(cx.waker());
                    }
                    let acquired = ready!(acquire.as_mut().poll(&mut Context::from_waker(waker)));
                    // If it was closed, the next attempt to acquire finds that out.
                    self.state = acquired.map_or(State::Idle, State::Held);
                }
                State::Held(_) => return Poll::Ready(Ok(())),
            }
        }
    }

    fn release(&mut self) {
        self.state = State::Idle;
    }
}

impl fmt::Debug for SemaphorePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SemaphorePermit")
            .field("held", &matches!(self.state, State::Held(_)))
            .finish_non_exhaustive()
    }
}

/// How a concurrency limit over tokio's semaphore fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SemaphoreError<E> {
    /// The application has closed the semaphore.
    Closed(SemaphoreClosed),
    /// The inner service failed.
    Service(E),
}

flatten!(SemaphoreError: Closed);

leaf_error! {
    /// The application has closed the semaphore of a concurrency limit.
    SemaphoreClosed, "the semaphore of the concurrency limit is closed"
}
