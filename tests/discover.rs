//! Sources of endpoints: lists, channels and arbitrary streams.

mod common;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use campanile::discover::{Change, Discover, ServiceList};
use campanile::util::ServiceFn;
use campanile::{Service, service_fn};
use common::WakeCount;

type Echo = ServiceFn<fn(u32) -> std::future::Ready<Result<u32, Infallible>>>;

fn echo() -> Echo {
    service_fn(|n| std::future::ready(Ok(n)))
}

/// Polls once.
fn next<D: Discover + Unpin>(
    discover: &mut D,
) -> Poll<Option<Result<Change<D::Key, D::Service>, D::Error>>> {
    WakeCount::new().enter(|cx| Pin::new(discover).poll_discover(cx))
}

#[test]
fn list_yields_services_by_index_and_ends() {
    let mut list = ServiceList::new(vec![echo(), echo()]);
    assert_eq!(futures::Stream::size_hint(&list), (2, Some(2)));
    for place in 0..2 {
        let change = next(&mut list);
        assert!(matches!(change, Poll::Ready(Some(Ok(Change::Insert(key, _)))) if key == place));
    }
    assert!(matches!(next(&mut list), Poll::Ready(None)));
    assert!(matches!(next(&mut list), Poll::Ready(None)));
}

#[test]
fn cloned_list_starts_at_the_same_position() {
    let mut list = ServiceList::new([echo(), echo()]);
    let _ = next(&mut list);
    let mut clone = list.clone();
    for list in [&mut list, &mut clone] {
        assert!(matches!(
            next(list),
            Poll::Ready(Some(Ok(Change::Insert(1, _))))
        ));
        assert!(matches!(next(list), Poll::Ready(None)));
    }
}

/// A service for two types of requests.
#[derive(Clone, Debug)]
struct Both;

impl Service<u8> for Both {
    type Response = u8;
    type Error = Infallible;
    type Future = std::future::Ready<Result<u8, Infallible>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, n: u8) -> Self::Future {
        std::future::ready(Ok(n))
    }
}

impl Service<u16> for Both {
    type Response = u16;
    type Error = Infallible;
    type Future = std::future::Ready<Result<u16, Infallible>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, n: u16) -> Self::Future {
        std::future::ready(Ok(n))
    }
}

/// Naming a list and inferring its types, with tower's traits as with this crate's.
macro_rules! names_and_inference {
    ($name:ident, $discover:path, $service:path) => {
        mod $name {
            use $discover::{Change, Discover, ServiceList};
            use $service as Service;

            #[allow(dead_code, reason = "it is there to be named")]
            struct Named<S> {
                of_a_vec: ServiceList<Vec<S>>,
                of_an_iterator: ServiceList<std::vec::IntoIter<S>>,
                of_an_array: ServiceList<[S; 2]>,
            }

            fn keys<D>(_: &D) -> Vec<D::Key>
            where
                D: Discover<Key = usize>,
            {
                Vec::new()
            }

            fn generic<S, Request>(services: Vec<S>) -> ServiceList<Vec<S>>
            where
                S: Service<Request>,
            {
                ServiceList::new(services)
            }

            #[test]
            fn infer() {
                let named = Named {
                    of_a_vec: ServiceList::new(vec![super::echo()]),
                    of_an_iterator: ServiceList::new(vec![super::echo()].into_iter()),
                    of_an_array: ServiceList::new([super::echo(), super::echo()]),
                };
                assert_eq!(keys(&named.of_a_vec), keys(&named.of_an_iterator));
                let both = ServiceList::new::<u8>(vec![super::Both]);
                assert_eq!(keys(&both), keys(&generic::<_, u16>(vec![super::Both])));
                let both = ServiceList::new::<u8>(Some(super::Both).into_iter().map(|both| both));
                assert_eq!(keys(&both), [0_usize; 0]);
                let change: Change<u8, ()> = Change::Remove(1);
                assert!(matches!(change, Change::Remove(1)));
            }
        }
    };
}

names_and_inference!(ours, campanile::discover, campanile::Service);
#[cfg(feature = "tower")]
names_and_inference!(towers, tower::discover, tower::Service);

#[test]
fn every_stream_of_changes_is_a_discover() {
    let changes = [Ok(Change::Insert("a", 1)), Ok(Change::Remove("a")), Err(2)];
    let mut stream = futures::stream::iter(changes);
    let mut boxed: Pin<Box<dyn futures::Stream<Item = Result<Change<&str, i32>, i32>>>> =
        Box::pin(futures::stream::iter(changes));
    for change in changes {
        assert_eq!(next(&mut stream), Poll::Ready(Some(change)));
        assert_eq!(next(&mut boxed), Poll::Ready(Some(change)));
    }
    assert_eq!(next(&mut stream), Poll::Ready(None));
    assert_eq!(next(&mut boxed), Poll::Ready(None));
}

#[cfg(feature = "futures-channel")]
mod channel {
    use campanile::discover::{Closed, channel};

    use super::common::{Host, On, on_every_runtime};
    use super::*;
    use campanile::Executor;
    use std::future::poll_fn;

    #[test]
    fn changes_arrive_in_order() {
        let (sender, mut changes) = channel();
        let clone = sender.clone();
        sender.insert(1, "one").unwrap();
        clone.insert(2, "two").unwrap();
        sender.remove(1).unwrap();
        clone.send(Change::Insert(1, "another")).unwrap();
        for change in [
            Change::Insert(1, "one"),
            Change::Insert(2, "two"),
            Change::Remove(1),
            Change::Insert(1, "another"),
        ] {
            assert_eq!(next(&mut changes), Poll::Ready(Some(Ok(change))));
        }
        assert_eq!(next(&mut changes), Poll::Pending);
    }

    #[test]
    fn channel_ends_with_the_last_sender() {
        let (sender, mut changes) = channel();
        let clone = sender.clone();
        drop(sender);
        assert_eq!(next(&mut changes), Poll::Pending);
        clone.insert(1, ()).unwrap();
        drop(clone);
        assert_eq!(
            next(&mut changes),
            Poll::Ready(Some(Ok(Change::Insert(1, ()))))
        );
        assert_eq!(next(&mut changes), Poll::Ready(None));
        assert_eq!(next(&mut changes), Poll::Ready(None));
    }

    #[test]
    fn unsent_change_is_returned() {
        let (sender, changes) = channel();
        assert!(!sender.is_closed());
        drop(changes);
        assert!(sender.is_closed());
        // The error implements `Error` whatever the key and the service implement.
        struct Opaque(u8);
        let (opaque, taken) = channel::<Opaque, Opaque>();
        drop(taken);
        let error = opaque.insert(Opaque(1), Opaque(2)).unwrap_err();
        let as_error: &dyn std::error::Error = &error;
        assert_eq!(as_error.to_string(), "nobody follows the changes any more");
        assert!(matches!(error.0, Change::Insert(Opaque(1), Opaque(2))));
        assert_eq!(
            sender.insert(1, "one"),
            Err(Closed(Change::Insert(1, "one")))
        );
        assert_eq!(sender.remove(1), Err(Closed(Change::Remove(1))));
    }

    #[test]
    fn receiver_drops_pending_services() {
        let service = std::sync::Arc::new(());
        let (sender, changes) = channel();
        sender.insert(1, service.clone()).unwrap();
        drop(changes);
        assert_eq!(std::sync::Arc::strong_count(&service), 1);
    }

    async fn change_wakes_the_waiter<H: Host>(rt: On<H>) {
        let (sender, mut changes) = channel::<u32, u32>();
        rt.execute(async move {
            for n in 0..100 {
                common::yield_now().await;
                sender.insert(n, n).unwrap();
            }
        });
        for n in 0..100 {
            let change = poll_fn(|cx| Pin::new(&mut changes).poll_discover(cx)).await;
            assert_eq!(change, Some(Ok(Change::Insert(n, n))));
        }
        let end = poll_fn(|cx| Pin::new(&mut changes).poll_discover(cx)).await;
        assert_eq!(end, None);
    }

    on_every_runtime! { change_wakes_the_waiter }
}
