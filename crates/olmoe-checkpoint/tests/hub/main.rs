//! The hub's client against a server that can do everything wrong.

mod server;

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use olmoe_checkpoint::hub::{
    ATTEMPTS, DownloadProgress, Hub, HubError, MAX_WAIT, MODEL_FILES, RepoId, Revision, RevisionKind, WAITS,
};
use server::{COMMIT, REPO, Reply, Request, Server, etag, git_hash, sha256};
use tempfile::TempDir;

#[derive(Default)]
struct Notes(RefCell<Vec<String>>);

impl DownloadProgress for Notes {
    fn note(&self, text: &str) {
        self.0.borrow_mut().push(text.to_owned());
    }
    fn begin(&self, _: usize, _: usize, _: &str, _: Option<u64>) {}
    fn position(&self, _: u64) {}
    fn end(&self) {}
}

/// A client with a cache of its own.
struct Client {
    folder: TempDir,
    waits: Arc<Mutex<Vec<Duration>>>,
    notes: Notes,
}

impl Client {
    fn new() -> Client {
        Client { folder: tempfile::tempdir().unwrap(), waits: Arc::default(), notes: Notes::default() }
    }

    fn hub(&self, endpoint: &str) -> Hub {
        let waits = self.waits.clone();
        let hub = Hub::new(self.folder.path()).endpoint(endpoint).without_proxy();
        hub.sleep(move |wait| waits.lock().unwrap().push(wait))
    }

    fn download(&self, server: &Server, include: &[&str]) -> Result<PathBuf, HubError> {
        self.hub(&server.url()).download(&repo(), "main", include, &self.notes)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join("models--org--model").join(below)
    }

    fn blobs(&self) -> Vec<String> {
        names(&self.path("blobs"))
    }

    fn waits(&self) -> Vec<Duration> {
        self.waits.lock().unwrap().clone()
    }

    fn notes(&self) -> String {
        self.notes.0.borrow().join("\n")
    }

    /// Puts the beginning of a file where an earlier attempt would have left it.
    fn leave(&self, etag: &str, bytes: &[u8]) {
        fs::create_dir_all(self.path("blobs")).unwrap();
        fs::write(self.path("blobs").join(format!("{etag}.incomplete")), bytes).unwrap();
    }
}

fn repo() -> RepoId {
    REPO.parse().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A file of this many bytes.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * i % 251) as u8).collect()
}

const CONFIG: &[u8] = b"{\"hidden_size\": 8}";
const WEIGHTS: &str = "model.safetensors";

fn no_mischief(_: &Request, _: &Reply) -> Option<Reply> {
    None
}

#[test]
fn the_cache_has_the_layout_that_others_read() {
    let weights = content(3000);
    let files = [("config.json", CONFIG), (WEIGHTS, &weights), ("sub/folder/note.txt", b"x"), ("empty.txt", b"")];
    let server = Server::hub(&files, no_mischief);
    let client = Client::new();
    let folder = client.download(&server, &[]).unwrap();
    assert_eq!(folder, client.path("snapshots").join(COMMIT));
    for (name, bytes) in files {
        assert_eq!(fs::read(folder.join(name)).unwrap(), bytes, "{name}");
        assert_eq!(fs::read(client.path("blobs").join(etag(name, bytes))).unwrap(), bytes, "{name}");
    }
    let link = |name: &str| fs::read_link(folder.join(name)).unwrap();
    assert_eq!(link(WEIGHTS), Path::new("../../blobs").join(sha256(&weights)));
    assert_eq!(link("sub/folder/note.txt"), Path::new("../../../../blobs").join(git_hash(b"x")));
    assert_eq!(fs::read_to_string(client.path("refs/main")).unwrap(), COMMIT);
    assert_eq!(client.blobs().len(), 4);
    let lock = format!("{}.lock", sha256(&weights));
    assert!(names(&client.folder.path().join(".locks/models--org--model")).contains(&lock));
    assert_eq!(names(client.folder.path()), [".locks", "CACHEDIR.TAG", "models--org--model"]);
    let tag = fs::read_to_string(client.folder.path().join("CACHEDIR.TAG")).unwrap();
    assert!(tag.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n"));
    let tree = fs::read_to_string(client.path("trees").join(format!("{COMMIT}.json"))).unwrap();
    for part in ["\"format_version\": 1", &format!("\"lfs_sha256\": \"{}\"", sha256(&weights)), "\"lfs_size\": 3000"] {
        assert!(tree.contains(part), "{part}: {tree}");
    }
    assert!(client.waits().is_empty() && client.notes().is_empty(), "{}", client.notes());

    // The second time only the revision is asked for; a whole commit needs nothing at all.
    let before = server.paths().len();
    assert_eq!(client.download(&server, &[]).unwrap(), folder);
    let listing = format!("GET /api/models/{REPO}/revision/main?blobs=true");
    assert_eq!(server.paths()[before..], [listing]);
    let hub = client.hub(&server.url());
    assert_eq!(hub.download(&repo(), COMMIT, &[], &client.notes).unwrap(), folder);
    assert_eq!(server.paths().len(), before + 1);
    assert_eq!(hub.cached(&repo(), "main"), Some(folder.clone()));
    assert_eq!(hub.cached(&repo(), "v1"), None);

    // A file that was damaged or lost is brought again, and nothing else.
    fs::write(client.path("blobs").join(git_hash(CONFIG)), "{").unwrap();
    fs::remove_file(folder.join("empty.txt")).unwrap();
    client.download(&server, &[]).unwrap();
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), CONFIG);
    assert_eq!(fs::read(folder.join("empty.txt")).unwrap(), b"");
    let gets = server.paths()[before..].iter().filter(|path| path.starts_with("GET /org")).count();
    assert_eq!(gets, 1, "{:?}", server.paths());
}

#[test]
fn patterns_choose_files() {
    let server = Server::hub(&[("config.json", CONFIG), ("model.gguf", b"g"), (WEIGHTS, b"w")], no_mischief);
    let client = Client::new();
    let folder = client.download(&server, MODEL_FILES).unwrap();
    assert_eq!(names(&folder), ["config.json", WEIGHTS]);
    client.download(&server, &["*.gguf"]).unwrap();
    assert_eq!(names(&folder).len(), 3);
    let error = client.download(&server, &["*.json", "config.jsn"]).unwrap_err().to_string();
    assert!(error.contains("none of its 3 files fits config.jsn;"), "{error}");
    let error = client.download(&server, &["*.gguff"]).unwrap_err().to_string();
    assert!(error.contains("none of its 3 files fits *.gguff; among them are config.json, model.gguf"), "{error}");
}

#[test]
fn revisions_are_listed() {
    let server = Server::hub(&[("config.json", CONFIG)], no_mischief);
    let client = Client::new();
    let hub = client.hub(&server.url());
    let revision = |name: &str, kind| Revision { name: name.into(), kind, commit: COMMIT.into() };
    let expected = [revision("main", RevisionKind::Branch), revision("v1", RevisionKind::Tag)];
    assert_eq!(hub.revisions(&repo(), &client.notes).unwrap(), expected);
    let listing = hub.files(&repo(), "v1", &client.notes).unwrap();
    assert_eq!((listing.commit.as_str(), listing.files[0].name.as_str()), (COMMIT, "config.json"));
    assert_eq!(listing.files[0].size, Some(CONFIG.len() as u64));
    hub.download(&repo(), "refs/pr/1", &[], &client.notes).unwrap();
    assert_eq!(fs::read_to_string(client.path("refs/refs/pr/1")).unwrap(), COMMIT);
}

#[test]
fn a_connection_cut_at_any_byte_is_taken_up_there() {
    let weights = content(30);
    for (name, step) in [(WEIGHTS, 1), ("small.txt", 7)] {
        for cut in (0..weights.len()).step_by(step) {
            let first = AtomicUsize::new(0);
            let server = Server::hub(&[(name, &weights)], move |request, right| {
                let is_first = request.is("GET", name) && first.fetch_add(1, Ordering::Relaxed) == 0;
                is_first.then(|| right.clone().cut(cut))
            });
            let client = Client::new();
            let folder = client.download(&server, &[]).unwrap();
            assert_eq!(fs::read(folder.join(name)).unwrap(), weights, "{cut}");
            let last = server.log().pop().unwrap();
            assert_eq!(last.range, (cut > 0).then_some(cut));
            assert_eq!(client.waits(), WAITS[..1]);
        }
    }
}

#[test]
fn after_too_many_cuts_the_beginning_stays_for_the_next_call() {
    let weights = content(100);
    let calm = Arc::new(AtomicUsize::new(0));
    let now = calm.clone();
    let server = Server::hub(&[(WEIGHTS, &weights)], move |request, right| {
        (request.is("GET", WEIGHTS) && now.load(Ordering::Relaxed) == 0).then(|| right.clone().cut(3))
    });
    let client = Client::new();
    let error = client.download(&server, &[]).unwrap_err().to_string();
    assert!(error.contains("gave up after 6 attempt(s)") && error.contains("at byte 18"), "{error}");
    assert_eq!(client.waits(), WAITS);
    let partial = format!("{}.incomplete", sha256(&weights));
    assert_eq!(client.blobs(), [partial.as_str()]);
    assert_eq!(fs::read(client.path("blobs").join(partial)).unwrap(), weights[..18]);
    assert_eq!(client.hub(&server.url()).cached(&repo(), "main"), None);
    calm.store(1, Ordering::Relaxed);
    let folder = client.download(&server, &[]).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights);
    assert_eq!(server.log().last().unwrap().range, Some(18));
    assert_eq!(client.blobs(), [sha256(&weights)]);
}

/// What a server does to the n-th request for the content.
type Mischief = fn(usize, &Reply) -> Option<Reply>;

#[test]
fn what_can_be_mended_is() {
    let weights = content(1000);
    // (what, bytes there before, mischief, requests for the content, waits in seconds)
    let table: &[(&str, usize, Mischief, usize, &[u64])] = &[
        ("nothing wrong", 0, |_, _| None, 1, &[]),
        ("all there already", 1000, |_, _| None, 0, &[]),
        ("more there than there should be", 1001, |_, _| None, 1, &[]),
        ("5xx", 0, |n, _| (n < 2).then(|| Reply::new(503, "")), 3, &[1, 2]),
        ("408", 0, |n, _| (n < 1).then(|| Reply::new(408, "")), 2, &[1]),
        ("429", 0, |n, _| (n < 1).then(|| Reply::new(429, "").with("Retry-After", "7")), 2, &[7]),
        ("429 for ages", 0, |n, _| (n < 1).then(|| Reply::new(429, "").with("Retry-After", "99999")), 2, &[120]),
        ("429 until a date", 0, |n, _| (n < 1).then(|| Reply::new(429, "").with("Retry-After", "Mon")), 2, &[1]),
        ("ignores the range", 400, |_, _| Some(whole()), 1, &[]),
        ("another range", 400, |n, r| (n == 0).then(|| r.clone().with("Content-Range", "bytes 1-9/1000")), 2, &[1]),
        ("another total", 400, |n, r| (n == 0).then(|| r.clone().with("Content-Range", "bytes 400-999/999")), 2, &[1]),
        ("nonsense range", 400, |n, r| (n == 0).then(|| r.clone().with("Content-Range", "bytes x")), 2, &[1]),
        ("416", 400, |n, _| (n == 0).then(|| Reply::new(416, "")), 2, &[1]),
        (
            "416 with a total",
            400,
            |n, _| (n == 0).then(|| Reply::new(416, "").with("Content-Range", "bytes */400")),
            2,
            &[1],
        ),
        ("no length, closed early", 0, |n, r| (n == 0).then(|| Reply { length: None, ..r.clone().cut(300) }), 2, &[1]),
        ("no length", 0, |_, r| Some(Reply { length: None, ..r.clone() }), 1, &[]),
    ];
    for &(what, before, mischief, requests, waits) in table {
        let count = AtomicUsize::new(0);
        let server = Server::hub(&[(WEIGHTS, &weights)], move |request, right| {
            request.is("GET", WEIGHTS).then(|| mischief(count.fetch_add(1, Ordering::Relaxed), right))?
        });
        let client = Client::new();
        client.leave(&sha256(&weights), &content(before));
        let folder = client.download(&server, &[]).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights, "{what}");
        assert_eq!(client.blobs(), [sha256(&weights)], "{what}");
        assert_eq!(server.log().iter().filter(|request| request.is("GET", WEIGHTS)).count(), requests, "{what}");
        assert_eq!(client.waits(), waits.iter().map(|&s| Duration::from_secs(s)).collect::<Vec<_>>(), "{what}");
    }
    assert_eq!(MAX_WAIT.as_secs(), 120);
}

fn whole() -> Reply {
    Reply::new(200, content(1000))
}

#[test]
fn a_server_may_leave_out_sizes_and_hashes() {
    let weights = content(1000);
    // A hub that tells less: whether its tags are hashes, and whether it tells the size.
    let hub = |hashes: bool, sizes: bool| {
        Server::hub(&[(WEIGHTS, &weights)], move |request, right| {
            if request.path.starts_with("/api") {
                let files = format!(r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"{WEIGHTS}"}}]}}"#);
                return Some(Reply::new(200, files));
            }
            let reply = if hashes { right.clone() } else { right.clone().with("ETag", "W/\"some-tag\"") };
            Some(if sizes { reply } else { Reply { length: None, ..reply } })
        })
    };
    for (hashes, before, requests) in [(true, 0, 1), (true, 400, 1), (true, 1000, 1), (true, 1001, 2), (false, 0, 0)] {
        let server = hub(hashes, false);
        let client = Client::new();
        client.leave(&sha256(&weights), &content(before));
        let done = client.download(&server, &[]);
        assert_eq!(server.log().iter().filter(|request| request.is("GET", WEIGHTS)).count(), requests, "{before}");
        match done {
            Ok(folder) if hashes => assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights, "{before}"),
            Err(error) if !hashes => assert!(error.to_string().contains("neither the size nor a hash"), "{error}"),
            other => panic!("{before}: {other:?}"),
        }
        assert!(!client.path("trees").exists(), "nothing is stored of a listing without sizes");
    }
    let client = Client::new();
    let folder = client.download(&hub(false, true), &[]).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights);
    assert_eq!(client.blobs(), ["some-tag"]);
    assert!(client.notes().contains("only its size is checked"), "{}", client.notes());
}

#[test]
fn a_beginning_that_does_not_fit_is_dropped() {
    let weights = content(1000);
    let server = Server::hub(&[(WEIGHTS, &weights)], no_mischief);
    for bad in [vec![0; 400], vec![0; 1000]] {
        let client = Client::new();
        client.leave(&sha256(&weights), &bad);
        let folder = client.download(&server, &[]).unwrap();
        assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights);
        assert!(client.notes().contains("starting again"), "{}", client.notes());
    }
}

#[test]
fn wrong_content_never_gets_a_name() {
    let weights = content(1000);
    let table: &[(&str, &str, Mischief, &str)] = &[
        ("wrong SHA-256", WEIGHTS, |_, _| Some(Reply::new(200, vec![7; 1000])), "its SHA-256 is"),
        ("wrong git hash", "a.txt", |_, _| Some(Reply::new(200, vec![7; 1000])), "its git SHA-1 is"),
        ("too short", WEIGHTS, |_, _| Some(Reply::new(200, content(999))), "sends 999 bytes, expected 1000"),
        ("too long", WEIGHTS, |_, _| Some(Reply::new(200, content(1001))), "sends 1001 bytes, expected 1000"),
        (
            "too long, length untold",
            WEIGHTS,
            |_, _| Some(Reply { length: None, ..Reply::new(200, content(5000)) }),
            "expected 1000",
        ),
        ("says too much", WEIGHTS, |_, r| Some(Reply { length: Some(usize::MAX), ..r.clone() }), "expected 1000"),
        ("compressed", WEIGHTS, |_, r| Some(r.clone().with("Content-Encoding", "gzip")), "as gzip"),
    ];
    for &(what, name, mischief, expected) in table {
        let server = Server::hub(&[(name, &weights)], move |request, right| {
            request.is("GET", name).then(|| mischief(0, right))?
        });
        let client = Client::new();
        let error = client.download(&server, &[]).expect_err(what).to_string();
        assert!(error.contains(expected) && error.contains(name), "{what}: {error}");
        let left = client.blobs();
        assert!(left.is_empty() || what == "compressed" && left[0].ends_with(".incomplete"), "{what}: {left:?}");
        assert_eq!(names(&client.path("snapshots").join(COMMIT)), [""; 0], "{what}");
        assert!(!client.path("refs/main").exists(), "{what}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let answers = |status: u16, code: &str| Reply::new(status, "").with("X-Error-Code", code);
    let resolve = format!("resolve/{COMMIT}/config.json");
    // (end of the path, reply, whether there is a token, what the error says)
    let table = [
        ("main?blobs=true", answers(401, "RepoNotFound"), false, "no such repository, or it is private (401)"),
        ("main?blobs=true", answers(401, ""), false, "set HF_TOKEN"),
        ("main?blobs=true", answers(401, ""), true, "the token was not accepted"),
        ("main?blobs=true", answers(404, "RepoNotFound"), false, "check the spelling"),
        (
            "main?blobs=true",
            answers(404, "RevisionNotFound"),
            false,
            "no revision `main`; `olmoe download org/model --list",
        ),
        ("main?blobs=true", answers(418, ""), false, "answered 418"),
        (&resolve, answers(401, "GatedRepo"), false, "gated (401): accept its conditions at http://127.0.0.1"),
        (&resolve, answers(403, "GatedRepo"), true, "then set HF_TOKEN"),
        (&resolve, answers(403, ""), false, "gated"),
        (&resolve, answers(404, "EntryNotFound"), false, "no file `config.json` at revision `main`"),
    ];
    for (end, reply, token, expected) in table {
        let end = end.to_owned();
        let server = Server::hub(&[("config.json", CONFIG)], move |request, _| {
            request.path.ends_with(&end).then(|| reply.clone())
        });
        let client = Client::new();
        let hub = client.hub(&server.url()).token(if token { "hf_secret" } else { "" }, "test").unwrap();
        let error = hub.download(&repo(), "main", &[], &client.notes).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains("hf_secret") && client.waits().is_empty(), "{error}");
    }
}

#[test]
fn listings_are_not_trusted() {
    let listing = |files: &str| format!(r#"{{"sha":"{COMMIT}","siblings":[{files}]}}"#);
    let name = |name: &str| listing(&format!(r#"{{"rfilename":"{name}"}}"#));
    let table = [
        (name("../evil"), "no part of it is `.` or `..`"),
        (name("a/../../evil"), "no part of it is"),
        (name("/etc/passwd"), "none at its ends"),
        (name("a\\\\b"), "no backslash"),
        (name("a\\u0000b"), "no control character"),
        (name("\\u001b[31m"), "\\u{1b}[31m"),
        (name(""), "1 to 1024 bytes"),
        (name(&"x".repeat(300)), "1 to 200 bytes"),
        (listing(r#"{"rfilename":"a"},{"rfilename":"a"}"#), "lists the file a twice"),
        (listing(&vec![r#"{"rfilename":"a"}"#; 100_001].join(",")), "at most 100000"),
        (r#"{"sha":"../../x","siblings":[]}"#.into(), "not the name of a commit"),
        (r#"{"siblings":[]}"#.into(), "missing field `sha`"),
        ("<html>".into(), "not the JSON expected"),
        ("[".repeat(10_000), "not the JSON expected"),
        (format!("\"{}\"", "x".repeat(33 << 20)), "longer than 33554432 bytes"),
        (listing(r#"{"rfilename":"a","size":-1}"#), "not the JSON expected"),
    ];
    for (text, expected) in table {
        let server = Server::start(move |_| Some(Reply::new(200, text.clone())));
        let client = Client::new();
        let error = client.download(&server, &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert_eq!(names(client.folder.path()), [""; 0], "{expected}");
    }
}

#[test]
fn facts_about_files_are_not_trusted() {
    type Change = fn(&Reply) -> Reply;
    let table: &[(&str, Change, &str)] = &[
        ("a path as tag", |r| r.clone().with("ETag", "\"../../x\""), "unusable"),
        ("no tag", |r| r.clone().with("ETag", "\"\""), "unusable"),
        ("an endless tag", |r| r.clone().with("ETag", "a".repeat(200)), "unusable"),
        ("another commit", |r| r.clone().with("X-Repo-Commit", "f".repeat(40)), "when asked for"),
        ("another size", |r| Reply { length: Some(5), ..r.clone() }, "and then gives 5"),
    ];
    for &(what, change, expected) in table {
        let server = Server::hub(&[("config.json", CONFIG)], move |request, right| {
            request.is("HEAD", "config.json").then(|| change(right))
        });
        let client = Client::new();
        let error = client.download(&server, &[]).expect_err(what).to_string();
        assert!(error.contains(expected), "{what}: {error}");
        assert!(client.blobs().is_empty(), "{what}");
    }
}

/// A hub that keeps its large files elsewhere, as the real one does.
fn hub_with_store(weights: &[u8], store: &Server) -> Server {
    let (url, tag, size) = (store.url(), sha256(weights), weights.len());
    Server::hub(&[("config.json", CONFIG), (WEIGHTS, weights)], move |request, _| {
        let moved =
            Reply::new(302, "").with("Location", format!("{url}/blob?signature=s")).with("X-Repo-Commit", COMMIT);
        let moved = moved.with("X-Linked-Etag", format!("\"{tag}\"")).with("X-Linked-Size", size.to_string());
        request.path.contains(WEIGHTS).then(|| moved.with("ETag", "\"of-the-redirect\""))
    })
}

#[test]
fn the_token_goes_to_the_hub_only() {
    let weights = content(500);
    let bytes = weights.clone();
    let store = Server::start(move |request| {
        let from = request.range.unwrap_or(0);
        let reply = Reply::new(if from > 0 { 206 } else { 200 }, &bytes[from..]).with("ETag", "\"of-the-store\"");
        let reply = reply.with("Content-Range", format!("bytes {from}-499/500"));
        Some(if from == 0 { reply.cut(200) } else { reply })
    });
    let server = hub_with_store(&weights, &store);
    let client = Client::new();
    let hub = client.hub(&server.url()).token(" hf_secret\n", "test").unwrap();
    let folder = hub.download(&repo(), "main", &[], &client.notes).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights);
    assert!(client.blobs().contains(&sha256(&weights)), "{:?}", client.blobs());
    assert!(server.log().iter().all(|request| request.token.as_deref() == Some("Bearer hf_secret")));
    let asked = store.log();
    assert_eq!(asked.iter().map(|request| request.range).collect::<Vec<_>>(), [None, Some(200)]);
    assert!(asked.iter().all(|request| request.token.is_none() && request.method == "GET"), "{asked:?}");
}

#[test]
fn redirects_are_bounded() {
    let away = |location: &str| {
        let location = location.to_owned();
        Server::start(move |_| Some(Reply::new(302, "").with("Location", location.clone())))
    };
    for (location, expected) in [
        ("/api/again", "more than 10"),
        ("", "where to"),
        ("ftp://example.org/x", "neither http nor https"),
        ("http://user@127.0.0.1/x", "user name"),
    ] {
        let server = away(location);
        let client = Client::new();
        let error = client.download(&server, &[]).unwrap_err().to_string();
        assert!(error.contains("refused a redirect") && error.contains(expected), "{location}: {error}");
        assert!(server.log().len() <= 11, "{location}");
    }
    // A renamed repository: the hub redirects to itself, and the token goes along.
    let server = Server::hub(&[("config.json", CONFIG)], |request, _| {
        let new = request.path.strip_prefix("/api/models/old/name").map(|rest| format!("/api/models/{REPO}{rest}"));
        let new = new.or(request.path.strip_prefix("/old/name").map(|rest| format!("/{REPO}{rest}")));
        new.map(|new| Reply::new(307, "").with("Location", new))
    });
    let client = Client::new();
    let hub = client.hub(&server.url()).token("hf_secret", "test").unwrap();
    let folder = hub.download(&"old/name".parse().unwrap(), "main", &[], &client.notes).unwrap();
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), CONFIG);
    assert!(server.log().iter().all(|request| request.token.is_some()));
}

#[test]
fn offline_the_cache_has_to_do() {
    let server = Server::hub(&[("config.json", CONFIG), ("a.txt", b"a"), (WEIGHTS, b"w")], no_mischief);
    let client = Client::new();
    let offline = || client.hub(&server.url()).offline(true);
    let ask = |include: &[&str]| offline().download(&repo(), "main", include, &client.notes);
    let error = ask(&[]).unwrap_err().to_string();
    assert!(error.contains("offline: org/model@main is not in"), "{error}");
    let folder = client.download(&server, &["*.json"]).unwrap();
    let requests = server.log().len();
    assert_eq!(ask(&["*.json"]).unwrap(), folder);
    for (include, expected) in [(&[][..], "a.txt, model.safetensors of org/model@main are not"), (&["a.*"], "a.txt of")]
    {
        let error = ask(include).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // Without the listing, files named in full are still missed.
    fs::remove_dir_all(client.path("trees")).unwrap();
    assert_eq!(ask(&["*.json", "config.json"]).unwrap(), folder);
    assert!(ask(&[WEIGHTS]).unwrap_err().to_string().contains(WEIGHTS));
    assert!(offline().revisions(&repo(), &client.notes).unwrap_err().to_string().contains("offline"));
    assert!(offline().files(&repo(), "main", &client.notes).unwrap_err().to_string().contains("offline"));
    assert_eq!(server.log().len(), requests);
}

#[test]
fn without_a_network_the_cache_does_if_it_is_complete() {
    let server = Server::hub(&[("config.json", CONFIG), ("a.txt", b"a")], no_mischief);
    let client = Client::new();
    let folder = client.download(&server, &["*.json"]).unwrap();
    let down = || client.hub("http://127.0.0.1:9");
    assert_eq!(down().download(&repo(), "main", &["*.json"], &client.notes).unwrap(), folder);
    assert!(client.notes().contains("the hub cannot be reached; using the files in"), "{}", client.notes());
    assert!(client.waits().is_empty());
    let error = down().download(&repo(), "main", &[], &client.notes).unwrap_err().to_string();
    assert!(error.contains(&format!("gave up after {ATTEMPTS} attempt(s)")), "{error}");
    assert_eq!(client.waits(), WAITS);
    // A refusal is no broken network.
    let refusing = Server::start(|_| Some(Reply::new(404, "").with("X-Error-Code", "RepoNotFound")));
    assert!(matches!(client.download(&refusing, &["*.json"]), Err(HubError::NoRepo { .. })));
}

#[test]
fn two_at_once_download_once() {
    let weights = content(200_000);
    let heads = AtomicUsize::new(0);
    let server = Server::hub(&[(WEIGHTS, &weights)], move |request, _| {
        if request.is("HEAD", WEIGHTS) {
            heads.fetch_add(1, Ordering::Relaxed);
        }
        // The content comes when all three have asked what it is.
        while request.is("GET", WEIGHTS) && heads.load(Ordering::Relaxed) < 3 {
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    });
    let client = Client::new();
    let notes: Vec<String> = std::thread::scope(|scope| {
        let run = || {
            let notes = Notes::default();
            let hub = Hub::new(client.folder.path()).endpoint(server.url()).without_proxy();
            let folder = hub.download(&repo(), "main", &[], &notes).unwrap();
            assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights);
            notes.0.into_inner().join("\n")
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(server.log().iter().filter(|request| request.is("GET", WEIGHTS)).count(), 1);
    assert!(notes.iter().all(|note| note.is_empty() || note.contains("another process")), "{notes:?}");
}

#[test]
fn a_cache_of_another_program_serves() {
    // As Python's library leaves it: no listing, and here a read-only folder.
    let client = Client::new();
    let folder = client.path("snapshots").join(COMMIT);
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(client.path("blobs")).unwrap();
    fs::create_dir_all(client.path("refs")).unwrap();
    fs::write(client.path("refs/main"), COMMIT).unwrap();
    fs::write(client.path("blobs").join(git_hash(CONFIG)), CONFIG).unwrap();
    let target = Path::new("../../blobs").join(git_hash(CONFIG));
    std::os::unix::fs::symlink(target, folder.join("config.json")).unwrap();
    fs::set_permissions(client.path(""), fs::Permissions::from_mode(0o555)).unwrap();
    let server = Server::hub(&[("config.json", CONFIG)], no_mischief);
    assert_eq!(client.download(&server, &[]).unwrap(), folder);
    assert_eq!(server.log().len(), 1);
    fs::set_permissions(client.path(""), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn settings_are_checked() {
    let client = Client::new();
    for (endpoint, expected) in [
        ("", "is not usable"),
        ("huggingface.co", "neither http nor https"),
        ("ftp://x", "neither http nor https"),
        ("https://user:pass@x", "user name"),
        ("https://x/?a=b", "query"),
    ] {
        let error = client.hub(endpoint).files(&repo(), "main", &client.notes).unwrap_err().to_string();
        assert!(error.contains("HF_ENDPOINT") && error.contains(expected), "{endpoint}: {error}");
    }
    let error = client.hub("http://x").token("hf_a\nb", "HF_TOKEN").err().unwrap().to_string();
    assert!(error.contains("the token from HF_TOKEN") && !error.contains("hf_a"), "{error}");
    let error = client.hub("http://x").download(&repo(), "../x", &[], &client.notes).unwrap_err().to_string();
    assert!(error.contains("not the name of a revision"), "{error}");
}
