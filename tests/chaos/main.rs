//! Random stacks under random load, cancellation, faults and shutdown, in virtual time.
//!
//! Each seed is one reproducible run: `CAMPANILE_SEED=17` runs that one and prints what it does,
//! `CAMPANILE_RUNS=100000` does that many runs, starting from it. [`Run::check`] and [`Client`] hold the invariants of
//! every run.
#![cfg(feature = "testing")]

mod doubles;
mod stack;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use campanile::buffer::{Closed, Panicked, ServiceError};
use campanile::limit::concurrency::Semaphore;
use campanile::limit::rate::Limited;
use campanile::load_shed::Overloaded;
use campanile::reconnect::Lost;
use campanile::testing::faults::Injected;
use campanile::testing::probe::Rule;
use campanile::testing::{Probe, Runtime, idle, sleep, spawn_named};
use campanile::timeout::Elapsed;
use campanile::util::UnsyncBoxCloneService;
use campanile::{BoxError, Service, ServiceExt};
use futures::future::{Either, LocalBoxFuture, select};

use doubles::{Account, Dice, Gauge, Log, RateBound, Refused, Rejected};
use stack::Builder;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A request is a number, and the response is the same number.
type Stack = UnsyncBoxCloneService<u64, u64, BoxError>;

/// The parts of a run, and the invariants it has to keep.
#[derive(Default)]
struct Run {
    about: RefCell<String>,
    next: Cell<u64>,
    /// How often each request reached the innermost service.
    reached: RefCell<BTreeMap<u64, u64>>,
    /// The most attempts made at one request.
    attempts: Cell<u64>,
    /// The names of the errors that requests may fail with.
    failures: RefCell<Vec<&'static str>>,
    /// Each with its limit, if any, and whether readiness beneath it may be lost again.
    probes: RefCell<Vec<(Rc<Probe>, Option<usize>, bool)>>,
    gauges: RefCell<Vec<(Rc<Gauge>, usize)>>,
    /// Whether the stack built so far may lose its readiness: a connection may die, an endpoint leave.
    wavers: Cell<bool>,
    semaphores: RefCell<Vec<(Semaphore, usize)>>,
    rates: RefCell<Vec<(RateBound, Rc<Log>)>>,
    /// One per budget for retries or hedges.
    accounts: RefCell<Vec<Rc<Account>>>,
    /// The requests in flight per endpoint, as a balancer counts them.
    loads: RefCell<Vec<Box<dyn Fn() -> usize>>>,
    /// Whether requests may block each other for ever, so that no client waits for long.
    is_hasty: Cell<bool>,
    /// Shuts down the outermost buffer.
    shutdown: RefCell<Option<Box<dyn Fn() -> LocalBoxFuture<'static, ()>>>>,
    /// Takes all the capacity of the outermost buffer.
    room: RefCell<Option<Box<dyn Fn() -> Vec<LocalBoxFuture<'static, ()>>>>>,
    answered: Cell<u64>,
    failed: Cell<u64>,
    cancelled: Cell<u64>,
}

impl Run {
    fn say(&self, what: fmt::Arguments<'_>) {
        self.about.borrow_mut().write_fmt(what).unwrap();
        self.about.borrow_mut().push_str(", ");
    }

    fn multiply_attempts(&self, by: u64) {
        self.attempts.set(self.attempts.get() * by);
    }

    fn may_fail(&self, with: &'static str) {
        self.failures.borrow_mut().push(with);
    }

    /// Checks that nothing is lost or left behind.
    fn check(&self, runtime: &Runtime) {
        for (probe, limit, wavers) in self.probes.take() {
            let mut breaches = probe.take_violations();
            breaches.retain(|breach| !wavers || breach.rule != Rule::ReadinessLost);
            assert!(breaches.is_empty(), "{breaches:?}");
            probe.assert_released();
            assert_eq!(
                (probe.in_flight(), probe.alive()),
                (0, 0),
                "a service is left"
            );
            if let Some(limit) = limit {
                let most = probe.max_in_flight();
                assert!(most <= limit, "{most} under way at a limit of {limit}");
            }
        }
        for (gauge, limit) in &*self.gauges.borrow() {
            let most = gauge.most();
            assert!(most <= *limit, "{most} at work at a limit of {limit}");
        }
        self.accounts
            .borrow()
            .iter()
            .for_each(|account| account.check());
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
        assert_eq!(runtime.tasks(), 0, "a worker is left");
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
                assert!(
                    reached,
                    "request {request} was answered without reaching the service"
                );
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

/// Sends requests, some of which it cancels.
struct Client {
    run: Rc<Run>,
    stack: Stack,
    dice: Dice,
}

impl Client {
    async fn work(mut self) {
        let mut kept = self.stack.clone();
        // Futures that have ended but are not dropped: they must keep nothing of their request.
        let mut ended = Vec::new();
        for _ in 0..self.dice.number(1..12) {
            if self.dice.chance(0.5) {
                sleep(self.dice.millis(0..60)).await;
            }
            let is_hasty = self.run.is_hasty.get();
            let patience = match self.dice.chance(0.3) {
                true => Some(self.dice.millis(0..80)),
                false => is_hasty.then_some(5 * SECOND),
            };
            let kind = self.dice.number(0..6);
            let pause = self.dice.millis(0..20);
            let request = self.run.number();
            let outcome = match kind {
                // Waits for readiness and sends no request.
                0 => {
                    let ready = self.stack.clone().ready_oneshot();
                    if let Some(Ok(reserved)) = within(patience, ready).await {
                        sleep(pause).await;
                        drop(reserved);
                    }
                    continue;
                }
                // Waits for readiness and sends a request later, with a handle that it keeps.
                1 => {
                    let outcome = within(patience, async {
                        kept.ready().await?;
                        sleep(pause).await;
                        kept.call(request).await
                    });
                    let outcome = outcome.await;
                    if !matches!(outcome, Some(Ok(_))) {
                        // The readiness poll may have failed.
                        kept = self.stack.clone();
                    }
                    outcome
                }
                // Begins to wait in this task and continues in another.
                2 if !is_hasty => {
                    let mut waiting = Box::pin(self.stack.clone().oneshot(request));
                    let result = match within(Some(pause), &mut waiting).await {
                        Some(result) => result,
                        None => spawn_named("moved", waiting).await,
                    };
                    Some(result)
                }
                3 => {
                    let mut stack = self.stack.clone();
                    let readiness = within(patience, stack.ready()).await;
                    match readiness.map(|ready| ready.map(|_| ())) {
                        None => None,
                        Some(Err(error)) => Some(Err(error)),
                        Some(Ok(())) => {
                            let mut response = stack.call(request);
                            let result = within(patience, &mut response).await;
                            if result.is_some() {
                                ended.push(response);
                            }
                            result
                        }
                    }
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

fn name(error: &BoxError) -> &'static str {
    macro_rules! is {
        ($($name:ident)*) => {
            $(if error.downcast_ref::<$name>().is_some() {
                return stringify!($name);
            })*
        };
    }
    is!(Closed Panicked Elapsed Injected Limited Lost Overloaded Refused Rejected);
    if error.downcast_ref::<ServiceError<BoxError>>().is_some() {
        return "ServiceError";
    }
    "?"
}

/// Polls `future` for at most `patience`, then drops it.
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
    run.attempts.set(1);
    let stack = Builder::new(&run, &mut dice).build();
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
    // No request is waiting, so idle services hold no permit, except ready endpoints and services that are kept ready.
    let holds = ["balance", "kept ready"].map(|room| run.about.borrow().contains(room));
    if holds == [false; 2] {
        run.check_permits();
    }

    // Budgets have refilled and the stack is idle: a few requests pass, one by one.
    sleep(HOUR).await;
    for _ in 0..3 {
        let request = run.number();
        let patience = run.is_hasty.get().then_some(HOUR);
        let Some(result) = within(patience, stack.clone().oneshot(request)).await else {
            run.cancelled.set(run.cancelled.get() + 1);
            continue;
        };
        if let Err(error) = &result {
            let name = name(error);
            // An immediate further attempt, or another service that is asked as well, may find a rate limit reached.
            let about = run.about.borrow();
            let wavers =
                ["pauses", "balance", "reconnect", "steer"].map(|room| about.contains(room));
            let excuse = wavers.contains(&true) || run.attempts.get() > 1;
            drop(about);
            let is_free = !matches!(name, "Overloaded" | "Limited") || excuse;
            assert!(is_free || ends, "an idle stack refuses: {error}");
        }
        run.settle(request, result);
        sleep(HOUR).await;
    }
    match run.room.take() {
        // A worker may keep a permit for a cancelled request; but all queue capacity can be acquired at once.
        Some(room) => drop(futures::future::join_all(room()).await),
        None => run.check_permits(),
    }
    drop(stack);
    idle().await;
    for in_flight in run.loads.take() {
        assert_eq!(in_flight(), 0, "the load of a request is left");
    }
    // These held handles of the services beneath.
    idle().await;
}

thread_local! {
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// Summarises what happened in a run; equal seeds give equal summaries.
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
fn random_stacks_keep_the_invariants() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload().downcast_ref::<&str>();
        if !message.is_some_and(|message| message.starts_with("an injected panic")) {
            // A panic that aborts the process leaves no later chance to print the seed.
            eprintln!("in the run of seed {}:", SEED.get());
            hook(info);
        }
    }));
    let (first, runs) = (from_env("CAMPANILE_SEED"), from_env("CAMPANILE_RUNS"));
    let count = runs.unwrap_or(if first.is_some() { 1 } else { 2000 });
    let first = first.unwrap_or(0);
    for seed in first..first.saturating_add(count) {
        simulate(seed, count == 1);
    }
}

#[test]
fn seed_reproduces_its_run() {
    for seed in 0..20 {
        assert_eq!(simulate(seed, false), simulate(seed, false));
    }
}
