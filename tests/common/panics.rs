use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

type At = (String, u32);

thread_local! {
    /// `Some` while a panic of this thread is expected; the inner value is its location.
    static AWAITED: RefCell<Option<Option<At>>> = const { RefCell::new(None) };
}

/// Returns the file and the line at which `act` panics. Fails if it does not panic.
///
/// Panics of other threads are reported as usual.
#[track_caller]
pub fn panics_at(act: impl FnOnce()) -> At {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |info| {
            let awaited = AWAITED.with_borrow_mut(|awaited| match awaited {
                Some(at) => {
                    *at = info.location().map(|l| (l.file().to_owned(), l.line()));
                    true
                }
                None => false,
            });
            if !awaited {
                others(info);
            }
        }));
    });
    AWAITED.set(Some(None));
    let caught = catch_unwind(AssertUnwindSafe(act));
    let at = AWAITED.take().flatten();
    assert!(caught.is_err(), "it did not panic");
    at.expect("a panic has a location")
}
