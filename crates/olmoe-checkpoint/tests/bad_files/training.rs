//! Checkpoints of the trainer.

use std::fs;
use std::path::Path;

use olmoe_checkpoint::save::MANIFEST_FILE;

use crate::good::good;
use crate::table::{Table, patch};

/// Changes the manifest and seals it anew, as one who means harm would.
fn forge(folder: &Path, from: &str, to: &str) {
    let path = folder.join(MANIFEST_FILE);
    let text = fs::read_to_string(&path).unwrap();
    let body = &text[..text.rfind(",\n  \"blake3\"").unwrap()];
    assert!(body.contains(from), "{from:?} is not in {body}");
    let body = body.replace(from, to);
    fs::write(&path, format!("{body},\n  \"blake3\": \"{}\"\n}}\n", blake3::hash(body.as_bytes()))).unwrap();
}

fn record(folder: &Path, name: &str) -> String {
    let bytes = fs::read(folder.join(name)).unwrap();
    format!("\"bytes\": {},\n      \"blake3\": \"{}\"", bytes.len(), blake3::hash(&bytes))
}

#[test]
fn training_checkpoints() {
    let mut table = Table::new();
    let good = &good().training;
    let mut shards: Vec<String> = fs::read_dir(good)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    shards.sort();
    let shard = shards[1].as_str();
    let mut row = |name: &str, expected: &[&str], damage: &dyn Fn(&Path)| table.folder(name, good, expected, damage);
    for name in [shard, "config.json"] {
        row(&format!("flipped bit in {name}"), &[name, "damaged"], &|folder| {
            patch(&folder.join(name), |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
            });
        });
        row(&format!("{name} missing"), &[name, "missing"], &|folder| fs::remove_file(folder.join(name)).unwrap());
        row(&format!("{name} longer"), &[name, "in the manifest"], &|folder| {
            patch(&folder.join(name), |bytes| bytes.push(0));
        });
        row(&format!("{name} a folder"), &[name, "missing"], &|folder| {
            fs::remove_file(folder.join(name)).unwrap();
            fs::create_dir(folder.join(name)).unwrap();
        });
    }
    row("flipped bit in the manifest", &[MANIFEST_FILE, "damaged"], &|folder| {
        patch(&folder.join(MANIFEST_FILE), |bytes| bytes[100] ^= 1);
    });
    row("manifest cut short", &[MANIFEST_FILE, "damaged"], &|folder| {
        patch(&folder.join(MANIFEST_FILE), |bytes| bytes.truncate(bytes.len() - 1));
    });
    row("empty manifest", &[MANIFEST_FILE, "damaged"], &|folder| {
        fs::write(folder.join(MANIFEST_FILE), b"").unwrap();
    });
    let quoted = format!("\"{shard}\"");
    for name in ["../x", "/etc/passwd", "a/b", "..", "manifest.json"] {
        row(&format!("manifest naming {name}"), &["may not be the name of a file", name], &|folder| {
            forge(folder, &quoted, &format!("\"{name}\""));
        });
    }
    row("manifest naming a shard twice", &["occurs twice"], &|folder| {
        forge(folder, &quoted, &format!("\"{}\"", shards[0]));
    });
    row("manifest of version 2", &["version 2"], &|folder| forge(folder, "\"version\": 1", "\"version\": 2"));
    row("manifest of another program", &["\"other\""], &|folder| {
        forge(folder, "\"format\": \"olmoe-checkpoint\"", "\"format\": \"other\"");
    });
    row("manifest with 2^64 bytes", &[MANIFEST_FILE, "manifest"], &|folder| {
        forge(folder, "\"bytes\": ", "\"bytes\": 99999999999999999999");
    });
    row("group of a file that is not listed", &["which is not in the list of files"], &|folder| {
        forge(folder, "\"model\": [", "\"model\": [\"other.safetensors\",");
    });
    row("no group of the model", &["\"embed_tokens.weight\"", "missing"], &|folder| {
        forge(folder, "\"model\": [", "\"optimizer\": [");
    });
    row("shard of the group twice", &["occurs twice"], &|folder| {
        forge(folder, "\"model\": [", &format!("\"model\": [{quoted},"));
    });
    row("configuration that is not listed", &["no \"config.json\""], &|folder| {
        let name = "settings.json";
        fs::copy(folder.join("config.json"), folder.join(name)).unwrap();
        forge(folder, "\"config.json\"", &format!("\"{name}\""));
    });
    row(
        "configuration of another size",
        &["tensor \"embed_tokens.weight\"", "[260, 32], expected [260, 64]"],
        &|folder| {
            let before = record(folder, "config.json");
            patch(&folder.join("config.json"), |bytes| {
                let text = String::from_utf8(bytes.clone()).unwrap();
                *bytes = text.replace("\"hidden_size\": 32", "\"hidden_size\": 64").into_bytes();
            });
            forge(folder, &before, &record(folder, "config.json"));
        },
    );
    row("a number that is none", &["parameter embed_tokens.weight", "not finite"], &|folder| {
        let first = &shards[0];
        let before = record(folder, first);
        crate::good::edit_tensors(&folder.join(first), |all| {
            crate::good::named(all, "embed_tokens.weight").bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        });
        forge(folder, &before, &record(folder, first));
    });
    table.check("training checkpoints");
}
