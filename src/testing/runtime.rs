use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::mem::{replace, take};
use core::panic::{AssertUnwindSafe, Location};
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::sim::JoinHandle;
use super::stuck::{Deadlock, Livelock, Stuck, TaskInfo};
use super::trace::{Event, Trace, What};
use crate::Instant;
use crate::sync::wake_all;
use crate::util::rng::{Rng, SplitMix64};

/// This many polls without time moving are a livelock, unless [`Runtime::polls_per_moment`] sets another number.
const POLLS_PER_MOMENT: u64 = 1_000_000;

/// A single-threaded runtime with virtual time, in which everything happens in an order drawn from a seed.
///
/// Time starts at 0 and stands still while any task is awake. When all tasks wait, it jumps to the next deadline, so
/// an hour's sleep takes no time. Equal deadlines fire together, in the order in which they were first waited for.
/// Which of the awake tasks is polled next is drawn from the seed. The same seed and the same program give the same
/// [trace](Self::trace), provided nothing else in the program is random. A std `HashMap` is, and so is the jitter of
/// a [`backoff`](crate::retry::backoff) unless it uses a [`SplitMix64`].
///
/// The runtime does not see waits for another thread, a socket or a real clock: if all tasks wait and there is no
/// deadline, that is a deadlock, and [`block_on`](Self::block_on) says which tasks wait. Nevertheless, wakers may be
/// used in any thread. A poll that does not return hangs here as everywhere.
///
/// Dropping the runtime drops its tasks, inside its context.
///
/// # Examples
///
/// ```
/// use campanile::testing::{self, Runtime, Stuck};
/// use std::time::Duration;
///
/// let runtime = Runtime::new(7);
/// let answer = runtime.block_on(async {
///     let sleeper = testing::spawn(async {
///         testing::sleep(Duration::from_secs(3600)).await;
///         42
///     });
///     sleeper.await
/// });
/// assert_eq!(answer, Ok(42));
/// assert_eq!(runtime.elapsed(), Duration::from_secs(3600));
///
/// let error = runtime.block_on(std::future::pending::<()>()).unwrap_err();
/// assert!(matches!(error, Stuck::Deadlock(_)));
/// ```
pub struct Runtime {
    world: Rc<World>,
}

impl Runtime {
    /// Makes a runtime whose order of events is drawn from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            world: Rc::new(World {
                shared: Arc::new(Shared(Mutex::new(State::new()))),
                tasks: RefCell::default(),
                rng: RefCell::new(SplitMix64::new(seed)),
                polls_per_moment: Cell::new(POLLS_PER_MOMENT),
                made: Cell::new(0),
                running: Cell::new(false),
                closed: Cell::new(false),
            }),
        }
    }

    /// Sets how many polls without time moving are a livelock; 0 counts as 1. The default is a million.
    #[must_use]
    pub fn polls_per_moment(self, polls: u64) -> Self {
        self.world.polls_per_moment.set(polls.max(1));
        self
    }

    /// Keeps every event from now on for [`trace`](Self::trace), at 24 bytes each.
    #[must_use]
    pub fn recorded(self) -> Self {
        self.world.shared.lock().trace.record();
        self
    }

    /// Runs `future`, and the tasks that it starts, until `future` completes.
    ///
    /// The remaining tasks continue at the next `block_on`.
    ///
    /// # Errors
    ///
    /// Returns [`Stuck::Deadlock`] if every task waits and there is no deadline: usually a wake-up was lost. Returns
    /// [`Stuck::Livelock`] if tasks keep waking each other and time never moves. `future` is then dropped.
    ///
    /// # Panics
    ///
    /// If a task started by `spawn` panics, the panic continues here. That task is gone; the others continue at the
    /// next `block_on`. (A panic in a task of middleware, started through [`Sim`](super::Sim) as an
    /// [`Executor`](crate::Executor), stays in that task, as on every runtime.) It also panics if it is called inside
    /// itself.
    #[track_caller]
    pub fn block_on<F: Future>(&self, future: F) -> Result<F::Output, Stuck> {
        assert!(
            !self.world.running.replace(true),
            "`block_on` of a `testing::Runtime` inside of the same runtime"
        );
        let _running = Running(&self.world);
        let _context = Inside::enter(&self.world);
        let main = self.world.header(Slot::Main, None, Location::caller());
        self.world.run(pin!(future), &main)
    }

    /// Runs `f` inside this runtime's context, where `Sim` works: to make a service or to poll by hand. No task runs
    /// meanwhile.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> T {
        let _context = Inside::enter(&self.world);
        f()
    }

    /// Starts a task, which runs in the next [`block_on`](Self::block_on).
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: 'static> + 'static,
    {
        JoinHandle::spawn(&self.world, None, future, Location::caller())
    }

    /// Returns the current time: nanoseconds since the start.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.world.shared.lock().now
    }

    /// Returns the time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now().saturating_duration_since(Instant::from_nanos(0))
    }

    /// Returns how many tasks have neither completed nor panicked.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.world.tasks.borrow().live()
    }

    /// Returns how many deadlines are set. Waits that are dropped leave none behind.
    #[must_use]
    pub fn deadlines(&self) -> usize {
        self.world.shared.lock().timers.len()
    }

    /// Returns what has happened so far.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.world.shared.lock().trace.clone()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let world = &self.world;
        let _context = Inside::enter(world);
        world.closed.set(true);
        // One at a time: dropping a task may run any code, which may use the runtime.
        let mut index = 0;
        loop {
            let task = {
                let mut tasks = world.tasks.borrow_mut();
                match tasks.slots.get_mut(index) {
                    Some(slot) => slot.take(),
                    None => break,
                }
            };
            drop(task);
            index += 1;
        }
        let (timers, idle) = {
            let mut state = world.shared.lock();
            (take(&mut state.timers), take(&mut state.idle))
        };
        drop((timers, idle));
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("elapsed", &self.elapsed())
            .field("tasks", &self.tasks())
            .finish_non_exhaustive()
    }
}

/// The state of the thread.
pub(super) struct World {
    pub(super) shared: Arc<Shared>,
    tasks: RefCell<Tasks>,
    rng: RefCell<SplitMix64>,
    polls_per_moment: Cell<u64>,
    // The number of tasks made so far, including each `block_on`.
    made: Cell<u64>,
    running: Cell<bool>,
    closed: Cell<bool>,
}

/// The state that wakers and sleeps use from any thread. No user code is called or dropped under the lock.
pub(super) struct Shared(Mutex<State>);

pub(super) struct State {
    pub(super) now: Instant,
    next: u64,
    // By deadline, then in the order in which they were armed.
    pub(super) timers: BTreeMap<(Instant, u64), Waker>,
    awake: Vec<Awake>,
    // How often all tasks waited, and the tasks that wait for that.
    pub(super) idles: u64,
    pub(super) idle: Vec<Waker>,
    trace: Trace,
}

/// A task that was woken. It may have completed since, as `id` shows.
#[derive(Clone, Copy)]
struct Awake {
    slot: Slot,
    id: u64,
}

#[derive(Clone, Copy)]
enum Slot {
    Main,
    Task(usize),
}

#[derive(Default)]
struct Tasks {
    // `None`: free, or being polled.
    slots: Vec<Option<Task>>,
    free: Vec<usize>,
}

struct Task {
    header: Arc<Header>,
    waker: Waker,
    since: Instant,
    // Whether a panic stays in the task, as an `Executor` promises.
    contained: bool,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

/// The one allocation that all wakers of a task share.
struct Header {
    id: u64,
    slot: Slot,
    name: Option<Cow<'static, str>>,
    location: &'static Location<'static>,
    // Whether it is in `State::awake`.
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for Header {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            let mut state = self.shared.lock();
            state.event(What::Wake(self.id));
            state.awake.push(Awake {
                slot: self.slot,
                id: self.id,
            });
        }
    }
}

impl Header {
    fn info(&self, since: Instant) -> TaskInfo {
        TaskInfo::new(self.id, self.name.clone(), self.location, since)
    }
}

impl State {
    fn new() -> Self {
        Self {
            now: Instant::from_nanos(0),
            next: 0,
            timers: BTreeMap::new(),
            awake: Vec::new(),
            idles: 0,
            idle: Vec::new(),
            trace: Trace::default(),
        }
    }

    /// Returns a number that distinguishes and orders equal deadlines.
    pub(super) fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    fn event(&mut self, what: What) {
        self.trace.push(Event { at: self.now, what });
    }

    /// Moves time to `moment`, and takes out the timers that are due then.
    fn jump(&mut self, moment: Instant) -> BTreeMap<(Instant, u64), Waker> {
        self.now = self.now.max(moment);
        let later = self.timers.split_off(&(self.now, u64::MAX));
        let due = replace(&mut self.timers, later);
        for (deadline, _) in due.keys() {
            self.event(What::Fire(*deadline));
        }
        due
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn jump_by(&self, duration: Duration) {
        let due = {
            let mut state = self.lock();
            let moment = state.now.saturating_add(duration);
            state.jump(moment)
        };
        wake_all(due.into_values());
    }

    /// All tasks wait: wakes those that wait for that, or else jumps to the next deadline. `false` if there is none.
    fn go_on(&self) -> bool {
        let idle = {
            let mut state = self.lock();
            state.idles += 1;
            take(&mut state.idle)
        };
        if !idle.is_empty() {
            wake_all(idle);
            return true;
        }
        let due = {
            let mut state = self.lock();
            let Some((deadline, _)) = state.timers.keys().next().copied() else {
                return false;
            };
            state.jump(deadline)
        };
        wake_all(due.into_values());
        true
    }
}

impl Tasks {
    fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn reserve(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        })
    }

    /// Takes the task out to poll it, unless it has completed.
    fn take(&mut self, index: usize, id: u64) -> Option<Task> {
        self.slots
            .get_mut(index)?
            .take_if(|task| task.header.id == id)
    }
}

std::thread_local! {
    static CURRENT: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

impl World {
    pub(super) fn try_current() -> Option<Rc<Self>> {
        CURRENT
            .try_with(|current| current.borrow().clone())
            .ok()
            .flatten()
    }

    #[track_caller]
    pub(super) fn current() -> Rc<Self> {
        match Self::try_current() {
            Some(world) => world,
            None => panic!("this thread is not inside of a `campanile::testing::Runtime`"),
        }
    }

    fn header(
        &self,
        slot: Slot,
        name: Option<Cow<'static, str>>,
        location: &'static Location<'static>,
    ) -> Arc<Header> {
        let id = self.made.replace(self.made.get() + 1);
        Arc::new(Header {
            id,
            slot,
            name,
            location,
            queued: AtomicBool::new(false),
            shared: Arc::clone(&self.shared),
        })
    }

    pub(super) fn spawn(
        &self,
        name: Option<Cow<'static, str>>,
        future: Pin<Box<dyn Future<Output = ()>>>,
        location: &'static Location<'static>,
        contained: bool,
    ) {
        if self.closed.get() {
            // The runtime is being dropped, and the task with it.
            return;
        }
        let index = self.tasks.borrow_mut().reserve();
        let header = self.header(Slot::Task(index), name, location);
        let since = {
            let mut state = self.shared.lock();
            state.event(What::Spawn(header.id));
            state.now
        };
        header.wake_by_ref();
        self.tasks.borrow_mut().slots[index] = Some(Task {
            waker: Waker::from(Arc::clone(&header)),
            header,
            since,
            contained,
            future,
        });
    }

    fn run<F: Future>(
        &self,
        mut main: Pin<&mut F>,
        header: &Arc<Header>,
    ) -> Result<F::Output, Stuck> {
        let waker = Waker::from(Arc::clone(header));
        let mut since = self.shared.lock().now;
        let (mut moment, mut polls) = (since, 0);
        header.wake_by_ref();
        loop {
            let Some(awake) = self.draw() else {
                if self.shared.go_on() {
                    continue;
                }
                let tasks = self.waiting(header, since, |_| true);
                return Err(Stuck::Deadlock(Deadlock::new(
                    self.shared.lock().now,
                    tasks,
                )));
            };
            let now = self.shared.lock().now;
            if now != moment {
                (moment, polls) = (now, 0);
            }
            if polls == self.polls_per_moment.get() {
                // Put back, since it was not polled.
                self.shared.lock().awake.push(awake);
                let tasks = self.waiting(header, since, |task| task.queued.load(Ordering::Acquire));
                return Err(Stuck::Livelock(Livelock::new(now, polls, tasks)));
            }
            match awake.slot {
                Slot::Main if awake.id == header.id => {
                    polls += 1;
                    self.begin(header);
                    let polled = main.as_mut().poll(&mut Context::from_waker(&waker));
                    since = self.shared.lock().now;
                    if let Poll::Ready(output) = polled {
                        self.event(What::End(header.id));
                        return Ok(output);
                    }
                }
                Slot::Main => {}
                Slot::Task(index) => polls += u64::from(self.poll_task(index, awake.id)),
            }
        }
    }

    /// Draws one of the awake tasks.
    fn draw(&self) -> Option<Awake> {
        let mut state = self.shared.lock();
        let len = state.awake.len() as u64;
        let index = match len {
            0 => return None,
            1 => 0,
            _ => self.rng.borrow_mut().next_range(0..len) as usize,
        };
        Some(state.awake.swap_remove(index))
    }

    fn event(&self, what: What) {
        self.shared.lock().event(what);
    }

    /// From here on, a wake-up leads to another poll.
    fn begin(&self, header: &Header) {
        header.queued.store(false, Ordering::Release);
        self.event(What::Poll(header.id));
    }

    /// Polls a task; `false` if it had completed.
    fn poll_task(&self, index: usize, id: u64) -> bool {
        let Some(mut task) = self.tasks.borrow_mut().take(index, id) else {
            return false;
        };
        // If dropping the task panics, its slot is freed nevertheless.
        let mut polled = Polled {
            world: self,
            index,
            task: None,
        };
        self.begin(&task.header);
        let mut cx = Context::from_waker(&task.waker);
        let result = catch_unwind(AssertUnwindSafe(|| task.future.as_mut().poll(&mut cx)));
        if let Ok(Poll::Pending) = result {
            task.since = self.shared.lock().now;
            polled.task = Some(task);
            return true;
        }
        self.event(match result {
            Ok(_) => What::End(id),
            Err(_) => What::Panic(id),
        });
        // It must not be woken any more.
        task.header.queued.store(true, Ordering::Release);
        let contained = task.contained;
        drop(task);
        match result {
            Err(panic) if !contained => resume_unwind(panic),
            _ => true,
        }
    }

    fn waiting(
        &self,
        main: &Header,
        since: Instant,
        mut which: impl FnMut(&Header) -> bool,
    ) -> Vec<TaskInfo> {
        let tasks = self.tasks.borrow();
        let others = tasks.slots.iter().flatten();
        let mut all: Vec<_> = core::iter::once((main, since))
            .chain(others.map(|task| (&*task.header, task.since)))
            .filter(|(header, _)| which(header))
            .map(|(header, since)| header.info(since))
            .collect();
        all.sort_unstable_by_key(TaskInfo::id);
        all
    }
}

/// Puts a polled task back, or frees its slot.
struct Polled<'a> {
    world: &'a World,
    index: usize,
    task: Option<Task>,
}

impl Drop for Polled<'_> {
    fn drop(&mut self) {
        let mut tasks = self.world.tasks.borrow_mut();
        match self.task.take() {
            Some(task) => tasks.slots[self.index] = Some(task),
            None => tasks.free.push(self.index),
        }
    }
}

/// The thread is inside a runtime while this lives.
struct Inside {
    outer: Option<Rc<World>>,
}

impl Inside {
    fn enter(world: &Rc<World>) -> Self {
        let world = Rc::clone(world);
        // A runtime may be dropped together with the thread's locals.
        let outer = CURRENT.try_with(|current| current.borrow_mut().replace(world));
        Self {
            outer: outer.ok().flatten(),
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let outer = self.outer.take();
        let inner = CURRENT.try_with(|current| replace(&mut *current.borrow_mut(), outer));
        drop(inner);
    }
}

/// A `block_on` runs while this lives.
struct Running<'a>(&'a World);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(false);
    }
}
