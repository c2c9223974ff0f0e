//! Detection of the number type of a headerless file.
//!
//! A headerless file does not record its type, and it can be read as any: uint32 numbers read as uint16 are twice as
//! many tokens, every other one 0. Three signs show a wrong type. The list of documents beside the file counts another
//! number of tokens. If the type read is too wide, numbers lie beyond every vocabulary. If it is too narrow, the upper
//! halves of the true numbers show as zeros, almost without exception. An error is raised only where one of these is
//! certain.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::TokenType;

/// The types of headerless files, the likelier ones first.
const TYPES: [TokenType; 4] = [TokenType::U16, TokenType::U32, TokenType::U64, TokenType::U8];
/// The longest list of documents that is read; a longer one would cost more than it shows.
const MAX_LIST: u64 = 1 << 20;
/// Fewer numbers, or fewer different numbers, show nothing.
const MIN_NUMBERS: usize = 32;
const MIN_DISTINCT: usize = 8;
/// The share of numbers that may be out of place, since a file may be damaged.
const ODD: f64 = 0.02;

/// A type other than `dtype` that fits the numbers of a file, and the reason. `bytes` is the file's length, `head` its
/// beginning; ids are below `vocabulary`.
pub(super) fn other_type(
    path: &Path,
    bytes: u64,
    head: &[u8],
    dtype: TokenType,
    vocabulary: u32,
) -> Option<(TokenType, String)> {
    if let Some((list, count)) = listed(path) {
        let fits = |of: TokenType| count.checked_mul(of.bytes() as u64) == Some(bytes);
        if fits(dtype) {
            return None;
        }
        if let Some(other) = TYPES.into_iter().find(|of| fits(*of)) {
            return Some((other, format!("{list} beside it counts {count} tokens, and the file has {bytes} bytes")));
        }
    }
    let whole = |of: TokenType| bytes.is_multiple_of(of.bytes() as u64);
    let head = Head { head, vocabulary };
    if let Some(wider) = head.wider(dtype).filter(|wider| whole(*wider)) {
        let (count, above) = (wider.bytes() / dtype.bytes(), head.above(dtype));
        return Some((wider, format!("read as {dtype}, of every {count} numbers only the first is more than {above}")));
    }
    if whole(dtype) && !head.is_beyond(dtype) {
        return None;
    }
    let other =
        TYPES.into_iter().find(|of| *of != dtype && whole(*of) && head.fits(*of) && head.wider(*of).is_none())?;
    let why = match whole(dtype) {
        true => format!("read as {dtype}, most of its numbers are {vocabulary} or more, and ids are below that"),
        false => format!("it has {bytes} bytes, which is no multiple of the {} of {dtype}", dtype.bytes()),
    };
    Some((other, why))
}

/// The beginning of a file, and the size of the vocabulary.
struct Head<'a> {
    head: &'a [u8],
    vocabulary: u32,
}

impl Head<'_> {
    /// The beginning as numbers of a type.
    fn numbers(&self, of: TokenType) -> Vec<u64> {
        let whole = self.head.len() / of.bytes() * of.bytes();
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        self.head[..whole].chunks_exact(of.bytes()).map(number).collect()
    }

    /// Whether the numbers of a type can be ids, and are enough to tell.
    fn fits(&self, of: TokenType) -> bool {
        let numbers = self.numbers(of);
        let holds_all = self.vocabulary == u32::MAX || of.max() >= u64::from(self.vocabulary.saturating_sub(1));
        holds_all && tell(&numbers) && share(&numbers, |number| *number < u64::from(self.vocabulary)) >= 1.0 - ODD
    }

    /// Whether most numbers of a type are beyond the vocabulary.
    fn is_beyond(&self, of: TokenType) -> bool {
        share(&self.numbers(of), |number| *number >= u64::from(self.vocabulary)) > 0.5
    }

    /// The greatest value above the bits of `of` in a wider id: almost 0, since vocabularies have at most some 100,000
    /// tokens, and byte vocabularies few more than 256.
    fn above(&self, of: TokenType) -> u64 {
        let most = if of == TokenType::U8 { 1 } else { 15 };
        match self.vocabulary {
            u32::MAX => 0,
            vocabulary => u64::from(vocabulary).unbounded_shr(8 * of.bytes() as u32).min(most),
        }
    }

    /// The widest type that fits the numbers, if it is wider than `of`.
    fn wider(&self, of: TokenType) -> Option<TokenType> {
        let (bits, above) = (8 * of.bytes(), self.above(of));
        let wider =
            [TokenType::U64, TokenType::U32, TokenType::U16].into_iter().filter(|wide| wide.bytes() > of.bytes());
        wider.into_iter().find(|wide| {
            let numbers = self.numbers(*wide);
            tell(&numbers) && share(&numbers, |number| number >> bits <= above) >= 1.0 - ODD && self.fits(*wide)
        })
    }
}

/// The share of numbers for which a condition holds.
fn share(numbers: &[u64], holds: impl Fn(&u64) -> bool) -> f64 {
    numbers.iter().filter(|number| holds(number)).count() as f64 / numbers.len().max(1) as f64
}

/// Whether there are enough numbers to tell.
fn tell(numbers: &[u64]) -> bool {
    let mut distinct = numbers.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    numbers.len() >= MIN_NUMBERS && distinct.len() >= MIN_DISTINCT
}

/// The name of the list of documents beside a file, and the number of tokens that it counts.
fn listed(path: &Path) -> Option<(String, u64)> {
    let list = path.with_extension("csv.gz");
    let mut file = File::open(&list).ok()?;
    if file.seek(SeekFrom::End(0)).ok()? > MAX_LIST {
        return None;
    }
    file.rewind().ok()?;
    // A decompression bomb is not a list.
    let (mut rows, most) = (Vec::new(), 64 * MAX_LIST);
    MultiGzDecoder::new(file).take(most).read_to_end(&mut rows).ok()?;
    let last = rows.split(|byte| *byte == b'\n').rev().find(|row| !row.trim_ascii().is_empty())?;
    let mut fields = std::str::from_utf8(last).ok()?.split(',').map(|field| field.trim().parse::<u64>());
    let (start, end) = (fields.next()?.ok()?, fields.next()?.ok()?);
    let name = list.file_name()?.to_string_lossy().into_owned();
    (rows.len() as u64 != most && start <= end && end > 0).then_some((name, end))
}
