//! A stack under load for a long time: no request is lost, and memory does not grow.
//!
//!     cargo run --release --all-features --example soak [smol|tokio|async-std] [requests]
//!
//! Without arguments, it runs briefly on each runtime. Every second it prints its progress, and at the end of a run
//! the outcomes of the requests. It fails if these do not add up, if a permit or room in the queue is missing, or if
//! the resident memory grew by more than `GROWTH` between a tenth of the run and its end.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use campanile::buffer::{self, Buffer};
use campanile::limit::ConcurrencyLimit;
use campanile::limit::concurrency::Semaphore;
use campanile::load_shed::{self, LoadShed};
use campanile::timeout::{self, Timeout};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{Executor, Service, ServiceExt, Timer, service_fn};

/// The number of requests without an argument.
const REQUESTS: u64 = 200_000;

/// In KiB. The run fails if resident memory grows by more.
const GROWTH: i64 = 4 * 1024;

// The stack.
const ROOM: usize = 16;
const PERMITS: usize = 8;
const LIMIT: Duration = Duration::from_millis(5);

/// Tasks that each send one request after the other. One in eight is shed where the others wait for room.
const CLIENTS: u64 = 64;

// The outcomes of requests: one in this many.
const CANCELLED: u64 = 16;
const FAULTY: u64 = 100;
const PENDING: u64 = 8;
const HANGING: u64 = 10_000;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let name = args.next();
    let Ok(requests) = args.next().map_or(Ok(REQUESTS), |n| n.parse()) else {
        eprintln!("the second argument is the number of requests");
        return ExitCode::from(2);
    };
    let names = match name.as_deref() {
        None => vec!["smol", "tokio", "async-std"],
        Some(name) => vec![name],
    };
    let mut passed = true;
    for name in names {
        passed &= match name {
            "smol" => smol::block_on(run(campanile::smol::Smol, name, requests)),
            "tokio" => tokio::runtime::Runtime::new()
                .expect("tokio starts")
                .block_on(run(campanile::tokio::Tokio, name, requests)),
            "async-std" => {
                async_std::task::block_on(run(campanile::async_std::AsyncStd, name, requests))
            }
            other => {
                eprintln!("unknown runtime `{other}`: choose smol, tokio or async-std");
                return ExitCode::from(2);
            }
        };
    }
    ExitCode::from(u8::from(!passed))
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

/// The outcomes of the requests.
#[derive(Default)]
struct Books {
    sent: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    late: AtomicU64,
    shed: AtomicU64,
    cancelled: AtomicU64,
    // Any other outcome, which is a bug.
    wrong: AtomicU64,
    // Requests in the service: now, and the most at once.
    inside: AtomicU64,
    most_inside: AtomicU64,
    // In KiB, when a tenth of the requests was sent.
    memory: AtomicU64,
}

impl Books {
    fn done(&self) -> u64 {
        [
            &self.answered,
            &self.failed,
            &self.late,
            &self.shed,
            &self.cancelled,
        ]
        .iter()
        .map(|count| count.load(Relaxed))
        .sum()
    }
}

async fn run<R>(runtime: R, name: &str, requests: u64) -> bool
where
    R: Executor<Task> + Timer<Sleep: Send, Alarm: Send> + Clone + Send + Sync + 'static,
{
    let executor = Boxed(runtime.clone());
    let books = Arc::new(Books::default());
    let semaphore = Semaphore::new(PERMITS);
    let stack = {
        let books = books.clone();
        let service = service_fn(move |request| serve(request, books.clone()));
        let service = Timeout::with_timer(service, LIMIT, runtime);
        ConcurrencyLimit::with_semaphore(service, semaphore.clone())
    };
    let buffer = Buffer::with_executor(stack, ROOM, &executor);

    let began = Instant::now();
    let stop = print_progress(name.to_owned(), books.clone(), began);
    // Nothing is sent on it: it closes when the last client is gone.
    let (client_left, clients) = smol::channel::bounded::<()>(1);
    for seed in 0..CLIENTS {
        let (books, left) = (books.clone(), client_left.clone());
        let rng = SplitMix64::new(seed);
        let patient = buffer.clone();
        if seed % 8 != 0 {
            executor.execute(async move {
                client(patient, of_buffer, requests, rng, &books).await;
                drop(left);
            });
        } else {
            executor.execute(async move {
                client(LoadShed::new(patient), of_shed, requests, rng, &books).await;
                drop(left);
            });
        }
    }
    drop(client_left);
    let _ = clients.recv().await;
    let took = began.elapsed();
    drop(stop);
    let memory = resident_memory();

    // All room is available again: exactly as many handles get it.
    let mut handles: Vec<_> = (0..=ROOM).map(|_| buffer.clone()).collect();
    let mut cx = Context::from_waker(Waker::noop());
    let room = handles
        .iter_mut()
        .filter_map(|handle| handle.poll_ready(&mut cx).is_ready().then_some(()))
        .count();
    drop(handles);
    // The worker may hold a permit for a cancelled request until it ends.
    buffer.shutdown().await;
    let permits = semaphore.available_permits();

    let count = |count: &AtomicU64| count.load(Relaxed);
    let (sent, most_inside) = (count(&books.sent), count(&books.most_inside));
    println!(
        "{name}: {sent} sent = {} answered + {} failed + {} late + {} shed + {} cancelled; {:.1} s",
        count(&books.answered),
        count(&books.failed),
        count(&books.late),
        count(&books.shed),
        count(&books.cancelled),
        took.as_secs_f64(),
    );
    println!(
        "{name}: room {room} of {ROOM}, permits {permits} of {PERMITS}, at most {most_inside} at once"
    );
    let before = count(&books.memory);
    let growth = memory.map(|memory| memory as i64 - before as i64);
    match growth {
        Some(growth) => println!(
            "{name}: {before} KiB at a tenth, {growth:+} KiB at the end (at most {GROWTH:+})"
        ),
        None => println!("{name}: this system does not tell of its memory"),
    }

    let balance = sent == requests && books.done() == sent && count(&books.wrong) == 0;
    let is_whole = room == ROOM && permits == PERMITS && count(&books.inside) == 0;
    let is_limited = most_inside <= PERMITS as u64;
    let passed = balance && is_whole && is_limited && growth.unwrap_or(0) <= GROWTH;
    println!("{name}: {}", if passed { "passed" } else { "FAILED" });
    passed
}

/// The service failed, as the request asked.
#[derive(Debug)]
struct Fault;

#[derive(Clone, Copy)]
struct Request {
    number: u64,
    // The number of polls it takes; `u32::MAX` means forever.
    polls: u32,
    is_faulty: bool,
}

/// The service. It counts the requests inside, even if a response is dropped.
async fn serve(mut request: Request, books: Arc<Books>) -> Result<u64, Fault> {
    struct Inside(Arc<Books>);
    impl Drop for Inside {
        fn drop(&mut self) {
            self.0.inside.fetch_sub(1, Relaxed);
        }
    }

    let inside = books.inside.fetch_add(1, Relaxed) + 1;
    books.most_inside.fetch_max(inside, Relaxed);
    let _inside = Inside(books);
    poll_fn(|cx| match request.polls {
        0 => Poll::Ready(()),
        u32::MAX => Poll::Pending,
        _ => {
            request.polls -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
    if request.is_faulty {
        Err(Fault)
    } else {
        Ok(request.number + 1)
    }
}

enum Outcome {
    Answered(u64),
    Failed,
    Late,
    Shed,
    Wrong,
}

type BufferError = buffer::Error<timeout::Error<Fault>>;

fn of_buffer(result: Result<u64, BufferError>) -> Outcome {
    match result {
        Ok(answer) => Outcome::Answered(answer),
        Err(buffer::Error::Service(timeout::Error::Service(Fault))) => Outcome::Failed,
        Err(buffer::Error::Service(timeout::Error::Elapsed(_))) => Outcome::Late,
        Err(_) => Outcome::Wrong,
    }
}

fn of_shed(result: Result<u64, load_shed::Error<BufferError>>) -> Outcome {
    match result {
        Ok(answer) => Outcome::Answered(answer),
        Err(load_shed::Error::Overloaded(_)) => Outcome::Shed,
        Err(load_shed::Error::Service(error)) => of_buffer(Err(error)),
    }
}

/// Sends requests until all have been sent, and records the outcome of each.
async fn client<S>(
    mut service: S,
    outcome: fn(Result<S::Response, S::Error>) -> Outcome,
    requests: u64,
    mut rng: SplitMix64,
    books: &Books,
) where
    S: Service<Request> + Clone,
{
    let mut one_in = |n| rng.next_range(0..n) == 0;
    while let Ok(number) = books.sent.fetch_update(Relaxed, Relaxed, |sent| {
        (sent < requests).then_some(sent + 1)
    }) {
        if number == requests / 10 {
            books.memory.store(resident_memory().unwrap_or(0), Relaxed);
        }
        let polls = match () {
            () if one_in(HANGING) => u32::MAX,
            () if one_in(PENDING) => 1,
            () => 0,
        };
        let request = Request {
            number,
            polls,
            is_faulty: one_in(FAULTY),
        };
        let patience = match () {
            () if !one_in(CANCELLED) => u32::MAX,
            () if one_in(2) => 0,
            () if one_in(2) => 1,
            () => 2,
        };
        // A clone, so that handles are dropped both while ready but uncalled and while waiting.
        let response = if one_in(2) {
            give_up_after(patience, service.clone().oneshot(request)).await
        } else {
            give_up_after(patience, (&mut service).oneshot(request)).await
        };
        let count = match response.map(outcome) {
            None => &books.cancelled,
            Some(Outcome::Answered(answer)) if answer == number + 1 => &books.answered,
            Some(Outcome::Failed) if request.is_faulty => &books.failed,
            Some(Outcome::Late) => &books.late,
            Some(Outcome::Shed) => {
                // A client whose request was shed lets others run for a while.
                give_up_after(32, std::future::pending::<()>()).await;
                &books.shed
            }
            Some(Outcome::Answered(_) | Outcome::Failed | Outcome::Wrong) => &books.wrong,
        };
        count.fetch_add(1, Relaxed);
    }
}

/// Drops the future after this many pending polls, and one more.
async fn give_up_after<F: Future>(mut polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if polls == 0 => Poll::Ready(None),
        Poll::Pending => {
            if polls < u32::MAX {
                polls -= 1;
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        }
    })
    .await
}

/// Prints once a second, until the returned value is dropped.
fn print_progress(name: String, books: Arc<Books>, began: Instant) -> mpsc::Sender<()> {
    let (stop, stopped) = mpsc::channel();
    std::thread::spawn(move || {
        let mut before = 0;
        let second = Duration::from_secs(1);
        while stopped.recv_timeout(second) == Err(mpsc::RecvTimeoutError::Timeout) {
            let done = books.done();
            println!(
                "{name}: {:4.0} s, {done} requests, {}/s, {} KiB",
                began.elapsed().as_secs_f64(),
                done - before,
                resident_memory().unwrap_or(0),
            );
            before = done;
        }
    });
    stop
}

/// In KiB, where Linux reports it.
fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}
