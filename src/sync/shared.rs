//! State that handles share on the heap.
//!
//! Type parameters default to these types, so they need names even without a heap; then they have no values.

#[cfg(feature = "std")]
mod place {
    use alloc::sync::Arc;

    use crate::sync::fast_permits::FastPermits;
    use crate::sync::lock::Lock;
    use crate::sync::primitives::Mutex;

    /// A state on the heap under a lock, and the part of it that is used without the lock.
    pub(crate) struct Heap<T>(Arc<Parts<T>>);
    /// A value on the heap.
    pub(crate) type Shared<T> = Arc<T>;

    struct Parts<T> {
        fast_permits: FastPermits,
        state: Mutex<T>,
    }

    impl<T> Heap<T> {
        pub(crate) fn new(state: T) -> Self {
            Self(Arc::new(Parts {
                fast_permits: FastPermits::new(),
                state: Mutex::new(state),
            }))
        }

        pub(crate) fn fast_permits(&self) -> &FastPermits {
            &self.0.fast_permits
        }
    }

    impl<T> Clone for Heap<T> {
        fn clone(&self) -> Self {
            Self(self.0.clone())
        }
    }

    impl<T> Lock<T> for Heap<T> {
        #[inline]
        fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
            self.0.state.with(f)
        }
    }

    /// Shares a value like `_state`.
    pub(crate) fn shared<T, S>(_state: &Heap<S>, value: T) -> Shared<T> {
        Arc::new(value)
    }
}

#[cfg(not(feature = "std"))]
mod place {
    use core::convert::Infallible;
    use core::marker::PhantomData;
    use core::ops::Deref;

    use crate::sync::fast_permits::FastPermits;
    use crate::sync::lock::Lock;

    /// A state on the heap, where there is no heap.
    pub(crate) type Heap<T> = Nowhere<T>;
    /// A value on the heap, where there is no heap.
    pub(crate) type Shared<T> = Nowhere<T>;

    /// A pointer without values. Like one to the heap it is neither `Send` nor `Sync` by itself, so that nothing
    /// relies on what std takes away.
    #[derive(Debug)]
    pub struct Nowhere<T>(Infallible, PhantomData<*const T>);

    impl<T> Nowhere<T> {
        pub(crate) fn fast_permits(&self) -> &FastPermits {
            match self.0 {}
        }
    }

    impl<T> Clone for Nowhere<T> {
        fn clone(&self) -> Self {
            match self.0 {}
        }
    }

    impl<T> Deref for Nowhere<T> {
        type Target = T;

        fn deref(&self) -> &T {
            match self.0 {}
        }
    }

    pub(crate) fn shared<T, S>(state: &Heap<S>, _value: T) -> Shared<T> {
        match state.0 {}
    }

    impl<T> Lock<T> for Nowhere<T> {
        fn with<R>(&self, _: impl FnOnce(&mut T) -> R) -> R {
            match self.0 {}
        }
    }
}

pub(crate) use place::*;
