//! Marks on a poll for readiness: it only tries, or it only drives.
//!
//! A service learns what a poll is for from the waker in its [`Context`], since nothing else reaches it through the
//! middleware and boxes in between. [`LoadShed`](crate::load_shed) tries. An idle [`Buffer`](crate::buffer), a
//! [`Deadline`](crate::timeout::Deadline) that has elapsed and a [`SpawnReady`](crate::spawn_ready) that was only tried
//! drive. A buffer that is kept ready prepares for a request. All middleware that reserves something, or polls its
//! parts with wakers of its own, heeds the marks.
//!
//! This is the only file of the crate with unsafe code. A waker's address identifies nothing (`Waker::noop()` and the
//! tables of `Wake` are constants, which the compiler may merge or duplicate); a `static` table has an address of its
//! own, and a waker with a custom table needs `unsafe`. A service that does not know the marks sees a waker like any
//! other.
#![allow(unsafe_code)]

use core::mem::ManuallyDrop;
use core::ptr;
use core::task::{Context, RawWaker, RawWakerVTable, Waker};

/// The purpose of a poll for readiness that is not to wait for readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The caller takes readiness if it is there, and does not come back if it is not: the service keeps no waker, no
    /// timer and no place in a wait queue for it.
    Try,
    /// No caller waits for readiness any more. The service gives up whatever it has reserved for a request (permit,
    /// token, room, place in a wait queue, running clock, alarm, refusal), reserves nothing, and continues with work of
    /// its own: connecting, following discovery. It wakes the waker when it has more such work. `Ready(Ok(()))` means
    /// that no such work is left, and not that the service may be called.
    Drive,
}

/// The data of a marked poll's waker.
struct Marked<'a> {
    // `None`: waits for readiness like an unmarked poll, but for a request that is still to come.
    mark: Option<Mark>,
    waker: &'a Waker,
}

/// The table that identifies marked wakers. A `static`, so that no other table has its address.
static TABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake, ignore);

/// The mark of a poll, if it has one.
#[inline]
pub(crate) fn mark(cx: &Context<'_>) -> Option<Mark> {
    Marked::of(cx.waker())?.mark
}

/// Whether this is anything but a poll that waits for readiness on behalf of a request.
#[cfg(feature = "std")]
#[inline]
pub(crate) fn is_marked(cx: &Context<'_>) -> bool {
    Marked::of(cx.waker()).is_some()
}

/// Whether there is a request that this poll is for. If there is none, no clock of a request starts, and no error of a
/// request's own counts as readiness.
#[inline]
pub(crate) fn has_request(cx: &Context<'_>) -> bool {
    Marked::of(cx.waker()).is_none_or(|marked| marked.mark == Some(Mark::Try))
}

/// Whether this poll only tries.
#[inline]
pub(crate) fn is_try(cx: &Context<'_>) -> bool {
    mark(cx) == Some(Mark::Try)
}

/// Whether this poll only drives.
#[inline]
pub(crate) fn is_drive(cx: &Context<'_>) -> bool {
    mark(cx) == Some(Mark::Drive)
}

/// Polls once, without waiting: see [`Mark::Try`].
pub(crate) fn try_poll<T>(poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
    marked(Some(Mark::Try), Waker::noop(), poll)
}

/// Polls without a waiting caller, and wakes `waker` when there is more to drive: see [`Mark::Drive`].
pub(crate) fn drive<T>(waker: &Waker, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
    marked(Some(Mark::Drive), waker, poll)
}

/// Waits for readiness before there is a request, and wakes `waker`. What a request needs is reserved, except as
/// [`has_request`] says.
pub(crate) fn prepare<T>(waker: &Waker, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
    marked(None, waker, poll)
}

/// Polls work that a service does for itself, such as connecting. This gets an unmarked poll even without a request,
/// since what waits for readiness inside must not mistake the answer to a driving poll for readiness. A try stays one.
pub(crate) fn own_work<T>(cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
    if has_request(cx) {
        return poll(cx);
    }
    let waker = cx.waker().clone();
    poll(&mut Context::from_waker(&waker))
}

/// Makes a service give up what it has reserved. Its later wake-ups are lost.
pub(crate) fn withdraw<T>(poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
    drive(Waker::noop(), poll)
}

fn marked<T>(mark: Option<Mark>, waker: &Waker, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
    let marked = Marked { mark, waker };
    let data = ptr::from_ref(&marked).cast();
    // SAFETY: the functions of `TABLE` keep the contract of a waker. They may be called from any thread, since `Marked`
    // is `Sync`, and are not called after `marked` is gone: the waker is lent to `poll` for a lifetime that `poll`
    // cannot name, so it can keep neither the waker nor a reference; a clone is a clone of `marked.waker`.
    let waker = unsafe { Waker::new(data, &TABLE) };
    poll(&mut Context::from_waker(&waker))
}

impl Marked<'_> {
    /// What `waker` points to, if it is that of a marked poll.
    #[inline]
    fn of(waker: &Waker) -> Option<&Self> {
        if !ptr::eq(waker.vtable(), &TABLE) {
            return None;
        }
        // SAFETY: only `marked` makes wakers with this table, from a `Marked` that outlives them.
        Some(unsafe { Self::from_data(waker.data()) })
    }

    /// # Safety
    ///
    /// `data` is that of a waker made by `marked`, and that waker is alive for `'a`.
    #[inline]
    unsafe fn from_data<'a>(data: *const ()) -> &'a Self {
        // SAFETY: `marked` made it from a reference to a `Marked` that outlives the waker.
        unsafe { &*data.cast() }
    }
}

/// A clone is unmarked: services keep it for later wake-ups.
unsafe fn clone(data: *const ()) -> RawWaker {
    // SAFETY: only this waker's functions are called with `data`, while it is alive.
    let marked = unsafe { Marked::from_data(data) };
    let waker = ManuallyDrop::new(marked.waker.clone());
    RawWaker::new(waker.data(), waker.vtable())
}

unsafe fn wake(data: *const ()) {
    // SAFETY: as in `clone`.
    unsafe { Marked::from_data(data) }.waker.wake_by_ref();
}

/// Does nothing: the marked waker belongs to the caller.
unsafe fn ignore(_: *const ()) {}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use alloc::sync::Arc;
    use core::sync::atomic::Ordering::SeqCst;

    use super::*;
    use crate::sync::WakeCount;

    #[test]
    fn marks_are_told_apart() {
        assert_eq!(try_poll(|cx| mark(cx)), Some(Mark::Try));
        assert_eq!(withdraw(|cx| mark(cx)), Some(Mark::Drive));
        assert!(try_poll(|cx| is_try(cx) && !is_drive(cx)));
        assert!(withdraw(|cx| is_drive(cx) && !is_try(cx)));
        assert_eq!(prepare(Waker::noop(), |cx| mark(cx)), None);
        assert!(!prepare(Waker::noop(), |cx| has_request(cx)));
        assert!(has_request(&Context::from_waker(Waker::noop())));
    }

    #[test]
    fn foreign_waker_has_no_mark() {
        let foreign = [Waker::noop().clone(), Arc::new(WakeCount::default()).into()];
        for waker in foreign {
            assert_eq!(mark(&Context::from_waker(&waker)), None);
        }
    }

    #[test]
    fn marked_waker_wakes_the_waker_beneath() {
        let wakes = Arc::new(WakeCount::default());
        let waker = Waker::from(wakes.clone());
        let clone = drive(&waker, |cx| {
            cx.waker().wake_by_ref();
            cx.waker().clone()
        });
        assert_eq!(mark(&Context::from_waker(&clone)), None);
        assert_eq!(clone.data(), waker.data());
        clone.wake();
        assert_eq!(wakes.0.load(SeqCst), 2);
        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1);
    }

    #[test]
    fn own_work_is_not_marked_as_driven() {
        let wakes = Arc::new(WakeCount::default());
        let waker = Waker::from(wakes.clone());
        drive(&waker, |cx| {
            own_work(cx, |cx| {
                assert_eq!(mark(cx), None);
                cx.waker().wake_by_ref();
            });
        });
        assert_eq!(wakes.0.load(SeqCst), 1);
        prepare(&waker, |cx| own_work(cx, |cx| assert!(has_request(cx))));
        try_poll(|cx| own_work(cx, |cx| assert!(is_try(cx))));
    }

    #[test]
    fn marks_nest() {
        let marks = try_poll(|outer| {
            let inner = drive(outer.waker(), |cx| mark(cx));
            (mark(outer), inner)
        });
        assert_eq!(marks, (Some(Mark::Try), Some(Mark::Drive)));
    }
}
