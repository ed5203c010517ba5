//! The root, `layer`, `builder` and `ServiceExt`.

use std::convert::Infallible;
use std::future::{Future, Ready, pending, poll_fn, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::StreamExt;

use super::super::{LONG, double};
use super::{block_on, tower};
use tower::layer::util::{Identity, Stack};
use tower::layer::{LayerFn, layer_fn};
use tower::{BoxError, Layer, MakeService, Service, ServiceBuilder, ServiceExt, service_fn};

/// A service whose type can be named.
type Named = tower::util::ServiceFn<fn(u32) -> Ready<Result<u32, Infallible>>>;

fn named() -> Named {
    service_fn(|n| ready(Ok(n * 2)))
}

/// Retries a number of errors, at once.
#[derive(Clone)]
pub(super) struct Attempts(pub(super) u32);

impl<T, E> tower::retry::Policy<u32, T, E> for Attempts {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut u32, result: &mut Result<T, E>) -> Option<Ready<()>> {
        if result.is_ok() {
            return None;
        }
        self.0 = self.0.checked_sub(1)?;
        Some(ready(()))
    }

    fn clone_request(&mut self, request: &u32) -> Option<u32> {
        Some(*request)
    }
}

fn even(n: u32) -> Result<u32, BoxError> {
    if n % 2 == 0 { Ok(n) } else { Err("odd".into()) }
}

async fn plus_one<F>(response: F) -> Result<u32, Infallible>
where
    F: Future<Output = Result<u32, Infallible>>,
{
    Ok(response.await? + 1)
}

async fn is_ready<S: Service<u32>>(service: &mut S) -> bool {
    poll_fn(|cx| Poll::Ready(service.poll_ready(cx).is_ready())).await
}

#[test]
fn root() {
    fn names<M: MakeService<(), u32, Response = u32>>(_: &M) -> &'static str {
        std::any::type_name::<M::Service>()
    }
    assert!(names(&service_fn(|()| ready(Ok::<_, Infallible>(named())))).contains("ServiceFn"));
    let boxed: BoxError = "boxed".into();
    assert_eq!(boxed.to_string(), "boxed");
    block_on(async {
        let mut service = ServiceBuilder::new().service(service_fn(double));
        assert_eq!(service.ready().await.unwrap().call(1).await, Ok(2));
        let builder: tower::builder::ServiceBuilder<Identity> = ServiceBuilder::new();
        let service = tower::layer::Layer::layer(&builder, service_fn(double));
        assert_eq!(tower::util::ServiceExt::oneshot(service, 1).await, Ok(2));
    });
}

#[test]
fn layers() {
    let plus = |n: u32| layer_fn(move |service: Named| service.map_response(move |m| m + n));
    let plus_one: LayerFn<_> = plus(1);
    block_on(async {
        assert_eq!(plus_one.layer(named()).oneshot(1).await, Ok(3));
        assert_eq!((&plus_one).layer(named()).oneshot(1).await, Ok(3));
        assert_eq!(().layer(named()).oneshot(1).await, Ok(2));
        assert_eq!(Identity::new().layer(named()).oneshot(1).await, Ok(2));
        let stack = Stack::new(plus(1), Identity::default());
        assert_eq!(stack.layer(named()).oneshot(1).await, Ok(3));
        let i = Identity::new;
        let sixteen = (
            i(),
            i(),
            i(),
            i(),
            i(),
            i(),
            i(),
            i(),
            i(),
            i(),
            i(),
            i(),
            i(),
            i(),
            i(),
            plus(2),
        );
        assert_eq!(sixteen.layer(named()).oneshot(1).await, Ok(4));
    });
}

#[test]
fn builder_itself() {
    let builder = ServiceBuilder::default().map_response(|n: u32| n + 1);
    assert!(format!("{:?}", ServiceBuilder::new()).starts_with("ServiceBuilder"));
    block_on(async {
        assert_eq!(builder.clone().service_fn(double).oneshot(1).await, Ok(3));
        assert_eq!(builder.service(named()).oneshot(1).await, Ok(3));
        assert_eq!(Layer::layer(&builder, named()).oneshot(1).await, Ok(3));
        let both = ServiceBuilder::new()
            .layer(builder.clone())
            .layer(builder.clone());
        assert_eq!(both.service(named()).oneshot(1).await, Ok(4));
        assert_eq!(builder.into_inner().layer(named()).oneshot(1).await, Ok(3));
    });
}

#[test]
fn builder_adds_layers() {
    let plus_one = || layer_fn(|service: Named| service.map_response(|n| n + 1));
    block_on(async {
        let some = ServiceBuilder::new().option_layer(Some(plus_one()));
        assert_eq!(
            some.service(named())
                .map_err(BoxError::from)
                .oneshot(1)
                .await
                .unwrap(),
            3
        );
        let layer_fn =
            ServiceBuilder::new().layer_fn(|service: Named| service.map_response(|n| n + 1));
        assert_eq!(layer_fn.service(named()).oneshot(1).await, Ok(3));
        let none = ServiceBuilder::new().option_layer(None::<Identity>);
        assert_eq!(none.service(named()).oneshot(1).await.unwrap(), 2);
    });
}

#[test]
fn builder_checks() {
    let builder = ServiceBuilder::new()
        .map_response(|n: u32| n > 3)
        .check_clone()
        .check_service_clone::<Named>()
        .check_service::<Named, u32, bool, Infallible>();
    assert_eq!(block_on(builder.service(named()).oneshot(2)), Ok(true));
}

#[test]
fn builder_changes() {
    block_on(async {
        let service = ServiceBuilder::new()
            .map_request(|n: u32| n + 1)
            .map_response(|n: u32| n + 10)
            .map_result(|result: Result<u32, Infallible>| result.map(|n| n + 100))
            .then(|result: Result<u32, Infallible>| ready(result.map(|n| n + 1000)))
            .and_then(|n: u32| ready(Ok::<_, Infallible>(n + 10_000)))
            .map_future(plus_one)
            .service_fn(double);
        assert_eq!(service.oneshot(1).await, Ok(11_115));
        let service = ServiceBuilder::new()
            .map_err(|error: &str| error.len())
            .service_fn(|_: u32| ready(Err::<u32, _>("four")));
        assert_eq!(service.oneshot(1).await, Err(4));
    });
}

#[test]
fn builder_filters() {
    block_on(async {
        let filter = ServiceBuilder::new().filter(even).service_fn(double);
        assert_eq!(filter.clone().oneshot(2).await.unwrap(), 4);
        assert_eq!(
            BoxError::from(filter.oneshot(1).await.unwrap_err()).to_string(),
            "odd"
        );
        let filter = ServiceBuilder::new()
            .filter_async(|n: u32| ready(even(n)))
            .service_fn(double);
        assert_eq!(filter.clone().oneshot(2).await.unwrap(), 4);
        assert_eq!(
            BoxError::from(filter.oneshot(1).await.unwrap_err()).to_string(),
            "odd"
        );
    });
}

#[test]
fn builder_limits() {
    block_on(async {
        let service = ServiceBuilder::new()
            .load_shed()
            .concurrency_limit(1)
            .service_fn(double);
        let first = service.clone().ready_oneshot().await.unwrap();
        let error = BoxError::from(service.oneshot(1).await.unwrap_err());
        assert!(error.is::<tower::load_shed::error::Overloaded>());
        drop(first);

        let mut service = ServiceBuilder::new().rate_limit(1, LONG).service_fn(double);
        assert_eq!(service.ready().await.unwrap().call(1).await.unwrap(), 2);
        assert!(!is_ready(&mut service).await);

        let service = ServiceBuilder::new()
            .timeout(Duration::from_nanos(1))
            .service_fn(|_: u32| pending::<Result<u32, Infallible>>());
        let error = BoxError::from(service.oneshot(1).await.unwrap_err());
        assert!(error.is::<tower::timeout::error::Elapsed>());

        let service = ServiceBuilder::new().buffer(2).service_fn(double);
        assert_eq!(service.clone().oneshot(1).await.unwrap(), 2);
        assert_eq!(service.oneshot(2).await.unwrap(), 4);
    });
}

#[test]
fn builder_retries() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let service = ServiceBuilder::new()
        .retry(Attempts(2))
        .service_fn(move |_: u32| {
            counted.fetch_add(1, Ordering::Relaxed);
            ready(Err::<u32, _>("no"))
        });
    assert_eq!(block_on(service.oneshot(1)), Err("no"));
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}

#[test]
fn builder_boxes() {
    use tower::util::{BoxCloneService, BoxCloneSyncService, BoxService};
    block_on(async {
        let service: BoxService<u32, u32, Infallible> =
            ServiceBuilder::new().boxed().service_fn(double);
        assert_eq!(service.oneshot(1).await, Ok(2));
        let service: BoxCloneService<u32, u32, Infallible> =
            ServiceBuilder::new().boxed_clone().service_fn(double);
        assert_eq!(service.clone().oneshot(1).await, Ok(2));
        let service: BoxCloneSyncService<u32, u32, Infallible> =
            ServiceBuilder::new().boxed_clone_sync().service_fn(double);
        assert_eq!(service.clone().oneshot(1).await, Ok(2));
    });
}

#[test]
fn service_ext() {
    block_on(async {
        let mut service = named();
        assert_eq!(service.ready().await.unwrap().call(1).await, Ok(2));
        assert_eq!(service.ready_oneshot().await.unwrap().call(1).await, Ok(2));
        assert_eq!(service.oneshot(1).await, Ok(2));
        let responses = service.call_all(futures::stream::iter([1, 2]));
        assert_eq!(responses.collect::<Vec<_>>().await, [Ok(2), Ok(4)]);

        let changed = service
            .map_request(|n: u32| n + 1)
            .map_response(|n| n + 10)
            .map_result(|result| result.map(|n: u32| n + 100))
            .then(|result| ready(result.map(|n: u32| n + 1000)))
            .and_then(|n| ready(Ok::<u32, Infallible>(n + 10_000)))
            .map_future(plus_one);
        assert_eq!(changed.oneshot(1).await, Ok(11_115));
        let failing = service_fn(|_: u32| ready(Err::<u32, _>("four")));
        assert_eq!(
            failing.map_err(|error| error.len()).oneshot(1).await,
            Err(4)
        );

        assert_eq!(service.filter(even).oneshot(2).await.unwrap(), 4);
        let filter = service.filter_async(|n: u32| ready(even(n)));
        assert!(filter.oneshot(1).await.is_err());

        assert_eq!(service.boxed().oneshot(1).await, Ok(2));
        assert_eq!(service.boxed_clone().clone().oneshot(1).await, Ok(2));
    });
}
