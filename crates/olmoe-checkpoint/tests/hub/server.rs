//! A hub on this machine, and what it can do wrong.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha1::{Digest, Sha1};
use sha2::Sha256;

/// The commit that the hub is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The repository that it has.
pub(crate) const REPO: &str = "org/model";

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) range: Option<usize>,
    pub(crate) token: Option<String>,
}

impl Request {
    pub(crate) fn is(&self, method: &str, end: &str) -> bool {
        self.method == method && self.path.ends_with(end)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The Content-Length to give; none gives none.
    pub(crate) length: Option<usize>,
    /// Bytes of the body to send before the connection is closed.
    pub(crate) cut: Option<usize>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        let body = body.into();
        Reply { status, headers: Vec::new(), length: Some(body.len()), body, cut: None }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.retain(|(there, _)| !there.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn cut(mut self, bytes: usize) -> Reply {
        self.cut = Some(bytes);
        self
    }
}

type Handler = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

/// Listens until the program ends.
pub(crate) struct Server {
    pub(crate) port: u16,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (handler, logged): (Arc<Handler>, _) = (Arc::new(handler), log.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (handler, log) = (handler.clone(), logged.clone());
                thread::spawn(move || serve(stream.unwrap(), &*handler, &log));
            }
        });
        Server { port, log }
    }

    /// A hub with these files. `mischief` sees every request and the right reply first, and says what to do instead.
    pub(crate) fn hub(
        files: &[(&str, &[u8])],
        mischief: impl Fn(&Request, &Reply) -> Option<Reply> + Send + Sync + 'static,
    ) -> Server {
        let files: Vec<_> = files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
        Server::start(move |request| {
            let right = right(&files, request);
            Some(mischief(request, &right).unwrap_or(right))
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The requests so far.
    pub(crate) fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Method and path of the requests so far.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.log().iter().map(|request| format!("{} {}", request.method, request.path)).collect()
    }
}

/// Large files, as the hub sees them, are named by another hash.
pub(crate) fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn git_hash(bytes: &[u8]) -> String {
    hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn etag(name: &str, bytes: &[u8]) -> String {
    if is_large(name) { sha256(bytes) } else { git_hash(bytes) }
}

fn right(files: &[(String, Vec<u8>)], request: &Request) -> Reply {
    let path = request.path.split('?').next().unwrap().trim_start_matches('/');
    let not = |code: &str| Reply::new(404, "").with("X-Error-Code", code);
    if path == format!("api/models/{REPO}/refs") {
        let text = format!(
            r#"{{"branches":[{{"name":"main","ref":"refs/heads/main","targetCommit":"{COMMIT}"}}],"converts":[],
               "tags":[{{"name":"v1","ref":"refs/tags/v1","targetCommit":"{COMMIT}"}}]}}"#
        );
        return Reply::new(200, text);
    }
    if let Some(revision) = path.strip_prefix(&format!("api/models/{REPO}/revision/")) {
        if !["main", "v1", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
            return not("RevisionNotFound");
        }
        let sibling = |(name, bytes): &(String, Vec<u8>)| {
            let (size, git) = (bytes.len(), git_hash(bytes));
            let lfs = if is_large(name) {
                format!(r#","lfs":{{"sha256":"{}","size":{size},"pointerSize":134}}"#, sha256(bytes))
            } else {
                String::new()
            };
            format!(r#"{{"rfilename":"{name}","size":{size},"blobId":"{git}"{lfs}}}"#)
        };
        let siblings: Vec<String> = files.iter().map(sibling).collect();
        return Reply::new(200, format!(r#"{{"sha":"{COMMIT}","id":"x","siblings":[{}]}}"#, siblings.join(",")));
    }
    let Some(name) = path.strip_prefix(&format!("{REPO}/resolve/{COMMIT}/")) else { return not("RepoNotFound") };
    let Some((name, bytes)) = files.iter().find(|(file, _)| file == name) else { return not("EntryNotFound") };
    let from = request.range.unwrap_or(0);
    if from > 0 && from >= bytes.len() {
        return Reply::new(416, "").with("Content-Range", format!("bytes */{}", bytes.len()));
    }
    let reply = Reply::new(if from > 0 { 206 } else { 200 }, &bytes[from..]).with("X-Repo-Commit", COMMIT);
    let reply = reply.with("ETag", format!("\"{}\"", etag(name, bytes)));
    match from {
        0 => reply,
        _ => reply.with("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
    }
}

fn serve(mut stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line.trim().is_empty() => break,
                Ok(_) => lines.push(line.trim().to_owned()),
            }
        }
        let mut words = lines[0].split(' ');
        let header = |name: &str| {
            lines[1..].iter().find_map(|line| {
                let (there, value) = line.split_once(':')?;
                there.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let request = Request {
            method: words.next().unwrap().to_owned(),
            path: words.next().unwrap().to_owned(),
            range: header("range")
                .map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()),
            token: header("authorization"),
        };
        log.lock().unwrap().push(request.clone());
        let Some(reply) = handler(&request) else { return };
        let mut head = format!("HTTP/1.1 {} Status\r\n", reply.status);
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match reply.length {
            Some(length) => head.push_str(&format!("Content-Length: {length}\r\n\r\n")),
            None => head.push_str("Connection: close\r\n\r\n"),
        }
        let mut bytes = head.into_bytes();
        if request.method != "HEAD" {
            bytes.extend_from_slice(&reply.body[..reply.cut.unwrap_or(reply.body.len())]);
        }
        if stream.write_all(&bytes).is_err() {
            return;
        }
        if request.method != "HEAD" && (reply.cut.is_some() || reply.length != Some(reply.body.len())) {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}
