//! The test tools: a runtime with virtual time, a mock service, a probe and faults.
#![cfg(feature = "testing")]

mod common;

use core::cell::{Cell, RefCell};
use core::future::{pending, poll_fn, ready as done};
use core::task::{Poll, Waker};
use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use campanile::testing::{
    self, Event, JoinHandle, Runtime, ServiceBuilder, Sim, Stuck, Trace, What, idle, mock, now,
    sleep, spawn, spawn_named, yield_now,
};
use campanile::{Executor, Instant, ServiceExt, Timer, service_fn};
use common::{WakeCount, panics_at, ready};
use futures::channel::oneshot;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

const fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

/// Ten tasks that sleep, yield and wake each other. Returns which task ran when.
async fn crowd() -> Vec<(u64, usize)> {
    let order = Rc::new(RefCell::new(Vec::new()));
    let tasks: Vec<JoinHandle<()>> = (0..10)
        .map(|n| {
            let order = order.clone();
            spawn(async move {
                for round in 0..5 {
                    sleep(SECOND * (round % 3)).await;
                    yield_now().await;
                    order.borrow_mut().push((now().as_nanos(), n));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await;
    }
    order.take()
}

fn run(seed: u64) -> (Vec<(u64, usize)>, Trace) {
    let runtime = Runtime::new(seed).recorded();
    let order = runtime.block_on(crowd()).unwrap();
    (order, runtime.trace())
}

#[test]
fn same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first, second);
        assert_eq!(first.1.events(), second.1.events());
        assert_eq!(first.1.len(), first.1.events().len() as u64);
    }
}

#[test]
fn other_seed_gives_another_run() {
    let runs: Vec<_> = (0..20).map(run).collect();
    for (n, (order, trace)) in runs.iter().enumerate() {
        for (other_order, other_trace) in &runs[..n] {
            assert_ne!(order, other_order);
            assert_ne!(trace, other_trace);
        }
    }
}

#[test]
fn trace_without_events_can_be_compared() {
    let runtime = Runtime::new(3);
    runtime.block_on(crowd()).unwrap();
    assert!(runtime.trace().events().is_empty());
    assert_eq!(runtime.trace(), run(3).1);
}

#[test]
fn trace_describes_the_run() {
    let runtime = Runtime::new(0).recorded();
    runtime.block_on(async { sleep(SECOND).await }).unwrap();
    let events = runtime.trace();
    let expected = [
        (at(0), What::Wake(0)),
        (at(0), What::Poll(0)),
        (at(1), What::Fire(at(1))),
        (at(1), What::Wake(0)),
        (at(1), What::Poll(0)),
        (at(1), What::End(0)),
    ]
    .map(|(at, what)| Event { at, what });
    assert_eq!(events.events(), expected);
    assert!(events.to_string().ends_with("1s  poll 0\n1s  end 0\n"));
}

#[test]
fn time_jumps_once_all_tasks_wait() {
    let runtime = Runtime::new(0);
    assert_eq!(runtime.now(), at(0));
    runtime
        .block_on(async {
            for _ in 0..100 {
                yield_now().await;
            }
            assert_eq!(now(), at(0));
            sleep(HOUR).await;
            assert_eq!(now(), at(3600));
            // A past deadline is ready at once.
            Sim.sleep_until(at(3600)).await;
            Sim.sleep_until(at(1)).await;
            sleep(Duration::ZERO).await;
            assert_eq!(now(), at(3600));
        })
        .unwrap();
    assert_eq!(runtime.elapsed(), HOUR);
    // The next run continues at the same time.
    runtime.block_on(async { sleep(HOUR).await }).unwrap();
    assert_eq!(runtime.elapsed(), 2 * HOUR);
}

#[test]
fn deadlines_pass_in_order() {
    for seed in 0..20 {
        let runtime = Runtime::new(seed);
        let order = Rc::new(RefCell::new(Vec::new()));
        for n in [3, 1, 4, 1, 5, 9, 2, 6] {
            let order = order.clone();
            drop(runtime.spawn(async move {
                sleep(SECOND * n).await;
                order.borrow_mut().push(n);
            }));
        }
        runtime.block_on(async { sleep(HOUR).await }).unwrap();
        assert_eq!(order.take(), [1, 1, 2, 3, 4, 5, 6, 9]);
        assert_eq!(runtime.tasks(), 0);
    }
}

#[test]
fn manual_advance_wakes_in_deadline_order() {
    for seed in 0..20 {
        let runtime = Runtime::new(seed).recorded();
        let seen = Rc::new(RefCell::new(Vec::new()));
        let result = runtime.block_on(async {
            for n in 1..4 {
                let seen = seen.clone();
                drop(spawn(async move {
                    sleep(SECOND * n).await;
                    yield_now().await;
                    seen.borrow_mut().push((n, now()));
                }));
            }
            idle().await;
            testing::advance(SECOND * 2).await;
            seen.borrow_mut().sort_unstable_by_key(|(n, _)| *n);
            assert_eq!(*seen.borrow(), [(1, at(2)), (2, at(2))]);
        });
        result.unwrap();
        let trace = runtime.trace();
        let fired = trace.events().iter().filter_map(|event| match event.what {
            What::Fire(deadline) => Some(deadline),
            _ => None,
        });
        assert!(fired.eq([at(1), at(2)]));
    }
}

#[test]
fn idle_waits_until_all_others_rest() {
    for seed in 0..20 {
        let result = Runtime::new(seed).block_on(async {
            let left = Rc::new(Cell::new(50));
            let count = left.clone();
            let worker = spawn(async move {
                while count.get() > 0 {
                    yield_now().await;
                    count.set(count.get() - 1);
                }
                pending::<()>().await;
            });
            let woken = Cell::new(0);
            let mut other = Box::pin(async {
                for _ in 0..10 {
                    yield_now().await;
                    woken.set(woken.get() + 1);
                }
            });
            let mut idle = idle();
            poll_fn(|cx| {
                let _ = woken.get() < 10 && other.as_mut().poll(cx).is_ready();
                std::pin::Pin::new(&mut idle).poll(cx)
            })
            .await;
            assert_eq!((left.get(), now()), (0, at(0)));
            drop(worker);
        });
        result.unwrap();
    }
}

#[test]
fn lost_wake_up_is_reported_as_a_deadlock() {
    let runtime = Runtime::new(0);
    let (send, receive) = oneshot::channel::<()>();
    let wait = async {
        sleep(SECOND).await;
        receive.await
    };
    let (line, main) = (line!() + 1, line!() + 6);
    let consumer = runtime.enter(|| spawn_named("consumer", wait));
    drop(runtime.spawn(async move {
        sleep(3 * SECOND).await;
        std::mem::forget(send);
    }));
    let result = runtime.block_on(async { consumer.await.unwrap() });
    let Err(Stuck::Deadlock(deadlock)) = result else {
        panic!("{result:?}");
    };
    assert_eq!(deadlock.at(), at(3));
    let [consumer, block_on] = deadlock.tasks() else {
        panic!("{deadlock}");
    };
    assert_eq!(consumer.name(), Some("consumer"));
    assert_eq!(block_on.name(), None);
    let lines = [consumer, block_on].map(|task| task.location().line());
    assert_eq!(lines, [line, main]);
    assert_eq!([consumer.since(), block_on.since()], [at(1), at(0)]);
    let message = deadlock.to_string();
    for part in [
        "deadlock at 3s",
        "`consumer`",
        file!(),
        "last polled at 0ns",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let unwrapped = catch_unwind(|| Runtime::new(0).block_on(pending::<()>()).unwrap());
    let panic = unwrapped.unwrap_err().downcast::<String>().unwrap();
    assert!(panic.contains("deadlock at 0ns"), "{panic}");
}

#[test]
fn deadlock_names_the_type_and_its_line() {
    let runtime = Runtime::new(0);
    let inner = service_fn(|_: u32| pending::<Result<u32, u8>>());
    let buffer = runtime.enter(|| testing::buffer::Buffer::new(inner, 1));
    let line = line!() - 1;
    let Err(Stuck::Deadlock(deadlock)) = runtime.block_on(pending::<()>()) else {
        panic!("it is no deadlock");
    };
    let worker = &deadlock.tasks()[0];
    assert_eq!(worker.name(), Some("campanile::buffer::worker::Worker"));
    let location = worker.location();
    assert_eq!((location.file(), location.line()), (file!(), line));
    drop(buffer);
}

#[test]
fn endless_sleep_hides_no_deadlock() {
    for forever in [Duration::MAX, Duration::from_nanos(u64::MAX)] {
        let runtime = Runtime::new(0);
        let result = runtime.block_on(async {
            sleep(SECOND).await;
            sleep(forever).await;
        });
        assert!(matches!(result, Err(Stuck::Deadlock(deadlock)) if deadlock.at() == at(1)));
        assert_eq!(runtime.elapsed(), SECOND);
    }
}

#[test]
fn dropped_deadline_moves_no_time() {
    let runtime = Runtime::new(0);
    let (outside, inside) = runtime.enter(|| {
        let wakes = WakeCount::new();
        let mut sleeps = (sleep(HOUR), sleep(2 * HOUR));
        assert!(wakes.poll(&mut sleeps.0).is_pending());
        assert!(wakes.poll(&mut sleeps.1).is_pending());
        sleeps
    });
    assert_eq!(runtime.deadlines(), 2);
    // Dropped on another thread outside any runtime, and inside another runtime.
    std::thread::spawn(move || drop(outside)).join().unwrap();
    let _ = Runtime::new(1).block_on(async move { drop(inside) });
    assert_eq!(runtime.deadlines(), 0);
    let result = runtime.block_on(pending::<()>());
    assert!(matches!(result, Err(Stuck::Deadlock(deadlock)) if deadlock.at() == at(0)));
}

#[test]
fn sleep_moves_to_another_runtime() {
    let mut sleep = Sim.sleep_until(at(5));
    let first = Runtime::new(0);
    first.enter(|| assert!(WakeCount::new().poll(&mut sleep).is_pending()));
    let second = Runtime::new(0);
    second.enter(|| assert!(WakeCount::new().poll(&mut sleep).is_pending()));
    assert_eq!((first.deadlines(), second.deadlines()), (0, 1));
    second.block_on(&mut sleep).unwrap();
    assert_eq!(second.elapsed(), 5 * SECOND);
    assert!(first.block_on(pending::<()>()).is_err());
    assert_eq!(first.elapsed(), Duration::ZERO);
}

#[test]
fn alarm_is_reset_in_place() {
    let runtime = Runtime::new(0);
    let result = runtime.block_on(async {
        let mut alarm = Sim.alarm_until(Instant::MAX);
        let wakes = WakeCount::new();
        for (deadline, moment) in [(5, 5), (3, 5), (7, 7)] {
            Sim.reset(&mut alarm, at(deadline + 100));
            assert!(wakes.poll(&mut alarm).is_pending());
            assert_eq!(runtime.deadlines(), 1);
            Sim.reset(&mut alarm, at(deadline));
            assert_eq!(runtime.deadlines(), 0);
            assert_eq!(alarm.deadline(), at(deadline));
            (&mut alarm).await;
            assert_eq!(now(), at(moment));
        }
        assert_eq!(wakes.get(), 0);
    });
    result.unwrap();
}

#[test]
fn busy_loop_is_a_livelock() {
    let runtime = Runtime::new(0).polls_per_moment(1000);
    let quiet = runtime.spawn(pending::<()>());
    let result = runtime.block_on(async {
        sleep(SECOND).await;
        loop {
            yield_now().await;
        }
    });
    let Err(Stuck::Livelock(livelock)) = result else {
        panic!("{result:?}");
    };
    assert_eq!((livelock.at(), livelock.polls()), (at(1), 1000));
    assert_eq!(livelock.tasks().len(), 1, "only those that are awake");
    let message = livelock.to_string();
    assert!(message.contains("livelock at 1s: 1000 polls"), "{message}");
    // The runtime stays usable, and a loop in which time advances is no livelock.
    let result = runtime.block_on(async {
        for _ in 0..10_000 {
            sleep(Duration::from_nanos(1)).await;
        }
    });
    assert_eq!(result, Ok(()));
    drop(quiet);
}

#[test]
fn repeated_wakes_cause_one_poll() {
    let runtime = Runtime::new(0);
    let polls = Rc::new(Cell::new(0));
    let count = polls.clone();
    let task = runtime.spawn(poll_fn(move |cx| {
        if count.replace(count.get() + 1) == 0 {
            for _ in 0..10 {
                cx.waker().wake_by_ref();
                let waker = cx.waker().clone();
                waker.wake();
            }
        }
        Poll::<()>::Pending
    }));
    runtime.block_on(idle()).unwrap();
    assert_eq!(polls.get(), 2);
    drop(task);
}

#[test]
fn stale_waker_spares_the_next_task() {
    for awake_when_it_ends in [true, false] {
        let runtime = Runtime::new(0).recorded();
        let kept = Rc::new(RefCell::new(None::<Waker>));
        let keep = kept.clone();
        drop(runtime.spawn(poll_fn(move |cx| {
            if awake_when_it_ends {
                cx.waker().wake_by_ref();
            }
            *keep.borrow_mut() = Some(cx.waker().clone());
            Poll::Ready(())
        })));
        let polls = Rc::new(Cell::new(0));
        let count = polls.clone();
        let result = runtime.block_on(async {
            while runtime.tasks() > 0 {
                yield_now().await;
            }
            drop(spawn(poll_fn(move |_| {
                count.set(count.get() + 1);
                Poll::<()>::Pending
            })));
            idle().await;
            let before = runtime.trace().len();
            kept.take().unwrap().wake();
            assert_eq!(runtime.trace().len(), before);
            idle().await;
        });
        result.unwrap();
        assert_eq!(polls.get(), 1);
    }
}

#[test]
fn wakers_work_on_other_threads() {
    let runtime = Runtime::new(0);
    let kept = Arc::new(Mutex::new(None::<Waker>));
    let keep = kept.clone();
    let woken = Cell::new(false);
    let result = runtime.block_on(poll_fn(|cx| {
        *keep.lock().unwrap() = Some(cx.waker().clone());
        if woken.replace(true) {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        std::thread::spawn(move || waker.wake()).join().unwrap();
        Poll::Pending
    }));
    result.unwrap();
    let main = kept.lock().unwrap().take().unwrap();
    main.wake_by_ref();
    runtime.block_on(yield_now()).unwrap();
    drop(runtime);
    main.wake();
}

/// Records the time when it is dropped, and passes the remaining records to a new task.
struct Guard(Vec<Rc<Cell<Option<Instant>>>>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(dropped) = self.0.pop() {
            dropped.set(Some(now()));
            let next = Guard(std::mem::take(&mut self.0));
            Sim.execute(async move {
                let _next = next;
                panic!("there is nobody to run this");
            });
        }
    }
}

#[test]
fn tasks_are_dropped_inside_their_runtime() {
    let dropped = [(); 2].map(|()| Rc::new(Cell::new(None)));
    let guard = Guard(dropped.to_vec());
    let runtime = Runtime::new(0);
    // Its slot is free and comes before the next task's.
    let first = runtime.spawn(done(()));
    drop(runtime.spawn(async move {
        let _guard = guard;
        sleep(HOUR).await;
    }));
    runtime.block_on(first).unwrap();
    runtime.block_on(async { sleep(SECOND).await }).unwrap();
    assert_eq!(runtime.tasks(), 1);
    drop(runtime);
    for dropped in dropped {
        assert_eq!(dropped.get(), Some(at(1)));
        assert_eq!(Rc::strong_count(&dropped), 1);
    }
}

#[test]
fn panic_in_a_test_task_reaches_block_on() {
    let runtime = Runtime::new(0).recorded();
    let other = runtime.spawn(async {
        sleep(SECOND).await;
        7
    });
    drop(runtime.spawn(async { panic!("on purpose") }));
    let panicked = catch_unwind(AssertUnwindSafe(|| runtime.block_on(pending::<()>())));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"on purpose"));
    let is_panic = |event: &Event| matches!(event.what, What::Panic(_));
    assert!(runtime.trace().events().iter().any(is_panic));
    assert_eq!(runtime.block_on(other), Ok(7));
    assert_eq!(runtime.tasks(), 0);

    let main = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async { panic!("in main") })
    }));
    assert!(main.is_err());
    assert_eq!(runtime.block_on(done(1)), Ok(1));
}

#[test]
fn panic_in_a_middleware_task_is_contained() {
    let runtime = Runtime::new(0);
    let result = runtime.block_on(async {
        Sim.execute(async { panic!("on purpose") });
        sleep(SECOND).await;
        1
    });
    assert_eq!(result, Ok(1));
    assert_eq!(runtime.tasks(), 0);
}

#[test]
fn use_outside_a_runtime_panics() {
    assert_eq!(now(), at(0));
    drop(Sim.sleep_until(at(1)));
    drop(testing::advance(SECOND));
    let here = |line| (file!().to_owned(), line);
    assert_eq!(panics_at(|| drop(sleep(SECOND))), here(line!()));
    assert_eq!(panics_at(|| drop(Sim.sleep(SECOND))), here(line!()));
    assert_eq!(panics_at(|| Sim.execute(done(()))), here(line!()));
    assert_eq!(panics_at(|| drop(spawn(done(())))), here(line!()));
    let mut sleep = Sim.sleep_until(at(1));
    panics_at(move || _ = WakeCount::new().poll(&mut sleep));
    let runtime = Runtime::new(0);
    let nested = || drop(runtime.block_on(async { runtime.block_on(done(())) }));
    assert_eq!(panics_at(nested), here(line!() - 1));
    assert_eq!(runtime.block_on(done(1)), Ok(1));
}

#[test]
fn runtimes_may_be_nested() {
    let outer = Runtime::new(0);
    let result = outer.block_on(async {
        sleep(SECOND).await;
        let inner = Runtime::new(0);
        inner.block_on(async { sleep(HOUR).await }).unwrap();
        assert_eq!(inner.elapsed(), HOUR);
        now()
    });
    assert_eq!(result, Ok(at(1)));
}

#[test]
fn ended_tasks_free_their_slots() {
    let runtime = Runtime::new(0);
    let result = runtime.block_on(async {
        let mut sum = 0;
        for round in 0..100 {
            let tasks: Vec<_> = (0..100_u32)
                .map(|n| {
                    spawn(async move {
                        sleep(SECOND * (n % 7)).await;
                        n + round
                    })
                })
                .collect();
            for task in tasks {
                sum += task.await;
            }
        }
        sum
    });
    assert_eq!(result, Ok((0..100).map(|round| 4950 + 100 * round).sum()));
    assert_eq!(runtime.tasks(), 0);
}

#[test]
fn stack_of_test_tools_needs_no_send() {
    let greeting = Rc::new("hello");
    let inner = service_fn(move |n: u32| {
        let greeting = greeting.clone();
        async move {
            sleep(SECOND * n).await;
            Ok::<_, std::io::Error>(*greeting)
        }
    });
    let runtime = Runtime::new(0);
    let result = runtime.block_on(async {
        let service = ServiceBuilder::new()
            .buffer(4)
            .rate_limit(1, SECOND)
            .timeout(SECOND * 10)
            .service(inner);
        let slow = service.clone().oneshot(20).await.unwrap_err();
        assert_eq!(slow.to_string(), "request timed out");
        service.oneshot(5).await.unwrap()
    });
    assert_eq!(result, Ok("hello"));
    assert_eq!(runtime.elapsed(), SECOND * 15);
}

/// Behaviour that users of tower-test rely on.
mod mocks {
    use super::*;
    use campanile::BoxError;
    use campanile::limit::ConcurrencyLimitLayer;
    use campanile::load_shed::LoadShedLayer;
    use campanile::testing::assert_request_eq;
    use campanile::testing::mock::{Closed, Handle, Mock, Spawn};
    use futures::FutureExt;

    fn request<T: std::fmt::Debug, U, E>(
        handle: &mut Handle<T, U, E>,
    ) -> (T, mock::SendResponse<U, E>) {
        ready(handle.poll_request()).unwrap()
    }

    #[test]
    fn requests_are_answered_in_any_order() {
        let (mut service, mut handle) = mock::spawn::<u32, u32>();
        assert!(handle.poll_request().is_pending());
        let responses: Vec<_> = (0..3)
            .map(|n| {
                ready(service.poll_ready()).unwrap();
                service.call(n)
            })
            .collect();
        let requests: Vec<_> = (0..3).map(|_| request(&mut handle)).collect();
        for (n, send) in requests.into_iter().rev() {
            assert!(!send.is_cancelled());
            send.send_response(n + 10);
        }
        for (n, response) in responses.into_iter().enumerate() {
            assert_eq!(response.now_or_never().unwrap().unwrap(), n as u32 + 10);
        }
    }

    #[test]
    fn ready_for_as_many_as_allowed() {
        let (mut service, mut handle) = mock::spawn::<u32, u32>();
        let mut other = service.clone();
        handle.allow(0);
        assert!(service.poll_ready().is_pending());
        assert!(other.poll_ready().is_pending());
        assert!(!service.is_woken());
        handle.allow(1);
        assert!(service.is_woken() && other.is_woken());
        ready(service.poll_ready()).unwrap();
        drop(service.call(1));
        assert!(service.poll_ready().is_pending());
        assert!(other.poll_ready().is_pending());
        handle.allow(u64::MAX);
        ready(other.poll_ready()).unwrap();
        // A ready handle stays ready.
        handle.allow(0);
        ready(other.poll_ready()).unwrap();
        let response = other.call(2);
        assert!(request(&mut handle).1.is_cancelled());
        request(&mut handle).1.send_response(3);
        assert_eq!(response.now_or_never().unwrap().unwrap(), 3);
    }

    #[test]
    fn clone_is_not_ready() {
        let (mut service, mut handle) = mock::spawn::<u32, u32>();
        ready(service.poll_ready()).unwrap();
        handle.allow(0);
        assert!(service.clone().poll_ready().is_pending());
        ready(service.poll_ready()).unwrap();
    }

    #[test]
    fn unready_call_panics_at_the_callers_line() {
        let (mut service, _handle) = mock::spawn::<u32, u32>();
        let at = panics_at(|| drop(service.call(1)));
        assert_eq!(at, (file!().to_owned(), line!() - 1));
        ready(service.poll_ready()).unwrap();
        drop(service.call(1));
    }

    #[test]
    fn readiness_and_response_errors_arrive() {
        let (mut service, mut handle) = mock::spawn::<u32, u32>();
        handle.allow(0);
        assert!(service.poll_ready().is_pending());
        handle.send_error("not today");
        assert!(service.is_woken());
        let error = ready(service.poll_ready()).unwrap_err();
        assert_eq!(error.to_string(), "not today");
        assert!(service.poll_ready().is_pending());
        handle.allow(1);
        ready(service.poll_ready()).unwrap();
        let response = service.call(1);
        request(&mut handle).1.send_error("no");
        let error = response.now_or_never().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "no");
    }

    #[test]
    fn dropped_side_closes_the_other() {
        let (mut service, mut handle) = mock::spawn::<u32, u32>();
        ready(service.poll_ready()).unwrap();
        let unanswered = service.call(1);
        drop(request(&mut handle));
        let error = unanswered.now_or_never().unwrap().unwrap_err();
        assert!(error.is::<Closed>());
        handle.allow(0);
        assert!(service.poll_ready().is_pending());
        drop(handle);
        assert!(service.is_woken());
        assert!(ready(service.poll_ready()).unwrap_err().is::<Closed>());
        let error = service.call(1).now_or_never().unwrap().unwrap_err();
        assert!(error.is::<Closed>());

        let (service, mut handle) = mock::pair::<u32, u32>();
        drop(service);
        assert!(ready(handle.poll_request()).is_none());
    }

    #[test]
    fn cancelled_wait_leaves_no_waiter() {
        let (service, mut handle) = mock::spawn_with(|mock: Mock<u32, u32>| mock);
        handle.allow(0);
        let mut waiting = service.clone();
        assert!(waiting.poll_ready().is_pending());
        assert!(waiting.waker_ref_count() > 1);
        assert!(waiting.poll_ready().is_pending());
        assert_eq!(waiting.waker_ref_count(), 2, "one waker per clone");
        handle.allow(1);
        assert_eq!(waiting.waker_ref_count(), 1);
        drop(waiting);
        drop(service);

        // A try does not wait.
        let (mut shedding, mut handle) = mock::spawn_layer::<u32, u32, _>(LoadShedLayer::new());
        handle.allow(0);
        ready(shedding.poll_ready()).unwrap();
        assert_eq!(shedding.waker_ref_count(), 1);
        assert!(shedding.call(1).now_or_never().unwrap().is_err());

        // A try takes no turn from a waiter.
        let wakes = WakeCount::new();
        let mock = shedding.get_mut().get_mut();
        assert!(wakes.poll_ready(mock).is_pending());
        ready(shedding.poll_ready()).unwrap();
        handle.allow(1);
        assert_eq!(wakes.get(), 1);
    }

    #[test]
    fn dropped_mock_does_not_wait() {
        struct Nobody;
        impl std::task::Wake for Nobody {
            fn wake(self: Arc<Self>) {}
        }
        let nobody = Arc::new(Nobody);
        let (mut mock, mut handle) = mock::pair::<u32, u32>();
        handle.allow(0);
        let waker = Waker::from(nobody.clone());
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(campanile::Service::poll_ready(&mut mock, &mut cx).is_pending());
        drop(waker);
        assert_eq!(Arc::strong_count(&nobody), 2);
        drop(mock);
        assert_eq!(Arc::strong_count(&nobody), 1);
    }

    #[test]
    fn mock_with_a_custom_error() {
        #[derive(Debug, PartialEq)]
        enum Failure {
            Closed,
            Told(u8),
        }
        impl From<Closed> for Failure {
            fn from(_: Closed) -> Self {
                Self::Closed
            }
        }
        let (mock, mut handle) = Mock::<u32, u32, Failure>::pair();
        let mut service = Spawn::new(mock);
        ready(service.poll_ready()).unwrap();
        let response = service.call(1);
        request(&mut handle).1.send_error(Failure::Told(3));
        assert_eq!(response.now_or_never().unwrap(), Err(Failure::Told(3)));
        drop(handle);
        assert_eq!(ready(service.poll_ready()), Err(Failure::Closed));
    }

    #[test]
    fn layer_is_tested_by_hand() {
        let layer = ConcurrencyLimitLayer::new(1);
        let (mut service, mut handle) = mock::spawn_layer::<u32, u32, _>(layer);
        ready(service.poll_ready()).unwrap();
        let response = service.call(1);
        let mut other = service.clone();
        assert!(other.poll_ready().is_pending());
        request(&mut handle).1.send_response(1);
        assert!(response.now_or_never().unwrap().is_ok());
        assert!(other.is_woken());
        ready(other.poll_ready()).unwrap();
    }

    #[test]
    fn future_is_polled_by_hand() {
        let (send, receive) = oneshot::channel();
        let mut task = Spawn::new(receive);
        assert!(task.poll().is_pending() && !task.is_woken());
        send.send(1).unwrap();
        assert!(task.is_woken());
        assert_eq!(task.poll(), Poll::Ready(Ok(1)));
        assert!(!task.is_woken());
    }

    #[test]
    fn request_is_asserted() {
        let (service, mut handle) = mock::pair::<u32, u32>();
        let answer = futures::executor::block_on(async {
            let test = async {
                assert_request_eq!(handle, 1).send_response(2);
                let message = "the second";
                assert_request_eq!(handle, 2, "{message}, {}", 2).send_response(4);
            };
            let calls = async {
                let first = service.clone().oneshot(1).await?;
                Ok::<_, BoxError>((first, service.oneshot(2).await?))
            };
            futures::join!(calls, test).0
        });
        assert_eq!(answer.unwrap(), (2, 4));

        let (service, mut handle) = mock::pair::<u32, u32>();
        drop(service);
        panics_at(|| {
            let asserted = async { drop(assert_request_eq!(handle, 1)) };
            asserted.now_or_never().unwrap();
        });
    }
}

mod probes {
    use super::*;
    use campanile::testing::probe::{Probe, Probed, Rule, Violation};
    use campanile::{Layer, Service};
    use futures::FutureExt;
    use std::collections::VecDeque;
    use std::task::Context;

    /// Answers `poll_ready` from a list, then is ready.
    #[derive(Clone)]
    struct Told(VecDeque<Poll<Result<(), u8>>>);

    impl Service<u32> for Told {
        type Response = u32;
        type Error = u8;
        type Future = core::future::Ready<Result<u32, u8>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), u8>> {
            self.0.pop_front().unwrap_or(Poll::Ready(Ok(())))
        }

        fn call(&mut self, request: u32) -> Self::Future {
            done(Ok(request))
        }
    }

    fn told<const N: usize>(
        probe: &Probe,
        answers: [Poll<Result<(), u8>>; N],
    ) -> (Probed<Told>, WakeCount) {
        (probe.layer(Told(answers.into())), WakeCount::new())
    }

    #[track_caller]
    fn broken(probe: &Probe, expected: &[(Rule, u32)]) {
        let violations = probe.take_violations();
        let found: Vec<_> = violations
            .iter()
            .map(|Violation { rule, caller, .. }| (*rule, caller.line()))
            .collect();
        assert_eq!(found, expected);
        assert!(violations.iter().all(|v| v.caller.file() == file!()));
    }

    #[test]
    fn correct_use_is_no_breach() {
        let probe = Probe::new();
        let (mut service, wakes) = told(&probe, [Poll::Pending, Poll::Pending]);
        for _ in 0..2 {
            assert!(wakes.poll_ready(&mut service).is_pending());
        }
        for n in 0..3 {
            ready(wakes.poll_ready(&mut service)).unwrap();
            ready(wakes.poll_ready(&mut service)).unwrap();
            assert_eq!(service.call(n).now_or_never().unwrap(), Ok(n));
        }
        probe.assert_kept();
        probe.assert_released();
        assert_eq!((probe.calls(), probe.alive()), (3, 1));
    }

    #[test]
    fn unready_call_is_a_breach() {
        let probe = Probe::new();
        let (mut service, wakes) = told(&probe, []);
        drop(service.call(1));
        let first = line!() - 1;
        ready(wakes.poll_ready(&mut service)).unwrap();
        drop(service.clone().call(2));
        let of_a_clone = line!() - 1;
        drop(service.call(3));
        drop(service.call(4));
        let second = line!() - 1;
        let unready = Rule::CalledUnready;
        broken(
            &probe,
            &[(unready, first), (unready, of_a_clone), (unready, second)],
        );
    }

    #[test]
    fn use_after_failure_is_a_breach() {
        let probe = Probe::new();
        let (mut service, wakes) = told(&probe, [Poll::Ready(Err(1))]);
        assert_eq!(wakes.poll_ready(&mut service), Poll::Ready(Err(1)));
        probe.assert_kept();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut cx).is_ready());
        let polled = line!() - 1;
        drop(service.call(1));
        let called = line!() - 1;
        broken(
            &probe,
            &[
                (Rule::PolledAfterError, polled),
                (Rule::CalledAfterError, called),
            ],
        );
        assert_eq!(probe.reserved(), 0);
    }

    #[test]
    fn poll_after_the_end_is_a_breach() {
        let probe = Probe::new();
        let (mut service, wakes) = told(&probe, []);
        ready(wakes.poll_ready(&mut service)).unwrap();
        let mut response = service.call(1);
        let mut cx = Context::from_waker(Waker::noop());
        let mut poll = || std::pin::Pin::new(&mut response).poll(&mut cx);
        assert!(poll().is_ready());
        assert!(poll().is_pending());
        broken(&probe, &[(Rule::PolledAfterCompletion, line!() - 3)]);
    }

    #[test]
    fn lost_readiness_is_a_breach() {
        let probe = Probe::new();
        let (mut service, _) = told(&probe, [Poll::Ready(Ok(())), Poll::Pending]);
        let mut cx = Context::from_waker(Waker::noop());
        ready(service.poll_ready(&mut cx)).unwrap();
        assert!(service.poll_ready(&mut cx).is_pending());
        broken(&probe, &[(Rule::ReadinessLost, line!() - 1)]);
        probe.assert_released();
    }

    #[test]
    fn reservations_and_requests_are_counted() {
        let probe = Probe::new();
        let inner = service_fn(|_: u32| pending::<Result<(), u8>>());
        let mut service = probe.layer(inner);
        let mut clone = service.clone();
        let wakes = WakeCount::new();
        ready(wakes.poll_ready(&mut service)).unwrap();
        ready(wakes.poll_ready(&mut clone)).unwrap();
        assert_eq!((probe.reserved(), probe.alive()), (2, 2));
        panics_at(|| probe.assert_released());
        drop(clone);
        assert_eq!((probe.reserved(), probe.alive()), (1, 1));
        let first = service.call(1);
        probe.assert_released();
        ready(wakes.poll_ready(&mut service)).unwrap();
        let second = service.call(2);
        assert_eq!((probe.in_flight(), probe.max_in_flight()), (2, 2));
        drop((first, second, service));
        assert_eq!((probe.in_flight(), probe.max_in_flight()), (0, 2));
        assert_eq!(probe.alive(), 0);
    }

    #[test]
    fn drop_reports_a_breach_on_another_thread() {
        let probe = Probe::new();
        let (mut service, _) = told(&probe, []);
        let line = line!() + 1;
        std::thread::spawn(move || drop(service.call(1)))
            .join()
            .unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| drop(probe)));
        let message = panicked.unwrap_err().downcast::<String>().unwrap();
        let expected = format!("`call` without readiness, at {}:{line}", file!());
        assert!(message.contains(&expected), "{message}");
    }
}

mod faults {
    use super::*;
    use campanile::testing::Faults;
    use campanile::testing::faults::{Error, Injected};
    use campanile::{Layer, Service};
    use common::ManualTimer;
    use futures::FutureExt;

    const MINUTE: Duration = Duration::from_secs(60);

    fn echo() -> impl Service<u32, Response = u32, Error = u8, Future: 'static> + Clone {
        service_fn(async |n: u32| Ok::<_, u8>(n))
    }

    /// The results of 1000 requests, and how long each took.
    fn fates(faults: Faults) -> Vec<(Result<u32, Error<u8>>, Duration)> {
        let runtime = Runtime::new(0);
        let result = runtime.block_on(async {
            let service = faults.layer(echo());
            let mut fates = Vec::new();
            for n in 0..1000 {
                let start = now();
                let answer = service.clone().oneshot(n).await;
                fates.push((answer, now().saturating_duration_since(start)));
            }
            fates
        });
        result.unwrap()
    }

    #[test]
    fn no_faults_change_nothing() {
        let fates = fates(Faults::new(0));
        assert!(
            fates
                .iter()
                .all(|(answer, time)| answer.is_ok() && time.is_zero())
        );
    }

    #[test]
    fn same_seed_gives_the_same_faults() {
        let faults = |seed| Faults::new(seed).errors(0.3).delays(0.3, SECOND..MINUTE);
        assert_eq!(fates(faults(1)), fates(faults(1)));
        assert_ne!(fates(faults(1)), fates(faults(2)));
    }

    #[test]
    fn faults_have_independent_frequencies() {
        let errors = fates(Faults::new(7).errors(0.3));
        let all = fates(
            Faults::new(7)
                .errors(0.3)
                .delays(0.5, SECOND..MINUTE)
                .pauses(0.5, MINUTE..2 * MINUTE),
        );
        let injected = |(answer, _): &&(Result<u32, Error<u8>>, Duration)| {
            *answer == Err(Error::Injected(Injected::new()))
        };
        let count = errors.iter().filter(injected).count();
        assert!((250..350).contains(&count), "{count}");
        assert!(errors.iter().map(|e| &e.0).eq(all.iter().map(|e| &e.0)));
        // Without and with delays and pauses.
        for range in [
            Duration::ZERO..SECOND,
            SECOND..MINUTE,
            MINUTE..MINUTE + SECOND,
            MINUTE + SECOND..3 * MINUTE,
        ] {
            assert!(
                all.iter().any(|(_, time)| range.contains(time)),
                "{range:?}"
            );
        }
        assert!(all.iter().all(|(_, time)| *time < 3 * MINUTE));
    }

    #[test]
    fn failed_request_reaches_no_service() {
        let reached = Rc::new(Cell::new(false));
        let seen = reached.clone();
        let inner = service_fn(move |_: u32| {
            seen.set(true);
            done(Ok::<_, u8>(()))
        });
        let mut service = Faults::new(0).errors(1.0).layer(inner);
        ready(WakeCount::new().poll_ready(&mut service)).unwrap();
        let answer = service.call(1).now_or_never().unwrap();
        assert_eq!(answer, Err(Error::Injected(Injected::new())));
        assert!(!reached.get());
    }

    #[test]
    fn forgotten_waker_is_a_deadlock() {
        for faults in [
            Faults::new(0).never_answers(1.0),
            Faults::new(0).never_ready(1.0),
            Faults::new(0).forgets_wakers(1.0),
        ] {
            let service = faults.layer(echo());
            let result = Runtime::new(0).block_on(service.oneshot(1));
            assert!(matches!(result, Err(Stuck::Deadlock(_))), "{faults:?}");
        }
        // A waker is forgotten once; a second poll succeeds.
        let mut service = Faults::new(0).forgets_wakers(1.0).layer(echo());
        ready(WakeCount::new().poll_ready(&mut service)).unwrap();
        let mut response = mock::Spawn::new(Box::pin(service.call(1)));
        assert!(response.poll().is_pending());
        assert_eq!(response.poll(), Poll::Ready(Ok(1)));
    }

    #[test]
    fn panics_occur_in_the_chosen_place() {
        let wakes = WakeCount::new();
        let mut service = Faults::new(0).panics(1.0).layer(echo());
        ready(wakes.poll_ready(&mut service)).unwrap();
        let response = service.call(1);
        panics_at(|| _ = response.now_or_never());
        let mut service = Faults::new(0).call_panics(1.0).layer(echo());
        ready(wakes.poll_ready(&mut service)).unwrap();
        panics_at(|| drop(service.call(1)));
    }

    #[test]
    fn tried_pause_arms_no_timer() {
        use campanile::load_shed::LoadShedLayer;

        let timer = ManualTimer::new();
        let faults = Faults::with_timer(0, timer.clone()).pauses(1.0, SECOND..2 * SECOND);
        let mut service = (LoadShedLayer::new(), faults).layer(echo());
        let wakes = WakeCount::new();
        ready(wakes.poll_ready(&mut service)).unwrap();
        assert!(service.call(1).now_or_never().unwrap().is_err());
        assert_eq!(timer.armed(), 0);
        timer.advance(2 * SECOND);
        ready(wakes.poll_ready(&mut service)).unwrap();
        assert_eq!(service.call(1).now_or_never().unwrap().unwrap(), 1);
    }

    #[test]
    fn invalid_chance_panics() {
        for chance in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let at = panics_at(|| drop(Faults::new(0).errors(chance)));
            assert_eq!(at, (file!().to_owned(), line!() - 1));
            panics_at(|| drop(Faults::new(0).delays(chance, SECOND..SECOND)));
        }
        let _ = Faults::new(0).errors(0.0).panics(1.0);
    }
}
