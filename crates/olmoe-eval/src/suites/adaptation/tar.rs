//! Texts of a packed archive (`.tar.gz`), as far as a repository of small files needs it: the format ustar and its
//! predecessors (POSIX.1-1988), without links and long names.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

const BLOCK: usize = 512;
/// The most bytes of an archive that are unpacked.
const MAX_BYTES: u64 = 256 << 20;

/// The files with their paths, those that are not UTF-8 left out.
pub(super) fn texts(path: &Path) -> io::Result<Vec<(String, String)>> {
    let mut bytes = Vec::new();
    MultiGzDecoder::new(File::open(path)?).take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(invalid(format!("more than {MAX_BYTES} bytes; unpack the archive")));
    }
    let mut all = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((header, after)) = rest.split_first_chunk::<BLOCK>() {
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let size = size(&header[124..136]).ok_or_else(|| invalid("a header without a size".to_owned()))?;
        if size > after.len() {
            return Err(invalid(format!("{} bytes where a file of {size} is to come", after.len())));
        }
        let is_file = matches!(header[156], 0 | b'0');
        if let (true, Some(name), Ok(text)) = (is_file, name(header), str::from_utf8(&after[..size])) {
            all.push((name, text.to_owned()));
        }
        rest = after.get(size.next_multiple_of(BLOCK)..).unwrap_or_default();
    }
    Ok(all)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it is no tar archive, or is cut off: {what}"))
}

/// A number in octal digits.
fn size(field: &[u8]) -> Option<usize> {
    let text = str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    usize::from_str_radix(text, 8).ok()
}

fn name(header: &[u8; BLOCK]) -> Option<String> {
    let text = |field: &[u8]| {
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        str::from_utf8(&field[..end]).ok().map(str::to_owned)
    };
    let name = text(&header[..100])?;
    match text(&header[345..500])? {
        prefix if header[257..].starts_with(b"ustar\0") && !prefix.is_empty() => Some(format!("{prefix}/{name}")),
        _ => Some(name),
    }
}
