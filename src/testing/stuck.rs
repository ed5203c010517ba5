use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;
use core::panic::Location;

use super::trace::Since;
use crate::Instant;

/// Why a [`Runtime`](super::Runtime) cannot continue.
///
/// Its `Debug` output, and so the message of an `unwrap`, is the same as its `Display` output.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stuck {
    /// Every task waits, and there is no deadline.
    Deadlock(Deadlock),
    /// Tasks keep waking each other, and time does not move.
    Livelock(Livelock),
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadlock(deadlock) => fmt::Display::fmt(deadlock, f),
            Self::Livelock(livelock) => fmt::Display::fmt(livelock, f),
        }
    }
}

impl fmt::Debug for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for Stuck {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(match self {
            Self::Deadlock(deadlock) => deadlock,
            Self::Livelock(livelock) => livelock,
        })
    }
}

/// Every task waits, and there is no deadline: a wake-up was lost, or tasks wait for each other.
///
/// # Examples
///
/// ```
/// use campanile::testing::{self, Runtime, Stuck};
///
/// let error = Runtime::new(0).block_on(async {
///     testing::spawn_named("consumer", std::future::pending::<()>()).await;
/// });
/// let Err(Stuck::Deadlock(deadlock)) = error else { panic!() };
/// assert_eq!(deadlock.tasks()[1].name(), Some("consumer"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    at: Instant,
    tasks: Vec<TaskInfo>,
}

impl Deadlock {
    pub(super) fn new(at: Instant, tasks: Vec<TaskInfo>) -> Self {
        Self { at, tasks }
    }

    /// Returns the time of the deadlock.
    #[must_use]
    pub const fn at(&self) -> Instant {
        self.at
    }

    /// Returns the waiting tasks, in the order in which they were started.
    #[must_use]
    pub fn tasks(&self) -> &[TaskInfo] {
        &self.tasks
    }
}

impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = Since(self.at);
        write!(
            f,
            "deadlock at {at}: every task waits, and no deadline is set"
        )?;
        self.tasks
            .iter()
            .try_for_each(|task| write!(f, "\n  {task}"))
    }
}

impl Error for Deadlock {}

/// Too many polls were made without time moving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Livelock {
    at: Instant,
    polls: u64,
    tasks: Vec<TaskInfo>,
}

impl Livelock {
    pub(super) fn new(at: Instant, polls: u64, tasks: Vec<TaskInfo>) -> Self {
        Self { at, polls, tasks }
    }

    /// Returns the time at which it stands still.
    #[must_use]
    pub const fn at(&self) -> Instant {
        self.at
    }

    /// Returns how many polls were made at that time: the limit, see
    /// [`polls_per_moment`](super::Runtime::polls_per_moment).
    #[must_use]
    pub const fn polls(&self) -> u64 {
        self.polls
    }

    /// Returns the awake tasks, in the order in which they were started.
    #[must_use]
    pub fn tasks(&self) -> &[TaskInfo] {
        &self.tasks
    }
}

impl fmt::Display for Livelock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, polls) = (Since(self.at), self.polls);
        write!(f, "livelock at {at}: {polls} polls, and time does not move")?;
        self.tasks
            .iter()
            .try_for_each(|task| write!(f, "\n  {task}"))
    }
}

impl Error for Livelock {}

/// A task that has not completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskInfo {
    id: u64,
    name: Option<Cow<'static, str>>,
    location: &'static Location<'static>,
    since: Instant,
}

impl TaskInfo {
    pub(super) const fn new(
        id: u64,
        name: Option<Cow<'static, str>>,
        location: &'static Location<'static>,
        since: Instant,
    ) -> Self {
        Self {
            id,
            name,
            location,
            since,
        }
    }

    /// Returns the number of the task, as in a [`Trace`](super::Trace): tasks count from 0, and each `block_on` is
    /// one too.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Returns the name given to [`spawn_named`](super::spawn_named), or for a task of middleware, its type.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns where it was started. For a task of middleware, this is the line that made the middleware; if a layer
    /// did, that of the layer's stack.
    #[must_use]
    pub const fn location(&self) -> &'static Location<'static> {
        self.location
    }

    /// Returns when it was last polled, or if never, when it was started.
    #[must_use]
    pub const fn since(&self) -> Instant {
        self.since
    }
}

impl fmt::Display for TaskInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}", self.id)?;
        if let Some(name) = &self.name {
            write!(f, " `{name}`")?;
        }
        write!(
            f,
            ", started at {}, last polled at {}",
            self.location,
            Since(self.since)
        )
    }
}
