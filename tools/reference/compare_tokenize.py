#!/usr/bin/env python3
"""Tokenising speed against dolma, alternating on one machine in one run.

    compare_tokenize.py --olmoe target/release/olmoe --tokenizer tokenizer.json --documents novels.jsonl.gz --processes 1

Both sides read the same documents and write token files; each time is that of a process from start to end, its imports
included, which dolma's side also reports apart. The digests show whether the tokens are the same. With one file they are:
dolma's unseeded shuffle then changes only the order of documents, and sorted documents are compared.
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def dolma(args: argparse.Namespace, folder: str) -> None:
    """One run of dolma, in a process of its own; prints the seconds without the imports."""
    import types

    # dolma imports its taggers, which need a dozen packages that tokenising does not.
    sys.modules["dolma.taggers"] = types.ModuleType("dolma.taggers")
    from dolma.tokenizer import executor

    start = time.perf_counter()
    executor.tokenize_in_parallel(
        sources=[str(path) for path in args.documents], destination=folder, tokenizer_name_or_path=args.tokenizer,
        metadata_dir=folder + "-done", num_writers=args.processes, eos_token_id=args.eos, pad_token_id=1,
        bos_token_id=None, max_size=1 << 30, debug=args.processes == 1)
    print(time.perf_counter() - start)


def documents(folder: Path) -> list[str]:
    """Digests of the tokens of every document, sorted."""
    found = []
    for lists in folder.rglob("*.csv.gz"):
        ids = np.fromfile(lists.with_name(lists.name.replace(".csv.gz", ".npy")), dtype=np.uint16)
        with gzip.open(lists, "rt", newline="") as file:
            for start, end, *_ in csv.reader(file):
                found.append(hashlib.sha256(ids[int(start) : int(end)].tobytes()).hexdigest())
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--olmoe", required=True, help="path of the olmoe program")
    parser.add_argument("--tokenizer", required=True, help="a tokenizer.json")
    parser.add_argument("--documents", required=True, nargs="+", type=Path)
    parser.add_argument("--eos", type=int, default=50279)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dolma-run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dolma_run:
        dolma(args, args.dolma_run)
        return 0

    size = 0
    for path in args.documents:
        with gzip.open(path, "rt") as file:
            size += sum(len(json.loads(line)["text"].encode()) for line in file)
    times: dict[str, list[float]] = {"olmoe": [], "dolma": []}
    work, apart = [], []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = Path(folder, "olmoe"), Path(folder, "dolma")
            command = [args.olmoe, "tokenize", "--documents", *map(str, args.documents), "--destination", str(ours)]
            command += ["--tokenizer.name_or_path", args.tokenizer, "--tokenizer.eos_token_id", str(args.eos)]
            command += ["--processes", str(args.processes), "--threads", str(args.processes), "--quiet"]
            start = time.perf_counter()
            subprocess.run(command, check=True)
            times["olmoe"].append(time.perf_counter() - start)

            command = [sys.executable, __file__, "--dolma-run", str(theirs), *sys.argv[1:]]
            start = time.perf_counter()
            # `tokenizers` has threads of its own, which --processes does not count.
            environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                  env=environment)
            times["dolma"].append(time.perf_counter() - start)
            work.append(float(done.stdout.split()[-1]))
            apart.append(documents(ours) == documents(theirs))
        print(f"round {number + 1}: olmoe {times['olmoe'][-1]:.2f} s, dolma {times['dolma'][-1]:.2f} s "
              f"({work[-1]:.2f} s without its imports), documents {'equal' if apart[-1] else 'DIFFERENT'}")
    ours, theirs, alone = (statistics.median(x) for x in (times["olmoe"], times["dolma"], work))
    print(f"{size / 1e6:.1f} MB of text, {args.processes} process(es): olmoe {size / ours / 1e6:.1f} MB/s, "
          f"dolma {size / theirs / 1e6:.2f} MB/s ({size / alone / 1e6:.2f} without its imports); {theirs / ours:.1f} times")
    return 0 if all(apart) else 1


if __name__ == "__main__":
    raise SystemExit(main())
