use core::any::type_name;
use core::fmt;
use core::time::Duration;

use super::{
    Policy,
    backoff::{Delays, ExponentialBackoffMaker, MakeBackoff},
    budget::{Budget, Unlimited},
};
use crate::util::rng::Rng;
use crate::{Instant, Timer};

/// A ready-made [`Policy`]: a limit on retries, a backoff, and optionally a limit on time and a budget.
///
/// | setting | default | reason |
/// |---|---|---|
/// | [`max_retries`](Self::max_retries) | 2, so three attempts in all | most passing failures are over by then, and the load at most triples |
/// | the backoff | 50 ms doubling to 5 s, full jitter | see [`ExponentialBackoffMaker::standard`] |
/// | [`max_retry_after`](Self::max_retry_after) | 1 minute | covers the [`RetryAfter`](Action::RetryAfter) of a quota per minute, and few callers wait longer |
/// | [`total_time`](Self::total_time) | no limit | how long the caller can wait is not known |
/// | [`budget`](Self::budget) | none | it should be shared, and only the application knows with what |
/// | [`classify`](Self::classify) | errors are retried | what a response means is not known |
/// | [`clone_request_with`](Self::clone_request_with) | the request's `Clone` | |
///
/// Retry only requests that can be carried out twice. Counters are per request: a clone starts anew, and its clock
/// with its first use. Nothing allocates.
///
/// With a budget, each request makes one deposit when it starts, and each retry makes a withdrawal after all other
/// checks have allowed it. So the budget's share limits the load that retries add.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "futures-timer")]
/// # futures::executor::block_on(async {
/// use campanile::futures_timer::FuturesTimer;
/// use campanile::retry::{Action, RetryLayer, StandardPolicy, budget::TpsBudget};
/// use campanile::{Layer, Service, service_fn};
/// use core::{future::poll_fn, time::Duration};
/// use std::sync::Arc;
///
/// struct Response {
///     status: u16,
///     retry_after: Duration,
/// }
///
/// let budget: Arc<TpsBudget<FuturesTimer>> = Arc::default();
/// let policy = StandardPolicy::with_timer(FuturesTimer)
///     .max_retries(4)
///     .total_time(Duration::from_secs(10))
///     .budget(budget)
///     .classify(|result: &Result<Response, std::io::Error>| match result {
///         Ok(response) if response.status == 503 => Action::RetryAfter(response.retry_after),
///         Ok(_) => Action::Return,
///         Err(_) => Action::Retry,
///     });
///
/// let mut service = RetryLayer::new(policy).layer(service_fn(async |_: &'static str| {
///     Ok(Response { status: 200, retry_after: Duration::ZERO })
/// }));
/// poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
/// assert_eq!(service.call("hello").await.unwrap().status, 200);
/// # });
/// ```
pub struct StandardPolicy<T, M: MakeBackoff, C = OnError, B = Unlimited, K = CloneByClone> {
    timer: T,
    maker: M,
    classify: C,
    budget: B,
    clone_request: K,
    max_retries: u32,
    max_retry_after: Duration,
    total_time: Option<Duration>,
    request: PerRequest<M::Backoff>,
}

const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// What a policy knows about the request it was cloned for.
struct PerRequest<B> {
    retries: u32,
    backoff: Option<B>,
    // Set only if needed: reading the clock costs more than the rest of the policy. Until then, the last moment.
    deadline: Instant,
    deposited: bool,
}

impl<B> PerRequest<B> {
    // Not a constant, since that would be copied with all the room for a backoff.
    const fn new() -> Self {
        Self {
            retries: 0,
            backoff: None,
            deadline: Instant::MAX,
            deposited: false,
        }
    }
}

#[cfg(feature = "std")]
impl<T: Timer + Clone> StandardPolicy<T, ExponentialBackoffMaker<crate::util::rng::HasherRng, T>> {
    /// The policy described above, randomly seeded, on the default timer. The type in a runtime's module fixes that
    /// timer: `campanile::smol::retry::StandardPolicy`.
    #[must_use]
    pub fn new() -> Self
    where
        T: Default,
    {
        Self::with_timer(T::default())
    }

    /// Like [`new`](Self::new), with the given timer.
    pub fn with_timer(timer: T) -> Self {
        Self::with_rng(crate::util::rng::HasherRng::new(), timer)
    }
}

#[cfg(feature = "std")]
impl<T: Timer + Clone + Default> Default
    for StandardPolicy<T, ExponentialBackoffMaker<crate::util::rng::HasherRng, T>>
{
    fn default() -> Self {
        Self::new()
    }
}

impl<R: Rng, T: Timer + Clone> StandardPolicy<T, ExponentialBackoffMaker<R, T>> {
    /// The policy described above, with its jitter from `rng`: for targets without std.
    pub fn with_rng(rng: R, timer: T) -> Self {
        Self::with_backoff(ExponentialBackoffMaker::standard(rng, timer.clone()), timer)
    }
}

impl<T, M: MakeBackoff> StandardPolicy<T, M> {
    /// The policy described above, with another backoff.
    pub const fn with_backoff(maker: M, timer: T) -> Self {
        Self {
            timer,
            maker,
            classify: OnError,
            budget: Unlimited,
            clone_request: CloneByClone,
            max_retries: 2,
            max_retry_after: MAX_RETRY_AFTER,
            total_time: None,
            request: PerRequest::new(),
        }
    }
}

impl<T, M: MakeBackoff, C, B, K> StandardPolicy<T, M, C, B, K> {
    /// Makes at most `retries` attempts after the first. With zero, there are no retries.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = retries;
        self
    }

    /// Returns a result to the caller if it is to be retried after more than `time`: whether to wait for a
    /// `Retry-After` of an hour is the caller's decision. With [`Duration::MAX`], it always waits as told.
    #[must_use]
    pub fn max_retry_after(mut self, time: Duration) -> Self {
        self.max_retry_after = time;
        self
    }

    /// Makes no retry whose wait would end later than `time` after the start of the request. An attempt that has
    /// started is not cut short; use a timeout for that.
    #[must_use]
    pub fn total_time(mut self, time: Duration) -> Self {
        self.total_time = Some(time);
        self
    }

    /// Lets `f` decide what to do with each result.
    #[must_use]
    pub fn classify<Res, E, F>(self, f: F) -> StandardPolicy<T, M, F, B, K>
    where
        F: Fn(&Result<Res, E>) -> Action,
    {
        StandardPolicy {
            timer: self.timer,
            maker: self.maker,
            classify: f,
            budget: self.budget,
            clone_request: self.clone_request,
            max_retries: self.max_retries,
            max_retry_after: self.max_retry_after,
            total_time: self.total_time,
            request: self.request,
        }
    }

    /// Pays for retries from `budget`: a reference, an `Rc` or an `Arc`, since it is cloned for each request (a
    /// `TpsBudget` itself is not `Clone`).
    #[must_use]
    pub fn budget<B2: Budget>(self, budget: B2) -> StandardPolicy<T, M, C, B2, K> {
        StandardPolicy {
            timer: self.timer,
            maker: self.maker,
            classify: self.classify,
            budget,
            clone_request: self.clone_request,
            max_retries: self.max_retries,
            max_retry_after: self.max_retry_after,
            total_time: self.total_time,
            request: self.request,
        }
    }

    /// Copies requests with `f`, which returns `None` if a request is not to be retried.
    #[must_use]
    pub fn clone_request_with<Req, F>(self, f: F) -> StandardPolicy<T, M, C, B, CloneByFn<F>>
    where
        F: Fn(&Req) -> Option<Req>,
    {
        StandardPolicy {
            timer: self.timer,
            maker: self.maker,
            classify: self.classify,
            budget: self.budget,
            clone_request: CloneByFn(f),
            max_retries: self.max_retries,
            max_retry_after: self.max_retry_after,
            total_time: self.total_time,
            request: self.request,
        }
    }
}

impl<T, M, C, B, K, Req, Res, E> Policy<Req, Res, E> for StandardPolicy<T, M, C, B, K>
where
    T: Timer,
    M: MakeBackoff,
    M::Backoff: Delays,
    C: Classify<Res, E>,
    B: Budget,
    K: CloneRequest<Req>,
{
    type Future = T::Sleep;

    #[track_caller]
    fn retry(&mut self, _: &mut Req, result: &mut Result<Res, E>) -> Option<T::Sleep> {
        let action = self.classify.classify(result);
        if action == Action::Return || self.request.retries >= self.max_retries {
            return None;
        }
        let Self { maker, request, .. } = self;
        let backoff = request.backoff.get_or_insert_with(|| maker.make_backoff());
        let mut wait = backoff.next_delay();
        if let Action::RetryAfter(time) = action {
            if time > self.max_retry_after {
                return None;
            }
            // In addition to the backoff: many clients are told the same time, and should not all come back at once.
            wait = wait.saturating_add(time);
        }
        if self.total_time.is_some() {
            let end = self.timer.now().saturating_add(wait);
            if end > self.deadline() {
                return None;
            }
        }
        if !self.budget.withdraw() {
            return None;
        }
        self.request.retries += 1;
        Some(self.timer.sleep(wait))
    }

    fn clone_request(&mut self, request: &Req) -> Option<Req> {
        if !self.request.deposited {
            self.request.deposited = true;
            self.budget.deposit();
            self.deadline();
        }
        // The last attempt needs no copy: its result is returned, whatever it is.
        if self.request.retries >= self.max_retries {
            return None;
        }
        self.clone_request.clone_request(request)
    }
}

impl<T: Timer, M: MakeBackoff, C, B, K> StandardPolicy<T, M, C, B, K> {
    /// The time by which waits have to end, counted from the first call of this method.
    fn deadline(&mut self) -> Instant {
        if let (Instant::MAX, Some(time)) = (self.request.deadline, self.total_time) {
            self.request.deadline = self.timer.now().saturating_add(time);
        }
        self.request.deadline
    }
}

// A clone is for another request.
impl<T, M, C, B, K> Clone for StandardPolicy<T, M, C, B, K>
where
    T: Clone,
    M: MakeBackoff + Clone,
    C: Clone,
    B: Clone,
    K: Clone,
{
    fn clone(&self) -> Self {
        Self {
            timer: self.timer.clone(),
            maker: self.maker.clone(),
            classify: self.classify.clone(),
            budget: self.budget.clone(),
            clone_request: self.clone_request.clone(),
            max_retries: self.max_retries,
            max_retry_after: self.max_retry_after,
            total_time: self.total_time,
            request: PerRequest::new(),
        }
    }
}

impl<T, M: MakeBackoff + fmt::Debug, C, B: fmt::Debug, K> fmt::Debug
    for StandardPolicy<T, M, C, B, K>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandardPolicy")
            .field("maker", &self.maker)
            .field("classify", &format_args!("{}", type_name::<C>()))
            .field("budget", &self.budget)
            .field("max_retries", &self.max_retries)
            .field("max_retry_after", &self.max_retry_after)
            .field("total_time", &self.total_time)
            .field("retries", &self.request.retries)
            .finish_non_exhaustive()
    }
}

/// What to do with a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Return it to the caller.
    Return,
    /// Send the request again after the backoff.
    Retry,
    /// Send the request again after this time plus the backoff: the time is what a `Retry-After` header says, and the
    /// backoff's jitter keeps clients that were told the same time from coming back together. If the time is longer
    /// than [`max_retry_after`](StandardPolicy::max_retry_after), the result is returned to the caller.
    RetryAfter(Duration),
}

/// Decides what to do with a result: any `Fn(&Result<Res, E>) -> Action`, or [`OnError`].
pub trait Classify<Res, E> {
    /// Decides what to do with `result`.
    fn classify(&self, result: &Result<Res, E>) -> Action;
}

impl<F, Res, E> Classify<Res, E> for F
where
    F: Fn(&Result<Res, E>) -> Action,
{
    fn classify(&self, result: &Result<Res, E>) -> Action {
        self(result)
    }
}

/// Retries every error and no response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnError;

impl<Res, E> Classify<Res, E> for OnError {
    fn classify(&self, result: &Result<Res, E>) -> Action {
        match result {
            Ok(_) => Action::Return,
            Err(_) => Action::Retry,
        }
    }
}

/// Makes the copy of a request for another attempt.
pub trait CloneRequest<Req> {
    /// Returns a copy of `request`, or `None` if it is not to be retried.
    fn clone_request(&self, request: &Req) -> Option<Req>;
}

/// Copies a request with its `Clone`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloneByClone;

impl<Req: Clone> CloneRequest<Req> for CloneByClone {
    fn clone_request(&self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }
}

/// Copies a request with a function.
#[derive(Clone, Copy)]
pub struct CloneByFn<F>(F);

impl<F, Req> CloneRequest<Req> for CloneByFn<F>
where
    F: Fn(&Req) -> Option<Req>,
{
    fn clone_request(&self, request: &Req) -> Option<Req> {
        (self.0)(request)
    }
}

impl<F> fmt::Debug for CloneByFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CloneByFn")
            .field(&format_args!("{}", type_name::<F>()))
            .finish()
    }
}
