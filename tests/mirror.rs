//! Each runtime's module can replace tower: the same code is compiled against tower and against each module.
#![cfg(feature = "tower")]

/// A program written for tower, and its answers.
macro_rules! program {
    ($tower:path) => {
        use std::convert::Infallible;
        use std::time::Duration;

        use tower::balance::p2c::Balance;
        use tower::buffer::{Buffer, BufferLayer};
        use tower::limit::{
            ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer, RateLimit, RateLimitLayer,
            rate::Rate,
        };
        use tower::load_shed::LoadShedLayer;
        use tower::retry::backoff::{Backoff, ExponentialBackoffMaker, MakeBackoff};
        use tower::retry::budget::{Budget, TpsBudget};
        use tower::retry::{Policy, RetryLayer};
        use tower::timeout::{Timeout, TimeoutLayer};
        use tower::util::{BoxCloneService, BoxService, MapErrLayer, option_layer, rng::HasherRng};
        use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
        use $tower as tower;

        const LONG: Duration = Duration::from_secs(3600);

        #[derive(Clone)]
        struct Attempts(usize);

        impl<T, E> Policy<u32, T, E> for Attempts {
            type Future = std::future::Ready<()>;

            fn retry(&mut self, _: &mut u32, result: &mut Result<T, E>) -> Option<Self::Future> {
                if result.is_ok() || self.0 == 0 {
                    return None;
                }
                self.0 -= 1;
                Some(std::future::ready(()))
            }

            fn clone_request(&mut self, request: &u32) -> Option<u32> {
                Some(*request)
            }
        }

        async fn double(n: u32) -> Result<u32, Infallible> {
            Ok(n * 2)
        }

        pub(crate) async fn run() -> Result<Vec<u32>, BoxError> {
            let mut answers = Vec::new();

            let stack = ServiceBuilder::new()
                .load_shed()
                .retry(Attempts(2))
                .buffer(16)
                .concurrency_limit(4)
                .rate_limit(100, LONG)
                .timeout(LONG)
                .map_request(|n: u32| n + 1)
                .map_response(|n: u32| n + 1)
                .service_fn(double);
            answers.push(stack.clone().oneshot(1).await?);

            let boxed: BoxService<u32, u32, BoxError> = stack.map_err(BoxError::from).boxed();
            answers.push(boxed.oneshot(2).await?);

            let layers = (
                BufferLayer::new(4),
                RetryLayer::new(Attempts(1)),
                ConcurrencyLimitLayer::new(2),
                GlobalConcurrencyLimitLayer::new(2),
                option_layer(Some(LoadShedLayer::new())),
            );
            let inner =
                MapErrLayer::new(|error: Infallible| match error {}).layer(service_fn(double));
            let inner: BoxCloneService<u32, u32, BoxError> = inner.boxed_clone();
            let mut service = layers.layer(inner);
            answers.push(service.ready().await?.call(3).await?);

            let timeout = TimeoutLayer::new(LONG).layer(service_fn(double));
            let rate = RateLimitLayer::new(5, LONG).layer(timeout);
            answers.push(rate.oneshot(4).await?);

            let buffer: Buffer<u32, _> = Buffer::new(service_fn(double), 4);
            answers.push(buffer.oneshot(5).await?);
            let timeout = Timeout::new(service_fn(double), LONG);
            answers.push(timeout.oneshot(6).await?);
            let rate = RateLimit::new(service_fn(double), Rate::new(1, LONG));
            answers.push(rate.oneshot(7).await?);

            let mut maker = ExponentialBackoffMaker::new(
                Duration::from_nanos(1),
                Duration::from_nanos(2),
                0.5,
                HasherRng::default(),
            )?;
            maker.make_backoff().next_backoff().await;
            let budget: TpsBudget = TpsBudget::new(Duration::from_secs(10), 1, 0.5);
            budget.deposit();
            assert!(budget.withdraw());

            let endpoints = vec![tower::load::Constant::new(service_fn(double), 1)];
            let list = tower::discover::ServiceList::new::<u32>(endpoints);
            let mut balance = Balance::new(list);
            answers.push(balance.ready().await?.call(8).await?);
            assert_eq!((balance.len(), balance.is_empty()), (1, false));
            let mut cache = tower::ready_cache::ReadyCache::<_, _, u32>::default();
            cache.push("double", service_fn(double));
            std::future::poll_fn(|cx| cache.poll_pending(cx)).await?;
            answers.push(cache.call_ready(&"double", 9).await?);
            Ok(answers)
        }
    };
}

const ANSWERS: [u32; 9] = [5, 7, 6, 8, 10, 12, 14, 16, 18];

mod on_tower {
    program!(::tower);

    #[tokio::test]
    async fn on_tower() {
        assert_eq!(run().await.unwrap(), super::ANSWERS);
    }
}

#[cfg(feature = "tokio")]
mod on_tokio {
    program!(campanile::tokio);

    #[tokio::test]
    async fn on_tokio() {
        assert_eq!(run().await.unwrap(), super::ANSWERS);
    }
}

#[cfg(feature = "smol")]
mod on_smol {
    program!(campanile::smol);

    #[test]
    fn on_smol() {
        assert_eq!(smol::block_on(run()).unwrap(), super::ANSWERS);
    }
}

#[cfg(feature = "async-std")]
mod on_async_std {
    program!(campanile::async_std);

    #[test]
    fn on_async_std() {
        assert_eq!(async_std::task::block_on(run()).unwrap(), super::ANSWERS);
    }
}

#[cfg(feature = "testing")]
mod on_the_simulation {
    program!(campanile::testing);

    #[test]
    fn on_the_simulation() {
        let runtime = campanile::testing::Runtime::new(0);
        assert_eq!(runtime.block_on(run()).unwrap().unwrap(), super::ANSWERS);
    }
}
