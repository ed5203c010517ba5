use core::cell::RefCell;
use core::fmt;
use core::task::{Context, Poll};

#[cfg(feature = "critical-section")]
use critical_section::Mutex;

use super::gate::{Full, Gate, Place};
use super::heap::Heap;
use super::lock::Lock;
use super::slab::{Growing, Inline, Slab, Storage};
use super::with_waker;

/// A number of permits, shared by all clones: who wants one and finds none waits in line.
///
/// Waiting is first come, first served. The table of those who wait grows to the most that ever
/// waited at once, and nothing else allocates.
#[derive(Clone)]
pub struct Semaphore {
    gate: Heap<Gate<Growing>>,
}

/// A number of permits without an allocator, shared by all who have a reference to it: for a `static`.
///
/// Who wants a permit and finds none waits in line, first come, first served. There is room for `N` who wait;
/// what happens to one more is said at [`limit::concurrency`](crate::limit::concurrency#without-an-allocator).
#[cfg(feature = "critical-section")]
pub struct StaticSemaphore<const N: usize> {
    gate: Mutex<RefCell<Gate<Inline<N>>>>,
}

/// A number of permits without an allocator, shared by all who have a reference to it, on one thread.
///
/// Who wants a permit and finds none waits in line, first come, first served. There is room for `N` who wait;
/// what happens to one more is said at [`limit::concurrency`](crate::limit::concurrency#without-an-allocator).
pub struct LocalSemaphore<const N: usize> {
    gate: RefCell<Gate<Inline<N>>>,
}

#[cfg(feature = "std")]
impl Semaphore {
    pub(crate) fn with_permits(permits: usize) -> Self {
        Self {
            gate: super::heap::heap(Gate::new(permits, Slab::new())),
        }
    }
}

#[cfg(feature = "critical-section")]
impl<const N: usize> StaticSemaphore<N> {
    pub(crate) const fn with_permits(permits: usize) -> Self {
        let gate = Gate::new(permits, Slab::inline());
        Self {
            gate: Mutex::new(RefCell::new(gate)),
        }
    }
}

impl<const N: usize> LocalSemaphore<N> {
    pub(crate) const fn with_permits(permits: usize) -> Self {
        Self {
            gate: RefCell::new(Gate::new(permits, Slab::inline())),
        }
    }
}

/// What each kind of semaphore shows, and how it is shared: as a `$shared`.
macro_rules! semaphore {
    ($(#[$meta:meta])* $name:ident$(<$n:ident>)?, $shared:ty, $storage:ty) => {
        $(#[$meta])*
        impl$(<const $n: usize>)? $name$(<$n>)? {
            /// How many permits nobody has.
            pub fn available_permits(&self) -> usize {
                self.gate.with(|gate| gate.permits())
            }
        }

        $(#[$meta])*
        impl$(<const $n: usize>)? Handle for $shared {
            type Storage = $storage;

            fn with<R>(&self, f: impl FnOnce(&mut Gate<$storage>) -> R) -> R {
                self.gate.with(f)
            }
        }

        $(#[$meta])*
        impl$(<const $n: usize>)? fmt::Debug for $name$(<$n>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("available_permits", &self.available_permits())
                    .finish()
            }
        }
    };
}

semaphore!(Semaphore, Semaphore, Growing);
semaphore!(
    #[cfg(feature = "critical-section")]
    StaticSemaphore<N>,
    &StaticSemaphore<N>,
    Inline<N>
);
semaphore!(LocalSemaphore<N>, &LocalSemaphore<N>, Inline<N>);

/// A semaphore, however it is shared.
pub trait Handle: Clone {
    /// What those who wait are kept in.
    type Storage: Storage;

    /// Lends the gate to `f`.
    fn with<R>(&self, f: impl FnOnce(&mut Gate<Self::Storage>) -> R) -> R;
}

/// A claim on a semaphore: nothing yet, a place in line, or a permit. Dropping it gives it up.
pub struct Permit<S: Handle = Semaphore> {
    semaphore: S,
    place: Place,
}

impl<S: Handle> Permit<S> {
    pub(crate) fn new(semaphore: S) -> Self {
        Self {
            semaphore,
            place: Place::Outside,
        }
    }

    pub(crate) fn semaphore(&self) -> &S {
        &self.semaphore
    }

    pub(crate) fn is_held(&self) -> bool {
        matches!(self.place, Place::Inside)
    }

    pub(crate) fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Full>> {
        if self.is_held() {
            return Poll::Ready(Ok(()));
        }
        let Self { semaphore, place } = self;
        with_waker(cx, |waker| {
            semaphore.with(|gate| gate.poll(place, cx, waker))
        })
    }

    pub(crate) fn release(&mut self) {
        if !matches!(self.place, Place::Outside) {
            let farewell = self.semaphore.with(|gate| gate.leave(&mut self.place));
            farewell.finish();
        }
    }
}

impl<S: Handle> Drop for Permit<S> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<S: Handle> fmt::Debug for Permit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("held", &self.is_held())
            .finish_non_exhaustive()
    }
}
