//! A retry makes each further attempt with a clone. A `Reconnect` is not `Clone`, since that would be a connection for
//! each request: put a buffer between them.

use campanile::retry::Retry;
use campanile::tokio::{reconnect::Reconnect, retry::StandardPolicy};
use campanile::{Service, make::Shared, service_fn};

fn serve(_: impl Service<u32>) {}

fn main() {
    let connector = Shared::new(service_fn(async |n: u32| Ok::<_, std::fmt::Error>(n)));
    let service = Reconnect::new(connector, "localhost:4000");
    serve(Retry::new(StandardPolicy::new(), service));
}
