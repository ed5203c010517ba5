//! Loads that are measured.

use core::time::Duration;

/// Implements what measured services share: each request has a handle, from the call until it is over.
macro_rules! tracked {
    ($name:ident) => {
        impl<S: Clone, C: Clone, T, K: Clone> Clone for $name<S, C, T, K> {
            fn clone(&self) -> Self {
                Self {
                    inner: self.inner.clone(),
                    completion: self.completion.clone(),
                    classifier: self.classifier.clone(),
                    shared: self.shared.clone(),
                }
            }
        }

        impl<S: fmt::Debug, C, T, K> fmt::Debug for $name<S, C, T, K> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("inner", &self.inner)
                    .field("shared", &self.shared)
                    .finish_non_exhaustive()
            }
        }

        impl<S, C, T, K, Request> Service<Request> for $name<S, C, T, K>
        where
            S: Service<Request>,
            C: TrackCompletion<Handle<T>, S::Response>,
            T: Timer,
            K: Classify<S::Response, S::Error> + Clone,
        {
            type Response = C::Output;
            type Error = S::Error;
            type Future = TrackCompletionFuture<S::Future, C, Handle<T>, Classified<K>>;

            fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
                self.inner.poll_ready(cx)
            }

            fn call(&mut self, request: Request) -> Self::Future {
                // Before the call: what the inner service does in it counts, as does the time it takes.
                let handle = Handle::new(&self.shared);
                TrackCompletionFuture::with(
                    self.completion.clone(),
                    handle,
                    self.inner.call(request),
                    Classified(self.classifier.clone()),
                )
            }
        }

        impl<T: Timer> Record for Handle<T> {
            fn record(&mut self, outcome: Outcome) {
                self.record(outcome);
            }
        }
    };
}

mod decay;
pub mod peak_ewma;
pub mod pending_requests;

pub use peak_ewma::{PeakEwma, PeakEwmaDiscover};
pub use pending_requests::{PendingRequests, PendingRequestsDiscover};

/// The shortest and the longest decay: a microsecond, below which whole nanoseconds are too coarse, and a year.
const DECAYS: (Duration, Duration) = (Duration::from_micros(1), Duration::from_secs(31_557_600));
