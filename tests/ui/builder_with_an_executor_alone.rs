//! A type that runs tasks but tells no time is half a runtime.

#[derive(Clone)]
struct Threads;

impl<F: Future<Output = ()> + Send + 'static> campanile::Executor<F> for Threads {
    fn execute(&self, _: F) {}
}

fn main() {
    let _ = campanile::ServiceBuilder::with_runtime(Threads).buffer::<u32>(16);
}
