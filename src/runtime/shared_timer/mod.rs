use alloc::sync::{Arc, Weak};
use alloc::task::Wake;
use core::fmt;
use core::iter::from_fn;
use core::mem::replace;
use core::panic::AssertUnwindSafe;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::panic::{catch_unwind, resume_unwind};

use crate::sync::lock::Lock;
use crate::sync::primitives::Mutex;
use crate::sync::{ignore_panic, wake_all};
use crate::{Instant, Timer};

mod deadlines;
#[cfg(all(test, loom))]
mod models;

use self::deadlines::{Deadlines, Turn, UNSET};

/// A timer for many waits that rarely last until their deadline, such as timeouts: they share one alarm of an inner
/// timer.
///
/// Most of the cost of a timeout is registering it with a runtime's timers and removing it again. Here it goes into a
/// heap under a lock, and the runtime has one alarm, for the earliest deadline. Around a service that is pending once,
/// a [`Timeout`](crate::timeout) on tokio then takes little more than half of the instructions, and its future less
/// than half of the space. On smol and async-std the reactor is not woken for each wait.
///
/// When the alarm rings, the thread on which the runtime watches its timers wakes all waits that are due and sets the
/// alarm to the next deadline, there and then. So a task that is not polled delays no other. Nor does a waker that
/// panics: the others are woken, and a panic while the alarm rings goes no further.
///
/// Clones share the alarm, and so does everything that uses one: a layer, the services it makes, or a whole stack by
/// [`ServiceBuilder::with_runtime`](crate::builder::ServiceBuilder::with_runtime) and [`Runtime`](super::Runtime). If
/// many threads wait for time all at once, give each layer its own.
///
/// A wait begins with its first poll. With `n` waits in progress, adding one takes O(log n) steps, or O(1) if its
/// deadline is the last; removing one takes O(log n). Nothing is allocated once there have been as many waits before. A
/// new alarm, which on tokio is an allocation, is made only after the last one has rung with no wait left.
///
/// Only the waits of requests are shared: for a timeout, a hedge, a backoff. A wait inside a service, such as for a
/// rate limit, uses the inner timer directly, since it may stay behind in the service when it is no longer polled.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "tokio")]
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// use campanile::runtime::{Runtime, SharedTimer};
/// use campanile::timeout::{Error, TimeoutLayer};
/// use campanile::{Layer, Service, ServiceBuilder, service_fn, tokio::Tokio};
/// use std::{convert::Infallible, future::pending, time::Duration};
///
/// // One layer:
/// let limit = Duration::from_millis(5);
/// let layer = TimeoutLayer::with_timer(limit, SharedTimer::new(Tokio));
/// let mut hangs = layer.layer(service_fn(async |()| pending::<Result<(), Infallible>>().await));
/// assert!(matches!(hangs.call(()).await, Err(Error::Elapsed(_))));
///
/// // Or a stack, whose tasks run on tokio as before:
/// let runtime = Runtime::new(Tokio, SharedTimer::new(Tokio));
/// let mut answers = ServiceBuilder::with_runtime(runtime)
///     .buffer(16)
///     .rate_limit(100, Duration::from_secs(1))
///     .timeout(limit)
///     .service_fn(async |n: u32| Ok::<_, Infallible>(n));
/// std::future::poll_fn(|cx| answers.poll_ready(cx)).await.unwrap();
/// assert_eq!(answers.call(1).await.unwrap(), 1);
/// # });
/// ```
///
/// # Differences from the inner timer
///
/// - **Not every timer can be shared.** The timer and its alarm have to be `Send`, which those of `campanile::wasm` and
///   of a `smol::LocalExecutor` are not. And it has to keep the last point of the [contract](Timer#contract), which
///   embassy-time does not.
/// - **One runtime.** The alarm belongs to the runtime in whose context it was first set. If that does not matter, as
///   on smol and async-std, one `SharedTimer` may be used anywhere. On tokio it is for one runtime: a task of another
///   would wait in vain while the first one is not running. When the first one is shut down, or the inner timer panics
///   as it rings, all waits are woken, and the first one to be polled sets the alarm where it runs.
/// - **The alarm stays** when the last wait is gone, and rings once for no wait; so a clock that tokio has paused may
///   stop there. It is dropped with the last clone.
pub struct SharedTimer<T: Timer>(Arc<Shared<T>>);

impl<T> SharedTimer<T>
where
    T: Timer<Alarm: Send> + Send + Sync + 'static,
{
    /// Uses one alarm of `timer` for all waits. It is made at the first wait.
    #[must_use]
    pub fn new(timer: T) -> Self {
        Self(Arc::new_cyclic(|shared| Shared {
            timer,
            deadlines: Mutex::new(Deadlines::new()),
            waker: Waker::from(Arc::new(AlarmWaker(shared.clone()))),
        }))
    }
}

impl<T: Timer> SharedTimer<T> {
    /// The inner timer.
    #[must_use]
    pub fn get_ref(&self) -> &T {
        &self.0.timer
    }
}

/// Clones share the alarm.
impl<T: Timer> Clone for SharedTimer<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for SharedTimer<T>
where
    T: Timer<Alarm: Send> + Default + Send + Sync + 'static,
{
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: Timer + fmt::Debug> fmt::Debug for SharedTimer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedTimer").field(&self.0.timer).finish()
    }
}

impl<T: Timer> Timer for SharedTimer<T> {
    type Sleep = SharedSleep<T>;
    // In a service a wait may stay behind when no task waits any more, and would be woken in vain.
    type Alarm = T::Alarm;

    fn now(&self) -> Instant {
        self.0.timer.now()
    }

    fn sleep_until(&self, deadline: Instant) -> SharedSleep<T> {
        SharedSleep {
            shared: self.0.clone(),
            deadline,
            place: Registration::Outside,
        }
    }

    #[track_caller]
    fn alarm_until(&self, deadline: Instant) -> T::Alarm {
        self.0.timer.alarm_until(deadline)
    }

    #[track_caller]
    fn reset(&self, alarm: &mut T::Alarm, deadline: Instant) {
        self.0.timer.reset(alarm, deadline);
    }
}

/// A wait on a [`SharedTimer`]. It can be moved, and sent if the inner alarm can be.
///
/// # Panics
///
/// When it is polled, if its timer needs the runtime's context and there is none.
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct SharedSleep<T: Timer> {
    shared: Arc<Shared<T>>,
    deadline: Instant,
    place: Registration,
}

/// Where a wait is.
#[derive(Clone, Copy, Debug)]
enum Registration {
    /// It has not been polled yet.
    Outside,
    InLine(u32),
    Over,
}

impl<T: Timer> Future for SharedSleep<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let shared = &this.shared;
        // Dropped at the end: that may panic, and the holder of the turn must have set the alarm by then.
        let mut replaced = None;
        let (index, mut is_due, turn) = match this.place {
            Registration::Over => return Poll::Ready(()),
            Registration::Outside if this.deadline == Instant::MAX => return Poll::Pending,
            // No need to read the clock: if the deadline has passed, the alarm is set to it or already rings.
            Registration::Outside => {
                let waker = cx.waker().clone();
                let (index, turn) = match shared
                    .deadlines
                    .with(|deadlines| deadlines.join(this.deadline, waker))
                {
                    Ok(joined) => joined,
                    // There are more waits than indices.
                    Err(waker) => {
                        waker.wake();
                        return Poll::Pending;
                    }
                };
                this.place = Registration::InLine(index);
                (index, false, turn)
            }
            Registration::InLine(index) => {
                let (is_due, turn) = loop {
                    let mut stay =
                        |deadlines: &mut Deadlines<_>| deadlines.stay(index, cx, &mut replaced);
                    match shared.deadlines.with(&mut stay) {
                        Some(stays) => break stays,
                        None => replaced = Some(cx.waker().clone()),
                    }
                };
                // The clock decides, whether or not an alarm has rung.
                let is_due = is_due || (turn.is_none() && shared.timer.now() >= this.deadline);
                (index, is_due, turn)
            }
        };
        if let Some(turn) = turn {
            shared.drive(turn);
            is_due = shared.deadlines.with(|deadlines| deadlines.is_due(index));
        }
        if !is_due {
            return Poll::Pending;
        }
        this.leave();
        Poll::Ready(())
    }
}

impl<T: Timer> SharedSleep<T> {
    /// Leaves the line, if it is in it.
    fn leave(&mut self) {
        if let Registration::InLine(index) = replace(&mut self.place, Registration::Over) {
            drop(
                self.shared
                    .deadlines
                    .with(|deadlines| deadlines.leave(index)),
            );
        }
    }
}

impl<T: Timer> Drop for SharedSleep<T> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<T: Timer> fmt::Debug for SharedSleep<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSleep")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

struct Shared<T: Timer> {
    timer: T,
    deadlines: Mutex<Deadlines<T::Alarm>>,
    /// A [`AlarmWaker`].
    waker: Waker,
}

/// Woken by the alarm. It does not keep the alarm alive.
struct AlarmWaker<T: Timer>(Weak<Shared<T>>);

impl<T> Wake for AlarmWaker<T>
where
    T: Timer<Alarm: Send> + Send + Sync + 'static,
{
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // The runtime's timer, which calls this, has others to wake.
        ignore_panic(|| {
            let Some(shared) = self.0.upgrade() else {
                return;
            };
            if let Some(turn) = shared.deadlines.with(Deadlines::ring) {
                shared.drive(turn);
            }
        });
    }
}

/// How often in a row the alarm is polled. tokio's wakes its task at each poll where a task has used up its budget and
/// does not run on a worker.
const LOOKS: u32 = 8;

impl<T: Timer> Shared<T> {
    /// Sets the alarm to the first deadline, and wakes all waits that are due.
    fn drive(&self, mut turn: Turn<T::Alarm>) {
        let set = catch_unwind(AssertUnwindSafe(|| self.set_alarm(&mut turn)));
        if !matches!(set, Ok(true)) {
            self.deadlines.with(Deadlines::give_up);
        }
        // Last, since a waker may do anything.
        let wake_due = || wake_all(from_fn(|| self.deadlines.with(Deadlines::next_due)));
        let Err(panic) = set else {
            return wake_due();
        };
        ignore_panic(wake_due);
        resume_unwind(panic);
    }

    /// `false`: the alarm has to be polled again, but that was done often enough.
    fn set_alarm(&self, turn: &mut Turn<T::Alarm>) -> bool {
        let mut cx = Context::from_waker(&self.waker);
        let mut reached = Instant::from_nanos(0);
        for _ in 0..LOOKS {
            // Read the clock whatever the alarm says: tokio's is pending for a task that has used up its budget, and a
            // task that does so at each poll would hold up all others.
            let now = self.timer.now().max(reached);
            let Some(deadline) = self.deadlines.with(|deadlines| deadlines.aim(now, turn)) else {
                return true;
            };
            let alarm = match &mut turn.alarm {
                Some(alarm) => {
                    if turn.deadline != deadline {
                        self.timer.reset(alarm, deadline);
                    }
                    alarm
                }
                slot => slot.insert(self.timer.alarm_until(deadline)),
            };
            if Pin::new(alarm).poll(&mut cx).is_ready() {
                (turn.deadline, reached) = (UNSET, deadline);
                continue;
            }
            turn.deadline = deadline;
            if self.deadlines.with(|deadlines| deadlines.is_set(turn)) {
                return true;
            }
        }
        false
    }
}
