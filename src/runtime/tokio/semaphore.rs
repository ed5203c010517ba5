//! tokio's semaphore as the source of a concurrency limit's permits.

use alloc::{boxed::Box, sync::Arc};
use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, Waker, ready};

use ::tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::limit::concurrency::Permits;
use crate::sync::is_try;

/// How far a permit of tokio's [`Semaphore`] is acquired. Waiting for one allocates; taking one does not.
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
#[derive(Default)]
pub struct SemaphoreAcquisition(State);

type Acquire = dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send + Sync;

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Queued {
        acquire: Pin<Box<Acquire>>,
        waker: Waker,
    },
    Acquired(#[expect(dead_code, reason = "held to be dropped")] OwnedSemaphorePermit),
}

impl Permits for Arc<Semaphore> {
    type Acquisition = SemaphoreAcquisition;
    type Error<E> = SemaphoreError<E>;

    fn poll_acquire<E>(
        &self,
        SemaphoreAcquisition(state): &mut SemaphoreAcquisition,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SemaphoreError<E>>> {
        loop {
            match state {
                State::Idle => match Self::clone(self).try_acquire_owned() {
                    Ok(permit) => *state = State::Acquired(permit),
                    Err(TryAcquireError::Closed) => {
                        return Poll::Ready(Err(SemaphoreError::Closed(SemaphoreClosed::new())));
                    }
                    Err(TryAcquireError::NoPermits) if is_try(cx) => return Poll::Pending,
                    Err(TryAcquireError::NoPermits) => {
                        *state = State::Queued {
                            acquire: Box::pin(Self::clone(self).acquire_owned()),
                            waker: cx.waker().clone(),
                        }
                    }
                },
                State::Queued { acquire, waker } => {
                    // A try polls with the waiter's waker, since its own would replace that.
                    if !is_try(cx) {
                        waker.clone_from(cx.waker());
                    }
                    let acquired = ready!(acquire.as_mut().poll(&mut Context::from_waker(waker)));
                    // If it was closed, the next attempt to acquire finds that out.
                    *state = acquired.map_or(State::Idle, State::Acquired);
                }
                State::Acquired(_) => return Poll::Ready(Ok(())),
            }
        }
    }

    fn release(&self, acquisition: &mut SemaphoreAcquisition) {
        acquisition.0 = State::Idle;
    }
}

impl fmt::Debug for SemaphoreAcquisition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Idle => "Idle",
            State::Queued { .. } => "Queued",
            State::Acquired(_) => "Acquired",
        })
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
