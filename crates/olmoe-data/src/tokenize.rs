//! Documents to token files: what the `dolma tokens` command does, with the same files as a result.
//!
//! A destination holds `part-G-00000.npy` and on for every group G of input files: the ids of whole documents, back to
//! back, in little-endian numbers without any header. Beside each lies a `.csv.gz` with a line for each document: its first
//! token, one past its last, its name, its file and its line there.
//!
//! **Order.** Python's `random`, seeded, shuffles the input files; they are cut into groups, `processes` of them unless
//! `files_per_process` asks for more. In a group `ring_size` files are open at a time and give a document each in turn, or
//! at random by their sizes; every `batch_size` turns the documents at hand are shuffled and written. Each group draws from
//! a generator that goes on where the shuffling of the files left it, so what a group holds depends on the order of the
//! inputs, the seed and the settings, and not on the threads that do the work. For a single group that is what dolma writes
//! when its generator is seeded.
//!
//! **Documents.** White space around a text is cut off, and a text with nothing else is no document. The end of document is
//! added where a text does not end with it already, the begin where it does not begin with it.
//!
//! **Safety.** All files are written into `DESTINATION.tmp`, which gets its name when it is complete and on disk: a
//! destination that is there is whole.

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

/// Malformed lines that are named; the others are only counted.
pub const MAX_NAMED: usize = 1000;

/// How documents become tokens.
#[derive(Clone, Debug)]
pub struct TokenizeSettings {
    /// Put before each document.
    pub bos: Option<u32>,
    /// Put behind each document.
    pub eos: Option<u32>,
    /// Paragraphs are encoded one by one, which changes some ids at their borders.
    pub segment: bool,
    /// Groups of files, unless `files_per_process` makes more, and how many are worked on at a time.
    pub processes: usize,
    /// Most files of a group.
    pub files_per_process: Option<usize>,
    /// Turns between two shuffles.
    pub batch_size: usize,
    /// Files of a group that are open at a time.
    pub ring_size: usize,
    /// Whether an open file's turns come by its size instead of evenly.
    pub sample_ring_prop: bool,
    /// A token file has fewer tokens than this; documents are never cut.
    pub max_size: u64,
    /// The numbers of a token file.
    pub dtype: TokenType,
    /// Seed of the order.
    pub seed: u64,
    /// Where texts and names are.
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

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct TokenizeSummary {
    /// The token files.
    pub parts: Vec<PathBuf>,
    /// Their documents.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Texts of nothing but white space, which are left out.
    pub empty: u64,
    /// Lines that are no documents, which are left out.
    pub malformed: u64,
    /// The first [`MAX_NAMED`] of them, by group.
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

/// What will be done: settings that were checked, and files in groups.
pub struct TokenizePlan<'a> {
    tokenizer: &'a Tokenizer,
    settings: TokenizeSettings,
    groups: Vec<Vec<PathBuf>>,
    random: Mersenne,
}

impl<'a> TokenizePlan<'a> {
    /// Checks the settings and puts the files in order.
    ///
    /// # Errors
    /// Settings that no output could come of; no files.
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

    /// The input files of each group. A group begins with those at the end.
    pub fn groups(&self) -> &[Vec<PathBuf>] {
        &self.groups
    }

    /// Does it. `read` is told of every so many bytes of the inputs that were read.
    ///
    /// # Errors
    /// The destination exists and holds something, unless `force` and it holds nothing but token files; a file cannot be
    /// read or written; a document is longer than a token file may be; there is no document at all. Nothing is left behind
    /// then.
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
                    // One group at a time leaves all threads to the encoder.
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
            // Groups that did not come to their end were stopped by one that failed, which is among the others.
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
