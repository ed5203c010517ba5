//! Middleware that waits, alone and as a stack, on every runtime. Tests advance time and never wait for it.
#![cfg(feature = "std")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use campanile::layer::Identity;
use campanile::retry::{CloneByClone, StandardPolicy};
use campanile::timeout::Elapsed;
use campanile::util::BoxCloneService;
use campanile::{BoxError, Executor, Runtime, Service, ServiceBuilder, ServiceExt, service_fn};

use common::{Failure, Host, ManualTimer, On, Threads, mock, on_every_runtime, until, yield_now};

const SECOND: Duration = Duration::from_secs(1);

fn is_send<T>(_: impl Future<Output = T> + Send) {}

fn builder() -> campanile::builder::ServiceBuilder<Identity, Runtime<Threads, ManualTimer>> {
    ServiceBuilder::with_runtime(Runtime::new(Threads, ManualTimer::new()))
}

/// In a task, the compiler requires a future that contains a `dyn` to be `Send` for every lifetime of the `dyn`.
#[test]
fn task_with_a_boxed_stack_is_send() {
    let inner = service_fn(async |n: u32| Ok::<_, Failure>(n));
    let inner = BoxCloneService::new(inner);
    let mut service = builder()
        .load_shed()
        .hedge(CloneByClone, 10, 0.9, SECOND)
        .retry(StandardPolicy::with_timer(ManualTimer::new()))
        .err_into::<BoxError>()
        .buffer(1)
        .spawn_ready()
        .concurrency_limit(1)
        .rate_limit(1000, SECOND)
        .deadline(30 * SECOND)
        .timeout(20 * SECOND)
        .service(inner);
    is_send(async move {
        std::future::poll_fn(|cx| service.poll_ready(cx))
            .await
            .map_err(BoxError::from)?;
        service.call(1).await.map_err(BoxError::from)
    });
}

/// The same for a `dyn` in the error, with the request sent inside the block.
#[test]
fn task_with_a_boxed_error_is_send() {
    async fn greet(n: u32) -> Result<u32, BoxError> {
        Ok(n)
    }

    macro_rules! tasks {
        ($(|$builder:ident| $stack:expr,)*) => {$({
            let $builder = builder();
            let service = $stack.service_fn(greet);
            is_send(async move { service.oneshot(1).await.is_ok() });
            let $builder = builder();
            let mut service = $stack.service_fn(greet);
            is_send(async move { service.ready().await.unwrap().call(1).await.is_ok() });
        })*};
    }

    tasks! {
        |builder| builder,
        |builder| builder.buffer(1),
        |builder| builder.concurrency_limit(1),
        |builder| builder.deadline(SECOND),
        |builder| builder.filter(Ok::<u32, BoxError>),
        |builder| builder.hedge(CloneByClone, 10, 0.9, SECOND),
        |builder| builder.load_shed(),
        |builder| builder.map_request(|n: u32| n),
        |builder| builder.map_response(|n: u32| n),
        |builder| builder.rate_limit(1, SECOND),
        |builder| builder.retry(StandardPolicy::with_timer(ManualTimer::new())),
        |builder| builder.spawn_ready(),
        |builder| builder.timeout(SECOND),
        |builder| builder.load_shed().buffer(1).concurrency_limit(1).timeout(SECOND),
        |builder| builder.timeout(SECOND).spawn_ready().rate_limit(1, SECOND),
    }
    let boxed = BoxCloneService::new(service_fn(greet));
    let service = builder()
        .load_shed()
        .buffer(1)
        .timeout(SECOND)
        .service(boxed);
    is_send(async move { service.oneshot(1).await.is_ok() });
}

async fn slow_response_times_out<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock::<u32, u32>();
    let service = ServiceBuilder::with_runtime(rt.clone())
        .err_into::<BoxError>()
        .timeout(SECOND)
        .service(service);
    let mut outcome = rt.start(service.oneshot(1));
    let (_, responder) = handle.next().await;
    rt.advance(SECOND / 2).await;
    assert_eq!(outcome.try_recv().unwrap().map(drop), None);
    // The task may set its timer at any moment, so time advances until it has noticed.
    let elapsed = rt.advance_until(SECOND, outcome).await.unwrap();
    assert!(elapsed.unwrap_err().is::<Elapsed>());
    until(|| responder.is_cancelled()).await;
}

async fn requests_over_the_rate_wait<H: Host>(rt: On<H>) {
    let answered = Arc::new(AtomicUsize::new(0));
    let service = ServiceBuilder::with_runtime(rt.clone())
        .rate_limit(2, SECOND)
        .service(service_fn(async |n: u32| Ok::<_, Failure>(n)));
    for n in 0..5 {
        let (service, answered) = (service.clone(), answered.clone());
        rt.execute(async move {
            assert_eq!(service.oneshot(n).await.unwrap(), n);
            answered.fetch_add(1, Ordering::SeqCst);
        });
    }
    until(|| answered.load(Ordering::SeqCst) == 2).await;
    for more in 3..=5 {
        for _ in 0..10 {
            yield_now().await;
        }
        assert_eq!(answered.load(Ordering::SeqCst), more - 1);
        rt.advance(SECOND / 2).await;
        until(|| answered.load(Ordering::SeqCst) == more).await;
    }
}

async fn failed_request_is_retried_after_a_wait<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock::<u32, u32>();
    let policy = StandardPolicy::with_timer(rt.clone()).max_retries(3);
    let service = ServiceBuilder::with_runtime(rt.clone())
        .retry(policy)
        .buffer(4)
        .service(service);
    let mut outcome = rt.start(service.oneshot(7));
    let mut result = None;
    let mut attempts = 0;
    while result.is_none() {
        if let Some((request, responder)) = handle.try_next() {
            assert_eq!(request, 7);
            attempts += 1;
            match attempts {
                3 => responder.send(8),
                _ => responder.fail(Failure("again")),
            }
        }
        rt.advance(SECOND).await;
        result = outcome.try_recv().unwrap();
    }
    assert_eq!((attempts, result.unwrap().unwrap()), (3, 8));
}

async fn whole_stack_answers<H: Host>(rt: On<H>) {
    let service = ServiceBuilder::with_runtime(rt.clone())
        .load_shed()
        .retry(StandardPolicy::with_timer(rt.clone()))
        .buffer(64)
        .concurrency_limit(4)
        .rate_limit(1_000, SECOND)
        .timeout(SECOND)
        .service(service_fn(async |n: u32| {
            yield_now().await;
            Ok::<_, Failure>(n * 2)
        }));
    let answers = futures::future::join_all((0..50).map(|n| service.clone().oneshot(n))).await;
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), n as u32 * 2);
    }
}

/// Some attempts fail, some hang, and each request completes in the expected number of attempts.
async fn whole_stack_survives_failures_and_hangs<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock::<u32, u32>();
    let service = ServiceBuilder::with_runtime(rt.clone())
        .retry(StandardPolicy::with_timer(rt.clone()))
        .err_into::<BoxError>()
        .buffer(4)
        .concurrency_limit(3)
        .rate_limit(10, SECOND)
        .timeout(SECOND)
        .service(service);
    let mut answers: Vec<_> = (0..30)
        .map(|n| rt.start(service.clone().oneshot(n)))
        .collect();
    let mut attempts = [0; 30];
    let mut silent = Vec::new();
    let mut answered = 0;
    while answered < 30 {
        while let Some((n, responder)) = handle.try_next() {
            attempts[n as usize] += 1;
            match (n % 3, attempts[n as usize]) {
                (0, 1) => responder.fail(Failure("told to")),
                (1, 1) => silent.push(responder),
                _ => {
                    responder.send(2 * n);
                    // Wait for the answer before time advances: a task that found the response pending may read the
                    // clock only now.
                    let answer = (&mut answers[n as usize]).await.unwrap();
                    assert_eq!(answer.unwrap(), 2 * n);
                    answered += 1;
                }
            }
        }
        rt.advance(SECOND / 10).await;
    }
    let expected: Vec<_> = (0..30).map(|n| if n % 3 == 2 { 1 } else { 2 }).collect();
    assert_eq!(attempts, *expected);
    assert!(silent.iter().all(|responder| responder.is_cancelled()));
    drop(service);
    until(|| handle.alive() == 0).await;
}

on_every_runtime! {
    slow_response_times_out,
    requests_over_the_rate_wait,
    failed_request_is_retried_after_a_wait,
    whole_stack_answers,
    whole_stack_survives_failures_and_hangs,
}
