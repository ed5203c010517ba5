//! The common parts of all combinators.

/// Defines a layer and a service that hold a function: the types, their constructors, and `Debug`.
macro_rules! combinator {
    (
        $(#[$layer_meta:meta])* $layer:ident;
        $(#[$meta:meta])* $name:ident;
    ) => {
        $(#[$layer_meta])*
        #[derive(Clone, Copy)]
        pub struct $layer<F> {
            f: F,
        }

        impl<F> $layer<F> {
            /// A layer that applies `f`.
            pub const fn new(f: F) -> Self {
                Self { f }
            }
        }

        impl<S, F: Clone> $crate::Layer<S> for $layer<F> {
            type Service = $name<S, F>;

            fn layer(&self, inner: S) -> Self::Service {
                $name::new(inner, self.f.clone())
            }
        }

        impl<F> core::fmt::Debug for $layer<F> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($layer))
                    .field("f", &format_args!("{}", core::any::type_name::<F>()))
                    .finish()
            }
        }

        $(#[$meta])*
        #[derive(Clone, Copy)]
        pub struct $name<S, F> {
            inner: S,
            f: F,
        }

        impl<S, F> $name<S, F> {
            /// Applies `f` around `inner`.
            pub const fn new(inner: S, f: F) -> Self {
                Self { inner, f }
            }

            /// A layer that applies `f`.
            pub const fn layer(f: F) -> $layer<F> {
                $layer::new(f)
            }

            accessors!(S);
        }

        impl<S: core::fmt::Debug, F> core::fmt::Debug for $name<S, F> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("inner", &self.inner)
                    .field("f", &format_args!("{}", core::any::type_name::<F>()))
                    .finish()
            }
        }
    };
}

/// `Debug` for a response future, whose contents are the user's and rarely `Debug`.
macro_rules! opaque_debug {
    ($name:ident<$($param:ident),+>) => {
        impl<$($param),+> core::fmt::Debug for $name<$($param),+> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}
