//! Permits that are taken without the lock under which they were added.
//!
//! While no task waits at a [`Gate`](super::gate::Gate), its free permits are moved here all at once, and later tasks
//! each take one from a word. They are returned to the gate, under the lock, so that waiters there are seen. There
//! are no credits while a task waits: they are added only while the wait queue is empty, and a task looks for one
//! under the lock before it joins the queue.

#[cfg(feature = "std")]
mod imp {
    use crate::sync::primitives::atomic::{AtomicUsize, Ordering::Relaxed};

    // It orders no other memory: what a permit protects is synchronized by the lock.
    #[derive(Debug)]
    pub struct Credits(AtomicUsize);

    impl Credits {
        pub(crate) fn new() -> Self {
            Self(AtomicUsize::new(0))
        }

        /// Takes one, if there is one.
        #[inline]
        pub(crate) fn take(&self) -> bool {
            let mut credits = self.0.load(Relaxed);
            while let Some(left) = credits.checked_sub(1) {
                match (self.0).compare_exchange_weak(credits, left, Relaxed, Relaxed) {
                    Ok(_) => return true,
                    Err(other) => credits = other,
                }
            }
            false
        }

        /// Under the lock: adds `permits`, which together with those that are taken fit into a `usize`.
        pub(crate) fn add(&self, permits: usize) {
            self.0.fetch_add(permits, Relaxed);
        }

        /// Under the lock: removes all credits.
        pub(crate) fn revoke(&self) {
            self.0.store(0, Relaxed);
        }
    }
}

// Without std there is no blocking lock, and nothing to take without it.
#[cfg(not(feature = "std"))]
mod imp {
    #[derive(Debug)]
    pub enum Credits {}

    impl Credits {
        pub(crate) fn take(&self) -> bool {
            match *self {}
        }

        pub(crate) fn add(&self, _: usize) {
            match *self {}
        }

        pub(crate) fn revoke(&self) {
            match *self {}
        }
    }
}

pub(crate) use imp::Credits;
