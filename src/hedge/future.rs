use alloc::sync::Arc;
use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::{Policy, State};
use crate::retry::budget::Budget;
use crate::{Instant, Service, Timer};

pin_project! {
    /// The response of a [`Hedge`](super::Hedge).
    ///
    /// # Panics
    ///
    /// When it is first pending, if the timer needs its runtime's context and it is not there.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the attempts in flight, and the clone of the service with whatever it had reserved. The
    /// first attempt counts towards the latency estimate with the time it had run.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<S, P, Request, T, B>
    where
        S: Service<Request>,
        T: Timer,
    {
        #[pin]
        first: First<S::Future, S::Error>,
        #[pin]
        second: Second<S, Request, S::Future, T::Sleep>,
        policy: P,
        timer: T,
        state: Arc<State<B>>,
        // With a fixed delay: set together with the hedge's sleep.
        start: Instant,
        // Nanoseconds from the start to the hedge.
        delay: u64,
        // The first attempt was polled, is not over, and its time is needed.
        counts: bool,
    }

    impl<S, P, Request, T, B> PinnedDrop for ResponseFuture<S, P, Request, T, B>
    where
        S: Service<Request>,
        T: Timer,
    {
        fn drop(this: Pin<&mut Self>) {
            this.count();
        }
    }
}

pin_project! {
    /// The first attempt.
    #[project = FirstProj]
    #[project_replace = FirstOwned]
    enum First<F, E> {
        Running {
            #[pin]
            response: F,
        },
        // The hedge is in flight.
        Failed {
            error: E,
        },
        Over,
    }
}

pin_project! {
    /// The hedge.
    #[project = SecondProj]
    #[project_replace = SecondOwned]
    enum Second<S, Request, F, Sleep> {
        Planned {
            // `None`: the first attempt was not pending yet.
            #[pin]
            sleep: Option<Sleep>,
            service: S,
            request: Request,
        },
        // The hedge is paid for, and the service is being polled ready.
        Unready {
            service: S,
            request: Request,
        },
        Called {
            #[pin]
            response: F,
        },
        // Over, or never started.
        Over,
    }
}

impl<S, P, Request, T, B> ResponseFuture<S, P, Request, T, B>
where
    S: Service<Request>,
    T: Timer,
{
    /// The first attempt is in flight. `plan` is the service and the request of the hedge.
    pub(super) fn new(
        response: S::Future,
        plan: Option<(S, Request)>,
        policy: P,
        timer: T,
        state: Arc<State<B>>,
        start: Instant,
        delay: u64,
    ) -> Self {
        Self {
            first: First::Running { response },
            second: match plan {
                Some((service, request)) => Second::Planned {
                    sleep: None,
                    service,
                    request,
                },
                None => Second::Over,
            },
            policy,
            timer,
            state,
            start,
            delay,
            counts: false,
        }
    }

    /// Records the time that the first attempt has run, once.
    fn count(self: Pin<&mut Self>) {
        let this = self.project();
        if core::mem::take(this.counts) {
            // Nanoseconds instead of a duration, which would take a division to make.
            let now = this.timer.now().as_nanos();
            let took = now.saturating_sub(this.start.as_nanos());
            this.state.estimate.record(took);
        }
    }

    /// Drops both attempts.
    fn end(self: Pin<&mut Self>) {
        let mut this = self.project();
        this.first.set(First::Over);
        this.second.set(Second::Over);
    }
}

impl<S, P, Request, T, B> Future for ResponseFuture<S, P, Request, T, B>
where
    S: Service<Request>,
    P: Policy<Request>,
    T: Timer,
    B: Budget,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.as_mut().project();
        let mut answer = Poll::Pending;
        if let FirstProj::Running { response } = this.first.as_mut().project() {
            let measured = this.state.estimate.is_measured();
            answer = response.poll(cx);
            *this.counts = match &answer {
                Poll::Ready(result) => measured && result.is_ok(),
                Poll::Pending => measured,
            };
        }
        match answer {
            Poll::Ready(Err(error)) if matches!(&*this.second, Second::Called { .. }) => {
                this.first.set(First::Failed { error });
            }
            Poll::Ready(result) => {
                self.as_mut().count();
                self.end();
                return Poll::Ready(result);
            }
            Poll::Pending => {}
        }
        let result = ready!(self.as_mut().poll_hedge(cx));
        self.as_mut().count();
        self.end();
        Poll::Ready(result)
    }
}

impl<S, P, Request, T, B> ResponseFuture<S, P, Request, T, B>
where
    S: Service<Request>,
    P: Policy<Request>,
    T: Timer,
    B: Budget,
{
    /// Polls the hedge. Its failure is returned only if the first attempt has failed too.
    fn poll_hedge(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<S::Response, S::Error>> {
        let mut this = self.project();
        loop {
            match this.second.as_mut().project() {
                SecondProj::Planned {
                    mut sleep, request, ..
                } => {
                    if *this.delay > 0 {
                        let fresh = sleep.is_none();
                        if fresh && !this.state.estimate.is_measured() {
                            *this.start = this.timer.now();
                        }
                        let due = this.start.as_nanos().saturating_add(*this.delay);
                        let due = Instant::from_nanos(due);
                        if fresh {
                            sleep.set(Some(this.timer.sleep_until(due)));
                        }
                        let slept = sleep
                            .as_pin_mut()
                            .is_none_or(|sleep| sleep.poll(cx).is_ready());
                        // If the first attempt has used up the task's budget, tokio's sleep is pending whatever the
                        // time, and that can happen on every poll. So ask the clock too.
                        if !slept && (fresh || this.timer.now() < due) {
                            return Poll::Pending;
                        }
                    }
                    let sends = this.policy.can_retry(request) && this.state.budget.withdraw();
                    let plan = this.second.as_mut().project_replace(Second::Over);
                    match plan {
                        SecondOwned::Planned {
                            service, request, ..
                        } if sends => this.second.set(Second::Unready { service, request }),
                        _ => return Poll::Pending,
                    }
                }
                SecondProj::Unready { service, .. } => {
                    let is_ready = ready!(service.poll_ready(cx)).is_ok();
                    let paid = this.second.as_mut().project_replace(Second::Over);
                    match paid {
                        SecondOwned::Unready {
                            mut service,
                            request,
                        } if is_ready => {
                            let response = service.call(request);
                            this.second.set(Second::Called { response });
                        }
                        _ => return Poll::Pending,
                    }
                }
                SecondProj::Called { response } => {
                    let result = ready!(response.poll(cx));
                    if result.is_ok() {
                        return Poll::Ready(result);
                    }
                    this.second.set(Second::Over);
                    if !matches!(&*this.first, First::Failed { .. }) {
                        return Poll::Pending;
                    }
                    return match this.first.as_mut().project_replace(First::Over) {
                        FirstOwned::Failed { error } => Poll::Ready(Err(error)),
                        _ => Poll::Pending,
                    };
                }
                // No hedge, or this future was polled after its end.
                SecondProj::Over => return Poll::Pending,
            }
        }
    }
}

impl<S, P, Request, T, B> fmt::Debug for ResponseFuture<S, P, Request, T, B>
where
    S: Service<Request>,
    T: Timer,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = match &self.first {
            First::Running { .. } => "running",
            First::Failed { .. } => "failed",
            First::Over => "over",
        };
        let second = match &self.second {
            Second::Planned { .. } => "planned",
            Second::Unready { .. } => "waiting for readiness",
            Second::Called { .. } => "running",
            Second::Over => "none",
        };
        f.debug_struct("ResponseFuture")
            .field("first", &format_args!("{first}"))
            .field("hedge", &format_args!("{second}"))
            .finish_non_exhaustive()
    }
}
