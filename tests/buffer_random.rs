//! A buffer whose tasks are polled, cancelled and driven at random. A task that is not woken cannot make progress, no
//! more requests wait than there is capacity, and at the end everything is accounted for.
#![cfg(feature = "std")]

mod common;

use std::cell::RefCell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use campanile::buffer::{self, Buffer, LocalQueue, Queue, Worker};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{NoRuntime, Service};
use common::{Failure, WakeCount, yield_now};

type Task<T> = Pin<Box<dyn Future<Output = T>>>;

thread_local! {
    static WORLD: RefCell<Shared> = RefCell::default();
}

/// Counts wake-ups, and now and then cancels other requests.
struct Meddler(WakeCount);

impl Wake for Meddler {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.waker().wake();
        give_up_some(&WORLD.with_borrow(Rc::clone));
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        // No lock is held here.
        let world = WORLD.try_with(|world| world.borrow().clone());
        if let Ok(world) = world {
            give_up_some(&world);
        }
    }
}

/// A task with its latest waker.
struct Polled<T> {
    // Dropped before the task, so that the last clone of it is dropped in the queue.
    waker: Waker,
    task: Task<T>,
    wakes: WakeCount,
    seen: usize,
    is_new: bool,
}

impl<T> Polled<T> {
    fn new(task: Task<T>) -> Self {
        let (wakes, waker) = waker();
        Self {
            task,
            wakes,
            waker,
            seen: 0,
            is_new: true,
        }
    }
    fn poll(&mut self, another_waker: bool) -> Poll<T> {
        if another_waker {
            (self.wakes, self.waker) = waker();
        }
        self.is_new = false;
        self.seen = self.wakes.get();
        let mut cx = Context::from_waker(&self.waker);
        self.task.as_mut().poll(&mut cx)
    }
    /// Polls with the noop waker, so that another poll has to follow.
    fn attempt(&mut self) -> Poll<T> {
        self.is_new = true;
        let mut cx = Context::from_waker(Waker::noop());
        self.task.as_mut().poll(&mut cx)
    }
    fn is_due(&self) -> bool {
        self.is_new || self.wakes.get() > self.seen
    }
}

fn waker() -> (WakeCount, Waker) {
    let wakes = WakeCount::new();
    let waker = Waker::from(Arc::new(Meddler(wakes.clone())));
    (wakes, waker)
}

type Outcome = (u32, Result<u32, String>);

#[derive(Default)]
struct World {
    is_ready: bool,
    fails: bool,
    panics: bool,
    waker: Option<Waker>,
    /// Requests not yet dropped.
    alive: usize,
    /// Requests or handles that hold capacity and whose request the service has not been called with.
    with_room: usize,
    /// The last request with capacity that reached the service, and how many arrived out of order.
    last: u32,
    disorder: usize,
    sent: u32,
    given_up: usize,
    asked: usize,
    calls: usize,
    answered: usize,
    senders: Vec<Polled<Outcome>>,
    random: Option<SplitMix64>,
}

type Shared = Rc<RefCell<World>>;

/// Cancels a few requests while the service is polled or called.
fn give_up_some(world: &Shared) {
    let victim = {
        let Ok(mut world) = world.try_borrow_mut() else {
            return;
        };
        let world = &mut *world;
        let random = world.random.get_or_insert(SplitMix64::new(1));
        let len = world.senders.len() as u64;
        (len > 0 && random.next_range(0..3) == 0).then(|| {
            world.given_up += 1;
            let at = random.next_range(0..len) as usize;
            world.senders.swap_remove(at)
        })
    };
    drop(victim);
}

/// Capacity that is held for certain.
struct Room(Shared);

impl Room {
    fn new(world: &Shared) -> Self {
        world.borrow_mut().with_room += 1;
        Self(world.clone())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.borrow_mut().with_room -= 1;
    }
}

struct Request {
    n: u32,
    /// Its position in the order of sending.
    place: u32,
    room: Option<Room>,
    world: Shared,
}

impl Request {
    fn new(n: u32, room: Option<Room>, world: &Shared) -> Self {
        let place = {
            let mut world = world.borrow_mut();
            world.alive += 1;
            world.sent += 1;
            world.sent
        };
        let world = world.clone();
        Self {
            n,
            place,
            room,
            world,
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.world.borrow_mut().alive -= 1;
    }
}

struct Svc(Shared);

struct Answer(u32, u64, Shared);

impl Future for Answer {
    type Output = Result<u32, Failure>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.1 > 0 {
            self.1 -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(self.0 * 10))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.2.borrow_mut().answered += 1;
    }
}

impl Service<Request> for Svc {
    type Response = u32;
    type Error = Failure;
    type Future = Answer;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        give_up_some(&self.0);
        let mut world = self.0.borrow_mut();
        world.asked += 1;
        if world.panics && world.asked % 2 == 0 {
            drop(world);
            resume_unwind(Box::new("told to"));
        }
        if world.fails {
            return Poll::Ready(Err(Failure("told to")));
        }
        if world.is_ready {
            return Poll::Ready(Ok(()));
        }
        let old = world.waker.replace(cx.waker().clone());
        drop(world);
        drop(old);
        Poll::Pending
    }
    fn call(&mut self, mut request: Request) -> Answer {
        if let Some(room) = request.room.take() {
            let mut world = self.0.borrow_mut();
            world.disorder += usize::from(request.place <= world.last);
            world.last = request.place;
            drop(world);
            drop(room);
        }
        give_up_some(&self.0);
        let pending = {
            let world = &mut *self.0.borrow_mut();
            world.calls += 1;
            let random = world.random.get_or_insert(SplitMix64::new(1));
            // The service may stop being ready.
            if random.next_range(0..3) == 0 {
                world.is_ready = false;
            }
            random.next_range(0..3)
        };
        let answer = Answer(request.n, pending, self.0.clone());
        if self.0.borrow().panics {
            resume_unwind(Box::new("told to"));
        }
        answer
    }
}

/// How the buffer ends, if it does before the last handle is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Shutdown,
    Failure,
    WorkerDropped,
    Panic,
    LastHandle,
}

fn run<Q>(
    buffer: Buffer<Request, Answer, NoRuntime, Q>,
    worker: Worker<Svc, Request, Q>,
    shut_down: impl Fn(&Buffer<Request, Answer, NoRuntime, Q>) -> Option<Task<()>>,
    world: &Shared,
    seed: u64,
    bound: usize,
) -> usize
where
    Q: Queue<Message = Request, Answer = Answer> + 'static,
    Q::Error: std::fmt::Debug,
{
    WORLD.set(world.clone());
    let mut random = SplitMix64::new(seed);
    world.borrow_mut().random = Some(SplitMix64::new(seed ^ 0x55));
    let end = match random.next_range(0..5) {
        0 => End::Shutdown,
        1 => End::Failure,
        2 => End::WorkerDropped,
        3 => End::Panic,
        _ => End::LastHandle,
    };
    let mut worker = Polled::new(Box::pin(worker));
    let mut shutdowns = Vec::new();
    let drive = |worker: &mut Polled<()>, how: u64| {
        let polled = catch_unwind(AssertUnwindSafe(|| match how {
            0 => worker.attempt(),
            1 => worker.poll(true),
            _ => worker.poll(false),
        }));
        // The buffer has ended, though the worker still exists.
        polled.unwrap_or(Poll::Ready(())).is_ready()
    };
    let is_due_error = |error: &str| match end {
        End::Failure => error.starts_with("Failed"),
        End::Panic => error.starts_with("Panicked"),
        End::Shutdown | End::WorkerDropped => error.starts_with("Closed"),
        End::LastHandle => false,
    } || error.starts_with("Overflow");
    let mut is_over = false;
    let mut closed = false;
    let mut n = 0;
    let (mut ok, mut err) = (0, 0);
    for step in 0..400 {
        let len = world.borrow().senders.len() as u64;
        let with_room = world.borrow().with_room;
        assert!(with_room <= bound, "seed {seed} step {step}: {with_room}");
        match random.next_range(0..12) {
            0..=2 if len < 9 => {
                let mut buffer = buffer.clone();
                n += 1;
                let is_patient = random.next_range(0..3) > 0;
                let mut idles = random.next_range(0..4);
                // By then the answer may be there, or the task another.
                let mut delay = random.next_range(0..3);
                let is_fixed = std::any::type_name::<Q>().starts_with('&');
                let shared = world.clone();
                let task = async move {
                    let outcome = async {
                        let mut room = None;
                        if is_patient {
                            poll_fn(|cx| buffer.poll_ready(cx)).await?;
                            // In fixed storage, handles without a place in the wait queue are ready, too.
                            room = (!is_fixed).then(|| Room::new(&shared));
                            while idles > 0 {
                                idles -= 1;
                                yield_now().await;
                            }
                        }
                        let response = buffer.call(Request::new(n, room, &shared));
                        drop(buffer);
                        while delay > 0 {
                            delay -= 1;
                            yield_now().await;
                        }
                        response.await
                    };
                    (n, outcome.await.map_err(|e: Q::Error| format!("{e:?}")))
                };
                world.borrow_mut().senders.push(Polled::new(Box::pin(task)));
            }
            3..=6 if len > 0 => {
                // Any sender, woken or not.
                let at = random.next_range(0..len) as usize;
                let mut sender = world.borrow_mut().senders.swap_remove(at);
                let polled = match random.next_range(0..8) {
                    0 => sender.attempt(),
                    how => sender.poll(how < 3),
                };
                match polled {
                    Poll::Pending => world.borrow_mut().senders.push(sender),
                    Poll::Ready((n, outcome)) => match outcome {
                        Ok(m) => {
                            assert_eq!(m, n * 10);
                            ok += 1;
                        }
                        Err(error) => {
                            assert!(is_due_error(&error), "seed {seed}: {error}");
                            err += 1;
                        }
                    },
                }
            }
            7 if len > 0 => {
                let at = random.next_range(0..len) as usize;
                let sender = world.borrow_mut().senders.swap_remove(at);
                drop(sender);
                world.borrow_mut().given_up += 1;
            }
            8 | 9 if !is_over => {
                is_over = drive(&mut worker, random.next_range(0..8));
                let world = world.borrow();
                assert!(!is_over || closed || world.fails || world.panics);
            }
            10 => {
                let waker = {
                    let mut world = world.borrow_mut();
                    world.is_ready = random.next_range(0..3) > 0;
                    if world.is_ready {
                        world.waker.take()
                    } else {
                        None
                    }
                };
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            11 if step > 300 => match end {
                End::Shutdown => {
                    closed = true;
                    shutdowns.extend(shut_down(&buffer).map(Polled::new));
                }
                End::WorkerDropped if !is_over => {
                    (closed, is_over) = (true, true);
                    worker.task = Box::pin(std::future::ready(()));
                }
                End::Failure | End::Panic => {
                    let waker = {
                        let mut world = world.borrow_mut();
                        world.fails = end == End::Failure;
                        world.panics = end == End::Panic;
                        world.waker.take()
                    };
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                _ => {}
            },
            _ => {}
        }
        // Now and then: a task not woken since its last poll has nothing to do.
        if random.next_range(0..4) == 0 {
            if !is_over && !worker.is_due() {
                let before = (world.borrow().given_up, world.borrow().calls);
                is_over = drive(&mut worker, 2);
                let after = (world.borrow().given_up, world.borrow().calls);
                // Unless the service ends the buffer, or cancels the last request, when polled again.
                let ends = world.borrow().fails || world.borrow().panics || before.0 < after.0;
                assert!(ends || !is_over, "seed {seed} step {step}");
                // An unrequested poll may ask the service again if a request waits for it.
                assert_eq!(before.1, after.1, "seed {seed} step {step}: worker asleep");
            }
            let mut senders = std::mem::take(&mut world.borrow_mut().senders);
            for sender in &mut senders {
                if !sender.is_due() {
                    assert!(
                        sender.poll(false).is_pending(),
                        "seed {seed} step {step}: asleep"
                    );
                }
            }
            world.borrow_mut().senders = senders;
            shutdowns.retain_mut(|shutdown| {
                let is_due = shutdown.is_due();
                let polled = shutdown.poll(random.next_range(0..4) == 0);
                assert_eq!(polled.is_ready(), is_over, "seed {seed} step {step}");
                assert!(is_due || !is_over, "seed {seed} step {step}: asleep");
                !is_over
            });
        }
    }
    // All requests are cancelled or served: poll each task that is woken.
    {
        let waker = {
            let mut world = world.borrow_mut();
            world.waker.take()
        };
        if let Some(waker) = waker {
            world.borrow_mut().is_ready = true;
            waker.wake();
        }
    }
    for _ in 0..2000 {
        world.borrow_mut().is_ready = true;
        let waker = world.borrow_mut().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
        let mut any = false;
        if !is_over && worker.is_due() {
            any = true;
            is_over = drive(&mut worker, 2);
        }
        let due = world.borrow().senders.iter().position(Polled::is_due);
        if let Some(at) = due {
            any = true;
            let mut sender = world.borrow_mut().senders.swap_remove(at);
            match sender.poll(false) {
                Poll::Pending => world.borrow_mut().senders.push(sender),
                Poll::Ready((n, outcome)) => match outcome {
                    Ok(m) => {
                        assert_eq!(m, n * 10);
                        ok += 1;
                    }
                    Err(error) => {
                        assert!(is_due_error(&error), "seed {seed}: {error}");
                        err += 1;
                    }
                },
            }
        }
        if !any {
            break;
        }
    }
    assert_eq!(
        world.borrow().senders.len(),
        0,
        "seed {seed}: asleep at the end"
    );
    assert!(is_over || !closed, "seed {seed}: it does not end");
    for mut shutdown in shutdowns {
        assert!(shutdown.is_due(), "seed {seed}: asleep at the end");
        assert!(shutdown.poll(false).is_ready(), "seed {seed}");
    }
    {
        let world = world.borrow();
        assert_eq!(n as usize, ok + err + world.given_up, "seed {seed}");
        assert_eq!((world.alive, world.with_room), (0, 0), "seed {seed}");
        assert_eq!(world.disorder, 0, "seed {seed}");
        assert_eq!(
            world.calls, world.answered,
            "seed {seed}: an answer is kept"
        );
    }
    if !closed && !is_over {
        // All capacity is available.
        let mut handles: Vec<_> = (0..=bound).map(|_| buffer.clone()).collect();
        let wakes = WakeCount::new();
        for (at, handle) in handles.iter_mut().enumerate() {
            assert_eq!(
                wakes.poll_ready(handle).is_ready(),
                at < bound,
                "seed {seed}"
            );
        }
    }
    drop(buffer);
    if !is_over {
        assert!(worker.is_due(), "seed {seed}");
        assert!(drive(&mut worker, 2));
    }
    ok
}

#[test]
fn at_random() {
    let mut served = [0; 2];
    let seeds = if cfg!(miri) { 3 } else { 6_000 };
    for seed in 0..seeds {
        let bound = 1 + (seed % 3) as usize;
        macro_rules! fixed {
            ($n:literal) => {{
                let world = Shared::default();
                let queue: &'static LocalQueue<Request, Answer, $n> =
                    Box::leak(Box::new(LocalQueue::new()));
                let (buffer, worker) = buffer::try_pair_in(Svc(world.clone()), queue).unwrap();
                let shut_down = |buffer: &Buffer<_, _, _, _>| {
                    buffer.close();
                    None
                };
                served[1] += run(buffer, worker, shut_down, &world, seed, $n);
            }};
        }
        match bound {
            1 => fixed!(1),
            2 => fixed!(2),
            _ => fixed!(3),
        }
        let world = Shared::default();
        let (buffer, worker) = buffer::pair(Svc(world.clone()), bound);
        let (buffer, worker) = if seed % 5 == 0 {
            (buffer.keep_ready(), worker)
        } else {
            (buffer, worker)
        };
        let shut_down = |buffer: &Buffer<_, _>| -> Option<Task<()>> {
            let shutdown = buffer.shutdown();
            Some(Box::pin(shutdown))
        };
        served[0] += run(buffer, worker, shut_down, &world, seed, bound);
    }
    assert!(served.iter().all(|&ok| ok > 0));
}
