"""What the makers of fine-tuning's goldens share: two small models, rows of tokens, a recorded run, and its file.

`tests/golden/finetune` gets `policy.safetensors` and `reference.safetensors`, two OLMoE models of one configuration
(`config_hf` in the metadata; `param.X` in canonical names and shapes), and a JSON file for each kind of run:

    {"versions": {…}, "rows": {set: […]}, "cases": [{"name", "by", "settings", "rows", "steps", "changes"}, …]}

- `settings`: those that are not the default, by the names of the program that made the case. `rows`: which set.
- `steps`: of each step `loss`, which is what was differentiated, summed over the micro-batches and not rounded; `grad_norm`
  before clipping; and whatever the program logged, by its names, in `metrics`.
- `changes`: of each parameter what it has changed by in all steps, as `[norm, projection]`: its Euclidean norm, and
  its product with a vector of signs (`signs`), in fp64. Adapters' parameters are written whole, in a file of their own.

The order of rows is that of the set, batches are consecutive, and every number is fp32 on the CPU.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch

import golden_io

DIRECTORY = golden_io.GOLDEN_DIR / "finetune"
VOCAB, EOS, PAD = 48, 0, 1
# The least lead of the last chosen expert over the first unchosen one that any token of any step may have, in
# probability: rounding then changes nobody's choice.
MIN_MARGIN = 2e-5
# In the released models' spelling, which every version of transformers reads.
CONFIG = {
    "architectures": ["OlmoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "eos_token_id": EOS,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 12,
    "max_position_embeddings": 64,
    "model_type": "olmoe",
    "norm_topk_prob": False,
    "num_attention_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "pad_token_id": PAD,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": VOCAB,
}
LAYERS, EXPERTS = CONFIG["num_hidden_layers"], CONFIG["num_experts"]
LAYER_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.k_proj.weight": "self_attn.k_proj.weight",
    "attention.v_proj.weight": "self_attn.v_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "moe.router.weight": "mlp.gate.weight",
}
TOP_NAMES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def shapes() -> dict[str, tuple[int, ...]]:
    d, i, e = CONFIG["hidden_size"], CONFIG["intermediate_size"], EXPERTS
    found = {"embed_tokens.weight": (VOCAB, d)}
    for layer in range(LAYERS):
        at = f"layers.{layer}."
        found |= {at + name: (d,) for name in LAYER_NAMES if "norm" in name}
        found |= {f"{at}attention.{which}_proj.weight": (d, d) for which in "qkvo"}
        found |= {f"{at}moe.router.weight": (e, d)}
        found |= {f"{at}moe.experts.{which}_proj.weight": (e, i, d) for which in ("gate", "up")}
        found |= {f"{at}moe.experts.down_proj.weight": (e, d, i)}
    return found | {"norm.weight": (d,), "lm_head.weight": (VOCAB, d)}


def models() -> dict[str, dict[str, torch.Tensor]]:
    """The policy, and a reference model that is some way from it."""
    gen = golden_io.generator(7)
    reference = {name: golden_io.random_parameter(name, shape, gen) for name, shape in shapes().items()}
    # A head of a model that predicts nothing for certain.
    reference["lm_head.weight"] *= 1.5
    policy = {name: value + 0.1 * value.std() * torch.randn(value.shape, generator=gen) for name, value in reference.items()}
    return {"policy": policy, "reference": reference}


def to_released(params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a released checkpoint, each expert apart, which all versions of transformers read."""
    found = {theirs: params[own] for own, theirs in TOP_NAMES.items()}
    for layer in range(LAYERS):
        own, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        found |= {theirs + name: params[own + ours] for ours, name in LAYER_NAMES.items()}
        for which in ("gate", "up", "down"):
            for expert, matrix in enumerate(params[f"{own}moe.experts.{which}_proj.weight"]):
                found[f"{theirs}mlp.experts.{expert}.{which}_proj.weight"] = matrix
    return found


def canonical(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's parameters by canonical names: of transformers 4, expert by expert, or of 5, fused."""
    found = {own: named[theirs] for own, theirs in TOP_NAMES.items()}
    for layer in range(LAYERS):
        own, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        found |= {own + ours: named[theirs + name] for ours, name in LAYER_NAMES.items()}
        experts = f"{theirs}mlp.experts."
        if (fused := named.get(f"{experts}gate_up_proj")) is not None:
            gate, up = fused.chunk(2, dim=1)
            stacks = {"gate": gate, "up": up, "down": named[f"{experts}down_proj"]}
        else:
            stacks = {
                which: torch.stack([named[f"{experts}{expert}.{which}_proj.weight"] for expert in range(EXPERTS)])
                for which in ("gate", "up", "down")
            }
        found |= {f"{own}moe.experts.{which}_proj.weight": stack for which, stack in stacks.items()}
    return found


def save_tokenizer(folder: Path) -> None:
    """Words w2, w3, … are tokens 2, 3, …; <eos> and <pad> are the others."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": EOS, "<pad>": PAD} | {f"w{token}": token for token in range(2, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(folder)


def save_models(work: Path) -> None:
    """`work/policy` and `work/reference`, as transformers reads them, and the golden files."""
    from safetensors.torch import save_file

    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, params in models().items():
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
        released = {key: value.contiguous() for key, value in to_released(params).items()}
        save_file(released, folder / "model.safetensors", metadata={"format": "pt"})
        save_tokenizer(folder)
        metadata = {"config_hf": json.dumps(CONFIG), "command": "python tools/reference/make_golden_finetune.py"}
        tensors = {f"param.{key}": value.contiguous() for key, value in params.items()}
        (DIRECTORY / f"{name}.safetensors").write_bytes(golden_io.safetensors_bytes(tensors, metadata))


def load(folder: Path, **kwargs):
    """The model in fp32, with attention and experts in their plain forms."""
    import transformers
    from transformers import OlmoeForCausalLM

    if int(transformers.__version__.split(".")[0]) >= 5:
        kwargs |= {"dtype": torch.float32, "experts_implementation": "eager"}
    else:
        kwargs |= {"torch_dtype": torch.float32}
    return OlmoeForCausalLM.from_pretrained(folder, attn_implementation="eager", **kwargs)


def words(tokens: list[int]) -> str:
    return " ".join("<eos>" if token == EOS else f"w{token}" for token in tokens)


def draw_tokens(gen: torch.Generator, count: int) -> list[int]:
    return torch.randint(2, VOCAB, (count,), generator=gen).tolist()


# Tokens of prompts and answers, the end of an answer not counted; unequal within every batch of two and of four.
PAIR_LENGTHS = [(3, 5, 4), (1, 2, 7), (4, 6, 6), (2, 1, 3), (5, 3, 8), (2, 7, 2), (1, 4, 5), (6, 2, 1)]
ANSWER_LENGTHS = [(3, 5), (1, 2), (4, 7), (2, 1), (5, 3), (2, 6), (1, 4), (6, 2)]
LABELS = [True, False, False, True, True, True, False, True]


def pairs(seed: int, prompt: int | None = None) -> list[dict]:
    gen, rows = golden_io.generator(seed), []
    for p, chosen, rejected in PAIR_LENGTHS:
        ids = [draw_tokens(gen, count) for count in (prompt or p, chosen, rejected)]
        rows.append({"prompt_ids": ids[0], "chosen_ids": ids[1] + [EOS], "rejected_ids": ids[2] + [EOS]})
    return rows


def answers(seed: int) -> list[dict]:
    gen, rows = golden_io.generator(seed), []
    for (p, answer), label in zip(ANSWER_LENGTHS, LABELS):
        ids = [draw_tokens(gen, count) for count in (p, answer)]
        rows.append({"prompt_ids": ids[0], "completion_ids": ids[1] + [EOS], "label": label})
    return rows


def conversations(seed: int) -> list[dict]:
    """Rows with what is learned of them, -100 elsewhere: the answer, and in every second row also a first one."""
    gen, rows = golden_io.generator(seed), []
    for at, (p, answer) in enumerate(ANSWER_LENGTHS):
        ids, labels = [], []
        for _ in range(1 + at % 2):
            asked, said = draw_tokens(gen, p), draw_tokens(gen, answer) + [EOS]
            ids += asked + said
            labels += [-100] * len(asked) + said
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def as_text(rows: list[dict]) -> list[dict]:
    """What trl tokenises into these rows. It ends answers itself, and expects the text to do so."""
    found = []
    for row in rows:
        text = {"prompt": words(row["prompt_ids"])}
        text |= {key: " " + words(row[f"{key}_ids"]) for key in ("chosen", "rejected", "completion") if f"{key}_ids" in row}
        found.append(text | ({"label": row["label"]} if "label" in row else {}))
    return found


def signs(count: int) -> torch.Tensor:
    """±1 by the top bit of (i + 1)·0x9E3779B97F4A7C15 mod 2⁶⁴."""
    found = [1.0 - 2.0 * (((i + 1) * 0x9E3779B97F4A7C15 % 2**64) >> 63) for i in range(count)]
    return torch.tensor(found, dtype=torch.float64)


def changes(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    found = {}
    for name in before:
        change = (after[name].double() - before[name].double()).flatten()
        found[name] = [change.norm().item(), (change * signs(change.numel())).sum().item()]
    return found


class Margins:
    """Watches the routers of a model for choices that rounding could change."""

    def __init__(self, model: torch.nn.Module):
        self.least = math.inf
        for name, module in model.named_modules():
            # The router itself: a linear in transformers 4, a module with a weight in 5. peft wraps either.
            if name.endswith("mlp.gate"):
                module.register_forward_hook(self.watch)

    def watch(self, module, inputs, output) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        values = logits.detach().float()
        if logits.shape[-1] != EXPERTS:
            raise RuntimeError(f"the router gives {tuple(logits.shape)}")
        probs = values.softmax(-1) if values.min() < 0 or values.sum(-1).max() > 1.01 else values
        top = probs.topk(CONFIG["num_experts_per_tok"] + 1, dim=-1).values
        self.least = min(self.least, (top[..., -2] - top[..., -1]).min().item())

    def check(self, name: str) -> None:
        if not MIN_MARGIN <= self.least < 1.0:
            raise RuntimeError(f"{name}: a token's choice of experts hangs on {self.least:.1e}; take another seed")


def write(path: Path, head: dict, cases: list[dict]) -> None:
    """A case a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(head)[:-1] + ', "cases": [\n' + ",\n".join(map(json.dumps, cases)) + "]}\n"
    assert json.loads(text) == {**head, "cases": json.loads(json.dumps(cases))}
    path.write_text(text)
    print(f"{path}: {len(text)} bytes, {len(cases)} cases")


def differences(path: Path, head: dict, cases: list[dict]) -> list[str]:
    """Where a file differs from what was made now by more than fp32 rounding, which depends on the CPU and the BLAS."""
    found: list[str] = []

    def compare(a, b, where: str) -> None:
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            for key in a:
                if key != "versions":
                    compare(a[key], b[key], f"{where}/{key}")
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for at, (x, y) in enumerate(zip(a, b)):
                compare(x, y, f"{where}/{at}")
        elif isinstance(a, float) and isinstance(b, float):
            if not math.isclose(a, b, rel_tol=2e-4, abs_tol=2e-5):
                found.append(f"{where}: {a} and {b}")
        elif a != b:
            found.append(f"{where}: {a} and {b}")

    compare(json.loads(path.read_text()), {**head, "cases": json.loads(json.dumps(cases))}, path.name)
    return found
