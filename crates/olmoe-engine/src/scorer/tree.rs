//! The token sequences of many pairs as a tree: what they have in common is there once.
//!
//! A node is a run of tokens that the same pairs have in common. The children of a node are in the order in which pairs
//! first needed them, so that a walk through the tree, depth first, finishes the pairs nearly in the order asked.

use std::collections::HashMap;
use std::ops::Range;

/// A context and a continuation, as tokens.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// The tokens before it; at least one. It is cut from the left where the model's context needs it.
    pub context: &'a [u32],
    /// The tokens that are scored; at least one. It is never cut.
    pub continuation: &'a [u32],
}

/// The number of a node.
pub(super) type NodeId = usize;

/// The node above all others, which has no tokens.
const ROOT: NodeId = 0;

/// The tokens of a pair that the model reads: the context, which may have been cut from the left, and the continuation
/// without its last token.
#[derive(Clone, Copy)]
pub(super) struct Query<'a> {
    context: &'a [u32],
    continuation: &'a [u32],
}

impl<'a> Query<'a> {
    /// Cuts the context to what leaves at most `limit` tokens.
    pub(super) fn new(pair: Pair<'a>, limit: usize) -> Query<'a> {
        let room = (limit + 1).saturating_sub(pair.continuation.len());
        let cut = pair.context.len().saturating_sub(room);
        Query { context: &pair.context[cut..], continuation: pair.continuation }
    }

    pub(super) fn len(self) -> usize {
        self.context.len() + self.continuation.len() - 1
    }

    pub(super) fn token(self, at: usize) -> u32 {
        match self.context.get(at) {
            Some(token) => *token,
            None => self.continuation[at - self.context.len()],
        }
    }

    /// The places after which the tokens of the continuation are predicted.
    pub(super) fn scored(self) -> Range<usize> {
        self.context.len() - 1..self.len()
    }

    pub(super) fn continuation(self) -> &'a [u32] {
        self.continuation
    }
}

/// A run of tokens.
pub(super) struct Node {
    parent: NodeId,
    /// The first pair that has them, whose tokens they are.
    pub(super) query: usize,
    /// Their places.
    pub(super) places: Range<usize>,
    /// The number of pairs that have them.
    pub(super) pairs: u64,
    /// The row of the first of them: tokens are counted in the order of the walk.
    pub(super) row: usize,
}

/// The tree of some queries.
pub(super) struct Tree {
    nodes: Vec<Node>,
    /// In the order of the walk, without the root.
    walk: Vec<NodeId>,
    /// The last node of each query.
    last: Vec<NodeId>,
    rows: usize,
}

impl Tree {
    /// With `share` unset every query has tokens of its own.
    pub(super) fn new(queries: &[Query], share: bool) -> Tree {
        let root = Node { parent: ROOT, query: 0, places: 0..0, pairs: 0, row: 0 };
        let mut tree = Tree { nodes: vec![root], walk: Vec::new(), last: Vec::new(), rows: 0 };
        // The child of a node that begins with a token.
        let mut children = HashMap::new();
        for (at, query) in queries.iter().enumerate() {
            let last = match share {
                true => tree.insert(queries, at, &mut children),
                false => tree.add(ROOT, at, 0..query.len()),
            };
            tree.last.push(last);
        }
        drop(children);
        tree.order();
        tree
    }

    fn add(&mut self, parent: NodeId, query: usize, places: Range<usize>) -> NodeId {
        self.nodes.push(Node { parent, query, places, pairs: 1, row: 0 });
        self.nodes.len() - 1
    }

    fn insert(&mut self, queries: &[Query], at: usize, children: &mut HashMap<(NodeId, u32), NodeId>) -> NodeId {
        let query = queries[at];
        let (mut parent, mut place) = (ROOT, 0);
        while place < query.len() {
            let key = (parent, query.token(place));
            let Some(&child) = children.get(&key) else {
                let leaf = self.add(parent, at, place..query.len());
                children.insert(key, leaf);
                return leaf;
            };
            let node = &self.nodes[child];
            let other = queries[node.query];
            let most = node.places.end.min(query.len());
            let end = (place..most).find(|i| query.token(*i) != other.token(*i)).unwrap_or(most);
            let Node { query: first, pairs, ref places, .. } = *node;
            if end < places.end {
                // What the query has in common with the node becomes a node above it.
                let upper = self.add(parent, first, place..end);
                self.nodes[upper].pairs = pairs;
                children.insert(key, upper);
                children.insert((upper, other.token(end)), child);
                let lower = &mut self.nodes[child];
                (lower.parent, lower.places.start) = (upper, end);
                parent = upper;
            } else {
                parent = child;
            }
            self.nodes[parent].pairs += 1;
            place = end;
        }
        parent
    }

    /// Numbers the rows in the order of the walk. Of the children of a node, no two have the same first query.
    fn order(&mut self) {
        let mut by_query: Vec<NodeId> = (1..self.nodes.len()).collect();
        by_query.sort_unstable_by_key(|id| std::cmp::Reverse(self.nodes[*id].query));
        let mut children = vec![Vec::new(); self.nodes.len()];
        by_query.into_iter().for_each(|id| children[self.nodes[id].parent].push(id));
        let mut waiting = std::mem::take(&mut children[ROOT]);
        while let Some(id) = waiting.pop() {
            let node = &mut self.nodes[id];
            node.row = self.rows;
            self.rows += node.places.len();
            self.walk.push(id);
            waiting.append(&mut children[id]);
        }
    }

    /// The number of tokens.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The nodes in the order of the walk.
    pub(super) fn walk(&self) -> impl Iterator<Item = &Node> {
        self.walk.iter().map(|id| &self.nodes[*id])
    }

    /// The row of each of the scored places of a query, from the last to the first.
    pub(super) fn scored_rows(&self, query: usize, places: Range<usize>) -> impl Iterator<Item = usize> {
        let mut id = self.last[query];
        places.rev().map(move |place| {
            while self.nodes[id].places.start > place {
                id = self.nodes[id].parent;
            }
            let node = &self.nodes[id];
            node.row + place - node.places.start
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(texts: &[(&'static [u32], &'static [u32])]) -> Vec<Query<'static>> {
        texts.iter().map(|(context, continuation)| Query::new(Pair { context, continuation }, 6)).collect()
    }

    /// Tokens of the walk, with the number of tokens before each node and the pairs that have it.
    fn walked(tree: &Tree, queries: &[Query]) -> Vec<(usize, Vec<u32>, u64)> {
        let tokens = |node: &Node| node.places.clone().map(|place| queries[node.query].token(place)).collect();
        tree.walk().map(|node| (node.places.start, tokens(node), node.pairs)).collect()
    }

    #[test]
    fn what_is_in_common_is_there_once_and_the_order_is_that_asked() {
        let queries = pairs(&[
            (&[9, 1, 2], &[3, 4]),
            (&[5], &[6, 7]),
            (&[9, 1, 2], &[8]),
            (&[9, 1], &[7, 7]),
            (&[9, 1, 2], &[3, 4, 5]),
            (&[9, 1, 2], &[3, 4]),
        ]);
        let tree = Tree::new(&queries, true);
        let expected = [
            (0, vec![9, 1], 5),
            (2, vec![2], 4),
            (3, vec![3], 3),
            (4, vec![4], 1),
            (2, vec![7], 1),
            (0, vec![5, 6], 1),
        ];
        assert_eq!(walked(&tree, &queries), expected);
        assert_eq!(tree.rows(), 8);
        let rows = |query: usize| tree.scored_rows(query, queries[query].scored()).collect::<Vec<_>>();
        assert_eq!([rows(0), rows(1), rows(2)], [vec![3, 2], vec![7, 6], vec![2]]);
        assert_eq!([rows(3), rows(4), rows(5)], [vec![5, 1], vec![4, 3, 2], vec![3, 2]]);
        let apart = Tree::new(&queries, false);
        assert_eq!(apart.rows(), queries.iter().map(|query| query.len()).sum::<usize>());
        assert_eq!(walked(&apart, &queries)[1], (0, vec![5, 6], 1));
    }

    #[test]
    fn the_context_is_cut_from_the_left_and_the_continuation_never() {
        let cut = |context: &'static [u32], continuation| Query::new(Pair { context, continuation }, 4);
        let tokens = |query: Query| (0..query.len()).map(|place| query.token(place)).collect::<Vec<_>>();
        let query = cut(&[1, 2, 3, 4, 5], &[6, 7]);
        assert_eq!((tokens(query), query.scored()), (vec![3, 4, 5, 6], 2..4));
        let query = cut(&[1, 2, 3], &[6, 7, 8, 9]);
        assert_eq!((tokens(query), query.scored()), (vec![3, 6, 7, 8], 0..4));
        assert_eq!(tokens(cut(&[1, 2, 3, 4], &[6])), [1, 2, 3, 4]);
    }
}
