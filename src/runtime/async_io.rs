use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;

use super::std_clock;
use crate::{Instant, Timer};

/// A wait on async-io's reactor: the timer of smol and of async-std.
pub struct Sleep(async_io::Timer);

impl Sleep {
    fn until(deadline: Instant) -> Self {
        if deadline == Instant::MAX {
            return Self(async_io::Timer::never());
        }
        Self(async_io::Timer::at(deadline.into_std()))
    }

    fn after(duration: Duration) -> Self {
        Self(async_io::Timer::after(duration))
    }

    fn set(&mut self, deadline: Instant) {
        if deadline == Instant::MAX {
            *self = Self::until(deadline);
        } else {
            self.0.set_at(deadline.into_std());
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(drop)
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sleep").finish()
    }
}

/// async-io's timer, which smol and async-std share.
#[derive(Debug)]
pub(super) struct AsyncIo;

impl Timer for AsyncIo {
    type Sleep = Sleep;
    type Alarm = Sleep;

    #[inline]
    fn now(&self) -> Instant {
        std_clock::now()
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep::until(deadline)
    }

    fn alarm_until(&self, deadline: Instant) -> Sleep {
        Sleep::until(deadline)
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::after(duration)
    }

    fn reset(&self, alarm: &mut Sleep, deadline: Instant) {
        alarm.set(deadline);
    }
}
