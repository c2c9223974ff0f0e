//! The memory that inference needs beside the weights, known before anything is loaded.

use olmoe_tensor::ops::attention::CacheType;

use super::kv_cache::KvCache;
use crate::config::{FeedForward, ModelConfig};

/// Bytes of an f32.
const F32: u64 = size_of::<f32>() as u64;

impl ModelConfig {
    /// Bytes of the caches, kept as `kind`, of sequences with room for so many tokens each.
    pub fn cache_bytes(&self, kind: CacheType, sequences: &[usize]) -> u64 {
        let bytes = sequences.iter().map(|tokens| KvCache::bytes_of(self, *tokens, kind));
        bytes.fold(0, u64::saturating_add)
    }

    /// Bytes that a pass over `tokens` tokens needs at its widest place, and the logits of `rows` of them: what the buffers of
    /// a pass come to that one after the other reuse.
    pub fn pass_bytes(&self, tokens: usize, rows: usize) -> u64 {
        let number = |count: usize| count as u64;
        let (t, d) = (number(tokens), number(self.d_model));
        // The residual stream before and after a step, the norm between, and queries, keys, values and their results.
        let attention = number(self.query_width() + 2 * self.n_kv_heads * self.head_dim);
        let stream = 4 * d + 2 * attention;
        let feed_forward = |layer| {
            // Slots a token, their width, and beside them the shared expert.
            let (slots, width, shared) = match self.feed_forward_of(layer) {
                FeedForward::Dense(mlp) => (1, number(mlp.width), 0),
                FeedForward::Moe(moe) => {
                    let shared = moe.shared_expert.map_or(0, |shared| number(shared.width));
                    (number(moe.top_k), number(moe.expert.width), shared)
                }
            };
            // Gate, up and their product, that rounded, and the output of every slot.
            slots.saturating_mul(3 * width + width / 2 + d).max(3 * shared + d)
        };
        // Layers are of two kinds at most.
        let feed_forward = feed_forward(0).max(feed_forward(1));
        let mixtures = number(self.mixture_layers().count());
        let routing = self.moe().map_or(0, |moe| mixtures * number(moe.num_experts + 4 * moe.top_k));
        let pass = t.saturating_mul(stream + feed_forward + routing);
        pass.saturating_add(number(rows).saturating_mul(number(self.embedding_size))).saturating_mul(F32)
    }
}
