//! The two state machines behind the combinators' response futures.
//!
//! Enums instead of structs of `Option`s: then the state needs no extra room where the future or the function has
//! unused bit patterns.

use core::pin::Pin;
use core::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::complete;

pin_project! {
    /// A future, and the function for its output.
    #[project = MapProj]
    #[project_replace = MapOwn]
    pub(super) enum Map<Fut, F> {
        Incomplete {
            #[pin]
            inner: Fut,
            f: F,
        },
        Complete,
    }
}

impl<Fut: Future, F> Map<Fut, F> {
    /// Drops the future before `finish` runs, like an `await`.
    pub(super) fn poll_with<T>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        finish: impl FnOnce(Fut::Output, F) -> T,
    ) -> Poll<T> {
        if let MapProj::Incomplete { inner, .. } = self.as_mut().project() {
            let output = ready!(inner.poll(cx));
            if let MapOwn::Incomplete { f, .. } = self.project_replace(Map::Complete) {
                return Poll::Ready(finish(output, f));
            }
        }
        complete();
    }
}

pin_project! {
    /// A future, the function for its output, and then the future that the function returns.
    #[project = ChainProj]
    #[project_replace = ChainOwn]
    pub(super) enum Chain<F1, F2, F> {
        First {
            #[pin]
            inner: F1,
            f: F,
        },
        Second {
            #[pin]
            inner: F2,
        },
        Complete,
    }
}

impl<F1: Future, F2: Future, F> Chain<F1, F2, F> {
    /// `next` returns the second future, or the final output.
    pub(super) fn poll_with(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        next: impl FnOnce(F1::Output, F) -> Result<F2, F2::Output>,
    ) -> Poll<F2::Output> {
        if let ChainProj::First { inner, .. } = self.as_mut().project() {
            let output = ready!(inner.poll(cx));
            if let ChainOwn::First { f, .. } = self.as_mut().project_replace(Chain::Complete) {
                match next(output, f) {
                    Ok(inner) => self.set(Chain::Second { inner }),
                    Err(output) => return Poll::Ready(output),
                }
            }
        }
        let ChainProj::Second { inner } = self.as_mut().project() else {
            complete();
        };
        let output = ready!(inner.poll(cx));
        self.set(Chain::Complete);
        Poll::Ready(output)
    }
}
