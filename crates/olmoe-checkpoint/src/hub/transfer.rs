//! The download of the content of one file: it continues an earlier attempt and interrupted connections, and ends with
//! a complete file whose hash is that of the hub.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha1::{Digest, Sha1};
use sha2::Sha256;
use ureq::http::header::{CONTENT_ENCODING, CONTENT_RANGE};
use ureq::http::{Method, Uri};

use super::cache::disk;
use super::client::{Answer, Client, Patience, passing, plain};
use super::names::is_hex;
use super::{ATTEMPTS, DownloadProgress, HubError};

/// Bytes that an attempt has to transfer to reset the count of failures.
const WORTHWHILE: u64 = 1 << 20;
/// Bytes read at a time.
const CHUNK: usize = 1 << 18;

/// The content of one file, and its source.
pub(super) struct Transfer<'a> {
    pub(super) client: &'a Client,
    pub(super) url: Uri,
    /// The name for messages.
    pub(super) name: &'a str,
    /// The tag of the content, usually a hash.
    pub(super) etag: &'a str,
    pub(super) size: Option<u64>,
    pub(super) progress: &'a dyn DownloadProgress,
    /// The error for an answer with a status that refuses the request.
    pub(super) refusal: &'a dyn Fn(&Answer) -> HubError,
}

/// The kind of hash of a tag, by its length.
#[derive(Clone, Copy)]
enum Hash {
    /// Of a large file's content.
    Sha256,
    /// Of a small file as an object of git: after its length.
    GitSha1,
}

impl Transfer<'_> {
    /// Completes the file at `partial`, whose present content is its beginning.
    ///
    /// # Errors
    /// If the content cannot be downloaded or written, the partial file stays for the next attempt. If the content is
    /// wrong, the partial file is removed.
    pub(super) fn run(&self, partial: &Path) -> Result<(), HubError> {
        let hash = match self.etag.len() {
            64 if is_hex(self.etag) => Some(Hash::Sha256),
            40 if is_hex(self.etag) => Some(Hash::GitSha1),
            _ => None,
        };
        if hash.is_none() {
            if self.size.is_none() {
                let reason = format!("it gives neither the size nor a hash of {}", self.name);
                return Err(HubError::Answer { url: plain(&self.url), reason });
            }
            self.progress.note(&format!("{}: the server gives no hash of it; only its size is checked", self.name));
        }
        let mut begun = fs::metadata(partial).is_ok_and(|found| found.len() > 0);
        loop {
            match self.fill(partial).and_then(|()| hash.map_or(Ok(()), |hash| self.check(partial, hash))) {
                // The beginning may have been written by another program, or damaged by a power cut.
                Err(HubError::WrongHash { .. } | HubError::WrongSize { .. }) if begun => {
                    self.progress.note(&format!("{}: the partial file does not match; starting again", self.name));
                    self.remove(partial)?;
                    begun = false;
                }
                Err(error @ (HubError::WrongHash { .. } | HubError::WrongSize { .. })) => {
                    self.remove(partial)?;
                    return Err(error);
                }
                done => return done,
            }
        }
    }

    /// Appends until all bytes are there.
    fn fill(&self, partial: &Path) -> Result<(), HubError> {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(partial);
        let mut file = open.map_err(disk("open", partial))?;
        let mut have = file.metadata().map_err(disk("read", partial))?.len();
        let mut size = self.size;
        let mut patience = Patience::new(self.client, &self.url, ATTEMPTS, self.progress);
        let mut best = have;
        let mut buffer = vec![0; CHUNK];
        loop {
            if size.is_some_and(|size| have > size) {
                have = restart(&mut file, partial)?;
            }
            self.progress.position(have);
            if size == Some(have) {
                return Ok(());
            }
            let answer = match self.client.send(&Method::GET, &self.url, have) {
                Ok(answer) => answer,
                Err(failure) => {
                    patience.failed(failure)?;
                    continue;
                }
            };
            let announced = answer.length();
            match answer.status {
                200 => {
                    if have > 0 {
                        have = restart(&mut file, partial)?;
                    }
                    size = size.or(announced);
                    self.fits(announced, size)?;
                }
                206 => match range(&answer) {
                    Some((begin, total))
                        if begin == have && (size.is_none() || total.is_none_or(|t| Some(t) == size)) =>
                    {
                        size = size.or(total);
                    }
                    _ => {
                        have = restart(&mut file, partial)?;
                        patience.again("the server sent another part of the file than it was asked for", None)?;
                        continue;
                    }
                },
                416 if have > 0 => {
                    if size.is_none() && total(&answer) == Some(have) {
                        return Ok(());
                    }
                    have = restart(&mut file, partial)?;
                    patience.again("the server does not have the rest of the file", None)?;
                    continue;
                }
                status if passing(status) => {
                    patience.refused(&answer)?;
                    continue;
                }
                _ => return Err((self.refusal)(&answer)),
            }
            if let Some(encoding) = answer.header(CONTENT_ENCODING).filter(|&encoding| encoding != "identity") {
                let reason = format!("it sends {} as {encoding}, not as it is", self.name);
                return Err(HubError::Answer { url: plain(&self.url), reason });
            }
            file.seek(SeekFrom::Start(have)).map_err(disk("write", partial))?;
            let mut reader = answer.into_reader();
            let cut = loop {
                let count = match reader.read(&mut buffer) {
                    Ok(0) if size.is_none() => return Ok(()),
                    Ok(0) => break "the connection ended early".to_owned(),
                    Ok(count) => count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => break format!("the connection was cut ({error})"),
                };
                self.fits(Some(have + count as u64), size.filter(|&size| have + count as u64 > size))?;
                file.write_all(&buffer[..count]).map_err(|error| match disk("write", partial)(error) {
                    HubError::DiskFull { path, source, .. } => {
                        HubError::DiskFull { path, needed: size.map(|size| size - have), source }
                    }
                    other => other,
                })?;
                have += count as u64;
                self.progress.position(have);
                // A body without an announced end would go on for ever on a connection that stays open.
                if size == Some(have) {
                    break String::new();
                }
            };
            if size == Some(have) {
                continue;
            }
            if have >= best + WORTHWHILE {
                patience.renew();
            }
            best = best.max(have);
            patience.again(&format!("{}: {cut} at byte {have}", self.name), None)?;
        }
    }

    /// Refuses another size than the hub's.
    fn fits(&self, found: Option<u64>, expected: Option<u64>) -> Result<(), HubError> {
        match (found, expected) {
            (Some(found), Some(expected)) if found != expected => {
                Err(HubError::WrongSize { file: self.name.to_owned(), found, expected })
            }
            _ => Ok(()),
        }
    }

    /// Reads the file back from the disk and compares its hash.
    fn check(&self, partial: &Path, hash: Hash) -> Result<(), HubError> {
        let mut file = File::open(partial).map_err(disk("open", partial))?;
        let length = file.metadata().map_err(disk("read", partial))?.len();
        let (algorithm, found) = match hash {
            Hash::Sha256 => ("SHA-256", digest(&mut file, Sha256::new())),
            Hash::GitSha1 => ("git SHA-1", digest(&mut file, Sha1::new_with_prefix(format!("blob {length}\0")))),
        };
        let found = found.map_err(disk("read", partial))?;
        if found == self.etag {
            return Ok(());
        }
        Err(HubError::WrongHash { file: self.name.to_owned(), algorithm, found, expected: self.etag.to_owned() })
    }

    fn remove(&self, partial: &Path) -> Result<(), HubError> {
        fs::remove_file(partial).map_err(disk("remove", partial))
    }
}

/// Empties the file.
fn restart(file: &mut File, partial: &Path) -> Result<u64, HubError> {
    file.set_len(0).map_err(disk("empty", partial))?;
    Ok(0)
}

/// Where the part sent begins, and how long the whole is.
fn range(answer: &Answer) -> Option<(u64, Option<u64>)> {
    let range = answer.header(CONTENT_RANGE)?.strip_prefix("bytes ")?;
    let (begin, rest) = range.split_once('-')?;
    let (_, total) = rest.split_once('/')?;
    Some((begin.parse().ok()?, if total == "*" { None } else { Some(total.parse().ok()?) }))
}

/// How long the whole is, from the refusal of a part.
fn total(answer: &Answer) -> Option<u64> {
    answer.header(CONTENT_RANGE)?.strip_prefix("bytes */")?.parse().ok()
}

/// The hash of what is left in a file, in lower-case hexadecimal.
fn digest(file: &mut File, mut hash: impl Digest) -> std::io::Result<String> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut text = String::new();
    for byte in hash.finalize().iter() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}
