//! Rules that every middleware keeps.
#![cfg(feature = "testing")]

use std::future::{Pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use campanile::balance::p2c::Balance;
use campanile::balance::quarantine::Quarantine;
use campanile::discover::ServiceList;
use campanile::filter::{AsyncFilter, Filter};
use campanile::hedge::{Delay, Hedge};
use campanile::limit::concurrency::{ConcurrencyLimit, Semaphore};
use campanile::limit::rate::{Rate, RateLimit};
use campanile::load::{CompleteOnResponse, Constant, PeakEwma, PendingRequests};
use campanile::load_shed::LoadShed;
use campanile::reconnect::Reconnect;
use campanile::retry::budget::TpsBudget;
use campanile::retry::{CloneByClone, Retry, StandardPolicy};
use campanile::steer::Steer;
use campanile::testing::buffer::Buffer;
use campanile::testing::spawn_ready::SpawnReady;
use campanile::testing::{Probe, Runtime, Sim, idle, sleep};
use campanile::timeout::{Deadline, Timeout};
use campanile::util::{Either, Optional, UnsyncBoxCloneService, UnsyncBoxService};
use campanile::{BoxError, Instant, Layer, Service, ServiceExt, Timer, service_fn};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

type Cloned = UnsyncBoxCloneService<u32, u32, BoxError>;
type Single = UnsyncBoxService<u32, u32, BoxError>;

const SECOND: Duration = Duration::from_secs(1);

fn boxed<S>(service: S) -> Cloned
where
    S: Service<u32, Response = u32, Error: Into<BoxError> + 'static, Future: 'static>,
    S: Clone + 'static,
{
    Cloned::new(service.map_err(Into::into))
}

fn single<S>(service: S) -> Single
where
    S: Service<u32, Response = u32, Error: Into<BoxError> + 'static, Future: 'static> + 'static,
{
    Single::new(service.map_err(Into::into))
}

fn pass(n: u32) -> Result<u32, BoxError> {
    Ok(n)
}

async fn pass_later(n: u32) -> Result<u32, BoxError> {
    Ok(n)
}

type Middleware<S> = (&'static str, fn(Cloned) -> S);

/// The timer of a middleware.
trait Clock: Timer<Sleep: 'static, Alarm: 'static> + Clone + Default + 'static {}

impl<T: Timer<Sleep: 'static, Alarm: 'static> + Clone + Default + 'static> Clock for T {}

/// The middleware that implement `Clone`, each around a given service.
fn cloned<T: Clock>() -> Vec<Middleware<Cloned>> {
    vec![
        ("and_then", |s| boxed(s.and_then(pass_later))),
        ("async_filter", |s| boxed(AsyncFilter::new(s, pass_later))),
        ("concurrency_limit", |s| boxed(ConcurrencyLimit::new(s, 1))),
        ("constant", |s| boxed(Constant::new(s, 1))),
        ("deadline", |s| boxed(Deadline::<_, T>::new(s, SECOND))),
        ("either", |s| boxed(Either::<_, Cloned>::Left(s))),
        ("filter", |s| boxed(Filter::new(s, pass))),
        ("hedge", |s| {
            let delay = Delay::fixed(SECOND);
            boxed(Hedge::<_, _, T>::with_delay(s, CloneByClone, delay))
        }),
        ("hedge by percentile", |s| {
            boxed(Hedge::<_, _, T>::new(s, CloneByClone, 1, 0.9, SECOND))
        }),
        ("load_shed", |s| boxed(LoadShed::new(s))),
        ("map_future", |s| boxed(s.map_future(|future| future))),
        ("map_request", |s| boxed(s.map_request(|n: u32| n))),
        ("map_response", |s| boxed(s.map_response(|n: u32| n))),
        ("map_result", |s| {
            boxed(s.map_result(|result: Result<u32, BoxError>| result))
        }),
        ("optional", |s| boxed(Optional::new(Some(s)))),
        ("peak_ewma", |s| {
            let over = CompleteOnResponse;
            boxed(PeakEwma::<_, _, T>::new(s, SECOND, 1e9, over))
        }),
        ("pending_requests", |s| {
            boxed(PendingRequests::<_, _, T>::new(s, CompleteOnResponse))
        }),
        ("rate_limit", |s| {
            boxed(RateLimit::<_, T>::new(s, Rate::new(1, SECOND)))
        }),
        ("retry", |s| {
            let budget = Rc::new(TpsBudget::with_timer(SECOND, 1, 0.1, T::default()));
            let policy = StandardPolicy::with_timer(T::default()).total_time(SECOND);
            boxed(Retry::new(policy.budget(budget), s))
        }),
        ("steer", |s| {
            boxed(Steer::new([s], |_: &u32, _: &[Cloned]| 0))
        }),
        ("then", |s| {
            boxed(s.then(|result: Result<u32, BoxError>| ready(result)))
        }),
        ("timeout", |s| boxed(Timeout::<_, T>::new(s, SECOND))),
        ("timeout from the call", |s| {
            boxed(Timeout::<_, T>::new(s, SECOND).from_call())
        }),
    ]
}

/// Starts a task when it is created.
fn buffer(inner: Cloned) -> Cloned {
    boxed(Buffer::new(inner, 1))
}

/// The middleware that do not implement `Clone`.
fn single_ones<T: Clock>() -> Vec<Middleware<Single>> {
    vec![
        ("balance", |s| {
            let endpoints = ServiceList::new::<u32>([Constant::new(s, 1)]);
            single(Balance::with_timer(endpoints, T::default()))
        }),
        ("reconnect", |s| {
            let connect = service_fn(move |()| ready(Ok::<_, BoxError>(s.clone())));
            single(Reconnect::with_timer(connect, (), T::default()))
        }),
        ("quarantine", |s| single(Quarantine::<_, T>::new(s))),
        ("spawn_ready", |s| single(SpawnReady::<_, u32>::new(s))),
    ]
}

/// All middleware.
fn middleware() -> impl Iterator<Item = (&'static str, Box<dyn Fn(Cloned) -> Single>)> {
    let cloned = cloned::<Sim>().into_iter().chain([("buffer", buffer as _)]);
    let cloned = cloned.map(|(name, middleware): Middleware<Cloned>| {
        let middleware = Box::new(move |inner| single(middleware(inner)));
        (name, middleware as Box<dyn Fn(Cloned) -> Single>)
    });
    let others = single_ones::<Sim>().into_iter();
    cloned.chain(others.map(|(name, middleware)| (name, Box::new(middleware) as _)))
}

/// Runs `scenario` for a middleware in a runtime, and names the middleware if it fails.
fn run<F: Future<Output = ()>>(name: &str, scenario: F) {
    let runtime = Runtime::new(1);
    let result = catch_unwind(AssertUnwindSafe(|| runtime.block_on(scenario)));
    match result {
        Ok(Ok(())) => {}
        Ok(Err(stuck)) => panic!("{name}: {stuck}"),
        Err(panic) => {
            eprintln!("the middleware is {name}");
            std::panic::resume_unwind(panic);
        }
    }
}

async fn poll_once<S: Service<u32>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    poll_fn(|cx| Poll::Ready(service.poll_ready(cx))).await
}

fn echo() -> Cloned {
    boxed(service_fn(async |n: u32| Ok::<_, BoxError>(n)))
}

/// A service that has one ready handle at a time, and the semaphore that limits it.
fn one_at_a_time(probe: &Probe) -> (Cloned, Semaphore) {
    let semaphore = Semaphore::new(1);
    let service = ConcurrencyLimit::with_semaphore(probe.layer(echo()), semaphore.clone());
    (boxed(service), semaphore)
}

#[test]
fn a_clone_starts_as_never_polled() {
    for (name, middleware) in cloned::<Sim>().into_iter().chain([("buffer", buffer as _)]) {
        run(name, async {
            let probe = Probe::new();
            let (inner, _) = one_at_a_time(&probe);
            let mut service = middleware(inner);
            service.ready().await.unwrap();

            let mut clone = service.clone();
            if poll_once(&mut clone).await.is_ready() {
                // A middleware that is always ready has to refuse the request or let it wait.
                let answer = clone.call(1).now_or_never();
                assert!(!matches!(answer, Some(Ok(_))), "{name}: {answer:?}");
                assert_eq!(probe.calls(), 0, "{name}");
            }
            drop(clone);
            // It has taken nothing from its original.
            assert_eq!(service.call(2).await.unwrap(), 2, "{name}");
        });
    }
}

#[test]
fn shed_request_leaves_no_waiter_or_timer() {
    for (name, middleware) in middleware() {
        let runtime = Runtime::new(1);
        let result = runtime.block_on(async {
            let probe = Probe::new();
            let (inner, semaphore) = one_at_a_time(&probe);
            let mut first = inner.clone();
            first.ready().await.unwrap();

            let mut shed = LoadShed::new(middleware(inner.clone()));
            // Connecting and discovery take place meanwhile.
            for _ in 0..3 {
                assert!(poll_once(&mut shed).await.is_ready(), "{name}");
                idle().await;
            }
            if !["buffer", "load_shed"].contains(&name) {
                let answer = shed.call(1).now_or_never();
                assert!(matches!(answer, Some(Err(_))), "{name}: {answer:?}");
            }
            drop(first);
            idle().await;
            // The first handle's permit goes to the next caller, though the shed handle still exists.
            if name != "buffer" {
                assert_eq!(semaphore.available_permits(), 1, "{name}");
            }
            shed
        });
        let shed = result.unwrap_or_else(|stuck| panic!("{name}: {stuck}"));
        assert_eq!(runtime.deadlines(), 0, "{name}");
        drop(shed);
    }
}

#[test]
fn a_call_without_readiness_does_not_panic() {
    for (name, middleware) in middleware() {
        run(name, async {
            let answer = middleware(echo()).call(1).await;
            assert!(answer.is_err() || answer.is_ok_and(|n| n == 1), "{name}");
        });
    }
}

/// A clock that must not be used.
#[derive(Clone, Debug, Default)]
struct Untouchable;

impl Timer for Untouchable {
    type Sleep = Pending<()>;
    type Alarm = Pending<()>;

    fn now(&self) -> Instant {
        panic!("the clock is read")
    }

    fn sleep_until(&self, _: Instant) -> Pending<()> {
        panic!("a sleep is made")
    }

    fn alarm_until(&self, _: Instant) -> Pending<()> {
        panic!("an alarm is set")
    }
}

#[test]
fn building_needs_no_runtime() {
    for (_, middleware) in cloned::<Untouchable>() {
        drop(middleware(echo()).clone());
    }
    for (_, middleware) in single_ones::<Untouchable>() {
        drop(middleware(echo()));
    }
    let _ = campanile::testing::buffer::BufferLayer::<u32>::new(1);
}

/// Panics when it is called, or when its response is polled.
#[derive(Clone)]
struct Panics {
    in_call: bool,
}

impl Service<u32> for Panics {
    type Response = u32;
    type Error = BoxError;
    type Future = LocalBoxFuture<'static, Result<u32, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: u32) -> Self::Future {
        if self.in_call {
            panic_any(EXPECTED);
        }
        Box::pin(async { panic_any(EXPECTED) })
    }
}

fn quietly<T>(act: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(act)).ok()
}

const EXPECTED: &str = "an expected panic";

/// Silences expected panics.
fn expect_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload().downcast_ref::<&str>() != Some(&EXPECTED) {
                hook(info);
            }
        }));
    });
}

#[test]
fn panic_releases_the_reservation() {
    expect_panics();
    for in_call in [true, false] {
        for (name, middleware) in middleware() {
            run(name, async {
                let (inside, outside) = (Semaphore::new(1), Semaphore::new(1));
                let probe = Probe::new();
                let inner = ConcurrencyLimit::with_semaphore(Panics { in_call }, inside.clone());
                let service = middleware(boxed(probe.layer(inner)));
                let mut service = ConcurrencyLimit::with_semaphore(service, outside.clone());
                service.ready().await.unwrap();
                let mut response = quietly(|| Box::pin(service.call(1)));
                // In a worker, the panic hits the worker.
                idle().await;
                if let Some(response) = &mut response {
                    let answer = poll_fn(|cx| {
                        let response = pin!(response.as_mut());
                        Poll::Ready(quietly(|| response.poll(cx)))
                    });
                    let answer = answer.await;
                    assert!(!matches!(answer, Some(Poll::Ready(Ok(_)))), "{name}");
                }
                drop(response);
                drop(service);
                idle().await;
                assert_eq!(outside.available_permits(), 1, "{name}");
                assert_eq!(inside.available_permits(), 1, "{name}");
                assert_eq!((probe.in_flight(), probe.reserved()), (0, 0), "{name}");
            });
        }
    }
}

/// User code that panics within a call, before the inner service is called.
#[derive(Clone, Copy)]
struct PanicsFirst;

impl<E> campanile::retry::Policy<u32, u32, E> for PanicsFirst {
    type Future = Pending<()>;

    fn retry(&mut self, _: &mut u32, _: &mut Result<u32, E>) -> Option<Pending<()>> {
        None
    }

    fn clone_request(&mut self, _: &u32) -> Option<u32> {
        panic_any(EXPECTED)
    }
}

impl campanile::hedge::Policy<u32> for PanicsFirst {
    fn clone_request(&self, _: &u32) -> Option<u32> {
        panic_any(EXPECTED)
    }

    fn can_retry(&self, _: &u32) -> bool {
        true
    }
}

#[test]
fn panic_before_the_call_releases_readiness() {
    expect_panics();
    let middleware: [Middleware<Single>; 5] = [
        ("filter", |s| {
            let panics = |_: u32| -> Result<u32, BoxError> { panic_any(EXPECTED) };
            single(Filter::new(s, panics))
        }),
        ("async_filter", |s| {
            let panics = |_: u32| -> Pending<Result<u32, BoxError>> { panic_any(EXPECTED) };
            single(AsyncFilter::new(s, panics))
        }),
        ("map_request", |s| {
            single(s.map_request(|_: u32| -> u32 { panic_any(EXPECTED) }))
        }),
        ("retry", |s| single(Retry::new(PanicsFirst, s))),
        ("hedge", |s| {
            let delay = Delay::fixed(SECOND);
            single(Hedge::with_timer(s, PanicsFirst, delay, Sim))
        }),
    ];
    for (name, middleware) in middleware {
        run(name, async {
            let (inner, semaphore) = one_at_a_time(&Probe::new());
            let mut service = middleware(inner);
            for _ in 0..2 {
                service.ready().await.unwrap();
                assert_eq!(semaphore.available_permits(), 0, "{name}");
                assert!(quietly(|| drop(service.call(1))).is_none(), "{name}");
                // The handle still exists.
                assert_eq!(semaphore.available_permits(), 1, "{name}");
            }
        });
    }
}

/// A middleware that is polled repeatedly while ready stays ready and reserves once.
#[test]
fn readiness_stays_until_the_call() {
    for (name, middleware) in middleware() {
        run(name, async {
            let probe = Rc::new(Probe::new());
            let (inner, semaphore) = one_at_a_time(&probe);
            let mut service = middleware(inner);
            service.ready().await.unwrap();
            for _ in 0..3 {
                assert!(poll_once(&mut service).await.is_ready(), "{name}");
                idle().await;
            }
            assert_eq!(service.call(1).await.unwrap(), 1, "{name}");
            drop(service);
            idle().await;
            assert_eq!(semaphore.available_permits(), 1, "{name}");
            assert_eq!((probe.calls(), probe.reserved()), (1, 0), "{name}");
        });
    }
}

/// In an idle buffer, a cancelled request releases what its service had reserved or waited for.
/// Ready at every second poll, like a connection that is lost as soon as it is made.
#[derive(Clone, Default)]
struct Momentary {
    is_ready: bool,
}

impl Service<u32> for Momentary {
    type Response = u32;
    type Error = BoxError;
    type Future = std::future::Ready<Result<u32, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.is_ready = !self.is_ready;
        match self.is_ready {
            true => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            false => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, n: u32) -> Self::Future {
        ready(Ok(n))
    }
}

#[test]
fn momentary_readiness_is_used() {
    for (name, make) in middleware() {
        run(name, async {
            let mut service = make(boxed(Momentary::default()));
            for n in 0..4 {
                let mut answer = pin!(
                    async {
                        let service = poll_fn(|cx| service.poll_ready(cx))
                            .await
                            .map(|()| &mut service);
                        service?.call(n).await
                    }
                    .fuse()
                );
                let mut given_up = pin!(sleep(10 * SECOND).fuse());
                futures::select_biased! {
                    // What is shed is answered, too.
                    answer = answer => assert!(answer.is_ok() || name == "load_shed", "{answer:?}"),
                    () = given_up => panic!("request {n} waits forever"),
                }
            }
        });
    }
}

#[test]
fn idle_buffer_holds_nothing() {
    for (name, middleware) in middleware() {
        let runtime = Runtime::new(1);
        let result = runtime.block_on(async {
            let probe = Probe::new();
            let (inner, semaphore) = one_at_a_time(&probe);
            let buffer = Buffer::new(middleware(inner.clone()), 1);
            // A first request makes it connect, and so on.
            assert_eq!(buffer.clone().oneshot(0).await.unwrap(), 0, "{name}");
            sleep(10 * SECOND).await;
            let mut first = inner.clone();
            first.ready().await.unwrap();

            let mut given_up = Box::pin(buffer.clone().oneshot(1));
            let polled = given_up.as_mut().now_or_never();
            idle().await;
            assert!(polled.is_none(), "{name}");
            drop(given_up);
            idle().await;
            drop(first);
            idle().await;
            // No request is waiting, so the permit is free for others.
            assert_eq!(semaphore.available_permits(), 1, "{name}");
            // The next request gets the permit and inherits nothing, however late it comes.
            sleep(1_000 * SECOND).await;
            assert_eq!(semaphore.available_permits(), 1, "{name}");
            assert_eq!(buffer.clone().oneshot(2).await.unwrap(), 2, "{name}");
            sleep(SECOND).await;
            assert_eq!(semaphore.available_permits(), 1, "{name}");
            buffer
        });
        let buffer = result.unwrap_or_else(|stuck| panic!("{name}: {stuck}"));
        assert_eq!(runtime.deadlines(), 0, "{name}");
        drop(buffer);
    }
}

/// A caller that has its answer finds nothing of the request alive, even if the response future is kept.
#[test]
fn answered_request_is_dropped() {
    for (name, middleware) in middleware() {
        run(name, async {
            let alive = Rc::new(());
            let guard = alive.clone();
            let inner = service_fn(move |n: u32| {
                let guard = guard.clone();
                // Held until the future is dropped, not until it is ready.
                std::future::poll_fn(move |_| {
                    let _ = &guard;
                    Poll::Ready(Ok::<_, BoxError>(n))
                })
            });
            let mut service = ConcurrencyLimit::new(middleware(boxed(inner)), 1);
            service.ready().await.unwrap();
            let handles = Rc::strong_count(&alive);
            let mut response = Box::pin(service.call(1));
            assert_eq!(response.as_mut().await.unwrap(), 1, "{name}");
            assert!(Rc::strong_count(&alive) <= handles, "{name}");
        });
    }
}

/// tokio's timers stay pending in a task that has used up its budget for one poll.
#[cfg(feature = "tokio")]
mod tokio_budget {
    use super::*;
    use campanile::reconnect::ConnectErrors;
    use campanile::testing::Faults;
    use campanile::tokio::limit::RateLimit;
    use campanile::tokio::reconnect::Reconnect;
    use campanile::tokio::timeout::Deadline;

    /// Polls once, after using up the task's budget.
    async fn is_ready<S: Service<u32>>(service: &mut S) -> bool {
        poll_fn(|cx| {
            while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
            Poll::Ready(service.poll_ready(cx).is_ready())
        })
        .await
    }

    async fn assert_waits_for(limit: Duration, mut service: impl Service<u32>) {
        assert!(!is_ready(&mut service).await);
        tokio::time::advance(limit).await;
        assert!(is_ready(&mut service).await);
    }

    #[tokio::test(start_paused = true)]
    async fn wait_ends_despite_a_used_up_budget() {
        let mut limited = RateLimit::new(echo(), Rate::new(1, SECOND));
        limited.ready().await.unwrap().call(1).await.unwrap();
        assert_waits_for(SECOND, limited).await;

        let never = Faults::new(1).never_ready(1.0).layer(echo());
        assert_waits_for(SECOND, Deadline::new(never, SECOND)).await;

        let mut refused = false;
        let connect = service_fn(move |()| {
            let is_first = !std::mem::replace(&mut refused, true);
            ready(match is_first {
                true => Err(BoxError::from("refused")),
                false => Ok(echo()),
            })
        });
        let reconnect = Reconnect::<_, ()>::new(connect, ());
        // No wait is longer than the first, which is 50 ms.
        let reconnect = reconnect.connect_errors(ConnectErrors::Nowhere);
        assert_waits_for(SECOND, reconnect).await;
    }
}
