//! Hugging Face folders.

use std::fs;
use std::path::Path;

use olmoe_checkpoint::safetensors::{INDEX_FILE, SafeType};

use crate::good::{SHARDS, Tensor, edit_tensors, good, named, tensors, write_tensors};
use crate::table::{Table, copy, patch, replace};

const EXPERT: &str = "model.layers.1.mlp.experts.3.up_proj.weight";
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// A row with other tensors in the only file.
fn weights(table: &mut Table, name: &str, expected: &[&str], change: impl FnOnce(&mut Vec<Tensor>)) {
    table.folder(name, &good().huggingface, expected, |folder| edit_tensors(&folder.join(WEIGHTS), change));
}

#[test]
fn single_files() {
    let mut table = Table::new();
    let t = &mut table;
    weights(t, "missing expert", &[EXPERT, "[32, 32] is missing"], |all| all.retain(|x| x.spec.name != EXPERT));
    weights(t, "missing norm", &["\"model.norm.weight\"", "missing"], |all| {
        all.retain(|x| x.spec.name != "model.norm.weight");
    });
    weights(t, "superfluous tensor", &["\"model.layers.1.extra\"", "belongs to no parameter"], |all| {
        let mut extra = all[0].clone();
        extra.spec.name = "model.layers.1.extra".into();
        all.push(extra);
    });
    weights(t, "both ways to store experts", &["gate_up_proj\"", "[32, 32], expected [4, 64, 32]"], |all| {
        let mut stack = named(all, EXPERT).clone();
        stack.spec.name = "model.layers.0.mlp.experts.gate_up_proj".into();
        all.push(stack);
    });
    weights(t, "transposed", &["\"lm_head.weight\"", "[32, 260], expected [260, 32]"], |all| {
        named(all, "lm_head.weight").spec.shape = vec![32, 260];
    });
    weights(t, "one bend more", &["\"lm_head.weight\"", "[1, 260, 32], expected [260, 32]"], |all| {
        named(all, "lm_head.weight").spec.shape = vec![1, 260, 32];
    });
    weights(t, "integers", &[EXPERT, "is i64"], |all| {
        let tensor = named(all, EXPERT);
        tensor.spec.dtype = SafeType::I64;
        tensor.bytes = vec![0; 32 * 32 * 8];
    });
    weights(t, "f64", &[EXPERT, "is f64"], |all| {
        let tensor = named(all, EXPERT);
        tensor.spec.dtype = SafeType::F64;
        tensor.bytes = vec![0; 32 * 32 * 8];
    });
    weights(t, "not a number in bf16", &["layers.1.moe.experts.up_proj.weight", "number 77 of matrix 3"], |all| {
        named(all, EXPERT).bytes[77 * 2..][..2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    });
    weights(t, "infinite in f16", &["layers.1.moe.experts.up_proj.weight", "number 9 of matrix 3"], |all| {
        let tensor = named(all, EXPERT);
        tensor.spec.dtype = SafeType::F16;
        tensor.bytes = vec![0; 32 * 32 * 2];
        tensor.bytes[9 * 2..][..2].copy_from_slice(&0x7c00u16.to_le_bytes());
    });
    weights(t, "not a number in f32", &["parameter embed_tokens.weight", "number 5 of matrix 0"], |all| {
        let tensor = named(all, "model.embed_tokens.weight");
        tensor.spec.dtype = SafeType::F32;
        tensor.bytes = vec![0; 260 * 32 * 4];
        tensor.bytes[5 * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    weights(t, "no tensors", &["\"model.embed_tokens.weight\"", "missing"], Vec::clear);
    table.folder(
        "infinite in a stack",
        &good().fused,
        &["layers.0.moe.experts.up_proj.weight", "number 3 of matrix 2"],
        |folder| {
            edit_tensors(&folder.join(WEIGHTS), |all| {
                let stack = named(all, "model.layers.0.mlp.experts.gate_up_proj");
                let at = 4 * ((2 * 64 + 32) * 32 + 3);
                stack.bytes[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
            });
        },
    );
    table.folder(
        "a stack of one expert less",
        &good().fused,
        &["gate_up_proj", "[3, 64, 32], expected [4, 64, 32]"],
        |folder| {
            edit_tensors(&folder.join(WEIGHTS), |all| {
                let stack = named(all, "model.layers.0.mlp.experts.gate_up_proj");
                stack.spec.shape[0] = 3;
                stack.bytes.truncate(3 * 64 * 32 * 4);
            });
        },
    );
    table.folder("cut short", &good().huggingface, &["truncated"], |folder| {
        patch(&folder.join(WEIGHTS), |bytes| bytes.truncate(bytes.len() / 2));
    });
    table.folder("empty weights", &good().huggingface, &["0 bytes long"], |folder| {
        fs::write(folder.join(WEIGHTS), b"").unwrap();
    });
    table.folder("a page of the hub", &good().huggingface, &["model.safetensors"], |folder| {
        fs::write(folder.join(WEIGHTS), b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
            .unwrap();
    });
    table.check("Hugging Face weights");
}

#[test]
fn configurations() {
    let mut table = Table::new();
    let good = &good().huggingface;
    let rows: [(&str, &str, &str, &[&str]); 12] = [
        ("another width", "\"hidden_size\": 32", "\"hidden_size\": 64", &["[260, 32], expected [260, 64]"]),
        ("another size by far", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4096", &["model.layers.2."]),
        ("no layers", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 0", &["is 0"]),
        ("-1 layers", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": -1", &["num_hidden_layers"]),
        ("10^30 layers", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1e30", &["num_hidden_layers"]),
        (
            "one layer less",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1",
            &["model.layers.1.", "no parameter"],
        ),
        ("65536 experts", "\"num_experts\": 4", "\"num_experts\": 65536", &["mlp.gate.weight", "[65536, 32]"]),
        ("2^32 experts", "\"num_experts\": 4", "\"num_experts\": 4294967296", &["4294967296"]),
        ("more rows", "\"vocab_size\": 260", "\"vocab_size\": 261", &["\"model.embed_tokens.weight\"", "[261, 32]"]),
        ("another family", "\"olmoe\"", "\"mixtral\"", &["`mixtral`"]),
        ("heads in words", "\"num_attention_heads\": 4", "\"num_attention_heads\": \"four\"", &["num_attention_heads"]),
        ("cut short", "\"vocab_size\"", "", &["config.json", "not valid JSON"]),
    ];
    for (name, from, to, expected) in rows {
        table.folder(name, good, expected, |folder| replace(&folder.join(CONFIG), from, to));
    }
    // Routers of as many rows as the configuration says, and no experts.
    table.folder("routers for 4000 experts", good, &["model.layers.0.mlp.experts.4.gate_proj", "missing"], |folder| {
        replace(&folder.join(CONFIG), "\"num_experts\": 4", "\"num_experts\": 4000");
        edit_tensors(&folder.join(WEIGHTS), |all| {
            for layer in 0..2 {
                let router = named(all, &format!("model.layers.{layer}.mlp.gate.weight"));
                (router.spec.shape, router.bytes) = (vec![4000, 32], vec![0; 4000 * 32 * 2]);
            }
        });
    });
    let contents: [(&str, &[u8], &[&str]); 8] = [
        ("empty", b"", &["config.json"]),
        ("a list", b"[1, 2]", &["config.json"]),
        ("a text", b"hello", &["config.json"]),
        ("binary", &[0, 159, 146, 150, 255], &["config.json", "not UTF-8"]),
        ("deep", &[b'['; 100_000], &["config.json"]),
        ("deep objects", &b"{\"a\":".repeat(50_000), &["config.json", "not valid JSON"]),
        ("nothing in it", b"{}", &["config.json", "`model_type` is missing"]),
        ("huge", &vec![b' '; (1 << 24) + 1], &["config.json", "longer than 16777216 bytes"]),
    ];
    for (name, bytes, expected) in contents {
        table.folder(&format!("config.json: {name}"), good, expected, |folder| {
            fs::write(folder.join(CONFIG), bytes).unwrap();
        });
    }
    let companions: [(&str, &str, &[u8], &[&str]); 6] = [
        ("tokenizer: empty", "tokenizer.json", b"", &["tokenizer.json"]),
        ("tokenizer: binary", "tokenizer.json", &[0xff; 100], &["tokenizer.json"]),
        ("tokenizer: no model", "tokenizer.json", b"{\"version\": \"1.0\"}", &["tokenizer.json"]),
        ("settings: no JSON", "tokenizer_config.json", b"{", &["tokenizer_config.json"]),
        ("settings: deep", "tokenizer_config.json", &[b'['; 100_000], &["tokenizer_config.json"]),
        ("generation: no JSON", "generation_config.json", b"eos: 1", &["generation_config.json"]),
    ];
    for (name, file, bytes, expected) in companions {
        table.folder(name, good, expected, |folder| fs::write(folder.join(file), bytes).unwrap());
    }
    table.folder("both formats", good, &["\"model.embed_tokens.weight\"", "missing"], |folder| {
        // The weights of one and the configurations of both: the first that fits decides, and its tensors are others.
        fs::copy(crate::good::good().olmo.join("config.yaml"), folder.join("config.yaml")).unwrap();
        fs::copy(crate::good::good().olmo.join(WEIGHTS), folder.join(WEIGHTS)).unwrap();
    });
    table.check("Hugging Face configurations");
}

#[test]
fn indices() {
    let mut table = Table::new();
    let good = &good().sharded;
    let mut index = |name: &str, expected: &[&str], change: &dyn Fn(&Path)| table.folder(name, good, expected, change);
    let first = |folder: &Path, to: &str| {
        // Of some tensor of the first shard.
        replace(&folder.join(INDEX_FILE), &format!(": \"{}\"", SHARDS[0]), &format!(": {to}"));
    };
    index("missing shard", &[SHARDS[1]], &|folder| fs::remove_file(folder.join(SHARDS[1])).unwrap());
    index("shard above", &["\"../x.safetensors\"", "plain name"], &|folder| first(folder, "\"../x.safetensors\""));
    index("shard in the root", &["\"/etc/passwd\"", "plain name"], &|folder| first(folder, "\"/etc/passwd\""));
    index("shard below", &["\"other/x\"", "plain name"], &|folder| first(folder, "\"other/x\""));
    index("shard of Windows", &["plain name"], &|folder| first(folder, "\"C:\\\\x\""));
    index("shard ..", &["\"..\"", "plain name"], &|folder| first(folder, "\"..\""));
    index("shard .", &["\".\"", "plain name"], &|folder| first(folder, "\".\""));
    index("shard without a name", &["plain name"], &|folder| first(folder, "\"\""));
    index("shard with a zero", &["plain name"], &|folder| first(folder, "\"a\\u0000b\""));
    index("shard by number", &["not a valid index"], &|folder| first(folder, "7"));
    index("shard that is the index", &["safetensors"], &|folder| first(folder, &format!("\"{INDEX_FILE}\"")));
    index("shard that is the configuration", &["config.json"], &|folder| first(folder, "\"config.json\""));
    index("shard that is not there", &["none.safetensors"], &|folder| first(folder, "\"none.safetensors\""));
    index("tensor in the other shard", &[SHARDS[0], "tensor"], &|folder| first(folder, &format!("\"{}\"", SHARDS[1])));
    index("tensor twice", &["occurs twice"], &|folder| {
        let text = fs::read_to_string(folder.join(INDEX_FILE)).unwrap();
        let line = text.lines().find(|line| line.contains("lm_head")).unwrap().trim_end_matches(',').to_owned();
        replace(&folder.join(INDEX_FILE), &line, &format!("{line},\n{line}"));
    });
    index("tensor that the index lacks", &["\"lm_head.weight\""], &|folder| {
        replace(&folder.join(INDEX_FILE), "\"lm_head.weight\"", "\"lm_tail.weight\"");
    });
    index("tensor in both shards", &["tensor"], &|folder| {
        let again = tensors(&folder.join(SHARDS[0])).remove(0);
        edit_tensors(&folder.join(SHARDS[1]), |all| all.push(again));
    });
    index("shards exchanged", &["tensor"], &|folder| {
        let [a, b] = SHARDS.map(|name| folder.join(name));
        let both = (tensors(&a), tensors(&b));
        write_tensors(&a, &both.1);
        write_tensors(&b, &both.0);
    });
    index("shard cut short", &[SHARDS[1], "truncated"], &|folder| {
        patch(&folder.join(SHARDS[1]), |bytes| bytes.truncate(bytes.len() - 1));
    });
    index("empty shard", &[SHARDS[0], "0 bytes long"], &|folder| fs::write(folder.join(SHARDS[0]), b"").unwrap());
    index("no map", &[INDEX_FILE, "weight_map"], &|folder| fs::write(folder.join(INDEX_FILE), b"{}").unwrap());
    index("map of nothing", &["missing"], &|folder| {
        fs::write(folder.join(INDEX_FILE), b"{\"weight_map\": {}}").unwrap();
    });
    index("no JSON", &[INDEX_FILE, "not a valid index"], &|folder| {
        fs::write(folder.join(INDEX_FILE), b"weights").unwrap();
    });
    index("deep JSON", &[INDEX_FILE, "not a valid index"], &|folder| {
        fs::write(folder.join(INDEX_FILE), b"[".repeat(100_000)).unwrap();
    });
    table.row("index without shards", "", &["model-0000"], |folder| {
        copy(good, folder);
        SHARDS.iter().for_each(|name| fs::remove_file(folder.join(name)).unwrap());
    });
    table.check("Hugging Face indices");
}
