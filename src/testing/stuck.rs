use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;
use core::panic::Location;

use super::trace::Since;
use crate::Instant;

/// Why a [`Runtime`](super::Runtime) cannot go on.
///
/// Its `Debug`, and so the message of an `unwrap`, is its `Display`.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stuck {
    /// Every task waits, and no deadline is set.
    Deadlock(Deadlock),
    /// Tasks keep waking one another, and time does not move.
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

/// Every task waits, and no deadline is set: a wake-up was lost, or tasks wait for each other.
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

    /// When it came to that.
    #[must_use]
    pub const fn at(&self) -> Instant {
        self.at
    }

    /// Those who wait, in the order in which they were started.
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

/// So many polls were made without time moving that it never will.
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

    /// The moment at which time stands still.
    #[must_use]
    pub const fn at(&self) -> Instant {
        self.at
    }

    /// How many polls were made at that moment: the bound, see
    /// [`polls_per_moment`](super::Runtime::polls_per_moment).
    #[must_use]
    pub const fn polls(&self) -> u64 {
        self.polls
    }

    /// Those who are awake, in the order in which they were started.
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

/// A task that has not ended.
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

    /// The number of the task, as in a [`Trace`](super::Trace): they count from 0, and each `block_on` is one too.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// The name it was given by [`spawn_named`](super::spawn_named), or of a task that middleware started, its type.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Where it was started. For a task of middleware that is the line that made it, or if a layer did, that of
    /// the layer's stack.
    #[must_use]
    pub const fn location(&self) -> &'static Location<'static> {
        self.location
    }

    /// When it was last polled, or if it never was, when it was started.
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
