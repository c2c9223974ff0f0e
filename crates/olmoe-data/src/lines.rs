//! Decompressed files and their lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::white_space::without_mark;

/// Most bytes of a line.
pub const MAX_LINE_BYTES: u64 = 1 << 28;
const BUFFER: usize = 1 << 18;

/// The content of a file, decompressed. The ending of its name tells the compression, `.gz` or `.zst`; with any other
/// ending, its first bytes tell. `read` is called with the number of bytes of the file read since its last call.
///
/// # Errors
/// Errors of the system; archives of other kinds are [`io::ErrorKind::Unsupported`].
pub(crate) fn unpacked<'a>(path: &Path, read: &'a (dyn Fn(u64) + Sync)) -> io::Result<Box<dyn BufRead + Send + 'a>> {
    let mut file = BufReader::with_capacity(BUFFER, Counted { file: File::open(path)?, read });
    let name = path.extension().and_then(|end| end.to_str()).map(str::to_ascii_lowercase);
    let packing = match (name.as_deref(), file.fill_buf()?) {
        (Some(name @ ("gz" | "zst" | "bz2" | "xz")), _) => Some(name),
        (_, [0x1F, 0x8B, ..]) => Some("gz"),
        (_, [0x28, 0xB5, 0x2F, 0xFD, ..]) => Some("zst"),
        _ => None,
    };
    let input: Box<dyn BufRead + Send + 'a> = match packing {
        Some("gz") => Box::new(BufReader::with_capacity(BUFFER, Members { input: Some(Member::Between(file)) })),
        Some("zst") => Box::new(BufReader::with_capacity(BUFFER, Frames { decoder: FrameDecoder::new(), input: file })),
        Some("bz2" | "xz") => {
            let text = "files packed with bzip2 or xz are not read; unpack them or use gzip or zstd";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        _ => Box::new(file),
    };
    Ok(input)
}

/// Fails if the first bytes show an encoding other than UTF-8.
pub(crate) fn check_encoding(start: &[u8]) -> io::Result<()> {
    if matches!(start, [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..]) {
        let text = "the text is UTF-16; convert it to UTF-8 first";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(())
}

/// The lines of a file, without blank ones.
pub(crate) struct Lines<'a> {
    input: Box<dyn BufRead + Send + 'a>,
    /// The bytes read last: a line, or several where some end in `\r` alone.
    bytes: Vec<u8>,
    /// Where in these bytes the next line begins.
    next: usize,
    line: u64,
}

impl<'a> Lines<'a> {
    /// Opens a file or a pipe, as [`unpacked`] does.
    pub(crate) fn open(path: &Path, read: &'a (dyn Fn(u64) + Sync)) -> io::Result<Lines<'a>> {
        Ok(Lines { input: unpacked(path, read)?, bytes: Vec::new(), next: 0, line: 0 })
    }

    /// The last line that was read, from 1.
    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    /// The next line that is not blank.
    ///
    /// # Errors
    /// Errors of the system or of the decoder; the file cannot be read further.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        while self.read_line()? {
            let rest = &self.bytes[self.next..];
            let start = self.next;
            let end = start + rest.iter().position(|byte| *byte == b'\r').unwrap_or(rest.len());
            self.next = end + 1;
            self.line += 1;
            if !self.bytes[start..end].iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(&self.bytes[start..end]));
            }
        }
        Ok(None)
    }

    /// Makes a line begin at `next`; returns false at the end of the file.
    fn read_line(&mut self) -> io::Result<bool> {
        if self.next < self.bytes.len() {
            return Ok(true);
        }
        self.bytes.clear();
        self.next = 0;
        let read = (&mut self.input).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut self.bytes)?;
        if read as u64 > MAX_LINE_BYTES {
            let text = format!("line {} has more than {MAX_LINE_BYTES} bytes; split the document", self.line + 1);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if self.line == 0 {
            check_encoding(&self.bytes)?;
            let mark = self.bytes.len() - without_mark(&self.bytes).len();
            self.bytes.drain(..mark);
        }
        if self.bytes.last() == Some(&b'\n') {
            self.bytes.pop();
            if self.bytes.last() != Some(&b'\r') {
                // An empty line counts as a line, too.
                self.bytes.push(b'\r');
            }
        }
        Ok(read > 0)
    }
}

/// A reader that reports the bytes it has read.
struct Counted<'a> {
    file: File,
    read: &'a (dyn Fn(u64) + Sync),
}

impl Read for Counted<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(bytes)?;
        (self.read)(count as u64);
        Ok(count)
    }
}

/// All members of a gzip file, one after the other. Zeros after a member are skipped: tapes and some programs pad with
/// them, and `gzip` and Python's `gzip` skip them, too.
struct Members<R: BufRead> {
    /// None after an error.
    input: Option<Member<R>>,
}

enum Member<R: BufRead> {
    /// Before the first member, or after one.
    Between(R),
    Inside(Box<GzDecoder<R>>),
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.input.take() {
                None => return Err(io::Error::other("the archive is damaged")),
                Some(Member::Between(mut input)) => {
                    let next = input.fill_buf()?.iter().position(|byte| *byte != 0);
                    match (next, input.fill_buf()?.len()) {
                        (None, 0) => {
                            self.input = Some(Member::Between(input));
                            return Ok(0);
                        }
                        (None, zeros) => {
                            input.consume(zeros);
                            self.input = Some(Member::Between(input));
                        }
                        (Some(zeros), _) => {
                            input.consume(zeros);
                            self.input = Some(Member::Inside(Box::new(GzDecoder::new(input))));
                        }
                    }
                }
                Some(Member::Inside(mut member)) => match member.read(bytes)? {
                    0 if !bytes.is_empty() => self.input = Some(Member::Between(member.into_inner())),
                    count => {
                        self.input = Some(Member::Inside(member));
                        return Ok(count);
                    }
                },
            }
        }
    }
}

/// The decompressed bytes of zstd frames in memory.
pub(crate) fn zstd_frames(bytes: &[u8]) -> impl Read {
    Frames { decoder: FrameDecoder::new(), input: bytes }
}

/// All frames of a zstd file.
struct Frames<R: BufRead> {
    decoder: FrameDecoder,
    input: R,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let wrong = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
        // Between frames, what follows is the beginning of a frame or the end of the file.
        while self.decoder.can_collect() == 0 {
            if !self.decoder.is_finished() {
                let decoded = self.decoder.decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1));
                decoded.map_err(|error| wrong(error.to_string()))?;
                continue;
            }
            let sums = (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
            if let (Some(expected), Some(found)) = sums
                && expected != found
            {
                return Err(wrong(format!(
                    "the checksum of the content is {found:#x}, and the file gives {expected:#x}"
                )));
            }
            if self.input.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match self.decoder.reset(&mut self.input) {
                Ok(()) => {}
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.input).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(wrong(error.to_string())),
            }
        }
        self.decoder.read(bytes)
    }
}
