use core::any::type_name;
use core::fmt;
use core::task::{Context, Poll};

use crate::Service;

/// A service that is always ready and calls `f`.
///
/// # Examples
///
/// ```
/// use campanile::{ServiceExt, service_fn};
///
/// # futures::executor::block_on(async {
/// let service = service_fn(async |name: &str| Ok::<_, core::convert::Infallible>(name.len()));
/// assert_eq!(service.oneshot("campanile").await.unwrap(), 9);
/// # });
/// ```
pub const fn service_fn<F>(f: F) -> ServiceFn<F> {
    ServiceFn { f }
}

/// A service made from a function; see [`service_fn`].
#[derive(Clone, Copy)]
pub struct ServiceFn<F> {
    f: F,
}

impl<F, Fut, Request, T, E> Service<Request> for ServiceFn<F>
where
    F: FnMut(Request) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    type Response = T;
    type Error = E;
    type Future = Fut;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Fut {
        (self.f)(request)
    }
}

impl<F> fmt::Debug for ServiceFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceFn")
            .field("f", &format_args!("{}", type_name::<F>()))
            .finish()
    }
}
