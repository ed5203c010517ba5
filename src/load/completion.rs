//! When a request is over.
//!
//! The load of a service holds a handle for each request, and the request is over when its handle is dropped.
//! [`CompleteOnResponse`] drops it with the response. A [`TrackCompletion`] of your own can put it into the response
//! instead, beside a body that is still being received.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use campanile::load::{Load, TrackCompletion};
//! use campanile::smol::load::PendingRequests;
//! use campanile::{ServiceExt, service_fn};
//!
//! #[derive(Clone)]
//! struct WithBody;
//!
//! /// A response, and what says that it is still being received.
//! struct Tracked<H>(&'static str, H);
//!
//! impl<H> TrackCompletion<H, &'static str> for WithBody {
//!     type Output = Tracked<H>;
//!
//!     fn track_completion(&self, handle: H, body: &'static str) -> Tracked<H> {
//!         Tracked(body, handle)
//!     }
//! }
//!
//! let service = service_fn(async |_: u32| Ok::<_, std::io::Error>("body"));
//! let service = PendingRequests::new(service, WithBody);
//! let Tracked(_, handle) = service.clone().oneshot(1).await.unwrap();
//! assert_eq!(service.in_flight(), 1);
//! drop(handle);
//! assert_eq!(service.in_flight(), 0);
//! # });
//! ```

use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

/// Attaches the handle of a request to its response, or drops it.
///
/// Called for responses only: when a request fails, its handle is dropped.
pub trait TrackCompletion<H, V>: Clone {
    /// The response with the handle in it.
    type Output;

    /// Attaches `handle` to `value`. The request is over when the handle is dropped.
    fn track_completion(&self, handle: H, value: V) -> Self::Output;
}

/// A request is over when its response is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompleteOnResponse;

impl<H, V> TrackCompletion<H, V> for CompleteOnResponse {
    type Output = V;

    fn track_completion(&self, handle: H, value: V) -> V {
        drop(handle);
        value
    }
}

pin_project! {
    /// A response with a handle attached.
    ///
    /// # Cancel safety
    ///
    /// Dropping it before its result is ready drops the handle.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct TrackCompletionFuture<F, C, H, K = Unclassified> {
        #[pin]
        request: Request<F, H>,
        completion: C,
        classifier: K,
    }
}

pin_project! {
    #[project = RequestProj]
    #[project_replace = RequestReplace]
    enum Request<F, H> {
        // The future is dropped before the handle: a request is in flight as long as anything of it is alive.
        UnderWay {
            #[pin]
            future: F,
            handle: H,
        },
        /// The result has been returned.
        Over,
    }
}

impl<F, C, H> TrackCompletionFuture<F, C, H> {
    /// Attaches `handle` to the response of `future`, as `completion` does.
    pub const fn new(completion: C, handle: H, future: F) -> Self {
        Self::with(completion, handle, future, Unclassified)
    }
}

impl<F, C, H, K> TrackCompletionFuture<F, C, H, K> {
    /// As `new`, and reports the verdict of `classifier` on the result to the handle.
    pub(super) const fn with(completion: C, handle: H, future: F, classifier: K) -> Self {
        Self {
            request: Request::UnderWay { future, handle },
            completion,
            classifier,
        }
    }
}

impl<F, C, H, K, T, E> Future for TrackCompletionFuture<F, C, H, K>
where
    F: Future<Output = Result<T, E>>,
    C: TrackCompletion<H, T>,
    K: judge::Judge<H, T, E>,
{
    type Output = Result<C::Output, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let result = match this.request.as_mut().project() {
            RequestProj::UnderWay { future, .. } => ready!(future.poll(cx)),
            // Polled again after its end: there is nothing left to return.
            RequestProj::Over => return Poll::Pending,
        };
        let RequestReplace::UnderWay { mut handle, .. } =
            this.request.project_replace(Request::Over)
        else {
            return Poll::Pending;
        };
        this.classifier.judge(&mut handle, &result);
        Poll::Ready(result.map(|value| this.completion.track_completion(handle, value)))
    }
}

impl<F: fmt::Debug, C, H: fmt::Debug, K> fmt::Debug for TrackCompletionFuture<F, C, H, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("TrackCompletionFuture");
        if let Request::UnderWay { future, handle } = &self.request {
            debug.field("future", future).field("handle", handle);
        }
        debug.finish_non_exhaustive()
    }
}

/// Reports no result to the handle: used in a [`TrackCompletionFuture`] made by [`new`](TrackCompletionFuture::new).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unclassified;

/// Reports the verdict of a [`Classify`](super::Classify) on the result to the handle.
#[derive(Clone, Copy, Debug)]
pub struct Classified<K>(pub(super) K);

pub(super) mod judge {
    use super::super::{Classify, Outcome};
    use super::{Classified, Unclassified};

    /// Reports the result of a request to its handle.
    pub trait Judge<H, T, E> {
        fn judge(&self, handle: &mut H, result: &Result<T, E>);
    }

    impl<H, T, E> Judge<H, T, E> for Unclassified {
        fn judge(&self, _: &mut H, _: &Result<T, E>) {}
    }

    impl<H: Record, T, E, K: Classify<T, E>> Judge<H, T, E> for Classified<K> {
        fn judge(&self, handle: &mut H, result: &Result<T, E>) {
            handle.record(self.0.classify(result));
        }
    }

    /// A handle that takes the outcome of its request.
    pub trait Record {
        fn record(&mut self, outcome: Outcome);
    }
}
