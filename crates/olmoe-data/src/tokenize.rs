//! Documents to token files: does what the `dolma tokens` command does, and writes the same files.
//!
//! A destination holds `part-G-00000.npy` and following for every group G of input files: the ids of whole documents,
//! one after the other, as little-endian numbers without a header. Beside each lies a `.csv.gz` with a row for each
//! document: its first token, one past its last token, its name, its file and its line there.
//!
//! **Order.** Python's `random`, seeded, shuffles the input files. They are cut into `processes` groups, or more if
//! `files_per_process` requires it. In a group, `ring_size` files are open at a time. They yield a document each in
//! turn, or at random in proportion to their sizes; after every `batch_size` turns the collected documents are shuffled
//! and written. Each group's generator continues from the state after the shuffling of the files. So the content of a
//! group depends on the order of the inputs, the seed and the settings, and not on the threads that do the work. For a
//! single group, the result is what dolma writes when its generator is seeded.
//!
//! **Documents.** White space around a text is removed, and a text of nothing but white space is not a document. The
//! end-of-document token is added where a text does not end with it already, the beginning token where it does not
//! begin with it.
//!
//! **Safety.** All files are written into `DESTINATION.tmp`, which is renamed when it is complete and on disk. So a
//! destination that exists is complete.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::Tokenizer;
use crate::documents::{Fields, Malformed};
use crate::random::Mersenne;
use crate::token_file::TokenType;

mod batch;
mod error;
mod folder;
mod group;
mod inputs;
mod part;
mod text;

pub use error::TokenizeError;
pub use inputs::{Inputs, find};

use folder::Folder;

/// How many malformed lines are named; the others are only counted.
pub const MAX_NAMED: usize = 1000;

/// Settings of tokenization.
#[derive(Clone, Debug)]
pub struct TokenizeSettings {
    /// Put before each document.
    pub bos: Option<u32>,
    /// Put after each document.
    pub eos: Option<u32>,
    /// Encode paragraphs one by one, which changes some ids at their borders.
    pub segment: bool,
    /// The number of groups unless `files_per_process` makes more, and how many of them are processed at a time.
    pub processes: usize,
    /// Most files of a group.
    pub files_per_process: Option<usize>,
    /// How many turns lie between two shuffles.
    pub batch_size: usize,
    /// How many files of a group are open at a time.
    pub ring_size: usize,
    /// Whether open files take turns at random in proportion to their sizes, instead of evenly.
    pub sample_ring_prop: bool,
    /// A token file has fewer tokens than this; documents are never split.
    pub max_size: u64,
    /// The number type of the token files.
    pub dtype: TokenType,
    /// The seed of the order.
    pub seed: u64,
    /// The keys of texts and names.
    pub fields: Fields,
}

impl Default for TokenizeSettings {
    fn default() -> TokenizeSettings {
        TokenizeSettings {
            bos: None,
            eos: None,
            segment: false,
            processes: 1,
            files_per_process: None,
            batch_size: 10_000,
            ring_size: 8,
            sample_ring_prop: false,
            max_size: 1 << 30,
            dtype: TokenType::U16,
            seed: 3920,
            fields: Fields::default(),
        }
    }
}

/// What a run has written.
#[derive(Clone, Debug, Default)]
pub struct TokenizeSummary {
    /// The token files.
    pub parts: Vec<PathBuf>,
    /// The number of documents in them.
    pub documents: u64,
    /// The number of tokens in them.
    pub tokens: u64,
    /// The number of texts of nothing but white space, which are left out.
    pub empty: u64,
    /// The number of lines that are not documents, which are left out.
    pub malformed: u64,
    /// The first [`MAX_NAMED`] of these lines, by group.
    pub named: Vec<Malformed>,
}

impl TokenizeSummary {
    fn note(&mut self, malformed: Malformed) {
        self.malformed += 1;
        if self.named.len() < MAX_NAMED {
            self.named.push(malformed);
        }
    }

    fn add(&mut self, other: TokenizeSummary) {
        self.parts.extend(other.parts);
        self.documents += other.documents;
        self.tokens += other.tokens;
        self.empty += other.empty;
        self.malformed += other.malformed;
        self.named.extend(other.named);
        self.named.truncate(MAX_NAMED);
    }
}

/// A run that is ready to start: checked settings, and files in groups.
pub struct TokenizePlan<'a> {
    tokenizer: &'a Tokenizer,
    settings: TokenizeSettings,
    groups: Vec<Vec<PathBuf>>,
    random: Mersenne,
}

impl<'a> TokenizePlan<'a> {
    /// Checks the settings and orders the files.
    ///
    /// # Errors
    /// Settings that allow no output, or no files.
    pub fn new(
        tokenizer: &'a Tokenizer,
        settings: TokenizeSettings,
        inputs: &[PathBuf],
    ) -> Result<TokenizePlan<'a>, TokenizeError> {
        for (name, value) in [
            ("processes", settings.processes),
            ("files_per_process", settings.files_per_process.unwrap_or(1)),
            ("batch_size", settings.batch_size),
            ("ring_size", settings.ring_size),
            ("max_size", settings.max_size.min(1) as usize),
        ] {
            if value == 0 {
                return Err(TokenizeError::Zero { name });
            }
        }
        if settings.bos.is_none() && settings.eos.is_none() {
            return Err(TokenizeError::NoBoundary);
        }
        let size = tokenizer.size();
        for (name, id) in [("bos_token_id", settings.bos), ("eos_token_id", settings.eos)] {
            if let Some(id) = id.filter(|id| *id as usize >= size) {
                return Err(TokenizeError::NoSuchToken { name, id, last: size.saturating_sub(1) });
            }
        }
        if settings.dtype.max() < size.saturating_sub(1) as u64 {
            return Err(TokenizeError::TooNarrow { dtype: settings.dtype, size });
        }
        if inputs.is_empty() {
            return Err(TokenizeError::NoInputs);
        }
        let mut paths = inputs.to_vec();
        let mut random = Mersenne::python(settings.seed);
        random.shuffle(&mut paths);
        let groups = group::cut(&paths, settings.processes, settings.files_per_process);
        Ok(TokenizePlan { tokenizer, settings, groups, random })
    }

    /// The input files of each group. A group takes its files from the end of its list.
    pub fn groups(&self) -> &[Vec<PathBuf>] {
        &self.groups
    }

    /// Runs the plan. `read` is called with the number of bytes of the inputs read since its last call.
    ///
    /// # Errors
    /// The destination is not empty, unless `force` is set and it holds nothing but token files; a file cannot be read
    /// or written; a document is longer than a token file may be; or there is no document at all. After an error,
    /// nothing is left behind.
    pub fn run(
        &self,
        destination: &Path,
        force: bool,
        read: &(dyn Fn(u64) + Sync),
    ) -> Result<TokenizeSummary, TokenizeError> {
        let folder = Folder::begin(destination, force)?;
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let results: Vec<_> = self.groups.iter().map(|_| Mutex::new(None)).collect();
        let workers = self.settings.processes.min(self.groups.len());
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let (Some(paths), Some(result)) = (self.groups.get(number), results.get(number)) else { break };
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let group = group::Group {
                    tokenizer: self.tokenizer,
                    settings: &self.settings,
                    stem: group::stem(number, self.groups.len()),
                    folder: folder.path(),
                    // With one group at a time, the encoder has all threads.
                    all_threads: workers == 1,
                };
                let done = group.run(paths, self.random.clone(), read, &stop);
                stop.fetch_or(done.is_err(), Ordering::Relaxed);
                *result.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(done);
            }
        };
        if workers == 1 {
            work();
        } else {
            std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
        }
        let mut summary = TokenizeSummary::default();
        for result in results {
            // Groups that did not finish were stopped by one that failed, whose error is among the results.
            if let Some(done) = result.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
                && let Some(group) = done?
            {
                summary.add(group);
            }
        }
        if summary.documents == 0 {
            return Err(TokenizeError::NoDocuments { malformed: summary.malformed, first: summary.named.pop() });
        }
        folder.commit()?;
        summary.parts.iter_mut().for_each(|part| *part = destination.join(&*part));
        Ok(summary)
    }
}
