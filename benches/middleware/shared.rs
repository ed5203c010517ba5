//! Wall-clock time of shared state: buffers by callers and bound, and contended concurrency limits.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use campanile::Service;

use crate::clock::spread;
use crate::host::{AsyncStd, CurrentThread, Host, Smol, TwoThreads};
use crate::leaf::{Leaf, answer};

const REQUESTS: usize = 20_000;
const ROUNDS: usize = 9;

/// How long the run took, and, if measured, how long each request took, in nanoseconds.
struct Times {
    whole: Duration,
    each: Vec<u32>,
}

fn share<H: Host, S>(make: impl FnOnce() -> S + Send + 'static, callers: usize, each: bool) -> Times
where
    S: Service<u64, Response = u64, Future: Send> + Clone + Send + 'static,
{
    H::block_on(async move {
        let service = make();
        let start = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let service = service.clone();
                H::spawn(calls(service, REQUESTS.div_ceil(callers), each))
            })
            .collect();
        let mut times = Vec::with_capacity(REQUESTS + callers);
        for task in tasks {
            times.extend(task.await);
        }
        let whole = start.elapsed();
        times.sort_unstable();
        Times { whole, each: times }
    })
}

async fn calls<S>(mut service: S, count: usize, each: bool) -> Vec<u32>
where
    S: Service<u64, Response = u64>,
{
    let mut times = Vec::with_capacity(if each { count } else { 0 });
    for n in 0..count as u64 {
        // Reading the clock takes a good part of the time of a request.
        let start = each.then(Instant::now);
        let ready = poll_fn(|cx| service.poll_ready(cx)).await.is_ok();
        let got = service.call(n).await.ok();
        times.extend(start.map(|start| start.elapsed().as_nanos() as u32));
        assert!(ready && got == Some(answer(n)));
    }
    times
}

/// Rounds of ours and tower's in turn.
fn compare<H: Host, F, G, S, T>(what: &str, callers: usize, ours: F, tower: G)
where
    F: FnOnce() -> S + Copy + Send + 'static,
    G: FnOnce() -> T + Copy + Send + 'static,
    S: Service<u64, Response = u64, Future: Send> + Clone + Send + 'static,
    T: Service<u64, Response = u64, Future: Send> + Clone + Send + 'static,
{
    let ours = |each| share::<H, _>(ours, callers, each);
    let tower = |each| share::<H, _>(tower, callers, each);
    let mut ratios = vec![];
    for round in 0..ROUNDS {
        let (ours, tower) = if round % 2 == 0 {
            let ours = ours(false);
            (ours, tower(false))
        } else {
            let tower = tower(false);
            (ours(false), tower)
        };
        ratios.push(tower.whole.as_secs_f64() / ours.whole.as_secs_f64());
    }
    let [ratio, below, above] = spread(ratios);
    let timed = |run: &dyn Fn(bool) -> Times| [run(true), run(true), run(true)];
    println!(
        "{:18} {what}  callers {callers:4}  ratio {ratio:5.2} [{below:.2}, {above:.2}]  ours {}  tower {}",
        H::NAME,
        latencies(&timed(&ours)),
        latencies(&timed(&tower))
    );
}

/// Percentiles of the time of a request.
fn latencies(all: &[Times]) -> String {
    let at = |share: f64| {
        let each = |times: &Times| {
            let last = times.each.len() - 1;
            f64::from(times.each[(last as f64 * share) as usize]) / 1e3
        };
        spread(all.iter().map(each).collect())[0]
    };
    format!(
        "50 % {:.1} 99 % {:.1} 99.9 % {:.1} us",
        at(0.5),
        at(0.99),
        at(0.999)
    )
}

macro_rules! buffers {
    ($host:ty, $runtime:ident) => {
        for callers in [1, 4, 16, 64, 1000] {
            for bound in [1, 16, 1024] {
                compare::<$host, _, _, _, _>(
                    &format!("bound {bound:4}"),
                    callers,
                    move || campanile::$runtime::buffer::Buffer::new(Leaf::<false>, bound),
                    // Its worker runs anywhere.
                    move || {
                        let (buffer, worker) = tower::buffer::Buffer::pair(Leaf::<false>, bound);
                        <$host>::detach(worker);
                        buffer
                    },
                );
            }
        }
    };
}

macro_rules! limits {
    ($host:ty) => {
        for callers in [1, 4, 64] {
            for limit in [1, 16] {
                // Pending once, so that permits are held while others run.
                compare::<$host, _, _, _, _>(
                    &format!("limit {limit:4}"),
                    callers,
                    move || campanile::limit::ConcurrencyLimit::new(Leaf::<true>, limit),
                    move || tower::limit::ConcurrencyLimit::new(Leaf::<true>, limit),
                );
            }
        }
    };
}

const LEGEND: &str = "ratio: requests per second by tower's within a round, median [a tenth below, a tenth above]; \
                      then how long a request takes";

pub(crate) fn run_buffers() {
    println!("{LEGEND}");
    buffers!(CurrentThread, tokio);
    buffers!(TwoThreads, tokio);
    buffers!(Smol, smol);
    buffers!(AsyncStd, async_std);
}

pub(crate) fn run_limits() {
    println!("{LEGEND}");
    limits!(CurrentThread);
    limits!(TwoThreads);
    limits!(Smol);
    limits!(AsyncStd);
}
