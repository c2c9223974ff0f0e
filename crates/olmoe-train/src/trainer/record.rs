//! What a checkpoint was trained on, as far as its position in the data depends on it.
//!
//! The order of a pass follows from the seed and the number of instances, and which tokens an instance is from the files,
//! their order, their ratios and the length of a sequence. A position means something only as long as all of these are what
//! they were. It counts instances, so that the size of a batch may change. Files may lie in another folder.

use olmoe_data::pretrain::{DataError, DataSet};
use serde::{Deserialize, Serialize};

use super::error::TrainError;
use super::task::DataPosition;
use crate::config::TrainConfig;
use olmoe_data::counted;

/// Differing files that are named.
const MAX_NAMED: usize = 3;
/// Digits of a hash that are shown.
const SHOWN: usize = 12;

/// What the position in the data depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecord {
    seed: u64,
    sequence_length: u64,
    memmap_dtype: String,
    files: Vec<FileRecord>,
}

/// A file of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRecord {
    /// Without its folder.
    name: String,
    bytes: u64,
    /// The hash of what it begins with.
    head: String,
    ratio: f64,
}

impl DataRecord {
    /// That of a run's data.
    pub(super) fn of(config: &TrainConfig, data: &DataSet) -> Result<DataRecord, TrainError> {
        let files = data.files().map(|(file, ratio)| {
            let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            let head = file.head_hash().map_err(DataError::from)?;
            Ok::<_, TrainError>(FileRecord { name, bytes: file.byte_len(), head, ratio })
        });
        Ok(DataRecord {
            seed: config.data_seed(),
            sequence_length: data.settings().sequence_length as u64,
            memmap_dtype: data.settings().dtype.name().to_owned(),
            files: files.collect::<Result<_, _>>()?,
        })
    }
}

impl DataPosition for DataRecord {
    const ADVICE: &str = "set restore_dataloader=false to begin a new pass over this data, the steps going on and the tokens \
                          counted anew";

    fn differences(&self, now: &DataRecord) -> Vec<String> {
        let mut all = Vec::new();
        let mut differ = |what: &str, then: &str, now: &str| {
            if then != now {
                all.push(format!("{what} was {then} and is {now}"));
            }
        };
        differ("the seed of the order (`data.seed`, else `seed`)", &self.seed.to_string(), &now.seed.to_string());
        let lengths = [self, now].map(|record| record.sequence_length.to_string());
        differ("`model.max_sequence_length`", &lengths[0], &lengths[1]);
        differ("`data.memmap_dtype`", &self.memmap_dtype, &now.memmap_dtype);
        let counts = [self, now].map(|record| record.files.len().to_string());
        differ("the number of token files", &counts[0], &counts[1]);
        let pairs = self.files.iter().zip(&now.files).enumerate();
        let others: Vec<String> = pairs.filter_map(|(i, (then, now))| then.difference(i, now)).collect();
        let more = others.len().saturating_sub(MAX_NAMED);
        all.extend(others.into_iter().take(MAX_NAMED));
        if more > 0 {
            all.push(format!("so do {} more", counted(more, "file")));
        }
        all
    }
}

impl FileRecord {
    /// In what it differs, if it does.
    fn difference(&self, index: usize, now: &FileRecord) -> Option<String> {
        let file = |record: &FileRecord| format!("{} of {}", record.name, counted(record.bytes, "byte"));
        if (&self.name, self.bytes) != (&now.name, now.bytes) {
            return Some(format!("token file {index} was {} and is {}", file(self), file(now)));
        }
        if self.head != now.head {
            let short = |record: &FileRecord| record.head.get(..SHOWN).unwrap_or(&record.head).to_owned();
            let (then, now) = (short(self), short(now));
            return Some(format!(
                "token file {index}, {}, has another content: the hash of what it begins with was {then} and is {now}",
                file(self)
            ));
        }
        let (then, now) = (self.ratio, now.ratio);
        (then != now).then(|| format!("the ratio of token file {index}, {}, was {then} and is {now}", self.name))
    }
}
