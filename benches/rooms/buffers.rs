//! Wall clock of buffers, by callers and bound.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use campanile::Service;

use crate::clock::spread;
use crate::host::{AsyncStd, CurrentThread, Host, Smol, TwoThreads};
use crate::leaf::{Leaf, answer};

const REQUESTS: usize = 20_000;
const ROUNDS: usize = 7;

/// How long it took, and how long each request did, in nanoseconds.
struct Times {
    whole: Duration,
    each: Vec<u32>,
}

fn share<H: Host, S>(make: impl FnOnce() -> S + Send + 'static, callers: usize) -> Times
where
    S: Service<u64, Response = u64, Future: Send> + Clone + Send + 'static,
{
    H::block_on(async move {
        let service = make();
        let start = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|_| H::spawn(calls(service.clone(), REQUESTS.div_ceil(callers))))
            .collect();
        let mut each = Vec::with_capacity(REQUESTS + callers);
        for task in tasks {
            each.extend(task.await);
        }
        let whole = start.elapsed();
        each.sort_unstable();
        Times { whole, each }
    })
}

async fn calls<S>(mut service: S, count: usize) -> Vec<u32>
where
    S: Service<u64, Response = u64>,
{
    let mut each = Vec::with_capacity(count);
    for n in 0..count as u64 {
        let start = Instant::now();
        let ready = poll_fn(|cx| service.poll_ready(cx)).await.is_ok();
        let got = service.call(n).await.ok();
        each.push(start.elapsed().as_nanos() as u32);
        assert!(ready && got == Some(answer(n)));
    }
    each
}

macro_rules! measure {
    ($host:ty, $runtime:ident) => {
        for callers in [1, 4, 16, 64, 1000] {
            for bound in [1, 16, 1024] {
                let ours = move || campanile::$runtime::buffer::Buffer::new(Leaf::<false>, bound);
                compare::<$host, _, _>(ours, callers, bound);
            }
        }
    };
}

fn compare<H: Host, F, S>(ours: F, callers: usize, bound: usize)
where
    F: FnOnce() -> S + Copy + Send + 'static,
    S: Service<u64, Response = u64, Future: Send> + Clone + Send + 'static,
{
    let ours = || share::<H, _>(ours, callers);
    // Where tower does not run, its tokio on two threads is what stands beside.
    let tower = || {
        let make = move || tower::buffer::Buffer::new(Leaf::<false>, bound);
        if H::NAME == CurrentThread::NAME {
            share::<CurrentThread, _>(make, callers)
        } else {
            share::<TwoThreads, _>(make, callers)
        }
    };
    let (mut ratios, mut all_ours, mut all_tower) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        let (a, b) = if round % 2 == 0 {
            let a = ours();
            (a, tower())
        } else {
            let b = tower();
            (ours(), b)
        };
        ratios.push(b.whole.as_secs_f64() / a.whole.as_secs_f64());
        all_ours.push(a);
        all_tower.push(b);
    }
    let [ratio, below, above] = spread(ratios);
    println!(
        "{:18} callers {callers:4}  bound {bound:4}  ratio {ratio:5.2} [{below:.2}, {above:.2}]  ours {}  tower {}",
        H::NAME,
        latencies(&all_ours),
        latencies(&all_tower)
    );
}

/// Requests per second, and percentiles of the time for each.
fn latencies(all: &[Times]) -> String {
    let at = |share: f64| {
        let each = |times: &Times| {
            let last = times.each.len() - 1;
            f64::from(times.each[(last as f64 * share) as usize]) / 1e3
        };
        spread(all.iter().map(each).collect())[0]
    };
    let per_second = |times: &Times| times.each.len() as f64 / times.whole.as_secs_f64() / 1e6;
    let [per_second, ..] = spread(all.iter().map(per_second).collect());
    format!(
        "{per_second:5.2} M/s, 50 % {:.1} 99 % {:.1} 99.9 % {:.1} us",
        at(0.5),
        at(0.99),
        at(0.999)
    )
}

pub(crate) fn run() {
    println!(
        "ratio: requests per second by tower's within a round, median of {ROUNDS} [a tenth below, a tenth above]"
    );
    measure!(CurrentThread, tokio);
    measure!(TwoThreads, tokio);
    measure!(Smol, smol);
    measure!(AsyncStd, async_std);
}
