//! A sensor on a bus, shared by two tasks, on a microcontroller without a heap.
//!
//! There is one sensor and one bus, and the tasks must not talk over each other. So the driver of the sensor
//! is a service; a buffer in a `static` lets any task send it requests, one at a time and in the order in which
//! they came; and each task puts around its handle what it needs: the display is in a hurry and has a short
//! timeout, the logger is patient and tries again when the bus had a hiccup.
//!
//! The executor, the tasks and the timers are embassy's. To run it in an emulator, once `qemu-system-arm` is installed:
//!
//! ```sh
//! rustup target add thumbv7em-none-eabihf
//! cargo run --release        # in this directory; `.cargo/config.toml` says for what target, and how to run it
//! ```
//!
//! It prints what the two tasks see, and ends with `logged 10 of 10`; now and then the display has no value, as it does
//! not try again. For a board of your own, change
//!
//! - `memory.x`, to the memory of the chip, and `.cargo/config.toml`, to its target and how to flash it;
//! - `systick.rs`, to the time driver of the chip's HAL: then the three crates of embassy's clock in `Cargo.toml` are the
//!   HAL's affair, too;
//! - `Sensor`, to a driver that talks to a bus;
//! - `hprintln!` and `debug::exit`, to a log of the board's, such as defmt: both stop a chip that has no debugger.
#![no_std]
#![no_main]

mod systick;

use core::panic::PanicInfo;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;

use campanile::buffer::{self, Buffer, StaticQueue, Worker};
use campanile::embassy::{Embassy, ServiceBuilder};
use campanile::retry::StandardPolicy;
use campanile::retry::backoff::{ExponentialBackoffMaker, Jitter};
use campanile::util::rng::SplitMix64;
use campanile::{NoRuntime, Service, ServiceExt, Timer};
use cortex_m_semihosting::{debug, hprintln};
use embassy_executor::Spawner;

// ---- The driver -------------------------------------------------------------------------------------

/// What can be measured.
#[derive(Clone, Copy, Debug)]
enum Channel {
    Temperature,
    Humidity,
}

/// The bus did not acknowledge. The errors of a buffer in a `static` are `Copy`: each handle gets one.
#[derive(Clone, Copy, Debug)]
struct Nack;

/// A sensor on a bus: here a made-up one, that takes 5 ms and fails in every fourth measurement.
struct Sensor {
    measurements: u16,
}

impl Service<Channel> for Sensor {
    type Response = u16;
    type Error = Nack;
    // The future needs a name, since the queue in the `static` has a place for it.
    type Future = Measurement;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Nack>> {
        // A real driver would say here whether the last conversion is over.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, channel: Channel) -> Measurement {
        self.measurements += 1;
        let value = match channel {
            Channel::Temperature => 200 + self.measurements,
            Channel::Humidity => 40 + self.measurements,
        };
        Measurement {
            ready: Embassy.sleep(Duration::from_millis(5)),
            outcome: if self.measurements % 4 == 0 {
                Err(Nack)
            } else {
                Ok(value)
            },
        }
    }
}

struct Measurement {
    ready: <Embassy as Timer>::Sleep,
    outcome: Result<u16, Nack>,
}

impl Future for Measurement {
    type Output = Result<u16, Nack>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(Pin::new(&mut self.ready).poll(cx));
        Poll::Ready(self.outcome)
    }
}

// ---- What the tasks share ---------------------------------------------------------------------------

/// Room for four requests, and four more that wait for room: more than there are tasks.
type Queue = StaticQueue<Channel, Measurement, 4>;
static QUEUE: Queue = Queue::new();

/// A task's handle to the sensor. It names no runtime, as the worker is a task of this program's, below.
type SensorHandle = Buffer<Channel, Measurement, NoRuntime, &'static Queue>;

/// Owns the sensor, and hands it one request after the other.
#[embassy_executor::task]
async fn sensor(worker: Worker<Sensor, Channel, &'static Queue>) {
    worker.await;
}

// ---- The tasks --------------------------------------------------------------------------------------

/// Shows the humidity; a value that is late is no use to it.
#[embassy_executor::task]
async fn display(sensor: SensorHandle) {
    let sensor = ServiceBuilder::new()
        .timeout(Duration::from_millis(20))
        .service(sensor);
    loop {
        match sensor.clone().oneshot(Channel::Humidity).await {
            Ok(value) => hprintln!("display: {} %", value),
            Err(error) => hprintln!("display: -- ({:?})", error),
        }
        Embassy.sleep(Duration::from_millis(30)).await;
    }
}

/// Logs the temperature ten times, and needs all ten.
#[embassy_executor::task]
async fn logger(sensor: SensorHandle) {
    let (shortest, longest) = (Duration::from_millis(2), Duration::from_millis(50));
    // The jitter's. Without a source of chance, a chip's unique number would do.
    let seed = SplitMix64::new(0x5eed);
    let backoff =
        ExponentialBackoffMaker::with_timer(shortest, longest, Jitter::Full, seed, Embassy)
            .expect("2 ms is shorter than 50 ms");
    // Every error is worth another try; `classify` could tell them apart.
    let policy = StandardPolicy::with_backoff(backoff, Embassy).max_retries(5);
    // From the outside to the inside: each try has a timeout of its own.
    let sensor = ServiceBuilder::new()
        .retry(policy)
        .timeout(Duration::from_millis(100))
        .service(sensor);

    let mut logged = 0;
    for _ in 0..10 {
        match sensor.clone().oneshot(Channel::Temperature).await {
            Ok(value) => {
                logged += 1;
                hprintln!("logger:  {}.{} C", value / 10, value % 10);
            }
            Err(error) => hprintln!("logger:  lost one ({:?})", error),
        }
        Embassy.sleep(Duration::from_millis(10)).await;
    }
    hprintln!("logged {} of 10", logged);
    debug::exit(if logged == 10 {
        debug::EXIT_SUCCESS
    } else {
        debug::EXIT_FAILURE
    });
}

#[embassy_executor::main]
async fn main(spawner: Spawner) {
    systick::start();
    let (handle, worker) =
        buffer::try_pair_in(Sensor { measurements: 0 }, &QUEUE).expect("this is its only buffer");
    spawner.must_spawn(sensor(worker));
    spawner.must_spawn(display(handle.clone()));
    spawner.must_spawn(logger(handle));
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hprintln!("{}", info);
    debug::exit(debug::EXIT_FAILURE);
    loop {
        cortex_m::asm::wfi();
    }
}
