"""Training throughput of transformers' OlmoeForCausalLM on the CPU.

One step is forward with the auxiliary loss, backward, gradient clipping and a fused AdamW step, on
random tokens. For a peak-memory figure of one implementation, run that one alone.
"""

from __future__ import annotations

import json
import statistics

import torch
import transformers

from train_variants import CONFIGS, common_arguments, matmul_flops_per_token, peak_bytes, prepare


def main() -> int:
    parser = common_arguments(__doc__, rounds=3)
    args = parser.parse_args()

    trainer, names, steps = prepare(args)
    # Round by round, so that a slow minute of the machine does not fall on one implementation.
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            rates[name].append(trainer.tokens_per_second(name, steps))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    flops = matmul_flops_per_token(CONFIGS[args.config])
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
