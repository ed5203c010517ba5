use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use campanile::Service;

/// Counts wake-ups. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct WakeCount(Arc<Count>);

#[derive(Debug, Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl WakeCount {
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of wake-ups so far.
    pub fn get(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    pub fn waker(&self) -> Waker {
        Waker::from(self.0.clone())
    }

    /// Calls `poll` with a context for this waker.
    pub fn enter<T>(&self, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
        poll(&mut Context::from_waker(&self.waker()))
    }

    /// Polls `future` once.
    pub fn poll<F: Future + Unpin>(&self, future: &mut F) -> Poll<F::Output> {
        self.enter(|cx| Pin::new(future).poll(cx))
    }

    /// Polls the readiness of `service` once.
    pub fn poll_ready<S: Service<R>, R>(&self, service: &mut S) -> Poll<Result<(), S::Error>> {
        self.enter(|cx| service.poll_ready(cx))
    }
}

/// A future that runs only when the test polls it, and counts its wake-ups.
#[must_use = "a task runs only when it is polled"]
pub struct Task<F> {
    future: Pin<Box<F>>,
    wakes: WakeCount,
    seen: usize,
}

/// Wraps `future` to be polled by hand.
pub fn spawn<F: Future>(future: F) -> Task<F> {
    Task {
        future: Box::pin(future),
        wakes: WakeCount::new(),
        seen: 0,
    }
}

impl<F: Future> Task<F> {
    /// Polls once.
    pub fn poll(&mut self) -> Poll<F::Output> {
        self.seen = self.wakes.get();
        self.wakes.enter(|cx| self.future.as_mut().poll(cx))
    }

    /// Polls at each wake-up until ready. The task must have been polled before.
    pub async fn finish(&mut self) -> F::Output {
        loop {
            until(|| self.is_woken()).await;
            if let Poll::Ready(output) = self.poll() {
                return output;
            }
        }
    }

    /// Whether it was woken since the last poll.
    pub fn is_woken(&self) -> bool {
        self.wakes.get() > self.seen
    }

    /// The number of wake-ups so far.
    pub fn wakes(&self) -> usize {
        self.wakes.get()
    }
}

impl<F> fmt::Debug for Task<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("wakes", &self.wakes).finish()
    }
}

/// The output of `poll`, which has to be ready.
#[track_caller]
pub fn ready<T>(poll: Poll<T>) -> T {
    match poll {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("expected `Ready`, found `Pending`"),
    }
}

/// Lets other tasks run once, on any runtime.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Yields until `condition` holds, since on a runtime with threads the moment is unpredictable. Fails if it does not
/// hold after [`HANG`](super::HANG).
#[track_caller]
pub fn until(mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    let start = Instant::now();
    async move {
        while !condition() {
            assert!(
                start.elapsed() < super::HANG / 2,
                "the condition at {caller} did not come true"
            );
            // The workers may need this core.
            std::thread::yield_now();
            yield_now().await;
        }
    }
}
