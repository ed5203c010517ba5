//! Filters: what passes, what is rejected, and what a rejection releases.
mod common;

use std::cell::{Cell, RefCell};
use std::future::{Ready, ready};
use std::num::ParseIntError;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use campanile::error::find;
use campanile::filter::{
    AsyncFilter, AsyncFilterLayer, AsyncPredicate, Error, Filter, FilterLayer, Predicate,
};
use campanile::{Layer, Service, ServiceExt, Timer, service_fn};
use common::{Host, On, mock, on_every_runtime};
use futures::executor::block_on;

/// Takes one of `free` when it becomes ready, and answers with its request.
#[derive(Debug)]
struct Reserving {
    free: Rc<Cell<u32>>,
    reserved: bool,
    clones: Rc<Cell<u32>>,
}

impl Reserving {
    fn new(free: u32) -> Self {
        Self {
            free: Rc::new(Cell::new(free)),
            reserved: false,
            clones: Rc::default(),
        }
    }
}

impl Clone for Reserving {
    fn clone(&self) -> Self {
        self.clones.set(self.clones.get() + 1);
        Self {
            free: self.free.clone(),
            reserved: false,
            clones: self.clones.clone(),
        }
    }
}

impl Drop for Reserving {
    fn drop(&mut self) {
        if self.reserved {
            self.free.set(self.free.get() + 1);
        }
    }
}

impl Service<u32> for Reserving {
    type Response = u32;
    type Error = std::io::Error;
    type Future = Ready<Result<u32, std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        if !self.reserved {
            if self.free.get() == 0 {
                return Poll::Pending;
            }
            self.free.set(self.free.get() - 1);
            self.reserved = true;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Self::Future {
        assert!(self.reserved, "called, though not ready");
        self.reserved = false;
        self.free.set(self.free.get() + 1);
        ready(Ok(request))
    }
}

fn parse(text: &'static str) -> Result<u32, ParseIntError> {
    text.parse()
}

async fn parse_later(text: &'static str) -> Result<u32, ParseIntError> {
    text.parse()
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn poll_ready<R, S: Service<R>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut cx())
}

#[test]
fn inner_service_gets_the_predicates_output() {
    let inner = Reserving::new(1);
    assert_eq!(
        block_on(inner.clone().filter(parse).oneshot("7")).unwrap(),
        7
    );
    assert_eq!(
        block_on(inner.filter_async(parse_later).oneshot("7")).unwrap(),
        7
    );
}

#[test]
fn rejection_releases_the_reservation() {
    let inner = Reserving::new(1);
    let mut service = Filter::new(inner.clone(), parse);
    let mut other = inner.clone();

    assert!(poll_ready(&mut service).is_ready());
    assert!(poll_ready(&mut other).is_pending());

    // The reservation is released at once, though the response future and the filter still exist.
    let rejected = service.call("seven");
    assert!(poll_ready(&mut other).is_ready());
    assert!(matches!(block_on(rejected), Err(Error::Rejected(_))));
    assert_eq!(block_on(other.call(1)).unwrap(), 1);

    // The filter still works.
    assert!(poll_ready(&mut service).is_ready());
    assert_eq!(block_on(service.call("7")).unwrap(), 7);
}

#[test]
fn async_rejection_releases_the_reservation() {
    let inner = Reserving::new(1);
    let mut service = AsyncFilter::new(inner.clone(), parse_later);
    let mut other = inner.clone();

    assert!(poll_ready(&mut service).is_ready());
    let mut rejected = Box::pin(service.call("seven"));
    // The call keeps its reservation until the predicate has answered.
    assert!(poll_ready(&mut other).is_pending());
    assert!(matches!(
        rejected.as_mut().poll(&mut cx()),
        Poll::Ready(Err(Error::Rejected(_)))
    ));
    assert!(poll_ready(&mut other).is_ready());
}

#[test]
fn cancelled_check_releases_the_reservation() {
    let inner = Reserving::new(1);
    let mut service = AsyncFilter::new(inner.clone(), |_: u32| {
        std::future::pending::<Result<u32, ParseIntError>>()
    });
    assert!(poll_ready(&mut service).is_ready());
    let mut response = Box::pin(service.call(1));
    assert!(response.as_mut().poll(&mut cx()).is_pending());
    assert_eq!(inner.free.get(), 0);
    drop(response);
    assert_eq!(inner.free.get(), 1);
}

#[test]
fn a_request_that_passes_clones_nothing() {
    let inner = Reserving::new(1);
    let clones = inner.clones.clone();
    let mut service = Filter::new(inner, parse);
    assert!(poll_ready(&mut service).is_ready());
    assert_eq!(block_on(service.call("7")).unwrap(), 7);
    assert_eq!(clones.get(), 0);
}

#[test]
fn inner_pending_is_passed_on() {
    assert!(poll_ready(&mut Filter::new(Reserving::new(0), parse)).is_pending());
    assert!(poll_ready(&mut AsyncFilter::new(Reserving::new(0), parse_later)).is_pending());
}

#[test]
fn async_filter_layer_builds_async_filter() {
    let layer: AsyncFilterLayer<_> = AsyncFilter::<(), _>::layer(parse_later);
    let service: AsyncFilter<Reserving, _> = layer.layer(Reserving::new(1));
    assert_eq!(block_on(service.oneshot("7")).unwrap(), 7);

    let layer: FilterLayer<_> = Filter::<(), _>::layer(parse);
    let service: Filter<Reserving, _> = layer.layer(Reserving::new(1));
    assert_eq!(block_on(service.oneshot("7")).unwrap(), 7);
}

#[test]
fn predicates_can_be_types() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct AtMost(u32);

    impl Predicate<u32> for AtMost {
        type Request = u32;
        type Error = AtMost;

        fn check(&mut self, n: u32) -> Result<u32, AtMost> {
            if n <= self.0 { Ok(n) } else { Err(*self) }
        }
    }

    impl AsyncPredicate<u32> for AtMost {
        type Request = u32;
        type Error = AtMost;
        type Future = Ready<Result<u32, AtMost>>;

        fn check(&mut self, n: u32) -> Self::Future {
            ready(Predicate::check(self, n))
        }
    }

    let mut service = Filter::new(Reserving::new(1), AtMost(5));
    assert_eq!(service.check(5), Ok(5));
    assert_eq!(service.check(6), Err(AtMost(5)));
    assert!(!service.get_ref().reserved);
    assert_eq!(service.get_mut().free.get(), 1);
    assert_eq!(
        block_on(service.oneshot(6)).unwrap_err().into_rejected(),
        Some(AtMost(5))
    );

    let mut service = AsyncFilter::new(Reserving::new(1), AtMost(5));
    assert_eq!(block_on(service.check(6)), Err(AtMost(5)));
    assert_eq!(service.into_inner().free.get(), 1);
}

#[test]
fn error_exposes_its_source() {
    type Io = std::io::Error;
    let rejected: Error<Io, ParseIntError> = Error::Rejected(parse("x").unwrap_err());
    assert!(find::<ParseIntError>(&rejected).is_some());
    assert!(find::<Io>(&rejected).is_none());
    assert_eq!(rejected.to_string(), parse("x").unwrap_err().to_string());

    let failed: Error<Io, ParseIntError> = Error::Service(Io::other("broken"));
    assert!(find::<Io>(&failed).is_some());
    assert_eq!(failed.to_string(), "broken");
    assert_eq!(failed.into_service().unwrap().to_string(), "broken");
}

#[cfg(feature = "alloc")]
#[test]
fn error_flattens_into_a_box() {
    use campanile::BoxError;

    // Two levels deep, with a predicate whose error is already boxed.
    let service = Reserving::new(1)
        .filter(parse)
        .filter(|text: &'static str| {
            if text.is_empty() {
                Err(BoxError::from("empty"))
            } else {
                Ok(text)
            }
        })
        .err_into::<BoxError>();
    let error = block_on(service.clone().oneshot("")).unwrap_err();
    assert_eq!(error.to_string(), "empty");
    let error = block_on(service.oneshot("seven")).unwrap_err();
    assert!(error.is::<ParseIntError>());
}

#[test]
fn inner_error_is_distinct() {
    let failing = service_fn(|_: u32| ready(Err::<(), _>(std::io::Error::other("broken"))));
    let error = block_on(failing.filter(parse).oneshot("7")).unwrap_err();
    assert!(matches!(error, Error::Service(error) if error.to_string() == "broken"));
    let error = block_on(failing.filter_async(parse_later).oneshot("7")).unwrap_err();
    assert!(matches!(error, Error::Service(error) if error.to_string() == "broken"));
}

#[test]
fn ready_service_is_dropped_after_its_call() {
    // What happens to the inner service, in order.
    #[derive(Debug)]
    struct Logging(Rc<RefCell<Vec<&'static str>>>);

    impl Clone for Logging {
        fn clone(&self) -> Self {
            self.0.borrow_mut().push("clone");
            Self(self.0.clone())
        }
    }

    impl Drop for Logging {
        fn drop(&mut self) {
            self.0.borrow_mut().push("drop");
        }
    }

    impl Service<u32> for Logging {
        type Response = ();
        type Error = std::io::Error;
        type Future = std::future::Pending<Result<(), std::io::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: u32) -> Self::Future {
            self.0.borrow_mut().push("call");
            std::future::pending()
        }
    }

    let log = Rc::default();
    let mut service = AsyncFilter::new(Logging(Rc::clone(&log)), parse_later);
    let mut response = Box::pin(service.call("7"));
    assert!(response.as_mut().poll(&mut cx()).is_pending());
    assert_eq!(*log.borrow(), ["clone", "call", "drop"]);
}

#[test]
fn filters_implement_debug() {
    #[derive(Clone, Copy, Debug)]
    struct Any;
    assert_eq!(
        format!("{:?}", Filter::new((), Any)),
        "Filter { inner: (), predicate: Any }"
    );
    assert_eq!(
        format!("{:?}", AsyncFilterLayer::new(Any)),
        "AsyncFilterLayer { predicate: Any }"
    );
    let mut service = Filter::new(Reserving::new(1), parse);
    assert_eq!(format!("{:?}", service.call("x")), "ResponseFuture { .. }");
}

/// A slow check delays its own request and no other.
async fn slow_check_delays_only_its_request<H: Host>(rt: On<H>) {
    let (service, mut handle) = mock::<u32, u32>();
    let time = rt.clone();
    let filter = AsyncFilter::new(service, move |n: u32| {
        let wait = (n > 1).then(|| time.sleep(Duration::from_secs(1)));
        async move {
            if let Some(wait) = wait {
                wait.await;
            }
            if n < 3 { Ok(n) } else { Err(n) }
        }
    });
    let rejected = rt.start(filter.clone().oneshot(3));
    let slow = rt.start(filter.clone().oneshot(2));
    let quick = rt.start(filter.oneshot(1));
    let (request, responder) = handle.next().await;
    assert_eq!(request, 1);
    responder.send(10);
    assert_eq!(quick.await.unwrap(), Ok(10));
    assert_eq!(handle.calls(), 1);

    let step = Duration::from_millis(100);
    let (request, responder) = rt.advance_until(step, handle.next()).await;
    assert_eq!(request, 2);
    responder.send(20);
    assert_eq!(slow.await.unwrap(), Ok(20));
    let rejected = rt.advance_until(step, rejected).await.unwrap();
    assert_eq!(rejected, Err(Error::Rejected(3)));
    assert_eq!((handle.calls(), handle.alive()), (2, 0));
}

on_every_runtime! { slow_check_delays_only_its_request }
