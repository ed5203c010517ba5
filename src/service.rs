//! The [`Service`] trait: an asynchronous function from a request to a response, with readiness.
//!
//! With the feature `tower` (the default) `Service` *is* [`tower_service::Service`], so that services
//! go into axum, tonic, hyper-util and tower and come from there unchanged. Published tower-service
//! links std; without the feature, `Service` is this crate's own trait with the identical contract
//! and the same implementations, and code written against the one compiles against the other.
//! Never implement both for one type.
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

    /// An asynchronous function from a `Request` to a response, which says when it is ready.
    ///
    /// # Readiness
    ///
    /// A caller polls [`poll_ready`](Service::poll_ready) until it is `Ready(Ok(()))`, and then makes
    /// one [`call`](Service::call). `poll_ready` may reserve something shared for that call (a
    /// permit, a slot), so a caller that learns of readiness should call soon, or drop the service.
    /// After an error from `poll_ready` the service is not to be used again.
    ///
    /// A clone has a readiness of its own: it was never polled, whatever its original was.
    #[must_use = "services do nothing unless they are called"]
    pub trait Service<Request> {
        /// What the service answers.
        type Response;
        /// How it fails.
        type Error;
        /// The future of the response.
        type Future: Future<Output = Result<Self::Response, Self::Error>>;

        /// `Ready(Ok(()))` when a call can be made; `Pending`, with the task registered, until then.
        ///
        /// # Errors
        ///
        /// The service cannot answer any more and should be dropped.
        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>>;

        /// Takes the request and gives the future of its response.
        #[must_use = "futures do nothing unless you `.await` or poll them"]
        fn call(&mut self, request: Request) -> Self::Future;
    }

    macro_rules! forward {
        () => {
            type Response = S::Response;
            type Error = S::Error;
            type Future = S::Future;

            fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
                (**self).poll_ready(cx)
            }

            fn call(&mut self, request: Request) -> Self::Future {
                (**self).call(request)
            }
        };
    }

    impl<'a, S, Request> Service<Request> for &'a mut S
    where
        S: Service<Request> + 'a,
    {
        forward!();
    }

    #[cfg(feature = "alloc")]
    impl<S, Request> Service<Request> for alloc::boxed::Box<S>
    where
        S: Service<Request> + ?Sized,
    {
        forward!();
    }
}
