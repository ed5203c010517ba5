//! A TCP service with a slow and flaky backend, first without middleware, then behind a stack.
//!
//!     cargo run --release --all-features --example quickstart [smol|tokio|async-std]
//!
//! 300 clients on loopback send the same requests twice. A table at the end compares the two runs. In this file only
//! `main` knows the runtime: tasks go through `campanile::Executor` and time through `campanile::Timer`, and the
//! sockets are async-io's, whose reactor has its own thread and so works under any executor.
mod report;

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use campanile::retry::backoff::{ExponentialBackoffMaker, Jitter};
use campanile::retry::budget::TpsBudget;
use campanile::retry::{Policy, StandardPolicy};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{BoxError, Executor, Service, ServiceBuilder, ServiceExt, Timer, service_fn};
use smol::channel::{Sender, unbounded};
use smol::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use smol::net::{TcpListener, TcpStream};
use smol::stream::StreamExt;

use report::{Event, Outcome, Progress, Tally, print_report};

// The load: each client sends its requests one after the other, with a pause before each.
const SEED: u64 = 1;
const CLIENTS: u64 = 300;
const REQUESTS: u64 = 10;
const PAUSE: Range<u64> = 60..180; // ms

// The backend: beyond CROWD concurrent calls it slows down in proportion.
const CROWD: u64 = 40;
const LATENCY: Range<u64> = 5..30; // ms
const STALL: Range<u64> = 500..2_500; // ms
const STALLS: f64 = 0.02;
const ERRORS: f64 = 0.15;

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

/// An executor of boxed tasks as an executor of any task, so that `run` need not name the type of the buffer's
/// worker.
#[derive(Clone)]
struct Boxed<R>(R);

impl<R: Executor<Task>, F: Future<Output = ()> + Send + 'static> Executor<F> for Boxed<R> {
    fn execute(&self, task: F) {
        self.0.execute(Box::pin(task));
    }
}

fn main() -> ExitCode {
    use campanile::{async_std::AsyncStd, smol::Smol, tokio::Tokio};

    let name = std::env::args().nth(1).unwrap_or_else(|| "smol".to_owned());
    let balanced = match name.as_str() {
        "smol" => smol::block_on(run(Smol)),
        "tokio" => tokio::runtime::Runtime::new().and_then(|tokio| tokio.block_on(run(Tokio))),
        "async-std" => async_std::task::block_on(run(AsyncStd)),
        other => {
            eprintln!("unknown runtime `{other}`: choose smol, tokio or async-std");
            return ExitCode::from(2);
        }
    };
    match balanced {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("the books do not balance");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("the run broke off: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes both runs and prints the table. Returns whether the counts of both add up.
async fn run<R: AnyRuntime>(runtime: R) -> io::Result<bool> {
    // Without middleware: the backend is not `Clone`, so the connections share it behind a lock.
    let calls = Arc::new(Calls::default());
    let backend = Arc::new(Mutex::new(Backend::new(runtime.clone(), calls.clone())));
    let service = service_fn(move |id| backend.lock().unwrap().call(id));
    let bare = measure(&runtime, "bare", service, &calls).await?;

    // Behind the stack. Layers below the buffer exist once, layers above it once per connection. The first layer is
    // the outermost.
    let calls = Arc::new(Calls::default());
    let tasks = campanile::Runtime::new(Boxed(runtime.clone()), runtime.clone());
    let buffer = ServiceBuilder::with_runtime(tasks)
        // Makes the rest `Clone`. Requests queue only here, and its bound is the length of the queue.
        .buffer(64)
        // As many calls as the backend can bear without slowing down. Inside the buffer, so that requests beyond the
        // limit wait in its queue, and are shed when it is full.
        .concurrency_limit(CROWD as usize)
        // A limit on calls per second. Retries are calls too, so it also stops a storm of them.
        .rate_limit(2_000, Duration::from_secs(1))
        // The innermost: each call has this time for itself, and waiting in the queue takes none of it. A call that
        // stalls then gives its place to another.
        .timeout(Duration::from_millis(100))
        .service(Backend::new(runtime.clone(), calls.clone()));
    let service = ServiceBuilder::with_runtime(runtime.clone())
        // Outside retry: a new request is shed if the queue is full, but a request that was let in is not shed
        // half-way; its next attempt waits for room.
        .load_shed()
        // Outside the buffer, since a retry needs a `Clone` service, and each attempt has to queue.
        .retry(retries(&runtime)?)
        .service(buffer.clone());
    let stack = measure(&runtime, "with the stack", service, &calls).await?;

    // All clients are gone. The worker answers the queued requests, and ends.
    buffer.shutdown().await;

    print_report(&bare, &stack);
    Ok(bare.balances() && stack.balances())
}

/// What to retry, and when: any error, at most twice, after a wait that differs for each request, as long as retries
/// are fewer than 3 in 10 requests.
fn retries<R: AnyRuntime, Res, E>(
    runtime: &R,
) -> io::Result<impl Policy<u64, Res, E, Future: Send> + Clone + Send + 'static> {
    let (min, max) = (Duration::from_millis(10), Duration::from_millis(100));
    let random = SplitMix64::new(SEED);
    let backoff =
        ExponentialBackoffMaker::with_timer(min, max, Jitter::Full, random, runtime.clone());
    let budget = TpsBudget::with_timer(Duration::from_secs(10), 10, 0.3, runtime.clone());
    Ok(
        StandardPolicy::with_backoff(backoff.map_err(io::Error::other)?, runtime.clone())
            .max_retries(2)
            .budget(Arc::new(budget)),
    )
}

/// Serves `service` to all clients on a loopback port, and counts what they see.
async fn measure<R, S>(
    runtime: &R,
    label: &'static str,
    service: S,
    calls: &Calls,
) -> io::Result<Tally>
where
    R: AnyRuntime,
    S: Service<u64, Response = u64, Future: Send, Error: Into<BoxError> + Send>,
    S: Clone + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (events, incoming) = unbounded();
    let start = runtime.now();

    for client in 0..CLIENTS {
        let stream = TcpStream::connect(address).await?;
        let (connection, _) = listener.accept().await?;
        spawn(runtime, serve(connection, service.clone()));
        let load = send_requests(runtime.clone(), stream, client, events.clone());
        spawn(runtime, load);
    }
    drop((events, service)); // The clients hold the others: when they are done, the channel closes.

    let mut tally = Tally::new(label, CLIENTS * REQUESTS);
    let mut progress = Progress::new(label);
    while let Ok(event) = incoming.recv().await {
        tally.add(event);
        progress.show(&tally);
    }
    tally.elapsed = runtime.now().saturating_duration_since(start);
    tally.calls = calls.total.load(Relaxed);
    progress.end(&tally);
    Ok(tally)
}

fn spawn<R: AnyRuntime>(runtime: &R, task: impl Future<Output = io::Result<()>> + Send + 'static) {
    runtime.execute(Box::pin(async {
        // The counts reveal a broken connection: its client has fewer answers than requests.
        if let Err(error) = task.await {
            eprintln!("connection: {error}");
        }
    }));
}

/// One connection on the server side: a line with a number in, a line with the outcome out.
async fn serve<S>(mut stream: TcpStream, mut service: S) -> io::Result<()>
where
    S: Service<u64, Response = u64, Error: Into<BoxError>>,
{
    let mut lines = BufReader::new(stream.clone()).lines();
    while let Some(line) = lines.next().await {
        let id = line?.parse().map_err(io::Error::other)?;
        let answer = match service.ready().await {
            Ok(service) => service.call(id).await,
            Err(error) => Err(error),
        };
        let outcome = match answer.map_err(Into::into) {
            Ok(_) => Outcome::Answered,
            Err(error) => Outcome::of(&error),
        };
        stream.write_all(outcome.word().as_bytes()).await?;
        stream.write_all(b"\n").await?;
    }
    Ok(())
}

/// One client, with the same pauses in every run, since they depend only on the client's number.
async fn send_requests<R: AnyRuntime>(
    runtime: R,
    mut stream: TcpStream,
    client: u64,
    events: Sender<Event>,
) -> io::Result<()> {
    let mut random = SplitMix64::new(SEED ^ client << 32);
    let mut lines = BufReader::new(stream.clone()).lines();
    for n in 0..REQUESTS {
        runtime.sleep(millis(&mut random, PAUSE)).await;
        let request = format!("{}\n", client * REQUESTS + n);
        let sent = runtime.now();
        let _ = events.try_send(Event::Sent);
        stream.write_all(request.as_bytes()).await?;
        let answer = lines.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
        let outcome = Outcome::parse(&answer).ok_or(io::ErrorKind::InvalidData)?;
        let latency = runtime.now().saturating_duration_since(sent);
        let _ = events.try_send(Event::Done(outcome, latency));
    }
    Ok(())
}

// ---- The backend ----

/// Slow, flaky, and unique: it is not `Clone`.
struct Backend<R> {
    runtime: R,
    random: SplitMix64,
    calls: Arc<Calls>,
}

/// How often the backend was called, and how many calls are in flight.
#[derive(Default)]
struct Calls {
    total: AtomicU64,
    now: AtomicU64,
}

/// A call in flight. Its end is counted even if the answer is no longer awaited.
struct Call(Arc<Calls>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Relaxed);
    }
}

impl<R> Backend<R> {
    fn new(runtime: R, calls: Arc<Calls>) -> Self {
        Self {
            runtime,
            random: SplitMix64::new(SEED),
            calls,
        }
    }
}

impl<R: AnyRuntime> Service<u64> for Backend<R> {
    type Response = u64;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<u64>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, id: u64) -> Self::Future {
        self.calls.total.fetch_add(1, Relaxed);
        let crowd = self.calls.now.fetch_add(1, Relaxed) + 1;
        let call = Call(self.calls.clone());

        let mut latency = millis(&mut self.random, LATENCY);
        latency = latency.mul_f64((crowd as f64 / CROWD as f64).max(1.0));
        if self.random.next_f64() < STALLS {
            latency += millis(&mut self.random, STALL);
        }
        let fails = self.random.next_f64() < ERRORS;
        let runtime = self.runtime.clone();
        Box::pin(async move {
            runtime.sleep(latency).await;
            drop(call);
            if fails {
                Err(io::Error::other("the backend failed"))
            } else {
                Ok(id * id)
            }
        })
    }
}

fn millis(random: &mut SplitMix64, range: Range<u64>) -> Duration {
    Duration::from_millis(random.next_range(range))
}
