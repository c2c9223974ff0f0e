//! A batch: token ids and all that is said about them. B instances, S tokens each.

use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::cross_entropy::IGNORE;

use super::{DataError, DataSet};

/// Instances that are learnt from together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids, `[B, S]`.
    pub ids: Buffer<u32>,
    /// Instances, B.
    pub size: usize,
    /// Tokens of each, S.
    pub sequence_length: usize,
    /// Which instances of the data set they are, `[B]`.
    pub indices: Vec<u32>,
    /// Which of the data set's files each lies in, `[B]`.
    pub files: Vec<u32>,
    /// Whether a token counts in the loss, `[B, S]`.
    pub label_mask: Option<Vec<bool>>,
    /// Whether a token is none of the padding, `[B, S]`.
    pub attention_mask: Option<Vec<bool>>,
    /// Whether an instance counts in the loss, `[B]`.
    pub instance_mask: Option<Vec<bool>>,
    /// The lengths of the documents of each instance, which sum to S, `[B]`.
    pub doc_lengths: Option<Vec<Vec<u32>>>,
    /// Examples of the epoch, of all ranks, that are used up with this batch: where a run goes on that has learnt from it.
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

    /// What each token's successor is, `[B, S]`: [`IGNORE`] for the last of an instance, and where a mask takes the
    /// successor out of the loss.
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

/// The lengths of the documents of an instance. The end of document belongs to the document that it ends, and what comes
/// after the last one is a document, too.
pub fn document_lengths(ids: &[u32], eos: u32) -> Vec<u32> {
    ids.split_inclusive(|id| *id == eos).map(|document| document.len() as u32).collect()
}
