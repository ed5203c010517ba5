//! A first program on smol: a slow function behind a queue, a limit and a timeout.
//!
//!     cargo run --features smol --example smol

use std::time::Duration;

use campanile::timeout::Elapsed;
use campanile::{BoxError, ServiceExt, smol::ServiceBuilder};

fn main() -> Result<(), BoxError> {
    smol::block_on(async {
        // A request passes these from top to bottom, its answer from bottom to top.
        let service = ServiceBuilder::new()
            .load_shed() // answers "overloaded" when the queue is full
            .buffer(16) // queues up to 16 requests, and makes the service `Clone`
            .concurrency_limit(4) // lets 4 of them run at a time
            .timeout(Duration::from_millis(100)) // and each for so long
            .service_fn(greet);

        println!("{}", service.clone().oneshot("world".to_owned()).await?);

        let error = service.oneshot("sloth".to_owned()).await.unwrap_err();
        assert!(BoxError::from(error).is::<Elapsed>());
        println!("the sloth took too long");
        Ok(())
    })
}

/// The service: nothing in it knows of the middleware.
async fn greet(name: String) -> Result<String, BoxError> {
    let patience = if name == "sloth" { 3600 } else { 0 };
    smol::Timer::after(Duration::from_secs(patience)).await;
    Ok(format!("hello, {name}"))
}
