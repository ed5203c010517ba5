//! Errors: one enum per middleware, and ways to search, report and flatten a stack of them.
//!
//! Each middleware has its own enum, generic over the error of the inner service, such as
//! [`timeout::Error<E>`](crate::timeout::Error). Its variants are the middleware's own failures and `Service(E)`.
//! Nothing is erased and nothing allocates; a `match` sees every case. The failures themselves
//! ([`Elapsed`](crate::timeout::Elapsed), [`Overloaded`](crate::load_shed::Overloaded), …) implement
//! [`core::error::Error`]. The enums do not, just as `anyhow::Error` does not, which allows a stack of any depth to
//! be flattened:
//!
//! - `?` into a [`BoxError`] gives the innermost error itself, so `err.is::<Elapsed>()` works as with tower.
//! - [`find`] searches a typed stack for a type, without an allocator.
//! - [`Report`] turns a typed stack into a [`core::error::Error`], to get its message in `anyhow` or to use it as a
//!   source in `thiserror`. Look for specific errors before you convert.
//! - [`err_into`](crate::builder::ServiceBuilder::err_into) converts into an enum of your own.
//!
//! The enums are not `#[non_exhaustive]`: an application that converts them has to say what becomes of each failure. The
//! failures themselves are opaque, and can carry data later. They are `Copy`, so that a buffer without an allocator can
//! give every handle a copy, and `Default`, as tower's are.
//!
//! `find` and `Report` need an [`Error`] at the bottom of the stack, which a `BoxError` is not. If the service fails
//! with a `BoxError`, convert the whole stack.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "alloc")] {
//! use campanile::{BoxError, error::find, load_shed, timeout};
//! use campanile::timeout::Elapsed;
//!
//! type Stack = load_shed::Error<timeout::Error<std::io::Error>>;
//! let error: Stack = load_shed::Error::Service(timeout::Error::Elapsed(Elapsed::new()));
//!
//! assert!(find::<Elapsed>(&error).is_some());
//! assert!(BoxError::from(error).is::<Elapsed>());
//! # }
//! ```
//!
//! # An enum of your own
//!
//! Write one `From` per layer, generic over the error beneath. The order of the layers does not matter:
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::{ServiceExt, load_shed, smol::ServiceBuilder, timeout};
//! use std::time::Duration;
//!
//! #[derive(Debug)]
//! enum Failed {
//!     Busy,
//!     Late,
//!     Broken(std::io::Error),
//! }
//!
//! impl<E: Into<Failed>> From<load_shed::Error<E>> for Failed {
//!     fn from(error: load_shed::Error<E>) -> Self {
//!         match error {
//!             load_shed::Error::Overloaded(_) => Failed::Busy,
//!             load_shed::Error::Service(error) => error.into(),
//!         }
//!     }
//! }
//!
//! impl<E: Into<Failed>> From<timeout::Error<E>> for Failed {
//!     fn from(error: timeout::Error<E>) -> Self {
//!         match error {
//!             timeout::Error::Elapsed(_) => Failed::Late,
//!             timeout::Error::Service(error) => error.into(),
//!         }
//!     }
//! }
//!
//! impl From<std::io::Error> for Failed {
//!     fn from(error: std::io::Error) -> Self {
//!         Failed::Broken(error)
//!     }
//! }
//!
//! let service = ServiceBuilder::new()
//!     .err_into::<Failed>() // outermost
//!     .load_shed()
//!     .timeout(Duration::from_millis(1))
//!     .service_fn(async |()| Ok::<(), std::io::Error>(std::future::pending().await));
//! assert!(matches!(service.oneshot(()).await, Err(Failed::Late)));
//! # });
//! ```
//!
//! # In generic code
//!
//! If all you know about the inner error is `Into<BoxError>`, which is what tower requires, convert it first: with
//! `err_into::<BoxError>()` as the innermost layer, and once more as the outermost.
//!
//! ```
//! # #[cfg(feature = "smol")] {
//! use campanile::{BoxError, Service, smol::ServiceBuilder};
//!
//! fn stack<S>(service: S) -> impl Service<u32, Response = u32, Error = BoxError> + Clone
//! where
//!     S: Service<u32, Response = u32, Error: Into<BoxError>, Future: Send> + Send + 'static,
//! {
//!     ServiceBuilder::new()
//!         .err_into::<BoxError>()
//!         .load_shed()
//!         .buffer(16)
//!         .err_into::<BoxError>()
//!         .service(service)
//! }
//! # }
//! ```

use core::error::Error;
use core::fmt;

/// Any error, boxed: the same type as tower's `BoxError`.
#[cfg(feature = "alloc")]
pub type BoxError = alloc::boxed::Box<dyn Error + Send + Sync>;

/// A [`BoxError`] of any lifetime. Errors convert into this and not only into `BoxError`, because in a task the
/// compiler asks for the conversion for every lifetime that the `dyn` may have.
#[cfg(feature = "alloc")]
pub(crate) type AnyBoxError<'a> = alloc::boxed::Box<dyn Error + Send + Sync + 'a>;

/// A stack of middleware errors, or a plain error.
///
/// Implemented by every [`core::error::Error`], and by the enums of the middleware around such an error.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a `core::error::Error` nor a middleware's error around one",
    note = "a `Box<dyn Error + Send + Sync>` does not implement `Error`; convert the whole error with `BoxError::from(error)` instead"
)]
pub trait AsError {
    /// Returns the innermost error.
    fn as_error(&self) -> &(dyn Error + 'static);
}

impl<E: Error + 'static> AsError for E {
    fn as_error(&self) -> &(dyn Error + 'static) {
        self
    }
}

/// Finds the first `T` in `error`: the error inside the middleware enums, or one of its sources.
///
/// # Examples
///
/// ```
/// use campanile::{error::find, load_shed, timeout};
///
/// let error: load_shed::Error<timeout::Error<core::fmt::Error>> =
///     load_shed::Error::Service(timeout::Error::Service(core::fmt::Error));
/// assert!(find::<core::fmt::Error>(&error).is_some());
/// assert!(find::<timeout::Elapsed>(&error).is_none());
/// ```
pub fn find<T: Error + 'static>(error: &(impl AsError + ?Sized)) -> Option<&T> {
    let mut next = Some(error.as_error());
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// A stack of middleware errors as one [`core::error::Error`], for `anyhow`, `eyre` and `thiserror`.
///
/// Message and source are those of the innermost error.
///
/// # Examples
///
/// ```
/// use campanile::{error::Report, timeout};
///
/// let error: timeout::Error<core::fmt::Error> = timeout::Error::Elapsed(timeout::Elapsed::new());
/// let report: &dyn core::error::Error = &Report(error);
/// assert_eq!(report.to_string(), "request timed out");
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Report<E>(
    /// The error as returned by the stack.
    pub E,
);

impl<E: AsError> fmt::Debug for Report<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0.as_error(), f)
    }
}

impl<E: AsError> fmt::Display for Report<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0.as_error(), f)
    }
}

impl<E: AsError> Error for Report<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.as_error().source()
    }
}
