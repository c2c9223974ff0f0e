"""Training throughput of transformers' OlmoeForCausalLM on the CPU.

One step is forward with the auxiliary loss, backward, gradient clipping and a fused AdamW step, on
random tokens. For a peak-memory figure of one implementation, run that one alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import torch
import transformers

from train_variants import ALLOCATORS, CONFIGS, IMPLEMENTATIONS, PRECISIONS, Trainer, matmul_flops_per_token
from train_variants import parse_implementations, peak_bytes, use_allocator, warm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=CONFIGS, default="tiny")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--implementations", default=",".join(IMPLEMENTATIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps in one timed block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=ALLOCATORS, default="kept", help="default: glibc as it is, slower")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    use_allocator(args.allocator)
    torch.set_num_threads(args.threads)
    shape = CONFIGS[args.config]
    steps = args.steps or shape.steps
    trainer = Trainer(shape, args.precision)
    names = warm(trainer, parse_implementations(args.implementations))
    if not names:
        print("no implementation works", file=sys.stderr)
        return 1
    # Round by round, so that a slow minute of the machine does not fall on one implementation.
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            rates[name].append(trainer.tokens_per_second(name, steps))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    flops = matmul_flops_per_token(shape)
    if args.json:
        result = {
            "config": args.config,
            "precision": args.precision,
            "threads": args.threads,
            "allocator": args.allocator,
            "steps": steps,
            "tokens_per_second": rates,
            "median": medians,
            "gflops": {name: rate * flops / 1e9 for name, rate in medians.items()},
            "peak_bytes": peak_bytes(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        print(json.dumps(result, indent=1))
    else:
        for name in names:
            figures = " ".join(f"{rate:9.1f}" for rate in rates[name])
            print(f"{name:20} {figures}   median {medians[name]:9.1f} tokens/s, {medians[name] * flops / 1e9:6.1f} GFLOP/s")
        print(f"peak memory {peak_bytes() / 2**30:.2f} GiB (all implementations together)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
