//! The sizes of services and futures, compared with tower's.
#![cfg(all(feature = "smol", feature = "tokio", feature = "tower"))]

use std::future::Ready;

use campanile::{smol::Smol, tokio::Tokio};

type Leaf = campanile::util::ServiceFn<fn(u32) -> Ready<Result<u32, std::io::Error>>>;
type TowerLeaf = tower::util::ServiceFn<fn(u32) -> Ready<Result<u32, std::io::Error>>>;

/// Hedges all requests, for both crates.
#[derive(Clone)]
struct Always;

macro_rules! always {
    ($($policy:path),+) => {$(
        impl $policy for Always {
            fn clone_request(&self, request: &u32) -> Option<u32> {
                Some(*request)
            }

            fn can_retry(&self, _: &u32) -> bool {
                true
            }
        }
    )+};
}
always!(campanile::hedge::Policy<u32>, tower::hedge::Policy<u32>);

fn future_of<S: campanile::Service<u32>>() -> usize {
    size_of::<S::Future>()
}

/// Prints a row and returns the sizes of service and future, ours and tower's.
macro_rules! row {
    ($name:literal, $ours:ty, $towers:ty) => {{
        let sizes = [
            (size_of::<$ours>(), size_of::<$towers>()),
            (future_of::<$ours>(), future_of::<$towers>()),
        ];
        println!(
            "{:<18} service {:>4} ({:>4})  future {:>4} ({:>4})",
            $name, sizes[0].0, sizes[0].1, sizes[1].0, sizes[1].1
        );
        sizes
    }};
}

/// Middleware that does not wait has a service and a future no larger than tower's; middleware that waits has a future
/// no larger than tower's.
#[test]
fn sizes_compared_with_tower() {
    println!("bytes, tower's in brackets");
    for [service, future] in [
        row!(
            "LoadShed",
            campanile::load_shed::LoadShed<Leaf>,
            tower::load_shed::LoadShed<TowerLeaf>
        ),
        row!(
            "ConcurrencyLimit",
            campanile::limit::ConcurrencyLimit<Leaf>,
            tower::limit::ConcurrencyLimit<TowerLeaf>
        ),
    ] {
        assert!(service.0 <= service.1);
        assert!(future.0 <= future.1 + size_of::<usize>());
    }
    let [_, timeout] = row!(
        "Timeout on tokio",
        campanile::timeout::Timeout<Leaf, Tokio>,
        tower::timeout::Timeout<TowerLeaf>
    );
    assert!(timeout.0 <= timeout.1 + 2 * size_of::<u64>());
    let [_, timeout] = row!(
        "Timeout on smol",
        campanile::timeout::Timeout<Leaf, Smol>,
        tower::timeout::Timeout<TowerLeaf>
    );
    assert!(timeout.0 <= 64 + size_of::<<Leaf as campanile::Service<u32>>::Future>());
    let [_, timeout] = row!(
        "Timeout, shared",
        campanile::timeout::Timeout<Leaf, campanile::runtime::SharedTimer<Tokio>>,
        tower::timeout::Timeout<TowerLeaf>
    );
    assert!(timeout.0 <= timeout.1 / 2);
    row!(
        "RateLimit on tokio",
        campanile::limit::RateLimit<Leaf, Tokio>,
        tower::limit::RateLimit<TowerLeaf>
    );
    for [service, future] in [
        row!(
            "PendingRequests",
            campanile::smol::load::PendingRequests<Leaf>,
            tower::load::PendingRequests<TowerLeaf>
        ),
        row!(
            "PeakEwma",
            campanile::smol::load::PeakEwma<Leaf>,
            tower::load::PeakEwma<TowerLeaf>
        ),
    ] {
        assert!(service.0 <= service.1);
        assert!(future.0 <= future.1);
    }
    let [hedge, response] = row!(
        "Hedge on tokio",
        campanile::hedge::Hedge<Leaf, Always, Tokio>,
        tower::hedge::Hedge<TowerLeaf, Always>
    );
    assert!(hedge.0 <= hedge.1);
    assert!(response.0 <= response.1);
    let [buffer, response] = row!(
        "Buffer",
        campanile::buffer::Buffer<u32, Ready<Result<u32, std::io::Error>>>,
        tower::buffer::Buffer<u32, Ready<Result<u32, std::io::Error>>>
    );
    assert!(buffer.0 <= buffer.1);
    // The future reserves the place of the response from the call on.
    assert!(response.0 <= response.1 + size_of::<usize>());
    let [steer, response] = row!(
        "Steer",
        campanile::steer::Steer<Leaf, Pick<Leaf>, u32>,
        tower::steer::Steer<TowerLeaf, Pick<TowerLeaf>, u32>
    );
    assert!(steer.0 <= steer.1);
    // Ours carries an error where tower panics.
    assert!(response.0 <= response.1 + size_of::<usize>());
    let [_, response] = row!(
        "Reconnect on tokio",
        campanile::tokio::reconnect::Reconnect<campanile::make::Shared<Leaf>, ()>,
        tower::reconnect::Reconnect<tower::make::Shared<TowerLeaf>, ()>
    );
    assert!(response.0 <= response.1 + size_of::<usize>());
    let [service, response] = row!(
        "SpawnReady",
        campanile::tokio::spawn_ready::SpawnReady<Leaf, u32>,
        tower::spawn_ready::SpawnReady<TowerLeaf>
    );
    assert!(service.0 <= service.1 + size_of::<usize>());
    assert!(response.0 <= response.1);

    type List<S> = campanile::discover::ServiceList<Vec<S>>;
    type TowerList = tower::discover::ServiceList<Vec<Loaded>>;
    let [balance, response] = row!(
        "Balance",
        campanile::balance::p2c::Balance<List<Loaded>, u32, campanile::layer::Identity>,
        tower::balance::p2c::Balance<TowerList, u32>
    );
    // The random generator is stored inline and not boxed, and wake-ups need some space.
    assert!(balance.0 <= balance.1 + 4 * size_of::<usize>());
    assert!(response.0 <= response.1);
    let [_, response] = row!(
        "Balance on tokio",
        campanile::tokio::balance::p2c::Balance<List<Loaded>, u32>,
        tower::balance::p2c::Balance<TowerList, u32>
    );
    assert!(response.0 <= response.1 + size_of::<usize>());
}

/// A leaf service with a load, for both traits.
#[derive(Clone, Debug)]
struct Loaded;

impl campanile::Service<u32> for Loaded {
    type Response = u32;
    type Error = std::io::Error;
    type Future = Ready<Result<u32, std::io::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), std::io::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, n: u32) -> Self::Future {
        std::future::ready(Ok(n))
    }
}

impl campanile::load::Load for Loaded {
    type Metric = u32;

    fn load(&self) -> u32 {
        0
    }
}

impl tower::load::Load for Loaded {
    type Metric = u32;

    fn load(&self) -> u32 {
        0
    }
}

type Pick<S> = fn(&u32, &[S]) -> usize;
