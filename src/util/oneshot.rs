use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::complete;
use crate::Service;

pin_project! {
    /// Waits until a service is ready, calls it once, and waits for its response.
    ///
    /// See [`ServiceExt::oneshot`](crate::ServiceExt::oneshot).
    ///
    /// # Cancel safety
    ///
    /// If it is dropped before the service is ready, the service and the request are dropped with it, and no call is
    /// made.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct Oneshot<S: Service<Request>, Request> {
        #[pin]
        state: State<S, Request>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S: Service<Request>, Request> {
        NotReady { service: S, request: Option<Request> },
        Called { #[pin] response: S::Future },
        Done,
    }
}

impl<S: Service<Request>, Request> Oneshot<S, Request> {
    /// Calls `service` with `request` when it is ready.
    pub const fn new(service: S, request: Request) -> Self {
        Self {
            state: State::NotReady {
                service,
                request: Some(request),
            },
        }
    }
}

impl<S: Service<Request>, Request> Future for Oneshot<S, Request> {
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        if let StateProj::NotReady { service, request } = state.as_mut().project() {
            let readiness = ready!(service.poll_ready(cx));
            // Called in place: a stack is large, and is not moved for a single call.
            if let (Ok(()), Some(request)) = (&readiness, request.take()) {
                let response = service.call(request);
                state.set(State::Called { response });
            } else {
                state.set(State::Done);
            }
            readiness?;
        }
        let StateProj::Called { response } = state.as_mut().project() else {
            complete();
        };
        let result = ready!(response.poll(cx));
        state.set(State::Done);
        Poll::Ready(result)
    }
}

impl<S, Request> fmt::Debug for Oneshot<S, Request>
where
    S: Service<Request> + fmt::Debug,
    Request: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Oneshot");
        match &self.state {
            State::NotReady {
                service,
                request: Some(request),
            } => {
                f.field("service", service).field("request", request);
            }
            State::Called { .. } => {
                f.field("called", &true);
            }
            State::NotReady { .. } | State::Done => {
                f.field("done", &true);
            }
        }
        f.finish()
    }
}
