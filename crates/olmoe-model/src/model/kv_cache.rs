//! Keys and values of the tokens that a model has seen.

use olmoe_tensor::ops::attention::{Cache, CacheType, Heads};

use super::precision::Precision;
use crate::config::ModelConfig;

/// The heads of a model.
pub(super) fn heads(config: &ModelConfig) -> Heads {
    Heads { query: config.n_heads, key_value: config.n_kv_heads, dim: config.head_dim }
}

/// Keys and values of one sequence in all layers.
pub struct KvCache {
    pub(super) layers: Vec<Cache>,
}

impl KvCache {
    /// Memory is for a multiple of so many tokens.
    pub const GRAIN: usize = Cache::GRAIN;

    /// Room for `capacity` tokens, kept as `kind`.
    pub(super) fn with_room(config: &ModelConfig, capacity: usize, kind: CacheType) -> KvCache {
        KvCache { layers: (0..config.n_layers).map(|_| Cache::new(heads(config), capacity, kind)).collect() }
    }

    /// The type that keeps keys and values as a precision has them.
    pub fn default_type(precision: Precision) -> CacheType {
        precision.operand().into()
    }

    /// Bytes of a cache with room for `capacity` tokens, kept as `kind`; exact, and the same for each token of a multiple of
    /// [`KvCache::GRAIN`].
    pub fn bytes_of(config: &ModelConfig, capacity: usize, kind: CacheType) -> u64 {
        let grain = Cache::bytes_of(heads(config), KvCache::GRAIN, kind) as u64;
        (config.n_layers as u64).saturating_mul(grain).saturating_mul(capacity.div_ceil(KvCache::GRAIN) as u64)
    }

    /// Tokens held: those of the last layer, which a pass reaches last. A pass that panicked before has left more in the
    /// others, which the next one forgets.
    pub fn len(&self) -> usize {
        self.layers.last().map_or(0, Cache::len)
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens there is room for.
    pub fn capacity(&self) -> usize {
        self.layers.first().map_or(0, Cache::capacity)
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|cache| cache.truncate(len));
    }

    /// A cache with room for `capacity` tokens that holds the first `len` of this one: its keys and values serve every
    /// sequence that begins with the same tokens.
    ///
    /// # Panics
    /// When this one holds fewer than `len`, or `capacity` is below it.
    pub fn prefix(&self, len: usize, capacity: usize) -> KvCache {
        KvCache { layers: self.layers.iter().map(|cache| cache.prefix(len, capacity)).collect() }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(Cache::bytes).sum()
    }
}
