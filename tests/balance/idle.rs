//! A balancer in an idle buffer, with no caller waiting: it follows discovery and lets endpoints connect, but holds
//! nothing.

use super::*;
use campanile::buffer;
use campanile::limit::concurrency::Semaphore;
use campanile::limit::rate::Rate;
use campanile::limit::{ConcurrencyLimit, RateLimit};
use campanile::timeout::Deadline;
use common::Task;

/// An endpoint that allows one request in flight per permit of `permits`.
fn limited(site: &Rc<Site>, permits: &Semaphore) -> ConcurrencyLimit<Endpoint> {
    ConcurrencyLimit::with_semaphore(site.endpoint(), permits.clone())
}

type Limited = Result<Change<u32, ConcurrencyLimit<Endpoint>>, Failure>;

/// Polls the worker until it is no longer woken. Returns the number of polls.
#[track_caller]
fn settle(worker: &mut Task<impl Future<Output = ()>>) -> usize {
    for polls in 1..20 {
        assert!(worker.poll().is_pending());
        if !worker.is_woken() {
            return polls;
        }
    }
    panic!("it spins");
}

/// Sends a request and waits for its response.
#[track_caller]
fn send<S>(buffer: &mut S, worker: &mut Task<impl Future<Output = ()>>)
where
    S: Service<u32, Response = u32, Error: std::fmt::Debug>,
{
    found(WakeCount::new().poll_ready(buffer)).unwrap();
    let mut response = common::spawn(buffer.call(1));
    settle(worker);
    assert_eq!(found(response.poll()).unwrap(), 1);
}

#[test]
fn idle_balancer_follows_discovery() {
    let permits = Semaphore::new(1);
    let (feed, balance) = fed();
    let sites = sites(&[1; 3]);
    insert(&feed, 0, &sites[0]);
    let shared = ConcurrencyLimit::with_semaphore(balance, permits.clone());
    let (mut buffer, worker) = buffer::pair(shared, 4);
    let mut worker = common::spawn(worker);
    send(&mut buffer, &mut worker);
    for (key, site) in [(1, &sites[1]), (2, &sites[2])] {
        insert(&feed, key, site);
        assert_eq!(settle(&mut worker), 1);
        assert_eq!((site.polls.get(), permits.available_permits()), (1, 1));
    }
    sites[0].become_(Mood::Broken);
    remove(&feed, 1);
    settle(&mut worker);
    assert_eq!(permits.available_permits(), 1);
    // It still serves, through the remaining endpoints.
    send(&mut buffer, &mut worker);
    assert_eq!(calls(&sites), [1, 0, 1]);
    assert_eq!(permits.available_permits(), 1);
}

#[test]
fn idle_endpoints_hold_no_permits() {
    let permits = Semaphore::new(5);
    let (feed, discover) = unbounded::<Limited>();
    let balance = Balance::with_layer(discover, Identity::new()).seed(SplitMix64::new(7));
    let insert = |key, site: &Rc<Site>| {
        let change = Change::Insert(key, limited(site, &permits));
        feed.unbounded_send(Ok(change)).unwrap();
    };
    let sites = sites(&[1; 5]);
    (0..4).zip(&sites).for_each(|(key, site)| insert(key, site));
    let (mut buffer, worker) = buffer::pair(balance, 4);
    let mut worker = common::spawn(worker);
    send(&mut buffer, &mut worker);
    for round in 1..4 {
        // Endpoints that were ready but not called give back what they hold, too.
        insert(4, &sites[4]);
        settle(&mut worker);
        assert_eq!(permits.available_permits(), 5);
        send(&mut buffer, &mut worker);
        assert_eq!(calls(&sites).iter().sum::<u32>(), round + 1);
    }
}

#[test]
fn idle_endpoints_leave_wait_queues() {
    let permits = Semaphore::new(1);
    let sites = sites(&[1; 4]);
    let mut holder = limited(&sites[2], &permits);
    found(WakeCount::new().poll_ready(&mut holder)).unwrap();
    // The first endpoint serves; the second waits for a permit that another handle holds.
    let (feed, discover) = unbounded::<Limited>();
    let insert = |key, endpoint| feed.unbounded_send(Ok(Change::Insert(key, endpoint)));
    let own = Semaphore::new(2);
    insert(0, limited(&sites[0], &own)).unwrap();
    insert(1, limited(&sites[1], &permits)).unwrap();
    let balance = Balance::with_layer(discover, Identity::new());
    let (mut buffer, worker) = buffer::pair(balance, 4);
    let mut worker = common::spawn(worker);
    send(&mut buffer, &mut worker);
    assert_eq!(calls(&sites), [1, 0, 0, 0]);
    insert(2, limited(&sites[2], &own)).unwrap();
    settle(&mut worker);
    drop(holder);
    assert!(!worker.is_woken());
    let mut other = limited(&sites[3], &permits);
    found(WakeCount::new().poll_ready(&mut other)).unwrap();
}

#[test]
fn cancelled_request_leaves_the_queue() {
    let permits = Semaphore::new(1);
    let sites = sites(&[1; 3]);
    let mut holder = limited(&sites[1], &permits);
    found(WakeCount::new().poll_ready(&mut holder)).unwrap();
    let endpoints = ServiceList::new([limited(&sites[0], &permits)]);
    let balance = Balance::<_, u32, _>::with_layer(endpoints, Identity::new());
    let (mut buffer, worker) = buffer::pair(balance, 4);
    let mut worker = common::spawn(worker);
    found(WakeCount::new().poll_ready(&mut buffer)).unwrap();
    let response = common::spawn(buffer.call(1));
    settle(&mut worker);
    drop(response);
    settle(&mut worker);
    drop(holder);
    let mut other = limited(&sites[2], &permits);
    found(WakeCount::new().poll_ready(&mut other)).unwrap();
}

#[test]
fn cancelled_request_leaves_no_alarm() {
    let timer = ManualTimer::new();
    let site = Site::new(Mood::Ready, 1);
    let rate = Rate::new(1, Duration::from_secs(10));
    let endpoints = ServiceList::new([RateLimit::with_timer(site.endpoint(), rate, timer.clone())]);
    let balance = Balance::<_, u32, _>::with_layer(endpoints, Identity::new());
    let (mut buffer, worker) = buffer::pair(balance, 4);
    let mut worker = common::spawn(worker);
    send(&mut buffer, &mut worker);
    found(WakeCount::new().poll_ready(&mut buffer)).unwrap();
    let response = common::spawn(buffer.call(1));
    settle(&mut worker);
    assert_eq!(timer.armed(), 1);
    drop(response);
    settle(&mut worker);
    assert_eq!(timer.armed(), 0);
}

#[test]
fn unready_endpoint_goes_on_while_idle() {
    let (feed, balance) = fed();
    let sites = sites(&[1, 1]);
    sites[1].mood.set(Mood::Busy);
    insert(&feed, 0, &sites[0]);
    let (mut buffer, worker) = buffer::pair(balance, 4);
    let mut worker = common::spawn(worker);
    send(&mut buffer, &mut worker);
    insert(&feed, 1, &sites[1]);
    settle(&mut worker);
    let polls = [0, 1].map(|at: usize| sites[at].polls.take());
    assert!(polls[1] == 1, "{polls:?}");
    // The woken endpoint connects, which takes three polls; the other one is left alone.
    for _ in 0..3 {
        let wakers = sites[1].wakers.take();
        wakers.into_iter().for_each(Waker::wake);
        assert_eq!(settle(&mut worker), 1);
        assert_eq!((sites[0].polls.get(), sites[1].polls.take()), (0, 1));
    }
    sites[1].become_(Mood::Ready);
    assert_eq!(settle(&mut worker), 1);
    assert_eq!((sites[0].polls.get(), sites[1].polls.take()), (0, 1));
    // Both are polled for the next request.
    send(&mut buffer, &mut worker);
    assert!(sites.iter().all(|site| site.polls.get() > 0));
}

#[test]
fn replaced_endpoint_stays_while_idle() {
    let (feed, balance) = fed();
    let (old, new) = (Site::new(Mood::Ready, 1), Site::new(Mood::Ready, 1));
    insert(&feed, 0, &old);
    let (mut buffer, worker) = buffer::pair(balance, 4);
    let mut worker = common::spawn(worker);
    send(&mut buffer, &mut worker);
    insert(&feed, 0, &new);
    settle(&mut worker);
    // Having nothing left to drive does not mean that it is ready.
    assert_eq!((new.polls.get(), old.alive.get()), (1, 1));
    new.mood.set(Mood::Busy);
    send(&mut buffer, &mut worker);
    assert_eq!((old.calls.get(), new.calls.get()), (2, 0));
    new.become_(Mood::Ready);
    settle(&mut worker);
    assert_eq!(old.alive.get(), 1);
    send(&mut buffer, &mut worker);
    assert_eq!((new.calls.get(), old.alive.get()), (1, 0));
}

/// The caller has a ready endpoint and is woken for the others.
#[test]
fn late_endpoint_wakes_the_task() {
    let (feed, mut balance) = fed();
    let sites = [Site::new(Mood::Ready, 1), Site::new(Mood::Busy, 1)];
    insert(&feed, 0, &sites[0]);
    insert(&feed, 1, &sites[1]);
    let wakes = WakeCount::new();
    found(wakes.poll_ready(&mut balance)).unwrap();
    let woken = wakes.get();
    sites[1].become_(Mood::Ready);
    assert_eq!(wakes.get(), woken + 1);
    found(wakes.poll_ready(&mut balance)).unwrap();
    assert_eq!(balance.ready_len(), 2);
}

#[test]
fn quarantine_ends_while_idle() {
    let timer = ManualTimer::new();
    let (feed, discover) = unbounded::<News>();
    let balance = Balance::with_timer(discover, timer.clone());
    let site = Site::new(Mood::Busy, 1);
    insert(&feed, 0, &Site::new(Mood::Ready, 1));
    insert(&feed, 1, &site);
    let (mut buffer, worker) = buffer::pair(balance, 4);
    let mut worker = common::spawn(worker);
    send(&mut buffer, &mut worker);
    site.become_(Mood::Broken);
    settle(&mut worker);
    assert_eq!((timer.armed(), site.alive.get()), (1, 1));
    site.mood.set(Mood::Busy);
    timer.advance(100 * MS);
    site.polls.set(0);
    assert_eq!(settle(&mut worker), 1);
    assert_eq!((site.polls.get(), timer.armed()), (1, 0));
}

/// One poll asks a bounded number of endpoints, however many there are.
#[test]
fn idle_balancer_yields() {
    let (feed, balance) = fed();
    let all = sites(&[1; 600]);
    let (mut buffer, worker) = buffer::pair(balance, 4);
    let mut worker = common::spawn(worker);
    let (_, site) = (0..).zip(&all).next().unwrap();
    insert(&feed, 0, site);
    send(&mut buffer, &mut worker);
    for (key, site) in (0..).zip(&all).skip(1) {
        insert(&feed, key, site);
    }
    let polled = || all.iter().map(|site| site.polls.take()).sum::<u32>();
    polled();
    let mut most = 0;
    while worker.is_woken() {
        assert!(worker.poll().is_pending());
        most = most.max(polled());
    }
    assert!((100..=256).contains(&most), "{most}");
}

/// A poll without a request may be the only one, so it has to reach every endpoint that holds something.
#[test]
fn cancelled_wait_leaves_every_queue() {
    let timer = ManualTimer::new();
    let permits: Vec<_> = (0..300).map(|_| Semaphore::new(1)).collect();
    let sites = sites(&[1; 300]);
    let limits = || sites.iter().zip(&permits).map(|(site, p)| limited(site, p));
    let mut others: Vec<_> = limits().collect();
    for other in &mut others {
        found(WakeCount::new().poll_ready(other)).unwrap();
    }
    let balance = Balance::with_layer(ServiceList::new(limits()), Identity::new());
    let mut service = Deadline::with_timer(balance, 100 * MS, timer.clone());
    let wakes = WakeCount::new();
    let mut woken = usize::MAX;
    while woken != wakes.get() {
        woken = wakes.get();
        assert!(wakes.poll_ready(&mut service).is_pending());
    }
    timer.advance(100 * MS);
    found(wakes.poll_ready(&mut service)).unwrap();
    drop(others);
    assert!(permits.iter().all(|p| p.available_permits() == 1));
}
