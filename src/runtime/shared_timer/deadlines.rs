use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem::replace;
use core::task::{Context, Waker};

use crate::Instant;
use crate::sync::register;

/// The waits, those to be woken, and the alarm.
///
/// While there are waits, one of these holds: the alarm is set to the first deadline or an earlier one; or a thread has
/// the [`Turn`] to set it; or all waits were woken, and the first one to be polled sets it.
pub(super) struct Deadlines<A> {
    /// A binary heap by deadline.
    order: Vec<Rank>,
    /// By the index of a rank.
    entries: Vec<Entry>,
    /// The first free entry.
    free: u32,
    /// The wakers of waits that are to be woken.
    due: VecDeque<Waker>,
    alarm: Alarm<A>,
}

enum Alarm<A> {
    Unset,
    Set {
        alarm: A,
        deadline: Instant,
    },
    /// A thread has it, to set it.
    Away {
        has_rung: bool,
    },
}

/// The alarm, in the hands of the one that is to set it: no other sets it until it is back.
pub(super) struct Turn<A> {
    pub(super) alarm: Option<A>,
    /// The moment to which the alarm is set.
    pub(super) deadline: Instant,
    /// The wait that has the turn, if it is one: it need not be woken.
    me: u32,
}

#[derive(Clone, Copy)]
struct Rank {
    deadline: Instant,
    index: u32,
}

struct Entry {
    /// `None`: it was woken, and has not been polled since.
    waker: Option<Waker>,
    /// The position in the heap. In a free entry: the next free one.
    position: u32,
}

/// The position of a wait that is due, the end of the free entries, and the index of no wait.
const NOWHERE: u32 = u32::MAX;

/// The deadline of an alarm that has rung.
pub(super) const UNSET: Instant = Instant::MAX;

impl<A> Deadlines<A> {
    pub(super) const fn new() -> Self {
        Self {
            order: Vec::new(),
            entries: Vec::new(),
            free: NOWHERE,
            due: VecDeque::new(),
            alarm: Alarm::Unset,
        }
    }

    /// Enters a wait. Returns its index, and the turn to set the alarm if that is needed.
    pub(super) fn join(
        &mut self,
        deadline: Instant,
        waker: Waker,
    ) -> Result<(u32, Option<Turn<A>>), Waker> {
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
        Ok((index, self.turn(index)))
    }

    /// Polls a wait again. Returns whether it is due, and the turn to set the alarm if that is needed.
    ///
    /// `None`: call again with a clone of the task's waker, see [`with_waker`](crate::sync::with_waker).
    pub(super) fn stay(
        &mut self,
        index: u32,
        cx: &Context<'_>,
        waker: &mut Option<Waker>,
    ) -> Option<(bool, Option<Turn<A>>)> {
        let entry = self.entry(index);
        if entry.position == NOWHERE {
            return Some((true, None));
        }
        register(&mut entry.waker, cx, waker)?;
        Some((false, self.turn(index)))
    }

    /// Removes a wait. The caller drops its waker.
    pub(super) fn leave(&mut self, index: u32) -> Option<Waker> {
        let free = self.free;
        let entry = self.entry(index);
        let waker = entry.waker.take();
        let position = replace(&mut entry.position, free);
        self.free = index;
        if position != NOWHERE {
            self.unlink(position as usize);
        }
        waker
    }

    pub(super) fn is_due(&mut self, index: u32) -> bool {
        self.entry(index).position == NOWHERE
    }

    fn entry(&mut self, index: u32) -> &mut Entry {
        &mut self.entries[index as usize]
    }

    /// The turn for a wait, if the alarm has to be set and no thread is about to.
    fn turn(&mut self, me: u32) -> Option<Turn<A>> {
        let first = self.order.first()?;
        let is_needed = match &self.alarm {
            Alarm::Unset => true,
            Alarm::Set { deadline, .. } => first.deadline < *deadline,
            Alarm::Away { .. } => false,
        };
        is_needed.then(|| self.take(me))
    }

    fn take(&mut self, me: u32) -> Turn<A> {
        let away = Alarm::Away { has_rung: false };
        let (alarm, deadline) = match replace(&mut self.alarm, away) {
            Alarm::Set { alarm, deadline } => (Some(alarm), deadline),
            Alarm::Unset | Alarm::Away { .. } => (None, UNSET),
        };
        Turn {
            alarm,
            deadline,
            me,
        }
    }

    /// The alarm rings. Returns the turn to set it again, or `None` if the holder of the turn will look again.
    pub(super) fn ring(&mut self) -> Option<Turn<A>> {
        match &mut self.alarm {
            // An earlier alarm; all waits were woken.
            Alarm::Unset => None,
            Alarm::Set { deadline, .. } => {
                *deadline = UNSET;
                Some(self.take(NOWHERE))
            }
            Alarm::Away { has_rung } => {
                *has_rung = true;
                None
            }
        }
    }

    /// Moves the waits that are due by `now` to those to be woken, and returns the moment to set the alarm to.
    ///
    /// `None`: there are no waits left, and the turn is over. An alarm that has rung stays in the turn, to be dropped,
    /// because the next wait may be on another runtime.
    pub(super) fn aim(&mut self, now: Instant, turn: &mut Turn<A>) -> Option<Instant> {
        while let Some(index) = self.pop_due(now) {
            if index != turn.me {
                let waker = self.entry(index).waker.take();
                self.due.extend(waker);
            }
        }
        let has_rung = matches!(self.alarm, Alarm::Away { has_rung: true });
        self.alarm = Alarm::Away { has_rung: false };
        let Some(first) = self.order.first() else {
            if has_rung {
                turn.deadline = UNSET;
            }
            self.put_back(turn);
            return None;
        };
        Some(first.deadline)
    }

    /// The alarm was set, and is pending. `false`: it has to be looked at again; otherwise the turn is over.
    pub(super) fn is_set(&mut self, turn: &mut Turn<A>) -> bool {
        let first = self.order.first();
        let is_late = first.is_some_and(|first| first.deadline < turn.deadline);
        if is_late || matches!(self.alarm, Alarm::Away { has_rung: true }) {
            return false;
        }
        self.put_back(turn);
        true
    }

    fn put_back(&mut self, turn: &mut Turn<A>) {
        let deadline = turn.deadline;
        let alarm = match deadline {
            UNSET => None,
            _ => turn.alarm.take(),
        };
        self.alarm = match alarm {
            Some(alarm) => Alarm::Set { alarm, deadline },
            None => Alarm::Unset,
        };
    }

    /// Ends the turn without a set alarm. All waits are to be woken, so that setting it does not depend on a particular
    /// one.
    pub(super) fn give_up(&mut self) {
        self.alarm = Alarm::Unset;
        for rank in &self.order {
            let entry = &mut self.entries[rank.index as usize];
            self.due.extend(entry.waker.take());
        }
    }

    /// The next waker to wake.
    pub(super) fn next_due(&mut self) -> Option<Waker> {
        self.due.pop_front()
    }

    /// Whether there are no waits, and no thread has the alarm.
    #[cfg(all(test, loom))]
    pub(super) fn is_left(&self) -> bool {
        self.order.is_empty() && self.due.is_empty() && !matches!(self.alarm, Alarm::Away { .. })
    }

    /// Removes the first wait from the heap, if it is due.
    fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let first = self.order.first().filter(|first| first.deadline <= now)?;
        let index = first.index;
        self.unlink(0);
        self.entry(index).position = NOWHERE;
        Some(index)
    }

    /// Removes a rank from the heap, and puts the last one in its place.
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

    impl<A> Deadlines<A> {
        /// The heap is in order, and agrees with the entries.
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
    fn earliest_deadline_is_first() {
        let mut rng = SplitMix64::new(1);
        let mut deadlines = Deadlines::<()>::new();
        // By deadline, then by a number that the line does not know.
        let mut model = BTreeMap::new();
        for n in 0..10_000_u64 {
            match rng.next_range(0..5) {
                0..=1 => {
                    // In order or out of order.
                    let after = rng.next_range(0..2) * rng.next_range(0..200);
                    let deadline = Instant::from_nanos(n + after);
                    let (index, _) = join(&mut deadlines, deadline.as_nanos());
                    model.insert((deadline, n), index);
                }
                2..=3 if !model.is_empty() => {
                    let at = rng.next_range(0..model.len() as u64) as usize;
                    let (key, index) = model.iter().nth(at).map(|(k, i)| (*k, *i)).unwrap();
                    assert!(deadlines.leave(index).is_some());
                    model.remove(&key);
                }
                _ => {
                    let now = Instant::from_nanos(n - n.min(150));
                    while let Some(index) = deadlines.pop_due(now) {
                        assert!(deadlines.is_due(index));
                        let first = *model.first_key_value().unwrap().0;
                        assert!(first.0 <= now);
                        let same = model.range((first.0, 0)..=(first.0, u64::MAX));
                        let found = same.clone().find(|(_, other)| **other == index);
                        let key = *found.unwrap().0;
                        model.remove(&key);
                        assert!(deadlines.leave(index).is_some());
                    }
                    assert!(model.keys().next().is_none_or(|first| first.0 > now));
                }
            }
            assert_eq!(deadlines.order.len(), model.len());
            if n % 64 == 0 {
                deadlines.check();
            }
        }
    }

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    /// Enters a wait, and returns its index and the turn, if it has it.
    fn join(deadlines: &mut Deadlines<()>, nanos: u64) -> (u32, Option<Turn<()>>) {
        deadlines
            .join(at(nanos), Waker::noop().clone())
            .ok()
            .unwrap()
    }

    #[test]
    fn due_wait_stays_due() {
        let mut deadlines = Deadlines::new();
        let (index, _) = join(&mut deadlines, 50);
        let cx = Context::from_waker(Waker::noop());
        assert!(deadlines.pop_due(at(50)).is_some());
        assert!(matches!(
            deadlines.stay(index, &cx, &mut None),
            Some((true, None))
        ));
    }

    #[test]
    fn freed_entry_is_reused() {
        let mut deadlines = Deadlines::new();
        for _ in 0..100 {
            let (first, second) = (join(&mut deadlines, 50).0, join(&mut deadlines, 60).0);
            deadlines.leave(first);
            deadlines.leave(second);
        }
        assert_eq!(deadlines.entries.len(), 2);
    }

    #[test]
    fn one_at_a_time_has_the_turn() {
        let mut deadlines = Deadlines::new();
        let mut turn = join(&mut deadlines, 50).1.unwrap();
        // Earlier, but the holder of the turn takes care of it.
        assert!(join(&mut deadlines, 40).1.is_none());
        assert!(deadlines.ring().is_none());
        assert_eq!(deadlines.aim(at(1), &mut turn), Some(at(40)));
        (turn.alarm, turn.deadline) = (Some(()), at(40));
        // The line notes that the alarm rings meanwhile, and that an earlier deadline comes.
        assert!(deadlines.ring().is_none() && !deadlines.is_set(&mut turn));
        assert_eq!(deadlines.aim(at(1), &mut turn), Some(at(40)));
        assert!(join(&mut deadlines, 35).1.is_none() && !deadlines.is_set(&mut turn));
        assert_eq!(deadlines.aim(at(1), &mut turn), Some(at(35)));
        turn.deadline = at(35);
        assert!(deadlines.is_set(&mut turn));
        assert!(join(&mut deadlines, 38).1.is_none());
        let mut turn = join(&mut deadlines, 30).1.unwrap();
        assert_eq!((turn.alarm, turn.deadline), (Some(()), at(35)));
        // All waits are gone when the alarm is to be set: it stays as it is.
        (0..5).for_each(|index| drop(deadlines.leave(index)));
        assert_eq!(deadlines.aim(at(1), &mut turn), None);
        assert!(join(&mut deadlines, 36).1.is_none());
        // It rings, and is dropped with the last wait.
        let mut turn = deadlines.ring().unwrap();
        assert_eq!(deadlines.aim(at(36), &mut turn), None);
        assert_eq!((turn.alarm, turn.deadline), (Some(()), UNSET));
        let turn = join(&mut deadlines, 60).1.unwrap();
        assert_eq!((turn.alarm, turn.deadline), (None, UNSET));
    }

    #[test]
    fn all_are_woken_when_the_alarm_is_not_set() {
        let mut deadlines = Deadlines::new();
        for nanos in 50..60 {
            join(&mut deadlines, nanos);
        }
        deadlines.give_up();
        assert_eq!(core::iter::from_fn(|| deadlines.next_due()).count(), 10);
        // An earlier alarm may still ring.
        assert!(deadlines.ring().is_none());
        let cx = Context::from_waker(Waker::noop());
        let mut waker = Some(Waker::noop().clone());
        let stays = deadlines.stay(7, &cx, &mut waker);
        assert!(matches!(stays, Some((false, Some(_)))));
    }
}
