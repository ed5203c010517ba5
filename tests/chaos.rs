//! Random stacks under random load, cancellation, faults and shutdown, in virtual time.
//!
//! Each seed is a run of its own, the same each time: `CAMPANILE_SEED=17` runs that one and shows what it does,
//! `CAMPANILE_RUNS=100000` runs so many. What every run has to keep is in [`Run::check`] and in [`Client`].
#![cfg(feature = "testing")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use campanile::buffer::{Closed, Panicked, ServiceError};
use campanile::hedge::Delay;
use campanile::limit::concurrency::{ConcurrencyLimit, Semaphore};
use campanile::limit::rate::{Limited, Rate};
use campanile::load_shed::{LoadShed, Overloaded};
use campanile::retry::budget::Unlimited;
use campanile::retry::{CloneByClone, Policy, Retry};
use campanile::testing::buffer::Buffer;
use campanile::testing::faults::Injected;
use campanile::testing::hedge::Hedge;
use campanile::testing::limit::RateLimit;
use campanile::testing::timeout::{Deadline, Timeout};
use campanile::testing::{Faults, Probe, Runtime, Sim, Sleep, idle, now, sleep, spawn_named};
use campanile::timeout::Elapsed;
use campanile::util::UnsyncBoxCloneService;
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{BoxError, Instant, Layer, Service, ServiceExt, Timer, service_fn};
use futures::future::{Either, LocalBoxFuture, select};

const HOUR: Duration = Duration::from_secs(3600);

/// A request is its number, and is answered with it.
type Stack = UnsyncBoxCloneService<u64, u64, BoxError>;

fn boxed<S>(service: S) -> Stack
where
    S: Service<u64, Response = u64, Error: Into<BoxError> + 'static, Future: 'static>,
    S: Clone + 'static,
{
    UnsyncBoxCloneService::new(service.map_err(Into::into))
}

/// Draws for the test.
struct Dice(SplitMix64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    fn number(&mut self, range: Range<u64>) -> u64 {
        self.0.next_range(range)
    }

    fn size(&mut self, range: Range<u64>) -> usize {
        self.number(range) as usize
    }

    fn chance(&mut self, chance: f64) -> bool {
        self.0.next_f64() < chance
    }

    fn millis(&mut self, range: Range<u64>) -> Duration {
        // Often whole milliseconds, so that things happen at the same moment.
        let nanos = if self.chance(0.2) {
            self.number(0..1_000_000)
        } else {
            0
        };
        Duration::from_millis(self.number(range)) + Duration::from_nanos(nanos)
    }
}

/// What a run is made of, and what it has to keep.
#[derive(Default)]
struct Run {
    about: RefCell<String>,
    next: Cell<u64>,
    /// How often each request came to the innermost service.
    reached: RefCell<BTreeMap<u64, u64>>,
    /// So many attempts are made at a request, at the most.
    attempts: Cell<u64>,
    /// What requests may fail with, by name.
    failures: RefCell<Vec<&'static str>>,
    /// From the inside to the outside.
    probes: RefCell<Vec<(Probe, Option<usize>)>>,
    semaphores: RefCell<Vec<(Semaphore, usize)>>,
    rates: RefCell<Vec<(RateBound, Rc<Log>)>>,
    /// Shuts the outermost buffer down.
    shutdown: RefCell<Option<Box<dyn Fn() -> LocalBoxFuture<'static, ()>>>>,
    /// Whether the outermost buffer has all its room.
    room: RefCell<Option<Box<dyn Fn() -> Vec<LocalBoxFuture<'static, ()>>>>>,
    answered: Cell<u64>,
    failed: Cell<u64>,
    cancelled: Cell<u64>,
}

/// When requests were let through.
#[derive(Default)]
struct Log {
    passed: RefCell<Vec<Instant>>,
}

struct RateBound {
    per: Duration,
    in_window: usize,
    at_once: usize,
}

impl Run {
    fn say(&self, what: fmt::Arguments<'_>) {
        self.about.borrow_mut().write_fmt(what).unwrap();
        self.about.borrow_mut().push_str(", ");
    }

    fn may_fail(&self, with: &'static str) {
        self.failures.borrow_mut().push(with);
    }

    /// `inner` with a probe around it, beneath which no more than `limit` are under way.
    fn probed(&self, inner: Stack, limit: Option<usize>) -> Stack {
        let probe = Probe::new();
        let service = boxed(probe.layer(inner));
        self.probes.borrow_mut().push((probe, limit));
        service
    }

    /// The innermost service: slow and flaky.
    fn leaf(self: &Rc<Self>, dice: &mut Dice) -> Stack {
        let run = Rc::clone(self);
        let service = service_fn(move |request| {
            *run.reached.borrow_mut().entry(request).or_insert(0) += 1;
            async move { Ok::<_, BoxError>(request) }
        });
        let mut faults = Faults::new(dice.number(0..u64::MAX))
            .delays(dice.0.next_f64(), dice.millis(0..10)..dice.millis(10..100));
        if dice.chance(0.5) {
            self.say(format_args!("errors"));
            self.may_fail("Injected");
            faults = faults.errors(0.2);
        }
        if dice.chance(0.2) {
            self.say(format_args!("pauses"));
            faults = faults.pauses(0.2, dice.millis(0..10)..dice.millis(10..100));
        }
        let hangs = dice.chance(0.2);
        if hangs {
            self.say(format_args!("hangs"));
            faults = faults.never_answers(0.2);
        }
        if dice.chance(0.1) {
            self.say(format_args!("panics"));
            self.may_fail("Panicked");
            self.may_fail("ServiceError");
            faults = faults.call_panics(0.02);
            // It is a worker that panics, and nobody else.
            let inner = boxed(faults.layer(service));
            let inner = self.probed(inner, None);
            let service = self.buffer(inner, dice);
            return if hangs {
                self.timeout(service, dice)
            } else {
                service
            };
        }
        let service = boxed(faults.layer(service));
        match hangs {
            false => service,
            true if dice.chance(0.5) => self.timeout(service, dice),
            true => self.deadline(service, dice),
        }
    }

    fn buffer(self: &Rc<Self>, inner: Stack, dice: &mut Dice) -> Stack {
        let bound = dice.size(1..6);
        let unreserved = dice.chance(0.2);
        self.say(format_args!(
            "buffer {bound}{}",
            if unreserved { " unreserved" } else { "" }
        ));
        let buffer = Buffer::<u64, _>::new(inner, bound);
        let buffer = if unreserved {
            buffer.unreserved()
        } else {
            buffer
        };
        let handle = buffer.clone();
        *self.shutdown.borrow_mut() = Some(Box::new(move || Box::pin(handle.shutdown())));
        let handle = buffer.clone();
        *self.room.borrow_mut() = Some(Box::new(move || {
            let ready = |handle: Buffer<u64, _>| async move {
                let reserved = handle.ready_oneshot().await;
                sleep(Duration::from_secs(1)).await;
                drop(reserved);
            };
            (0..bound)
                .map(|_| Box::pin(ready(handle.clone())) as _)
                .collect()
        }));
        boxed(buffer)
    }

    fn timeout(&self, inner: Stack, dice: &mut Dice) -> Stack {
        let limit = dice.millis(1..200);
        self.say(format_args!("timeout {limit:?}"));
        self.may_fail("Elapsed");
        let timeout = Timeout::new(inner, limit);
        boxed(if dice.chance(0.5) {
            timeout.from_call()
        } else {
            timeout
        })
    }

    fn deadline(&self, inner: Stack, dice: &mut Dice) -> Stack {
        let limit = dice.millis(1..300);
        self.say(format_args!("deadline {limit:?}"));
        self.may_fail("Elapsed");
        boxed(Deadline::new(inner, limit))
    }

    fn rate_limit(&self, inner: Stack, refusing: bool, dice: &mut Dice) -> Stack {
        let (num, per) = (dice.number(1..10), dice.millis(10..500));
        let rate = Rate::new(num, per);
        let burst = dice.number(1..num + 1);
        // As the documentation of `limit::rate` promises.
        let (rate, in_window, at_once) = match dice.number(0..4) {
            0 => (rate, 2 * num - 1, num),
            1 => (rate.burst(burst), num + burst - 1, burst),
            2 => (rate.strict(burst), num, burst),
            _ => (rate.fixed_window(), 2 * num, 2 * num),
        };
        let kind = if refusing { "refusing " } else { "" };
        self.say(format_args!("{kind}{rate:?}"));
        let bound = RateBound {
            per,
            in_window: in_window as usize,
            at_once: at_once as usize,
        };
        let log = Rc::new(Log::default());
        let admitted = Rc::new(Cell::new(None));
        let (moment, passed) = (admitted.clone(), log.clone());
        let inner = inner.map_request(move |request| {
            let moment = moment.take().unwrap_or_else(now);
            passed.passed.borrow_mut().push(moment);
            request
        });
        let limit = RateLimit::new(inner, rate);
        if refusing {
            self.may_fail("Limited");
            return boxed(limit.wait_at_most(dice.millis(0..200)));
        }
        self.rates.borrow_mut().push((bound, log.clone()));
        boxed(Admission {
            inner: limit,
            ready_at: None,
            admitted,
            log,
        })
    }

    fn build(self: &Rc<Self>, dice: &mut Dice) -> Stack {
        self.attempts.set(1);
        let mut stack = self.leaf(dice);
        // Two kinds of stack are not made, because a request in them can wait for what is kept for nobody. A worker's
        // service keeps what it reserved for a request that was cancelled: a retry beneath the buffer may need it.
        // And a handle whose request was refused while it was in line keeps its place there: a retry above goes
        // on with that handle, and may hold what it is to wait for.
        let mut reserves = self.room.borrow().is_some();
        let (mut refuses, mut retries) = (false, false);
        for _ in 0..dice.number(1..6) {
            stack = match dice.number(0..8) {
                0 if !retries => {
                    let inner = self.probed(stack, None);
                    reserves = true;
                    self.buffer(inner, dice)
                }
                0 | 1 => {
                    let max = dice.size(1..5);
                    self.say(format_args!("concurrency_limit {max}"));
                    let inner = self.probed(stack, Some(max));
                    let semaphore = Semaphore::new(max);
                    self.semaphores.borrow_mut().push((semaphore.clone(), max));
                    reserves = true;
                    boxed(ConcurrencyLimit::with_semaphore(inner, semaphore))
                }
                2 => {
                    let inner = self.probed(stack, None);
                    let refusing = dice.chance(0.3);
                    refuses |= refusing && reserves;
                    self.rate_limit(inner, refusing, dice)
                }
                3 => {
                    let inner = self.probed(stack, None);
                    self.timeout(inner, dice)
                }
                4 => {
                    refuses |= reserves;
                    let inner = self.probed(stack, None);
                    self.deadline(inner, dice)
                }
                5 if !refuses => {
                    let left = dice.number(1..3);
                    let wait = dice.millis(0..50);
                    self.say(format_args!("retry {left}"));
                    self.attempts.set(self.attempts.get() * (left + 1));
                    retries |= reserves;
                    boxed(Retry::new(
                        Attempts { left, wait },
                        self.probed(stack, None),
                    ))
                }
                6 => {
                    let delay = dice.millis(0..50);
                    self.say(format_args!("hedge {delay:?}"));
                    self.attempts.set(self.attempts.get() * 2);
                    let inner = self.probed(stack, None);
                    let hedge = Hedge::with_delay(inner, CloneByClone, Delay::fixed(delay));
                    boxed(hedge.budget(Unlimited))
                }
                _ => {
                    self.say(format_args!("load_shed"));
                    self.may_fail("Overloaded");
                    boxed(LoadShed::new(self.probed(stack, None)))
                }
            };
        }
        self.probed(stack, None)
    }

    /// Nothing is lost, and nothing is left behind.
    fn check(&self, runtime: &Runtime) {
        for (probe, limit) in self.probes.take() {
            probe.assert_kept();
            probe.assert_released();
            assert_eq!(
                (probe.in_flight(), probe.alive()),
                (0, 0),
                "a service lives on"
            );
            if let Some(limit) = limit {
                let most = probe.max_in_flight();
                assert!(most <= limit, "{most} under way at a limit of {limit}");
            }
        }
        self.check_permits();
        for (bound, log) in &*self.rates.borrow() {
            bound.check(log);
        }
        let attempts = self.attempts.get();
        for (request, &times) in &*self.reached.borrow() {
            assert!(
                times <= attempts,
                "request {request}: {times} times in {attempts} attempts"
            );
        }
        assert_eq!(runtime.tasks(), 0, "a worker lives on");
        assert_eq!(runtime.deadlines(), 0, "a deadline was left behind");
    }

    fn check_permits(&self) {
        for (semaphore, max) in &*self.semaphores.borrow() {
            assert_eq!(semaphore.available_permits(), *max, "a permit is lost");
        }
    }

    fn settle(&self, request: u64, result: Result<u64, BoxError>) {
        match result {
            Ok(answer) => {
                assert_eq!(answer, request, "the answer to another request");
                let reached = self.reached.borrow().contains_key(&request);
                assert!(reached, "request {request} was answered by nobody");
                self.answered.set(self.answered.get() + 1);
            }
            Err(error) => {
                let name = name(&error);
                let may = self.failures.borrow().contains(&name);
                assert!(may, "request {request} failed: {error} ({name})");
                self.failed.set(self.failed.get() + 1);
            }
        }
    }

    fn number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }
}

fn name(error: &BoxError) -> &'static str {
    macro_rules! is {
        ($($name:ident)*) => {
            $(if error.downcast_ref::<$name>().is_some() {
                return stringify!($name);
            })*
        };
    }
    is!(Closed Panicked Elapsed Injected Limited Overloaded);
    if error.downcast_ref::<ServiceError<BoxError>>().is_some() {
        return "ServiceError";
    }
    "?"
}

impl RateBound {
    fn check(&self, log: &Log) {
        let mut passed = log.passed.borrow().clone();
        passed.sort_unstable();
        for (n, &from) in passed.iter().enumerate() {
            for (span, allowed) in [
                (self.per, self.in_window),
                (Duration::from_nanos(1), self.at_once),
            ] {
                let end = from.saturating_add(span);
                let count = passed[n..].partition_point(|moment| *moment < end);
                assert!(
                    count <= allowed,
                    "{count} within {span:?} from {from:?}, where {allowed} are allowed"
                );
            }
        }
    }
}

/// Around a rate limit, to know when a request counts: when its handle was told that it is ready.
struct Admission<S> {
    inner: S,
    ready_at: Option<Instant>,
    admitted: Rc<Cell<Option<Instant>>>,
    log: Rc<Log>,
}

impl<S: Clone> Clone for Admission<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            ready_at: None,
            admitted: self.admitted.clone(),
            log: self.log.clone(),
        }
    }
}

impl<S: Service<u64>> Service<u64> for Admission<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let polled = self.inner.poll_ready(cx);
        if polled.is_ready() {
            self.ready_at.get_or_insert_with(now);
        }
        polled
    }

    fn call(&mut self, request: u64) -> S::Future {
        self.admitted.set(self.ready_at.take());
        self.inner.call(request)
    }
}

#[derive(Clone)]
struct Attempts {
    left: u64,
    wait: Duration,
}

impl<E> Policy<u64, u64, E> for Attempts {
    type Future = Sleep;

    fn retry(&mut self, _: &mut u64, result: &mut Result<u64, E>) -> Option<Sleep> {
        if result.is_ok() {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        Some(Sim.sleep(self.wait))
    }

    fn clone_request(&mut self, request: &u64) -> Option<u64> {
        Some(*request)
    }
}

/// Sends requests, and changes its mind.
struct Client {
    run: Rc<Run>,
    stack: Stack,
    dice: Dice,
}

impl Client {
    async fn work(mut self) {
        let mut kept = self.stack.clone();
        for _ in 0..self.dice.number(1..12) {
            if self.dice.chance(0.5) {
                sleep(self.dice.millis(0..60)).await;
            }
            let patience = self.dice.chance(0.3).then(|| self.dice.millis(0..80));
            let kind = self.dice.number(0..5);
            let pause = self.dice.millis(0..20);
            let request = self.run.number();
            let outcome = match kind {
                // Waits for readiness, and then has no request.
                0 => {
                    let ready = self.stack.clone().ready_oneshot();
                    if let Some(Ok(reserved)) = within(patience, ready).await {
                        sleep(pause).await;
                        drop(reserved);
                    }
                    continue;
                }
                // Waits for readiness, and has a request later; with a handle that it keeps.
                1 => {
                    let outcome = within(patience, async {
                        kept.ready().await?;
                        sleep(pause).await;
                        kept.call(request).await
                    });
                    let outcome = outcome.await;
                    if !matches!(outcome, Some(Ok(_))) {
                        // It may have failed when it was asked whether it is ready.
                        kept = self.stack.clone();
                    }
                    outcome
                }
                // Begins to wait in this task, and goes on in another.
                2 => {
                    let mut waiting = Box::pin(self.stack.clone().oneshot(request));
                    let result = match within(Some(pause), &mut waiting).await {
                        Some(result) => result,
                        None => spawn_named("moved", waiting).await,
                    };
                    Some(result)
                }
                _ => within(patience, self.stack.clone().oneshot(request)).await,
            };
            match outcome {
                Some(result) => self.run.settle(request, result),
                None => self.run.cancelled.set(self.run.cancelled.get() + 1),
            }
        }
    }
}

/// What `future` gives within `patience`, after which it is dropped.
async fn within<F: Future>(patience: Option<Duration>, future: F) -> Option<F::Output> {
    let future = pin!(future);
    let Some(patience) = patience else {
        return Some(future.await);
    };
    match select(future, sleep(patience)).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

async fn run(run: Rc<Run>, mut dice: Dice) {
    let stack = run.build(&mut dice);
    let mut clients = Vec::new();
    for n in 0..dice.number(1..9) {
        let client = Client {
            run: Rc::clone(&run),
            stack: stack.clone(),
            dice: Dice::new(dice.number(0..u64::MAX)),
        };
        clients.push(spawn_named(format!("client {n}"), client.work()));
    }
    let shutdown = run.shutdown.take().filter(|_| dice.chance(0.2));
    let ends = shutdown.is_some();
    let moment = dice.millis(0..200);
    if let Some(shutdown) = shutdown {
        run.say(format_args!("shutdown at {moment:?}"));
        run.may_fail("Closed");
        run.may_fail("ServiceError");
        clients.push(spawn_named("shutdown", async move {
            sleep(moment).await;
            shutdown().await;
        }));
    }
    for client in clients {
        client.await;
    }
    idle().await;

    // Budgets are full again, and nobody is there: a few requests pass, one by one.
    sleep(HOUR).await;
    for _ in 0..3 {
        let request = run.number();
        let result = stack.clone().oneshot(request).await;
        if let Err(error) = &result {
            let name = name(error);
            // Another attempt follows at once, and may find a rate limit reached.
            let excuse = run.about.borrow().contains("pauses") || run.attempts.get() > 1;
            let is_free = !matches!(name, "Overloaded" | "Limited") || excuse;
            assert!(is_free || ends, "nobody is there: {error}");
        }
        run.settle(request, result);
        sleep(HOUR).await;
    }
    match run.room.take() {
        // A worker may keep a permit for a request that is gone; all room in the queue can be had at once.
        Some(room) => drop(futures::future::join_all(room()).await),
        None => run.check_permits(),
    }
    drop(stack);
    idle().await;
}

thread_local! {
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// What happened in a run, to be the same each time.
fn simulate(seed: u64, show: bool) -> (String, u64) {
    SEED.set(seed);
    let state = Rc::new(Run::default());
    let runtime = Runtime::new(seed).polls_per_moment(100_000);
    let main = run(state.clone(), Dice::new(!seed));
    let result = catch_unwind(AssertUnwindSafe(|| {
        runtime
            .block_on(main)
            .unwrap_or_else(|stuck| panic!("{stuck}"));
        state.check(&runtime);
    }));
    let about = state.about.take();
    let [answered, failed, cancelled] =
        [&state.answered, &state.failed, &state.cancelled].map(Cell::get);
    let summary = format!(
        "{about}{answered} answered, {failed} failed, {cancelled} cancelled, {:?}",
        runtime.elapsed()
    );
    if let Err(panic) = result {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        panic!(
            "seed {seed}: {}\nthe stack, from the inside: {summary}\nto see it again: \
             CAMPANILE_SEED={seed} cargo test --all-features --test chaos",
            message.unwrap_or("a panic")
        );
    }
    if show {
        println!("seed {seed}: {summary}");
    }
    (summary, runtime.trace().fingerprint())
}

fn from_env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number, and not {value:?}")),
    )
}

#[test]
fn random_stacks_keep_their_promises() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload().downcast_ref::<&str>();
        if !message.is_some_and(|message| message.starts_with("an injected panic")) {
            // What aborts says nothing later.
            eprintln!("in the run of seed {}:", SEED.get());
            hook(info);
        }
    }));
    if let Some(seed) = from_env("CAMPANILE_SEED") {
        simulate(seed, true);
        return;
    }
    for seed in 0..from_env("CAMPANILE_RUNS").unwrap_or(2000) {
        simulate(seed, false);
    }
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    for seed in 0..20 {
        assert_eq!(simulate(seed, false), simulate(seed, false));
    }
}
