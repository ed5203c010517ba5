use crate::Timer;

/// The parts of a runtime that a builder gives to its layers: an executor for those that start tasks, a timer for
/// those that wait.
///
/// A type that is a [`Timer`] and `Clone`, such as that of an adapter, is both parts itself. From the others, layers
/// get only what they use:
///
/// | runtime | executor | timer |
/// |---|---|---|
/// | `&`, `Rc` or `Arc` of smol's executors | a reference, or a `Weak` | `Smol` |
/// | `&`, `Rc` or `Arc` of tokio's `LocalSet` | a reference, or a `Weak` | `Tokio` |
/// | [`Runtime<E, T>`](Runtime) | `E` | `T` |
/// | [`NoRuntime`] | none | none |
///
/// A task is dropped with its executor, so it must not keep the executor alive; and whatever is inside a buffer
/// belongs to the task of the buffer's worker. So layers get an `Rc` or an `Arc` as a `Weak`, which drops a task once
/// the executor is gone. Keep the executor alive where you run it. A [`Runtime`] passes its executor on unchanged, so
/// give it a `Weak`:
///
/// ```
/// use campanile::runtime::{Parts, SharedTimer};
/// use campanile::{Runtime, ServiceBuilder, smol::Smol};
/// use std::{rc::Rc, time::Duration};
///
/// # #[cfg(feature = "smol")] {
/// let executor = Rc::new(smol::LocalExecutor::new());
/// let runtime = Runtime::new(Rc::downgrade(&executor), SharedTimer::new(Smol));
/// let builder = ServiceBuilder::with_runtime(runtime)
///     .buffer::<u32>(16)
///     .spawn_ready::<u32>()
///     .timeout(Duration::from_secs(1));
/// # let _ = builder;
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a runtime that a builder can share among its layers",
    label = "a runtime is needed, and `{Self}` is not one",
    note = "a `Timer` that is `Clone` is a runtime; so is a reference, an `Rc` or an `Arc` of smol's executors or tokio's `LocalSet`",
    note = "`Runtime::new(executor, timer)` makes one of an executor and a timer; `NoRuntime` stands for what no layer needs"
)]
pub trait Parts {
    /// The executor.
    type Executor;
    /// The timer.
    type Timer;

    /// Returns an executor for a layer. It does not keep alive what runs the tasks.
    fn executor(&self) -> Self::Executor;

    /// Returns a timer for a layer.
    fn timer(&self) -> Self::Timer;
}

impl<R: Timer + Clone> Parts for R {
    type Executor = Self;
    type Timer = Self;

    fn executor(&self) -> Self {
        self.clone()
    }

    fn timer(&self) -> Self {
        self.clone()
    }
}

/// No runtime: the runtime of the builder at the crate root. It is neither an executor nor a timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoRuntime;

impl Parts for NoRuntime {
    type Executor = Self;
    type Timer = Self;

    fn executor(&self) -> Self {
        *self
    }

    fn timer(&self) -> Self {
        *self
    }
}

/// An executor and a timer as one runtime, for a builder.
///
/// If the executor is in an `Rc` or an `Arc` and should stop when its owners drop it, put a `Weak` here: see
/// [`Parts`].
///
/// # Examples
///
/// ```
/// # #[cfg(all(feature = "tokio", feature = "smol"))] {
/// use campanile::{Runtime, ServiceBuilder, smol::Smol, tokio::Tokio};
///
/// // Tasks on tokio, time from async-io.
/// let builder = ServiceBuilder::with_runtime(Runtime::new(Tokio, Smol));
/// # let _ = builder;
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runtime<E, T> {
    /// The executor.
    pub executor: E,
    /// The timer.
    pub timer: T,
}

impl<E, T> Runtime<E, T> {
    /// Combines an executor and a timer.
    pub const fn new(executor: E, timer: T) -> Self {
        Self { executor, timer }
    }
}

impl<E: Clone, T: Clone> Parts for Runtime<E, T> {
    type Executor = E;
    type Timer = T;

    fn executor(&self) -> E {
        self.executor.clone()
    }

    fn timer(&self) -> T {
        self.timer.clone()
    }
}

/// [`Parts`] of an executor shared by its owners, with the timer `$timer`.
#[cfg(any(feature = "smol", feature = "tokio"))]
macro_rules! shared_executor {
    ($executor:ident $(<$tasks:lifetime>)?, $timer:ident) => {
        impl<'e, $($tasks)?> $crate::runtime::Parts for &'e $executor $(<$tasks>)? {
            type Executor = Self;
            type Timer = $timer;

            fn executor(&self) -> Self {
                self
            }

            fn timer(&self) -> $timer {
                $timer
            }
        }

        $crate::runtime::parts::shared_executor!(@weak rc, Rc, $executor $(<$tasks>)?, $timer);
        $crate::runtime::parts::shared_executor!(@weak sync, Arc, $executor $(<$tasks>)?, $timer);
    };
    (@weak $module:ident, $pointer:ident, $executor:ident $(<$tasks:lifetime>)?, $timer:ident) => {
        impl $(<$tasks>)? $crate::runtime::Parts for alloc::$module::$pointer<$executor $(<$tasks>)?> {
            type Executor = alloc::$module::Weak<$executor $(<$tasks>)?>;
            type Timer = $timer;

            fn executor(&self) -> Self::Executor {
                alloc::$module::$pointer::downgrade(self)
            }

            fn timer(&self) -> $timer {
                $timer
            }
        }
    };
}
#[cfg(any(feature = "smol", feature = "tokio"))]
pub(crate) use shared_executor;
