//! Sources of rows, mixed for a purpose: files and folders of files to the records that a run learns from.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::conversation::{Content, LabelledCompletion, Record, Sample};
use super::error::InstructError;
use super::format::{Format, ReadOptions};
use super::mix::{Amount, MixedRow, mixture};
use super::reader::Records;
use super::rows::{ENDINGS, is_read};
use crate::random::Pcg;

/// What rows are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Answers to learn; of a pair the chosen one, of judged ones those that are desirable.
    Samples,
    /// Pairs of answers.
    Pairs,
    /// Judged answers; the two of a pair are one each, in this order, and empty ones are left out.
    Judged,
}

/// A source: a file, or a folder with files.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    /// How much of it is taken.
    pub amount: Amount,
    /// How its rows are read.
    pub options: ReadOptions,
}

/// What was found in a source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceReport {
    /// Where it is.
    pub path: PathBuf,
    /// Its files.
    pub files: usize,
    /// The format of its rows; none where there is no row.
    pub format: Option<Format>,
    /// Its rows, made ready for the purpose.
    pub rows: u32,
    /// Rows that the purpose has no use for.
    pub unfit: u32,
    /// How many of them the mixture has.
    pub taken: usize,
    /// Columns that nothing was read from.
    pub unused: Vec<String>,
}

/// The files of a source: the file itself; those whose names fit, where the last part of the path has `*` for any letters;
/// or the files of a folder, below it too, that have an ending that is read, by name. Where names begin with `train`, as those
/// of the hub's data sets do, the folder's other files are of other splits, and left out.
///
/// # Errors
/// A path that cannot be read, a folder without such files, and names that nothing fits.
pub fn files(source: &Path) -> Result<Vec<PathBuf>, InstructError> {
    /// Folders below folders.
    const DEEPEST: usize = 8;
    fn add(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), InstructError> {
        let entries = std::fs::read_dir(folder).map_err(InstructError::unreadable(folder))?;
        for entry in entries {
            let path = entry.map_err(InstructError::unreadable(folder))?.path();
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if path.is_dir() && !hidden && depth < DEEPEST {
                add(&path, depth + 1, found)?;
            } else if !hidden && path.is_file() && is_read(&path) {
                found.push(path);
            }
        }
        Ok(())
    }
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let pattern = name(source);
    let mut found = Vec::new();
    if source.is_dir() {
        add(source, 0, &mut found)?;
        if found.iter().any(|path| name(path).starts_with("train")) {
            found.retain(|path| name(path).starts_with("train"));
        }
    } else if pattern.contains('*') && !source.exists() {
        let folder = source.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        add(folder, DEEPEST, &mut found)?;
        found.retain(|path| fits(&pattern, &name(path)));
    } else {
        return Ok(vec![source.to_owned()]);
    }
    found.sort();
    match found.is_empty() {
        true => Err(InstructError::Kind { path: source.to_owned(), expected: ENDINGS }),
        false => Ok(found),
    }
}

/// Whether a name fits a pattern with `*` for any letters.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// The rows of a mixture, the records of each source, and what was found in each.
pub type Collected = (Vec<MixedRow>, Vec<Vec<Record>>, Vec<SourceReport>);

/// The rows of a mixture of sources, in its order: source by source, those of each drawn with the seed.
///
/// # Errors
/// Files that cannot be read, rows that cannot be used for the purpose, and amounts that cannot be taken.
pub fn collect(sources: &[Source], purpose: Purpose, seed: u64) -> Result<Collected, InstructError> {
    let (mut all, mut reports) = (Vec::with_capacity(sources.len()), Vec::with_capacity(sources.len()));
    for source in sources {
        let mut records = Vec::new();
        let mut report = SourceReport {
            path: source.path.clone(),
            files: 0,
            format: None,
            rows: 0,
            unfit: 0,
            taken: 0,
            unused: Vec::new(),
        };
        for path in files(&source.path)? {
            let mut rows = Records::open(&path, &source.options)?;
            while let Some(record) = rows.next().transpose()? {
                let before = records.len();
                fit(record, purpose, &mut records)?;
                report.unfit += u32::from(before == records.len());
            }
            report.files += 1;
            report.format = report.format.or(rows.format());
            let new: Vec<_> =
                rows.unused_columns().filter(|name| !report.unused.iter().any(|own| own == name)).collect();
            report.unused.extend(new.into_iter().map(str::to_owned));
        }
        report.rows = u32::try_from(records.len()).map_err(|_| InstructError::Setting {
            key: "sources",
            value: format!("{} rows of {}", records.len(), source.path.display()),
            expected: "fewer than 4294967296 rows of a source".to_owned(),
        })?;
        all.push(records);
        reports.push(report);
    }
    let amounts: Vec<Amount> = sources.iter().map(|source| source.amount).collect();
    let rows: Vec<u32> = reports.iter().map(|report| report.rows).collect();
    let mixed = mixture(&amounts, &rows, seed)?;
    for row in &mixed {
        reports[row.source as usize].taken += 1;
    }
    Ok((mixed, all, reports))
}

/// Takes rows out of a mixture to evaluate on: so many different ones, or a share of them, drawn with the seed. No copy of
/// them stays.
///
/// # Errors
/// So many that nothing would be left.
pub fn held_out(mixed: Vec<MixedRow>, split: f64, seed: u64) -> Result<(Vec<MixedRow>, Vec<MixedRow>), InstructError> {
    let mut seen = HashSet::new();
    let different: Vec<MixedRow> = mixed.iter().copied().filter(|row| seen.insert(*row)).collect();
    let wanted = if split < 1.0 { (split * different.len() as f64).ceil() } else { split } as usize;
    if wanted >= different.len() {
        return Err(InstructError::Setting {
            key: "eval_split",
            value: split.to_string(),
            expected: format!("less than the {} different rows that there are", different.len()),
        });
    }
    let mut order: Vec<u32> = (0..u32::try_from(different.len()).unwrap_or(u32::MAX)).collect();
    Pcg::new(seed).shuffle(&mut order);
    order.truncate(wanted);
    // In the order of the mixture.
    order.sort_unstable();
    let held: Vec<MixedRow> = order.iter().filter_map(|at| different.get(*at as usize).copied()).collect();
    let out: HashSet<MixedRow> = held.iter().copied().collect();
    Ok((mixed.into_iter().filter(|row| !out.contains(row)).collect(), held))
}

/// Adds what a row is for a purpose.
fn fit(record: Record, purpose: Purpose, records: &mut Vec<Record>) -> Result<(), InstructError> {
    let Record { place, content } = record;
    let found = match &content {
        Content::Sample(_) => "an answer without a judgement",
        Content::Tokens(_) => "tokens",
        Content::Pair(_) => "a pair of answers",
        Content::Labelled(_) => "a judged answer",
    };
    let wrong = |expected| Err(InstructError::Purpose { place: place.clone(), found, expected });
    let mut add = |content| records.push(Record { place: place.clone(), content });
    match (purpose, content) {
        (Purpose::Samples, content @ (Content::Sample(_) | Content::Tokens(_))) => add(content),
        (Purpose::Samples, Content::Pair(pair)) => add(Content::Sample(pair.chosen)),
        (Purpose::Samples, Content::Labelled(labelled)) => {
            if labelled.desirable {
                add(Content::Sample(labelled.sample));
            }
        }
        (Purpose::Pairs, content @ Content::Pair(_)) => add(content),
        (Purpose::Pairs, _) => return wrong("a pair of answers: the columns chosen and rejected"),
        (Purpose::Judged, content @ Content::Labelled(_)) => add(content),
        (Purpose::Judged, Content::Pair(pair)) => {
            for (sample, desirable) in [(pair.chosen, true), (pair.rejected, false)] {
                if !is_empty(&sample) {
                    add(Content::Labelled(LabelledCompletion { sample, desirable }));
                }
            }
        }
        (Purpose::Judged, _) => return wrong("a judged answer: a column label beside it, or chosen and rejected"),
    }
    Ok(())
}

/// Whether an answer is nothing but spaces.
fn is_empty(sample: &Sample) -> bool {
    let answer = match sample {
        Sample::Conversation(conversation) => {
            conversation.turns.last().filter(|turn| turn.is_answer()).and_then(|turn| turn.content.as_deref())
        }
        Sample::Text { completion, .. } => Some(completion.as_str()),
    };
    answer.is_some_and(|answer| answer.trim().is_empty())
}
