//! The places of the stored entries of a zip archive: the part of the format, including zip64, that PyTorch's files
//! use.
//!
//! The directory at the end of the file is read, and the local header of each entry. Every entry must be stored
//! (neither compressed nor encrypted), lie before the directory, and share no byte with another.

use std::collections::HashMap;
use std::io;

use thiserror::Error;

use crate::pickle::shortened;
use crate::read_at::ReadAt;

/// The largest directory of an archive in bytes.
pub const MAX_DIRECTORY: u64 = 16 << 20;

/// The size of an archive's end record without a comment.
const END: u64 = 22;
/// The size of the zip64 locator, which precedes the end record.
const LOCATOR: u64 = 20;
/// How many bytes of the zip64 end record are read.
const END_64: u64 = 56;
/// The smallest size of a directory entry.
const CENTRAL: u64 = 46;
/// The size of a local header without its name.
const LOCAL: u64 = 30;

/// The place of an entry's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZipEntry {
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// The number of bytes.
    pub bytes: u64,
}

/// Why an archive cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ZipError {
    /// The file cannot be read.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// A file without an end record.
    #[error("no end of a zip archive in the last {END} bytes of {length}; the file is truncated or not a zip archive")]
    NoEnd {
        /// Bytes of the file.
        length: u64,
    },
    /// A record that is missing where another one points to.
    #[error("zip archive, byte {offset}: no {record} here; the file is damaged, copy it again")]
    Record {
        /// The offset of the record.
        offset: u64,
        /// The name of the record.
        record: &'static str,
    },
    /// A directory that lies beyond the end of the file.
    #[error(
        "zip archive: a directory of {bytes} bytes at {offset} does not end before {end}; the file is damaged, copy it again"
    )]
    DirectoryRange {
        /// The offset of the directory.
        offset: u64,
        /// The size of the directory.
        bytes: u64,
        /// The offset of the records after it.
        end: u64,
    },
    /// A directory longer than [`MAX_DIRECTORY`].
    #[error(
        "zip archive: a directory of {bytes} bytes, more than the {MAX_DIRECTORY} that are read; save fewer tensors"
    )]
    DirectoryTooLong {
        /// The size of the directory.
        bytes: u64,
    },
    /// A directory that does not hold the number of entries in the end record.
    #[error("zip archive: the directory is not that of {entries} entries; the file is damaged, copy it again")]
    Directory {
        /// The number of entries in the end record.
        entries: u64,
    },
    /// A name that is not UTF-8.
    #[error("zip archive: the name of entry {index} is not UTF-8; the file is damaged, copy it again")]
    Name {
        /// The index of the entry.
        index: u64,
    },
    /// Two entries with the same name.
    #[error("zip archive: two entries `{name}`; save the file again")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// An entry that is compressed or encrypted.
    #[error(
        "zip archive: `{name}` is compressed (method {method}) or encrypted; save the state dict again with torch.save, which stores entries as they are (if this is a TorchScript program, take its state_dict())"
    )]
    NotStored {
        /// The entry.
        name: String,
        /// The compression method.
        method: u16,
    },
    /// A stored entry with two different sizes.
    #[error("zip archive: `{name}` is stored with {stored} bytes but has {bytes}; the file is damaged, copy it again")]
    Sizes {
        /// The entry.
        name: String,
        /// The size in the archive.
        stored: u64,
        /// The size of the content.
        bytes: u64,
    },
    /// An entry that does not lie before the directory.
    #[error(
        "zip archive: `{name}`, {bytes} bytes with a header at {offset}, does not end before the directory at {end}; the file is damaged, copy it again"
    )]
    Range {
        /// The entry.
        name: String,
        /// The offset of its local header.
        offset: u64,
        /// The size of the entry.
        bytes: u64,
        /// The offset of the directory.
        end: u64,
    },
    /// Two entries that share bytes.
    #[error("zip archive: `{first}` and `{second}` overlap; the file is damaged or malicious")]
    Overlap {
        /// The entry that begins first.
        first: String,
        /// The other entry.
        second: String,
    },
}

type Result<T> = std::result::Result<T, ZipError>;

/// The entries of an archive by name.
pub fn read<R: ReadAt + ?Sized>(source: &R) -> Result<HashMap<String, ZipEntry>> {
    let directory = Directory::find(source)?;
    // The size fits: it is at most MAX_DIRECTORY, and the directory lies inside the file.
    let mut bytes = vec![0; directory.bytes as usize];
    source.read_at(directory.offset, &mut bytes)?;
    let wrong = || ZipError::Directory { entries: directory.entries };

    let mut fields = Fields(&bytes);
    let mut entries = HashMap::new();
    let mut ranges = Vec::new();
    for index in 0..directory.entries {
        let central = fields.central().ok_or_else(wrong)?;
        let name = std::str::from_utf8(central.name).map_err(|_| ZipError::Name { index })?;
        let entry = central.locate(source, name, directory.offset)?;
        if entries.insert(name.to_owned(), entry).is_some() {
            return Err(ZipError::Duplicate { name: shortened(name) });
        }
        ranges.push((central.offset, entry.offset + entry.bytes, name));
    }
    if !fields.0.is_empty() {
        return Err(wrong());
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if pair[0].1 > pair[1].0 {
            return Err(ZipError::Overlap { first: shortened(pair[0].2), second: shortened(pair[1].2) });
        }
    }
    Ok(entries)
}

/// The place of the directory, which lies inside the file and is not too long.
struct Directory {
    offset: u64,
    bytes: u64,
    entries: u64,
}

impl Directory {
    fn find<R: ReadAt + ?Sized>(source: &R) -> Result<Self> {
        let length = source.len()?;
        let no_end = || ZipError::NoEnd { length };
        let mut end = length.checked_sub(END).ok_or_else(no_end)?;
        let mut record = [0; END as usize];
        source.read_at(end, &mut record)?;
        let (mut directory, comment) = Self::from_end(&record).ok_or_else(no_end)?;
        if comment != 0 {
            return Err(no_end());
        }
        if let Some((wide, offset)) = Self::zip64(source, end, &directory)? {
            (directory, end) = (wide, offset);
        }
        let Self { offset, bytes, entries } = directory;
        if offset.checked_add(bytes).is_none_or(|directory_end| directory_end > end) {
            return Err(ZipError::DirectoryRange { offset, bytes, end });
        }
        if bytes > MAX_DIRECTORY {
            return Err(ZipError::DirectoryTooLong { bytes });
        }
        if entries > bytes / CENTRAL {
            return Err(ZipError::Directory { entries });
        }
        Ok(directory)
    }

    /// The directory by the archive's end record, and the length of the comment after it.
    fn from_end(record: &[u8]) -> Option<(Self, u16)> {
        let mut fields = Fields(record);
        if fields.u32()? != 0x0605_4b50 {
            return None;
        }
        let (_disk, _first_disk, _entries_here) = (fields.u16()?, fields.u16()?, fields.u16()?);
        let entries = fields.u16()?.into();
        let (bytes, offset) = (fields.u32()?.into(), fields.u32()?.into());
        Some((Self { offset, bytes, entries }, fields.u16()?))
    }

    /// The directory of an archive whose end record has a number that is too large for it, and the offset of the zip64
    /// end record.
    fn zip64<R: ReadAt + ?Sized>(source: &R, end: u64, narrow: &Self) -> Result<Option<(Self, u64)>> {
        let full = [narrow.entries == 0xffff, narrow.bytes == 0xffff_ffff, narrow.offset == 0xffff_ffff];
        if full == [false; 3] {
            return Ok(None);
        }
        let no_locator = || ZipError::Record { offset: end.saturating_sub(LOCATOR), record: "zip64 locator" };
        let start = end.checked_sub(LOCATOR).ok_or_else(no_locator)?;
        let mut record = [0; LOCATOR as usize];
        source.read_at(start, &mut record)?;
        let offset = Fields(&record).locator().ok_or_else(no_locator)?;

        let no_end = || ZipError::Record { offset, record: "zip64 end record" };
        if offset.checked_add(END_64).is_none_or(|record_end| record_end > start) {
            return Err(no_end());
        }
        let mut record = [0; END_64 as usize];
        source.read_at(offset, &mut record)?;
        let directory = Fields(&record).end_64().ok_or_else(no_end)?;
        Ok(Some((directory, offset)))
    }
}

/// An entry of the directory.
struct Central<'a> {
    flags: u16,
    method: u16,
    stored: u64,
    bytes: u64,
    /// The offset of the local header.
    offset: u64,
    name: &'a [u8],
}

impl Central<'_> {
    /// The place of the entry's bytes, by its local header; they end before `end`.
    fn locate<R: ReadAt + ?Sized>(&self, source: &R, name: &str, end: u64) -> Result<ZipEntry> {
        let Self { offset, bytes, stored, .. } = *self;
        if self.method != 0 || self.flags & 1 != 0 {
            return Err(ZipError::NotStored { name: shortened(name), method: self.method });
        }
        if stored != bytes {
            return Err(ZipError::Sizes { name: shortened(name), stored, bytes });
        }
        let range = || ZipError::Range { name: shortened(name), offset, bytes, end };
        if offset.checked_add(LOCAL).is_none_or(|header_end| header_end > end) {
            return Err(range());
        }
        let mut header = [0; LOCAL as usize];
        source.read_at(offset, &mut header)?;
        let no_header = || ZipError::Record { offset, record: "header of an entry" };
        let (name_bytes, extra_bytes) = Fields(&header).local().ok_or_else(no_header)?;
        if usize::from(name_bytes) != self.name.len() {
            return Err(no_header());
        }
        let start = offset + LOCAL + u64::from(name_bytes) + u64::from(extra_bytes);
        if start.checked_add(bytes).is_none_or(|entry_end| entry_end > end) {
            return Err(range());
        }
        Ok(ZipEntry { offset: start, bytes })
    }
}

/// A reader of consecutive little-endian numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The offset of the zip64 end record.
    fn locator(&mut self) -> Option<u64> {
        if self.u32()? != 0x0706_4b50 {
            return None;
        }
        self.u32()?;
        self.u64()
    }

    /// The directory by the zip64 end record.
    fn end_64(&mut self) -> Option<Directory> {
        if self.u32()? != 0x0606_4b50 {
            return None;
        }
        let (_bytes, _versions) = (self.u64()?, self.u32()?);
        let (_disk, _first_disk) = (self.u32()?, self.u32()?);
        let (_entries_here, entries) = (self.u64()?, self.u64()?);
        let (bytes, offset) = (self.u64()?, self.u64()?);
        Some(Directory { offset, bytes, entries })
    }

    fn central(&mut self) -> Option<Central<'a>> {
        if self.u32()? != 0x0201_4b50 {
            return None;
        }
        let _versions = self.u32()?;
        let (flags, method) = (self.u16()?, self.u16()?);
        let (_time, _checksum) = (self.u32()?, self.u32()?);
        let (stored, bytes) = (self.u32()?, self.u32()?);
        let (name_bytes, extra_bytes, comment_bytes) = (self.u16()?, self.u16()?, self.u16()?);
        let (_disk, _attributes, _more_attributes) = (self.u16()?, self.u16()?, self.u32()?);
        let offset = self.u32()?;
        let name = self.take(name_bytes.into())?;
        let extra = self.take(extra_bytes.into())?;
        self.take(comment_bytes.into())?;

        // Numbers that do not fit are in an extra field, in this order.
        let mut wide = Fields(extra).wide()?;
        let mut widened = |narrow: u32| if narrow == u32::MAX { wide.u64() } else { Some(narrow.into()) };
        let (bytes, stored, offset) = (widened(bytes)?, widened(stored)?, widened(offset)?);
        Some(Central { flags, method, stored, bytes, offset, name })
    }

    /// The zip64 extra field of an entry; empty if there is none.
    fn wide(mut self) -> Option<Self> {
        // Some writers pad with fewer than four bytes.
        while self.0.len() >= 4 {
            let (id, length) = (self.u16()?, self.u16()?);
            let field = self.take(length.into())?;
            if id == 1 {
                return Some(Fields(field));
            }
        }
        Some(Fields(&[]))
    }

    /// The lengths of the name and of the extra fields in a local header.
    fn local(&mut self) -> Option<(u16, u16)> {
        if self.u32()? != 0x0403_4b50 {
            return None;
        }
        self.take(22)?;
        Some((self.u16()?, self.u16()?))
    }
}
