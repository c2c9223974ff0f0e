"""olmoe's inference speed against llama.cpp and transformers, alternating on one machine in one run.

    compare_speed.py --olmoe target/release/olmoe --model olmoe-q4_0.gguf --kinds decode,batch@8 --out speed.jsonl
    compare_speed.py --table speed.jsonl

Every round measures the peer, once for each of its variants, of which the best counts, and then olmoe. The peer stays loaded
and is stopped while olmoe runs, unless both do not fit the memory. `olmoe bench limits` runs right before each
measurement of the peer, and olmoe measures the limits by itself, so that each speed is a share of the limits at its own time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from speed_peers import PEERS, Work

# Steps of one timed pass of decoding, the same of a batch, what its caches hold before, and the prompt of `start`.
TOKENS, BATCH_TOKENS, BATCH_DEPTH, PROMPT = 32, 16, 32, 32
# Timed passes of either side in a round; its median counts. The peer takes seconds for so many tokens: one pass.
REPEATS, LONG = 3, 128
KINDS = "decode, decode@DEPTH, batch@SEQUENCES, prefill@LENGTH, start"


class Kind:
    """What is measured: the work for the peer and the command for olmoe."""

    def __init__(self, name: str) -> None:
        self.name = name
        what, _, number = name.partition("@")
        if what not in ("decode", "batch", "prefill", "start") or number and not number.isdigit():
            raise SystemExit(f"unknown kind {name}; known: {KINDS}")
        self.what, size = what, int(number or {"decode": 0, "batch": 8, "prefill": 512, "start": PROMPT}[what])
        if what == "decode":
            self.work = Work(1, size, TOKENS, 1)
            self.arguments = ["decode", "--depth", str(size), "--tokens", str(TOKENS)]
        elif what == "batch":
            self.work = Work(size, BATCH_DEPTH, BATCH_TOKENS, 1)
            self.arguments = ["batch", "--sequences", str(size), "--depth", str(BATCH_DEPTH)]
            self.arguments += ["--tokens", str(BATCH_TOKENS)]
        else:
            self.work = Work(1, 0, 1, size)
            self.arguments = ["prefill", "--length", str(size)]
        self.peer_repeats = 1 if self.work.tokens >= LONG else REPEATS


class Olmoe:
    def __init__(self, program: str, threads: int) -> None:
        self.program, self.threads = program, threads

    def run(self, *arguments: str) -> dict:
        command = [self.program, *arguments, "--threads", str(self.threads), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}")
        return json.loads(done.stdout)

    def limits(self) -> dict:
        return self.run("bench", "limits")

    def measure(self, kind: Kind, model: str) -> dict:
        found = self.run("bench", *kind.arguments, "-m", model, "--rounds", str(REPEATS))
        return found["rows"][0] if "rows" in found else found

    def first_token(self, model: str) -> dict:
        """Seconds from the start of the process to its end after one token, and its peak memory."""
        ids = ",".join(map(str, Work(1, 0, 1, PROMPT).ids(0, 0, PROMPT, 50000)))
        command = [self.program, "generate", "-m", model, "--ids", ids, "-n", "1", "--temp", "0"]
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--threads", str(self.threads)], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
        return {"seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}


class Peer:
    """A process of `speed_peers.py`, which is stopped between requests, so that its threads cannot spin."""

    def __init__(self, name: str, model: str, threads: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("speed_peers.py")), name, "--threads", str(threads)]
        self.process = subprocess.Popen(
            [*command, "--model", model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.variants = self.answer()["variants"]

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the peer ended; see above")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def ask(self, **request: object) -> dict:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def middle(values: list[float]) -> dict:
    return {"median": statistics.median(values), "range": [min(values), max(values)], "rounds": values}


def total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def compare_speed(args: argparse.Namespace, kind: Kind, model: str, olmoe: Olmoe, peer: Peer | None) -> dict:
    """One kind of one file; the peer is started for each round when none is given."""
    own: list[dict] = []
    others: dict[str, list[dict]] = {}
    for number in range(args.rounds):
        current = peer or Peer(args.peer, args.peer_model(model), args.threads)
        for variant in args.variants.split(",") if args.variants else current.variants:
            # The first request of a kind allocates caches and is a warm-up.
            ask = {"what": "measure", "work": vars(kind.work), "variant": variant}
            if number == 0 or not peer:
                current.ask(**ask, repeats=0)
            limits = olmoe.limits()
            speeds = current.ask(**ask, repeats=kind.peer_repeats)["tokens_per_second"]
            others.setdefault(variant, []).append({"tokens_per_second": statistics.median(speeds), "limits": limits})
        if not peer:
            current.close()
        own.append(olmoe.measure(kind, model))
        line = "  ".join(f"{name} {found[-1]['tokens_per_second']:.1f}" for name, found in others.items())
        print(f"round {number + 1}: olmoe {own[-1]['tokens_per_second']:.1f}  {line}", file=sys.stderr, flush=True)

    def share(found: dict) -> float:
        """The peer's speed as a share of the limit of what olmoe reads and computes for the same work."""
        fed = found["limits"]["read_bandwidth"] / own[0]["bytes_per_token"]
        computed = found["limits"]["peak_flops"][own[0]["peak"]] / own[0]["flops_per_token"]
        return found["tokens_per_second"] / min(fed, computed)

    speeds = {name: [found["tokens_per_second"] for found in rounds] for name, rounds in others.items()}
    best = max(speeds, key=lambda name: statistics.median(speeds[name]))
    mine = [found["tokens_per_second"] for found in own]
    return {
        "olmoe": {
            "tokens_per_second": middle(mine),
            "share": middle([found["share"] for found in own]),
            "read_bandwidth": middle([found["read_bandwidth"] for found in own]),
            "bench": own,
        },
        "peer": {
            "best": best,
            "tokens_per_second": {name: middle(values) for name, values in speeds.items()},
            "share": middle([share(found) for found in others[best]]),
            "read_bandwidth": middle([found["limits"]["read_bandwidth"] for found in others[best]]),
        },
        "ratio": statistics.median(mine) / statistics.median(speeds[best]),
        "ratio_by_round": [a / max(values[i] for values in speeds.values()) for i, a in enumerate(mine)],
    }


def compare_start(args: argparse.Namespace, kind: Kind, model: str, olmoe: Olmoe) -> dict:
    """Seconds to the first token, the file in the page cache, and peak memory; each time by new processes."""
    with open(model, "rb") as file:
        while file.read(1 << 24):
            pass
    own, others = [], []
    for _ in range(args.rounds):
        own.append(olmoe.first_token(model))
        peer = Peer(args.peer, args.peer_model(model), args.threads)
        others.append(peer.ask(what="first token", work=vars(kind.work)))
        peer.close()
    keys = ("seconds", "peak_bytes", "own_bytes")
    sides = [{key: middle([one[key] for one in side]) for key in keys if key in side[0]} for side in (own, others)]
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(own, others, strict=True)]
    ratio = sides[1]["seconds"]["median"] / sides[0]["seconds"]["median"]
    return {"olmoe": sides[0], "peer": sides[1], "ratio": ratio, "ratio_by_round": ratios}


def line(result: dict) -> list[str]:
    """A row of the table."""

    def side(found: dict, speed: dict) -> str:
        if "seconds" in found:
            return f"{speed['median']:.2f} s, {found['peak_bytes']['median'] / 1e9:.1f} GB"
        low, high = speed["range"]
        share, bandwidth = found["share"]["median"], found["read_bandwidth"]["median"]
        return f"{speed['median']:.1f} ({low:.1f} to {high:.1f}), {100 * share:.0f} % at {bandwidth / 1e9:.0f} GB/s"

    own, peer = result["olmoe"], result["peer"]
    if "seconds" in own:
        cells = [side(own, own["seconds"]), side(peer, peer["seconds"]), ""]
    else:
        speeds = peer["tokens_per_second"]
        others = ", ".join(f"{name} {found['median']:.1f}" for name, found in speeds.items() if name != peer["best"])
        cells = [side(own, own["tokens_per_second"]), side(peer, speeds[peer["best"]]), others]
    low, high = min(result["ratio_by_round"]), max(result["ratio_by_round"])
    ratio = f"{result['ratio']:.2f} ({low:.2f} to {high:.2f})"
    return [result["kind"], result["model"], cells[0], result["against"], *cells[1:], ratio]


def table(results: list[dict]) -> str:
    """The latest result of each comparison."""
    latest = {(one["kind"], one["model"], one["against"], one["variants"]): one for one in results}
    head = ["kind", "model", "olmoe, tokens/s", "peer", "tokens/s", "other variants", "ratio (by round)"]
    rows = [head, *[line(one) for one in latest.values()]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(" | ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--olmoe", help="path of the olmoe program")
    parser.add_argument("--model", action="append", default=[], help="a GGUF file; may be given several times")
    parser.add_argument("--peer", choices=PEERS, default="llama.cpp")
    parser.add_argument("--hf", default="", help="checkpoint folder for transformers [default: random weights]")
    parser.add_argument("--kinds", default="decode", help=f"some of: {KINDS}")
    parser.add_argument("--variants", help="some of the peer's, by commas [default: all; the best counts]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="file to which each result is added as a line of JSON")
    parser.add_argument("--table", metavar="FILE", help="print the table of such a file; measures nothing")
    args = parser.parse_args()
    if args.table:
        print(table([json.loads(text) for text in Path(args.table).read_text().splitlines()]))
        return 0
    kinds = [Kind(name) for name in args.kinds.split(",")]
    if not args.olmoe or not args.model:
        parser.error("--olmoe and --model are needed")
    if args.peer == "transformers" and not args.hf and any(kind.what == "start" for kind in kinds):
        parser.error("start needs --hf")
    args.peer_model = lambda model: model if args.peer == "llama.cpp" else args.hf

    olmoe, results = Olmoe(args.olmoe, args.threads), []
    for model in args.model:
        # The file in the page cache, which llama.cpp maps, and olmoe's copy; transformers is as large again.
        together = 2.2 * Path(model).stat().st_size < total_memory()
        shared = None
        for kind in kinds:
            if kind.what == "start":
                found = compare_start(args, kind, model, olmoe)
            else:
                if together and not shared:
                    shared = Peer(args.peer, args.peer_model(model), args.threads)
                found = compare_speed(args, kind, model, olmoe, shared)
            about = {"kind": kind.name, "model": Path(model).name, "against": args.peer}
            about |= {"variants": args.variants, "threads": args.threads}
            results.append(about | found)
            if args.out:
                with open(args.out, "a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
        if shared:
            shared.close()
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
