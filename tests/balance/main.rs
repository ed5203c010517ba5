//! `Balance` and `Quarantine`: which endpoints are chosen, which are never called, and which come back and when.
#![cfg(feature = "std")]

#[path = "../common/mod.rs"]
mod common;
mod discovery;
mod idle;
mod quarantine;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use campanile::balance::error::{Discover as DiscoverFailed, Error, NoEndpoints, NotReady};
use campanile::balance::p2c::{Balance, MakeBalance, MakeBalanceLayer};
use campanile::balance::quarantine::{Quarantine, QuarantineLayer};
use campanile::discover::{Change, ServiceList};
use campanile::layer::Identity;
use campanile::load::{Constant, Load, Outcome};
use campanile::load_shed::LoadShed;
use campanile::retry::backoff::{ExponentialBackoffMaker, Jitter};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{BoxError, Executor, Layer, Service, service_fn};
use futures::FutureExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};

use common::{
    Failure, Host, ManualTimer, Mock, On, WakeCount, mock, on_every_runtime, ready as found, until,
};

const BROKEN: Failure = Failure("broken");
const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Ready,
    Busy,
    Broken,
}

/// What the test knows of an endpoint, across all its instances.
#[derive(Debug)]
struct Site {
    mood: Cell<Mood>,
    load: Cell<u32>,
    /// Whether responses fail.
    fails: Cell<bool>,
    polls: Cell<u32>,
    calls: Cell<u32>,
    alive: Cell<u32>,
    wakers: RefCell<Vec<Waker>>,
}

impl Site {
    fn new(mood: Mood, load: u32) -> Rc<Self> {
        Rc::new(Self {
            mood: Cell::new(mood),
            load: Cell::new(load),
            fails: Cell::new(false),
            polls: Cell::new(0),
            calls: Cell::new(0),
            alive: Cell::new(0),
            wakers: RefCell::default(),
        })
    }

    fn endpoint(self: &Rc<Self>) -> Endpoint {
        self.alive.set(self.alive.get() + 1);
        Endpoint {
            site: self.clone(),
            asked: Cell::new(None),
        }
    }

    fn become_(&self, mood: Mood) {
        self.mood.set(mood);
        if mood != Mood::Busy {
            self.wakers.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// One instance of an endpoint. It is strict: no poll after a failure, no call without readiness.
#[derive(Debug)]
struct Endpoint {
    site: Rc<Site>,
    asked: Cell<Option<Result<(), ()>>>,
}

impl Clone for Endpoint {
    fn clone(&self) -> Self {
        self.site.endpoint()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.site.alive.set(self.site.alive.get() - 1);
    }
}

impl Load for Endpoint {
    type Metric = u32;

    fn load(&self) -> u32 {
        self.site.load.get()
    }
}

impl Service<u32> for Endpoint {
    type Response = u32;
    type Error = Failure;
    type Future = Ready<Result<u32, Failure>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        assert_ne!(self.asked.get(), Some(Err(())), "polled after a failure");
        self.site.polls.set(self.site.polls.get() + 1);
        self.asked.set(None);
        match self.site.mood.get() {
            Mood::Ready => {
                self.asked.set(Some(Ok(())));
                Poll::Ready(Ok(()))
            }
            Mood::Busy => {
                self.site.wakers.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
            Mood::Broken => {
                self.asked.set(Some(Err(())));
                Poll::Ready(Err(BROKEN))
            }
        }
    }

    fn call(&mut self, n: u32) -> Self::Future {
        assert_eq!(self.asked.take(), Some(Ok(())), "called unready");
        self.site.calls.set(self.site.calls.get() + 1);
        ready(if self.site.fails.get() {
            Err(BROKEN)
        } else {
            Ok(n)
        })
    }
}

type News = Result<Change<u32, Endpoint>, Failure>;
type Direct = Balance<UnboundedReceiver<News>, u32, Identity>;

fn fed() -> (UnboundedSender<News>, Direct) {
    let (feed, discover) = unbounded();
    let balance = Balance::with_layer(discover, Identity::new()).seed(SplitMix64::new(7));
    (feed, balance)
}

fn insert(feed: &UnboundedSender<News>, key: u32, site: &Rc<Site>) {
    let change = Change::Insert(key, site.endpoint());
    feed.unbounded_send(Ok(change)).unwrap();
}

fn remove(feed: &UnboundedSender<News>, key: u32) {
    feed.unbounded_send(Ok(Change::Remove(key))).unwrap();
}

fn sites(loads: &[u32]) -> Vec<Rc<Site>> {
    loads
        .iter()
        .map(|load| Site::new(Mood::Ready, *load))
        .collect()
}

fn listed(sites: &[Rc<Site>]) -> Balance<ServiceList<Vec<Endpoint>>, u32, Identity> {
    let endpoints: Vec<_> = sites.iter().map(Site::endpoint).collect();
    Balance::with_layer(ServiceList::new(endpoints), Identity::new()).seed(SplitMix64::new(7))
}

#[track_caller]
fn answer<S: Service<u32, Response = u32>>(service: &mut S) -> Result<u32, S::Error>
where
    S::Error: std::fmt::Debug,
{
    found(WakeCount::new().poll_ready(service)).unwrap();
    service.call(1).now_or_never().unwrap()
}

fn calls(sites: &[Rc<Site>]) -> Vec<u32> {
    sites.iter().map(|site| site.calls.get()).collect()
}

/// Asserts that `found` of `draws` is within five standard deviations of the share `expected`.
#[track_caller]
fn assert_share(found: u32, draws: u32, expected: f64) {
    let mean = f64::from(draws) * expected;
    let deviation = (mean * (1.0 - expected)).sqrt();
    let off = (f64::from(found) - mean).abs();
    assert!(off <= 5.0 * deviation, "{found} of {draws}, not {mean:.0}");
}

mod choice {
    use super::*;

    const DRAWS: u32 = 40_000;

    #[test]
    fn equal_endpoints_get_equal_shares() {
        for count in [2, 3, 16] {
            let sites = sites(&vec![1; count]);
            let mut balance = listed(&sites);
            for _ in 0..DRAWS {
                answer(&mut balance).unwrap();
            }
            for got in calls(&sites) {
                assert_share(got, DRAWS, 1.0 / count as f64);
            }
        }
    }

    /// The share of the `k`-th best of `n` is `2 (n - k) / (n (n - 1))`; the worst gets nothing.
    #[test]
    fn share_follows_the_rank() {
        const N: u32 = 8;
        // Not sorted.
        let loads: Vec<u32> = (0..N).map(|at| at * 5 % N).collect();
        let sites = sites(&loads);
        let mut balance = listed(&sites);
        for _ in 0..DRAWS {
            answer(&mut balance).unwrap();
        }
        for (load, got) in loads.iter().zip(calls(&sites)) {
            let rank = load + 1;
            let share = f64::from(2 * (N - rank)) / f64::from(N * (N - 1));
            assert_share(got, DRAWS, share);
        }
    }

    #[test]
    fn slowest_endpoint_gets_no_requests() {
        let sites = sites(&[1, 1, 9, 1]);
        let mut balance = listed(&sites);
        for _ in 0..1_000 {
            answer(&mut balance).unwrap();
        }
        assert_eq!(sites[2].calls.get(), 0);
        sites[2].load.set(0);
        for _ in 0..DRAWS {
            answer(&mut balance).unwrap();
        }
        assert_share(sites[2].calls.get(), DRAWS, 0.5);
    }

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let run = |seed| {
            let sites = sites(&[1; 5]);
            let mut balance = listed(&sites).seed(SplitMix64::new(seed));
            let mut order = Vec::new();
            for _ in 0..100 {
                let before = calls(&sites);
                answer(&mut balance).unwrap();
                order.push((0..5).find(|at| before[*at] != sites[*at].calls.get()));
            }
            order
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn incomparable_load_is_harmless() {
        #[derive(Clone, Debug)]
        struct Odd;

        impl Load for Odd {
            type Metric = f64;
            fn load(&self) -> f64 {
                f64::NAN
            }
        }

        impl Service<u32> for Odd {
            type Response = u32;
            type Error = Infallible;
            type Future = Ready<Result<u32, Infallible>>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }
            fn call(&mut self, n: u32) -> Self::Future {
                ready(Ok(n))
            }
        }

        let list = ServiceList::new([Odd, Odd]);
        let mut balance = Balance::with_layer(list, Identity::new());
        assert_eq!(answer(&mut balance).ok(), Some(1));
    }

    #[test]
    fn unready_choice_is_replaced_in_one_poll() {
        let wakes = WakeCount::new();
        let sites = sites(&[1, 2, 3]);
        let mut balance = listed(&sites);
        found(wakes.poll_ready(&mut balance)).unwrap();
        // Whichever endpoint was chosen, only the third can be called.
        for mood in [Mood::Busy, Mood::Broken] {
            sites[0].mood.set(mood);
            sites[1].mood.set(mood);
            found(wakes.poll_ready(&mut balance)).unwrap();
        }
        balance.call(1).now_or_never().unwrap().unwrap();
        assert_eq!(calls(&sites), [0, 0, 1]);
    }

    #[test]
    fn long_search_wakes_its_task() {
        let wakes = WakeCount::new();
        let all = sites(&[1; 300]);
        let mut balance = listed(&all);
        while balance.ready_len() < all.len() {
            let _ = wakes.poll_ready(&mut balance);
        }
        all.iter().for_each(|site| site.mood.set(Mood::Busy));
        let woken = wakes.get();
        assert!(wakes.poll_ready(&mut balance).is_pending());
        assert_eq!((balance.ready_len(), wakes.get()), (44, woken + 1));
        assert!(wakes.poll_ready(&mut balance).is_pending());
        assert_eq!((balance.ready_len(), wakes.get()), (0, woken + 1));
    }

    #[test]
    fn unready_endpoint_can_become_ready() {
        let sites = sites(&[1; 3]);
        sites[0].mood.set(Mood::Busy);
        let mut balance = listed(&sites);
        for _ in 0..3 {
            answer(&mut balance).unwrap();
        }
        let wakes = WakeCount::new();
        found(wakes.poll_ready(&mut balance)).unwrap();
        sites[0].become_(Mood::Ready);
        assert_eq!((balance.ready_len(), wakes.get()), (2, 1));
        found(wakes.poll_ready(&mut balance)).unwrap();
        assert_eq!(balance.ready_len(), 3);
    }

    #[test]
    fn only_the_chosen_and_the_woken_are_polled() {
        let sites = sites(&[1; 100]);
        let mut balance = listed(&sites);
        for _ in 0..10 {
            answer(&mut balance).unwrap();
        }
        let before: u32 = sites.iter().map(|site| site.polls.get()).sum();
        for _ in 0..10 {
            answer(&mut balance).unwrap();
        }
        let after: u32 = sites.iter().map(|site| site.polls.get()).sum();
        assert_eq!(
            after - before,
            20,
            "one poll after the call, one when chosen"
        );
    }
}

mod failures {
    use super::*;

    #[test]
    fn unready_call_takes_a_ready_one_or_fails() {
        let sites = sites(&[1, 2]);
        let mut balance = listed(&sites);
        let unready = Poll::Ready(Err(Error::NotReady(NotReady::new())));
        let wakes = WakeCount::new();
        assert_eq!(wakes.poll(&mut balance.call(1)), unready);
        found(wakes.poll_ready(&mut balance)).unwrap();
        for _ in 0..2 {
            assert_eq!(wakes.poll(&mut balance.call(1)), Poll::Ready(Ok(1)));
        }
        assert_eq!(calls(&sites), [1, 1]);
        assert_eq!(wakes.poll(&mut balance.call(1)), unready);
        assert_eq!(answer(&mut balance), Ok(1));
    }

    #[test]
    fn panic_in_poll_ready_drops_the_endpoint() {
        #[derive(Clone)]
        struct Bad(bool);

        impl Load for Bad {
            type Metric = u32;
            fn load(&self) -> u32 {
                0
            }
        }

        impl Service<u32> for Bad {
            type Response = u32;
            type Error = Infallible;
            type Future = Ready<Result<u32, Infallible>>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                if self.0 {
                    std::panic::resume_unwind(Box::new("bad"));
                }
                Poll::Ready(Ok(()))
            }
            fn call(&mut self, n: u32) -> Self::Future {
                ready(Ok(n))
            }
        }

        let list = ServiceList::new([Bad(false), Bad(true), Bad(false)]);
        let mut balance = Balance::with_layer(list, Identity::new());
        let wakes = WakeCount::new();
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = wakes.poll_ready(&mut balance);
        }));
        assert!(polled.is_err());
        assert_eq!(balance.len(), 2);
        assert_eq!(answer(&mut balance).ok(), Some(1));
    }

    #[test]
    fn dropped_balancer_wakes_no_task() {
        let wakes = WakeCount::new();
        let (feed, mut balance) = fed();
        let site = Site::new(Mood::Busy, 1);
        insert(&feed, 0, &site);
        assert!(wakes.poll_ready(&mut balance).is_pending());
        drop(balance);
        site.become_(Mood::Ready);
        assert_eq!(wakes.get(), 0);
    }

    /// A shed poll leaves no waker behind, and still finds out which endpoints are ready.
    #[test]
    fn shed_poll_leaves_no_waker() {
        let sites = sites(&[1, 2]);
        sites.iter().for_each(|site| site.mood.set(Mood::Busy));
        let mut service = LoadShed::new(listed(&sites));
        let wakes = WakeCount::new();
        for _ in 0..2 {
            found(wakes.poll_ready(&mut service)).unwrap();
            let shed = wakes.poll(&mut service.call(1));
            assert!(matches!(
                shed,
                Poll::Ready(Err(campanile::load_shed::Error::Overloaded(_)))
            ));
        }
        let wakers = sites.iter().flat_map(|site| site.wakers.take());
        let left: Vec<_> = wakers.filter(|waker| !waker.data().is_null()).collect();
        assert!(left.is_empty(), "{left:?}");

        // Found without a wake-up.
        sites[1].mood.set(Mood::Ready);
        assert_eq!(answer(&mut service), Ok(1));
        sites[1].mood.set(Mood::Busy);
        sites[0].mood.set(Mood::Ready);
        assert_eq!(answer(&mut service), Ok(1));
        assert_eq!(calls(&sites), [1, 1]);
        assert_eq!(wakes.get(), 0);

        // Endpoints that an earlier shed poll found ready are rechecked as well.
        sites[1].mood.set(Mood::Ready);
        found(wakes.poll_ready(&mut service)).unwrap();
        assert_eq!(service.get_ref().ready_len(), 2);
        sites.iter().for_each(|site| site.mood.set(Mood::Busy));
        found(wakes.poll_ready(&mut service)).unwrap();
        assert_eq!(service.get_ref().ready_len(), 0);
        sites.iter().for_each(|site| site.mood.set(Mood::Ready));
        assert_eq!(answer(&mut service), Ok(1));
    }

    /// With many unready endpoints and one ready, a shed poll asks only a few, and over time all in turn.
    #[test]
    fn shed_poll_asks_a_few_in_turn() {
        let mut all = sites(&[1; 100]);
        all.iter().for_each(|site| site.mood.set(Mood::Busy));
        all.push(Site::new(Mood::Ready, 1));
        let mut service = LoadShed::new(listed(&all));
        answer(&mut service).unwrap();
        all.iter().for_each(|site| site.polls.set(0));
        for _ in 0..20 {
            answer(&mut service).unwrap();
        }
        let polls: Vec<u32> = all.iter().map(|site| site.polls.get()).collect();
        assert!(polls[..100].iter().all(|polls| *polls >= 1), "{polls:?}");
        assert!(polls.iter().sum::<u32>() <= 20 * 18, "{polls:?}");
    }
}

mod measured {
    use super::*;
    use campanile::load::{CompleteOnResponse, PeakEwmaDiscover, PendingRequestsDiscover};

    /// Requests in flight count for an instance and for its successor.
    #[test]
    fn least_busy_of_two_is_called() {
        let timer = ManualTimer::new();
        let (first, mut one) = mock::<u32, u32>();
        let (second, mut two) = mock::<u32, u32>();
        let list = ServiceList::new(vec![first, second]);
        let list = PendingRequestsDiscover::with_timer(list, CompleteOnResponse, timer.clone());
        let mut balance = Balance::with_timer(list, timer);
        let wakes = WakeCount::new();
        let mut under_way = Vec::new();
        for _ in 0..10 {
            found(wakes.poll_ready(&mut balance)).unwrap();
            under_way.push(balance.call(1));
        }
        assert_eq!((one.calls(), two.calls()), (5, 5));
        // The first service answers all its requests.
        while let Some((n, responder)) = one.try_next() {
            responder.send(n);
        }
        for response in &mut under_way {
            let _ = wakes.poll(response);
        }
        for _ in 0..5 {
            found(wakes.poll_ready(&mut balance)).unwrap();
            under_way.push(balance.call(1));
        }
        assert_eq!((one.calls(), two.calls()), (10, 5));
        drop((one.try_next(), two.try_next()));
    }

    #[test]
    fn fast_failures_attract_no_requests() {
        let timer = ManualTimer::new();
        let sites = sites(&[0, 0]);
        sites[0].fails.set(true);
        let list = ServiceList::new(sites.iter().map(Site::endpoint).collect::<Vec<_>>());
        let (rtt, decay) = (MS, Duration::from_secs(10));
        let list =
            PeakEwmaDiscover::with_timer(list, rtt, decay, CompleteOnResponse, timer.clone());
        let mut balance = Balance::with_timer(list, timer.clone()).seed(SplitMix64::new(1));
        for _ in 0..1_000 {
            let _ = answer(&mut balance);
            timer.advance(MS);
        }
        let [bad, good] = calls(&sites)[..] else {
            panic!()
        };
        assert!(bad < good / 10, "{bad} {good}");
    }
}

mod inserted_again {
    use super::*;
    use campanile::load::{CompleteOnResponse, PeakEwmaDiscover, PendingRequestsDiscover};

    type Fed = Result<Change<u32, Mock<u32, u32>>, Infallible>;

    /// Requests in flight at the old service count for the new one.
    #[test]
    fn requests_in_flight_still_count() {
        let timer = ManualTimer::new();
        let (feed, discover) = unbounded::<Fed>();
        let discover =
            PendingRequestsDiscover::with_timer(discover, CompleteOnResponse, timer.clone());
        let mut balance = Balance::with_timer(discover, timer);
        let [(first, one), (second, two), (third, three)] = [(); 3].map(|()| mock::<u32, u32>());
        let insert = |key, service| {
            feed.unbounded_send(Ok(Change::Insert(key, service)))
                .unwrap();
        };
        let wakes = WakeCount::new();
        let mut under_way = Vec::new();
        let mut send = |balance: &mut Balance<_, _, _>, requests| {
            for _ in 0..requests {
                found(wakes.poll_ready(balance)).unwrap();
                under_way.push(balance.call(1));
            }
        };
        insert(0, first);
        send(&mut balance, 6);
        insert(0, third);
        insert(1, second);
        send(&mut balance, 6);
        assert_eq!((one.calls(), two.calls(), three.calls()), (6, 6, 0));
        // Removing the endpoint forgets them.
        feed.unbounded_send(Ok(Change::Remove(0))).unwrap();
        let (fourth, four) = mock::<u32, u32>();
        insert(0, fourth);
        send(&mut balance, 6);
        assert_eq!((two.calls(), four.calls()), (6, 6));
    }

    #[test]
    fn latency_estimate_is_kept() {
        let timer = ManualTimer::new();
        let (feed, discover) = unbounded();
        let (rtt, decay) = (MS, Duration::from_secs(10));
        let discover =
            PeakEwmaDiscover::with_timer(discover, rtt, decay, CompleteOnResponse, timer.clone());
        let mut balance = Balance::with_timer(discover, timer.clone()).seed(SplitMix64::new(1));
        let sites = sites(&[0, 0, 0]);
        insert(&feed, 0, &sites[0]);
        sites[0].fails.set(true);
        answer(&mut balance).unwrap_err();
        insert(&feed, 1, &sites[1]);
        insert(&feed, 0, &sites[2]);
        for _ in 0..100 {
            answer(&mut balance).unwrap();
            timer.advance(MS);
        }
        assert_eq!(calls(&sites), [1, 100, 0]);
    }
}

mod making {
    use super::*;

    #[test]
    fn balancer_is_built_from_discovery() {
        let site = Site::new(Mood::Ready, 1);
        let discover = service_fn(|count: usize| {
            let endpoints: Vec<_> = (0..count).map(|_| site.endpoint()).collect();
            ready(Ok::<_, Failure>(ServiceList::new(endpoints)))
        });
        let timer = ManualTimer::new();
        let layer =
            MakeBalanceLayer::<_, u32, _>::with_layer(QuarantineLayer::with_timer(timer.clone()));
        let mut make = layer.clone().layer(discover).clone();
        found(WakeCount::new().enter(|cx| Service::<usize>::poll_ready(&mut make, cx))).unwrap();
        let mut balance = make.call(3).now_or_never().unwrap().unwrap();
        assert_eq!(answer(&mut balance), Ok(1));
        assert_eq!(balance.len(), 3);

        let mut make = MakeBalance::<_, u32, _>::with_timer(discover, timer);
        found(WakeCount::new().enter(|cx| Service::<usize>::poll_ready(&mut make, cx))).unwrap();
        let mut balance = make.call(2).now_or_never().unwrap().unwrap();
        assert_eq!(answer(&mut balance), Ok(1));
        assert_eq!(balance.len(), 2);
    }
}

/// An endpoint that is `Send`.
#[derive(Clone, Debug)]
struct Loaded(Mock<u32, u32>);

impl Load for Loaded {
    type Metric = u32;

    fn load(&self) -> u32 {
        0
    }
}

impl Service<u32> for Loaded {
    type Response = u32;
    type Error = Failure;
    type Future = common::MockFuture<u32>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, n: u32) -> Self::Future {
        self.0.call(n)
    }
}

/// The only endpoint fails while a request waits for it; after its backoff the request is answered. A balancer becomes
/// ready only by being polled (tower #824).
#[test]
fn balancer_progresses_in_an_idle_buffer() {
    let (feed, balance) = fed();
    let [first, second] = [Mood::Ready, Mood::Busy].map(|mood| Site::new(mood, 1));
    insert(&feed, 1, &first);
    let (mut buffer, worker) = campanile::buffer::pair(balance, 4);
    let mut worker = common::spawn(worker);
    found(WakeCount::new().poll_ready(&mut buffer)).unwrap();
    let mut response = common::spawn(buffer.call(1));
    assert!(worker.poll().is_pending());
    assert_eq!(found(response.poll()).unwrap(), 1);

    // Discovery goes on, and the new endpoint becomes ready.
    insert(&feed, 2, &second);
    assert!(worker.is_woken());
    assert!(worker.poll().is_pending());
    assert_eq!(second.polls.get(), 1);
    second.become_(Mood::Ready);
    assert!(worker.is_woken());
    assert!(worker.poll().is_pending());
    assert_eq!(second.polls.get(), 2);
    remove(&feed, 1);
    assert!(worker.is_woken());
    assert!(worker.poll().is_pending());
    assert_eq!(first.alive.get(), 0);
    assert!(!worker.is_woken());
}

async fn failed_endpoint_comes_back<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock();
    handle.set_ready(false);
    let list = ServiceList::new([Loaded(service)]);
    let mut balance = Balance::with_timer(list, rt.clone());
    let (done, answer) = futures::channel::oneshot::channel();
    rt.execute(async move {
        let ready = std::future::poll_fn(|cx| balance.poll_ready(cx)).await;
        assert_eq!(ready, Ok(()));
        let _ = done.send(balance.call(1).await);
    });
    until(|| handle.alive() == 2).await;
    handle.fail(BROKEN);
    until(|| handle.alive() == 1).await;
    handle.set_ready(true);
    // The backoff may start only now.
    let (request, responder) = rt.advance_until(100 * MS, handle.next()).await;
    responder.send(request + 1);
    assert_eq!(answer.await.unwrap(), Ok(2));
}

/// Endpoints come and go under load; every request is answered by an endpoint that was present.
async fn endpoints_come_and_go_under_load<H: Host>(rt: On<H>) {
    use campanile::ServiceExt;
    use campanile::buffer::Buffer;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[derive(Debug)]
    struct Counted {
        served: Arc<AtomicUsize>,
        alive: Arc<()>,
    }

    impl Load for Counted {
        type Metric = usize;
        fn load(&self) -> usize {
            self.served.load(SeqCst)
        }
    }

    impl Service<u32> for Counted {
        type Response = u32;
        type Error = Infallible;
        type Future = Later;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            assert!(Arc::strong_count(&self.alive) > 1);
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, n: u32) -> Self::Future {
            self.served.fetch_add(1, SeqCst);
            Later {
                n,
                has_pended: false,
            }
        }
    }

    /// Ready on its second poll.
    struct Later {
        n: u32,
        has_pended: bool,
    }

    impl Future for Later {
        type Output = Result<u32, Infallible>;
        fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            if std::mem::replace(&mut self.has_pended, true) {
                return Poll::Ready(Ok(self.n));
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }

    let (feed, discover) = unbounded::<Result<Change<u32, Counted>, Infallible>>();
    let served: Vec<Arc<AtomicUsize>> = (0..6).map(|_| Arc::default()).collect();
    let alive: Vec<Arc<()>> = (0..6).map(|_| Arc::default()).collect();
    let change = |key: usize, comes: bool| {
        let change = if comes {
            let (served, alive) = (served[key].clone(), alive[key].clone());
            Change::Insert(key as u32, Counted { served, alive })
        } else {
            Change::Remove(key as u32)
        };
        feed.unbounded_send(Ok(change)).unwrap();
    };
    change(0, true);
    let balance = Balance::with_layer(discover, Identity::new());
    let buffer = Buffer::with_executor(balance, 4, &rt);
    let answered = Arc::new(AtomicUsize::new(0));
    for task in 0..4 {
        let (buffer, answered) = (buffer.clone(), answered.clone());
        rt.execute(async move {
            for n in 0..50 {
                let answer = buffer.clone().oneshot(100 * task + n).await;
                assert_eq!(answer.unwrap(), 100 * task + n);
                answered.fetch_add(1, SeqCst);
            }
        });
    }
    for round in 1..=30 {
        // The new endpoint arrives before the old one leaves, so there is always one.
        change(round % 6, true);
        change((round + 5) % 6, false);
        until(|| answered.load(SeqCst) >= (round * 5).min(150)).await;
    }
    until(|| answered.load(SeqCst) == 200).await;
    assert_eq!(
        served
            .iter()
            .map(|served| served.load(SeqCst))
            .sum::<usize>(),
        200
    );
    // After one more request the removed endpoints are gone; only the last one is left.
    assert_eq!(buffer.clone().oneshot(7).await.unwrap(), 7);
    until(|| {
        alive
            .iter()
            .filter(|alive| Arc::strong_count(alive) > 1)
            .count()
            == 1
    })
    .await;
}

/// A balancer in an idle buffer follows discovery without taking a permit of the limit around it.
async fn idle_balancer_holds_no_permit<H: Host>(rt: On<H>) {
    use campanile::ServiceExt;
    use campanile::buffer::Buffer;
    use campanile::limit::ConcurrencyLimit;
    use campanile::limit::concurrency::Semaphore;

    let permits = Semaphore::new(1);
    let (feed, discover) = unbounded::<Result<Change<u32, Loaded>, Infallible>>();
    let balance = Balance::with_layer(discover, Identity::new());
    let limited = ConcurrencyLimit::with_semaphore(balance, permits.clone());
    let buffer = Buffer::with_executor(limited, 4, &rt);
    let [(first, mut one), (second, two)] = [(); 2].map(|()| mock::<u32, u32>());
    two.set_ready(false);
    let insert = |key, service| {
        let change = Change::Insert(key, Loaded(service));
        feed.unbounded_send(Ok(change)).unwrap();
    };
    insert(1, first);
    let answer = rt.start(buffer.clone().oneshot(1));
    let (request, responder) = one.next().await;
    responder.send(request + 1);
    assert_eq!(answer.await.unwrap().unwrap(), 2);
    insert(2, second);
    until(|| two.is_waited_for()).await;
    assert_eq!(permits.available_permits(), 1);
    // The next request uses the endpoints as they are now.
    two.fail(BROKEN);
    let answer = rt.start(buffer.clone().oneshot(2));
    let (request, responder) = one.next().await;
    responder.send(request + 1);
    assert_eq!(answer.await.unwrap().unwrap(), 3);
}

on_every_runtime! {
    failed_endpoint_comes_back,
    idle_balancer_holds_no_permit,
    endpoints_come_and_go_under_load,
}

/// No step depends on tokio's budget: endpoints leave and come back even in a task that has used it up.
#[cfg(feature = "tokio")]
mod tokio_budget {
    use super::*;
    use campanile::tokio::balance::p2c::Balance;
    use std::pin::pin;

    async fn without_budget<T>(mut act: impl FnMut() -> T) -> T {
        std::future::poll_fn(|cx| {
            while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
            Poll::Ready(act())
        })
        .await
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_leave_and_come_back() {
        let wakes = WakeCount::new();
        let (feed, discover) = unbounded();
        let mut balance = Balance::new(discover);
        let sites = sites(&[1, 1]);
        insert(&feed, 0, &sites[0]);
        without_budget(|| found(wakes.poll_ready(&mut balance)).unwrap()).await;
        insert(&feed, 1, &sites[1]);
        remove(&feed, 0);
        without_budget(|| found(wakes.poll_ready(&mut balance)).unwrap()).await;
        assert_eq!((balance.len(), sites[0].alive.get()), (1, 0));

        sites[1].mood.set(Mood::Broken);
        assert!(
            without_budget(|| wakes.poll_ready(&mut balance))
                .await
                .is_pending()
        );
        sites[1].mood.set(Mood::Ready);
        // A little longer than the longest first wait, because tokio's clock ticks in milliseconds.
        tokio::time::advance(101 * MS).await;
        common::yield_now().await;
        without_budget(|| found(wakes.poll_ready(&mut balance)).unwrap()).await;
        assert_eq!(balance.call(1).await, Ok(1));
    }
}

/// The compiler cannot always prove that a task with boxed services is `Send`; here it can.
#[test]
fn balancer_of_boxed_services_is_send() {
    use campanile::ServiceExt;
    use campanile::load::Constant;
    use campanile::util::{BoxCloneService, BoxService};
    use futures::stream::{BoxStream, StreamExt};

    fn spawned<F: Future<Output = u32> + Send + 'static>(task: F) -> u32 {
        futures::executor::block_on(task)
    }

    async fn echo(n: u32) -> Result<u32, BoxError> {
        Ok(n)
    }

    let boxed: BoxCloneService<u32, u32, BoxError> = service_fn(echo).boxed_clone();
    let list = ServiceList::new::<u32>([Constant::new(boxed, 1)]);
    let mut balance = Balance::with_timer(list, ManualTimer::new());
    let answer = spawned(async move { balance.ready().await.unwrap().call(1).await.unwrap() });
    assert_eq!(answer, 1);

    type Boxed = Constant<BoxService<u32, u32, BoxError>, u32>;
    let list = ServiceList::new::<u32>([Constant::new(service_fn(echo).boxed(), 1)]);
    let list: BoxStream<'static, Result<Change<usize, Boxed>, Infallible>> = list.boxed();
    let mut balance = Balance::with_layer(list, Identity::new());
    let answer = spawned(async move { balance.ready().await.unwrap().call(2).await.unwrap() });
    assert_eq!(answer, 2);
}

/// As in tower, under the names in a runtime's module.
#[cfg(feature = "smol")]
#[test]
fn mirrored_module_supplies_the_timer() {
    use campanile::smol::balance::p2c::{Balance, MakeBalance, MakeBalanceLayer};
    use campanile::util::rng::HasherRng;

    let sites = sites(&[1, 2]);
    let list = || ServiceList::new(sites.iter().map(Site::endpoint).collect::<Vec<_>>());
    assert_eq!(answer(&mut Balance::new(list())), Ok(1));
    assert_eq!(
        answer(&mut Balance::from_rng(list(), HasherRng::default())),
        Ok(1)
    );
    let make = service_fn(|()| ready(Ok::<_, Infallible>(list())));
    let layer = MakeBalanceLayer::new();
    let mut balances = [layer.layer(make), MakeBalance::new(make)]
        .map(|mut make| make.call(()).now_or_never().unwrap().unwrap());
    for balance in &mut balances {
        assert_eq!(answer(balance), Ok(1));
    }
}
