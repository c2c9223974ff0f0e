"""Low-rank adapters of a small OLMoE by peft: logits, gradients, and two steps of training, for the tests of olmoe-model
and olmoe-train.

    python tools/reference/make_golden_adapter_steps.py                        # peft 0.21.2, transformers 5.23.0, trl 1.16.0
    pip install --no-deps --target OLD peft==0.18.1 transformers==4.57.6 huggingface-hub==0.36.0 tokenizers==0.22.1 \\
        datasets==4.4.1 accelerate==1.12.0 fsspec filelock requests
    PYTHONPATH=OLD python tools/reference/make_golden_adapter_steps.py         # peft 0.18.1, transformers 4.57.6, trl 1.16.0

In transformers 4 every expert's matrices are linears, which peft adapts one by one, with DoRA if asked for; in 5 the
experts are stacks, which it adapts as parameters and never with DoRA. `--check` compares, and writes nothing.

Writes to `tests/golden/finetune` (see finetune_io.py) `adapters_peft_*.json` and `adapters_peft_*.safetensors`, which has
for each case:

    CASE/initial.X   the adapter's parameters by canonical names and shapes, and copies of trained base parameters
    CASE/final.X     the same after two steps
    CASE/gradient.X  of the mean cross-entropy of the tokens to be learned in the first four rows, with the initial values
    CASE/logits      [T, V] of these rows, one after the other

B is not 0 at first, so that both matrices have gradients and a policy is not its reference. Gate and up of a stack are
one parameter with one A: as adapters of two matrices its A stands there twice. Those cases have no steps, for the two
copies would go different ways; the sum of their gradients is that of the one (`gradient.X` of the copies is left out,
`gradient.….gate_up_proj.lora_a` is it).
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import tempfile
import zlib
from pathlib import Path

import finetune_io as io

import peft
import torch
import transformers
import trl
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import golden_io

LEARNING_RATE = 3e-3
ROWS = {"conversations": io.conversations(1), "pairs": io.pairs(2)}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["gate_proj", "up_proj", "down_proj"]
FUSED = transformers.__version__.startswith("5")
E = io.EXPERTS
# Of transformers 5: the experts' stacks and the router are parameters of their own kind.
STACKS = dict(target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"])
DOWN = dict(target_parameters=["mlp.experts.down_proj", "mlp.gate.weight"])


def cases() -> dict[str, dict]:
    """`lora`: what LoraConfig is given. `task`: whose trainer takes the steps. `seed`: that of the adapter's values."""
    r4 = dict(r=4, lora_alpha=8)
    if FUSED:
        return {
            "attention": dict(lora=r4 | dict(target_modules=ATTENTION), task="sft"),
            "attention_dora": dict(lora=r4 | dict(target_modules=ATTENTION, use_dora=True), task="sft"),
            "attention_dora_dpo": dict(lora=r4 | dict(target_modules=ATTENTION, use_dora=True), task="dpo"),
            "patterns": dict(
                lora=dict(
                    r=4, lora_alpha=6, use_rslora=True, target_modules=ATTENTION,
                    rank_pattern={"q_proj": 2, "layers.1.self_attn.v_proj": 6}, alpha_pattern={"k_proj": 16},
                ),
                task="sft",
            ),
            "one_layer": dict(lora=r4 | dict(target_modules=["q_proj", "o_proj"], layers_to_transform=[1]), task="sft"),
            "stacks": dict(lora=dict(r=3, lora_alpha=6, target_modules=ATTENTION) | DOWN, task="sft"),
            "stacks_aux": dict(lora=dict(r=3, lora_alpha=6, target_modules=[]) | DOWN, task="sft", settings=dict(router_aux_loss_coef=0.01)),
            "stacks_dpo": dict(lora=dict(r=3, lora_alpha=6, target_modules=ATTENTION) | DOWN, task="dpo"),
            "stacks_dpo_aux": dict(lora=dict(r=3, lora_alpha=6, target_modules=["v_proj"]) | DOWN, task="dpo", settings=dict(router_aux_loss_coef=0.01)),
            "gate_up": dict(lora=dict(r=2, lora_alpha=4, target_modules=["q_proj"]) | STACKS),
            "embedding_and_head": dict(lora=r4 | dict(target_modules=["embed_tokens", "lm_head", "v_proj"]), task="plain"),
            "modules_to_save": dict(lora=r4 | dict(target_modules=["q_proj"], modules_to_save=["lm_head"]), task="plain", seed=1),
        }
    everything = dict(target_modules=ATTENTION + EXPERTS + ["gate"])
    return {
        "experts": dict(lora=dict(r=2, lora_alpha=4) | everything, task="sft"),
        "experts_rslora": dict(lora=dict(r=4, lora_alpha=4, use_rslora=True, target_modules=EXPERTS), task="sft"),
        "experts_dora": dict(lora=dict(r=2, lora_alpha=4, use_dora=True) | everything, task="sft"),
        "experts_dora_rslora": dict(lora=dict(r=4, lora_alpha=3, use_dora=True, use_rslora=True, target_modules=["down_proj"]), task="sft"),
        "experts_dpo": dict(lora=dict(r=2, lora_alpha=4) | everything, task="dpo", seed=1),
        "experts_dora_dpo": dict(lora=dict(r=2, lora_alpha=4, use_dora=True) | everything, task="dpo"),
        "experts_patterns": dict(
            lora=dict(r=2, lora_alpha=4, target_modules=["gate_proj", "up_proj", "q_proj"], rank_pattern={"up_proj": 3}, alpha_pattern={"gate_proj": 5}),
            task="sft",
        ),
    }


PEFT_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+?)\.(?P<side>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)\.default(\.weight)?$"
)
SUFFIX = {"A": "lora_a", "B": "lora_b", "r": "lora_magnitude"}


def module_name(theirs: str) -> str:
    """The canonical name of a module, with `{e}` of experts left in it, and `.base_layer` of a wrapped parameter."""
    if theirs in ("lm_head", "model.embed_tokens"):
        return theirs.removeprefix("model.")
    layer, rest = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", theirs).groups()
    own = rest.replace("self_attn.", "attention.").replace("mlp.gate", "moe.router").replace("mlp.experts", "moe.experts")
    return f"layers.{layer}.{own}"


def canonical(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The trained parameters by canonical names, in canonical shapes."""
    found: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for name, value in named.items():
        if (match := PEFT_NAME.fullmatch(name)) is None:
            # Copies of whole modules.
            own = {"base_model.model.lm_head.modules_to_save.default.weight": "lm_head.weight"}[name]
            found[own] = value
            continue
        module, side = module_name(match["module"]), match["side"]
        suffix = SUFFIX[side[-1]]
        value = value.squeeze() if suffix == "lora_magnitude" else value
        if side == "lora_embedding_A":
            value = value.T
        if each := re.fullmatch(r"(.+\.moe\.experts)\.(\d+)\.(\w+_proj)", module):
            experts.setdefault(f"{each[1]}.{each[3]}.{suffix}", {})[int(each[2])] = value
        elif (stack := re.fullmatch(r"(.+\.moe\.experts)(\.base_layer)?", module)) is not None:
            # The inner of two wrappers is that of gate and up.
            which = "gate_up_proj" if stack[2] else "down_proj"
            if suffix == "lora_a":
                value = value.reshape(E, -1, value.shape[-1])
            else:
                value = value.reshape(value.shape[0], -1, E).permute(2, 0, 1)
            found[f"{stack[1]}.{which}.{suffix}"] = value
        else:
            found[f"{module}.{suffix}"] = value
    found |= {name: torch.stack([some[e] for e in range(E)]) for name, some in experts.items()}
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def unfused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gate's and up's own adapters instead of one of both."""
    found = {}
    for name, value in tensors.items():
        if "gate_up_proj" not in name:
            found[name] = value
            continue
        gate, up = (value, value) if name.endswith("lora_a") else value.chunk(2, dim=1)
        found[name.replace("gate_up", "gate")], found[name.replace("gate_up", "up")] = gate.clone(), up.clone()
    return found


def modules(model) -> dict[str, dict]:
    """Rank and scale of every adapted module."""
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        own = module_name(name.removeprefix("base_model.model."))
        own = re.sub(r"experts\.\d+\.", "experts.", own)
        if own.endswith("moe.experts.base_layer"):
            names = [own.replace("base_layer", which) for which in ("gate_proj", "up_proj")]
        else:
            names = [own + ".down_proj" if own.endswith("moe.experts") else own]
        for own in names:
            found[own] = {"rank": module.r["default"], "scale": module.scaling["default"], "dora": bool(module.use_dora.get("default"))}
    return found


def fill(model, seed: int) -> None:
    """Values for the adapter, each parameter's from its own name and the seed."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or "modules_to_save" in name:
                continue
            noise = torch.randn(parameter.shape, generator=golden_io.generator(zlib.crc32(f"{seed} {name}".encode())))
            if "magnitude" in name:
                parameter.mul_(1.0 + 0.1 * noise)
            elif "_A." in name:
                parameter.copy_(0.25 * noise)
            else:
                parameter.copy_(0.1 * noise)


def trained(model) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def mean_cross_entropy(model, rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean over the tokens to be learned, and the logits of all tokens."""
    width = max(len(row["input_ids"]) for row in rows)
    ids, mask, labels = (torch.full((len(rows), width), fill) for fill in (io.PAD, 0, -100))
    for at, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[at, :length], labels[at, :length] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        mask[at, :length] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    loss = cross_entropy(logits[:, :-1].reshape(-1, io.VOCAB), labels[:, 1:].reshape(-1))
    return loss, logits[mask.bool()]


class Usage:
    """That every expert is chosen in every pass: transformers 4 gives the others no gradient, and torch's AdamW then does
    not move them at all, where one of 0 would still let the momentum act."""

    def __init__(self, model: torch.nn.Module):
        self.unused = 0
        for name, module in model.named_modules():
            if name.endswith("mlp.gate"):
                module.register_forward_hook(self.watch)

    def watch(self, module, inputs, output) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        chosen = logits.topk(io.CONFIG["num_experts_per_tok"], dim=-1).indices.unique()
        self.unused += len(chosen) < E


def plain_steps(model) -> list[dict]:
    from make_golden_finetune import two_steps

    return two_steps(model, lambda step: (mean_cross_entropy(model, ROWS["conversations"][4 * step :][:4])[0], {}), LEARNING_RATE)


def trainer_steps(work: Path, task: str, model, config: LoraConfig, settings: dict, seed: int) -> tuple[list[dict], dict]:
    """Steps of trl's trainer, which wraps the model itself."""
    from datasets import Dataset
    from make_golden_finetune import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, arguments, check_rows, recorded
    from transformers import PrinterCallback

    classes = {"sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig)}[task]
    rows = ROWS["conversations"] if task == "sft" else io.as_text(ROWS["pairs"])
    given = dict(router_aux_loss_coef=0.0) | (dict(beta=0.5) if task == "dpo" else {}) | settings
    args = arguments(classes[1], work, (4, 1), given)
    trainer = recorded(classes[0])(model=model, args=args, train_dataset=Dataset.from_list(rows), peft_config=config)
    trainer.remove_callback(PrinterCallback)
    check_rows(trainer.train_dataset, rows)
    fill(trainer.model, seed)
    trainer.train()
    return trainer.recorded_steps, trained(trainer.model)


def make(work: Path, name: str, case: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    task, settings = case.get("task"), case.get("settings", {})
    seed = case.get("seed", 0)
    config = lambda: LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **case["lora"])
    model = get_peft_model(io.load(work / "policy"), config())
    fill(model, seed)
    # Gradients come with the trainer's mode, but there is no dropout.
    loss, logits = mean_cross_entropy(model.train(), ROWS["conversations"][:4])
    loss.backward()
    gradient = canonical({key: parameter.grad for key, parameter in trained(model).items()})
    initial = unfused(canonical(trained(model)))
    written = {"name": name, "by": f"peft {peft.__version__}", "lora": case["lora"], "modules": modules(model)}
    written |= {"cross_entropy": loss.item(), "rows": "pairs" if task == "dpo" else "conversations"}
    tensors = {f"initial.{key}": value for key, value in initial.items()} | {"logits": logits.detach()}
    tensors |= {f"gradient.{key}": value for key, value in gradient.items()}
    if task is not None:
        base = io.load(work / "policy")
        margins, usage = io.Margins(base), Usage(base)
        if task == "plain":
            policy = get_peft_model(base, config())
            fill(policy, seed)
            steps, final = plain_steps(policy), trained(policy)
        else:
            steps, final = trainer_steps(work, task, base, config(), settings, seed)
        margins.check(name)
        if usage.unused and not FUSED:
            raise RuntimeError(f"{name}: an expert is not chosen")
        tensors |= {f"final.{key}": value for key, value in canonical(final).items()}
        shown = dict(beta=0.5) | settings if task == "dpo" else settings
        written |= {"task": "sft" if task == "plain" else task, "settings": shown, "micro_batch": 4, "accumulation": 1, "steps": steps}
        print(name, [round(step["loss"], 5) for step in steps], [round(step["grad_norm"], 3) for step in steps], f"margin {margins.least:.1e} unused {usage.unused}")
    return written, {f"{name}/{key}": value.contiguous() for key, value in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp())
    io.save_models(work)
    made = [make(work, name, case) for name, case in cases().items()]
    written, tensors = [case for case, _ in made], {key: value for _, some in made for key, value in some.items()}
    versions = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0], "peft": peft.__version__,
                "transformers": transformers.__version__, "trl": trl.__version__}
    head = {"made_by": "tools/reference/make_golden_adapter_steps.py", "versions": versions, "learning_rate": LEARNING_RATE, "rows": ROWS}
    stem = "adapters_peft_0_21" if FUSED else "adapters_peft_0_18"
    path, data = io.DIRECTORY / f"{stem}.json", io.DIRECTORY / f"{stem}.safetensors"
    if args.check:
        problems = io.differences(path, head, written)
        stored = load_file(data)
        problems += [f"{key}: tensors differ" for key in sorted(stored.keys() ^ tensors.keys())]
        for key in sorted(stored.keys() & tensors.keys()):
            if (error := golden_io.relative_error(tensors[key], stored[key])) > 2e-4:
                problems.append(f"{key}: {error:.1e}")
        print(f"{path.name}: {problems[:10] or 'the same'}")
    else:
        io.write(path, head, written)
        data.write_bytes(golden_io.safetensors_bytes({key: value.detach().float() for key, value in tensors.items()}, {}))
        print(f"{data}: {data.stat().st_size} bytes")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
