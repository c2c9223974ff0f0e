//! A group of files: documents in turn from a ring of open files, shuffled batch by batch.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::batch::EncodedDocuments;
use super::error::TokenizeError;
use super::part::{DocumentEntry, TokenFilePart};
use super::{TokenizeSettings, TokenizeSummary};
use crate::Tokenizer;
use crate::documents::{Document, Documents};
use crate::random::Mersenne;
use crate::white_space::stripped;

/// Cuts files into groups of equal size, as far as possible.
pub(super) fn cut(paths: &[PathBuf], processes: usize, files_per_process: Option<usize>) -> Vec<Vec<PathBuf>> {
    let step = (paths.len() as f64 / processes as f64).min(files_per_process.map_or(f64::INFINITY, |n| n as f64));
    let mut groups = Vec::new();
    let mut at = 0.0f64;
    while at < paths.len() as f64 {
        let end = |at: f64| (at.round_ties_even() as usize).min(paths.len());
        let group = &paths[end(at)..end(at + step)];
        if !group.is_empty() {
            groups.push(group.to_vec());
        }
        at += step;
    }
    groups
}

/// The beginning of the file names of a group: `part-` and its number, padded to the digits of the number of groups.
pub(super) fn stem(number: usize, groups: usize) -> String {
    let mut digits = 1;
    while 10usize.checked_pow(digits).is_some_and(|power| power < groups + 1) {
        digits += 1;
    }
    format!("part-{number:0width$}", width = digits as usize)
}

/// A group to process.
pub(super) struct Group<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) settings: &'a TokenizeSettings,
    pub(super) stem: String,
    pub(super) folder: &'a Path,
    pub(super) all_threads: bool,
}

impl Group<'_> {
    /// Writes the token files of the group; returns None if it was told to stop before the end.
    pub(super) fn run(
        &self,
        paths: &[PathBuf],
        mut random: Mersenne,
        read: &(dyn Fn(u64) + Sync),
        stop: &AtomicBool,
    ) -> Result<Option<TokenizeSummary>, TokenizeError> {
        let settings = self.settings;
        let mut summary = TokenizeSummary::default();
        let mut ring = Ring { settings, read, waiting: paths.to_vec(), open: Vec::new(), numpy: None };
        for _ in 0..settings.ring_size.min(paths.len()) {
            ring.open_next()?;
        }
        let mut batch = EncodedDocuments::new(self.tokenizer, settings, self.all_threads);
        let mut part = None;
        while !(ring.waiting.is_empty() && ring.open.is_empty()) {
            for turn in 0..settings.batch_size {
                if stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                // With a ring of one file, the batch may be empty here; the shuffle between two files is still part of
                // the order.
                if ring.open.is_empty() {
                    ring.open_next()?;
                }
                let at = ring.choose(turn);
                match ring.next(at, &mut summary)? {
                    Some(document) => batch.add(document, ring.open[at].documents.path(), &mut summary),
                    None => {
                        ring.open.remove(at);
                        if ring.open.is_empty() {
                            break;
                        }
                        ring.open_next()?;
                    }
                }
            }
            batch.encode(&mut summary);
            self.write(&mut batch, &mut part, &mut random, &mut summary)?;
            batch.clear();
        }
        if let Some(part) = part {
            part.finish()?;
        }
        Ok(Some(summary))
    }

    /// Shuffles a batch and writes it; documents that do not fit into the token file are shuffled again for the next
    /// one.
    fn write(
        &self,
        batch: &mut EncodedDocuments,
        part: &mut Option<TokenFilePart>,
        random: &mut Mersenne,
        summary: &mut TokenizeSummary,
    ) -> Result<(), TokenizeError> {
        let max_size = self.settings.max_size;
        let mut written = 0;
        while written < batch.documents.len() {
            random.shuffle(&mut batch.documents[written..]);
            let mut open = match part.take() {
                Some(open) => open,
                None => self.next_part(summary)?,
            };
            for document in &batch.documents[written..] {
                let tokens = document.tokens;
                let fits = |held: u64| held.checked_add(tokens).is_some_and(|sum| sum < max_size);
                if !fits(0) {
                    let (path, line) = (PathBuf::from(&*document.source), document.line);
                    return Err(TokenizeError::TooLong { path, line, tokens, max_size });
                }
                if !fits(open.tokens()) {
                    break;
                }
                let entry = DocumentEntry { id: &document.id, source: &document.source, line: document.line, tokens };
                open.add(&entry, batch.numbers(document))?;
                summary.documents += 1;
                summary.tokens += tokens;
                written += 1;
            }
            if written < batch.documents.len() {
                open.finish()?;
            } else {
                *part = Some(open);
            }
        }
        Ok(())
    }

    fn next_part(&self, summary: &mut TokenizeSummary) -> Result<TokenFilePart, TokenizeError> {
        let stem = format!("{}-{:05}", self.stem, summary.parts.len());
        let part = TokenFilePart::create(self.folder, &stem)?;
        summary.parts.push(format!("{stem}.npy").into());
        Ok(part)
    }
}

/// The open files of a group.
struct Ring<'a> {
    settings: &'a TokenizeSettings,
    read: &'a (dyn Fn(u64) + Sync),
    /// Files not yet opened; the next one is taken from the end.
    waiting: Vec<PathBuf>,
    open: Vec<Open<'a>>,
    /// Draws files in proportion to their sizes.
    numpy: Option<Mersenne>,
}

struct Open<'a> {
    documents: Documents<'a>,
    bytes: u64,
}

impl Ring<'_> {
    /// Opens the next waiting file, if there is one.
    fn open_next(&mut self) -> Result<(), TokenizeError> {
        if let Some(path) = self.waiting.pop() {
            let unreadable = |source| TokenizeError::Unreadable { path: path.clone(), line: 0, source };
            let bytes = path.metadata().map_err(unreadable)?.len();
            let documents = Documents::open(&path, &self.settings.fields, self.read).map_err(unreadable)?;
            self.open.push(Open { documents, bytes });
        }
        Ok(())
    }

    /// The index of the file whose turn it is. At least one file is open.
    fn choose(&mut self, turn: usize) -> usize {
        let total: u64 = self.open.iter().map(|open| open.bytes).sum();
        if !self.settings.sample_ring_prop || total == 0 {
            return turn % self.open.len();
        }
        let numpy = self.numpy.get_or_insert_with(|| Mersenne::numpy(self.settings.seed as u32));
        let shares: Vec<f64> = self.open.iter().map(|open| open.bytes as f64 / total as f64).collect();
        numpy.choice(&shares)
    }

    /// The next document of an open file whose text is not empty.
    fn next(&mut self, at: usize, summary: &mut TokenizeSummary) -> Result<Option<Document>, TokenizeError> {
        let documents = &mut self.open[at].documents;
        loop {
            let next = documents.next(&mut |malformed| summary.note(malformed));
            let next = next.map_err(|source| {
                let (path, line) = (documents.path().to_owned(), documents.line());
                TokenizeError::Unreadable { path, line, source }
            })?;
            match next {
                Some(document) if stripped(&document.text).is_empty() => summary.empty += 1,
                next => return Ok(next),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_their_names() {
        let paths: Vec<PathBuf> = (0..7).map(|i| PathBuf::from(i.to_string())).collect();
        let sizes = |processes, most| cut(&paths, processes, most).iter().map(Vec::len).collect::<Vec<_>>();
        // Python: round(0), round(3.5), round(7.0)
        assert_eq!(sizes(2, None), [4, 3]);
        assert_eq!(sizes(1, None), [7]);
        assert_eq!(sizes(4, None), [2, 2, 1, 2]);
        assert_eq!(sizes(9, None), [1; 7]);
        assert_eq!(sizes(1, Some(3)), [3, 3, 1]);
        assert_eq!(sizes(100, Some(3)), [1; 7]);
        for processes in 1..20 {
            assert_eq!(cut(&paths, processes, None).concat(), paths);
        }
        // Python: ceil(log10(groups + 1)) digits
        for (number, groups, expected) in
            [(0, 1, "part-0"), (8, 9, "part-8"), (8, 10, "part-08"), (7, 99, "part-07"), (7, 100, "part-007")]
        {
            assert_eq!(stem(number, groups), expected);
        }
    }
}
