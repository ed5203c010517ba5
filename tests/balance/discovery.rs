//! Endpoints come, go and are replaced.

use super::*;

#[test]
fn removed_endpoint_is_not_called() {
    let wakes = WakeCount::new();
    let (feed, mut balance) = fed();
    let sites = sites(&[1, 9]);
    insert(&feed, 0, &sites[0]);
    insert(&feed, 1, &sites[1]);
    found(wakes.poll_ready(&mut balance)).unwrap();
    remove(&feed, 0);
    found(wakes.poll_ready(&mut balance)).unwrap();
    assert_eq!((balance.len(), sites[0].alive.get()), (1, 0));
    balance.call(1).now_or_never().unwrap().unwrap();
    assert_eq!(calls(&sites), [0, 1]);

    // With no endpoint left, the caller waits.
    found(wakes.poll_ready(&mut balance)).unwrap();
    remove(&feed, 1);
    assert!(wakes.poll_ready(&mut balance).is_pending());
    assert!(balance.is_empty());
    let before = wakes.get();
    insert(&feed, 2, &sites[0]);
    assert!(wakes.get() > before);
    assert_eq!(answer(&mut balance), Ok(1));
    assert_eq!(calls(&sites), [1, 1]);
}

#[test]
fn choice_does_not_pass_to_a_newcomer() {
    let wakes = WakeCount::new();
    let (feed, mut balance) = fed();
    let sites = sites(&[1, 9]);
    insert(&feed, 0, &sites[0]);
    insert(&feed, 1, &sites[1]);
    found(wakes.poll_ready(&mut balance)).unwrap();
    remove(&feed, 0);
    let newcomer = Site::new(Mood::Busy, 1);
    insert(&feed, 2, &newcomer);
    found(wakes.poll_ready(&mut balance)).unwrap();
    assert_eq!((newcomer.polls.get(), balance.ready_len()), (1, 1));
    balance.call(1).now_or_never().unwrap().unwrap();
    assert_eq!(calls(&sites), [0, 1]);
}

#[test]
fn ready_newcomer_causes_a_new_choice() {
    let wakes = WakeCount::new();
    let (feed, mut balance) = fed();
    let sites = sites(&[1, 9, 20]);
    insert(&feed, 0, &sites[0]);
    insert(&feed, 1, &sites[1]);
    found(wakes.poll_ready(&mut balance)).unwrap();
    remove(&feed, 0);
    insert(&feed, 2, &sites[2]);
    found(wakes.poll_ready(&mut balance)).unwrap();
    balance.call(1).now_or_never().unwrap().unwrap();
    assert_eq!(calls(&sites), [0, 1, 0]);
}

#[test]
fn choice_survives_changes_to_others() {
    for seed in 0..20 {
        let wakes = WakeCount::new();
        let (feed, balance) = fed();
        let mut balance = balance.seed(SplitMix64::new(seed));
        let sites = sites(&[1; 6]);
        (0..)
            .zip(&sites)
            .for_each(|(n, site)| insert(&feed, n, site));
        found(wakes.poll_ready(&mut balance)).unwrap();
        assert!(sites.iter().all(|site| site.polls.get() == 1));
        // The next poll asks the chosen one alone.
        found(wakes.poll_ready(&mut balance)).unwrap();
        let chosen = sites.iter().position(|site| site.polls.get() == 2);
        let chosen = chosen.expect("one was chosen");
        for key in (0..sites.len()).filter(|key| *key != chosen) {
            remove(&feed, key as u32);
            insert(&feed, 100 + key as u32, &Site::new(Mood::Busy, 0));
            let before = sites[chosen].polls.get();
            found(wakes.poll_ready(&mut balance)).unwrap();
            assert_eq!(sites[chosen].polls.get(), before + 1, "{seed} {key}");
        }
        balance.call(1).now_or_never().unwrap().unwrap();
        assert_eq!(sites[chosen].calls.get(), 1, "{seed}");
    }
}

#[test]
fn replaced_endpoint_serves_meanwhile() {
    let wakes = WakeCount::new();
    let (feed, mut balance) = fed();
    let (old, new) = (Site::new(Mood::Ready, 1), Site::new(Mood::Busy, 1));
    insert(&feed, 0, &old);
    found(wakes.poll_ready(&mut balance)).unwrap();
    insert(&feed, 0, &new);
    found(wakes.poll_ready(&mut balance)).unwrap();
    assert_eq!((balance.len(), balance.ready_len()), (2, 1));
    new.become_(Mood::Ready);
    found(wakes.poll_ready(&mut balance)).unwrap();
    balance.call(1).now_or_never().unwrap().unwrap();
    assert_eq!((balance.len(), old.alive.get()), (1, 0));
    assert_eq!((old.calls.get(), new.calls.get()), (0, 1));
}

#[test]
fn replaced_endpoint_keeps_working() {
    let wakes = WakeCount::new();
    let (feed, mut balance) = fed();
    let (old, new) = (Site::new(Mood::Ready, 1), Site::new(Mood::Busy, 1));
    insert(&feed, 0, &old);
    // The old endpoint has just been called.
    answer(&mut balance).unwrap();
    insert(&feed, 0, &new);
    for calls in 2..4 {
        answer(&mut balance).unwrap();
        assert_eq!(old.calls.get(), calls);
    }
    // The old endpoint is busy and waits for a wake-up.
    old.mood.set(Mood::Busy);
    assert!(wakes.poll_ready(&mut balance).is_pending());
    assert_eq!((balance.len(), old.alive.get()), (2, 1));
    // Another replacement arrives in the meantime.
    let newer = Site::new(Mood::Busy, 1);
    insert(&feed, 0, &newer);
    assert!(wakes.poll_ready(&mut balance).is_pending());
    assert_eq!((balance.len(), new.alive.get()), (2, 0));
    let woken = wakes.get();
    old.become_(Mood::Ready);
    assert!(wakes.get() > woken);
    answer(&mut balance).unwrap();
    newer.become_(Mood::Ready);
    answer(&mut balance).unwrap();
    assert_eq!((balance.len(), old.alive.get()), (1, 0));
    assert_eq!((old.calls.get(), newer.calls.get()), (4, 1));
}

#[test]
fn failed_replaced_endpoint_is_dropped() {
    let wakes = WakeCount::new();
    let (feed, mut balance) = fed();
    let (old, new) = (Site::new(Mood::Ready, 1), Site::new(Mood::Busy, 1));
    insert(&feed, 0, &old);
    answer(&mut balance).unwrap();
    insert(&feed, 0, &new);
    old.mood.set(Mood::Broken);
    assert!(wakes.poll_ready(&mut balance).is_pending());
    assert_eq!((balance.len(), old.alive.get()), (1, 0));
    new.become_(Mood::Ready);
    answer(&mut balance).unwrap();
    // A removal drops both.
    insert(&feed, 0, &Site::new(Mood::Busy, 1));
    answer(&mut balance).unwrap();
    remove(&feed, 0);
    assert!(wakes.poll_ready(&mut balance).is_pending());
    assert_eq!((balance.len(), new.alive.get()), (0, 0));
}

#[test]
fn ended_and_empty_is_an_error() {
    let wakes = WakeCount::new();
    let mut none = listed(&[]);
    assert_eq!(
        found(wakes.poll_ready(&mut none)),
        Err(Error::NoEndpoints(NoEndpoints::new()))
    );

    let (feed, mut balance) = fed();
    assert!(
        wakes.poll_ready(&mut balance).is_pending(),
        "more endpoints may come"
    );
    let site = Site::new(Mood::Broken, 1);
    insert(&feed, 0, &site);
    drop(feed);
    assert_eq!(wakes.get(), 1);
    assert_eq!(
        found(wakes.poll_ready(&mut balance)),
        Err(Error::NoEndpoints(NoEndpoints::new()))
    );
    assert_eq!(site.alive.get(), 0);
}

#[test]
fn ended_with_endpoints_is_no_error() {
    let wakes = WakeCount::new();
    let site = Site::new(Mood::Busy, 1);
    let mut balance = listed(std::slice::from_ref(&site));
    assert!(wakes.poll_ready(&mut balance).is_pending());
    site.become_(Mood::Ready);
    assert_eq!(wakes.get(), 1);
    assert_eq!(answer(&mut balance), Ok(1));
}

#[test]
fn discovery_error_is_typed_with_its_source() {
    let (feed, mut balance) = fed();
    feed.unbounded_send(Err(BROKEN)).unwrap();
    let error = found(WakeCount::new().poll_ready(&mut balance)).unwrap_err();
    assert_eq!(error, Error::Discover(DiscoverFailed(BROKEN)));
    assert_eq!(
        error.to_string(),
        "the discovery of endpoints failed: broken"
    );
    assert_eq!(campanile::error::find(&error), Some(&BROKEN));
    let boxed = BoxError::from(error);
    assert!(boxed.is::<DiscoverFailed>());
    assert!(boxed.source().unwrap().is::<Failure>());

    type Any = Error<BoxError, BoxError>;
    let any = Any::Discover(DiscoverFailed(BROKEN.into()));
    assert!(BoxError::from(any).is::<DiscoverFailed>());
    let any = Any::Service(BROKEN.into());
    assert!(BoxError::from(any).is::<Failure>());
    let any = Any::NoEndpoints(NoEndpoints::new());
    assert!(BoxError::from(any).is::<NoEndpoints>());
}

/// Without a bound, the balancer would never yield the thread.
#[test]
fn endless_discovery_yields() {
    let wakes = WakeCount::new();
    let taken = Cell::new(0_u32);
    let site = Site::new(Mood::Ready, 1);
    let endless = futures::stream::poll_fn(|_| {
        taken.set(taken.get() + 1);
        let change = Change::Insert(taken.get() % 4, site.endpoint());
        Poll::Ready(Some(Ok::<_, Infallible>(change)))
    });
    let mut balance = Balance::with_layer(endless, Identity::new());
    for round in 1..4 {
        found(wakes.poll_ready(&mut balance)).unwrap();
        assert_eq!(taken.get(), 128 * round);
        assert_eq!(wakes.get(), round as usize, "there is more to do");
    }
    assert_eq!(balance.call(1).now_or_never().unwrap(), Ok(1));
}

#[test]
fn ended_discovery_is_not_polled_again() {
    let site = Site::new(Mood::Ready, 1);
    let mut left = Some(site.endpoint());
    let mut ended = false;
    let once = futures::stream::poll_fn(|_| {
        assert!(!ended, "polled after its end");
        ended = left.is_none();
        Poll::Ready(
            left.take()
                .map(|it| Ok::<_, Infallible>(Change::Insert(0, it))),
        )
    });
    let mut balance = Balance::with_layer(once, Identity::new());
    assert_eq!(answer(&mut balance), Ok(1));
    assert_eq!(answer(&mut balance), Ok(1));
}

/// Random changes, moods and calls. The balancer never calls an endpoint that is not ready, was removed or has the
/// highest load, and it is ready exactly when some endpoint is.
#[test]
fn random_changes_keep_the_invariants() {
    for seed in 0..8 {
        random_walk(seed);
    }
}

fn random_walk(seed: u64) {
    let mut rng = SplitMix64::new(seed);
    let mut below = move |n: u64| rng.next_range(0..n);
    let (feed, mut balance) = fed();
    balance = balance.seed(SplitMix64::new(seed));
    let wakes = WakeCount::new();
    // What discovery has reported: each key has one service, and perhaps the ready one that it is to replace.
    let mut known: BTreeMap<u32, Vec<Rc<Site>>> = BTreeMap::new();
    let mut removed: Vec<Rc<Site>> = Vec::new();
    let (mut called, mut waited) = (0, 0);
    for step in 0..3_000 {
        let key = below(8) as u32;
        match below(10) {
            0 => {
                let site = Site::new(Mood::Ready, below(1_000) as u32);
                if below(2) == 0 {
                    site.mood.set(Mood::Busy);
                }
                insert(&feed, key, &site);
                known.entry(key).or_default().push(site);
            }
            1 => {
                remove(&feed, key);
                removed.extend(known.remove(&key).into_iter().flatten());
            }
            2..=4 => {
                let mood = [Mood::Ready, Mood::Busy, Mood::Broken][below(12) as usize % 3];
                let mood = if mood == Mood::Broken && below(4) > 0 {
                    Mood::Ready
                } else {
                    mood
                };
                if let Some(site) = known.get(&key).and_then(|sites| sites.last()) {
                    site.become_(mood);
                }
            }
            _ => {
                let polled = wakes.poll_ready(&mut balance);
                // A dropped instance has failed or was replaced.
                for sites in known.values_mut() {
                    sites.retain(|site| site.alive.get() > 0);
                }
                known.retain(|_, sites| !sites.is_empty());
                assert!(removed.iter().all(|site| site.alive.get() == 0));
                let everybody: Vec<_> = known.values().flatten().cloned().collect();
                assert_eq!(balance.len(), everybody.len(), "seed {seed} step {step}");
                let may: BTreeSet<u32> = everybody
                    .iter()
                    .filter(|site| site.mood.get() == Mood::Ready)
                    .map(|site| site.load.get())
                    .collect();
                if polled.is_pending() {
                    assert!(may.is_empty(), "seed {seed} step {step}");
                    waited += 1;
                    continue;
                }
                assert_eq!(polled, Poll::Ready(Ok(())));
                let before: Vec<u32> = calls(&everybody);
                balance.call(step).now_or_never().unwrap().unwrap();
                let changed: Vec<_> = (0..before.len())
                    .filter(|at| before[*at] != everybody[*at].calls.get())
                    .collect();
                assert_eq!(changed.len(), 1);
                let chosen = &everybody[changed[0]];
                assert_eq!(chosen.mood.get(), Mood::Ready);
                // Any other ready endpoint may have been drawn together with the chosen one.
                if balance.ready_len() > 0 {
                    called += 1;
                    let others = everybody.iter().filter(|site| !Rc::ptr_eq(site, chosen));
                    assert!(
                        others.map(|site| site.load.get()).max() >= Some(chosen.load.get()),
                        "seed {seed} step {step}"
                    );
                }
            }
        }
    }
    assert!(called > 300 && waited > 50, "{called} {waited}");
}
