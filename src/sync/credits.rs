//! Permits that are taken without the lock under which they were put there.
//!
//! Those of a [`Gate`](super::gate::Gate) that nobody is in line for are handed over in one go: who comes then takes
//! one out of a word. Given back they are under the lock, to the gate, so that whoever is in line there is seen. Where
//! there is a line there are no credits: they are put there only while there is none, and who joins it has looked.

#[cfg(feature = "std")]
mod imp {
    use crate::sync::primitives::atomic::{AtomicUsize, Ordering::Relaxed};

    // It orders no other memory: what a permit is for is seen to under the lock.
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

        /// Under the lock: hands over `permits`, which with those that are out there are no more than a `usize` holds.
        pub(crate) fn add(&self, permits: usize) {
            self.0.fetch_add(permits, Relaxed);
        }

        /// Under the lock: there are none any more.
        pub(crate) fn revoke(&self) {
            self.0.store(0, Relaxed);
        }
    }
}

// Without std there is no lock that blocks, and nothing to take past it.
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
