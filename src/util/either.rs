use core::pin::Pin;
use core::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::layer::{Identity, Layer};
use crate::service::Service;

/// One of two services with the same responses, or one of two layers.
///
/// The error is that of the left service, and errors of the right service are converted into it. So a layer that adds
/// a failure can be optional, since every middleware's error is [`From`] the error of its service.
///
/// # Examples
///
/// ```
/// use campanile::{Layer, ServiceExt, service_fn, util::Either, util::MapRequestLayer};
///
/// # futures::executor::block_on(async {
/// for (double, expected) in [(true, 42), (false, 22)] {
///     let layer = if double {
///         Either::Left(MapRequestLayer::new(|n: u32| n * 2))
///     } else {
///         Either::Right(MapRequestLayer::new(|n: u32| n + 1))
///     };
///     let service = layer.layer(service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n)));
///     assert_eq!(service.oneshot(21).await, Ok(expected));
/// }
/// # });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first.
    Left(A),
    /// The second.
    Right(B),
}

impl<A, B, Request> Service<Request> for Either<A, B>
where
    A: Service<Request, Error: From<B::Error>>,
    B: Service<Request, Response = A::Response>,
{
    type Response = A::Response;
    type Error = A::Error;
    type Future = EitherResponseFuture<A::Future, B::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self {
            Self::Left(service) => service.poll_ready(cx),
            Self::Right(service) => service.poll_ready(cx).map_err(From::from),
        }
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let side = match self {
            Self::Left(service) => Side::Left {
                inner: service.call(request),
            },
            Self::Right(service) => Side::Right {
                inner: service.call(request),
            },
        };
        EitherResponseFuture { side }
    }
}

impl<A, B, S> Layer<S> for Either<A, B>
where
    A: Layer<S>,
    B: Layer<S>,
{
    type Service = Either<A::Service, B::Service>;

    fn layer(&self, inner: S) -> Self::Service {
        match self {
            Self::Left(layer) => Either::Left(layer.layer(inner)),
            Self::Right(layer) => Either::Right(layer.layer(inner)),
        }
    }
}

pin_project! {
    /// The response of an [`Either`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct EitherResponseFuture<A, B> {
        #[pin]
        side: Side<A, B>,
    }
}

pin_project! {
    #[project = SideProj]
    enum Side<A, B> {
        Left { #[pin] inner: A },
        Right { #[pin] inner: B },
    }
}

impl<A, B, T, E, F> Future for EitherResponseFuture<A, B>
where
    A: Future<Output = Result<T, E>>,
    B: Future<Output = Result<T, F>>,
    E: From<F>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().side.project() {
            SideProj::Left { inner } => inner.poll(cx),
            SideProj::Right { inner } => inner.poll(cx).map_err(From::from),
        }
    }
}

opaque_debug!(EitherResponseFuture<A, B>);

/// Returns a layer that applies `layer` if it is `Some`, and changes nothing otherwise.
///
/// A layer that adds its own failure can be optional too: without it the failure does not occur, and the error type
/// is the same.
///
/// # Examples
///
/// ```
/// use campanile::{Layer, ServiceExt, service_fn, util::MapRequestLayer, util::option_layer};
///
/// # futures::executor::block_on(async {
/// for (double, expected) in [(true, 42), (false, 21)] {
///     let layer = option_layer(double.then(|| MapRequestLayer::new(|n: u32| n * 2)));
///     let service = layer.layer(service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n)));
///     assert_eq!(service.oneshot(21).await, Ok(expected));
/// }
///
/// # use campanile::load_shed::LoadShedLayer;
/// let maybe_shed = option_layer(Some(LoadShedLayer::new()));
/// let service = maybe_shed.layer(service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n)));
/// assert_eq!(service.oneshot(21).await, Ok(21));
/// # });
/// ```
pub fn option_layer<L>(layer: Option<L>) -> Either<L, Identity> {
    match layer {
        Some(layer) => Either::Left(layer),
        None => Either::Right(Identity::new()),
    }
}
