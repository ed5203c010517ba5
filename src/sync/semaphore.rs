use core::cell::RefCell;
use core::fmt;
use core::task::{Context, Poll};

#[cfg(feature = "critical-section")]
use critical_section::Mutex;

use super::counter::Counter;
use super::gate::{Full, Gate, Place, Waiters};
use super::heap::Shared;
use super::lock::Lock;
use super::slab::{Inline, Slab, Storage};
use super::with_waker;

/// A number of permits, shared by all clones: who wants one and finds none waits in line.
///
/// Waiting is first come, first served. The table of those who wait grows to the most that ever
/// waited at once, and nothing else allocates.
#[derive(Clone)]
pub struct Semaphore {
    counter: Shared<Counter>,
}

/// A number of permits without an allocator, shared by all who have a reference to it: for a `static`.
///
/// Who wants a permit and finds none waits in line, first come, first served. There is room for `N` who wait;
/// what happens to one more is said at [`limit::concurrency`](crate::limit::concurrency#without-an-allocator).
#[cfg(feature = "critical-section")]
pub struct StaticSemaphore<const N: usize> {
    gate: Mutex<RefCell<Gate<Waiters<Inline<N>>>>>,
}

/// A number of permits without an allocator, shared by all who have a reference to it, on one thread.
///
/// Who wants a permit and finds none waits in line, first come, first served. There is room for `N` who wait;
/// what happens to one more is said at [`limit::concurrency`](crate::limit::concurrency#without-an-allocator).
pub struct LocalSemaphore<const N: usize> {
    gate: RefCell<Gate<Waiters<Inline<N>>>>,
}

#[cfg(feature = "std")]
impl Semaphore {
    pub(crate) fn with_permits(permits: usize) -> Self {
        Self {
            counter: Shared::new(Counter::new(permits)),
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

impl Semaphore {
    /// How many permits nobody has.
    pub fn available_permits(&self) -> usize {
        self.counter.free()
    }
}

impl Handle for Semaphore {
    #[inline]
    fn poll(&self, place: &mut Place, cx: &Context<'_>) -> Poll<Result<(), Full>> {
        self.counter.poll(place, cx)
    }

    #[inline]
    fn leave(&self, place: &mut Place) {
        self.counter.leave(place);
    }
}

/// The semaphores whose state is a gate under a lock.
macro_rules! fixed {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        impl<const N: usize> $name<N> {
            /// How many permits nobody has.
            pub fn available_permits(&self) -> usize {
                self.gate.with(|gate| Inline::view(gate).permits())
            }
        }

        $(#[$meta])*
        impl<const N: usize> Handle for &$name<N> {
            fn poll(&self, place: &mut Place, cx: &Context<'_>) -> Poll<Result<(), Full>> {
                with_waker(cx, |waker| self.gate.with(|gate| Inline::view(gate).poll(place, cx, waker)))
            }

            fn leave(&self, place: &mut Place) {
                let farewell = self.gate.with(|gate| Inline::view(gate).leave(place));
                farewell.finish();
            }
        }

        debug!($(#[$meta])* $name<N>);
    };
}

macro_rules! debug {
    ($(#[$meta:meta])* $name:ident$(<$n:ident>)?) => {
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

fixed!(
    #[cfg(feature = "critical-section")]
    StaticSemaphore
);
fixed!(LocalSemaphore);
debug!(Semaphore);

/// A semaphore, however it is shared.
pub trait Handle: Clone {
    /// Takes a permit, or joins the line: see [`Gate::poll`].
    fn poll(&self, place: &mut Place, cx: &Context<'_>) -> Poll<Result<(), Full>>;

    /// Goes away from wherever `place` is, and wakes who is next.
    fn leave(&self, place: &mut Place);
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

    #[inline]
    pub(crate) fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Full>> {
        if self.is_held() {
            return Poll::Ready(Ok(()));
        }
        self.semaphore.poll(&mut self.place, cx)
    }

    #[inline]
    pub(crate) fn release(&mut self) {
        if !matches!(self.place, Place::Outside) {
            self.semaphore.leave(&mut self.place);
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
