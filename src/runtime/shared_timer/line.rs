use alloc::vec::Vec;
use core::mem::{replace, take};
use core::task::{Context, Waker};

use crate::Instant;
use crate::sync::register;

/// Who waits, and what is known of the alarm.
///
/// While somebody waits, one of these holds: the alarm is set to the first deadline or to an earlier one, and nobody
/// has been told that it has rung; or somebody is driving; or one of those who wait was woken, and will drive.
pub(super) struct Line {
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
pub(super) const UNSET: Instant = Instant::MAX;

impl Line {
    pub(super) const fn new() -> Self {
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
    pub(super) fn join(&mut self, deadline: Instant, waker: Waker) -> Result<(u32, bool), Waker> {
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
    pub(super) fn stay(
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
    pub(super) fn leave(&mut self, index: u32) -> (Option<Waker>, Option<Waker>) {
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

    pub(super) fn is_due(&mut self, index: u32) -> bool {
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
    pub(super) fn aim(&mut self) -> Option<(Instant, Instant)> {
        let Some(first) = self.order.first() else {
            self.is_driven = false;
            return None;
        };
        self.has_rung = false;
        let deadline = first.deadline;
        Some((deadline, replace(&mut self.armed, deadline)))
    }

    /// The alarm was set and polled. `None`: it has to be again; or else who is to be woken, and nobody drives any more.
    pub(super) fn is_set(&mut self, has_rung: bool, me: u32) -> Option<Option<Waker>> {
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
    pub(super) fn give_up(&mut self) -> Option<Waker> {
        self.armed = UNSET;
        self.has_rung = true;
        self.is_driven = false;
        self.hand_on()
    }

    /// The bell is rung: who is to be woken.
    pub(super) fn ring(&mut self) -> [Option<Waker>; 2] {
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

    /// Whether nobody waits, and nobody drives.
    #[cfg(all(test, loom))]
    pub(super) fn is_left(&self) -> bool {
        self.order.is_empty() && !self.is_driven
    }

    /// Takes the first out of the heap, if it is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(u32, Option<Waker>)> {
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

    #[test]
    fn one_that_was_taken_out_as_due_is_so_whatever_the_clock_says() {
        let mut line = Line::new();
        let deadline = Instant::from_nanos(50);
        let (index, _) = line.join(deadline, Waker::noop().clone()).unwrap();
        let cx = Context::from_waker(Waker::noop());
        assert!(line.pop_due(deadline).is_some());
        let stays = line.stay(index, &cx, &mut None);
        assert_eq!(stays, Some((true, false)));
    }

    fn join(line: &mut Line, nanos: u64) -> (u32, bool) {
        let deadline = Instant::from_nanos(nanos);
        line.join(deadline, Waker::noop().clone()).unwrap()
    }

    #[test]
    fn an_entry_that_was_left_is_used_again() {
        let mut line = Line::new();
        for _ in 0..100 {
            let (first, second) = (join(&mut line, 50).0, join(&mut line, 60).0);
            line.leave(first);
            line.leave(second);
        }
        assert_eq!(line.entries.len(), 2);
    }

    #[test]
    fn one_at_a_time_drives() {
        let mut line = Line::new();
        let (me, drives) = join(&mut line, 50);
        assert!(drives);
        // Earlier, but it is seen to by the one who drives.
        assert!(!join(&mut line, 40).1);
        assert_eq!(line.aim(), Some((Instant::from_nanos(40), UNSET)));
        assert!(matches!(line.is_set(false, me), Some(None)));
        assert!(!join(&mut line, 45).1);
        assert!(join(&mut line, 30).1);
        // All have gone by the time that the alarm is to be set.
        (0..4).for_each(|index| drop(line.leave(index)));
        assert_eq!(line.aim(), None);
        assert!(join(&mut line, 20).1);
    }
}
