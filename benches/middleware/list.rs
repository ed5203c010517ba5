//! The cases: how to make ours, and how to make tower's.

use std::time::Duration;

use campanile::Timer;
use campanile::runtime::SharedTimer;
use campanile::util::rng::SplitMix64;

use crate::count::{Outcome, drive};
#[cfg(all(feature = "async-std", feature = "smol"))]
use crate::host::{AsyncStd, Smol, TwoThreads};
use crate::host::{CurrentThread, Host};
use crate::leaf::{Failed, Leaf, Once, Seeded, Slow, cache};

/// A case: in each setting, functions that send a number of requests through ours and tower's.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) ours: Pair,
    pub(crate) tower: Pair,
    #[cfg(all(feature = "async-std", feature = "smol"))]
    pub(crate) ours_on_two: Pair,
    #[cfg(all(feature = "async-std", feature = "smol"))]
    pub(crate) tower_on_two: Pair,
    #[cfg(all(feature = "async-std", feature = "smol"))]
    pub(crate) ours_on_smol: Pair,
    #[cfg(all(feature = "async-std", feature = "smol"))]
    pub(crate) ours_on_async_std: Pair,
}

/// A case over a service that answers at once, and over one that is pending once.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) ready: fn(u64) -> Outcome,
    pub(crate) pending: fn(u64) -> Outcome,
}

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
/// So many per second that no request waits.
const MANY: u64 = 1_000_000_000;

macro_rules! case {
    ($name:expr, |$leaf:ident| $ours:expr, $tower:expr) => {{
        case!(ours_on_tokio, campanile::tokio, |$leaf| $ours);
        #[cfg(all(feature = "async-std", feature = "smol"))]
        case!(ours_on_smol, campanile::smol, |$leaf| $ours);
        #[cfg(all(feature = "async-std", feature = "smol"))]
        case!(ours_on_async_std, campanile::async_std, |$leaf| $ours);
        case!(towers, tower, |$leaf| $tower);
        Case {
            name: $name,
            ours: case!(ours_on_tokio, CurrentThread),
            tower: case!(towers, CurrentThread),
            #[cfg(all(feature = "async-std", feature = "smol"))]
            ours_on_two: case!(ours_on_tokio, TwoThreads),
            #[cfg(all(feature = "async-std", feature = "smol"))]
            tower_on_two: case!(towers, TwoThreads),
            #[cfg(all(feature = "async-std", feature = "smol"))]
            ours_on_smol: case!(ours_on_smol, Smol),
            #[cfg(all(feature = "async-std", feature = "smol"))]
            ours_on_async_std: case!(ours_on_async_std, AsyncStd),
        }
    }};
    ($function:ident, $runtime:path, |$leaf:ident| $make:expr) => {
        #[allow(clippy::clone_on_copy, reason = "tower's builder wants references")]
        fn $function<H: Host, const PENDING: bool>(count: u64) -> Outcome {
            #[allow(unused_imports, reason = "not each case depends on the runtime")]
            use $runtime as rt;
            H::block_on(async move {
                let $leaf = Leaf::<PENDING>;
                let service = $make;
                drive(service, count).await
            })
        }
    };
    ($function:ident, $host:ty) => {
        Pair {
            ready: $function::<$host, false>,
            pending: $function::<$host, true>,
        }
    };
}

macro_rules! least_pending {
    ($count:expr, $leaf:ident, $seed:expr) => {{
        let endpoint = |_| {
            let completion = rt::load::CompleteOnResponse::default();
            rt::load::PendingRequests::new($leaf, completion)
        };
        let list = rt::discover::ServiceList::new::<u64>((0..$count).map(endpoint));
        rt::balance::p2c::Balance::<_, u64>::from_rng(list, $seed)
    }};
}

macro_rules! peak_ewma {
    ($count:expr, $leaf:ident, $seed:expr) => {{
        let endpoint = |_| {
            let completion = rt::load::CompleteOnResponse::default();
            rt::load::PeakEwma::new($leaf, Duration::from_millis(1), 1e9, completion)
        };
        let list = rt::discover::ServiceList::new::<u64>((0..$count).map(endpoint));
        rt::balance::p2c::Balance::<_, u64>::from_rng(list, $seed)
    }};
}

/// One alarm of the builder's runtime.
fn shared_timer<L, T>(_: &campanile::builder::ServiceBuilder<L, T>) -> SharedTimer<T>
where
    T: Timer<Alarm: Send> + Default + Send + Sync + 'static,
{
    SharedTimer::default()
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!("the service alone", |leaf| leaf, leaf),
        case!(
            "load_shed",
            |leaf| rt::load_shed::LoadShed::new(leaf),
            rt::load_shed::LoadShed::new(leaf)
        ),
        case!(
            "map_request",
            |leaf| rt::util::MapRequest::new(leaf, |n: u64| n),
            rt::util::MapRequest::new(leaf, |n: u64| n)
        ),
        case!(
            "map_response",
            |leaf| rt::util::MapResponse::new(leaf, |n: u64| n),
            rt::util::MapResponse::new(leaf, |n: u64| n)
        ),
        case!(
            "map_err",
            |leaf| rt::util::MapErr::new(leaf, |e: Failed| e),
            rt::util::MapErr::new(leaf, |e: Failed| e)
        ),
        case!(
            "map_result",
            |leaf| rt::util::MapResult::new(leaf, |r: Result<u64, Failed>| r),
            rt::util::MapResult::new(leaf, |r: Result<u64, Failed>| r)
        ),
        case!(
            "then",
            |leaf| rt::util::Then::new(leaf, |r: Result<u64, Failed>| std::future::ready(r)),
            rt::util::Then::new(leaf, |r: Result<u64, Failed>| std::future::ready(r))
        ),
        case!(
            "and_then",
            |leaf| rt::util::AndThen::new(leaf, |n: u64| std::future::ready(Ok::<_, Failed>(n))),
            rt::util::AndThen::new(leaf, |n: u64| std::future::ready(Ok::<_, Failed>(n)))
        ),
        case!(
            "filter",
            |leaf| rt::filter::Filter::new(leaf, |n: u64| Ok::<_, Failed>(n)),
            rt::filter::Filter::new(leaf, |n: u64| Ok::<_, Failed>(n))
        ),
        case!(
            "steer, 4",
            |leaf| rt::steer::Steer::new([leaf; 4], |n: &u64, _: &[_]| (*n % 4) as usize),
            rt::steer::Steer::new([leaf; 4], |n: &u64, _: &[_]| (*n % 4) as usize)
        ),
        case!(
            "retry",
            |leaf| rt::retry::Retry::new(Once, leaf),
            rt::retry::Retry::new(Once, leaf)
        ),
        case!(
            "timeout",
            |leaf| rt::timeout::Timeout::new(leaf, HOUR),
            rt::timeout::Timeout::new(leaf, HOUR)
        ),
        case!(
            "timeout, from_call",
            |leaf| rt::timeout::Timeout::new(leaf, HOUR).from_call(),
            rt::timeout::Timeout::new(leaf, HOUR)
        ),
        case!(
            "timeout, shared timer",
            |leaf| {
                let timer = shared_timer(&rt::ServiceBuilder::new());
                campanile::timeout::Timeout::with_timer(leaf, HOUR, timer)
            },
            rt::timeout::Timeout::new(leaf, HOUR)
        ),
        case!(
            "concurrency_limit",
            |leaf| rt::limit::ConcurrencyLimit::new(leaf, 16),
            rt::limit::ConcurrencyLimit::new(leaf, 16)
        ),
        case!(
            "rate_limit",
            |leaf| rt::limit::RateLimit::new(leaf, rt::limit::rate::Rate::new(MANY, SECOND)),
            rt::limit::RateLimit::new(leaf, rt::limit::rate::Rate::new(MANY, SECOND))
        ),
        case!(
            "rate_limit, fixed window",
            |leaf| {
                let rate = rt::limit::rate::Rate::new(MANY, SECOND).fixed_window();
                rt::limit::RateLimit::new(leaf, rate)
            },
            rt::limit::RateLimit::new(leaf, rt::limit::rate::Rate::new(MANY, SECOND))
        ),
        case!(
            "hedge",
            |leaf| {
                let layer = rt::hedge::HedgeLayer::new(Once, 10, 0.9, HOUR);
                layer.seed([Duration::from_millis(10); 100]);
                campanile::Layer::layer(&layer, leaf)
            },
            {
                // Milliseconds.
                let latencies = [10; 100];
                rt::hedge::Hedge::new_with_mock_latencies(leaf, Once, 10, 0.9, HOUR, &latencies)
            }
        ),
        case!(
            "hedge, shared timer",
            |leaf| {
                let timer = shared_timer(&rt::ServiceBuilder::new());
                let delay = campanile::hedge::Delay::percentile(10, 0.9, HOUR);
                let layer = campanile::hedge::HedgeLayer::with_timer(Once, delay, timer);
                layer.seed([Duration::from_millis(10); 100]);
                campanile::Layer::layer(&layer, leaf)
            },
            {
                let latencies = [10; 100];
                rt::hedge::Hedge::new_with_mock_latencies(leaf, Once, 10, 0.9, HOUR, &latencies)
            }
        ),
        case!(
            "balance, pending requests, 2",
            |leaf| least_pending!(2, leaf, SplitMix64::new(1)),
            least_pending!(2, leaf, Seeded::new())
        ),
        case!(
            "balance, pending requests, 128",
            |leaf| least_pending!(128, leaf, SplitMix64::new(1)),
            least_pending!(128, leaf, Seeded::new())
        ),
        case!(
            "balance, peak EWMA, 2",
            |leaf| peak_ewma!(2, leaf, SplitMix64::new(1)),
            peak_ewma!(2, leaf, Seeded::new())
        ),
        case!(
            "balance, peak EWMA, 128",
            |leaf| peak_ewma!(128, leaf, SplitMix64::new(1)),
            peak_ewma!(128, leaf, Seeded::new())
        ),
        case!(
            "ready_cache, 16",
            |leaf| cache!(rt::ready_cache::ReadyCache<usize, _, u64>, 16, leaf),
            cache!(rt::ready_cache::ReadyCache<usize, _, u64>, 16, leaf)
        ),
        case!(
            "spawn_ready, pending",
            |leaf| rt::spawn_ready::SpawnReady::new(Slow::new(leaf)),
            rt::spawn_ready::SpawnReady::new(Slow::new(leaf))
        ),
        case!(
            "buffer, 16",
            |leaf| rt::buffer::Buffer::new(leaf, 16),
            rt::buffer::Buffer::new(leaf, 16)
        ),
        case!(
            "the stack",
            |leaf| rt::ServiceBuilder::new()
                .buffer(16)
                .concurrency_limit(16)
                .rate_limit(MANY, SECOND)
                .timeout(HOUR)
                .retry(Once)
                .service(leaf),
            rt::ServiceBuilder::new()
                .buffer(16)
                .concurrency_limit(16)
                .rate_limit(MANY, SECOND)
                .timeout(HOUR)
                .retry(Once)
                .service(leaf)
        ),
    ]
}
