//! Five TCP backends that come and go, and are slow, broken or down for a while, under the same load three times:
//! balanced at random, by pending requests, and by peak EWMA.
//!
//!     cargo run --release --all-features --example balance [smol|tokio|async-std]
//!
//! Every half second a line shows each backend's share of the requests, and at the end a chart shows what the clients
//! saw. As in the quickstart, only `main` knows the runtime.
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
use campanile::discover::{Changes, Discover, Sender, channel};
use campanile::layer::Identity;
use campanile::load::{
    CompleteOnResponse, Constant, Load, PeakEwmaDiscover, PendingRequestsDiscover,
};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Executor, Instant, Service, ServiceExt, Timer, buffer, reconnect};
use smol::channel::unbounded;
use smol::stream::StreamExt;

use backend::{Backend, State};
use endpoint::{CallError, Endpoint, EndpointError, endpoint};
use report::{Outcome, Tally, print_heading, print_news, print_report, print_shares};

// The load: each client sends its requests one after the other, with a pause before each.
const SEED: u64 = 1;
const CLIENTS: u64 = 48;
const PAUSE: Range<u64> = 100..220; // ms

// What happens to the backends, and after how many ticks. Only one problem at a time: if both endpoints drawn are
// bad, the better of the two is bad as well.
const TICK: Duration = Duration::from_millis(500);
const TICKS: u32 = 12;
const FAST: State = State::Works(Duration::from_millis(3));
const FAIR: State = State::Works(Duration::from_millis(5));
const SLOW: State = State::Works(Duration::from_millis(40));
const SCRIPT: [(&str, &[(u32, State)]); 5] = [
    ("ada", &[(0, FAST), (10, State::Unknown)]),
    ("bob", &[(0, FAST), (5, State::Fails), (7, FAST)]),
    ("cleo", &[(0, FAIR), (7, State::Down), (9, FAIR)]),
    ("dora", &[(0, FAST), (1, SLOW), (5, FAST)]),
    ("erin", &[(3, FAIR)]),
];

// How fast the loads decay. With backends that run for days this is some seconds; here the whole run takes six.
const DECAY: Duration = Duration::from_millis(500);
/// The assumed latency of an endpoint that has not answered yet.
const FIRST_GUESS: Duration = Duration::from_millis(10);

/// What this program needs from a runtime: tasks and time.
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
    let complaint = match tallies {
        Ok(tallies) if !tallies.iter().all(Tally::balances) => "the books do not balance".into(),
        Ok(tallies) if !is_as_promised(&tallies) => "chance was not the worst".into(),
        Ok(_) => return ExitCode::SUCCESS,
        Err(error) => format!("the run broke off: {error}"),
    };
    eprintln!("{complaint}");
    ExitCode::FAILURE
}

/// Random choice is the worst by far. There is also an order between the other two, but on a busy machine its stalls
/// can hide it.
fn is_as_promised(tallies: &[Tally; 3]) -> bool {
    let [random, pending, ewma] = tallies.each_ref().map(|tally| tally.percentile(99));
    random > pending && random > ewma
}

/// Runs the same load three times. Only the load measure of the endpoints differs.
async fn run<R: AnyRuntime>(runtime: R) -> io::Result<[Tally; 3]> {
    // The same for all endpoints, so either of two is the better one.
    let random = |found| Constant::new(found, 0);
    // The requests in flight; a failed one continues to count for a while.
    let pending = |found| {
        let timer = runtime.clone();
        PendingRequestsDiscover::with_timer(found, CompleteOnResponse, timer).with_decay(DECAY)
    };
    // The recent latency times the requests in flight; a failure counts as a long latency.
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

/// Starts the backends and the clients, follows the script, and counts.
async fn measure<R, D>(
    runtime: &R,
    label: &'static str,
    with_load: impl FnOnce(Changes<&'static str, Endpoint<R>>) -> D,
) -> io::Result<Tally>
where
    R: AnyRuntime,
    D: Discover<Key = &'static str, Error = Infallible> + Send + Unpin + 'static,
    D::Service: Service<u64, Response = u64, Error = EndpointError, Future: Send>,
    D::Service: Load + Send,
{
    let mut backends = Vec::new();
    for _ in SCRIPT {
        backends.push(Backend::start(runtime).await?);
    }
    let (endpoints, found) = channel();
    // Endpoints back off by themselves, so no quarantine is needed.
    let balance =
        Balance::with_layer(with_load(found), Identity::new()).seed(SplitMix64::new(SEED));
    // Makes the balancer `Clone`: all clients share what it knows of the loads, and one connection per backend.
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

    print_heading(label);
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

/// Follows the script, and prints each backend's share.
async fn direct<R: AnyRuntime>(
    runtime: &R,
    start: Instant,
    backends: &[Arc<Backend>],
    endpoints: &Sender<&'static str, Endpoint<R>>,
) -> io::Result<()> {
    let mut before = [0; SCRIPT.len()];
    for tick in 0..TICKS {
        for (backend, (name, states)) in backends.iter().zip(SCRIPT) {
            let Some((_, state)) = states.iter().find(|(at, _)| *at == tick) else {
                continue;
            };
            let told = match (backend.state(), *state) {
                (State::Unknown, _) => endpoints.insert(name, endpoint(runtime, backend)),
                (_, State::Unknown) => endpoints.remove(name),
                _ => Ok(()), // Discovery does not learn of all else: the balancer has to find out.
            };
            // The only possible error: the balancer is gone.
            told.map_err(|_| io::ErrorKind::BrokenPipe)?;
            if tick > 0 {
                print_news(name, backend.state(), *state);
            }
            backend.set_state(runtime, *state).await?;
        }
        let at = TICK * (tick + 1);
        runtime.sleep_until(start.saturating_add(at)).await;
        print_shares(at, backends, &mut before);
    }
    Ok(())
}

type Results = smol::channel::Sender<(Outcome, Duration)>;

/// One client, with the same pauses in every run.
async fn send_requests<R, S>(
    runtime: R,
    (mut service, mut random, sent, results): (S, SplitMix64, Arc<AtomicU64>, Results),
    end: Instant,
) where
    R: AnyRuntime,
    S: Service<u64, Response = u64, Error = Failure>,
{
    loop {
        let pause = Duration::from_millis(random.next_range(PAUSE));
        runtime.sleep(pause).await;
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
        // The receiver lives to the end.
        let _ = results.try_send((outcome(id, &result), latency));
    }
}

/// How a request fails: the type has a part for each failure in the stack, and for nothing else.
type Failure = buffer::Error<p2c::Error<Infallible, EndpointError>>;

fn outcome(id: u64, result: &Result<u64, Failure>) -> Outcome {
    let error = match result {
        Ok(answer) if *answer == id => return Outcome::Answered,
        Ok(_) => return Outcome::Mixed,
        Err(buffer::Error::Service(p2c::Error::Service(error))) => error,
        // The buffer is closed, or the balancer has no endpoint.
        Err(_) => return Outcome::Unserved,
    };
    match error {
        reconnect::Error::Service(CallError::Backend) => Outcome::Failed,
        reconnect::Error::Service(CallError::CutOff) => Outcome::CutOff,
        // An endpoint that cannot connect is not ready, and is sent nothing.
        _ => Outcome::Unserved,
    }
}
