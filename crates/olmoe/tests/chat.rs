//! `olmoe chat` on the command line, with a small random model whose tokens are bytes.

mod program;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Command;

use program::desk::Desk;
use serde_json::{Value, json};

/// The letter a, three times, whatever is said.
const AAA: [&str; 5] = ["--logit-bias", "97=1e9", "-n", "3", "--ignore-eos"];

fn desk() -> Desk {
    Desk::new("chat", 512)
}

fn saved(desk: &Desk, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(desk.path(name)).unwrap()).unwrap()
}

fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

#[test]
fn lines_are_turns_and_only_new_tokens_are_read() {
    let desk = desk();
    let input = "Hi\nand\\\nmore\n\n\"\"\"\n/block\n\n\"\"\"\n/save chat.json\n";
    let done = desk.run(&AAA, input);
    assert_eq!((done.code, done.out.as_str()), (0, "aaa\naaa\naaa\n"), "{}", done.err);
    let expected = [
        message("user", "Hi"),
        message("assistant", "aaa"),
        message("user", "and\nmore"),
        message("assistant", "aaa"),
        message("user", "/block\n"),
        message("assistant", "aaa"),
    ];
    assert_eq!(saved(&desk, "chat.json"), json!(expected));
    // The end of text that begins it, <|user|>, a line break, Hi, a line break, <|assistant|>, a line break.
    assert!(done.err.contains("27 tokens read, 0 known; 3 generated"), "{}", done.err);
    // The last a, an end of text and a line break, then as above.
    assert!(done.err.contains("35 tokens read, 29 known; 3 generated"), "{}", done.err);
    assert!(
        done.err.contains("tulu, the template of OLMoE's fine-tuning, is used")
            && done.err.contains("chat.json holds 6 messages")
    );
    let quiet = desk.run(&[&AAA[..], &["--quiet"]].concat(), input);
    assert_eq!((quiet.out, quiet.err), (done.out, String::new()));
}

#[test]
fn answers_are_those_of_the_text_that_the_template_makes() {
    let desk = desk();
    let input = "Hi\n/set logit_bias none\n/set max_tokens 20\nagain\n";
    let done = desk.run(&[&AAA[..], &["--seed", "5", "--system", "Be."]].concat(), input);
    assert_eq!(done.code, 0, "{}", done.err);
    let text =
        "<|endoftext|><|system|>\nBe.\n<|user|>\nHi\n<|assistant|>\naaa<|endoftext|>\n<|user|>\nagain\n<|assistant|>\n";
    let hf = desk.path("hf");
    let words =
        ["generate", "-m", hf.to_str().unwrap(), "-p", text, "-n", "20", "--seed", "6", "--ignore-eos", "--quiet"];
    let expected = program::olmoe(&words, &[]);
    assert_eq!(done.out, format!("aaa\n{}", expected.out));
    // With other threads, other settings of the seed, and from a file: the same.
    let messages =
        json!([message("system", "Be."), message("user", "Hi"), message("assistant", "aaa"), message("user", "again")]);
    std::fs::write(desk.path("chat.json"), messages.to_string()).unwrap();
    let words = ["-n", "20", "--ignore-eos", "--threads", "1"];
    let loaded = desk.run(&words, "/set seed 5\n/load chat.json\n/reset\n/system\n");
    assert_eq!(loaded.out, format!("{}Be.\n", expected.out), "{}", loaded.err);
}

#[test]
fn commands() {
    let desk = desk();
    let run = |input: &str| desk.run(&[&AAA[..], &["--quiet", "--seed", "3"]].concat(), input);
    let done = run("/help\n/exit\nnot read\n");
    assert_eq!(done.code, 0);
    for name in ["/help", "/reset", "/save FILE", "/load FILE", "/system", "/set", "/experts", "/exit"] {
        assert!(done.out.contains(name), "{name}");
    }
    let done = run("/set\n");
    assert_eq!(done.out.lines().count(), 15);
    assert!(
        done.out.contains("temperature          0.8\n") && done.out.contains("seed                 3\n"),
        "{}",
        done.out
    );
    let done = run("/set max_tokens 2\n/set stop aa\nx\n/set stop none\nx\n");
    assert_eq!((done.code, done.out.as_str()), (0, "\naa\n"), "{}", done.err);
    let done = run("/system\n/system Be brief.\n/system\nx\n/reset\n/save a\n/system none\n/save b\n");
    assert_eq!((done.code, done.out.as_str()), (0, "none\nBe brief.\naaa\n"), "{}", done.err);
    assert_eq!(saved(&desk, "a"), json!([message("system", "Be brief.")]));
    assert_eq!(saved(&desk, "b"), json!([]));
    let done = run("x\n/experts\n");
    let table: Vec<&str> = done.out.lines().collect();
    assert_eq!(table.len(), 5, "{}", done.out);
    assert_eq!(table[1], "3 tokens, 2 of 8 experts each");
    assert!(
        table[3].starts_with("    0 ") && table[4].starts_with("    1 ") && table[4].contains(" %"),
        "{}",
        done.out
    );

    for (input, expected) in [
        ("/sav x\n", "error: there is no command /sav, did you mean /save? (/help lists them"),
        ("/nothing\n", "error: there is no command /nothing ("),
        ("/set temprature 1\n", "there is no setting temprature; did you mean temperature?"),
        ("/set top_p 2\n", "top_p is 2, expected above 0"),
        ("/set top_k few\n", "top_k: invalid type: string \"few\""),
        ("/set max_tokens 0\n", "max_tokens is 0"),
        ("/set prompt x\n", "there is no setting prompt"),
        ("/set logit_bias 300=1\n", "id 300 is outside"),
        ("/set top_k\n", "a name and a value"),
        ("/reset now\n", "/reset takes no argument"),
        ("/save\n", "/save needs a file name"),
        ("/save no/such/folder/x\n", "cannot write no/such/folder/x"),
        ("/experts\n", "no answer yet"),
        ("\"\"\"\nno end\n", "the input ends in a block"),
    ] {
        let done = run(input);
        assert_eq!((done.code, done.out.as_str()), (1, ""), "{input}: {}", done.err);
        assert!(done.err.contains(expected) && done.err.lines().count() == 1, "{input}: {}", done.err);
        // It goes on.
        assert!(input.contains("no end") || run(&format!("{input}x\n")).out == "aaa\n", "{input}");
    }
}

#[test]
fn files_that_hold_no_conversation() {
    let desk = desk();
    for (name, text, expected) in [
        ("missing", None, "cannot read bad.json"),
        ("no JSON", Some("[{"), "EOF while parsing an object at line 1 column 2"),
        ("no list", Some("{}"), "expected a JSON list of messages"),
        ("empty", Some("[]"), "holds no message"),
        ("no content", Some(r#"[{"role": "user"}]"#), "missing field `content`"),
        ("more", Some(r#"[{"role": "user", "content": "", "name": "x"}]"#), "unknown field `name`"),
        ("a number", Some("[\n{\"role\": \"user\", \"content\": 1}]"), "line 2"),
        (
            "role",
            Some(r#"[{"role": "user", "content": ""}, {"role": "tool", "content": ""}]"#),
            "message 2: the role is \"tool\"",
        ),
        (
            "system",
            Some(r#"[{"role": "user", "content": ""}, {"role": "system", "content": ""}]"#),
            "message 2: only the first one may be system",
        ),
    ] {
        let path = desk.path("bad.json");
        match text {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => assert!(!path.exists()),
        }
        let done = desk.run(&[&AAA[..], &["--quiet"]].concat(), "Hi\n/load bad.json\n/save good.json\n");
        assert_eq!(done.code, 1, "{name}");
        assert!(
            done.err.starts_with("error: ") && done.err.contains("bad.json") && done.err.contains(expected),
            "{name}: {}",
            done.err
        );
        assert_eq!(saved(&desk, "good.json"), json!([message("user", "Hi"), message("assistant", "aaa")]), "{name}");
    }
}

#[test]
fn templates_and_where_they_come_from() {
    let desk = desk();
    // Tokens that are read tell the templates apart.
    let read = |words: &[&str], expected: &str| {
        let done = desk.run(&[&AAA[..], words].concat(), "Hi\n");
        assert_eq!((done.code, done.out.as_str()), (0, "aaa\n"), "{}", done.err);
        assert!(done.err.contains(&format!("{expected} tokens read")), "{expected}: {}", done.err);
    };
    let config = desk.path("hf/tokenizer_config.json");
    let mut settings: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let mut own = |template: Value| {
        settings["chat_template"] = template;
        std::fs::write(&config, settings.to_string()).unwrap();
    };
    own(json!("a{{ messages[0].content }}"));
    read(&[], "3");
    own(json!([
        {"name": "tool_use", "template": "{{ raise_exception('no') }}"},
        {"name": "default", "template": "ab{{ messages[0].content }}"},
    ]));
    read(&[], "4");
    let hf = desk.path("hf").to_str().unwrap().to_owned();
    let gguf = desk.path("model.gguf").to_str().unwrap().to_owned();
    let done = program::olmoe(&["convert", &hf, &gguf, "--to", "gguf"], &[]);
    assert_eq!(done.code, 0, "{}", done.err);
    let mut chat = assert_cmd::Command::new(program::PROGRAM);
    let words = [&["chat", "-m", &gguf][..], &AAA].concat();
    chat.args(words).write_stdin("Hi\n").assert().success().stdout("aaa\n");
    let said = chat.output().unwrap().stderr;
    assert!(String::from_utf8(said).unwrap().contains("4 tokens read"));
    std::fs::write(desk.path("hf/chat_template.jinja"), "abc{{ messages[0].content }}").unwrap();
    read(&[], "5");
    std::fs::write(desk.path("mine"), "abcd{{ messages[0].content }}<|endoftext|>").unwrap();
    read(&["--chat-template", "mine"], "7");

    for (name, template, input, expected) in [
        ("syntax", "a\n{% for m in messages %}\n{{ m.content", "", "mine: the chat template, line 3: syntax error"),
        ("unknown filter", "\n{{ messages | nothing }}", "", "in line 2: unknown filter"),
        (
            "two in a row",
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}x",
            "/system Be.\n",
            "the chat template refuses this conversation: no system, please",
        ),
        ("nothing", "", "Hi\n", "the prompt has no tokens"),
        ("missing", "", "", "cannot read nowhere"),
    ] {
        std::fs::write(desk.path("mine"), template).unwrap();
        let file = if name == "missing" { "nowhere" } else { "mine" };
        let done = desk.run(&["--chat-template", file], input);
        assert_eq!((done.code, done.out.as_str()), (1, ""), "{name}: {}", done.err);
        assert!(done.err.contains("error: ") && done.err.contains(expected), "{name}: {}", done.err);
    }
    own(json!([{"name": "one", "template": "x"}, {"name": "two", "template": "x"}]));
    std::fs::remove_file(desk.path("hf/chat_template.jinja")).unwrap();
    let done = desk.run(&[], "");
    assert!(done.code == 0 && done.err.contains("with one that is named default"), "{}", done.err);
}

#[test]
fn a_conversation_that_outgrows_the_context() {
    let desk = Desk::new("chat", 128);
    let words = [&AAA[..], &["--quiet", "--system", "Be."]].concat();
    let done = desk.run(&words, "one\ntwo\nthree\nfour\n/save chat.json\n");
    assert_eq!((done.code, done.out.as_str()), (0, "aaa\naaa\naaa\naaa\n"), "{}", done.err);
    assert!(
        done.err.contains("outgrown the model's context of 128 tokens; dropped from its beginning: 2 messages"),
        "{}",
        done.err
    );
    let messages = saved(&desk, "chat.json");
    let messages = messages.as_array().unwrap();
    assert_eq!((&messages[0], messages.last()), (&message("system", "Be."), Some(&message("assistant", "aaa"))));
    assert!(messages.len() < 9 && messages[1]["role"] == "user", "{messages:?}");
    let long = "x".repeat(128);
    let done = desk.run(&words, &format!("{long}\n/save chat.json\nHi\n"));
    assert_eq!((done.code, done.out.as_str()), (1, "aaa\n"));
    assert!(done.err.contains("but the model's context is 128"), "{}", done.err);
    assert_eq!(saved(&desk, "chat.json"), json!([message("system", "Be.")]), "it is taken back");
    // Without a limit an answer goes as far as the context.
    let done = desk.run(&["--logit-bias", "97=1e9", "--ignore-eos"], "Hi\n");
    assert_eq!((done.code, done.out.len()), (0, 128 - 27 + 1));
    assert!(done.err.contains("the model's context is full"), "{}", done.err);
}

#[test]
fn what_is_wrong_with_the_flags_is_said_at_once() {
    let desk = desk();
    for (words, code, expected) in [
        (&["--temp", "-1"][..], 1, "temperature is -1"),
        (&["-n", "5", "--min-tokens", "6"], 1, "min_tokens is 6"),
        (&["--samples", "2"], 2, "--samples"),
    ] {
        let done = desk.run(words, "Hi\n");
        assert_eq!((done.code, done.out.as_str()), (code, ""), "{words:?}");
        assert!(done.err.contains(expected), "{words:?}: {}", done.err);
    }
    std::fs::remove_file(desk.path("hf/tokenizer.json")).unwrap();
    let done = desk.run(&[], "Hi\n");
    assert!(done.code == 1 && done.err.contains("has no tokenizer"), "{}", done.err);
}

#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_stops_an_answer_and_ends_the_program_between_two() {
    let desk = Desk::new("chat", 16000);
    let interrupt = |id: u32| assert!(Command::new("kill").args(["-INT", &id.to_string()]).status().unwrap().success());
    let mut child = desk.start(&["--logit-bias", "97=1e9", "--ignore-eos"]);
    let (mut input, mut out) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    input.write_all(b"Hi\n").unwrap();
    out.read_exact(&mut [0; 3]).unwrap();
    interrupt(child.id());
    let mut rest = String::new();
    out.read_line(&mut rest).unwrap();
    assert!(rest.len() < 15000, "{}", rest.len());
    input.write_all(b"/save chat.json\n/set max_tokens 2\nHi\n").unwrap();
    let mut next = String::new();
    out.read_line(&mut next).unwrap();
    assert_eq!(next, "aa\n");
    let messages = saved(&desk, "chat.json");
    assert_eq!(messages, json!([message("user", "Hi"), message("assistant", &format!("aaa{}", rest.trim_end()))]));
    interrupt(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(err.contains("the answer was stopped"), "{err}");
}

/// What a template says of the conversation, which it then refuses.
fn said(desk: &Desk, template: &[u8]) -> String {
    std::fs::write(desk.path("t.jinja"), template).unwrap();
    desk.run(&["--chat-template", "t.jinja", "--quiet"], "q").err
}

#[test]
fn templates_as_jinja_has_them() {
    let desk = desk();
    let settings = json!({"eos_token": "<|endoftext|>", "pad_token": {"content": "!"}, "unk_token": "<|endoftext|>"});
    std::fs::write(desk.path("hf").join("tokenizer_config.json"), settings.to_string()).unwrap();
    for (expression, expected) in [
        ("pad_token", "!"),
        ("unk_token", "<|endoftext|>"),
        ("messages[0].tool_calls|length", "0"),
        ("'%s-%d' % ('a', 3)", "a-3"),
        ("'a.b.c'.rsplit('.', 1)[0]", "a.b"),
        ("{} is sequence", "True"),
    ] {
        let said = said(&desk, format!("{{{{ raise_exception('[' ~ ({expression}) ~ ']') }}}}").as_bytes());
        assert!(said.contains(&format!("refuses this conversation: [{expected}]")), "{expression}: {said}");
    }
}

#[test]
fn line_breaks_of_windows_in_a_template_are_line_breaks() {
    let desk = desk();
    let tokens = |template: &str| {
        std::fs::write(desk.path("t.jinja"), template).unwrap();
        let done = desk.run(&[&AAA[..], &["--chat-template", "t.jinja"]].concat(), "q");
        assert_eq!(done.code, 0, "{}", done.err);
        done.err.split(" tokens read").next().unwrap().lines().last().unwrap().to_owned()
    };
    let template = "<|user|>\n{{ messages[0].content }}\n<|assistant|>\n";
    let expected = tokens(template);
    assert_eq!(tokens(&template.replace('\n', "\r\n")), expected);
    assert_eq!(tokens(&format!("\u{feff}{template}")), expected);
}

#[test]
fn conversations_of_other_systems() {
    let desk = desk();
    std::fs::write(desk.path("c.json"), "\u{feff}[{\"role\":\"user\",\"content\":\"hi\"}]\r\n").unwrap();
    let done = desk.run(&[&AAA[..], &["--quiet"]].concat(), "\u{feff}/load c.json\r\n");
    assert_eq!((done.code, done.out.as_str()), (0, "aaa\n"), "{}", done.err);
    let mut child = desk.start(&[&AAA[..], &["--quiet"]].concat());
    child.stdin.take().unwrap().write_all(b"a\n\xFF\nb\n").unwrap();
    let done = child.wait_with_output().unwrap();
    // The line that is no text is named, and the conversation goes on.
    assert_eq!(String::from_utf8_lossy(&done.stdout), "aaa\naaa\n");
    assert!(String::from_utf8_lossy(&done.stderr).contains("line 2 of the input is not UTF-8 text"));
}
