//! The builder at the crate's root has no runtime, so there is no clock for a timeout.

fn main() {
    let _ = campanile::ServiceBuilder::new().timeout(std::time::Duration::from_secs(1));
}
