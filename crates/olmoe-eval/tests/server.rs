//! Answers of servers as OpenAI, vLLM and llama.cpp give them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use olmoe_data::Message;
use olmoe_engine::Sampling;
use olmoe_eval::answer::{Answer, Scored};
use olmoe_eval::backend::server::ServerSettings;
use olmoe_eval::endpoint::{Endpoint, EndpointError};
use olmoe_eval::task::Prompt;
use olmoe_eval::{Backend, BackendError, Encoding, Request, ServerBackend, TokenPair};
use serde_json::{Value, json};

/// What arrives at a server.
struct Call {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

/// What goes back: a status, headers, and a body; nothing cuts the connection.
type Reply = Option<(u16, &'static str, Value)>;

/// A server on a port of its own, which ends with the test.
struct Server {
    address: String,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Server {
    fn new(reply: impl Fn(&Call, usize) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (reply, kept, number) = (Arc::new(reply), calls.clone(), Arc::new(AtomicUsize::new(0)));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (reply, kept, number) = (reply.clone(), kept.clone(), number.clone());
                thread::spawn(move || {
                    let Some(call) = read(&stream) else { return };
                    let number = if call.method == "POST" { number.fetch_add(1, Ordering::SeqCst) } else { 0 };
                    let answer = reply(&call, number);
                    kept.lock().unwrap().push(call);
                    let Some((status, headers, body)) = answer else { return };
                    let body = body.to_string();
                    let text = format!(
                        "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\
                         Connection: close\r\n\r\n{body}",
                        body.len()
                    );
                    let _ = (&stream).write_all(text.as_bytes());
                });
            }
        });
        Server { address, calls }
    }

    fn endpoint(&self) -> Endpoint {
        let endpoint = Endpoint::new(&self.address, Some("secret".to_owned()), Duration::from_secs(20)).unwrap();
        endpoint.first_wait(Duration::from_millis(5))
    }

    fn backend(&self) -> ServerBackend {
        ServerBackend::connect(self.endpoint(), None, ServerSettings::default(), &AtomicBool::new(false)).unwrap()
    }

    fn posted(&self) -> Vec<Value> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| call.method == "POST").map(|call| call.body.clone()).collect()
    }
}

fn read(stream: &TcpStream) -> Option<Call> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Call { method, path, headers, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
}

/// Words with the space before them: the tokens of the model behind these servers.
fn tokens(text: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for letter in text.chars() {
        if letter == ' ' || letter == '\n' || all.is_empty() {
            all.push(String::new());
        }
        all.last_mut().unwrap().push(letter);
    }
    all
}

/// The number of a token, and back: its bytes as digits of a number are too long, so that a table grows with the texts.
fn ids(text: &str) -> Vec<u32> {
    let mut table = TABLE.lock().unwrap();
    let mut id = |token: String| {
        let at = table.iter().position(|known| *known == token).unwrap_or_else(|| {
            table.push(token);
            table.len() - 1
        });
        u32::try_from(at).unwrap()
    };
    tokens(text).into_iter().map(&mut id).collect()
}

static TABLE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The log-probability of a token of these servers: a quarter nat a byte. Tokens with a `g` are the most likely ones.
fn log_prob(token: &str) -> f64 {
    -0.25 * token.len() as f64
}

/// How a server differs from the others.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Vllm,
    /// Puts a token before each text, which counts in `text_offset`.
    Bos,
    /// Generates nothing, though one token is asked for.
    NoMore,
}

fn models() -> Value {
    json!({"object": "list", "data": [
        {"id": "tiny", "object": "model", "created": 17, "owned_by": "vllm", "max_model_len": 12, "permission": [{"id": "x"}]}
    ]})
}

/// The answer to `/v1/completions` with `echo`.
fn echoed(body: &Value, kind: Kind) -> Value {
    let prompts = body["prompt"].as_array().unwrap();
    let choice = |(index, prompt): (usize, &Value)| {
        let mut all: Vec<String> = match prompt {
            Value::String(text) => tokens(text),
            ids => {
                let table = TABLE.lock().unwrap();
                ids.as_array().unwrap().iter().map(|id| table[id.as_u64().unwrap() as usize].clone()).collect()
            }
        };
        if kind == Kind::Bos {
            all.insert(0, "<s>".to_owned());
        }
        if kind != Kind::NoMore {
            all.push(" generated".to_owned());
        }
        let text = all.concat();
        let text = text.strip_prefix("<s>").unwrap_or(&text);
        let mut at = 0;
        let offsets: Vec<usize> = all
            .iter()
            .map(|token| {
                let before = at;
                at += token.chars().count();
                before
            })
            .collect();
        let mut log_probs: Vec<Value> = all.iter().map(|token| json!(log_prob(token))).collect();
        let mut top: Vec<Value> = all
            .iter()
            .map(|token| {
                let other = log_prob(token) + if token.contains('g') { -1.0 } else { 0.5 };
                json!({token: log_prob(token), "other": other})
            })
            .collect();
        (log_probs[0], top[0]) = (Value::Null, Value::Null);
        json!({"index": index, "text": text, "finish_reason": "length", "logprobs": {
            "tokens": all, "token_logprobs": log_probs, "top_logprobs": top, "text_offset": offsets,
        }})
    };
    // The order of choices is not that of the prompts.
    let choices: Vec<Value> = prompts.iter().enumerate().map(choice).rev().collect();
    let generated = if kind == Kind::NoMore { 0 } else { prompts.len() };
    json!({"id": "cmpl-1", "object": "text_completion", "choices": choices, "usage": {"completion_tokens": generated}})
}

fn scoring(kind: Kind) -> Server {
    Server::new(move |call, _| match call.path.as_str() {
        "/v1/models" => Some((200, "", models())),
        "/v1/completions" => Some((200, "", echoed(&call.body, kind))),
        _ => Some((404, "", json!({"error": {"message": "no such path"}}))),
    })
}

fn continuation(context: &str, continuation: &str, unconditional: Option<&str>) -> Request {
    Request::Continuation {
        context: context.to_owned(),
        continuation: continuation.to_owned(),
        unconditional: unconditional.map(str::to_owned),
    }
}

fn generation(prompt: Prompt, stop: &[&str], samples: usize) -> Request {
    Request::Generation {
        prompt,
        stop: stop.iter().map(|stop| (*stop).to_owned()).collect(),
        max_tokens: 16,
        sampling: Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::default() },
        samples,
        seed: 7,
    }
}

fn ask(backend: &mut ServerBackend, requests: &[Request], encoding: Encoding) -> Result<Vec<Answer>, BackendError> {
    let requests: Vec<(&Request, Encoding)> = requests.iter().map(|request| (request, encoding)).collect();
    let mut answers = vec![None; requests.len()];
    backend.answer(&requests, &AtomicBool::new(false), &mut |index, answer| {
        assert!(answers[index].replace(answer).is_none(), "request {index} was answered twice");
        Ok(())
    })?;
    Ok(answers.into_iter().map(Option::unwrap).collect())
}

fn expected(continuation: &str, unconditional: Option<f64>) -> Answer {
    let all = tokens(continuation);
    Answer::Continuation(Scored {
        log_prob: all.iter().map(|token| log_prob(token)).sum(),
        tokens: all.len(),
        greedy: all.iter().all(|token| token.contains('g')),
        unconditional,
    })
}

#[test]
fn continuations_as_text() {
    for kind in [Kind::Vllm, Kind::Bos, Kind::NoMore] {
        let server = scoring(kind);
        let mut backend = server.backend();
        let mut requests = vec![
            continuation("The cat", " sat there", None),
            continuation("The cat", " going long", Some("Answer:")),
            // White space at the end of the context is the continuation's.
            continuation("The cat ", "sat", None),
            // Letters of several bytes: offsets are of characters.
            continuation("Ä é €", " ü", None),
            continuation("The", " large", None),
        ];
        requests.extend((0..40).map(|i| continuation("One of many", &format!(" number{}", "x".repeat(i)), None)));
        let answers = ask(&mut backend, &requests, Encoding::Joint).unwrap();
        assert_eq!(answers[0], expected(" sat there", None));
        assert_eq!(
            answers[0],
            Answer::Continuation(Scored { log_prob: -2.5, tokens: 2, greedy: false, unconditional: None })
        );
        assert_eq!(answers[1], expected(" going long", Some(-2.75)));
        assert_eq!(answers[2], expected(" sat", None));
        assert_eq!(answers[3], expected(" ü", None));
        assert_eq!(answers[4], expected(" large", None));
        for i in 0..40 {
            assert_eq!(answers[5 + i], expected(&format!(" number{}", "x".repeat(i)), None));
        }
        // Several prompts in a request, and the settings of each.
        let posted = server.posted();
        assert_eq!(posted.len(), 6, "46 prompts in eights");
        for body in &posted {
            assert_eq!((&body["echo"], &body["logprobs"], &body["max_tokens"]), (&json!(true), &json!(1), &json!(1)));
            assert_eq!(body["model"], "tiny");
        }
        let calls = server.calls.lock().unwrap();
        assert!(calls.iter().all(|call| call.headers["authorization"] == "Bearer secret"));
    }
}

#[test]
fn a_token_over_the_boundary_is_the_continuations() {
    let server = scoring(Kind::Vllm);
    let answers = ask(&mut server.backend(), &[continuation("The ca", "t", None)], Encoding::Joint).unwrap();
    assert_eq!(answers, [expected(" cat", None)]);
    // And the first token has no log-probability.
    let error = ask(&mut server.backend(), &[continuation("T", "he", None)], Encoding::Joint).unwrap_err();
    assert!(error.to_string().contains("first token"), "{error}");
}

#[test]
fn continuations_as_tokens() {
    let apart = |_: Encoding, context: &str, continuation: &str| {
        Ok(TokenPair { context: ids(context), continuation: ids(continuation) })
    };
    for kind in [Kind::Vllm, Kind::NoMore] {
        let server = scoring(kind);
        let mut backend = server.backend().encode(Box::new(apart), json!("words"));
        assert_eq!(backend.identity()["tokenizer"], "words");
        let long = (0..30).map(|i| format!(" w{i}")).collect::<String>();
        let requests = [
            continuation("The ca", "t sat", Some("Answer:")),
            // The context is cut from the left to what the server has room for, the continuation never.
            continuation(&long, " large gift", None),
        ];
        let answers = ask(&mut backend, &requests, Encoding::Separate).unwrap();
        assert_eq!(answers[0], expected("t sat", Some(log_prob("t") + log_prob(" sat"))));
        assert_eq!(answers[1], expected(" large gift", None));
        let prompts = server.posted()[0]["prompt"].as_array().unwrap().clone();
        let sent: Vec<usize> = prompts.iter().map(|prompt| prompt.as_array().unwrap().len()).collect();
        // The context of 12 tokens has one that is generated.
        assert_eq!(sent, [4, 3, 11]);
        let error = ask(&mut backend, &[continuation("a", &long, None)], Encoding::Separate).unwrap_err();
        assert!(error.to_string().contains("30 tokens, and the server's context 12"), "{error}");
    }
    // A server that puts a token of its own before these is noticed.
    let server = scoring(Kind::Bos);
    let mut backend = server.backend().encode(Box::new(apart), json!("words"));
    let error = ask(&mut backend, &[continuation("The", " cat", None)], Encoding::Separate).unwrap_err();
    assert!(error.to_string().contains("2 tokens were sent"), "{error}");
}

#[test]
fn text_is_not_sent_where_tokens_are_meant() {
    let server = scoring(Kind::Vllm);
    for encoding in [Encoding::Separate, Encoding::Foundry] {
        let error = ask(&mut server.backend(), &[continuation("The", " cat", None)], encoding).unwrap_err();
        assert!(error.to_string().contains("give the tokenizer"), "{error}");
    }
    assert!(server.posted().is_empty());
}

/// The error of a server that scores no continuations, and how often it was asked.
fn refusal(reply: impl Fn(&Call, usize) -> Reply + Send + Sync + 'static) -> (String, usize) {
    let server = Server::new(
        move |call, number| {
            if call.path == "/v1/models" { Some((200, "", models())) } else { reply(call, number) }
        },
    );
    let requests: Vec<Request> = (0..100).map(|i| continuation("The", &format!(" cat{i}"), None)).collect();
    let error = ask(&mut server.backend(), &requests, Encoding::Joint).unwrap_err();
    (error.to_string(), server.posted().len())
}

#[test]
fn servers_without_echo_are_refused_at_the_first_request() {
    let choices = |choice: Value| {
        move |call: &Call, _: usize| {
            let all: Vec<Value> = (0..call.body["prompt"].as_array().unwrap().len())
                .map(|index| {
                    let mut choice = choice.clone();
                    choice["index"] = json!(index);
                    choice
                })
                .collect();
            Some((200, "", json!({"choices": all})))
        }
    };
    // llama.cpp's refusal.
    let message =
        json!({"error": {"code": 400, "message": "Only no echo is supported", "type": "invalid_request_error"}});
    let (error, asked) = refusal(move |_, _| Some((400, "", message.clone())));
    assert!(error.contains("answered 400: Only no echo is supported"), "{error}");
    assert_eq!(asked, 1);
    // Its log-probabilities, which have the form of chat.
    let chat = json!({"text": " x", "logprobs": {"content": [{"token": " x", "logprob": -1.0, "top_logprobs": []}]}});
    let (error, asked) = refusal(choices(chat));
    assert!(error.contains("in the form of chat") && error.contains("vLLM"), "{error}");
    assert_eq!(asked, 1);
    // OpenAI's newer models.
    let (error, asked) = refusal(choices(json!({"text": " x", "logprobs": null})));
    assert!(error.contains("no log-probabilities"), "{error}");
    assert_eq!(asked, 1);
    // One that takes no notice of `echo`.
    let own = json!({"text": " x", "logprobs": {
        "tokens": [" x"], "token_logprobs": [-1.0], "top_logprobs": [{" x": -1.0}], "text_offset": [0],
    }});
    let (error, asked) = refusal(choices(own));
    assert!(error.contains("does not echo"), "{error}");
    assert_eq!(asked, 1);
    // Fewer choices than prompts.
    let (error, _) = refusal(|_, _| Some((200, "", json!({"choices": [{"index": 0, "text": ""}]}))));
    assert!(error.contains("8 prompts were sent, and the answer has 1 choices"), "{error}");
    // Something else altogether, a wrong key, an address that has moved, an error with the status of success.
    for (status, headers, body, expected) in [
        (200, "", json!("hello"), "no choices"),
        (401, "", json!({"error": {"message": "Incorrect API key provided"}}), "is the key right?"),
        (308, "Location: https://other.example/v1\r\n", json!({}), "https://other.example/v1 now"),
        (200, "", json!({"error": {"message": "out of memory"}}), "out of memory"),
        (422, "", json!({"detail": "prompt too long"}), "422: prompt too long"),
    ] {
        let (error, asked) = refusal(move |_, _| Some((status, headers, body.clone())));
        assert!(error.contains(expected), "{error}");
        assert_eq!(asked, 1, "{expected}");
    }
}

#[test]
fn what_may_pass_is_tried_again() {
    let server = Server::new(|call, number| match (call.path.as_str(), number) {
        ("/v1/models", _) => Some((200, "", models())),
        (_, 0) => Some((429, "Retry-After: 0\r\n", json!({"error": {"message": "slow down"}}))),
        (_, 1) => Some((503, "", json!({"error": {"message": "loading"}}))),
        (_, 2) => None,
        (_, number) if number % 5 == 0 => Some((500, "", json!({}))),
        _ => Some((200, "", echoed(&call.body, Kind::Vllm))),
    });
    let requests: Vec<Request> =
        (0..60).map(|i| continuation("The", &format!(" cat{}", "t".repeat(i)), None)).collect();
    let answers = ask(&mut server.backend(), &requests, Encoding::Joint).unwrap();
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, expected(&format!(" cat{}", "t".repeat(i)), None));
    }
    // Not for ever.
    let (error, asked) = refusal(|_, _| Some((500, "", json!({"error": {"message": "broken"}}))));
    assert!(error.contains("in 6 attempts: it answered 500: broken"), "{error}");
    assert_eq!(asked, 6);
}

#[test]
fn texts_and_conversations() {
    let server = Server::new(|call, _| match call.path.as_str() {
        "/v1/models" => Some((200, "", models())),
        "/v1/completions" => {
            let count = call.body["n"].as_u64().unwrap();
            let text =
                |index| json!({"index": index, "text": format!(" sample {index} of {}\nNext", call.body["prompt"])});
            Some((200, "", json!({"choices": (0..count).rev().map(text).collect::<Vec<_>>()})))
        }
        // Gives one sample, whatever is asked.
        "/v1/chat/completions" => {
            let content = format!("seed {}", call.body["seed"]);
            let message = json!({"role": "assistant", "content": content, "refusal": null});
            Some((200, "", json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})))
        }
        _ => None,
    });
    let messages = vec![Message::new("system", "Be brief."), Message::new("user", "Hello")];
    let requests = [
        generation(Prompt::Text("Once".to_owned()), &["a", "b", "c", "d", "\n"], 3),
        generation(Prompt::Chat { messages: messages.clone(), begin: String::new() }, &[], 3),
        generation(Prompt::Chat { messages, begin: "Answer:".to_owned() }, &["x"], 1),
    ];
    let answers = ask(&mut server.backend(), &requests, Encoding::Joint).unwrap();
    let texts = |texts: &[&str]| Answer::Generation { texts: texts.iter().map(|text| (*text).to_owned()).collect() };
    // The stop `a` is in `sample`; the fifth, which was not sent, ends the text as well.
    assert_eq!(answers[0], texts(&[" s", " s", " s"]));
    assert_eq!(answers[1], texts(&["seed 7", "seed 8", "seed 9"]));
    assert_eq!(answers[2], texts(&["seed 7"]));
    let posted = server.posted();
    let with = |path: &str| posted.iter().find(|body| body.get(path).is_some()).unwrap();
    let text = with("prompt");
    assert_eq!(text["stop"], json!(["a", "b", "c", "d"]));
    assert_eq!((&text["temperature"], &text["top_p"], &text["max_tokens"]), (&json!(0.8), &json!(0.95), &json!(16)));
    assert!(text.get("top_k").is_none() && text.get("logprobs").is_none(), "{text}");
    let begun = with("continue_final_message");
    assert_eq!(begun["messages"][2], json!({"role": "assistant", "content": "Answer:"}));
    assert_eq!(begun["add_generation_prompt"], json!(false));
}

#[test]
fn an_interruption_does_not_wait_for_the_server() {
    let server = Server::new(|call, _| {
        if call.path == "/v1/models" {
            return Some((200, "", models()));
        }
        thread::sleep(Duration::from_secs(10));
        None
    });
    let mut backend = server.backend();
    let request = continuation("The", " cat", None);
    let interrupt = AtomicBool::new(false);
    let begin = Instant::now();
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            backend.answer(&[(&request, Encoding::Joint)], &interrupt, &mut |_, _| panic!("there is no answer"))
        });
        thread::sleep(Duration::from_millis(200));
        interrupt.store(true, Ordering::Relaxed);
        run.join().unwrap().unwrap();
    });
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_error_of_whoever_takes_the_answers_is_returned() {
    let server = scoring(Kind::Vllm);
    let request = continuation("The", " cat", None);
    let error = server.backend().answer(&[(&request, Encoding::Joint)], &AtomicBool::new(false), &mut |_, _| {
        Err(BackendError::Kept(std::io::Error::other("full")))
    });
    assert!(matches!(error, Err(BackendError::Kept(_))));
}

#[test]
fn which_model() {
    let never = AtomicBool::new(false);
    let connect = |server: &Server, model| {
        ServerBackend::connect(server.endpoint(), model, ServerSettings::default(), &never)
            .map(|backend| backend.identity())
            .map_err(|error| error.to_string())
    };
    let server = scoring(Kind::Vllm);
    let identity = connect(&server, None).unwrap();
    let base = format!("{}/v1", server.address);
    let served = json!({"id": "tiny", "object": "model", "owned_by": "vllm", "max_model_len": 12});
    let whole = json!({"server": base, "model": "tiny", "served": served, "tokenizer": null, "context": 12});
    assert_eq!(identity, whole);
    assert_eq!(connect(&server, Some("other")).unwrap()["served"], Value::Null);
    let two = Server::new(|_, _| Some((200, "", json!({"data": [{"id": "a"}, {"id": "b"}]}))));
    assert!(connect(&two, None).unwrap_err().contains("name one of a, b"));
    assert_eq!(connect(&two, Some("b")).unwrap()["model"], "b");
    let none = Server::new(|_, _| Some((404, "", json!({}))));
    assert_eq!(connect(&none, Some("b")).unwrap()["model"], "b");
    assert!(connect(&none, None).unwrap_err().contains("answered 404"));
}

#[test]
fn addresses() {
    let new = |address: &str| Endpoint::new(address, None, Duration::from_secs(1));
    for (address, expected) in [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1"),
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080/v1"),
        ("http://host/v1/completions", "http://host/v1"),
        ("http://host/v1/chat/completions", "http://host/v1"),
        ("http://host/api/v3", "http://host/api/v3"),
    ] {
        assert_eq!(new(address).unwrap().address(), expected);
    }
    for address in
        ["", "host", "ftp://host", "http://", "http://user:key@host/v1", "http://host/v1?key=1", "http://a b"]
    {
        assert!(matches!(new(address), Err(EndpointError::Address { .. })), "{address}");
    }
    // Nothing listens there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = new(&format!("http://{closed}")).unwrap().first_wait(Duration::from_millis(1));
    let error = endpoint.get("/models", &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, EndpointError::Unreachable { attempts: 6, .. }), "{error}");
    let interrupted = endpoint.get("/models", &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(interrupted, EndpointError::Interrupted));
}

#[test]
fn concurrency_is_bounded() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inside, highest) = (now.clone(), most.clone());
    let server = Server::new(move |call, _| {
        if call.path == "/v1/models" {
            return Some((200, "", models()));
        }
        highest.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(20));
        let answer = echoed(&call.body, Kind::Vllm);
        inside.fetch_sub(1, Ordering::SeqCst);
        Some((200, "", answer))
    });
    let one = NonZero::<usize>::MIN;
    let settings = ServerSettings { concurrency: one.saturating_add(2), prompts: one, context: None };
    let mut backend = ServerBackend::connect(server.endpoint(), None, settings, &AtomicBool::new(false)).unwrap();
    let requests: Vec<Request> = (0..30).map(|i| continuation("The", &format!(" cat{i}"), None)).collect();
    ask(&mut backend, &requests, Encoding::Joint).unwrap();
    assert_eq!(server.posted().len(), 30);
    let most = most.load(Ordering::SeqCst);
    assert!((2..=3).contains(&most), "{most} at once");
}
