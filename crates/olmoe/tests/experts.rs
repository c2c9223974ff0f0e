//! `olmoe experts` on a small random model.

use std::fs;

use serde_json::Value;

mod program;

use program::desk::Desk;
use program::olmoe;

/// Ids of the experts in a file of `olmoe logits --routing`: `[layer][token × k]`.
fn routing(bytes: &[u8]) -> Vec<Vec<i32>> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensor = &header["routing.ids"];
    let at = |i: usize| 8 + length + tensor["data_offsets"][i].as_u64().unwrap() as usize;
    let ids = bytes[at(0)..at(1)].chunks_exact(4).map(|id| i32::from_le_bytes(id.try_into().unwrap()));
    let ids: Vec<i32> = ids.collect();
    ids.chunks(ids.len() / tensor["shape"][0].as_u64().unwrap() as usize).map(<[i32]>::to_vec).collect()
}

#[test]
fn the_counts_are_those_of_the_pass() {
    let desk = Desk::new("experts", 64);
    let text = "A mixture of experts.";
    fs::write(desk.path("a.txt"), text).unwrap();
    let found = desk.json(&["a.txt", "--json", "--precision", "fp32"]);
    assert_eq!((&found["experts"], &found["top_k"]), (&8.into(), &2.into()));
    assert_eq!((&found["texts"][0]["name"], &found["texts"][0]["tokens"]), (&"a".into(), &text.len().into()));

    let (hf, out) = (desk.path("hf"), desk.path("logits.safetensors"));
    let paths = [hf.to_str().unwrap(), out.to_str().unwrap()];
    let done = olmoe(&["logits", "-m", paths[0], "--text", text, "--out", paths[1], "--routing"], &[]);
    assert_eq!(done.code, 0, "{}", done.err);
    for (layer, ids) in routing(&fs::read(&out).unwrap()).iter().enumerate() {
        let expected: Vec<usize> = (0..8).map(|expert| ids.iter().filter(|id| **id == expert).count()).collect();
        assert_eq!(found["texts"][0]["layers"][layer]["counts"], serde_json::json!(expected), "layer {layer}");
    }
    // In pieces no token sees those of the piece before.
    let pieces = desk.json(&["a.txt", "--json", "--precision", "fp32", "--context", "5"]);
    assert_eq!(pieces["texts"][0]["tokens"], text.len());
    assert_ne!(pieces["texts"], found["texts"]);
}

#[test]
fn texts_are_documents_or_files_as_they_are() {
    let desk = Desk::new("experts", 64);
    let documents = "{\"text\": \"abc\", \"id\": \"1\"}\nnonsense\n{\"text\": \"de\", \"id\": \"2\"}\n";
    fs::write(desk.path("docs.jsonl"), documents).unwrap();
    fs::write(desk.path("b=c.txt"), "fghij").unwrap();
    let done = desk.run(&["docs.jsonl", "b=c.txt", "name=b=c.txt", "--plot", "map.svg", "--layers", "1"], "");
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("docs.jsonl line 2: "), "{}", done.err);
    // Every document has its end.
    for line in ["docs  7 tokens", "b=c   5 tokens", "name  5 tokens", "2 of 8 experts"] {
        assert!(done.out.contains(line), "{line}: {}", done.out);
    }
    assert!(!done.out.contains("\n    0  "), "{}", done.out);
    let map = fs::read_to_string(desk.path("map.svg")).unwrap();
    assert!(map.contains("1 docs") && map.contains("1 name"), "{map}");
    assert_eq!(desk.json(&["b=c.txt", "--json", "--tokens", "3"])["texts"][0]["tokens"], 3);
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let desk = Desk::new("experts", 64);
    fs::write(desk.path("a.txt"), "abc").unwrap();
    fs::write(desk.path("empty.txt"), "").unwrap();
    fs::write(desk.path("bad.jsonl.gz"), "no gzip").unwrap();
    for (words, code, expected) in [
        (vec!["missing.txt"], 1, "cannot read missing.txt"),
        (vec!["empty.txt"], 1, "empty.txt: the file has no text"),
        (vec!["bad.jsonl.gz"], 1, "cannot read bad.jsonl.gz"),
        (vec!["a.txt", "--layers", "2"], 1, "of this model are [0, 1]"),
        (vec!["a.txt", "--context", "65"], 1, "64 tokens at most"),
        (vec!["a.txt", "--plot", "map.gif"], 1, ".svg"),
        (vec!["a.txt", "--tokens", "0"], 2, "above 0"),
        (vec![], 2, "FILE"),
    ] {
        let done = desk.run(&words, "");
        assert_eq!(done.code, code, "{words:?}: {}", done.err);
        assert!(done.err.contains(expected), "{words:?}: {}", done.err);
    }
}
