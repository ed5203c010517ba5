//! The stack on the event loop of a JavaScript host.
#![cfg(target_family = "wasm")]

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use campanile::retry::backoff::Jitter;
use campanile::util::rng::HasherRng;
use campanile::wasm::retry::StandardPolicy;
use campanile::wasm::retry::backoff::ExponentialBackoffMaker;
use campanile::wasm::{ServiceBuilder, Wasm};
use campanile::{ServiceExt, Timer, timeout};
use wasm_bindgen_test::wasm_bindgen_test;

#[wasm_bindgen_test]
async fn a_stack_answers() {
    // The service need not be `Send`.
    let calls = Rc::new(Cell::new(0));
    let service = ServiceBuilder::new()
        .load_shed()
        .buffer(4)
        .concurrency_limit(2)
        .rate_limit(100, Duration::from_secs(1))
        .timeout(Duration::from_secs(60))
        .service_fn({
            let calls = calls.clone();
            move |n: u32| {
                let calls = calls.clone();
                async move {
                    calls.set(calls.get() + 1);
                    Ok::<_, Infallible>(n * 2)
                }
            }
        });
    for n in 0..10 {
        assert_eq!(service.clone().oneshot(n).await.unwrap(), n * 2);
    }
    assert_eq!(calls.get(), 10);
}

#[wasm_bindgen_test]
async fn a_timeout_fires() {
    let service = ServiceBuilder::new()
        .timeout(Duration::from_millis(5))
        .service_fn(async |(): ()| std::future::pending::<Result<(), Infallible>>().await);
    let start = Wasm.now();
    let error = service.oneshot(()).await.unwrap_err();
    assert!(matches!(error, timeout::Error::Elapsed(_)));
    let took = Wasm.now().saturating_duration_since(start);
    assert!(took >= Duration::from_millis(5), "{took:?}");
}

#[wasm_bindgen_test]
async fn a_retry_waits() {
    let wait = Duration::from_millis(3);
    let maker = ExponentialBackoffMaker::new(wait, wait, Jitter::None, HasherRng::new()).unwrap();
    let policy = StandardPolicy::with_backoff(maker, Wasm);
    let tries = Rc::new(Cell::new(0));
    let service = ServiceBuilder::new().retry(policy).service_fn({
        let tries = tries.clone();
        move |(): ()| {
            tries.set(tries.get() + 1);
            std::future::ready(if tries.get() < 3 { Err(()) } else { Ok(()) })
        }
    });
    let start = Wasm.now();
    service.oneshot(()).await.unwrap();
    assert_eq!(tries.get(), 3);
    let took = Wasm.now().saturating_duration_since(start);
    assert!(took >= 2 * wait, "{took:?}");
}

#[wasm_bindgen_test]
async fn past_deadline_is_ready() {
    let start = Wasm.now();
    Wasm.sleep_until(start).await;
    Wasm.sleep(Duration::ZERO).await;
}
