use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use campanile::Service;
use futures::channel::oneshot;

/// A service whose requests come out at a [`Handle`], where the test answers them.
///
/// It holds middleware to the contract: a call only after `Ready(Ok(()))`, one call for each, and nothing after an
/// error. A breach panics at once, and again when the handle is dropped, because a panic in a background task goes
/// unseen.
pub fn mock<Request, Response>() -> (Mock<Request, Response>, Handle<Request, Response>) {
    let shared = Arc::new(Mutex::new(State {
        readiness: Ok(true),
        requests: VecDeque::new(),
        waiting: Vec::new(),
        waiting_for_request: None,
        alive: 1,
        calls: 0,
        breach: None,
    }));
    let mock = Mock {
        shared: shared.clone(),
        asked: Asked::Never,
    };
    (mock, Handle { shared })
}

/// The error of a [`Mock`], as given by the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure(pub &'static str);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Failure {}

struct State<Request, Response> {
    readiness: Result<bool, Failure>,
    requests: VecDeque<(Request, Responder<Response>)>,
    /// The tasks that polled while the mock was not ready.
    waiting: Vec<Waker>,
    waiting_for_request: Option<Waker>,
    alive: usize,
    calls: usize,
    breach: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Never,
    Ready,
    Failed,
}

/// The service half of [`mock`]. A clone has its own readiness and the same handle.
pub struct Mock<Request, Response> {
    shared: Arc<Mutex<State<Request, Response>>>,
    asked: Asked,
}

impl<Request, Response> Mock<Request, Response> {
    #[track_caller]
    fn breach(&self, what: &'static str) -> ! {
        self.shared.lock().unwrap().breach = Some(what);
        panic!("{what}");
    }
}

impl<Request, Response> Clone for Mock<Request, Response> {
    fn clone(&self) -> Self {
        self.shared.lock().unwrap().alive += 1;
        Self {
            shared: self.shared.clone(),
            asked: Asked::Never,
        }
    }
}

impl<Request, Response> Drop for Mock<Request, Response> {
    fn drop(&mut self) {
        self.shared.lock().unwrap().alive -= 1;
    }
}

impl<Request, Response> fmt::Debug for Mock<Request, Response> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mock").field("asked", &self.asked).finish()
    }
}

impl<Request, Response> Service<Request> for Mock<Request, Response> {
    type Response = Response;
    type Error = Failure;
    type Future = MockFuture<Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.asked == Asked::Failed {
            self.breach("`poll_ready` after an error of `poll_ready`");
        }
        let mut state = self.shared.lock().unwrap();
        match state.readiness {
            Ok(true) => {
                self.asked = Asked::Ready;
                Poll::Ready(Ok(()))
            }
            Ok(false) => {
                self.asked = Asked::Never;
                state.waiting.push(cx.waker().clone());
                Poll::Pending
            }
            Err(failure) => {
                self.asked = Asked::Failed;
                Poll::Ready(Err(failure))
            }
        }
    }

    fn call(&mut self, request: Request) -> MockFuture<Response> {
        match std::mem::replace(&mut self.asked, Asked::Never) {
            Asked::Ready => {}
            Asked::Never => self.breach("`call` without readiness"),
            Asked::Failed => self.breach("`call` after an error of `poll_ready`"),
        }
        let (answer, response) = oneshot::channel();
        let waker = {
            let mut state = self.shared.lock().unwrap();
            state.calls += 1;
            state.requests.push_back((request, Responder(answer)));
            state.waiting_for_request.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        MockFuture(response)
    }
}

/// The response of a [`Mock`].
#[derive(Debug)]
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct MockFuture<Response>(oneshot::Receiver<Result<Response, Failure>>);

impl<Response> Future for MockFuture<Response> {
    type Output = Result<Response, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|answer| answer.unwrap_or(Err(Failure("the responder was dropped"))))
    }
}

/// The test's half of [`mock`].
pub struct Handle<Request, Response> {
    shared: Arc<Mutex<State<Request, Response>>>,
}

impl<Request, Response> Handle<Request, Response> {
    /// Sets whether the service is ready. Initially it is.
    pub fn set_ready(&self, ready: bool) {
        self.set(Ok(ready));
    }

    /// Makes `poll_ready` fail from now on.
    pub fn fail(&self, failure: Failure) {
        self.set(Err(failure));
    }

    fn set(&self, readiness: Result<bool, Failure>) {
        let woken = {
            let mut state = self.shared.lock().unwrap();
            state.readiness = readiness;
            match readiness {
                Ok(false) => Vec::new(),
                _ => std::mem::take(&mut state.waiting),
            }
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// The next request, if one has arrived, and its responder.
    pub fn try_next(&mut self) -> Option<(Request, Responder<Response>)> {
        self.shared.lock().unwrap().requests.pop_front()
    }

    /// Whether a task was told that the service is not ready and waits for a wake-up.
    pub fn is_waited_for(&self) -> bool {
        !self.shared.lock().unwrap().waiting.is_empty()
    }

    /// Whether a request has arrived that the test has not taken.
    pub fn has_next(&self) -> bool {
        !self.shared.lock().unwrap().requests.is_empty()
    }

    /// Waits for the next request.
    pub async fn next(&mut self) -> (Request, Responder<Response>) {
        std::future::poll_fn(|cx| {
            let mut state = self.shared.lock().unwrap();
            match state.requests.pop_front() {
                Some(request) => Poll::Ready(request),
                None => {
                    state.waiting_for_request = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The number of calls so far.
    pub fn calls(&self) -> usize {
        self.shared.lock().unwrap().calls
    }

    /// The number of live clones of the service.
    pub fn alive(&self) -> usize {
        self.shared.lock().unwrap().alive
    }
}

impl<Request, Response> Drop for Handle<Request, Response> {
    fn drop(&mut self) {
        let breach = self.shared.lock().unwrap().breach;
        if !std::thread::panicking() {
            assert_eq!(breach, None, "the contract of `Service` was broken");
        }
    }
}

impl<Request, Response> fmt::Debug for Handle<Request, Response> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock().unwrap();
        f.debug_struct("Handle")
            .field("readiness", &state.readiness)
            .field("requests", &state.requests.len())
            .field("alive", &state.alive)
            .finish()
    }
}

/// Answers one request. If dropped without an answer, it fails the request.
#[derive(Debug)]
#[must_use = "a request is not answered unless something is sent"]
pub struct Responder<Response>(oneshot::Sender<Result<Response, Failure>>);

impl<Response> Responder<Response> {
    pub fn send(self, response: Response) {
        // The caller may have gone away.
        let _ = self.0.send(Ok(response));
    }

    pub fn fail(self, failure: Failure) {
        let _ = self.0.send(Err(failure));
    }

    /// Whether the response future was dropped.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_canceled()
    }
}
