//! Reading at a position, of files and of memory.

use std::fs::File;
use std::io;

/// Bytes that can be read at any position, from several threads at once.
pub trait ReadAt {
    /// Fills all of `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if there are fewer bytes, and errors of the system.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The number of bytes.
    ///
    /// # Errors
    /// Errors of the system.
    fn len(&self) -> io::Result<u64>;

    /// Whether there are no bytes.
    ///
    /// # Errors
    /// Errors of the system.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl ReadAt for File {
    #[cfg(unix)]
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(self, buf, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buf = &mut buf[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok();
        let bytes = from.and_then(|from| self.get(from..from.checked_add(buf.len())?));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(<[u8]>::len(self) as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn check(bytes: &(impl ReadAt + ?Sized)) {
        let mut buf = [0; 3];
        bytes.read_at(2, &mut buf).unwrap();
        assert_eq!(buf, *b"cde");
        bytes.read_at(5, &mut []).unwrap();
        assert_eq!((bytes.len().unwrap(), bytes.is_empty().unwrap()), (5, false));
        for offset in [3, 5, 6, u64::MAX - 1, u64::MAX] {
            assert!(bytes.read_at(offset, &mut buf).is_err(), "{offset}");
        }
    }

    #[test]
    fn files_and_memory_read_alike() {
        check(&b"abcde"[..]);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abcde").unwrap();
        check(&file);
    }
}
