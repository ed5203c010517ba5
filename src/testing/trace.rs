use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::Instant;
use crate::util::rng::{Rng, SplitMix64};

/// What happened in a [`Runtime`](super::Runtime), in order.
///
/// Two runs are the same if their traces are equal. The comparison uses the number of events and their
/// [fingerprint](Self::fingerprint). The [events](Self::events) themselves are kept only by a runtime that is
/// [recorded](super::Runtime::recorded). `Display` prints one event per line.
///
/// # Examples
///
/// ```
/// use campanile::testing::{self, Runtime};
/// use std::time::Duration;
///
/// let run = |seed| {
///     let runtime = Runtime::new(seed).recorded();
///     let main = async {
///         let first = testing::spawn(testing::sleep(Duration::from_secs(1)));
///         let second = testing::spawn(testing::sleep(Duration::from_secs(1)));
///         first.await;
///         second.await;
///     };
///     runtime.block_on(main).unwrap();
///     runtime.trace()
/// };
/// assert_eq!(run(1), run(1));
/// assert!(run(1).to_string().contains("1s  fire"));
/// assert!((2..10).any(|seed| run(seed) != run(1)));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Trace {
    len: u64,
    fingerprint: u64,
    events: Option<Vec<Event>>,
}

impl Trace {
    pub(super) fn record(&mut self) {
        self.events.get_or_insert_default();
    }

    pub(super) fn push(&mut self, event: Event) {
        let (kind, number) = match event.what {
            What::Spawn(id) => (0, id),
            What::Wake(id) => (1, id),
            What::Poll(id) => (2, id),
            What::End(id) => (3, id),
            What::Panic(id) => (4, id),
            What::Fire(deadline) => (5, deadline.as_nanos()),
        };
        for word in [event.at.as_nanos(), kind, number] {
            self.fingerprint = SplitMix64::new(self.fingerprint ^ word).next_u64();
        }
        self.len += 1;
        if let Some(events) = &mut self.events {
            events.push(event);
        }
    }

    /// Returns the number of events, kept or not.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing happened.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a hash of all events and their order.
    #[must_use]
    pub const fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Returns the events since recording began.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        self.events.as_deref().unwrap_or_default()
    }
}

impl PartialEq for Trace {
    fn eq(&self, other: &Self) -> bool {
        (self.len, self.fingerprint) == (other.len, other.fingerprint)
    }
}

impl Eq for Trace {}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in self.events() {
            writeln!(f, "{event}")?;
        }
        Ok(())
    }
}

/// An event at a point in virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it happened.
    pub at: Instant,
    /// What happened.
    pub what: What,
}

/// What happened. Tasks are identified by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// A task was started.
    Spawn(u64),
    /// A task that was not awake was woken.
    Wake(u64),
    /// A task was polled.
    Poll(u64),
    /// A task completed.
    End(u64),
    /// A task panicked.
    Panic(u64),
    /// This deadline was reached; its waiter is woken next.
    Fire(Instant),
}

/// Shown as a duration since the start.
pub(super) struct Since(pub(super) Instant);

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&Duration::from_nanos(self.0.as_nanos()), f)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  ", Since(self.at))?;
        match self.what {
            What::Spawn(id) => write!(f, "spawn {id}"),
            What::Wake(id) => write!(f, "wake {id}"),
            What::Poll(id) => write!(f, "poll {id}"),
            What::End(id) => write!(f, "end {id}"),
            What::Panic(id) => write!(f, "panic {id}"),
            What::Fire(deadline) => write!(f, "fire {}", Since(deadline)),
        }
    }
}
