//! When a filter rejects a request, it replaces the service that was ready for it with a clone. A `Reconnect` is not
//! `Clone`, since that would be a connection for each rejected request: put a buffer between them.

use campanile::tokio::reconnect::Reconnect;
use campanile::{Service, ServiceExt, make::Shared, service_fn};

fn serve(_: impl Service<u32>) {}

fn main() {
    let connector = Shared::new(service_fn(async |n: u8| Ok::<_, std::fmt::Error>(n)));
    serve(Reconnect::new(connector, "localhost:4000").filter(|n: u32| u8::try_from(n)));
}
