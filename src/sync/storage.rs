//! Where a queue or a semaphore keeps what it knows: on the heap, or in place.

#[cfg(feature = "alloc")]
use alloc::vec::Vec;

use super::gate::{Gate, Waiter};
use super::slab::{Node, Nodes, Vacant};

/// Where slabs keep their nodes.
pub trait Storage {
    /// The nodes of a slab of `T`.
    type Nodes<T: Vacant>: Nodes<Value = T>;
    /// The nodes of those who wait, without their number, where that is part of the type.
    type View: Nodes<Value = Option<Waiter>> + ?Sized;

    /// Forgets the number of nodes, so that gates of all numbers share their code.
    fn view(gate: &mut Gate<Waiters<Self>>) -> &mut Gate<Self::View>;
}

/// The nodes of those who wait.
pub(crate) type Waiters<S> = <S as Storage>::Nodes<Option<Waiter>>;

/// On the heap, as many as are needed.
#[derive(Debug)]
pub enum Growing {}

#[cfg(feature = "alloc")]
impl Storage for Growing {
    type Nodes<T: Vacant> = Vec<Node<T>>;
    type View = Vec<Node<Option<Waiter>>>;

    fn view(gate: &mut Gate<Waiters<Self>>) -> &mut Gate<Self::View> {
        gate
    }
}

// Without an allocator nothing grows; the type is there so that the others can name it.
#[cfg(not(feature = "alloc"))]
impl Storage for Growing {
    type Nodes<T: Vacant> = [Node<T>; 0];
    type View = [Node<Option<Waiter>>];

    fn view(gate: &mut Gate<Waiters<Self>>) -> &mut Gate<Self::View> {
        gate
    }
}

/// `N` of them, in place.
#[derive(Debug)]
pub enum Inline<const N: usize> {}

impl<const N: usize> Storage for Inline<N> {
    type Nodes<T: Vacant> = [Node<T>; N];
    type View = [Node<Option<Waiter>>];

    fn view(gate: &mut Gate<Waiters<Self>>) -> &mut Gate<Self::View> {
        gate
    }
}
