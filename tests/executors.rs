//! An executor ends when its owner drops it, together with its tasks and the services in them: no task keeps alive the
//! executor that runs it.

#![cfg(all(feature = "smol", feature = "tokio"))]

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use campanile::retry::{CloneByClone, StandardPolicy};
use campanile::runtime::SharedTimer;
use campanile::smol::Smol;
use campanile::tokio::Tokio;
use campanile::{Runtime, Service, ServiceBuilder, ServiceExt};
use smol::{Executor, LocalExecutor};
use tokio::task::LocalSet;

const HOUR: Duration = Duration::from_secs(3600);

fn current_thread() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// A service that shares a flag, which shows the test whether the service is alive.
#[derive(Clone)]
struct Held(#[expect(dead_code, reason = "it is counted, and not read")] Arc<()>);

impl Service<u32> for Held {
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, n: u32) -> Self::Future {
        ready(Ok(n))
    }
}

/// Like [`Held`], but ready only at the second poll, so that a `SpawnReady` has work to do.
struct Slow(Held, bool);

impl Service<u32> for Slow {
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        if std::mem::replace(&mut self.1, true) {
            return std::task::Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    }

    fn call(&mut self, n: u32) -> Self::Future {
        self.1 = false;
        self.0.call(n)
    }
}

/// For each stack in a buffer on `$runtime`: a request is answered while `$run` runs the executor, and the service is
/// dropped together with `$executor`, the last owner.
macro_rules! goes_with_its_executor {
    ($make:expr, |$executor:ident| $runtime:expr, $run:expr; $(|$builder:ident| $stack:expr),* $(,)?) => {$({
        let $executor = $make;
        let flag = Arc::new(());
        let service = {
            let $builder = ServiceBuilder::with_runtime($runtime).buffer::<u32>(1);
            $stack.service(Slow(Held(flag.clone()), false))
        };
        let answer = $run(&$executor, service.clone().oneshot(1));
        assert_eq!(answer.unwrap(), 1, "{}", stringify!($stack));
        drop($executor);
        assert_eq!(Arc::strong_count(&flag), 1, "{}", stringify!($stack));
        let error = smol::block_on(service.oneshot(1)).unwrap_err();
        assert!(error.to_string().contains("closed"), "{error}");
    })*};
}

/// The same for every middleware that asks the builder for a timer or an executor.
macro_rules! every_stack_goes {
    ($make:expr, |$executor:ident| $runtime:expr, $run:expr) => {
        goes_with_its_executor! { $make, |$executor| $runtime, $run;
            |builder| builder,
            |builder| builder.timeout(HOUR),
            |builder| builder.deadline(HOUR),
            |builder| builder.rate_limit(1, HOUR),
            |builder| builder.spawn_ready(),
            |builder| builder.buffer(1),
            |builder| builder.spawn_ready().timeout(HOUR).spawn_ready(),
            |builder| builder
                .hedge(CloneByClone, 10, 0.9, HOUR)
                .retry(StandardPolicy::with_timer(Smol))
                .buffer(1),
        }
    };
}

fn on_smol<F: Future>(executor: &Executor<'_>, future: F) -> F::Output {
    smol::block_on(executor.run(future))
}

fn on_smol_local<F: Future>(executor: &LocalExecutor<'_>, future: F) -> F::Output {
    smol::block_on(executor.run(future))
}

fn on_local_set<F: Future>(set: &LocalSet, future: F) -> F::Output {
    set.block_on(&current_thread(), future)
}

fn on_tokio<F: Future>(runtime: &tokio::runtime::Runtime, future: F) -> F::Output {
    runtime.block_on(future)
}

#[test]
fn smol_executor_drops_its_services() {
    every_stack_goes!(Arc::new(Executor::new()), |e| e.clone(), on_smol);
}

#[test]
#[expect(
    clippy::arc_with_non_send_sync,
    reason = "an `Arc` works as an `Rc` does"
)]
fn smol_local_executor_drops_its_services() {
    every_stack_goes!(Rc::new(LocalExecutor::new()), |e| e.clone(), on_smol_local);
    every_stack_goes!(Arc::new(LocalExecutor::new()), |e| e.clone(), on_smol_local);
}

#[test]
#[expect(
    clippy::arc_with_non_send_sync,
    reason = "an `Arc` works as an `Rc` does"
)]
fn local_set_drops_its_services() {
    every_stack_goes!(Rc::new(LocalSet::new()), |set| set.clone(), on_local_set);
    every_stack_goes!(Arc::new(LocalSet::new()), |set| set.clone(), on_local_set);
}

#[test]
fn tokio_runtime_drops_its_services() {
    every_stack_goes!(current_thread(), |rt| rt.handle().clone(), on_tokio);
}

#[test]
fn weak_pair_drops_its_services() {
    every_stack_goes!(
        Rc::new(LocalExecutor::new()),
        |e| Runtime::new(Rc::downgrade(&e), SharedTimer::new(Smol)),
        on_smol_local
    );
    every_stack_goes!(
        Arc::new(Executor::new()),
        |e| Runtime::new(Arc::downgrade(&e), Smol),
        on_smol
    );
}

/// The halves of a pair are separate: a timed layer does not get the executor.
#[test]
fn pair_gives_timed_layers_no_executor() {
    goes_with_its_executor! {
        Rc::new(LocalExecutor::new()), |e| Runtime::new(e.clone(), Smol), on_smol_local;
        |builder| builder.timeout(HOUR),
        |builder| builder.deadline(HOUR).rate_limit(1, HOUR),
    }
    goes_with_its_executor! {
        Rc::new(LocalSet::new()), |set| Runtime::new(set.clone(), Tokio), on_local_set;
        |builder| builder.timeout(HOUR),
        |builder| builder.deadline(HOUR).rate_limit(1, HOUR),
    }
}

/// An executor behind a reference: the services built on it are dropped before it.
#[test]
fn borrowed_executor_drops_its_services() {
    let flag = Arc::new(());
    let held = || Slow(Held(flag.clone()), false);

    let executor = Executor::new();
    let service = ServiceBuilder::with_runtime(&executor)
        .buffer(1)
        .deadline(HOUR)
        .timeout(HOUR)
        .service(held());
    assert_eq!(on_smol(&executor, service.oneshot(1)).unwrap(), 1);
    drop(executor);

    let executor = LocalExecutor::new();
    let service = ServiceBuilder::with_runtime(&executor)
        .buffer(1)
        .timeout(HOUR)
        .service(held());
    assert_eq!(on_smol_local(&executor, service.oneshot(1)).unwrap(), 1);
    drop(executor);

    let set = LocalSet::new();
    let runtime = current_thread();
    let service = ServiceBuilder::with_runtime(&set)
        .buffer(1)
        .timeout(HOUR)
        .service(held());
    assert_eq!(set.block_on(&runtime, service.oneshot(1)).unwrap(), 1);
    drop(set);

    assert_eq!(Arc::strong_count(&flag), 1);
}

#[test]
fn task_for_a_dropped_executor_is_dropped() {
    use campanile::Executor as _;

    let (flag, executor) = (Arc::new(()), Arc::new(Executor::new()));
    let task = |held: Arc<()>| async move { drop(held) };
    let weak = Arc::downgrade(&executor);
    weak.execute(task(flag.clone()));
    assert_eq!(Arc::strong_count(&flag), 2);
    assert!(executor.try_tick());
    assert_eq!(Arc::strong_count(&flag), 1);
    drop(executor);
    weak.execute(task(flag.clone()));
    assert_eq!(Arc::strong_count(&flag), 1);

    let weak = Rc::downgrade(&Rc::new(LocalExecutor::new()));
    weak.execute(task(flag.clone()));
    assert_eq!(Arc::strong_count(&flag), 1);
}

/// The executors of smol-macros' `#[apply(main!)]` and `#[apply(test!)]` can be passed on directly.
mod smol_macros_pass {
    use super::*;
    use macro_rules_attribute::apply;
    use smol_macros::test;

    async fn answers<S: Service<u32, Response = u32, Error: std::fmt::Debug>>(service: S) {
        assert_eq!(service.oneshot(1).await.unwrap(), 1);
    }

    fn service() -> Slow {
        Slow(Held(Arc::new(())), false)
    }

    #[apply(test!)]
    async fn borrowed_executor(executor: &Executor<'_>) {
        let builder = ServiceBuilder::with_runtime(executor);
        answers(builder.buffer(1).timeout(HOUR).service(service())).await;
    }

    #[apply(test!)]
    async fn shared_executor(executor: Arc<Executor<'_>>) {
        let builder = ServiceBuilder::with_runtime(executor.clone());
        let builder = builder.buffer(1).spawn_ready().timeout(HOUR);
        answers(builder.service(service())).await;
    }

    #[apply(test!)]
    async fn borrowed_local_executor(executor: &LocalExecutor<'_>) {
        let builder = ServiceBuilder::with_runtime(executor);
        answers(builder.buffer(1).timeout(HOUR).service(service())).await;
    }

    #[apply(test!)]
    async fn shared_local_executor(executor: Rc<LocalExecutor<'_>>) {
        let builder = ServiceBuilder::with_runtime(executor.clone());
        let builder = builder.buffer(1).spawn_ready().timeout(HOUR);
        answers(builder.service(service())).await;
    }
}
