//! Sends each request to one of several services, which a function picks.
//!
//! A [`Steer`] is ready when all its services are, since it cannot know which one the next request is for. One
//! that is slow to be ready holds up the requests for the others; a [`Buffer`] or a [`LoadShed`] around each
//! keeps it from doing so.
//!
//! Services that are not ready are asked all together, each of them on its own account; a service that is ready
//! is not asked again before it was called. With more than 64 services, the next 64 are asked when those before
//! them are ready.
//!
//! When the readiness of one service fails, so does that of the `Steer`, for good: [`Failed`] says so from then
//! on, and no service is asked again. Where a service may fail and come back, put a
//! [`Reconnect`](crate::reconnect) around it.
//!
//! [`Buffer`]: crate::buffer
//! [`LoadShed`]: crate::load_shed
//!
//! # Differences from tower
//!
//! - A clone starts with no service ready. tower's takes over the readiness of its original, which the cloned
//!   services do not have.
//! - Services become ready side by side, not one after the other.
//! - An index that is [out of range](OutOfRange), a call without readiness and a set of services that is
//!   [empty](Empty) are typed errors, not panics.
//! - The services may be in an array or a slice, and then nothing is allocated.
//! - A picker may be an `FnMut`.
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

#[cfg(feature = "alloc")]
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::Service;

/// Picks the service that a request is for.
///
/// Implemented by functions from a request and the services to an index.
pub trait Picker<S, Req> {
    /// The index in `services` of the one that gets `request`.
    ///
    /// An index that is not there fails the request with [`OutOfRange`].
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

/// A service that sends each request to one of many services of the type `S`.
///
/// `C` is what holds the services: a `Vec` where there is an allocator, and otherwise an array `[S; N]` or a
/// `&mut [S]`.
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
    /// Sends requests to that of the `services` which `router`, a [`Picker`], picks.
    pub fn new(services: impl IntoIterator<Item = S>, router: F) -> Self {
        Self::with_services(services.into_iter().collect(), router)
    }
}

impl<S, F, Req, C> Steer<S, F, Req, C> {
    /// Sends requests to that of the `services`, an array or a slice, which `router`, a [`Picker`], picks.
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

// The clones of the services were never polled.
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
/// After a call that is the one which was called. Before the first, it is all of them, and they are gone
/// through by windows as wide as a word, so that there is nothing to allocate.
struct Readiness {
    phase: Phase,
    // The window starts at this index, with a bit for each service in it that is not ready. With no bit set
    // it has yet to be opened.
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
    /// Of none.
    const UNKNOWN: Self = Self {
        phase: Phase::Unready,
        start: 0,
        bits: 0,
        end: usize::MAX,
    };

    /// Of all but one.
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
        match self.phase {
            Phase::Unready => {}
            Phase::Ready => return Poll::Ready(Ok(())),
            Phase::Failed => return Poll::Ready(Err(Error::Failed(Failed::new()))),
        }
        let polled = match services.get_mut(self.start) {
            // After a call there is one to ask.
            Some(called) if self.start == self.end => ready!(called.poll_ready(cx)),
            _ => ready!(self.poll_windows(services, cx)),
        };
        Poll::Ready(match polled {
            Ok(()) => {
                self.phase = Phase::Ready;
                Ok(())
            }
            Err(error) => {
                self.phase = Phase::Failed;
                Err(Error::Service(error))
            }
        })
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

    /// Asks those in the window; behind it when all of them are ready.
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
    // Flat, and each refusal no wider than a word: so it fits beside most futures without a tag of its own.
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
    /// One of the services has failed when it was asked whether it is ready.
    Failed(Failed),
    /// The call came without readiness.
    NotReady(NotReady),
    /// The service that was picked does not exist.
    OutOfRange(OutOfRange),
    /// The service that was picked failed; or any of them, as the error of readiness.
    Service(E),
}

flatten!(Error: Empty, Failed, NotReady, OutOfRange);

leaf_error! {
    /// There is no service to send a request to.
    Empty, "no services to choose from"
}

leaf_error! {
    /// One of the services failed earlier, and its error was given then.
    Failed, "one of the services has failed"
}

leaf_error! {
    /// A request came before all services were ready.
    NotReady, "service called before it was ready"
}

/// A picker gave an index at which there is no service.
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

    /// The index that was picked. One above `u32::MAX` is given as that.
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
