/// Runs a future to its end, in the background.
///
/// The bound on `F` stands in each implementation and not here: one for tokio asks for
/// `Send + 'static`, one for a single thread does not, and nothing is ever boxed for the trait's sake.
///
/// # Contract
///
/// - `execute` returns at once. There is no handle: middleware talks to its tasks over channels.
/// - An executor that cannot run the future, or stops before it has ended, drops it. Middleware
///   learns of that because its end of the channel closes.
/// - A task does not keep its executor alive. Behind an `Rc` or an `Arc`, one that stops when its last owner drops it is
///   handed to what may end up in its tasks as a `Weak`, as [`Parts`](super::Parts) does it.
/// - A panic in the future stays in its task.
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
    /// Starts `future`, or drops it if that is not possible.
    fn execute(&self, future: F);
}

macro_rules! forward {
    ($pointer:ty) => {
        impl<E: Executor<F> + ?Sized, F> Executor<F> for $pointer {
            #[track_caller]
            fn execute(&self, future: F) {
                (**self).execute(future);
            }
        }
    };
    ($pointer:ty, $weak:ty) => {
        forward!($pointer);

        /// Drops a future when the executor is gone.
        impl<E: Executor<F> + ?Sized, F> Executor<F> for $weak {
            #[track_caller]
            fn execute(&self, future: F) {
                if let Some(executor) = self.upgrade() {
                    executor.execute(future);
                }
            }
        }
    };
}
forward!(&E);
#[cfg(feature = "alloc")]
forward!(alloc::rc::Rc<E>, alloc::rc::Weak<E>);
#[cfg(feature = "std")]
forward!(alloc::sync::Arc<E>, alloc::sync::Weak<E>);
