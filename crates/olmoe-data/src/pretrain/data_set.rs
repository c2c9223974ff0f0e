//! Token files cut into instances of one length.

use std::path::{Path, PathBuf};

use super::{DataError, RepetitionFilter};
use crate::token_file::{TokenFile, TokenType};

/// What a data set is made of.
#[derive(Clone, Debug)]
pub struct DataSettings {
    /// The token files, in order. Of OLMo's `data.datasets` it is the files of all labels, labels sorted.
    pub paths: Vec<PathBuf>,
    /// For each file one of bytes, 0 or 1, for each token: 0 takes the token out of the loss.
    pub label_mask_paths: Option<Vec<PathBuf>>,
    /// How often each file is seen in an epoch: 1 is once, 2.5 is each instance twice and every other one a third time.
    ///
    /// Instance `i` of a file with the ratio r is there ⌊(i+1)·r⌋ − ⌊i·r⌋ times: evenly spread, the same in every epoch, and
    /// a file of n instances counts as ⌊n·r⌋.
    pub ratios: Option<Vec<f64>>,
    /// The numbers of headerless files.
    pub dtype: TokenType,
    /// Tokens of an instance. What is left at the end of a file is not used.
    pub sequence_length: usize,
    /// Ids are below it.
    pub vocabulary: u32,
    /// Takes instances that repeat themselves out of the loss.
    pub instance_filter: Option<RepetitionFilter>,
    /// The end of document, where the lengths of documents are wanted: OLMo's `generate_doc_lengths`.
    pub doc_lengths: Option<u32>,
    /// The padding token, where it is to be masked: OLMo's `generate_attention_mask`.
    pub attention_mask: Option<u32>,
}

impl DataSettings {
    /// uint16 files, instances of so many tokens, and nothing else.
    pub fn new(paths: Vec<PathBuf>, sequence_length: usize) -> DataSettings {
        DataSettings {
            paths,
            label_mask_paths: None,
            ratios: None,
            dtype: TokenType::U16,
            sequence_length,
            vocabulary: u32::MAX,
            instance_filter: None,
            doc_lengths: None,
            attention_mask: None,
        }
    }
}

/// Token files cut into instances.
#[derive(Debug)]
pub struct DataSet {
    settings: DataSettings,
    files: Vec<Source>,
    instances: u32,
}

/// A file and its share.
#[derive(Debug)]
struct Source {
    tokens: TokenFile,
    mask: Option<TokenFile>,
    ratio: f64,
    /// One past its last instance in the data set.
    end: u32,
}

impl DataSet {
    /// Looks at all files.
    ///
    /// # Errors
    /// Settings that contradict each other, files that are missing or of a wrong size, and not a single instance.
    pub fn open(settings: DataSettings) -> Result<DataSet, DataError> {
        let expected = settings.paths.len();
        let lists = [
            ("data.label_mask_paths", settings.label_mask_paths.as_ref().map(Vec::len)),
            ("data.ratios", settings.ratios.as_ref().map(Vec::len)),
        ];
        for (key, found) in lists {
            if let Some(found) = found.filter(|found| *found != expected) {
                return Err(DataError::Entries { key, found, expected });
            }
        }
        let length = settings.sequence_length as u64;
        if length == 0 || length > u64::from(u32::MAX) {
            let (key, expected) = ("model.max_sequence_length", "from 1 to 4294967295");
            return Err(DataError::Setting { key, value: length.to_string(), expected });
        }
        let mut files = Vec::with_capacity(expected);
        let mut instances = 0u128;
        for (i, path) in settings.paths.iter().enumerate() {
            let tokens = TokenFile::open_for(path, settings.dtype, settings.vocabulary)?;
            let mask = match settings.label_mask_paths.as_ref().and_then(|masks| masks.get(i)) {
                Some(mask) => Some(TokenFile::open(mask, TokenType::U8)?),
                None => None,
            };
            if let Some(mask) = mask.as_ref().filter(|mask| mask.len() != tokens.len()) {
                let (mask, found) = (mask.path().to_owned(), mask.len());
                return Err(DataError::MaskLength { mask, found, path: path.clone(), expected: tokens.len() });
            }
            let ratio = settings.ratios.as_ref().and_then(|ratios| ratios.get(i)).copied().unwrap_or(1.0);
            if !(ratio.is_finite() && ratio >= 0.0) {
                let expected = "0 or more, and finite";
                let value = format!("{ratio} for {}", path.display());
                return Err(DataError::Setting { key: "data.ratios", value, expected });
            }
            // A float that is too large becomes the largest number, which is refused.
            instances += u128::from(copies_before(tokens.len() / length, ratio));
            if instances >= u128::from(u32::MAX) {
                return Err(DataError::TooMany { instances });
            }
            files.push(Source { tokens, mask, ratio, end: instances as u32 });
        }
        if instances == 0 {
            return Err(DataError::Empty { files: expected, length: settings.sequence_length });
        }
        Ok(DataSet { settings, files, instances: instances as u32 })
    }

    /// Instances of an epoch.
    pub fn len(&self) -> u32 {
        self.instances
    }

    /// Whether there is none; an open data set has some.
    pub fn is_empty(&self) -> bool {
        self.instances == 0
    }

    /// What it was made of.
    pub fn settings(&self) -> &DataSettings {
        &self.settings
    }

    /// Which file an instance lies in, and its first token there.
    ///
    /// # Errors
    /// [`DataError::NoSuchInstance`].
    pub fn locate(&self, index: u32) -> Result<(usize, u64), DataError> {
        let file = self.files.partition_point(|source| source.end <= index);
        let Some(source) = self.files.get(file) else {
            return Err(DataError::NoSuchInstance { index, instances: self.instances });
        };
        let start = if file == 0 { 0 } else { self.files[file - 1].end };
        let place = nth_copy(u64::from(index - start), source.ratio);
        Ok((file, place * self.settings.sequence_length as u64))
    }

    /// Its files, each with how often it is seen in an epoch.
    pub fn files(&self) -> impl Iterator<Item = (&TokenFile, f64)> {
        self.files.iter().map(|source| (&source.tokens, source.ratio))
    }

    /// The path of a file.
    pub fn path(&self, file: usize) -> Option<&Path> {
        self.settings.paths.get(file).map(PathBuf::as_path)
    }

    /// Reads the ids of an instance and, if there are masks and `mask` is given, its mask; both as long as an instance.
    /// `bytes` is for reading into. Returns the file.
    ///
    /// # Errors
    /// No such instance, a file that cannot be read, an id or a mask out of range.
    pub fn read(
        &self,
        index: u32,
        ids: &mut [u32],
        mask: Option<&mut [bool]>,
        bytes: &mut Vec<u8>,
    ) -> Result<usize, DataError> {
        let (file, start) = self.locate(index)?;
        let source = &self.files[file];
        if let (Some(mask), Some(masks)) = (mask, &source.mask) {
            // The place of the ids serves to read the mask first.
            masks.read(start, ids, 2, bytes)?;
            mask.iter_mut().zip(&*ids).for_each(|(keep, number)| *keep = *number == 1);
        }
        source.tokens.read(start, ids, self.settings.vocabulary, bytes)?;
        Ok(file)
    }
}

/// How many copies come before instance `i` of a file.
fn copies_before(i: u64, ratio: f64) -> u64 {
    (i as f64 * ratio).floor() as u64
}

/// The instance that copy `k` is one of. The ratio is above 0, since there is a copy.
fn nth_copy(k: u64, ratio: f64) -> u64 {
    if ratio == 1.0 {
        return k;
    }
    // Right but for rounding.
    let mut i = (k as f64 / ratio) as u64;
    while copies_before(i + 1, ratio) <= k {
        i += 1;
    }
    while copies_before(i, ratio) > k {
        i -= 1;
    }
    i
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_spread_evenly() {
        for ratio in [0.001, 0.1, 1.0 / 3.0, 0.5, 0.7, 0.999, 1.0, 1.5, 2.0, 2.5, std::f64::consts::PI, 10.1] {
            let instances = 1000;
            let mut expected = Vec::new();
            for i in 0..instances {
                let copies = copies_before(i + 1, ratio) - copies_before(i, ratio);
                assert!(copies.abs_diff(ratio as u64) <= 1, "{ratio}");
                expected.extend(std::iter::repeat_n(i, copies as usize));
            }
            let total = copies_before(instances, ratio);
            assert_eq!((0..total).map(|k| nth_copy(k, ratio)).collect::<Vec<_>>(), expected, "{ratio}");
        }
        for (k, ratio) in [(4_000_000_000, 0.3), (4_294_967_294, 1e-3), (4_294_967_294, 1e6)] {
            let i = nth_copy(k, ratio);
            assert!(copies_before(i, ratio) <= k && k < copies_before(i + 1, ratio), "{k} {ratio}");
        }
    }
}
