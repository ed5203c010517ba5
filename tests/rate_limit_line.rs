//! `RateLimit`: the wait queue.
#![cfg(feature = "std")]

mod common;

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use campanile::limit::concurrency::{ConcurrencyLimit, Semaphore};
use campanile::limit::rate::{
    AnyLimiter, Error, Limiter, LocalLimiter, Overflow, Rate, RateLimit, Shared,
};
use campanile::load_shed::LoadShed;
use campanile::timeout::Deadline;
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Service, ServiceExt, service_fn};

use common::{Failure, Host, ManualTimer, On, WakeCount, on_every_runtime, until};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Answers at once, and is ready unless it is marked busy.
#[derive(Clone, Debug, Default)]
struct Inner {
    busy: Rc<Cell<bool>>,
}

impl Service<()> for Inner {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match self.busy.get() {
            true => Poll::Pending,
            false => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

type Limit = RateLimit<Inner, ManualTimer>;

/// A handle, and the waker with which it is polled.
struct Client<S = Limit> {
    limit: S,
    wakes: WakeCount,
    polls: usize,
}

impl<S> Client<S>
where
    S: Service<(), Error = Error<Infallible>>,
{
    fn new(limit: S) -> Self {
        Self {
            limit,
            wakes: WakeCount::new(),
            polls: 0,
        }
    }

    /// Polls once, and returns whether the handle is ready.
    fn poll(&mut self) -> bool {
        self.polls += 1;
        match self.wakes.poll_ready(&mut self.limit) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => panic!("it failed"),
            Poll::Pending => false,
        }
    }

    fn call(&mut self) -> Result<S::Response, S::Error> {
        futures::executor::block_on(self.limit.call(()))
    }
}

/// A limit with a spent budget, and its timer.
fn used_up(rate: Rate) -> (Limit, ManualTimer) {
    let timer = ManualTimer::new();
    let limit = RateLimit::with_timer(Inner::default(), rate, timer.clone());
    while Client::new(limit.clone().reject()).is_served() {}
    (limit, timer)
}

impl<S> Client<S>
where
    S: Service<(), Error = Error<Infallible>>,
{
    fn is_served(&mut self) -> bool {
        self.poll() && self.call().is_ok()
    }
}

/// A queue of `len` waiters.
fn line(limit: &Limit, len: usize) -> Vec<Client> {
    let mut line: Vec<_> = (0..len).map(|_| Client::new(limit.clone())).collect();
    assert!(line.iter_mut().all(|client| !client.poll()));
    line
}

fn one_per(ms: u32) -> Rate {
    Rate::new(1, ms * MS)
}

#[test]
fn waiters_are_served_in_order() {
    // Even cells, uneven cells, a burst, fixed windows.
    for rate in [
        one_per(10),
        Rate::new(3, 10 * MS).burst(1),
        Rate::new(100, SECOND),
        Rate::new(7, 100 * MS).fixed_window(),
    ] {
        let (limit, timer) = used_up(rate);
        let mut clients = line(&limit, 300);
        let mut rng = SplitMix64::new(1);
        let mut served = Vec::new();
        while served.len() < 300 {
            assert!(timer.advance_to_next(), "{rate:?}: nobody waits");
            // The executor polls woken tasks in any order.
            let mut woken: Vec<usize> = (0..300)
                .filter(|&n| clients[n].wakes.get() >= clients[n].polls)
                .collect();
            while !woken.is_empty() {
                let n = woken.swap_remove(rng.next_range(0..woken.len() as u64) as usize);
                if !served.contains(&n) && clients[n].poll() {
                    served.push(n);
                }
            }
        }
        // Within one window the order does not matter.
        let together = if format!("{rate:?}").contains("true") {
            7
        } else {
            1
        };
        for (place, n) in served.iter().enumerate() {
            assert_eq!(place / together, n / together, "{rate:?}");
        }
        let polls: usize = clients.iter().map(|client| client.polls).sum();
        assert!(polls <= 3 * 300, "{rate:?}: {polls} polls for 300 grants");
    }
}

#[test]
fn grant_takes_one_wake_and_one_poll() {
    let (limit, timer) = used_up(one_per(10));
    let mut clients = line(&limit, 500);
    for client in &mut clients {
        timer.advance(10 * MS);
        assert!(client.poll());
    }
    for client in &clients {
        assert_eq!((client.wakes.get(), client.polls), (1, 2));
    }
    assert_eq!(timer.armed(), 0);
    assert_eq!(timer.made(), 500);
}

#[test]
fn late_wakes_take_few_polls() {
    let (limit, timer) = used_up(one_per(10));
    let mut clients: VecDeque<_> = line(&limit, 500).into();
    let mut polls = 0;
    while !clients.is_empty() {
        // Each waiter is polled a millisecond late, which delays all later ones.
        timer.advance(MS);
        timer.advance_to_next();
        timer.advance(MS);
        let is_woken = |client: &Client| client.wakes.get() >= client.polls;
        clients.retain_mut(|client| {
            if !is_woken(client) {
                return true;
            }
            let is_ready = client.poll();
            polls += usize::from(is_ready) * client.polls;
            !is_ready
        });
    }
    assert!(polls <= 8 * 500, "{polls} polls for 500 grants");
}

#[test]
fn newcomer_passes_no_waiter() {
    let (limit, timer) = used_up(one_per(10));
    let mut first = line(&limit, 1).remove(0);
    timer.advance(10 * MS);
    let mut newcomer = Client::new(limit.clone());
    assert!(!newcomer.poll());
    assert!(first.poll());
    // A try does not pass a waiter, and neither does a handle that refuses to wait.
    timer.advance(10 * MS);
    let mut shed = LoadShed::new(limit.clone());
    assert!(WakeCount::new().poll_ready(&mut shed).is_ready());
    assert!(futures::executor::block_on(shed.call(())).is_err());
    assert!(newcomer.poll());
    let mut waits = Client::new(limit.clone());
    assert!(!waits.poll());
    timer.advance(10 * MS);
    assert!(!Client::new(limit.reject()).is_served());
    assert!(waits.poll());
}

#[test]
fn cancelled_waiter_costs_no_token() {
    for cancelled in [vec![0], vec![2], vec![4], vec![0, 1, 2, 3], vec![3, 1]] {
        let (limit, timer) = used_up(one_per(10));
        let mut clients: Vec<_> = line(&limit, 5).into_iter().map(Some).collect();
        for &n in &cancelled {
            clients[n] = None;
        }
        let mut clients: Vec<_> = clients.into_iter().flatten().collect();
        // Every woken waiter resets its alarm.
        for client in &mut clients {
            if client.wakes.get() >= client.polls {
                assert!(!client.poll());
            }
        }
        let count = clients.len();
        for n in 0..count {
            timer.advance(10 * MS);
            assert!(clients[n].wakes.get() >= clients[n].polls, "{cancelled:?}");
            assert!(clients[n].poll(), "{cancelled:?}");
            let next = n + 1;
            if next < count && clients[next].wakes.get() >= clients[next].polls {
                assert!(!clients[next].poll());
            }
        }
        assert_eq!(timer.armed(), 0);
    }
}

#[test]
fn cancelled_waiters_move_the_last_up() {
    let (limit, timer) = used_up(one_per(10));
    let idle = line(&limit, 1);
    let crowd = line(&limit, 500);
    let mut last = line(&limit, 1).remove(0);
    // Cancel from the front, from the back, and in between.
    let mut crowd: Vec<_> = crowd.into_iter().map(Some).collect();
    for n in 0..500 {
        crowd[n * 271 % 500] = None;
    }
    assert!(last.wakes.get() >= last.polls);
    assert!(!last.poll());
    // The first waiter is not polled.
    timer.advance(20 * MS);
    assert!(!last.poll());
    timer.advance(10 * MS);
    assert!(last.poll());
    drop(idle);
}

#[test]
fn idle_waiter_stalls_no_other() {
    for rate in [one_per(10), Rate::new(10, 100 * MS).fixed_window()] {
        for others in [1, 20] {
            let (limit, timer) = used_up(rate);
            let idle = line(&limit, 20);
            let mut clients = line(&limit, others);
            let mut served = 0;
            // Each idle waiter gets one token, and the next waiter in turn watches over it.
            for _ in 0..50 + others {
                timer.advance(10 * MS);
                while served < others && clients[served].wakes.get() >= clients[served].polls {
                    if !clients[served].poll() {
                        break;
                    }
                    served += 1;
                }
                for client in &mut clients[served..] {
                    if client.wakes.get() >= client.polls {
                        assert!(!client.poll());
                    }
                }
            }
            assert_eq!(served, others, "{rate:?}");
            drop(idle);
        }
    }
}

/// The handles before it had left the middle of the queue when it joined.
#[test]
fn alarm_survives_an_idle_waiter_ahead() {
    let (limit, timer) = used_up(one_per(10));
    let mut clients = line(&limit, 7);
    for left in [4, 1] {
        drop(clients.remove(left));
    }
    clients.push(line(&limit, 1).remove(0));
    let mut last = clients.pop().unwrap();
    for client in &mut clients[..3] {
        timer.advance(10 * MS);
        assert!(client.is_served());
    }
    // Two waiters that are not polled are left before it. A newcomer watches over the first of them, and leaves.
    let mut newcomer = line(&limit, 1).remove(0);
    timer.advance(30 * MS);
    assert!(!newcomer.poll());
    drop(newcomer);
    // It was woken and has to poll again, because the second one had no token yet.
    assert!(!last.poll());
    let woken = last.wakes.get();
    for _ in 0..3 {
        timer.advance(10 * MS);
        if last.wakes.get() > woken && last.poll() {
            return;
        }
    }
    panic!("woken {} times", last.wakes.get() - woken);
}

#[test]
fn dropped_grant_passes_on() {
    let (limit, timer) = used_up(one_per(10));
    let mut idle = line(&limit, 1);
    let mut next = line(&limit, 1).remove(0);
    let mut last = line(&limit, 1).remove(0);
    timer.advance(10 * MS);
    // It grants the first waiter its token and keeps waiting.
    assert!(!next.poll());
    let before = next.wakes.get();
    drop(idle.remove(0));
    assert_eq!(next.wakes.get(), before + 1);
    assert!(next.poll());
    // A held token passes on too.
    drop(next);
    assert!(last.poll());
    assert!(!Client::new(limit.reject()).is_served());
}

#[test]
fn panicking_waker_costs_no_wake() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker");
        }
    }
    let (limit, timer) = used_up(Rate::new(3, 30 * MS));
    let mut first = limit.clone();
    let panics = Waker::from(Arc::new(Panics));
    assert!(
        first
            .poll_ready(&mut Context::from_waker(&panics))
            .is_pending()
    );
    let mut second = line(&limit, 1).remove(0);
    let mut third = line(&limit, 1).remove(0);
    let wait = AssertUnwindSafe(|| timer.advance(30 * MS));
    assert!(catch_unwind(wait).is_err(), "by its own alarm");
    let before = second.wakes.get();
    let poll = AssertUnwindSafe(|| third.poll());
    // The order of the wakes is unspecified.
    let _ = catch_unwind(poll);
    assert_eq!(second.wakes.get(), before + 1);
    assert!(second.poll());
    assert!(third.poll());
}

#[test]
fn patience_covers_the_whole_queue() {
    let (limit, timer) = used_up(one_per(10));
    let _line = line(&limit, 3);
    let asks = |ms: u32| {
        let mut client = Client::new(limit.clone().wait_at_most(ms * MS));
        (client.poll(), client)
    };
    let (waits, in_line) = asks(40);
    assert!(!waits);
    let (refused, mut client) = asks(49);
    assert!(refused);
    let Err(Error::Limited(limited)) = client.call() else {
        panic!("it went through");
    };
    assert_eq!(limited.retry_after(), 50 * MS);
    // The refusal says how much patience is enough.
    let (waits, next) = asks(50);
    assert!(!waits);
    drop((in_line, next));
    assert_eq!(timer.armed(), 3);
}

#[test]
fn patience_belongs_to_one_request() {
    let (limit, timer) = used_up(one_per(10));
    let mut client = Client::new(limit.clone().wait_at_most(10 * MS));
    assert!(!client.poll());
    // Its caller cancels and returns an hour later, when others have spent the budget again.
    timer.advance(3600 * SECOND);
    let mut other = Client::new(limit.clone().reject());
    let _ = other.is_served();
    assert!(client.poll());
    assert!(client.call().is_ok());
    while Client::new(limit.clone().reject()).is_served() {}
    assert!(!client.poll());
}

#[test]
fn refusal_is_reconsidered() {
    let (limit, timer) = used_up(one_per(10));
    let mut client = Client::new(limit.clone().reject());
    assert!(client.poll());
    timer.advance(4 * MS);
    assert!(client.poll());
    let Err(Error::Limited(limited)) = client.call() else {
        panic!("it went through");
    };
    assert_eq!(limited.retry_after(), 6 * MS);
}

#[test]
fn driven_handle_leaves_the_queue() {
    let (limit, timer) = used_up(one_per(10));
    // A deadline that has elapsed drives its service.
    let deadline = Deadline::with_timer(limit.clone(), 5 * MS, timer.clone());
    let mut deadline = (deadline, WakeCount::new());
    assert!(deadline.1.poll_ready(&mut deadline.0).is_pending());
    let mut next = line(&limit, 1).remove(0);
    timer.advance(5 * MS);
    assert!(deadline.1.poll_ready(&mut deadline.0).is_ready());
    assert!(next.wakes.get() > 0);
    assert!(!next.poll());
    assert_eq!(timer.armed(), 1);
    timer.advance(5 * MS);
    assert!(next.poll());
}

#[test]
fn busy_inner_service_delays_no_other() {
    let (limit, timer) = used_up(one_per(10));
    let busy = Inner::default();
    busy.busy.set(true);
    let mut client = Client::new(limit.clone());
    *client.limit.get_mut() = busy.clone();
    assert!(!client.poll());
    let mut clients = line(&limit, 2);
    timer.advance(10 * MS);
    assert!(!client.poll());
    assert_eq!(clients[0].wakes.get(), 1);
    assert!(clients[0].poll());
    // It has missed its turn, so it is next.
    busy.busy.set(false);
    assert!(!client.poll());
    timer.advance(10 * MS);
    assert!(client.poll());
    assert!(!clients[1].poll());
    timer.advance(10 * MS);
    assert!(clients[1].poll());
}

#[test]
fn momentary_readiness_is_used() {
    /// Ready at every second poll, like a connection that is lost as soon as it is made.
    struct Momentary(bool);

    impl Service<()> for Momentary {
        type Response = ();
        type Error = Infallible;
        type Future = Ready<Result<(), Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            self.0 = !self.0;
            match self.0 {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        }

        fn call(&mut self, (): ()) -> Self::Future {
            ready(Ok(()))
        }
    }

    let timer = ManualTimer::new();
    let limit = RateLimit::with_timer(Momentary(false), one_per(10), timer.clone());
    let mut client = Client::new(limit);
    assert!(client.is_served());
    assert!(!client.poll());
    timer.advance(10 * MS);
    // It is not ready at its turn, but at the next poll.
    assert!(!client.poll());
    assert!(client.poll());
}

#[test]
fn never_ready_service_takes_no_token() {
    let (limit, timer) = used_up(one_per(10));
    let busy = Inner::default();
    busy.busy.set(true);
    let mut never: Vec<_> = (0..3)
        .map(|_| {
            let mut client = Client::new(limit.clone());
            *client.limit.get_mut() = busy.clone();
            assert!(!client.poll());
            client
        })
        .collect();
    let mut client = Client::new(limit.clone());
    let mut served = 0;
    for _ in 0..100 {
        served += usize::from(client.is_served());
        timer.advance(10 * MS);
        // They are polled at every step, like parts of a `join!`.
        for client in &mut never {
            assert!(!client.poll());
        }
    }
    assert!(served >= 98, "{served}");
}

#[test]
fn useless_turn_causes_no_wake_loop() {
    let (limit, timer) = used_up(one_per(10));
    let busy = Inner::default();
    busy.busy.set(true);
    // All handles belong to one task, which polls all of them whenever it is woken.
    let task = WakeCount::new();
    let mut handles: Vec<_> = (0..3)
        .map(|_| {
            let mut client = Client::new(limit.clone());
            client.wakes = task.clone();
            *client.limit.get_mut() = busy.clone();
            assert!(!client.poll());
            client
        })
        .collect();
    timer.advance(10 * MS);
    let mut seen = 0;
    for _ in 0..6 {
        if task.get() == seen {
            return;
        }
        seen = task.get();
        assert!(!handles.iter_mut().any(Client::poll));
    }
    panic!("it is woken again and again");
}

#[test]
fn waiting_holds_no_inner_permit() {
    let timer = ManualTimer::new();
    let semaphore = Semaphore::new(1);
    let inner = ConcurrencyLimit::with_semaphore(Inner::default(), semaphore.clone());
    let mut busy = inner.clone();
    assert!(WakeCount::new().poll_ready(&mut busy).is_ready());
    let limit = RateLimit::with_timer(inner, one_per(10), timer.clone());
    let mut client = Client::new(limit.clone());
    // A token is available, but no permit.
    assert!(!client.poll());
    drop(busy);
    // The permit is granted to it, but now another handle takes the token.
    assert_eq!(semaphore.available_permits(), 0);
    let mut other = Client::new(limit.clone());
    *other.limit.get_mut() = ConcurrencyLimit::new(Inner::default(), 1);
    assert!(other.poll());
    assert!(!client.poll());
    assert_eq!(semaphore.available_permits(), 1);
    timer.advance(10 * MS);
    assert!(client.poll());
    assert_eq!(semaphore.available_permits(), 0);
}

/// A rate limit of one token per 10 ms around a limit of one permit.
fn token_and_permit() -> (
    RateLimit<ConcurrencyLimit<Inner>, ManualTimer>,
    ConcurrencyLimit<Inner>,
    ManualTimer,
) {
    let timer = ManualTimer::new();
    let permit = ConcurrencyLimit::new(Inner::default(), 1);
    let limit = RateLimit::with_timer(permit.clone(), one_per(10), timer.clone());
    (limit, permit, timer)
}

#[test]
fn refused_handle_leaves_the_inner_queue() {
    let (limit, permit, timer) = token_and_permit();
    let mut first = Client::new(limit.clone());
    assert!(first.poll());
    let response = first.limit.call(());
    let mut refused = Client::new(limit.reject());
    assert!(refused.poll());
    timer.advance(10 * MS);
    assert!(refused.poll(), "there is a token, and no permit");
    drop(response);
    assert!(WakeCount::new().poll_ready(&mut permit.clone()).is_ready());
    assert!(refused.call().is_err());
}

#[test]
fn refused_call_leaves_the_inner_queue() {
    let (limit, permit, _timer) = token_and_permit();
    let wakes = WakeCount::new();
    let mut busy = permit.clone();
    assert!(wakes.poll_ready(&mut busy).is_ready());
    let mut called = Client::new(limit.clone());
    assert!(!called.poll());
    let response = limit.clone().call(());
    assert!(called.call().is_err());
    drop((busy, response));
    assert!(wakes.poll_ready(&mut permit.clone()).is_ready());
}

#[test]
fn waiter_for_token_and_permit_is_served() {
    let (limit, permit, timer) = token_and_permit();
    let wakes = WakeCount::new();
    let mut client = Client::new(limit.clone());
    let mut other = Client::new(limit.clone());
    *other.limit.get_mut() = ConcurrencyLimit::new(Inner::default(), 1);
    assert!(other.is_served());
    let mut users = [permit.clone(), permit];
    for turn in 0..10 {
        // Whenever a token is available another handle holds the permit, and the other way round.
        let user = turn % 2;
        assert!(wakes.poll_ready(&mut users[user]).is_ready());
        assert!(wakes.poll_ready(&mut users[1 - user]).is_pending());
        timer.advance(10 * MS);
        if client.poll() {
            return;
        }
        let _ = other.is_served();
        users[user] = users[user].clone();
        if client.poll() {
            return;
        }
    }
    panic!("it was passed over ten times");
}

#[test]
fn patience_does_not_restart() {
    let (limit, timer) = used_up(one_per(10));
    let busy = limit.get_ref().busy.clone();
    let mut client = Client::new(limit.clone().wait_at_most(10 * MS));
    assert!(!client.poll());
    timer.advance(10 * MS);
    busy.set(true);
    assert!(!client.poll(), "its turn is of no use");
    busy.set(false);
    assert!(Client::new(limit.reject()).is_served());
    assert!(client.poll());
    let Err(Error::Limited(limited)) = client.call() else {
        panic!("it went through");
    };
    assert_eq!(limited.retry_after(), 10 * MS);
}

#[test]
fn unready_call_leaves_the_queue() {
    let (limit, timer) = used_up(one_per(10));
    let mut called = line(&limit, 1).remove(0);
    let mut next = line(&limit, 1).remove(0);
    let Err(Error::Limited(limited)) = called.call() else {
        panic!("it went through");
    };
    assert_eq!(limited.retry_after(), 10 * MS);
    assert!(next.wakes.get() > 0);
    assert!(!next.poll());
    timer.advance(10 * MS);
    assert_eq!(next.call(), Ok(()), "its turn has come");
    assert_eq!(timer.armed(), 0);
}

#[test]
fn full_queue_refuses_one_request() {
    refuses_one_request(&LocalLimiter::<1>::new(one_per(10)));
    #[cfg(feature = "critical-section")]
    {
        use campanile::limit::rate::StaticLimiter;
        static LIMITER: StaticLimiter<1> =
            StaticLimiter::new(Rate::new(1, Duration::from_millis(10)));
        refuses_one_request(&LIMITER);
    }
}

fn refuses_one_request<L: AnyLimiter>(limiter: &L) {
    let timer = ManualTimer::new();
    let limit = RateLimit::with_limiter(Inner::default(), limiter, timer.clone());
    assert!(Client::new(limit.clone()).is_served());
    let mut first = Client::new(limit.clone());
    assert!(!first.poll());
    let mut second = Client::new(limit.clone());
    assert!(second.poll());
    assert!(second.poll());
    assert_eq!(second.call(), Err(Error::Overflow(Overflow::new())));
    // Load shedding acts first.
    let mut shed = LoadShed::new(limit.clone());
    assert!(WakeCount::new().poll_ready(&mut shed).is_ready());
    timer.advance(10 * MS);
    assert!(first.is_served());
    assert!(!second.poll());
    drop(second);
    // A refused handle that is polled again in time is served.
    let mut waits = Client::new(limit.clone());
    assert!(!waits.poll());
    let mut refused = Client::new(limit.clone());
    assert!(refused.poll());
    drop(waits);
    timer.advance(10 * MS);
    assert!(refused.is_served());
}

/// An alarm that is always ready.
#[derive(Clone)]
struct Early(ManualTimer);

impl campanile::Timer for Early {
    type Sleep = Ready<()>;
    type Alarm = Ready<()>;
    fn now(&self) -> campanile::Instant {
        self.0.now()
    }
    fn sleep_until(&self, _: campanile::Instant) -> Ready<()> {
        ready(())
    }
    fn alarm_until(&self, _: campanile::Instant) -> Ready<()> {
        ready(())
    }
    fn reset(&self, alarm: &mut Ready<()>, _: campanile::Instant) {
        *alarm = ready(());
    }
}

#[test]
fn early_alarm_ends_the_poll() {
    let timer = ManualTimer::new();
    let limit = RateLimit::with_timer(Inner::default(), one_per(10), Early(timer.clone()));
    assert!(Client::new(limit.clone()).is_served());
    let mut client = Client::new(limit);
    assert!(!client.poll());
    assert!(client.wakes.get() > 0, "it is to be polled again");
    assert!(!client.poll());
    timer.advance(10 * MS);
    assert!(client.is_served());
}

#[test]
fn shared_limiter_is_one_type() {
    fn auto<T: Clone + Send + Sync + Unpin + std::panic::RefUnwindSafe + std::fmt::Debug>(_: &T) {}
    let limiter = Arc::new(Limiter::new(one_per(10)));
    let shared = Shared::from(limiter.clone());
    auto(&shared);
    let timer = ManualTimer::new();
    let limit = RateLimit::with_limiter(Inner::default(), shared, timer.clone());
    assert!(Client::new(limit).is_served());
    let other = RateLimit::with_limiter(Inner::default(), limiter, timer);
    assert!(!Client::new(other).poll());
}

/// The simplest model: the waiters in order, each with its patience.
struct Model {
    line: VecDeque<usize>,
    held: Vec<usize>,
}

/// Handles join, leave and are polled at random; woken handles are polled before time advances.
#[test]
fn queue_matches_the_model() {
    let mut rng = SplitMix64::new(3);
    for round in 0..600 {
        let (num, per) = (rng.next_range(1..6), rng.next_range(20..90));
        let rate = Rate::new(num, Duration::from_nanos(per)).burst(rng.next_range(1..4));
        let timer = ManualTimer::new();
        let limit = RateLimit::with_timer(Inner::default(), rate, timer.clone());
        let mut clients: Vec<_> = (0..12).map(|_| Client::new(limit.clone())).collect();
        let mut model = Model {
            line: VecDeque::new(),
            held: Vec::new(),
        };
        let mut served = Vec::new();
        let settle = |clients: &mut Vec<Client>, model: &mut Model| {
            // In queue order, as a fair executor polls; other orders are tested above.
            while let Some(at) = model.line.iter().position(|&n| {
                let client = &clients[n];
                client.wakes.get() >= client.polls
            }) {
                let n = model.line[at];
                if clients[n].poll() {
                    assert_eq!(at, 0, "round {round}: {n} passed {:?}", model.line);
                    model.line.pop_front();
                    model.held.push(n);
                    clients[n].wakes = WakeCount::new();
                    clients[n].polls = 0;
                }
            }
        };
        for _ in 0..200 {
            let n = rng.next_range(0..12) as usize;
            let waits = model.line.contains(&n);
            let holds = model.held.contains(&n);
            match rng.next_range(0..8) {
                0..=2 if !waits && !holds => {
                    let had_line = !model.line.is_empty();
                    if clients[n].poll() {
                        assert!(!had_line, "round {round}: {n} passed {:?}", model.line);
                        model.held.push(n);
                        clients[n].polls = 0;
                    } else {
                        model.line.push_back(n);
                    }
                }
                3 if holds => {
                    assert_eq!(clients[n].call(), Ok(()));
                    served.push(timer.nanos());
                    model.held.retain(|&held| held != n);
                }
                4 if waits || holds => {
                    clients[n] = Client::new(limit.clone());
                    model.line.retain(|&other| other != n);
                    model.held.retain(|&other| other != n);
                }
                5 if waits || holds => {
                    // A buffer drives its service when its requests are cancelled; here a zero deadline does.
                    let fresh = Client::new(limit.clone());
                    let old = std::mem::replace(&mut clients[n], fresh);
                    let mut deadline =
                        Deadline::with_timer(old.limit, Duration::ZERO, timer.clone());
                    if waits {
                        assert!(WakeCount::new().poll_ready(&mut deadline).is_ready());
                        assert!(format!("{deadline:?}").contains("is_ready: false"));
                    }
                    model.line.retain(|&other| other != n);
                    model.held.retain(|&other| other != n);
                }
                _ => timer.advance(Duration::from_nanos(rng.next_range(0..per / 2))),
            }
            settle(&mut clients, &mut model);
            // The first waiter has an alarm that is not late.
            if let Some(&first) = model.line.front() {
                let mut probe = Client::new(limit.clone().reject());
                assert!(probe.poll());
                let Err(Error::Limited(limited)) = probe.call() else {
                    panic!("round {round}: it passed {first}");
                };
                assert!(limited.retry_after() > Duration::ZERO);
            }
        }
        // In the end all waiters are served without further polls by others.
        while !model.line.is_empty() {
            assert!(timer.advance_to_next(), "round {round}: {:?}", model.line);
            settle(&mut clients, &mut model);
        }
        assert_eq!(timer.armed(), 0);
    }
}

/// Threads wait and cancel, and in the end no token is missing.
#[test]
fn waiting_threads_lose_no_token() {
    let timer = ManualTimer::new();
    let rate = Rate::new(100, 100 * MS);
    let inner = || service_fn(|()| ready(Ok::<_, Infallible>(())));
    let limit = RateLimit::with_timer(inner(), rate, timer.clone());
    let served = AtomicU32::new(0);
    let left = AtomicU32::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (limit, served, left) = (limit.clone(), &served, &left);
            scope.spawn(move || {
                let mut rng = SplitMix64::new(thread);
                for _ in 0..300 {
                    let mut limit = limit.clone();
                    let mut wait = poll_fn(|cx| limit.poll_ready(cx));
                    if rng.next_range(0..3) == 0 {
                        // Cancels, perhaps after a token was granted.
                        let _ = WakeCount::new().poll(&mut wait);
                        continue;
                    }
                    futures::executor::block_on(wait).unwrap();
                    futures::executor::block_on(limit.call(())).unwrap();
                    served.fetch_add(1, SeqCst);
                }
                left.fetch_sub(1, SeqCst);
            });
        }
        while left.load(SeqCst) > 0 {
            timer.advance(MS);
            std::thread::yield_now();
        }
    });
    assert_eq!(timer.armed(), 0);
    // The queue is empty, and the budget has its original size.
    timer.advance(SECOND);
    let mut rest = limit.reject();
    let mut count = 0;
    while futures::executor::block_on(rest.call(())).is_ok() {
        count += 1;
    }
    assert_eq!(count, 100);
    assert!(served.load(SeqCst) >= 600);
}

/// Four handles that ask repeatedly get equally many turns.
async fn clones_take_turns<H: Host>(rt: On<H>) {
    const ROUNDS: u32 = 8;
    let service = service_fn(async |n: u32| Ok::<_, Failure>(n));
    let limit = RateLimit::with_timer(service, Rate::new(1, 10 * MS), rt.clone());
    assert_eq!(limit.clone().oneshot(0).await, Ok(0));
    let (joined, got) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new([const { AtomicU32::new(0) }; 4]),
    );
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let (mut limit, joined, got) = (limit.clone(), joined.clone(), got.clone());
            rt.start(async move {
                for _ in 0..ROUNDS {
                    let mut is_in_line = false;
                    let wait = poll_fn(|cx| {
                        let polled = limit.poll_ready(cx);
                        if polled.is_pending() && !std::mem::replace(&mut is_in_line, true) {
                            joined.fetch_add(1, SeqCst);
                        }
                        polled
                    });
                    wait.await.unwrap();
                    limit.call(0).await.unwrap();
                    got[n].fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    for turn in 0..4 * ROUNDS {
        // All handles are in the queue again.
        until(|| joined.load(SeqCst) == (4 + turn).min(4 * ROUNDS)).await;
        // tokio rounds up to the millisecond.
        rt.advance(11 * MS).await;
        let counts = || got.each_ref().map(|count| count.load(SeqCst));
        until(|| counts().iter().sum::<u32>() == turn + 1).await;
        let counts = counts();
        let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
        assert!(most - least <= 1, "{counts:?}");
    }
    for task in tasks {
        task.await.unwrap();
    }
}

on_every_runtime! { clones_take_turns }
