//! An executor of smol's cannot be cloned, so layers cannot share it: it is handed over behind a pointer.

fn main() {
    let executor = smol::Executor::new();
    let _ = campanile::ServiceBuilder::with_runtime(executor).buffer::<u32>(16);
}
