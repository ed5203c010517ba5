use alloc::vec::Vec;

use loom::future::block_on;
use loom::thread;

use super::*;
use crate::sync::wake;

/// A clock with one alarm, moved by hand.
#[derive(Clone)]
struct Manual(Arc<Mutex<Clock>>);

struct Clock {
    now: Instant,
    armed: Option<(Instant, Waker)>,
}

impl Manual {
    fn new() -> Self {
        let (now, armed) = (at(1), None);
        Self(Arc::new(Mutex::new(Clock { now, armed })))
    }

    fn advance_to(&self, nanos: u64) {
        let due = self.0.with(|clock| {
            clock.now = at(nanos);
            clock.armed.take_if(|(deadline, _)| *deadline <= clock.now)
        });
        wake(due.map(|(_, waker)| waker));
    }
}

struct Alarm(Manual, Instant);

impl Future for Alarm {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.0.with(|clock| {
            if clock.now >= self.1 {
                return Poll::Ready(());
            }
            clock.armed = Some((self.1, cx.waker().clone()));
            Poll::Pending
        })
    }
}

impl Timer for Manual {
    type Sleep = Alarm;
    type Alarm = Alarm;

    fn now(&self) -> Instant {
        self.0.with(|clock| clock.now)
    }

    fn sleep_until(&self, deadline: Instant) -> Alarm {
        Alarm(self.clone(), deadline)
    }

    fn alarm_until(&self, deadline: Instant) -> Alarm {
        self.sleep_until(deadline)
    }
}

fn at(nanos: u64) -> Instant {
    Instant::from_nanos(nanos)
}

/// A wait that was polled once.
fn waiting(timer: &SharedTimer<Manual>, deadline: u64) -> SharedSleep<Manual> {
    let mut sleep = timer.sleep_until(at(deadline));
    let _ = Pin::new(&mut sleep).poll(&mut Context::from_waker(Waker::noop()));
    sleep
}

/// No wait is left, and no thread has the alarm.
fn check(timer: &SharedTimer<Manual>) {
    assert!(timer.0.deadlines.with(|deadlines| deadlines.is_left()));
}

fn all_end(deadlines: &'static [u64]) {
    loom::model(|| {
        let clock = Manual::new();
        let timer = SharedTimer::new(clock.clone());
        let threads: Vec<_> = (deadlines.iter())
            .map(|deadline| {
                let sleep = timer.sleep_until(at(*deadline));
                thread::spawn(|| block_on(sleep))
            })
            .collect();
        clock.advance_to(100);
        threads.into_iter().for_each(|it| it.join().unwrap());
        check(&timer);
    });
}

#[test]
fn wait_begun_as_the_alarm_rings_ends() {
    all_end(&[50]);
}

#[test]
fn two_waits_end_whichever_sets_the_alarm() {
    all_end(&[50, 60]);
}

#[test]
fn earlier_deadline_during_a_reset_counts() {
    loom::model(|| {
        let clock = Manual::new();
        let timer = SharedTimer::new(clock.clone());
        let late = {
            let timer = timer.clone();
            thread::spawn(move || waiting(&timer, 60))
        };
        let early = timer.sleep_until(at(50));
        let early = thread::spawn(|| block_on(early));
        clock.advance_to(55);
        early.join().unwrap();
        drop(late.join().unwrap());
        check(&timer);
    });
}

#[test]
fn dropped_or_stuck_waits_delay_no_other() {
    loom::model(|| {
        let clock = Manual::new();
        let timer = SharedTimer::new(clock.clone());
        let goes = waiting(&timer, 50);
        let stuck = waiting(&timer, 55);
        let other = waiting(&timer, 60);
        let other = thread::spawn(|| block_on(other));
        let rings = thread::spawn(move || clock.advance_to(65));
        drop(goes);
        other.join().unwrap();
        rings.join().unwrap();
        drop(stuck);
        check(&timer);
    });
}

#[test]
fn wait_dropped_after_a_spurious_poll() {
    loom::model(|| {
        let clock = Manual::new();
        let timer = SharedTimer::new(clock.clone());
        let mut first = waiting(&timer, 50);
        let other = timer.sleep_until(at(60));
        let other = thread::spawn(|| block_on(other));
        let rings = thread::spawn(move || clock.advance_to(100));
        let _ = Pin::new(&mut first).poll(&mut Context::from_waker(Waker::noop()));
        drop(first);
        other.join().unwrap();
        rings.join().unwrap();
        check(&timer);
    });
}
