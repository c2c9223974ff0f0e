//! The Hugging Face hub: the revisions of a model, their files, and downloading these files.
//!
//! Downloads go to the cache of Python's `huggingface_hub`, in its layout. A file gets its name there only when it is
//! complete and its hash is verified. Until then a partial file is kept, from which the next attempt continues. The
//! answers of a server are not trusted: names, sizes, lengths and redirects are checked, and the token is sent to no
//! other host.

mod api;
mod cache;
mod client;
mod error;
mod names;
mod pattern;
mod transfer;

pub use client::{MAX_REDIRECTS, MAX_WAIT, WAITS, passing};
pub use error::HubError;
pub use names::{Location, MAX_NAME, MAX_NAME_PART, MAX_REPO_PART, ModelRef, RepoId, locate};

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use olmoe_data::expanded;
use ureq::http::Method;

use api::About;
use cache::{RepoCache, disk, has_size, read_bounded};
use client::{Answer, Client, Patience, Sleep, plain};
use names::{check_revision, is_commit, shown};
use transfer::Transfer;

/// The default revision.
pub const DEFAULT_REVISION: &str = "main";
/// The address of the default hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Patterns of the files that make up a model: configuration, tokenizer, weights. Other formats of the weights, such as
/// GGUF, have to be named.
pub const MODEL_FILES: &[&str] = &["*.json", "*.jinja", "*.safetensors", "*.txt", "*.yaml"];
/// Longest listing that is accepted, in bytes.
pub const MAX_LISTING_BYTES: usize = 32 << 20;
/// Most files, or branches and tags, that are accepted in a repository.
pub const MAX_FILES: usize = 100_000;
/// Attempts in a row that may fail.
pub const ATTEMPTS: usize = WAITS.len() + 1;
/// Longest token file that is read, in bytes.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Receives the progress of a download.
pub trait DownloadProgress {
    /// A message for the user: a wait, another attempt, a fallback.
    fn note(&self, text: &str);
    /// File `number` of `count` begins.
    fn begin(&self, number: usize, count: usize, file: &str, size: Option<u64>);
    /// The number of bytes of the file on the disk, which can also decrease.
    fn position(&self, bytes: u64);
    /// The file is complete and verified.
    fn end(&self);
}

/// A branch or a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Its name.
    pub name: String,
    /// Whether it is a branch or a tag.
    pub kind: RevisionKind,
    /// The commit it is at.
    pub commit: String,
}

/// The kinds of names that a commit can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevisionKind {
    /// A branch, whose commit changes.
    Branch,
    /// A tag, whose commit stays.
    Tag,
}

/// The files of one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    /// Its files, in the order of the hub.
    pub files: Vec<RepoFile>,
}

/// One file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoFile {
    /// Its path in the repository, with slashes.
    pub name: String,
    /// Its length in bytes, if the hub lists it.
    pub size: Option<u64>,
    git: Option<String>,
    lfs: Option<String>,
}

/// Access to a hub through a cache on disk.
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
    proxy: bool,
    sleep: Sleep,
}

impl Hub {
    /// The public hub, without a token, and a cache in `cache`.
    pub fn new(cache: impl Into<PathBuf>) -> Hub {
        Hub {
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            cache: cache.into(),
            token: None,
            offline: false,
            proxy: true,
            sleep: Arc::new(std::thread::sleep),
        }
    }

    /// The hub and cache that these variables of the environment name, as for Python's `huggingface_hub`:
    ///
    /// - `HF_ENDPOINT`: address of the hub (default [`DEFAULT_ENDPOINT`]);
    /// - `HF_HOME`: folder for everything (default `huggingface` in `XDG_CACHE_HOME` or in `~/.cache`);
    /// - `HF_HUB_CACHE` or `HUGGINGFACE_HUB_CACHE`: folder of the cache (default `$HF_HOME/hub`);
    /// - `HF_TOKEN` or `HUGGING_FACE_HUB_TOKEN`: the token; without them the content of the file `HF_TOKEN_PATH`
    ///   (default `$HF_HOME/token`), if there is one;
    /// - `HF_HUB_OFFLINE`: `1`, `on`, `yes` or `true` to use the cache only.
    ///
    /// # Errors
    /// If there is no home directory and none of the folders is given, or the token has invalid characters.
    pub fn from_environment() -> Result<Hub, HubError> {
        Hub::from_variables(|name| std::env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Hub, HubError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let folder = |name: &str| variable(name).map(|value| expanded(Path::new(&value)));
        let home = folder("HF_HOME")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| home_directory().map(|home| home.join(".cache/huggingface")));
        let cache = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|home| home.join("hub")))
            .ok_or(HubError::NoHome)?;
        let mut hub = Hub::new(cache);
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            hub = hub.endpoint(endpoint.to_string_lossy());
        }
        if let Some(token) = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")) {
            hub = hub.token(&token.to_string_lossy(), "HF_TOKEN")?;
        } else if let Some(path) = folder("HF_TOKEN_PATH").or(home.map(|home| home.join("token")))
            && path.is_file()
        {
            let token = read_bounded(&path, MAX_TOKEN_BYTES).map_err(disk("read", &path))?;
            hub = hub.token(&String::from_utf8_lossy(&token), &path.display().to_string())?;
        }
        let yes = |value: &str| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str());
        Ok(hub.offline(variable("HF_HUB_OFFLINE").is_some_and(|value| yes(&value.to_string_lossy()))))
    }

    /// Another hub: `http(s)://host[:port]`.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Hub {
        self.endpoint = endpoint.into();
        self
    }

    /// The token to send to the hub, and where it comes from, for the error. White space around it is dropped; if
    /// nothing is left there is none.
    ///
    /// # Errors
    /// If it has characters that no token has.
    pub fn token(mut self, token: &str, origin: &str) -> Result<Hub, HubError> {
        let token = token.trim();
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(HubError::Token { origin: origin.to_owned() });
        }
        self.token = (!token.is_empty()).then(|| token.to_owned());
        Ok(self)
    }

    /// Whether to use the cache only.
    pub fn offline(mut self, offline: bool) -> Hub {
        self.offline = offline;
        self
    }

    /// Uses the cache only if `offline` is set, or if that was set before.
    pub fn or_offline(self, offline: bool) -> Hub {
        let offline = offline || self.offline;
        self.offline(offline)
    }

    /// Connects directly and ignores `HTTPS_PROXY` and similar variables, which are honoured by default.
    pub fn without_proxy(mut self) -> Hub {
        self.proxy = false;
        self
    }

    /// Sets the function that waits between attempts; by default the thread sleeps.
    pub fn sleep(mut self, sleep: impl Fn(Duration) + Send + Sync + 'static) -> Hub {
        self.sleep = Arc::new(sleep);
        self
    }

    fn client(&self) -> Result<Client, HubError> {
        Client::new(&self.endpoint, self.token.clone(), self.proxy, self.sleep.clone())
    }

    /// The branches and tags of a repository.
    ///
    /// # Errors
    /// If the hub cannot be reached or refuses.
    pub fn revisions(&self, repo: &RepoId, progress: &dyn DownloadProgress) -> Result<Vec<Revision>, HubError> {
        if self.offline {
            return Err(HubError::Offline { what: format!("the branches and tags of {repo}") });
        }
        api::revisions(&self.client()?, repo, progress)
    }

    /// The files of a revision, and the commit it is at.
    ///
    /// # Errors
    /// If the hub cannot be reached, refuses, or lists what is not accepted.
    pub fn files(&self, repo: &RepoId, revision: &str, progress: &dyn DownloadProgress) -> Result<Listing, HubError> {
        check_revision(revision)?;
        if self.offline {
            return Err(HubError::Offline { what: format!("the files of {repo}@{revision}") });
        }
        api::list(&self.client()?, repo, revision, ATTEMPTS, progress)
    }

    /// The folder with the cached files of a revision, without a request to the hub.
    pub fn cached(&self, repo: &RepoId, revision: &str) -> Option<PathBuf> {
        check_revision(revision).ok()?;
        let cache = RepoCache::new(&self.cache, repo);
        cache.commit(revision).map(|commit| cache.snapshot(&commit)).filter(|folder| folder.is_dir())
    }

    /// Downloads the files that match one of the patterns (all files, if there are no patterns) and returns their
    /// folder. Files in the cache are not downloaded again. If the hub cannot be reached, the last known commit of the
    /// revision is used, provided that all of its files are in the cache.
    ///
    /// # Errors
    /// If a file cannot be downloaded, differs from the listing of the hub, or cannot be written; when offline, if a
    /// file is missing.
    pub fn download(
        &self,
        repo: &RepoId,
        revision: &str,
        include: &[&str],
        progress: &dyn DownloadProgress,
    ) -> Result<PathBuf, HubError> {
        check_revision(revision)?;
        let cache = RepoCache::new(&self.cache, repo);
        let wanted = Wanted { cache: &cache, root: &self.cache, repo, revision, include };
        if self.offline {
            return wanted.cached();
        }
        if is_commit(revision) && cache.tree(revision).is_some() {
            // A commit does not change, so files in the cache are up to date.
            if let Ok(folder) = wanted.cached() {
                return Ok(folder);
            }
        }
        let client = self.client()?;
        let fallback = wanted.cached().ok();
        let attempts = if fallback.is_some() { 1 } else { ATTEMPTS };
        let listing = match (api::list(&client, repo, revision, attempts, progress), fallback) {
            (Err(error @ (HubError::Unreachable { .. } | HubError::Connection { .. })), Some(folder)) => {
                progress.note(&format!("{error}"));
                progress.note(&format!("the hub cannot be reached; using the files in {}", folder.display()));
                return Ok(folder);
            }
            (listing, _) => listing?,
        };
        let commit = &listing.commit;
        // The listing is for later use offline; an error is ignored, because a read-only cache can still be used.
        let _ = cache.write_tree(commit, &listing.files);
        let fitting = wanted.fitting(&listing.files)?;
        let missing: Vec<_> = fitting.into_iter().filter(|file| !cache.has(commit, file)).collect();
        for (index, file) in missing.iter().enumerate() {
            progress.begin(index + 1, missing.len(), &file.name, file.size);
            bring(&client, &cache, repo, revision, commit, file, progress)?;
            progress.end();
        }
        // Written last, so that the files of the previous commit are used offline until all new ones are there.
        match cache.write_ref(revision, commit) {
            Err(error) if !missing.is_empty() => return Err(error),
            _ => {}
        }
        Ok(cache.snapshot(commit))
    }
}

/// The files to download.
struct Wanted<'a> {
    cache: &'a RepoCache,
    root: &'a Path,
    repo: &'a RepoId,
    revision: &'a str,
    include: &'a [&'a str],
}

impl Wanted<'_> {
    /// The files that match.
    fn fitting<'f>(&self, files: &'f [RepoFile]) -> Result<Vec<&'f RepoFile>, HubError> {
        let fits = |pattern: &str, file: &RepoFile| pattern::matches(pattern, &file.name);
        let any = |file: &&RepoFile| self.include.is_empty() || self.include.iter().any(|pattern| fits(pattern, file));
        let fitting: Vec<_> = files.iter().filter(any).collect();
        // A pattern may match no file, but a name has to match one, and at least one file has to match.
        let unknown: Vec<&str> = match fitting.is_empty() {
            true => self.include.to_vec(),
            false => self.in_full().filter(|name| !files.iter().any(|file| fits(name, file))).collect(),
        };
        if !unknown.is_empty() {
            let mut sample: Vec<_> = files.iter().take(5).map(|file| shown(&file.name)).collect();
            if sample.is_empty() {
                sample.push("none".to_owned());
            }
            return Err(HubError::NothingMatches {
                repo: self.repo.to_string(),
                revision: self.revision.to_owned(),
                patterns: unknown.join(", "),
                count: files.len(),
                sample: sample.join(", "),
            });
        }
        Ok(fitting)
    }

    /// The patterns that are names of files.
    fn in_full(&self) -> impl Iterator<Item = &str> {
        self.include.iter().copied().filter(|name| !name.contains(['*', '?', '[']) && !name.ends_with('/'))
    }

    /// The folder, if everything wanted is in it. Without a stored listing only files named in full can be missed.
    fn cached(&self) -> Result<PathBuf, HubError> {
        let (repo, revision) = (self.repo.to_string(), self.revision.to_owned());
        let commit = self.cache.commit(self.revision);
        let found = commit.map(|commit| (self.cache.snapshot(&commit), commit)).filter(|(folder, _)| folder.is_dir());
        let Some((folder, commit)) = found else {
            return Err(HubError::NotCached { repo, revision, cache: self.root.to_owned() });
        };
        let missing: Vec<String> = match self.cache.tree(&commit) {
            Some(files) => {
                let missing = self.fitting(&files)?.into_iter().filter(|file| !self.cache.has(&commit, file));
                missing.map(|file| file.name.clone()).collect()
            }
            None => self.in_full().filter(|name| !folder.join(name).is_file()).map(str::to_owned).collect(),
        };
        if missing.is_empty() {
            return Ok(folder);
        }
        let count = missing.len();
        let mut names = missing.iter().take(3).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
        if count > 3 {
            names = format!("{names} and {} more", count - 3);
        }
        Err(HubError::Incomplete { repo, revision, missing: names, count, folder })
    }
}

/// Downloads one file of a commit.
fn bring(
    client: &Client,
    cache: &RepoCache,
    repo: &RepoId,
    revision: &str,
    commit: &str,
    file: &RepoFile,
    progress: &dyn DownloadProgress,
) -> Result<(), HubError> {
    let [org, name] = repo.parts();
    let mut parts = vec![org, name, "resolve", commit];
    parts.extend(file.name.split('/'));
    let url = client.url(&parts, "")?;
    let about = About { client, repo, revision, file: Some(&file.name) };
    let answer = client.ask(&Method::HEAD, &url, Patience::new(client, &url, ATTEMPTS, progress))?;
    if !(200..400).contains(&answer.status) {
        return Err(about.refusal(&answer));
    }
    let wrong = |reason| HubError::Answer { url: plain(&url), reason };
    if let Some(other) = answer.facts.commit.as_ref().filter(|&other| other != commit) {
        return Err(wrong(format!("it answers for commit {} when asked for {commit}", shown(other))));
    }
    let etag = answer.facts.etag.ok_or_else(|| wrong("it gives no tag (ETag) of the file".to_owned()))?;
    if !usable_tag(&etag) {
        return Err(wrong(format!("its tag (ETag) of the file is unusable: {}", shown(&etag))));
    }
    let size = answer.facts.size;
    if let (Some(listed), Some(found)) = (file.size, size)
        && listed != found
    {
        return Err(wrong(format!("it lists {} with {listed} bytes and then gives {found}", file.name)));
    }
    let size = size.or(file.size);
    // Held to the end of this function.
    let _lock = cache.lock(&etag, &file.name, progress)?;
    if !has_size(&cache.blob(&etag), size) {
        let refusal = |answer: &Answer| about.refusal(answer);
        let transfer = Transfer { client, url, name: &file.name, etag: &etag, size, progress, refusal: &refusal };
        transfer.run(&cache.partial(&etag))?;
        cache.publish(&etag)?;
    }
    cache.link(commit, &file.name, &etag)
}

/// Whether a tag can be the name of a blob and of nothing else.
fn usable_tag(etag: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=128).contains(&etag.len()) && etag.bytes().all(plain)
}

/// The home directory of the user.
fn home_directory() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| home.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Result<Hub, HubError> {
        let find = |name: &str| variables.iter().find(|(there, _)| *there == name).map(|(_, value)| value.into());
        Hub::from_variables(find)
    }

    #[test]
    fn the_environment_names_folders() {
        let cache = |variables: &[(&str, &str)]| hub(variables).unwrap().cache;
        assert_eq!(cache(&[("HF_HOME", "/h")]), Path::new("/h/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/old"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/c"));
        if let Some(home) = home_directory() {
            assert_eq!(cache(&[]), home.join(".cache/huggingface/hub"));
            assert_eq!(cache(&[("HF_HOME", "~/h")]), home.join("h/hub"));
        }
    }

    #[test]
    fn the_environment_names_hub_and_token() {
        let plain = hub(&[("HF_HOME", "/nowhere")]).unwrap();
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), (DEFAULT_ENDPOINT, None, false));
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let token = |variables: &[(&str, &str)]| hub(&[&[("HF_HOME", home)], variables].concat()).map(|hub| hub.token);
        assert_eq!(token(&[]).unwrap().unwrap(), "hf_file");
        assert_eq!(token(&[("HF_TOKEN", " hf_own ")]).unwrap().unwrap(), "hf_own");
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_old")]).unwrap().unwrap(), "hf_old");
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere")]).unwrap(), None);
        assert!(token(&[("HF_TOKEN", "hf_\u{1b}")]).is_err());
        std::fs::write(folder.path().join("token"), vec![b'x'; MAX_TOKEN_BYTES + 1]).unwrap();
        assert!(token(&[]).unwrap_err().to_string().contains("longer than"));
        for (value, expected) in [("1", true), ("TRUE", true), ("0", false), ("", false)] {
            assert_eq!(hub(&[("HF_HOME", "/h"), ("HF_HUB_OFFLINE", value)]).unwrap().offline, expected, "{value}");
        }
    }
}
