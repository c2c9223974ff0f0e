"""Trains one small OLMoE twice, with olmoe and with torch, from the same weights on the same batches.

    python tools/reference/compare_training.py --olmoe target/release/olmoe --work /tmp/training [--steps 100]

`olmoe init` writes the weights of the run's seed, and transformers reads them. The order of the data is NumPy's shuffle, the
losses are written out from OLMo's formulas over the routers' own inputs, clipping and AdamW are torch's. Both run in fp32. Fails
if the curves of the cross-entropy differ by more than 1e-3 anywhere; prints the greatest difference of each quantity.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import OlmoeForCausalLM

SEED, BATCH, MICRO, LENGTH, VOCAB, LAYERS, EXPERTS, TOP = 6198, 8, 3, 64, 500, 4, 8, 2
LR, WARMUP, ALPHA, W_LB, W_Z, W_SOFTMAX = 1e-3, 10, 0.1, 0.01, 0.001, 1e-4

YAML = f"""
run_name: compare
seed: {SEED}
model: {{d_model: 64, n_heads: 4, n_layers: {LAYERS}, mlp_hidden_size: 96, block_type: moe, moe_num_experts: {EXPERTS},
  moe_top_k: {TOP}, rope: true, attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0, vocab_size: {VOCAB},
  embedding_size: 512, attention_layer_norm: true, layer_norm_type: rms, include_bias: false, weight_tying: false,
  activation_type: swiglu, moe_loss_weight: {W_LB}, moe_zloss_weight: {W_Z}, eos_token_id: 0, pad_token_id: 1,
  max_sequence_length: {LENGTH}}}
optimizer: {{name: adamw, learning_rate: {LR}, weight_decay: 0.1, betas: [0.9, 0.95], eps: 1.0e-8,
  decay_norm_and_bias: true, decay_embeddings: true}}
scheduler: {{name: cosine_with_warmup, t_warmup: {WARMUP}, alpha_f: {ALPHA}}}
global_train_batch_size: {BATCH}
device_train_microbatch_size: {MICRO}
softmax_auxiliary_loss: true
auxiliary_loss_multiplier: {W_SOFTMAX}
max_grad_norm: 1.0
precision: fp32
no_pre_train_checkpoint: true
save_interval: null
"""


def tokens(count: int) -> np.ndarray:
    """Each id has four successors, so that the loss falls but stays above 0. No id is 1: transformers gives the row of the
    padding token no gradient."""
    state, last, data = 1, 7, np.zeros(count, dtype=np.uint16)
    for i in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        last = 2 + (last * 2 + (state >> 62)) % (VOCAB - 2)
        data[i] = last
    return data


def learning_rate(step: int, end: int) -> float:
    if step < WARMUP:
        return 0.1 * LR + 0.9 * LR * step / WARMUP
    if step >= end:
        return ALPHA * LR
    return ALPHA * LR + (1 - ALPHA) * LR * (1 + math.cos(math.pi * (step - WARMUP) / (end - WARMUP))) / 2


def losses(model: OlmoeForCausalLM, ids: torch.Tensor, inputs: list[torch.Tensor], tokens: int) -> dict[str, torch.Tensor]:
    """The losses of a micro-batch of a batch with this many tokens, as in OLMo's trainer."""
    inputs.clear()
    logits = model(ids, use_cache=False).logits[:, :-1].float()
    ce = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="sum") / tokens
    softmax = W_SOFTMAX * logits.logsumexp(-1).square().sum() / tokens
    lb, z = torch.zeros(()), torch.zeros(())
    for x, layer in zip(inputs, model.model.layers):
        r = F.linear(x.reshape(-1, x.shape[-1]), layer.mlp.gate.weight).float()
        p = r.softmax(-1)
        n = F.one_hot(p.topk(TOP, dim=-1).indices, EXPERTS).sum((0, 1)).float()
        scale = LAYERS * r.shape[0] * TOP
        lb = lb + W_LB * EXPERTS / scale * (n * p.mean(0)).sum()
        z = z + W_Z * r.logsumexp(-1).square().sum() / scale
    return {"CrossEntropyLoss": ce, "ZLoss": softmax, "LoadBalancingLoss": lb, "MoEZLoss": z}


def by_torch(weights: Path, data: np.ndarray, steps: int) -> list[dict[str, float]]:
    model = OlmoeForCausalLM.from_pretrained(weights, dtype=torch.float32, attn_implementation="eager")
    model.train()
    inputs: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    instances = data[: len(data) // LENGTH * LENGTH].reshape(-1, LENGTH)
    log, epoch, order = [], 0, np.array([], dtype=np.uint32)
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = np.arange(len(instances), dtype=np.uint32)
            np.random.Generator(np.random.PCG64(SEED + epoch)).shuffle(order)
            epoch += 1
        batch, order = torch.from_numpy(instances[order[:BATCH]].astype(np.int64)), order[BATCH:]
        micros = batch.split(MICRO)
        sums: dict[str, float] = {}
        optimizer.zero_grad()
        for micro in micros:
            parts = losses(model, micro, inputs, batch.numel())
            for name in ("LoadBalancingLoss", "MoEZLoss"):
                parts[name] = parts[name] / len(micros)
            sum(parts.values()).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        sums["total_grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.step()
        log.append(sums)
    return log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--olmoe", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder to write into; emptied first")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--golden", type=Path, help="also write configuration and curves of ten steps into this folder")
    args = parser.parse_args()
    steps = 10 if args.golden else args.steps
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    data = tokens(4 * steps * LENGTH * BATCH // 3)
    data.tofile(args.work / "data.npy")
    config = args.work / "run.yml"
    config.write_text(YAML)
    program = [str(args.olmoe)]
    subprocess.run([*program, "init", "--config", str(config), "--seed", str(SEED), "--dtype", "f32", str(args.work / "init")], check=True)
    subprocess.run(
        [*program, "train", str(config), "--quiet", f"--data.paths=[{args.work / 'data.npy'}]", f"--save_folder={args.work / 'run'}",
         f"--max_duration={steps}", f"--stop_at={steps}"], check=True)
    own = [json.loads(line) for line in (args.work / "run" / "metrics.jsonl").read_text().splitlines()]
    reference = by_torch(args.work / "init", data, steps)
    assert len(own) == len(reference) == steps
    print(f"cross-entropy {reference[0]['CrossEntropyLoss']:.4f} at step 1, {reference[-1]['CrossEntropyLoss']:.4f} at step {steps}")
    worst = {}
    for name in reference[0]:
        key = ("optim/" if name == "total_grad_norm" else "train/") + name
        differences = [abs(a[key] - b[name]) for a, b in zip(own, reference)]
        worst[name] = max(differences)
        print(f"{key}: greatest difference {worst[name]:.2e}, at step {differences.index(worst[name]) + 1}")
    assert worst["CrossEntropyLoss"] < 1e-3, "the curves differ"
    if args.golden:
        (args.golden / "training.yml").write_text(YAML.lstrip())
        rows = ["\t".join([str(i + 1), *(f"{value!r}" for value in row.values())]) for i, row in enumerate(reference)]
        head = "# Written by tools/reference/compare_training.py: step, " + ", ".join(reference[0])
        (args.golden / "training.tsv").write_text("\n".join([head, *rows]) + "\n")


if __name__ == "__main__":
    main()
