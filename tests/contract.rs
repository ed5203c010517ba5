//! `Service` and `Layer`: tower's own with the feature `tower`, and identical ones without it. This file is written
//! against one of them and has to compile against the other.

use core::convert::Infallible;
use core::fmt;
use core::future::{Ready, ready};
use core::task::{Context, Poll};

use campanile::layer::{Identity, Layer, LayerFn, Stack, layer_fn};
use campanile::{Service, service_fn};
use futures::FutureExt;

/// The traits and types are tower's own, not copies.
#[cfg(feature = "tower")]
mod unified {
    use super::*;

    const _: fn(Identity) -> tower_layer::Identity = |layer| layer;
    const _: fn(LayerFn<()>) -> tower_layer::LayerFn<()> = |layer| layer;
    const _: fn(Stack<(), u8>) -> tower_layer::Stack<(), u8> = |layer| layer;
    const _: fn(
        Box<Dyn>,
    ) -> Box<
        dyn tower_service::Service<u8, Response = u8, Error = u8, Future = Ready<Result<u8, u8>>>,
    > = |service| service;

    type Dyn = dyn Service<u8, Response = u8, Error = u8, Future = Ready<Result<u8, u8>>>;

    fn towers_service<S: tower_service::Service<u8>>(_: &S) {}
    fn ours<S: Service<u8>>(service: &S) {
        towers_service(service);
    }
    fn towers_layer<L: tower_layer::Layer<u8>>(_: &L) {}
    fn our_layer<L: Layer<u8>>(layer: &L) {
        towers_layer(layer);
    }

    #[test]
    fn middleware_mixes_with_tower() {
        use campanile::load_shed::LoadShedLayer;

        ours(&service_fn(async |n: u8| Ok::<_, Infallible>(n)));
        our_layer(&Identity::new());

        let service = tower::ServiceBuilder::new()
            .layer(LoadShedLayer::new())
            .map_request(|n: u32| n + 1)
            .layer(LoadShedLayer::new())
            .service_fn(async |n: u32| Ok::<_, Infallible>(n * 2));
        let answer = tower::ServiceExt::oneshot(service, 1).now_or_never();
        assert_eq!(answer.unwrap().unwrap(), 4);
    }
}

/// As a user writes a service, without importing either trait's crate.
struct Twice<S>(S);

impl<S: Service<u32>> Service<u32> for Twice<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: u32) -> Self::Future {
        self.0.call(2 * request)
    }
}

#[derive(Clone, Debug)]
struct Echo;

impl<R> Service<R> for Echo {
    type Response = R;
    type Error = Infallible;
    type Future = Ready<Result<R, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        ready(Ok(request))
    }
}

fn answer<S, R>(mut service: S, request: R) -> S::Response
where
    S: Service<R, Error: fmt::Debug>,
{
    let mut cx = Context::from_waker(core::task::Waker::noop());
    assert!(matches!(service.poll_ready(&mut cx), Poll::Ready(Ok(()))));
    service.call(request).now_or_never().unwrap().unwrap()
}

#[test]
fn references_and_boxes_are_services() {
    let mut service = Twice(Echo);
    assert_eq!(answer(&mut service, 1), 2);
    assert_eq!(answer(&mut &mut service, 2), 4);
    assert_eq!(answer(service, 3), 6);
}

// As in tower: sized behind `&mut`, and a trait object only in a `Box`. Without tower, the box needs `alloc`.
#[cfg(feature = "alloc")]
#[test]
fn a_boxed_service_may_be_a_trait_object() {
    type Answer = core::pin::Pin<Box<dyn Future<Output = Result<u32, Infallible>>>>;
    let service = service_fn(|n: u32| -> Answer { Box::pin(async move { Ok(n + 1) }) });
    let boxed: Box<dyn Service<u32, Response = u32, Error = Infallible, Future = Answer>> =
        Box::new(Twice(service));
    assert_eq!(answer(boxed, 1), 3);
    assert_eq!(answer(Box::new(Echo), 1), 1);
}

/// A layer that records its name, so that the order shows in the service.
#[derive(Clone, Copy)]
struct Name(&'static str);

impl Layer<String> for Name {
    type Service = String;

    fn layer(&self, inner: String) -> String {
        format!("{}({inner})", self.0)
    }
}

fn on(layer: impl Layer<String, Service = String>) -> String {
    layer.layer("x".to_owned())
}

#[test]
fn layers_apply_in_towers_order() {
    let [a, b, c] = ["a", "b", "c"].map(Name);
    assert_eq!(on(Identity::new()), "x");
    assert_eq!(on(Identity::default()), "x");
    assert_eq!(on(Stack::new(a, b)), "b(a(x))");
    assert_eq!(on(Stack::new(Stack::new(Identity::new(), c), a)), "a(c(x))");
    assert_eq!(on(layer_fn(|inner: String| inner + "!")), "x!");
    let dynamic: &dyn Layer<String, Service = String> = &a;
    assert_eq!(on(dynamic), "a(x)");
}

#[test]
fn tuples_up_to_16_are_layers() {
    let [a, b, c] = ["a", "b", "c"].map(Name);
    assert_eq!(on(()), "x");
    assert_eq!(on((a,)), "a(x)");
    assert_eq!(on((a, b)), "a(b(x))");
    assert_eq!(on((a, b, c)), "a(b(c(x)))");
    assert_eq!(on((a, (b, ()), &c)), "a(b(c(x)))");
    assert_eq!(
        on((a, b, c, a, b, c, a, b, c, a, b, c, a, b, c, a)),
        "a(b(c(a(b(c(a(b(c(a(b(c(a(b(c(a(x))))))))))))))))"
    );
}

#[test]
fn debug_is_the_same_without_tower() {
    assert_eq!(format!("{:?}", Identity::new()), "Identity");
    assert_eq!(format!("{:?}", Stack::new(1, Stack::new(2, 3))), "3, 2, 1");
    assert_eq!(format!("{:#?}", Stack::new(1, 2)), "2,\n1");
    fn named(inner: u8) -> u8 {
        inner
    }
    let layer: LayerFn<fn(u8) -> u8> = layer_fn(named);
    assert_eq!(layer.layer(1), 1);
    assert_eq!(format!("{layer:?}"), "LayerFn { f: fn(u8) -> u8 }");
    let service = service_fn(named as fn(u8) -> u8);
    assert_eq!(format!("{service:?}"), "ServiceFn { f: fn(u8) -> u8 }");
}

/// Middleware requires nothing of a response future beyond `Future`: not `Send`, `'static`, `Unpin`, `Clone` or
/// `Debug`, neither of the future nor of the error and the response.
#[cfg(all(feature = "std", feature = "smol"))]
#[test]
fn response_futures_need_no_bounds() {
    use std::rc::Rc;
    use std::time::Duration;

    use campanile::{ServiceExt, buffer, smol};

    struct Plain<'a>(&'a str, Rc<()>);

    let name = String::from("borrowed");
    let leaf = campanile::service_fn(|n: u32| {
        let plain = Plain(&name, Rc::new(()));
        async move {
            std::future::ready(()).await;
            if n == 0 { Err(plain) } else { Ok(plain) }
        }
    });
    let service = smol::ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(1)
        .rate_limit(1, Duration::from_secs(1))
        .timeout(Duration::from_secs(1))
        .deadline(Duration::from_secs(1))
        .map_response(|response| response)
        .service(leaf);
    let (buffer, worker) = buffer::pair(service, 1);
    let (answer, ()) =
        futures::executor::block_on(async { futures::join!(buffer.oneshot(1), worker) });
    assert!(answer.is_ok_and(|plain| plain.0 == "borrowed" && Rc::strong_count(&plain.1) == 1));
}
