//! `Reconnect`: replacing a failed connection, on a manual timer and on every runtime.

mod common;

use core::cell::{Cell, RefCell};
use core::future::{Ready, ready};
use core::task::{Context, Poll};
use core::time::Duration;
use std::rc::Rc;

use campanile::error::find;
use campanile::load_shed::{self, LoadShed};
use campanile::reconnect::{
    ConnectErrors, Error, Failed, Lost, NotReady, Reconnect, ReconnectLayer,
};
use campanile::retry::backoff::{ExponentialBackoffMaker, Jitter};
use campanile::util::rng::SplitMix64;
use campanile::{Instant, Layer, Service, ServiceExt, Timer, service_fn};
use common::{Failure, Handle, Host, ManualTimer, Mock, On, WakeCount, mock, on_every_runtime};
use futures::FutureExt;

const MS: Duration = Duration::from_millis(1);
const REFUSED: Failure = Failure("refused");
const DEAD: Failure = Failure("dead");

type Maker<T> = ExponentialBackoffMaker<SplitMix64, T>;

/// 100 ms, 200 ms, 400 ms, 800 ms, 1 s, 1 s, …
fn backoff<T: Timer>(timer: T) -> Maker<T> {
    let rng = SplitMix64::new(0);
    ExponentialBackoffMaker::with_timer(100 * MS, 1000 * MS, Jitter::None, rng, timer).unwrap()
}

type Connection = Mock<u32, u32>;
type Under =
    Reconnect<Mock<&'static str, Connection>, &'static str, ManualTimer, Maker<ManualTimer>>;

/// A `Reconnect` whose attempts appear at the handle, and its timer.
struct Set {
    service: Under,
    connector: Handle<&'static str, Connection>,
    timer: ManualTimer,
    wakes: WakeCount,
}

impl Set {
    fn new(place: ConnectErrors) -> Self {
        let (maker, connector) = mock();
        let timer = ManualTimer::new();
        let service =
            Reconnect::with_backoff(maker, "target", backoff(timer.clone()), timer.clone())
                .connect_errors(place);
        Self {
            service,
            connector,
            timer,
            wakes: WakeCount::new(),
        }
    }

    fn poll(&mut self) -> Poll<Result<(), Error<Failure, Failure>>> {
        self.wakes.poll_ready(&mut self.service)
    }

    /// Answers a request on `connection`, which proves that it works. Without an allocator a connection must live for
    /// five seconds for that.
    #[track_caller]
    fn answer(&mut self, connection: &mut Handle<u32, u32>) {
        assert_eq!(self.poll(), Poll::Ready(Ok(())));
        let response = self.service.call(7);
        connection.try_next().expect("no request").1.send(8);
        assert_eq!(response.now_or_never(), Some(Ok(8)));
        if cfg!(not(feature = "alloc")) {
            self.timer.advance(Duration::from_secs(5));
        }
    }

    /// The response of a call, if it is immediate.
    fn call(&mut self) -> Option<Result<u32, Error<Failure, Failure>>> {
        self.service.call(7).now_or_never()
    }

    /// Starts exactly one attempt and refuses it.
    #[track_caller]
    fn refuse(&mut self) {
        let before = self.connector.calls();
        let _ = self.poll();
        assert_eq!(self.connector.calls(), before + 1, "no attempt was made");
        self.connector.try_next().unwrap().1.fail(REFUSED);
    }

    /// Starts exactly one attempt and lets it succeed.
    #[track_caller]
    fn accept(&mut self) -> Handle<u32, u32> {
        let (connection, handle) = mock();
        let _ = self.poll();
        let (target, attempt) = self.connector.try_next().expect("no attempt was made");
        assert_eq!(target, "target");
        attempt.send(connection);
        handle
    }

    /// Advances time by just less than `wait`, asserts that nothing happens, then advances by the rest.
    #[track_caller]
    fn wait_for(&mut self, wait: Duration) {
        let (calls, wakes) = (self.connector.calls(), self.wakes.get());
        self.timer.advance(wait - Duration::from_nanos(1));
        for _ in 0..3 {
            assert!(self.poll().is_pending());
        }
        assert_eq!((self.connector.calls(), self.wakes.get()), (calls, wakes));
        assert_eq!(self.timer.armed(), 1);
        self.timer.advance(Duration::from_nanos(1));
        assert_eq!(self.wakes.get(), wakes + 1);
    }
}

fn connect_error<E>(error: Failure) -> Error<E, Failure> {
    Error::Connect(error)
}

#[test]
fn first_poll_connects() {
    let mut set = Set::new(ConnectErrors::InResponse);
    assert_eq!((set.connector.calls(), set.timer.made()), (0, 0));
    assert!(set.poll().is_pending());
    let mut connection = set.accept();
    assert_eq!(set.wakes.get(), 1);
    assert!(set.poll().is_ready());
    assert!(set.service.is_connected());
    let response = set.service.call(7);
    let (request, responder) = connection.try_next().unwrap();
    responder.send(request + 1);
    assert_eq!(response.now_or_never(), Some(Ok(8)));
    assert!(set.poll().is_ready());
    assert_eq!((set.connector.calls(), set.timer.made()), (1, 0));
}

#[test]
fn failed_attempt_fails_one_call() {
    let mut set = Set::new(ConnectErrors::InResponse);
    for wait in [100, 200, 400, 800, 1000, 1000] {
        set.refuse();
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
        assert_eq!(set.call(), Some(Err(connect_error(REFUSED))));
        assert!(set.poll().is_pending());
        set.wait_for(wait * MS);
    }
    // The backoff restarts once a connection has worked.
    let mut connection = set.accept();
    set.answer(&mut connection);
    connection.fail(DEAD);
    set.refuse();
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!(set.call(), Some(Err(connect_error(REFUSED))));
    assert!(set.poll().is_pending());
    set.wait_for(100 * MS);
}

#[test]
fn old_refusal_is_forgotten() {
    let mut set = Set::new(ConnectErrors::InResponse);
    set.refuse();
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    // The caller cancels. During the backoff the next caller gets its error.
    set.timer.advance(100 * MS - Duration::from_nanos(1));
    for _ in 0..3 {
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
    }
    assert_eq!((set.connector.calls(), set.timer.armed()), (1, 0));
    // After the backoff the caller waits for the due attempt.
    set.timer.advance(Duration::from_nanos(1));
    for _ in 0..3 {
        assert!(set.poll().is_pending());
    }
    assert_eq!((set.connector.calls(), set.timer.armed()), (2, 0));
    assert_eq!(set.call(), Some(Err(Error::NotReady(NotReady::new()))));
    let connection = mock();
    set.connector.try_next().unwrap().1.send(connection.0);
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!((set.call(), connection.1.calls()), (None, 1));
}

/// A `Steer` does not poll a ready service again.
#[cfg(feature = "std")]
#[test]
fn buffered_steer_forgets_an_old_refusal() {
    use campanile::{buffer, steer::Steer};
    use common::spawn;

    let mut set = Set::new(ConnectErrors::InResponse);
    let (buffer, worker) = buffer::pair(set.service, 1);
    let mut worker = spawn(worker);
    let mut steer = Steer::new([buffer], |_: &u32, _: &[_]| 0);
    for _ in 0..2 {
        // The caller cancels before the attempt fails.
        assert!(set.wakes.poll_ready(&mut steer).is_ready());
        let response = steer.call(1);
        assert!(worker.poll().is_pending());
        drop(response);
        assert!(worker.poll().is_pending());
        set.connector.try_next().unwrap().1.fail(REFUSED);
        assert!(worker.poll().is_pending());
        assert!(set.wakes.poll_ready(&mut steer).is_ready());
        set.timer.advance(Duration::from_secs(3600));
    }
    let mut response = spawn(steer.call(2));
    assert!(worker.poll().is_pending());
    let mut connection = mock();
    set.connector.try_next().unwrap().1.send(connection.0);
    assert!(worker.poll().is_pending());
    connection.1.try_next().expect("no request").1.send(8);
    assert!(matches!(response.poll(), Poll::Ready(Ok(8))));
}

#[test]
fn latest_error_is_reported() {
    let mut set = Set::new(ConnectErrors::InResponse);
    set.refuse();
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    set.timer.advance(100 * MS);
    assert!(set.poll().is_pending());
    let error = Failure("refused again");
    set.connector.try_next().unwrap().1.fail(error);
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!(set.call(), Some(Err(connect_error(error))));
    // The error is reported once.
    assert_eq!(set.call(), Some(Err(Error::NotReady(NotReady::new()))));
    assert!(set.poll().is_pending());
    set.wait_for(200 * MS);
}

#[test]
fn old_loss_is_forgotten() {
    let mut set = Set::new(ConnectErrors::InResponse);
    set.accept().fail(DEAD);
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    set.timer.advance(100 * MS);
    let connection = set.accept();
    connection.set_ready(false);
    assert!(set.poll().is_pending());
    connection.set_ready(true);
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!((set.call(), connection.calls()), (None, 1));
}

#[test]
fn try_forgets_an_old_refusal() {
    let mut set = Set::new(ConnectErrors::InResponse);
    set.refuse();
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    set.timer.advance(100 * MS);
    let mut service = LoadShed::new(set.service);
    assert_eq!(set.wakes.poll_ready(&mut service), Poll::Ready(Ok(())));
    let shed = Err(load_shed::Error::Overloaded(load_shed::Overloaded::new()));
    assert_eq!(service.call(1).now_or_never(), Some(shed));
    assert_eq!((set.connector.calls(), set.timer.made()), (2, 0));
}

#[test]
fn error_may_fail_readiness() {
    let mut set = Set::new(ConnectErrors::InReadiness);
    for wait in [100, 200] {
        set.refuse();
        assert_eq!(set.poll(), Poll::Ready(Err(connect_error(REFUSED))));
        // A further poll waits.
        assert!(set.poll().is_pending());
        set.wait_for(wait * MS);
    }
    let connection = set.accept();
    connection.fail(DEAD);
    assert_eq!(set.poll(), Poll::Ready(Err(Error::Service(DEAD))));
    assert!(set.poll().is_pending());
    set.wait_for(400 * MS);
    let _connection = set.accept();
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
}

#[test]
fn error_may_be_hidden() {
    let mut set = Set::new(ConnectErrors::Nowhere);
    for wait in [100, 200] {
        set.refuse();
        assert!(set.poll().is_pending());
        set.wait_for(wait * MS);
    }
    set.accept().fail(DEAD);
    assert!(set.poll().is_pending());
    set.wait_for(400 * MS);
    let connection = set.accept();
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!((set.call(), connection.calls()), (None, 1));
}

#[test]
fn death_before_readiness_is_a_failure() {
    let mut set = Set::new(ConnectErrors::InResponse);
    for wait in [100, 200, 400] {
        let connection = set.accept();
        connection.fail(DEAD);
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
        assert_eq!(connection.alive(), 0);
        assert_eq!(set.call(), Some(Err(Error::Lost(Lost::new()))));
        assert!(set.poll().is_pending());
        set.wait_for(wait * MS);
    }
    // It dies later, but before it was ready.
    let connection = set.accept();
    connection.set_ready(false);
    assert!(set.poll().is_pending());
    connection.fail(DEAD);
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!(set.call(), Some(Err(Error::Lost(Lost::new()))));
    assert!(set.poll().is_pending());
    set.wait_for(800 * MS);
}

#[test]
fn proven_connection_is_replaced_at_once() {
    let mut set = Set::new(ConnectErrors::InResponse);
    let mut connection = set.accept();
    for n in 2..6 {
        set.answer(&mut connection);
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
        // A response error is no connection error.
        let response = set.service.call(7);
        connection
            .try_next()
            .unwrap()
            .1
            .fail(Failure("bad request"));
        let error = Error::Service(Failure("bad request"));
        assert_eq!(response.now_or_never(), Some(Err(error)));
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
        assert_eq!(set.connector.calls(), n - 1);

        connection.fail(DEAD);
        assert!(set.poll().is_pending());
        assert_eq!(connection.alive(), 0);
        assert_eq!(set.connector.calls(), n);
        assert_eq!(set.call(), Some(Err(Error::NotReady(NotReady::new()))));
        connection = set.accept();
    }
    assert_eq!(set.timer.made(), 0);
}

#[test]
fn errors_do_not_prove_a_connection() {
    let mut set = Set::new(ConnectErrors::InResponse);
    for wait in [100, 200, 400] {
        let mut connection = set.accept();
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
        let response = set.service.call(7);
        connection.try_next().unwrap().1.fail(DEAD);
        assert_eq!(response.now_or_never(), Some(Err(Error::Service(DEAD))));
        connection.fail(DEAD);
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
        assert_eq!(set.call(), Some(Err(Error::Lost(Lost::new()))));
        assert!(set.poll().is_pending());
        set.wait_for(wait * MS);
    }
}

#[cfg(feature = "alloc")]
#[test]
fn late_answer_proves_a_connection() {
    let mut set = Set::new(ConnectErrors::InResponse);
    set.refuse();
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    set.timer.advance(100 * MS);
    let mut connection = set.accept();
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    let response = set.service.call(7);
    connection.try_next().unwrap().1.send(8);
    connection.fail(DEAD);
    // The answer is observed before the failure.
    assert_eq!(response.now_or_never(), Some(Ok(8)));
    assert!(set.poll().is_pending());
    assert_eq!(set.connector.calls(), 3);
    set.connector.try_next().unwrap().1.fail(REFUSED);
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!(set.call(), Some(Err(connect_error(REFUSED))));
    assert!(set.poll().is_pending());
    set.wait_for(100 * MS);
}

#[test]
fn long_life_proves_a_connection() {
    for (lived, is_replaced_at_once) in [(4999, false), (5000, true)] {
        let mut set = Set::new(ConnectErrors::InResponse);
        let connection = set.accept();
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
        set.timer.advance(lived * MS);
        assert_eq!(set.poll(), Poll::Ready(Ok(())));
        connection.fail(DEAD);
        assert_eq!(set.poll().is_pending(), is_replaced_at_once);
        let attempts = 1 + usize::from(is_replaced_at_once);
        assert_eq!(set.connector.calls(), attempts);
    }
}

#[test]
fn lost_readiness_returns() {
    let mut set = Set::new(ConnectErrors::InResponse);
    let connection = set.accept();
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    connection.set_ready(false);
    assert!(set.poll().is_pending());
    assert_eq!(set.call(), Some(Err(Error::NotReady(NotReady::new()))));
    connection.set_ready(true);
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!((set.call(), connection.calls()), (None, 1));
    // One readiness allows one call.
    assert_eq!(set.call(), Some(Err(Error::NotReady(NotReady::new()))));
}

#[test]
fn failure_of_the_maker_is_final() {
    let mut set = Set::new(ConnectErrors::Nowhere);
    set.connector.set_ready(false);
    assert!(set.poll().is_pending());
    // The mock fails the test if it is polled again.
    set.connector.fail(Failure("closed"));
    assert_eq!(set.wakes.get(), 1);
    let closed = connect_error(Failure("closed"));
    assert_eq!(set.poll(), Poll::Ready(Err(closed)));
    for _ in 0..2 {
        let failed = Error::Failed(Failed::new());
        assert_eq!(set.poll(), Poll::Ready(Err(failed)));
        assert_eq!(set.call(), Some(Err(Error::Failed(Failed::new()))));
    }
}

#[test]
fn connection_outlives_the_maker() {
    let mut set = Set::new(ConnectErrors::InResponse);
    let mut connection = set.accept();
    set.connector.fail(Failure("closed"));
    set.answer(&mut connection);
    connection.fail(DEAD);
    let closed = connect_error(Failure("closed"));
    assert_eq!(set.poll(), Poll::Ready(Err(closed)));
}

/// Makes any number of connections, each of which fails or succeeds at once.
#[derive(Clone, Default)]
struct Eager {
    refuses: bool,
    dies: bool,
    attempts: Rc<Cell<u32>>,
    polls: Rc<Cell<u32>>,
}

struct Short {
    dies: bool,
    polls: Rc<Cell<u32>>,
}

impl Service<()> for Eager {
    type Response = Short;
    type Error = Failure;
    type Future = Ready<Result<Short, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        self.attempts.set(self.attempts.get() + 1);
        ready(if self.refuses {
            Err(REFUSED)
        } else {
            Ok(Short {
                dies: self.dies,
                polls: self.polls.clone(),
            })
        })
    }
}

impl Service<u32> for Short {
    type Response = u32;
    type Error = Failure;
    type Future = Ready<Result<u32, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.polls.set(self.polls.get() + 1);
        Poll::Ready(if self.dies { Err(DEAD) } else { Ok(()) })
    }

    fn call(&mut self, n: u32) -> Self::Future {
        ready(Ok(n))
    }
}

#[test]
fn one_poll_makes_one_attempt() {
    use ConnectErrors::{InReadiness, InResponse, Nowhere};
    for place in [InResponse, InReadiness, Nowhere] {
        for refuses in [true, false] {
            let timer = ManualTimer::new();
            let eager = Eager {
                refuses,
                dies: true,
                ..Eager::default()
            };
            let (attempts, polls) = (eager.attempts.clone(), eager.polls.clone());
            let maker = backoff(timer.clone());
            let mut service =
                Reconnect::with_backoff(eager, (), maker, timer.clone()).connect_errors(place);
            let wakes = WakeCount::new();
            for n in 1..4 {
                let polled = wakes.poll_ready(&mut service);
                assert_eq!(polled.is_pending(), place == Nowhere);
                assert_eq!(attempts.get(), n, "{place:?}");
                let answer = service.call(1).now_or_never().unwrap();
                assert_eq!(
                    find::<NotReady>(&answer.unwrap_err()).is_none(),
                    place == InResponse
                );
                assert!(wakes.poll_ready(&mut service).is_pending());
                assert_eq!(attempts.get(), n, "{place:?}");
                assert!(timer.advance_to_next());
            }
            assert_eq!(polls.get(), if refuses { 0 } else { 3 });
        }
    }
}

#[test]
fn zero_backoff_yields_between_attempts() {
    let timer = ManualTimer::new();
    let eager = Eager {
        refuses: true,
        ..Eager::default()
    };
    let attempts = eager.attempts.clone();
    let rng = SplitMix64::new(0);
    let zero = Duration::ZERO;
    let maker = ExponentialBackoffMaker::with_timer(zero, MS, Jitter::None, rng, timer.clone());
    let mut service = Reconnect::with_backoff(eager, (), maker.unwrap(), timer.clone())
        .connect_errors(ConnectErrors::Nowhere);
    let wakes = WakeCount::new();
    for n in 1..100 {
        assert!(wakes.poll_ready::<_, u32>(&mut service).is_pending());
        assert_eq!((attempts.get(), wakes.get()), (n, n as usize));
    }
    assert_eq!(timer.made(), 0);
}

#[test]
fn try_connects_and_arms_no_timer() {
    let (maker, mut connector) = mock::<_, Connection>();
    let timer = ManualTimer::new();
    let reconnect = Reconnect::with_backoff(maker, "target", backoff(timer.clone()), timer.clone())
        .connect_errors(ConnectErrors::Nowhere);
    let mut service = LoadShed::new(reconnect);
    let wakes = WakeCount::new();
    let mut shed = || {
        assert!(wakes.poll_ready(&mut service).is_ready());
        let answer = service.call(1).now_or_never();
        matches!(answer, Some(Err(load_shed::Error::Overloaded(_))))
    };
    assert!(shed());
    connector.try_next().unwrap().1.fail(REFUSED);
    for _ in 0..3 {
        assert!(shed());
    }
    assert_eq!((connector.calls(), timer.made()), (1, 0));
    timer.advance(100 * MS);
    assert!(shed());
    let (connection, handle) = mock();
    connector.try_next().unwrap().1.send(connection);
    assert!(!shed());
    assert_eq!((handle.calls(), timer.made(), wakes.get()), (1, 0, 0));
}

#[test]
fn may_start_with_a_dead_connection() {
    let mut set = Set::new(ConnectErrors::InResponse);
    let (connection, handle) = mock();
    set.service = set.service.connected(connection);
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!(set.connector.calls(), 0);
    assert_eq!(set.call(), None);
    assert_eq!(handle.calls(), 1);

    let mut set = Set::new(ConnectErrors::InResponse);
    let (connection, handle) = mock();
    handle.fail(DEAD);
    set.service = set.service.connected(connection);
    assert!(set.poll().is_pending());
    let _connection = set.accept();
    assert_eq!(set.poll(), Poll::Ready(Ok(())));
    assert_eq!((set.connector.calls(), set.timer.made()), (1, 0));
}

#[test]
fn cancelled_wait_passes_to_the_next_caller() {
    let mut set = Set::new(ConnectErrors::Nowhere);
    set.refuse();
    assert!(set.poll().is_pending());
    set.timer.advance(60 * MS);
    let other = WakeCount::new();
    assert!(other.poll_ready(&mut set.service).is_pending());
    assert_eq!((set.timer.armed(), set.timer.made()), (1, 1));
    set.timer.advance(40 * MS);
    assert_eq!((set.wakes.get(), other.get()), (1, 1));
    set.refuse();
    assert!(set.poll().is_pending());
    assert_eq!(set.timer.armed(), 1);
    drop(set.service);
    assert_eq!(set.timer.armed(), 0);
}

/// A timer whose alarms never fire, like tokio's for a task that has used up its budget.
#[derive(Clone)]
struct Deaf(ManualTimer);

impl Timer for Deaf {
    type Sleep = core::future::Pending<()>;
    type Alarm = core::future::Pending<()>;

    fn now(&self) -> Instant {
        self.0.now()
    }

    fn sleep_until(&self, _: Instant) -> Self::Sleep {
        core::future::pending()
    }

    fn alarm_until(&self, _: Instant) -> Self::Alarm {
        core::future::pending()
    }
}

#[test]
fn clock_ends_the_backoff_without_an_alarm() {
    let timer = Deaf(ManualTimer::new());
    let eager = Eager {
        refuses: true,
        ..Eager::default()
    };
    let attempts = eager.attempts.clone();
    let mut service = Reconnect::with_backoff(eager, (), backoff(timer.clone()), timer.clone())
        .connect_errors(ConnectErrors::Nowhere);
    let wakes = WakeCount::new();
    for n in 1..4 {
        assert!(wakes.poll_ready::<_, u32>(&mut service).is_pending());
        assert!(wakes.poll_ready::<_, u32>(&mut service).is_pending());
        assert_eq!(attempts.get(), n);
        timer.0.advance(1000 * MS);
    }
}

/// A timer whose alarms are always early, so that only the clock counts.
#[derive(Clone)]
struct Hasty(ManualTimer);

impl Timer for Hasty {
    type Sleep = Ready<()>;
    type Alarm = Ready<()>;

    fn now(&self) -> Instant {
        self.0.now()
    }

    fn sleep_until(&self, _: Instant) -> Self::Sleep {
        ready(())
    }

    fn alarm_until(&self, _: Instant) -> Self::Alarm {
        ready(())
    }
}

#[test]
fn early_alarm_causes_no_loop() {
    let timer = Hasty(ManualTimer::new());
    let eager = Eager {
        refuses: true,
        ..Eager::default()
    };
    let attempts = eager.attempts.clone();
    let mut service = Reconnect::with_backoff(eager, (), backoff(timer.clone()), timer)
        .connect_errors(ConnectErrors::Nowhere);
    let wakes = WakeCount::new();
    for n in 1..4 {
        assert!(wakes.poll_ready::<_, u32>(&mut service).is_pending());
        assert_eq!((attempts.get(), wakes.get()), (n, n as usize));
    }
}

#[test]
fn layer_makes_separate_services() {
    let timer = ManualTimer::new();
    let layer = ReconnectLayer::with_backoff((), backoff(timer.clone()), timer.clone())
        .connect_errors(ConnectErrors::InReadiness);
    let eager = Eager {
        refuses: true,
        ..Eager::default()
    };
    let wakes = WakeCount::new();
    for n in 1..3 {
        let mut service = layer.layer(eager.clone());
        let polled = wakes.poll_ready::<_, u32>(&mut service);
        assert_eq!(polled, Poll::Ready(Err(Error::Connect(REFUSED))));
        assert_eq!(eager.attempts.get(), n);
    }
}

#[test]
fn works_without_send_and_static() {
    let name = String::from("borrowed");
    let log = RefCell::new(Vec::new());
    let connector = service_fn(|target: &str| {
        log.borrow_mut().push(target.len());
        ready(Ok::<_, Failure>(service_fn(|n: u32| {
            let name = &name;
            async move { Ok::<_, Failure>(name.len() + n as usize) }
        })))
    });
    let timer = ManualTimer::new();
    let service = Reconnect::with_backoff(connector, name.as_str(), backoff(&timer), &timer);
    assert_eq!(service.oneshot(1).now_or_never(), Some(Ok(9)));
    assert_eq!(*log.borrow(), [8]);
}

#[cfg(feature = "alloc")]
#[test]
fn errors_flatten() {
    use campanile::BoxError;

    let error: Error<load_shed::Error<Failure>, Failure> = Error::Connect(REFUSED);
    assert_eq!(error.to_string(), "refused");
    assert_eq!(find::<Failure>(&error), Some(&REFUSED));
    assert_eq!(BoxError::from(error).downcast_ref(), Some(&REFUSED));
    let error: Error<core::convert::Infallible, BoxError> = Error::Lost(Lost::new());
    assert!(BoxError::from(error).is::<Lost>());
}

/// In virtual time: the load that a client puts on a server, and a stack around a `Reconnect`.
#[cfg(feature = "testing")]
mod virtual_time {
    use super::*;
    use campanile::testing::{self, Runtime, Sim, sleep};
    use core::future::poll_fn;

    /// When a peer hangs up after accepting.
    #[derive(Clone, Copy, Debug)]
    enum HangsUp {
        /// Directly after accepting.
        AtOnce,
        /// Before the first response.
        InResponse,
        /// With an error, after this number of answers.
        After(u32),
    }

    struct Peer {
        hangs_up: HangsUp,
        answered: Rc<Cell<u32>>,
    }

    impl Service<u32> for Peer {
        type Response = u32;
        type Error = Failure;
        type Future = core::pin::Pin<Box<dyn Future<Output = Result<u32, Failure>>>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
            let is_dead = match self.hangs_up {
                HangsUp::AtOnce => true,
                HangsUp::InResponse => self.answered.get() > 0,
                HangsUp::After(requests) => self.answered.get() > requests,
            };
            Poll::Ready(if is_dead { Err(DEAD) } else { Ok(()) })
        }

        fn call(&mut self, _: u32) -> Self::Future {
            let answered = self.answered.clone();
            let takes = match self.hangs_up {
                HangsUp::InResponse => MS / 2,
                _ => Duration::ZERO,
            };
            Box::pin(async move {
                sleep(takes).await;
                answered.set(answered.get() + 1);
                Err(DEAD)
            })
        }
    }

    /// How many connections a client makes in one second if it sends a request every millisecond.
    fn connections(seed: u64, hangs_up: HangsUp, place: ConnectErrors) -> u32 {
        let made = Rc::new(Cell::new(0));
        let count = made.clone();
        let connect = service_fn(move |()| {
            count.set(count.get() + 1);
            ready(Ok::<_, Failure>(Peer {
                hangs_up,
                answered: Rc::default(),
            }))
        });
        let client = async move {
            let backoff = ExponentialBackoffMaker::standard(SplitMix64::new(seed), Sim);
            let mut service =
                Reconnect::with_backoff(connect, (), backoff, Sim).connect_errors(place);
            for _ in 0..1000 {
                sleep(MS).await;
                let polled = poll_fn(|cx| Poll::Ready(service.poll_ready(cx))).await;
                if let Poll::Ready(Ok(())) = polled {
                    let _ = service.call(1).await;
                }
            }
        };
        Runtime::new(seed).block_on(client).unwrap();
        made.get()
    }

    #[test]
    fn hangups_cause_no_reconnect_storm() {
        use ConnectErrors::{InReadiness, InResponse, Nowhere};
        use HangsUp::{After, AtOnce};
        for hangs_up in [AtOnce, HangsUp::InResponse, After(0), After(3)] {
            for place in [InResponse, InReadiness, Nowhere] {
                for seed in 0..32 {
                    let made = connections(seed, hangs_up, place);
                    let range = 2..=20;
                    assert!(
                        range.contains(&made),
                        "{made}: {hangs_up:?} {place:?} {seed}"
                    );
                }
            }
        }
    }

    #[test]
    fn one_connection_serves_all_requests() {
        let made = Rc::new(Cell::new(0));
        let count = made.clone();
        let connect = service_fn(move |()| {
            count.set(count.get() + 1);
            ready(Ok::<_, Failure>(service_fn(|n: u32| {
                ready(Ok::<_, Failure>(n))
            })))
        });
        let requests = async {
            let service = testing::ServiceBuilder::new()
                .filter(|n: u32| if n % 2 == 0 { Ok(n) } else { Err(REFUSED) })
                .buffer(4)
                .service(testing::reconnect::Reconnect::<_, _>::new(connect, ()));
            for n in 0..10 {
                let answer = service.clone().oneshot(n).await;
                assert_eq!(answer.is_ok(), n % 2 == 0);
            }
        };
        Runtime::new(1).block_on(requests).unwrap();
        assert_eq!(made.get(), 1);
    }

    /// The next connection is made while there is no request.
    #[test]
    fn idle_buffer_reconnects() {
        let (maker, mut connector) = mock::<_, Connection>();
        let scenario = async {
            let reconnect = testing::reconnect::Reconnect::new(maker, "target");
            let mut service = testing::buffer::Buffer::new(reconnect, 1);
            let first = testing::spawn(service.clone().oneshot(1));
            let (connection, mut handle) = mock();
            connector.next().await.1.send(connection);
            handle.next().await.1.send(2);
            first.await.unwrap();
            // A request finds the service not ready and is cancelled.
            handle.set_ready(false);
            service.ready().await.unwrap();
            drop(service.call(1));
            let given_up = testing::spawn(service.clone().oneshot(1));
            testing::idle().await;
            drop(given_up);
            handle.fail(DEAD);
            testing::idle().await;
            assert_eq!(connector.calls(), 2);
        };
        Runtime::new(1).block_on(scenario).unwrap();
    }
}

/// A server that refuses, then drops the connections it accepts, then serves.
async fn request_succeeds_in_the_end<H: Host>(rt: On<H>) {
    let mut attempts = 0;
    let connector = service_fn(move |_: &'static str| {
        attempts += 1;
        let attempt = attempts;
        ready(match attempt {
            1..=2 => Err(REFUSED),
            _ => {
                let (connection, handle) = mock::<u32, u32>();
                match attempt {
                    3..=4 => handle.fail(DEAD),
                    _ => H::execute(answer(handle)),
                }
                Ok(connection)
            }
        })
    });
    let maker = backoff(rt.clone());
    let mut service = Reconnect::with_backoff(connector, "target", maker, rt.clone());

    let wakes = WakeCount::new();
    let mut errors = Vec::new();
    let start = rt.now();
    for wait in [100, 200, 400, 800] {
        let answer = service.ready().await.unwrap().call(1).await;
        errors.push(answer.unwrap_err().to_string());
        assert!(wakes.poll_ready::<_, u32>(&mut service).is_pending());
        rt.advance(wait * MS).await;
    }
    let lost = "connection lost soon after it was made";
    assert_eq!(errors, ["refused", "refused", lost, lost]);
    assert_eq!(service.ready().await.unwrap().call(1).await, Ok(2));
    assert!(rt.now().saturating_duration_since(start) >= 1500 * MS);
}

async fn answer(mut handle: Handle<u32, u32>) {
    let (request, responder) = handle.next().await;
    responder.send(request + 1);
}

/// Only the timer wakes the task.
async fn timer_wakes_the_waiter<H: Host>(rt: On<H>) {
    let mut attempts = 0;
    let connector = service_fn(move |()| {
        attempts += 1;
        ready(if attempts < 4 {
            Err(REFUSED)
        } else {
            Ok(service_fn(|n: u32| ready(Ok::<_, Failure>(n))))
        })
    });
    let service = Reconnect::with_backoff(connector, (), backoff(rt.clone()), rt.clone())
        .connect_errors(ConnectErrors::Nowhere);
    let (tell, told) = futures::channel::oneshot::channel();
    H::execute(async move {
        let _ = tell.send(service.oneshot(5).await);
    });
    let answer = rt.advance_until(100 * MS, told).await;
    assert_eq!(answer.unwrap(), Ok(5));
}

on_every_runtime! { request_succeeds_in_the_end, timer_wakes_the_waiter }

/// The runtimes' own timers and the default backoff; the same code against tower.
#[cfg(all(
    feature = "tower",
    feature = "tokio",
    feature = "smol",
    feature = "async-std"
))]
mod parity {
    macro_rules! program {
        ($tower:path) => {{
            use std::future::{Ready, ready};
            use std::sync::atomic::{AtomicU32, Ordering};

            use tower::reconnect::Reconnect;
            use tower::{BoxError, Service, ServiceExt, service_fn, util::ServiceFn};
            use $tower as tower;

            type Answer = Ready<Result<u32, std::io::Error>>;
            type Connection = ServiceFn<fn(u32) -> Answer>;
            type Connecting = Ready<Result<Connection, std::fmt::Error>>;
            struct Kept {
                service: Reconnect<ServiceFn<fn(u32) -> Connecting>, u32>,
            }

            fn connection() -> Connection {
                let answer: fn(u32) -> Answer = |n| ready(Ok(n));
                service_fn(answer)
            }
            let connect: fn(u32) -> Connecting = |target| {
                static ATTEMPTS: AtomicU32 = AtomicU32::new(0);
                assert_eq!(target, 3);
                ready(match ATTEMPTS.fetch_add(1, Ordering::Relaxed) {
                    0 => Err(std::fmt::Error),
                    _ => Ok(connection()),
                })
            };
            async move {
                let mut kept = Kept {
                    service: Reconnect::new(service_fn(connect), 3),
                };
                let error = kept.service.ready().await?.call(1).await.unwrap_err();
                assert!(BoxError::from(error).is::<std::fmt::Error>());
                let first = kept.service.ready().await?.call(1).await?;
                let service = Reconnect::with_connection(connection(), service_fn(connect), 3);
                Ok::<_, BoxError>(first + service.oneshot(2).await?)
            }
        }};
    }

    #[tokio::test]
    async fn code_for_tower_compiles_against_this() {
        assert_eq!(program!(::tower).await.unwrap(), 3);
        assert_eq!(program!(campanile::tokio).await.unwrap(), 3);
        assert_eq!(smol::block_on(program!(campanile::smol)).unwrap(), 3);
        let answer = async_std::task::block_on(program!(campanile::async_std));
        assert_eq!(answer.unwrap(), 3);
    }
}
