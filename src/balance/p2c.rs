//! [`Balance`]: the power of two choices.
//!
//! For each request two different ready endpoints are drawn by chance, and the one with the lower load gets
//! it; of two with the same, either. The choice is nearly as good as that of the best of all endpoints, costs the
//! same however many there are, and does not send everybody to the one that looks best at the moment.
//! (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.)
//!
//! When the loads stay the same and no two are equal, the endpoint with the `k`-th lowest load of `n` gets
//! the share `2 (n - k) / (n (n - 1))` of the requests: the worst gets none, the best `2 / n`. When the two worst
//! of `n` are both bad, one request in `n (n - 1) / 2` has but these to choose from: 1 in 6 with 4 endpoints.
//!
//! # What happens to an endpoint
//!
//! - It is wrapped by the balancer's layer, by default a [`QuarantineLayer`]: when its readiness fails, it waits
//!   out a backoff and goes on with a clone. If it fails through the layer, as it always does through
//!   [`Identity`](crate::layer::Identity), it is dropped, and is gone until discovery inserts it again.
//! - When discovery inserts a service for a key that is known, the old service is used on until the new one is
//!   ready.
//! - When discovery removes it, it is dropped before the next request. What it is answering goes on.
//! - It is polled when it was called and when it was woken, and once more when it is chosen. If it turns out not
//!   to be ready then, or is removed before the call, the choice is made again.
//! - While it is ready and others are chosen, it keeps what its readiness has reserved. So what endpoints share,
//!   such as a limit for all of them, belongs outside the balancer.
//!
//! # Differences from tower
//!
//! - An endpoint that failed comes back.
//! - The choice is made again when the chosen endpoint was removed.
//! - When discovery has ended and there is no endpoint, `poll_ready` fails with [`NoEndpoints`], and does not
//!   wait for ever.
//! - A call without readiness takes a ready endpoint, or fails with [`NotReady`].
//! - The error is an enum, [`Error`], and not a box.
//! - One poll takes at most 128 changes from discovery and asks at most 256 endpoints, and lets others run
//!   before it goes on.
//! - [`from_rng`](Balance::from_rng) takes a seed from its generator, and no more.
//! - Endpoints have to be `Clone` for the quarantine. For those that are not, there is
//!   [`with_layer`](Balance::with_layer).
//!
//! # Examples
//!
//! See [`balance`](super).

use core::fmt;
use core::hash::Hash;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::error::{Discover as DiscoverFailed, NoEndpoints, NotReady};
use super::quarantine::QuarantineLayer;
use crate::discover::{Change, Discover};
use crate::load::Load;
use crate::ready_cache::{Checked, POLLS, ReadyCache, Ticket};
use crate::util::rng::{HasherRng, Rng, SplitMix64};
use crate::{Layer, NoRuntime, Service, sync::is_attempt};

pub use super::error::Error;

/// Spreads requests over the endpoints that `D` discovers.
///
/// `L` is the layer that each of them is wrapped by. See the [module](self).
///
/// As with tower `D` has to be `Unpin`; [`Box::pin`](alloc::boxed::Box::pin) makes it so.
///
/// # Cancel safety
///
/// A caller that stops waiting for readiness loses nothing. The choice that was made for it stands for the
/// next call.
pub struct Balance<D, Req, L = QuarantineLayer<NoRuntime>>
where
    D: Discover,
    L: Layer<D::Service>,
{
    discover: D,
    // The discovery has said that there will be no more changes, and is not to be polled again.
    is_settled: bool,
    layer: L,
    endpoints: ReadyCache<D::Key, L::Service, Req>,
    chosen: Option<Ticket>,
    rng: SplitMix64,
}

/// How many changes one poll takes from discovery. It is more than come between two polls in a balancer that
/// is used.
const CHANGES: usize = 128;

impl<D, Req, T> Balance<D, Req, QuarantineLayer<T>>
where
    D: Discover,
    D::Key: Hash + Eq,
    T: Clone,
    QuarantineLayer<T>: Layer<D::Service>,
{
    /// Spreads requests over the endpoints of `discover`, each in [quarantine](super::quarantine) when it
    /// fails, on the default timer.
    pub fn new(discover: D) -> Self
    where
        T: Default,
    {
        Self::with_timer(discover, T::default())
    }

    /// As [`new`](Self::new), with a seed from `rng`: the same seed makes the same choices.
    pub fn from_rng<R: Rng>(discover: D, rng: R) -> Self
    where
        T: Default,
    {
        Self::new(discover).seed(rng)
    }

    /// As [`new`](Self::new), with this timer.
    pub fn with_timer(discover: D, timer: T) -> Self {
        Self::with_layer(discover, QuarantineLayer::with_timer(timer))
    }
}

impl<D, Req, L> Balance<D, Req, L>
where
    D: Discover,
    D::Key: Hash + Eq,
    L: Layer<D::Service>,
{
    /// Spreads requests over the endpoints of `discover`, each wrapped by `layer`.
    ///
    /// With [`Identity`](crate::layer::Identity) an endpoint that fails is dropped, as with tower.
    pub fn with_layer(discover: D, layer: L) -> Self {
        Self {
            discover,
            is_settled: false,
            layer,
            endpoints: ReadyCache::new(),
            chosen: None,
            // Two hashes of SipHash for each request would cost more than the choice. Chance has to be
            // cheap here, and need not be secret.
            rng: SplitMix64::new(HasherRng::new().next_u64()),
        }
    }

    /// Draws on with a seed from `rng`: the same seed makes the same choices.
    ///
    /// That is all it seeds: the jitter of a backoff, as of the quarantine's, has a generator of its own.
    #[must_use]
    pub fn seed<R: Rng>(mut self, mut rng: R) -> Self {
        self.rng = SplitMix64::new(rng.next_u64());
        self
    }
}

impl<D, Req, L> Balance<D, Req, L>
where
    D: Discover,
    L: Layer<D::Service>,
{
    /// How many endpoints there are, those included that are not ready.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there is no endpoint.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// How many endpoints were ready when the balancer was last polled.
    pub fn ready_len(&self) -> usize {
        self.endpoints.ready_len()
    }

    /// The discovery.
    pub fn discover(&self) -> &D {
        &self.discover
    }
}

impl<D, Req, L, S> Balance<D, Req, L>
where
    D: Discover + Unpin,
    D::Key: Clone + Eq + Hash,
    L: Layer<D::Service, Service = S>,
    S: Service<Req> + Load,
{
    /// Follows discovery, which is not settled yet. `true` when there may be more at once.
    fn poll_discover(&mut self, cx: &mut Context<'_>) -> Result<bool, DiscoverFailed<D::Error>> {
        for _ in 0..CHANGES {
            match Pin::new(&mut self.discover).poll_discover(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(None) => {
                    self.is_settled = true;
                    return Ok(false);
                }
                Poll::Ready(Some(Ok(Change::Insert(key, service)))) => {
                    self.endpoints.push(key, self.layer.layer(service));
                }
                Poll::Ready(Some(Ok(Change::Remove(key)))) => {
                    self.endpoints.evict(&key);
                }
                Poll::Ready(Some(Err(error))) => return Err(DiscoverFailed(error)),
            }
        }
        Ok(true)
    }

    /// The better one of two ready endpoints.
    #[inline(always)]
    fn choose(&mut self) -> Option<Ticket> {
        let count = self.endpoints.settled_len();
        if count < 2 {
            return self.endpoints.ticket(0);
        }
        // Two different ones: the second is drawn from all but the first. One number serves for both; no
        // endpoint is likelier than another by more than the count in 2^32.
        let drawn = self.rng.next_u64();
        let a = scale(drawn >> 32, count);
        let b = scale(drawn & u64::from(u32::MAX), count - 1);
        let b = if b < a { b } else { b + 1 };
        self.endpoints
            .ticket_of(a, b, |first, second| first.is_no_busier_than(second))
    }

    #[cold]
    fn call_unready(&mut self, request: Req) -> Option<S::Future> {
        let ticket = self.choose()?;
        self.endpoints.try_call(ticket, request).ok()
    }

    /// For a try: registers nobody.
    #[cold]
    fn try_choice(&mut self, cx: &mut Context<'_>, budget: &mut usize) -> bool {
        while self.endpoints.try_due(cx).is_err() {}
        self.poll_choice(budget, |endpoints, ticket| endpoints.check_in(ticket, cx))
    }

    /// Chooses until the chosen one is ready, as `check` says. `false`: none is, or so many were asked in this poll
    /// that the others have to wait for the next.
    #[inline(always)]
    fn poll_choice(
        &mut self,
        budget: &mut usize,
        mut check: impl FnMut(&mut ReadyCache<D::Key, S, Req>, Ticket) -> Checked<D::Key, S::Error>,
    ) -> bool {
        loop {
            let chosen = match self.chosen {
                Some(ticket) if self.endpoints.is_ready(ticket) => Some(ticket),
                _ => self.choose(),
            };
            let Some(ticket) = chosen else {
                self.chosen = None;
                return false;
            };
            if let Ok(true) = check(&mut self.endpoints, ticket) {
                self.chosen = Some(ticket);
                return true;
            }
            self.chosen = None;
            *budget = budget.saturating_sub(1);
            if *budget == 0 {
                return false;
            }
        }
    }
}

/// A number below 2^32 brought below `count`.
fn scale(number: u64, count: usize) -> usize {
    ((number * count as u64) >> 32) as usize
}

impl<D, Req, L, S> Service<Req> for Balance<D, Req, L>
where
    D: Discover + Unpin,
    D::Key: Clone + Eq + Hash,
    L: Layer<D::Service, Service = S>,
    S: Service<Req> + Load,
{
    type Response = S::Response;
    type Error = Error<D::Error, S::Error>;
    type Future = ResponseFuture<S::Future, D::Error>;

    /// Ready when an endpoint is.
    ///
    /// # Errors
    ///
    /// When discovery fails; when there is no endpoint and discovery has ended.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let mut more = !self.is_settled && self.poll_discover(cx).map_err(Error::Discover)?;
        let mut budget = POLLS;
        let is_ready = if is_attempt(cx) {
            self.try_choice(cx, &mut budget)
        } else {
            // Those that fail are gone.
            while self.endpoints.poll_due(&mut budget).is_err() {}
            let is_ready =
                self.poll_choice(&mut budget, |endpoints, ticket| endpoints.check(ticket));
            if is_ready && !more && self.endpoints.is_all_ready() {
                return Poll::Ready(Ok(()));
            }
            more |= !is_ready && self.endpoints.ready_len() > 0;
            // Though an endpoint may be ready: the others get ready only when they are polled.
            if self.endpoints.pending_len() > 0 {
                self.endpoints.register(cx);
            }
            if more {
                cx.waker().wake_by_ref();
            }
            is_ready
        };
        if is_ready {
            Poll::Ready(Ok(()))
        } else if self.is_settled && self.is_empty() {
            Poll::Ready(Err(Error::NoEndpoints(NoEndpoints::new())))
        } else {
            Poll::Pending
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let request = match self.chosen.take() {
            Some(ticket) => match self.endpoints.try_call(ticket, request) {
                Ok(inner) => {
                    return ResponseFuture {
                        inner: Some(inner),
                        discover: PhantomData,
                    };
                }
                Err(request) => request,
            },
            None => request,
        };
        ResponseFuture {
            inner: self.call_unready(request),
            discover: PhantomData,
        }
    }
}

impl<D, Req, L> fmt::Debug for Balance<D, Req, L>
where
    D: Discover<Key: fmt::Debug> + fmt::Debug,
    L: Layer<D::Service> + fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balance")
            .field("discover", &self.discover)
            .field("layer", &self.layer)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// The response of a [`Balance`].
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<F, D> {
        // `None`: no endpoint was ready.
        #[pin]
        inner: Option<F>,
        discover: PhantomData<fn() -> D>,
    }
}

impl<F, D, T, E> Future for ResponseFuture<F, D>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, Error<D, E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().inner.as_pin_mut() {
            Some(inner) => ready!(inner.poll(cx)).map_err(Error::Service),
            None => Err(Error::NotReady(NotReady::new())),
        })
    }
}

impl<F: fmt::Debug, D> fmt::Debug for ResponseFuture<F, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("inner", &self.inner)
            .finish()
    }
}

/// A layer of [`MakeBalance`].
pub struct MakeBalanceLayer<D, Req, L = QuarantineLayer<NoRuntime>> {
    layer: L,
    types: PhantomData<fn(D, Req)>,
}

impl<D, Req, T: Clone + Default> MakeBalanceLayer<D, Req, QuarantineLayer<T>> {
    /// A layer that makes a [`Balance`] of whatever `D` discovers, on the default timer.
    #[must_use]
    pub fn new() -> Self {
        Self::with_layer(QuarantineLayer::new())
    }
}

impl<D, Req, T: Clone + Default> Default for MakeBalanceLayer<D, Req, QuarantineLayer<T>> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D, Req, T: Clone> MakeBalanceLayer<D, Req, QuarantineLayer<T>> {
    /// As [`new`](Self::new), with this timer.
    pub fn with_timer(timer: T) -> Self {
        Self::with_layer(QuarantineLayer::with_timer(timer))
    }
}

impl<D, Req, L> MakeBalanceLayer<D, Req, L> {
    /// As [`new`](Self::new), with the endpoints wrapped by `layer`.
    pub const fn with_layer(layer: L) -> Self {
        Self {
            layer,
            types: PhantomData,
        }
    }
}

impl<D, Req, L: Clone> Layer<D> for MakeBalanceLayer<D, Req, L> {
    type Service = MakeBalance<D, Req, L>;

    fn layer(&self, make_discover: D) -> Self::Service {
        MakeBalance::with_layer(make_discover, self.layer.clone())
    }
}

impl<D, Req, L: Clone> Clone for MakeBalanceLayer<D, Req, L> {
    fn clone(&self) -> Self {
        Self::with_layer(self.layer.clone())
    }
}

impl<D, Req, L: fmt::Debug> fmt::Debug for MakeBalanceLayer<D, Req, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MakeBalanceLayer")
            .field("layer", &self.layer)
            .finish()
    }
}

/// Makes balancers: a service that gives a [`Balance`] where the inner one gives a
/// [`Discover`].
pub struct MakeBalance<S, Req, L = QuarantineLayer<NoRuntime>> {
    inner: S,
    layer: L,
    request: PhantomData<fn(Req)>,
}

impl<S, Req, T: Clone> MakeBalance<S, Req, QuarantineLayer<T>> {
    /// Makes a [`Balance`] of whatever `make_discover` discovers, on the default timer.
    pub fn new(make_discover: S) -> Self
    where
        T: Default,
    {
        Self::with_timer(make_discover, T::default())
    }

    /// As [`new`](Self::new), with this timer.
    pub fn with_timer(make_discover: S, timer: T) -> Self {
        Self::with_layer(make_discover, QuarantineLayer::with_timer(timer))
    }
}

impl<S, Req, L> MakeBalance<S, Req, L> {
    /// As [`new`](Self::new), with the endpoints wrapped by `layer`.
    pub const fn with_layer(make_discover: S, layer: L) -> Self {
        Self {
            inner: make_discover,
            layer,
            request: PhantomData,
        }
    }

    accessors!(S);
}

impl<S: Clone, Req, L: Clone> Clone for MakeBalance<S, Req, L> {
    fn clone(&self) -> Self {
        Self::with_layer(self.inner.clone(), self.layer.clone())
    }
}

impl<S, Req, L, Target> Service<Target> for MakeBalance<S, Req, L>
where
    S: Service<Target, Response: Discover<Key: Eq + Hash>>,
    L: Layer<<S::Response as Discover>::Service> + Clone,
{
    type Response = Balance<S::Response, Req, L>;
    type Error = S::Error;
    type Future = MakeFuture<S::Future, Req, L>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, target: Target) -> Self::Future {
        MakeFuture {
            inner: self.inner.call(target),
            layer: self.layer.clone(),
            request: PhantomData,
        }
    }
}

impl<S: fmt::Debug, Req, L: fmt::Debug> fmt::Debug for MakeBalance<S, Req, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MakeBalance")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish()
    }
}

pin_project! {
    /// A [`Balance`] in the making.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct MakeFuture<F, Req, L = QuarantineLayer<NoRuntime>> {
        #[pin]
        inner: F,
        layer: L,
        request: PhantomData<fn(Req)>,
    }
}

impl<F, Req, L, D, E> Future for MakeFuture<F, Req, L>
where
    F: Future<Output = Result<D, E>>,
    D: Discover<Key: Eq + Hash>,
    L: Layer<D::Service> + Clone,
{
    type Output = Result<Balance<D, Req, L>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let discover = ready!(this.inner.poll(cx))?;
        Poll::Ready(Ok(Balance::with_layer(discover, this.layer.clone())))
    }
}

impl<F: fmt::Debug, Req, L: fmt::Debug> fmt::Debug for MakeFuture<F, Req, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MakeFuture")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish()
    }
}
