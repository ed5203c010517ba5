//! The stack's timer: time in millisecond ticks, which the machine reports.

use core::cell::RefCell;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use campanile::{Instant, Timer};
use critical_section::Mutex;

const NANOS_PER_TICK: u64 = 1_000_000;

/// The clock and its sleepers: one place for each future that may wait at the same time.
struct State {
    ticks: u64,
    sleepers: [Option<Sleeper>; 16],
    next_id: u32,
}

struct Sleeper {
    id: u32,
    at: u64,
    waker: Waker,
}

static STATE: Mutex<RefCell<State>> = Mutex::new(RefCell::new(State {
    ticks: 0,
    sleepers: [const { None }; 16],
    next_id: 0,
}));

/// Reports that a millisecond has passed.
pub fn tick() {
    let now = critical_section::with(|cs| {
        let mut state = STATE.borrow_ref_mut(cs);
        state.ticks += 1;
        state.ticks
    });
    // One at a time and outside the critical section, because a waker runs foreign code.
    while let Some(sleeper) = critical_section::with(|cs| {
        let mut state = STATE.borrow_ref_mut(cs);
        let due = |slot: &&mut Option<Sleeper>| matches!(slot, Some(sleeper) if sleeper.at <= now);
        state.sleepers.iter_mut().find(due)?.take()
    }) {
        sleeper.waker.wake();
    }
}

/// The machine's ticks as a timer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Timer for Clock {
    type Sleep = Sleep;
    type Alarm = Sleep;

    fn now(&self) -> Instant {
        let ticks = critical_section::with(|cs| STATE.borrow_ref(cs).ticks);
        Instant::from_nanos(ticks * NANOS_PER_TICK)
    }

    // The division is large, so it is not inlined at each place where the stack waits.
    #[inline(never)]
    fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep {
            at: deadline.as_nanos().div_ceil(NANOS_PER_TICK),
            id: None,
        }
    }

    fn alarm_until(&self, deadline: Instant) -> Sleep {
        self.sleep_until(deadline)
    }
}

/// Waits for a tick.
#[derive(Debug)]
pub struct Sleep {
    at: u64,
    id: Option<u32>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let (polled, old) = critical_section::with(|cs| {
            let mut state = STATE.borrow_ref_mut(cs);
            if state.ticks >= self.at {
                return (Poll::Ready(()), Some(waker));
            }
            let id = *self.id.get_or_insert_with(|| {
                state.next_id = state.next_id.wrapping_add(1);
                state.next_id
            });
            let own = |slot: &Option<Sleeper>| matches!(slot, Some(sleeper) if sleeper.id == id);
            let slots = &mut state.sleepers;
            let slot = slots
                .iter()
                .position(own)
                .or_else(|| slots.iter().position(Option::is_none));
            let sleeper = Sleeper {
                id,
                at: self.at,
                waker,
            };
            match slot.and_then(|slot| slots.get_mut(slot)) {
                Some(slot) => (Poll::Pending, slot.replace(sleeper).map(|old| old.waker)),
                // Without a free place the task polls again at once, so it is never late.
                None => {
                    sleeper.waker.wake_by_ref();
                    (Poll::Pending, Some(sleeper.waker))
                }
            }
        });
        drop(old);
        polled
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let _gone = self.id.and_then(|id| {
            critical_section::with(|cs| {
                let mut state = STATE.borrow_ref_mut(cs);
                let own =
                    |slot: &&mut Option<Sleeper>| matches!(slot, Some(sleeper) if sleeper.id == id);
                state.sleepers.iter_mut().find(own)?.take()
            })
        });
    }
}
