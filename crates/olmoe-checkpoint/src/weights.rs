//! Weights by canonical parameter, from a checkpoint or any other source.

use std::path::Path;

use olmoe_model::config::ModelConfig;
use olmoe_model::init::{CHUNK, initialize_chunk};
use olmoe_model::parameters::{ParameterSpec, parameters};
use olmoe_tensor::dtype::DType;
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::threads::{Shared, parallel};

use crate::encoding::Encoding;
use crate::error::CheckpointError;
use crate::layout::slabs;

/// The parameters of a model, slab by slab: a slab is one matrix of a stack, or all of any other parameter.
pub trait Weights {
    /// The model.
    fn config(&self) -> &ModelConfig;

    /// Its parameters, in canonical order.
    fn parameters(&self) -> &[ParameterSpec];

    /// The encoding of a slab.
    fn encoding(&self, parameter: usize, slab: usize) -> Encoding;

    /// The encoding of most bytes of its matrices.
    fn main_encoding(&self) -> Encoding;

    /// Whether vectors and routers are in f32 only because the format requires it.
    fn widens_vectors(&self) -> bool {
        false
    }

    /// The source, for messages.
    fn origin(&self) -> &Path;

    /// The bytes of a slab in that encoding, row-major.
    ///
    /// # Errors
    /// What the system says.
    fn read(&self, parameter: usize, slab: usize) -> Result<Buffer<u8>, CheckpointError>;

    /// Tells the source how a slab that was just read has been written.
    fn written(&self, _parameter: usize, _slab: usize, _encoding: Encoding, _bytes: &[u8]) {}
}

/// Numbers of a slab.
pub(crate) fn slab_len(spec: &ParameterSpec) -> usize {
    let (_, rows, columns) = slabs(&spec.shape);
    rows * columns
}

/// A slab whose numbers are drawn by chunks of the whole parameter, on all threads. `draw` is called with the index of
/// a chunk and its first numbers, up to the last one in the slab: those of `before`, or 0 for numbers outside of the
/// slab. The encoding is plain.
///
/// # Errors
/// A number outside the range of the encoding.
pub(crate) fn draw_slab(
    spec: &ParameterSpec,
    slab: usize,
    encoding: Encoding,
    before: Option<&[u8]>,
    draw: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<Buffer<u8>, CheckpointError> {
    let len = slab_len(spec);
    let (start, end) = (slab * len, (slab + 1) * len);
    let first = start / CHUNK;
    let size = encoding.block_bytes();
    let mut out = Buffer::scratch(len * size);
    let shared = Shared::new(&mut out);
    parallel(end.div_ceil(CHUNK) - first, |task| {
        let chunk = first + task;
        // A slab may begin and end inside a chunk. The numbers of the chunk before the slab are also drawn, to advance
        // the generator; those after it are not.
        let (from, to) = ((chunk * CHUNK).max(start), ((chunk + 1) * CHUNK).min(end));
        let (within, bytes) = (from - chunk * CHUNK..to - chunk * CHUNK, (from - start) * size..(to - start) * size);
        let mut numbers = Buffer::<f32>::zeroed(within.end);
        if let Some(before) = before {
            encoding.decode(&before[bytes.clone()], &mut numbers[within.clone()]);
        }
        draw(chunk, &mut numbers);
        // SAFETY: every chunk is another range of the slab.
        encoding.encode(&numbers[within], unsafe { shared.range(bytes) });
    });
    match encoding.first_not_finite(&out).filter(|_| encoding != Encoding::F32) {
        None => Ok(out),
        Some(at) => {
            let mut value = [0.0];
            encoding.decode(&out[at * size..(at + 1) * size], &mut value);
            Err(CheckpointError::Overflow {
                path: "fresh parameters".into(),
                parameter: spec.name.clone(),
                slab,
                at,
                value: value[0],
                encoding: encoding.name(),
            })
        }
    }
}

/// Initial parameters, which are drawn when they are read.
pub struct Random {
    config: ModelConfig,
    specs: Vec<ParameterSpec>,
    seed: u64,
    dtype: DType,
}

impl Random {
    /// The parameters that [`Model::initialize`](olmoe_model::model::Model::initialize) draws from that seed, rounded
    /// to `dtype`.
    pub fn new(config: ModelConfig, seed: u64, dtype: DType) -> Self {
        let specs = parameters(&config);
        Self { config, specs, seed, dtype }
    }
}

impl Weights for Random {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn encoding(&self, _parameter: usize, _slab: usize) -> Encoding {
        Encoding::Plain(self.dtype)
    }

    fn main_encoding(&self) -> Encoding {
        Encoding::Plain(self.dtype)
    }

    fn origin(&self) -> &Path {
        Path::new("fresh parameters")
    }

    fn read(&self, parameter: usize, slab: usize) -> Result<Buffer<u8>, CheckpointError> {
        let spec = &self.specs[parameter];
        let draw = |chunk, numbers: &mut [f32]| initialize_chunk(spec, self.seed, chunk, numbers);
        draw_slab(spec, slab, Encoding::Plain(self.dtype), None, draw)
    }
}

#[cfg(test)]
mod tests {
    use olmoe_model::init::initialize;

    use super::*;

    #[test]
    fn slabs_are_pieces_of_the_parameter() {
        let mut config = ModelConfig::release();
        (config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.head_dim) = (1, 96, 2, 2, 48);
        let random = Random::new(config, 7, DType::F32);
        for (index, spec) in random.parameters().iter().enumerate().filter(|(_, spec)| spec.shape.len() == 3) {
            let mut whole = vec![0.0; spec.num_elements()];
            initialize(spec, 7, &mut whole);
            let len = slab_len(spec);
            for slab in [0, 1, 63] {
                let bytes = random.read(index, slab).unwrap();
                assert_eq!(bytemuck::cast_slice::<u8, f32>(&bytes), &whole[slab * len..(slab + 1) * len]);
            }
        }
    }
}
