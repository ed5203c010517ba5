//! The client side of a backend: the service that a balancer chooses.

use std::future::pending;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use campanile::Service;
use campanile::reconnect::{self, ConnectErrors, Reconnect};
use campanile::retry::backoff::ExponentialBackoffMaker;
use campanile::util::rng::HasherRng;
use futures::channel::{mpsc, oneshot};
use smol::future::or;
use smol::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use smol::net::TcpStream;
use smol::stream::StreamExt;

use crate::AnyRuntime;
use crate::backend::Backend;

/// A connection that is made when there is none.
pub(crate) type Endpoint<R> =
    Reconnect<Connect<R>, Arc<Backend>, R, ExponentialBackoffMaker<HasherRng, R>>;

/// How a request to an endpoint fails: on the connection, or while connecting.
pub(crate) type EndpointError = reconnect::Error<CallError, io::Error>;

pub(crate) fn endpoint<R: AnyRuntime>(runtime: &R, backend: &Arc<Backend>) -> Endpoint<R> {
    Reconnect::with_timer(Connect(runtime.clone()), backend.clone(), runtime.clone())
        // An endpoint that cannot connect is not ready, so the balancer sends requests elsewhere, and no request is
        // used up to find out.
        .connect_errors(ConnectErrors::Nowhere)
}

/// Makes connections: a service whose response is a service.
pub(crate) struct Connect<R>(R);

impl<R: AnyRuntime> Service<Arc<Backend>> for Connect<R> {
    type Response = Connection;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, backend: Arc<Backend>) -> Self::Future {
        let runtime = self.0.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(backend.address).await?;
            stream.set_nodelay(true)?;
            let (requests, queue) = mpsc::unbounded();
            runtime.execute(Box::pin(drive(stream, queue)));
            Ok(Connection { backend, requests })
        })
    }
}

/// A connection with any number of requests in flight. Answers come in the order of the requests.
pub(crate) struct Connection {
    backend: Arc<Backend>,
    requests: mpsc::UnboundedSender<Pending>,
}

/// A request, and the channel for its answer.
type Pending = (u64, oneshot::Sender<Result<u64, CallError>>);

/// How a request fails on a connection.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The backend answered with an error.
    Backend,
    /// The connection broke, and the fate of the request is unknown.
    CutOff,
}

impl Service<u64> for Connection {
    type Response = u64;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<u64, CallError>> + Send>>;

    /// An error of readiness means that this connection is lost: `Reconnect` makes another.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(if self.requests.is_closed() {
            Err(CallError::CutOff)
        } else {
            Ok(())
        })
    }

    fn call(&mut self, id: u64) -> Self::Future {
        self.backend.chosen.fetch_add(1, Relaxed);
        let (sender, answer) = oneshot::channel();
        // If the connection has just broken, the sender is dropped here, which is the answer.
        let _ = self.requests.unbounded_send((id, sender));
        Box::pin(async { answer.await.unwrap_or(Err(CallError::CutOff)) })
    }
}

/// Runs a connection until the backend closes it, which it also does after the client has.
async fn drive(mut stream: TcpStream, mut queue: mpsc::UnboundedReceiver<Pending>) {
    let (waiting, mut line) = mpsc::unbounded::<oneshot::Sender<_>>();
    let mut answers = BufReader::new(stream.clone()).lines();
    let reading = async {
        while let Some(Ok(answer)) = answers.next().await {
            // A waiter that has given up ignores it.
            if let Some(waiter) = line.next().await {
                let _ = waiter.send(parse(&answer));
            }
        }
    };
    let writing = async {
        while let Some((id, waiter)) = queue.next().await {
            let _ = waiting.unbounded_send(waiter);
            let request = format!("{id}\n");
            if stream.write_all(request.as_bytes()).await.is_err() {
                return;
            }
        }
        // The endpoint is gone. Requests in flight are still answered, since `reading` continues.
        let _ = stream.shutdown(Shutdown::Write);
        pending().await
    };
    or(reading, writing).await;
}

fn parse(answer: &str) -> Result<u64, CallError> {
    match answer.split_once(' ') {
        Some(("ok", id)) => id.parse().map_err(|_| CallError::Backend),
        _ => Err(CallError::Backend),
    }
}
