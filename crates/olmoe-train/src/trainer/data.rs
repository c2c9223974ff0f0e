//! The data of a configuration.

use std::sync::Arc;

use olmoe_data::pretrain::{DataError, DataSet, DataSettings, Order, OrderSettings, RepetitionFilter};
use olmoe_data::token_file;
use olmoe_model::config::ModelConfig;

use crate::config::{DataConfig, TokenType, TrainConfig, count};

/// Opens files of tokens as a section of the configuration says.
pub(super) fn open<'a>(
    data: &DataConfig,
    files: impl Iterator<Item = &'a str>,
    model: &ModelConfig,
) -> Result<Arc<DataSet>, DataError> {
    let settings = DataSettings {
        label_mask_paths: data.label_mask_paths.as_ref().map(|paths| paths.iter().map(Into::into).collect()),
        ratios: data.ratios.clone(),
        dtype: match data.memmap_dtype {
            TokenType::Uint8 => token_file::TokenType::U8,
            TokenType::Uint16 => token_file::TokenType::U16,
            TokenType::Uint32 => token_file::TokenType::U32,
            TokenType::Uint64 => token_file::TokenType::U64,
        },
        vocabulary: model.vocab_size as u32,
        instance_filter: data.instance_filter.as_ref().map(|filter| RepetitionFilter {
            max_period: count(filter.repetition_max_period),
            min_period: count(filter.repetition_min_period),
            max_count: count(filter.repetition_max_count),
        }),
        doc_lengths: if data.generate_doc_lengths { model.eos_token_id } else { None },
        attention_mask: if data.generate_attention_mask { model.pad_token_id } else { None },
        ..DataSettings::new(files.map(Into::into).collect(), model.max_sequence_length)
    };
    Ok(Arc::new(DataSet::open(settings)?))
}

/// The order of a pass over the training data.
pub(super) fn order(config: &TrainConfig, data: &DataSet, epoch: u64) -> Result<Arc<Order>, DataError> {
    let seed = config.data_seed();
    Ok(Arc::new(Order::new(data.len(), OrderSettings { seed, epoch, drop_last: true, ..OrderSettings::default() })?))
}

/// Tokens of some instances as a batch of the model, with their documents, or without their padding.
pub(super) fn micro_batch(
    batch: &olmoe_data::pretrain::Batch,
    some: std::ops::Range<usize>,
) -> Result<olmoe_model::batch::Batch, olmoe_model::batch::BatchError> {
    let length = batch.sequence_length;
    let range = some.start * length..some.end * length;
    let mut tokens = olmoe_model::batch::Batch::uniform(&batch.ids[range.clone()], length)?;
    if let Some(mask) = &batch.attention_mask {
        tokens = tokens.with_hidden(mask[range].iter().map(|seen| !seen).collect())?;
    }
    if let Some(documents) = &batch.doc_lengths {
        let lengths: Vec<usize> = documents[some].iter().flatten().map(|length| *length as usize).collect();
        tokens = tokens.with_documents(&lengths)?;
    }
    Ok(tokens)
}
