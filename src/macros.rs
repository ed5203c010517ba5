/// The three accessors for the inner service of a middleware, its field `inner`.
macro_rules! accessors {
    ($inner:ty) => {
        /// The inner service.
        pub fn get_ref(&self) -> &$inner {
            &self.inner
        }

        /// The inner service, mutable.
        pub fn get_mut(&mut self) -> &mut $inner {
            &mut self.inner
        }

        /// Returns the inner service.
        pub fn into_inner(self) -> $inner {
            self.inner
        }
    };
}

/// Defines a leaf error without data.
macro_rules! leaf_error {
    ($(#[$meta:meta])* $name:ident, $message:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(());

        impl $name {
            /// The error as returned by the middleware.
            #[must_use]
            pub const fn new() -> Self {
                Self(())
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str($message)
            }
        }

        impl core::error::Error for $name {}
    };
}
/// Implements for a middleware's enum `Display`, `AsError`, `into_service`, and the conversions from the inner
/// service's error and into `BoxError`.
///
/// The enum itself is written out by the caller. Each variant named here holds a leaf error, and the variant
/// `Service` holds the inner service's error.
macro_rules! flatten {
    ($name:ident: $($leaf:ident),+) => {
        impl<E> $name<E> {
            /// Returns the inner service's error, if it is one.
            pub fn into_service(self) -> Option<E> {
                match self {
                    $(Self::$leaf(_) => None,)+
                    Self::Service(error) => Some(error),
                }
            }
        }

        impl<E> From<E> for $name<E> {
            fn from(error: E) -> Self {
                Self::Service(error)
            }
        }

        impl<E: core::fmt::Display> core::fmt::Display for $name<E> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self {
                    $(Self::$leaf(error) => core::fmt::Display::fmt(error, f),)+
                    Self::Service(error) => core::fmt::Display::fmt(error, f),
                }
            }
        }

        impl<E: $crate::error::AsError> $crate::error::AsError for $name<E> {
            fn as_error(&self) -> &(dyn core::error::Error + 'static) {
                match self {
                    $(Self::$leaf(error) => error,)+
                    Self::Service(error) => error.as_error(),
                }
            }
        }

        #[cfg(feature = "alloc")]
        impl<'a, E: Into<$crate::error::AnyBoxError<'a>>> From<$name<E>> for $crate::error::AnyBoxError<'a> {
            fn from(error: $name<E>) -> Self {
                match error {
                    $($name::$leaf(error) => error.into(),)+
                    $name::Service(error) => error.into(),
                }
            }
        }
    };
}
