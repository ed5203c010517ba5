use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::fmt;
use core::mem::{forget, replace, take};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use crate::sync::lock::Lock;
use crate::sync::primitives::Mutex;
use crate::sync::{register, wake};
use crate::{Instant, Timer};

/// A timer whose waits share one alarm of the timer beneath.
///
/// A timeout mostly ends before its time, and to enter it into a runtime's timers and to take it out again is most of
/// what it costs. Here it goes into a heap under a lock, and the runtime has one alarm: for the earliest of the
/// deadlines, set when that is earlier than what the alarm is set to, or when it rings. Over a service that is pending
/// once, a [`Timeout`](crate::timeout) on tokio then takes little more than half of the instructions, and its future less
/// than half of the room. On smol and async-std no reactor is woken per wait,
///
/// Clones share the alarm, and so does all that has one: a layer, the services it makes, or a whole stack by
/// [`ServiceBuilder::with_runtime`](crate::builder::ServiceBuilder::with_runtime) and [`Runtime`](super::Runtime). Where
/// many threads wait for time all at once, let each layer have one of its own.
///
/// A wait begins with its first poll. With `n` under way, to enter one takes O(log n) steps, and O(1) where its deadline is
/// the last; to remove one takes O(log n). Nothing is allocated, once there were as many before. The alarm is made anew,
/// which on tokio is an allocation, when it has rung and nobody waited any more.
///
/// What is shared are the waits of requests: for a timeout, a hedge, a backoff. A wait inside a service, such as for a
/// rate limit, is the timer's own, since it may stay behind there when nobody polls it any more.
///
/// # What is different from the timer beneath
///
/// - **One runtime.** The alarm is of the runtime in whose context it was first set. Where that is of no account, as on
///   smol and async-std, one `SharedTimer` may be used anywhere. On tokio it is for one runtime: a task of another
///   would wait in vain while the first one is not being run, and panic, as tokio's own sleeps do, when that has been
///   shut down.
/// - **A wait that was woken is to be polled or dropped soon.** The tasks that wait set the alarm, for nobody else is
///   there to do it. When it rings, two of them are woken, and the first that is polled or drops its wait sees to all, or
///   has another one woken. If neither does, because they are in a `select!` whose other branch is busy, then it is the
///   next that is entered or polled, and others may be late until then: for ever, where there is no next.
/// - **The alarm stays** when the last wait is gone, and rings once for nobody; so a clock that tokio has paused may
///   stop there. It goes with the last clone.
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
pub struct SharedTimer<T: Timer>(Arc<Shared<T>>);

impl<T: Timer> SharedTimer<T> {
    /// One alarm of `timer`'s for all waits. It is made at the first of them.
    #[must_use]
    pub fn new(timer: T) -> Self {
        let bell = Arc::new(Bell(Mutex::new(Line::new())));
        Self(Arc::new(Shared {
            timer,
            waker: Waker::from(bell.clone()),
            bell,
            alarm: Mutex::new(None),
        }))
    }

    /// The timer beneath.
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

impl<T: Timer + Default> Default for SharedTimer<T> {
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
    // In a service it may stay behind when nobody waits any more, and would be woken in vain.
    type Alarm = T::Alarm;

    fn now(&self) -> Instant {
        self.0.timer.now()
    }

    fn sleep_until(&self, deadline: Instant) -> SharedSleep<T> {
        SharedSleep {
            shared: self.0.clone(),
            deadline,
            place: Place::Outside,
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

/// A wait on a [`SharedTimer`]. It can be moved, and sent if the alarm beneath can be.
///
/// # Panics
///
/// When it is polled, on a timer that needs its runtime's context and does not have it.
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct SharedSleep<T: Timer> {
    shared: Arc<Shared<T>>,
    deadline: Instant,
    place: Place,
}

/// Where a wait is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// It was not polled yet.
    Outside,
    InLine(u32),
    Over,
}

impl<T: Timer> Future for SharedSleep<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let line = &this.shared.bell.0;
        // Dropped at the end: that may panic, and who is to drive has to have done so.
        let mut replaced = None;
        let (index, mut is_due, drives) = match this.place {
            Place::Over => return Poll::Ready(()),
            Place::Outside if this.deadline == Instant::MAX => return Poll::Pending,
            // The clock is not asked: if the deadline has passed, the alarm is set to that or rings already.
            Place::Outside => {
                let waker = cx.waker().clone();
                let (index, drives) = match line.with(|line| line.join(this.deadline, waker)) {
                    Ok(joined) => joined,
                    // There are more waits than numbers.
                    Err(waker) => {
                        waker.wake();
                        return Poll::Pending;
                    }
                };
                this.place = Place::InLine(index);
                (index, false, drives)
            }
            Place::InLine(index) => {
                let (is_due, drives) = loop {
                    match line.with(|line| line.stay(index, cx, &mut replaced)) {
                        Some(stays) => break stays,
                        None => replaced = Some(cx.waker().clone()),
                    }
                };
                // The clock decides, whether or not an alarm has rung.
                let is_due = is_due || (!drives && this.shared.timer.now() >= this.deadline);
                (index, is_due, drives)
            }
        };
        if drives {
            this.shared.drive(index);
            is_due = line.with(|line| line.is_due(index));
        }
        if !is_due {
            return Poll::Pending;
        }
        this.leave();
        Poll::Ready(())
    }
}

impl<T: Timer> SharedSleep<T> {
    /// Gets out of the line, if it is in it.
    fn leave(&mut self) {
        if let Place::InLine(index) = replace(&mut self.place, Place::Over) {
            let (waker, next) = self.shared.bell.0.with(|line| line.leave(index));
            drop(waker);
            wake(next);
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
    bell: Arc<Bell>,
    /// The bell's.
    waker: Waker,
    /// `None` also while it is being polled: a timer may wake, and so run anything, when it is asked for something.
    /// Who [drives](Line::takes_over) has it to himself.
    alarm: Mutex<Option<T::Alarm>>,
}

/// What the alarm wakes. It neither asks for the time nor sets the alarm, for it may be rung wherever a timer likes.
struct Bell(Mutex<Line>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let wakers = self.0.with(Line::ring);
        wakers.into_iter().for_each(wake);
    }
}

/// So many are woken per turn of the lock.
const BATCH: usize = 16;

impl<T: Timer> Shared<T> {
    /// Sets the alarm to the first deadline, and wakes those that are due, but for `me`.
    fn drive(&self, me: u32) {
        let driving = Driving(&self.bell);
        let mut cx = Context::from_waker(&self.waker);
        let mut has_rung = false;
        while let Some((deadline, before)) = self.bell.0.with(Line::aim) {
            let mut alarm = self.alarm.with(Option::take);
            // One that rang when nobody waited may be of a runtime that is gone.
            if before == UNSET && !has_rung {
                alarm = None;
            }
            let set = match &mut alarm {
                Some(alarm) => {
                    if before != deadline {
                        self.timer.reset(alarm, deadline);
                    }
                    alarm
                }
                None => alarm.insert(self.timer.alarm_until(deadline)),
            };
            has_rung = Pin::new(set).poll(&mut cx).is_ready();
            self.alarm.with(|kept| *kept = alarm);
            // The clock is asked also where the alarm is pending: tokio's is so, whatever the time, for a task that has
            // used up its budget, and one that has done so at each poll would hold up all others.
            let mut now = self.timer.now();
            if has_rung {
                now = now.max(deadline);
            }
            self.wake_due(now, me);
            if let Some(next) = self.bell.0.with(|line| line.is_set(has_rung, me)) {
                // Before anybody is woken, for by then somebody else may be driving.
                forget(driving);
                wake(next);
                return;
            }
        }
        forget(driving);
    }

    fn wake_due(&self, now: Instant, me: u32) {
        loop {
            let mut wakers = [const { None }; BATCH];
            let mut mine = None;
            let is_all = self.bell.0.with(|line| {
                for slot in &mut wakers {
                    let Some((index, waker)) = line.pop_due(now) else {
                        return true;
                    };
                    // This task knows.
                    *(if index == me { &mut mine } else { slot }) = waker;
                }
                false
            });
            drop(mine);
            wakers.into_iter().for_each(wake);
            if is_all {
                return;
            }
        }
    }
}

/// Hands on what a panic has interrupted: one of the timer beneath, for want of its runtime.
struct Driving<'a>(&'a Bell);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        wake(self.0.0.with(Line::give_up));
    }
}

/// Who waits, and what is known of the alarm.
///
/// While somebody waits, one of these holds: the alarm is set to the first deadline or to an earlier one, and nobody
/// has been told that it has rung; or somebody is driving; or one of those who wait was woken, and will drive.
struct Line {
    /// A binary heap by deadline.
    order: Vec<Rank>,
    /// By index.
    entries: Vec<Entry>,
    /// The first entry that is free again.
    free: u32,
    /// What the alarm is set to.
    armed: Instant,
    /// The bell was rung, and nobody has looked after the alarm since.
    has_rung: bool,
    /// Somebody looks after the alarm.
    is_driven: bool,
}

#[derive(Clone, Copy)]
struct Rank {
    deadline: Instant,
    index: u32,
}

struct Entry {
    /// `None`: was woken, and has not been polled since.
    waker: Option<Waker>,
    /// In the heap. Of one that is free: the next that is.
    position: u32,
}

/// The position of one that is due, and the end of those that are free.
const NOWHERE: u32 = u32::MAX;

/// What the alarm is set to when it is not, or has rung.
const UNSET: Instant = Instant::MAX;

impl Line {
    const fn new() -> Self {
        Self {
            order: Vec::new(),
            entries: Vec::new(),
            free: NOWHERE,
            armed: UNSET,
            has_rung: false,
            is_driven: false,
        }
    }

    /// Enters a wait. Says where it is, and whether the caller is to drive.
    fn join(&mut self, deadline: Instant, waker: Waker) -> Result<(u32, bool), Waker> {
        let position = self.order.len();
        let mut index = self.free;
        if let Some(entry) = self.entries.get_mut(index as usize) {
            self.free = replace(&mut entry.position, position as u32);
            entry.waker = Some(waker);
        } else if self.entries.len() < NOWHERE as usize {
            index = self.entries.len() as u32;
            self.entries.push(Entry {
                waker: Some(waker),
                position: position as u32,
            });
        } else {
            return Err(waker);
        }
        let rank = Rank { deadline, index };
        self.order.push(rank);
        if self.is_before_parent(position, deadline) {
            self.sift_up(position, rank);
        }
        Ok((index, self.takes_over()))
    }

    /// Is polled again. Says whether it is due, and whether the caller is to drive.
    ///
    /// `None`: to be polled again with a clone of the task's waker, see [`with_waker`](crate::sync::with_waker).
    fn stay(
        &mut self,
        index: u32,
        cx: &Context<'_>,
        waker: &mut Option<Waker>,
    ) -> Option<(bool, bool)> {
        let entry = self.entry(index);
        if entry.position == NOWHERE {
            return Some((true, false));
        }
        register(&mut entry.waker, cx, waker)?;
        Some((false, self.takes_over()))
    }

    /// Takes a wait out. Its waker is to be dropped, and the other one to be woken.
    fn leave(&mut self, index: u32) -> (Option<Waker>, Option<Waker>) {
        let free = self.free;
        let entry = self.entry(index);
        let waker = entry.waker.take();
        let position = replace(&mut entry.position, free);
        self.free = index;
        if position != NOWHERE {
            self.unlink(position as usize);
        }
        // If it was woken, that may have been to drive.
        let next = if waker.is_none() {
            self.hand_on()
        } else {
            None
        };
        (waker, next)
    }

    fn is_due(&mut self, index: u32) -> bool {
        self.entry(index).position == NOWHERE
    }

    fn entry(&mut self, index: u32) -> &mut Entry {
        &mut self.entries[index as usize]
    }

    /// Whether somebody is to drive; the caller is he then.
    fn takes_over(&mut self) -> bool {
        let is_needed = match self.order.first() {
            Some(first) => !self.is_driven && (self.has_rung || first.deadline < self.armed),
            None => false,
        };
        self.is_driven |= is_needed;
        is_needed
    }

    /// What the alarm is to be set to, and what it was set to. `None`: to nothing, and nobody drives any more.
    fn aim(&mut self) -> Option<(Instant, Instant)> {
        let Some(first) = self.order.first() else {
            self.is_driven = false;
            return None;
        };
        self.has_rung = false;
        let deadline = first.deadline;
        Some((deadline, replace(&mut self.armed, deadline)))
    }

    /// The alarm was set and polled. `None`: it has to be again; or else who is to be woken, and nobody drives any more.
    fn is_set(&mut self, has_rung: bool, me: u32) -> Option<Option<Waker>> {
        if has_rung {
            self.armed = UNSET;
        }
        let first = self.order.first();
        if first.is_some_and(|first| first.deadline < self.armed) {
            return None;
        }
        self.is_driven = false;
        // It may have been rung since. To look again at once is no use: tokio rings to say that the task's budget is
        // used up. Then nothing may ever ring again, so that somebody has to be woken: if the others have been and are
        // not polled, the one who drives, for it is.
        let next = self.hand_on();
        if next.is_some() || !self.has_rung {
            return Some(next);
        }
        Some(self.entry(me).waker.take())
    }

    /// Nobody drives any more, and what the alarm is set to is not known.
    fn give_up(&mut self) -> Option<Waker> {
        self.armed = UNSET;
        self.has_rung = true;
        self.is_driven = false;
        self.hand_on()
    }

    /// The bell is rung: who is to be woken.
    fn ring(&mut self) -> [Option<Waker>; 2] {
        self.has_rung = true;
        // Two, since the one may not be polled for long; and not the two that are likely to be of one task.
        let last = match self.order.last() {
            Some(last) if !self.is_driven => last.index,
            Some(_) => return [None, None],
            None => {
                self.armed = UNSET;
                return [None, None];
            }
        };
        [self.hand_on(), self.entry(last).waker.take()]
    }

    /// If somebody is to drive and nobody does, the first is to be woken; or the last, if the first has been already
    /// and may not be polled for long.
    fn hand_on(&mut self) -> Option<Waker> {
        if self.is_driven || !self.has_rung {
            return None;
        }
        let (first, last) = (self.order.first()?.index, self.order.last()?.index);
        let first = self.entry(first).waker.take();
        first.or_else(|| self.entry(last).waker.take())
    }

    /// Takes the first out of the heap, if it is due.
    fn pop_due(&mut self, now: Instant) -> Option<(u32, Option<Waker>)> {
        let first = self.order.first().filter(|first| first.deadline <= now)?;
        let index = first.index;
        self.unlink(0);
        let entry = self.entry(index);
        entry.position = NOWHERE;
        Some((index, take(&mut entry.waker)))
    }

    /// Takes a rank out of the heap, and has the last one take its place.
    fn unlink(&mut self, position: usize) {
        let Some(last) = self.order.pop() else {
            return;
        };
        if position >= self.order.len() {
            return;
        }
        if self.is_before_parent(position, last.deadline) {
            self.sift_up(position, last);
        } else {
            self.sift_down(position, last);
        }
    }

    fn is_before_parent(&self, position: usize, deadline: Instant) -> bool {
        let parent = position.checked_sub(1).map(|below| self.order[below / 2]);
        parent.is_some_and(|parent| deadline < parent.deadline)
    }

    /// Puts `rank` where it belongs, at `position` or nearer to the root.
    fn sift_up(&mut self, mut position: usize, rank: Rank) {
        while let Some(below) = position.checked_sub(1) {
            let parent = self.order[below / 2];
            if parent.deadline <= rank.deadline {
                break;
            }
            self.put(position, parent);
            position = below / 2;
        }
        self.put(position, rank);
    }

    /// Puts `rank` where it belongs, at `position` or further from the root.
    fn sift_down(&mut self, mut position: usize, rank: Rank) {
        loop {
            let left = 2 * position + 1;
            let Some(&(mut child)) = self.order.get(left) else {
                break;
            };
            let mut at = left;
            if let Some(&right) = self.order.get(left + 1) {
                if right.deadline < child.deadline {
                    (child, at) = (right, left + 1);
                }
            }
            if rank.deadline <= child.deadline {
                break;
            }
            self.put(position, child);
            position = at;
        }
        self.put(position, rank);
    }

    fn put(&mut self, position: usize, rank: Rank) {
        self.order[position] = rank;
        self.entry(rank.index).position = position as u32;
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;

    use super::*;
    use crate::util::rng::{Rng, SplitMix64};

    impl Line {
        /// The heap is one, and both sides of it agree.
        fn check(&mut self) {
            for position in 0..self.order.len() {
                let Rank { deadline, index } = self.order[position];
                let parent = self.order[position.saturating_sub(1) / 2];
                assert!(parent.deadline <= deadline);
                assert_eq!(self.entry(index).position as usize, position);
            }
        }
    }

    #[test]
    fn whoever_comes_and_goes_the_first_is_first() {
        let mut rng = SplitMix64::new(1);
        let mut line = Line::new();
        // By deadline, and then by what is told apart by nothing in the line.
        let mut model = BTreeMap::new();
        for n in 0..10_000_u64 {
            match rng.next_range(0..5) {
                0..=1 => {
                    // In order, and in none.
                    let after = rng.next_range(0..2) * rng.next_range(0..200);
                    let deadline = Instant::from_nanos(n + after);
                    let (index, _) = line.join(deadline, Waker::noop().clone()).unwrap();
                    model.insert((deadline, n), index);
                }
                2..=3 if !model.is_empty() => {
                    let at = rng.next_range(0..model.len() as u64) as usize;
                    let (key, index) = model.iter().nth(at).map(|(k, i)| (*k, *i)).unwrap();
                    assert!(line.leave(index).0.is_some());
                    model.remove(&key);
                }
                _ => {
                    let now = Instant::from_nanos(n - n.min(150));
                    while let Some((index, waker)) = line.pop_due(now) {
                        assert!(waker.is_some() && line.is_due(index));
                        let first = *model.first_key_value().unwrap().0;
                        assert!(first.0 <= now);
                        let same = model.range((first.0, 0)..=(first.0, u64::MAX));
                        let found = same.clone().find(|(_, other)| **other == index);
                        let key = *found.unwrap().0;
                        model.remove(&key);
                        line.leave(index);
                    }
                    assert!(model.keys().next().is_none_or(|first| first.0 > now));
                }
            }
            assert_eq!(line.order.len(), model.len());
            if n % 64 == 0 {
                line.check();
            }
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use alloc::vec::Vec;

    use loom::future::block_on;
    use loom::thread;

    use super::*;

    /// A clock of one alarm, moved by hand.
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

    /// Nobody is left, and nobody drives.
    fn check(timer: &SharedTimer<Manual>) {
        timer.0.bell.0.with(|line| {
            assert!(line.order.is_empty());
            assert!(!line.is_driven);
        });
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
    fn a_wait_ends_that_begins_when_the_alarm_rings() {
        all_end(&[50]);
    }

    #[test]
    fn two_waits_end_whichever_sets_the_alarm() {
        all_end(&[50, 60]);
    }

    #[test]
    fn an_earlier_deadline_counts_that_comes_while_the_alarm_is_set() {
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
    fn those_who_are_woken_to_set_the_alarm_go_and_the_others_wait_ends() {
        loom::model(|| {
            let clock = Manual::new();
            let timer = SharedTimer::new(clock.clone());
            let first = waiting(&timer, 50);
            let other = waiting(&timer, 60);
            let last = waiting(&timer, 70);
            let other = thread::spawn(|| block_on(other));
            let rings = thread::spawn(move || clock.advance_to(65));
            drop((first, last));
            other.join().unwrap();
            rings.join().unwrap();
            check(&timer);
        });
    }

    #[test]
    fn one_who_is_polled_for_something_else_and_goes_takes_nothing_along() {
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
}
