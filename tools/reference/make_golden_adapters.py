"""Adapter files by peft, in its three layouts of experts, and what transformers computes with them.

    PYTHONPATH=V4 venv/bin/python tools/reference/make_golden_adapters.py separate   # peft 0.18.1, transformers 4.57.6
    venv/bin/python tools/reference/make_golden_adapters.py fused                    # peft 0.21.2, transformers 5.23
    PYTHONPATH=V18 venv/bin/python tools/reference/make_golden_adapters.py swapped   # peft 0.18.1, transformers 5.23

V4 and V18 are folders of `pip install --no-deps --target`: peft==0.18.1 transformers==4.57.6
huggingface_hub==0.36.0 tokenizers==0.22.1, and peft==0.18.1 alone. The second and the third read what the
ones before them wrote. `load FOLDER…` prints the logits of adapters that another program wrote; `--base` is
their model.

Writes tests/golden/adapters: `base`, a small OLMoE whose experts are not half as wide as the model; a folder
for each adapter, with adapter_config.json as peft saves it; and `logits_*.safetensors`, with `ids`, the
logits of the base and of each adapter, and `merged.NAME.X`, the matrices that merge_and_unload changes."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import OlmoeConfig, OlmoeForCausalLM

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden" / "adapters"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["gate_proj", "up_proj", "down_proj"]
IDS = [[3, 17, 5, 39, 8, 22, 11, 30, 2, 14, 27, 6]]
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def base() -> OlmoeForCausalLM:
    return OlmoeForCausalLM.from_pretrained(FOLDER / "base", dtype=torch.float32).eval()


def make_base() -> None:
    torch.manual_seed(1)
    config = OlmoeConfig(
        vocab_size=40, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=3, num_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )
    model = OlmoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "norm" in name or "embed" in name else 0.8 / parameter.shape[-1] ** 0.5
            parameter.copy_(torch.randn(parameter.shape) * (0.2 if "norm" in name else scale))
            if "norm" in name:
                parameter.add_(1.0)
    model.save_pretrained(FOLDER / "base")
    (FOLDER / "base" / "generation_config.json").unlink(missing_ok=True)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits[0].float()


def randomize(model, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1.0 + 0.2 * torch.randn(parameter.shape))
            elif "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
            elif "modules_to_save" in name:
                parameter.mul_(1.0 + 0.2 * torch.randn(parameter.shape))


def tidy(folder: Path) -> None:
    """The same file on every machine, and no card of the model."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = "base"
    for key in ["target_modules", "target_parameters", "modules_to_save"]:
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)


def save(model, name: str) -> None:
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    model.save_pretrained(FOLDER / name)
    tidy(FOLDER / name)


def merged(model) -> dict[str, torch.Tensor]:
    before = base().state_dict()
    after = model.merge_and_unload().state_dict()
    return {name: value for name, value in after.items() if not torch.equal(value, before[name])}


def made(name: str, config: LoraConfig, seed: int, out: dict, with_merged: bool = False) -> None:
    model = get_peft_model(base(), config).eval()
    randomize(model, seed)
    save(model, name)
    out[f"logits.{name}"] = logits(model)
    # What a reader of the file gets has to be what was saved.
    again = PeftModel.from_pretrained(base(), FOLDER / name).eval()
    difference = (logits(again) - out[f"logits.{name}"]).abs().max().item()
    assert difference < 1e-6, f"{name}: read back {difference}"
    if with_merged:
        out.update({f"merged.{name}.{key}": value for key, value in merged(again).items()})


def write(stage: str, out: dict) -> None:
    out["ids"] = torch.tensor(IDS[0], dtype=torch.int32)
    out["logits.base"] = logits(base())
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__}
    command = f"python tools/reference/make_golden_adapters.py {stage}"
    tensors = {name: value.contiguous() for name, value in sorted(out.items())}
    save_file(tensors, FOLDER / f"logits_{stage}.safetensors", {"command": command, "versions": json.dumps(versions)})
    for name in out:
        if name.startswith("logits."):
            print(name, f"{(out[name] - out['logits.base']).abs().max().item():.3f} from the base")


def separate() -> None:
    make_base()
    out: dict = {}
    everything = [*ATTENTION, "gate", *EXPERTS]
    made("separate", LoraConfig(r=3, lora_alpha=6, target_modules=everything, task_type="CAUSAL_LM"), 2, out, True)
    made("separate_rslora", LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=everything), 3, out)
    made("separate_dora", LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=everything), 4, out, True)
    patterns = LoraConfig(
        r=2, lora_alpha=5, target_modules=everything, rank_pattern={"q_proj": 3, r"layers\.1\..*up_proj": 1},
        alpha_pattern={"o_proj": 1, r"experts\.\d+\.down_proj": 7},
    )
    made("separate_patterns", patterns, 5, out)
    kept = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head", "norm"])
    made("separate_kept", kept, 6, out)
    made("separate_linear", LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"), 7, out)
    one = LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head", "layers.1.mlp.experts.2.down_proj"])
    made("separate_one_expert", one, 8, out)
    write("separate", out)


def fused() -> None:
    out: dict = {}
    # The adapter of the first stage, as this version saves it again.
    for name in ["separate", "separate_linear"]:
        model = PeftModel.from_pretrained(base(), FOLDER / name).eval()
        again = name.replace("separate", "fused")
        save(model, again)
        out[f"logits.{again}"] = logits(model)
    everything = [*ATTENTION, "gate", *EXPERTS]
    made("fused_own", LoraConfig(r=3, lora_alpha=6, target_modules=everything), 9, out, True)
    # One A for gate and up.
    stacks = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], target_parameters=STACKS)
    made("fused_stacks", stacks, 10, out)
    gate_up = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], target_parameters=STACKS[:1])
    made("fused_gate_up", gate_up, 11, out)
    down = LoraConfig(r=3, lora_alpha=6, use_rslora=True, target_modules=[], target_parameters=STACKS[1:])
    made("fused_down", down, 12, out)
    dora = LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=[*ATTENTION, "lm_head"])
    made("fused_dora", dora, 13, out, True)
    write("fused", out)


def swapped() -> None:
    out: dict = {}
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], target_parameters=STACKS)
    model = get_peft_model(base(), config).eval()
    # The numbers of `fused_stacks`: here A has the rows of the matrix and B its columns.
    fused_file = load_file(FOLDER / "fused_stacks" / "adapter_model.safetensors")
    state = model.state_dict()
    with torch.no_grad():
        for name, value in fused_file.items():
            key = name.replace(".weight", ".default.weight")
            if ".experts." not in name:
                state[key].copy_(value)
                continue
            other = name.replace("lora_A", "lora_B") if "lora_A" in name else name.replace("lora_B", "lora_A")
            (a, b) = (value, fused_file[other]) if "lora_A" in name else (fused_file[other], value)
            a_eri = a.reshape(4, -1, a.shape[-1])
            b_ore = b.reshape(b.shape[0], -1, 4)
            if "lora_A" in name:
                state[key].copy_(b_ore.permute(2, 1, 0).reshape(-1, b.shape[0]))
            else:
                state[key].copy_(a_eri.permute(2, 1, 0).reshape(a.shape[-1], -1))
    save(model, "swapped")
    out["logits.swapped"] = logits(model)
    expected = load_file(FOLDER / "logits_fused.safetensors")["logits.fused_stacks"]
    assert (out["logits.swapped"] - expected).abs().max() < 1e-5
    write("swapped", out)


def load(folders: list[str], path: str, out: str | None) -> None:
    """The logits with adapters of another program, as safetensors if `out` names a file."""
    found = {}
    for folder in folders:
        model = OlmoeForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        found[Path(folder).name] = logits(PeftModel.from_pretrained(model, folder).eval())
        print(Path(folder).name, found[Path(folder).name].abs().sum().item())
    if out:
        save_file(found, out)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=["separate", "fused", "swapped", "load"])
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--base", default=str(FOLDER / "base"))
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.stage == "load":
        load(args.folders, args.base, args.out)
    else:
        {"separate": separate, "fused": fused, "swapped": swapped}[args.stage]()
