//! How a random stack is built, layer by layer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use campanile::balance::p2c::Balance;
use campanile::balance::quarantine::QuarantineLayer;
use campanile::discover::{Sender, channel};
use campanile::filter::{AsyncFilter, Filter};
use campanile::hedge::{Delay, ShareBudget};
use campanile::limit::concurrency::{ConcurrencyLimit, Semaphore};
use campanile::limit::rate::Rate;
use campanile::load::{CompleteOnResponse, Constant, Load};
use campanile::load_shed::LoadShed;
use campanile::reconnect::{ConnectErrors, Reconnect};
use campanile::retry::backoff::{ExponentialBackoffMaker, Jitter};
use campanile::retry::budget::{TpsBudget, Unlimited};
use campanile::retry::{CloneByClone, Retry, StandardPolicy};
use campanile::runtime::SharedTimer;
use campanile::steer::Steer;
use campanile::testing::buffer::Buffer;
use campanile::testing::hedge::Hedge;
use campanile::testing::limit::RateLimit;
use campanile::testing::load::{PeakEwma, PendingRequests};
use campanile::testing::spawn_ready::SpawnReady;
use campanile::testing::{Faults, Probe, Sim, now, sleep, spawn_named};
use campanile::timeout::{Deadline, Timeout};
use campanile::util::rng::SplitMix64;
use campanile::{BoxError, Layer, Service, ServiceExt, Timer, service_fn};
use futures::future::LocalBoxFuture;

use super::doubles::{
    Account, Admission, Attempts, Dice, Gauge, Held, Log, Mortal, RateBound, Refused, Rejected,
    Remade, Single,
};
use super::{Run, Stack};

/// The properties of the inner stack that decide which layers may go on top.
#[derive(Clone, Copy, Default)]
struct Beneath {
    /// A ready handle may keep other handles from becoming ready.
    reserves: bool,
    /// A retry may have to wait for what handles reserve.
    retries: bool,
    /// A response that is not polled may hold a permit.
    holds: bool,
    /// A worker may panic, which ends the stack.
    panics: bool,
}

fn boxed<S>(service: S) -> Stack
where
    S: Service<u64, Response = u64, Error: Into<BoxError> + 'static, Future: 'static>,
    S: Clone + 'static,
{
    Stack::new(service.map_err(Into::into))
}

fn single<S>(service: S) -> Single
where
    S: Service<u64, Response = u64, Error: Into<BoxError> + 'static, Future: 'static> + 'static,
{
    Single::new(service.map_err(Into::into))
}

/// Builds a stack from the inside out.
pub(super) struct Builder<'a> {
    run: &'a Rc<Run>,
    dice: &'a mut Dice,
    beneath: Beneath,
    alarm: SharedTimer<Sim>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(run: &'a Rc<Run>, dice: &'a mut Dice) -> Self {
        Self {
            run,
            dice,
            beneath: Beneath::default(),
            alarm: SharedTimer::new(Sim),
        }
    }

    pub(super) fn build(mut self) -> Stack {
        let mut stack = self.leaf();
        for _ in 0..self.dice.number(1..6) {
            stack = self.add_layer(stack);
        }
        self.probed(stack, None)
    }

    /// Puts another layer around `inner`.
    ///
    /// In some stacks a request can wait for what is held without a request, where the documentation says so:
    ///
    /// - A buffer that keeps its service ready holds what a retry beneath it may need.
    /// - The ready endpoints of a balancer that are not chosen hold what others may need.
    /// - An unreserved limit calls before there is a permit; others may need what the call holds.
    ///
    /// Such stacks are rare. In them no client waits without a time limit, and everything still has to come back.
    fn add_layer(&mut self, inner: Stack) -> Stack {
        let Beneath {
            reserves,
            holds,
            panics,
            ..
        } = self.beneath;
        let kind = self.dice.number(0..14);
        let waits_for_itself = match kind {
            1 => reserves,
            2 => holds,
            _ => false,
        };
        if waits_for_itself && self.dice.chance(0.8) {
            return self.concurrency_limit(inner);
        }
        self.run
            .is_hasty
            .set(self.run.is_hasty.get() || waits_for_itself);
        match kind {
            0 => {
                let inner = self.probed(inner, None);
                self.buffer(single(inner))
            }
            // No request gets through to a service that has ended, and a balancer would keep trying.
            1 if !panics => self.balance(inner),
            2 => self.unreserved_limit(inner),
            10 => self.concurrency_limit(inner),
            11 => self.filter(inner),
            12 if !reserves => self.steer(inner),
            3 => {
                let refusing = self.dice.chance(0.3);
                let inner = self.probed(inner, None);
                self.rate_limit(inner, refusing)
            }
            4 => {
                let inner = self.probed(inner, None);
                self.timeout(inner)
            }
            5 => {
                let inner = self.probed(inner, None);
                self.deadline(inner)
            }
            6 => self.retry(inner),
            7 => self.hedge(inner),
            8 => self.spawn_ready(inner),
            9 => self.reconnect(inner),
            _ => {
                self.run.say(format_args!("load_shed"));
                self.run.may_fail("Overloaded");
                boxed(LoadShed::new(self.probed(inner, None)))
            }
        }
    }

    /// Puts a probe around `inner` that allows no more than `limit` requests in flight.
    fn probed(&self, inner: Stack, limit: Option<usize>) -> Stack {
        boxed(self.probe(limit).layer(inner))
    }

    fn probe(&self, limit: Option<usize>) -> Rc<Probe> {
        let probe = Rc::new(Probe::new());
        let wavers = self.run.wavers.get();
        self.run
            .probes
            .borrow_mut()
            .push((probe.clone(), limit, wavers));
        probe
    }

    fn backoff(&mut self) -> ExponentialBackoffMaker<SplitMix64, Sim> {
        let (min, max) = (self.dice.millis(0..50), self.dice.millis(50..200));
        let rng = SplitMix64::new(self.dice.number(0..u64::MAX));
        ExponentialBackoffMaker::with_timer(min, max, Jitter::Equal, rng, Sim).unwrap()
    }

    /// The innermost service: slow and flaky.
    fn leaf(&mut self) -> Stack {
        let run = Rc::clone(self.run);
        let service = service_fn(move |request| {
            *run.reached.borrow_mut().entry(request).or_insert(0) += 1;
            async move { Ok::<_, BoxError>(request) }
        });
        let (run, dice) = (self.run, &mut *self.dice);
        let mut faults = Faults::new(dice.number(0..u64::MAX)).delays(
            dice.number(0..101) as f64 / 100.0,
            dice.millis(0..10)..dice.millis(10..100),
        );
        if dice.chance(0.5) {
            run.say(format_args!("errors"));
            run.may_fail("Injected");
            faults = faults.errors(0.2);
        }
        if dice.chance(0.2) {
            run.say(format_args!("pauses"));
            faults = faults.pauses(0.2, dice.millis(0..10)..dice.millis(10..100));
        }
        let hangs = dice.chance(0.2);
        if hangs {
            run.say(format_args!("hangs"));
            faults = faults.never_answers(0.2);
        }
        if dice.chance(0.1) {
            run.say(format_args!("panics"));
            self.beneath.panics = true;
            run.may_fail("Panicked");
            run.may_fail("ServiceError");
            faults = faults.call_panics(0.02);
            // Only the worker panics.
            let inner = self.probed(boxed(faults.layer(service)), None);
            let service = self.buffer(single(inner));
            return if hangs {
                self.timeout(service)
            } else {
                service
            };
        }
        let service = boxed(faults.layer(service));
        match hangs {
            false => service,
            true if self.dice.chance(0.5) => self.timeout(service),
            true => self.deadline(service),
        }
    }

    fn buffer(&mut self, inner: Single) -> Stack {
        let dice = &mut *self.dice;
        let (bound, unreserved) = (dice.size(1..6), dice.chance(0.2));
        let keep_ready = dice.chance(0.2);
        let keeps_from_retries = keep_ready && self.beneath.retries;
        self.run
            .is_hasty
            .set(self.run.is_hasty.get() || keeps_from_retries);
        let name = if unreserved { " unreserved" } else { "" };
        let kept = if keep_ready { " kept ready" } else { "" };
        self.run.say(format_args!("buffer {bound}{name}{kept}"));
        let mut buffer = Buffer::<u64, _>::new(inner, bound);
        if unreserved {
            buffer = buffer.unreserved();
        }
        if keep_ready {
            buffer = buffer.keep_ready();
        }
        let handle = buffer.clone();
        *self.run.shutdown.borrow_mut() = Some(Box::new(move || Box::pin(handle.shutdown())));
        let handle = buffer.clone();
        *self.run.room.borrow_mut() = Some(Box::new(move || {
            let ready = |handle: Buffer<u64, _>| async move {
                let reserved = handle.ready_oneshot().await;
                sleep(Duration::from_secs(1)).await;
                drop(reserved);
            };
            let all = (0..bound).map(|_| Box::pin(ready(handle.clone())) as _);
            all.collect::<Vec<LocalBoxFuture<'static, ()>>>()
        }));
        // Only the buffer's handles are visible from above, and they always become ready again.
        self.run.wavers.set(false);
        self.beneath = Beneath {
            reserves: !unreserved,
            retries: false,
            ..self.beneath
        };
        boxed(buffer)
    }

    /// Endpoints that come, go and die.
    fn balance(&mut self, inner: Stack) -> Stack {
        let run = self.run;
        let kind = self.dice.number(0..3);
        let dies = *self.dice.pick(&[0.0, 0.1]);
        let limit = self.dice.chance(0.5).then(|| self.dice.size(1..3));
        let failures = self.dice.number(0..3) as u32;
        let name = ["constant", "pending", "ewma"][kind as usize];
        run.say(format_args!(
            "balance {name} dies {dies} limit {limit:?} failures {failures}"
        ));
        run.wavers.set(true);

        let mut endpoint = {
            let (run, probe) = (Rc::clone(run), self.probe(None));
            let mut dice = self.dice.fork();
            // Each endpoint has a limit of its own, so each has a probe above it.
            move || {
                let mut endpoint = inner.clone();
                if let Some(max) = limit {
                    let bounded = Rc::new(Probe::new());
                    endpoint = boxed(bounded.layer(endpoint));
                    run.probes.borrow_mut().push((bounded, Some(max), true));
                    let semaphore = Semaphore::new(max);
                    run.semaphores.borrow_mut().push((semaphore.clone(), max));
                    endpoint = boxed(ConcurrencyLimit::with_semaphore(endpoint, semaphore));
                }
                boxed(probe.layer(Mortal::new(endpoint, dies, dice.fork())))
            }
        };
        self.beneath.holds |= limit.is_some();
        let run = Rc::clone(run);
        let watched =
            move |in_flight: Box<dyn Fn() -> usize>| run.loads.borrow_mut().push(in_flight);
        match kind {
            0 => self.balance_of(move |n| Constant::new(endpoint(), n % 3), failures),
            1 => self.balance_of(
                move |_| {
                    let load = PendingRequests::new(endpoint(), CompleteOnResponse);
                    let clone = load.clone();
                    watched(Box::new(move || clone.in_flight()));
                    load
                },
                failures,
            ),
            _ => self.balance_of(
                move |_| {
                    let (rtt, decay) = (Duration::from_millis(10), 1e8);
                    let load = PeakEwma::new(endpoint(), rtt, decay, CompleteOnResponse);
                    let clone = load.clone();
                    watched(Box::new(move || clone.in_flight()));
                    load
                },
                failures,
            ),
        }
    }

    fn balance_of<S>(
        &mut self,
        mut endpoint: impl FnMut(u64) -> S + 'static,
        failures: u32,
    ) -> Stack
    where
        S: Service<u64, Response = u64, Error = BoxError, Future: 'static> + Load + Clone + 'static,
        S::Metric: 'static,
    {
        let dice = &mut *self.dice;
        let (endpoints, changes) = channel();
        for key in 0..dice.number(1..5) {
            endpoints.insert(key, endpoint(key)).unwrap();
        }
        let steps = dice.number(0..8);
        let operator = operate(endpoints, endpoint, dice.fork(), steps);
        drop(spawn_named("operator", operator));
        let seed = SplitMix64::new(dice.number(0..u64::MAX));
        let layer = QuarantineLayer::with_timer(Sim).backoff(self.backoff());
        let layer = layer.consecutive_failures(failures);
        let balance = Balance::with_layer(changes, layer).seed(seed);
        let probe = self.probe(None);
        self.buffer(single(probe.layer(balance)))
    }

    fn concurrency_limit(&mut self, inner: Stack) -> Stack {
        let max = self.dice.size(1..5);
        self.run.say(format_args!("concurrency_limit {max}"));
        let gauge = self.gauge(max);
        let inner = self
            .probed(inner, Some(max))
            .map_future(move |future| Held::new(future, &gauge));
        self.beneath.reserves = true;
        self.beneath.holds = true;
        boxed(ConcurrencyLimit::with_semaphore(inner, self.semaphore(max)))
    }

    /// It calls at once, so the test counts futures.
    fn unreserved_limit(&mut self, inner: Stack) -> Stack {
        let max = self.dice.size(1..5);
        self.run
            .say(format_args!("unreserved concurrency_limit {max}"));
        let gauge = self.gauge(max);
        let inner = self
            .probed(inner, None)
            .map_future(move |future| Held::new(future, &gauge));
        boxed(ConcurrencyLimit::with_semaphore(inner, self.semaphore(max)).unreserved())
    }

    /// A count of the futures alive at a limit.
    fn gauge(&self, max: usize) -> Rc<Gauge> {
        let gauge = Rc::new(Gauge::default());
        self.run.gauges.borrow_mut().push((gauge.clone(), max));
        gauge
    }

    fn semaphore(&self, max: usize) -> Semaphore {
        let semaphore = Semaphore::new(max);
        self.run
            .semaphores
            .borrow_mut()
            .push((semaphore.clone(), max));
        semaphore
    }

    fn timeout(&mut self, inner: Stack) -> Stack {
        match self.timer() {
            Some(shared) => self.timeout_on(inner, shared),
            None => self.timeout_on(inner, Sim),
        }
    }

    fn timeout_on<T: Timer + Clone + 'static>(&mut self, inner: Stack, timer: T) -> Stack {
        let limit = self.dice.millis(1..200);
        self.run.say(format_args!("timeout {limit:?}"));
        self.run.may_fail("Elapsed");
        let timeout = Timeout::with_timer(inner, limit, timer);
        boxed(match self.dice.chance(0.5) {
            true => timeout.from_call(),
            false => timeout,
        })
    }

    /// The stack's shared alarm, for half of the waits.
    fn timer(&mut self) -> Option<SharedTimer<Sim>> {
        let shared = self.dice.chance(0.5).then(|| self.alarm.clone());
        if shared.is_some() {
            self.run.say(format_args!("shared"));
        }
        shared
    }

    fn deadline(&mut self, inner: Stack) -> Stack {
        match self.timer() {
            Some(shared) => self.deadline_on(inner, shared),
            None => self.deadline_on(inner, Sim),
        }
    }

    fn deadline_on<T: Timer + Clone + 'static>(&mut self, inner: Stack, timer: T) -> Stack {
        let limit = self.dice.millis(1..300);
        self.run.say(format_args!("deadline {limit:?}"));
        self.run.may_fail("Elapsed");
        boxed(Deadline::with_timer(inner, limit, timer))
    }

    fn rate_limit(&mut self, inner: Stack, refusing: bool) -> Stack {
        let dice = &mut *self.dice;
        let (num, per) = (dice.number(1..10), dice.millis(10..500));
        let rate = Rate::new(num, per);
        let burst = dice.number(1..num + 1);
        // The bounds that the documentation of `limit::rate` promises.
        let (rate, in_window, at_once) = match dice.number(0..4) {
            0 => (rate, 2 * num - 1, num),
            1 => (rate.burst(burst), num + burst - 1, burst),
            2 => (rate.strict(burst), num, burst),
            _ => (rate.fixed_window(), 2 * num, 2 * num),
        };
        let kind = if refusing { "refusing " } else { "" };
        self.run.say(format_args!("{kind}{rate:?}"));
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
            self.run.may_fail("Limited");
            return boxed(limit.wait_at_most(self.dice.millis(0..200)));
        }
        self.run.rates.borrow_mut().push((bound, log));
        boxed(Admission::new(limit, admitted))
    }

    fn retry(&mut self, inner: Stack) -> Stack {
        let left = self.dice.number(1..3);
        let wait = self.dice.millis(0..50);
        self.run.multiply_attempts(left + 1);
        self.beneath.retries |= self.beneath.reserves;
        let inner = self.probed(inner, None);
        if self.dice.chance(0.5) {
            self.run.say(format_args!("retry {left}"));
            return boxed(Retry::new(Attempts { left, wait }, inner));
        }
        let share = *self.dice.pick(&[0.0, 0.1, 0.5, 1.0]);
        self.run.say(format_args!("retry {left} of {share}"));
        let budget = TpsBudget::with_timer(Duration::from_secs(10), 0, share as f32, Sim);
        let policy = StandardPolicy::with_backoff(self.backoff(), Sim);
        let policy = policy.max_retries(left as u32).budget(Rc::new(budget));
        let account = self.account(share, 0);
        boxed(account.ask(Retry::new(policy, account.send(inner))))
    }

    fn hedge(&mut self, inner: Stack) -> Stack {
        let delay = self.dice.millis(0..50);
        self.run.multiply_attempts(2);
        let inner = self.probed(inner, None);
        let delay = Delay::fixed(delay);
        if self.dice.chance(0.5) {
            self.run.say(format_args!("hedge {delay:?}"));
            let hedge = Hedge::with_delay(inner, CloneByClone, delay);
            return boxed(hedge.budget(Unlimited));
        }
        let share = *self.dice.pick(&[0.0, 0.1, 0.5, 1.0]);
        self.run.say(format_args!("hedge {delay:?} of {share}"));
        let account = self.account(share, 10);
        let hedge = Hedge::with_delay(account.send(inner), CloneByClone, delay);
        boxed(account.ask(hedge.budget(ShareBudget::new(share as f32))))
    }

    fn account(&self, share: f64, saved: u64) -> Rc<Account> {
        let account = Rc::new(Account::new(share, saved));
        self.run.accounts.borrow_mut().push(account.clone());
        account
    }

    /// Rejects some requests, at once or later.
    fn filter(&mut self, inner: Stack) -> Stack {
        let later = self.dice.chance(0.5).then(|| self.dice.millis(0..20));
        self.run.say(format_args!("filter {later:?}"));
        self.run.may_fail("Rejected");
        let dice = Rc::new(RefCell::new(self.dice.fork()));
        let inner = self.probed(inner, None);
        let check = move |request| match dice.borrow_mut().chance(0.2) {
            true => Err(Rejected),
            false => Ok(request),
        };
        let Some(later) = later else {
            return boxed(Filter::new(inner, check));
        };
        // The ready service waits in the response future until the check is done.
        self.beneath.holds |= self.beneath.reserves;
        boxed(AsyncFilter::new(inner, move |request| {
            let checked = check(request);
            async move {
                sleep(later).await;
                checked
            }
        }))
    }

    /// Ready only when all of its services are, so not while one of them holds what another needs.
    fn steer(&mut self, inner: Stack) -> Stack {
        let count = self.dice.size(1..4);
        self.run.say(format_args!("steer {count}"));
        let services: Box<[_]> = (0..count)
            .map(|_| self.probed(inner.clone(), None))
            .collect();
        let pick = |request: &u64, services: &[Stack]| *request as usize % services.len();
        boxed(Steer::new(services, pick))
    }

    /// Each handle has its own task.
    fn spawn_ready(&mut self, inner: Stack) -> Stack {
        self.run.say(format_args!("spawn_ready"));
        let inner = self.probed(inner, None);
        boxed(Remade::new(move || {
            single(SpawnReady::<_, u64>::new(inner.clone()))
        }))
    }

    /// Each handle has its own connection, which dies now and then.
    fn reconnect(&mut self, inner: Stack) -> Stack {
        let dice = &mut *self.dice;
        let (refuses, dies) = (*dice.pick(&[0.0, 0.3]), *dice.pick(&[0.0, 0.1]));
        let place = match self.beneath.panics || dice.chance(0.5) {
            true => ConnectErrors::InResponse,
            false => ConnectErrors::Nowhere,
        };
        self.run.say(format_args!(
            "reconnect {place:?} refuses {refuses} dies {dies}"
        ));
        if place == ConnectErrors::InResponse {
            self.run.may_fail("Refused");
            self.run.may_fail("Lost");
        } else {
            *self.run.shutdown.borrow_mut() = None;
        }
        let (delay, dice) = (dice.millis(0..20), RefCell::new(dice.fork()));
        let inner = self.probed(inner, None);
        let (probe, maker) = (self.probe(None), self.probe(None));
        self.run.wavers.set(true);
        let connect = Rc::new(move |()| {
            let mut dice = dice.borrow_mut();
            let refused = dice.chance(refuses);
            let connection = probe.layer(Mortal::new(inner.clone(), dies, dice.fork()));
            Box::pin(async move {
                sleep(delay).await;
                match refused {
                    true => Err(Refused),
                    false => Ok(connection),
                }
            })
        });
        let backoff = self.backoff();
        boxed(Remade::new(move || {
            let connect = connect.clone();
            let connect = maker.layer(service_fn(move |target| connect(target)));
            let reconnect = Reconnect::with_backoff(connect, (), backoff.clone(), Sim);
            single(reconnect.connect_errors(place))
        }))
    }
}

/// Adds, replaces and removes endpoints; at the end there is one.
async fn operate<S>(
    endpoints: Sender<u64, S>,
    mut endpoint: impl FnMut(u64) -> S,
    mut dice: Dice,
    steps: u64,
) {
    for _ in 0..steps {
        sleep(dice.millis(0..100)).await;
        let key = dice.number(0..5);
        // The balancer may have been dropped.
        let _ = match dice.chance(0.5) {
            true => endpoints.insert(key, endpoint(key)),
            false => endpoints.remove(key),
        };
    }
    let _ = endpoints.insert(0, endpoint(0));
}
