use crate::Timer;

/// What a builder takes of its runtime: an executor for the layers that start tasks, a timer for those that wait.
///
/// A type that is a [`Timer`] and `Clone`, such as the type of an adapter, is both itself. For the others, layers get
/// what they use and no more:
///
/// | runtime | executor | timer |
/// |---|---|---|
/// | `&`, `Rc` or `Arc` of smol's executors | a reference, or a `Weak` | `Smol` |
/// | `&`, `Rc` or `Arc` of tokio's `LocalSet` | a reference, or a `Weak` | `Tokio` |
/// | [`Runtime<E, T>`](Runtime) | `E` | `T` |
/// | [`NoRuntime`] | none | none |
///
/// A task is dropped with its executor, and so must not keep it alive: what is inside of a buffer belongs to the task of
/// the buffer's worker. So an `Rc` or an `Arc` is handed to layers as a `Weak`, which drops a task when the executor is
/// gone; who runs the executor keeps it. A [`Runtime`] takes its executor as it is, so give it a `Weak`:
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
    /// What runs tasks.
    type Executor;
    /// What tells the time.
    type Timer;

    /// An executor for a layer. It does not keep what runs the tasks alive.
    fn executor(&self) -> Self::Executor;

    /// A timer for a layer.
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

/// No runtime: what the builder at the crate's root carries. It is neither an executor nor a timer.
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
/// Where the executor is in an `Rc` or an `Arc` and is to go when its owners drop it, put a `Weak` here: see [`Parts`].
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
    /// What runs tasks.
    pub executor: E,
    /// What tells the time.
    pub timer: T,
}

impl<E, T> Runtime<E, T> {
    /// Puts the two together.
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

/// [`Parts`] of an executor that its owners share, with the timer `$timer`.
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
