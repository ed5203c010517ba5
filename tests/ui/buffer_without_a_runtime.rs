//! The builder at the crate's root has no runtime, so nothing could run the buffer's worker.

fn main() {
    let _ = campanile::ServiceBuilder::new().buffer::<u32>(16);
}
