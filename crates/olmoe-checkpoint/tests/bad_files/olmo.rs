//! Folders of OLMo's trainer.

use std::fs;
use std::path::Path;

use olmoe_checkpoint::olmo_keys;

use crate::archive::{Entry, dict, entries, pickle, text, zip};
use crate::good::{Tensor, edit_tensors, good, olmo_tensors, torch_file};
use crate::table::{Table, patch, replace};

const WEIGHTS: &str = "model.safetensors";
const TORCH: &str = "model.pt";
const CONFIG: &str = "config.yaml";
const W1: &str = "transformer.blocks.1.ffn.experts.mlp.w1";

fn key(name: &str) -> String {
    olmo_keys::encode(&[name], false)
}

fn renamed(tensors: &mut [Tensor], from: &str, to: String) {
    tensors.iter_mut().find(|tensor| tensor.spec.name == key(from)).unwrap().spec.name = to;
}

#[test]
fn safetensors() {
    let mut table = Table::new();
    let good = &good().olmo;
    let mut row = |name: &str, expected: &[&str], change: &dyn Fn(&mut Vec<Tensor>)| {
        table.folder(name, good, expected, |folder| edit_tensors(&folder.join(WEIGHTS), change));
    };
    row("plain name", &["model.safetensors", "transformer.wte.weight", "is not URL-safe base64"], &|all| {
        renamed(all, "transformer.wte.weight", "transformer.wte.weight".into());
    });
    row("key of nothing", &["not a pickle"], &|all| renamed(all, W1, String::new()));
    row("key of something else", &["not a pickle"], &|all| renamed(all, W1, "aGVsbG8=".into()));
    row("key that calls", &["posix.system"], &|all| {
        // (base64 of `cposix\nsystem\n(S'ls'\ntR.` as protocol 4)
        renamed(all, W1, "gARjcG9zaXgKc3lzdGVtCowCbHOFUi4=".into());
    });
    row("key cut short", &["tensor name"], &|all| {
        let name = key(W1);
        renamed(all, W1, name[..name.len() - 8].to_owned());
    });
    row("pickled instead", &[W1, "missing"], &|all| renamed(all, W1, olmo_keys::encode(&[W1], true)));
    row("two keys for one", &["occurs twice", "transformer.wte.weight"], &|all| {
        let mut again = all[0].clone();
        again.spec.name = olmo_keys::encode(&["transformer", "wte", "weight"], false);
        renamed(all, "transformer.wte.weight", key("transformer.wte.weight"));
        again.bytes.clone_from(&all[0].bytes);
        all.push(again);
    });
    row("missing block", &["transformer.blocks.1.", "missing"], &|all| {
        all.retain(|tensor| !olmo_keys::decode(&tensor.spec.name).unwrap().path.join(".").contains("blocks.1."));
    });
    row("superfluous tensor", &["transformer.blocks.2.attn_out.weight", "belongs to no parameter"], &|all| {
        let mut extra = all[0].clone();
        extra.spec.name = key("transformer.blocks.2.attn_out.weight");
        all.push(extra);
    });
    row("groups with a gap", &["transformer.blocks.1.", "missing"], &|all| {
        for tensor in all.iter_mut() {
            let name = olmo_keys::decode(&tensor.spec.name).unwrap().path.join(".");
            let name = name.replace("blocks.0.", "block_groups.0.0.").replace("blocks.1.", "block_groups.2.0.");
            tensor.spec.name = key(&name);
        }
    });
    row("groups far away", &["transformer.blocks.1.", "missing"], &|all| {
        let name = W1.replace("blocks.1.", "block_groups.65535.65535.");
        renamed(all, W1, key(&name));
    });
    row("group of 10^20", &[W1, "missing"], &|all| {
        let name = W1.replace("blocks.1.", "block_groups.100000000000000000000.1.");
        renamed(all, W1, key(&name));
    });
    row("experts of another shape", &[W1, "[32, 128], expected [128, 32]"], &|all| {
        all.iter_mut().find(|tensor| tensor.spec.name == key(W1)).unwrap().spec.shape = vec![32, 128];
    });
    row("not a number in w2", &["layers.1.moe.experts.down_proj.weight", "of matrix 1 is not finite"], &|all| {
        let w2 = key(&W1.replace("w1", "w2"));
        let tensor = all.iter_mut().find(|tensor| tensor.spec.name == w2).unwrap();
        let at = 4 * (32 + 7) * 32;
        tensor.bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    row("query apart, the rest joined", &["transformer.blocks.0.k_proj.weight", "missing"], &|all| {
        let mut query = all[0].clone();
        (query.spec.name, query.spec.shape) = (key("transformer.blocks.0.q_proj.weight"), vec![32, 32]);
        query.bytes.truncate(32 * 32 * 4);
        all.push(query);
    });
    let mut config = |name: &str, expected: &[&str], change: &dyn Fn(&Path)| {
        table.folder(name, good, expected, |folder| change(&folder.join(CONFIG)));
    };
    config("no model section", &["config.yaml", "`model:`"], &|path| fs::write(path, "run_name: x\n").unwrap());
    config("empty configuration", &["config.yaml"], &|path| fs::write(path, "").unwrap());
    config("binary configuration", &["config.yaml", "UTF-8"], &|path| fs::write(path, [0xff; 64]).unwrap());
    config("no YAML", &["config.yaml"], &|path| fs::write(path, "model: [1, 2").unwrap());
    config("deep YAML", &["config.yaml"], &|path| fs::write(path, "[".repeat(50_000)).unwrap());
    config("another width", &["transformer.", "64"], &|path| replace(path, "d_model: 32", "d_model: 64"));
    config("no layers", &["n_layers"], &|path| replace(path, "n_layers: 2", "n_layers: 0"));
    config("4096 layers", &["transformer.blocks.2."], &|path| replace(path, "n_layers: 2", "n_layers: 4096"));
    config("65536 experts", &["router", "65536"], &|path| {
        replace(path, "moe_num_experts: 4", "moe_num_experts: 65536");
    });
    table.check("OLMo folders");
}

#[test]
fn torch_files() {
    let mut table = Table::new();
    let good = &good().torch;
    let mut row = |name: &str, expected: &[&str], bytes: Vec<u8>| {
        table.folder(name, good, &[&[TORCH][..], expected].concat(), |folder| {
            fs::write(folder.join(TORCH), bytes).unwrap();
        });
    };
    row("calls os.system", &["`os.system`"], zip(&entries(b"\x80\x02cos\nsystem\n\x8c\x05touch\x85R.")));
    let hidden = dict(&[text("w"), b"cbuiltins\neval\n\x8c\x011\x85R".to_vec()]);
    row("calls in a value", &["`builtins.eval`"], zip(&entries(&pickle(&hidden))));
    row("no archive", &["zip"], b"\x80\x02}q\0.".to_vec());
    row("empty", &["zip"], vec![]);
    row("not a dict", &["not a dict"], zip(&entries(b"\x80\x02K\x01.")));
    row("compressed", &["compressed"], {
        let mut all = entries(&pickle(&dict(&[])));
        all[0] = Entry { method: 8, ..all[0].clone() };
        zip(&all)
    });
    let tensors = olmo_tensors(&crate::good::good().olmo);
    let of = |names: &dyn Fn(&str) -> bool| -> Vec<u8> {
        torch_file(&tensors.iter().filter(|tensor| names(&tensor.0)).cloned().collect::<Vec<_>>())
    };
    let mut row = |name: &str, expected: &[&str], bytes: Vec<u8>| {
        table.folder(name, good, expected, |folder| fs::write(folder.join(TORCH), bytes).unwrap());
    };
    row("without tensors", &["missing"], of(&|_| false));
    row(
        "without a router",
        &["transformer.blocks.1.ffn.router.layer.weight", "missing"],
        of(&|name| name != "transformer.blocks.1.ffn.router.layer.weight"),
    );
    let mut twice = tensors.clone();
    twice.push(("module.transformer.wte.weight".into(), twice[0].1.clone(), twice[0].2.clone()));
    row("one tensor with and without a wrapper", &["occurs twice"], torch_file(&twice));
    let mut other = tensors.clone();
    other.iter_mut().find(|tensor| tensor.0 == W1).unwrap().1 = vec![4, 32, 32];
    row("experts in a stack", &[W1, "[4, 32, 32], expected [128, 32]"], torch_file(&other));
    let mut bad = tensors.clone();
    bad.iter_mut().find(|tensor| tensor.0 == W1).unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    row("not a number", &["layers.1.moe.experts.gate_proj.weight", "number 0 of matrix 0"], torch_file(&bad));
    for part in [4, 2] {
        table.folder("cut short", good, &[TORCH], |folder| {
            patch(&folder.join(TORCH), |bytes| bytes.truncate(bytes.len() / part));
        });
    }
    table.check("OLMo's torch files");
}
