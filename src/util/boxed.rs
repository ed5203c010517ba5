//! Services behind a box: one type for all services with the same requests, responses and errors.
//!
//! | type | service and futures are | the box is |
//! |---|---|---|
//! | [`BoxService`] | `Send` | `Send`, and `Sync` with the feature `std` |
//! | [`BoxCloneService`] | `Send`, `Clone` | `Send`, `Clone` |
//! | [`BoxCloneSyncService`] | `Send`, `Sync`, `Clone` (futures: `Send`) | `Send`, `Sync`, `Clone` |
//! | [`UnsyncBoxService`] | anything | |
//! | [`UnsyncBoxCloneService`] | `Clone` | `Clone` |
//!
//! # Allocations
//!
//! One allocation to make the box, one per clone, and one per call: the box of the response future, which does not
//! allocate if the future is zero-sized. Readiness allocates nothing. Applying a [`BoxLayer`] allocates the box of
//! the service.
//!
//! # Differences from tower
//!
//! [`UnsyncBoxCloneService`] is new, for services of a single-threaded runtime. Without the feature `std`, a
//! [`BoxService`] is not `Sync`.

use alloc::boxed::Box;
#[cfg(target_has_atomic = "ptr")]
use alloc::sync::Arc;
use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll};
#[cfg(feature = "std")]
use std::sync::{Mutex, PoisonError};

use crate::layer::{LayerFn, layer_fn};
use crate::service::Service;

type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;
type UnsyncBoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>>>>;

/// Defines a box. In brackets: the type of the box, the type of the futures, and the bounds on the inner service.
macro_rules! boxed {
    (
        $(#[$meta:meta])*
        $name:ident<$request:ident, $response:ident, $error:ident>:
        [$inner:ty] [$future:ty] [$($bound:tt)+] [$($future_bound:tt)+] $make:expr;
    ) => {
        $(#[$meta])*
        pub struct $name<$request, $response, $error> {
            inner: Box<$inner>,
        }

        impl<$request, $response, $error> $name<$request, $response, $error> {
            /// Boxes `inner`.
            pub fn new<S>(inner: S) -> Self
            where
                S: Service<$request, Response = $response, Error = $error> + $($bound)+,
                S::Future: $($future_bound)+,
            {
                Self {
                    inner: Box::new($make(inner)),
                }
            }

            /// A layer that boxes a service.
            pub fn layer<S>() -> LayerFn<fn(S) -> Self>
            where
                S: Service<$request, Response = $response, Error = $error> + $($bound)+,
                S::Future: $($future_bound)+,
            {
                layer_fn(Self::new)
            }
        }

        impl<$request, $response, $error> Service<$request>
            for $name<$request, $response, $error>
        {
            type Response = $response;
            type Error = $error;
            type Future = $future;

            fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), $error>> {
                self.inner.poll_ready(cx)
            }

            fn call(&mut self, request: $request) -> $future {
                self.inner.call(request)
            }
        }

        impl<$request, $response, $error> fmt::Debug for $name<$request, $response, $error> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

/// `Clone` for a box defined by [`boxed`], through [`CloneBox`] of its content.
macro_rules! boxed_clone {
    ($name:ident: $wrapper:ident [$($bound:tt)+] [$($future_bound:tt)+]) => {
        impl<T, U, E> Clone for $name<T, U, E> {
            fn clone(&self) -> Self {
                self.inner.clone_box()
            }
        }

        impl<S, T, U, E> CloneBox<T, $name<T, U, E>> for $wrapper<S>
        where
            S: Service<T, Response = U, Error = E> + $($bound)+,
            S::Future: $($future_bound)+,
        {
            fn clone_box(&self) -> $name<T, U, E> {
                $name::new(self.0.clone())
            }
        }
    };
}

/// Defines a layer behind an `Arc` that boxes its services.
macro_rules! boxed_layer {
    ($(#[$meta:meta])* $name:ident: $boxed:ident [$($bound:tt)+]) => {
        $(#[$meta])*
        #[cfg(target_has_atomic = "ptr")]
        pub struct $name<In, T, U, E> {
            inner: Arc<dyn $crate::Layer<In, Service = $boxed<T, U, E>> + Send + Sync>,
        }

        #[cfg(target_has_atomic = "ptr")]
        impl<In, T, U, E> $name<In, T, U, E> {
            /// Shares `layer`, and boxes the services that it makes.
            pub fn new<L>(layer: L) -> Self
            where
                L: $crate::Layer<In> + Send + Sync + 'static,
                L::Service: Service<T, Response = U, Error = E> + $($bound)+,
                <L::Service as Service<T>>::Future: Send + 'static,
            {
                Self {
                    inner: Arc::new(layer_fn(move |inner| $boxed::new(layer.layer(inner)))),
                }
            }
        }

        #[cfg(target_has_atomic = "ptr")]
        impl<In, T, U, E> $crate::Layer<In> for $name<In, T, U, E> {
            type Service = $boxed<T, U, E>;

            fn layer(&self, inner: In) -> Self::Service {
                self.inner.layer(inner)
            }
        }

        #[cfg(target_has_atomic = "ptr")]
        impl<In, T, U, E> Clone for $name<In, T, U, E> {
            fn clone(&self) -> Self {
                Self {
                    inner: self.inner.clone(),
                }
            }
        }

        #[cfg(target_has_atomic = "ptr")]
        impl<In, T, U, E> fmt::Debug for $name<In, T, U, E> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

#[cfg(feature = "std")]
type Exclusively<T, U, E> =
    dyn Service<T, Response = U, Error = E, Future = BoxFuture<U, E>> + Send + Sync;
#[cfg(not(feature = "std"))]
type Exclusively<T, U, E> =
    dyn Service<T, Response = U, Error = E, Future = BoxFuture<U, E>> + Send;

boxed! {
    /// A boxed [`Send`] service with `Send` futures.
    ///
    /// See [`ServiceExt::boxed`](crate::ServiceExt::boxed).
    BoxService<T, U, E>:
    [Exclusively<T, U, E>] [BoxFuture<U, E>]
    [Send + 'static] [Send + 'static] |inner| Exclusive::new(Boxed(inner));
}

boxed! {
    /// A boxed service that is `Clone` and [`Send`], with `Send` futures.
    ///
    /// See [`ServiceExt::boxed_clone`](crate::ServiceExt::boxed_clone).
    BoxCloneService<T, U, E>:
    [dyn CloneBox<T, Self, Response = U, Error = E, Future = BoxFuture<U, E>> + Send]
    [BoxFuture<U, E>]
    [Clone + Send + 'static] [Send + 'static] Boxed;
}
boxed_clone!(BoxCloneService: Boxed [Clone + Send + 'static] [Send + 'static]);

boxed! {
    /// A boxed service that is `Clone`, [`Send`] and [`Sync`], with `Send` futures.
    ///
    /// See [`ServiceExt::boxed_clone_sync`](crate::ServiceExt::boxed_clone_sync).
    BoxCloneSyncService<T, U, E>:
    [dyn CloneBox<T, Self, Response = U, Error = E, Future = BoxFuture<U, E>> + Send + Sync]
    [BoxFuture<U, E>]
    [Clone + Send + Sync + 'static] [Send + 'static] Boxed;
}
boxed_clone!(BoxCloneSyncService: Boxed [Clone + Send + Sync + 'static] [Send + 'static]);

boxed! {
    /// A boxed service. Neither it nor its futures need to be [`Send`].
    UnsyncBoxService<T, U, E>:
    [dyn Service<T, Response = U, Error = E, Future = UnsyncBoxFuture<U, E>>]
    [UnsyncBoxFuture<U, E>]
    ['static] ['static] UnsyncBoxed;
}

boxed! {
    /// A boxed service that is `Clone`. Neither it nor its futures need to be [`Send`].
    UnsyncBoxCloneService<T, U, E>:
    [dyn CloneBox<T, Self, Response = U, Error = E, Future = UnsyncBoxFuture<U, E>>]
    [UnsyncBoxFuture<U, E>]
    [Clone + 'static] ['static] UnsyncBoxed;
}
boxed_clone!(UnsyncBoxCloneService: UnsyncBoxed [Clone + 'static] ['static]);

boxed_layer! {
    /// A shared layer whose services are [`BoxService`]s: one type for all layers that wrap the same service and make
    /// services with the same requests, responses and errors.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{ServiceExt, Layer, service_fn};
    /// use campanile::util::{BoxLayer, MapRequestLayer, MapResponseLayer};
    ///
    /// # futures::executor::block_on(async {
    /// let layers = [
    ///     BoxLayer::new(MapRequestLayer::new(|n: u32| n * 2)),
    ///     BoxLayer::new(MapResponseLayer::new(|n: u32| n + 1)),
    /// ];
    /// let echo = service_fn(|n: u32| async move { Ok::<_, core::fmt::Error>(n) });
    /// assert_eq!(layers[0].layer(echo).oneshot(21).await, Ok(42));
    /// assert_eq!(layers[1].layer(echo).oneshot(21).await, Ok(22));
    /// # });
    /// ```
    BoxLayer: BoxService [Send + 'static]
}

boxed_layer! {
    /// A shared layer whose services are [`BoxCloneService`]s; see [`BoxLayer`].
    BoxCloneServiceLayer: BoxCloneService [Clone + Send + 'static]
}

boxed_layer! {
    /// A shared layer whose services are [`BoxCloneSyncService`]s; see [`BoxLayer`].
    BoxCloneSyncServiceLayer: BoxCloneSyncService [Clone + Send + Sync + 'static]
}

/// A service that can be cloned into the box `B` through a `dyn`.
trait CloneBox<Request, B>: Service<Request> {
    fn clone_box(&self) -> B;
}

/// Boxes the futures of a service.
struct Boxed<S>(S);

impl<S, Request> Service<Request> for Boxed<S>
where
    S: Service<Request>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        Box::pin(self.0.call(request))
    }
}

/// Boxes the futures of a service, which need not be `Send`.
struct UnsyncBoxed<S>(S);

impl<S, Request> Service<Request> for UnsyncBoxed<S>
where
    S: Service<Request>,
    S::Future: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = UnsyncBoxFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        Box::pin(self.0.call(request))
    }
}

/// Makes a `Send` service `Sync`, since it is only accessed through `&mut`.
///
/// The mutex is never locked; it is std's only safe type that tells this to the compiler.
struct Exclusive<S> {
    #[cfg(feature = "std")]
    inner: Mutex<S>,
    #[cfg(not(feature = "std"))]
    inner: S,
}

impl<S> Exclusive<S> {
    #[cfg(feature = "std")]
    const fn new(inner: S) -> Self {
        Self {
            inner: Mutex::new(inner),
        }
    }

    #[cfg(not(feature = "std"))]
    const fn new(inner: S) -> Self {
        Self { inner }
    }

    fn get_mut(&mut self) -> &mut S {
        #[cfg(feature = "std")]
        return self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        #[cfg(not(feature = "std"))]
        return &mut self.inner;
    }
}

impl<S: Service<Request>, Request> Service<Request> for Exclusive<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.get_mut().poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> S::Future {
        self.get_mut().call(request)
    }
}
