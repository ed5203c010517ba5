//! A TCP service with a slow and flaky backend, first bare, then behind a stack of middleware.
//!
//!     cargo run --release --all-features --example quickstart [smol|tokio|async-std]
//!
//! 300 clients on loopback send the same requests twice. A table at the end sets the two runs side by
//! side. Nothing in this file but `main` knows on which runtime it runs: tasks go through
//! `campanile::Executor`, time through `campanile::Timer`, and the sockets are async-io's, whose
//! reactor has a thread of its own and so works under any executor.

use std::io::{self, IsTerminal, Write as _};
use std::ops::Range;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use campanile::load_shed::Overloaded;
use campanile::timeout::Elapsed;
use campanile::{BoxError, Executor, Service, ServiceBuilder, ServiceExt, Timer, service_fn};
use smol::channel::{Sender, unbounded};
use smol::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use smol::net::{TcpListener, TcpStream};
use smol::stream::StreamExt;

// The load: each client sends its requests one after the other, with a pause before each.
const CLIENTS: u64 = 300;
const REQUESTS: u64 = 10;
const PAUSE: Range<u64> = 60..180; // ms

// The backend: beyond CROWD calls at once it becomes slower in proportion.
const CROWD: u64 = 40;
const LATENCY: Range<u64> = 5..30; // ms
const STALL: Range<u64> = 500..2_500; // ms
const STALLS: f64 = 0.02;
const ERRORS: f64 = 0.15;

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

/// An executor of boxed tasks as one of any task, so that `run` need not name the type of the buffer's worker.
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

/// Both runs and the table; whether the books of both balance.
async fn run<R: AnyRuntime>(runtime: R) -> io::Result<bool> {
    // Bare: the backend is not `Clone`, so the connections share it behind a lock.
    let calls = Arc::new(Calls::default());
    let backend = Arc::new(Mutex::new(Backend::new(runtime.clone(), calls.clone())));
    let service = service_fn(move |id| backend.lock().unwrap().call(id));
    let bare = measure(&runtime, "bare", service, &calls).await?;

    // Behind the stack. What stands below the buffer is there once, what stands above it once for each
    // connection; a layer that is named first is further outside.
    let calls = Arc::new(Calls::default());
    let tasks = campanile::Runtime::new(Boxed(runtime.clone()), runtime.clone());
    let buffer = ServiceBuilder::with_runtime(tasks)
        // Makes the rest `Clone`. Its bound is the longest line there can be; no line stands anywhere else.
        .buffer(64)
        // As many calls as the backend bears without becoming slower. Inside of the buffer, so that what
        // is over the limit waits in the line, and is shed when that is full.
        .concurrency_limit(CROWD as usize)
        // And so many calls in a second. Retries are calls too: a storm of them ends here.
        .rate_limit(2_000, Duration::from_secs(1))
        // The innermost: each call has this time for itself, and a wait in the line costs none of it. A call that
        // stalls then gives its place to another.
        .timeout(Duration::from_millis(100))
        .service(Backend::new(runtime.clone(), calls.clone()));
    let service = ServiceBuilder::with_runtime(runtime.clone())
        // Outside of retry: a new request is turned away when the line is full, but one that was let in
        // is not turned away half-way; its next attempt waits for room.
        .load_shed()
        // Outside of buffer, since a retry needs a service that is `Clone`, and each attempt has to queue.
        .retry(retries(runtime.clone()))
        .service(buffer.clone());
    let stack = measure(&runtime, "with the stack", service, &calls).await?;

    // All clients are gone. The worker answers what is still in the line, and ends.
    buffer.shutdown().await;

    print_report(&bare, &stack);
    Ok(bare.balances() && stack.balances())
}

/// Serves `service` on a loopback port to all clients, and counts what they see.
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

    let mut tally = Tally::new(label);
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
        // A broken connection shows in the books: its client has fewer answers than requests.
        if let Err(error) = task.await {
            eprintln!("connection: {error}");
        }
    }));
}

/// One connection on the server's side: a line with a number in, a line with the outcome out.
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

/// One client: the same pauses in every run, because they depend on the client's number only.
async fn send_requests<R: AnyRuntime>(
    runtime: R,
    mut stream: TcpStream,
    client: u64,
    events: Sender<Event>,
) -> io::Result<()> {
    let mut random = Random(client);
    let mut lines = BufReader::new(stream.clone()).lines();
    for n in 0..REQUESTS {
        runtime.sleep(random.millis(PAUSE)).await;
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

/// Slow, flaky, and one of a kind: it is no `Clone`.
struct Backend<R> {
    runtime: R,
    random: Random,
    calls: Arc<Calls>,
}

/// How often the backend was called, and how many calls are under way.
#[derive(Default)]
struct Calls {
    total: AtomicU64,
    now: AtomicU64,
}

/// One call that is under way; its end counts even if nobody waits for the answer any more.
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
            random: Random(u64::MAX),
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

        let mut latency = self.random.millis(LATENCY);
        latency = latency.mul_f64((crowd as f64 / CROWD as f64).max(1.0));
        if self.random.chance(STALLS) {
            latency += self.random.millis(STALL);
        }
        let fails = self.random.chance(ERRORS);
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

// ---- The books ----

/// What became of a request.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Answered,
    Shed,
    TimedOut,
    Failed,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Answered, Self::Shed, Self::TimedOut, Self::Failed];

    /// The stack's error is typed to its depth; as a `BoxError` it is the innermost one.
    fn of(error: &BoxError) -> Self {
        if error.is::<Overloaded>() {
            Self::Shed
        } else if error.is::<Elapsed>() {
            Self::TimedOut
        } else {
            Self::Failed
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Shed => "shed",
            Self::TimedOut => "timed out",
            Self::Failed => "failed",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.word() == word)
    }
}

enum Event {
    Sent,
    Done(Outcome, Duration),
}

/// What the clients saw in one run.
struct Tally {
    label: &'static str,
    sent: u64,
    outcomes: [u64; 4],
    latencies: Vec<Duration>, // of the answered ones
    elapsed: Duration,
    calls: u64,
}

impl Tally {
    fn new(label: &'static str) -> Self {
        let (latencies, elapsed) = (Vec::new(), Duration::ZERO);
        Self {
            label,
            sent: 0,
            outcomes: [0; 4],
            latencies,
            elapsed,
            calls: 0,
        }
    }

    fn add(&mut self, event: Event) {
        match event {
            Event::Sent => self.sent += 1,
            Event::Done(outcome, latency) => {
                self.outcomes[outcome as usize] += 1;
                if outcome == Outcome::Answered {
                    let place = self.latencies.partition_point(|other| *other <= latency);
                    self.latencies.insert(place, latency);
                }
            }
        }
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    fn done(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// Calls of the backend beyond one for each request that was let in.
    fn retries(&self) -> u64 {
        self.calls
            .saturating_sub(self.sent - self.count(Outcome::Shed))
    }

    /// Every request was sent and has one outcome, and each that was let in reached the backend.
    fn balances(&self) -> bool {
        self.sent == CLIENTS * REQUESTS
            && self.done() == self.sent
            && self.calls >= self.sent - self.count(Outcome::Shed)
    }

    fn percentile(&self, percent: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies
            .get(last * percent / 100)
            .copied()
            .unwrap_or_default()
    }

    /// The share of answers that took between `from` and `to` milliseconds.
    fn share(&self, from: u64, to: u64) -> f64 {
        let below = |ms| {
            self.latencies
                .partition_point(|x| *x < Duration::from_millis(ms))
        };
        (below(to) - below(from)) as f64 / self.latencies.len().max(1) as f64
    }
}

/// SplitMix64: small, seeded, and good enough for a load.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(range.start + self.next() % (range.end - range.start))
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.next() as f64 / u64::MAX as f64 <= probability
    }
}

// ---- What is seen on the terminal ----

/// On a terminal one line that is rewritten; otherwise a line for each quarter of the way.
struct Progress {
    label: &'static str,
    live: bool,
    shown: u64,
}

impl Progress {
    fn new(label: &'static str) -> Self {
        Self {
            label,
            live: io::stderr().is_terminal(),
            shown: 0,
        }
    }

    fn show(&mut self, tally: &Tally) {
        let steps = if self.live { 100 } else { 4 };
        let step = tally.done() * steps / (CLIENTS * REQUESTS);
        if step > self.shown {
            self.shown = step;
            let bar = "█".repeat((step * 24 / steps) as usize);
            let (done, under_way) = (tally.done(), tally.sent - tally.done());
            let line = format!(
                "{:>14} {bar:·<24} {done:>5} done, {under_way:>3} under way",
                self.label
            );
            if self.live {
                eprint!("\r{line}\x1b[K");
            } else {
                eprintln!("{line}");
            }
        }
    }

    fn end(&self, tally: &Tally) {
        if self.live {
            eprint!("\r\x1b[K");
        }
        eprintln!(
            "{:>14} took {:.1} s",
            self.label,
            tally.elapsed.as_secs_f64()
        );
    }
}

fn print_report(bare: &Tally, stack: &Tally) {
    let colour = io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (bold, plain) = if colour {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    let row = |name: &str, cell: &dyn Fn(&Tally) -> String| {
        format!("{name:<22}{:>24}   {:>24}\n", cell(bare), cell(stack))
    };
    let of_sent = |count: u64, tally: &Tally| {
        format!(
            "{count} ({:4.1} %)",
            100.0 * count as f64 / tally.sent.max(1) as f64
        )
    };
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);

    let mut text = format!(
        "\n{bold}{}{plain}",
        row("", &|tally| tally.label.to_owned())
    );
    text += &row("sent", &|tally| tally.sent.to_string());
    for outcome in Outcome::ALL {
        text += &row(outcome.word(), &|tally| {
            of_sent(tally.count(outcome), tally)
        });
    }
    text += &row("retries", &|tally| tally.retries().to_string());
    text += &row("answers per second", &|tally| {
        format!(
            "{:.0}",
            tally.count(Outcome::Answered) as f64 / tally.elapsed.as_secs_f64()
        )
    });

    text += &format!("\n{bold}how long an answer took{plain}\n");
    for percent in [50, 90, 99, 100] {
        let name = if percent == 100 {
            "max".to_owned()
        } else {
            format!("p{percent}")
        };
        text += &row(&name, &|tally| ms(tally.percentile(percent)));
    }
    text.push('\n');
    const EDGES: [u64; 10] = [0, 10, 20, 50, 100, 200, 500, 1_000, 2_000, u64::MAX];
    for edge in EDGES.windows(2) {
        let bar = |tally: &Tally| {
            let share = tally.share(edge[0], edge[1]);
            // At least a sliver for whatever is there at all.
            let eighths = (share * 160.0).ceil() as usize;
            let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
            format!("{}{rest}", "█".repeat(eighths / 8))
        };
        let name = match edge[1] {
            u64::MAX => format!("over {} ms", edge[0]),
            below => format!("under {below} ms"),
        };
        text += format!("{name:>16}      {:<24}   {:<24}", bar(bare), bar(stack)).trim_end();
        text.push('\n');
    }
    // A reader that went away, such as `head`, is no failure of the run.
    let _ = io::stdout().write_all(text.as_bytes());
}
