//! The middleware, module by module.

use std::convert::Infallible;
use std::future::{Ready, pending, poll_fn, ready};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::super::{LONG, double};
use super::stack::Attempts;
use super::{block_on, semaphore, tower};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

type Named = tower::util::ServiceFn<fn(u32) -> Ready<Result<u32, Infallible>>>;

fn named() -> Named {
    service_fn(|n| ready(Ok(n * 2)))
}

/// A service whose readiness fails.
struct Failing;

impl Service<u32> for Failing {
    type Response = u32;
    type Error = std::fmt::Error;
    type Future = Ready<Result<u32, std::fmt::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::fmt::Error>> {
        Poll::Ready(Err(std::fmt::Error))
    }

    fn call(&mut self, n: u32) -> Self::Future {
        ready(Ok(n))
    }
}

/// Whether one poll with a no-op waker finds `service` ready.
fn is_ready<S: Service<u32>>(service: &mut S) -> bool {
    service
        .poll_ready(&mut Context::from_waker(Waker::noop()))
        .is_ready()
}

#[test]
fn buffer() {
    use tower::buffer::{Buffer, BufferLayer, error::Closed};

    block_on(async {
        let mut buffer: Buffer<u32, _> = Buffer::new(service_fn(double), 4);
        assert_eq!(buffer.clone().oneshot(1).await.unwrap(), 2);
        assert_eq!(buffer.ready().await.unwrap().call(2).await.unwrap(), 4);

        let layer: BufferLayer<u32> = BufferLayer::new(4);
        let copied = layer;
        assert!(format!("{layer:?}").starts_with("BufferLayer"));
        assert_eq!(copied.clone().layer(named()).oneshot(1).await.unwrap(), 2);

        let (buffer, worker) = Buffer::<u32, _>::pair(named(), 4);
        let (answer, ()) = futures::join!(buffer.oneshot(1), worker);
        assert_eq!(answer.unwrap(), 2);
        let (buffer, worker) = Buffer::<u32, _>::pair(named(), 4);
        drop(worker);
        assert!(BoxError::from(buffer.oneshot(1).await.unwrap_err()).is::<Closed>());
    });
}

#[test]
fn buffer_names() {
    #[allow(unused_imports, reason = "their parameters are not tower's")]
    use tower::buffer::{error::ServiceError, future::ResponseFuture};

    block_on(async {
        let buffer = tower::buffer::Buffer::<u32, _>::new(Failing, 4);
        let error = BoxError::from(buffer.oneshot(1).await.unwrap_err());
        assert!(error.to_string().contains("failed"), "{error}");
    });
}

#[test]
fn balance() {
    use tower::balance::error;
    use tower::balance::p2c::{Balance, MakeBalance, MakeBalanceLayer, MakeFuture};
    use tower::discover::ServiceList;
    use tower::load::Constant;
    use tower::util::rng::HasherRng;

    type List = ServiceList<Vec<Constant<Named, u32>>>;

    fn list() -> List {
        ServiceList::new::<u32>(vec![Constant::new(named(), 1), Constant::new(named(), 2)])
    }
    fn make(_: &str) -> Ready<Result<List, Infallible>> {
        ready(Ok(list()))
    }

    block_on(async {
        let mut balance: Balance<List, u32> = Balance::new(list());
        assert!(balance.is_empty());
        assert_eq!(balance.ready().await.unwrap().call(1).await.unwrap(), 2);
        assert_eq!(balance.len(), 2);
        let balance = Balance::<_, u32>::from_rng(list(), HasherRng::new());
        assert_eq!(balance.oneshot(1).await.unwrap(), 2);

        let mut maker: MakeBalance<_, u32> = MakeBalance::new(service_fn(make));
        let made: MakeFuture<_, u32> = maker.clone().call("here");
        assert_eq!(made.await.unwrap().oneshot(1).await.unwrap(), 2);
        assert_eq!(
            maker
                .ready()
                .await
                .unwrap()
                .call("here")
                .await
                .unwrap()
                .len(),
            0
        );
        let layer: MakeBalanceLayer<_, u32> = MakeBalanceLayer::new();
        let maker = MakeBalanceLayer::clone(&layer).layer(service_fn(make));
        let made: Balance<List, u32> = maker.oneshot("here").await.unwrap();
        assert_eq!(made.oneshot(1).await.unwrap(), 2);

        type Change = tower::discover::Change<u32, Constant<Named, u32>>;
        let broken = futures::stream::iter([Err::<Change, _>("broken")]);
        let error = BoxError::from(Balance::<_, u32>::new(broken).oneshot(1).await.unwrap_err());
        assert!(error.is::<error::Discover>());
    });
}

#[test]
fn discover() {
    use tower::discover::{Change, Discover, ServiceList};

    /// The change that `discover` has at once.
    fn next<D>(discover: &mut D) -> Option<Change<D::Key, D::Service>>
    where
        D: Discover<Error: std::fmt::Debug> + Unpin,
    {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(discover).poll_discover(&mut cx) {
            Poll::Ready(change) => change.map(Result::unwrap),
            Poll::Pending => panic!("discovery waits"),
        }
    }

    let mut list: ServiceList<[Named; 1]> = ServiceList::new::<u32>([named()]);
    assert!(matches!(next(&mut list), Some(Change::Insert(0, _))));
    assert!(next(&mut list).is_none());
    let changes = [Change::Insert("one", 1), Change::Remove("one")];
    let mut stream = futures::stream::iter(changes.map(Ok::<_, Infallible>));
    assert!(matches!(next(&mut stream), Some(Change::Insert("one", 1))));
    assert!(matches!(
        next(&mut stream).clone(),
        Some(Change::Remove("one"))
    ));
}

#[test]
fn filter() {
    use tower::filter::future::{AsyncResponseFuture, ResponseFuture};
    use tower::filter::{
        AsyncFilter, AsyncFilterLayer, AsyncPredicate, Filter, FilterLayer, Predicate,
    };

    fn even(n: u32) -> Result<u32, BoxError> {
        if n % 2 == 0 { Ok(n) } else { Err("odd".into()) }
    }

    fn predicate<P: Predicate<u32, Request = u32>>(mut predicate: P) -> bool {
        predicate.check(2).is_ok() && predicate.check(1).is_err()
    }

    async fn async_predicate<P: AsyncPredicate<u32, Request = u32>>(mut predicate: P) -> bool {
        predicate.check(2).await.is_ok() && predicate.check(1).await.is_err()
    }

    block_on(async {
        assert!(predicate(even));
        assert!(async_predicate(|n| ready(even(n))).await);

        let mut filter = Filter::new(service_fn(double), even);
        assert!(filter.check(1).is_err());
        assert_eq!(filter.check(2).unwrap(), 2);
        assert_eq!(filter.get_mut().call(1).await, Ok(2));
        assert_eq!(filter.get_ref().clone().oneshot(1).await, Ok(2));
        let response: ResponseFuture<_, _> = filter.call(2);
        assert_eq!(response.await.unwrap(), 4);
        assert_eq!(filter.into_inner().oneshot(1).await, Ok(2));
        let layer: FilterLayer<_> = Filter::<Named, _>::layer(even);
        assert!(layer.layer(named()).oneshot(1).await.is_err());
        assert_eq!(
            FilterLayer::new(even)
                .layer(named())
                .oneshot(2)
                .await
                .unwrap(),
            4
        );

        let slow = |n| ready(even(n));
        let mut filter = AsyncFilter::new(service_fn(double), slow);
        assert!(filter.check(1).await.is_err());
        assert_eq!(filter.get_mut().call(1).await, Ok(2));
        assert_eq!(filter.get_ref().clone().oneshot(1).await, Ok(2));
        let response: AsyncResponseFuture<_, _, u32> = filter.call(2);
        assert_eq!(response.await.unwrap(), 4);
        assert_eq!(filter.into_inner().oneshot(1).await, Ok(2));
        assert_eq!(
            AsyncFilterLayer::new(slow)
                .layer(named())
                .oneshot(2)
                .await
                .unwrap(),
            4
        );
    });
}

#[test]
fn hedge() {
    use tower::hedge::{Hedge, Policy};

    #[derive(Clone)]
    struct Twice;

    impl Policy<u32> for Twice {
        fn clone_request(&self, request: &u32) -> Option<u32> {
            Some(*request)
        }

        fn can_retry(&self, _: &u32) -> bool {
            true
        }
    }

    block_on(async {
        let mut hedge: Hedge<_, Twice> = Hedge::new(service_fn(double), Twice, 10, 0.9, LONG);
        assert_eq!(hedge.ready().await.unwrap().call(1).await.unwrap(), 2);
        assert_eq!(hedge.ready().await.unwrap().call(2).await.unwrap(), 4);
    });
}

#[test]
fn limit_concurrency() {
    use tower::limit::concurrency::future::ResponseFuture;
    use tower::limit::{
        ConcurrencyLimit, ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer, concurrency,
    };

    block_on(async {
        let mut one: ConcurrencyLimit<Named> = concurrency::ConcurrencyLimit::new(named(), 1);
        let mut other = one.clone();
        assert!(is_ready(&mut one) && !is_ready(&mut other));
        let response: ResponseFuture<_> = one.call(1);
        assert_eq!(response.await.unwrap(), 2);
        assert!(is_ready(&mut other));
        assert_eq!(one.get_ref().oneshot(1).await, Ok(2));
        assert_eq!(one.get_mut().call(1).await, Ok(2));
        assert_eq!(one.into_inner().oneshot(1).await, Ok(2));

        let semaphore_of_one = semaphore(1);
        let mut one = ConcurrencyLimit::with_semaphore(named(), semaphore_of_one.clone());
        let mut other = ConcurrencyLimit::with_semaphore(named(), semaphore_of_one);
        assert!(is_ready(&mut one) && !is_ready(&mut other));

        let layer: ConcurrencyLimitLayer = concurrency::ConcurrencyLimitLayer::new(1);
        assert!(is_ready(&mut layer.layer(named())) && is_ready(&mut layer.clone().layer(named())));
        let layer: GlobalConcurrencyLimitLayer = concurrency::GlobalConcurrencyLimitLayer::new(1);
        let (mut one, mut other) = (layer.layer(named()), layer.clone().layer(named()));
        assert!(is_ready(&mut one) && !is_ready(&mut other));
        let layer = GlobalConcurrencyLimitLayer::with_semaphore(semaphore(1));
        let (mut one, mut other) = (layer.layer(named()), layer.layer(named()));
        assert!(is_ready(&mut one) && !is_ready(&mut other));
    });
}

#[test]
fn limit_rate() {
    use tower::limit::rate::{self, Rate};
    use tower::limit::{RateLimit, RateLimitLayer};

    block_on(async {
        let rate = Rate::new(1, LONG);
        let mut limit: RateLimit<Named> = rate::RateLimit::new(named(), rate);
        assert_eq!(limit.ready().await.unwrap().call(1).await.unwrap(), 2);
        assert!(!is_ready(&mut limit));
        assert_eq!(limit.get_ref().oneshot(1).await, Ok(2));
        assert_eq!(limit.get_mut().call(1).await, Ok(2));
        assert_eq!(limit.into_inner().oneshot(1).await, Ok(2));
        let layer: RateLimitLayer = rate::RateLimitLayer::new(1, LONG);
        assert_eq!(layer.clone().layer(named()).oneshot(1).await.unwrap(), 2);
    });
}

#[test]
fn load() {
    use tower::load::completion::TrackCompletionFuture;
    use tower::load::{
        CompleteOnResponse, Constant, Load, PeakEwma, PendingRequests, TrackCompletion, peak_ewma,
        pending_requests,
    };

    /// Returns the handle with the response: the request ends when the handle is dropped.
    #[derive(Clone)]
    struct GiveOut;

    impl<V> TrackCompletion<peak_ewma::Handle, V> for GiveOut {
        type Output = (V, peak_ewma::Handle);

        fn track_completion(&self, handle: peak_ewma::Handle, value: V) -> Self::Output {
            (value, handle)
        }
    }

    impl<V> TrackCompletion<pending_requests::Handle, V> for GiveOut {
        type Output = (V, pending_requests::Handle);

        fn track_completion(&self, handle: pending_requests::Handle, value: V) -> Self::Output {
            (value, handle)
        }
    }

    block_on(async {
        let constant = Constant::new(named(), 7);
        assert_eq!(constant.load(), 7);
        assert_eq!(constant.oneshot(1).await, Ok(2));

        let mut service: PendingRequests<Named, GiveOut> = PendingRequests::new(named(), GiveOut);
        let idle: pending_requests::Count = service.load();
        let (answer, handle) = service.call(1).await.unwrap();
        assert_eq!(answer, 2);
        assert!(idle < service.load());
        drop(handle);
        assert_eq!(idle, service.load());
        let service = PendingRequests::new(named(), CompleteOnResponse::default());
        assert_eq!(service.oneshot(1).await, Ok(2));

        let ewma = |rtt| PeakEwma::new(named(), rtt, 1e12, GiveOut);
        let mut service: PeakEwma<Named, GiveOut> = ewma(LONG);
        let idle: peak_ewma::Cost = service.load();
        assert!(idle > ewma(LONG / 2).load());
        let (answer, handle) = service.call(1).await.unwrap();
        assert_eq!(answer, 2);
        assert!(service.load() > ewma(LONG + LONG / 2).load());
        drop(handle);

        let done: TrackCompletionFuture<_, _, u32> =
            TrackCompletionFuture::new(CompleteOnResponse::default(), 1, ready(Ok::<_, ()>(2)));
        assert_eq!(done.await, Ok(2));
    });
}

#[test]
fn load_of_discovered_services() {
    use tower::balance::p2c::Balance;
    use tower::discover::ServiceList;
    use tower::load::{CompleteOnResponse, PeakEwmaDiscover, PendingRequestsDiscover};
    use tower::load::{Constant, peak_ewma, pending_requests};

    let list = || ServiceList::new::<u32>(vec![named()]);
    block_on(async {
        let discover: PendingRequestsDiscover<_> = pending_requests::PendingRequestsDiscover::new::<
            u32,
        >(list(), CompleteOnResponse::default());
        assert_eq!(Balance::new(discover).oneshot(1).await.unwrap(), 2);
        let discover: PeakEwmaDiscover<_> = peak_ewma::PeakEwmaDiscover::new::<u32>(
            list(),
            LONG,
            LONG,
            CompleteOnResponse::default(),
        );
        assert_eq!(Balance::new(discover).oneshot(1).await.unwrap(), 2);
        assert_eq!(
            Balance::new(Constant::new(list(), 1))
                .oneshot(1)
                .await
                .unwrap(),
            2
        );
    });
}

#[test]
fn load_of_limited_services() {
    use tower::limit::{ConcurrencyLimit, RateLimit, rate::Rate};
    use tower::load::{Constant, Load};

    assert_eq!(
        ConcurrencyLimit::new(Constant::new(named(), 7), 1).load(),
        7
    );
    // tower's limit reads the runtime's clock when it is built.
    let load = async { RateLimit::new(Constant::new(named(), 7), Rate::new(1, LONG)).load() };
    assert_eq!(block_on(load), 7);
}

#[test]
fn load_shed() {
    use tower::load_shed::{LoadShed, LoadShedLayer, error::Overloaded, future::ResponseFuture};

    assert!(std::error::Error::source(&Overloaded::new()).is_none());
    block_on(async {
        let mut shed: LoadShed<Named> = LoadShed::new(named());
        let response: ResponseFuture<_> = shed.ready().await.unwrap().call(1);
        assert_eq!(response.await.unwrap(), 2);
        let shed = LoadShedLayer::new().layer(tower::limit::ConcurrencyLimit::new(named(), 1));
        let first = shed.clone().ready_oneshot().await.unwrap();
        let error = BoxError::from(shed.clone().oneshot(1).await.unwrap_err());
        assert!(error.is::<Overloaded>());
        drop(first);
        assert_eq!(shed.oneshot(1).await.unwrap(), 2);
    });
}

#[test]
fn ready_cache() {
    use tower::ready_cache::{ReadyCache, cache, error};

    block_on(async {
        let mut cache: ReadyCache<&str, _, u32> = cache::ReadyCache::default();
        assert!(cache.is_empty());
        cache.push("one", named());
        cache.push("two", named());
        assert_eq!(
            (cache.len(), cache.ready_len(), cache.pending_len()),
            (2, 0, 2)
        );
        assert!(cache.pending_contains(&"one"));
        poll_fn(|cx| cache.poll_pending(cx)).await.unwrap();
        assert_eq!(
            (cache.len(), cache.ready_len(), cache.pending_len()),
            (2, 2, 0)
        );

        let (index, found, _) = cache.get_ready(&"two").unwrap();
        assert_eq!(*found, "two");
        let (found, service) = cache.get_ready_index(index).unwrap();
        assert_eq!((*found, service.oneshot(1).await), ("two", Ok(2)));
        assert_eq!(cache.get_ready_mut(&"two").unwrap().0, index);
        assert_eq!(
            cache.get_ready_index_mut(index).unwrap().1.call(1).await,
            Ok(2)
        );
        assert_eq!(cache.iter_ready().count(), 2);
        assert_eq!(
            cache
                .iter_ready_mut()
                .map(|(_, service)| service.call(1))
                .count(),
            2
        );

        let mut cx = Context::from_waker(Waker::noop());
        assert!(cache.check_ready(&mut cx, &"two").unwrap());
        assert!(cache.check_ready_index(&mut cx, index).unwrap());
        assert_eq!(cache.call_ready(&"two", 3).await, Ok(6));
        poll_fn(|cx| cache.poll_pending(cx)).await.unwrap();
        assert_eq!(cache.call_ready_index(0, 4).await, Ok(8));
        assert!(cache.evict(&"one") && !cache.evict(&"one"));
        // tower drops an evicted service only in the next poll.
        assert!(poll_fn(|cx| cache.poll_pending(cx)).await.is_ok());
        assert_eq!(cache.len(), 1);

        let mut cache: ReadyCache<&str, Failing, u32> = ReadyCache::default();
        cache.push("three", Failing);
        let failed = poll_fn(|cx| cache.poll_pending(cx)).await.unwrap_err();
        let error::Failed(key, error) = failed;
        assert_eq!(
            (key, BoxError::from(error).is::<std::fmt::Error>()),
            ("three", true)
        );
    });
}

#[test]
fn reconnect() {
    use tower::reconnect::{Reconnect, ResponseFuture};

    fn connect(n: u32) -> Ready<Result<Named, Infallible>> {
        assert_eq!(n, 7);
        ready(Ok(named()))
    }
    type Connect = tower::util::ServiceFn<fn(u32) -> Ready<Result<Named, Infallible>>>;

    block_on(async {
        let maker = || -> Connect { service_fn(connect) };
        let mut service: Reconnect<Connect, u32> = Reconnect::new(maker(), 7);
        let response: ResponseFuture<_, Infallible> =
            Service::<u32>::call(service.ready().await.unwrap(), 1);
        assert_eq!(response.await.unwrap(), 2);
        let mut service = Reconnect::<Connect, u32>::with_connection(named(), maker(), 8);
        assert_eq!(service.ready().await.unwrap().call(1).await.unwrap(), 2);
    });
}

#[test]
fn retry() {
    use tower::retry::{Policy, Retry, RetryLayer, future::ResponseFuture};

    fn asks<P: Policy<u32, u32, ()>>(mut policy: P) -> bool {
        policy.clone_request(&1) == Some(1) && policy.retry(&mut 1, &mut Err(())).is_some()
    }

    assert!(asks(Attempts(1)));
    block_on(async {
        let mut retry: Retry<Attempts, Named> = Retry::new(Attempts(1), named());
        let response: ResponseFuture<_, _, u32> = retry.clone().call(1);
        assert_eq!(response.await, Ok(2));
        assert_eq!(retry.get_mut().call(1).await, Ok(2));
        assert_eq!(retry.get_ref().oneshot(1).await, Ok(2));
        assert_eq!(retry.into_inner().oneshot(1).await, Ok(2));
        let layer: RetryLayer<Attempts> = RetryLayer::new(Attempts(1));
        assert_eq!(layer.clone().layer(named()).oneshot(1).await, Ok(2));
    });
}

#[test]
fn retry_backoff() {
    use tower::retry::backoff::{
        Backoff, ExponentialBackoff, ExponentialBackoffMaker, InvalidBackoff, MakeBackoff,
    };
    use tower::util::rng::HasherRng;

    fn maker(min: u64, max: u64, jitter: f64) -> Result<ExponentialBackoffMaker, InvalidBackoff> {
        let (min, max) = (Duration::from_nanos(min), Duration::from_nanos(max));
        ExponentialBackoffMaker::new(min, max, jitter, HasherRng::new())
    }

    async fn wait<M: MakeBackoff>(maker: &mut M) {
        let mut backoff: M::Backoff = maker.make_backoff();
        let first: <M::Backoff as Backoff>::Future = backoff.next_backoff();
        first.await;
        backoff.next_backoff().await;
    }

    block_on(async {
        let mut maker_of_short_waits = maker(1, 2, 0.5).unwrap();
        wait(&mut maker_of_short_waits.clone()).await;
        let mut backoff: ExponentialBackoff = maker_of_short_waits.make_backoff();
        backoff.clone().next_backoff().await;
        backoff.next_backoff().await;
    });
    assert!(maker(2, 1, 0.5).is_err() && maker(1, 2, f64::NAN).is_err());
    assert!(
        format!("{:?}", ExponentialBackoffMaker::default()).contains("ExponentialBackoffMaker")
    );
}

#[test]
fn retry_budget() {
    use tower::retry::budget::{Budget, TpsBudget, tps_budget};

    fn spend(budget: &dyn Budget) -> usize {
        budget.deposit();
        (0..100).take_while(|_| budget.withdraw()).count()
    }

    // tower's budget reads the runtime's clock.
    block_on(async {
        let budget: TpsBudget = tps_budget::TpsBudget::new(Duration::from_secs(10), 1, 0.0);
        assert_eq!(spend(&budget), 10);
        assert_eq!(spend(&TpsBudget::default()), 100);
        assert!(format!("{budget:?}").contains("Budget"));
    });
}

#[test]
fn spawn_ready() {
    #[allow(unused_imports, reason = "its parameters are not tower's")]
    use tower::spawn_ready::future::ResponseFuture;
    use tower::spawn_ready::{SpawnReady, SpawnReadyLayer};
    use tower::util::BoxService;

    type Boxed = BoxService<u32, u32, BoxError>;

    fn boxed() -> Boxed {
        named().map_err(BoxError::from).boxed()
    }

    block_on(async {
        // These types name the request type in this crate, so one spelling cannot serve both.
        let mut service = SpawnReady::new(boxed());
        assert_eq!(service.ready().await.unwrap().call(1).await.unwrap(), 2);
        let layer = SpawnReadyLayer::new();
        assert_eq!(layer.clone().layer(boxed()).oneshot(1).await.unwrap(), 2);
        let other = SpawnReadyLayer::new().layer(service_fn(double));
        assert_eq!(other.oneshot(1).await.unwrap(), 2);
    });
}

#[test]
fn steer() {
    use tower::steer::{Picker, Steer};

    struct Parity;

    impl<S> Picker<S, u32> for Parity {
        fn pick(&mut self, request: &u32, services: &[S]) -> usize {
            *request as usize % services.len()
        }
    }

    block_on(async {
        let plus = |m: u32| service_fn(move |n: u32| ready(Ok::<_, Infallible>(n + m)));
        let mut steer: Steer<_, Parity, u32> = Steer::new([plus(10), plus(20)], Parity);
        assert_eq!(steer.ready().await.unwrap().call(2).await.unwrap(), 12);
        assert_eq!(steer.ready().await.unwrap().call(3).await.unwrap(), 23);
        let steer = Steer::new(vec![plus(1)], |_: &u32, _: &[_]| 0);
        assert_eq!(steer.clone().oneshot(1).await.unwrap(), 2);
    });
}

#[test]
fn timeout() {
    use tower::timeout::{Timeout, TimeoutLayer, error::Elapsed, future::ResponseFuture};

    assert!(std::error::Error::source(&Elapsed::new()).is_none());
    block_on(async {
        let mut timeout: Timeout<Named> = Timeout::new(named(), LONG);
        let response: ResponseFuture<_> = timeout.call(1);
        assert_eq!(response.await.unwrap(), 2);
        assert_eq!(timeout.get_mut().call(1).await, Ok(2));
        assert_eq!(timeout.get_ref().oneshot(1).await, Ok(2));
        assert_eq!(timeout.into_inner().oneshot(1).await, Ok(2));

        let layer: TimeoutLayer = TimeoutLayer::new(Duration::from_nanos(1));
        let late = layer
            .clone()
            .layer(service_fn(|()| pending::<Result<(), Infallible>>()));
        assert!(BoxError::from(late.oneshot(()).await.unwrap_err()).is::<Elapsed>());
    });
}

#[test]
fn defaults() {
    use tower::load_shed::{LoadShedLayer, error::Overloaded};

    block_on(async {
        assert_eq!(
            LoadShedLayer::default()
                .layer(named())
                .oneshot(1)
                .await
                .unwrap(),
            2
        );
        let layer = tower::spawn_ready::SpawnReadyLayer::default();
        assert_eq!(layer.layer(named()).oneshot(1).await.unwrap(), 2);
        let mut cache = tower::ready_cache::ReadyCache::<u32, Named, u32>::default();
        cache.push(1, named());
        assert_eq!(cache.len(), 1);
    });
    type Layer = tower::balance::p2c::MakeBalanceLayer<Named, u32>;
    assert!(format!("{:?}", Layer::default()).starts_with("MakeBalanceLayer"));
    assert_eq!(
        Overloaded::default().to_string(),
        Overloaded::new().to_string()
    );
}
