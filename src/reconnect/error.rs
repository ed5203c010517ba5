//! How a connection fails.

use core::fmt;

#[cfg(feature = "alloc")]
use crate::error::AnyBoxError;
use crate::error::AsError;

/// How a [`Reconnect`](super::Reconnect) fails. `C` is the error of connecting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error<E, C> {
    /// The attempt to connect failed. As an error of readiness this may come from the maker's own readiness, and is
    /// then final.
    Connect(C),
    /// A connection was made, but failed before it had shown that it works.
    Lost(Lost),
    /// The service that makes connections failed earlier.
    Failed(Failed),
    /// The call came without readiness.
    NotReady(NotReady),
    /// The connection responded with an error.
    Service(E),
}

impl<E, C> Error<E, C> {
    /// The error of connecting, if this is one.
    pub fn into_connect(self) -> Option<C> {
        match self {
            Self::Connect(error) => Some(error),
            _ => None,
        }
    }

    /// The connection's error, if this is one.
    pub fn into_service(self) -> Option<E> {
        match self {
            Self::Service(error) => Some(error),
            _ => None,
        }
    }
}

impl<E, C> From<E> for Error<E, C> {
    fn from(error: E) -> Self {
        Self::Service(error)
    }
}

impl<E: fmt::Display, C: fmt::Display> fmt::Display for Error<E, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Lost(error) => error.fmt(f),
            Self::Failed(error) => error.fmt(f),
            Self::NotReady(error) => error.fmt(f),
            Self::Service(error) => error.fmt(f),
        }
    }
}

impl<E: AsError, C: AsError> AsError for Error<E, C> {
    fn as_error(&self) -> &(dyn core::error::Error + 'static) {
        match self {
            Self::Connect(error) => error.as_error(),
            Self::Lost(error) => error,
            Self::Failed(error) => error,
            Self::NotReady(error) => error,
            Self::Service(error) => error.as_error(),
        }
    }
}

#[cfg(feature = "alloc")]
impl<'a, E: Into<AnyBoxError<'a>>, C: Into<AnyBoxError<'a>>> From<Error<E, C>> for AnyBoxError<'a> {
    fn from(error: Error<E, C>) -> Self {
        match error {
            Error::Connect(error) => error.into(),
            Error::Lost(error) => error.into(),
            Error::Failed(error) => error.into(),
            Error::NotReady(error) => error.into(),
            Error::Service(error) => error.into(),
        }
    }
}

leaf_error! {
    /// A connection was made, but failed before it had shown that it works.
    Lost, "connection lost soon after it was made"
}

leaf_error! {
    /// The service that makes connections failed earlier, and its error was returned then.
    Failed, "no connection can be made any more"
}

leaf_error! {
    /// A request came before the connection was ready.
    NotReady, "service called before it was ready"
}
