//! Paths that are no checkpoint at all: folders of other things, pipes, devices, links.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::good::{SHARDS, good};
use crate::table::Table;

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// A folder with one thing in it.
fn holding(folder: &Path, name: &str, make: impl FnOnce(&Path)) {
    fs::create_dir(folder).unwrap();
    make(&folder.join(name));
}

#[test]
fn no_checkpoints() {
    const NONE: &str = "no checkpoint here";
    const FILE: &str = "expected a file";
    let mut table = Table::new();
    let t = &mut table;
    t.row("nothing there", "", &["No such file"], |_| ());
    t.row("nothing there, of a format", ".gguf", &["No such file"], |_| ());
    t.row("empty folder", "", &[NONE, "an empty folder"], |path| fs::create_dir(path).unwrap());
    t.row("folder of texts", "", &[NONE, "a.txt, b.txt"], |path| {
        holding(path, "a.txt", |file| fs::write(file, "a").unwrap());
        fs::write(path.join("b.txt"), "b").unwrap();
    });
    t.row("folder of many things", "", &[NONE, "… 1000 files"], |path| {
        fs::create_dir(path).unwrap();
        (0..1000).for_each(|i| fs::write(path.join(format!("{i:04}.txt")), "").unwrap());
    });
    t.row("configuration alone", "", &[NONE, "config.json"], |path| {
        holding(path, "config.json", |file| assert!(fs::copy(good().huggingface.join("config.json"), file).is_ok()));
    });
    t.row("weights alone", "", &[NONE, "model.safetensors"], |path| {
        let from = good().huggingface.join("model.safetensors");
        holding(path, "model.safetensors", |file| assert!(fs::copy(from, file).is_ok()));
    });
    t.row("configuration as a file", ".json", &[NONE, "a configuration without weights"], |path| {
        fs::copy(good().huggingface.join("config.json"), path).unwrap();
    });
    t.row("weights as a file", ".safetensors", &["no configuration"], |path| {
        fs::copy(good().huggingface.join("model.safetensors"), path).unwrap();
    });
    t.row("torch weights as a file", ".pt", &["no configuration"], |path| {
        fs::copy(good().torch.join("model.pt"), path).unwrap();
    });
    t.row("several GGUF files", "", &["several GGUF files (a.gguf, b.gguf)"], |path| {
        holding(path, "a.gguf", |file| fs::write(file, "GGUF").unwrap());
        fs::write(path.join("b.gguf"), "GGUF").unwrap();
    });
    for ending in [".gguf", ".safetensors", ".pt", ".bin", ".json", ".yaml", ""] {
        t.file(&format!("empty file{ending}"), ending, b"", &[]);
        t.file(&format!("one byte{ending}"), ending, b"\x80", &[]);
        t.file(&format!("zeros{ending}"), ending, &[0; 4096], &[]);
        t.file(&format!("text{ending}"), ending, b"Once upon a time", &[]);
    }
    // Pipes and devices, given or found: nothing waits for them or reads them to their end.
    for ending in [".gguf", ".safetensors", ".pt", ".json", ".yaml", ""] {
        t.row(&format!("pipe{ending}"), ending, &[FILE], pipe);
        t.row(&format!("zeros without end{ending}"), ending, &[FILE], |path| symlink("/dev/zero", path).unwrap());
        t.row(&format!("socket{ending}"), ending, &[FILE], |path| drop(UnixListener::bind(path).unwrap()));
    }
    t.row("pipe in a folder", "", &["model.gguf", FILE], |path| holding(path, "model.gguf", pipe));
    t.row("folder called a file", "", &["model.gguf", FILE], |path| {
        holding(path, "model.gguf", |file| fs::create_dir(file).unwrap());
    });
    t.row("device in a folder", "", &["model.gguf", FILE], |path| {
        holding(path, "model.gguf", |file| symlink("/dev/zero", file).unwrap());
    });
    t.folder("pipe for weights", &good().huggingface, &[NONE], |folder| {
        fs::remove_file(folder.join("model.safetensors")).unwrap();
        pipe(&folder.join("model.safetensors"));
    });
    t.folder("pipe for a shard", &good().sharded, &[SHARDS[0], FILE], |folder| {
        fs::remove_file(folder.join(SHARDS[0])).unwrap();
        pipe(&folder.join(SHARDS[0]));
    });
    t.folder("folder for a shard", &good().sharded, &[SHARDS[1], FILE], |folder| {
        fs::remove_file(folder.join(SHARDS[1])).unwrap();
        fs::create_dir(folder.join(SHARDS[1])).unwrap();
    });
    for name in ["config.json", "model.safetensors"] {
        t.folder(&format!("device for {name}"), &good().huggingface, &[NONE], |folder| {
            fs::remove_file(folder.join(name)).unwrap();
            symlink("/dev/zero", folder.join(name)).unwrap();
        });
    }
    t.folder("pipe for the configuration", &good().olmo, &[NONE], |folder| {
        fs::remove_file(folder.join("config.yaml")).unwrap();
        pipe(&folder.join("config.yaml"));
    });
    t.folder("pipe for a file of training", &good().training, &["config.json", "missing"], |folder| {
        fs::remove_file(folder.join("config.json")).unwrap();
        pipe(&folder.join("config.json"));
    });
    // Links.
    t.row("link to itself", ".gguf", &["symbolic links"], |path| symlink(path, path).unwrap());
    t.row("link to nothing", "", &["No such file"], |path| symlink("/nowhere/at/all", path).unwrap());
    t.row("links in a circle", "", &[NONE], |path| {
        holding(path, "latest", |link| symlink(link, link).unwrap());
    });
    t.row("folder in itself", "", &[NONE], |path| holding(path, "latest", |link| symlink(path, link).unwrap()));
    t.row("file as a folder", ".gguf/inside", &["Not a directory"], |path| {
        fs::write(path.parent().unwrap(), "GGUF").unwrap();
    });
    table.check("no checkpoints");
}
