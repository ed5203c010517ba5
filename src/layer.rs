//! The [`Layer`] trait, which turns one service into another, and ways to stack layers.
//!
//! With the feature `tower` (the default), everything here *is* [`tower_layer`]. Without it, these are this crate's
//! own definitions of the identical contract, which need neither std nor an allocator.
//!
//! [`tower_layer`]: https://docs.rs/tower-layer/0.3.3/tower_layer/

#[cfg(not(feature = "tower"))]
pub use own::{Identity, Layer, LayerFn, Stack, layer_fn};
#[cfg(feature = "tower")]
pub use tower_layer::{Identity, Layer, LayerFn, Stack, layer_fn};

/// The same names, at tower's second path.
pub mod util {
    pub use super::{Identity, Stack};
}

#[cfg(not(feature = "tower"))]
mod own {
    use core::fmt;

    /// Turns one service into another.
    pub trait Layer<S> {
        /// The wrapped service.
        type Service;

        /// Wraps `inner`.
        fn layer(&self, inner: S) -> Self::Service;
    }

    #[allow(clippy::needless_lifetimes, reason = "as it is written in tower-layer")]
    impl<'a, T, S> Layer<S> for &'a T
    where
        T: ?Sized + Layer<S>,
    {
        type Service = T::Service;

        fn layer(&self, inner: S) -> Self::Service {
            (**self).layer(inner)
        }
    }

    /// A layer that changes nothing.
    #[derive(Clone, Default)]
    pub struct Identity {
        _priv: (),
    }

    impl Identity {
        /// A layer that returns the service unchanged.
        pub const fn new() -> Self {
            Self { _priv: () }
        }
    }

    impl<S> Layer<S> for Identity {
        type Service = S;

        fn layer(&self, inner: S) -> S {
            inner
        }
    }

    impl fmt::Debug for Identity {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Identity")
        }
    }

    /// Two layers as one.
    #[derive(Clone)]
    pub struct Stack<Inner, Outer> {
        inner: Inner,
        outer: Outer,
    }

    impl<Inner, Outer> Stack<Inner, Outer> {
        /// Applies `inner` first, then `outer`.
        pub const fn new(inner: Inner, outer: Outer) -> Self {
            Self { inner, outer }
        }
    }

    impl<S, Inner, Outer> Layer<S> for Stack<Inner, Outer>
    where
        Inner: Layer<S>,
        Outer: Layer<Inner::Service>,
    {
        type Service = Outer::Service;

        fn layer(&self, service: S) -> Self::Service {
            self.outer.layer(self.inner.layer(service))
        }
    }

    impl<Inner: fmt::Debug, Outer: fmt::Debug> fmt::Debug for Stack<Inner, Outer> {
        // Prints a deep stack as a list, outermost first, instead of a pyramid.
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            if f.alternate() {
                write!(f, "{:#?},\n{:#?}", self.outer, self.inner)
            } else {
                write!(f, "{:?}, {:?}", self.outer, self.inner)
            }
        }
    }

    /// A layer made from a function; see [`layer_fn`].
    #[derive(Clone, Copy)]
    pub struct LayerFn<F> {
        f: F,
    }

    /// A layer that applies `f`.
    // Not `const`, since tower-layer's is not: code that compiles with fewer features must compile with more.
    pub fn layer_fn<F>(f: F) -> LayerFn<F> {
        LayerFn { f }
    }

    impl<F, S, Out> Layer<S> for LayerFn<F>
    where
        F: Fn(S) -> Out,
    {
        type Service = Out;

        fn layer(&self, inner: S) -> Out {
            (self.f)(inner)
        }
    }

    impl<F> fmt::Debug for LayerFn<F> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("LayerFn")
                .field("f", &format_args!("{}", core::any::type_name::<F>()))
                .finish()
        }
    }

    impl<S> Layer<S> for () {
        type Service = S;

        fn layer(&self, service: S) -> S {
            service
        }
    }

    // `(A, B, C)` is A around B around C, the order of a `ServiceBuilder`: the head wraps what the rest makes.
    macro_rules! tuple {
        (bounds [$head:ident $($rest:ident)*] [$last:ident] [$($bounds:tt)*]) => {
            impl<S, $head, $($rest),*> Layer<S> for ($head, $($rest,)*)
            where
                $($bounds)*
                $last: Layer<S>,
            {
                type Service = $head::Service;

                #[allow(non_snake_case)]
                fn layer(&self, service: S) -> Self::Service {
                    let ($head, $($rest,)*) = self;
                    $head.layer(($($rest,)*).layer(service))
                }
            }
        };
        (bounds $all:tt [$outer:ident $inner:ident $($more:ident)*] [$($bounds:tt)*]) => {
            tuple!(bounds $all [$inner $($more)*] [$($bounds)* $outer: Layer<$inner::Service>,]);
        };
        () => {};
        ($head:ident $($rest:ident)*) => {
            tuple!(bounds [$head $($rest)*] [$head $($rest)*] []);
            tuple!($($rest)*);
        };
    }
    tuple!(L1 L2 L3 L4 L5 L6 L7 L8 L9 L10 L11 L12 L13 L14 L15 L16);
}
