//! The count of a semaphore on the heap: one word, and behind it the line of those who wait.
//!
//! Who finds a permit takes it out of the word, and puts it back there, without the lock. The word says too
//! that somebody waits; from then on everything goes through the lock, until nobody does.

#[cfg(feature = "std")]
mod imp {
    use core::task::{Context, Poll};

    use crate::sync::gate::{Full, Gate, Place, Waiters};
    use crate::sync::primitives::Mutex;
    use crate::sync::primitives::atomic::{
        AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    };
    use crate::sync::slab::{Growing, Slab};
    use crate::sync::{is_attempt, lock::Lock, with_waker};

    /// In the place of the count: there is a line, and so nothing is free.
    const LINE: usize = usize::MAX;

    /// Permits, and the line of those who wait for one.
    ///
    /// `free` is `LINE` as long as the line is not empty, seen from outside of the lock. It becomes `LINE`, and
    /// something else again, under the lock alone. The gate's own permits are 0, seen from outside of the lock.
    pub(crate) struct Counter {
        // How many permits nobody has, or `LINE`.
        free: AtomicUsize,
        gate: Mutex<Gate<Waiters<Growing>>>,
    }

    impl Counter {
        pub(crate) fn new(permits: usize) -> Self {
            let most = LINE - 1;
            Self {
                free: AtomicUsize::new(if permits < most { permits } else { most }),
                gate: Mutex::new(Gate::new(0, Slab::new())),
            }
        }

        pub(crate) fn free(&self) -> usize {
            match self.free.load(Relaxed) {
                LINE => 0,
                free => free,
            }
        }

        /// Takes a permit, if one is free.
        #[inline]
        fn take(&self) -> bool {
            let mut free = self.free.load(Relaxed);
            while free != 0 && free != LINE {
                match (self.free).compare_exchange_weak(free, free - 1, Acquire, Relaxed) {
                    Ok(_) => return true,
                    Err(other) => free = other,
                }
            }
            false
        }

        /// Puts a permit back, if nobody waits for it.
        #[inline]
        fn put(&self) -> bool {
            let mut free = self.free.load(Relaxed);
            while free != LINE {
                match (self.free).compare_exchange_weak(free, free + 1, Release, Relaxed) {
                    Ok(_) => return true,
                    Err(other) => free = other,
                }
            }
            false
        }

        /// See [`Gate::poll`].
        #[inline]
        pub(crate) fn poll(&self, place: &mut Place, cx: &Context<'_>) -> Poll<Result<(), Full>> {
            match place {
                Place::Inside => Poll::Ready(Ok(())),
                Place::Outside if self.take() => {
                    *place = Place::Inside;
                    Poll::Ready(Ok(()))
                }
                Place::Outside if is_attempt(cx) => Poll::Pending,
                Place::Outside | Place::InLine(_) => self.wait(place, cx),
            }
        }

        /// See [`Gate::leave`]. Not to be called under a lock.
        #[inline]
        pub(crate) fn leave(&self, place: &mut Place) {
            match place {
                Place::Outside => {}
                Place::Inside if self.put() => *place = Place::Outside,
                Place::Inside | Place::InLine(_) => self.pass_on(place),
            }
        }

        #[cold]
        fn wait(&self, place: &mut Place, cx: &Context<'_>) -> Poll<Result<(), Full>> {
            with_waker(cx, |waker| {
                self.gate.with(|gate| {
                    if let Place::Outside = place {
                        // The word says that there is a line only when somebody joins it here and now.
                        let may_join = waker.is_some();
                        if self.take() || may_join && !self.begin_line() {
                            *place = Place::Inside;
                        }
                    }
                    gate.poll(place, cx, waker)
                })
            })
        }

        /// Under the lock: from here on who puts a permit back passes it on. Unless one is free: takes that, and
        /// says false.
        fn begin_line(&self) -> bool {
            loop {
                if self.take() {
                    return false;
                }
                match self.free.compare_exchange(0, LINE, Relaxed, Relaxed) {
                    Ok(_) | Err(LINE) => return true,
                    // One was put back in between.
                    Err(_) => {}
                }
            }
        }

        #[cold]
        fn pass_on(&self, place: &mut Place) {
            let farewell = self.gate.with(|gate| {
                let farewell = gate.leave(place);
                if gate.nobody_waits() {
                    // What the gate had nobody for. If the line ended just now, that is nothing.
                    let back = gate.take_permits();
                    let end = (self.free).compare_exchange(LINE, back, Release, Relaxed);
                    if end.is_err() {
                        // Others count at the same time. It stays a count, as the lock is ours.
                        self.free.fetch_add(back, Release);
                    }
                }
                farewell
            });
            farewell.finish();
        }
    }
}

// Without std there is no lock that blocks, and no semaphore on the heap.
#[cfg(not(feature = "std"))]
mod imp {
    use core::task::{Context, Poll};

    use crate::sync::gate::{Full, Place};

    pub(crate) enum Counter {}

    impl Counter {
        pub(crate) fn free(&self) -> usize {
            match *self {}
        }

        pub(crate) fn poll(&self, _: &mut Place, _: &Context<'_>) -> Poll<Result<(), Full>> {
            match *self {}
        }

        pub(crate) fn leave(&self, _: &mut Place) {
            match *self {}
        }
    }
}

pub(crate) use imp::Counter;

#[cfg(all(test, feature = "std"))]
mod tests {
    use alloc::sync::Arc;
    use alloc::task::Wake;
    use alloc::vec::Vec;
    use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use core::task::{Context, Poll, Waker};

    use super::Counter;
    use crate::sync::attempt;
    use crate::sync::gate::Place;
    use crate::util::rng::{Rng, SplitMix64};

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    fn polled(counter: &Counter, place: &mut Place, waker: &Waker) -> bool {
        counter.poll(place, &Context::from_waker(waker)).is_ready()
    }

    #[test]
    fn a_permit_comes_out_of_the_word_and_goes_back_there_and_past_it_while_somebody_waits() {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let counter = Counter::new(1);
        let [mut a, mut b, mut c] = [Place::Outside, Place::Outside, Place::Outside];
        assert!(polled(&counter, &mut a, &waker));
        assert_eq!(counter.free(), 0);
        counter.leave(&mut a);
        assert_eq!(counter.free(), 1);

        assert!(polled(&counter, &mut a, &waker));
        assert!(!polled(&counter, &mut b, &waker));
        assert!(!polled(&counter, &mut c, &waker));
        counter.leave(&mut a);
        // It is for `b`, and neither for who comes back nor for who tries.
        assert!(!polled(&counter, &mut a, &waker));
        assert!(attempt(|cx| counter.poll(&mut Place::Outside, cx)).is_pending());
        assert_eq!((counter.free(), wakes.0.load(SeqCst)), (0, 1));
        // `b` is gone before it knows: next is `c`, and then `a`, which gives up.
        counter.leave(&mut b);
        assert_eq!(wakes.0.load(SeqCst), 2);
        counter.leave(&mut a);
        assert!(polled(&counter, &mut c, &waker));
        assert_eq!(counter.free(), 0);
        // The line has ended.
        counter.leave(&mut c);
        assert_eq!((counter.free(), wakes.0.load(SeqCst)), (1, 2));
    }

    #[test]
    fn the_last_in_line_that_gives_up_ends_the_line() {
        let counter = Counter::new(2);
        let waker = Waker::from(Arc::new(Wakes::default()));
        let mut places: Vec<_> = (0..4).map(|_| Place::Outside).collect();
        let ready: Vec<_> = (places.iter_mut())
            .map(|place| polled(&counter, place, &waker))
            .collect();
        assert_eq!(ready, [true, true, false, false]);
        places[2..]
            .iter_mut()
            .for_each(|place| counter.leave(place));
        places[..2]
            .iter_mut()
            .for_each(|place| counter.leave(place));
        assert_eq!(counter.free(), 2);
    }

    #[test]
    fn a_permit_for_somebody_who_gives_up_is_free_again() {
        let counter = Counter::new(1);
        let waker = Waker::from(Arc::new(Wakes::default()));
        let [mut a, mut b] = [Place::Outside, Place::Outside];
        assert!(polled(&counter, &mut a, &waker));
        assert!(!polled(&counter, &mut b, &waker));
        counter.leave(&mut a);
        assert_eq!(counter.free(), 0);
        counter.leave(&mut b);
        assert_eq!(counter.free(), 1);
    }

    #[test]
    fn as_many_permits_as_can_be_counted_are_not_taken_for_a_line() {
        let counter = Counter::new(usize::MAX);
        let mut place = Place::Outside;
        assert!(polled(&counter, &mut place, Waker::noop()));
        counter.leave(&mut place);
        assert_eq!(counter.free(), usize::MAX - 1);
    }

    /// Unparks the thread that waits.
    struct Unpark(std::thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    #[test]
    fn threads_that_come_wait_and_give_up_lose_no_permit_and_have_no_more_than_there_are() {
        const PERMITS: usize = 2;
        let rounds = if cfg!(miri) { 20 } else { 5_000 };
        let counter = Counter::new(PERMITS);
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (counter, inside) = (&counter, &inside);
                scope.spawn(move || {
                    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
                    let mut rng = SplitMix64::new(seed);
                    for _ in 0..rounds {
                        let mut place = Place::Outside;
                        let gives_up = rng.next_range(0..4) == 0;
                        let cx = Context::from_waker(&waker);
                        while counter.poll(&mut place, &cx).is_pending() && !gives_up {
                            // A wake-up that is lost is a test that never ends.
                            std::thread::park();
                        }
                        if let Place::Inside = place {
                            assert!(inside.fetch_add(1, SeqCst) < PERMITS);
                            std::thread::yield_now();
                            inside.fetch_sub(1, SeqCst);
                        }
                        counter.leave(&mut place);
                    }
                });
            }
        });
        assert_eq!(counter.free(), PERMITS);
        let polled = attempt(|cx| counter.poll(&mut Place::Outside, cx));
        assert_eq!(polled, Poll::Ready(Ok(())));
    }
}
