//! How long requests affect a balancer's choice between endpoints, in virtual time.

use std::cell::RefCell;
use std::future::poll_fn;

use campanile::testing::balance::p2c::Balance;
use campanile::testing::timeout::Timeout;
use campanile::testing::{Runtime, now, sleep, spawn};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Clients in closed loops over endpoints of the same speed.
#[derive(Clone, Copy, Debug)]
struct Case {
    endpoints: usize,
    clients: u32,
    decay: Duration,
    /// How many long requests the first endpoint has in flight, and how long they take.
    watches: u32,
    watched_for: Duration,
    /// How long the long requests run before the clients start.
    before: Duration,
    /// Whether the clients pause for two decays after each two decays.
    lulls: bool,
    /// How many further short requests were cancelled at once.
    given_up: u32,
    /// How long the clients wait for a response.
    patience: Duration,
    /// Whether the first endpoint never answers.
    hangs: bool,
}

const CASE: Case = Case {
    endpoints: 2,
    clients: 16,
    decay: Duration::from_secs(10),
    watches: 1,
    watched_for: HOUR,
    before: Duration::ZERO,
    lulls: false,
    given_up: 0,
    patience: Duration::from_secs(1),
    hangs: false,
};

/// The first endpoint's share of the requests in every two decay times, for `count` such intervals with requests.
fn shares_of_first(case: Case, count: usize) -> Vec<f64> {
    let window = 2 * case.decay;
    let run = Runtime::new(1).block_on(async {
        let counts = Rc::new(RefCell::new(vec![0_u32; case.endpoints]));
        let endpoints: Vec<_> = (0..case.endpoints)
            .map(|at| {
                let counts = counts.clone();
                let rng = RefCell::new(SplitMix64::new(at as u64));
                let service = service_fn(move |time: Option<Duration>| {
                    let hangs = case.hangs && at == 0;
                    if time.is_none() {
                        counts.borrow_mut()[at] += 1;
                    }
                    // From 5 to 15 ms.
                    let nanos = rng.borrow_mut().next_range(5_000_000..15_000_000);
                    let time = time.unwrap_or(Duration::from_nanos(nanos));
                    async move {
                        match hangs {
                            true => pending().await,
                            false => sleep(time).await,
                        }
                        Ok::<_, Failure>(())
                    }
                });
                let service = Rc::new(RefCell::new(service));
                let service = service_fn(move |time| service.borrow_mut().call(time));
                campanile::testing::load::PeakEwma::new(
                    service,
                    100 * MILLI,
                    nanos(case.decay),
                    CompleteOnResponse,
                )
            })
            .collect();
        for _ in 0..case.watches {
            let watch = endpoints[0].clone().call(Some(case.watched_for));
            drop(spawn(watch));
        }
        for _ in 0..case.given_up {
            drop(endpoints[0].clone().call(Some(SECOND)));
        }
        sleep(case.before).await;
        let balance = Balance::new(ServiceList::new(endpoints)).seed(SplitMix64::new(3));
        let balance = Rc::new(RefCell::new(balance));
        let start = now();
        for _ in 0..case.clients {
            let balance = balance.clone();
            drop(spawn(async move {
                loop {
                    let since = now().saturating_duration_since(start);
                    if case.lulls && since.as_nanos() / window.as_nanos() % 2 == 1 {
                        sleep(window).await;
                        continue;
                    }
                    poll_fn(|cx| balance.borrow_mut().poll_ready(cx))
                        .await
                        .unwrap();
                    let response = balance.borrow_mut().call(None);
                    let mut once = Some(response);
                    let once = service_fn(move |()| once.take().unwrap());
                    let _ = Timeout::new(once, case.patience).call(()).await;
                }
            }));
        }
        let mut shares = Vec::new();
        while shares.len() < count {
            sleep(window).await;
            let counts = std::mem::replace(&mut *counts.borrow_mut(), vec![0; case.endpoints]);
            let all: u32 = counts.iter().sum();
            if all > 100 {
                shares.push(f64::from(counts[0]) / f64::from(all));
            }
        }
        shares
    });
    run.unwrap()
}

#[test]
fn one_long_request_leaves_an_even_share() {
    for (decay, lulls) in [(SECOND, false), (SECOND, true), (10 * SECOND, false)] {
        for before in [Duration::ZERO, 10 * SECOND, HOUR / 2] {
            let case = Case {
                decay,
                before,
                lulls,
                ..CASE
            };
            let shares = shares_of_first(case, 3);
            assert!((0.44..0.52).contains(&shares[2]), "{case:?}: {shares:?}");
        }
    }
}

/// A long request counts as one request in flight and no more, which matters with few clients.
#[test]
fn one_long_request_starves_no_endpoint() {
    let clients = 4;
    for endpoints in [2, 3] {
        let case = Case {
            endpoints,
            clients,
            ..CASE
        };
        let shares = shares_of_first(case, 2);
        assert!(shares[1] > 0.15, "{case:?}: {shares:?}");
    }
}

/// A cancelled request says nothing about the long one. With few requests, no answer would end the silence otherwise.
#[test]
fn long_and_cancelled_requests_starve_none() {
    let case = Case {
        clients: 4,
        given_up: 1,
        before: SECOND,
        ..CASE
    };
    let shares = shares_of_first(case, 2);
    assert!(shares[1] > 0.15, "{case:?}: {shares:?}");
}

#[test]
fn several_long_requests_starve_for_a_time() {
    let (decay, clients) = (SECOND, 1);
    for watches in [2, 10] {
        let case = Case {
            decay,
            clients,
            watches,
            ..CASE
        };
        // The endpoint gets requests again from the twentieth decay on.
        let shares = shares_of_first(case, 20);
        assert!(
            shares[10..].iter().sum::<f64>() > 0.0,
            "{case:?}: {shares:?}"
        );
    }
}

/// With the patience of 12 ms three of ten requests are cancelled, with that of 6 ms nine of ten, at either endpoint. A
/// cancelled one must not make the silence of the long ones count again.
#[test]
fn several_long_and_many_cancelled_starve_none() {
    for (clients, patience) in [(4, 12), (16, 6), (64, 6)] {
        let case = Case {
            decay: SECOND,
            clients,
            watches: 3,
            before: SECOND,
            patience: patience * MILLI,
            ..CASE
        };
        let shares = shares_of_first(case, 25);
        let share = shares[10..].iter().sum::<f64>() / 15.0;
        assert!(share > 0.15, "{share:.3}: {case:?}: {shares:?}");
    }
}

#[test]
fn end_of_a_long_request_costs_nothing() {
    let case = Case {
        clients: 4,
        watched_for: MINUTE,
        ..CASE
    };
    let shares = shares_of_first(case, 4);
    assert!((0.49..0.51).contains(&shares[3]), "{shares:?}");
}

#[test]
fn hanging_endpoint_is_retried_rarely() {
    for (decay, clients) in [(SECOND, 1), (SECOND, 16), (10 * SECOND, 1)] {
        let case = Case {
            decay,
            clients,
            watches: 0,
            hangs: true,
            ..CASE
        };
        let shares = shares_of_first(case, 10);
        let share = shares.iter().sum::<f64>() / 10.0;
        assert!(share > 0.0 && share < 0.005, "{case:?}: {shares:?}");
    }
}
