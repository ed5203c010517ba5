//! A counting allocator, and the loop that drives all cases.

use std::alloc::{GlobalAlloc, Layout, System};
use std::future::poll_fn;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use campanile::Service;

use crate::leaf::answer;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

// Loads and stores, for as few instructions as possible. The count is exact on one thread, and used on one only.
fn add(to: &AtomicU64, n: u64) {
    to.store(to.load(Relaxed) + n, Relaxed);
}

// SAFETY: forwards everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(&ALLOCATIONS, 1);
        add(&BYTES, layout.size() as u64);
        // SAFETY: the caller upholds the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The outcome of a number of requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// The number of right answers.
    pub(crate) right: u64,
    pub(crate) allocations: u64,
    pub(crate) bytes: u64,
    /// The size of a response future.
    pub(crate) future: usize,
    pub(crate) elapsed: Duration,
}

/// Allocations count from here on.
pub(crate) struct Counted {
    allocations: u64,
    bytes: u64,
    start: Instant,
}

impl Counted {
    pub(crate) fn begin() -> Self {
        Self {
            allocations: ALLOCATIONS.load(Relaxed),
            bytes: BYTES.load(Relaxed),
            start: Instant::now(),
        }
    }

    pub(crate) fn end(self, outcome: &mut Outcome) {
        outcome.elapsed = self.start.elapsed();
        outcome.allocations = ALLOCATIONS.load(Relaxed) - self.allocations;
        outcome.bytes = BYTES.load(Relaxed) - self.bytes;
    }
}

/// The first requests, which allocate what is then kept, are not counted.
const FIRST: u64 = 512;

/// Sends `count` requests, one after the other.
pub(crate) async fn drive<S>(mut service: S, count: u64) -> Outcome
where
    S: Service<u64, Response = u64>,
{
    let mut outcome = Outcome {
        future: size_of::<S::Future>(),
        ..Outcome::default()
    };
    let start = Instant::now();
    for n in 0..count {
        if n == FIRST {
            outcome.allocations = ALLOCATIONS.load(Relaxed);
            outcome.bytes = BYTES.load(Relaxed);
        }
        if poll_fn(|cx| service.poll_ready(cx)).await.is_err() {
            break;
        }
        if let Ok(got) = service.call(black_box(n)).await {
            outcome.right += u64::from(got == answer(n));
        }
    }
    outcome.elapsed = start.elapsed();
    if count > FIRST {
        outcome.allocations = ALLOCATIONS.load(Relaxed) - outcome.allocations;
        outcome.bytes = BYTES.load(Relaxed) - outcome.bytes;
    }
    outcome
}
