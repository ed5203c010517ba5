//! The tree of this crate once per runtime, with the runtime filled in.

/// Mirrors the tree for `$runtime`: whatever is generic over the executor or the timer becomes an alias.
macro_rules! mirror {
    ($runtime:ty) => {
        #[cfg(feature = "alloc")]
        pub use $crate::BoxError;
        pub use $crate::{Layer, Service, service_fn};
        #[allow(unused_imports, reason = "a feature can leave one of them empty")]
        pub use $crate::{filter, layer, load_shed, util};
    };
}
