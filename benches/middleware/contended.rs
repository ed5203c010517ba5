//! Contended rate limits: tasks that send one request after the other, at one per millisecond. tokio's clock is
//! paused, and advances to the next alarm when all wait. tower's limit is measured behind tower's buffer, since it is
//! not `Clone`.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use campanile::Service;

use crate::count::{Counted, Outcome};
use crate::leaf::{Answer, Failed, Leaf, answer};
use crate::list::{Case, Pair};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Its own type: code with a single caller is inlined there, and the code of the other cases must not change.
#[derive(Clone, Copy)]
struct Waited<const PENDING: bool>(Leaf<PENDING>);

impl<const PENDING: bool> Service<u64> for Waited<PENDING> {
    type Response = u64;
    type Error = Failed;
    type Future = Answer<PENDING>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, n: u64) -> Self::Future {
        self.0.call(n)
    }
}

/// How often handles were polled for readiness.
static POLLS: AtomicU64 = AtomicU64::new(0);

fn ours<const PENDING: bool, const WAITERS: u64>(count: u64) -> Outcome {
    run::<_, WAITERS>(count, || {
        let rate = campanile::limit::Rate::new(1, MILLISECOND);
        campanile::tokio::limit::RateLimit::new(Waited::<PENDING>(Leaf), rate)
    })
}

fn towers<const PENDING: bool, const WAITERS: u64>(count: u64) -> Outcome {
    run::<_, WAITERS>(count, || {
        let rate = tower::limit::rate::Rate::new(1, MILLISECOND);
        let limit = tower::limit::RateLimit::new(Waited::<PENDING>(Leaf), rate);
        tower::buffer::Buffer::new(limit, WAITERS as usize)
    })
}

fn run<S, const WAITERS: u64>(count: u64, make: impl FnOnce() -> S) -> Outcome
where
    S: Service<u64, Response = u64, Future: Send> + Clone + Send + 'static,
{
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build();
    runtime.expect("no runtime").block_on(async {
        let service = make();
        let counted = Counted::begin();
        let tasks: Vec<_> = (0..WAITERS)
            .map(|waiter| {
                let requests = count / WAITERS + u64::from(waiter < count % WAITERS);
                tokio::spawn(send(service.clone(), requests))
            })
            .collect();
        let mut outcome = Outcome {
            future: size_of::<S::Future>(),
            ..Outcome::default()
        };
        for task in tasks {
            outcome.right += task.await.expect("a task panicked");
        }
        counted.end(&mut outcome);
        outcome
    })
}

async fn send<S: Service<u64, Response = u64>>(mut service: S, count: u64) -> u64 {
    let mut right = 0;
    for n in 0..count {
        let ready = poll_fn(|cx| {
            POLLS.fetch_add(1, Relaxed);
            service.poll_ready(cx)
        });
        if ready.await.is_err() {
            break;
        }
        if let Ok(got) = service.call(n).await {
            right += u64::from(got == answer(n));
        }
    }
    right
}

macro_rules! case {
    ($name:literal, $waiters:literal) => {{
        let pair = Pair {
            ready: ours::<false, $waiters>,
            pending: ours::<true, $waiters>,
        };
        let tower = Pair {
            ready: towers::<false, $waiters>,
            pending: towers::<true, $waiters>,
        };
        Case {
            name: $name,
            ours: pair,
            tower,
            #[cfg(all(feature = "async-std", feature = "smol"))]
            ours_on_two: pair,
            #[cfg(all(feature = "async-std", feature = "smol"))]
            tower_on_two: tower,
            #[cfg(all(feature = "async-std", feature = "smol"))]
            ours_on_smol: pair,
            #[cfg(all(feature = "async-std", feature = "smol"))]
            ours_on_async_std: pair,
        }
    }};
}

pub(crate) fn cases() -> [Case; 3] {
    [
        case!("rate_limit, 1 waiter", 1),
        case!("rate_limit, 16 waiters", 16),
        case!("rate_limit, 1000 waiters", 1000),
    ]
}

/// Prints how often a handle is polled for a token.
pub(crate) fn polls() {
    const COUNT: u64 = 10_000;
    for case in cases() {
        let [ours, tower] = [case.ours, case.tower].map(|pair| {
            let before = POLLS.load(Relaxed);
            assert_eq!(
                (pair.ready)(COUNT).right,
                COUNT,
                "not each answer was right"
            );
            (POLLS.load(Relaxed) - before) as f64 / COUNT as f64
        });
        println!(
            "{}: {ours:.2} polls of a handle for each token, tower's {tower:.2}",
            case.name
        );
    }
}
