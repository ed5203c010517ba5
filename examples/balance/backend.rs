//! The other side: a TCP server on loopback that can be slow, broken or gone.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smol::channel::{Receiver, Sender, bounded};
use smol::future::or;
use smol::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use smol::net::{TcpListener, TcpStream};
use smol::stream::StreamExt;

use crate::AnyRuntime;

/// Takes lines with a number, and works on one at a time, in order. So requests that are sent to a slow one
/// stand in line there, where no balancer can help them any more.
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    health: Mutex<(Health, Option<Stop>)>,
    /// How many requests a balancer sent here.
    pub(crate) chosen: AtomicU64,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Health {
    /// Each request takes so long.
    Works(Duration),
    /// Each fails, at once: to the unwary the fastest backend of all.
    Fails,
    /// Connections are closed, and refused.
    Refuses,
}

/// Ends a server and its connections when it is dropped.
type Stop = Sender<()>;

impl Backend {
    pub(crate) async fn start<R: AnyRuntime>(
        runtime: &R,
        name: &'static str,
        health: Health,
    ) -> io::Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let backend = Arc::new(Self {
            name,
            address: listener.local_addr()?,
            health: Mutex::new((health, None)),
            chosen: AtomicU64::new(0),
        });
        backend.listen(runtime, listener);
        Ok(backend)
    }

    pub(crate) fn health(&self) -> Health {
        self.health.lock().unwrap().0
    }

    pub(crate) async fn set_health<R: AnyRuntime>(
        self: &Arc<Self>,
        runtime: &R,
        health: Health,
    ) -> io::Result<()> {
        let before = self.health();
        self.health.lock().unwrap().0 = health;
        if health == Health::Refuses {
            self.stop();
        } else if before == Health::Refuses {
            self.listen(runtime, TcpListener::bind(self.address).await?);
        }
        Ok(())
    }

    pub(crate) fn stop(&self) {
        self.health.lock().unwrap().1 = None;
    }

    fn listen<R: AnyRuntime>(self: &Arc<Self>, runtime: &R, listener: TcpListener) {
        let (stop, stopped) = bounded(1);
        self.health.lock().unwrap().1 = Some(stop);
        let accepting = self
            .clone()
            .accept(runtime.clone(), listener, stopped.clone());
        runtime.execute(Box::pin(until(stopped, accepting)));
    }

    async fn accept<R: AnyRuntime>(
        self: Arc<Self>,
        runtime: R,
        listener: TcpListener,
        stopped: Receiver<()>,
    ) -> io::Result<()> {
        loop {
            let (stream, _) = listener.accept().await?;
            let serving = self.clone().serve(runtime.clone(), stream);
            runtime.execute(Box::pin(until(stopped.clone(), serving)));
        }
    }

    async fn serve<R: AnyRuntime>(
        self: Arc<Self>,
        runtime: R,
        mut stream: TcpStream,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut lines = BufReader::new(stream.clone()).lines();
        while let Some(id) = lines.next().await {
            let (id, health) = (id?, self.health());
            if let Health::Works(latency) = health {
                runtime.sleep(latency).await;
            }
            let word = if health == Health::Fails { "no" } else { "ok" };
            stream
                .write_all(format!("{word} {id}\n").as_bytes())
                .await?;
        }
        Ok(())
    }
}

/// Runs `task` until it ends, or is to stop.
async fn until(stopped: Receiver<()>, task: impl Future<Output = io::Result<()>>) {
    let stopping = async {
        let _ = stopped.recv().await;
        Ok(())
    };
    // A connection that the other side has cut shows in the books of that side.
    let _ = or(stopping, task).await;
}
