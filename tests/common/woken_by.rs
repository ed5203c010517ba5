use std::cell::RefCell;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use campanile::{Instant, Timer};

use super::{ManualSleep, ManualTimer};

/// Longer than any test runs.
const FAR: Duration = Duration::from_secs(3600);

/// The time from moving the clock until the wake-up: long enough that it has to come from where the runtime watches its
/// timers. No result depends on the duration.
const SOON: Duration = Duration::from_micros(50);

/// A clock that stands still until the test moves it, while all wake-ups come from the runtime's own timer `T`.
///
/// A wait holds an alarm of `T` far in the future. When the clock moves past the deadline, that alarm is reset to a
/// moment shortly ahead, and the wait ends when it rings. So wake-ups come late and from elsewhere, as in production,
/// and never early: a test can assert "not yet" at once, and has to wait for "now".
#[derive(Clone, Debug, Default)]
pub struct WokenBy<T> {
    clock: ManualTimer,
    native: T,
}

impl<T: Timer> WokenBy<T> {
    pub fn new(native: T) -> Self {
        let clock = ManualTimer::new();
        Self { clock, native }
    }

    /// Moves time forward. Due tasks are woken soon.
    pub fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }
}

impl<T> WokenBy<T>
where
    T: Timer<Alarm: Send + 'static> + Clone + Send + Sync + 'static,
{
    fn wait(&self, by_hand: ManualSleep) -> WokenBySleep<T> {
        let far = self.native.now().saturating_add(FAR);
        let bell = Arc::new(Bell {
            armed: Mutex::new(Armed {
                alarm: self.native.alarm_until(far),
                phase: Phase::Far,
                waker: None,
            }),
            timer: self.native.clone(),
        });
        WokenBySleep {
            strike: Waker::from(bell.clone()),
            by_hand,
            bell,
        }
    }
}

impl<T> Timer for WokenBy<T>
where
    T: Timer<Alarm: Send + 'static> + Clone + Send + Sync + 'static,
{
    type Sleep = WokenBySleep<T>;
    type Alarm = WokenBySleep<T>;

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn sleep_until(&self, deadline: Instant) -> WokenBySleep<T> {
        self.wait(self.clock.sleep_until(deadline))
    }

    fn alarm_until(&self, deadline: Instant) -> WokenBySleep<T> {
        self.wait(self.clock.alarm_until(deadline))
    }

    fn reset(&self, alarm: &mut WokenBySleep<T>, deadline: Instant) {
        self.clock.reset(&mut alarm.by_hand, deadline);
        alarm.bell.with(|armed| armed.unset(&self.native));
    }
}

/// A wait on a [`WokenBy`].
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct WokenBySleep<T: Timer> {
    by_hand: ManualSleep,
    bell: Arc<Bell<T>>,
    /// What the clock wakes when it moves past the deadline: the bell.
    strike: Waker,
}

struct Bell<T: Timer> {
    timer: T,
    armed: Mutex<Armed<T>>,
}

struct Armed<T: Timer> {
    alarm: T::Alarm,
    phase: Phase,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The deadline lies ahead.
    Far,
    /// The deadline has passed, and the alarm is about to ring.
    Soon,
    /// The alarm has rung, which one poll will see.
    Rang,
}

thread_local! {
    /// The tasks to wake once this thread has released its `Armed`.
    static LATER: RefCell<Option<Vec<Waker>>> = const { RefCell::new(None) };
}

impl<T: Timer> Bell<T> {
    /// A wake-up by the runtime's timer on this thread during `act` is delivered afterwards, without the lock.
    fn with<R>(&self, act: impl FnOnce(&mut Armed<T>) -> R) -> R {
        let mut armed = self.armed.lock().unwrap();
        let before = LATER.replace(Some(Vec::new()));
        let result = act(&mut armed);
        let woken = LATER.replace(before);
        drop(armed);
        woken.into_iter().flatten().for_each(Waker::wake);
        result
    }
}

/// A waker that wakes outside of the lock.
struct Outside(Waker);

impl Wake for Outside {
    fn wake(self: Arc<Self>) {
        let waker = self.0.clone();
        let now = LATER.with_borrow_mut(|later| match later {
            Some(later) => {
                later.push(waker);
                None
            }
            None => Some(waker),
        });
        now.into_iter().for_each(Waker::wake);
    }
}

impl<T: Timer> Armed<T> {
    fn set(&mut self, timer: &T, after: Duration) {
        timer.reset(&mut self.alarm, timer.now().saturating_add(after));
        self.phase = Phase::Soon;
    }

    fn poll(&mut self, waker: &Waker) -> Poll<()> {
        let waker = Waker::from(Arc::new(Outside(waker.clone())));
        let mut cx = Context::from_waker(&waker);
        if self.phase == Phase::Rang || Pin::new(&mut self.alarm).poll(&mut cx).is_ready() {
            self.phase = Phase::Rang;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn unset(&mut self, timer: &T) {
        timer.reset(&mut self.alarm, timer.now().saturating_add(FAR));
        self.phase = Phase::Far;
    }
}

impl<T> Wake for Bell<T>
where
    T: Timer<Alarm: Send> + Send + Sync,
{
    fn wake(self: Arc<Self>) {
        let rang = self.with(|armed| {
            if armed.phase != Phase::Far {
                return None;
            }
            armed.set(&self.timer, SOON);
            // A reset alarm has to be polled again.
            let waker = armed.waker.take()?;
            Some((armed.poll(&waker), waker))
        });
        if let Some((Poll::Ready(()), waker)) = rang {
            waker.wake();
        }
    }
}

impl<T> Future for WokenBySleep<T>
where
    T: Timer<Alarm: Send> + Send + Sync,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let (rang, _replaced) = this.bell.with(|armed| {
            let is_due = Pin::new(&mut this.by_hand)
                .poll(&mut Context::from_waker(&this.strike))
                .is_ready();
            match (is_due, armed.phase) {
                // The deadline passed before the first poll.
                (true, Phase::Far) => armed.set(&this.bell.timer, Duration::ZERO),
                // The clock reached the deadline from before a reset.
                (false, Phase::Soon | Phase::Rang) => armed.unset(&this.bell.timer),
                _ => {}
            }
            let replaced = armed.waker.replace(cx.waker().clone());
            (armed.poll(cx.waker()), replaced)
        });
        rang
    }
}

impl<T: Timer> std::fmt::Debug for WokenBySleep<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WokenBySleep")
            .field("by_hand", &self.by_hand)
            .finish_non_exhaustive()
    }
}
