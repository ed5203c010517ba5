//! One request that is answered in time and one that is not, on a release of embassy-executor that campanile does not
//! know.

use core::convert::Infallible;
use core::future::pending;
use core::time::Duration;

use campanile::embassy::{Embassy, ServiceBuilder};
use campanile::timeout::Error;
use campanile::{ServiceExt, Timer, service_fn};
use embassy_executor::Spawner;

#[embassy_executor::task]
async fn requests() {
    let service = ServiceBuilder::new()
        .timeout(Duration::from_millis(5))
        .service(service_fn(async |slow: bool| {
            if slow {
                pending::<()>().await;
            }
            Embassy.sleep(Duration::from_millis(1)).await;
            Ok::<_, Infallible>("done")
        }));
    assert_eq!(service.clone().oneshot(false).await, Ok("done"));
    assert!(matches!(
        service.oneshot(true).await,
        Err(Error::Elapsed(_))
    ));
    println!("embassy: the stack ran on embassy-executor 0.10");
    std::process::exit(0);
}

#[embassy_executor::main]
async fn main(spawner: Spawner) {
    spawner.spawn(requests().unwrap());
}
