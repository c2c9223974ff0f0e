//! The hub's JSON interface: what it lists, and what its refusals mean.

use std::collections::BTreeSet;

use serde::Deserialize;
use ureq::http::Uri;

use super::client::{Answer, Client, plain};
use super::names::{check_file, check_revision, is_commit, is_hex, shown};
use super::{
    ATTEMPTS, DEFAULT_REVISION, DownloadProgress, HubError, Listing, MAX_FILES, RepoFile, RepoId, Revision,
    RevisionKind,
};

#[derive(Deserialize)]
struct RevisionAnswer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

#[derive(Deserialize)]
struct RefsAnswer {
    #[serde(default)]
    branches: Vec<RefAnswer>,
    #[serde(default)]
    tags: Vec<RefAnswer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RefAnswer {
    name: String,
    target_commit: String,
}

/// Asks the hub for the files of a revision.
pub(super) fn list(
    client: &Client,
    repo: &RepoId,
    revision: &str,
    attempts: usize,
    progress: &dyn DownloadProgress,
) -> Result<Listing, HubError> {
    let [org, name] = repo.parts();
    let url = client.url(&["api", "models", org, name, "revision", revision], "?blobs=true")?;
    let about = About { client, repo, revision, file: None };
    let answer: RevisionAnswer = client.json(&url, attempts, progress, |answer| about.refusal(answer))?;
    check_commit(&answer.sha, &url)?;
    if is_commit(revision) && answer.sha != revision {
        let reason = format!("it answers with commit {} when asked for {revision}", answer.sha);
        return Err(HubError::Answer { url: plain(&url), reason });
    }
    if answer.siblings.len() > MAX_FILES {
        let reason = format!("it lists {} files; at most {MAX_FILES} are accepted", answer.siblings.len());
        return Err(HubError::Answer { url: plain(&url), reason });
    }
    let mut names = BTreeSet::new();
    for file in &answer.siblings {
        check_file(&file.rfilename)?;
        if !names.insert(&file.rfilename) {
            let reason = format!("it lists the file {} twice", shown(&file.rfilename));
            return Err(HubError::Answer { url: plain(&url), reason });
        }
    }
    let hash = |text: Option<String>, length| text.filter(|text| text.len() == length && is_hex(text));
    let file = |file: Sibling| RepoFile {
        name: file.rfilename,
        size: file.size,
        git: hash(file.blob_id, 40),
        lfs: hash(file.lfs.and_then(|lfs| lfs.sha256), 64),
    };
    Ok(Listing { commit: answer.sha, files: answer.siblings.into_iter().map(file).collect() })
}

/// Asks the hub for the branches and tags of a repository.
pub(super) fn revisions(
    client: &Client,
    repo: &RepoId,
    progress: &dyn DownloadProgress,
) -> Result<Vec<Revision>, HubError> {
    let [org, name] = repo.parts();
    let url = client.url(&["api", "models", org, name, "refs"], "")?;
    let about = About { client, repo, revision: DEFAULT_REVISION, file: None };
    let refs: RefsAnswer = client.json(&url, ATTEMPTS, progress, |answer| about.refusal(answer))?;
    if refs.branches.len() + refs.tags.len() > MAX_FILES {
        let reason = format!("it lists more than {MAX_FILES} branches and tags");
        return Err(HubError::Answer { url: plain(&url), reason });
    }
    let kinds = [(RevisionKind::Branch, refs.branches), (RevisionKind::Tag, refs.tags)];
    let all = kinds.into_iter().flat_map(|(kind, refs)| refs.into_iter().map(move |found| (kind, found)));
    all.map(|(kind, RefAnswer { name, target_commit: commit })| {
        check_revision(&name)?;
        check_commit(&commit, &url)?;
        Ok(Revision { name, kind, commit })
    })
    .collect()
}

/// What a request was about, to say what its refusal means.
pub(super) struct About<'a> {
    pub(super) client: &'a Client,
    pub(super) repo: &'a RepoId,
    pub(super) revision: &'a str,
    pub(super) file: Option<&'a str>,
}

impl About<'_> {
    pub(super) fn refusal(&self, answer: &Answer) -> HubError {
        let status = answer.status;
        let (repo, revision) = (self.repo.to_string(), self.revision.to_owned());
        match (status, answer.error_code().unwrap_or_default(), self.file) {
            (_, "GatedRepo", _) => HubError::Gated { page: self.client.page(&repo), repo, status },
            (_, "RevisionNotFound", _) => HubError::NoRevision { repo, revision },
            (404, "EntryNotFound", Some(file)) => HubError::NoFile { repo, revision, file: file.to_owned() },
            (_, "RepoNotFound", _) => HubError::NoRepo { repo, status },
            (401 | 403, _, _) if self.client.has_token() => HubError::TokenRefused { repo, status },
            (403, _, _) => HubError::Gated { page: self.client.page(&repo), repo, status },
            (404, _, Some(file)) => HubError::NoFile { repo, revision, file: file.to_owned() },
            (401 | 404, _, _) => HubError::NoRepo { repo, status },
            _ => HubError::Status { url: self.client.page(&repo), status },
        }
    }
}

fn check_commit(commit: &str, url: &Uri) -> Result<(), HubError> {
    if is_commit(commit) {
        return Ok(());
    }
    Err(HubError::Answer { url: plain(url), reason: format!("`{}` is not the name of a commit", shown(commit)) })
}
