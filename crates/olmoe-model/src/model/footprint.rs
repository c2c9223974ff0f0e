//! The memory that inference needs in addition to the weights, computed before anything is loaded.

use olmoe_tensor::ops::attention::CacheType;
use olmoe_tensor::threads::num_threads;

use super::kv_cache::KvCache;
use super::precision::Precision;
use crate::config::{Activation, FeedForward, Mlp, ModelConfig};

/// Bytes of an f32, and of an id.
const F32: u64 = size_of::<f32>() as u64;
/// The conditions under which [`olmoe_tensor::ops::mlp`] computes a layer block by block: the mean number of rows of an
/// expert, the rows of a block, and the blocks for each thread.
const MANY_ROWS: u64 = 32;
const BLOCK_ROWS: u64 = 96;
const BLOCKS_PER_THREAD: u64 = 4;

impl ModelConfig {
    /// Bytes of key/value caches of type `kind` for sequences with the given capacities in tokens.
    pub fn cache_bytes(&self, kind: CacheType, sequences: &[usize]) -> u64 {
        let bytes = sequences.iter().map(|tokens| KvCache::bytes_of(self, *tokens, kind));
        bytes.fold(0, u64::saturating_add)
    }

    /// The peak bytes of a cached pass over `tokens` tokens, or of the logits of `rows` of them after the pass,
    /// whichever is larger, with weights of this precision or with `quantized` weights.
    ///
    /// A pass alternates attention and feed-forward layers; during each, the residual stream before it and the output
    /// of its norm are also in memory.
    pub fn pass_bytes(&self, tokens: usize, rows: usize, precision: Precision, quantized: bool) -> u64 {
        let pass = PassSize { tokens: tokens as u64, precision, quantized };
        let (d, v) = (self.d_model as u64, self.embedding_size as u64);
        let (q, kv) = (self.query_width() as u64, (self.n_kv_heads * self.head_dim) as u64);
        // Residual stream, norm and result; queries, keys, values and the output of attention, which is also packed as
        // a factor.
        let attention = F32 * (3 * d + 2 * q + 2 * kv) + pass.factor(q);
        // Layers are of two kinds at most.
        let feed_forward = [0, 1].map(|layer| pass.feed_forward(d, &self.feed_forward_of(layer)));
        let widest = pass.of_all(attention).max(feed_forward[0]).max(feed_forward[1]);
        // The routing of every mixture-of-experts layer; ids, positions, and the slots of a dense layer.
        let mixtures = self.mixture_layers().count() as u64;
        let routing = self.moe().map_or(0, |moe| mixtures.saturating_mul((moe.num_experts + 2 * moe.top_k + 1) as u64));
        let beside = pass.of_all(F32.saturating_mul(routing.saturating_add(5)));
        let row = F32.saturating_mul(v + d) + pass.factor(d);
        let logits = pass.of_all(F32 * d).saturating_add(row.saturating_mul(rows as u64));
        widest.max(logits).saturating_add(beside)
    }
}

/// The properties of a pass that its memory depends on.
struct PassSize {
    tokens: u64,
    precision: Precision,
    quantized: bool,
}

impl PassSize {
    /// Bytes of all tokens, `bytes` for each.
    fn of_all(&self, bytes: u64) -> u64 {
        self.tokens.saturating_mul(bytes)
    }

    /// Bytes of `numbers` numbers packed as a factor of a product.
    fn factor(&self, numbers: u64) -> u64 {
        match self.precision {
            // Eight bits, with a scale and sums for every block.
            _ if self.quantized => numbers + numbers / 4,
            precision => precision.operand().left_bytes() as u64 * numbers,
        }
    }

    /// Peak bytes of a feed-forward layer, the residual stream included.
    fn feed_forward(&self, d: u64, layer: &FeedForward) -> u64 {
        let stream = F32 * 3 * d;
        match layer {
            FeedForward::Dense(mlp) => self.of_all(stream).saturating_add(self.mlp(d, mlp, 1, 1).widest),
            FeedForward::Moe(moe) => {
                let (choices, experts) = (moe.top_k as u64, moe.num_experts as u64);
                // Slots: their tokens, weights and places.
                let beside = self.of_all(stream.saturating_add(3 * F32 * choices));
                let routed = self.mlp(d, &moe.expert, choices, experts);
                let sum = routed.left.saturating_add(self.of_all(F32 * d));
                let widest = match &moe.shared_expert {
                    None => routed.widest.max(sum),
                    Some(shared) => {
                        let kept = sum.saturating_sub(self.of_all(F32 * d * choices));
                        routed.widest.max(sum).max(kept.saturating_add(self.mlp(d, shared, 1, 1).widest))
                    }
                };
                beside.saturating_add(widest)
            }
        }
    }

    /// Bytes that an MLP needs for its slots, and bytes of its result.
    fn mlp(&self, d: u64, mlp: &Mlp, choices: u64, experts: u64) -> MlpBytes {
        let slots = self.tokens.saturating_mul(choices);
        let (width, threads) = (mlp.width as u64, num_threads() as u64);
        let inner = width * if mlp.activation == Activation::SwiGlu { 2 } else { 1 };
        let many = slots >= MANY_ROWS * experts;
        let wanted = BLOCKS_PER_THREAD * threads;
        if many && (slots.div_ceil(BLOCK_ROWS) >= wanted || experts >= wanted) {
            // The factors of a block, its activation, and the inputs of the activation function.
            let block = self.factor(d) + F32 * (width + inner) + self.factor(width);
            let left = slots.saturating_mul(F32 * d);
            let x = if self.quantized { self.of_all(self.factor(d)) } else { 0 };
            let blocks = threads.saturating_mul(BLOCK_ROWS).saturating_mul(block);
            return MlpBytes { widest: left.saturating_add(x).saturating_add(blocks), left };
        }
        // Quantised rows are shared by the slots that read them.
        let x = self.factor(d).saturating_mul(if self.quantized { self.tokens } else { slots });
        let widest = slots.saturating_mul(F32 * (inner + width + d) + self.factor(width)).saturating_add(x);
        MlpBytes { widest, left: slots.saturating_mul(F32 * d) }
    }
}

struct MlpBytes {
    widest: u64,
    left: u64,
}
