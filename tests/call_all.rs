//! `CallAll` and `CallAllUnordered`: their order, the requests in flight, what is polled, and how they end.
#![cfg(feature = "std")]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use campanile::util::call_all::{DEFAULT_CONCURRENCY, InvalidConcurrency};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::util::{CallAll, CallAllUnordered};
use campanile::{Executor, Service, ServiceExt, service_fn};
use common::{Failure, Host, On, WakeCount, mock, on_every_runtime, panics_at, yield_now};
use futures::channel::{mpsc, oneshot};
use futures::stream::{self, FusedStream, Stream, StreamExt};

type Item = Result<u32, Failure>;

/// A service whose responses progress only as the test says.
#[derive(Clone, Default)]
struct Desk(Rc<RefCell<BTreeMap<u32, Entry>>>);

#[derive(Default)]
struct Entry {
    answer: Option<Item>,
    waker: Option<Waker>,
    /// Called or woken since the last poll.
    due: bool,
}

impl Desk {
    /// Stores `answer`, if there is one, and wakes the response.
    fn wake(&self, n: u32, answer: Option<Item>) {
        let waker = {
            let mut entries = self.0.borrow_mut();
            let entry = entries.get_mut(&n).expect("under way");
            entry.answer = answer.or(entry.answer);
            entry.due = true;
            entry.waker.clone()
        };
        waker.expect("was polled").wake();
    }

    fn unanswered(&self) -> Vec<u32> {
        let entries = self.0.borrow();
        let open = entries.iter().filter(|(_, entry)| entry.answer.is_none());
        open.map(|(n, _)| *n).collect()
    }
}

impl Service<u32> for Desk {
    type Response = u32;
    type Error = Failure;
    type Future = AtDesk;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, n: u32) -> AtDesk {
        let due = Entry {
            due: true,
            ..Entry::default()
        };
        assert!(self.0.borrow_mut().insert(n, due).is_none());
        AtDesk(self.clone(), n)
    }
}

struct AtDesk(Desk, u32);

impl Future for AtDesk {
    type Output = Item;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Item> {
        let mut entries = self.0.0.borrow_mut();
        let entry = entries.get_mut(&self.1).expect("is polled while it lives");
        assert!(std::mem::take(&mut entry.due), "polled without a wake-up");
        entry.waker = Some(cx.waker().clone());
        entry.answer.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for AtDesk {
    fn drop(&mut self) {
        assert!(self.0.0.borrow_mut().remove(&self.1).is_some());
    }
}

fn poll<St: Stream + ?Sized>(stream: Pin<&mut St>, wakes: &WakeCount) -> Poll<Option<St::Item>> {
    wakes.enter(|cx| stream.poll_next(cx))
}

/// Answers in random order, with spurious wake-ups in between, and checks each item.
fn against_a_model<St: Stream<Item = Item>>(
    seed: u64,
    ordered: bool,
    concurrency: usize,
    make: impl FnOnce(Desk, mpsc::UnboundedReceiver<u32>) -> St,
) {
    const ALL: u32 = 300;
    let mut rng = SplitMix64::new(seed);
    let desk = Desk::default();
    let (requests, receiver) = mpsc::unbounded();
    let mut requests = Some(requests);
    let mut stream = pin!(make(desk.clone(), receiver));
    let wakes = WakeCount::new();
    let (mut sent, mut given) = (0, 0);
    let mut answered = Vec::new();
    let mut answers = BTreeMap::new();
    let mut seen = usize::MAX;
    loop {
        match rng.next_range(0..4) {
            0 if sent < ALL => {
                let sender = requests.as_ref().unwrap();
                sender.unbounded_send(sent).unwrap();
                sent += 1;
            }
            0 => requests = None,
            1 => {
                for n in desk.unanswered() {
                    match rng.next_range(0..8) {
                        0 => desk.wake(n, None),
                        1..3 => {
                            let answer = match rng.next_range(0..5) {
                                0 => Err(Failure("told to fail")),
                                _ => Ok(n + 1),
                            };
                            desk.wake(n, Some(answer));
                            answered.push(n);
                            answers.insert(n, answer);
                        }
                        _ => {}
                    }
                }
            }
            // Like a task: poll only after a wake-up, and then until pending.
            _ if wakes.get() != seen => loop {
                seen = wakes.get();
                match poll(stream.as_mut(), &wakes) {
                    Poll::Ready(Some(item)) => {
                        let expected = match ordered {
                            true => given,
                            false => {
                                let found = answered.iter().position(|n| answers[n] == item);
                                answered.swap_remove(found.expect("one of the answers"))
                            }
                        };
                        assert_eq!(Some(item), answers.remove(&expected));
                        given += 1;
                    }
                    Poll::Ready(None) => {
                        assert_eq!((given, sent), (ALL, ALL));
                        assert!(requests.is_none());
                        return;
                    }
                    Poll::Pending => {
                        let under_way = desk.0.borrow().len();
                        let room = concurrency.min((sent - given) as usize);
                        assert_eq!(under_way + answers.len(), room, "all the room is used");
                        assert!(ordered || answers.is_empty(), "all answers were given");
                        assert!(!ordered || !answers.contains_key(&given), "its turn");
                        break;
                    }
                }
            },
            _ => {}
        }
    }
}

#[test]
fn responses_keep_request_order() {
    for seed in 0..20 {
        for n in [1, 2, 7, 100] {
            against_a_model(seed, true, n, |desk, requests| {
                CallAll::new(desk, requests).concurrency(n)
            });
        }
    }
}

#[test]
fn unordered_responses_come_at_once() {
    for seed in 0..20 {
        for n in [1, 2, 7, 100] {
            against_a_model(seed, false, n, |desk, requests| {
                CallAllUnordered::new(desk, requests).concurrency(n)
            });
        }
    }
}

#[test]
fn requests_in_flight_are_bounded() {
    assert_eq!(DEFAULT_CONCURRENCY, 1024);
    for (concurrency, expected) in [(None, 1024), (Some(3), 3), (Some(2000), 2000)] {
        let desk = Desk::default();
        let mut stream = desk.clone().call_all(stream::iter(0..));
        if let Some(n) = concurrency {
            stream = stream.concurrency(n);
        }
        let mut stream = pin!(stream);
        let wakes = WakeCount::new();
        // One poll calls a bounded number, until all that fit are in flight.
        for _ in 0..expected / 100 {
            assert!(poll(stream.as_mut(), &wakes).is_pending());
        }
        for _ in 0..3 {
            assert!(poll(stream.as_mut(), &wakes).is_pending());
            assert_eq!(desk.0.borrow().len(), expected);
        }
        // A response that waits for its turn counts towards the bound.
        desk.wake(1, Some(Ok(1)));
        assert!(poll(stream.as_mut(), &wakes).is_pending());
        assert_eq!(desk.0.borrow().len(), expected - 1);
        desk.wake(0, Some(Ok(0)));
        assert_eq!(poll(stream.as_mut(), &wakes), Poll::Ready(Some(Ok(0))));
        assert_eq!(poll(stream.as_mut(), &wakes), Poll::Ready(Some(Ok(1))));
        assert!(poll(stream.as_mut(), &wakes).is_pending());
        assert_eq!(desk.0.borrow().len(), expected);
    }
}

#[test]
fn endless_ready_stream_yields() {
    let ready = || service_fn(|n: u32| std::future::ready(Ok::<_, Infallible>(n)));
    let ordered = pin!(ready().call_all(stream::repeat(1)));
    let unordered = pin!(ready().call_all(stream::repeat(1)).unordered());
    let streams: [Pin<&mut dyn Stream<Item = Result<u32, Infallible>>>; 2] = [ordered, unordered];
    for mut stream in streams {
        let wakes = WakeCount::new();
        for round in 1..=3 {
            let mut items = 0;
            while poll(stream.as_mut(), &wakes).is_ready() {
                items += 1;
                assert!(items <= 128, "it does not yield");
            }
            assert!(items >= 32, "{items}");
            assert_eq!(wakes.get(), round, "it wakes itself to go on");
        }
    }
}

#[test]
fn many_simultaneous_wakes_yield() {
    let desk = Desk::default();
    let calls = desk.clone().call_all(stream::iter(0..1_000));
    let mut stream = pin!(calls.concurrency(1_000));
    let wakes = WakeCount::new();
    let not_polled = || {
        let entries = desk.0.borrow();
        entries.values().filter(|entry| entry.due).count() + 1_000 - entries.len()
    };
    for called in [0, 1_000] {
        assert_eq!(desk.0.borrow().len(), called);
        (0..called as u32).for_each(|n| desk.wake(n, None));
        let mut left = 1_000;
        while left > 0 {
            let woken = wakes.get();
            assert!(poll(stream.as_mut(), &wakes).is_pending());
            assert!(left - not_polled() <= 128, "it does not yield");
            left = not_polled();
            assert!(wakes.get() > woken || left == 0, "it wakes itself to go on");
        }
    }
}

#[test]
fn self_waking_response_yields() {
    let service = service_fn(|()| {
        let mut polls = 0;
        futures::future::poll_fn(move |cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            match polls {
                1..10 => Poll::Pending,
                polls => Poll::Ready(Ok::<u32, Infallible>(polls)),
            }
        })
    });
    let mut stream = pin!(service.call_all(stream::iter([()])));
    let wakes = WakeCount::new();
    for round in 1..10 {
        assert!(poll(stream.as_mut(), &wakes).is_pending());
        assert_eq!(wakes.get(), round);
    }
    assert_eq!(poll(stream.as_mut(), &wakes), Poll::Ready(Some(Ok(10))));
    assert_eq!(poll(stream.as_mut(), &wakes), Poll::Ready(None));
}

#[test]
fn readiness_error_ends_the_stream() {
    let failure = Failure("no more");
    for ordered in [true, false] {
        let (service, mut handle) = mock::<u32, u32>();
        let (requests, receiver) = mpsc::unbounded();
        let send = |n| requests.unbounded_send(n).unwrap();
        let calls = service.call_all(receiver);
        let mut stream: Pin<Box<dyn FusedStream<Item = Item>>> = match ordered {
            true => Box::pin(calls),
            false => Box::pin(calls.unordered()),
        };
        let wakes = WakeCount::new();
        let mut next = || poll(stream.as_mut(), &wakes);
        [0, 1].into_iter().for_each(send);
        assert!(next().is_pending());
        let [first, second] = [(); 2].map(|()| handle.try_next().unwrap().1);
        handle.fail(failure);
        [2, 3].into_iter().for_each(send);
        if ordered {
            assert!(next().is_pending(), "after the responses");
            second.send(2);
            assert!(next().is_pending());
            first.send(1);
            assert_eq!(next(), Poll::Ready(Some(Ok(1))));
            assert_eq!(next(), Poll::Ready(Some(Ok(2))));
            assert_eq!(next(), Poll::Ready(Some(Err(failure))));
        } else {
            assert_eq!(next(), Poll::Ready(Some(Err(failure))));
            assert!(next().is_pending());
            second.send(2);
            assert_eq!(next(), Poll::Ready(Some(Ok(2))));
            first.send(1);
            assert_eq!(next(), Poll::Ready(Some(Ok(1))));
        }
        for _ in 0..3 {
            assert_eq!(next(), Poll::Ready(None));
        }
        assert!(stream.is_terminated());
        assert_eq!(handle.calls(), 2);
    }
}

#[test]
fn responses_progress_while_a_request_waits() {
    let (service, mut handle) = mock::<u32, u32>();
    let mut stream = pin!(service.call_all(stream::iter(0..2)));
    let wakes = WakeCount::new();
    handle.set_ready(false);
    assert!(poll(stream.as_mut(), &wakes).is_pending());
    assert_eq!(
        stream.size_hint(),
        (1, Some(2)),
        "if readiness fails, an error"
    );
    handle.set_ready(true);
    assert_eq!(wakes.get(), 1);
    assert!(poll(stream.as_mut(), &wakes).is_pending());
    assert_eq!(handle.calls(), 2);
    assert_eq!(stream.size_hint(), (2, Some(2)));
    for n in 0..2 {
        assert_eq!(
            handle.try_next().map(|(n, answer)| (n, answer.send(n)).0),
            Some(n)
        );
        assert_eq!(poll(stream.as_mut(), &wakes), Poll::Ready(Some(Ok(n))));
    }
    assert_eq!(stream.size_hint(), (0, Some(0)));
    assert_eq!(poll(stream.as_mut(), &wakes), Poll::Ready(None));
}

#[test]
fn ended_requests_are_not_polled() {
    let mut over = false;
    let requests = stream::poll_fn(move |_| {
        assert!(!std::mem::replace(&mut over, true), "polled after its end");
        Poll::Ready(None::<u32>)
    });
    let mut stream = pin!(Desk::default().call_all(requests));
    assert!(!stream.is_terminated());
    for _ in 0..3 {
        assert_eq!(poll(stream.as_mut(), &WakeCount::new()), Poll::Ready(None));
        assert!(stream.is_terminated());
    }
}

#[test]
fn service_can_be_taken_back_at_any_time() {
    let wakes = WakeCount::new();
    let (service, mut handle) = mock::<u32, u32>();
    let mut stream = service.call_all(stream::iter(0..)).concurrency(2);
    assert!(poll(Pin::new(&mut stream), &wakes).is_pending());
    assert!(Pin::new(&mut stream).take_service().is_some());
    assert!(Pin::new(&mut stream).take_service().is_none());
    for n in 0..2 {
        handle.try_next().unwrap().1.send(n);
        assert_eq!(
            poll(Pin::new(&mut stream), &wakes),
            Poll::Ready(Some(Ok(n)))
        );
    }
    assert_eq!(poll(Pin::new(&mut stream), &wakes), Poll::Ready(None));
    assert!(stream.into_inner().is_none());

    let stream = Desk::default().call_all(stream::iter(0..)).unordered();
    assert!(stream.into_inner().is_some());
}

#[test]
fn order_can_be_dropped_at_any_time() {
    let desk = Desk::default();
    let mut stream = desk.clone().call_all(stream::iter(0..4));
    let wakes = WakeCount::new();
    assert!(poll(Pin::new(&mut stream), &wakes).is_pending());
    desk.wake(3, Some(Ok(3)));
    desk.wake(1, Some(Ok(1)));
    assert!(poll(Pin::new(&mut stream), &wakes).is_pending());
    let mut stream = stream.unordered();
    let mut waited = [(); 2].map(|()| match poll(Pin::new(&mut stream), &wakes) {
        Poll::Ready(Some(Ok(n))) => n,
        other => panic!("{other:?}"),
    });
    waited.sort_unstable();
    assert_eq!(waited, [1, 3]);
    assert!(poll(Pin::new(&mut stream), &wakes).is_pending());
    for n in [2, 0] {
        desk.wake(n, Some(Ok(n)));
        assert_eq!(
            poll(Pin::new(&mut stream), &wakes),
            Poll::Ready(Some(Ok(n)))
        );
    }
    assert_eq!(poll(Pin::new(&mut stream), &wakes), Poll::Ready(None));
}

#[test]
fn panicking_response_spares_others() {
    fn check<St: Stream<Item = Result<u32, Infallible>>>(responses: St) {
        let mut responses = pin!(responses);
        let wakes = WakeCount::new();
        let (mut found, mut panics) = (Vec::new(), 0);
        for _ in 0..20 {
            let polled = catch_unwind(AssertUnwindSafe(|| poll(responses.as_mut(), &wakes)));
            match polled {
                Err(_) => panics += 1,
                Ok(Poll::Ready(Some(response))) => found.push(response.unwrap()),
                Ok(Poll::Ready(None)) => break,
                Ok(Poll::Pending) => {}
            }
        }
        assert_eq!((found, panics), (vec![0, 2, 3, 4], 1));
        assert_eq!(poll(responses, &wakes), Poll::Ready(None));
    }

    let service = service_fn(async |n: u32| {
        if n == 1 {
            resume_unwind(Box::new("a response"));
        }
        Ok(n)
    });
    check(service.call_all(stream::iter(0..5)).concurrency(2));
    check(
        service
            .call_all(stream::iter(0..5))
            .concurrency(2)
            .unordered(),
    );
}

#[test]
fn last_polling_task_is_woken() {
    let desk = Desk::default();
    let mut responses = pin!(desk.clone().call_all(stream::iter([1])));
    let (before, now) = (WakeCount::new(), WakeCount::new());
    for wakes in [&before, &now] {
        assert!(poll(responses.as_mut(), wakes).is_pending());
    }
    desk.wake(1, Some(Ok(7)));
    assert_eq!((before.get(), now.get()), (0, 1));
    assert_eq!(poll(responses, &now), Poll::Ready(Some(Ok(7))));
}

#[test]
fn dropping_the_stream_drops_in_flight() {
    let desk = Desk::default();
    let responses = desk.clone().call_all(stream::iter(0..)).concurrency(64);
    let mut stream = Box::pin(responses.unordered());
    assert!(poll(stream.as_mut(), &WakeCount::new()).is_pending());
    assert_eq!(desk.0.borrow().len(), 64);
    let wakers: Vec<_> = (desk.0.borrow().values())
        .filter_map(|entry| entry.waker.clone())
        .collect();
    drop(stream);
    assert!(desk.0.borrow().is_empty());
    // Leftover wakers keep nothing alive either.
    wakers.into_iter().for_each(Waker::wake);
}

#[test]
fn stale_waker_is_harmless() {
    struct Task;
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }

    // Hands out its waker, and is ready on the second poll.
    let wakers = Rc::new(RefCell::new(Vec::new()));
    let polls = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|n: u32| {
        let (wakers, polls) = (wakers.clone(), polls.clone());
        let mut first = true;
        futures::future::poll_fn(move |cx| {
            polls.borrow_mut().push(n);
            wakers.borrow_mut().push(cx.waker().clone());
            if std::mem::take(&mut first) {
                return Poll::Pending;
            }
            Poll::Ready(Ok::<_, Infallible>(n))
        })
    });
    let task = Arc::new(Task);
    let waker = Waker::from(task.clone());
    let mut cx = Context::from_waker(&waker);
    let mut stream = Box::pin(service.call_all(stream::iter(0..3)).concurrency(1));
    for n in 0..3 {
        // The wakers of earlier responses, whose slots now belong to others.
        wakers.borrow().iter().for_each(Waker::wake_by_ref);
        let mut polled = stream.as_mut().poll_next(&mut cx);
        while polled.is_pending() {
            assert!(polls.borrow().iter().filter(|polled| **polled == n).count() <= 2);
            wakers.borrow().iter().for_each(Waker::wake_by_ref);
            polled = stream.as_mut().poll_next(&mut cx);
        }
        assert_eq!(polled, Poll::Ready(Some(Ok(n))));
    }
    assert_eq!(stream.as_mut().poll_next(&mut cx), Poll::Ready(None));
    drop(stream);
    drop(waker);
    assert_eq!(Arc::strong_count(&task), 1);
    wakers.borrow().iter().for_each(Waker::wake_by_ref);
}

/// Wakes another response while it is being woken.
#[test]
fn nothing_is_woken_under_a_lock() {
    #[derive(Default)]
    struct Busy(Mutex<Vec<Waker>>);
    impl Wake for Busy {
        fn wake(self: Arc<Self>) {
            let others = std::mem::take(&mut *self.0.lock().unwrap());
            others.into_iter().for_each(Waker::wake);
        }
    }

    let desk = Desk::default();
    let mut stream = pin!(desk.clone().call_all(stream::iter(0..3)));
    let busy = Arc::new(Busy::default());
    let waker = Waker::from(busy.clone());
    let mut cx = Context::from_waker(&waker);
    assert!(stream.as_mut().poll_next(&mut cx).is_pending());
    let wakers = |n: u32| desk.0.borrow()[&n].waker.clone().unwrap();
    *busy.0.lock().unwrap() = vec![wakers(1), wakers(2)];
    for n in [1, 2] {
        desk.0.borrow_mut().get_mut(&n).unwrap().due = true;
    }
    desk.wake(0, Some(Ok(0)));
    assert_eq!(stream.as_mut().poll_next(&mut cx), Poll::Ready(Some(Ok(0))));
    assert!(stream.as_mut().poll_next(&mut cx).is_pending());
    assert!(desk.0.borrow().values().all(|entry| !entry.due));
}

#[test]
fn a_concurrency_of_0_is_refused() {
    let calls = || Desk::default().call_all(stream::iter(0..));
    let error = calls().try_concurrency(0).err().unwrap();
    assert_eq!(error, InvalidConcurrency::new());
    assert!(error.to_string().contains("is 0"), "{error}");
    let act = || drop(calls().unordered().concurrency(0));
    assert_eq!(panics_at(act), (file!().to_owned(), line!() - 1));
}

async fn responses_of_tasks_come_in_order<H: Host>(rt: On<H>) {
    let service = service_fn(move |n: u32| {
        let (answer, response) = oneshot::channel();
        rt.execute(async move {
            for _ in 0..n % 7 {
                yield_now().await;
            }
            let _ = answer.send(n);
        });
        response
    });
    let ordered = service
        .clone()
        .call_all(stream::iter(0..200))
        .concurrency(8);
    let answers: Vec<_> = ordered.map(Result::unwrap).collect().await;
    assert!(answers.into_iter().eq(0..200));

    let unordered = service.call_all(stream::iter(0..200)).unordered();
    let mut answers: Vec<_> = unordered.map(Result::unwrap).collect().await;
    answers.sort_unstable();
    assert!(answers.into_iter().eq(0..200));
}

on_every_runtime! { responses_of_tasks_come_in_order }
