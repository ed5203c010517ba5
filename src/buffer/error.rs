//! How a buffer fails.

use core::fmt;

use crate::sync::heap::Shared;

/// How a [`Buffer`](super::Buffer) fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The buffer was shut down, or its executor dropped the worker.
    Closed(Closed),
    /// The service panicked, and is gone.
    Panicked(Panicked),
    /// The service failed when it was asked whether it is ready, and is gone. All handles see this.
    Failed(ServiceError<E>),
    /// The service answered this request with an error.
    Service(E),
}

impl<E> Error<E> {
    /// The error with which the service answered this request, if that is what this is.
    pub fn into_service(self) -> Option<E> {
        match self {
            Self::Service(error) => Some(error),
            _ => None,
        }
    }
}

impl<E> From<E> for Error<E> {
    fn from(error: E) -> Self {
        Self::Service(error)
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(error) => error.fmt(f),
            Self::Panicked(error) => error.fmt(f),
            Self::Failed(error) => error.fmt(f),
            Self::Service(error) => error.fmt(f),
        }
    }
}

impl<E: crate::error::AsError> crate::error::AsError for Error<E> {
    fn as_error(&self) -> &(dyn core::error::Error + 'static) {
        match self {
            Self::Closed(error) => error,
            Self::Panicked(error) => error,
            Self::Failed(error) => error.0.as_error(),
            Self::Service(error) => error.as_error(),
        }
    }
}

#[cfg(feature = "std")]
impl<'a, E> From<Error<E>> for crate::error::AnyBoxError<'a>
where
    E: Into<crate::error::AnyBoxError<'a>> + fmt::Debug + fmt::Display + Send + Sync + 'static,
{
    fn from(error: Error<E>) -> Self {
        match error {
            Error::Closed(error) => error.into(),
            Error::Panicked(error) => error.into(),
            Error::Failed(error) => error.into(),
            Error::Service(error) => error.into(),
        }
    }
}

/// How a [`Buffer`](super::Buffer) fails whose queue needs no allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixedError<E> {
    /// The buffer was closed, or its worker was dropped.
    Closed(Closed),
    /// The service panicked, and is gone.
    Panicked(Panicked),
    /// The line of those who wait for room in the queue was full.
    Overflow(Overflow),
    /// The service failed when it was asked whether it is ready, and is gone. All handles see this.
    Failed(E),
    /// The service answered this request with an error.
    Service(E),
}

impl<E> FixedError<E> {
    /// The error with which the service answered this request, if that is what this is.
    pub fn into_service(self) -> Option<E> {
        match self {
            Self::Service(error) => Some(error),
            _ => None,
        }
    }
}

impl<E> From<E> for FixedError<E> {
    fn from(error: E) -> Self {
        Self::Service(error)
    }
}

impl<E: fmt::Display> fmt::Display for FixedError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(error) => error.fmt(f),
            Self::Panicked(error) => error.fmt(f),
            Self::Overflow(error) => error.fmt(f),
            Self::Failed(error) => write!(f, "buffer's service failed: {error}"),
            Self::Service(error) => error.fmt(f),
        }
    }
}

impl<E: crate::error::AsError> crate::error::AsError for FixedError<E> {
    fn as_error(&self) -> &(dyn core::error::Error + 'static) {
        match self {
            Self::Closed(error) => error,
            Self::Panicked(error) => error,
            Self::Overflow(error) => error,
            Self::Failed(error) | Self::Service(error) => error.as_error(),
        }
    }
}

#[cfg(feature = "alloc")]
impl<'a, E: Into<crate::error::AnyBoxError<'a>>> From<FixedError<E>>
    for crate::error::AnyBoxError<'a>
{
    fn from(error: FixedError<E>) -> Self {
        match error {
            FixedError::Closed(error) => error.into(),
            FixedError::Panicked(error) => error.into(),
            FixedError::Overflow(error) => error.into(),
            FixedError::Failed(error) | FixedError::Service(error) => error.into(),
        }
    }
}

leaf_error! {
    /// The buffer accepts no requests any more: it was shut down, or its worker was dropped.
    Closed, "buffer closed"
}

leaf_error! {
    /// The service of a buffer panicked.
    Panicked, "buffer's service panicked"
}

leaf_error! {
    /// The line of those who wait for room in the queue was full.
    Overflow, "more requests wait for room in a buffer than there is room for"
}

leaf_error! {
    /// A queue that has a buffer was to have another.
    QueueInUse, "the queue has a buffer already"
}

/// The error with which a buffer's service failed, shared by all handles.
pub struct ServiceError<E>(Shared<E>);

impl<E> ServiceError<E> {
    pub(super) const fn new(error: Shared<E>) -> Self {
        Self(error)
    }

    /// The service's error.
    pub fn get_ref(&self) -> &E {
        &self.0
    }
}

impl<E> Clone for ServiceError<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: PartialEq> PartialEq for ServiceError<E> {
    fn eq(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }
}

impl<E: Eq> Eq for ServiceError<E> {}

impl<E: fmt::Debug> fmt::Debug for ServiceError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServiceError").field(&*self.0).finish()
    }
}

impl<E: fmt::Display> fmt::Display for ServiceError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "buffer's service failed: {}", *self.0)
    }
}

// A typed `E` has no way to a `dyn Error` here, since the enums implement no `Error`; a boxed one
// has, and it is the source.
impl<E: fmt::Debug + fmt::Display + 'static> core::error::Error for ServiceError<E> {
    #[cfg(feature = "alloc")]
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        let error: &dyn core::any::Any = &*self.0;
        let error = error.downcast_ref::<crate::BoxError>()?;
        Some(&**error)
    }
}

/// A bound of 0: no request could ever be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidBound(());

impl InvalidBound {
    const MESSAGE: &'static str = "a buffer's bound is 0, and must be at least 1";

    pub(super) const fn check(bound: usize) -> Result<(), Self> {
        if bound == 0 { Err(Self(())) } else { Ok(()) }
    }

    #[track_caller]
    pub(crate) const fn assert(bound: usize) {
        assert!(bound != 0, "{}", Self::MESSAGE);
    }
}

impl fmt::Display for InvalidBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::MESSAGE)
    }
}

impl core::error::Error for InvalidBound {}
