//! The inner service, and helpers to make cases.

use std::fmt;
use std::future::{Ready, ready};
use std::mem::replace;
use std::pin::Pin;
use std::task::{Context, Poll};

use campanile::Service;

/// The answer to `n`.
pub(crate) fn answer(n: u64) -> u64 {
    n ^ 0x5555
}

/// Answers at once, or after being pending once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf<const PENDING: bool>;

pub(crate) struct Answer<const PENDING: bool> {
    n: u64,
    is_ready: bool,
}

impl<const PENDING: bool> Service<u64> for Leaf<PENDING> {
    type Response = u64;
    type Error = Failed;
    type Future = Answer<PENDING>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, n: u64) -> Self::Future {
        Answer {
            n,
            is_ready: !PENDING,
        }
    }
}

impl<const PENDING: bool> Future for Answer<PENDING> {
    type Output = Result<u64, Failed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if replace(&mut self.is_ready, true) {
            return Poll::Ready(Ok(answer(self.n)));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Is pending once before each request. By then, the event it waits for has happened.
#[derive(Clone, Debug)]
pub(crate) struct Slow<S> {
    inner: S,
    is_ready: bool,
}

impl<S> Slow<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            inner,
            is_ready: false,
        }
    }
}

impl<S: Service<u64>> Service<u64> for Slow<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if replace(&mut self.is_ready, true) {
            return self.inner.poll_ready(cx);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, n: u64) -> S::Future {
        self.is_ready = false;
        self.inner.call(n)
    }
}

/// Never happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for Failed {}

/// Accepts each answer, and copies each request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Once;

macro_rules! once {
    ($retry:path, $hedge:path) => {
        impl<T, E> $retry for Once {
            type Future = Ready<()>;

            fn retry(&mut self, _: &mut u64, result: &mut Result<T, E>) -> Option<Ready<()>> {
                result.is_err().then(|| ready(()))
            }

            fn clone_request(&mut self, n: &u64) -> Option<u64> {
                Some(*n)
            }
        }

        impl $hedge for Once {
            fn clone_request(&self, n: &u64) -> Option<u64> {
                Some(*n)
            }

            fn can_retry(&self, _: &u64) -> bool {
                true
            }
        }
    };
}

once!(campanile::retry::Policy<u64, T, E>, campanile::hedge::Policy<u64>);
once!(tower::retry::Policy<u64, T, E>, tower::hedge::Policy<u64>);

/// The same numbers in each run.
pub(crate) struct Seeded(campanile::util::rng::SplitMix64);

impl Seeded {
    pub(crate) fn new() -> Self {
        Self(campanile::util::rng::SplitMix64::new(1))
    }
}

impl tower::util::rng::Rng for Seeded {
    fn next_u64(&mut self) -> u64 {
        campanile::util::rng::Rng::next_u64(&mut self.0)
    }
}

/// A ready cache as a service. Each request goes to another of its services.
pub(crate) struct Cached<C> {
    pub(crate) cache: C,
    pub(crate) index: usize,
}

macro_rules! cached {
    ($cache:ty) => {
        impl<S: Service<u64, Error = Failed>> Service<u64> for Cached<$cache> {
            type Response = S::Response;
            type Error = Failed;
            type Future = S::Future;

            fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
                if let Poll::Ready(Err(_)) = self.cache.poll_pending(cx) {
                    return Poll::Ready(Err(Failed));
                }
                self.index = (self.index + 5) % self.cache.ready_len().max(1);
                match self.cache.check_ready_index(cx, self.index) {
                    Ok(true) => Poll::Ready(Ok(())),
                    Ok(false) => Poll::Pending,
                    Err(_) => Poll::Ready(Err(Failed)),
                }
            }

            fn call(&mut self, n: u64) -> S::Future {
                self.cache.call_ready_index(self.index, n)
            }
        }
    };
}

cached!(campanile::ready_cache::ReadyCache<usize, S, u64>);
cached!(tower::ready_cache::ReadyCache<usize, S, u64>);

/// Puts this many services into a cache.
macro_rules! cache {
    ($cache:ty, $count:expr, $leaf:expr) => {{
        let mut cache = <$cache>::default();
        (0..$count).for_each(|key| cache.push(key, $leaf));
        $crate::leaf::Cached { cache, index: 0 }
    }};
}
pub(crate) use cache;
