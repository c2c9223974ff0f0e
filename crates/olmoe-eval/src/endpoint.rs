//! Servers that speak OpenAI's protocol.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use olmoe_checkpoint::hub::{ATTEMPTS, MAX_WAIT, passing};
use olmoe_checkpoint::tls;
use serde_json::Value;
use ureq::Agent;
use ureq::http::{Method, Request, Uri, header};

/// Longest answer that is read, in bytes.
pub const MAX_ANSWER_BYTES: u64 = 256 << 20;
/// Most characters of a server's own words in an error.
const MAX_WORDS: usize = 400;
/// The longest wait before an interruption is noticed.
const NOTICE: Duration = Duration::from_millis(50);

/// A server by its address, such as `http://127.0.0.1:8080/v1`.
#[derive(Clone, Debug)]
pub struct Endpoint {
    base: String,
    key: Option<String>,
    agent: Agent,
    first_wait: Duration,
}

/// Why a server did not answer.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Not an address.
    #[error("{address:?} is no address of a server: {reason}. It is like http://127.0.0.1:8080/v1")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The processor has no encryption.
    #[error("encrypted connections need a processor with {needs}; use an address that begins with http://")]
    Processor {
        /// The features needed.
        needs: &'static str,
    },
    /// The server refused.
    #[error("{url} answered {status}: {message}")]
    Refused {
        /// What was asked.
        url: String,
        /// The status of HTTP.
        status: u16,
        /// The server's words, and what to do.
        message: String,
    },
    /// No answer in several attempts.
    #[error("{url} did not answer in {attempts} attempts: {reason}. Is the server running, and the address right?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// How often.
        attempts: usize,
        /// Why the last one failed.
        reason: String,
    },
    /// An answer that is not what was asked for.
    #[error("{url}: {reason}")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The run was interrupted.
    #[error("interrupted")]
    Interrupted,
}

impl Endpoint {
    /// `address` may end with the path of a request, and may lack the `/v1`. The key is sent as a bearer token, and
    /// to this address only: redirects are not followed. `timeout` is the longest time of one request.
    ///
    /// # Errors
    /// If it is no address, or one that this processor cannot reach.
    pub fn new(address: &str, key: Option<String>, timeout: Duration) -> Result<Endpoint, EndpointError> {
        let wrong = |reason| EndpointError::Address { address: address.to_owned(), reason };
        let mut base = address.trim().trim_end_matches('/');
        for end in ["/chat/completions", "/completions", "/models"] {
            base = base.strip_suffix(end).unwrap_or(base);
        }
        let url: Uri = base.parse().map_err(|_| wrong("it is not a URL"))?;
        let Some(authority) = url.authority().filter(|authority| !authority.host().is_empty()) else {
            return Err(wrong("it has no host"));
        };
        match url.scheme_str() {
            Some("http") => {}
            Some("https") => tls::check_processor().map_err(|needs| EndpointError::Processor { needs })?,
            _ => return Err(wrong("it begins neither with http:// nor with https://")),
        }
        if authority.as_str().contains('@') {
            return Err(wrong("it holds a user name; a key is given by an environment variable"));
        }
        if url.query().is_some() {
            return Err(wrong("it has a query"));
        }
        let base = if url.path() == "/" { format!("{}/v1", base.trim_end_matches('/')) } else { base.to_owned() };
        let config = Agent::config_builder()
            .tls_config(tls::config())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(timeout.min(Duration::from_secs(30))))
            .timeout_global(Some(timeout));
        Ok(Endpoint { base, key, agent: config.build().new_agent(), first_wait: Duration::from_secs(1) })
    }

    /// Sets the wait before the second attempt, which doubles from one to the next; one second by default.
    pub fn first_wait(mut self, wait: Duration) -> Endpoint {
        self.first_wait = wait;
        self
    }

    /// The address, to which the paths of requests are added.
    pub fn address(&self) -> &str {
        &self.base
    }

    /// Asks for `path`, such as `/models`.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn get(&self, path: &str, interrupt: &AtomicBool) -> Result<Value, EndpointError> {
        self.ask(Method::GET, path, Vec::new(), interrupt)
    }

    /// Sends a JSON body to `path`, such as `/chat/completions`.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn post(&self, path: &str, body: &Value, interrupt: &AtomicBool) -> Result<Value, EndpointError> {
        self.ask(Method::POST, path, body.to_string().into_bytes(), interrupt)
    }

    fn ask(&self, method: Method, path: &str, body: Vec<u8>, interrupt: &AtomicBool) -> Result<Value, EndpointError> {
        let url = format!("{}{path}", self.base);
        let mut wait = self.first_wait;
        for attempt in 1.. {
            if interrupt.load(Ordering::Relaxed) {
                return Err(EndpointError::Interrupted);
            }
            let (reason, asked) = match self.send(&method, &url, &body) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason, asked)) => (reason, asked),
            };
            if attempt == ATTEMPTS {
                return Err(EndpointError::Unreachable { url, attempts: attempt, reason });
            }
            sleep(asked.map_or(wait, |asked| asked.max(wait)).min(MAX_WAIT), interrupt);
            wait *= 2;
        }
        Err(EndpointError::Interrupted)
    }

    fn send(&self, method: &Method, url: &str, body: &[u8]) -> Result<Value, Failure> {
        let wrong = |reason| Failure::Final(EndpointError::Answer { url: url.to_owned(), reason });
        let mut request = Request::builder()
            .method(method.clone())
            .uri(url)
            .header(header::USER_AGENT, concat!("olmoe/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let sent = if method == Method::GET {
            request.body(()).map_err(|error| wrong(error.to_string())).map(|request| self.agent.run(request))
        } else {
            let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
            request.map_err(|error| wrong(error.to_string())).map(|request| self.agent.run(request))
        }?;
        let response = match sent {
            Ok(response) => response,
            Err(
                error @ (ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::HostNotFound
                | ureq::Error::ConnectionFailed
                | ureq::Error::Protocol(_)),
            ) => return Err(Failure::Passing(error.to_string(), None)),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let status = response.status().as_u16();
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let asked = text(header::RETRY_AFTER).and_then(|time| time.trim().parse().ok()).map(Duration::from_secs);
        let place = text(header::LOCATION).map(str::to_owned);
        let mut bytes = Vec::new();
        let read = response.into_body().into_reader().take(MAX_ANSWER_BYTES + 1).read_to_end(&mut bytes);
        if let Err(error) = read {
            return Err(Failure::Passing(format!("the connection was cut ({error})"), None));
        }
        if passing(status) {
            return Err(Failure::Passing(format!("it answered {status}: {}", words(&bytes)), asked));
        }
        if !(200..300).contains(&status) {
            let message = match (status, place) {
                (300..=399, Some(place)) => format!("it is at {place} now; give that address"),
                (401 | 403, _) => format!("{}; is the key right?", words(&bytes)),
                _ => words(&bytes),
            };
            return Err(Failure::Final(EndpointError::Refused { url: url.to_owned(), status, message }));
        }
        if bytes.len() as u64 > MAX_ANSWER_BYTES {
            return Err(wrong(format!("the answer is longer than {MAX_ANSWER_BYTES} bytes")));
        }
        let answer: Value = serde_json::from_slice(&bytes)
            .map_err(|error| wrong(format!("the answer is no JSON ({error}): {}", words(&bytes))))?;
        // Some servers report errors with the status of success.
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            let message = words(error.to_string().as_bytes());
            return Err(Failure::Final(EndpointError::Refused { url: url.to_owned(), status, message }));
        }
        Ok(answer)
    }
}

/// Why an attempt failed.
enum Failure {
    /// Another may succeed, after as long as the server asks.
    Passing(String, Option<Duration>),
    /// It will not.
    Final(EndpointError),
}

/// What a server says is wrong: the message of an error in its usual forms, else the beginning of the text.
fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1 << 16)]);
    let json: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let places = ["/error/message", "/message", "/detail", "/error"];
    let message = places.iter().find_map(|place| json.pointer(place).and_then(Value::as_str));
    let message = message.unwrap_or(&text).trim();
    if message.is_empty() {
        return "it gave no reason".to_owned();
    }
    message.chars().take(MAX_WORDS).map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// Waits, unless interrupted.
fn sleep(time: Duration, interrupt: &AtomicBool) {
    let end = Instant::now() + time;
    while !interrupt.load(Ordering::Relaxed) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(NOTICE));
    }
}
