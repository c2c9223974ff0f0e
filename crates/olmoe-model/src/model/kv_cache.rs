//! The key/value cache of a model.

use olmoe_tensor::ops::attention::{Cache, CacheType, Heads};

use super::precision::Precision;
use crate::config::ModelConfig;

/// The heads of a model.
pub(super) fn heads(config: &ModelConfig) -> Heads {
    Heads { query: config.n_heads, key_value: config.n_kv_heads, dim: config.head_dim }
}

/// The key/value cache of one sequence in all layers.
pub struct KvCache {
    pub(super) layers: Vec<Cache>,
}

impl KvCache {
    /// The capacity is rounded up to a multiple of so many tokens.
    pub const GRAIN: usize = Cache::GRAIN;

    /// An empty cache with room for `capacity` tokens, whose keys and values have the type `kind`.
    pub(super) fn with_room(config: &ModelConfig, capacity: usize, kind: CacheType) -> KvCache {
        KvCache { layers: (0..config.n_layers).map(|_| Cache::new(heads(config), capacity, kind)).collect() }
    }

    /// The type in which keys and values have the bits of a precision.
    pub fn default_type(precision: Precision) -> CacheType {
        precision.operand().into()
    }

    /// The exact bytes of a cache with room for `capacity` tokens and the type `kind`; proportional to the capacity,
    /// which is rounded up to a multiple of [`KvCache::GRAIN`].
    pub fn bytes_of(config: &ModelConfig, capacity: usize, kind: CacheType) -> u64 {
        let grain = Cache::bytes_of(heads(config), KvCache::GRAIN, kind) as u64;
        (config.n_layers as u64).saturating_mul(grain).saturating_mul(capacity.div_ceil(KvCache::GRAIN) as u64)
    }

    /// The number of tokens in the cache, which is that of the last layer, the one that a pass fills last. A pass that
    /// panicked may have left more tokens in the other layers; the next pass discards them.
    pub fn len(&self) -> usize {
        self.layers.last().map_or(0, Cache::len)
    }

    /// Whether the cache has no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of tokens that the cache has room for.
    pub fn capacity(&self) -> usize {
        self.layers.first().map_or(0, Cache::capacity)
    }

    /// Discards all tokens but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|cache| cache.truncate(len));
    }

    /// A cache with room for `capacity` tokens and a copy of the first `len` tokens of this one, for another sequence
    /// that begins with the same tokens.
    ///
    /// # Panics
    /// When this cache has fewer than `len` tokens, or `capacity` is below `len`.
    pub fn prefix(&self, len: usize, capacity: usize) -> KvCache {
        KvCache { layers: self.layers.iter().map(|cache| cache.prefix(len, capacity)).collect() }
    }

    /// Bytes of memory of the cache.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(Cache::bytes).sum()
    }
}
