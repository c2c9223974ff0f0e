//! The encoding of each tensor of a quantised file: llama.cpp's mixes.
//!
//! Norms, biases and routers stay f32. The head (or the embedding, where they are one) gets Q6_K, in a `q8_0` file
//! Q8_0. The `_m` mixes of K blocks give the value projections and the down projections of some layers Q6_K: the first
//! and last eighth and every third between. Rows that are not whole blocks of 256 take a format with blocks of 32
//! instead, and rows that are not whole blocks of 32 take f16.

use olmoe_model::parameters::{MlpMatrix, ModuleId, ModulePart, Projection};
use olmoe_tensor::quant::BlockFormat;

use crate::encoding::Encoding;

/// A kind of GGUF file, by llama.cpp's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Mix {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4KS,
    Q4KM,
    Q5KS,
    Q5KM,
    Q6K,
}

/// Name, `general.file_type`, and the encoding of most tensors.
const MIXES: [(Mix, &str, u32, Encoding); 13] = [
    (Mix::F32, "f32", 0, Encoding::F32),
    (Mix::F16, "f16", 1, Encoding::F16),
    (Mix::Bf16, "bf16", 32, Encoding::BF16),
    (Mix::Q4_0, "q4_0", 2, Encoding::Blocks(BlockFormat::Q4_0)),
    (Mix::Q4_1, "q4_1", 3, Encoding::Blocks(BlockFormat::Q4_1)),
    (Mix::Q5_0, "q5_0", 8, Encoding::Blocks(BlockFormat::Q5_0)),
    (Mix::Q5_1, "q5_1", 9, Encoding::Blocks(BlockFormat::Q5_1)),
    (Mix::Q8_0, "q8_0", 7, Encoding::Blocks(BlockFormat::Q8_0)),
    (Mix::Q4KS, "q4_k_s", 14, Encoding::Blocks(BlockFormat::Q4K)),
    (Mix::Q4KM, "q4_k_m", 15, Encoding::Blocks(BlockFormat::Q4K)),
    (Mix::Q5KS, "q5_k_s", 16, Encoding::Blocks(BlockFormat::Q5K)),
    (Mix::Q5KM, "q5_k_m", 17, Encoding::Blocks(BlockFormat::Q5K)),
    (Mix::Q6K, "q6_k", 18, Encoding::Blocks(BlockFormat::Q6K)),
];

/// The properties of a tensor that its encoding depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    /// The module of the tensor's parameter.
    pub(crate) module: ModuleId,
    pub(crate) num_layers: usize,
    /// 0 for a dense model.
    pub(crate) num_experts: usize,
    /// The embedding is the head, too.
    pub(crate) tied: bool,
    /// Row-major, outermost first.
    pub(crate) shape: &'a [usize],
}

impl Mix {
    /// All mixes.
    pub fn all() -> impl Iterator<Item = Mix> {
        MIXES.into_iter().map(|entry| entry.0)
    }

    fn entry(self) -> (Mix, &'static str, u32, Encoding) {
        MIXES.into_iter().find(|entry| entry.0 == self).unwrap_or(MIXES[0])
    }

    /// The name, such as `q4_k_m`.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// The mix with that name, in upper or lower case.
    pub fn by_name(name: &str) -> Option<Mix> {
        MIXES.into_iter().find(|entry| entry.1.eq_ignore_ascii_case(name)).map(|entry| entry.0)
    }

    /// The number in `general.file_type`.
    pub(crate) fn file_type(self) -> u32 {
        self.entry().2
    }

    /// The encoding of most tensors.
    pub fn encoding(self) -> Encoding {
        self.entry().3
    }

    /// The encoding of one tensor.
    pub(crate) fn encoding_of(self, tensor: Context<'_>) -> Encoding {
        let default = self.encoding();
        if tensor.shape.len() < 2 || tensor.module.part == ModulePart::Router {
            return Encoding::F32;
        }
        let Encoding::Blocks(format) = default else { return default };
        fit(self.format_of(format, tensor), tensor.shape)
    }

    fn format_of(self, default: BlockFormat, tensor: Context<'_>) -> BlockFormat {
        let columns = tensor.shape.last().copied().unwrap_or(0);
        let part = tensor.module.part;
        // A mixture of eight experts has few shared parameters, so these get a more exact format.
        let eight = tensor.num_experts == 8;
        let layer = tensor.module.layer.unwrap_or(0);
        if part == ModulePart::Head || (tensor.tied && part == ModulePart::Embedding) {
            let whole = columns.is_multiple_of(default.block_len());
            return if whole && default != BlockFormat::Q8_0 { BlockFormat::Q6K } else { BlockFormat::Q8_0 };
        }
        if part == ModulePart::Attention(Projection::Value) {
            return match self {
                _ if eight => BlockFormat::Q8_0,
                Mix::Q4KM | Mix::Q5KM if more_bits(layer, tensor.num_layers) => BlockFormat::Q6K,
                Mix::Q4KS if layer < 4 => BlockFormat::Q5K,
                _ => default,
            };
        }
        if part == ModulePart::Attention(Projection::Key) && eight {
            return BlockFormat::Q8_0;
        }
        if part == ModulePart::Attention(Projection::Output) && eight && matches!(self, Mix::Q4KS | Mix::Q4KM) {
            return BlockFormat::Q5K;
        }
        if matches!(part, ModulePart::Mlp(_, MlpMatrix::Down)) {
            return match self {
                Mix::Q4KM | Mix::Q5KM if more_bits(layer, tensor.num_layers) => BlockFormat::Q6K,
                Mix::Q4KS if layer < tensor.num_layers / 8 => BlockFormat::Q5K,
                _ => default,
            };
        }
        default
    }
}

/// Whether a layer is one of those that are most sensitive to quantisation.
fn more_bits(layer: usize, num_layers: usize) -> bool {
    let eighth = num_layers / 8;
    layer < eighth || layer >= 7 * num_layers / 8 || (layer - eighth) % 3 == 2
}

/// The format, or another one whose blocks fit the rows.
fn fit(format: BlockFormat, shape: &[usize]) -> Encoding {
    let columns = shape.last().copied().unwrap_or(0);
    let smaller = match format {
        BlockFormat::Q4K => BlockFormat::Q5_0,
        BlockFormat::Q5K => BlockFormat::Q5_1,
        BlockFormat::Q6K => BlockFormat::Q8_0,
        other => other,
    };
    [format, smaller]
        .into_iter()
        .find(|format| columns.is_multiple_of(format.block_len()))
        .map_or(Encoding::F16, Encoding::Blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for mix in Mix::all() {
            assert_eq!(Mix::by_name(&mix.name().to_uppercase()), Some(mix));
        }
        assert_eq!(Mix::by_name("q2_k"), None);
    }

    #[test]
    fn layers_with_more_bits() {
        // Worked out by hand from the rule for 16 layers: 0, 1, then every third from 4 on, and 14, 15.
        let layers: Vec<usize> = (0..16).filter(|layer| more_bits(*layer, 16)).collect();
        assert_eq!(layers, [0, 1, 4, 7, 10, 13, 14, 15]);
    }
}
