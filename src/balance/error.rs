//! The errors of a balancer.

use core::fmt;

use crate::BoxError;
use crate::error::AnyBoxError;
use crate::error::AsError;

/// How a [`Balance`](super::p2c::Balance) fails. `D` is the error of its discovery, `E` that of its endpoints.
///
/// Converted into a [`BoxError`], it is the endpoint's error, or one of [`Discover`], [`NoEndpoints`] and
/// [`NotReady`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error<D, E> {
    /// Discovery failed.
    Discover(Discover<D>),
    /// There is no endpoint, and there will be none.
    NoEndpoints(NoEndpoints),
    /// The balancer was called when no endpoint was ready.
    NotReady(NotReady),
    /// The endpoint failed.
    Service(E),
}

/// The discovery of endpoints failed.
///
/// Like tower's, it implements [`Error`](core::error::Error) if it holds a box. It does so after the balancer's error
/// was converted into a `BoxError`: `error.is::<balance::error::Discover>()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discover<E = BoxError>(
    /// The error of the discovery.
    pub E,
);

impl<E> fmt::Display for Discover<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the discovery of endpoints failed")
    }
}

impl core::error::Error for Discover<BoxError> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&*self.0)
    }
}

leaf_error! {
    /// A balancer has no endpoint and will have none, since its discovery has ended.
    NoEndpoints, "there is no endpoint, and the discovery of endpoints has ended"
}

leaf_error! {
    /// A balancer was called when none of its endpoints was ready.
    NotReady, "no endpoint was ready"
}

impl<D, E> Error<D, E> {
    /// Returns the endpoint's error, if it is one.
    pub fn into_service(self) -> Option<E> {
        match self {
            Self::Service(error) => Some(error),
            _ => None,
        }
    }
}

impl<D, E> From<E> for Error<D, E> {
    fn from(error: E) -> Self {
        Self::Service(error)
    }
}

impl<D: fmt::Display, E: fmt::Display> fmt::Display for Error<D, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discover(Discover(error)) => write!(f, "{}: {error}", Discover(())),
            Self::NoEndpoints(error) => error.fmt(f),
            Self::NotReady(error) => error.fmt(f),
            Self::Service(error) => error.fmt(f),
        }
    }
}

/// Discovery's own error stands for a failure of discovery.
impl<D: AsError, E: AsError> AsError for Error<D, E> {
    fn as_error(&self) -> &(dyn core::error::Error + 'static) {
        match self {
            Self::Discover(Discover(error)) => error.as_error(),
            Self::NoEndpoints(error) => error,
            Self::NotReady(error) => error,
            Self::Service(error) => error.as_error(),
        }
    }
}

impl<'a, D: Into<BoxError>, E: Into<AnyBoxError<'a>>> From<Error<D, E>> for AnyBoxError<'a> {
    fn from(error: Error<D, E>) -> Self {
        match error {
            Error::Discover(Discover(error)) => Discover(error.into()).into(),
            Error::NoEndpoints(error) => error.into(),
            Error::NotReady(error) => error.into(),
            Error::Service(error) => error.into(),
        }
    }
}
