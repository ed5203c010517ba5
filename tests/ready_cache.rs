//! `ReadyCache`: a comparison with a model, and error-prone cases.
#![cfg(feature = "std")]

mod common;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Ready, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use campanile::ready_cache::{ReadyCache, error::Failed};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{BoxError, Service};

use common::{Failure, Host, On, WakeCount, on_every_runtime, panics_at};

const BROKEN: Failure = Failure("broken");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Ready,
    Busy,
    Broken,
}

/// The test's view of one service.
#[derive(Debug)]
struct Probe {
    mood: Cell<Mood>,
    polls: Cell<u32>,
    waker: RefCell<Option<Waker>>,
    is_ready: Cell<bool>,
    is_alive: Cell<bool>,
    calls: Cell<u32>,
    // What a poll does before it answers.
    on_poll: Cell<OnPoll>,
}

#[derive(Clone, Copy, Debug)]
enum OnPoll {
    Nothing,
    WakeItself,
    Panic,
}

impl Probe {
    fn new(mood: Mood) -> Rc<Self> {
        Rc::new(Self {
            mood: Cell::new(mood),
            polls: Cell::new(0),
            waker: RefCell::default(),
            is_ready: Cell::new(false),
            is_alive: Cell::new(true),
            calls: Cell::new(0),
            on_poll: Cell::new(OnPoll::Nothing),
        })
    }

    fn service(self: &Rc<Self>) -> Endpoint {
        Endpoint(self.clone())
    }

    fn wake(&self) {
        let waker = self.waker.borrow().clone();
        waker.expect("it was polled").wake();
    }

    fn take_polls(&self) -> u32 {
        self.polls.take()
    }
}

/// The service of a probe. It panics if it is polled after a failure or called without readiness.
#[derive(Debug)]
struct Endpoint(Rc<Probe>);

impl Service<u32> for Endpoint {
    type Response = u32;
    type Error = Failure;
    type Future = Ready<Result<u32, Failure>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let probe = &self.0;
        assert!(probe.is_alive.get(), "polled after a failure");
        probe.polls.set(probe.polls.get() + 1);
        match probe.on_poll.get() {
            OnPoll::Nothing => {}
            OnPoll::WakeItself => cx.waker().wake_by_ref(),
            OnPoll::Panic => std::panic::resume_unwind(Box::new("poll")),
        }
        match probe.mood.get() {
            Mood::Ready => {
                probe.is_ready.set(true);
                Poll::Ready(Ok(()))
            }
            Mood::Busy => {
                probe.is_ready.set(false);
                probe.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
            Mood::Broken => {
                probe.is_alive.set(false);
                Poll::Ready(Err(BROKEN))
            }
        }
    }

    fn call(&mut self, n: u32) -> Self::Future {
        if let OnPoll::Panic = self.0.on_poll.get() {
            std::panic::resume_unwind(Box::new("call"));
        }
        assert!(self.0.is_ready.take(), "called unready");
        self.0.calls.set(self.0.calls.get() + 1);
        ready(Ok(n))
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.0.is_alive.set(false);
    }
}

type Cache = ReadyCache<u32, Endpoint, u32>;

fn poll(cache: &mut Cache, wakes: &WakeCount) -> Poll<Result<(), Failed<u32, Failure>>> {
    wakes.enter(|cx| cache.poll_pending(cx))
}

/// Polls until no further service fails, and returns the keys of failed services.
fn settle(cache: &mut Cache, wakes: &WakeCount) -> (Vec<u32>, bool) {
    let mut failed = Vec::new();
    loop {
        match poll(cache, wakes) {
            Poll::Ready(Err(Failed(key, error))) => {
                assert_eq!(error, BROKEN);
                failed.push(key);
            }
            polled => break (failed, polled.is_ready()),
        }
    }
}

fn lens(cache: &Cache) -> (usize, usize) {
    assert_eq!(cache.len(), cache.ready_len() + cache.pending_len());
    assert_eq!(
        cache.is_empty(),
        cache.iter_ready().count() + cache.pending_len() == 0
    );
    (cache.ready_len(), cache.pending_len())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// Polled by the next poll of the cache.
    Due,
    /// Polled once it is woken.
    Waiting,
}

/// A service in the model.
#[derive(Debug)]
struct Held {
    probe: Rc<Probe>,
    state: State,
}

#[derive(Debug)]
struct Entry {
    newest: Held,
    /// Whether it was ever ready.
    has_worked: bool,
    /// A service that was ready before, which the newest one will replace.
    older: Option<Held>,
}

impl Entry {
    fn all(&self) -> impl Iterator<Item = &Held> {
        self.older.iter().chain([&self.newest])
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.older.iter_mut().chain([&mut self.newest])
    }
}

/// A cache as documented, regardless of cost.
#[derive(Debug, Default)]
struct Model {
    entries: BTreeMap<u32, Entry>,
    /// Services that have left, whose wakers do nothing.
    gone: Vec<Rc<Probe>>,
}

/// Which services a poll polls, and which keys fail. Of two services of one key the older one may be polled before the
/// new one becomes ready and replaces it, or not at all.
#[derive(Debug, Default)]
struct Polled {
    asked: BTreeSet<*const Probe>,
    maybe_asked: BTreeSet<*const Probe>,
    failed: Vec<u32>,
    maybe_failed: BTreeSet<u32>,
}

impl Model {
    /// The ready service of a key.
    fn ready(&self, key: u32) -> Option<&Rc<Probe>> {
        let mut all = self.entries.get(&key)?.all();
        let held = all.find(|held| held.state == State::Ready)?;
        Some(&held.probe)
    }

    fn push(&mut self, key: u32, probe: Rc<Probe>) {
        let mut older = None;
        match self.entries.remove(&key) {
            Some(entry) if entry.has_worked => older = Some(entry.newest),
            Some(entry) => {
                older = entry.older;
                self.gone.push(entry.newest.probe);
            }
            None => {}
        }
        let state = State::Due;
        let entry = Entry {
            newest: Held { probe, state },
            has_worked: false,
            older,
        };
        self.entries.insert(key, entry);
    }

    fn evict(&mut self, key: u32) -> bool {
        let Some(entry) = self.entries.remove(&key) else {
            return false;
        };
        self.gone.push(entry.newest.probe);
        self.gone.extend(entry.older.map(|held| held.probe));
        true
    }

    /// The newest service of a key has failed.
    fn fail(&mut self, key: u32) {
        let entry = self.entries.remove(&key).unwrap();
        self.gone.push(entry.newest.probe);
        if let Some(newest) = entry.older {
            let entry = Entry {
                newest,
                has_worked: true,
                older: None,
            };
            self.entries.insert(key, entry);
        }
    }

    /// The older service of a key has left.
    fn drop_older(&mut self, key: u32) {
        let older = self.entries.get_mut(&key).unwrap().older.take();
        self.gone.push(older.unwrap().probe);
    }

    fn poll(&mut self) -> Polled {
        let mut polled = Polled::default();
        let keys: Vec<u32> = self.entries.keys().copied().collect();
        for key in keys {
            let entry = self.entries.get_mut(&key).unwrap();
            let mut has_failed = false;
            if entry.newest.state == State::Due {
                polled.asked.insert(Rc::as_ptr(&entry.newest.probe));
                match entry.newest.probe.mood.get() {
                    Mood::Ready => {
                        entry.newest.state = State::Ready;
                        entry.has_worked = true;
                        if let Some(older) = entry.older.take() {
                            if older.state == State::Due {
                                polled.maybe_asked.insert(Rc::as_ptr(&older.probe));
                                if older.probe.mood.get() == Mood::Broken {
                                    polled.maybe_failed.insert(key);
                                }
                            }
                            self.gone.push(older.probe);
                        }
                    }
                    Mood::Busy => entry.newest.state = State::Waiting,
                    Mood::Broken => has_failed = true,
                }
            }
            if let Some(older) = &mut entry.older {
                if older.state == State::Due {
                    polled.asked.insert(Rc::as_ptr(&older.probe));
                    match older.probe.mood.get() {
                        Mood::Ready => older.state = State::Ready,
                        Mood::Busy => older.state = State::Waiting,
                        Mood::Broken => {
                            polled.failed.push(key);
                            self.drop_older(key);
                        }
                    }
                }
            }
            if has_failed {
                polled.failed.push(key);
                self.fail(key);
            }
        }
        polled
    }

    /// The ready service of a key is no longer ready, and its next poll is due according to `next`.
    fn unready(&mut self, key: u32, next: State) {
        let mut all = self.entries.get_mut(&key).unwrap().all_mut();
        all.find(|held| held.state == State::Ready).unwrap().state = next;
    }

    /// With `mutably` the service that was called last is moved to its place first.
    fn check(&self, cache: &mut Cache, mutably: bool) {
        let mut alive = 0;
        let (mut ready, mut pending) = (0, 0);
        for (key, entry) in &self.entries {
            assert!(entry.all().all(|held| held.probe.is_alive.get()));
            alive += entry.all().count();
            let is_pending = |held: &&Held| held.state != State::Ready;
            pending += entry.all().filter(is_pending).count();
            let has_pending = entry.all().any(|held| is_pending(&held));
            assert_eq!(cache.pending_contains(key), has_pending, "{key}");
            let expected = self.ready(*key);
            ready += usize::from(expected.is_some());
            let found = cache.get_ready(key);
            match (expected, found) {
                (Some(probe), Some((index, found, service))) => {
                    assert_eq!(found, key);
                    assert!(Rc::ptr_eq(probe, &service.0));
                    let (by_index, same) = cache.get_ready_index(index).unwrap();
                    assert_eq!(by_index, key);
                    assert!(Rc::ptr_eq(probe, &same.0));
                }
                (None, None) => {}
                differing => panic!("{key}: {differing:?}"),
            }
            assert_eq!(cache.get_ready_mut(key).is_some(), expected.is_some());
        }
        assert_eq!(lens(cache), (ready, pending));
        assert_eq!(alive, ready + pending);
        assert_eq!(cache.iter_ready().count(), ready);
        for (index, (key, service)) in cache.iter_ready().enumerate() {
            assert!(Rc::ptr_eq(self.ready(*key).unwrap(), &service.0));
            assert_eq!(cache.get_ready_index(index).unwrap().0, key);
        }
        let keys: BTreeSet<u32> = cache.iter_ready().map(|(key, _)| *key).collect();
        if mutably {
            let again: BTreeSet<u32> = cache.iter_ready_mut().map(|(key, _)| *key).collect();
            assert_eq!(keys, again);
        }
        let all = |keys: &BTreeSet<u32>| keys.iter().map(u32::to_string).collect::<BTreeSet<_>>();
        let debug = format!("{cache:?}");
        let (ready_part, pending_part) = debug.split_once("pending").unwrap();
        let numbers = |part: &str| -> Vec<String> {
            let words = part.split(|c: char| !c.is_ascii_digit());
            words
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(
            numbers(ready_part).into_iter().collect::<BTreeSet<_>>(),
            all(&keys)
        );
        assert_eq!(numbers(pending_part).len(), pending);
        assert_eq!(keys.len(), ready);
        assert!(cache.get_ready_index(ready).is_none());
        assert!(self.gone.iter().all(|probe| !probe.is_alive.get()));
    }
}

/// Thousands of random steps. After each, the cache matches the model, no service was called unready or polled without
/// reason, and wake-ups arrived exactly when due.
#[test]
fn cache_matches_its_model() {
    for seed in 0..8 {
        random_walk(seed, 4_000);
    }
}

fn random_walk(seed: u64, steps: u32) {
    let mut rng = SplitMix64::new(seed);
    let mut below = move |n: u64| rng.next_range(0..n);
    let (mut cache, mut model) = (Cache::new(), Model::default());
    let wakes = WakeCount::new();
    // Whether the next wake-up must reach the task.
    let mut is_waiting = false;
    for step in 0..steps {
        let key = below(12) as u32;
        let mood = match below(8) {
            0 => Mood::Broken,
            1..=3 => Mood::Busy,
            _ => Mood::Ready,
        };
        let before = wakes.get();
        let mut expected_wakes = 0;
        match below(16) {
            0 | 1 => {
                let probe = Probe::new(mood);
                cache.push(key, probe.service());
                model.push(key, probe);
            }
            2 => assert_eq!(cache.evict(&key), model.evict(key)),
            3..=5 => {
                if let Some(entry) = model.entries.get_mut(&key) {
                    let held = match &mut entry.older {
                        Some(older) if below(2) == 0 => older,
                        _ => &mut entry.newest,
                    };
                    held.probe.mood.set(mood);
                    if held.state == State::Waiting {
                        held.probe.wake();
                        held.probe.wake();
                        held.state = State::Due;
                        expected_wakes = usize::from(std::mem::take(&mut is_waiting));
                    }
                }
            }
            // Wakers of removed services do nothing, even if their slots are reused.
            6 => {
                for probe in model.gone.drain(..) {
                    if let Some(waker) = probe.waker.take() {
                        waker.wake();
                    }
                }
            }
            // Waking a ready service does not cause a poll.
            7 => {
                if let Some(probe) = model.ready(key) {
                    let waker = probe.waker.borrow().clone();
                    if let Some(waker) = waker {
                        waker.wake();
                        // The first wake-up since the last poll reaches the task.
                        is_waiting = false;
                        expected_wakes = wakes.get() - before;
                        assert!(expected_wakes <= 1);
                    }
                }
            }
            8..=10 => {
                let mut polled = model.poll();
                let (mut keys, is_ready) = settle(&mut cache, &wakes);
                polled.failed.retain(|failed| {
                    let found = keys.iter().position(|key| key == failed);
                    found.map(|at| keys.swap_remove(at)).is_none()
                });
                assert_eq!(polled.failed, [], "step {step}");
                for key in keys {
                    assert!(polled.maybe_failed.remove(&key), "{key} at step {step}");
                }
                assert_eq!(is_ready, cache.pending_len() == 0);
                let everybody = model.entries.values().flat_map(Entry::all);
                for probe in everybody.map(|held| &held.probe).chain(&model.gone) {
                    let polls = probe.take_polls();
                    let least = u32::from(polled.asked.contains(&Rc::as_ptr(probe)));
                    let most = least + u32::from(polled.maybe_asked.contains(&Rc::as_ptr(probe)));
                    let range = least..=most;
                    assert!(range.contains(&polls), "{polls} at seed {seed} step {step}");
                }
                is_waiting = !is_ready;
            }
            11 | 12 => {
                let found = wakes.enter(|cx| cache.check_ready(cx, &key));
                let found = found.map_err(|Failed(failed, _)| assert_eq!(failed, key));
                let Some(probe) = model.ready(key).cloned() else {
                    assert_eq!(found, Ok(false));
                    continue;
                };
                assert_eq!(probe.take_polls(), 1);
                match probe.mood.get() {
                    Mood::Ready => assert_eq!(found, Ok(true)),
                    Mood::Busy => {
                        assert_eq!(found, Ok(false));
                        model.unready(key, State::Waiting);
                    }
                    Mood::Broken => {
                        assert_eq!(found, Err(()));
                        match model.entries[&key].older.is_some() {
                            true => model.drop_older(key),
                            false => model.fail(key),
                        }
                    }
                }
            }
            _ => {
                if let Some(probe) = model.ready(key).cloned() {
                    let calls = probe.calls.get();
                    let answer = cache.call_ready(&key, step).into_inner();
                    assert_eq!(answer, Ok(step));
                    assert_eq!(probe.calls.get(), calls + 1);
                    model.unready(key, State::Due);
                }
            }
        }
        assert_eq!(
            wakes.get() - before,
            expected_wakes,
            "seed {seed} step {step}"
        );
        model.check(&mut cache, seed % 2 == 0);
    }
}

/// A cache with these services under the keys 0, 1, ….
fn cache_of(probes: &[Rc<Probe>]) -> Cache {
    let mut cache = Cache::new();
    for (key, probe) in probes.iter().enumerate() {
        cache.push(key as u32, probe.service());
    }
    cache
}

fn probes(count: usize, mood: Mood) -> Vec<Rc<Probe>> {
    (0..count).map(|_| Probe::new(mood)).collect()
}

#[test]
fn only_woken_services_are_polled() {
    let wakes = WakeCount::new();
    let all = probes(200, Mood::Busy);
    let mut cache = cache_of(&all);
    assert_eq!(settle(&mut cache, &wakes), (vec![], false));
    all.iter()
        .for_each(|probe| assert_eq!(probe.take_polls(), 1));

    all[17].mood.set(Mood::Ready);
    all[17].wake();
    assert_eq!(wakes.get(), 1);
    all[18].wake();
    assert_eq!(wakes.get(), 1, "the task has been woken already");
    assert_eq!(settle(&mut cache, &wakes), (vec![], false));
    for (key, probe) in all.iter().enumerate() {
        assert_eq!(probe.take_polls(), u32::from(key == 17 || key == 18));
    }

    // A called service is polled, once.
    assert_eq!(cache.call_ready(&17, 1).into_inner(), Ok(1));
    assert_eq!(settle(&mut cache, &wakes), (vec![], false));
    assert_eq!(settle(&mut cache, &wakes), (vec![], false));
    let polls: u32 = all.iter().map(|probe| probe.take_polls()).sum();
    assert_eq!(polls, 1);
    assert_eq!(lens(&cache), (1, 199));
}

#[test]
fn one_poll_is_bounded_and_yields() {
    let wakes = WakeCount::new();
    let all = probes(600, Mood::Ready);
    let mut cache = cache_of(&all);
    for (polled, woken) in [(256, 1), (512, 2)] {
        assert!(poll(&mut cache, &wakes).is_pending());
        assert_eq!(lens(&cache), (polled, 600 - polled));
        assert_eq!(wakes.get(), woken);
    }
    assert_eq!(poll(&mut cache, &wakes), Poll::Ready(Ok(())));
    assert_eq!(wakes.get(), 2);
    all.iter()
        .for_each(|probe| assert_eq!(probe.take_polls(), 1));
}

#[test]
fn self_waking_service_causes_no_loop() {
    let wakes = WakeCount::new();
    let all = probes(2, Mood::Busy);
    all[0].on_poll.set(OnPoll::WakeItself);
    let mut cache = cache_of(&all);
    for round in 1..4 {
        assert!(poll(&mut cache, &wakes).is_pending());
        assert_eq!(all[0].take_polls(), 1);
        assert_eq!(wakes.get(), round, "there is more to do");
    }
    assert_eq!(all[1].take_polls(), 1);
}

#[test]
fn self_waking_services_take_turns() {
    let probes = probes(600, Mood::Busy);
    for probe in &probes {
        probe.on_poll.set(OnPoll::WakeItself);
    }
    let mut cache = cache_of(&probes);
    let wakes = WakeCount::new();
    for _ in 0..30 {
        assert!(poll(&mut cache, &wakes).is_pending());
    }
    let polls: Vec<u32> = probes.iter().map(|probe| probe.take_polls()).collect();
    let (least, most) = (polls.iter().min().unwrap(), polls.iter().max().unwrap());
    assert!(least + 2 >= *most, "from {least} to {most} times");
}

#[test]
fn last_polling_task_is_woken() {
    let (first, second) = (WakeCount::new(), WakeCount::new());
    let all = probes(1, Mood::Busy);
    let mut cache = cache_of(&all);
    assert!(poll(&mut cache, &first).is_pending());
    assert!(poll(&mut cache, &second).is_pending());
    all[0].wake();
    assert_eq!((first.get(), second.get()), (0, 1));
    assert!(poll(&mut cache, &first).is_pending());
    assert!(poll(&mut cache, &first).is_pending());
    all[0].wake();
    assert_eq!((first.get(), second.get()), (1, 1));
}

#[test]
fn stale_waker_spares_the_next_in_its_slot() {
    let wakes = WakeCount::new();
    let old = probes(1, Mood::Busy);
    let mut cache = cache_of(&old);
    assert!(poll(&mut cache, &wakes).is_pending());
    // Woken before it leaves, and again after.
    old[0].wake();
    assert!(cache.evict(&0));
    assert!(!old[0].is_alive.get());
    let new = Probe::new(Mood::Busy);
    cache.push(7, new.service());
    assert!(poll(&mut cache, &wakes).is_pending());
    assert_eq!(new.take_polls(), 1);
    let before = wakes.get();
    old[0].wake();
    assert_eq!(wakes.get(), before);
    assert!(poll(&mut cache, &wakes).is_pending());
    assert_eq!(new.take_polls(), 0);

    // The same if the wake-up is listed when the slot is reused.
    new.wake();
    assert!(cache.evict(&7));
    let third = Probe::new(Mood::Busy);
    cache.push(8, third.service());
    assert!(poll(&mut cache, &wakes).is_pending());
    assert!(poll(&mut cache, &wakes).is_pending());
    assert_eq!(third.take_polls(), 1);
}

#[test]
fn dropped_cache_wakes_no_task() {
    let wakes = WakeCount::new();
    let all = probes(2, Mood::Busy);
    let mut cache = cache_of(&all);
    assert!(poll(&mut cache, &wakes).is_pending());
    drop(cache);
    assert!(all.iter().all(|probe| !probe.is_alive.get()));
    all.iter().for_each(|probe| probe.wake());
    assert_eq!(wakes.get(), 0);
}

/// A service that wakes its waiter when it is dropped, as a channel does.
#[derive(Debug)]
struct Farewell(Option<Waker>);

impl Service<()> for Farewell {
    type Response = ();
    type Error = Failure;
    type Future = Ready<Result<(), Failure>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.0 = Some(cx.waker().clone());
        Poll::Pending
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

#[test]
fn wake_during_drop_reaches_no_task() {
    let wakes = WakeCount::new();
    let mut cache = ReadyCache::new();
    cache.push(0, Farewell(None));
    cache.push(1, Farewell(None));
    assert!(wakes.enter(|cx| cache.poll_pending(cx)).is_pending());
    cache.evict(&0);
    cache.push(1, Farewell(None));
    drop(cache);
    assert_eq!(wakes.get(), 0);
}

#[test]
fn panic_costs_only_its_own_service() {
    let wakes = WakeCount::new();
    let all = probes(5, Mood::Ready);
    all[2].on_poll.set(OnPoll::Panic);
    let mut cache = cache_of(&all);
    let polled = catch_unwind(AssertUnwindSafe(|| settle(&mut cache, &wakes)));
    assert!(polled.is_err());
    assert_eq!(cache.len(), 4);
    assert!(!all[2].is_alive.get());
    assert_eq!(settle(&mut cache, &wakes), (vec![], true));
    assert_eq!(lens(&cache), (4, 0));

    // Panics in a check, and in a call.
    all[0].on_poll.set(OnPoll::Panic);
    let act = || wakes.enter(|cx| cache.check_ready(cx, &0).ok());
    assert!(catch_unwind(AssertUnwindSafe(act)).is_err());
    all[1].on_poll.set(OnPoll::Panic);
    let act = || cache.call_ready(&1, 0);
    assert!(catch_unwind(AssertUnwindSafe(act)).is_err());
    assert_eq!(lens(&cache), (2, 0));
    assert!(cache.get_ready(&0).is_none() && cache.get_ready(&1).is_none());
    for key in [3, 4] {
        assert_eq!(cache.call_ready(&key, key).into_inner(), Ok(key));
    }
    // A key that lost its service can be used again.
    cache.push(2, Probe::new(Mood::Ready).service());
    assert_eq!(settle(&mut cache, &wakes), (vec![], true));
    assert_eq!(lens(&cache), (3, 0));
}

#[test]
fn old_service_serves_until_replaced() {
    let wakes = WakeCount::new();
    let (old, new) = (Probe::new(Mood::Ready), Probe::new(Mood::Busy));
    let mut cache = Cache::new();
    cache.push(0, old.service());
    assert_eq!(settle(&mut cache, &wakes), (vec![], true));
    cache.push(0, new.service());
    assert_eq!(settle(&mut cache, &wakes), (vec![], false));
    assert_eq!(lens(&cache), (1, 1));
    assert!(cache.pending_contains(&0));

    new.mood.set(Mood::Ready);
    new.wake();
    assert_eq!(settle(&mut cache, &wakes), (vec![], true));
    assert_eq!(lens(&cache), (1, 0));
    assert!(!old.is_alive.get());
    cache.call_ready(&0, 1).into_inner().unwrap();
    assert_eq!((old.calls.get(), new.calls.get()), (0, 1));

    // If a replacement fails, the old service stays.
    assert_eq!(settle(&mut cache, &wakes), (vec![], true));
    cache.push(0, Probe::new(Mood::Broken).service());
    assert_eq!(settle(&mut cache, &wakes), (vec![0], true));
    cache.call_ready(&0, 1).into_inner().unwrap();
    assert_eq!(settle(&mut cache, &wakes), (vec![], true));
    assert_eq!(lens(&cache), (1, 0));
    assert_eq!(new.calls.get(), 2);
}

/// A cache whose key 0 has a service that was ready, and a busy replacement.
fn replacing(wakes: &WakeCount) -> (Cache, [Rc<Probe>; 2]) {
    let [old, new] = [Mood::Ready, Mood::Busy].map(Probe::new);
    let mut cache = Cache::new();
    cache.push(0, old.service());
    assert_eq!(settle(&mut cache, wakes), (vec![], true));
    cache.push(0, new.service());
    assert_eq!(settle(&mut cache, wakes), (vec![], false));
    (cache, [old, new])
}

#[test]
fn replaced_service_serves_after_a_call() {
    let wakes = WakeCount::new();
    let (mut cache, [old, new]) = replacing(&wakes);
    for calls in 1..4 {
        cache.call_ready(&0, 1).into_inner().unwrap();
        assert_eq!(lens(&cache), (0, 2));
        assert!(cache.get_ready(&0).is_none());
        assert_eq!(settle(&mut cache, &wakes), (vec![], false));
        assert_eq!((old.calls.get(), lens(&cache)), (calls, (1, 1)));
    }
    // A service that was called and not polled since is replaced too.
    cache.call_ready(&0, 1).into_inner().unwrap();
    new.mood.set(Mood::Ready);
    new.wake();
    assert_eq!(settle(&mut cache, &wakes), (vec![], true));
    assert_eq!((lens(&cache), old.is_alive.get()), ((1, 0), false));
}

#[test]
fn replaced_service_serves_after_being_busy() {
    let wakes = WakeCount::new();
    let (mut cache, [old, new]) = replacing(&wakes);
    old.mood.set(Mood::Busy);
    assert_eq!(wakes.enter(|cx| cache.check_ready(cx, &0)), Ok(false));
    assert_eq!(settle(&mut cache, &wakes), (vec![], false));
    assert_eq!((lens(&cache), old.is_alive.get()), ((0, 2), true));
    old.mood.set(Mood::Ready);
    old.wake();
    assert_eq!(settle(&mut cache, &wakes), (vec![], false));
    cache.call_ready(&0, 1).into_inner().unwrap();
    assert_eq!(old.calls.get(), 1);

    // It waits for a wake-up when the new one becomes ready.
    old.mood.set(Mood::Busy);
    assert_eq!(settle(&mut cache, &wakes), (vec![], false));
    new.mood.set(Mood::Ready);
    new.wake();
    assert_eq!(settle(&mut cache, &wakes), (vec![], true));
    assert_eq!((lens(&cache), old.is_alive.get()), ((1, 0), false));
}

#[test]
fn push_keeps_the_called_service() {
    let wakes = WakeCount::new();
    for mood in [Mood::Ready, Mood::Busy] {
        let [old, new] = [Mood::Ready, Mood::Busy].map(Probe::new);
        let mut cache = cache_of(std::slice::from_ref(&old));
        assert_eq!(settle(&mut cache, &wakes), (vec![], true));
        cache.call_ready(&0, 1).into_inner().unwrap();
        old.mood.set(mood);
        if mood == Mood::Busy {
            assert_eq!(settle(&mut cache, &wakes), (vec![], false));
        }
        cache.push(0, new.service());
        assert_eq!((lens(&cache), old.is_alive.get()), ((0, 2), true));
        if mood == Mood::Busy {
            old.mood.set(Mood::Ready);
            old.wake();
        }
        assert_eq!(settle(&mut cache, &wakes), (vec![], false));
        cache.call_ready(&0, 1).into_inner().unwrap();
        assert_eq!((old.calls.get(), new.calls.get()), (2, 0));
    }
}

#[test]
fn unproven_replacement_is_dropped() {
    let wakes = WakeCount::new();
    let (mut cache, [old, second]) = replacing(&wakes);
    let third = Probe::new(Mood::Busy);
    cache.push(0, third.service());
    let alive = [&old, &second, &third].map(|probe| probe.is_alive.get());
    assert_eq!((alive, lens(&cache)), ([true, false, true], (1, 1)));
    cache.call_ready(&0, 1).into_inner().unwrap();
    assert_eq!(settle(&mut cache, &wakes), (vec![], false));

    // The old service fails, and the third one remains.
    old.mood.set(Mood::Broken);
    let found = wakes.enter(|cx| cache.check_ready(cx, &0));
    assert_eq!(found, Err(Failed(0, BROKEN)));
    assert_eq!(lens(&cache), (0, 1));
    third.mood.set(Mood::Ready);
    third.wake();
    assert_eq!(settle(&mut cache, &wakes), (vec![], true));
    cache.call_ready(&0, 1).into_inner().unwrap();

    let (mut cache, both) = replacing(&wakes);
    cache.call_ready(&0, 1).into_inner().unwrap();
    assert!(cache.evict(&0));
    assert!(cache.is_empty() && both.iter().all(|probe| !probe.is_alive.get()));
}

#[test]
fn calling_a_missing_key_panics() {
    let mut cache = Cache::new();
    cache.push(0, Probe::new(Mood::Ready).service());
    let (file, line) = panics_at(|| drop(cache.call_ready(&0, 0)));
    assert_eq!((file.as_str(), line), (file!(), line!() - 1));
    let (file, line) = panics_at(|| drop(cache.call_ready_index(0, 0)));
    assert_eq!((file.as_str(), line), (file!(), line!() - 1));
    let found = WakeCount::new().enter(|cx| cache.check_ready_index(cx, 3));
    assert_eq!(found, Ok(false));
    assert_eq!(lens(&cache), (0, 1));
}

#[test]
fn failure_has_key_and_error() {
    let failed = Failed("ada", BROKEN);
    assert_eq!(failed.to_string(), r#"the service "ada" failed"#);
    let boxed = BoxError::from(failed);
    let source = boxed.source().unwrap();
    assert_eq!(source.downcast_ref(), Some(&BROKEN));
    assert!(campanile::error::find::<Failure>(&Failed(1, BROKEN)).is_some());
}

#[test]
fn key_is_found_by_its_borrowed_form() {
    let wakes = WakeCount::new();
    let mut cache: ReadyCache<String, Endpoint, u32> = ReadyCache::default();
    cache.push("ada".to_owned(), Probe::new(Mood::Ready).service());
    assert!(cache.pending_contains("ada"));
    assert!(wakes.enter(|cx| cache.poll_pending(cx)).is_ready());
    assert_eq!(
        format!("{cache:?}"),
        r#"ReadyCache { ready: ["ada"], pending: [] }"#
    );
    assert_eq!(cache.get_ready("ada").unwrap().0, 0);
    assert!(cache.evict("ada"));
    assert!(cache.is_empty());
}

#[test]
fn cache_is_send_if_its_services_are() {
    fn send_and_sync<T: Send + Sync>() {}
    send_and_sync::<ReadyCache<u32, u32, Rc<()>>>();
}

/// No wake-up from another thread is lost.
#[test]
fn no_wake_up_is_lost() {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use std::sync::{Arc, Mutex};

    /// Ready once for each token that a thread adds.
    struct Fed(Arc<(AtomicU32, Mutex<Option<Waker>>)>);

    impl Service<()> for Fed {
        type Response = ();
        type Error = Failure;
        type Future = Ready<Result<(), Failure>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
            let (tokens, waker) = &*self.0;
            *waker.lock().unwrap() = Some(cx.waker().clone());
            match tokens.load(SeqCst) {
                0 => Poll::Pending,
                _ => Poll::Ready(Ok(())),
            }
        }

        fn call(&mut self, (): ()) -> Self::Future {
            self.0.0.fetch_sub(1, SeqCst);
            ready(Ok(()))
        }
    }

    const TOKENS: u32 = if cfg!(miri) { 20 } else { 2_000 };
    let mut cache = ReadyCache::new();
    let threads: Vec<_> = (0..3)
        .map(|key| {
            let fed = Arc::new((AtomicU32::new(0), Mutex::new(None::<Waker>)));
            cache.push(key, Fed(fed.clone()));
            std::thread::spawn(move || {
                for n in 0..TOKENS {
                    fed.0.fetch_add(1, SeqCst);
                    let waker = fed.1.lock().unwrap().take();
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                    if n % 16 == 0 {
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let mut calls = 0;
    let run = std::future::poll_fn(|cx| {
        loop {
            let polled = cache.poll_pending(cx);
            while cache.ready_len() > 0 {
                let _ = cache.call_ready_index(0, ()).into_inner();
                calls += 1;
            }
            if calls == 3 * TOKENS {
                return Poll::Ready(());
            }
            if polled.is_pending() && cache.poll_pending(cx).is_pending() && cache.ready_len() == 0
            {
                return Poll::Pending;
            }
        }
    });
    futures::executor::block_on(run);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

async fn services_become_ready_one_by_one<H: Host>(rt: On<H>) {
    let mut cache = ReadyCache::new();
    let mut handles: Vec<_> = (0..10)
        .map(|key| {
            let (service, handle) = common::mock::<u32, u32>();
            handle.set_ready(false);
            cache.push(key, service);
            handle
        })
        .collect();
    let settled = rt.start(async move {
        let mut failed = Vec::new();
        while let Err(Failed(key, error)) = poll_fn(|cx| cache.poll_pending(cx)).await {
            failed.push((key, error));
        }
        (cache, failed)
    });
    common::until(|| handles.iter().all(common::Handle::is_waited_for)).await;
    for (n, handle) in handles.iter().enumerate() {
        common::yield_now().await;
        match n {
            3 => handle.fail(BROKEN),
            _ => handle.set_ready(true),
        }
    }
    let (mut cache, failed) = settled.await.unwrap();
    assert_eq!(failed, [(3, BROKEN)]);
    assert_eq!((cache.ready_len(), cache.pending_len()), (9, 0));
    for key in (0..10).filter(|key| *key != 3) {
        let response = cache.call_ready(&key, 1);
        let (request, responder) = handles[key].next().await;
        responder.send(request + 1);
        assert_eq!(response.await, Ok(2));
    }
    // The called services wait to be polled again.
    let again = rt.start(async move {
        poll_fn(|cx| cache.poll_pending(cx)).await.unwrap();
        cache
    });
    assert_eq!(again.await.unwrap().ready_len(), 9);
}

on_every_runtime! { services_become_ready_one_by_one }
