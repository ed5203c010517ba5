//! Sends each request to one of several services, picked by a function.
//!
//! A [`Steer`] is ready when all its services are, since it cannot know which one the next request is for. A service
//! that is slow to become ready holds up the requests for the others; a [`Buffer`] or a [`LoadShed`] around each
//! prevents that.
//!
//! Services that are not ready are polled side by side; a service that is ready is not polled again before it is
//! called. With more than 64 services, the next 64 are polled once those before them are ready. If a poll that only
//! tries fails to find all services ready, as with a [`LoadShed`] around the `Steer`, the ready ones give up what they
//! have reserved.
//!
//! When the readiness of one service fails, so does that of the `Steer`, for good: from then on it fails with
//! [`Failed`], and no service is polled again. If a service may fail and come back, put a
//! [`Reconnect`](crate::reconnect) around it, and a [`Buffer`] around that. Without the buffer, the next request for
//! that service gets the error of the failed attempt to connect, even an hour later when the peer is up again, because
//! a service that is ready is not polled again. [`ConnectErrors::Nowhere`] is the other option: then all requests wait
//! until it connects. For the same reason, put a buffer around a service with a [rate limit](crate::limit::rate) that
//! rejects: its next request may get a rejection that no longer holds.
//!
//! [`Buffer`]: crate::buffer
//! [`ConnectErrors::Nowhere`]: crate::reconnect::ConnectErrors::Nowhere
//! [`LoadShed`]: crate::load_shed
//!
//! # Examples
//!
//! ```
//! use campanile::{Service, ServiceExt, service_fn, steer::Steer};
//!
//! # futures::executor::block_on(async {
//! let shard = |name: char| {
//!     service_fn(move |key: u32| async move { Ok::<_, core::fmt::Error>(format!("{name}{key}")) })
//! };
//! let shards = [shard('a'), shard('b'), shard('c')];
//! let mut steer = Steer::with_services(shards, |key: &u32, all: &[_]| *key as usize % all.len());
//!
//! let mut answers = Vec::new();
//! for key in 4..7 {
//!     answers.push(steer.ready().await.unwrap().call(key).await.unwrap());
//! }
//! assert_eq!(answers, ["b4", "c5", "a6"]);
//! # });
//! ```
//!
//! # Differences from tower
//!
//! - A clone starts with no service ready. tower's copies the readiness of its original, which the cloned services do
//!   not have.
//! - Services become ready side by side, not one after the other.
//! - An index that is [out of range](OutOfRange), a call without readiness and an [empty](Empty) set of services are
//!   typed errors, not panics.
//! - The services may be in an array or a slice, without any allocation.
//! - A picker may be an `FnMut`.

#[cfg(feature = "alloc")]
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::mem::replace;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::Service;
use crate::sync::{Mark, leave_rest, mark, withdraw};

/// Picks the service for a request.
///
/// Implemented for functions from a request and the services to an index.
pub trait Picker<S, Req> {
    /// The index in `services` of the one that gets `request`.
    ///
    /// An index without a service fails the request with [`OutOfRange`].
    fn pick(&mut self, request: &Req, services: &[S]) -> usize;
}

impl<S, F, Req> Picker<S, Req> for F
where
    F: FnMut(&Req, &[S]) -> usize,
{
    fn pick(&mut self, request: &Req, services: &[S]) -> usize {
        self(request, services)
    }
}

/// A service that sends each request to one of many services of type `S`.
///
/// `C` holds the services: a `Vec` where there is an allocator, otherwise an array `[S; N]` or a `&mut [S]`.
///
/// See the [module](self) for an example.
pub struct Steer<S, F, Req, #[cfg(feature = "alloc")] C = Vec<S>, #[cfg(not(feature = "alloc"))] C>
{
    router: F,
    services: C,
    readiness: Readiness,
    types: PhantomData<fn(Req) -> S>,
}

#[cfg(feature = "alloc")]
impl<S, F, Req> Steer<S, F, Req> {
    /// Sends each request to one of the `services`, picked by `router`, a [`Picker`].
    pub fn new(services: impl IntoIterator<Item = S>, router: F) -> Self {
        Self::with_services(services.into_iter().collect(), router)
    }
}

impl<S, F, Req, C> Steer<S, F, Req, C> {
    /// Sends each request to one of the `services`, an array or a slice, picked by `router`, a [`Picker`].
    pub const fn with_services(services: C, router: F) -> Self
    where
        C: AsMut<[S]>,
    {
        Self {
            router,
            services,
            readiness: Readiness::UNKNOWN,
            types: PhantomData,
        }
    }

    /// The services, in the order of their indices.
    pub fn services(&self) -> &[S]
    where
        C: AsRef<[S]>,
    {
        self.services.as_ref()
    }
}

impl<S, F, Req, C> Service<Req> for Steer<S, F, Req, C>
where
    S: Service<Req>,
    F: Picker<S, Req>,
    C: AsMut<[S]>,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.readiness.poll(self.services.as_mut(), cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let services = self.services.as_mut();
        let state = match self.readiness.phase {
            _ if services.is_empty() => State::Empty,
            Phase::Failed => State::Failed,
            Phase::Unready => State::NotReady,
            Phase::Ready => {
                let index = self.router.pick(&request, services);
                let len = services.len();
                leave_rest();
                match services.get_mut(index) {
                    Some(service) => {
                        self.readiness = Readiness::unready(index);
                        State::Called {
                            inner: service.call(request),
                        }
                    }
                    // All stay ready for the next request.
                    None => State::OutOfRange {
                        error: OutOfRange::new(index, len),
                    },
                }
            }
        };
        ResponseFuture { state }
    }
}

// The clones of the services have never been polled.
impl<S, F: Clone, Req, C: Clone> Clone for Steer<S, F, Req, C> {
    fn clone(&self) -> Self {
        Self {
            router: self.router.clone(),
            services: self.services.clone(),
            readiness: Readiness::UNKNOWN,
            types: PhantomData,
        }
    }
}

impl<S, F: fmt::Debug, Req, C: fmt::Debug> fmt::Debug for Steer<S, F, Req, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steer")
            .field("router", &self.router)
            .field("services", &self.services)
            .field("readiness", &self.readiness.phase)
            .finish()
    }
}

/// Which services are not known to be ready.
///
/// After a call, only the called one. Before the first call, all of them: they are polled in windows as wide as a word,
/// so that nothing needs allocating.
struct Readiness {
    phase: Phase,
    // The window starts at this index, with a bit for each of its services that is not ready. With no bit set it is yet
    // to be opened.
    start: usize,
    bits: u64,
    // From here on all are ready.
    end: usize,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Unready,
    Ready,
    Failed,
}

impl Readiness {
    /// No service is known to be ready.
    const UNKNOWN: Self = Self {
        phase: Phase::Unready,
        start: 0,
        bits: 0,
        end: usize::MAX,
    };

    /// All services but one are known to be ready.
    const fn unready(index: usize) -> Self {
        Self {
            phase: Phase::Unready,
            start: index,
            bits: 1,
            end: index,
        }
    }

    fn poll<S: Service<Req>, Req>(
        &mut self,
        services: &mut [S],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error<S::Error>>> {
        if services.is_empty() {
            return Poll::Ready(Err(Error::Empty(Empty::new())));
        }
        if let Phase::Failed = self.phase {
            return Poll::Ready(Err(Error::Failed(Failed::new())));
        }
        let polled = match mark(cx) {
            None => self.poll_unready(services, cx),
            Some(mark) => self.poll_marked(mark, services, cx),
        };
        polled.map_err(|error| {
            self.phase = Phase::Failed;
            Error::Service(error)
        })
    }

    #[cold]
    fn poll_marked<S: Service<Req>, Req>(
        &mut self,
        mark: Mark,
        services: &mut [S],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>> {
        match mark {
            Mark::Drive => self.drive(services, cx),
            Mark::Try => match self.poll_unready(services, cx) {
                Poll::Pending => self.withdraw(services),
                polled => polled,
            },
        }
    }

    fn poll_unready<S: Service<Req>, Req>(
        &mut self,
        services: &mut [S],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>> {
        if let Phase::Ready = self.phase {
            return Poll::Ready(Ok(()));
        }
        ready!(match services.get_mut(self.start) {
            // After a call only the called service is polled.
            Some(called) if self.start == self.end => called.poll_ready(cx),
            _ => self.poll_windows(services, cx),
        })?;
        self.phase = Phase::Ready;
        Poll::Ready(Ok(()))
    }

    /// Drives all services. None is known to be ready afterwards.
    #[cold]
    fn drive<S: Service<Req>, Req>(
        &mut self,
        services: &mut [S],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>> {
        *self = Self::UNKNOWN;
        let mut polled = Poll::Ready(Ok(()));
        for service in services {
            if service.poll_ready(cx)?.is_pending() {
                polled = Poll::Pending;
            }
        }
        polled
    }

    /// Some services are not ready, and a caller that only tried does not come back: the ready ones give up what they
    /// reserved.
    #[cold]
    fn withdraw<S: Service<Req>, Req>(&mut self, services: &mut [S]) -> Poll<Result<(), S::Error>> {
        let known = replace(self, Self::UNKNOWN);
        for (index, service) in services.iter_mut().enumerate() {
            if known.is_ready(index) {
                // Any other work it has is done at its next poll.
                let _ = withdraw(|cx| service.poll_ready(cx))?;
            }
        }
        Poll::Pending
    }

    /// Whether the service at `index` is known to be ready.
    fn is_ready(&self, index: usize) -> bool {
        match index.checked_sub(self.start) {
            None => true,
            Some(offset) if offset < u64::BITS as usize && self.bits != 0 => {
                self.bits >> offset & 1 == 0
            }
            Some(_) => index >= self.end,
        }
    }

    fn poll_windows<S: Service<Req>, Req>(
        &mut self,
        services: &mut [S],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>> {
        let end = self.end.min(services.len());
        loop {
            ready!(self.poll_window(services, cx))?;
            if self.start >= end {
                return Poll::Ready(Ok(()));
            }
            self.bits = u64::MAX >> (u64::BITS as usize).saturating_sub(end - self.start);
        }
    }

    /// Polls the services in the window, and moves past it once all are ready.
    fn poll_window<S: Service<Req>, Req>(
        &mut self,
        services: &mut [S],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Error>> {
        let mut left = self.bits;
        if left == 0 {
            return Poll::Ready(Ok(()));
        }
        while left != 0 {
            let bit = left & left.wrapping_neg();
            left ^= bit;
            let polled = match services.get_mut(self.start + bit.trailing_zeros() as usize) {
                Some(service) => service.poll_ready(cx)?,
                None => Poll::Ready(()),
            };
            if polled.is_ready() {
                self.bits ^= bit;
            }
        }
        if self.bits != 0 {
            return Poll::Pending;
        }
        self.start = self.start.saturating_add(u64::BITS as usize);
        Poll::Ready(Ok(()))
    }
}

pin_project! {
    /// The response of a [`Steer`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    // Flat, with each refusal no wider than a word, so that it needs no tag of its own beside most futures.
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F> {
        Called {
            #[pin]
            inner: F,
        },
        Empty,
        Failed,
        NotReady,
        OutOfRange {
            error: OutOfRange,
        },
    }
}

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Err(match self.project().state.project() {
            StateProj::Called { inner } => return inner.poll(cx).map_err(Error::Service),
            StateProj::Empty => Error::Empty(Empty::new()),
            StateProj::Failed => Error::Failed(Failed::new()),
            StateProj::NotReady => Error::NotReady(NotReady::new()),
            StateProj::OutOfRange { error } => Error::OutOfRange(*error),
        }))
    }
}

/// How a [`Steer`] fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// There are no services.
    Empty(Empty),
    /// One of the services failed earlier, when it was polled for readiness.
    Failed(Failed),
    /// The call came without readiness.
    NotReady(NotReady),
    /// The service that was picked does not exist.
    OutOfRange(OutOfRange),
    /// The picked service failed; or, as the error of readiness, any service.
    Service(E),
}

flatten!(Error: Empty, Failed, NotReady, OutOfRange);

leaf_error! {
    /// There is no service to send a request to.
    Empty, "no services to choose from"
}

leaf_error! {
    /// One of the services failed earlier, and its error was returned then.
    Failed, "one of the services has failed"
}

leaf_error! {
    /// A request came before all services were ready.
    NotReady, "service called before it was ready"
}

/// A picker returned an index without a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    index: u32,
    len: u32,
}

impl OutOfRange {
    fn new(index: usize, len: usize) -> Self {
        let narrow = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            index: narrow(index),
            len: narrow(len),
        }
    }

    /// The index that was picked, at most `u32::MAX`.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index as usize
    }

    /// How many services there are.
    #[must_use]
    pub const fn services(&self) -> usize {
        self.len as usize
    }
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, len } = self;
        write!(f, "picked service {index} of {len}, counted from 0")
    }
}

impl core::error::Error for OutOfRange {}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use alloc::rc::Rc;
    use core::cell::Cell;
    use core::future::{Ready, ready};
    use core::task::Waker;

    use super::*;
    use crate::sync::{drive, is_drive, try_poll};

    /// Reserves a place when it is ready, and gives it up when it is driven.
    #[derive(Clone, Default)]
    struct Place(Rc<Shared>);

    #[derive(Default)]
    struct Shared {
        is_taken: Cell<bool>,
        is_broken: Cell<bool>,
        is_reserved: Cell<bool>,
        drives: Cell<u32>,
    }

    impl Service<usize> for Place {
        type Response = ();
        type Error = ();
        type Future = Ready<Result<(), ()>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
            let Shared {
                is_taken,
                is_broken,
                is_reserved,
                drives,
            } = &*self.0;
            is_reserved.set(!is_drive(cx) && !is_taken.get());
            drives.set(drives.get() + u32::from(is_drive(cx)));
            match is_taken.get() {
                _ if is_broken.get() => Poll::Ready(Err(())),
                true => Poll::Pending,
                false => Poll::Ready(Ok(())),
            }
        }

        fn call(&mut self, _: usize) -> Self::Future {
            assert!(self.0.is_reserved.take());
            ready(Ok(()))
        }
    }

    struct Set<const N: usize> {
        steer: Steer<Place, fn(&usize, &[Place]) -> usize, usize, [Place; N]>,
        places: [Place; N],
    }

    impl<const N: usize> Set<N> {
        fn new() -> Self {
            let places = core::array::from_fn(|_| Place::default());
            Self {
                steer: Steer::with_services(places.clone(), |index, _| *index),
                places,
            }
        }

        fn poll(&mut self) -> Poll<Result<(), Error<()>>> {
            let mut cx = Context::from_waker(Waker::noop());
            self.steer.poll_ready(&mut cx)
        }

        fn drive(&mut self) -> Poll<Result<(), Error<()>>> {
            drive(Waker::noop(), |cx| self.steer.poll_ready(cx))
        }

        fn reserved(&self) -> usize {
            let reserved = self.places.iter().map(|place| &place.0.is_reserved);
            reserved.filter(|reserved| reserved.get()).count()
        }
    }

    #[test]
    fn drive_gives_up_all_readiness() {
        let mut set = Set::<3>::new();
        assert!(set.poll().is_ready());
        assert_eq!(set.reserved(), 3);
        assert_eq!(set.drive(), Poll::Ready(Ok(())));
        assert_eq!(set.reserved(), 0);
        let refused = set.steer.call(0);
        assert!(matches!(refused.state, State::NotReady));
        // All services are polled again, not only the one called last.
        assert!(set.poll().is_ready());
        assert_eq!(set.reserved(), 3);
        drop(set.steer.call(1));
        assert_eq!(set.drive(), Poll::Ready(Ok(())));
        assert!(set.poll().is_ready());
        assert_eq!(set.reserved(), 3);
    }

    #[test]
    fn drive_marks_none_as_ready() {
        let mut set = Set::<2>::new();
        set.places[1].0.is_taken.set(true);
        assert!(set.drive().is_pending());
        set.places[1].0.is_taken.set(false);
        assert_eq!(set.drive(), Poll::Ready(Ok(())));
        let refused = set.steer.call(0);
        assert!(matches!(refused.state, State::NotReady));
        // A pending service does not stop the others from being driven.
        assert!(set.places.iter().all(|place| place.0.drives.get() == 2));
    }

    #[test]
    fn drive_can_fail() {
        let mut set = Set::<2>::new();
        assert!(set.poll().is_ready());
        set.places[1].0.is_broken.set(true);
        assert_eq!(set.drive(), Poll::Ready(Err(Error::Service(()))));
        let failed = Error::Failed(Failed::new());
        assert_eq!(set.drive(), Poll::Ready(Err(failed.clone())));
        assert_eq!(set.poll(), Poll::Ready(Err(failed)));
    }

    #[test]
    fn failed_try_keeps_nothing() {
        // In the first window, after a call, and in a later window.
        let mut set = Set::<100>::new();
        for taken in [0, 40, 99] {
            let place = set.places[taken].clone();
            place.0.drives.set(0);
            place.0.is_taken.set(true);
            for _ in 0..2 {
                assert!(try_poll(|cx| set.steer.poll_ready(cx)).is_pending());
                assert_eq!(set.reserved(), 0);
            }
            // A service that reserved nothing is not driven.
            assert_eq!(place.0.drives.get(), 0);
            place.0.is_taken.set(false);
            assert!(try_poll(|cx| set.steer.poll_ready(cx)).is_ready());
            assert_eq!(set.reserved(), 100);
            drop(set.steer.call(taken));
            place.0.is_taken.set(true);
            assert!(try_poll(|cx| set.steer.poll_ready(cx)).is_pending());
            assert_eq!((set.reserved(), place.0.drives.get()), (0, 0));
            place.0.is_taken.set(false);
        }
    }

    #[test]
    fn unready_try_can_fail() {
        let mut set = Set::<2>::new();
        set.places[1].0.is_taken.set(true);
        assert!(set.poll().is_pending());
        set.places[0].0.is_broken.set(true);
        let failed = try_poll(|cx| set.steer.poll_ready(cx));
        assert_eq!(failed, Poll::Ready(Err(Error::Service(()))));
    }
}
