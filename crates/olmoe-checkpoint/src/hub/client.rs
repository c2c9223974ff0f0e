//! Requests to the hub: which host gets the token, which redirects are followed, what is tried again and when.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::header::{self, HeaderMap, HeaderName};
use ureq::http::{Method, Request, Response, Uri};
use ureq::{Agent, Body};

use super::names::shown;
use super::{DownloadProgress, HubError, MAX_LISTING_BYTES};
use crate::tls;

/// Most redirects from one request.
pub const MAX_REDIRECTS: usize = 10;
/// Longest wait before another attempt, whatever a server asks for.
pub const MAX_WAIT: Duration = Duration::from_secs(120);
/// Waits before the second attempt and each one after it.
pub const WAITS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];
/// Longest silence of a server before an attempt counts as failed.
const SILENCE: Duration = Duration::from_secs(30);

/// How the time between attempts is spent.
pub(super) type Sleep = Arc<dyn Fn(Duration) + Send + Sync>;

/// Sends requests to one hub.
pub(super) struct Client {
    agent: Agent,
    /// Address of the hub, without a slash at its end.
    base: String,
    origin: Origin,
    token: Option<String>,
    pub(super) sleep: Sleep,
}

/// Where a request goes: two addresses of one origin are served by the same program.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    encrypted: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(url: &Uri) -> Result<Origin, &'static str> {
        let encrypted = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("it is neither http nor https"),
        };
        let authority = url.authority().ok_or("it has no host")?;
        if authority.as_str().contains('@') {
            return Err("it holds a user name");
        }
        if authority.host().is_empty() {
            return Err("it has no host");
        }
        let port = authority.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        Ok(Origin { encrypted, host: authority.host().to_ascii_lowercase(), port })
    }
}

/// What the hub's own headers say about a file, wherever its content is stored.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) commit: Option<String>,
    pub(super) etag: Option<String>,
    pub(super) size: Option<u64>,
}

/// The end of a chain of redirects.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) facts: Facts,
    response: Response<Body>,
}

impl Answer {
    /// The text of a header.
    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        text(self.response.headers(), name.as_str())
    }

    /// The hub's own name of what is wrong.
    pub(super) fn error_code(&self) -> Option<&str> {
        text(self.response.headers(), "x-error-code")
    }

    /// The length of the body, if announced.
    pub(super) fn length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.parse().ok()
    }

    pub(super) fn into_reader(self) -> impl Read {
        self.response.into_body().into_reader()
    }

    /// How long the server asks to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.header(header::RETRY_AFTER)?.trim().parse().ok().map(Duration::from_secs)
    }
}

/// Why there is no answer.
pub(super) enum Failure {
    /// Another attempt may succeed.
    Passing(String),
    /// It will not.
    Final(HubError),
}

impl Client {
    /// # Errors
    /// If the endpoint is no http(s) address or the token cannot be sent.
    pub(super) fn new(endpoint: &str, token: Option<String>, proxy: bool, sleep: Sleep) -> Result<Client, HubError> {
        let base = endpoint.trim_end_matches('/').to_owned();
        let wrong = |reason| HubError::Endpoint { text: shown(endpoint), reason };
        let url: Uri = base.parse().map_err(|_| wrong("it is not a URL"))?;
        let origin = Origin::of(&url).map_err(wrong)?;
        if url.query().is_some() {
            return Err(wrong("it has a query"));
        }
        let mut config = Agent::config_builder()
            .tls_config(tls::config())
            .http_status_as_error(false)
            // Redirects are followed here, where it is known who may see the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE));
        if !proxy {
            config = config.proxy(None);
        }
        Ok(Client { agent: config.build().new_agent(), base, origin, token, sleep })
    }

    /// The address of something on the hub; the parts are escaped, a slash in one too.
    pub(super) fn url(&self, parts: &[&str], query: &str) -> Result<Uri, HubError> {
        let mut url = self.base.clone();
        for part in parts {
            url.push('/');
            for byte in part.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => url.push(char::from(byte)),
                    _ => url.push_str(&format!("%{byte:02X}")),
                }
            }
        }
        url.push_str(query);
        url.parse().map_err(|_| HubError::Endpoint { text: shown(&url), reason: "it gives no URL" })
    }

    /// The page of a repository.
    pub(super) fn page(&self, repo: &str) -> String {
        format!("{}/{repo}", self.base)
    }

    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// One attempt, from byte `offset` on. A `HEAD` ends where the hub says what the file is, a `GET` at its content.
    pub(super) fn send(&self, method: &Method, url: &Uri, offset: u64) -> Result<Answer, Failure> {
        let mut facts = Facts::default();
        let mut here = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let origin = Origin::of(&here).map_err(|reason| redirect(url, &here.to_string(), reason))?;
            if origin.encrypted {
                tls::check_processor().map_err(|needs| Failure::Final(HubError::Processor { needs }))?;
            }
            let mut request = Request::builder()
                .method(method.clone())
                .uri(here.clone())
                .header(header::USER_AGENT, concat!("olmoe/", env!("CARGO_PKG_VERSION")))
                // The sizes and ranges meant are those of the files themselves.
                .header(header::ACCEPT_ENCODING, "identity");
            if offset > 0 {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| origin == self.origin) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.body(()).map_err(|error| connection(url, &error.to_string()))?;
            let response = self.agent.run(request).map_err(|error| failure(url, error))?;
            let headers = response.headers();
            facts.add(headers);
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) || (method == Method::HEAD && facts.etag.is_some()) {
                if facts.etag.is_none() {
                    facts.etag = text(headers, "etag").map(bare_tag);
                    facts.size = facts.size.or(text(headers, "content-length").and_then(|size| size.parse().ok()));
                }
                return Ok(Answer { status, facts, response });
            }
            let location = text(headers, "location").unwrap_or_default();
            here = next(&here, location).map_err(|reason| redirect(url, location, reason))?;
        }
        Err(redirect(url, &here.to_string(), "there were more than 10 in a row"))
    }

    /// Sends until an answer comes that another attempt would not change.
    pub(super) fn ask(&self, method: &Method, url: &Uri, mut patience: Patience<'_>) -> Result<Answer, HubError> {
        loop {
            match self.send(method, url, 0) {
                Ok(answer) if passing(answer.status) => patience.refused(&answer)?,
                Ok(answer) => return Ok(answer),
                Err(failure) => patience.failed(failure)?,
            }
        }
    }

    /// Reads a JSON answer of bounded length; a connection that is cut in the middle is tried again.
    pub(super) fn json<T: DeserializeOwned>(
        &self,
        url: &Uri,
        attempts: usize,
        progress: &dyn DownloadProgress,
        refusal: impl Fn(&Answer) -> HubError,
    ) -> Result<T, HubError> {
        let wrong = |reason| HubError::Answer { url: plain(url), reason };
        let mut patience = Patience::new(self, url, attempts, progress);
        loop {
            let answer = match self.send(&Method::GET, url, 0) {
                Ok(answer) if passing(answer.status) => {
                    patience.refused(&answer)?;
                    continue;
                }
                Ok(answer) if answer.status != 200 => return Err(refusal(&answer)),
                Ok(answer) => answer,
                Err(failure) => {
                    patience.failed(failure)?;
                    continue;
                }
            };
            let announced = answer.length();
            let mut bytes = Vec::new();
            let read = answer.into_reader().take(MAX_LISTING_BYTES as u64 + 1).read_to_end(&mut bytes);
            if bytes.len() > MAX_LISTING_BYTES {
                return Err(wrong(format!("the answer is longer than {MAX_LISTING_BYTES} bytes")));
            }
            if let Err(error) = read {
                patience.again(&format!("the connection was cut ({error})"), None)?;
            } else if announced.is_some_and(|length| length != bytes.len() as u64) {
                patience.again("the connection was cut", None)?;
            } else {
                return serde_json::from_slice(&bytes)
                    .map_err(|error| wrong(format!("the answer is not the JSON expected ({error})")));
            }
        }
    }
}

impl Facts {
    /// Takes what the hub says of a file that it keeps elsewhere. The first answer that says it counts.
    fn add(&mut self, headers: &HeaderMap) {
        self.commit = self.commit.take().or_else(|| text(headers, "x-repo-commit").map(str::to_owned));
        if self.etag.is_none()
            && let Some(etag) = text(headers, "x-linked-etag")
        {
            self.etag = Some(bare_tag(etag));
            self.size = text(headers, "x-linked-size").and_then(|size| size.parse().ok());
        }
    }
}

/// How many attempts in a row may fail, and how long to wait between them.
pub(super) struct Patience<'a> {
    client: &'a Client,
    url: &'a Uri,
    attempts: usize,
    failed: usize,
    progress: &'a dyn DownloadProgress,
}

impl<'a> Patience<'a> {
    pub(super) fn new(client: &'a Client, url: &'a Uri, attempts: usize, progress: &'a dyn DownloadProgress) -> Self {
        Patience { client, url, attempts, failed: 0, progress }
    }

    /// An attempt brought something: the next failure is the first again.
    pub(super) fn renew(&mut self) {
        self.failed = 0;
    }

    /// After an answer with a passing status.
    pub(super) fn refused(&mut self, answer: &Answer) -> Result<(), HubError> {
        self.again(&format!("the server answered {}", answer.response.status()), answer.retry_after())
    }

    /// After an attempt without an answer.
    pub(super) fn failed(&mut self, failure: Failure) -> Result<(), HubError> {
        match failure {
            Failure::Passing(reason) => self.again(&reason, None),
            Failure::Final(error) => Err(error),
        }
    }

    /// Waits before another attempt.
    ///
    /// # Errors
    /// If that was the last one.
    pub(super) fn again(&mut self, reason: &str, asked: Option<Duration>) -> Result<(), HubError> {
        self.failed += 1;
        let own = WAITS.get(self.failed - 1).copied().filter(|_| self.failed < self.attempts);
        let Some(own) = own else {
            let url = plain(self.url);
            return Err(HubError::Unreachable { url, attempts: self.failed, reason: reason.to_owned() });
        };
        let wait = asked.map_or(own, |asked| asked.max(own)).min(MAX_WAIT);
        self.progress.note(&format!("{reason}; trying again in {} s", wait.as_secs()));
        (self.client.sleep)(wait);
        Ok(())
    }
}

/// Whether a status says that a later attempt may succeed.
pub fn passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

/// The address without its query, which may hold a signature.
pub(super) fn plain(url: &Uri) -> String {
    let host = url.authority().map_or("", |authority| authority.as_str());
    format!("{}://{host}{}", url.scheme_str().unwrap_or("http"), url.path())
}

/// Where a redirect leads.
fn next(from: &Uri, location: &str) -> Result<Uri, &'static str> {
    let scheme = from.scheme_str().unwrap_or("http");
    let authority = from.authority().map_or("", |authority| authority.as_str());
    let absolute = match location {
        "" => return Err("it does not say where to"),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ if location.contains("://") => location.to_owned(),
        _ => return Err("it names no host and no path from the root"),
    };
    let url: Uri = absolute.parse().map_err(|_| "it is not a URL")?;
    let encrypted = Origin::of(&url)?.encrypted;
    if Origin::of(from)?.encrypted && !encrypted { Err("it leaves https for http") } else { Ok(url) }
}

/// A tag without quotes and without the mark of a weak one.
fn bare_tag(tag: &str) -> String {
    tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"').to_owned()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn redirect(url: &Uri, to: &str, reason: &'static str) -> Failure {
    let to = shown(to.split('?').next().unwrap_or_default());
    Failure::Final(HubError::Redirect { url: plain(url), to, reason })
}

fn connection(url: &Uri, reason: &str) -> Failure {
    Failure::Final(HubError::Connection { url: plain(url), reason: shown(reason) })
}

fn failure(url: &Uri, error: ureq::Error) -> Failure {
    match &error {
        // Certificates and protocol versions stay what they are.
        ureq::Error::Io(cause) if cause.kind() == std::io::ErrorKind::InvalidData => {
            connection(url, &cause.to_string())
        }
        ureq::Error::Io(cause) => Failure::Passing(cause.to_string()),
        ureq::Error::Timeout(_)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Protocol(_) => Failure::Passing(error.to_string()),
        _ => connection(url, &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn redirects() {
        let from = url("https://hub.example/a/b?x=1");
        for (location, expected) in [
            ("https://cdn.example/f?sig=1", Ok("https://cdn.example/f?sig=1")),
            ("//cdn.example/f", Ok("https://cdn.example/f")),
            ("/c?d=http://e", Ok("https://hub.example/c?d=http://e")),
            ("http://hub.example/a/b", Err("leaves https")),
            ("", Err("where to")),
            ("c", Err("names no host")),
            ("ftp://hub.example/", Err("neither http nor https")),
            ("file:///etc/passwd", Err("not a URL")),
            ("https://hub.example@evil.example/", Err("user name")),
            ("https://", Err("not a URL")),
            ("https://hub.example/a b", Err("not a URL")),
        ] {
            match (next(&from, location), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, url(expected)),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{location}: {found}"),
                (found, _) => panic!("{location}: {found:?}"),
            }
        }
        assert!(next(&url("http://hub.example/"), "https://hub.example/").is_ok());
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text| Origin::of(&url(text)).unwrap();
        assert_eq!(origin("https://Hub.example/a"), origin("https://hub.example:443/b?c"));
        for other in ["http://hub.example", "https://hub.example:8443", "https://hub.example.evil", "https://evil"] {
            assert_ne!(origin("https://hub.example"), origin(other), "{other}");
        }
    }

    #[test]
    fn tags() {
        for tag in ["abc", "\"abc\"", "W/\"abc\""] {
            assert_eq!(bare_tag(tag), "abc");
        }
    }
}
