use alloc::vec::Vec;

/// Marks the end of a list.
const NIL: u32 = u32::MAX;

/// Values at stable indices, which [`List`]s are threaded through.
///
/// A slot that was freed is used again: once a slab has reached its working size nothing allocates.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    nodes: Vec<Node<T>>,
    free: List,
}

#[derive(Debug)]
struct Node<T> {
    previous: u32,
    next: u32,
    value: Option<T>,
}

/// Where a value is in its [`Slab`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Index(u32);

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            free: List::new(),
        }
    }

    pub(crate) fn insert(&mut self, value: T) -> Index {
        let index = match self.free.pop_from(&mut self.nodes) {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.nodes.len()).unwrap_or(NIL);
                assert_ne!(index, NIL, "more than 2^32 waiting at once");
                self.nodes.push(Node {
                    previous: NIL,
                    next: NIL,
                    value: None,
                });
                Index(index)
            }
        };
        self.nodes[index.0 as usize].value = Some(value);
        index
    }

    /// Takes a value out; it must be in no list.
    pub(crate) fn remove(&mut self, index: Index) -> T {
        let value = self.nodes[index.0 as usize].value.take();
        self.free.push_to(&mut self.nodes, index);
        value.expect("an index is removed once")
    }

    pub(crate) fn get_mut(&mut self, index: Index) -> &mut T {
        self.nodes[index.0 as usize]
            .value
            .as_mut()
            .expect("an index is not used after it was removed")
    }
}

/// A queue of values of one [`Slab`]. A value is in one list at the most. Every operation is O(1).
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

    pub(crate) fn push_back<T>(&mut self, slab: &mut Slab<T>, index: Index) {
        self.push_to(&mut slab.nodes, index);
    }

    pub(crate) fn pop_front<T>(&mut self, slab: &mut Slab<T>) -> Option<Index> {
        self.pop_from(&mut slab.nodes)
    }

    /// Takes a value out of the middle; it must be in this list.
    pub(crate) fn unlink<T>(&mut self, slab: &mut Slab<T>, index: Index) {
        self.unlink_from(&mut slab.nodes, index);
    }

    fn push_to<T>(&mut self, nodes: &mut [Node<T>], Index(index): Index) {
        let node = &mut nodes[index as usize];
        node.previous = self.tail;
        node.next = NIL;
        match self.tail {
            NIL => self.head = index,
            tail => nodes[tail as usize].next = index,
        }
        self.tail = index;
    }

    fn pop_from<T>(&mut self, nodes: &mut [Node<T>]) -> Option<Index> {
        let first = (!self.is_empty()).then_some(Index(self.head))?;
        self.unlink_from(nodes, first);
        Some(first)
    }

    fn unlink_from<T>(&mut self, nodes: &mut [Node<T>], Index(index): Index) {
        let Node { previous, next, .. } = nodes[index as usize];
        match previous {
            NIL => self.head = next,
            previous => nodes[previous as usize].next = next,
        }
        match next {
            NIL => self.tail = previous,
            next => nodes[next as usize].previous = previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::VecDeque;
    use alloc::vec::Vec;

    use super::{List, Slab};

    #[test]
    fn a_list_is_a_queue_whatever_is_unlinked() {
        let mut slab = Slab::new();
        let mut list = List::new();
        let mut model = VecDeque::new();
        let mut random = 1_u64;
        for n in 0..10_000_u32 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            match (random >> 33) % 5 {
                0..=2 => {
                    let index = slab.insert(n);
                    list.push_back(&mut slab, index);
                    model.push_back((index, n));
                }
                3 => {
                    let popped = list.pop_front(&mut slab);
                    assert_eq!(popped, model.front().map(|first| first.0));
                    if let Some((index, n)) = model.pop_front() {
                        assert_eq!(slab.remove(index), n);
                    }
                }
                _ if !model.is_empty() => {
                    let at = (random >> 40) as usize % model.len();
                    let (index, n) = model.remove(at).unwrap();
                    list.unlink(&mut slab, index);
                    assert_eq!(slab.remove(index), n);
                }
                _ => assert!(list.is_empty()),
            }
        }
        let mut rest = Vec::new();
        while let Some(index) = list.pop_front(&mut slab) {
            rest.push((index, *slab.get_mut(index)));
        }
        assert_eq!(rest, Vec::from(model));
    }

    #[test]
    fn a_freed_slot_is_used_again() {
        let mut slab = Slab::new();
        for n in 0..1_000 {
            let (a, b) = (slab.insert(n), slab.insert(n));
            slab.remove(a);
            slab.remove(b);
        }
        assert_eq!(slab.nodes.len(), 2);
    }
}
