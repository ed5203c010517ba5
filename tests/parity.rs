//! Every name of tower exists in the module of each runtime, at the same path and with the same meaning: one set of
//! tests is compiled and run against tower and against each runtime.
//!
//! In the files under `parity/`, `tower` means either. Errors are compared as `BoxError`, because their types differ.
//! [`additions`] tests what tower lacks.
#![cfg(feature = "tower")]
#![allow(
    clippy::clone_on_copy,
    clippy::default_constructed_unit_structs,
    clippy::needless_borrow,
    reason = "what is `Copy` or a unit on one side need not be on the other"
)]
#![allow(
    clippy::duplicate_mod,
    reason = "the same tests, once per `tower` that they are mounted on"
)]

use std::convert::Infallible;
use std::time::Duration;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);

/// The service of most tests.
async fn double(n: u32) -> Result<u32, Infallible> {
    Ok(n * 2)
}

fn on_a_thread_of_tokio<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

#[path = "parity"]
mod on_tower {
    use std::sync::Arc;

    use super::on_a_thread_of_tokio as block_on;
    use ::tower;

    fn semaphore(permits: usize) -> Arc<tokio::sync::Semaphore> {
        Arc::new(tokio::sync::Semaphore::new(permits))
    }

    mod middleware;
    mod stack;
    mod util;
}

#[cfg(feature = "tokio")]
#[path = "parity"]
mod on_tokio {
    use super::on_a_thread_of_tokio as block_on;
    use campanile::tokio as tower;
    use std::sync::Arc;

    fn semaphore(permits: usize) -> Arc<tokio::sync::Semaphore> {
        Arc::new(tokio::sync::Semaphore::new(permits))
    }

    mod additions;
    mod middleware;
    mod stack;
    mod util;
}

#[cfg(feature = "smol")]
#[path = "parity"]
mod on_smol {
    use campanile::limit::concurrency::Semaphore;
    use campanile::smol as tower;
    use smol::block_on;

    fn semaphore(permits: usize) -> Semaphore {
        Semaphore::new(permits)
    }

    mod additions;
    mod middleware;
    mod stack;
    mod util;
}

#[cfg(feature = "testing")]
#[path = "parity"]
mod on_sim {
    use campanile::limit::concurrency::Semaphore;
    use campanile::testing as tower;

    fn block_on<F: Future>(future: F) -> F::Output {
        let runtime = campanile::testing::Runtime::new(1);
        runtime.block_on(future).unwrap()
    }

    fn semaphore(permits: usize) -> Semaphore {
        Semaphore::new(permits)
    }

    mod additions;
    mod middleware;
    mod stack;
    mod util;
}

#[cfg(feature = "async-std")]
#[path = "parity"]
mod on_async_std {
    use async_std::task::block_on;
    use campanile::async_std as tower;
    use campanile::limit::concurrency::Semaphore;

    fn semaphore(permits: usize) -> Semaphore {
        Semaphore::new(permits)
    }

    mod additions;
    mod middleware;
    mod stack;
    mod util;
}

/// Middleware of both crates in one stack: an error only has to convert into `BoxError`.
#[cfg(feature = "tokio")]
#[test]
fn middleware_of_both_shares_a_stack() {
    use ::tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
    use campanile::timeout::Elapsed;

    let stack = || {
        ServiceBuilder::new()
            .load_shed()
            .layer(campanile::tokio::buffer::BufferLayer::new(4))
            .timeout(LONG)
            .layer(campanile::tokio::timeout::TimeoutLayer::new(
                Duration::from_nanos(1),
            ))
            .concurrency_limit(1)
    };
    on_a_thread_of_tokio(async {
        assert_eq!(stack().service_fn(double).oneshot(1).await.unwrap(), 2);
        let late = stack().service(service_fn(|_: u32| {
            std::future::pending::<Result<u32, Infallible>>()
        }));
        assert!(BoxError::from(late.oneshot(1).await.unwrap_err()).is::<Elapsed>());
    });
}
