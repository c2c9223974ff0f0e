//! What can go wrong with the hub and its cache, one variant per cause.

use std::path::PathBuf;

use thiserror::Error;

/// Why something could not be had from the hub. The text says what, where, and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// Not the name of a repository.
    #[error("`{text}` is not the name of a repository: {reason}; expected org/name, as in allenai/OLMoE-1B-7B-0924")]
    RepoId {
        /// What was given.
        text: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// Not the name of a revision.
    #[error("`{text}` is not the name of a revision: {reason}; expected a branch, a tag or a commit, as in main")]
    Revision {
        /// What was given.
        text: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// Neither a path nor a model.
    #[error("`{text}` is neither an existing file or folder nor a model of the hub ({source})")]
    Nowhere {
        /// What was given.
        text: String,
        /// Why it names no model.
        source: Box<HubError>,
    },
    /// A server sent a file name that is not accepted.
    #[error("the server lists a file `{text}`, which is refused: {reason}; do not use this repository")]
    FileName {
        /// What it sent.
        text: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// An unusable address of the hub.
    #[error(
        "HF_ENDPOINT `{text}` is not usable: {reason}; expected http(s)://host[:port], as in https://huggingface.co"
    )]
    Endpoint {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A token that no request can carry.
    #[error("the token from {origin} has characters that no token has; it should look like hf_ and letters and digits")]
    Token {
        /// Where it came from.
        origin: String,
    },
    /// No place for the cache.
    #[error("found no folder for downloads: there is no home directory; set HF_HOME to a folder")]
    NoHome,
    /// The processor lacks what encrypted connections need.
    #[error(
        "encrypted connections need a processor with {needs}; download on another machine and copy its cache folder"
    )]
    Processor {
        /// The features needed.
        needs: &'static str,
    },
    /// Access refused for want of a token, or the repository does not exist: the hub does not tell which.
    #[error(
        "{repo}: no such repository, or it is private ({status}); check the spelling; if it is private or gated, set \
         HF_TOKEN to a token of an account that may read it"
    )]
    NoRepo {
        /// The repository.
        repo: String,
        /// Status of the answer.
        status: u16,
    },
    /// A model whose conditions have to be accepted first.
    #[error(
        "{repo} is gated ({status}): accept its conditions at {page} with your account, then set HF_TOKEN to a token \
         of that account"
    )]
    Gated {
        /// The repository.
        repo: String,
        /// Its page.
        page: String,
        /// Status of the answer.
        status: u16,
    },
    /// The token is not accepted.
    #[error("the token was not accepted for {repo} ({status}); check HF_TOKEN, or unset it for a public model")]
    TokenRefused {
        /// The repository.
        repo: String,
        /// Status of the answer.
        status: u16,
    },
    /// No such branch, tag or commit.
    #[error(
        "{repo} has no revision `{revision}`; `olmoe download {repo} --list-revisions` lists its branches and tags"
    )]
    NoRevision {
        /// The repository.
        repo: String,
        /// What was asked for.
        revision: String,
    },
    /// No such file.
    #[error("{repo} has no file `{file}` at revision `{revision}`; run the command again in case it has just changed")]
    NoFile {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
    },
    /// No file fits the patterns.
    #[error("{repo}@{revision}: none of its {count} files fits {patterns}; among them are {sample}")]
    NothingMatches {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The patterns.
        patterns: String,
        /// How many files there are.
        count: usize,
        /// The first of them.
        sample: String,
    },
    /// Another status that means no.
    #[error("{url}: the server answered {status}; check the names, or try again later")]
    Status {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
    },
    /// No useful answer after several attempts.
    #[error(
        "{url}: gave up after {attempts} attempt(s): {reason}; check the network, HF_ENDPOINT and the proxy settings, \
         then run the command again: it goes on where it stopped"
    )]
    Unreachable {
        /// What was asked.
        url: String,
        /// How many attempts in a row failed.
        attempts: usize,
        /// What happened at the last one.
        reason: String,
    },
    /// A connection that trying again will not mend.
    #[error("{url}: cannot connect: {reason}; check HF_ENDPOINT, the certificates and the proxy settings")]
    Connection {
        /// What was asked.
        url: String,
        /// What the connection reported.
        reason: String,
    },
    /// A redirect that is not followed.
    #[error("{url}: refused a redirect to {to}: {reason}; check HF_ENDPOINT and the network")]
    Redirect {
        /// What was asked.
        url: String,
        /// Where it led.
        to: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// An answer that the hub would not give.
    #[error("{url}: {reason}; is HF_ENDPOINT a Hugging Face hub?")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// Another number of bytes than announced.
    #[error(
        "{file}: the server sends {found} bytes, expected {expected}; nothing of it was kept; try again, and check \
         HF_ENDPOINT and the proxy settings"
    )]
    WrongSize {
        /// The file.
        file: String,
        /// Bytes that came or are announced.
        found: u64,
        /// Bytes that the hub lists.
        expected: u64,
    },
    /// Another content than announced.
    #[error(
        "{file}: its {algorithm} is {found}, expected {expected}; nothing of it was kept; try again, and check \
         HF_ENDPOINT and the proxy settings"
    )]
    WrongHash {
        /// The file.
        file: String,
        /// How the hash is computed.
        algorithm: &'static str,
        /// That of what came.
        found: String,
        /// That which the hub lists.
        expected: String,
    },
    /// No room.
    #[error(
        "{}: no room left ({source}){}; make room or set HF_HOME to another disk, then run the command again: it goes \
         on where it stopped",
        path.display(),
        needed.map(|bytes| format!(", {bytes} bytes are missing")).unwrap_or_default()
    )]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// Bytes still to come, if known.
        needed: Option<u64>,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder of the cache could not be used.
    #[error("cannot {action} {}: {source}; check the folder's permissions, or set HF_HOME to another one", path.display())]
    Disk {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Offline, and nothing of that revision is there.
    #[error(
        "offline: {repo}@{revision} is not in {}; run without --offline and HF_HUB_OFFLINE to download it",
        cache.display()
    )]
    NotCached {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The folder of the cache.
        cache: PathBuf,
    },
    /// Offline, and files are missing.
    #[error(
        "offline: {missing} of {repo}@{revision} {} not in {}; run without --offline and HF_HUB_OFFLINE to download",
        if *count == 1 { "is" } else { "are" },
        folder.display()
    )]
    Incomplete {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The first missing files.
        missing: String,
        /// How many are missing.
        count: usize,
        /// The folder of the snapshot.
        folder: PathBuf,
    },
    /// Offline, and only the hub knows the answer.
    #[error("offline: only the hub can list {what}; run without --offline and HF_HUB_OFFLINE")]
    Offline {
        /// What was asked for.
        what: String,
    },
}
