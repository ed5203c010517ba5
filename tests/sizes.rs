//! How large services and futures are beside tower's.
#![cfg(all(feature = "smol", feature = "tokio", feature = "tower"))]

use std::future::Ready;

use campanile::{smol::Smol, tokio::Tokio};

type Leaf = campanile::util::ServiceFn<fn(u32) -> Ready<Result<u32, std::io::Error>>>;
type TowerLeaf = tower::util::ServiceFn<fn(u32) -> Ready<Result<u32, std::io::Error>>>;

/// Hedges all requests, here and there.
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

/// Prints a row and gives ours and tower's: service and future.
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

/// What does not wait is no larger than tower's, service and future; what waits has a future that is not.
#[test]
fn services_and_futures_beside_towers() {
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
        campanile::buffer::Buffer<u32, Ready<Result<u32, std::io::Error>>, std::io::Error>,
        tower::buffer::Buffer<u32, Ready<Result<u32, std::io::Error>>>
    );
    assert!(buffer.0 <= buffer.1);
    assert!(response.0 <= response.1);
}
