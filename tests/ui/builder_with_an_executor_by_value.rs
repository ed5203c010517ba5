//! smol's executor is not `Clone`, so layers cannot share it: it is passed behind a pointer.

fn main() {
    let executor = smol::Executor::new();
    let _ = campanile::ServiceBuilder::with_runtime(executor).buffer::<u32>(16);
}
