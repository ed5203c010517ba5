//! [`Balance`]: the power of two choices.
//!
//! For each request, two different ready endpoints are drawn at random, and the one with the lower load gets it; if
//! both have the same load, either may. The choice is nearly as good as the best of all endpoints, costs the same
//! however many there are, and does not send every request to the endpoint that looks best at the moment.
//! (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.)
//!
//! When the loads stay the same and no two are equal, the endpoint with the `k`-th lowest load of `n` gets the share
//! `2 (n - k) / (n (n - 1))` of the requests: the worst gets none, the best `2 / n`. When the two worst of `n` are both
//! bad, one request in `n (n - 1) / 2` has to choose between them: 1 in 6 with 4 endpoints.
//!
//! # Examples
//!
//! See [`balance`](super).
//!
//! # What is polled, and in which order
//!
//! 1. Discovery, for changes: a removed endpoint is neither polled nor called, and a new one is polled at once.
//! 2. The readiness of the endpoints that are new, were called or were woken. The others have not changed.
//! 3. The [`Load`] of two of the ready endpoints. The others cannot be called, so their load does not matter.
//! 4. The readiness of the chosen endpoint, once more: it may have become ready long ago, and no longer be. If it is
//!    not ready, or is removed before the call, the choice is made again.
//!
//! So a request costs the same however many endpoints there are, and goes to one that was ready when last polled.
//!
//! # What happens to an endpoint
//!
//! - It is wrapped by the balancer's layer, by default a [`QuarantineLayer`]: when its readiness fails, it waits out a
//!   backoff and continues with a clone. If the wrapped endpoint fails too, as it always does with
//!   [`Identity`](crate::layer::Identity), it is dropped until discovery inserts it again.
//! - When discovery inserts a service for a known key, the endpoint gets a new service. If the old one was ever ready,
//!   it is polled and called until the new one is ready. What was learned about the endpoint still holds: its
//!   [load](Load::take_over), its backoff, and how long it is set aside.
//! - When discovery removes it, it is dropped before the next request, and forgotten. Requests in flight continue.
//! - While it is ready and others are chosen, it keeps what its readiness has reserved. So anything that endpoints
//!   share, such as a common limit, belongs outside the balancer.
//! - In an idle [`Buffer`](crate::buffer) it continues with work of its own, such as connecting. It gives up what it
//!   has reserved, and its place in any wait queue.
//!
//! # Differences from tower
//!
//! - An endpoint that failed comes back.
//! - When an endpoint's service is replaced, the old one serves until the new one is ready, even if the old one was
//!   just called, or is busy.
//! - The choice is made again when the chosen endpoint was removed.
//! - When discovery has ended and there is no endpoint, `poll_ready` fails with [`NoEndpoints`] instead of waiting for
//!   ever.
//! - A call without readiness takes a ready endpoint, or fails with [`NotReady`].
//! - The error is an enum, [`Error`], and not a box.
//! - One poll takes at most 128 changes from discovery and polls at most 256 endpoints, then lets other tasks run
//!   before it continues.
//! - [`from_rng`](Balance::from_rng) takes only a seed from its generator.
//! - The quarantine needs endpoints that are `Clone`. For others, there is [`with_layer`](Balance::with_layer).

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
use crate::ready_cache::{Checked, POLLS, ReadyCache};
use crate::sync::{Mark, is_marked, mark, own_work};
use crate::util::rng::{HasherRng, Rng};
use crate::{Layer, NoRuntime, Service};

pub use super::error::Error;

/// Spreads requests over the endpoints that `D` discovers.
///
/// `L` is the layer that wraps each of them. See the [module](self).
///
/// As in tower, `D` has to be `Unpin`; [`Box::pin`](alloc::boxed::Box::pin) makes it so.
///
/// # Cancel safety
///
/// A caller that stops waiting for readiness loses nothing. The next call uses the choice that was made for it.
pub struct Balance<D, Req, L = QuarantineLayer<NoRuntime>>
where
    D: Discover,
    L: Layer<D::Service>,
{
    discover: D,
    // Discovery has ended, and must not be polled again.
    is_settled: bool,
    layer: L,
    endpoints: ReadyCache<D::Key, L::Service, Req>,
    draw: Draw,
}

type Readiness<D, S, Req> =
    Poll<Result<(), Error<<D as Discover>::Error, <S as Service<Req>>::Error>>>;

/// How many changes one poll takes from discovery. More than arrive between two polls of a balancer in use.
const CHANGES: usize = 128;

impl<D, Req, T> Balance<D, Req, QuarantineLayer<T>>
where
    D: Discover,
    D::Key: Hash + Eq,
    T: Clone,
    QuarantineLayer<T>: Layer<D::Service>,
{
    /// Spreads requests over the endpoints of `discover`, on the default timer. Each is put in
    /// [quarantine](super::quarantine) when it fails.
    pub fn new(discover: D) -> Self
    where
        T: Default,
    {
        Self::with_timer(discover, T::default())
    }

    /// As [`new`](Self::new), seeded from `rng`: the same seed makes the same choices.
    pub fn from_rng<R: Rng>(discover: D, rng: R) -> Self
    where
        T: Default,
    {
        Self::new(discover).seed(rng)
    }

    /// Like [`new`](Self::new), but on `timer`.
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
    /// With [`Identity`](crate::layer::Identity), an endpoint that fails is dropped, as in tower.
    pub fn with_layer(discover: D, layer: L) -> Self {
        Self {
            discover,
            is_settled: false,
            layer,
            endpoints: ReadyCache::new(),
            draw: Draw(HasherRng::new().next_u64()),
        }
    }

    /// Reseeds the choices from `rng`: the same seed makes the same choices.
    ///
    /// Nothing else is seeded: the jitter of a backoff, such as the quarantine's, has a generator of its own.
    #[must_use]
    pub fn seed<R: Rng>(mut self, mut rng: R) -> Self {
        self.draw = Draw(rng.next_u64());
        self
    }
}

impl<D, Req, L> Balance<D, Req, L>
where
    D: Discover,
    L: Layer<D::Service>,
{
    /// How many endpoints there are, ready or not.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there is no endpoint.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// How many endpoints were ready at the last poll and have not been called since.
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
    /// Follows discovery. `true` if there may be more changes at once.
    #[inline(always)]
    fn follow_discover(&mut self, cx: &mut Context<'_>) -> Result<bool, Error<D::Error, S::Error>> {
        Ok(!self.is_settled && self.poll_discover(cx).map_err(Error::Discover)?)
    }

    /// As `follow_discover`; discovery must not have ended.
    fn poll_discover(&mut self, cx: &mut Context<'_>) -> Result<bool, DiscoverFailed<D::Error>> {
        for _ in 0..CHANGES {
            // Discovery may wait for services of its own, which are polled for requests of their own.
            let discover = Pin::new(&mut self.discover);
            match own_work(cx, |cx| discover.poll_discover(cx)) {
                Poll::Pending => return Ok(false),
                Poll::Ready(None) => {
                    self.is_settled = true;
                    return Ok(false);
                }
                Poll::Ready(Some(Ok(Change::Insert(key, service)))) => {
                    let mut endpoint = self.layer.layer(service);
                    self.endpoints
                        .for_each_of(&key, |predecessor| endpoint.take_over(predecessor));
                    self.endpoints.push(key, endpoint);
                }
                Poll::Ready(Some(Ok(Change::Remove(key)))) => {
                    self.endpoints.evict(&key);
                }
                Poll::Ready(Some(Err(error))) => return Err(DiscoverFailed(error)),
            }
        }
        Ok(true)
    }

    /// The index of the less loaded of two random ready endpoints.
    #[inline(always)]
    fn choose(&mut self) -> Option<usize> {
        let count = self.endpoints.settled_len();
        if count < 2 {
            return count.checked_sub(1);
        }
        let (a, b) = self.draw.two_of(count);
        let is_first = |first: &S, second: &S| first.is_no_busier_than(second);
        Some(self.endpoints.better_of(a, b, is_first))
    }

    /// Polls everything that is due, with a full budget.
    #[inline(never)]
    fn poll_all(&mut self, cx: &mut Context<'_>, more: bool) -> Readiness<D, S, Req> {
        self.poll_rest(cx, more, POLLS)
    }

    /// As `poll_all`, with what is left of the budget.
    #[inline(never)]
    fn poll_rest(
        &mut self,
        cx: &mut Context<'_>,
        more: bool,
        mut left: usize,
    ) -> Readiness<D, S, Req> {
        let before = self.endpoints.settled_len();
        // An endpoint that fails is removed; the others go on.
        while self.endpoints.poll_due(&mut left).is_err() {}
        let is_ready = self.choose_ready(before, &mut left, ReadyCache::check);
        self.finish(cx, more, is_ready)
    }

    /// Arranges for the next poll, after endpoints were polled and one was chosen, if any is ready.
    fn finish(&mut self, cx: &mut Context<'_>, more: bool, is_ready: bool) -> Readiness<D, S, Req> {
        // Even if one is ready: the others become ready only when polled.
        if self.endpoints.pending_len() > 0 {
            self.endpoints.register(cx);
        }
        if more || (!is_ready && self.endpoints.ready_len() > 0) {
            cx.waker().wake_by_ref();
        }
        self.readiness(is_ready)
    }

    #[cold]
    fn poll_marked(&mut self, cx: &mut Context<'_>) -> Readiness<D, S, Req> {
        let more = self.follow_discover(cx)?;
        match mark(cx) {
            None => self.prepare_all(cx, more),
            Some(Mark::Try) => self.try_all(cx),
            Some(Mark::Drive) => self.drive_all(cx, more),
        }
    }

    /// As `poll_all`, before there is a request.
    fn prepare_all(&mut self, cx: &mut Context<'_>, more: bool) -> Readiness<D, S, Req> {
        let mut left = POLLS;
        let before = self.endpoints.settled_len();
        // An endpoint that fails is removed; the others go on.
        while self.endpoints.prepare_due(&mut left).is_err() {}
        let is_ready = self.choose_ready(before, &mut left, ReadyCache::prepare_check);
        self.finish(cx, more, is_ready)
    }

    /// Polls on behalf of no request: endpoints continue with their own work, but none is chosen.
    fn drive_all(&mut self, cx: &mut Context<'_>, more: bool) -> Readiness<D, S, Req> {
        // An endpoint that fails is removed; the others go on.
        let mut left = POLLS;
        while self.endpoints.drive_due(&mut left).is_err() {}
        let polled = self.endpoints.poll_driven(cx);
        if more {
            cx.waker().wake_by_ref();
        }
        let is_done = self.is_settled && polled.is_ready() && !self.is_empty();
        self.readiness(is_done)
    }

    /// Polls for a caller that only tries: no waker is registered.
    fn try_all(&mut self, cx: &mut Context<'_>) -> Readiness<D, S, Req> {
        let before = self.endpoints.settled_len();
        while self.endpoints.try_due(cx).is_err() {}
        let try_check = |endpoints: &mut ReadyCache<_, _, _>, index| endpoints.try_check(index, cx);
        let is_ready = self.choose_ready(before, &mut { POLLS }, try_check);
        self.readiness(is_ready)
    }

    fn readiness(&self, is_ready: bool) -> Readiness<D, S, Req> {
        if is_ready {
            Poll::Ready(Ok(()))
        } else if self.is_settled && self.is_empty() {
            Poll::Ready(Err(Error::NoEndpoints(NoEndpoints::new())))
        } else {
            Poll::Pending
        }
    }

    /// Chooses until the chosen endpoint is ready. Those from the index `before` on became ready in this poll, and are not
    /// polled again: they may be ready for a moment only. `check` polls the others. `false` if none is ready, or the
    /// budget of this poll is used up.
    fn choose_ready(
        &mut self,
        before: usize,
        budget: &mut usize,
        mut check: impl FnMut(&mut ReadyCache<D::Key, S, Req>, usize) -> Checked<D::Key, S::Error>,
    ) -> bool {
        while let Some(index) = self.endpoints.chosen().or_else(|| self.choose()) {
            if index >= before || matches!(check(&mut self.endpoints, index), Ok(true)) {
                self.endpoints.choose(index);
                return true;
            }
            *budget = budget.saturating_sub(1);
            if *budget == 0 {
                return false;
            }
        }
        false
    }

    #[cold]
    fn call_unready(&mut self, request: Req) -> Option<S::Future> {
        let index = self.choose()?;
        Some(self.endpoints.call_at(index, request))
    }
}

/// Randomness from a linear congruential generator with the constant of Knuth's MMIX ("The Art of Computer
/// Programming", volume 2, section 3.3.4): it has to be cheap, and need not be secret. Only its high bits are random
/// enough.
#[derive(Debug)]
struct Draw(u64);

impl Draw {
    /// Two different numbers below `count`, which is at least 2. All pairs are equally likely, up to the square of the
    /// count in 2^64.
    #[inline(always)]
    fn two_of(&mut self, count: usize) -> (usize, usize) {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        // The remainder of the first draw serves for the second, which is among all numbers but the first.
        let (a, rest) = scale(self.0, count);
        let (b, _) = scale(rest, count - 1);
        (a, if b < a { b } else { b + 1 })
    }
}

/// A number of 64 bits scaled below `count`, and the remainder.
fn scale(number: u64, count: usize) -> (usize, u64) {
    let product = u128::from(number) * count as u128;
    ((product >> 64) as usize, product as u64)
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

    /// Ready when at least one endpoint is.
    ///
    /// # Errors
    ///
    /// When discovery fails; when there is no endpoint and discovery has ended.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if is_marked(cx) {
            return self.poll_marked(cx);
        }
        let more = self.follow_discover(cx)?;
        // The usual case: nothing has happened since the last poll but a call, and both the called and the chosen
        // endpoint are ready.
        let called = match self.endpoints.called() {
            Some(called) if !more => called,
            _ => return self.poll_all(cx, more),
        };
        if self.endpoints.poll_called(called).is_err() {
            return self.poll_rest(cx, false, POLLS - 1);
        }
        let Some(index) = self.choose() else {
            return self.poll_rest(cx, false, POLLS - 1);
        };
        if !matches!(self.endpoints.check(index), Ok(true)) {
            return self.poll_rest(cx, false, POLLS - 2);
        }
        self.endpoints.choose(index);
        if !self.endpoints.is_all_ready() {
            self.endpoints.register(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let inner = match self.endpoints.chosen() {
            Some(index) => Some(self.endpoints.call_at(index, request)),
            None => self.call_unready(request),
        };
        ResponseFuture {
            inner,
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
    /// A layer that makes a [`Balance`] of what `D` discovers, on the default timer.
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
    /// Like [`new`](Self::new), but on `timer`.
    pub fn with_timer(timer: T) -> Self {
        Self::with_layer(QuarantineLayer::with_timer(timer))
    }
}

impl<D, Req, L> MakeBalanceLayer<D, Req, L> {
    /// As [`new`](Self::new), with each endpoint wrapped by `layer`.
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

/// Makes balancers: a service that responds with a [`Balance`] where the inner one responds with a [`Discover`].
pub struct MakeBalance<S, Req, L = QuarantineLayer<NoRuntime>> {
    inner: S,
    layer: L,
    request: PhantomData<fn(Req)>,
}

impl<S, Req, T: Clone> MakeBalance<S, Req, QuarantineLayer<T>> {
    /// Makes a [`Balance`] of what `make_discover` discovers, on the default timer.
    pub fn new(make_discover: S) -> Self
    where
        T: Default,
    {
        Self::with_timer(make_discover, T::default())
    }

    /// Like [`new`](Self::new), but on `timer`.
    pub fn with_timer(make_discover: S, timer: T) -> Self {
        Self::with_layer(make_discover, QuarantineLayer::with_timer(timer))
    }
}

impl<S, Req, L> MakeBalance<S, Req, L> {
    /// As [`new`](Self::new), with each endpoint wrapped by `layer`.
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
    /// The future of a [`MakeBalance`], which makes a [`Balance`].
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

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn pairs_are_drawn_uniformly() {
        for count in [2, 3, 7, 128] {
            let mut draw = Draw(17);
            let mut drawn = vec![0_u32; count * count];
            let each = 400;
            for _ in 0..each * count * (count - 1) {
                let (a, b) = draw.two_of(count);
                assert!(a < count && b < count);
                drawn[a * count + b] += 1;
            }
            for (pair, found) in drawn.into_iter().enumerate() {
                if pair / count == pair % count {
                    assert_eq!(found, 0);
                } else {
                    // Six standard deviations.
                    assert!((280..520).contains(&found), "{pair} of {count}: {found}");
                }
            }
        }
    }
}
