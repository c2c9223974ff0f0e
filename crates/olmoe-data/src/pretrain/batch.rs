//! A batch: token ids and their masks. B instances, S tokens each.

use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::cross_entropy::IGNORE;

use super::{DataError, DataSet};

/// The instances of a training step.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids, `[B, S]`.
    pub ids: Buffer<u32>,
    /// The number of instances, B.
    pub size: usize,
    /// The tokens of each instance, S.
    pub sequence_length: usize,
    /// The indices of the instances in the data set, `[B]`.
    pub indices: Vec<u32>,
    /// The index of the file that each instance lies in, `[B]`.
    pub files: Vec<u32>,
    /// Whether a token counts in the loss, `[B, S]`; None: all do.
    pub label_mask: Option<Vec<bool>>,
    /// Whether a token is not padding, `[B, S]`; None: there is no padding.
    pub attention_mask: Option<Vec<bool>>,
    /// Whether an instance counts in the loss, `[B]`; None: all do.
    pub instance_mask: Option<Vec<bool>>,
    /// The lengths of the documents of each instance, which sum to S, `[B]`.
    pub doc_lengths: Option<Vec<Vec<u32>>>,
    /// The number of the epoch's examples, over all ranks, that are used up after this batch: where a run resumes that
    /// has trained on it.
    pub next: u64,
}

impl Batch {
    /// Reads instances of a data set.
    ///
    /// # Errors
    /// As [`DataSet::read`].
    pub fn read(data: &DataSet, indices: &[u32], next: u64) -> Result<Batch, DataError> {
        let settings = data.settings();
        let (size, length) = (indices.len(), settings.sequence_length);
        let mut ids = Buffer::scratch(size * length);
        let mut label_mask = settings.label_mask_paths.as_ref().map(|_| vec![true; size * length]);
        let mut files = Vec::with_capacity(size);
        let mut bytes = Vec::new();
        for (i, index) in indices.iter().enumerate() {
            let row = i * length..(i + 1) * length;
            let mask = label_mask.as_mut().map(|mask| &mut mask[row.clone()]);
            files.push(data.read(*index, &mut ids[row], mask, &mut bytes)? as u32);
        }
        let rows = || ids.chunks(length);
        let attention_mask = settings.attention_mask.map(|pad| ids.iter().map(|id| *id != pad).collect());
        let instance_mask = settings.instance_filter.map(|filter| rows().map(|row| filter.passes(row)).collect());
        let doc_lengths = settings.doc_lengths.map(|eos| rows().map(|row| document_lengths(row, eos)).collect());
        Ok(Batch {
            size,
            sequence_length: length,
            indices: indices.to_vec(),
            files,
            label_mask,
            attention_mask,
            instance_mask,
            doc_lengths,
            next,
            ids,
        })
    }

    /// The target of each token, `[B, S]`, which is its successor: [`IGNORE`] for the last token of an instance, and
    /// where a mask takes the successor out of the loss.
    pub fn targets(&self) -> Buffer<u32> {
        let mut targets = Buffer::scratch(self.ids.len());
        let length = self.sequence_length;
        for i in 0..self.size {
            let row = i * length..(i + 1) * length;
            let target = &mut targets[row.clone()];
            if self.instance_mask.as_ref().is_some_and(|mask| !mask[i]) {
                target.fill(IGNORE);
                continue;
            }
            target[..length - 1].copy_from_slice(&self.ids[row.start + 1..row.end]);
            target[length - 1] = IGNORE;
            for mask in [&self.label_mask, &self.attention_mask].into_iter().flatten() {
                let successors = &mask[row.start + 1..row.end];
                target.iter_mut().zip(successors).filter(|(_, counts)| !**counts).for_each(|(id, _)| *id = IGNORE);
            }
        }
        targets
    }
}

/// The lengths of the documents of an instance. An end-of-document token belongs to the document that it ends; the
/// tokens after the last one are a document of their own.
pub fn document_lengths(ids: &[u32], eos: u32) -> Vec<u32> {
    ids.split_inclusive(|id| *id == eos).map(|document| document.len() as u32).collect()
}
