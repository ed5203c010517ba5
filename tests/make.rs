//! `MakeService` and `MakeConnection`: views of a `Service` that do not change its behaviour.

mod common;

use core::convert::Infallible;
use core::future::{Ready, ready};
use core::task::{Context, Poll};

use campanile::make::{AsService, IntoService, MakeConnection, Shared, future::SharedFuture};
use campanile::{MakeService, Service, service_fn};
use common::{Failure, WakeCount, mock};
use futures::FutureExt;

/// Uses a maker through the trait, as generic code does.
fn make<M: MakeService<Target, Request>, Target, Request>(
    maker: &mut M,
    target: Target,
) -> Option<Result<M::Service, M::MakeError>> {
    let wakes = WakeCount::new();
    match wakes.enter(|cx| maker.poll_ready(cx)) {
        Poll::Ready(Ok(())) => maker.make_service(target).now_or_never(),
        Poll::Ready(Err(error)) => Some(Err(error)),
        Poll::Pending => None,
    }
}

#[test]
fn maker_is_polled_and_called_as_a_service() {
    let (service, handle) = mock::<&str, u32>();
    let mut maker = service.clone();
    // The connection type need not support I/O.
    let mut connect = || {
        let wakes = WakeCount::new();
        let polled = wakes.enter(|cx| MakeConnection::poll_ready(&mut maker, cx));
        polled.map_ok(|()| maker.make_connection("target").now_or_never())
    };
    handle.set_ready(false);
    assert_eq!(connect(), Poll::Pending);
    handle.set_ready(true);
    assert_eq!(connect(), Poll::Ready(Ok(None)));
    handle.fail(Failure("no more"));
    assert_eq!(connect(), Poll::Ready(Err(Failure("no more"))));
    assert_eq!(handle.calls(), 1);
}

#[test]
fn maker_becomes_a_service() {
    let mut made = 0;
    let mut maker = service_fn(move |target: u32| {
        made += target;
        let made = made;
        ready(Ok::<_, Infallible>(service_fn(move |n: u32| {
            ready(Ok::<_, Infallible>(made + n))
        })))
    });
    let mut first = make(&mut MakeService::<_, u32>::as_service(&mut maker), 10)
        .unwrap()
        .unwrap();
    let mut second = make::<_, _, u32>(&mut maker, 10).unwrap().unwrap();
    let mut owned: IntoService<_, u32> = maker.into_service();
    let mut clone = owned.clone();
    let mut third = make(&mut owned, 10).unwrap().unwrap();
    let mut fourth = make(&mut clone, 10).unwrap().unwrap();
    let services = [&mut first, &mut second, &mut third, &mut fourth];
    let answers = services.map(|service| service.call(1).now_or_never().unwrap().unwrap());
    assert_eq!(answers, [11, 21, 31, 31]);
}

#[test]
fn shared_makes_unpolled_clones() {
    let (mut service, handle) = mock::<u32, u32>();
    let wakes = WakeCount::new();
    assert_eq!(wakes.poll_ready(&mut service), Poll::Ready(Ok(())));
    let mut maker = Shared::new(service);
    handle.set_ready(false);
    // The maker is always ready, but the services that it makes are not.
    let mut made = make::<_, _, u32>(&mut maker, "any").unwrap().unwrap();
    assert_eq!(wakes.poll_ready(&mut made), Poll::Pending);
    assert_eq!(handle.alive(), 2);
    let future: SharedFuture<_> = Service::<()>::call(&mut maker, ());
    drop(future);
    assert_eq!(handle.alive(), 2);
}

/// Neither `Clone` nor `Debug`, and takes borrowed targets.
struct Plain;

impl<'a> Service<&'a str> for Plain {
    type Response = Plain;
    type Error = Infallible;
    type Future = Ready<Result<Plain, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: &'a str) -> Self::Future {
        ready(Ok(Plain))
    }
}

#[test]
fn a_maker_of_makers_is_a_maker() {
    let mut plain = Plain;
    let mut service: AsService<'_, _, &str> = MakeService::<&str, _>::as_service(&mut plain);
    let mut made = make(&mut service, "one").unwrap().unwrap();
    assert!(make::<_, _, &str>(&mut made, "two").is_some());
}

/// The same code against tower and against this crate.
#[cfg(feature = "tower")]
mod parity {
    macro_rules! program {
        ($tower:ident) => {{
            use $tower::make::{AsService, IntoService, MakeService, Shared};
            use $tower::{Service, ServiceExt, service_fn};

            async fn serve<M>(maker: &mut M) -> Result<M::Response, M::MakeError>
            where
                M: MakeService<&'static str, u32, Error = std::fmt::Error>,
            {
                std::future::poll_fn(|cx| maker.poll_ready(cx)).await?;
                let mut service: M::Service = maker.make_service("a").await?;
                Ok(service.ready().await.unwrap().call(1).await.unwrap())
            }

            futures::executor::block_on(async {
                let mut shared =
                    Shared::new(service_fn(
                        |n: u32| async move { Ok::<_, std::fmt::Error>(n) },
                    ));
                let first = serve(&mut shared).await?;
                let mut maker: AsService<'_, _, u32> =
                    MakeService::<&str, u32>::as_service(&mut shared);
                let service = maker.call("b").await?;
                let second = service.oneshot(2).await.unwrap();
                let maker: IntoService<_, u32> = MakeService::<&str, u32>::into_service(shared);
                let service = maker.clone().oneshot("c").await?;
                Ok::<_, std::convert::Infallible>(
                    first + second + service.oneshot(3).await.unwrap(),
                )
            })
        }};
    }

    #[test]
    fn code_for_tower_compiles_against_this() {
        assert_eq!(program!(tower), Ok(6));
        assert_eq!(program!(campanile), Ok(6));
    }
}
