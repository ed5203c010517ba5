//! The stack on embassy's executor and clock, on the host.
#![cfg(feature = "embassy-executor")]

mod common;

use std::future::{Ready, ready};
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::time::Duration;

use campanile::buffer::{self, Buffer, FixedError, StaticQueue, Worker};
use campanile::embassy::{Embassy, ServiceBuilder, Spawn};
use campanile::{Executor, Instant, NoRuntime, Service, ServiceExt, Timer, timeout};
use embassy_executor::raw::TaskPool;
use embassy_executor::{SendSpawner, Spawner};

use common::{Failure, HANG};

type Reading = Ready<Result<u16, Failure>>;
type Queue = StaticQueue<u16, Reading, 4>;
type Handle = Buffer<u16, Reading, NoRuntime, &'static Queue>;
type SensorWorker = Worker<Sensor, u16, &'static Queue>;

struct Sensor;

impl Service<u16> for Sensor {
    type Response = u16;
    type Error = Failure;
    type Future = Reading;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, register: u16) -> Reading {
        ready(Ok(register * 2))
    }
}

/// Runs `start` on an executor in its own thread, which stays because embassy's executors never end.
fn on_embassy<T: Send + 'static>(
    start: impl FnOnce(Spawner, mpsc::Sender<T>) + Send + 'static,
) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let executor = Box::leak(Box::new(embassy_executor::Executor::new()));
        executor.run(|spawner| start(spawner, sender));
    });
    receiver.recv_timeout(HANG).expect("the task did not end")
}

#[embassy_executor::task]
async fn ask(handle: Handle, answers: mpsc::Sender<u16>) {
    let sensor = ServiceBuilder::new().timeout(HANG).service(handle);
    for register in 0..3 {
        let answer = sensor.clone().oneshot(register).await;
        answers.send(answer.unwrap_or(u16::MAX)).unwrap();
    }
}

#[test]
fn a_buffer_runs_in_a_static_pool() {
    static QUEUE: Queue = StaticQueue::new();
    static POOL: TaskPool<SensorWorker, 1> = TaskPool::new();
    let answers = on_embassy(|spawner, sender| {
        let (handle, worker) = buffer::try_pair_in(Sensor, &QUEUE).unwrap();
        Spawn::new(spawner, &POOL).execute(worker);
        let (answers, receiver) = mpsc::channel();
        spawner.spawn(ask(handle, answers)).unwrap();
        std::thread::spawn(move || sender.send(receiver.iter().collect::<Vec<_>>()));
    });
    assert_eq!(answers, [0, 2, 4]);
}

#[test]
fn task_beyond_the_pool_is_dropped() {
    static QUEUES: [Queue; 2] = [const { StaticQueue::new() }; 2];
    static POOL: TaskPool<SensorWorker, 1> = TaskPool::new();
    let (first, second) = on_embassy(|spawner, sender| {
        let executor: Spawn<SendSpawner, _, 1> = Spawn::new(spawner.make_send(), &POOL);
        let [first, second] = [0, 1].map(|n| {
            let (handle, worker) = buffer::try_pair_in(Sensor, &QUEUES[n]).unwrap();
            executor.clone().execute(worker);
            handle
        });
        sender.send((first, second)).unwrap();
    });
    assert!(!first.is_closed());
    assert!(second.is_closed());
    let refused = futures::executor::block_on(second.oneshot(1));
    assert!(matches!(refused, Err(FixedError::Closed(_))), "{refused:?}");
    assert_eq!(futures::executor::block_on(first.oneshot(1)), Ok(2));
}

/// How long a wait took, and whether a call without an answer timed out.
#[embassy_executor::task]
async fn wait(outcome: mpsc::Sender<(Duration, bool)>) {
    Embassy.sleep_until(Instant::from_nanos(0)).await;
    let start = Embassy.now();
    Embassy.sleep(Duration::from_millis(5)).await;
    let took = Embassy.now().saturating_duration_since(start);
    let silent = ServiceBuilder::new()
        .timeout(Duration::from_millis(1))
        .service_fn(async |(): ()| std::future::pending::<Result<(), Failure>>().await);
    let answer = silent.oneshot(()).await;
    let timed_out = matches!(answer, Err(timeout::Error::Elapsed(_)));
    // The clock never reaches `MAX`.
    assert!(Embassy.now() < Instant::MAX);
    outcome.send((took, timed_out)).unwrap();
}

#[test]
fn time_is_embassys() {
    let (took, timed_out) = on_embassy(|spawner, sender| spawner.spawn(wait(sender)).unwrap());
    assert!(took >= Duration::from_millis(5), "{took:?}");
    assert!(timed_out);
}
