//! `Steer`: joint readiness of several services, and routing of requests.

mod common;

use core::cell::{Cell, RefCell};
use core::future::{Ready, ready};
use core::task::{Context, Poll};
use std::rc::Rc;

use campanile::error::find;
use campanile::load_shed::{self, LoadShed};
use campanile::steer::{Empty, Error, Failed, NotReady, OutOfRange, Picker, Steer};
use campanile::{Service, ServiceExt, service_fn};
use common::{Failure, Host, On, WakeCount, mock, on_every_runtime, until, yield_now};
use futures::FutureExt;

/// A service with a readiness switch that counts its polls and checks the contract.
#[derive(Debug)]
struct Switch {
    name: u32,
    shared: Rc<Shared>,
    is_ready: bool,
}

#[derive(Debug, Default)]
struct Shared {
    ready: Cell<bool>,
    polls: Cell<u32>,
    wakers: RefCell<Vec<std::task::Waker>>,
}

impl Shared {
    fn turn_on(&self) {
        self.ready.set(true);
        self.wakers.take().into_iter().for_each(|w| w.wake());
    }
}

fn switches(n: u32) -> (Vec<Switch>, Vec<Rc<Shared>>) {
    (0..n)
        .map(|name| {
            let shared = Rc::new(Shared::default());
            let switch = Switch {
                name,
                shared: shared.clone(),
                is_ready: false,
            };
            (switch, shared)
        })
        .unzip()
}

impl Clone for Switch {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            shared: self.shared.clone(),
            is_ready: false,
        }
    }
}

impl Service<u32> for Switch {
    type Response = u32;
    type Error = Failure;
    type Future = Ready<Result<u32, Failure>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.shared.polls.set(self.shared.polls.get() + 1);
        self.is_ready = self.shared.ready.get();
        if self.is_ready {
            return Poll::Ready(Ok(()));
        }
        self.shared.wakers.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    }

    fn call(&mut self, request: u32) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called unready");
        ready(Ok(1_000 * self.name + request))
    }
}

/// The request is the index of its service.
fn by_index<S>(request: &u32, _: &[S]) -> usize {
    *request as usize
}

fn polls(all: &[Rc<Shared>]) -> Vec<u32> {
    all.iter().map(|shared| shared.polls.get()).collect()
}

#[test]
fn ready_once_all_services_are() {
    let (services, all) = switches(3);
    let mut steer = Steer::with_services(services, by_index);
    let wakes = WakeCount::new();

    assert!(wakes.poll_ready(&mut steer).is_pending());
    // All services are polled at once, not one after the other.
    assert_eq!(polls(&all), [1, 1, 1]);
    all[2].turn_on();
    assert_eq!(wakes.get(), 1);
    assert!(wakes.poll_ready(&mut steer).is_pending());
    all[0].turn_on();
    assert!(wakes.poll_ready(&mut steer).is_pending());
    all[1].turn_on();
    assert_eq!(wakes.poll_ready(&mut steer), Poll::Ready(Ok(())));

    assert_eq!(steer.call(2).now_or_never(), Some(Ok(2_002)));
    assert_eq!(wakes.poll_ready(&mut steer), Poll::Ready(Ok(())));
    assert_eq!(steer.call(0).now_or_never(), Some(Ok(0)));
}

#[test]
fn only_unready_services_are_polled() {
    let (services, all) = switches(3);
    let mut steer = Steer::with_services(services, by_index);
    let wakes = WakeCount::new();

    all[1].turn_on();
    assert!(wakes.poll_ready(&mut steer).is_pending());
    assert_eq!(polls(&all), [1, 1, 1]);
    assert!(wakes.poll_ready(&mut steer).is_pending());
    assert_eq!(polls(&all), [2, 1, 2]);
    all[0].turn_on();
    all[2].turn_on();
    for _ in 0..3 {
        assert!(wakes.poll_ready(&mut steer).is_ready());
        assert_eq!(polls(&all), [3, 1, 3]);
    }
    // After a call only the called service is polled.
    for n in 2..5 {
        drop(steer.call(1));
        assert!(wakes.poll_ready(&mut steer).is_ready());
        assert_eq!(polls(&all), [3, n, 3]);
    }
}

#[test]
fn a_clone_starts_with_nothing_ready() {
    let (services, all) = switches(2);
    let mut steer = Steer::with_services(services, by_index);
    let wakes = WakeCount::new();
    all.iter().for_each(|shared| shared.turn_on());
    assert!(wakes.poll_ready(&mut steer).is_ready());

    let mut clone = steer.clone();
    all[1].ready.set(false);
    assert!(wakes.poll_ready(&mut clone).is_pending());
    assert_eq!(polls(&all), [2, 2]);
    all[1].turn_on();
    assert!(wakes.poll_ready(&mut clone).is_ready());
    let answers = [clone.call(1), steer.call(1)].map(|answer| answer.now_or_never().unwrap());
    assert_eq!(answers, [Ok(1_001), Ok(1_001)]);

    let mut unready = clone.clone();
    let answer = unready.call(0).now_or_never().unwrap();
    assert_eq!(answer, Err(Error::NotReady(NotReady::new())));
}

#[test]
fn out_of_range_index_is_an_error() {
    let (services, all) = switches(2);
    let mut steer = Steer::with_services(services, by_index);
    let wakes = WakeCount::new();
    all.iter().for_each(|shared| shared.turn_on());
    assert!(wakes.poll_ready(&mut steer).is_ready());

    let error = steer.call(2).now_or_never().unwrap().unwrap_err();
    let found = find::<OutOfRange>(&error).unwrap();
    assert_eq!((found.index(), found.services()), (2, 2));
    assert_eq!(error.to_string(), "picked service 2 of 2, counted from 0");
    // The response stores the index in less than a `usize`.
    let error = steer.call(u32::MAX).now_or_never().unwrap().unwrap_err();
    assert_eq!(
        find::<OutOfRange>(&error).unwrap().index(),
        u32::MAX as usize
    );
    for _ in 0..2 {
        assert!(steer.call(u32::MAX).now_or_never().unwrap().is_err());
    }
    assert!(wakes.poll_ready(&mut steer).is_ready());
    assert_eq!(polls(&all), [1, 1]);
    assert_eq!(steer.call(1).now_or_never(), Some(Ok(1_001)));
}

#[test]
fn empty_set_is_an_error() {
    let mut steer = Steer::with_services(Vec::<Switch>::new(), |_: &u32, _: &[Switch]| {
        panic!("nothing to pick from")
    });
    let wakes = WakeCount::new();
    for _ in 0..2 {
        let empty = Error::Empty(Empty::new());
        assert_eq!(wakes.poll_ready(&mut steer), Poll::Ready(Err(empty)));
        let answer = steer.call(0).now_or_never();
        assert_eq!(answer, Some(Err(Error::Empty(Empty::new()))));
    }
}

#[test]
fn unready_call_reaches_no_service() {
    let (services, all) = switches(2);
    let mut steer = Steer::with_services(services, by_index);
    let wakes = WakeCount::new();
    let not_ready = || Some(Err(Error::NotReady(NotReady::new())));
    assert_eq!(steer.call(0).now_or_never(), not_ready());
    all.iter().for_each(|shared| shared.turn_on());
    assert!(wakes.poll_ready(&mut steer).is_ready());
    assert_eq!(steer.call(0).now_or_never(), Some(Ok(0)));
    assert_eq!(steer.call(1).now_or_never(), not_ready());
    // The called service is polled again, whatever happened in between.
    assert!(wakes.poll_ready(&mut steer).is_ready());
    assert_eq!(polls(&all), [2, 1]);
}

#[test]
fn one_failure_fails_the_whole_set() {
    // The mocks fail the test if they are polled again.
    let (first, one) = mock::<u32, u32>();
    let (second, other) = mock::<u32, u32>();
    let mut steer = Steer::with_services([first, second], by_index);
    let wakes = WakeCount::new();
    one.set_ready(false);
    assert!(wakes.poll_ready(&mut steer).is_pending());
    one.fail(Failure("gone"));
    assert_eq!(wakes.get(), 1);
    let polled = wakes.poll_ready(&mut steer);
    assert_eq!(polled, Poll::Ready(Err(Error::Service(Failure("gone")))));
    for _ in 0..2 {
        let failed = Error::Failed(Failed::new());
        assert_eq!(wakes.poll_ready(&mut steer), Poll::Ready(Err(failed)));
        let answer = steer.call(1).now_or_never();
        assert_eq!(answer, Some(Err(Error::Failed(Failed::new()))));
    }
    assert_eq!(other.calls(), 0);
    // A clone has services of its own.
    one.set_ready(true);
    assert!(wakes.poll_ready(&mut steer.clone()).is_ready());
}

#[test]
fn called_service_is_waited_for() {
    let (services, all) = switches(3);
    let mut steer = Steer::with_services(services, by_index);
    let wakes = WakeCount::new();
    all.iter().for_each(|shared| shared.turn_on());
    assert!(wakes.poll_ready(&mut steer).is_ready());
    all[1].ready.set(false);
    drop(steer.call(1));
    for n in 2..4 {
        assert!(wakes.poll_ready(&mut steer).is_pending());
        assert_eq!(polls(&all), [1, n, 1]);
    }
    all[1].turn_on();
    assert!(wakes.poll_ready(&mut steer).is_ready());
    assert_eq!(steer.call(0).now_or_never(), Some(Ok(0)));
}

#[test]
fn called_service_can_fail() {
    let (first, one) = mock::<u32, u32>();
    let (second, other) = mock::<u32, u32>();
    let mut steer = Steer::with_services([first, second], by_index);
    let wakes = WakeCount::new();
    assert!(wakes.poll_ready(&mut steer).is_ready());
    drop(steer.call(1));
    other.fail(Failure("gone"));
    let polled = wakes.poll_ready(&mut steer);
    assert_eq!(polled, Poll::Ready(Err(Error::Service(Failure("gone")))));
    let failed = Error::Failed(Failed::new());
    assert_eq!(wakes.poll_ready(&mut steer), Poll::Ready(Err(failed)));
    assert_eq!(one.calls(), 0);
}

#[test]
fn more_services_than_bits_in_a_word() {
    for n in [1, 63, 64, 65, 128, 200] {
        let (services, all) = switches(n);
        let mut steer = Steer::with_services(services, by_index);
        let wakes = WakeCount::new();
        let mut done = 0;
        while wakes.poll_ready(&mut steer).is_pending() {
            assert!(done < n);
            // In reverse order, the worst case for windows that move forward.
            let window = (done / 64 + 1) * 64;
            let at = window.min(n) - 1 - done % 64;
            all[at as usize].turn_on();
            done += 1;
        }
        assert_eq!(done, n);
        for at in (0..n).rev() {
            assert!(wakes.poll_ready(&mut steer).is_ready());
            let before = polls(&all);
            assert_eq!(steer.call(at).now_or_never(), Some(Ok(1_001 * at)));
            assert!(wakes.poll_ready(&mut steer).is_ready());
            let asked: u32 = polls(&all).iter().sum::<u32>() - before.iter().sum::<u32>();
            assert_eq!(asked, 1);
        }
    }
}

#[test]
fn many_ready_services_are_polled_once_each() {
    for n in [63, 64, 65, 200] {
        let (services, all) = switches(n);
        all.iter().for_each(|shared| shared.turn_on());
        let mut steer = Steer::<_, _, u32, _>::with_services(services, by_index);
        assert!(WakeCount::new().poll_ready(&mut steer).is_ready());
        assert!(polls(&all).iter().all(|polls| *polls == 1));
    }
}

#[test]
fn try_leaves_no_waiter() {
    let (services, all) = switches(2);
    let mut service = LoadShed::new(Steer::with_services(services, by_index));
    let wakes = WakeCount::new();
    all[0].turn_on();
    assert!(wakes.poll_ready(&mut service).is_ready());
    let answer = service.call(0).now_or_never().unwrap();
    assert!(matches!(answer, Err(load_shed::Error::Overloaded(_))));
    all[1].turn_on();
    assert_eq!(wakes.get(), 0);
    // The ready service was asked to give its readiness up, and is polled again.
    assert!(wakes.poll_ready(&mut service).is_ready());
    assert_eq!(polls(&all), [3, 2]);
    assert_eq!(service.call(0).now_or_never(), Some(Ok(0)));
}

/// A permit that one service holds while another is not ready is released.
#[cfg(feature = "std")]
#[test]
fn shed_request_leaves_no_permit() {
    use campanile::limit::concurrency::{ConcurrencyLimit, Semaphore};

    let (free, taken) = (Semaphore::new(1), Semaphore::new(1));
    let echo = service_fn(|n: u32| ready(Ok::<_, Failure>(n)));
    let services =
        [&free, &taken].map(|permits| ConcurrencyLimit::with_semaphore(echo, permits.clone()));
    let wakes = WakeCount::new();
    let mut other = services[1].clone();
    assert!(wakes.poll_ready::<_, u32>(&mut other).is_ready());
    let mut service = LoadShed::new(Steer::with_services(services, by_index));
    assert!(wakes.poll_ready(&mut service).is_ready());
    let shed = Err(load_shed::Error::Overloaded(load_shed::Overloaded::new()));
    assert_eq!(service.call(0).now_or_never(), Some(shed));
    assert_eq!(free.available_permits(), 1);
    drop(other);
    assert_eq!(taken.available_permits(), 1);
    assert!(wakes.poll_ready(&mut service).is_ready());
    assert_eq!(service.call(0).now_or_never(), Some(Ok(0)));
}

/// What keeps a `Steer` while a response is awaited keeps no permit of the services that were not called.
#[cfg(feature = "std")]
#[test]
fn retry_and_call_all_keep_no_other_permit() {
    use campanile::limit::concurrency::{ConcurrencyLimit, Semaphore};
    use campanile::retry::{Policy, Retry};
    use campanile::util::CallAll;
    use futures::{StreamExt, stream};

    #[derive(Clone)]
    struct Once(bool);
    impl<E> Policy<u32, u32, E> for Once {
        type Future = Ready<()>;
        fn retry(&mut self, _: &mut u32, result: &mut Result<u32, E>) -> Option<Ready<()>> {
            (result.is_err() && std::mem::take(&mut self.0)).then(|| ready(()))
        }
        fn clone_request(&mut self, request: &u32) -> Option<u32> {
            Some(*request)
        }
    }

    let (service, mut handle) = mock::<u32, u32>();
    let permits = [(); 2].map(|()| Semaphore::new(1));
    let services = [&permits[0], &permits[1]]
        .map(|permits| ConcurrencyLimit::with_semaphore(service.clone(), permits.clone()));
    let steer = Steer::with_services(services, by_index);
    let free = || [&permits[0], &permits[1]].map(Semaphore::available_permits);

    let mut response = Box::pin(Retry::new(Once(true), steer.clone()).oneshot(0));
    assert_eq!(response.as_mut().now_or_never(), None);
    handle.try_next().unwrap().1.fail(Failure("again"));
    assert_eq!(response.as_mut().now_or_never(), None);
    assert_eq!(free(), [0, 1]);
    handle.try_next().unwrap().1.send(1);
    assert_eq!(response.now_or_never(), Some(Ok(1)));

    let requests = stream::iter([0]).chain(stream::pending());
    let mut responses = Box::pin(CallAll::new(steer, requests));
    assert_eq!(responses.next().now_or_never(), None);
    assert_eq!(free(), [0, 1]);
    handle.try_next().unwrap().1.send(1);
    assert_eq!(responses.next().now_or_never(), Some(Some(Ok(1))));
    assert_eq!(responses.next().now_or_never(), None);
    assert_eq!(free(), [1, 1]);
}

#[test]
fn services_may_be_an_array_slice_or_box() {
    let echo = |name: u32| service_fn(move |n: u32| ready(Ok::<_, Failure>(10 * name + n)));
    let array = Steer::with_services([echo(1), echo(2)], by_index);
    assert_eq!(array.services().len(), 2);
    let mut kept = [echo(3), echo(4)];
    let slice = Steer::with_services(&mut kept[..], by_index);
    assert_eq!(array.oneshot(1).now_or_never(), Some(Ok(21)));
    assert_eq!(slice.oneshot(0).now_or_never(), Some(Ok(30)));
    let boxed = vec![echo(5)].into_boxed_slice();
    let boxed = Steer::with_services(boxed, by_index);
    assert_eq!(boxed.oneshot(0).now_or_never(), Some(Ok(50)));
}

#[test]
fn picker_may_keep_state() {
    struct InTurn(usize);
    impl<S> Picker<S, u32> for InTurn {
        fn pick(&mut self, _: &u32, services: &[S]) -> usize {
            self.0 += 1;
            self.0 % services.len()
        }
    }
    let echo = |name: u32| service_fn(move |n: u32| ready(Ok::<_, Failure>(10 * name + n)));
    let mut by_type = Steer::with_services([echo(0), echo(1)], InTurn(0));
    let mut turn = 0;
    let mut by_closure = Steer::with_services([echo(0), echo(1)], move |_: &u32, _: &[_]| {
        turn += 1;
        turn % 2
    });
    let wakes = WakeCount::new();
    for expected in [10, 0, 10] {
        assert!(wakes.poll_ready(&mut by_type).is_ready());
        assert_eq!(by_type.call(0).now_or_never(), Some(Ok(expected)));
        assert!(wakes.poll_ready(&mut by_closure).is_ready());
        assert_eq!(by_closure.call(0).now_or_never(), Some(Ok(expected)));
    }
}

#[cfg(feature = "alloc")]
#[test]
fn errors_flatten() {
    let error: Error<load_shed::Error<Failure>> =
        Error::Service(load_shed::Error::Overloaded(load_shed::Overloaded::new()));
    assert!(campanile::BoxError::from(error).is::<load_shed::Overloaded>());
    let error: Error<Failure> = Error::NotReady(NotReady::new());
    assert!(campanile::BoxError::from(error).is::<NotReady>());
}

/// The same code against tower and against this crate.
#[cfg(feature = "tower")]
mod parity {
    macro_rules! program {
        ($tower:ident) => {{
            use $tower::steer::{Picker, Steer};
            use $tower::{BoxError, Service, ServiceExt, service_fn, util::BoxService};

            struct Kept<F: Picker<BoxService<u32, u32, BoxError>, u32>> {
                steer: Steer<BoxService<u32, u32, BoxError>, F, u32>,
            }

            futures::executor::block_on(async {
                let even = service_fn(|n: u32| async move { Ok::<_, BoxError>(n) });
                let odd = service_fn(|n: u32| async move { Ok::<_, BoxError>(n * 100) });
                let steer = Steer::new(
                    vec![BoxService::new(even), BoxService::new(odd)],
                    |n: &u32, _: &[_]| (n % 2) as usize,
                );
                let mut kept = Kept { steer };
                let mut answers = Vec::new();
                for n in 1..4 {
                    answers.push(kept.steer.ready().await?.call(n).await?);
                }
                Ok::<_, BoxError>(answers)
            })
        }};
    }

    #[test]
    fn code_for_tower_compiles_against_this() {
        assert_eq!(program!(tower).unwrap(), [100, 2, 300]);
        assert_eq!(program!(campanile).unwrap(), [100, 2, 300]);
    }
}

/// The waiter is woken when the last service becomes ready, whichever that is.
async fn last_ready_service_wakes_the_waiter<H: Host>(rt: On<H>) {
    let (services, mut handles): (Vec<_>, Vec<_>) = (0..3).map(|_| mock::<u32, u32>()).unzip();
    let services: [_; 3] = services.try_into().unwrap();
    let mut steer = Steer::with_services(services, by_index);
    for last in 0..3 {
        handles.iter().for_each(|handle| handle.set_ready(false));
        let mut asked = steer.clone();
        let response = rt.start(async move {
            asked.ready().await.unwrap();
            asked.call(last as u32).await
        });
        until(|| handles.iter().all(common::Handle::is_waited_for)).await;
        for other in [1, 2].map(|n| (last + n) % 3) {
            yield_now().await;
            handles[other].set_ready(true);
        }
        for _ in 0..10 {
            yield_now().await;
        }
        assert!(handles[last].try_next().is_none());
        handles[last].set_ready(true);
        let (request, responder) = handles[last].next().await;
        responder.send(request + 1);
        assert_eq!(response.await.unwrap(), Ok(last as u32 + 1));
    }
    steer.ready().await.unwrap();
}

on_every_runtime! { last_ready_service_wakes_the_waiter }
