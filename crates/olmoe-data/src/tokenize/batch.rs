//! The documents between two shuffles, encoded.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::text::{bounded, encode_paragraphs, puts_space_before};
use super::{TokenizeSettings, TokenizeSummary};
use crate::documents::{Document, Malformed};
use crate::white_space::stripped;
use crate::{Tokenizer, TokenizerError};

/// Texts are encoded together once they have this many bytes.
const TEXT_BYTES: usize = 4 << 20;

/// A document whose tokens are in the batch.
pub(super) struct EncodedDocument {
    pub(super) id: String,
    pub(super) source: Arc<str>,
    pub(super) line: u64,
    pub(super) tokens: u64,
    bytes: Range<usize>,
}

/// Documents, with their ids as the numbers of the token file.
pub(super) struct EncodedDocuments<'a> {
    tokenizer: &'a Tokenizer,
    settings: &'a TokenizeSettings,
    all_threads: bool,
    /// Whether the tokenizer puts a space before a text; determined only if paragraphs are encoded one by one.
    spaced: bool,
    pub(super) documents: Vec<EncodedDocument>,
    numbers: Vec<u8>,
    /// The texts not yet encoded; they belong to the last documents.
    texts: Vec<String>,
    text_bytes: usize,
    sources: Vec<(Arc<str>, String)>,
}

impl<'a> EncodedDocuments<'a> {
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        settings: &'a TokenizeSettings,
        all_threads: bool,
    ) -> EncodedDocuments<'a> {
        EncodedDocuments {
            tokenizer,
            settings,
            all_threads,
            spaced: settings.segment && puts_space_before(tokenizer),
            documents: Vec::new(),
            numbers: Vec::new(),
            texts: Vec::new(),
            text_bytes: 0,
            sources: Vec::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.documents.clear();
        self.numbers.clear();
        self.sources.clear();
    }

    /// The numbers of a document's ids.
    pub(super) fn numbers(&self, document: &EncodedDocument) -> &[u8] {
        &self.numbers[document.bytes.clone()]
    }

    /// Adds a document of a file.
    pub(super) fn add(&mut self, document: Document, path: &Path, summary: &mut TokenizeSummary) {
        let (source, hash) = self.source(path);
        let id = document.id.unwrap_or_else(|| format!("{hash}-{}", document.line));
        self.documents.push(EncodedDocument { id, source, line: document.line, tokens: 0, bytes: 0..0 });
        self.text_bytes += document.text.len();
        self.texts.push(document.text);
        if self.text_bytes >= TEXT_BYTES {
            self.encode(summary);
        }
    }

    /// The name of a file, and the prefix of names of documents without a name.
    fn source(&mut self, path: &Path) -> (Arc<str>, String) {
        let text = path.to_string_lossy();
        if let Some((source, hash)) = self.sources.iter().find(|(source, _)| **source == *text) {
            return (source.clone(), hash.clone());
        }
        let unnamed = self.settings.fields.id.is_none();
        let digest = if unnamed { Sha256::digest(text.as_bytes()).to_vec() } else { Vec::new() };
        let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.sources.push((text.into(), hash));
        self.source(path)
    }

    /// Encodes the texts that are not encoded yet.
    pub(super) fn encode(&mut self, summary: &mut TokenizeSummary) {
        let texts = std::mem::take(&mut self.texts);
        self.text_bytes = 0;
        let first = self.documents.len() - texts.len();
        let mut documents = self.documents.split_off(first).into_iter();
        let stripped: Vec<&str> = texts.iter().map(|text| stripped(text)).collect();
        let together = if self.all_threads && !self.settings.segment {
            // If a text cannot be encoded, the texts are encoded one by one to find out which.
            self.tokenizer.encode_batch(&stripped).ok()
        } else {
            None
        };
        let mut push = |this: &mut Self, ids: Result<Vec<u32>, TokenizerError>| {
            let Some(document) = documents.next() else { return };
            match ids {
                Ok(ids) => this.push(document, ids),
                Err(error) => {
                    let path = Path::new(&*document.source).to_owned();
                    summary.note(Malformed { path, line: document.line, reason: error.to_string() });
                }
            }
        };
        match together {
            Some(all) => all.into_iter().for_each(|ids| push(self, Ok(ids))),
            None => {
                for text in stripped {
                    let ids = match self.settings.segment {
                        true => encode_paragraphs(self.tokenizer, self.spaced, text),
                        false => self.tokenizer.encode(text),
                    };
                    push(self, ids);
                }
            }
        }
    }

    fn push(&mut self, mut document: EncodedDocument, ids: Vec<u32>) {
        let ids = bounded(ids, self.settings);
        let start = self.numbers.len();
        self.settings.dtype.write(&ids, &mut self.numbers);
        (document.tokens, document.bytes) = (ids.len() as u64, start..self.numbers.len());
        self.documents.push(document);
    }
}
