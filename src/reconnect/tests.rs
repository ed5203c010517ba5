//! Polls that drive, whose mark is private.

use alloc::sync::Arc;
use core::future::{Ready, poll_fn, ready};
use core::sync::atomic::Ordering::SeqCst;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use futures::FutureExt;

use super::{ConnectErrors, Error};
use crate::sync::{WakeCount, drive, mark};
use crate::testing::mock::{self, Handle, Mock, SendResponse};
use crate::testing::reconnect::Reconnect;
use crate::testing::{Runtime, sleep};
use crate::{BoxError, Service};

const SECOND: Duration = Duration::from_secs(1);

type Connection = Mock<u32, u32>;
type Connector = Mock<(), Connection>;

/// A `Reconnect`, its connector, and a count of its wake-ups.
struct Set {
    service: Reconnect<Connector, ()>,
    connector: Handle<(), Connection>,
    wakes: Arc<WakeCount>,
}

impl Set {
    fn new(place: ConnectErrors) -> Self {
        let (maker, connector) = mock::pair();
        Self {
            service: Reconnect::new(maker, ()).connect_errors(place),
            connector,
            wakes: Arc::default(),
        }
    }

    fn drive(&mut self) -> Poll<Result<(), Error<BoxError, BoxError>>> {
        let waker = Waker::from(self.wakes.clone());
        drive(&waker, |cx| self.service.poll_ready(cx))
    }

    async fn poll(&mut self) -> Poll<Result<(), Error<BoxError, BoxError>>> {
        poll_fn(|cx| Poll::Ready(self.service.poll_ready(cx))).await
    }

    /// The attempt in flight.
    #[track_caller]
    fn attempt(&mut self) -> SendResponse<Connection> {
        match self.connector.poll_request() {
            Poll::Ready(Some(((), attempt))) => attempt,
            _ => panic!("no attempt was made"),
        }
    }

    fn is_refused(&mut self) -> bool {
        let answer = self.service.call(1).now_or_never();
        !matches!(answer, None | Some(Err(Error::NotReady(_))))
    }

    fn wakes(&self) -> usize {
        self.wakes.0.load(SeqCst)
    }
}

fn run(test: impl Future<Output = ()>) {
    Runtime::new(1).block_on(test).unwrap();
}

#[test]
fn drive_connects() {
    run(async {
        let mut set = Set::new(ConnectErrors::InResponse);
        assert!(set.drive().is_pending());
        let (connection, mut handle) = mock::pair();
        set.attempt().send_response(connection);
        assert_eq!(set.wakes(), 1);
        assert!(set.drive().is_ready());
        assert!(set.service.is_connected());
        // Driving does not count as readiness, and reserves nothing.
        let answer = set.service.call(1).now_or_never();
        assert!(matches!(answer, Some(Err(Error::NotReady(_)))));
        assert!(set.poll().await.is_ready());
        assert!(set.service.call(1).now_or_never().is_none());
        assert!(handle.poll_request().is_ready());
    });
}

#[test]
fn drive_gives_up_readiness() {
    run(async {
        let mut set = Set::new(ConnectErrors::InResponse);
        assert!(set.drive().is_pending());
        let (connection, mut handle) = mock::pair();
        set.attempt().send_response(connection);
        assert!(set.poll().await.is_ready());
        assert!(set.drive().is_ready());
        let answer = set.service.call(1).now_or_never();
        assert!(matches!(answer, Some(Err(Error::NotReady(_)))));
        assert!(handle.poll_request().is_pending());
    });
}

#[test]
fn drive_forgets_a_refusal() {
    run(async {
        let mut set = Set::new(ConnectErrors::InResponse);
        assert!(set.drive().is_pending());
        set.attempt().send_error("refused");
        assert!(set.poll().await.is_ready());
        // No caller is left to get the error. The backoff continues, and then the next attempt begins.
        assert!(set.drive().is_pending());
        assert!(!set.is_refused());
        let wakes = set.wakes();
        sleep(SECOND).await;
        assert_eq!(set.wakes(), wakes + 1);
        assert!(set.drive().is_pending());
        set.attempt().send_error("refused again");
        // An attempt that fails while it is driven leaves no error for a call.
        assert!(set.drive().is_pending());
        assert!(!set.is_refused());
        sleep(SECOND).await;
        assert!(set.drive().is_pending());
        let (connection, _handle) = mock::pair();
        set.attempt().send_response(connection);
        assert!(set.poll().await.is_ready());
        assert!(!set.is_refused());
    });
}

#[test]
fn drive_forgets_a_loss() {
    run(async {
        let mut set = Set::new(ConnectErrors::InResponse);
        assert!(set.drive().is_pending());
        let (connection, mut handle) = mock::pair();
        set.attempt().send_response(connection);
        handle.send_error("lost");
        assert!(set.drive().is_pending());
        assert!(!set.is_refused() && !set.service.is_connected());
    });
}

#[test]
fn drive_still_takes_over() {
    run(async {
        let mut set = Set::new(ConnectErrors::InReadiness);
        assert!(set.drive().is_pending());
        set.attempt().send_error("refused");
        assert!(matches!(set.drive(), Poll::Ready(Err(Error::Connect(_)))));
        assert!(set.drive().is_pending());
    });
}

/// Notes whether a poll is unmarked.
struct Earnest;

impl Service<()> for Earnest {
    type Response = Earnest;
    type Error = BoxError;
    type Future = Ready<Result<Earnest, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        assert_eq!(mark(cx), None, "the maker is called next");
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(Earnest))
    }
}

impl Service<u32> for Earnest {
    type Response = ();
    type Error = BoxError;
    type Future = Ready<Result<(), BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        assert!(mark(cx).is_some(), "the connection reserves something");
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: u32) -> Self::Future {
        ready(Ok(()))
    }
}

#[test]
fn only_the_connection_sees_the_mark() {
    run(async {
        let mut service = Reconnect::<_, ()>::new(Earnest, ());
        let polled = drive(Waker::noop(), |cx| {
            Service::<u32>::poll_ready(&mut service, cx)
        });
        assert!(polled.is_ready());
        let answer = Service::<u32>::call(&mut service, 1).now_or_never();
        assert!(matches!(answer, Some(Err(Error::NotReady(_)))));
    });
}
