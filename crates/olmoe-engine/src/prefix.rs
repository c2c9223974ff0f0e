//! Keys and values of finished samples, kept for requests that begin alike.

use olmoe_model::model::KvCache;

/// Tokens that were read, and what attention keeps of them.
pub(crate) struct Held {
    /// As many as the cache holds.
    pub(crate) ids: Vec<u32>,
    pub(crate) cache: KvCache,
}

/// The kept ones, from the one used longest ago on.
pub(crate) struct Kept {
    all: Vec<Held>,
    /// Most tokens for which there is room in all caches together.
    room: usize,
}

/// Tokens that two lists begin with alike.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Kept {
    pub(crate) fn new(room: usize) -> Kept {
        Kept { all: Vec::new(), room }
    }

    /// The one that begins most like `ids`, and for how many tokens; of equal ones the one used last.
    pub(crate) fn find(&self, ids: &[u32]) -> Option<(usize, usize)> {
        let lengths = self.all.iter().enumerate().map(|(at, held)| (at, common(&held.ids, ids)));
        lengths.max_by_key(|(_, len)| *len).filter(|(_, len)| *len > 0)
    }

    /// A cache with the first `len` tokens of one found and room for `capacity`. It is the kept one itself if nothing of
    /// that would be left over and there is room, else a copy.
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

    /// Keeps one, and drops those that it begins with and those used longest ago that there is no room for.
    pub(crate) fn put(&mut self, mut held: Held) {
        let len = held.ids.len();
        if len == 0 || len > self.room || self.find(&held.ids).is_some_and(|(_, common)| common == len) {
            return;
        }
        // Room for text that did not come is given back, unless it is little beside what there is.
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

    /// Tokens that the caches have room for.
    pub(crate) fn tokens(&self) -> usize {
        self.all.iter().map(|held| held.cache.capacity()).sum()
    }

    pub(crate) fn clear(&mut self) {
        self.all.clear();
    }
}
