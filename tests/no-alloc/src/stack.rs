//! The stack: a sensor on a bus, shared by several tasks, and the answers that they must get.

use core::cell::Cell;
use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, ready};
use core::time::Duration;

use campanile::buffer::{self, FixedError, StaticQueue};
use campanile::limit::concurrency::{self, LocalSemaphore, StaticSemaphore};
use campanile::limit::rate::{self, Limiter};
use campanile::limit::{ConcurrencyLimit, Rate, RateLimit};
use campanile::retry::{Action, StandardPolicy, budget::TpsBudget};
use campanile::steer::Steer;
use campanile::util::rng::SplitMix64;
use campanile::{Service, ServiceBuilder, ServiceExt, Timer, builder, filter, load_shed, timeout};

use crate::clock::{Clock, Sleep};

/// A register for which the sensor never answers.
const SILENT: u16 = 0xff;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Nack;

/// Takes two milliseconds for a reading, and fails every fifth one.
struct Sensor {
    readings: u32,
}

impl Service<u16> for Sensor {
    type Response = u32;
    type Error = Nack;
    type Future = Reading;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Nack>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, register: u16) -> Reading {
        self.readings += 1;
        let takes = match register {
            SILENT => Duration::MAX,
            _ => Duration::from_millis(2),
        };
        Reading {
            ready: Clock.sleep(takes),
            value: (self.readings % 5 != 0).then_some(u32::from(register)),
        }
    }
}

struct Reading {
    ready: Sleep,
    value: Option<u32>,
}

impl Future for Reading {
    type Output = Result<u32, Nack>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(Pin::new(&mut self.ready).poll(cx));
        Poll::Ready(self.value.ok_or(Nack))
    }
}

// The tasks share statics, whose types have to be named.
type Limited =
    RateLimit<ConcurrencyLimit<Sensor, &'static StaticSemaphore<1>>, Clock, &'static Limiter>;
type Response = <Limited as Service<u16>>::Future;

static QUEUE: StaticQueue<u16, Response, 4> = StaticQueue::new();
static ON_THE_BUS: StaticSemaphore<1> = StaticSemaphore::new(2);
static RETRIES: TpsBudget<Clock> = TpsBudget::with_timer(Duration::from_secs(10), 10, 0.5, Clock);
static BUDGET: Limiter = Limiter::new(Rate::new(500, Duration::from_secs(1)).burst(2));

/// All errors, so that the tasks can match them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Error {
    Bus,
    Closed,
    NoSuchRegister,
    Overflow,
    RateLimited,
    TimedOut,
}

struct NoSuchRegister;

impl From<Nack> for Error {
    fn from(_: Nack) -> Self {
        Self::Bus
    }
}

impl<E: Into<Self>> From<concurrency::Error<E>> for Error {
    fn from(error: concurrency::Error<E>) -> Self {
        match error {
            concurrency::Error::Overflow(_) => Self::Overflow,
            concurrency::Error::Service(error) => error.into(),
        }
    }
}

impl<E: Into<Self>> From<rate::Error<E>> for Error {
    fn from(error: rate::Error<E>) -> Self {
        match error {
            rate::Error::Service(error) => error.into(),
            _ => Self::RateLimited,
        }
    }
}

impl<E: Into<Self>> From<FixedError<E>> for Error {
    fn from(error: FixedError<E>) -> Self {
        match error {
            FixedError::Overflow(_) => Self::Overflow,
            FixedError::Closed(_) | FixedError::Panicked(_) => Self::Closed,
            FixedError::Failed(error) | FixedError::Service(error) => error.into(),
        }
    }
}

impl<E: Into<Self>> From<filter::Error<E, NoSuchRegister>> for Error {
    fn from(error: filter::Error<E, NoSuchRegister>) -> Self {
        match error {
            filter::Error::Rejected(NoSuchRegister) => Self::NoSuchRegister,
            filter::Error::Service(error) => error.into(),
        }
    }
}

impl<E: Into<Self>> From<timeout::Error<E>> for Error {
    fn from(error: timeout::Error<E>) -> Self {
        match error {
            timeout::Error::Elapsed(_) => Self::TimedOut,
            timeout::Error::Service(error) => error.into(),
        }
    }
}

/// Reads the sensor without a stack.
#[cfg(feature = "no-stack")]
pub async fn without() -> Result<(), &'static str> {
    let mut sensor = Sensor { readings: 0 };
    let reading = sensor.call(1).await;
    reading.map(drop).map_err(|_| "a reading failed")
}

/// Uses the stack from several tasks, and returns the first failure.
pub async fn check() -> Result<(), &'static str> {
    let limited = RateLimit::with_limiter(
        ConcurrencyLimit::with_semaphore(Sensor { readings: 0 }, &ON_THE_BUS),
        &BUDGET,
        Clock,
    );
    let (buffer, worker) =
        buffer::try_pair_in(limited, &QUEUE).map_err(|_| "the queue was in use")?;
    let policy = StandardPolicy::with_rng(SplitMix64::new(1), Clock)
        .budget(&RETRIES)
        .classify(|result: &Result<u32, Error>| match result {
            Err(Error::Bus) => Action::Retry,
            _ => Action::Return,
        });
    let stack = builder::ServiceBuilder::with_runtime(Clock)
        .load_shed()
        .retry(policy)
        .err_into::<Error>()
        .timeout(Duration::from_millis(100))
        .filter(|register: u16| match register {
            0..0x100 => Ok(register),
            _ => Err(NoSuchRegister),
        })
        .map_response(|value: u32| value * 2)
        .service(buffer);

    #[cfg(not(feature = "one-request"))]
    let clients = clients(&stack);
    #[cfg(feature = "one-request")]
    let clients = async {
        stack
            .oneshot(1)
            .await
            .map(drop)
            .map_err(|_| "a reading failed")
    };

    // The worker runs until the last handle is dropped, which the caller holds.
    let (mut clients, mut worker) = (pin!(clients), pin!(worker));
    poll_fn(|cx| {
        if worker.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err("the worker ended"));
        }
        clients.as_mut().poll(cx)
    })
    .await
}

/// Several tasks that use the stack, and the checks of their answers.
async fn clients<S>(stack: &S) -> Result<(), &'static str>
where
    S: Service<u16, Response = u32, Error = load_shed::Error<Error>> + Clone,
{
    let sum = &Cell::new(0);
    let client = |registers: core::ops::Range<u16>| async move {
        for register in registers {
            match stack.clone().oneshot(register).await {
                Ok(value) => sum.set(sum.get() + value),
                Err(_) => return Err("a reading failed"),
            }
        }
        Ok(())
    };
    let start = Clock.now();
    join([
        pin!(client(0..10)),
        pin!(client(10..20)),
        pin!(client(20..30)),
    ])
    .await?;
    // Each register was read twice.
    if sum.get() != 2 * (0..30).sum::<u32>() {
        return Err("the readings are wrong");
    }
    let took = Clock.now().saturating_duration_since(start);
    // 30 readings and 7 retries: two pass at once, then one every two milliseconds.
    if took < Duration::from_millis(2 * (37 - 2)) {
        return Err("the rate was exceeded");
    }

    let rejected = stack.clone().oneshot(0x100).await;
    if rejected != Err(load_shed::Error::Service(Error::NoSuchRegister)) {
        return Err("a register was let through that is not there");
    }

    let start = Clock.now();
    if stack.clone().oneshot(SILENT).await != Err(load_shed::Error::Service(Error::TimedOut)) {
        return Err("silence was not timed out");
    }
    let took = Clock.now().saturating_duration_since(start);
    if !(Duration::from_millis(100)..Duration::from_millis(150)).contains(&took) {
        return Err("silence was timed out too early or too late");
    }

    // One handle for even registers and one for odd ones.
    let by_register = |register: &u16, _: &[_]| usize::from(register % 2);
    let mut steer = Steer::with_services([stack.clone(), stack.clone()], by_register);
    for register in 1..3 {
        let Ok(steer) = steer.ready().await else {
            return Err("the handles did not become ready");
        };
        match steer.call(register).await {
            Ok(value) if value == 2 * u32::from(register) => {}
            _ => return Err("a reading by way of a steer failed"),
        }
    }

    // On a single thread a semaphore need not be static.
    let permits = LocalSemaphore::<1>::new(1);
    let single = ServiceBuilder::new()
        .load_shed()
        .layer(campanile::limit::GlobalConcurrencyLimitLayer::with_semaphore(&permits))
        .service(stack.clone());
    let held = single.clone().ready_oneshot().await;
    let shed = single.clone().oneshot(1).await;
    if !matches!(shed, Err(load_shed::Error::Overloaded(_))) {
        return Err("a request was not shed");
    }
    drop(held);
    match single.oneshot(1).await {
        Ok(2) => Ok(()),
        _ => Err("a permit did not come back"),
    }
}

/// Waits for all tasks, or for the first failure.
async fn join<F, const N: usize>(mut tasks: [Pin<&mut F>; N]) -> F::Output
where
    F: Future<Output = Result<(), &'static str>>,
{
    let mut done = [false; N];
    poll_fn(|cx| {
        for (task, done) in tasks.iter_mut().zip(&mut done) {
            if !*done {
                match task.as_mut().poll(cx) {
                    Poll::Ready(Ok(())) => *done = true,
                    Poll::Ready(failed) => return Poll::Ready(failed),
                    Poll::Pending => {}
                }
            }
        }
        match done.iter().all(|done| *done) {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    })
    .await
}
