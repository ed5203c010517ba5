//! One 64-bit word that many change, each change on its own: it orders no other memory.

#[cfg(target_has_atomic = "64")]
mod imp {
    use crate::sync::primitives::atomic::{AtomicU64, Ordering::Relaxed};

    #[derive(Debug)]
    pub(crate) struct Word(AtomicU64);

    impl Word {
        pub(crate) const fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }

        pub(crate) fn load(&self) -> u64 {
            self.0.load(Relaxed)
        }

        #[allow(dead_code, reason = "of use to what needs an allocator")]
        pub(crate) fn store(&self, value: u64) {
            self.0.store(value, Relaxed);
        }

        /// Puts `value` there, and gives what was there.
        #[allow(dead_code, reason = "of use to what needs an allocator")]
        pub(crate) fn swap(&self, value: u64) -> u64 {
            self.0.swap(value, Relaxed)
        }

        /// Puts `new` in the place of `current`; if it is another, gives that.
        pub(crate) fn replace(&self, current: u64, new: u64) -> Result<(), u64> {
            self.0
                .compare_exchange(current, new, Relaxed, Relaxed)
                .map(drop)
        }
    }
}

// Where the processor has no such operation, which is most that have no operating system.
#[cfg(not(target_has_atomic = "64"))]
mod imp {
    use core::cell::Cell;

    use critical_section::Mutex;

    #[derive(Debug)]
    pub(crate) struct Word(Mutex<Cell<u64>>);

    impl Word {
        pub(crate) const fn new(value: u64) -> Self {
            Self(Mutex::new(Cell::new(value)))
        }

        pub(crate) fn load(&self) -> u64 {
            critical_section::with(|section| self.0.borrow(section).get())
        }

        #[allow(dead_code, reason = "of use to what needs an allocator")]
        pub(crate) fn store(&self, value: u64) {
            self.swap(value);
        }

        /// Puts `value` there, and gives what was there.
        #[allow(dead_code, reason = "of use to what needs an allocator")]
        pub(crate) fn swap(&self, value: u64) -> u64 {
            critical_section::with(|section| self.0.borrow(section).replace(value))
        }

        /// Puts `new` in the place of `current`; if it is another, gives that.
        pub(crate) fn replace(&self, current: u64, new: u64) -> Result<(), u64> {
            critical_section::with(|section| {
                let word = self.0.borrow(section);
                match word.get() {
                    value if value == current => {
                        word.set(new);
                        Ok(())
                    }
                    other => Err(other),
                }
            })
        }
    }
}

pub(crate) use imp::Word;

impl Word {
    /// Changes the value as `change` says, again and again until nobody was faster. Says whether it gave a new one.
    pub(crate) fn update(&self, mut change: impl FnMut(u64) -> Option<u64>) -> bool {
        let mut value = self.load();
        while let Some(new) = change(value) {
            match self.replace(value, new) {
                Ok(()) => return true,
                Err(other) => value = other,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_that_others_were_faster_than_is_made_again() {
        let word = Word::new(1);
        let mut others = 3;
        let updated = word.update(|value| {
            if others > 0 {
                others -= 1;
                word.store(value + 10);
            }
            Some(value + 1)
        });
        assert!(updated);
        assert_eq!(word.load(), 32);
        assert!(!word.update(|_| None));
    }
}
