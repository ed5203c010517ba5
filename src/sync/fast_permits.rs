//! Permits that are taken without the lock under which they were added.
//!
//! While no task waits in a [`WaitQueue`](super::wait_queue::WaitQueue), its free permits are moved here all at once,
//! and later tasks each take one from a word. They are returned to the wait queue, under the lock, so that waiters there are seen. There
//! are no fast permits while a task waits: they are added only while the wait queue is empty, and a task looks for one
//! under the lock before it joins the queue.

#[cfg(feature = "std")]
mod imp {
    use crate::sync::primitives::atomic::{AtomicUsize, Ordering::Relaxed};

    // It orders no other memory: what a permit protects is synchronized by the lock.
    #[derive(Debug)]
    pub struct FastPermits(AtomicUsize);

    impl FastPermits {
        pub(crate) fn new() -> Self {
            Self(AtomicUsize::new(0))
        }

        /// Takes one, if there is one.
        #[inline]
        pub(crate) fn take(&self) -> bool {
            let mut fast_permits = self.0.load(Relaxed);
            while let Some(left) = fast_permits.checked_sub(1) {
                match (self.0).compare_exchange_weak(fast_permits, left, Relaxed, Relaxed) {
                    Ok(_) => return true,
                    Err(other) => fast_permits = other,
                }
            }
            false
        }

        /// How many there are.
        pub(crate) fn count(&self) -> usize {
            self.0.load(Relaxed)
        }

        /// Under the lock: adds `permits`, which together with those that are taken fit into a `usize`.
        pub(crate) fn add(&self, permits: usize) {
            self.0.fetch_add(permits, Relaxed);
        }

        /// Under the lock: removes all fast permits.
        pub(crate) fn revoke(&self) {
            self.0.store(0, Relaxed);
        }
    }
}

// Without std there is no blocking lock, and nothing to take without it.
#[cfg(not(feature = "std"))]
mod imp {
    #[derive(Debug)]
    pub enum FastPermits {}

    impl FastPermits {
        pub(crate) fn take(&self) -> bool {
            match *self {}
        }

        pub(crate) fn count(&self) -> usize {
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

pub(crate) use imp::FastPermits;
