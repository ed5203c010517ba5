//! How a cache polls, chooses and calls its services.
//!
//! A place equals an index after [`settled_len`](ReadyCache::settled_len), until the next poll, call or change.

use alloc::boxed::Box;
use core::hash::Hash;
use core::mem::take;
use core::task::{Context, Poll};

use super::order::{Endpoint, Last};
use super::{ReadyCache, error};
use crate::Service;
use crate::sync::{drive, leave_rest, prepare};

/// Whether an endpoint is ready, or how it failed.
pub(crate) type Checked<K, E> = Result<bool, error::Failed<K, E>>;

/// How many services one poll asks. Far more than are woken between two polls of a balancer in use; where readiness is
/// cheap, it takes some microseconds.
pub(crate) const POLLS: usize = 256;

/// How many services a try asks at most, once one is ready.
const TRIES: usize = 16;

// The functions that are always inlined here are on the path of every request through a balancer, a few lines each.
// Entering and leaving them as functions took as long as running them.

impl<K, S, Req> ReadyCache<K, S, Req> {
    /// How many are ready; from now on their indices are their places.
    #[inline(always)]
    pub(crate) fn settled_len(&mut self) -> usize {
        self.order.settled_len()
    }

    /// Whether no endpoint has to be waited for.
    #[inline(always)]
    pub(crate) fn is_all_ready(&self) -> bool {
        self.order.ready == self.order.endpoints.len()
            && !matches!(self.order.last, Last::Called(_))
    }

    /// Of the ready endpoints at two [settled](Self::settled_len) indices, the first if `is_first` says so of their
    /// services, otherwise the second.
    #[inline(always)]
    pub(crate) fn better_of(
        &self,
        first: usize,
        second: usize,
        is_first: impl FnOnce(&S, &S) -> bool,
    ) -> usize {
        let (one, other) = (&self.order.endpoints[first], &self.order.endpoints[second]);
        if is_first(&one.service, &other.service) {
            first
        } else {
            second
        }
    }

    /// Remembers the ready endpoint at a settled index until it is removed or no longer ready, or another is called or
    /// chosen.
    #[inline(always)]
    pub(crate) fn choose(&mut self, index: usize) {
        self.order.last = Last::Chosen(index);
    }

    /// The index of the one that was chosen.
    pub(crate) fn chosen(&self) -> Option<usize> {
        match self.order.last {
            Last::Chosen(at) => Some(at),
            _ => None,
        }
    }

    /// Makes the endpoints due that were woken.
    #[inline]
    fn collect_woken(&mut self) {
        if self.wakes.any() {
            self.collect_some();
        }
    }

    #[cold]
    fn collect_some(&mut self) {
        let mut woken = self.wakes.collect();
        for ticket in woken.drain(..) {
            let Some(at) = self.order.place_of_woken(ticket) else {
                continue;
            };
            self.order.endpoints[at].node.unqueue();
            // A ready endpoint is polled when it is picked.
            if at >= self.order.due {
                self.order.waiting_to_due(at);
            } else if at >= self.order.ready {
                self.order.undrive(at);
            }
        }
        self.wakes.give_back(woken);
    }
}

impl<K: Eq + Hash, S, Req> ReadyCache<K, S, Req> {
    /// Visits the service that was pushed last for a key, then the one that it is to replace.
    pub(crate) fn for_each_of(&mut self, key: &K, mut visit: impl FnMut(&mut S)) {
        let mut slot = self.keys.get(key).copied();
        while let Some(endpoint) = slot.and_then(|slot| self.order.endpoint_of(slot)) {
            visit(&mut endpoint.service);
            slot = endpoint.older;
        }
    }

    /// Removes an endpoint and all references to it.
    pub(super) fn remove(&mut self, at: usize) -> Option<Box<Endpoint<K, S>>> {
        let endpoint = self.order.detach(at)?;
        match (endpoint.older, endpoint.newer) {
            // The endpoint it was to replace stays.
            (Some(older), _) => {
                if let Some(older) = self.order.endpoint_of(older) {
                    older.newer = None;
                }
                if let Some(slot) = self.keys.get_mut(&endpoint.key) {
                    *slot = older;
                }
            }
            (None, Some(newer)) => {
                if let Some(newer) = self.order.endpoint_of(newer) {
                    newer.older = None;
                }
            }
            (None, None) => {
                self.keys.remove(&endpoint.key);
            }
        }
        Some(endpoint)
    }
}

impl<K, S, Req> ReadyCache<K, S, Req>
where
    K: Eq + Hash,
    S: Service<Req>,
{
    /// As [`check_ready_index`](Self::check_ready_index), for an endpoint that was ready a moment ago, at a
    /// [settled](Self::settled_len) index.
    #[inline(always)]
    pub(crate) fn check(&mut self, at: usize) -> Checked<K, S::Error> {
        match self.poll_at(at) {
            Poll::Ready(Ok(())) => Ok(true),
            other => self.checked(at, other, false),
        }
    }

    /// As `check`, before there is a request.
    #[cold]
    pub(crate) fn prepare_check(&mut self, at: usize) -> Checked<K, S::Error> {
        let polled = self.prepare_at(at);
        self.were_prepared |= polled.is_pending();
        self.checked(at, polled, false)
    }

    /// As `check`, in a poll that only tries.
    #[cold]
    pub(crate) fn try_check(&mut self, at: usize, cx: &mut Context<'_>) -> Checked<K, S::Error> {
        match self.try_at(at, cx) {
            Poll::Ready(Ok(())) => Ok(true),
            other => self.checked(at, other, true),
        }
    }

    /// As `check`, in a poll that only drives: the endpoint does not count as ready afterwards.
    #[cold]
    pub(super) fn drive_check(&mut self, at: usize) -> Checked<K, S::Error> {
        match self.drive_at(at) {
            Poll::Ready(Ok(())) => self.order.ready_to_due(at),
            Poll::Ready(Err(error)) => self.failed(at, error)?,
            Poll::Pending => {
                self.order.ready_to_due(at);
                self.driven_to_waiting(self.order.ready);
            }
        }
        Ok(false)
    }

    #[cold]
    fn checked(
        &mut self,
        at: usize,
        polled: Poll<Result<(), S::Error>>,
        was_tried: bool,
    ) -> Checked<K, S::Error> {
        match polled {
            Poll::Ready(Ok(())) => return Ok(true),
            Poll::Ready(Err(error)) => self.failed(at, error)?,
            Poll::Pending => self.not_ready(at, was_tried),
        }
        Ok(false)
    }

    fn not_ready(&mut self, at: usize, was_tried: bool) {
        self.order.ready_to_due(at);
        // A try has left no waker with it, so it stays due.
        if !was_tried {
            self.asked_to_waiting();
        }
    }

    /// The first due endpoint was polled for a caller, and now waits.
    fn asked_to_waiting(&mut self) {
        self.were_asked = true;
        self.order.due_to_waiting(self.order.ready);
    }

    /// A due endpoint was driven, and now waits for more to do.
    fn driven_to_waiting(&mut self, at: usize) {
        self.were_driven = true;
        self.order.due_to_waiting(at);
    }

    /// Makes the waiting endpoints due if some were driven: that may have cost them what they waited for.
    fn ask_driven(&mut self) {
        if take(&mut self.were_driven) {
            self.order.all_to_due();
        }
    }

    /// Makes the waiting endpoints due if some were polled before there was a request: their clocks begin with it.
    fn ask_prepared(&mut self) {
        if take(&mut self.were_prepared) {
            self.order.all_to_due();
        }
    }

    /// Calls the ready endpoint at a settled index.
    #[inline(always)]
    pub(crate) fn call_at(&mut self, at: usize, request: Req) -> S::Future {
        self.order.last = Last::Called(at);
        leave_rest();
        let guard = Asking { cache: self, at };
        let future = guard.cache.order.endpoints[at].service.call(request);
        core::mem::forget(guard);
        future
    }

    /// Polls the due endpoints as far as `budget` allows, up to the first that fails.
    #[inline(always)]
    pub(crate) fn poll_due(
        &mut self,
        budget: &mut usize,
    ) -> Result<(), error::Failed<K, S::Error>> {
        match self.called() {
            Some(at) => {
                *budget = budget.saturating_sub(1);
                self.poll_called(at)
            }
            None => self.poll_all_due(budget),
        }
    }

    /// The endpoint that was called last, if no other is due, which is the usual case.
    #[inline(always)]
    pub(crate) fn called(&self) -> Option<usize> {
        match self.order.last {
            Last::Called(at) if self.order.ready == self.order.due && !self.wakes.any() => Some(at),
            _ => None,
        }
    }

    /// Polls the endpoint that was [called](Self::called).
    #[inline(always)]
    pub(crate) fn poll_called(&mut self, at: usize) -> Result<(), error::Failed<K, S::Error>> {
        match self.poll_at(at) {
            Poll::Ready(Ok(())) => {
                self.order.last = Last::Nobody;
                Ok(())
            }
            other => self.called_is_not_ready(at, other),
        }
    }

    #[cold]
    fn called_is_not_ready(
        &mut self,
        at: usize,
        polled: Poll<Result<(), S::Error>>,
    ) -> Result<(), error::Failed<K, S::Error>> {
        self.order.last = Last::Nobody;
        match polled {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => self.failed(at, error)?,
            Poll::Pending => {
                self.order.ready_to_due(at);
                self.asked_to_waiting();
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn poll_all_due(&mut self, budget: &mut usize) -> Result<(), error::Failed<K, S::Error>> {
        self.order.settle();
        self.ask_prepared();
        self.poll_each_due(budget, Self::poll_at)
    }

    /// As [`poll_due`](Self::poll_due), before there is a request.
    #[cold]
    pub(crate) fn prepare_due(
        &mut self,
        budget: &mut usize,
    ) -> Result<(), error::Failed<K, S::Error>> {
        let polled = self.poll_each_due(budget, Self::prepare_at);
        self.were_prepared |= self.order.due < self.order.endpoints.len();
        polled
    }

    #[inline(always)]
    fn poll_each_due(
        &mut self,
        budget: &mut usize,
        poll_at: impl Fn(&mut Self, usize) -> Poll<Result<(), S::Error>>,
    ) -> Result<(), error::Failed<K, S::Error>> {
        self.order.settle();
        self.ask_driven();
        // First poll the endpoints left over from the last poll: endpoints that wake themselves would starve them.
        if !self.is_behind {
            self.collect_woken();
        }
        while self.order.ready < self.order.due && *budget > 0 {
            *budget -= 1;
            match poll_at(self, self.order.ready) {
                Poll::Ready(Ok(())) => self.order.due_to_ready(self.order.ready),
                Poll::Ready(Err(error)) => self.failed(self.order.ready, error)?,
                Poll::Pending => self.asked_to_waiting(),
            }
        }
        self.is_behind = self.order.ready < self.order.due;
        Ok(())
    }

    /// As [`poll_due`](Self::poll_due), for a try: an endpoint that is not ready stays due, since no waker was left
    /// with it.
    #[cold]
    pub(crate) fn try_due(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Result<(), error::Failed<K, S::Error>> {
        self.order.settle();
        self.ask_driven();
        self.ask_prepared();
        self.collect_woken();
        // The endpoint that was called last is the first due one, and most likely ready.
        let mut skip = 0;
        for tried in 0..self.order.due - self.order.ready {
            let first = self.order.ready + skip;
            if first >= self.order.due || (self.order.ready > 0 && tried >= TRIES) {
                break;
            }
            let at = if tried == 0 {
                skip = 1;
                first
            } else {
                // The next try continues where this one ends.
                self.turn = self.turn.wrapping_add(1);
                first + self.turn as usize % (self.order.due - first)
            };
            match self.try_at(at, cx) {
                Poll::Ready(Ok(())) => {
                    self.order.due_to_ready(at);
                    skip = 0;
                }
                Poll::Ready(Err(error)) => self.failed(at, error)?,
                Poll::Pending => {}
            }
        }
        Ok(())
    }

    /// As [`poll_due`](Self::poll_due), for no caller: drives the endpoints that are due, and those that may hold
    /// something for a request because they are ready or were polled for a caller. None of them is ready or chosen
    /// afterwards.
    ///
    /// The budget does not hold for endpoints that may hold something: the caller may not poll again.
    #[cold]
    pub(crate) fn drive_due(
        &mut self,
        budget: &mut usize,
    ) -> Result<(), error::Failed<K, S::Error>> {
        // Once is enough: the following polls make them give up what they hold.
        let may_hold = self.were_asked || self.order.ready > 0;
        self.order.unready(take(&mut self.were_asked));
        if may_hold {
            *budget = self.order.due.max(*budget);
        }
        if !self.is_behind {
            self.collect_woken();
        }
        while self.order.undriven() < self.order.due && *budget > 0 {
            *budget -= 1;
            let at = self.order.undriven();
            match self.drive_at(at) {
                Poll::Ready(Ok(())) => self.order.drove(),
                Poll::Ready(Err(error)) => self.failed(at, error)?,
                Poll::Pending => self.driven_to_waiting(at),
            }
        }
        self.is_behind = self.order.undriven() < self.order.due;
        Ok(())
    }

    /// Ready when no endpoint has anything left to drive. Arranges the wake-up as [`register`](Self::register) does,
    /// but not for due endpoints that only wait for a caller to ask.
    #[cold]
    pub(crate) fn poll_driven(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_idle = self.order.undriven() == self.order.due && self.wakes.register(cx.waker());
        if !is_idle {
            cx.waker().wake_by_ref();
        }
        if is_idle && self.order.due == self.order.endpoints.len() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Arranges for the task to be woken when there is something to poll again; at once if there already is.
    pub(crate) fn register(&mut self, cx: &mut Context<'_>) {
        if self.ready_len() < self.order.due || !self.wakes.register(cx.waker()) {
            cx.waker().wake_by_ref();
        }
    }

    #[cold]
    fn failed(&mut self, at: usize, error: S::Error) -> Result<(), error::Failed<K, S::Error>> {
        match self.remove(at) {
            Some(endpoint) => Err(error::Failed(endpoint.key, error)),
            None => Ok(()),
        }
    }

    /// Polls one endpoint with its own waker.
    #[inline(always)]
    fn poll_at(&mut self, at: usize) -> Poll<Result<(), S::Error>> {
        self.ask(at, |endpoint| {
            let mut cx = Context::from_waker(&endpoint.waker);
            endpoint.service.poll_ready(&mut cx)
        })
    }

    /// Polls one endpoint with the waker of a try, which wakes no task.
    #[cold]
    fn try_at(&mut self, at: usize, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.ask(at, |endpoint| endpoint.service.poll_ready(cx))
    }

    /// Polls one endpoint with its own waker, before there is a request.
    #[cold]
    fn prepare_at(&mut self, at: usize) -> Poll<Result<(), S::Error>> {
        self.ask(at, |endpoint| {
            let service = &mut endpoint.service;
            prepare(&endpoint.waker, |cx| service.poll_ready(cx))
        })
    }

    /// Drives one endpoint with its own waker.
    #[cold]
    fn drive_at(&mut self, at: usize) -> Poll<Result<(), S::Error>> {
        self.ask(at, |endpoint| {
            let service = &mut endpoint.service;
            drive(&endpoint.waker, |cx| service.poll_ready(cx))
        })
    }

    /// Polls one endpoint. If the service panics, it is removed from the cache.
    #[inline(always)]
    fn ask(
        &mut self,
        at: usize,
        poll: impl FnOnce(&mut Endpoint<K, S>) -> Poll<Result<(), S::Error>>,
    ) -> Poll<Result<(), S::Error>> {
        let guard = Asking { cache: self, at };
        let polled = poll(&mut guard.cache.order.endpoints[at]);
        core::mem::forget(guard);
        polled
    }
}

/// Removes a service that panics while it is polled or called. Forgotten once it has returned.
struct Asking<'a, K: Eq + Hash, S, Req> {
    cache: &'a mut ReadyCache<K, S, Req>,
    at: usize,
}

impl<K: Eq + Hash, S, Req> Drop for Asking<'_, K, S, Req> {
    #[cold]
    fn drop(&mut self) {
        // If an endpoint is remembered as called, it is this one: others are polled only once it is settled.
        if let Last::Called(_) = self.cache.order.last {
            self.cache.order.last = Last::Nobody;
        }
        drop(self.cache.remove(self.at));
    }
}
