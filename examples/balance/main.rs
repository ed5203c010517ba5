//! Six TCP backends that come and go, of which one is slow, one fails for a while and one is down for a while,
//! under the same load three times: balanced by chance, by pending requests, and by peak EWMA.
//!
//!     cargo run --release --all-features --example balance [smol|tokio|async-std]
//!
//! A line for each half second says who gets which share of the requests; a chart at the end, what it was to the
//! clients. As in the quickstart only `main` knows on which runtime it runs.
mod backend;
mod endpoint;
mod report;

use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use campanile::balance::p2c::{self, Balance};
use campanile::buffer;
use campanile::discover::{Changes, Discover, Sender, channel};
use campanile::load::{
    CompleteOnResponse, Constant, Load, PeakEwmaDiscover, PendingRequestsDiscover,
};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Executor, Instant, Service, ServiceExt, Timer, reconnect};
use smol::channel::unbounded;
use smol::stream::StreamExt;

use backend::{Backend, Health};
use endpoint::{CallError, Endpoint, EndpointError, endpoint};
use report::{Outcome, Tally, print_heading, print_report, print_shares, say};

// The load: each client sends its requests one after the other, with a pause before each.
const SEED: u64 = 1;
const CLIENTS: u64 = 48;
const PAUSE: Range<u64> = 100..220; // ms

// What happens, and at which of the half seconds.
const TICK: Duration = Duration::from_millis(500);
const TICKS: u32 = 10;
const FAST: Health = Health::Works(Duration::from_millis(3));
const FAIR: Health = Health::Works(Duration::from_millis(5));
const SLOW: Duration = Duration::from_millis(40);
const BACKENDS: [(&str, Health); 5] = [
    ("ada", FAST),
    ("bob", FAST),
    ("cleo", FAIR),
    ("dora", Health::Works(SLOW)),
    ("erin", FAIR),
];
const SCRIPT: [(u32, &str, Event); 10] = [
    (0, "ada", Event::Joins),
    (0, "bob", Event::Joins),
    (0, "cleo", Event::Joins),
    (0, "dora", Event::Joins),
    (2, "bob", Event::Becomes(Health::Fails)),
    (3, "erin", Event::Joins),
    (4, "bob", Event::Becomes(FAST)),
    (5, "cleo", Event::Becomes(Health::Refuses)),
    (7, "cleo", Event::Becomes(FAIR)),
    (8, "ada", Event::Leaves),
];

#[derive(Clone, Copy)]
enum Event {
    /// Discovery finds it.
    Joins,
    /// Discovery has it no more.
    Leaves,
    /// What discovery does not know of.
    Becomes(Health),
}

// Time constants of loads are seconds where backends run for days. Here all is over in seconds.
const DECAY: Duration = Duration::from_millis(500);
/// What an endpoint is thought to take that has not answered yet.
const FIRST_GUESS: Duration = Duration::from_millis(10);

/// What this program asks of a runtime: tasks, and time.
trait AnyRuntime:
    Executor<Task> + Timer<Sleep: Send, Alarm: Send> + Clone + Send + Sync + 'static
{
}
impl<R> AnyRuntime for R where
    R: Executor<Task> + Timer<Sleep: Send, Alarm: Send> + Clone + Send + Sync + 'static
{
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

fn main() -> ExitCode {
    use campanile::{async_std::AsyncStd, smol::Smol, tokio::Tokio};

    let name = std::env::args().nth(1).unwrap_or_else(|| "smol".to_owned());
    let tallies = match name.as_str() {
        "smol" => smol::block_on(run(Smol)),
        "tokio" => tokio::runtime::Runtime::new().and_then(|tokio| tokio.block_on(run(Tokio))),
        "async-std" => async_std::task::block_on(run(AsyncStd)),
        other => {
            eprintln!("unknown runtime `{other}`: choose smol, tokio or async-std");
            return ExitCode::from(2);
        }
    };
    match tallies {
        Ok(tallies) if !tallies.iter().all(Tally::balances) => {
            eprintln!("the books do not balance");
            ExitCode::FAILURE
        }
        Ok([random, pending, ewma])
            if random.percentile(99) <= pending.percentile(99).max(ewma.percentile(99)) =>
        {
            eprintln!("to choose by chance was not the worst");
            ExitCode::FAILURE
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the run broke off: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The same three times. All that differs is what an endpoint's load is.
async fn run<R: AnyRuntime>(runtime: R) -> io::Result<[Tally; 3]> {
    // All are the same to this one, and so the better of two is either.
    let random = |found| Constant::new(found, 0);
    // The fewest requests under way; a failed one counts on for a while.
    let pending = |found| {
        PendingRequestsDiscover::with_timer(found, CompleteOnResponse, runtime.clone())
            .with_decay(DECAY)
    };
    // How long answers took lately, times the requests under way; to fail is to have taken long.
    let ewma = |found| {
        let timer = runtime.clone();
        PeakEwmaDiscover::with_timer(found, FIRST_GUESS, DECAY, CompleteOnResponse, timer)
    };
    let tallies = [
        measure(&runtime, "random choice", random).await?,
        measure(&runtime, "pending requests", pending).await?,
        measure(&runtime, "peak EWMA", ewma).await?,
    ];
    print_report(&tallies);
    Ok(tallies)
}

/// Starts the backends and the clients, lets happen what is in the script, and counts.
async fn measure<R, D>(
    runtime: &R,
    label: &'static str,
    with_load: impl FnOnce(Changes<&'static str, Endpoint<R>>) -> D,
) -> io::Result<Tally>
where
    R: AnyRuntime,
    D: Discover<Key = &'static str, Error = Infallible> + Send + Unpin + 'static,
    D::Service: Service<u64, Response = u64, Error = EndpointError, Future: Send>,
    D::Service: Load + Clone + Send,
{
    let mut backends = Vec::new();
    for (name, health) in BACKENDS {
        backends.push(Backend::start(runtime, name, health).await?);
    }
    let (endpoints, found) = channel();
    // The endpoints that fail when they are asked whether they are ready wait in quarantine.
    let balance =
        Balance::with_timer(with_load(found), runtime.clone()).seed(SplitMix64::new(SEED));
    // Makes the balancer `Clone`. All clients share one view of the loads, and one connection per backend.
    let (service, worker) = buffer::pair(balance, CLIENTS as usize);
    runtime.execute(Box::pin(worker));

    let start = runtime.now();
    let end = start.saturating_add(TICK * TICKS);
    let sent = Arc::new(AtomicU64::new(0));
    let (results, incoming) = unbounded();
    for client in 0..CLIENTS {
        let random = SplitMix64::new(SEED ^ client << 32);
        let load = (service.clone(), random, sent.clone(), results.clone());
        runtime.execute(Box::pin(send_requests(runtime.clone(), load, end)));
    }
    drop(results); // The clients hold the others: when they are done, the channel closes.

    print_heading(label, &backends);
    direct(runtime, start, &backends, &endpoints).await?;
    let mut tally = Tally::new(label, incoming.collect().await);
    // The worker drops the balancer, and with it the connections.
    service.shutdown().await;
    tally.sent = sent.load(Relaxed);
    for backend in &backends {
        tally.chosen += backend.chosen.load(Relaxed);
        backend.stop();
    }
    Ok(tally)
}

/// Lets happen what is in the script, and prints who gets which share.
async fn direct<R: AnyRuntime>(
    runtime: &R,
    start: Instant,
    backends: &[Arc<Backend>],
    endpoints: &Sender<&'static str, Endpoint<R>>,
) -> io::Result<()> {
    // The only failure of telling a balancer; its error holds the endpoint, which is of no use here.
    let gone = io::ErrorKind::BrokenPipe;
    let (mut known, mut before) = (Vec::new(), Vec::new());
    for tick in 0..TICKS {
        for (_, name, event) in SCRIPT.into_iter().filter(|(at, ..)| *at == tick) {
            let backend = backends.iter().find(|backend| backend.name == name);
            let backend = backend.ok_or(io::ErrorKind::NotFound)?;
            let what = match event {
                Event::Joins => {
                    let sent = endpoints.insert(name, endpoint(runtime, backend));
                    sent.map_err(|_| gone)?;
                    known.push(name);
                    "joins"
                }
                Event::Leaves => {
                    endpoints.remove(name).map_err(|_| gone)?;
                    known.retain(|other| *other != name);
                    "leaves"
                }
                Event::Becomes(health) => {
                    backend.set_health(runtime, health).await?;
                    match health {
                        Health::Works(_) => "works again",
                        Health::Fails => "fails every request, at once",
                        Health::Refuses => "is down: connections are cut and refused",
                    }
                }
            };
            if tick > 0 {
                say(&format!("        {name} {what}"));
            }
        }
        let at = TICK * (tick + 1);
        runtime.sleep_until(start.saturating_add(at)).await;
        print_shares(at, backends, &known, &mut before);
    }
    Ok(())
}

/// One client: the same pauses in every run.
async fn send_requests<R, S>(
    runtime: R,
    (mut service, mut random, sent, results): (S, SplitMix64, Arc<AtomicU64>, Results),
    end: Instant,
) where
    R: AnyRuntime,
    S: Service<u64, Response = u64, Error = Failure>,
{
    loop {
        runtime
            .sleep(Duration::from_millis(random.next_range(PAUSE)))
            .await;
        let start = runtime.now();
        if start >= end {
            return;
        }
        let id = sent.fetch_add(1, Relaxed);
        let result = match service.ready().await {
            Ok(service) => service.call(id).await,
            Err(error) => Err(error),
        };
        let latency = runtime.now().saturating_duration_since(start);
        let _ = results.try_send((outcome(id, &result), latency));
    }
}

type Results = smol::channel::Sender<(Outcome, Duration)>;

/// How a request fails: each middleware that can fail has its part in the type, and the compiler
/// knows that there is no other.
type Failure = buffer::Error<p2c::Error<Infallible, EndpointError>>;

fn outcome(id: u64, result: &Result<u64, Failure>) -> Outcome {
    let error = match result {
        Ok(answer) if *answer == id => return Outcome::Answered,
        Ok(_) => return Outcome::Mixed,
        // The buffer alone has no failure that a request can meet here: it is shut down after the last one.
        Err(buffer::Error::Service(p2c::Error::Service(error))) => error,
        Err(_) => return Outcome::Unserved,
    };
    match error {
        reconnect::Error::Service(CallError::Backend) => Outcome::Failed,
        reconnect::Error::Service(CallError::CutOff) => Outcome::CutOff,
        // These are errors of readiness, which the quarantine keeps to itself.
        reconnect::Error::Connect(_) | reconnect::Error::Lost(_) => Outcome::Unserved,
        reconnect::Error::Failed(_) | reconnect::Error::NotReady(_) => Outcome::Unserved,
    }
}
