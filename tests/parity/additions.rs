//! Additions to tower, at the same paths in each runtime's module.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::time::Duration;

use super::super::LONG;
use super::stack::Attempts;
use super::{block_on, tower};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};

type Named = tower::util::ServiceFn<fn(u32) -> Ready<Result<u32, Infallible>>>;

fn named() -> Named {
    service_fn(|n| ready(Ok(n * 2)))
}

#[test]
fn builder() {
    block_on(async {
        let service = ServiceBuilder::new()
            .err_into::<BoxError>()
            .global_concurrency_limit(1)
            .spawn_ready()
            .hedge(campanile::retry::CloneByClone, 10, 0.9, LONG)
            .deadline(LONG)
            .service(named());
        assert_eq!(service.oneshot(1).await.unwrap(), 2);
    });
}

#[cfg(feature = "futures-timer")]
#[test]
fn builder_takes_a_runtime() {
    let with =
        |builder: campanile::builder::ServiceBuilder<_, _>| builder.timeout(LONG).service(named());
    let other = campanile::futures_timer::FuturesTimer;
    block_on(async {
        let service = with(campanile::ServiceBuilder::with_runtime(other));
        assert_eq!(service.oneshot(1).await.unwrap(), 2);
        let service = with(ServiceBuilder::new().runtime(other));
        assert_eq!(service.oneshot(1).await.unwrap(), 2);
    });
}

#[test]
fn service_ext() {
    block_on(async {
        assert_eq!(named().retry(Attempts(1)).oneshot(1).await, Ok(2));
        assert_eq!(named().concurrency_limit(1).oneshot(1).await.unwrap(), 2);
        assert_eq!(named().load_shed().oneshot(1).await.unwrap(), 2);
        assert_eq!(named().boxed_clone_sync().clone().oneshot(1).await, Ok(2));
        let error = service_fn(|_: u32| ready(Err::<u32, _>("no"))).err_into::<BoxError>();
        assert_eq!(error.oneshot(1).await.unwrap_err().to_string(), "no");
        let unsync = tower::util::UnsyncBoxCloneService::new(named());
        assert_eq!(unsync.clone().oneshot(1).await, Ok(2));
    });
}

#[test]
fn middleware() {
    use tower::buffer::Buffer;
    use tower::hedge::{Delay, HedgeLayer};
    use tower::reconnect::{Reconnect, ReconnectLayer};

    block_on(async {
        let buffer = Buffer::<u32, _>::new(named(), 2);
        let done = buffer.shutdown();
        assert!(buffer.is_closed());
        done.await;
        let delay = Delay::fixed(LONG);
        let hedge: HedgeLayer<_> = HedgeLayer::with_delay(campanile::retry::CloneByClone, delay);
        assert_eq!(hedge.layer(named()).clone().oneshot(1).await, Ok(2));

        let maker = service_fn(|()| ready(Ok::<_, Infallible>(named())));
        let layer: ReconnectLayer<()> = ReconnectLayer::new(());
        let service: Reconnect<_, ()> = layer.layer(maker);
        assert_eq!(service.oneshot(1).await.unwrap(), 2);

        let policy: tower::retry::StandardPolicy = tower::retry::StandardPolicy::new();
        assert_eq!(named().retry(policy).oneshot(1).await, Ok(2));

        let layer: tower::limit::RateLimitLayer = tower::limit::RateLimitLayer::new(1, LONG);
        let service = layer.reject().layer(named());
        assert_eq!(service.clone().oneshot(1).await.unwrap(), 2);
        let limited = service.oneshot(1).await.unwrap_err();
        assert!(matches!(limited, tower::limit::rate::Error::Limited(_)));
    });
    assert!(tower::limit::rate::Rate::try_new(0, Duration::ZERO).is_err());
}

#[test]
fn async_filter_makes_its_own_layer() {
    use tower::filter::{AsyncFilter, AsyncFilterLayer};
    let even = |n: u32| ready(if n % 2 == 0 { Ok(n) } else { Err("odd") });
    let layer: AsyncFilterLayer<_> = AsyncFilter::<Named, _>::layer(even);
    assert!(block_on(layer.layer(named()).oneshot(1)).is_err());
}
