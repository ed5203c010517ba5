//! What every room keeps to, whatever else it does.
#![cfg(feature = "testing")]

use std::future::{Pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
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
use campanile::testing::{Probe, Runtime, Sim, idle};
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

type Room<S> = (&'static str, fn(Cloned) -> S);

/// What a room tells the time by.
trait Clock: Timer<Sleep: 'static, Alarm: 'static> + Clone + Default + 'static {}

impl<T: Timer<Sleep: 'static, Alarm: 'static> + Clone + Default + 'static> Clock for T {}

/// The rooms that have clones, each around a service that is given.
fn cloned<T: Clock>() -> Vec<Room<Cloned>> {
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
        ("reconnect", |s| {
            let connect = service_fn(move |()| ready(Ok::<_, BoxError>(s.clone())));
            boxed(Reconnect::with_timer(connect, (), T::default()))
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

/// Starts a task when it is made.
fn buffer(inner: Cloned) -> Cloned {
    boxed(Buffer::new(inner, 1))
}

/// Those that have none.
fn single_ones<T: Clock>() -> Vec<Room<Single>> {
    vec![
        ("balance", |s| {
            let endpoints = ServiceList::new::<u32>([Constant::new(s, 1)]);
            single(Balance::with_timer(endpoints, T::default()))
        }),
        ("quarantine", |s| single(Quarantine::<_, T>::new(s))),
        ("spawn_ready", |s| single(SpawnReady::<_, u32>::new(s))),
    ]
}

/// All of them.
fn rooms() -> impl Iterator<Item = (&'static str, Box<dyn Fn(Cloned) -> Single>)> {
    let cloned = cloned::<Sim>().into_iter().chain([("buffer", buffer as _)]);
    let cloned = cloned.map(|(name, room): Room<Cloned>| {
        let room = Box::new(move |inner| single(room(inner)));
        (name, room as Box<dyn Fn(Cloned) -> Single>)
    });
    let others = single_ones::<Sim>().into_iter();
    cloned.chain(others.map(|(name, room)| (name, Box::new(room) as _)))
}

/// Runs `scenario` for a room in a runtime, and says which room it was if it fails.
fn run<F: Future<Output = ()>>(name: &str, scenario: F) {
    let runtime = Runtime::new(1);
    let result = catch_unwind(AssertUnwindSafe(|| runtime.block_on(scenario)));
    match result {
        Ok(Ok(())) => {}
        Ok(Err(stuck)) => panic!("{name}: {stuck}"),
        Err(panic) => {
            eprintln!("the room is {name}");
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

/// A service of which one handle at a time is ready, and what sees its calls.
fn one_at_a_time(probe: &Probe) -> (Cloned, Semaphore) {
    let semaphore = Semaphore::new(1);
    let service = ConcurrencyLimit::with_semaphore(probe.layer(echo()), semaphore.clone());
    (boxed(service), semaphore)
}

#[test]
fn a_clone_starts_as_never_polled() {
    for (name, room) in cloned::<Sim>().into_iter().chain([("buffer", buffer as _)]) {
        run(name, async {
            let probe = Probe::new();
            let (inner, _) = one_at_a_time(&probe);
            let mut service = room(inner);
            service.ready().await.unwrap();

            let mut clone = service.clone();
            if poll_once(&mut clone).await.is_ready() {
                // As of a room that is always ready: it is to refuse the request, or to let it wait.
                let answer = clone.call(1).now_or_never();
                assert!(!matches!(answer, Some(Ok(_))), "{name}: {answer:?}");
                assert_eq!(probe.calls(), 0, "{name}");
            }
            drop(clone);
            // And it has taken nothing from its original.
            assert_eq!(service.call(2).await.unwrap(), 2, "{name}");
        });
    }
}

#[test]
fn a_shed_request_leaves_no_waiter_and_no_timer_behind() {
    for (name, room) in rooms() {
        let runtime = Runtime::new(1);
        let result = runtime.block_on(async {
            let probe = Probe::new();
            let (inner, semaphore) = one_at_a_time(&probe);
            let mut first = inner.clone();
            first.ready().await.unwrap();

            let mut shed = LoadShed::new(room(inner.clone()));
            // What connects, or looks for endpoints, does so meanwhile.
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
            // The first handle's permit is for whoever comes next, though the one that was shed still exists.
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
    for (name, room) in rooms() {
        run(name, async {
            let answer = room(echo()).call(1).await;
            assert!(answer.is_err() || answer.is_ok_and(|n| n == 1), "{name}");
        });
    }
}

/// A clock that is not to be looked at.
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
fn to_construct_clone_and_drop_it_needs_no_runtime() {
    for (_, room) in cloned::<Untouchable>() {
        drop(room(echo()).clone());
    }
    for (_, room) in single_ones::<Untouchable>() {
        drop(room(echo()));
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
        assert!(!self.in_call, "an expected panic");
        Box::pin(async { panic!("an expected panic") })
    }
}

fn quietly<T>(act: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(act)).ok()
}

#[test]
fn a_panic_gives_back_what_was_taken() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&"an expected panic") {
            hook(info);
        }
    }));
    for in_call in [true, false] {
        for (name, room) in rooms() {
            run(name, async {
                let (inside, outside) = (Semaphore::new(1), Semaphore::new(1));
                let probe = Probe::new();
                let inner = ConcurrencyLimit::with_semaphore(Panics { in_call }, inside.clone());
                let service = room(boxed(probe.layer(inner)));
                let mut service = ConcurrencyLimit::with_semaphore(service, outside.clone());
                service.ready().await.unwrap();
                let mut response = quietly(|| Box::pin(service.call(1)));
                // In a worker it is the worker's.
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

/// A room that is asked again and again while it is ready stays so, and reserves once.
#[test]
fn readiness_stays_until_the_call() {
    for (name, room) in rooms() {
        run(name, async {
            let probe = Rc::new(Probe::new());
            let (inner, semaphore) = one_at_a_time(&probe);
            let mut service = room(inner);
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

/// tokio's timers are pending, whatever the time, in a task that has used up its share of a poll.
#[cfg(feature = "tokio")]
mod tokio_budget {
    use super::*;
    use campanile::reconnect::ConnectErrors;
    use campanile::testing::Faults;
    use campanile::tokio::limit::RateLimit;
    use campanile::tokio::reconnect::Reconnect;
    use campanile::tokio::timeout::Deadline;

    /// Polls once, after everything else in the task has had its turn.
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
    async fn a_wait_ends_though_something_else_uses_up_the_budget() {
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
        // No wait is longer than the first one, which is 50 ms.
        let reconnect = reconnect.connect_errors(ConnectErrors::Nowhere);
        assert_waits_for(SECOND, reconnect).await;
    }
}
