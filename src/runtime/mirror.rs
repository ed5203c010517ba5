//! This crate's tree, once per runtime, with the runtime filled in.

/// Mirrors the tree for `$runtime`: whatever is generic over the executor or the timer becomes an alias, and the rest
/// is re-exported.
macro_rules! mirror {
    ($runtime:ty) => {
        #[cfg(feature = "alloc")]
        #[doc(inline)]
        pub use $crate::BoxError;
        #[doc(inline)]
        pub use $crate::{
            Layer, MakeService, Service, ServiceExt, discover, filter, layer, load_shed, make,
            ready_cache, service_fn, steer, util,
        };

        pub use self::builder::ServiceBuilder;

        /// [`builder`](crate::builder) on this runtime.
        pub mod builder {
            use super::*;

            /// [`ServiceBuilder`](crate::builder::ServiceBuilder) on this runtime.
            pub type ServiceBuilder<L = $crate::layer::Identity> =
                $crate::builder::ServiceBuilder<L, $runtime>;
        }

        /// [`balance`](crate::balance) on this runtime.
        pub mod balance {
            use super::*;
            #[doc(inline)]
            pub use $crate::balance::*;

            /// [`balance::p2c`](crate::balance::p2c) on this runtime.
            pub mod p2c {
                use super::*;
                pub use $crate::balance::p2c::*;

                /// [`Balance`](crate::balance::p2c::Balance) on this runtime.
                pub type Balance<D, Req> =
                    $crate::balance::p2c::Balance<D, Req, quarantine::QuarantineLayer>;
                /// [`MakeBalance`](crate::balance::p2c::MakeBalance) on this runtime.
                pub type MakeBalance<S, Req> =
                    $crate::balance::p2c::MakeBalance<S, Req, quarantine::QuarantineLayer>;
                /// [`MakeBalanceLayer`](crate::balance::p2c::MakeBalanceLayer) on this runtime.
                pub type MakeBalanceLayer<D, Req> =
                    $crate::balance::p2c::MakeBalanceLayer<D, Req, quarantine::QuarantineLayer>;
                /// [`MakeFuture`](crate::balance::p2c::MakeFuture) on this runtime.
                pub type MakeFuture<F, Req> =
                    $crate::balance::p2c::MakeFuture<F, Req, quarantine::QuarantineLayer>;
            }

            /// [`balance::quarantine`](crate::balance::quarantine) on this runtime.
            pub mod quarantine {
                use super::*;
                #[doc(inline)]
                pub use $crate::balance::quarantine::*;

                /// [`Quarantine`](crate::balance::quarantine::Quarantine) on this runtime.
                pub type Quarantine<S> = $crate::balance::quarantine::Quarantine<S, $runtime>;
                /// [`QuarantineLayer`](crate::balance::quarantine::QuarantineLayer) on this runtime.
                pub type QuarantineLayer = $crate::balance::quarantine::QuarantineLayer<$runtime>;
            }
        }

        /// [`buffer`](crate::buffer) on this runtime.
        pub mod buffer {
            use super::*;
            #[doc(inline)]
            pub use $crate::buffer::*;

            /// [`Buffer`](crate::buffer::Buffer) on this runtime, for a service whose future is `F`.
            pub type Buffer<Request, F> = $crate::buffer::Buffer<Request, F, $runtime>;
            /// [`BufferLayer`](crate::buffer::BufferLayer) on this runtime.
            pub type BufferLayer<Request> = $crate::buffer::BufferLayer<Request, $runtime>;
        }

        /// [`hedge`](crate::hedge) on this runtime.
        #[cfg(all(
            target_has_atomic = "ptr",
            any(target_has_atomic = "64", feature = "critical-section")
        ))]
        pub mod hedge {
            use super::*;
            #[doc(inline)]
            pub use $crate::hedge::*;

            /// [`Hedge`](crate::hedge::Hedge) on this runtime.
            pub type Hedge<S, P, B = ShareBudget> = $crate::hedge::Hedge<S, P, $runtime, B>;
            /// [`HedgeLayer`](crate::hedge::HedgeLayer) on this runtime.
            pub type HedgeLayer<P, B = ShareBudget> = $crate::hedge::HedgeLayer<P, $runtime, B>;
        }

        /// [`limit`](crate::limit) on this runtime.
        pub mod limit {
            pub use self::rate::{RateLimit, RateLimitLayer};
            use super::*;
            #[doc(inline)]
            pub use $crate::limit::*;

            /// [`limit::rate`](crate::limit::rate) on this runtime.
            pub mod rate {
                use super::*;
                #[doc(inline)]
                pub use $crate::limit::rate::*;

                /// [`RateLimit`](crate::limit::RateLimit) on this runtime.
                pub type RateLimit<S> = $crate::limit::RateLimit<S, $runtime>;
                /// [`RateLimitLayer`](crate::limit::RateLimitLayer) on this runtime.
                pub type RateLimitLayer = $crate::limit::RateLimitLayer<$runtime>;
            }
        }

        /// [`load`](crate::load) on this runtime.
        pub mod load {
            #[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
            pub use self::{
                peak_ewma::{PeakEwma, PeakEwmaDiscover},
                pending_requests::{PendingRequests, PendingRequestsDiscover},
            };
            use super::*;
            #[doc(inline)]
            pub use $crate::load::*;

            /// [`load::peak_ewma`](crate::load::peak_ewma) on this runtime.
            #[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
            pub mod peak_ewma {
                use super::*;
                #[doc(inline)]
                pub use $crate::load::peak_ewma::*;

                /// [`PeakEwma`](crate::load::PeakEwma) on this runtime.
                pub type PeakEwma<S, C = CompleteOnResponse, K = OnError> =
                    $crate::load::PeakEwma<S, C, $runtime, K>;
                /// [`PeakEwmaDiscover`](crate::load::PeakEwmaDiscover) on this runtime.
                pub type PeakEwmaDiscover<D, C = CompleteOnResponse, K = OnError> =
                    $crate::load::PeakEwmaDiscover<D, C, $runtime, K>;
                /// [`Handle`](crate::load::peak_ewma::Handle) on this runtime.
                pub type Handle = $crate::load::peak_ewma::Handle<$runtime>;
            }

            /// [`load::pending_requests`](crate::load::pending_requests) on this runtime.
            #[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
            pub mod pending_requests {
                use super::*;
                #[doc(inline)]
                pub use $crate::load::pending_requests::*;

                /// [`PendingRequests`](crate::load::PendingRequests) on this runtime.
                pub type PendingRequests<S, C = CompleteOnResponse, K = OnError> =
                    $crate::load::PendingRequests<S, C, $runtime, K>;
                /// [`PendingRequestsDiscover`](crate::load::PendingRequestsDiscover) on this runtime.
                pub type PendingRequestsDiscover<D, C = CompleteOnResponse, K = OnError> =
                    $crate::load::PendingRequestsDiscover<D, C, $runtime, K>;
                /// [`Handle`](crate::load::pending_requests::Handle) on this runtime.
                pub type Handle = $crate::load::pending_requests::Handle<$runtime>;
            }
        }

        /// [`reconnect`](crate::reconnect) on this runtime.
        pub mod reconnect {
            use super::*;
            #[doc(inline)]
            pub use $crate::reconnect::*;

            /// [`Reconnect`](crate::reconnect::Reconnect) on this runtime.
            pub type Reconnect<M, Target, B = retry::backoff::ExponentialBackoffMaker> =
                $crate::reconnect::Reconnect<M, Target, $runtime, B>;
            /// [`ReconnectLayer`](crate::reconnect::ReconnectLayer) on this runtime.
            pub type ReconnectLayer<Target, B = retry::backoff::ExponentialBackoffMaker> =
                $crate::reconnect::ReconnectLayer<Target, $runtime, B>;
        }

        /// [`retry`](crate::retry) on this runtime.
        pub mod retry {
            use super::*;
            #[doc(inline)]
            pub use $crate::retry::*;

            /// [`StandardPolicy`](crate::retry::StandardPolicy) on this runtime.
            pub type StandardPolicy<
                M = backoff::ExponentialBackoffMaker,
                C = $crate::retry::OnError,
                B = $crate::retry::budget::Unlimited,
                K = $crate::retry::CloneByClone,
            > = $crate::retry::StandardPolicy<$runtime, M, C, B, K>;

            /// [`retry::backoff`](crate::retry::backoff) on this runtime.
            pub mod backoff {
                use super::*;
                #[doc(inline)]
                pub use $crate::retry::backoff::*;

                /// [`ExponentialBackoffMaker`](crate::retry::backoff::ExponentialBackoffMaker) on this runtime.
                pub type ExponentialBackoffMaker<R = $crate::util::rng::HasherRng> =
                    $crate::retry::backoff::ExponentialBackoffMaker<R, $runtime>;
                /// [`ExponentialBackoff`](crate::retry::backoff::ExponentialBackoff) on this runtime.
                pub type ExponentialBackoff = $crate::retry::backoff::ExponentialBackoff<$runtime>;
            }

            /// [`retry::budget`](crate::retry::budget) on this runtime.
            pub mod budget {
                use super::*;
                #[doc(inline)]
                pub use $crate::retry::budget::*;

                /// [`TpsBudget`](crate::retry::budget::TpsBudget) on this runtime.
                #[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
                pub type TpsBudget = $crate::retry::budget::TpsBudget<$runtime>;

                /// The budget, at tower's path.
                #[cfg(any(target_has_atomic = "64", feature = "critical-section"))]
                pub mod tps_budget {
                    pub use super::TpsBudget;
                }
            }
        }

        /// [`spawn_ready`](crate::spawn_ready) on this runtime.
        pub mod spawn_ready {
            use super::*;
            #[doc(inline)]
            pub use $crate::spawn_ready::*;

            /// [`SpawnReady`](crate::spawn_ready::SpawnReady) on this runtime.
            pub type SpawnReady<S, Request> = $crate::spawn_ready::SpawnReady<S, Request, $runtime>;
            /// [`SpawnReadyLayer`](crate::spawn_ready::SpawnReadyLayer) on this runtime.
            pub type SpawnReadyLayer<Request> =
                $crate::spawn_ready::SpawnReadyLayer<Request, $runtime>;
        }

        /// [`timeout`](crate::timeout) on this runtime.
        pub mod timeout {
            use super::*;
            #[doc(inline)]
            pub use $crate::timeout::*;

            /// [`Timeout`](crate::timeout::Timeout) on this runtime.
            pub type Timeout<S> = $crate::timeout::Timeout<S, $runtime>;
            /// [`TimeoutLayer`](crate::timeout::TimeoutLayer) on this runtime.
            pub type TimeoutLayer = $crate::timeout::TimeoutLayer<$runtime>;
            /// [`Deadline`](crate::timeout::Deadline) on this runtime.
            pub type Deadline<S> = $crate::timeout::Deadline<S, $runtime>;
            /// [`DeadlineLayer`](crate::timeout::DeadlineLayer) on this runtime.
            pub type DeadlineLayer = $crate::timeout::DeadlineLayer<$runtime>;

            /// The response future, at tower's path.
            pub mod future {
                use super::*;

                /// [`ResponseFuture`](crate::timeout::ResponseFuture) on this runtime.
                pub type ResponseFuture<F> = $crate::timeout::ResponseFuture<F, $runtime>;
            }
        }
    };
}
