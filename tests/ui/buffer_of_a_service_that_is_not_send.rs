//! tokio moves tasks between threads, so a service that must stay on one cannot go into its buffer.

use std::rc::Rc;

use campanile::service_fn;
use campanile::tokio::buffer::Buffer;

fn main() {
    let here = Rc::new(1);
    let service = service_fn(move |n: u32| {
        let sum = n + *here;
        async move { Ok::<_, std::convert::Infallible>(sum) }
    });
    let _ = Buffer::new(service, 16);
}
