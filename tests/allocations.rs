//! Allocations per call, by middleware: none, except for boxes that the user asked for.
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

// SAFETY: every call is forwarded to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
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

/// The number of allocations during `f`, and its result.
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
fn box_allocates_when_made_cloned_or_called() {
    // `block_on` creates the waker of its thread on first use.
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

#[cfg(feature = "std")]
#[test]
fn call_all_with_capacity_allocates_nothing() {
    use futures::stream::{StreamExt, repeat};

    block_on(async {});
    let service = service_fn(|n: u32| {
        let mut left = n;
        poll_fn(move |cx| {
            cx.waker().wake_by_ref();
            match left.checked_sub(1) {
                Some(fewer) => left = fewer,
                None => return Poll::Ready(Ok::<_, std::io::Error>(n)),
            }
            Poll::Pending
        })
    });
    let ordered = service.call_all(repeat(2));
    let unordered = service.call_all(repeat(2)).unordered();
    let mut both = ordered.zip(unordered);
    block_on(both.by_ref().take(200).count());
    let (count, items) = allocations(|| block_on(both.take(1_000).count()));
    assert_eq!((count, items), (0, 1_000));
}

/// A timer is present, so the waiting paths are measured too.
#[cfg(feature = "smol")]
mod middleware {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use campanile::buffer;
    #[cfg(target_has_atomic = "64")]
    use campanile::hedge::Delay;
    use campanile::limit::{ConcurrencyLimit, Rate};
    use campanile::load::{CompleteOnResponse, Constant, Load};
    use campanile::load_shed::LoadShed;
    #[cfg(target_has_atomic = "64")]
    use campanile::retry::{CloneByClone, budget::Unlimited};
    use campanile::retry::{Retry, StandardPolicy};
    use campanile::smol::Smol;
    #[cfg(target_has_atomic = "64")]
    use campanile::smol::hedge::Hedge;
    use campanile::smol::{
        limit::RateLimit,
        load::{PeakEwma, PendingRequests},
        timeout::{Deadline, Timeout},
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    /// Pends once, so that the middleware around it has to arm its timer.
    async fn pends_once(n: u32) -> Result<u32, std::io::Error> {
        let mut pended = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut pended, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        Ok(n)
    }

    fn per_call<S: Service<u32, Response = u32>>(mut service: S) -> u32
    where
        S::Error: std::fmt::Debug,
    {
        let mut cx = Context::from_waker(Waker::noop());
        let mut call = || {
            assert!(service.poll_ready(&mut cx).is_ready());
            let response = service.call(1);
            block_on(response).unwrap()
        };
        // The first call may fill caches.
        call();
        let (count, answer) = allocations(&mut call);
        assert_eq!(answer, 1);
        count
    }

    #[test]
    fn limits_and_filters_allocate_nothing() {
        block_on(async {});
        let leaf = service_fn(pends_once);
        assert_eq!(per_call(ConcurrencyLimit::new(leaf, 2)), 0);
        assert_eq!(per_call(ConcurrencyLimit::new(leaf, 2).unreserved()), 0);
        assert_eq!(per_call(LoadShed::new(ConcurrencyLimit::new(leaf, 2))), 0);
        let rate = Rate::new(1_000, LONG);
        assert_eq!(per_call(RateLimit::new(leaf, rate)), 0);
        let odd = |n: u32| {
            NonZeroU32::new(n % 2)
                .map(NonZeroU32::get)
                .ok_or(std::fmt::Error)
        };
        assert_eq!(per_call(leaf.filter(odd)), 0);
    }

    #[test]
    fn a_retry_allocates_nothing() {
        block_on(async {});
        let mut fails = false;
        let leaf = service_fn(move |n: u32| {
            fails = !fails;
            std::future::ready(if fails { Err(std::fmt::Error) } else { Ok(n) })
        });
        // Without a wait: async-io's own bookkeeping for an armed timer does not count.
        #[derive(Clone)]
        struct Again;
        impl campanile::retry::Policy<u32, u32, std::fmt::Error> for Again {
            type Future = std::future::Ready<()>;
            fn retry(
                &mut self,
                _: &mut u32,
                result: &mut Result<u32, std::fmt::Error>,
            ) -> Option<Self::Future> {
                result.is_err().then(|| std::future::ready(()))
            }
            fn clone_request(&mut self, request: &u32) -> Option<u32> {
                Some(*request)
            }
        }
        let leaf = Alternating(std::rc::Rc::new(std::cell::RefCell::new(leaf)));
        assert_eq!(per_call(Retry::new(Again, leaf)), 0);
        let policy = StandardPolicy::with_timer(Smol).total_time(LONG);
        assert_eq!(per_call(Retry::new(policy, service_fn(pends_once))), 0);
    }

    /// Clones fail in turn, not each on its first call.
    #[derive(Clone)]
    struct Alternating<S>(std::rc::Rc<std::cell::RefCell<S>>);

    impl<S: Service<u32>> Service<u32> for Alternating<S> {
        type Response = S::Response;
        type Error = S::Error;
        type Future = S::Future;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
            self.0.borrow_mut().poll_ready(cx)
        }

        fn call(&mut self, n: u32) -> S::Future {
            self.0.borrow_mut().call(n)
        }
    }

    #[test]
    #[cfg(target_has_atomic = "64")]
    fn a_hedge_allocates_nothing() {
        block_on(async {});
        let leaf = service_fn(pends_once);
        // Both attempts are made without a wait.
        let at_once = Delay::fixed(Duration::ZERO);
        let hedge = Hedge::with_delay(leaf, CloneByClone, at_once).budget(Unlimited);
        assert_eq!(per_call(hedge), 0);
        // Each call ends a period.
        let hedge = Hedge::new(leaf, CloneByClone, 1 << 32, 0.9, Duration::from_nanos(1));
        assert_eq!(per_call(hedge), 0);
    }

    #[test]
    fn unarmed_timeout_allocates_nothing() {
        block_on(async {});
        let leaf = service_fn(|n: u32| std::future::ready(Ok::<_, std::io::Error>(n)));
        assert_eq!(per_call(Timeout::new(leaf, LONG)), 0);
        assert_eq!(per_call(Timeout::new(leaf, LONG).from_call()), 0);
        assert_eq!(per_call(Deadline::new(leaf, LONG)), 0);
    }

    #[test]
    fn waits_on_a_set_alarm_allocate_nothing() {
        use campanile::Timer;
        use campanile::runtime::SharedTimer;

        block_on(async {});
        let timer = SharedTimer::new(Smol);
        let leaf = service_fn(pends_once);
        let timeout = campanile::timeout::Timeout::with_timer(leaf, LONG, timer.clone());
        assert_eq!(per_call(timeout), 0);
        // A hundred waits at once, after as many before.
        let mut cx = Context::from_waker(Waker::noop());
        let mut begin = |all: &mut Vec<_>| {
            all.extend((0..100).map(|_| timer.sleep(LONG)));
            let mut all = all.iter_mut();
            assert!(all.all(|sleep| std::pin::Pin::new(sleep).poll(&mut cx).is_pending()));
        };
        let mut all = Vec::new();
        begin(&mut all);
        all.clear();
        assert_eq!(allocations(|| begin(&mut all)).0, 0);
        #[cfg(target_has_atomic = "64")]
        {
            let delay = Delay::fixed(LONG);
            let hedge = campanile::hedge::Hedge::with_timer(leaf, CloneByClone, delay, timer);
            assert_eq!(per_call(hedge), 0);
        }
    }

    #[test]
    fn warm_buffer_allocates_nothing() {
        block_on(async {});
        let (mut buffer, worker) = buffer::pair(service_fn(pends_once), 4);
        let mut worker = std::pin::pin!(worker);
        let mut cx = Context::from_waker(Waker::noop());
        let mut call = || {
            assert!(buffer.poll_ready(&mut cx).is_ready());
            let response = buffer.call(1);
            assert!(worker.as_mut().poll(&mut cx).is_pending());
            let answer = block_on(response).unwrap();
            drop(buffer.clone());
            answer
        };
        call();
        let (count, answer) = allocations(&mut call);
        assert_eq!((count, answer), (0, 1));
    }

    #[test]
    fn steer_allocates_nothing() {
        use campanile::steer::Steer;

        block_on(async {});
        let leaf = service_fn(pends_once);
        let pick = |n: &u32, _: &[_]| *n as usize;
        assert_eq!(per_call(Steer::new([leaf, leaf], pick)), 0);
        let (count, steer) = allocations(|| Steer::with_services([leaf, leaf], pick));
        assert_eq!((count, per_call(steer)), (0, 0));
    }

    #[test]
    fn open_connection_allocates_nothing() {
        use campanile::{make::Shared, smol::reconnect::Reconnect};

        block_on(async {});
        let connector = Shared::new(service_fn(pends_once));
        let (count, service) = allocations(|| Reconnect::new(connector, "target"));
        assert_eq!((count, per_call(service)), (0, 0));
    }

    #[test]
    fn running_spawn_ready_allocates_nothing() {
        use campanile::spawn_ready::{BackgroundReady, SpawnReady};
        use std::{cell::RefCell, pin::Pin};

        /// Pends twice before each call: once when the handle polls it, once in the task. Then it is ready until the
        /// call.
        struct Slow(u32);

        impl Service<u32> for Slow {
            type Response = u32;
            type Error = std::io::Error;
            type Future = std::future::Ready<Result<u32, std::io::Error>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
                self.0 += 1;
                if self.0 > 2 {
                    Poll::Ready(Ok(()))
                } else {
                    Poll::Pending
                }
            }

            fn call(&mut self, n: u32) -> Self::Future {
                self.0 = 0;
                std::future::ready(Ok(n))
            }
        }

        #[derive(Default)]
        struct ByHand(RefCell<Option<BackgroundReady<Slow, u32>>>);

        impl campanile::Executor<BackgroundReady<Slow, u32>> for ByHand {
            fn execute(&self, task: BackgroundReady<Slow, u32>) {
                assert!(self.0.replace(Some(task)).is_none());
            }
        }

        block_on(async {});
        let executor = ByHand::default();
        let mut service = SpawnReady::with_executor(Slow(0), &executor);
        // Not the noop waker: polling with that one only tries.
        let waker = futures::task::noop_waker();
        let mut cx = Context::from_waker(&waker);
        let mut call = || {
            assert!(service.poll_ready(&mut cx).is_pending());
            for _ in 0..2 {
                let mut task = executor.0.borrow_mut();
                let task = Pin::new(task.as_mut().unwrap());
                assert!(task.poll(&mut cx).is_pending());
            }
            assert!(service.poll_ready(&mut cx).is_ready());
            block_on(service.call(1)).unwrap()
        };
        let (count, _) = allocations(&mut call);
        assert_eq!(count, 1);
        let (count, answer) = allocations(&mut call);
        assert_eq!((count, answer), (0, 1));
    }

    #[test]
    fn loads_allocate_nothing() {
        block_on(async {});
        let leaf = service_fn(pends_once);
        assert_eq!(per_call(Constant::new(leaf, 1)), 0);
        let pending = PendingRequests::new(leaf, CompleteOnResponse);
        assert_eq!(per_call(pending.clone()), 0);
        assert_eq!(allocations(|| pending.load()).0, 0);
        let ewma = PeakEwma::new(leaf, LONG, 1e9, CompleteOnResponse);
        assert_eq!(per_call(ewma.clone()), 0);
        assert_eq!(allocations(|| ewma.load()).0, 0);
    }

    #[test]
    fn warm_balancer_and_cache_allocate_nothing() {
        use campanile::balance::p2c::Balance;
        use campanile::discover::ServiceList;
        use campanile::layer::Identity;
        use campanile::smol::balance::quarantine::QuarantineLayer;

        block_on(async {});
        let endpoint = || PendingRequests::new(service_fn(pends_once), CompleteOnResponse);
        let list = || ServiceList::new((0..16).map(|_| endpoint()));
        assert_eq!(per_call(Balance::with_layer(list(), Identity::new())), 0);
        let quarantine = QuarantineLayer::new();
        assert_eq!(per_call(Balance::with_layer(list(), quarantine)), 0);
        let counting = QuarantineLayer::new().consecutive_failures(5);
        assert_eq!(per_call(Balance::with_layer(list(), counting)), 0);

        let mut cache = campanile::ready_cache::ReadyCache::new();
        for key in 0..16 {
            cache.push(key, endpoint());
        }
        let mut cx = Context::from_waker(Waker::noop());
        let mut call = || {
            assert!(cache.poll_pending(&mut cx).is_ready());
            block_on(cache.call_ready_index(7, 1)).unwrap()
        };
        call();
        let (count, answer) = allocations(&mut call);
        assert_eq!((count, answer), (0, 1));
    }
}
