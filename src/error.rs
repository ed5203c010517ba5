//! Errors: one enum per middleware, and how a stack of them is looked through, reported and flattened.
//!
//! Each middleware has an enum of its own, generic over the error of the service inside, such as
//! [`timeout::Error<E>`](crate::timeout::Error): its own failures, and `Service(E)`. Nothing is erased
//! and nothing allocates; a `match` sees every case. The failures themselves
//! ([`Elapsed`](crate::timeout::Elapsed), [`Overloaded`](crate::load_shed::Overloaded), …) implement
//! [`core::error::Error`]; the enums do not, as `anyhow::Error` does not, and that is what lets a stack
//! of any depth flatten:
//!
//! - `?` into a [`BoxError`] gives the innermost error itself, so `err.is::<Elapsed>()` works as with tower;
//! - [`find`] looks for a type through a typed stack, without an allocator;
//! - [`Report`] makes a [`core::error::Error`] of a typed stack, for `anyhow` and `thiserror`;
//! - [`err_into`](crate::builder::ServiceBuilder::err_into) converts into an enum of the user's.
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

use core::error::Error;
use core::fmt;

/// Any error, boxed: what tower calls `BoxError`.
#[cfg(feature = "alloc")]
pub type BoxError = alloc::boxed::Box<dyn Error + Send + Sync>;

/// A [`BoxError`] of any lifetime. Errors convert into that and not only into `BoxError`: in a task, the compiler
/// asks whether they do for every lifetime that the `dyn` may have.
#[cfg(feature = "alloc")]
pub(crate) type AnyBoxError<'a> = alloc::boxed::Box<dyn Error + Send + Sync + 'a>;

/// The error inside a stack of middleware errors.
///
/// Implemented by everything that is a [`core::error::Error`], and by the enums of the middleware
/// around such an error.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a `core::error::Error` nor a middleware's error around one",
    note = "a `Box<dyn Error + Send + Sync>` does not implement `Error`; convert the whole error with `BoxError::from(error)` instead"
)]
pub trait AsError {
    /// The innermost error.
    fn as_error(&self) -> &(dyn Error + 'static);
}

impl<E: Error + 'static> AsError for E {
    fn as_error(&self) -> &(dyn Error + 'static) {
        self
    }
}

/// The first `T` in `error`: the error that its stack of middleware enums holds, or one of its sources.
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
/// Its message and its source are those of the innermost error.
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
    /// The error as the stack gave it.
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
