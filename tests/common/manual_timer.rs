use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use campanile::{Instant, Timer};

/// A clock that stands still until the test moves it. Clones show the same time; timers made separately are
/// independent.
///
/// Its time does not start at zero, so that a subtraction which saturates by mistake shows.
#[derive(Clone, Debug, Default)]
pub struct ManualTimer(Arc<Mutex<Clock>>);

#[derive(Debug)]
struct Clock {
    now: Instant,
    next_id: u64,
    asked: [u32; 4],
    /// By deadline, then by creation.
    armed: BTreeMap<(Instant, u64), Waker>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            now: Instant::from_nanos(1_000_000_000_000),
            next_id: 0,
            asked: [0; 4],
            armed: BTreeMap::new(),
        }
    }
}

impl ManualTimer {
    pub fn new() -> Self {
        Self::default()
    }

    /// A timer whose clock shows `now`.
    pub fn at(now: Instant) -> Self {
        let timer = Self::default();
        timer.0.lock().unwrap().now = now;
        timer
    }

    /// Moves time forward and wakes what is due, in order of the deadlines.
    pub fn advance(&self, duration: Duration) {
        let now = self.0.lock().unwrap().now;
        self.advance_to(now.saturating_add(duration));
    }

    /// Moves time to the next armed deadline. Returns `false` if there is none.
    pub fn advance_to_next(&self) -> bool {
        let next = self.0.lock().unwrap().armed.keys().next().copied();
        if let Some((deadline, _)) = next {
            self.advance_to(deadline);
        }
        next.is_some()
    }

    fn advance_to(&self, moment: Instant) {
        let due = {
            let mut clock = self.0.lock().unwrap();
            clock.now = clock.now.max(moment);
            let later = clock.armed.split_off(&(moment, u64::MAX));
            std::mem::replace(&mut clock.armed, later)
        };
        due.into_values().for_each(Waker::wake);
    }

    /// The number of sleeps and alarms that wait: polled, neither due nor dropped.
    pub fn armed(&self) -> usize {
        self.0.lock().unwrap().armed.len()
    }

    /// The number of sleeps and alarms ever created.
    pub fn made(&self) -> u64 {
        self.0.lock().unwrap().next_id
    }

    /// The number of clock reads, and of sleeps, alarms and resets requested.
    pub fn asked(&self) -> [u32; 4] {
        self.0.lock().unwrap().asked
    }

    /// The clock's nanoseconds; this does not count as a read.
    pub fn nanos(&self) -> u64 {
        self.0.lock().unwrap().now.as_nanos()
    }

    fn make(&self, deadline: Instant, asked: usize) -> ManualSleep {
        let mut clock = self.0.lock().unwrap();
        clock.asked[asked] += 1;
        clock.next_id += 1;
        ManualSleep {
            timer: self.clone(),
            key: (deadline, clock.next_id),
        }
    }

    /// The earliest armed deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        let clock = self.0.lock().unwrap();
        clock.armed.keys().next().map(|(deadline, _)| *deadline)
    }
}

impl Timer for ManualTimer {
    type Sleep = ManualSleep;
    type Alarm = ManualSleep;

    fn now(&self) -> Instant {
        let mut clock = self.0.lock().unwrap();
        clock.asked[0] += 1;
        clock.now
    }

    fn sleep_until(&self, deadline: Instant) -> ManualSleep {
        self.make(deadline, 1)
    }

    fn alarm_until(&self, deadline: Instant) -> ManualSleep {
        self.make(deadline, 2)
    }

    fn reset(&self, alarm: &mut ManualSleep, deadline: Instant) {
        *alarm = self.make(deadline, 3);
    }
}

/// A wait on a [`ManualTimer`].
#[derive(Debug)]
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct ManualSleep {
    timer: ManualTimer,
    key: (Instant, u64),
}

impl Future for ManualSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut clock = self.timer.0.lock().unwrap();
        let (deadline, _) = self.key;
        // The last moment means "never", even when the clock stands there.
        let replaced = if clock.now >= deadline && deadline != Instant::MAX {
            let armed = clock.armed.remove(&self.key);
            drop(clock);
            drop(armed);
            return Poll::Ready(());
        } else {
            clock.armed.insert(self.key, cx.waker().clone())
        };
        drop(clock);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for ManualSleep {
    fn drop(&mut self) {
        let armed = self.timer.0.lock().unwrap().armed.remove(&self.key);
        drop(armed);
    }
}
