/// Runs a future to completion in the background.
///
/// The bounds on `F` are on each implementation and not on the trait: an implementation for tokio requires `Send +
/// 'static`, one for a single thread does not, and the trait never requires a box.
///
/// # Contract
///
/// - `execute` returns at once. There is no handle: middleware communicates with its tasks over channels.
/// - An executor that cannot run the future, or stops before it has completed, drops it. Middleware notices because
///   its end of the channel closes.
/// - A task does not keep its executor alive. An executor behind an `Rc` or an `Arc` that stops when its last owner
///   drops it is passed as a `Weak` to whatever may end up in its tasks, as [`Parts`](super::Parts) does.
/// - A panic in the future stays in its task.
///
/// # Examples
///
/// ```
/// use campanile::Executor;
///
/// /// One thread per task.
/// struct Threads;
///
/// impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Threads {
///     fn execute(&self, future: F) {
///         std::thread::spawn(|| futures::executor::block_on(future));
///     }
/// }
///
/// Threads.execute(async { println!("in the background") });
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run the background task of this middleware",
    label = "an executor for this task is needed, and `{Self}` is not one",
    note = "import the builder or the middleware from a runtime's module: `campanile::tokio::ServiceBuilder`, `campanile::smol::ServiceBuilder`, `campanile::async_std::ServiceBuilder`",
    note = "or name an executor yourself: `ServiceBuilder::with_runtime(..)`, `Buffer::with_executor(..)`",
    note = "if `{Self}` is an executor, the task does not meet its bounds (most often `Send + 'static`, of the service and its future)"
)]
pub trait Executor<F> {
    /// Starts `future`, or drops it if it cannot be run.
    fn execute(&self, future: F);
}

impl<E: Executor<F> + ?Sized, F> Executor<F> for &E {
    #[track_caller]
    fn execute(&self, future: F) {
        (**self).execute(future);
    }
}

#[cfg(feature = "alloc")]
impl<E: Executor<F> + ?Sized, F> Executor<F> for alloc::rc::Rc<E> {
    #[track_caller]
    fn execute(&self, future: F) {
        (**self).execute(future);
    }
}

#[cfg(feature = "std")]
impl<E: Executor<F> + ?Sized, F> Executor<F> for alloc::sync::Arc<E> {
    #[track_caller]
    fn execute(&self, future: F) {
        (**self).execute(future);
    }
}

/// Drops the future if the executor is gone.
#[cfg(feature = "alloc")]
impl<E: Executor<F> + ?Sized, F> Executor<F> for alloc::rc::Weak<E> {
    #[track_caller]
    fn execute(&self, future: F) {
        if let Some(executor) = self.upgrade() {
            executor.execute(future);
        }
    }
}

/// Drops the future if the executor is gone.
#[cfg(feature = "std")]
impl<E: Executor<F> + ?Sized, F> Executor<F> for alloc::sync::Weak<E> {
    #[track_caller]
    fn execute(&self, future: F) {
        if let Some(executor) = self.upgrade() {
            executor.execute(future);
        }
    }
}
