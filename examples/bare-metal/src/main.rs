//! A sensor on a bus, shared by two tasks, on a microcontroller without a heap.
//!
//! There is one sensor and one bus, and the tasks must not interfere with each other. So the driver of the sensor is
//! a service, and a buffer in a `static` lets every task send it requests, which it handles one at a time in FIFO
//! order. Each task wraps its handle as it needs: the display is in a hurry and has a short timeout, the logger is
//! patient and retries when the bus had a hiccup.
//!
//! The executor, the tasks and the timers are embassy's. To run it in an emulator, install `qemu-system-arm` and
//! then:
//!
//! ```sh
//! rustup target add thumbv7em-none-eabihf
//! cargo run --release        # in this directory; `.cargo/config.toml` says for what target, and how to run it
//! ```
//!
//! It prints what the two tasks see, and ends with `logged 10 of 10`. Now and then the display has no value, since it
//! does not retry. For your own board, change
//!
//! - `memory.x`, to the memory of the chip, and `.cargo/config.toml`, to its target and how to flash it;
//! - `systick.rs`, to the time driver of the chip's HAL, which then also brings the three crates of embassy's clock
//!   in `Cargo.toml`;
//! - `Sensor`, to a driver that talks to a bus;
//! - `hprintln!` and `debug::exit`, to the board's log, such as defmt: both stop a chip that has no debugger.
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

/// The bus did not acknowledge. The error of a buffer in a `static` is `Copy`, since each handle gets one.
#[derive(Clone, Copy, Debug)]
struct Nack;

/// A sensor on a bus: here a simulated one, which takes 5 ms and fails in every fourth measurement.
struct Sensor {
    measurements: u16,
}

impl Service<Channel> for Sensor {
    type Response = u16;
    type Error = Nack;
    // The future needs a name, since the queue in the `static` has room for it.
    type Future = Measurement;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Nack>> {
        // A real driver would check here whether the last conversion is complete.
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

/// Room for four requests, and four more waiting for room: more than there are tasks.
type Queue = StaticQueue<Channel, Measurement, 4>;
static QUEUE: Queue = Queue::new();

/// A task's handle to the sensor. It names no runtime, since the worker is a task of this program, below.
type SensorHandle = Buffer<Channel, Measurement, NoRuntime, &'static Queue>;

/// Owns the sensor, and passes it one request after the other.
#[embassy_executor::task]
async fn sensor(worker: Worker<Sensor, Channel, &'static Queue>) {
    worker.await;
}

// ---- The tasks --------------------------------------------------------------------------------------

/// Shows the humidity. A late value is of no use to it.
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
    // For the jitter. Without a source of randomness, use the chip's unique number.
    let seed = SplitMix64::new(0x5eed);
    let backoff =
        ExponentialBackoffMaker::with_timer(shortest, longest, Jitter::Full, seed, Embassy)
            .expect("2 ms is shorter than 50 ms");
    // Every error is worth a retry; `classify` could distinguish them.
    let policy = StandardPolicy::with_backoff(backoff, Embassy).max_retries(5);
    // From the outside to the inside: each attempt has its own timeout.
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
