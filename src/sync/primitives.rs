//! Locks and atomics: those of std and core, or under `--cfg loom`, for `ci/loom`, those that loom watches.

#[cfg(not(loom))]
#[allow(unused_imports, reason = "not every set of features has atomics")]
pub(crate) use core::sync::atomic;
#[cfg(all(feature = "std", not(loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard};

#[cfg(loom)]
pub(crate) use modelled::{Mutex, MutexGuard, atomic};

#[cfg(loom)]
mod modelled {
    pub(crate) use loom::sync::{Mutex, MutexGuard};

    pub(crate) mod atomic {
        use core::ops::Deref;
        use std::sync::OnceLock;

        pub(crate) use core::sync::atomic::Ordering;
        pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize};

        /// Made when it is first used, since loom's own has no `const fn new`: so the thread that made what it is a
        /// part of has to be the first to use it.
        #[derive(Debug)]
        pub(crate) struct AtomicU64 {
            first: u64,
            atomic: OnceLock<loom::sync::atomic::AtomicU64>,
        }

        impl AtomicU64 {
            pub(crate) const fn new(first: u64) -> Self {
                let atomic = OnceLock::new();
                Self { first, atomic }
            }
        }

        impl Deref for AtomicU64 {
            type Target = loom::sync::atomic::AtomicU64;

            fn deref(&self) -> &Self::Target {
                self.atomic
                    .get_or_init(|| loom::sync::atomic::AtomicU64::new(self.first))
            }
        }
    }
}
