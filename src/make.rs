//! Services that make services: one per connection, per target, per endpoint.
//!
//! [`MakeService`] is implemented for every service whose responses are services. [`MakeConnection`] is implemented
//! for every service, seen as one that connects. Implement neither: implement [`Service`] instead. [`Shared`] makes
//! services by cloning one.
//!
//! # Examples
//!
//! ```
//! use campanile::{MakeService, Service, service_fn};
//! use core::convert::Infallible;
//!
//! # futures::executor::block_on(async {
//! // Makes services that greet in a language.
//! let mut greeters = service_fn(|greeting: &'static str| async move {
//!     Ok::<_, Infallible>(service_fn(move |name: &'static str| async move {
//!         Ok::<_, Infallible>(format!("{greeting}, {name}"))
//!     }))
//! });
//!
//! let mut polite = greeters.make_service("good day").await.unwrap();
//! assert_eq!(polite.call("campanile").await.unwrap(), "good day, campanile");
//! # });
//! ```
//!
//! # Differences from tower
//!
//! - The connection of a [`MakeConnection`] can be any type: tower requires tokio's `AsyncRead` and `AsyncWrite`.
//!   Code that needs I/O traits, of any runtime, bounds [`Connection`](MakeConnection::Connection) by them.
//! - [`into_service`](MakeService::into_service) and [`as_service`](MakeService::as_service) also work in generic
//!   code that knows only that the maker is a [`MakeService`].

use core::convert::Infallible;
use core::fmt;
use core::future::Ready;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::Service;

/// A service that makes services.
///
/// Implemented for every service of `Target`s whose responses are services of `Request`s.
pub trait MakeService<Target, Request>: sealed::MakeService<Target, Request> {
    /// The response of the services that are made.
    type Response;
    /// The error of the services that are made.
    type Error;
    /// The service that is made.
    type Service: Service<Request, Response = Self::Response, Error = Self::Error>;
    /// The error of making a service.
    type MakeError;
    /// The future of a service.
    type Future: Future<Output = Result<Self::Service, Self::MakeError>>;

    /// Returns `Ready(Ok(()))` when a service can be made.
    ///
    /// # Errors
    ///
    /// Returns an error if no more services can be made.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::MakeError>>;

    /// Makes a service for `target`.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    fn make_service(&mut self, target: Target) -> Self::Future;

    /// Turns this maker into a [`Service`], where a trait bound hides that it is one.
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{MakeService, ServiceExt, make::Shared, service_fn};
    ///
    /// async fn once<M: MakeService<(), u32>>(maker: M) -> Option<M::Response> {
    ///     let service = maker.into_service().oneshot(()).await.ok()?;
    ///     service.oneshot(1).await.ok()
    /// }
    ///
    /// # futures::executor::block_on(async {
    /// let maker = Shared::new(service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n)));
    /// assert_eq!(once(maker).await, Some(1));
    /// # });
    /// ```
    fn into_service(self) -> IntoService<Self, Request>
    where
        Self: Sized,
    {
        IntoService {
            make: self,
            request: PhantomData,
        }
    }

    /// Borrows this maker as a [`Service`].
    ///
    /// # Examples
    ///
    /// ```
    /// use campanile::{MakeService, ServiceExt, make::Shared, service_fn};
    ///
    /// async fn twice<M: MakeService<(), u32>>(maker: &mut M) -> Option<(M::Service, M::Service)> {
    ///     let first = maker.as_service().oneshot(()).await.ok()?;
    ///     Some((first, maker.as_service().oneshot(()).await.ok()?))
    /// }
    ///
    /// # futures::executor::block_on(async {
    /// let mut maker = Shared::new(service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n)));
    /// assert!(twice(&mut maker).await.is_some());
    /// # });
    /// ```
    fn as_service(&mut self) -> AsService<'_, Self, Request>
    where
        Self: Sized,
    {
        AsService {
            make: self,
            request: PhantomData,
        }
    }
}

impl<M, S, Target, Request> MakeService<Target, Request> for M
where
    M: Service<Target, Response = S>,
    S: Service<Request>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Service = S;
    type MakeError = M::Error;
    type Future = M::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), M::Error>> {
        Service::poll_ready(self, cx)
    }

    fn make_service(&mut self, target: Target) -> M::Future {
        Service::call(self, target)
    }
}

/// A service that connects.
///
/// Implemented for every service of `Target`s: its response is the connection.
///
/// # Examples
///
/// ```
/// use campanile::{make::MakeConnection, service_fn};
/// use std::io::{self, Cursor, Read};
///
/// /// Whatever the I/O traits are, the bound is put where they are used.
/// async fn first_byte<M>(mut connector: M) -> io::Result<u8>
/// where
///     M: MakeConnection<&'static str, Connection: Read, Error = io::Error>,
/// {
///     let mut byte = [0];
///     connector.make_connection("peer").await?.read_exact(&mut byte)?;
///     Ok(byte[0])
/// }
///
/// # futures::executor::block_on(async {
/// let connector = service_fn(async |_: &'static str| Ok(Cursor::new([7])));
/// assert_eq!(first_byte(connector).await.unwrap(), 7);
/// # });
/// ```
pub trait MakeConnection<Target>: sealed::MakeConnection<Target> {
    /// The connection.
    type Connection;
    /// The error of connecting.
    type Error;
    /// The future of a connection.
    type Future: Future<Output = Result<Self::Connection, Self::Error>>;

    /// Returns `Ready(Ok(()))` when a connection can be made.
    ///
    /// # Errors
    ///
    /// Returns an error if no more connections can be made.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>>;

    /// Connects to `target`.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    fn make_connection(&mut self, target: Target) -> Self::Future;
}

impl<M, Target> MakeConnection<Target> for M
where
    M: Service<Target>,
{
    type Connection = M::Response;
    type Error = M::Error;
    type Future = M::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), M::Error>> {
        Service::poll_ready(self, cx)
    }

    fn make_connection(&mut self, target: Target) -> M::Future {
        Service::call(self, target)
    }
}

mod sealed {
    use crate::Service;

    pub trait MakeService<Target, Request> {}

    impl<M, Target, Request> MakeService<Target, Request> for M where
        M: Service<Target, Response: Service<Request>>
    {
    }

    pub trait MakeConnection<Target> {}

    impl<M: Service<Target>, Target> MakeConnection<Target> for M {}
}

/// A [`MakeService`] as a [`Service`]: see [`MakeService::into_service`].
pub struct IntoService<M, Request> {
    make: M,
    request: PhantomData<fn(Request)>,
}

impl<M, Target, Request> Service<Target> for IntoService<M, Request>
where
    M: MakeService<Target, Request>,
{
    type Response = M::Service;
    type Error = M::MakeError;
    type Future = M::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), M::MakeError>> {
        self.make.poll_ready(cx)
    }

    fn call(&mut self, target: Target) -> M::Future {
        self.make.make_service(target)
    }
}

impl<M: Clone, Request> Clone for IntoService<M, Request> {
    fn clone(&self) -> Self {
        Self {
            make: self.make.clone(),
            request: PhantomData,
        }
    }
}

impl<M: fmt::Debug, Request> fmt::Debug for IntoService<M, Request> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntoService")
            .field("make", &self.make)
            .finish()
    }
}

/// A [`MakeService`] as a [`Service`], borrowed: see [`MakeService::as_service`].
pub struct AsService<'a, M, Request> {
    make: &'a mut M,
    request: PhantomData<fn(Request)>,
}

impl<M, Target, Request> Service<Target> for AsService<'_, M, Request>
where
    M: MakeService<Target, Request>,
{
    type Response = M::Service;
    type Error = M::MakeError;
    type Future = M::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), M::MakeError>> {
        self.make.poll_ready(cx)
    }

    fn call(&mut self, target: Target) -> M::Future {
        self.make.make_service(target)
    }
}

impl<M: fmt::Debug, Request> fmt::Debug for AsService<'_, M, Request> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsService")
            .field("make", &self.make)
            .finish()
    }
}

/// Makes services by cloning one, whatever the target.
///
/// # Examples
///
/// ```
/// use campanile::{MakeService, ServiceExt, make::Shared, service_fn};
///
/// # futures::executor::block_on(async {
/// let mut maker = Shared::new(service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n)));
/// let service = maker.make_service("any target").await.unwrap();
/// assert_eq!(service.oneshot(1).await, Ok(1));
/// # });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Shared<S> {
    service: S,
}

impl<S> Shared<S> {
    /// Makes services by cloning `service`.
    pub const fn new(service: S) -> Self {
        Self { service }
    }
}

impl<S: Clone, Target> Service<Target> for Shared<S> {
    type Response = S;
    type Error = Infallible;
    type Future = SharedFuture<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Target) -> SharedFuture<S> {
        SharedFuture {
            inner: core::future::ready(Ok(self.service.clone())),
        }
    }
}

/// The response of a [`Shared`]: ready at once.
#[derive(Debug)]
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct SharedFuture<S> {
    inner: Ready<Result<S, Infallible>>,
}

impl<S> Future for SharedFuture<S> {
    type Output = Result<S, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

/// The future, at tower's path.
pub mod future {
    pub use super::SharedFuture;
}
