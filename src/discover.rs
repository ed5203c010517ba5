//! The set of endpoints, as a stream of changes that a balancer follows.
//!
//! Every stream of `Result<Change<Key, Service>, Error>` is a [`Discover`]. [`ServiceList`] is one that never changes;
//! [`channel`], with the feature `futures-channel`, makes one that you feed.
//!
//! A key identifies an endpoint. [`Change::Insert`] with a known key gives the same endpoint another service. When the
//! stream ends, the endpoints stay as they are.
//!
//! # Examples
//!
//! ```
//! use campanile::discover::{Change, Discover, ServiceList};
//! use campanile::service_fn;
//! use core::{future::poll_fn, pin::pin};
//!
//! # futures::executor::block_on(async {
//! let double = service_fn(async |n: u32| Ok::<_, core::fmt::Error>(n * 2));
//! let mut endpoints = pin!(ServiceList::new([double, double]));
//! for place in 0..2 {
//!     let change = poll_fn(|cx| endpoints.as_mut().poll_discover(cx)).await;
//!     assert!(matches!(change, Some(Ok(Change::Insert(key, _))) if key == place));
//! }
//! assert!(poll_fn(|cx| endpoints.as_mut().poll_discover(cx)).await.is_none());
//! # });
//! ```
//!
//! # Differences from tower
//!
//! - There is a [`channel`].
//! - A [`Change`] can be compared, and [mapped](Change::map).
#![cfg_attr(
    not(feature = "futures-channel"),
    allow(rustdoc::broken_intra_doc_links)
)]

use core::convert::Infallible;
use core::fmt;
use core::iter::Enumerate;
use core::pin::Pin;
use core::task::{Context, Poll};

use futures_core::Stream;
use pin_project_lite::pin_project;

use crate::Service;

/// A change to the set of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change<K, V> {
    /// A new endpoint, or another service for the known endpoint with this key.
    ///
    /// A balancer uses the known endpoint's service until the new one is ready, and what it has learned about the
    /// endpoint still holds: its [load](crate::load::Load::take_over), and how long it is set aside. If the key now
    /// belongs to a different endpoint, send [`Remove`](Self::Remove) first.
    Insert(K, V),
    /// The endpoint is gone, and all that was learned about it is forgotten.
    Remove(K),
}

impl<K, V> Change<K, V> {
    /// The same change, with the service mapped by `f`.
    ///
    /// ```
    /// use campanile::discover::Change;
    ///
    /// assert_eq!(Change::Insert('a', 1).map(|n| n + 1), Change::Insert('a', 2));
    /// ```
    pub fn map<W>(self, f: impl FnOnce(V) -> W) -> Change<K, W> {
        match self {
            Self::Insert(key, service) => Change::Insert(key, f(service)),
            Self::Remove(key) => Change::Remove(key),
        }
    }
}

/// A set of endpoints that changes.
///
/// Every stream of `Result<Change<Key, Service>, Error>` is one. When the stream ends, the set stays as it is.
pub trait Discover: sealed::Sealed {
    /// Identifies an endpoint.
    type Key;
    /// The service of an endpoint.
    type Service;
    /// The error of discovery.
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

pin_project! {
    /// Endpoints that never change, each with its position in the list as its key.
    ///
    /// `T` is what was given: a `Vec`, an array, an iterator.
    pub struct ServiceList<T>
    where
        T: IntoIterator,
    {
        inner: Enumerate<T::IntoIter>,
    }
}

impl<T: IntoIterator> ServiceList<T> {
    /// The endpoints in `services`.
    ///
    /// If they take requests of more than one type, name one: `ServiceList::new::<Request>(services)`.
    pub fn new<Request>(services: T) -> Self
    where
        T::Item: Service<Request>,
    {
        Self {
            inner: services.into_iter().enumerate(),
        }
    }
}

impl<T: IntoIterator> Stream for ServiceList<T> {
    type Item = Result<Change<usize, T::Item>, Infallible>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.project().inner.next();
        Poll::Ready(next.map(|(place, service)| Ok(Change::Insert(place, service))))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}

impl<T: IntoIterator<IntoIter: Clone>> Clone for ServiceList<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<T: IntoIterator<IntoIter: fmt::Debug>> fmt::Debug for ServiceList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServiceList").field(&self.inner).finish()
    }
}

#[cfg(feature = "futures-channel")]
pub use fed::{Changes, Closed, Sender, channel};

#[cfg(feature = "futures-channel")]
mod fed {
    use core::convert::Infallible;
    use core::fmt;
    use core::pin::Pin;
    use core::task::{Context, Poll};

    use futures_channel::mpsc;
    use futures_core::Stream;

    use super::Change;

    /// Endpoints that you insert and remove: the [`Sender`] for you, and the [`Discover`](super::Discover) for the
    /// balancer.
    ///
    /// Sending does not wait, so any watcher can do it, even a plain thread or a callback. Changes that the balancer
    /// has not taken yet are kept, in order and without a bound: a set of endpoints changes rarely, and dropping or
    /// delaying a change would leave the balancer with the wrong set. A balancer takes the changes when it is polled
    /// for readiness.
    ///
    /// ```
    /// use campanile::discover::{Change, Discover, channel};
    /// use core::{future::poll_fn, pin::pin};
    ///
    /// # futures::executor::block_on(async {
    /// let (endpoints, changes) = channel();
    /// endpoints.insert("10.0.0.1", "a service").unwrap();
    /// endpoints.remove("10.0.0.1").unwrap();
    /// drop(endpoints);
    ///
    /// let mut changes = pin!(changes);
    /// let mut next = async || poll_fn(|cx| changes.as_mut().poll_discover(cx)).await;
    /// assert_eq!(next().await, Some(Ok(Change::Insert("10.0.0.1", "a service"))));
    /// assert_eq!(next().await, Some(Ok(Change::Remove("10.0.0.1"))));
    /// assert_eq!(next().await, None);
    /// # });
    /// ```
    pub fn channel<K, S>() -> (Sender<K, S>, Changes<K, S>) {
        let (sender, receiver) = mpsc::unbounded();
        (Sender(sender), Changes(receiver))
    }

    /// Tells a balancer which endpoints there are. Made by [`channel`].
    pub struct Sender<K, S>(mpsc::UnboundedSender<Change<K, S>>);

    impl<K, S> Sender<K, S> {
        /// Adds the endpoint `key`, or gives it another service: see [`Change::Insert`].
        ///
        /// # Errors
        ///
        /// If the balancer is gone. The error holds the change.
        pub fn insert(&self, key: K, service: S) -> Result<(), Closed<K, S>> {
            self.send(Change::Insert(key, service))
        }

        /// Removes the endpoint `key`.
        ///
        /// # Errors
        ///
        /// If the balancer is gone. The error holds the change.
        pub fn remove(&self, key: K) -> Result<(), Closed<K, S>> {
            self.send(Change::Remove(key))
        }

        /// Sends a change.
        ///
        /// # Errors
        ///
        /// If the balancer is gone. The error holds the change.
        pub fn send(&self, change: Change<K, S>) -> Result<(), Closed<K, S>> {
            let sent = self.0.unbounded_send(change);
            sent.map_err(|error| Closed(error.into_inner()))
        }

        /// Whether the balancer is gone.
        #[must_use]
        pub fn is_closed(&self) -> bool {
            self.0.is_closed()
        }
    }

    impl<K, S> Clone for Sender<K, S> {
        fn clone(&self) -> Self {
            Self(self.0.clone())
        }
    }

    impl<K, S> fmt::Debug for Sender<K, S> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Sender")
                .field("is_closed", &self.is_closed())
                .finish()
        }
    }

    /// The changes that were sent, in order; it ends when all [`Sender`]s are gone. Made by [`channel`].
    #[must_use = "streams do nothing unless polled"]
    pub struct Changes<K, S>(mpsc::UnboundedReceiver<Change<K, S>>);

    impl<K, S> Stream for Changes<K, S> {
        type Item = Result<Change<K, S>, Infallible>;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            Pin::new(&mut self.0).poll_next(cx).map(|next| next.map(Ok))
        }
    }

    impl<K, S> fmt::Debug for Changes<K, S> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Changes").finish_non_exhaustive()
        }
    }

    /// The balancer is gone, and nothing will take this change.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Closed<K, S>(
        /// The change that was not taken.
        pub Change<K, S>,
    );

    impl<K, S> fmt::Debug for Closed<K, S> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Closed").finish_non_exhaustive()
        }
    }

    impl<K, S> fmt::Display for Closed<K, S> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("nobody follows the changes any more")
        }
    }

    impl<K, S> core::error::Error for Closed<K, S> {}
}
