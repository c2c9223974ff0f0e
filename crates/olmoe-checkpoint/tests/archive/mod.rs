//! Zip archives and pickles written byte by byte, right or wrong on purpose.
#![allow(dead_code, reason = "every test program uses a part")]

use olmoe_checkpoint::read_at::ReadAt;

/// An entry of an archive; the fields are what the directory says of it.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) method: u16,
    pub(crate) flags: u16,
    pub(crate) stored: u64,
    pub(crate) bytes: u64,
    /// Added to where the local header lies.
    pub(crate) shift: i64,
    /// Zero bytes between the local header and the data that are not in memory.
    pub(crate) gap: u64,
}

impl Entry {
    pub(crate) fn new(name: &str, data: &[u8]) -> Self {
        let (name, data, bytes) = (name.into(), data.to_vec(), data.len() as u64);
        Self { name, data, method: 0, flags: 0, stored: bytes, bytes, shift: 0, gap: 0 }
    }
}

/// Bytes of which only some are in memory; the others are zero.
#[derive(Default)]
pub(crate) struct Sparse {
    pub(crate) pieces: Vec<(u64, Vec<u8>)>,
    pub(crate) len: u64,
}

impl Sparse {
    fn put(&mut self, bytes: &[u8]) {
        self.pieces.push((self.len, bytes.to_vec()));
        self.len += bytes.len() as u64;
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read_at(0, &mut bytes).unwrap();
        bytes
    }
}

impl ReadAt for Sparse {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        buf.fill(0);
        for (start, bytes) in &self.pieces {
            for (i, &byte) in bytes.iter().enumerate() {
                let at = start + i as u64;
                if (offset..offset + buf.len() as u64).contains(&at) {
                    buf[(at - offset) as usize] = byte;
                }
            }
        }
        Ok(())
    }

    fn len(&self) -> std::io::Result<u64> {
        Ok(self.len)
    }
}

/// An archive of these entries; `gap` zero bytes lie in front of an entry's local header.
pub(crate) fn sparse_zip(entries: &[Entry], wide: bool) -> Sparse {
    let mut file = Sparse::default();
    let mut directory = Vec::new();
    for entry in entries {
        file.len += entry.gap;
        let offset = (file.len as i64 + entry.shift) as u64;
        let narrow = |value: u64| if wide { u32::MAX } else { u32::try_from(value).unwrap_or(u32::MAX) };
        let mut header = b"PK\x03\x04".to_vec();
        header.extend([0; 22]);
        header.extend((entry.name.len() as u16).to_le_bytes());
        header.extend([0; 2]);
        header.extend(&entry.name);
        file.put(&header);
        file.put(&entry.data);

        directory.extend(b"PK\x01\x02\0\0\0\0");
        directory.extend(entry.flags.to_le_bytes());
        directory.extend(entry.method.to_le_bytes());
        directory.extend([0; 8]);
        directory.extend(narrow(entry.stored).to_le_bytes());
        directory.extend(narrow(entry.bytes).to_le_bytes());
        directory.extend((entry.name.len() as u16).to_le_bytes());
        let mut extra = Vec::new();
        for value in [entry.bytes, entry.stored, offset] {
            if narrow(value) == u32::MAX {
                extra.extend(value.to_le_bytes());
            }
        }
        if !extra.is_empty() {
            // Behind a field of another kind.
            extra = [&[9, 9, 2, 0, 7, 7, 1, 0][..], &(extra.len() as u16).to_le_bytes(), &extra].concat();
        }
        directory.extend((extra.len() as u16).to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(narrow(offset).to_le_bytes());
        directory.extend(&entry.name);
        directory.extend(extra);
    }
    let (offset, bytes, count) = (file.len, directory.len() as u64, entries.len() as u64);
    file.put(&directory);
    let wide = wide || offset > u32::MAX.into();
    if wide {
        let end = file.len;
        let mut record = b"PK\x06\x06".to_vec();
        record.extend(44u64.to_le_bytes());
        record.extend([0; 12]);
        for value in [count, count, bytes, offset] {
            record.extend(value.to_le_bytes());
        }
        record.extend(b"PK\x06\x07\0\0\0\0");
        record.extend(end.to_le_bytes());
        record.extend(1u32.to_le_bytes());
        file.put(&record);
    }
    let mut record = b"PK\x05\x06\0\0\0\0".to_vec();
    let count = if wide { u16::MAX } else { count as u16 };
    record.extend(count.to_le_bytes());
    record.extend(count.to_le_bytes());
    record.extend(if wide { u32::MAX } else { bytes as u32 }.to_le_bytes());
    record.extend(if wide { u32::MAX } else { offset as u32 }.to_le_bytes());
    record.extend([0; 2]);
    file.put(&record);
    file
}

/// An archive in memory.
pub(crate) fn zip(entries: &[Entry]) -> Vec<u8> {
    sparse_zip(entries, false).bytes()
}

/// The entries of a file of torch.save: a pickle, and one storage of 24 bytes.
pub(crate) fn entries(pickle: &[u8]) -> Vec<Entry> {
    vec![Entry::new("a/data.pkl", pickle), Entry::new("a/byteorder", b"little"), Entry::new("a/data/0", &[7; 24])]
}

/// A string of less than 256 bytes.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [&[0x8c, text.len() as u8][..], text.as_bytes()].concat()
}

/// An integer.
pub(crate) fn int(value: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &value.to_le_bytes()].concat()
}

pub(crate) fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [&b"("[..], &items.concat(), b"t"].concat()
}

pub(crate) fn ints(values: &[i64]) -> Vec<u8> {
    tuple(&values.iter().map(|&value| int(value)).collect::<Vec<_>>())
}

/// A tensor of the storage `key`, of `elements` f32.
pub(crate) fn tensor(key: &str, elements: i64, first: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let storage = tuple(&[text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(key), text("cpu"), int(elements)]);
    let storage = [&storage[..], b"Q"].concat();
    let arguments = tuple(&[storage, int(first), ints(shape), ints(strides), vec![0x89], b"N".to_vec()]);
    [&b"ctorch._utils\n_rebuild_tensor_v2\n"[..], &arguments, b"R"].concat()
}

/// A dict; keys and values one after the other.
pub(crate) fn dict(items: &[Vec<u8>]) -> Vec<u8> {
    [&b"}("[..], &items.concat(), b"u"].concat()
}

/// A whole pickle.
pub(crate) fn pickle(value: &[u8]) -> Vec<u8> {
    [&b"\x80\x04"[..], value, b"."].concat()
}

/// A file with one tensor, `w`.
pub(crate) fn file(tensor: &[u8]) -> Vec<u8> {
    zip(&entries(&pickle(&dict(&[text("w"), tensor.to_vec()]))))
}
