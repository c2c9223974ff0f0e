"""`olmoe bench train` against transformers, alternating on one machine in one run.

Every round times one block of each torch implementation and then one run of the olmoe program. The
torch side is warm and stays in memory; olmoe starts again each time, with a warm-up of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
import transformers

from train_variants import common_arguments, peak_bytes, plain_environment, prepare

OLMOE_PRECISION = {"fp32": "fp32", "bf16": "amp_bf16"}


def run_olmoe(args: argparse.Namespace, steps: int) -> dict[str, float]:
    """The JSON object that `olmoe bench train --json` prints; other lines around it are allowed."""
    command = [args.olmoe, "bench", "train", "--config", args.config]
    command += ["--precision", OLMOE_PRECISION[args.precision]]
    command += ["--threads", str(args.threads), "--steps", str(steps), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=plain_environment())
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}")
    start, end = done.stdout.find("{"), done.stdout.rfind("}")
    try:
        found = json.loads(done.stdout[start : end + 1])
        found["tokens_per_second"] = float(found["tokens_per_second"])
    except (ValueError, KeyError, TypeError):
        raise SystemExit(f"no JSON object with tokens_per_second in: {done.stdout[:500]!r}") from None
    return found


def main() -> int:
    parser = common_arguments(__doc__, rounds=5)
    parser.add_argument("--olmoe", required=True, help="path of the olmoe program")
    args = parser.parse_args()

    log = sys.stderr if args.json else sys.stdout
    trainer, names, steps = prepare(args)

    rates: dict[str, list[float]] = {name: [] for name in [*names, "olmoe"]}
    runs = []
    for number in range(args.rounds):
        for name in names:
            rates[name].append(trainer.tokens_per_second(name, steps))
        # OpenMP's threads spin for a moment after the last block; let them go to sleep first.
        time.sleep(0.5)
        runs.append(run_olmoe(args, steps))
        rates["olmoe"].append(runs[-1]["tokens_per_second"])
        line = "  ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items())
        print(f"round {number + 1}: {line}", file=log, flush=True)

    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(names, key=medians.get)
    ratio = medians["olmoe"] / medians[best]
    # Against the best torch figure of the same round: shows whether the ratio is steady.
    per_round = [own / max(rates[name][i] for name in names) for i, own in enumerate(rates["olmoe"])]
    for name, value in medians.items():
        print(f"{name:20} median {value:9.1f} tokens/s", file=log)
    for key in ("peak_share", "peak_bytes"):
        if values := [run[key] for run in runs if isinstance(run.get(key), (int, float))]:
            print(f"olmoe {key:14} median {statistics.median(values):.6g}", file=log)
    spread = f"{min(per_round):.3f} to {max(per_round):.3f} by round"
    print(f"olmoe / best of torch ({best}): {ratio:.3f}  ({spread})", file=log)
    if args.json:
        result = {
            "config": args.config,
            "precision": args.precision,
            "threads": args.threads,
            "allocator": args.allocator,
            "steps": steps,
            "tokens_per_second": rates,
            "median": medians,
            "best_of_torch": best,
            "ratio": ratio,
            "ratio_by_round": per_round,
            "olmoe": runs,
            "torch_peak_bytes": peak_bytes(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
