use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::any::type_name;
use core::fmt;
use core::mem::replace;
use core::panic::Location;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;

use futures_channel::oneshot;

use super::runtime::{Shared, World};
use crate::{Executor, Instant, Timer};

/// The [`Runtime`](super::Runtime) that the thread is inside of, as an executor and a timer.
///
/// Its tasks need not be `Send`. Outside a runtime, its time is 0, and starting a task or sleeping for a duration
/// panics at the caller's line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sim;

impl<F> Executor<F> for Sim
where
    F: Future<Output = ()> + 'static,
{
    #[track_caller]
    fn execute(&self, future: F) {
        // Without generic arguments, which would fill lines.
        let name = type_name::<F>().split('<').next().map(Cow::Borrowed);
        World::current().spawn(name, Box::pin(future), Location::caller(), true);
    }
}

impl Timer for Sim {
    type Sleep = Sleep;
    type Alarm = Sleep;

    fn now(&self) -> Instant {
        match World::try_current() {
            Some(world) => world.shared.lock().now,
            None => Instant::from_nanos(0),
        }
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep {
            deadline,
            armed: None,
        }
    }

    fn alarm_until(&self, deadline: Instant) -> Sleep {
        self.sleep_until(deadline)
    }

    #[track_caller]
    fn sleep(&self, duration: Duration) -> Sleep {
        let now = World::current().shared.lock().now;
        self.sleep_until(now.saturating_add(duration))
    }

    fn reset(&self, alarm: &mut Sleep, deadline: Instant) {
        alarm.disarm();
        alarm.deadline = deadline;
    }
}

/// A wait in virtual time. It can be moved, sent and dropped anywhere.
///
/// # Panics
///
/// If it is polled outside a [`Runtime`](super::Runtime).
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct Sleep {
    deadline: Instant,
    // Its key in the queue of a runtime, and that runtime.
    armed: Option<(Arc<Shared>, u64)>,
}

impl Sleep {
    /// Returns the deadline. [`Instant::MAX`] means never.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    fn disarm(&mut self) {
        if let Some((shared, number)) = self.armed.take() {
            let waker = shared.lock().timers.remove(&(self.deadline, number));
            drop(waker);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let shared = Arc::clone(&World::current().shared);
        if self.deadline == Instant::MAX {
            return Poll::Pending;
        }
        // Leave the queue of another runtime.
        if self
            .armed
            .as_ref()
            .is_some_and(|(old, _)| !Arc::ptr_eq(old, &shared))
        {
            self.disarm();
        }
        if shared.lock().now >= self.deadline {
            self.disarm();
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let replaced = {
            let mut state = shared.lock();
            let number = match self.armed {
                Some((_, number)) => number,
                None => state.number(),
            };
            let replaced = state.timers.insert((self.deadline, number), waker);
            drop(state);
            self.armed.get_or_insert((shared, number));
            replaced
        };
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// Returns the time in the [`Runtime`](super::Runtime) that the thread is inside of; outside, 0.
#[must_use]
pub fn now() -> Instant {
    Sim.now()
}

/// Waits for `duration` of virtual time. Earlier deadlines fire first.
///
/// # Panics
///
/// Outside a [`Runtime`](super::Runtime).
#[track_caller]
pub fn sleep(duration: Duration) -> Sleep {
    Sim.sleep(duration)
}

/// Starts a task in the [`Runtime`](super::Runtime) that the thread is inside of.
///
/// # Panics
///
/// Outside a [`Runtime`](super::Runtime).
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: 'static> + 'static,
{
    JoinHandle::spawn(&World::current(), None, future, Location::caller())
}

/// Like [`spawn`], with a name that a [`Deadlock`](super::Deadlock) shows for the task.
///
/// # Panics
///
/// Outside a [`Runtime`](super::Runtime).
#[track_caller]
pub fn spawn_named<F>(name: impl Into<Cow<'static, str>>, future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: 'static> + 'static,
{
    let name = Some(name.into());
    JoinHandle::spawn(&World::current(), name, future, Location::caller())
}

/// Lets awake tasks run first. Whether they do is drawn from the seed.
pub fn yield_now() -> impl Future<Output = ()> + Send + Unpin {
    let mut yielded = false;
    core::future::poll_fn(move |cx| {
        if replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// Waits until every other task waits. No time passes.
///
/// # Panics
///
/// If it is polled outside a [`Runtime`](super::Runtime).
pub fn idle() -> impl Future<Output = ()> + Send + Unpin {
    let mut asked = None;
    core::future::poll_fn(move |cx| {
        let waker = cx.waker().clone();
        let world = World::current();
        let mut state = world.shared.lock();
        if state.idles > *asked.get_or_insert(state.idles) {
            drop(state);
            return Poll::Ready(());
        }
        state.idle.push(waker);
        Poll::Pending
    })
}

/// Advances time by `duration` at once, as if the machine had been asleep, and waits until every other task waits.
///
/// Whatever is due in between sees only the later time. To let it happen at its time, use [`sleep`].
///
/// # Panics
///
/// If it is polled outside a [`Runtime`](super::Runtime).
pub async fn advance(duration: Duration) {
    World::current().shared.jump_by(duration);
    idle().await;
}

/// The result of a task. Dropping it leaves the task running.
#[must_use = "the task runs on without it; drop it to say that the result does not matter"]
pub struct JoinHandle<T> {
    result: oneshot::Receiver<T>,
}

impl<T: 'static> JoinHandle<T> {
    pub(super) fn spawn(
        world: &World,
        name: Option<Cow<'static, str>>,
        future: impl Future<Output = T> + 'static,
        location: &'static Location<'static>,
    ) -> Self {
        let (send, result) = oneshot::channel();
        let task = async move {
            // The result may not be wanted.
            let _ = send.send(future.await);
        };
        world.spawn(name, Box::pin(task), location, false);
        Self { result }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match Pin::new(&mut self.result).poll(cx) {
            Poll::Ready(Ok(result)) => Poll::Ready(result),
            // The task panicked, or its runtime is gone.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").finish_non_exhaustive()
    }
}
