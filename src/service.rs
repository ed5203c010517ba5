//! The [`Service`] trait: an asynchronous function from a request to a response, with readiness.
//!
//! With the feature `tower` (the default), `Service` *is* [`tower_service::Service`], so services can be passed
//! unchanged to and from axum, tonic, hyper-util and tower. The published tower-service links std. Without the
//! feature, `Service` is this crate's own trait with the identical contract and the same implementations, and code
//! written against one compiles against the other. Never implement both for one type.
//!
//! [`tower_service::Service`]: https://docs.rs/tower-service/0.3.3/tower_service/trait.Service.html

#[cfg(not(feature = "tower"))]
pub use own::Service;
#[cfg(feature = "tower")]
pub use tower_service::Service;

#[cfg(not(feature = "tower"))]
mod own {
    use core::future::Future;
    use core::task::{Context, Poll};

    /// An asynchronous function from a `Request` to a response, which can say when it is ready.
    ///
    /// # Readiness
    ///
    /// A caller polls [`poll_ready`](Service::poll_ready) until it is `Ready(Ok(()))`, and then makes one
    /// [`call`](Service::call). `poll_ready` may reserve a shared resource for that call (a permit, a slot), so once
    /// a service is ready, the caller should call it soon or drop it. After an error from `poll_ready`, the service
    /// must not be used again.
    ///
    /// A clone has its own readiness: it starts out unpolled, whatever the state of its original.
    #[must_use = "services do nothing unless they are called"]
    pub trait Service<Request> {
        /// The response.
        type Response;
        /// The error.
        type Error;
        /// The future of the response.
        type Future: Future<Output = Result<Self::Response, Self::Error>>;

        /// Returns `Ready(Ok(()))` when a call can be made. Until then it returns `Pending` and arranges for the task
        /// to be woken.
        ///
        /// # Errors
        ///
        /// Returns an error if the service can no longer answer; drop it then.
        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>>;

        /// Takes the request and returns the future of its response.
        #[must_use = "futures do nothing unless you `.await` or poll them"]
        fn call(&mut self, request: Request) -> Self::Future;
    }

    impl<'a, S, Request> Service<Request> for &'a mut S
    where
        S: Service<Request> + 'a,
    {
        type Response = S::Response;
        type Error = S::Error;
        type Future = S::Future;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            (**self).poll_ready(cx)
        }

        fn call(&mut self, request: Request) -> Self::Future {
            (**self).call(request)
        }
    }

    #[cfg(feature = "alloc")]
    impl<S, Request> Service<Request> for alloc::boxed::Box<S>
    where
        S: Service<Request> + ?Sized,
    {
        type Response = S::Response;
        type Error = S::Error;
        type Future = S::Future;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            (**self).poll_ready(cx)
        }

        fn call(&mut self, request: Request) -> Self::Future {
            (**self).call(request)
        }
    }
}
