//! Which endpoints there are: a stream of changes that a balancer follows.
//!
//! [`Discover`] is every stream of [`Change`]s. [`ServiceList`] is one that never changes.

use core::iter::Enumerate;
use core::pin::Pin;
use core::task::{Context, Poll};

use futures_core::Stream;

/// A change to the set of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<K, V> {
    /// A new endpoint, or another service for a key that is known.
    Insert(K, V),
    /// The endpoint is gone.
    Remove(K),
}

/// A set of endpoints that changes.
///
/// Every stream of `Result<Change<Key, Service>, Error>` is one. When the stream ends, the set stays as it is.
pub trait Discover: sealed::Sealed {
    /// Tells one endpoint from another.
    type Key;
    /// What an endpoint is.
    type Service;
    /// How discovery fails.
    type Error;

    /// The next change; `None` when there will be no more.
    fn poll_discover(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Change<Self::Key, Self::Service>, Self::Error>>>;
}

impl<D, K, S, E> Discover for D
where
    D: Stream<Item = Result<Change<K, S>, E>> + ?Sized,
{
    type Key = K;
    type Service = S;
    type Error = E;

    fn poll_discover(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Change<K, S>, E>>> {
        self.poll_next(cx)
    }
}

mod sealed {
    pub trait Sealed {}

    impl<D, K, S, E> Sealed for D where
        D: futures_core::Stream<Item = Result<super::Change<K, S>, E>> + ?Sized
    {
    }
}

/// Endpoints that stay what they are, each under its place in the list.
#[derive(Clone, Debug)]
pub struct ServiceList<I> {
    inner: Enumerate<I>,
}

impl<I: Iterator> ServiceList<I> {
    /// The endpoints that `services` gives.
    pub fn new<L: IntoIterator<IntoIter = I>>(services: L) -> Self {
        Self {
            inner: services.into_iter().enumerate(),
        }
    }
}

impl<I: Iterator> Stream for ServiceList<I>
where
    Self: Unpin,
{
    type Item = Result<Change<usize, I::Item>, core::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(
            self.inner
                .next()
                .map(|(at, service)| Ok(Change::Insert(at, service))),
        )
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}
