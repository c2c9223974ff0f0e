//! Token files cut into instances of one length.

use std::path::{Path, PathBuf};

use super::{DataError, RepetitionFilter};
use crate::token_file::{TokenFile, TokenType};

/// The settings of a data set.
#[derive(Clone, Debug)]
pub struct DataSettings {
    /// The token files, in order. From OLMo's `data.datasets`, these are the files of all labels, in the order of the
    /// sorted labels.
    pub paths: Vec<PathBuf>,
    /// For each token file a mask file with a byte, 0 or 1, for each token: 0 takes the token out of the loss.
    pub label_mask_paths: Option<Vec<PathBuf>>,
    /// How often each file is seen in an epoch: 1 is once; 2.5 is twice, and every other instance a third time.
    ///
    /// Instance `i` of a file with the ratio r occurs ⌊(i+1)·r⌋ − ⌊i·r⌋ times. So copies are evenly spread and the same
    /// in every epoch, and a file of n instances counts as ⌊n·r⌋.
    pub ratios: Option<Vec<f64>>,
    /// The number type of headerless files.
    pub dtype: TokenType,
    /// Tokens of an instance. Tokens left over at the end of a file are not used.
    pub sequence_length: usize,
    /// The size of the vocabulary; all ids are below it.
    pub vocabulary: u32,
    /// Takes repetitive instances out of the loss.
    pub instance_filter: Option<RepetitionFilter>,
    /// The end-of-document token; None: lengths of documents are not computed. OLMo's `generate_doc_lengths`.
    pub doc_lengths: Option<u32>,
    /// The padding token; None: padding is not masked. OLMo's `generate_attention_mask`.
    pub attention_mask: Option<u32>,
}

impl DataSettings {
    /// Settings for uint16 files and instances of this many tokens, without any option.
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

/// A file and its instances.
#[derive(Debug)]
struct Source {
    tokens: TokenFile,
    mask: Option<TokenFile>,
    ratio: f64,
    /// One past its last instance in the data set.
    end: u32,
}

impl DataSet {
    /// Opens all files and checks their sizes.
    ///
    /// # Errors
    /// Settings that contradict each other, files that are missing or of a wrong size, or not a single instance.
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
            // A float beyond the range of the integer saturates, and the maximum is refused.
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

    /// The number of instances of an epoch.
    pub fn len(&self) -> u32 {
        self.instances
    }

    /// Whether there is no instance; an open data set has at least one.
    pub fn is_empty(&self) -> bool {
        self.instances == 0
    }

    /// The settings of the data set.
    pub fn settings(&self) -> &DataSettings {
        &self.settings
    }

    /// The file that an instance lies in, and its first token there.
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

    /// The files, each with how often it is seen in an epoch.
    pub fn files(&self) -> impl Iterator<Item = (&TokenFile, f64)> {
        self.files.iter().map(|source| (&source.tokens, source.ratio))
    }

    /// The path of a file.
    pub fn path(&self, file: usize) -> Option<&Path> {
        self.settings.paths.get(file).map(PathBuf::as_path)
    }

    /// Reads the ids of an instance and, if there are masks and `mask` is given, its mask; both are as long as an
    /// instance. `bytes` is a scratch buffer. Returns the index of the file.
    ///
    /// # Errors
    /// No such instance, a file that cannot be read, or an id or mask byte out of range.
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
            // The space of the ids serves as scratch for the mask first.
            masks.read(start, ids, 2, bytes)?;
            mask.iter_mut().zip(&*ids).for_each(|(keep, number)| *keep = *number == 1);
        }
        source.tokens.read(start, ids, self.settings.vocabulary, bytes)?;
        Ok(file)
    }
}

/// How many copies of earlier instances of a file come before those of instance `i`.
fn copies_before(i: u64, ratio: f64) -> u64 {
    (i as f64 * ratio).floor() as u64
}

/// The instance that copy `k` belongs to. The ratio is above 0, since there is a copy.
fn nth_copy(k: u64, ratio: f64) -> u64 {
    if ratio == 1.0 {
        return k;
    }
    // The quotient is right except for rounding, which this corrects.
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
