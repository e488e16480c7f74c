//! Lists: a deque of nodes with up to 128 elements each, so that long lists grow without being copied.

use alloc::collections::VecDeque;

use crate::bytes::{self, Bytes};

/// Elements in a node.
const NODE: usize = 128;

/// A list of strings.
#[derive(Debug, Default)]
pub(crate) struct List {
    nodes: VecDeque<VecDeque<Bytes>>,
    len: usize,
}

/// One end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Left,
    Right,
}

impl List {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, end: End, value: Bytes) {
        let node = match end {
            End::Left => self.nodes.front_mut(),
            End::Right => self.nodes.back_mut(),
        };
        let node = match node {
            Some(node) if node.len() < NODE => node,
            _ => {
                let node = VecDeque::with_capacity(if self.len == 0 { 4 } else { NODE });
                match end {
                    End::Left => self.nodes.push_front(node),
                    End::Right => self.nodes.push_back(node),
                }
                let at = if end == End::Left { 0 } else { self.nodes.len() - 1 };
                &mut self.nodes[at]
            }
        };
        match end {
            End::Left => node.push_front(value),
            End::Right => node.push_back(value),
        }
        self.len += 1;
    }

    pub(crate) fn pop(&mut self, end: End) -> Option<Bytes> {
        let (value, emptied) = match end {
            End::Left => {
                let node = self.nodes.front_mut()?;
                (node.pop_front()?, node.is_empty())
            }
            End::Right => {
                let node = self.nodes.back_mut()?;
                (node.pop_back()?, node.is_empty())
            }
        };
        if emptied {
            match end {
                End::Left => self.nodes.pop_front(),
                End::Right => self.nodes.pop_back(),
            };
        }
        self.len -= 1;
        Some(value)
    }

    /// The node with an element, and the element's place in it; counted from the nearer end.
    fn locate(&self, at: usize) -> Option<(usize, usize)> {
        if at >= self.len {
            return None;
        }
        if at <= self.len / 2 {
            let mut at = at;
            for (number, node) in self.nodes.iter().enumerate() {
                match at.checked_sub(node.len()) {
                    Some(rest) => at = rest,
                    None => return Some((number, at)),
                }
            }
        } else {
            let mut behind = self.len - at;
            for (number, node) in self.nodes.iter().enumerate().rev() {
                match node.len().checked_sub(behind) {
                    Some(at) => return Some((number, at)),
                    None => behind -= node.len(),
                }
            }
        }
        None
    }

    pub(crate) fn get(&self, at: usize) -> Option<&Bytes> {
        self.locate(at).map(|(node, at)| &self.nodes[node][at])
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut Bytes> {
        self.locate(at).map(|(node, at)| &mut self.nodes[node][at])
    }

    /// The elements from one place on.
    pub(crate) fn iter_from(&self, at: usize) -> impl Iterator<Item = &Bytes> {
        let (node, first) = self.locate(at).unwrap_or((self.nodes.len(), 0));
        let head = self.nodes.get(node).map(|node| node.iter().skip(first));
        head.into_iter().flatten().chain(self.nodes.iter().skip(node + 1).flatten())
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Bytes> {
        self.nodes.iter().flatten()
    }

    /// Puts an element before the one that has the place now.
    pub(crate) fn insert(&mut self, at: usize, value: Bytes) {
        let Some((number, place)) = self.locate(at) else { return self.push(End::Right, value) };
        self.nodes[number].insert(place, value);
        self.len += 1;
        if self.nodes[number].len() > NODE {
            let half = self.nodes[number].split_off(NODE / 2);
            self.nodes.insert(number + 1, half);
        }
    }

    /// Keeps the elements that `keep` wants; it sees them from one end to the other.
    pub(crate) fn retain(&mut self, from: End, mut keep: impl FnMut(&Bytes) -> bool) {
        let mut len = 0;
        let mut visit = |node: &mut VecDeque<Bytes>| {
            match from {
                End::Left => node.retain(|value| keep(value)),
                End::Right => {
                    node.make_contiguous().reverse();
                    node.retain(|value| keep(value));
                    node.make_contiguous().reverse();
                }
            }
            len += node.len();
        };
        match from {
            End::Left => self.nodes.iter_mut().for_each(&mut visit),
            End::Right => self.nodes.iter_mut().rev().for_each(&mut visit),
        }
        self.nodes.retain(|node| !node.is_empty());
        self.len = len;
    }

    /// Another of the same, made with pauses.
    pub(crate) fn copy(&self, poll: fn()) -> List {
        let nodes = self.nodes.iter().inspect(|_| poll()).cloned().collect();
        List { nodes, len: self.len }
    }

    /// Bytes of heap.
    pub(crate) fn heap_bytes(&self, poll: fn()) -> usize {
        let mut bytes = self.nodes.capacity() * size_of::<VecDeque<Bytes>>();
        for node in &self.nodes {
            poll();
            bytes += node.capacity() * size_of::<Bytes>() + node.iter().map(bytes::heap_bytes).sum::<usize>();
        }
        bytes
    }

    /// Frees a long list with pauses.
    pub(crate) fn free(self, poll: fn()) {
        for node in self.nodes {
            drop(node);
            poll();
        }
    }
}
