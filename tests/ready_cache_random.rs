//! Random runs of the ready cache and the balancer over strict services.
#![cfg(feature = "std")]
mod common;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use campanile::Service;
use campanile::balance::p2c::Balance;
use campanile::discover::Change;
use campanile::layer::Identity;
use campanile::load::Load;
use campanile::load_shed::LoadShed;
use campanile::ready_cache::ReadyCache;
use campanile::util::rng::{Rng, SplitMix64};
use common::WakeCount;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Mood {
    Ready,
    Not,
    Fails,
    Panics,
}

struct State {
    mood: Mood,
    wakers: Vec<Waker>,
    alive: bool,
    calls: u32,
    asked: Asked,
    /// Whether it was ever ready.
    has_worked: bool,
    evicted: bool,
    breach: Option<&'static str>,
    load: u64,
}
#[derive(Clone, Copy, PartialEq, Debug)]
enum Asked {
    No,
    Ready,
    Dead,
}

struct Strict(Rc<RefCell<State>>);
type St = Rc<RefCell<State>>;
fn strict(mood: Mood) -> (Strict, St) {
    let s = Rc::new(RefCell::new(State {
        mood,
        wakers: vec![],
        alive: true,
        calls: 0,
        asked: Asked::No,
        has_worked: false,
        evicted: false,
        breach: None,
        load: 0,
    }));
    (Strict(s.clone()), s)
}
impl Drop for Strict {
    fn drop(&mut self) {
        self.0.borrow_mut().alive = false;
    }
}
impl Load for Strict {
    type Metric = u64;
    fn load(&self) -> u64 {
        self.0.borrow().load
    }
}
impl Service<()> for Strict {
    type Response = ();
    type Error = &'static str;
    type Future = std::future::Ready<Result<(), &'static str>>;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        let mut s = self.0.borrow_mut();
        if s.asked == Asked::Dead {
            s.breach = Some("polled when dead");
        }
        match s.mood {
            Mood::Ready => {
                s.asked = Asked::Ready;
                s.has_worked = true;
                Poll::Ready(Ok(()))
            }
            Mood::Not => {
                s.asked = Asked::No;
                s.wakers.push(cx.waker().clone());
                Poll::Pending
            }
            Mood::Fails => {
                s.asked = Asked::Dead;
                Poll::Ready(Err("fails"))
            }
            Mood::Panics => {
                s.asked = Asked::Dead;
                drop(s);
                std::panic::resume_unwind(Box::new("mood"))
            }
        }
    }
    fn call(&mut self, (): ()) -> Self::Future {
        let mut s = self.0.borrow_mut();
        if s.asked != Asked::Ready {
            s.breach = Some("called unready");
        }
        if s.mood == Mood::Panics {
            s.asked = Asked::Dead;
            drop(s);
            std::panic::resume_unwind(Box::new("mood"))
        }
        s.asked = Asked::No;
        s.calls += 1;
        std::future::ready(Ok(()))
    }
}

fn set(s: &St, mood: Mood) {
    let wakers = {
        let mut s = s.borrow_mut();
        s.mood = mood;
        if mood == Mood::Not {
            vec![]
        } else {
            std::mem::take(&mut s.wakers)
        }
    };
    wakers.into_iter().for_each(Waker::wake);
}
fn mood(rng: &mut SplitMix64) -> Mood {
    match rng.next_range(0..20) {
        0..=10 => Mood::Ready,
        11..=17 => Mood::Not,
        18 => Mood::Fails,
        _ => Mood::Panics,
    }
}

#[test]
fn cache_keeps_the_contract() {
    for seed in 0..5_000u64 {
        let mut rng = SplitMix64::new(seed);
        let mut cache: ReadyCache<u64, Strict, ()> = ReadyCache::new();
        let mut all: Vec<(u64, St)> = Vec::new();
        let wakes = WakeCount::new();
        let keys = rng.next_range(1..6);
        for step in 0..60 {
            let key = rng.next_range(0..keys);
            match rng.next_range(0..10) {
                0 | 1 => {
                    let (service, state) = strict(mood(&mut rng));
                    cache.push(key, service);
                    all.push((key, state));
                }
                2 if rng.next_range(0..3) == 0 => {
                    let had = all.iter().any(|(k, s)| *k == key && s.borrow().alive);
                    assert_eq!(cache.evict(&key), had);
                    for (_, s) in all.iter().filter(|(k, _)| *k == key) {
                        s.borrow_mut().evicted = true;
                    }
                    assert!(!all.iter().any(|(k, s)| *k == key && s.borrow().alive));
                }
                2 | 3 => {
                    if !all.is_empty() {
                        let at = rng.next_range(0..all.len() as u64) as usize;
                        let mood = mood(&mut rng);
                        set(&all[at].1, mood);
                    }
                }
                4 | 5 => {
                    let _ = catch_unwind(AssertUnwindSafe(|| {
                        wakes.enter(|cx| cache.check_ready(cx, &key)).ok()
                    }));
                }
                6 | 7 => {
                    // Check and call, or call a ready service without a check.
                    let n = cache.ready_len() as u64;
                    if n > 0 {
                        let at = rng.next_range(0..n) as usize;
                        let go = rng.next_range(0..2) == 0
                            || matches!(
                                catch_unwind(AssertUnwindSafe(
                                    || wakes.enter(|cx| cache.check_ready_index(cx, at))
                                )),
                                Ok(Ok(true))
                            );
                        if go && at < cache.ready_len() {
                            let before = cache
                                .get_ready_index(at)
                                .map(|(k, s)| (*k, s.0.clone()))
                                .unwrap();
                            let calls = before.1.borrow().calls;
                            if let Ok(f) =
                                catch_unwind(AssertUnwindSafe(|| cache.call_ready_index(at, ())))
                            {
                                drop(f);
                                assert_eq!(
                                    before.1.borrow().calls,
                                    calls + 1,
                                    "another one was called"
                                );
                            } else {
                                assert!(!before.1.borrow().alive);
                            }
                        }
                    }
                }
                _ => {
                    let woken = wakes.get();
                    for _ in 0..20 {
                        match catch_unwind(AssertUnwindSafe(|| {
                            wakes.enter(|cx| cache.poll_pending(cx))
                        })) {
                            Ok(Poll::Ready(Ok(()))) => {
                                assert_eq!(cache.pending_len(), 0);
                                break;
                            }
                            Ok(Poll::Ready(Err(_))) => {}
                            Err(_) => {}
                            Ok(Poll::Pending) => {
                                assert!(cache.pending_len() > 0);
                                let ready: Vec<u64> = cache.iter_ready().map(|(k, _)| *k).collect();
                                for (k, s) in &all {
                                    let s = s.borrow();
                                    if s.alive && s.mood != Mood::Not && !ready.contains(k) {
                                        assert!(
                                            wakes.get() > woken,
                                            "seed {seed} step {step}: {k} is ready and nobody was woken"
                                        );
                                    }
                                }
                                if wakes.get() == woken {
                                    break;
                                }
                            }
                        }
                    }
                }
            }
            // Invariants.
            let alive = all.iter().filter(|(_, s)| s.borrow().alive).count();
            assert_eq!(cache.len(), alive, "seed {seed} step {step}");
            assert_eq!(cache.ready_len() + cache.pending_len(), cache.len());
            assert_eq!(cache.iter_ready().count(), cache.ready_len());
            let mut by = HashMap::new();
            for (i, (k, s)) in
                (0..cache.ready_len()).filter_map(|i| Some((i, cache.get_ready_index(i)?)))
            {
                assert!(by.insert(*k, i).is_none(), "twice");
                assert_eq!(s.0.borrow().asked, Asked::Ready, "seed {seed} step {step}");
                let (j, k2, s2) = cache.get_ready(k).unwrap();
                assert_eq!((i, *k), (j, *k2));
                assert!(Rc::ptr_eq(&s.0, &s2.0));
            }
            for key in 0..keys {
                let of: Vec<_> = all
                    .iter()
                    .filter(|(k, s)| *k == key && s.borrow().alive)
                    .collect();
                assert!(of.len() <= 2);
                // A service that has been ready stays until it fails or a newer one becomes ready.
                let mut newer_works = false;
                for (_, s) in all.iter().rev().filter(|(k, _)| *k == key) {
                    let s = s.borrow();
                    if s.has_worked && !s.evicted && s.asked != Asked::Dead {
                        assert!(s.alive != newer_works, "seed {seed} step {step}");
                    }
                    newer_works |= s.has_worked;
                }
                let pending = of.len() - usize::from(by.contains_key(&key));
                assert_eq!(
                    cache.pending_contains(&key),
                    pending > 0,
                    "seed {seed} step {step}"
                );
            }
            for (_, s) in &all {
                assert_eq!(s.borrow().breach, None, "seed {seed} step {step}");
            }
            if rng.next_range(0..10) == 0 {
                let n = cache.iter_ready_mut().count();
                assert_eq!(n, cache.ready_len());
            }
        }
    }
}

#[derive(Clone, Default)]
struct Queue(Rc<RefCell<(VecDeque<Change<u64, Strict>>, Option<Waker>)>>);
impl futures::Stream for Queue {
    type Item = Result<Change<u64, Strict>, ()>;
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut q = self.0.borrow_mut();
        match q.0.pop_front() {
            Some(c) => Poll::Ready(Some(Ok(c))),
            None => {
                q.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
impl Queue {
    fn send(&self, c: Change<u64, Strict>) {
        let w = {
            let mut q = self.0.borrow_mut();
            q.0.push_back(c);
            q.1.take()
        };
        if let Some(w) = w {
            w.wake()
        }
    }
}

#[test]
fn balancer_keeps_the_contract() {
    for seed in 0..5_000u64 {
        let mut rng = SplitMix64::new(seed);
        let queue = Queue::default();
        let mut balance =
            Balance::with_layer(queue.clone(), Identity::new()).seed(SplitMix64::new(seed));
        let mut all: Vec<(u64, St)> = Vec::new();
        let wakes = WakeCount::new();
        let keys = rng.next_range(1..6);
        let mut promised = false;
        for step in 0..60 {
            let key = rng.next_range(0..keys);
            match rng.next_range(0..10) {
                0 | 1 => {
                    let (service, state) = strict(mood(&mut rng));
                    state.borrow_mut().load = rng.next_range(0..3);
                    queue.send(Change::Insert(key, service));
                    all.push((key, state));
                }
                2 if rng.next_range(0..2) == 0 => queue.send(Change::Remove(key)),
                2..=4 => {
                    if !all.is_empty() {
                        let at = rng.next_range(0..all.len() as u64) as usize;
                        let mood = mood(&mut rng);
                        set(&all[at].1, mood);
                    }
                }
                5 | 6 => {
                    let calls: u32 = all.iter().map(|(_, s)| s.borrow().calls).sum();
                    let panics = all.iter().any(|(_, s)| s.borrow().mood == Mood::Panics);
                    let called = catch_unwind(AssertUnwindSafe(|| drop(balance.call(()))));
                    let now: u32 = all.iter().map(|(_, s)| s.borrow().calls).sum();
                    assert!(called.is_ok() || panics);
                    if promised && called.is_ok() {
                        assert_eq!(now, calls + 1, "seed {seed} step {step}");
                    }
                    promised = false;
                }
                7 => {
                    // A poll that only tries.
                    promised = false;
                    let _ = catch_unwind(AssertUnwindSafe(|| {
                        let mut shed = LoadShed::new(&mut balance);
                        let _ = wakes.poll_ready(&mut shed);
                    }));
                }
                _ => {
                    for _ in 0..30 {
                        let woken = wakes.get();
                        match catch_unwind(AssertUnwindSafe(|| wakes.poll_ready(&mut balance))) {
                            Ok(Poll::Ready(Ok(()))) => {
                                promised = true;
                                break;
                            }
                            Ok(Poll::Ready(Err(e))) => panic!("{e:?}"),
                            Err(_) => {
                                promised = false;
                            }
                            Ok(Poll::Pending) => {
                                promised = false;
                                if wakes.get() > woken {
                                    continue;
                                }
                                for (_, s) in &all {
                                    let s = s.borrow();
                                    assert!(
                                        !s.alive || s.mood == Mood::Not,
                                        "seed {seed} step {step}: {:?} {:?}",
                                        s.mood,
                                        s.asked
                                    );
                                }
                                break;
                            }
                        }
                    }
                }
            }
            for (_, s) in &all {
                assert_eq!(s.borrow().breach, None, "seed {seed} step {step}");
            }
        }
    }
}
