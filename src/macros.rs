/// The three ways to the service that a middleware holds in its field `inner`.
macro_rules! accessors {
    ($inner:ty) => {
        /// The inner service.
        pub fn get_ref(&self) -> &$inner {
            &self.inner
        }

        /// The inner service, mutably.
        pub fn get_mut(&mut self) -> &mut $inner {
            &mut self.inner
        }

        /// Gives the inner service back.
        pub fn into_inner(self) -> $inner {
            self.inner
        }
    };
}

/// Defines a failure that carries nothing: a unit-like leaf error.
macro_rules! leaf_error {
    ($(#[$meta:meta])* $name:ident, $message:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(());

        impl $name {
            /// The error as the middleware gives it.
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
/// Gives a middleware's enum its `Display`, `AsError`, and the ways from the service's error, to it, and into `BoxError`.
///
/// The enum is written out where it is used; each variant named here holds a leaf error, and the
/// variant `Service` the inner service's.
macro_rules! flatten {
    ($name:ident: $($leaf:ident),+) => {
        impl<E> $name<E> {
            /// The inner service's error, if that is what this is.
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
