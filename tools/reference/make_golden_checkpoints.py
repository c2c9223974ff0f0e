"""Golden checkpoints, `tests/golden/checkpoints/`: one small OLMoE and one small Llama in every format, each written by
other software, with the numbers that transformers computes from them.

| path | what | written by |
|---|---|---|
| `hf/` | bf16, an expert a tensor, sharded with an index | transformers' `save_pretrained` |
| `hf-fused/` | the experts of a layer as two stacks | safetensors |
| `olmo/` | names as base64 of pickles | this file, safetensors |
| `olmo-pt/` | `model.pt`, names with wrappers and groups of blocks | this file, torch |
| `olmoe-bf16.gguf`, `olmoe-q8_0.gguf` | arch olmoe | gguf |
| `llama-bf16.gguf` | arch llama, grouped heads, query and key rows permuted as llama.cpp requires | gguf |
| `expected.safetensors` | `{olmoe,q8_0,llama}.logits`, `{olmoe,q8_0}.routing`, `ids` | transformers, fp32 |
| `expected.json` | SHA-256 of every parameter as little-endian f32, by its canonical name | this file |

All forms of the OLMoE but Q8_0 hold the same numbers; those of Q8_0 are the results of `gguf.quants.dequantize`.
`--check` compares with the files and writes nothing."""

from __future__ import annotations

import argparse
import base64
import filecmp
import hashlib
import json
import pickle
import re
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
import yaml
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "checkpoints"
MAX_BYTES = 600_000
TIME = 24
GROUP = 2

OLMOE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "pad_token_id": 1,
    "eos_token_id": 60,
}
LLAMA = {
    "vocab_size": 47,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Tensors = dict[str, torch.Tensor]


def config(settings: dict) -> transformers.PreTrainedConfig:
    settings = dict(settings)
    rope = {"rope_type": "default", "rope_theta": settings.pop("rope_theta", 10000.0)}
    kind = transformers.OlmoeConfig if "num_experts" in settings else transformers.LlamaConfig
    made = kind(**settings, rope_parameters=rope, rms_norm_eps=1e-5, attn_implementation="eager")
    made.architectures = ["OlmoeForCausalLM" if "num_experts" in settings else "LlamaForCausalLM"]
    return made


def random_model(settings: dict, seed: int, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """A model with activations of about 1 whose every tensor matters: norm weights and biases are random, too. Its
    numbers are exact in `dtype`, its type is fp32."""
    made = config(settings)
    kind = transformers.OlmoeForCausalLM if "num_experts" in settings else transformers.LlamaForCausalLM
    model = kind(made).eval()
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=gen)
            if "norm" in name:
                noise = 1 + 0.3 * noise
            elif name.endswith("bias"):
                noise = 0.1 * noise
            elif "mlp.gate.weight" in name:
                noise = 3 / parameter.shape[-1] ** 0.5 * noise
            elif "embed" not in name:
                noise = 0.7 / parameter.shape[-1] ** 0.5 * noise
            parameter.copy_(noise.to(dtype).float())
    return model


def fused_tensors(model: transformers.PreTrainedModel) -> Tensors:
    """The tensors as they are in memory, without a head that is tied to the embedding."""
    tied = model.config.tie_word_embeddings
    return {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def hf_tensors(fused: Tensors) -> Tensors:
    """The tensors as in published files: three matrices for each expert."""
    out = {}
    for name, tensor in fused.items():
        if name.endswith("mlp.experts.gate_up_proj"):
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)
                out[name.replace("gate_up_proj", f"{e}.gate_proj.weight")] = gate.contiguous()
                out[name.replace("gate_up_proj", f"{e}.up_proj.weight")] = up.contiguous()
        elif name.endswith("mlp.experts.down_proj"):
            for e, down in enumerate(tensor):
                out[name.replace("down_proj", f"{e}.down_proj.weight")] = down.contiguous()
        else:
            out[name] = tensor
    return out


def run(model: transformers.PreTrainedModel, ids: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits [T, V] and the experts [L, T, K], the most probable first."""
    with torch.no_grad():
        moe = hasattr(model.config, "num_experts")
        out = model(torch.tensor([ids]), **({"output_router_logits": True} if moe else {}))
    if not moe:
        return out.logits[0].numpy(), None
    top = [router.topk(model.config.num_experts_per_tok + 1) for router in out.router_logits]
    gap = min(float((t.values[:, :-1] - t.values[:, 1:]).min()) for t in top)
    if gap < 1e-4:
        print(f"note: two experts are {gap:.1e} apart", file=sys.stderr)
    return out.logits[0].numpy(), torch.stack([t.indices[:, :-1] for t in top]).to(torch.int32).numpy()


# OLMo's trainer.

OLMO_NAMES = {
    "model.embed_tokens": "transformer.wte",
    "model.norm": "transformer.ln_f",
    "lm_head": "transformer.ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "self_attn.o_proj": "attn_out",
    "mlp.gate": "ffn.router.layer",
}


def to_olmo(hf: Tensors, layers: int, experts: int) -> Tensors:
    """From Hugging Face's names: query, key, value and the experts are joined by rows, down projections transposed."""
    out = {OLMO_NAMES[name] + ".weight": hf[name + ".weight"] for name in ("model.embed_tokens", "model.norm")}
    if "lm_head.weight" in hf:
        out["transformer.ff_out.weight"] = hf["lm_head.weight"]
    for i in range(layers):
        here, there = f"model.layers.{i}.", f"transformer.blocks.{i}."
        for kind in ("weight", "bias"):
            if here + f"self_attn.q_proj.{kind}" in hf:
                parts = [hf[here + f"self_attn.{x}_proj.{kind}"] for x in "qkv"]
                out[there + f"att_proj.{kind}"] = torch.cat(parts)
            for name, olmo in OLMO_NAMES.items():
                if (full := here + f"{name}.{kind}") in hf:
                    out[there + f"{olmo}.{kind}"] = hf[full]
        for olmo, name in (("w1", "gate_proj"), ("v1", "up_proj"), ("w2", "down_proj")):
            each = [hf[here + f"mlp.experts.{e}.{name}.weight"] for e in range(experts)]
            rows = torch.cat([x.T if olmo == "w2" else x for x in each])
            out[there + f"ffn.experts.mlp.{olmo}"] = rows.contiguous()
    return out


def from_olmo(olmo: dict[str, np.ndarray], settings: dict) -> dict[str, np.ndarray]:
    """The inverse, as the published converter computes it."""
    d, heads = settings["hidden_size"], settings["num_attention_heads"]
    kv = d // heads * settings["num_key_value_heads"]
    out = {}
    for name in ("model.embed_tokens", "model.norm", "lm_head"):
        if (found := OLMO_NAMES[name] + ".weight") in olmo:
            out[name + ".weight"] = olmo[found]
    for i in range(settings["num_hidden_layers"]):
        here, there = f"model.layers.{i}.", f"transformer.blocks.{i}."
        for kind in ("weight", "bias"):
            if there + f"att_proj.{kind}" in olmo:
                joined = olmo[there + f"att_proj.{kind}"]
                for name, part in zip("qkv", np.split(joined, [d, d + kv])):
                    out[here + f"self_attn.{name}_proj.{kind}"] = part
            for name, native in OLMO_NAMES.items():
                if (full := there + f"{native}.{kind}") in olmo and not native.startswith("transformer"):
                    out[here + f"{name}.{kind}"] = olmo[full]
        experts = settings["num_experts"]
        width = len(olmo[there + "ffn.experts.mlp.w1"]) // experts
        for e in range(experts):
            rows = slice(e * width, (e + 1) * width)
            out[here + f"mlp.experts.{e}.gate_proj.weight"] = olmo[there + "ffn.experts.mlp.w1"][rows]
            out[here + f"mlp.experts.{e}.up_proj.weight"] = olmo[there + "ffn.experts.mlp.v1"][rows]
            out[here + f"mlp.experts.{e}.down_proj.weight"] = olmo[there + "ffn.experts.mlp.w2"][rows].T
    return out


def olmo_key(name: str) -> str:
    return base64.urlsafe_b64encode(pickle.dumps(((name,), False), protocol=4)).decode()


def wrapped(name: str, group: int = GROUP) -> str:
    """The name that a run with wrapped groups of blocks gives a tensor."""
    found = re.fullmatch(r"transformer\.blocks\.(\d+)\.(.*)", name)
    if not found:
        return "_fsdp_wrapped_module." + name
    g, j = divmod(int(found[1]), group)
    return f"_fsdp_wrapped_module.transformer.block_groups.{g}._fsdp_wrapped_module.{j}.{found[2]}"


def olmo_yaml(settings: dict, **more: object) -> str:
    """config.yaml of a run: the keys and spelling of the published one."""
    model = {
        "d_model": settings["hidden_size"],
        "n_heads": settings["num_attention_heads"],
        "n_kv_heads": settings["num_key_value_heads"],
        "n_layers": settings["num_hidden_layers"],
        "mlp_hidden_size": 2 * settings["intermediate_size"],
        "weight_tying": settings.get("tie_word_embeddings", False),
        "alibi": False,
        "rope": True,
        "flash_attention": True,
        "attention_dropout": 0.0,
        "attention_layer_norm": True,
        "include_bias": False,
        "block_type": "moe",
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "activation_type": "swiglu",
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "max_sequence_length": settings["max_position_embeddings"],
        "vocab_size": settings["vocab_size"],
        "embedding_size": settings["vocab_size"],
        "eos_token_id": settings["eos_token_id"],
        "pad_token_id": settings["pad_token_id"],
        "init_device": "meta",
        "init_fn": "normal",
        "init_std": 0.02,
        "init_cutoff_factor": 3,
        "moe_top_k": settings["num_experts_per_tok"],
        "moe_num_experts": settings["num_experts"],
        "moe_dropless": True,
        "moe_mlp_impl": "sparse",
        "moe_zloss_weight": 0.001,
        "moe_loss_weight": 0.01,
    }
    return yaml.safe_dump({"run_name": "golden", "seed": 6198, "model": model | more}, sort_keys=False)


def write_olmo(folder: Path, olmo: Tensors, settings: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(olmo_yaml(settings))
    save_file({olmo_key(name): tensor.contiguous() for name, tensor in olmo.items()}, folder / "model.safetensors")


def write_olmo_pt(folder: Path, olmo: Tensors, settings: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(olmo_yaml(settings, block_group_size=GROUP))
    torch.save({wrapped(name): tensor for name, tensor in olmo.items()}, folder / "model.pt")


# llama.cpp.


def permute(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from halves to neighbouring pairs, as llama.cpp's converter does for arch llama."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_name(name: str, arch: gguf.MODEL_ARCH, layers: int) -> str:
    """The name that llama.cpp's converter gives a tensor, from gguf's own table."""
    names = gguf.get_tensor_name_map(arch, layers)
    stacked = re.sub(r"experts\.(gate_proj|up_proj|down_proj)$", r"experts.\1.weight", name)
    found = names.get_name(stacked, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


def stacked(hf: Tensors) -> Tensors:
    """The experts of a layer as three stacks, under names without a number."""
    out: Tensors = {}
    experts: dict[str, list] = {}
    for name, tensor in hf.items():
        joined = re.sub(r"experts\.\d+\.", "experts.", name)
        if joined == name:
            out[name] = tensor
        else:
            experts.setdefault(joined, []).append((int(re.search(r"experts\.(\d+)\.", name)[1]), tensor))
    return out | {name: torch.stack([t for _, t in sorted(each, key=lambda x: x[0])]) for name, each in experts.items()}


def write_gguf(path: Path, hf: Tensors, settings: dict, kind: Type) -> dict[str, np.ndarray]:
    """Writes a model; returns, by Hugging Face's names with experts stacked, the numbers that are in the file. A matrix
    whose rows do not fit the type's blocks becomes f16; vectors and routers are f32."""
    moe = "num_experts" in settings
    arch = gguf.MODEL_ARCH.OLMOE if moe else gguf.MODEL_ARCH.LLAMA
    d, heads, layers = (settings[k] for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(path.stem)
    writer.add_block_count(layers)
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(d)
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_rope_freq_base(settings["rope_theta"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type({Type.F32: 0, Type.F16: 1, Type.BF16: 32, Type.Q8_0: 7}[kind])
    writer.add_vocab_size(settings["vocab_size"])
    if moe:
        writer.add_expert_count(settings["num_experts"])
        writer.add_expert_used_count(settings["num_experts_per_tok"])
    else:
        writer.add_rope_dimension_count(d // heads)
    writer.add_tokenizer_model("no_vocab")
    for key, add in (
        ("bos_token_id", writer.add_bos_token_id),
        ("eos_token_id", writer.add_eos_token_id),
        ("pad_token_id", writer.add_pad_token_id),
    ):
        if settings.get(key) is not None:
            add(settings[key])
    inside = {}
    for name, tensor in stacked(hf).items():
        is_q, is_k = "q_proj" in name, "k_proj" in name
        out = tensor
        if not moe and (is_q or is_k):
            out = permute(tensor, heads if is_q else settings["num_key_value_heads"])
        x = np.ascontiguousarray(out.float().numpy())
        if x.ndim < 2 or name.endswith("mlp.gate.weight"):
            used = Type.F32
        else:
            used = kind if x.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Type.F16
        data = gguf.quants.quantize(x, used)
        writer.add_tensor(gguf_name(name, arch, layers), data, raw_dtype=used)
        inside[name] = tensor.float().numpy() if out is not tensor else gguf.quants.dequantize(data, used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return inside


# The files.

CANONICAL = (
    (r"^model\.", ""),
    ("self_attn", "attention"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "mlp_norm"),
)


def digests(tensors: dict[str, np.ndarray], moe: bool) -> dict[str, str]:
    """By canonical name; `tensors` as `stacked` gives them."""
    out = {}
    for name, x in tensors.items():
        for pattern, to in CANONICAL:
            name = re.sub(pattern, to, name)
        if moe:
            name = name.replace("mlp.experts", "moe.experts").replace("mlp.gate.", "moe.router.")
        out[name] = hashlib.sha256(np.ascontiguousarray(x, "<f4").tobytes()).hexdigest()
    return dict(sorted(out.items()))


def with_numbers(settings: dict, inside: dict[str, np.ndarray]) -> transformers.PreTrainedModel:
    """A model with the numbers of a file."""
    model = random_model(settings, 0)
    state = {}
    for name in model.state_dict():
        if name.endswith("experts.gate_up_proj"):
            both = [inside[name.replace("gate_up_proj", f"{x}_proj.weight")] for x in ("gate", "up")]
            state[name] = torch.from_numpy(np.concatenate(both, axis=1))
        else:
            found = inside[name.replace("experts.down_proj", "experts.down_proj.weight")]
            state[name] = torch.from_numpy(np.array(found))
    model.load_state_dict(state, strict=True)
    return model


def make(out: Path) -> None:
    gen = torch.Generator().manual_seed(5)
    ids = torch.randint(2, LLAMA["vocab_size"], (TIME,), generator=gen).tolist()
    bf16 = torch.bfloat16

    model = random_model(OLMOE, 1, bf16)
    fused = {name: tensor.to(bf16) for name, tensor in fused_tensors(model).items()}
    hf = hf_tensors(fused)
    random_model(OLMOE, 1, bf16).to(bf16).save_pretrained(out / "hf", max_shard_size="32KB")
    (out / "hf-fused").mkdir()
    save_file(fused, out / "hf-fused" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(out / "hf" / "config.json", out / "hf-fused")
    olmo = to_olmo(hf, OLMOE["num_hidden_layers"], OLMOE["num_experts"])
    write_olmo(out / "olmo", olmo, OLMOE)
    write_olmo_pt(out / "olmo-pt", olmo, OLMOE)
    plain = write_gguf(out / "olmoe-bf16.gguf", hf, OLMOE, Type.BF16)
    blocks = write_gguf(out / "olmoe-q8_0.gguf", hf, OLMOE, Type.Q8_0)

    llama = random_model(LLAMA, 2, bf16)
    llama_inside = write_gguf(out / "llama-bf16.gguf", fused_tensors(llama), LLAMA, Type.BF16)

    logits, routing = run(model, ids)
    assert np.array_equal(run(with_numbers(OLMOE, plain), ids)[0], logits), "the GGUF holds other numbers"
    q8_logits, q8_routing = run(with_numbers(OLMOE, blocks), ids)
    expected = {
        "ids": np.array(ids, np.int32),
        "olmoe.logits": logits,
        "olmoe.routing": routing,
        "q8_0.logits": q8_logits,
        "q8_0.routing": q8_routing,
        "llama.logits": run(llama, ids)[0],
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in expected.items()}
    save_file(tensors, out / "expected.safetensors")
    table = {"olmoe": digests(plain, True), "q8_0": digests(blocks, True), "llama": digests(llama_inside, False)}
    (out / "expected.json").write_text(json.dumps(table, indent=1) + "\n")


def same(fresh: Path, stored: Path) -> bool:
    if fresh.name == "expected.safetensors" and stored.is_file():
        a, b = load_file(fresh), load_file(stored)
        return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=0, atol=2e-5) for k in a)
    return stored.is_file() and filecmp.cmp(fresh, stored, shallow=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "checkpoints"
        fresh.mkdir()
        make(fresh)
        files = sorted(path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file())
        total = sum((fresh / path).stat().st_size for path in files)
        print(f"{len(files)} files, {total} bytes")
        if total > MAX_BYTES:
            print(f"more than {MAX_BYTES} bytes")
            return 1
        if check:
            differ = [str(path) for path in files if not same(fresh / path, OUT / path)]
            print("differ: " + " ".join(differ) if differ else "as made")
            return 1 if differ else 0
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.copytree(fresh, OUT)
        for path in files:
            (OUT / path).chmod(0o644)
    return 0


if __name__ == "__main__":
    sys.exit(main())
