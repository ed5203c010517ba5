//! Locks and atomics: those of std and core, or with `--cfg loom` (`ci/loom`) those that loom watches.

#[cfg(not(loom))]
#[allow(unused_imports, reason = "not every set of features has atomics")]
pub(crate) use core::sync::atomic;
#[cfg(all(feature = "std", not(loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard};

#[cfg(loom)]
pub(crate) use modelled::{Mutex, MutexGuard, atomic};

#[cfg(loom)]
mod modelled {
    use std::sync::{LockResult, OnceLock, PoisonError};

    pub(crate) use loom::sync::MutexGuard;

    /// Created at its first use, since loom's has no `const fn new`.
    pub(crate) struct Mutex<T> {
        first: std::sync::Mutex<Option<T>>,
        mutex: OnceLock<loom::sync::Mutex<T>>,
    }

    impl<T> Mutex<T> {
        pub(crate) const fn new(first: T) -> Self {
            Self {
                first: std::sync::Mutex::new(Some(first)),
                mutex: OnceLock::new(),
            }
        }

        pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            let make = || {
                let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
                loom::sync::Mutex::new(first.take().expect("it is made once"))
            };
            self.mutex.get_or_init(make).lock()
        }
    }

    pub(crate) mod atomic {
        use core::ops::Deref;
        use std::sync::OnceLock;

        pub(crate) use core::sync::atomic::Ordering;
        pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize};

        /// Created at its first use, since loom's has no `const fn new`. So the thread that created the value around
        /// it has to use it first.
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
