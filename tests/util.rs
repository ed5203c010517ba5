//! The combinators and adaptors of `util`.

mod common;

use std::cell::RefCell;
use std::future::{Future, Pending, Ready, pending, ready};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use campanile::util::{
    AndThenLayer, Either, ErrInto, ErrIntoLayer, FutureService, MapErrLayer, MapFutureLayer,
    MapRequestLayer, MapResponseLayer, MapResultLayer, Optional, ThenLayer, future_service,
    option_layer, optional,
};
use campanile::{Layer, Service, ServiceExt, Timer, service_fn};
use common::{Failure, Host, On, mock, on_every_runtime};
use futures::executor::block_on;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Inner(&'static str);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Outer(&'static str);

impl From<Inner> for Outer {
    fn from(Inner(text): Inner) -> Self {
        Outer(text)
    }
}

/// Answers an even number with `Ok(n)` and an odd one with `Err`; its readiness is given.
#[derive(Clone, Debug)]
struct Even(Poll<Result<(), Inner>>);

impl Service<u32> for Even {
    type Response = u32;
    type Error = Inner;
    type Future = Ready<Result<u32, Inner>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Inner>> {
        self.0
    }

    fn call(&mut self, n: u32) -> Self::Future {
        assert_eq!(self.0, Poll::Ready(Ok(())), "called, though not ready");
        ready(if n % 2 == 0 { Ok(n) } else { Err(Inner("odd")) })
    }
}

const EVEN: Even = Even(Poll::Ready(Ok(())));
const BUSY: Even = Even(Poll::Pending);
const BROKEN: Even = Even(Poll::Ready(Err(Inner("broken"))));

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Asserts how a layer changes the readiness of the three services and the answers to 2 and 1.
#[track_caller]
fn check<L, S, T>(layer: L, broken: Outer, even: Result<T, Outer>, odd: Result<T, Outer>)
where
    L: Layer<Even, Service = S>,
    S: Service<u32, Response = T, Error = Outer>,
    T: std::fmt::Debug + PartialEq,
{
    assert!(layer.layer(BUSY).poll_ready(&mut cx()).is_pending());
    let readiness = layer.layer(BROKEN).poll_ready(&mut cx());
    assert_eq!(readiness, Poll::Ready(Err(broken)));
    assert_eq!(block_on(layer.layer(EVEN).oneshot(2)), even);
    assert_eq!(block_on(layer.layer(EVEN).oneshot(1)), odd);
}

#[test]
fn map_err_maps_readiness_errors_too() {
    let layer = MapErrLayer::new(|Inner(text)| Outer(if text == "odd" { "was odd" } else { "no" }));
    check(layer, Outer("no"), Ok(2), Err(Outer("was odd")));
}

#[test]
fn err_into_converts_readiness_errors_too() {
    let layer = ErrIntoLayer::<Outer>::new();
    check(layer, Outer("broken"), Ok(2), Err(Outer("odd")));
    let named: ErrInto<Even, Outer> = EVEN.err_into();
    assert_eq!(block_on(named.oneshot(1)), Err(Outer("odd")));
}

#[test]
fn map_response_leaves_errors_alone() {
    let layer = (
        ErrIntoLayer::<Outer>::new(),
        MapResponseLayer::new(|n| n + 10),
    );
    check(layer, Outer("broken"), Ok(12), Err(Outer("odd")));
}

#[test]
fn map_result_skips_readiness() {
    let layer = MapResultLayer::new(|result: Result<u32, Inner>| match result {
        Ok(_) => Err(Outer("swapped")),
        Err(_) => Ok(0),
    });
    check(layer, Outer("broken"), Err(Outer("swapped")), Ok(0));
}

#[test]
fn and_then_continues_only_after_success() {
    let layer = AndThenLayer::new(|n: u32| async move {
        yield_once().await;
        Ok::<_, Outer>(n.to_string())
    });
    check(layer, Outer("broken"), Ok("2".into()), Err(Outer("odd")));
}

#[test]
fn then_continues_after_any_result() {
    let layer = ThenLayer::new(|result: Result<u32, Inner>| async move {
        yield_once().await;
        Ok::<_, Outer>(result.unwrap_or(0))
    });
    check(layer, Outer("broken"), Ok(2), Ok(0));
}

#[test]
fn map_future_replaces_the_future() {
    let layer = MapFutureLayer::new(|future: Ready<Result<u32, Inner>>| async move {
        Ok::<_, Outer>(future.await? * 2)
    });
    check(layer, Outer("broken"), Ok(4), Err(Outer("odd")));
}

#[test]
fn map_request_builds_the_request() {
    let layer = (
        ErrIntoLayer::<Outer>::new(),
        MapRequestLayer::new(|n: u32| n + 1),
    );
    check(layer, Outer("broken"), Err(Outer("odd")), Ok(2));
}

/// Pending once, and wakes itself.
async fn yield_once() {
    let mut polled = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[test]
fn last_combinator_is_outermost() {
    let log = Rc::new(RefCell::new(Vec::new()));
    let request = |name| {
        let log = Rc::clone(&log);
        move |n: u32| {
            log.borrow_mut().push(name);
            n
        }
    };
    let service = EVEN
        .map_request(request("request, inner"))
        .map_request(request("request, outer"))
        .map_response(request("response, inner"))
        .map_response(request("response, outer"));
    assert_eq!(block_on(service.oneshot(2)), Ok(2));
    assert_eq!(
        *log.borrow(),
        [
            "request, outer",
            "request, inner",
            "response, inner",
            "response, outer"
        ]
    );
}

#[test]
fn response_combinators_accept_fn_once() {
    // Not `FnMut`: each response consumes a clone.
    let text = String::from("used up");
    let mut service = EVEN.map_response(move |_| text);
    for _ in 0..2 {
        assert_eq!(block_on(service.call(2)), Ok("used up".into()));
    }
}

#[test]
fn combinators_return_their_service() {
    let mut service = EVEN.map_response(|n: u32| n);
    assert_eq!(service.get_ref().0, EVEN.0);
    *service.get_mut() = BUSY;
    assert_eq!(service.into_inner().0, BUSY.0);
}

#[test]
fn combinators_are_debug_for_any_function() {
    fn double(n: u32) -> u32 {
        n * 2
    }
    let name = std::any::type_name_of_val(&double);
    assert_eq!(
        format!("{:?}", MapRequestLayer::new(double)),
        format!("MapRequestLayer {{ f: {name} }}")
    );
    let even = format!("{EVEN:?}");
    let mut service = EVEN.map_response(double);
    assert_eq!(
        format!("{service:?}"),
        format!("MapResponse {{ inner: {even}, f: {name} }}")
    );
    assert_eq!(format!("{:?}", service.call(2)), "MapResponseFuture { .. }");
    assert!(format!("{:?}", EVEN.err_into::<Outer>()).starts_with("ErrInto { inner: Even("));
    assert_eq!(
        format!("{:?}", ServiceExt::<u32>::ready_oneshot(EVEN)),
        format!("ReadyOneshot {{ inner: Some({even}) }}")
    );
    assert_eq!(
        format!("{:?}", EVEN.oneshot(2)),
        format!("Oneshot {{ service: {even}, request: 2 }}")
    );
}

#[test]
fn oneshot_does_not_call_an_unready_service() {
    let mut waiting = pin!(BUSY.oneshot(2));
    assert!(waiting.as_mut().poll(&mut cx()).is_pending());
    assert!(waiting.as_mut().poll(&mut cx()).is_pending());
    // A call would panic.
    assert_eq!(block_on(BROKEN.oneshot(2)), Err(Inner("broken")));
}

/// Ready from its second poll on; records calls and its drop.
#[derive(Debug)]
struct Late {
    polled: bool,
    log: Rc<RefCell<Vec<&'static str>>>,
}

impl Late {
    fn new(log: &Rc<RefCell<Vec<&'static str>>>) -> Self {
        Self {
            polled: false,
            log: Rc::clone(log),
        }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.log.borrow_mut().push("dropped");
    }
}

impl Service<()> for Late {
    type Response = ();
    type Error = Inner;
    type Future = Pending<Result<(), Inner>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Inner>> {
        if std::mem::replace(&mut self.polled, true) {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    fn call(&mut self, (): ()) -> Self::Future {
        self.log.borrow_mut().push("called");
        pending()
    }
}

#[test]
fn cancelled_oneshot_drops_the_service() {
    let log = Rc::default();
    let mut oneshot = Box::pin(Late::new(&log).oneshot(()));
    assert!(oneshot.as_mut().poll(&mut cx()).is_pending());
    assert!(log.borrow().is_empty());
    drop(oneshot);
    assert_eq!(*log.borrow(), ["dropped"]);
}

#[test]
fn oneshot_drops_the_service_after_the_call() {
    let log = Rc::default();
    let mut oneshot = Box::pin(Late::new(&log).oneshot(()));
    for _ in 0..3 {
        assert!(oneshot.as_mut().poll(&mut cx()).is_pending());
    }
    assert_eq!(*log.borrow(), ["called", "dropped"]);
}

#[test]
fn cancelled_ready_leaves_the_service_as_is() {
    let log = Rc::default();
    let mut service = Late::new(&log);
    {
        let mut waiting = pin!(service.ready());
        assert!(waiting.as_mut().poll(&mut cx()).is_pending());
    }
    assert!(log.borrow().is_empty());
    assert!(pin!(service.ready()).poll(&mut cx()).is_ready());

    let mut waiting = Box::pin(Late::new(&log).ready_oneshot());
    assert!(waiting.as_mut().poll(&mut cx()).is_pending());
    drop(waiting);
    assert_eq!(*log.borrow(), ["dropped"]);
}

#[test]
fn ready_forwards_readiness_errors() {
    assert_eq!(
        block_on(ServiceExt::<u32>::ready(&mut BROKEN.clone())).unwrap_err(),
        Inner("broken")
    );
    assert_eq!(
        block_on(ServiceExt::<u32>::ready_oneshot(BROKEN)).unwrap_err(),
        Inner("broken")
    );
}

#[test]
fn either_forwards_to_its_side() {
    type Both = Either<Even, campanile::util::MapRequest<Even, fn(u32) -> u32>>;
    let mut left: Both = Either::Left(EVEN);
    let mut right: Both = Either::Right(EVEN.map_request(|n| n + 1));
    assert_eq!(block_on(left.ready()).map(drop), Ok(()));
    assert_eq!(block_on(left.call(2)), Ok(2));
    assert_eq!(block_on(right.call(1)), Ok(2));
    let mut busy: Both = Either::Left(BUSY);
    assert!(busy.poll_ready(&mut cx()).is_pending());
    let mut broken: Both = Either::Right(BROKEN.map_request(|n| n));
    assert_eq!(
        broken.poll_ready(&mut cx()),
        Poll::Ready(Err(Inner("broken")))
    );
}

#[test]
fn option_layer_applies_the_layer_if_any() {
    for (some, expected) in [(true, Ok(2)), (false, Err(Inner("odd")))] {
        let layer = option_layer(some.then(|| MapRequestLayer::new(|n: u32| n + 1)));
        assert_eq!(block_on(layer.layer(EVEN).oneshot(1)), expected);
    }
}

#[test]
fn optional_without_a_service_is_an_error() {
    let mut none = Optional::<Even>::new(None);
    assert_eq!(none.poll_ready(&mut cx()), Poll::Ready(Ok(())));
    let error = block_on(none.call(2)).unwrap_err();
    assert_eq!(error, optional::Error::None(optional::error::None::new()));
    assert_eq!(
        block_on(Optional::new(Some(EVEN)).oneshot(1)),
        Err(optional::Error::Service(Inner("odd")))
    );
    assert!(Optional::new(Some(BUSY)).poll_ready(&mut cx()).is_pending());
}

#[test]
fn future_service_waits_for_both() {
    let mut service = future_service(Box::pin(async {
        yield_once().await;
        Ok(EVEN)
    }));
    assert!(format!("{service:?}").starts_with("FutureService { future: "));
    assert!(service.poll_ready(&mut cx()).is_pending());
    assert_eq!(service.poll_ready(&mut cx()), Poll::Ready(Ok(())));
    assert_eq!(block_on(service.call(2)), Ok(2));
    assert_eq!(
        format!("{service:?}"),
        format!("FutureService {{ service: {EVEN:?} }}")
    );

    let mut service = future_service(ready(Ok(BUSY)));
    assert!(service.poll_ready(&mut cx()).is_pending());
}

#[test]
fn unready_future_service_does_not_panic() {
    use campanile::util::future_service::Error;

    let mut service = future_service(pending::<Result<Even, Inner>>());
    assert!(matches!(block_on(service.call(2)), Err(Error::NotReady(_))));

    // An async block must not be polled after completion.
    let failing = Box::pin(async { Err::<Even, _>(Inner("no")) });
    let mut service: FutureService<_, Even> = future_service(failing);
    let readiness = service.poll_ready(&mut cx());
    assert_eq!(readiness, Poll::Ready(Err(Error::Service(Inner("no")))));
    assert!(matches!(
        service.poll_ready(&mut cx()),
        Poll::Ready(Err(Error::NotReady(_)))
    ));
    assert!(matches!(block_on(service.call(2)), Err(Error::NotReady(_))));
}

#[test]
fn service_fn_is_a_service() {
    let service = service_fn(|n: u32| ready(Ok::<_, Inner>(n)));
    assert_eq!(block_on(service.oneshot(1)), Ok(1));
}

#[cfg(feature = "alloc")]
mod boxes {
    use super::*;
    use campanile::util::{
        BoxCloneService, BoxCloneServiceLayer, BoxCloneSyncService, BoxCloneSyncServiceLayer,
        BoxLayer, BoxService, UnsyncBoxCloneService, UnsyncBoxService,
    };

    // A type without `Send` and `Sync`: the boxes' auto traits must not depend on the request and response types.
    type Foreign = Rc<()>;

    const fn send<T: Send>() {}
    const fn sync<T: Sync>() {}
    const fn cloneable<T: Clone>() {}

    const _: () = {
        send::<BoxService<Foreign, Foreign, Foreign>>();
        #[cfg(feature = "std")]
        sync::<BoxService<Foreign, Foreign, Foreign>>();
        send::<BoxCloneService<Foreign, Foreign, Foreign>>();
        cloneable::<BoxCloneService<Foreign, Foreign, Foreign>>();
        send::<BoxCloneSyncService<Foreign, Foreign, Foreign>>();
        sync::<BoxCloneSyncService<Foreign, Foreign, Foreign>>();
        cloneable::<BoxCloneSyncService<Foreign, Foreign, Foreign>>();
        cloneable::<UnsyncBoxCloneService<Foreign, Foreign, Foreign>>();
        send::<BoxLayer<Foreign, Foreign, Foreign, Foreign>>();
        sync::<BoxLayer<Foreign, Foreign, Foreign, Foreign>>();
        cloneable::<BoxLayer<Foreign, Foreign, Foreign, Foreign>>();
        cloneable::<BoxCloneServiceLayer<Foreign, Foreign, Foreign, Foreign>>();
        cloneable::<BoxCloneSyncServiceLayer<Foreign, Foreign, Foreign, Foreign>>();
    };

    #[track_caller]
    fn hands_on<S>(new: impl Fn(Even) -> S)
    where
        S: Service<u32, Response = u32, Error = Inner>,
    {
        assert_eq!(block_on(new(EVEN).oneshot(2)), Ok(2));
        assert_eq!(block_on(new(EVEN).oneshot(1)), Err(Inner("odd")));
        assert!(new(BUSY).poll_ready(&mut cx()).is_pending());
        let readiness = new(BROKEN).poll_ready(&mut cx());
        assert_eq!(readiness, Poll::Ready(Err(Inner("broken"))));
    }

    #[test]
    fn boxes_forward_everything() {
        hands_on(BoxService::new);
        hands_on(BoxCloneService::new);
        hands_on(BoxCloneSyncService::new);
        hands_on(UnsyncBoxService::new);
        hands_on(UnsyncBoxCloneService::new);
        hands_on(|service| BoxCloneService::new(service).clone());
        hands_on(|service| BoxCloneSyncService::new(service).clone());
        hands_on(|service| UnsyncBoxCloneService::new(service).clone());
        hands_on(|service| BoxService::layer().layer(service));
        hands_on(|service| UnsyncBoxCloneService::layer().layer(service));
        hands_on(|service| BoxLayer::new(()).clone().layer(service));
        hands_on(|service| BoxCloneServiceLayer::new(()).clone().layer(service));
        hands_on(|service| BoxCloneSyncServiceLayer::new(()).clone().layer(service));
    }

    #[test]
    fn unsync_box_accepts_local_services() {
        let local = Rc::new(1);
        let service = service_fn(move |n: u32| {
            let local = Rc::clone(&local);
            async move {
                yield_once().await;
                Ok::<_, Inner>(n + *local)
            }
        });
        let boxed = UnsyncBoxCloneService::new(service.clone());
        assert_eq!(block_on(boxed.clone().oneshot(1)), Ok(2));
        assert_eq!(block_on(UnsyncBoxService::new(service).oneshot(2)), Ok(3));
    }

    #[test]
    fn boxes_are_debug() {
        assert_eq!(format!("{:?}", EVEN.boxed()), "BoxService { .. }");
        let layer: BoxLayer<Even, _, _, _> = BoxLayer::new(());
        assert_eq!(format!("{layer:?}"), "BoxLayer { .. }");
    }

    #[test]
    fn box_is_as_large_as_a_fat_pointer() {
        let pointer = size_of::<&dyn std::fmt::Debug>();
        assert_eq!(size_of::<BoxService<u32, u32, Inner>>(), pointer);
        assert_eq!(size_of::<BoxCloneService<u32, u32, Inner>>(), pointer);
    }
}

/// The services work with both crates, so the response futures can be compared with tower's.
#[cfg(feature = "tower")]
mod size {
    use std::pin::Pin;

    use super::*;

    #[derive(Clone, Debug)]
    struct Pinned([u64; 3]);

    impl Service<u32> for Pinned {
        type Response = u32;
        type Error = Inner;
        type Future = Pin<Box<dyn Future<Output = Result<u32, Inner>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Inner>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, n: u32) -> Self::Future {
            let Self(values) = self.clone();
            Box::pin(async move { Ok(n + values.len() as u32) })
        }
    }

    fn size<S: Service<R>, R>(_: &S) -> usize {
        size_of::<S::Future>()
    }

    macro_rules! no_larger {
        ($($method:ident($($f:expr)?)),+ $(,)?) => {$(
            let tower_has = [
                size::<_, u32>(&tower::ServiceExt::<u32>::$method(EVEN $(, $f)?)),
                size::<_, u32>(&tower::ServiceExt::<u32>::$method(Pinned([0; 3]) $(, $f)?)),
            ];
            let here = [
                size::<_, u32>(&ServiceExt::<u32>::$method(EVEN $(, $f)?)),
                size::<_, u32>(&ServiceExt::<u32>::$method(Pinned([0; 3]) $(, $f)?)),
            ];
            for (here, tower_has) in here.into_iter().zip(tower_has) {
                assert!(
                    here <= tower_has,
                    "{}: {here} bytes, {tower_has} with tower",
                    stringify!($method),
                );
            }
        )+};
    }

    #[test]
    fn response_futures_match_towers_sizes() {
        let kept = [1_u64; 4];
        no_larger!(
            map_err(|Inner(text)| Outer(text)),
            map_err(move |_| kept[0]),
            map_response(|n| n),
            map_response(move |n| u64::from(n) + kept[0]),
            map_result(|result: Result<u32, Inner>| result),
            map_result(move |result: Result<u32, Inner>| result.map(|n| n + kept[0] as u32)),
            and_then(|n: u32| ready(Ok::<_, Inner>(n))),
            and_then(move |n: u32| async move {
                yield_once().await;
                Ok::<_, Inner>(n + kept[0] as u32)
            }),
            then(|result: Result<u32, Inner>| ready(result)),
            then(move |result: Result<u32, Inner>| async move {
                yield_once().await;
                result.map(|n| n + kept[0] as u32)
            }),
            map_request(|n: u32| n),
        );

        assert!(
            size_of_val(&EVEN.oneshot(1)) <= size_of_val(&tower::ServiceExt::oneshot(EVEN, 1_u32))
        );
        let tower_has = tower::util::Either::<_, Even>::Left(Pinned([0; 3]));
        let here = Either::<_, Even>::Left(Pinned([0; 3]));
        assert!(size(&here) <= size(&tower_has));
    }
}

async fn late_service_wakes_its_waiter<H: Host>(rt: On<H>) {
    let second = Duration::from_secs(1);
    let (service, mut handle) = mock::<u32, u32>();
    handle.set_ready(false);
    let wait = rt.sleep(second);
    let (begin, begun) = futures::channel::oneshot::channel();
    let later = Box::pin(async move {
        let mut wait = pin!(wait);
        assert!(futures::poll!(&mut wait).is_pending());
        begin.send(()).unwrap();
        wait.await;
        Ok::<_, Failure>(service)
    });
    let answer = rt.start(future_service(later).oneshot(1));
    begun.await.unwrap();
    rt.advance(second).await;
    handle.set_ready(true);
    let (request, responder) = rt.advance_until(second, handle.next()).await;
    responder.send(request + 1);
    assert_eq!(answer.await.unwrap().unwrap(), 2);
}

on_every_runtime! { late_service_wakes_its_waiter }
