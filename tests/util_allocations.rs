//! What the boxes of `util` allocate, and that nothing else there does.
#![cfg(feature = "alloc")]
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::poll_fn;
use std::hint::black_box;
use std::task::{Context, Poll, Waker};

use campanile::util::{BoxCloneService, BoxCloneSyncService, BoxService, UnsyncBoxService};
use campanile::{Service, ServiceExt, service_fn};
use futures::executor::block_on;

/// Counts the allocations of each thread.
struct Counting;

std::thread_local! {
    static COUNT: Cell<u32> = const { Cell::new(0) };
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `f` allocates.
fn allocations<T>(f: impl FnOnce() -> T) -> (u32, T) {
    let before = COUNT.get();
    let value = black_box(f());
    (COUNT.get() - before, value)
}

async fn echo(n: u32) -> Result<u32, std::convert::Infallible> {
    let mut left = n;
    poll_fn(|_| {
        left = 0;
        Poll::Ready(())
    })
    .await;
    Ok(n)
}

fn one_per_call<S: Service<u32, Response = u32>>(mut service: S) {
    let mut cx = Context::from_waker(Waker::noop());
    for n in 0..3 {
        let (count, polled) = allocations(|| service.poll_ready(&mut cx).is_ready());
        assert_eq!((count, polled), (0, true));
        let (count, response) = allocations(|| service.call(n));
        assert_eq!(count, 1);
        let (count, response) = allocations(|| block_on(response).ok());
        assert_eq!((count, response), (0, Some(n)));
    }
}

#[test]
fn a_box_allocates_once_when_it_is_made_once_per_clone_and_once_per_call() {
    // `block_on` makes the waker of its thread the first time.
    block_on(async {});

    let kept = [1_u8; 8];
    let service = service_fn(move |n: u32| {
        black_box(kept);
        echo(n)
    });

    let (count, boxed) = allocations(|| BoxService::new(service));
    assert_eq!(count, 1);
    one_per_call(boxed);

    let (count, boxed) = allocations(|| BoxCloneService::new(service));
    assert_eq!(count, 1);
    let (count, clone) = allocations(|| boxed.clone());
    assert_eq!(count, 1);
    one_per_call(clone);

    one_per_call(BoxCloneSyncService::new(service));
    one_per_call(UnsyncBoxService::new(service));
}

#[test]
fn combinators_and_filters_allocate_nothing() {
    block_on(async {});
    let service = service_fn(echo)
        .map_request(|n: u32| n + 1)
        .map_response(|n| n + 1)
        .map_result(|result| result)
        .and_then(echo)
        .then(|result: Result<u32, _>| async move { result })
        .filter(|n: u32| n.checked_add(1).ok_or(std::fmt::Error))
        .filter_async(|n: u32| async move { n.checked_add(1).ok_or(std::fmt::Error) })
        .map_err(|_| 7_u8)
        .err_into::<u32>();
    let (count, result) = allocations(|| block_on(service.oneshot(0)));
    assert_eq!(count, 0);
    assert_eq!(result.ok(), Some(4));
}
