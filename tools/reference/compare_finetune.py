"""`olmoe sft` with adapters against transformers with peft, alternating on one machine.

    venv/bin/python tools/reference/compare_finetune.py --olmoe target/release/olmoe --work /tmp/finetune \
        --tokenizer tokenizer.json --layers 2

Makes an OLMoE of the release's sizes with `--layers` of its 16 layers and random weights, in bf16, and rows of random
tokens. Every round times one block of steps of each variant of peft and then one run of the program. A step is forward,
backward and AdamW of adapters of rank 16 on attention and experts, over `--tokens` tokens in sequences of `--length`; all
tokens but the first of a sequence are learned.

- peft is warm and stays in memory. The program starts anew each time; its figure is that of the steps after the first.
- peft adapts the stacks of experts as parameters: gate and up have one adapter of twice the rank together, which is how it
  rewrites an adapter of both. With transformers 4.57.6 and peft 0.18.1 (on PYTHONPATH) it is a loop over experts with an
  adapter for each matrix.
- `--recompute` has peft recompute the activations of each layer in the backward pass, which the program does by itself where
  memory is short; `--activations` is passed on to the program.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import OlmoeForCausalLM

from train_variants import plain_environment

FUSED = transformers.__version__.startswith("5")
TOKENS_PER_SECOND = "throughput/device/tokens_per_second"
RELEASE = {
    "architectures": ["OlmoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "clip_qkv": None,
    "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 1024,
    "max_position_embeddings": 4096, "model_type": "olmoe", "norm_topk_prob": False, "num_attention_heads": 16,
    "num_experts": 64, "num_experts_per_tok": 8, "num_key_value_heads": 16, "output_router_logits": False, "pad_token_id": 1,
    "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000.0, "router_aux_loss_coef": 0.01,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 50304,
}


def make_model(folder: Path, layers: int, tokenizer: Path | None) -> None:
    """Random weights with the names of the released checkpoint; a folder that is there is taken as it is."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(RELEASE | {"num_hidden_layers": layers}, indent=1))
    if tokenizer is not None:
        shutil.copy(tokenizer, folder / "tokenizer.json")
    gen = torch.Generator().manual_seed(0)
    d, i, e, v = (RELEASE[key] for key in ("hidden_size", "intermediate_size", "num_experts", "vocab_size"))
    draw = lambda *shape: (0.02 * torch.randn(shape, generator=gen)).to(torch.bfloat16)
    ones = lambda: torch.ones(d, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": draw(v, d), "lm_head.weight": draw(v, d), "model.norm.weight": ones()}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors |= {f"{at}{norm}.weight": ones() for norm in ("input_layernorm", "post_attention_layernorm")}
        tensors |= {f"{at}self_attn.{norm}.weight": ones() for norm in ("q_norm", "k_norm")}
        tensors |= {f"{at}self_attn.{which}_proj.weight": draw(d, d) for which in "qkvo"}
        tensors[f"{at}mlp.gate.weight"] = draw(e, d)
        for expert in range(e):
            own = f"{at}mlp.experts.{expert}."
            tensors |= {f"{own}{which}_proj.weight": draw(i, d) for which in ("gate", "up")}
            tensors[f"{own}down_proj.weight"] = draw(d, i)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def make_rows(args: argparse.Namespace, steps: int) -> list[list[int]]:
    gen = torch.Generator().manual_seed(1)
    count = steps * (args.tokens // args.length)
    return torch.randint(2, 50000, (count, args.length), generator=gen).tolist()


class Peft:
    """A variant of peft: an implementation of the experts, over weights of its own."""

    def __init__(self, args: argparse.Namespace, folder: Path, experts: str) -> None:
        kwargs = dict(dtype=torch.bfloat16, experts_implementation=experts) if FUSED else dict(torch_dtype=torch.bfloat16)
        model = OlmoeForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **kwargs)
        model.config.use_cache = False
        attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
        lora = dict(r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0.0, task_type="CAUSAL_LM")
        if FUSED:
            lora |= dict(
                target_modules=attention, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
                rank_pattern={r".*\.gate_up_proj": 2 * args.rank}, alpha_pattern={r".*\.gate_up_proj": 4 * args.rank},
            )
        else:
            lora |= dict(target_modules=attention + ["gate_proj", "up_proj", "down_proj"])
        self.model = get_peft_model(model, LoraConfig(**lora)).train()
        if args.recompute:
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.trained = sum(parameter.numel() for parameter in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.micro = args.micro_batch

    def tokens_per_second(self, rows: list[list[int]], per_step: int) -> float:
        started = time.perf_counter()
        for step in range(0, len(rows), per_step):
            ids = torch.tensor(rows[step : step + per_step])
            for micro in ids.split(self.micro):
                loss = self.model(input_ids=micro, labels=micro).loss * (len(micro) / len(ids))
                loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return sum(map(len, rows)) / (time.perf_counter() - started)


def run_olmoe(args: argparse.Namespace, folder: Path, data: Path, steps: int) -> dict[str, float]:
    """Tokens a second of the steps after the first, from the log of a run, and the peak memory of the process."""
    run = args.work / "run"
    shutil.rmtree(run, ignore_errors=True)
    per_step = args.tokens // args.length
    command = [
        args.olmoe, "sft", "--model_name_or_path", folder, "--train_file", data, "--dataset_format", "tokens",
        "--max_seq_length", args.length, "--use_lora", "true", "--lora_rank", args.rank, "--lora_alpha", 2 * args.rank,
        "--lora_target", "attention", "experts", "--per_device_train_batch_size", args.micro_batch,
        "--gradient_accumulation_steps", per_step // args.micro_batch, "--max_train_steps", steps,
        "--learning_rate", "1e-4", "--lr_scheduler_type", "constant", "--shuffle", "false", "--drift_tokens", 0,
        "--output_dir", run, "--output_format", "none", "--keep_last_n_checkpoints", 0, "--overwrite_cache", "true",
        "--activations", args.activations, "--threads", args.threads,
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=plain_environment())
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    rates = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        record = record.get("metrics", record)
        if TOKENS_PER_SECOND in record:
            rates.append(record[TOKENS_PER_SECOND])
    if not rates:
        raise SystemExit(f"no {TOKENS_PER_SECOND} in {run}/metrics.jsonl")
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"tokens_per_second": rates[-1], "peak_bytes": peak}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--olmoe", required=True, help="path of the olmoe program")
    parser.add_argument("--work", required=True, type=Path, help="a folder for the model, the data and the runs")
    parser.add_argument("--model", type=Path, help="a folder or file for the program alone, such as a quantised one")
    parser.add_argument("--tokenizer", type=Path, help="OLMoE's tokenizer.json, to be put beside the weights")
    parser.add_argument("--layers", type=int, default=2, help="of the 16 layers (default: 2; 0.84 GB each, and 0.41 GB)")
    parser.add_argument("--tokens", type=int, default=4096, help="of a step (default: 4096)")
    parser.add_argument("--length", type=int, default=1024, help="of a sequence (default: 1024)")
    parser.add_argument("--micro-batch", type=int, help="sequences at once (default: all of a step)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="of a timed block (default: 3)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--recompute", action="store_true", help="peft recomputes activations")
    parser.add_argument("--activations", default="auto", help="what the program keeps: passed on to it")
    parser.add_argument("--implementations", default="grouped_mm,eager" if FUSED else "eager", help="of peft's experts")
    parser.add_argument("--json", action="store_true", help="print a JSON object as well")
    args = parser.parse_args()
    per_step = args.tokens // args.length
    args.micro_batch = args.micro_batch or per_step
    if args.tokens % args.length or per_step % args.micro_batch:
        parser.error("--length has to divide --tokens, and --micro-batch the sequences of a step")
    torch.set_num_threads(args.threads)

    folder, data = args.work / f"model-{args.layers}", args.work / "rows.jsonl"
    make_model(folder, args.layers, args.tokenizer)
    rows = make_rows(args, args.steps + 1)
    data.write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in rows))
    print(f"{args.layers} layers, {args.tokens} tokens a step, rank {args.rank}, {args.threads} threads; torch {torch.__version__}, "
          f"transformers {transformers.__version__}, peft {peft.__version__}", flush=True)

    variants: dict[str, Peft] = {}
    for name in args.implementations.split(","):
        try:
            variants[name] = Peft(args, folder, name)
            # The first step, which also allocates.
            variants[name].tokens_per_second(rows[:per_step], per_step)
        except Exception as error:  # noqa: BLE001: a variant that does not work here is left out
            print(f"peft {name} does not work: {str(error)[:300]}", flush=True)
            variants.pop(name, None)
    if not variants:
        return 1
    trained = next(iter(variants.values())).trained
    print(f"peft trains {trained / 1e6:.1f} M numbers; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")

    rates: dict[str, list[float]] = {name: [] for name in [*variants, "olmoe"]}
    runs = []
    for number in range(args.rounds):
        for name, variant in variants.items():
            rates[name].append(variant.tokens_per_second(rows[per_step:], per_step))
        # OpenMP's threads spin for a moment after the last block; let them go to sleep first.
        time.sleep(0.5)
        runs.append(run_olmoe(args, args.model or folder, data, args.steps + 1))
        rates["olmoe"].append(runs[-1]["tokens_per_second"])
        print(f"round {number + 1}: " + "  ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items()), flush=True)

    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(variants, key=medians.get)
    per_round = [own / max(rates[name][at] for name in variants) for at, own in enumerate(rates["olmoe"])]
    for name, value in medians.items():
        print(f"{name:20} median {value:9.1f} tokens/s")
    print(f"olmoe peak memory {max(run['peak_bytes'] for run in runs) / 2**30:.2f} GiB")
    ratio = medians["olmoe"] / medians[best]
    print(f"olmoe / best of peft ({best}): {ratio:.2f}  ({min(per_round):.2f} to {max(per_round):.2f} by round)")
    if args.json:
        print(json.dumps({"arguments": {key: str(value) for key, value in vars(args).items()}, "tokens_per_second": rates,
                          "median": medians, "best_of_peft": best, "ratio": ratio, "ratio_by_round": per_round, "olmoe": runs}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
