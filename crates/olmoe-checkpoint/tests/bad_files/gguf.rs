//! GGUF files.

use std::fs::File;

use olmoe_checkpoint::gguf::value::ValueType;

use crate::gguf_file::{Gguf, array, text};
use crate::good::good;
use crate::table::{Table, whole};

/// Name, change, and parts of the error's text.
type Row<'r> = (&'r str, &'r dyn Fn(&mut Gguf), &'r [&'r str]);

fn rows(table: &mut Table, file: &Gguf, rows: Vec<Row<'_>>) {
    for (name, change, expected) in rows {
        let mut bad = file.clone();
        change(&mut bad);
        table.file(name, ".gguf", &bad.bytes(), expected);
    }
}

fn u32s(x: u32) -> [u8; 4] {
    x.to_le_bytes()
}

fn f32s(x: f32) -> [u8; 4] {
    x.to_le_bytes()
}

const ROUTER: &str = "blk.1.ffn_gate_inp.weight";
const UP: &str = "blk.1.ffn_up_exps.weight";
const DOWN: &str = "blk.1.ffn_down_exps.weight";

#[test]
fn containers() {
    let mut table = Table::new();
    let file = Gguf::read(&good().gguf);
    let name_text = |bytes: &'static [u8]| move |g: &mut Gguf| g.set("general.name", ValueType::Text, bytes);
    #[rustfmt::skip]
    rows(&mut table, &file, vec![
        ("another magic", &|g| g.magic = *b"GGML", &["begins with \"GGML\""]),
        ("version 1", &|g| g.version = 1, &["GGUF version 1"]),
        ("version 4", &|g| g.version = 4, &["GGUF version 4"]),
        ("big-endian", &|g| g.version = 3u32.swap_bytes(), &["big-endian"]),
        ("2^63 tensors", &|g| g.num_tensors = Some(1 << 63), &["the number of tensors is 9223372036854775808"]),
        ("a million tensors", &|g| g.num_tensors = Some(1 << 20), &["a tensor's name"]),
        ("one tensor more", &|g| g.num_tensors = Some(g.tensors.len() as u64 + 1), &["tensor"]),
        ("one tensor less", &|g| g.num_tensors = Some(g.tensors.len() as u64 - 1), &["tensor"]),
        ("2^64-1 entries", &|g| g.num_entries = Some(u64::MAX), &["the number of metadata entries is 18446744073709551615"]),
        ("65536 entries", &|g| g.num_entries = Some(1 << 16), &["byte "]),
        ("one entry less", &|g| g.num_entries = Some(g.entries.len() as u64 - 1), &["tensor"]),
        ("key of 2^63", &|g| g.entries[3].key_len = Some(1 << 63), &["the length of a key is 9223372036854775808"]),
        ("key of 2^64-1", &|g| g.entries[0].key_len = Some(u64::MAX), &["the length of a key"]),
        ("long key", &|g| g.entries[0].key = vec![b'k'; 1025], &["the length of a key is 1025"]),
        ("key that is no text", &|g| g.entries[2].key = vec![0xff, 0xfe], &["a key is not UTF-8"]),
        ("key twice", &|g| { let again = g.entries[4].clone(); g.entries.push(again) }, &["key \"olmoe.context_length\" occurs twice"]),
        ("value type 13", &|g| g.entries[1].kind = 13, &["general.type: value type 13"]),
        ("value type 2^32-1", &|g| g.entries[1].kind = u32::MAX, &["value type 4294967295"]),
        ("control characters in a key", &|g| (g.entries[1].key, g.entries[1].kind) = (b"\x1b[2J".to_vec(), 77), &["\\u{1b}[2J"]),
        ("text of 2^63", &name_text(&[0, 0, 0, 0, 0, 0, 0, 0x80]), &["the length of general.name is 9223372036854775808"]),
        ("text beyond the end", &name_text(&[0, 0, 0, 3, 0, 0, 0, 0]), &["inside general.name"]),
        ("text that is none", &name_text(&[2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0x28]), &["general.name is not UTF-8"]),
        ("token that is no text", &|g| g.set("tokenizer.ggml.tokens", ValueType::Array, array(ValueType::Text, &[text(b"a"), text(&[0xff])])), &["tokenizer.ggml.tokens is not UTF-8"]),
        ("array of 2^63", &|g| g.set("a", ValueType::Array, [&u32s(4)[..], &(1u64 << 63).to_le_bytes()].concat()), &["the length of a is 9223372036854775808"]),
        ("array of 2^64-1 texts", &|g| g.set("a", ValueType::Array, [&u32s(8)[..], &u64::MAX.to_le_bytes()].concat()), &["the length of a is 18446744073709551615"]),
        ("array beyond the end", &|g| g.set("a", ValueType::Array, [&u32s(8)[..], &(1u64 << 20).to_le_bytes()].concat()), &["inside a; it is truncated"]),
        ("array of arrays", &|g| g.set("a", ValueType::Array, array(ValueType::Array, &[array(ValueType::U8, &[])])), &["a: value type 9"]),
        ("array of type 99", &|g| g.set("a", ValueType::Array, [&u32s(99)[..], &[0; 8]].concat()), &["a: value type 99"]),
        ("2^22 + 1 elements", &|g| g.set("a", ValueType::Array, [&u32s(0)[..], &((1u64 << 22) + 1).to_le_bytes()].concat()), &["the length of a is 4194305"]),
        ("2^22 elements in one array and more in others", &|g| g.set("a", ValueType::Array, [&u32s(0)[..], &(1u64 << 22).to_le_bytes(), &vec![0; 1 << 22]].concat()), &["the number of all arrays' elements is 419"]),
        ("alignment 0", &|g| g.set("general.alignment", ValueType::U32, u32s(0)), &["general.alignment is 0"]),
        ("alignment 33", &|g| g.set("general.alignment", ValueType::U32, u32s(33)), &["general.alignment is 33"]),
        ("alignment 4", &|g| g.set("general.alignment", ValueType::U32, u32s(4)), &["general.alignment is 4"]),
        ("alignment 2^31", &|g| g.set("general.alignment", ValueType::U32, u32s(1 << 31)), &["general.alignment is 2147483648"]),
        ("alignment in words", &|g| g.set("general.alignment", ValueType::Text, text(b"32")), &["general.alignment is \"32\""]),
        ("another alignment", &|g| { g.set("general.alignment", ValueType::U32, u32s(4096)); g.alignment = 4096 }, &["is not a multiple of 4096"]),
        ("tensor twice", &|g| g.tensor("output_norm.weight").name = UP.into(), &["tensor \"blk.1.ffn_up_exps.weight\" occurs twice"]),
        ("tensor that is no text", &|g| g.tensor(UP).name = vec![0x80], &["a tensor's name is not UTF-8"]),
        ("tensor's name of 2^63", &|g| g.tensor(UP).name_len = Some(1 << 63), &["the length of a tensor's name is 9223372036854775808"]),
        ("rank 5", &|g| g.tensor(UP).extents = vec![32, 32, 4, 1, 1], &[UP, "5 dimensions"]),
        ("rank 2^32-1", &|g| g.tensor(UP).rank = Some(u32::MAX), &[UP, "4294967295 dimensions"]),
        ("rank 0", &|g| g.tensor(UP).extents = vec![], &[UP, "[]"]),
        ("extent 2^63", &|g| g.tensor(UP).extents[2] = 1 << 63, &[UP]),
        ("extents of 2^64", &|g| g.tensor(UP).extents = vec![1 << 32, 1 << 32, 1], &[UP, "too many numbers"]),
        ("extents of 2^62 numbers", &|g| g.tensor(UP).extents = vec![1 << 31, 1 << 31, 1], &[UP, "too many numbers"]),
        ("extent 0", &|g| g.tensor(UP).extents[2] = 0, &[UP, "[0, 32, 32], expected [4, 32, 32]"]),
        ("extents 0 and 2^63", &|g| g.tensor(UP).extents = vec![0, 1 << 63, 1 << 63], &[UP]),
        ("type 99", &|g| g.tensor(UP).kind = 99, &[UP, "type 99 is unknown"]),
        ("type q4_k of 32 columns", &|g| g.tensor(UP).kind = 12, &[UP, "not a multiple of 256, the block of q4_k"]),
        ("offset off by one", &|g| g.tensor(UP).offset += 1, &[UP, "is not a multiple of 32"]),
        ("offset 2^63", &|g| g.tensor(UP).offset = 1 << 63, &[UP, "beyond the end"]),
        ("offset 2^64-32", &|g| g.tensor(UP).offset = u64::MAX - 31, &[UP, "beyond the end"]),
        ("offset at the end", &|g| g.tensor(UP).offset = g.data.len() as u64, &[UP, "beyond the end"]),
        ("one on the other", &|g| g.tensor(UP).offset = g.tensor(DOWN).offset, &[UP, "it lies on tensor", DOWN]),
        ("half on the other", &|g| g.tensor(UP).offset = g.tensor(DOWN).offset + 64, &["it lies on tensor"]),
        ("without data", &|g| g.data.clear(), &["token_embd.weight", "beyond the end"]),
    ]);
    table.check("GGUF containers");
}

#[test]
fn models() {
    let mut table = Table::new();
    let file = Gguf::read(&good().gguf);
    let size = |key: &'static str, x: u32| move |g: &mut Gguf| g.set(&format!("olmoe.{key}"), ValueType::U32, u32s(x));
    // Without the width of a head, which would be found to be wrong first.
    let bare = |key: &'static str, x: u32| {
        move |g: &mut Gguf| {
            g.remove("olmoe.rope.dimension_count");
            g.set(&format!("olmoe.{key}"), ValueType::U32, u32s(x));
        }
    };
    let number =
        |key: &'static str, x: f32| move |g: &mut Gguf| g.set(&format!("olmoe.{key}"), ValueType::F32, f32s(x));
    let word = |key: &'static str, x: &'static str| {
        move |g: &mut Gguf| g.set(&format!("olmoe.{key}"), ValueType::Text, text(x.as_bytes()))
    };
    #[rustfmt::skip]
    rows(&mut table, &file, vec![
        ("architecture missing", &|g| g.remove("general.architecture"), &["general.architecture is missing"]),
        ("another architecture", &|g| g.set("general.architecture", ValueType::Text, text(b"mixtral")), &["general.architecture is \"mixtral\""]),
        ("architecture by number", &|g| g.set("general.architecture", ValueType::U32, u32s(3)), &["general.architecture is 3"]),
        ("dense architecture", &|g| g.set("general.architecture", ValueType::Text, text(b"llama")), &["metadata has no llama."]),
        ("layers missing", &|g| g.remove("olmoe.block_count"), &["metadata has no olmoe.block_count"]),
        ("layers in words", &word("block_count", "two"), &["olmoe.block_count is \"two\""]),
        ("no layers", &size("block_count", 0), &["is 0"]),
        ("one layer less", &size("block_count", 1), &["blk.1.", "belongs to no parameter"]),
        ("one layer more", &size("block_count", 3), &["blk.2.attn_norm.weight", "missing"]),
        ("4096 layers", &size("block_count", 4096), &["blk.2.attn_norm.weight", "missing"]),
        ("2^32-1 layers", &size("block_count", u32::MAX), &["is 4294967295"]),
        ("-1 layers", &|g| g.set("olmoe.block_count", ValueType::I32, (-1i32).to_le_bytes()), &["olmoe.block_count is -1"]),
        ("2.0 layers", &number("block_count", 2.0), &["olmoe.block_count is 2"]),
        ("no heads", &bare("attention.head_count", 0), &["is 0"]),
        ("3 heads", &bare("attention.head_count", 3), &["(3) does not divide"]),
        ("32 heads", &bare("attention.head_count", 32), &["an even number"]),
        ("2^32-1 heads", &bare("attention.head_count", u32::MAX), &["4294967295"]),
        ("heads by layer", &|g| g.set("olmoe.attention.head_count", ValueType::Array, array(ValueType::U32, &[vec![4, 0, 0, 0], vec![2, 0, 0, 0]])), &["olmoe.attention.head_count is [4, 2]"]),
        ("no key heads", &size("attention.head_count_kv", 0), &["is 0"]),
        ("3 key heads", &size("attention.head_count_kv", 3), &["(3) does not divide"]),
        ("2 key heads", &size("attention.head_count_kv", 2), &["blk.0.attn_k.weight", "expected [16, 32]"]),
        ("wide heads", &bare("attention.key_length", 16), &["16"]),
        ("wide values", &size("attention.value_length", 16), &["olmoe.attention.value_length is 16"]),
        ("half rotation", &size("rope.dimension_count", 4), &["olmoe.rope.dimension_count is 4"]),
        ("no experts", &size("expert_count", 0), &["is 0"]),
        ("5 experts", &size("expert_count", 5), &["blk.0.ffn_gate_inp.weight", "[4, 32], expected [5, 32]"]),
        ("65536 experts", &size("expert_count", 65536), &["blk.0.ffn_gate_inp.weight", "expected [65536, 32]"]),
        ("2^32-1 experts", &size("expert_count", u32::MAX), &["4294967295"]),
        ("no experts for a token", &size("expert_used_count", 0), &["is 0"]),
        ("more for a token than there are", &size("expert_used_count", 5), &["(5) is greater than"]),
        ("no width", &bare("embedding_length", 0), &["is 0"]),
        ("another width", &size("embedding_length", 64), &["8"]),
        ("2^20 wide", &size("embedding_length", 1 << 20), &["8"]),
        ("experts of 2^20", &size("feed_forward_length", 1 << 20), &["blk.0.ffn_gate_exps.weight", "expected [4, 1048576, 32]"]),
        ("experts of 2^32-1", &size("feed_forward_length", u32::MAX), &["4294967295"]),
        ("no context", &size("context_length", 0), &["is 0"]),
        ("context of 2^32-1", &size("context_length", u32::MAX), &["4294967295"]),
        ("rope base that is none", &number("rope.freq_base", f32::NAN), &["NaN"]),
        ("rope base 0", &number("rope.freq_base", 0.0), &["is 0"]),
        ("rope base in words", &word("rope.freq_base", "10000"), &["olmoe.rope.freq_base is \"10000\""]),
        ("epsilon missing", &|g| g.remove("olmoe.attention.layer_norm_rms_epsilon"), &["layer_norm_rms_epsilon"]),
        ("epsilon 0", &number("attention.layer_norm_rms_epsilon", 0.0), &["is 0"]),
        ("epsilon infinite", &number("attention.layer_norm_rms_epsilon", f32::INFINITY), &["is inf"]),
        ("scaled rope", &word("rope.scaling.type", "yarn"), &["olmoe.rope.scaling.type is \"yarn\"", "scaled rotary"]),
        ("stretched rope", &number("rope.scaling.factor", 4.0), &["olmoe.rope.scaling.factor is 4"]),
        ("clamped", &number("attention.clamp_kqv", 8.0), &["olmoe.attention.clamp_kqv is 8"]),
        ("window", &size("attention.sliding_window", 512), &["olmoe.attention.sliding_window is 512"]),
        ("rope tensor", &|g| g.tensor(UP).name = b"rope_freqs.weight".to_vec(), &["rope_freqs.weight"]),
        ("no embedding", &|g| g.tensor("token_embd.weight").name = b"tok_embd.weight".to_vec(), &["no tensor \"token_embd.weight\""]),
        ("missing tensor", &|g| g.tensors.retain(|tensor| tensor.name != UP.as_bytes()), &[UP, "[4, 32, 32] is missing"]),
        ("superfluous tensor", &|g| { let mut more = g.tensor(UP).clone(); more.name = b"blk.1.extra".to_vec(); more.offset = g.data.len() as u64; g.data.extend([0; 16384]); g.tensors.push(more) }, &["\"blk.1.extra\"", "belongs to no parameter"]),
        ("embedding of two bends", &|g| g.tensor("token_embd.weight").extents = vec![8, 4, 260], &["[260, 4, 8], expected [260, 32]"]),
        ("other extents", &|g| g.tensor(ROUTER).extents = vec![4, 32], &[ROUTER, "[32, 4], expected [4, 32]"]),
        ("integers", &|g| g.tensor(UP).kind = 26, &[UP, "is i32"]),
        ("mxfp4", &|g| g.tensor(UP).kind = 39, &[UP, "is mxfp4"]),
        ("not a number", &|g| g.data_of(UP, 4 * (2 * 1024 + 33)).copy_from(&f32s(f32::NAN)), &["layers.1.moe.experts.up_proj.weight", "number 33 of matrix 2 is not finite"]),
        ("infinite norm", &|g| g.data_of("output_norm.weight", 4 * 31).copy_from(&f32s(f32::NEG_INFINITY)), &["parameter norm.weight", "number 31 of matrix 0"]),
    ]);
    let file = Gguf::read(&good().quantized);
    let half = |x: u16| x.to_le_bytes();
    #[rustfmt::skip]
    rows(&mut table, &file, vec![
        ("scale that is no number", &|g| g.data_of(DOWN, 34 * (3 * 32 + 5)).copy_from(&half(0x7e00)), &["layers.1.moe.experts.down_proj.weight", "number 160 of matrix 3 is not finite"]),
        ("infinite scale", &|g| g.data_of("blk.0.attn_q.weight", 0).copy_from(&half(0x7c00)), &["layers.0.attention.q_proj.weight", "number 0 of matrix 0 is not finite"]),
    ]);
    table.check("GGUF models");
}

trait CopyFrom {
    /// Overwrites the beginning.
    fn copy_from(&mut self, bytes: &[u8]);
}

impl CopyFrom for [u8] {
    fn copy_from(&mut self, bytes: &[u8]) {
        self[..bytes.len()].copy_from_slice(bytes);
    }
}

#[test]
fn vocabularies() {
    let mut table = Table::new();
    let file = Gguf::read(&good().gguf);
    const TOKENS: &str = "tokenizer.ggml.tokens";
    const MERGES: &str = "tokenizer.ggml.merges";
    const KINDS: &str = "tokenizer.ggml.token_type";
    let merge = |x: &'static str| {
        move |g: &mut Gguf| g.set(MERGES, ValueType::Array, array(ValueType::Text, &[text(x.as_bytes())]))
    };
    let kinds = |values: Vec<i32>| {
        let values: Vec<Vec<u8>> = values.iter().map(|value| value.to_le_bytes().to_vec()).collect();
        move |g: &mut Gguf| g.set(KINDS, ValueType::Array, array(ValueType::I32, &values))
    };
    let (short, long, unknown) = (kinds(vec![1; 259]), kinds(vec![1; 261]), kinds(vec![7; 260]));
    #[rustfmt::skip]
    rows(&mut table, &file, vec![
        ("tokens missing", &|g| g.remove(TOKENS), &["tokenizer.ggml.tokens is missing"]),
        ("tokens by number", &|g| g.set(TOKENS, ValueType::Array, array(ValueType::I32, &[vec![0; 4], vec![1; 4]])), &["tokenizer.ggml.tokens is [0, 16843009], expected a list of texts"]),
        ("tokens in one text", &|g| g.set(TOKENS, ValueType::Text, text(b"a b c")), &["tokenizer.ggml.tokens is \"a b c\""]),
        ("no tokens", &|g| g.set(TOKENS, ValueType::Array, array(ValueType::Text, &[])), &["token"]),
        ("token twice", &|g| drop(g.entry(TOKENS).value.splice(12..12 + 10, text(b"he"))), &["\"he\""]),
        ("model by number", &|g| g.set("tokenizer.ggml.model", ValueType::U32, u32s(1)), &["tokenizer.ggml.model is 1"]),
        ("another model", &|g| g.set("tokenizer.ggml.model", ValueType::Text, text(b"bert")), &["bert"]),
        ("another way to cut", &|g| g.set("tokenizer.ggml.pre", ValueType::Text, text(b"mine")), &["tokenizer.ggml.pre", "mine"]),
        ("merge of strangers", &merge("zz qq"), &["zz"]),
        ("merge without a result", &merge("z q"), &["zq"]),
        ("merge of one", &merge("he"), &["\"he\""]),
        ("merge of nothing", &merge(""), &["\"\""]),
        ("merge of a space", &merge(" "), &["\" \""]),
        ("merges by number", &|g| g.set(MERGES, ValueType::Array, array(ValueType::U32, &[vec![0; 4]])), &["tokenizer.ggml.merges is [0]"]),
        ("types too few", &short, &["259", "260"]),
        ("types too many", &long, &["261", "260"]),
        ("type 7", &unknown, &["tokenizer.ggml.token_type is [7, 7, 7, 7, … 260 in all]"]),
        ("types in words", &|g| g.set(KINDS, ValueType::Text, text(b"normal")), &["tokenizer.ggml.token_type is \"normal\""]),
        ("end in words", &|g| g.set("tokenizer.ggml.eos_token_id", ValueType::Text, text(b"</s>")), &["tokenizer.ggml.eos_token_id is \"</s>\""]),
        ("end below 0", &|g| g.set("tokenizer.ggml.eos_token_id", ValueType::I32, (-1i32).to_le_bytes()), &["tokenizer.ggml.eos_token_id is -1"]),
        ("beginning by number", &|g| g.set("tokenizer.ggml.add_bos_token", ValueType::U32, u32s(1)), &["tokenizer.ggml.add_bos_token is 1"]),
        ("template by number", &|g| g.set("tokenizer.chat_template", ValueType::U32, u32s(1)), &["tokenizer.chat_template is 1"]),
    ]);
    table.check("GGUF vocabularies");
}

#[test]
fn cut_anywhere() {
    let file = Gguf::read(&good().gguf);
    let (header, whole_file) = (file.header().len() as u64, file.bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    std::fs::write(&path, &whole_file).unwrap();
    let length = whole_file.len() as u64;
    let in_data = (1..64).map(|part| header + (length - header) * part / 64).chain([length - 1]);
    // From the end, so that the file only ever gets shorter.
    for cut in (0..=header).chain(in_data).collect::<std::collections::BTreeSet<u64>>().into_iter().rev() {
        File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let error = whole(&path).unwrap_err().to_string();
        assert!(error.contains("truncated") && error.contains("cut.gguf"), "{cut} bytes: {error}");
    }
}
