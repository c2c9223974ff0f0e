//! The log-probabilities of the reference model: computed before the first step and kept in a file, or in each step.
//!
//! Of each answer the sum over its tokens is kept, in f64 and in the order of the tokens, so that a policy with the same
//! numbers has a log-ratio of exactly 0; with `ld_alpha` it is the sum over the length of the pair's shorter answer and that
//! of the rest. A forward pass gives a sequence the same bits whatever lies beside it, so that both ways are the same.
//!
//! The file: a magic number, the key, the number of rows, for each row two answers of tokens (u32), sum and rest (f64), all
//! little endian, and a blake3 of everything before it. A file of another key, or a damaged one, is made again.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use olmoe_checkpoint::disk::{Disk, write_whole};
use olmoe_model::model::Model;

use super::scores::{ScorePass, Scored, UnitOf, scores};
use super::settings::MicroBatch;
use crate::preference::{ReferenceLogProb, log_prob};
use crate::trainer::TrainError;

/// The first bytes; the last of them is the version.
const MAGIC: [u8; 8] = *b"OLMOERF\x01";
const HASH: usize = 32;
const HEAD: usize = MAGIC.len() + HASH + 8;
const ANSWER: usize = 4 + 8 + 8;

/// What is known of an answer under the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct AnswerSums {
    /// Tokens of the first sum.
    tokens: u32,
    /// The sum over these.
    sum: f64,
    /// The sum over the others.
    rest: f64,
}

impl AnswerSums {
    /// Of the log-probabilities of its tokens; `split` after so many.
    fn of(logp_t: &[f32], split: Option<usize>) -> AnswerSums {
        let tokens = split.unwrap_or(logp_t.len()).min(logp_t.len());
        let (shared, rest) = logp_t.split_at(tokens);
        AnswerSums { tokens: tokens as u32, sum: log_prob(shared), rest: log_prob(rest) }
    }

    /// As a loss takes it; `split` where it has `ld_alpha`.
    pub(super) fn log_prob(&self, split: bool) -> ReferenceLogProb<'static> {
        match split {
            true => ReferenceLogProb::Split { tokens: self.tokens as usize, shared: self.sum, rest: self.rest },
            false => ReferenceLogProb::Sum(self.sum),
        }
    }

    /// The sum over all tokens.
    pub(super) fn total(&self) -> f64 {
        self.sum + self.rest
    }
}

/// The answers of a row: chosen and rejected, or the own one and that of another row.
pub(super) type RowSums = [AnswerSums; 2];

/// Where the log-probabilities come from.
pub(super) enum References {
    /// There is no reference.
    None,
    /// They were computed for each row.
    Before(Vec<RowSums>),
    /// The policy with its adapters off.
    AdaptersOff,
    /// Another model.
    Model(Box<Model>),
}

impl References {
    /// Whether there are any.
    pub(super) fn exist(&self) -> bool {
        !matches!(self, References::None)
    }

    /// The sums of rows.
    pub(super) fn of_rows(
        &self,
        rows: &[u32],
        policy: &mut Model,
        unit: &UnitOf<'_>,
        split: bool,
        micro_batch: MicroBatch,
    ) -> Result<Vec<RowSums>, TrainError> {
        let never = AtomicBool::new(false);
        match self {
            References::None => Ok(vec![RowSums::default(); rows.len()]),
            References::Before(all) => Ok(rows.iter().map(|row| all[*row as usize]).collect()),
            References::AdaptersOff => {
                policy.set_adapters_enabled(false);
                let sums = sums(policy, rows, unit, split, micro_batch, &never);
                policy.set_adapters_enabled(true);
                sums
            }
            References::Model(model) => sums(model, rows, unit, split, micro_batch, &never),
        }
    }
}

/// The sums of rows under a model.
fn sums(
    model: &Model,
    rows: &[u32],
    unit: &UnitOf<'_>,
    split: bool,
    micro_batch: MicroBatch,
    interrupt: &AtomicBool,
) -> Result<Vec<RowSums>, TrainError> {
    let of = |own: &Vec<Scored>| {
        let shorter = split.then(|| own.iter().map(|answer| answer.logp_t.len()).min().unwrap_or(0));
        let mut row = RowSums::default();
        for (sums, answer) in row.iter_mut().zip(own) {
            *sums = AnswerSums::of(&answer.logp_t, shorter);
        }
        row
    };
    Ok(scores(model, rows, unit, ScorePass::plain(micro_batch), interrupt)?.iter().map(of).collect())
}

/// The sums of all rows, from the file or else computed and written there; and what there is to say of a file that was not used.
pub(super) fn before<D: Disk>(
    disk: &D,
    path: &Path,
    key: &[u8; HASH],
    rows: usize,
    compute: impl FnOnce(&[u32]) -> Result<Vec<RowSums>, TrainError>,
) -> Result<(Vec<RowSums>, Option<String>), TrainError> {
    let notice = match read(path, key, rows) {
        Ok(found) => return Ok((found, None)),
        Err(Unusable::Absent) => None,
        Err(Unusable::Because(reason)) => {
            Some(format!("{}: {reason}; the log-probabilities of the reference are computed anew", path.display()))
        }
    };
    let all: Vec<u32> = (0..rows as u32).collect();
    let found = compute(&all)?;
    let mut bytes = Vec::with_capacity(HEAD + 2 * ANSWER * rows + HASH);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&(rows as u64).to_le_bytes());
    for sums in found.iter().flatten() {
        bytes.extend_from_slice(&sums.tokens.to_le_bytes());
        bytes.extend_from_slice(&sums.sum.to_le_bytes());
        bytes.extend_from_slice(&sums.rest.to_le_bytes());
    }
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    write_whole(disk, path, |out| out.write_all(&bytes)).map_err(TrainError::io("write", path))?;
    Ok((found, notice))
}

/// As [`References::of_rows`] of a model, to be interrupted.
pub(super) fn compute(
    model: &Model,
    rows: &[u32],
    unit: &UnitOf<'_>,
    split: bool,
    micro_batch: MicroBatch,
    interrupt: &AtomicBool,
) -> Result<Vec<RowSums>, TrainError> {
    sums(model, rows, unit, split, micro_batch, interrupt)
}

/// Why a file cannot be used.
enum Unusable {
    Absent,
    Because(&'static str),
}

fn read(path: &Path, key: &[u8; HASH], rows: usize) -> Result<Vec<RowSums>, Unusable> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unusable::Absent),
        Err(_) => return Err(Unusable::Because("it cannot be read")),
    };
    if bytes.len() < HEAD + HASH || bytes[..MAGIC.len()] != MAGIC {
        return Err(Unusable::Because("it is no file of a reference of this version, or was cut off"));
    }
    if bytes[MAGIC.len()..MAGIC.len() + HASH] != key[..] {
        return Err(Unusable::Because("it belongs to other data, another model or other settings"));
    }
    let (content, hash) = bytes.split_at(bytes.len() - HASH);
    if blake3::hash(content).as_bytes()[..] != *hash || content.len() != HEAD + 2 * ANSWER * rows {
        return Err(Unusable::Because("it is damaged"));
    }
    let answer = |bytes: &[u8]| {
        let number = |at: usize| f64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        AnswerSums { tokens: u32::from_le_bytes(std::array::from_fn(|i| bytes[i])), sum: number(4), rest: number(12) }
    };
    let rows = content[HEAD..].chunks_exact(2 * ANSWER);
    Ok(rows.map(|row| [answer(&row[..ANSWER]), answer(&row[ANSWER..])]).collect())
}
