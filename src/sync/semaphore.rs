use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc::sync::Arc;
use core::fmt;
use core::task::{Context, Poll};

use super::gate::{Gate, Place, Step};

/// A number of permits, shared by all clones: who wants one and finds none waits in line.
///
/// Waiting is first come, first served. The table of those who wait grows to the most that ever
/// waited at once, and nothing else allocates.
#[derive(Clone)]
pub struct Semaphore {
    gate: Arc<Mutex<Gate>>,
}

impl Semaphore {
    pub(crate) fn with_permits(permits: usize) -> Self {
        Self {
            gate: Arc::new(Mutex::new(Gate::new(permits))),
        }
    }

    /// How many permits nobody has.
    pub fn available_permits(&self) -> usize {
        self.lock().permits()
    }

    // What runs under the lock is this crate's code alone and does not panic, so a lock that is
    // poisoned all the same guards a state that is whole.
    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("available_permits", &self.available_permits())
            .finish()
    }
}

/// A claim on a [`Semaphore`]: nothing yet, a place in line, or a permit. Dropping it gives it up.
pub struct Permit {
    semaphore: Semaphore,
    place: Place,
}

impl Permit {
    pub(crate) fn new(semaphore: Semaphore) -> Self {
        Self {
            semaphore,
            place: Place::Outside,
        }
    }

    pub(crate) fn semaphore(&self) -> &Semaphore {
        &self.semaphore
    }

    pub(crate) fn is_held(&self) -> bool {
        matches!(self.place, Place::Inside)
    }

    pub(crate) fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_held() {
            return Poll::Ready(());
        }
        let mut waker = None;
        loop {
            let step = self.semaphore.lock().poll(&mut self.place, cx, &mut waker);
            match step {
                Step::Ready => return Poll::Ready(()),
                Step::Pending => return Poll::Pending,
                Step::NeedsWaker => waker = Some(cx.waker().clone()),
            }
        }
    }

    pub(crate) fn release(&mut self) {
        if !matches!(self.place, Place::Outside) {
            let farewell = self.semaphore.lock().leave(&mut self.place);
            farewell.finish();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("held", &self.is_held())
            .finish_non_exhaustive()
    }
}
