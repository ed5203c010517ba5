//! A buffer whose tasks are polled, given up and driven at random: whoever is not woken has nothing to wake up for.
#![cfg(feature = "std")]

mod common;

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use campanile::buffer::{self, Buffer, LocalQueue, Queue, Worker};
use campanile::util::rng::{Rng, SplitMix64};
use campanile::{NoRuntime, Service};
use common::{Failure, WakeCount};

type Task<T> = Pin<Box<dyn Future<Output = T>>>;

/// A task with its latest waker.
struct Polled<T> {
    task: Task<T>,
    wakes: WakeCount,
    seen: usize,
    is_new: bool,
}

impl<T> Polled<T> {
    fn new(task: Task<T>) -> Self {
        Self {
            task,
            wakes: WakeCount::new(),
            seen: 0,
            is_new: true,
        }
    }
    fn poll(&mut self, another_waker: bool) -> Poll<T> {
        if another_waker {
            self.wakes = WakeCount::new();
        }
        self.is_new = false;
        self.seen = self.wakes.get();
        let Self { task, wakes, .. } = self;
        wakes.enter(|cx| task.as_mut().poll(cx))
    }
    fn is_due(&self) -> bool {
        self.is_new || self.wakes.get() > self.seen
    }
}

type Outcome = (u32, Result<u32, String>);

#[derive(Default)]
struct World {
    is_ready: bool,
    fails: bool,
    waker: Option<Waker>,
    asked: usize,
    calls: usize,
    answered: usize,
    /// Due to be given up within the next call.
    victims: Vec<Polled<Outcome>>,
    senders: Vec<Polled<Outcome>>,
    random: Option<SplitMix64>,
}

type Shared = Rc<RefCell<World>>;

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

impl Service<u32> for Svc {
    type Response = u32;
    type Error = Failure;
    type Future = Answer;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let mut world = self.0.borrow_mut();
        world.asked += 1;
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
    fn call(&mut self, n: u32) -> Answer {
        let (victims, pending) = {
            let world = &mut *self.0.borrow_mut();
            world.calls += 1;
            let random = world.random.get_or_insert(SplitMix64::new(1));
            let mut victims = std::mem::take(&mut world.victims);
            // Some are given up within the call, and the service may get unready.
            if random.next_range(0..3) == 0 && !world.senders.is_empty() {
                let at = random.next_range(0..world.senders.len() as u64) as usize;
                victims.push(world.senders.swap_remove(at));
            }
            if random.next_range(0..3) == 0 {
                world.is_ready = false;
            }
            let pending = random.next_range(0..3);
            (victims, pending)
        };
        drop(victims);
        Answer(n, pending, self.0.clone())
    }
}

fn run<Q>(
    buffer: Buffer<u32, Answer, Failure, NoRuntime, Q>,
    worker: Worker<Svc, u32, Q>,
    world: &Shared,
    seed: u64,
    bound: usize,
) where
    Q: Queue<Message = u32, Answer = Answer, Fault = Failure> + 'static,
    Q::Error: std::fmt::Debug,
{
    let mut random = SplitMix64::new(seed);
    world.borrow_mut().random = Some(SplitMix64::new(seed ^ 0x55));
    let ends = random.next_range(0..3);
    let mut worker = Polled::new(Box::pin(worker));
    let mut is_over = false;
    let mut closed = false;
    let mut n = 0;
    let (mut ok, mut err) = (0, 0);
    for step in 0..400 {
        let len = world.borrow().senders.len() as u64;
        match random.next_range(0..12) {
            0..=2 if len < 9 => {
                let mut buffer = buffer.clone();
                n += 1;
                let kind = random.next_range(0..3);
                let task = async move {
                    let outcome = async {
                        if kind > 0 {
                            poll_fn(|cx| buffer.poll_ready(cx)).await?;
                        }
                        let response = buffer.call(n);
                        drop(buffer);
                        response.await
                    };
                    (n, outcome.await.map_err(|e: Q::Error| format!("{e:?}")))
                };
                world.borrow_mut().senders.push(Polled::new(Box::pin(task)));
            }
            3..=6 if len > 0 => {
                // Any, also who was not woken.
                let at = random.next_range(0..len) as usize;
                let mut sender = world.borrow_mut().senders.swap_remove(at);
                match sender.poll(random.next_range(0..4) == 0) {
                    Poll::Pending => world.borrow_mut().senders.push(sender),
                    Poll::Ready((n, outcome)) => match outcome {
                        Ok(m) => {
                            assert_eq!(m, n * 10);
                            ok += 1;
                        }
                        Err(error) => {
                            assert!(closed || is_over || error.contains("Overflow"), "{error}");
                            err += 1;
                        }
                    },
                }
            }
            7 if len > 0 => {
                let at = random.next_range(0..len) as usize;
                let sender = world.borrow_mut().senders.swap_remove(at);
                drop(sender);
            }
            8 | 9 if !is_over => {
                is_over = worker.poll(random.next_range(0..4) == 0).is_ready();
                assert!(!is_over || closed || world.borrow().fails);
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
            11 if step > 300 && !closed && ends == 0 => {
                closed = true;
                buffer.close();
            }
            11 if step > 300 && ends == 1 => {
                let waker = {
                    let mut world = world.borrow_mut();
                    world.fails = true;
                    world.waker.take()
                };
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            _ => {}
        }
        // Now and then: who was not woken since the last poll, has nothing to do.
        if random.next_range(0..4) == 0 {
            if !is_over && !worker.is_due() {
                let before = (world.borrow().asked, world.borrow().calls);
                assert!(worker.poll(false).is_pending(), "seed {seed} step {step}");
                let after = (world.borrow().asked, world.borrow().calls);
                // A poll that nobody asked for may ask the service again, if a request waits for it.
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
        }
    }
    // All are given up or served: whoever is woken is polled.
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
            is_over = worker.poll(false).is_ready();
        }
        let due = world.borrow().senders.iter().position(Polled::is_due);
        if let Some(at) = due {
            any = true;
            let mut sender = world.borrow_mut().senders.swap_remove(at);
            match sender.poll(false) {
                Poll::Pending => world.borrow_mut().senders.push(sender),
                Poll::Ready((n, outcome)) => {
                    if let Ok(m) = outcome {
                        assert_eq!(m, n * 10);
                        ok += 1;
                    } else {
                        err += 1;
                    }
                }
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
    assert!(ok + err > 0);
    assert_eq!(
        world.borrow().calls,
        world.borrow().answered,
        "seed {seed}: an answer is kept"
    );
    if !closed && !is_over {
        // All room is there.
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
        assert!(worker.poll(false).is_ready());
    }
}

#[test]
fn at_random() {
    let seeds = if cfg!(miri) { 3 } else { 6_000 };
    for seed in 0..seeds {
        let bound = 1 + (seed % 3) as usize;
        let world = Shared::default();
        let (buffer, worker) = buffer::pair(Svc(world.clone()), bound);
        let (buffer, worker) = if seed % 5 == 0 {
            (buffer.keep_ready(), worker)
        } else {
            (buffer, worker)
        };
        run(buffer, worker, &world, seed, bound);
        macro_rules! fixed {
            ($n:literal) => {{
                let world = Shared::default();
                let queue: &'static LocalQueue<u32, Answer, Failure, $n> =
                    Box::leak(Box::new(LocalQueue::new()));
                let (buffer, worker) = buffer::try_pair_in(Svc(world.clone()), queue).unwrap();
                run(buffer, worker, &world, seed, $n);
            }};
        }
        match bound {
            1 => fixed!(1),
            2 => fixed!(2),
            _ => fixed!(3),
        }
    }
}
