//! `util`, `util::rng` and `make`.

use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use futures::StreamExt;

use super::super::double;
use super::{block_on, tower};
use tower::layer::util::Identity;
use tower::util::rng::{HasherRng, Rng};
use tower::util::{
    AndThen, AndThenLayer, BoxCloneService, BoxCloneServiceLayer, BoxCloneSyncService,
    BoxCloneSyncServiceLayer, BoxLayer, BoxService, CallAll, CallAllUnordered, Either,
    FutureService, MapErr, MapErrLayer, MapFuture, MapFutureLayer, MapRequest, MapRequestLayer,
    MapResponse, MapResponseLayer, MapResult, MapResultLayer, Oneshot, Optional,
    Ready as WaitReady, ReadyOneshot, ServiceFn, Then, ThenLayer, UnsyncBoxService, future_service,
    option_layer, service_fn,
};
use tower::{BoxError, Layer, Service, ServiceExt};

type Named = ServiceFn<fn(u32) -> Ready<Result<u32, Infallible>>>;

fn named() -> Named {
    service_fn(|n| ready(Ok(n * 2)))
}

/// The constructor, the type's `layer` function and the layer build the same service.
macro_rules! combinator {
    ($service:ident, $layer:ident, $f:expr, $answer:expr) => {
        assert_eq!($service::new(named(), $f).oneshot(1).await, $answer);
        let layer: $layer<_> = $service::<Named, _>::layer($f);
        assert_eq!(layer.layer(named()).oneshot(1).await, $answer);
        assert_eq!(
            $layer::new($f).layer(named()).clone().oneshot(1).await,
            $answer
        );
    };
}

#[test]
fn combinators() {
    type Answer = Result<u32, Infallible>;
    block_on(async {
        combinator!(MapRequest, MapRequestLayer, |n: u32| n + 1, Ok(4));
        combinator!(MapResponse, MapResponseLayer, |n: u32| n + 1, Ok(3));
        combinator!(
            MapErr,
            MapErrLayer,
            |error: Infallible| match error {},
            Ok::<u32, ()>(2)
        );
        combinator!(
            MapResult,
            MapResultLayer,
            |result: Answer| result.map(|n| n + 1),
            Ok(3)
        );
        combinator!(
            MapFuture,
            MapFutureLayer,
            |response: Ready<Answer>| response,
            Ok(2)
        );
        combinator!(
            Then,
            ThenLayer,
            |result: Answer| ready(result.map(|n| n + 1)),
            Ok(3)
        );
        combinator!(
            AndThen,
            AndThenLayer,
            |n: u32| ready(Answer::Ok(n + 1)),
            Ok(3)
        );
        let mut service = MapFuture::new(named(), |response: Ready<Answer>| response);
        assert_eq!(service.get_mut().call(1).await, Ok(2));
        assert_eq!((*service.get_ref()).oneshot(1).await, Ok(2));
        assert_eq!(service.into_inner().oneshot(1).await, Ok(2));
    });
}

#[test]
fn combinators_name_their_futures() {
    use tower::util::future::{
        AndThenFuture, EitherResponseFuture, MapErrFuture, MapResponseFuture, MapResultFuture,
        ThenFuture, optional,
    };
    type Answer = Result<u32, Infallible>;
    block_on(async {
        let f = |n: u32| ready(Answer::Ok(n));
        let response: AndThenFuture<_, _, _> = AndThen::new(named(), f).call(1);
        assert_eq!(response.await, Ok(2));
        let f = |result: Answer| ready(result);
        let response: ThenFuture<_, _, _> = Then::new(named(), f).call(1);
        assert_eq!(response.await, Ok(2));
        let response: MapErrFuture<_, _> = MapErr::new(named(), |e: Infallible| e).call(1);
        assert_eq!(response.await, Ok(2));
        let response: MapResponseFuture<_, _> = MapResponse::new(named(), |n: u32| n).call(1);
        assert_eq!(response.await, Ok(2));
        let f = |result: Answer| result;
        let response: MapResultFuture<_, _> = MapResult::new(named(), f).call(1);
        assert_eq!(response.await, Ok(2));
        let response: EitherResponseFuture<_, _> = Either::<_, Named>::Left(named()).call(1);
        assert_eq!(response.await.unwrap(), 2);
        let mut optional = Optional::new(Some(named()));
        let response: optional::ResponseFuture<_> = optional.call(1);
        assert_eq!(response.await.unwrap(), 2);
    });
}

#[test]
fn boxes() {
    block_on(async {
        let service: BoxService<u32, u32, Infallible> = BoxService::new(named());
        assert_eq!(service.oneshot(1).await, Ok(2));
        assert_eq!(BoxService::layer().layer(named()).oneshot(1).await, Ok(2));
        let service: UnsyncBoxService<u32, u32, Infallible> = UnsyncBoxService::new(named());
        assert_eq!(service.oneshot(1).await, Ok(2));
        assert_eq!(
            UnsyncBoxService::layer().layer(named()).oneshot(1).await,
            Ok(2)
        );
        let service: BoxCloneService<u32, u32, Infallible> = BoxCloneService::new(named());
        assert_eq!(service.clone().oneshot(1).await, Ok(2));
        assert_eq!(
            BoxCloneService::layer().layer(named()).oneshot(1).await,
            Ok(2)
        );
        let service: BoxCloneSyncService<u32, u32, Infallible> = BoxCloneSyncService::new(named());
        assert_eq!(service.clone().oneshot(1).await, Ok(2));
        assert_eq!(
            BoxCloneSyncService::layer().layer(named()).oneshot(1).await,
            Ok(2)
        );

        let layer = || MapResponseLayer::new(|n: u32| n + 1);
        let boxed: BoxLayer<Named, u32, u32, Infallible> = BoxLayer::new(layer());
        assert_eq!(boxed.clone().layer(named()).oneshot(1).await, Ok(3));
        let boxed: BoxCloneServiceLayer<Named, u32, u32, Infallible> =
            BoxCloneServiceLayer::new(layer());
        assert_eq!(boxed.clone().layer(named()).clone().oneshot(1).await, Ok(3));
        let boxed: BoxCloneSyncServiceLayer<Named, u32, u32, Infallible> =
            BoxCloneSyncServiceLayer::new(layer());
        assert_eq!(boxed.clone().layer(named()).clone().oneshot(1).await, Ok(3));
    });
}

#[test]
fn either_and_optional() {
    block_on(async {
        let plus_one = MapResponseLayer::new(|n: u32| n + 1);
        let layer: Either<_, Identity> = option_layer(Some(plus_one.clone()));
        assert_eq!(layer.layer(named()).oneshot(1).await.unwrap(), 3);
        let layer = Either::<Identity, _>::Right(plus_one);
        assert_eq!(layer.layer(named()).oneshot(1).await.unwrap(), 3);
        let service: Either<Named, BoxService<u32, u32, Infallible>> = Either::Left(named());
        assert_eq!(service.oneshot(1).await.unwrap(), 2);

        assert_eq!(Optional::new(Some(named())).oneshot(1).await.unwrap(), 2);
        let none: Optional<Named> = Optional::new(None);
        let error = BoxError::from(none.oneshot(1).await.unwrap_err());
        assert!(error.is::<tower::util::error::optional::None>());
    });
}

#[test]
fn service_and_readiness_futures() {
    block_on(async {
        let made = future_service(ready(Ok::<_, Infallible>(named())));
        assert_eq!(made.oneshot(1).await.unwrap(), 2);
        let mut made = FutureService::new(Box::pin(async { Ok::<_, Infallible>(named()) }));
        assert_eq!(made.ready().await.unwrap().call(1).await.unwrap(), 2);

        let mut service = service_fn(double);
        assert_eq!(
            WaitReady::new(&mut service).await.unwrap().call(1).await,
            Ok(2)
        );
        let mut service = ReadyOneshot::new(service).await.unwrap();
        assert_eq!(service.call(1).await, Ok(2));
        assert_eq!(Oneshot::new(service, 1).await, Ok(2));
    });
}

#[test]
fn call_all() {
    let requests = || futures::stream::iter([1, 2, 3]);
    block_on(async {
        let mut responses = pin!(CallAll::new(named(), requests()));
        assert_eq!(responses.next().await, Some(Ok(2)));
        assert_eq!(responses.by_ref().collect::<Vec<_>>().await, [Ok(4), Ok(6)]);
        let service = responses.as_mut().take_service();
        assert!(format!("{service:?}").contains("ServiceFn"));
        let all = CallAll::new(named(), requests());
        assert!(format!("{:?}", all.into_inner()).contains("ServiceFn"));

        let mut numbers: Vec<_> = CallAllUnordered::new(named(), requests()).collect().await;
        numbers.sort_unstable();
        assert_eq!(numbers, [Ok(2), Ok(4), Ok(6)]);
        let all = CallAll::new(named(), requests()).unordered();
        assert_eq!(all.count().await, 3);
        let all = CallAllUnordered::new(named(), requests());
        assert!(format!("{:?}", all.into_inner()).contains("ServiceFn"));
    });
}

#[test]
fn rng() {
    /// A constant instead of random numbers.
    struct Always(u64);

    impl Rng for Always {
        fn next_u64(&mut self) -> u64 {
            self.0
        }
    }

    assert_eq!(Always(0).next_f64(), 0.0);
    assert_eq!(Always(0).next_range(5..9), 5);
    let mut boxed: Box<dyn Rng> = Box::new(Always(u64::MAX));
    assert_eq!(boxed.next_u64(), u64::MAX);
    assert!((0.999..1.0).contains(&boxed.next_f64()));
    assert_eq!(boxed.next_range(5..6), 5);

    let mut rng = HasherRng::new();
    assert_ne!(rng.next_u64(), rng.next_u64());
    assert!((10..20).contains(&HasherRng::default().next_range(10..20)));
    let hasher = BuildHasherDefault::<DefaultHasher>::default;
    let (mut one, mut other) = (
        HasherRng::with_hasher(hasher()),
        HasherRng::with_hasher(hasher()),
    );
    assert_eq!(one.next_u64(), other.next_u64());
}

#[test]
fn make_service() {
    use tower::make::{AsService, IntoService, MakeService, Shared, future::SharedFuture};

    let make = || {
        service_fn(|n: u32| {
            ready(Ok::<_, Infallible>(service_fn(move |m: u32| {
                ready(Ok::<_, Infallible>(n + m))
            })))
        })
    };
    block_on(async {
        let mut maker = make();
        poll_fn(|cx| MakeService::<u32, u32>::poll_ready(&mut maker, cx))
            .await
            .unwrap();
        let service = MakeService::<u32, u32>::make_service(&mut maker, 1)
            .await
            .unwrap();
        assert_eq!(service.oneshot(2).await, Ok(3));

        let mut service: AsService<'_, _, u32> = MakeService::<u32, u32>::as_service(&mut maker);
        assert_eq!(
            service
                .ready()
                .await
                .unwrap()
                .call(1)
                .await
                .unwrap()
                .oneshot(3)
                .await,
            Ok(4)
        );
        let service: IntoService<_, u32> = MakeService::<u32, u32>::into_service(maker);
        assert_eq!(service.oneshot(1).await.unwrap().oneshot(4).await, Ok(5));

        let mut shared = Shared::new(named());
        let made: SharedFuture<Named> = Service::<()>::call(&mut shared, ());
        assert_eq!(made.await.unwrap().oneshot(1).await, Ok(2));
    });
}

#[test]
fn make_connection() {
    use tower::make::MakeConnection;

    async fn connect<M: MakeConnection<usize>>(mut maker: M) -> Result<M::Connection, M::Error> {
        poll_fn(|cx| maker.poll_ready(cx)).await?;
        maker.make_connection(1).await
    }

    block_on(async {
        let maker = service_fn(|size| ready(Ok::<_, Infallible>(tokio::io::duplex(size).0)));
        let mut connection = connect(maker).await.unwrap();
        // The other end is closed.
        let mut cx = Context::from_waker(Waker::noop());
        let read = tokio::io::AsyncReadExt::read_u8(&mut connection);
        assert!(matches!(pin!(read).poll(&mut cx), Poll::Ready(Err(_))));
    });
}
