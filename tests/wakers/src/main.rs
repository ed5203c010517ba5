//! A waker that does nothing is a waker like any other, unless it is one of campanile's marks: however the compiler
//! merges tables and functions that look the same.

use std::future::ready;
use std::ptr::null;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use campanile::limit::ConcurrencyLimit;
use campanile::limit::concurrency::Semaphore;
use campanile::load_shed::LoadShed;
use campanile::{Service, service_fn};

/// Tables like that of `Waker::noop()`, which may or may not be merged with it.
static STATIC: RawWakerVTable = RawWakerVTable::new(|_| RAW, |_| {}, |_| {}, |_| {});
const RAW: RawWaker = RawWaker::new(null(), &STATIC);
const CONSTANT: &RawWakerVTable =
    &RawWakerVTable::new(|_| RawWaker::new(null(), CONSTANT), |_| {}, |_| {}, |_| {});

fn main() {
    // SAFETY: the functions of both tables do nothing, whatever they are called with.
    let own = unsafe { [Waker::new(null(), &STATIC), Waker::new(null(), CONSTANT)] };
    for waker in own.into_iter().chain([Waker::noop().clone()]) {
        let semaphore = Semaphore::new(1);
        let service = service_fn(|n: u32| ready(Ok::<_, ()>(n)));
        let mut first = ConcurrencyLimit::with_semaphore(service, semaphore.clone());
        let mut second = first.clone();
        let mut cx = Context::from_waker(&waker);
        assert_eq!(first.poll_ready(&mut cx), Poll::Ready(Ok(())));
        // It is not taken for a poll that only tries, and so it joins the line, and is given the permit.
        assert_eq!(second.poll_ready(&mut cx), Poll::Pending);
        drop(first);
        assert_eq!(semaphore.available_permits(), 0);
        // Nor for one that only drives, and so it keeps it.
        assert_eq!(second.poll_ready(&mut cx), Poll::Ready(Ok(())));
        assert_eq!(semaphore.available_permits(), 0);

        // One that is marked is known.
        let mut third = LoadShed::new(second.clone());
        assert_eq!(third.poll_ready(&mut cx), Poll::Ready(Ok(())));
        drop(second);
        assert_eq!(semaphore.available_permits(), 1);
    }
    println!("foreign wakers are ordinary ones");
}
