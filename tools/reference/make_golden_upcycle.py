"""Golden upcycling, `tests/golden/upcycle/`: a small dense OLMo checkpoint, and the result of OLMoE's upcycling script.

| path | what |
|---|---|
| `dense/` | the dense model as OLMo's trainer writes it: `ff_proj` has the rows of up and then of gate |
| `expected.safetensors` | every tensor of the mixture but the router, by its name in OLMo; the shared expert also as the script's mistake has it, under `swapped.` |

The formulas are implemented here independently; nothing is taken from the program under test.
`--check` compares with the files and writes nothing."""

from __future__ import annotations

import argparse
import base64
import pickle
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "upcycle"
D, WIDTH, LAYERS, HEADS, ROWS, EXPERTS = 16, 24, 2, 2, 29, 3
Tensors = dict[str, torch.Tensor]


def dense(seed: int) -> Tensors:
    gen = torch.Generator().manual_seed(seed)
    shapes = {"transformer.wte.weight": (ROWS, D), "transformer.ln_f.weight": (D,), "transformer.ff_out.weight": (ROWS, D)}
    for i in range(LAYERS):
        for name, shape in {
            "attn_norm": (D,),
            "ff_norm": (D,),
            "q_norm": (D,),
            "k_norm": (D,),
            "att_proj": (3 * D, D),
            "attn_out": (D, D),
            "ff_proj": (2 * WIDTH, D),
            "ff_out": (D, WIDTH),
        }.items():
            shapes[f"transformer.blocks.{i}.{name}.weight"] = shape
    return {name: torch.randn(shape, generator=gen).to(torch.bfloat16).float() for name, shape in shapes.items()}


def upcycled(model: Tensors) -> Tensors:
    out: Tensors = {}
    for name, tensor in model.items():
        block = name.rpartition(".ff_")[0]
        if name.endswith("ff_proj.weight"):
            up, gate = tensor.chunk(2, dim=0)
            out[f"{block}.ffn.experts.mlp.v1"] = torch.cat([up] * EXPERTS, dim=0)
            out[f"{block}.ffn.experts.mlp.w1"] = torch.cat([gate] * EXPERTS, dim=0)
            shared = f"{block}.ffn.shared_expert."
            out[shared + "up_proj.weight"], out[shared + "gate_proj.weight"] = up, gate
            out["swapped." + shared + "up_proj.weight"] = gate
            out["swapped." + shared + "gate_proj.weight"] = up
        elif name.endswith("ff_out.weight") and "blocks" in name:
            out[f"{block}.ffn.experts.mlp.w2"] = torch.cat([tensor.t()] * EXPERTS, dim=0)
            out[f"{block}.ffn.shared_expert.down_proj.weight"] = tensor
        else:
            out[name] = tensor
    return {name: tensor.contiguous().clone() for name, tensor in out.items()}


def config() -> str:
    model = {
        "d_model": D,
        "n_heads": HEADS,
        "n_layers": LAYERS,
        "mlp_hidden_size": 2 * WIDTH,
        "weight_tying": False,
        "rope": True,
        "alibi": False,
        "attention_layer_norm": True,
        "attention_layer_norm_with_affine": True,
        "include_bias": False,
        "block_type": "sequential",
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "activation_type": "swiglu",
        "max_sequence_length": 32,
        "vocab_size": ROWS,
        "embedding_size": ROWS,
        "eos_token_id": ROWS - 1,
        "pad_token_id": 1,
        "init_fn": "mitchell",
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
    }
    return yaml.safe_dump({"model": model}, sort_keys=False)


def key(name: str) -> str:
    return base64.urlsafe_b64encode(pickle.dumps(((name,), False), protocol=4)).decode()


def write(out: Path) -> None:
    (out / "dense").mkdir(parents=True, exist_ok=True)
    (out / "dense" / "config.yaml").write_text(config())
    model = dense(0)
    save_file({key(name): tensor for name, tensor in model.items()}, out / "dense" / "model.safetensors")
    save_file(upcycled(model), out / "expected.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        return write(OUT)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        made = [path for path in Path(folder).rglob("*") if path.is_file()]
        other = [path for path in made if path.read_bytes() != (OUT / path.relative_to(folder)).read_bytes()]
    if other:
        sys.exit(f"not as in {OUT}: {', '.join(path.name for path in other)}")
    print(f"{len(made)} files are the same")


if __name__ == "__main__":
    main()
