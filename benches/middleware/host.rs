//! The runtimes.
#![cfg_attr(
    not(all(feature = "async-std", feature = "smol")),
    allow(dead_code, reason = "only wall clock is taken on more than one")
)]

use std::future::Future;

/// Where a case runs.
pub(crate) trait Host {
    const NAME: &'static str;

    fn block_on<F>(future: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static;

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future<Output: Send> + Send + 'static;

    /// Runs a future without waiting for it.
    fn detach<F>(future: F)
    where
        F: Future<Output: Send> + Send + 'static;
}

// In a task on each, like a server's handlers: code outside a task is woken through the driver, or by another thread.

/// tokio on the calling thread.
pub(crate) struct CurrentThread;
/// tokio on two threads of its own.
pub(crate) struct TwoThreads;
pub(crate) struct Smol;
pub(crate) struct AsyncStd;

macro_rules! host {
    ($host:ty, $name:literal, $block_on:expr, $spawn:expr, $detach:expr) => {
        impl Host for $host {
            const NAME: &'static str = $name;

            fn block_on<F>(future: F) -> F::Output
            where
                F: Future<Output: Send> + Send + 'static,
            {
                $block_on(future)
            }

            fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send + 'static
            where
                F: Future<Output: Send> + Send + 'static,
            {
                $spawn(future)
            }

            fn detach<F>(future: F)
            where
                F: Future<Output: Send> + Send + 'static,
            {
                $detach(future);
            }
        }
    };
}

/// Starts it at once, and not when it is first polled.
fn on_tokio<F>(future: F) -> impl Future<Output = F::Output> + Send + 'static
where
    F: Future<Output: Send> + Send + 'static,
{
    let task = tokio::spawn(future);
    async { task.await.expect("a task panicked") }
}

host!(
    CurrentThread,
    "tokio, one thread",
    |future| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime
            .enable_time()
            .build()
            .expect("no runtime")
            .block_on(async { on_tokio(future).await })
    },
    on_tokio,
    tokio::spawn
);
host!(
    TwoThreads,
    "tokio, two threads",
    |future| {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime
            .worker_threads(2)
            .enable_time()
            .build()
            .expect("no runtime");
        runtime.block_on(async { on_tokio(future).await })
    },
    on_tokio,
    tokio::spawn
);
#[cfg(feature = "smol")]
host!(
    Smol,
    "smol",
    |future| smol::block_on(smol::spawn(future)),
    smol::spawn,
    |future| { smol::spawn(future).detach() }
);
#[cfg(feature = "async-std")]
host!(
    AsyncStd,
    "async-std",
    |future| async_std::task::block_on(async_std::task::spawn(future)),
    async_std::task::spawn,
    async_std::task::spawn
);
