#[cfg(feature = "alloc")]
use alloc::vec::Vec;

/// Marks the end of a list.
const NIL: u32 = u32::MAX;

/// Values at stable indices, which [`List`]s are threaded through.
///
/// Freed slots are reused: once a slab has reached its working size, nothing allocates. The value of a free slot
/// stays in place, vacant, so that large values are not moved more than necessary.
pub(crate) struct Slab<N: ?Sized> {
    /// How many nodes have been used; the rest are new.
    used: u32,
    /// The first node in the list of freed ones.
    free: u32,
    nodes: N,
}

/// A value that can be vacant.
pub trait Vacant {
    /// The vacant value.
    const VACANT: Self;
}

impl<T> Vacant for Option<T> {
    const VACANT: Self = None;
}

/// The nodes of a [`Slab`].
#[allow(
    unreachable_pub,
    reason = "it is reached by way of `Storage`, which Rust 1.85 does not see"
)]
pub trait Nodes {
    /// The value in a node.
    type Value: Vacant;
    /// Whether the number of nodes never changes.
    const FIXED: bool;
    /// All nodes.
    fn as_mut_slice(&mut self) -> &mut [Node<Self::Value>];
    /// Adds a node, if possible.
    fn grow(&mut self);
}

#[cfg(feature = "alloc")]
impl<T: Vacant> Nodes for Vec<Node<T>> {
    type Value = T;
    const FIXED: bool = false;

    fn as_mut_slice(&mut self) -> &mut [Node<T>] {
        self
    }

    fn grow(&mut self) {
        self.push(Node::NEW);
    }
}

impl<T: Vacant, const N: usize> Nodes for [Node<T>; N] {
    type Value = T;
    const FIXED: bool = true;

    fn as_mut_slice(&mut self) -> &mut [Node<T>] {
        self
    }

    fn grow(&mut self) {}
}

impl<T: Vacant> Nodes for [Node<T>] {
    type Value = T;
    const FIXED: bool = true;

    fn as_mut_slice(&mut self) -> &mut [Node<T>] {
        self
    }

    fn grow(&mut self) {}
}

/// A slot of a [`Slab`].
#[derive(Debug)]
pub struct Node<T> {
    previous: u32,
    next: u32,
    value: T,
}

impl<T: Vacant> Node<T> {
    const NEW: Self = Self {
        previous: NIL,
        next: NIL,
        value: T::VACANT,
    };
}

/// The position of a value in its [`Slab`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index(u32);

#[cfg(feature = "alloc")]
impl<T: Vacant> Slab<Vec<Node<T>>> {
    pub(crate) const fn new() -> Self {
        Self {
            used: 0,
            free: NIL,
            nodes: Vec::new(),
        }
    }
}

#[cfg(not(feature = "alloc"))]
impl<T: Vacant> Slab<[Node<T>; 0]> {
    pub(crate) const fn new() -> Self {
        Self::inline()
    }
}

impl<T: Vacant, const N: usize> Slab<[Node<T>; N]> {
    pub(crate) const fn inline() -> Self {
        Self {
            used: 0,
            free: NIL,
            nodes: [const { Node::NEW }; N],
        }
    }
}

impl<N: Nodes + ?Sized> Slab<N> {
    /// Returns a vacant value, reserved until it is [released](Self::release), or `None` if there is no room.
    pub(crate) fn claim(&mut self) -> Option<(Index, &mut N::Value)> {
        let is_new = self.free == NIL;
        let index = if is_new { self.used } else { self.free };
        if is_new {
            self.nodes.grow();
        }
        let node = self.nodes.as_mut_slice().get_mut(index as usize)?;
        if is_new {
            // The last number marks the end of a list; memory ends long before.
            self.used = index.checked_add(1)?;
        } else {
            self.free = node.next;
        }
        Some((Index(index), &mut node.value))
    }

    /// Frees a value; it must be vacant again, and in no list.
    pub(crate) fn release(&mut self, Index(index): Index) {
        let free = self.free;
        if let Some(node) = self.nodes().get_mut(index as usize) {
            node.next = free;
            self.free = index;
        }
    }

    /// Returns a value that was [claimed](Self::claim).
    pub(crate) fn get_mut(&mut self, Index(index): Index) -> Option<&mut N::Value> {
        Some(&mut self.nodes().get_mut(index as usize)?.value)
    }

    fn nodes(&mut self) -> &mut [Node<N::Value>] {
        self.nodes.as_mut_slice()
    }
}

/// A queue of values of one [`Slab`]. A value is in at most one list. Every operation is O(1).
#[derive(Debug)]
pub(crate) struct List {
    head: u32,
    tail: u32,
}

impl List {
    pub(crate) const fn new() -> Self {
        Self {
            head: NIL,
            tail: NIL,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == NIL
    }

    /// The first value.
    #[cfg_attr(
        not(any(target_has_atomic = "64", feature = "critical-section")),
        allow(dead_code, reason = "of use to rate limits")
    )]
    pub(crate) fn front(&self) -> Option<Index> {
        (!self.is_empty()).then_some(Index(self.head))
    }

    /// The value after `index`, which must be in this list.
    #[cfg_attr(
        not(any(target_has_atomic = "64", feature = "critical-section")),
        allow(dead_code, reason = "of use to rate limits")
    )]
    pub(crate) fn after<N: Nodes + ?Sized>(
        &self,
        slab: &mut Slab<N>,
        Index(index): Index,
    ) -> Option<Index> {
        let next = slab.nodes().get(index as usize)?.next;
        (next != NIL).then_some(Index(next))
    }

    pub(crate) fn push_back<N: Nodes + ?Sized>(&mut self, slab: &mut Slab<N>, Index(index): Index) {
        let nodes = slab.nodes();
        if let Some(node) = nodes.get_mut(index as usize) {
            node.previous = self.tail;
            node.next = NIL;
        }
        match nodes.get_mut(self.tail as usize) {
            Some(tail) => tail.next = index,
            None => self.head = index,
        }
        self.tail = index;
    }

    pub(crate) fn push_front<N: Nodes + ?Sized>(
        &mut self,
        slab: &mut Slab<N>,
        Index(index): Index,
    ) {
        let nodes = slab.nodes();
        if let Some(node) = nodes.get_mut(index as usize) {
            node.previous = NIL;
            node.next = self.head;
        }
        match nodes.get_mut(self.head as usize) {
            Some(head) => head.previous = index,
            None => self.tail = index,
        }
        self.head = index;
    }

    pub(crate) fn pop_front<N: Nodes + ?Sized>(&mut self, slab: &mut Slab<N>) -> Option<Index> {
        let first = self.front()?;
        self.unlink(slab, first);
        Some(first)
    }

    /// Removes a value from anywhere in the list; it must be in this list.
    // `NIL` is the index of no node, so at an end of the list `get_mut` returns `None`.
    pub(crate) fn unlink<N: Nodes + ?Sized>(&mut self, slab: &mut Slab<N>, Index(index): Index) {
        let nodes = slab.nodes();
        let Some(&mut Node { previous, next, .. }) = nodes.get_mut(index as usize) else {
            return;
        };
        match nodes.get_mut(previous as usize) {
            Some(node) => node.next = next,
            None => self.head = next,
        }
        match nodes.get_mut(next as usize) {
            Some(node) => node.previous = previous,
            None => self.tail = previous,
        }
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use alloc::collections::VecDeque;
    use alloc::vec::Vec;

    use super::{Index, List, Node, Nodes, Slab};
    use crate::util::rng::{Rng, SplitMix64};

    fn free<N: Nodes<Value = Option<u32>>>(slab: &mut Slab<N>, index: Index) -> Option<u32> {
        let value = slab.get_mut(index)?.take();
        slab.release(index);
        value
    }

    fn check<N: Nodes<Value = Option<u32>>>(mut slab: Slab<N>, room: usize) {
        let mut list = List::new();
        let mut model = VecDeque::new();
        let mut rng = SplitMix64::new(1);
        for n in 0..10_000_u32 {
            match rng.next_range(0..5) {
                at @ 0..=2 => match slab.claim() {
                    Some((index, value)) => {
                        assert_eq!(value.replace(n), None);
                        if at == 0 {
                            list.push_front(&mut slab, index);
                            model.push_front((index, n));
                        } else {
                            list.push_back(&mut slab, index);
                            model.push_back((index, n));
                        }
                    }
                    None => assert_eq!(model.len(), room),
                },
                3 => {
                    let popped = list.pop_front(&mut slab);
                    assert_eq!(popped, model.front().map(|first| first.0));
                    if let Some((index, n)) = model.pop_front() {
                        assert_eq!(free(&mut slab, index), Some(n));
                    }
                }
                _ if !model.is_empty() => {
                    let at = rng.next_range(0..model.len() as u64) as usize;
                    let (index, n) = model.remove(at).unwrap();
                    list.unlink(&mut slab, index);
                    assert_eq!(free(&mut slab, index), Some(n));
                }
                _ => assert!(list.is_empty()),
            }
        }
        let mut rest = Vec::new();
        while let Some(index) = list.pop_front(&mut slab) {
            rest.push((index, slab.get_mut(index).unwrap().unwrap()));
        }
        assert_eq!(rest, Vec::from(model));
    }

    #[test]
    fn list_stays_a_queue_after_unlinking() {
        check(Slab::<Vec<Node<_>>>::new(), usize::MAX);
    }

    #[test]
    fn full_inline_slab_returns_the_value() {
        check(Slab::<[Node<_>; 7]>::inline(), 7);
        check(Slab::<[Node<_>; 0]>::inline(), 0);
    }

    #[test]
    fn freed_slot_is_reused() {
        let mut slab = Slab::<Vec<Node<Option<_>>>>::new();
        for n in 0..1_000 {
            let (a, b) = (slab.claim().unwrap().0, slab.claim().unwrap().0);
            assert_ne!(a, b);
            *slab.get_mut(a).unwrap() = Some(n);
            assert_eq!(free(&mut slab, a), Some(n));
            assert_eq!(free(&mut slab, b), None);
        }
        assert_eq!(slab.nodes.len(), 2);
    }
}
