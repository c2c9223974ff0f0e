//! Names of repositories, revisions and files. Names from a server are used as paths on this machine, so they are
//! checked as strictly as names from a user.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::HubError;

/// Longest half of a repository's name, in bytes.
pub const MAX_REPO_PART: usize = 96;
/// Longest revision or file name, in bytes.
pub const MAX_NAME: usize = 1024;
/// Longest part of either between slashes, in bytes: the limit of file systems, less room for suffixes.
pub const MAX_NAME_PART: usize = 200;

/// A model repository of the hub: `org/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoId {
    org: String,
    name: String,
}

impl FromStr for RepoId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let wrong = |reason| HubError::RepoId { text: shown(text), reason };
        let (org, name) = text.split_once('/').ok_or(wrong("it has no slash"))?;
        for part in [org, name] {
            let ends = |end: char| part.starts_with(end) || part.ends_with(end);
            if part.is_empty() || part.len() > MAX_REPO_PART {
                return Err(wrong("each half has 1 to 96 characters"));
            }
            if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
                return Err(wrong("each half has letters, digits, `-`, `_` and `.` only"));
            }
            if ends('.') || ends('-') || part.contains("--") || part.contains("..") || part.ends_with(".git") {
                return Err(wrong("no half begins or ends with `-` or `.`, doubles them, or ends with `.git`"));
            }
        }
        Ok(RepoId { org: org.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)
    }
}

impl RepoId {
    /// Its two halves.
    pub(super) fn parts(&self) -> [&str; 2] {
        [&self.org, &self.name]
    }

    /// The name of its folder in the cache.
    pub(super) fn folder(&self) -> String {
        format!("models--{}--{}", self.org, self.name)
    }
}

/// A model of the hub, and which state of it: `org/name` or `org/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelRef {
    /// The repository.
    pub repo: RepoId,
    /// Branch, tag or commit; none means `main`.
    pub revision: Option<String>,
}

impl ModelRef {
    /// The revision to ask for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(super::DEFAULT_REVISION)
    }
}

impl FromStr for ModelRef {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        let repo = repo.parse()?;
        revision.map_or(Ok(()), check_revision)?;
        Ok(ModelRef { repo, revision: revision.map(str::to_owned) })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.repo),
            None => self.repo.fmt(f),
        }
    }
}

/// Where a model is that a text names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file or folder that exists.
    Path(PathBuf),
    /// A model of the hub.
    Hub(ModelRef),
}

/// Resolves the name of a model: an existing path takes precedence over a model of the hub.
///
/// # Errors
/// If it is neither a path nor the name of a model.
pub fn locate(text: &str) -> Result<Location, HubError> {
    let path = PathBuf::from(text);
    if path.exists() {
        return Ok(Location::Path(path));
    }
    text.parse().map(Location::Hub).map_err(|source| HubError::Nowhere { text: shown(text), source: Box::new(source) })
}

/// Whether it is the full name of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// Whether it consists of lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Refuses names that git does not allow for a branch, and names that would lead out of the folder of the cache.
pub(super) fn check_revision(revision: &str) -> Result<(), HubError> {
    let reason = match relative(revision) {
        Err(reason) => reason,
        Ok(()) if revision.contains("..") => "git allows no `..` in it",
        Ok(()) if revision.contains([' ', '~', '^', ':', '?', '*', '[']) => "git allows none of ` ~^:?*[` in it",
        Ok(()) => return Ok(()),
    };
    Err(HubError::Revision { text: shown(revision), reason })
}

/// Refuses file names that would lead out of the folder of a snapshot, or that no file system allows.
pub(super) fn check_file(name: &str) -> Result<(), HubError> {
    relative(name).map_err(|reason| HubError::FileName { text: shown(name), reason })
}

/// Checks that a path stays below its folder.
fn relative(path: &str) -> Result<(), &'static str> {
    if path.is_empty() || path.len() > MAX_NAME {
        return Err("it has 1 to 1024 bytes");
    }
    if path.contains('\\') || path.chars().any(char::is_control) {
        return Err("it has no backslash and no control character");
    }
    for part in path.split('/') {
        if part.is_empty() || part.len() > MAX_NAME_PART {
            return Err("it has 1 to 200 bytes between slashes, and none at its ends");
        }
        if part == "." || part == ".." {
            return Err("no part of it is `.` or `..`");
        }
    }
    Ok(())
}

/// Text from a server, made safe for a terminal: control characters are escaped, and the length is limited.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(100).flat_map(char::escape_debug).collect();
    if text.chars().nth(100).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_repositories() {
        assert_eq!("allenai/OLMoE-1B-7B-0924".parse::<RepoId>().unwrap().folder(), "models--allenai--OLMoE-1B-7B-0924");
        let long = format!("a/{}", "b".repeat(97));
        for (text, expected) in [
            ("gpt2", "no slash"),
            ("/b", "1 to 96"),
            ("a/", "1 to 96"),
            (&long, "1 to 96"),
            ("a/b/c", "letters"),
            ("a/b c", "letters"),
            ("a\\b/c", "letters"),
            ("é/b", "letters"),
            ("../b", "begins or ends"),
            ("a/..", "begins or ends"),
            ("a/b--c", "begins or ends"),
            ("a/-b", "begins or ends"),
            ("a/b.git", ".git"),
            ("a/\u{1b}[31m", "\\u{1b}"),
        ] {
            let error = text.parse::<RepoId>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn names_of_revisions_and_files() {
        for good in ["main", "step1220000-tokens5117B", "refs/pr/1", "v1.0", "ünï/x"] {
            assert!(check_revision(good).is_ok(), "{good}");
        }
        let long = "x".repeat(MAX_NAME + 1);
        let long_part = "x".repeat(MAX_NAME_PART + 1);
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a/./b", "a\\b", "a\nb", &long, &long_part] {
            assert!(check_revision(bad).is_err(), "{bad}");
            assert!(check_file(bad).is_err(), "{bad}");
        }
        for bad in ["a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a["] {
            assert!(check_revision(bad).is_err(), "{bad}");
        }
        for good in [".gitattributes", "config.json", "a..b", "a b/c (1).txt"] {
            assert!(check_file(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn an_existing_path_wins() {
        assert_eq!(locate("src/lib.rs").unwrap(), Location::Path("src/lib.rs".into()));
        let Location::Hub(model) = locate("org/name@refs/pr/1").unwrap() else { panic!("a model of the hub") };
        assert_eq!((model.to_string().as_str(), model.revision()), ("org/name@refs/pr/1", "refs/pr/1"));
        assert_eq!("org/name".parse::<ModelRef>().unwrap().revision(), "main");
        for text in ["", "./nothing/here", "nothing", "a/b@", "a/b@../c"] {
            assert!(locate(text).unwrap_err().to_string().contains("neither"), "{text}");
        }
    }
}
