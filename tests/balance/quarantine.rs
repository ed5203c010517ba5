//! Which services are quarantined, and when they come back.

use super::*;

type Maker = ExponentialBackoffMaker<SplitMix64, ManualTimer>;

/// 100 ms, doubling to 400 ms, without jitter.
fn layer(timer: &ManualTimer) -> QuarantineLayer<ManualTimer, Maker> {
    let rng = SplitMix64::new(1);
    let maker = Maker::with_timer(100 * MS, 400 * MS, Jitter::None, rng, timer.clone()).unwrap();
    QuarantineLayer::with_timer(timer.clone()).backoff(maker)
}

#[test]
fn failed_service_returns_after_backoff() {
    let (timer, wakes) = (ManualTimer::new(), WakeCount::new());
    let site = Site::new(Mood::Broken, 3);
    let mut service = layer(&timer).layer(site.endpoint());
    let mut woken = 0;
    for (round, wait) in [100, 200, 400, 400].into_iter().enumerate() {
        assert!(wakes.poll_ready(&mut service).is_pending());
        assert!(service.is_set_aside());
        assert_eq!(service.load(), 3);
        assert_eq!(site.alive.get(), 1, "the failed instance is gone");
        timer.advance(wait * MS - Duration::from_nanos(1));
        assert!(wakes.poll_ready(&mut service).is_pending());
        assert_eq!((wakes.get(), site.polls.get()), (woken, round as u32 + 1));
        timer.advance(Duration::from_nanos(1));
        woken += 1;
        assert_eq!(wakes.get(), woken);
        assert!(!service.is_set_aside());
    }
    site.mood.set(Mood::Ready);
    assert_eq!(answer(&mut service), Ok(1));
    assert_eq!((timer.armed(), site.alive.get()), (0, 2));
}

#[test]
fn success_resets_the_backoff() {
    let (timer, wakes) = (ManualTimer::new(), WakeCount::new());
    let site = Site::new(Mood::Broken, 1);
    let mut service = layer(&timer).layer(site.endpoint());
    let waits = |service: &mut Quarantine<_, _, Maker>| {
        site.mood.set(Mood::Broken);
        assert!(wakes.poll_ready(service).is_pending());
        let start = campanile::Timer::now(&timer);
        let wait = timer
            .next_deadline()
            .unwrap()
            .saturating_duration_since(start);
        timer.advance(wait);
        site.mood.set(Mood::Ready);
        wait.as_millis()
    };
    assert_eq!(waits(&mut service), 100);
    // It fails once when ready but not yet called, then right after a call.
    found(wakes.poll_ready(&mut service)).unwrap();
    assert_eq!(waits(&mut service), 200);
    assert_eq!(answer(&mut service), Ok(1));
    assert_eq!(waits(&mut service), 400);
    // A success followed by a second readiness resets the backoff.
    assert_eq!(answer(&mut service), Ok(1));
    assert_eq!(answer(&mut service), Ok(1));
    assert_eq!(waits(&mut service), 100);
}

#[test]
fn consecutive_failures_quarantine() {
    let (timer, wakes) = (ManualTimer::new(), WakeCount::new());
    let site = Site::new(Mood::Ready, 1);
    let mut service = layer(&timer).consecutive_failures(3).layer(site.endpoint());
    let run = |service: &mut Quarantine<_, _, Maker>, results: &[bool]| {
        for fails in results {
            site.fails.set(*fails);
            assert_eq!(answer(service).is_err(), *fails);
        }
    };
    run(
        &mut service,
        &[true, true, false, true, true, false, true, true],
    );
    assert!(!service.is_set_aside());
    run(&mut service, &[true]);
    let aside = |service: &mut Quarantine<_, _, Maker>, millis: u32| {
        assert!(service.is_set_aside());
        assert!(wakes.poll_ready(service).is_pending());
        timer.advance(millis * MS - Duration::from_nanos(1));
        assert!(wakes.poll_ready(service).is_pending());
        timer.advance(Duration::from_nanos(1));
        assert!(!service.is_set_aside());
    };
    aside(&mut service, 100);
    // The next failure alone is enough now, and the wait is longer.
    run(&mut service, &[true]);
    aside(&mut service, 200);
    // A success restores the initial state.
    run(&mut service, &[false, true, true]);
    assert!(!service.is_set_aside());
    run(&mut service, &[true]);
    aside(&mut service, 100);
}

#[test]
fn backoff_begins_with_the_failed_response() {
    let timer = ManualTimer::new();
    let mut service = layer(&timer)
        .consecutive_failures(2)
        .layer(service_fn(|_: u32| ready(Err::<u32, _>(BROKEN))));
    for _ in 0..2 {
        assert_eq!(answer(&mut service), Err(BROKEN));
    }
    timer.advance(60 * MS);
    assert!(WakeCount::new().poll_ready(&mut service).is_pending());
    timer.advance(40 * MS);
    assert_eq!(answer(&mut service), Err(BROKEN));
    // Nobody polls for an hour, longer than the backoff.
    timer.advance(3_600_000 * MS);
    assert_eq!(answer(&mut service), Err(BROKEN));
}

#[test]
fn success_restores_the_failure_allowance() {
    let (timer, wakes) = (ManualTimer::new(), WakeCount::new());
    let (service, mut handle) = mock::<u32, u32>();
    let mut service = layer(&timer).consecutive_failures(2).layer(service);
    let mut respond = |service: &mut Quarantine<Mock<u32, u32>, _, Maker>, results: &[bool]| {
        let call = |_| {
            found(wakes.poll_ready(service)).unwrap();
            service.call(1)
        };
        let mut responses: Vec<_> = results.iter().map(call).collect();
        for (works, response) in results.iter().zip(&mut responses) {
            let (_, responder) = handle.try_next().unwrap();
            match works {
                true => responder.send(1),
                false => responder.fail(BROKEN),
            }
            assert_eq!(found(wakes.poll(response)).is_ok(), *works);
        }
    };
    respond(&mut service, &[false, false]);
    assert!(wakes.poll_ready(&mut service).is_pending());
    timer.advance(100 * MS);
    // Both are in flight together, with no readiness poll in between.
    respond(&mut service, &[true, false]);
    assert!(!service.is_set_aside());
    respond(&mut service, &[false]);
    assert!(service.is_set_aside());
}

#[test]
fn old_instance_responses_do_not_count() {
    let timer = ManualTimer::new();
    let wakes = WakeCount::new();
    let (service, mut handle) = mock::<u32, u32>();
    let mut service = layer(&timer).consecutive_failures(1).layer(service);
    let mut call = || {
        found(wakes.poll_ready(&mut service)).unwrap();
        service.call(1)
    };
    let (mut first, mut second, mut third) = (call(), call(), call());
    handle.try_next().unwrap().1.fail(BROKEN);
    assert_eq!(wakes.poll(&mut first), Poll::Ready(Err(BROKEN)));
    assert!(wakes.poll_ready(&mut service).is_pending());
    timer.advance(100 * MS);
    found(wakes.poll_ready(&mut service)).unwrap();
    // Neither the failure nor the success of the old instance says anything about the new one.
    handle.try_next().unwrap().1.fail(BROKEN);
    assert_eq!(wakes.poll(&mut second), Poll::Ready(Err(BROKEN)));
    assert!(!service.is_set_aside());
    handle.try_next().unwrap().1.send(1);
    assert_eq!(wakes.poll(&mut third), Poll::Ready(Ok(1)));
    let mut fourth = service.call(1);
    handle.try_next().unwrap().1.fail(BROKEN);
    assert_eq!(wakes.poll(&mut fourth), Poll::Ready(Err(BROKEN)));
    assert!(wakes.poll_ready(&mut service).is_pending());
    timer.advance(199 * MS);
    assert!(service.is_set_aside());
    timer.advance(MS);
    assert!(!service.is_set_aside());
}

#[test]
fn failure_classifier_is_configurable() {
    let timer = ManualTimer::new();
    let site = Site::new(Mood::Ready, 1);
    let layer = layer(&timer).consecutive_failures(1);
    // A failure that is not the endpoint's fault changes nothing.
    let ignored = |_: &Result<u32, Failure>| Outcome::Ignored;
    let mut service = layer.clone().classify(ignored).layer(site.endpoint());
    site.fails.set(true);
    assert_eq!(answer(&mut service), Err(BROKEN));
    assert!(!service.is_set_aside());
    // A response can count as a failure.
    let penalised = |_: &Result<u32, Failure>| Outcome::Penalised;
    let mut service = layer.classify(penalised).layer(site.endpoint());
    site.fails.set(false);
    assert_eq!(answer(&mut service), Ok(1));
    assert!(service.is_set_aside());
}

#[test]
fn zero_backoff_does_not_loop() {
    let (timer, wakes) = (ManualTimer::new(), WakeCount::new());
    let site = Site::new(Mood::Broken, 1);
    let rng = SplitMix64::new(1);
    let none = Maker::with_timer(Duration::ZERO, MS, Jitter::None, rng, timer.clone()).unwrap();
    let layer = QuarantineLayer::with_timer(timer.clone()).backoff(none);
    let mut service = layer.layer(site.endpoint());
    for round in 1..5 {
        assert!(wakes.poll_ready(&mut service).is_pending());
        assert_eq!((site.polls.get(), wakes.get()), (round, round as usize));
    }
    assert_eq!(timer.made(), 0);
}

#[test]
fn shed_poll_arms_no_timer() {
    let (timer, wakes) = (ManualTimer::new(), WakeCount::new());
    let site = Site::new(Mood::Broken, 1);
    let mut service = LoadShed::new(layer(&timer).layer(site.endpoint()));
    for _ in 0..2 {
        found(wakes.poll_ready(&mut service)).unwrap();
        assert!(service.call(1).now_or_never().unwrap().is_err());
    }
    assert_eq!((timer.made(), site.polls.get()), (0, 1));
    timer.advance(100 * MS);
    site.mood.set(Mood::Ready);
    assert_eq!(answer(&mut service), Ok(1));

    // The same in a balancer.
    site.mood.set(Mood::Broken);
    let list = ServiceList::new([site.endpoint()]);
    let mut service = LoadShed::new(Balance::with_layer(list, layer(&timer)));
    found(wakes.poll_ready(&mut service)).unwrap();
    assert!(service.call(1).now_or_never().unwrap().is_err());
    assert_eq!(timer.made(), 0);
    timer.advance(100 * MS);
    site.mood.set(Mood::Ready);
    assert_eq!(answer(&mut service), Ok(1));
}

/// The instance that reserved something during readiness is the one called; an unpolled clone does not keep the
/// reservation.
#[test]
fn original_serves_and_clone_is_kept() {
    use campanile::limit::ConcurrencyLimit;
    let wakes = WakeCount::new();
    for failures in [0, 2] {
        let inner = service_fn(|n: u32| ready(Ok::<_, Failure>(n)));
        let mut inner = ConcurrencyLimit::new(inner, 1);
        found(wakes.poll_ready(&mut inner)).unwrap();
        let layer = layer(&ManualTimer::new()).consecutive_failures(failures);
        let mut service = layer.layer(inner);
        assert_eq!(answer(&mut service), Ok(1));
    }
}

#[test]
fn unready_call_does_not_end_the_backoff() {
    let (timer, wakes) = (ManualTimer::new(), WakeCount::new());
    let failing = Cell::new(true);
    let inner = service_fn(|n: u32| ready(Ok::<_, Failure>(n)));
    #[derive(Clone)]
    struct Gate<'a, S>(S, &'a Cell<bool>);
    impl<S: Service<u32, Error = Failure>> Service<u32> for Gate<'_, S> {
        type Response = S::Response;
        type Error = Failure;
        type Future = S::Future;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
            Poll::Ready(if self.1.get() { Err(BROKEN) } else { Ok(()) })
        }
        fn call(&mut self, n: u32) -> S::Future {
            self.0.call(n)
        }
    }
    let mut service = layer(&timer).layer(Gate(inner, &failing));
    assert!(wakes.poll_ready(&mut service).is_pending());
    failing.set(false);
    assert_eq!(service.call(3).now_or_never().unwrap(), Ok(3));
    assert!(wakes.poll_ready(&mut service).is_pending());
    timer.advance(100 * MS);
    assert_eq!(answer(&mut service), Ok(1));
}

#[test]
fn other_endpoints_serve_meanwhile() {
    let (timer, wakes) = (ManualTimer::new(), WakeCount::new());
    let sites = sites(&[1, 9]);
    let list = ServiceList::new(sites.iter().map(Site::endpoint).collect::<Vec<_>>());
    let mut balance = Balance::with_layer(list, layer(&timer));
    assert_eq!(answer(&mut balance), Ok(1));
    assert_eq!(calls(&sites), [1, 0]);
    sites[0].mood.set(Mood::Broken);
    for _ in 0..3 {
        assert_eq!(answer(&mut balance), Ok(1));
    }
    assert_eq!(calls(&sites), [1, 3]);
    assert_eq!((balance.len(), balance.ready_len()), (2, 0));
    sites[0].mood.set(Mood::Ready);
    timer.advance(100 * MS);
    assert_eq!(answer(&mut balance), Ok(1));
    assert_eq!(calls(&sites), [2, 3]);

    // All endpoints are quarantined: the balancer waits, though discovery has ended, and is woken.
    sites.iter().for_each(|site| site.mood.set(Mood::Broken));
    assert!(wakes.poll_ready(&mut balance).is_pending());
    assert_eq!((balance.len(), wakes.get()), (2, 0));
    sites.iter().for_each(|site| site.mood.set(Mood::Ready));
    timer.advance(400 * MS);
    assert_eq!(wakes.get(), 1);
    assert_eq!(answer(&mut balance), Ok(1));
}

#[test]
fn default_backoff_is_100_ms_to_30_s() {
    let (timer, wakes) = (ManualTimer::new(), WakeCount::new());
    let site = Site::new(Mood::Broken, 1);
    let mut service = Quarantine::with_timer(site.endpoint(), timer.clone());
    let mut base = 100;
    for _ in 0..12 {
        assert!(wakes.poll_ready(&mut service).is_pending());
        let now = campanile::Timer::now(&timer);
        let wait = timer
            .next_deadline()
            .unwrap()
            .saturating_duration_since(now);
        assert!((base / 2 * MS..=base * MS).contains(&wait), "{wait:?}");
        timer.advance(wait);
        base = (base * 2).min(30_000);
    }
}

mod inserted_again {
    use super::*;

    type Kept = Balance<UnboundedReceiver<News>, u32, QuarantineLayer<ManualTimer, Maker>>;

    fn fed(failures: u32) -> (ManualTimer, UnboundedSender<News>, Kept) {
        let timer = ManualTimer::new();
        let (feed, discover) = unbounded();
        let layer = layer(&timer).consecutive_failures(failures);
        let balance = Balance::with_layer(discover, layer);
        (timer, feed, balance)
    }

    #[track_caller]
    fn is_aside(balance: &mut Kept) -> bool {
        WakeCount::new().poll_ready(balance).is_pending()
    }

    #[test]
    fn reinserted_stays_quarantined() {
        let (timer, feed, mut balance) = fed(0);
        let broken = Site::new(Mood::Broken, 1);
        insert(&feed, 0, &broken);
        assert!(is_aside(&mut balance));
        // Several times: none of them was ever ready.
        for _ in 0..3 {
            timer.advance(30 * MS);
            let again = Site::new(Mood::Broken, 1);
            insert(&feed, 0, &again);
            assert!(is_aside(&mut balance));
            assert_eq!((again.polls.get(), balance.len()), (0, 1));
        }
        timer.advance(10 * MS);
        assert!(is_aside(&mut balance));
        let works = Site::new(Mood::Ready, 1);
        insert(&feed, 0, &works);
        for _ in 0..2 {
            timer.advance(199 * MS / 2);
            assert!(is_aside(&mut balance));
        }
        timer.advance(MS);
        assert_eq!(answer(&mut balance), Ok(1));
        assert_eq!(works.calls.get(), 1);
    }

    #[test]
    fn successor_is_quarantined_too() {
        let (timer, feed, mut balance) = fed(0);
        let old = Site::new(Mood::Ready, 1);
        insert(&feed, 0, &old);
        assert_eq!(answer(&mut balance), Ok(1));
        old.mood.set(Mood::Broken);
        assert!(is_aside(&mut balance));
        let new = Site::new(Mood::Ready, 1);
        insert(&feed, 0, &new);
        timer.advance(99 * MS);
        assert!(is_aside(&mut balance));
        assert_eq!((new.polls.get(), balance.len()), (0, 2));
        timer.advance(MS);
        assert_eq!(answer(&mut balance), Ok(1));
        assert_eq!((new.calls.get(), old.alive.get()), (1, 0));
    }

    /// They say nothing about the new instance, which was never called.
    #[test]
    fn late_failures_are_the_old_instances_own() {
        let (_timer, feed, mut balance) = fed(2);
        let [old, new] = [(); 2].map(|()| Site::new(Mood::Ready, 1));
        old.fails.set(true);
        insert(&feed, 0, &old);
        let responses = [1, 2, 3].map(|n| {
            assert!(!is_aside(&mut balance));
            balance.call(n)
        });
        insert(&feed, 0, &new);
        assert!(!is_aside(&mut balance));
        assert_eq!((balance.len(), old.alive.get()), (1, 0));
        for response in responses {
            assert!(response.now_or_never().unwrap().is_err());
        }
        assert!(!is_aside(&mut balance));
        assert_eq!(answer(&mut balance), Ok(1));
        assert_eq!(new.calls.get(), 1);
    }

    #[test]
    fn old_instance_continues_its_backoff() {
        let (timer, feed, mut balance) = fed(0);
        let old = Site::new(Mood::Broken, 1);
        insert(&feed, 0, &old);
        for wait in [100, 200] {
            assert!(is_aside(&mut balance));
            timer.advance(wait * MS);
        }
        old.mood.set(Mood::Ready);
        assert!(!is_aside(&mut balance));
        // The successor is not ready, so the old instance keeps serving; then it fails again.
        let new = Site::new(Mood::Busy, 1);
        insert(&feed, 0, &new);
        assert!(!is_aside(&mut balance));
        old.mood.set(Mood::Broken);
        assert!(is_aside(&mut balance));
        old.polls.set(0);
        timer.advance(399 * MS);
        assert!(is_aside(&mut balance));
        assert_eq!(old.polls.get(), 0);
        // The successor has its own backoff, which continues from there too.
        new.become_(Mood::Broken);
        assert!(is_aside(&mut balance));
        new.polls.set(0);
        timer.advance(399 * MS);
        assert!(is_aside(&mut balance));
        assert_eq!((old.polls.get(), new.polls.get()), (1, 0));
        timer.advance(MS);
        assert!(is_aside(&mut balance));
        assert_eq!(new.polls.get(), 1);
    }

    /// The one between was never ready, so it knows nothing of the old instance's failure.
    #[test]
    fn quarantine_outlasts_an_unready_instance() {
        let (timer, feed, mut balance) = fed(0);
        let old = Site::new(Mood::Ready, 1);
        insert(&feed, 0, &old);
        assert!(!is_aside(&mut balance));
        insert(&feed, 0, &Site::new(Mood::Busy, 1));
        assert!(!is_aside(&mut balance));
        old.mood.set(Mood::Broken);
        assert!(is_aside(&mut balance));
        timer.advance(50 * MS);
        let new = Site::new(Mood::Ready, 1);
        insert(&feed, 0, &new);
        timer.advance(49 * MS);
        assert!(is_aside(&mut balance));
        assert_eq!(new.polls.get(), 0);
        timer.advance(MS);
        assert_eq!(answer(&mut balance), Ok(1));
        assert_eq!(new.calls.get(), 1);
    }

    /// Each predecessor was set aside, and the later return counts.
    #[test]
    fn longest_quarantine_of_a_key_counts() {
        let (timer, feed, mut balance) = fed(0);
        let old = Site::new(Mood::Ready, 1);
        insert(&feed, 0, &old);
        assert!(!is_aside(&mut balance));
        let between = Site::new(Mood::Busy, 1);
        insert(&feed, 0, &between);
        assert!(!is_aside(&mut balance));
        old.mood.set(Mood::Broken);
        assert!(is_aside(&mut balance));
        timer.advance(50 * MS);
        between.become_(Mood::Broken);
        assert!(is_aside(&mut balance));
        let new = Site::new(Mood::Ready, 1);
        insert(&feed, 0, &new);
        timer.advance(99 * MS);
        assert!(is_aside(&mut balance));
        assert_eq!(new.polls.get(), 0);
        timer.advance(MS);
        assert!(!is_aside(&mut balance));
    }

    /// The original may be connected already; a clone of it is not.
    #[test]
    fn original_serves_despite_quarantine() {
        struct Original(bool);
        impl Clone for Original {
            fn clone(&self) -> Self {
                Self(false)
            }
        }
        let timer = ManualTimer::new();
        let layer = layer(&timer).consecutive_failures(1);
        let make = |fails: bool| {
            let original = Original(true);
            let service = service_fn(move |_: u32| {
                let Original(is_original) = &original;
                ready(if fails {
                    Err(BROKEN)
                } else {
                    Ok(u32::from(*is_original))
                })
            });
            layer.layer(Constant::new(service, 1))
        };
        // Whether the old instance was polled after its failure.
        for is_noticed in [true, false] {
            let (mut old, mut new) = (make(true), make(false));
            assert_eq!(answer(&mut old), Err(BROKEN));
            if is_noticed {
                assert!(WakeCount::new().poll_ready(&mut old).is_pending());
            }
            new.take_over(&mut old);
            assert!(WakeCount::new().poll_ready(&mut new).is_pending());
            timer.advance(100 * MS);
            assert_eq!(answer(&mut new), Ok(1));
        }
    }

    #[test]
    fn consecutive_failures_carry_over() {
        let (timer, feed, mut balance) = fed(3);
        let send = |balance: &mut Kept, site: &Rc<Site>, fails| {
            site.fails.set(fails);
            assert_eq!(answer(balance).is_err(), fails);
        };
        let sites = sites(&[1; 4]);
        insert(&feed, 0, &sites[0]);
        send(&mut balance, &sites[0], true);
        send(&mut balance, &sites[0], true);
        insert(&feed, 0, &sites[1]);
        send(&mut balance, &sites[1], true);
        assert!(is_aside(&mut balance));
        timer.advance(100 * MS);
        assert!(!is_aside(&mut balance));
        // It has come back but has not proved that it works. Neither has its successor.
        insert(&feed, 0, &sites[2]);
        send(&mut balance, &sites[2], true);
        insert(&feed, 0, &sites[3]);
        timer.advance(199 * MS);
        assert!(is_aside(&mut balance));
        timer.advance(200 * MS);
        // A success restores the initial state.
        send(&mut balance, &sites[3], false);
        send(&mut balance, &sites[3], true);
        send(&mut balance, &sites[3], true);
        assert!(!is_aside(&mut balance));
    }

    #[test]
    fn returned_service_is_on_trial_again() {
        let (timer, feed, mut balance) = fed(0);
        let old = Site::new(Mood::Broken, 1);
        insert(&feed, 0, &old);
        assert!(is_aside(&mut balance));
        old.mood.set(Mood::Ready);
        timer.advance(100 * MS);
        // Called, but not ready since.
        assert_eq!(answer(&mut balance), Ok(1));
        let new = Site::new(Mood::Ready, 1);
        insert(&feed, 0, &new);
        assert!(!is_aside(&mut balance));
        new.mood.set(Mood::Broken);
        assert!(is_aside(&mut balance));
        new.mood.set(Mood::Ready);
        timer.advance(199 * MS);
        assert!(is_aside(&mut balance));
        timer.advance(MS);
        assert!(!is_aside(&mut balance));
    }

    #[test]
    fn removal_forgets_the_history() {
        let (_, feed, mut balance) = fed(2);
        let old = Site::new(Mood::Ready, 1);
        insert(&feed, 0, &old);
        for _ in 0..2 {
            old.fails.set(true);
            answer(&mut balance).unwrap_err();
        }
        assert!(is_aside(&mut balance));
        remove(&feed, 0);
        let new = Site::new(Mood::Ready, 1);
        insert(&feed, 0, &new);
        assert_eq!(answer(&mut balance), Ok(1));
        new.fails.set(true);
        answer(&mut balance).unwrap_err();
        assert!(!is_aside(&mut balance));
    }
}
