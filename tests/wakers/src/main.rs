//! A no-op waker is an ordinary waker unless it is one of campanile's marks, even if the compiler merges identical
//! tables and functions.

use std::future::ready;
use std::ptr::null;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use campanile::limit::ConcurrencyLimit;
use campanile::limit::concurrency::Semaphore;
use campanile::load_shed::LoadShed;
use campanile::{Service, service_fn};

/// Tables like that of `Waker::noop()`, which the compiler may merge with it.
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
        // This is not treated as a try, so the handle joins the queue and gets the permit.
        assert_eq!(second.poll_ready(&mut cx), Poll::Pending);
        drop(first);
        assert_eq!(semaphore.available_permits(), 0);
        // It is not treated as a drive either, so the handle keeps the permit.
        assert_eq!(second.poll_ready(&mut cx), Poll::Ready(Ok(())));
        assert_eq!(semaphore.available_permits(), 0);

        // A marked waker is recognised.
        let mut third = LoadShed::new(second.clone());
        assert_eq!(third.poll_ready(&mut cx), Poll::Ready(Ok(())));
        drop(second);
        assert_eq!(semaphore.available_permits(), 1);
    }
    println!("foreign wakers are ordinary ones");
}
