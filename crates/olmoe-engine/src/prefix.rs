//! Keys and values of finished samples, kept for requests that begin with the same tokens.

use olmoe_model::model::KvCache;

/// The tokens of a finished sample, and their keys and values.
pub(crate) struct KeptPrefix {
    /// As many tokens as the cache has.
    pub(crate) ids: Vec<u32>,
    pub(crate) cache: KvCache,
}

/// The kept prefixes, from the least recently used one on.
pub(crate) struct PrefixCache {
    all: Vec<KeptPrefix>,
    /// The largest total capacity of all caches, in tokens.
    room: usize,
}

/// The length of the common prefix of two lists.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl PrefixCache {
    pub(crate) fn new(room: usize) -> PrefixCache {
        PrefixCache { all: Vec::new(), room }
    }

    /// The index of the kept prefix with the longest common prefix with `ids`, and the length of that; of equal ones,
    /// the most recently used.
    pub(crate) fn find(&self, ids: &[u32]) -> Option<(usize, usize)> {
        let lengths = self.all.iter().enumerate().map(|(at, held)| (at, common(&held.ids, ids)));
        lengths.max_by_key(|(_, len)| *len).filter(|(_, len)| *len > 0)
    }

    /// A cache with the first `len` tokens of the kept prefix at `at` and room for `capacity` tokens. It is the kept
    /// cache itself if that has no other tokens and enough room, else a copy.
    pub(crate) fn take(&mut self, at: usize, len: usize, capacity: usize) -> KvCache {
        let mut held = self.all.remove(at);
        let whole = held.ids.len() == len;
        if whole && held.cache.capacity() >= capacity {
            held.cache.truncate(len);
            return held.cache;
        }
        let copy = held.cache.prefix(len, capacity);
        if !whole {
            self.all.push(held);
        }
        copy
    }

    /// Keeps a prefix; drops the prefixes that it begins with, and the least recently used ones for which there is no
    /// room.
    pub(crate) fn put(&mut self, mut held: KeptPrefix) {
        let len = held.ids.len();
        if len == 0 || len > self.room || self.find(&held.ids).is_some_and(|(_, common)| common == len) {
            return;
        }
        // Unused capacity is released, unless it is small compared with the tokens of the cache.
        if held.cache.capacity() > 2 * len || held.cache.capacity() > self.room {
            held.cache = held.cache.prefix(len, len);
        }
        self.all.retain(|kept| common(&kept.ids, &held.ids) < kept.ids.len());
        let room = self.room - held.cache.capacity();
        while self.tokens() > room {
            self.all.remove(0);
        }
        self.all.push(held);
    }

    /// The total capacity of all caches, in tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.all.iter().map(|held| held.cache.capacity()).sum()
    }

    pub(crate) fn clear(&mut self) {
        self.all.clear();
    }
}
