//! The backends: TCP servers on loopback that can be slow, broken or gone.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smol::channel::{Sender, bounded};
use smol::future::or;
use smol::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use smol::net::{TcpListener, TcpStream};
use smol::stream::StreamExt;

use crate::AnyRuntime;

/// Takes lines with a number, and handles one at a time, in order. So a request sent to a slow backend queues there,
/// where the balancer can no longer help it.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    /// The number of requests that a balancer sent here.
    pub(crate) chosen: AtomicU64,
    state: Mutex<State>,
    // Dropping it ends the server and its connection. `None`: the backend is down.
    running: Mutex<Option<Sender<()>>>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum State {
    /// Each request takes this long.
    Works(Duration),
    /// Each request fails at once: to a naive balancer this is the fastest backend of all.
    Fails,
    /// Connections are cut and refused.
    Down,
    /// Discovery does not know it.
    Unknown,
}

impl Backend {
    pub(crate) async fn start<R: AnyRuntime>(runtime: &R) -> io::Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let backend = Arc::new(Self {
            address: listener.local_addr()?,
            chosen: AtomicU64::new(0),
            state: Mutex::new(State::Unknown),
            running: Mutex::new(None),
        });
        backend.listen(runtime, listener);
        Ok(backend)
    }

    pub(crate) fn state(&self) -> State {
        *self.state.lock().unwrap()
    }

    pub(crate) async fn set_state<R: AnyRuntime>(
        self: &Arc<Self>,
        runtime: &R,
        state: State,
    ) -> io::Result<()> {
        let before = std::mem::replace(&mut *self.state.lock().unwrap(), state);
        if state == State::Down {
            self.stop();
        } else if before == State::Down {
            self.listen(runtime, TcpListener::bind(self.address).await?);
        }
        Ok(())
    }

    pub(crate) fn stop(&self) {
        *self.running.lock().unwrap() = None;
    }

    fn listen<R: AnyRuntime>(self: &Arc<Self>, runtime: &R, listener: TcpListener) {
        let (running, stopped) = bounded::<()>(1);
        *self.running.lock().unwrap() = Some(running);
        let (this, timer) = (self.clone(), runtime.clone());
        runtime.execute(Box::pin(async move {
            let serving = async {
                // One connection at a time is enough, since the balancer has one.
                while let Ok((stream, _)) = listener.accept().await {
                    // The client side counts broken connections.
                    let _ = this.serve(&timer, stream).await;
                }
            };
            let stopping = async {
                let _ = stopped.recv().await;
            };
            or(stopping, serving).await;
        }));
    }

    async fn serve<R: AnyRuntime>(&self, timer: &R, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut lines = BufReader::new(stream.clone()).lines();
        while let Some(id) = lines.next().await {
            let state = self.state();
            if let State::Works(latency) = state {
                timer.sleep(latency).await;
            }
            let word = if state == State::Fails { "no" } else { "ok" };
            let answer = format!("{word} {}\n", id?);
            stream.write_all(answer.as_bytes()).await?;
        }
        Ok(())
    }
}
