"""olmoe's evaluation against lm-evaluation-harness with transformers and with llama.cpp, alternating on one machine.

    compare_eval.py --olmoe target/release/olmoe --model olmoe-q4_k_m.gguf --tokenizer tokenizer.json \\
        --requests arc_easy/rc_5shot/requests.jsonl.gz --limit 100 --peer llama.cpp --out eval.jsonl
    compare_eval.py --table eval.jsonl

The same requests are scored by both sides: contexts and continuations as tokens, encoded apart from each other. The
harness' HFLM runs transformers in bf16 (a checkpoint, or a random model of the release's shape) with its own batching;
llama.cpp runs the GGUF file by its C interface as its own `perplexity --multiple-choice` does: what the continuations of
a context have in common is read once, then each continuation. Every round measures the peer and then olmoe; the peer is
stopped while olmoe runs. `sum` is the sum of the log-probabilities of all requests: with llama.cpp both sides read the
same weights, so the sums are close. Speeds are requests per second, without loading and encoding."""

from __future__ import annotations

import argparse
import gzip
import json
import math
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path


def read_requests(path: str, limit: int) -> list[tuple[str, str]]:
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(limit), strict=False)]
    rows = [row.get("request", row) for row in rows]
    return [(row["context"], row["continuation"]) for row in rows]


def encode(tokenizer: str, requests: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(tokenizer)
    return [tuple(loaded.encode(text, add_special_tokens=False).ids for text in pair) for pair in requests]


class Llama:
    """llama.cpp: the context of some continuations once, its cache copied to each of them, and then all of these at once."""

    def __init__(self, args: argparse.Namespace, pairs: list[tuple[list[int], list[int]]]) -> None:
        import ctypes

        import llama_cpp
        import numpy

        self.cpp, self.numpy, self.pairs = llama_cpp, numpy, pairs
        self.log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(args.model.encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {args.model}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        # Requests of one context follow each other.
        self.groups: list[list[int]] = []
        for i, (context, _) in enumerate(pairs):
            if self.groups and pairs[self.groups[-1][0]][0] == context:
                self.groups[-1].append(i)
            else:
                self.groups.append([i])
        longest = max(len(context) + len(more) for context, more in pairs)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_seq_max = 1 + max(map(len, self.groups))
        parameters.kv_unified = True
        widest = max(sum(len(pairs[i][1]) for i in group) for group in self.groups)
        parameters.n_ctx = 256 * math.ceil((longest + widest) / 256)
        parameters.n_batch, parameters.n_ubatch = 2048, 512
        parameters.n_threads = parameters.n_threads_batch = args.threads
        parameters.flash_attn_type = 1
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise SystemExit("llama.cpp makes no context for these requests")
        self.batch = llama_cpp.llama_batch_init(parameters.n_ctx, 0, 1)

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> dict[int, object]:
        """Reads (token, position, sequence, whether its logits are wanted)."""
        for at, (token, position, sequence, wanted) in enumerate(tokens):
            self.batch.token[at], self.batch.pos[at] = token, position
            self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, sequence
            self.batch.logits[at] = wanted
        self.batch.n_tokens = len(tokens)
        if status := self.cpp.llama_decode(self.context, self.batch):
            raise SystemExit(f"llama_decode: status {status}")
        self.cpp.llama_synchronize(self.context)
        found = {}
        for at, (*_, wanted) in enumerate(tokens):
            if wanted:
                row = self.cpp.llama_get_logits_ith(self.context, at)
                logits = self.numpy.ctypeslib.as_array(row, shape=(self.vocabulary,)).astype("f8")
                most = logits.max()
                found[at] = logits - most - math.log(self.numpy.exp(logits - most).sum())
        return found

    def run(self) -> tuple[float, float]:
        memory, total = self.cpp.llama_get_memory(self.context), 0.0
        start = time.perf_counter()
        before: list[int] = []
        for group in self.groups:
            context = self.pairs[group[0]][0]
            common = 0
            while common < min(len(before), len(context) - 1) and before[common] == context[common]:
                common += 1
            self.cpp.llama_memory_seq_rm(memory, 0, common, -1)
            own = [(token, at, 0, at + 1 == len(context)) for at, token in enumerate(context)][common:]
            first = self.decode(own)[len(own) - 1]
            before, tokens, wanted = context, [], []
            for sequence, i in enumerate(group, 1):
                more = self.pairs[i][1]
                total += first[more[0]]
                self.cpp.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
                for place, token in enumerate(more[:-1]):
                    wanted.append(more[place + 1])
                    tokens.append((token, len(context) + place, sequence, True))
            if tokens:
                rows = self.decode(tokens)
                total += sum(rows[at][target] for at, target in enumerate(wanted))
            for sequence in range(1, len(group) + 1):
                self.cpp.llama_memory_seq_rm(memory, sequence, -1, -1)
        return time.perf_counter() - start, float(total)


class Harness:
    """lm-evaluation-harness' HFLM with transformers in bf16."""

    def __init__(self, args: argparse.Namespace, pairs: list[tuple[list[int], list[int]]]) -> None:
        import torch
        from lm_eval.models.huggingface import HFLM
        from speed_peers import Transformers
        from transformers import PreTrainedTokenizerFast

        torch.set_num_threads(args.threads)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=args.tokenizer, eos_token="<|endoftext|>")
        tokenizer.pad_token = tokenizer.eos_token
        model = Transformers(args.hf_model, args.threads).model
        self.lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size, device="cpu")
        self.requests = [((str(i), ""), *pair) for i, pair in enumerate(pairs)]

    def run(self) -> tuple[float, float]:
        start = time.perf_counter()
        found = self.lm._loglikelihood_tokens(self.requests, disable_tqdm=True)
        return time.perf_counter() - start, sum(score for score, _ in found)


PEERS = {"llama.cpp": Llama, "lm-eval": Harness}


def serve(args: argparse.Namespace) -> None:
    """The peer's process: answers each line with seconds and sum."""
    import ctypes
    import os

    ctypes.CDLL(None).prctl(1, 9)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pairs = encode(args.tokenizer, read_requests(args.requests, args.limit))
    peer = PEERS[args.peer](args, pairs)
    print(json.dumps({"requests": len(pairs)}), file=answers, flush=True)
    for _ in sys.stdin:
        seconds, total = peer.run()
        print(json.dumps({"seconds": seconds, "sum": total}), file=answers, flush=True)


class Peer:
    """The process, stopped between requests, so that its threads cannot spin."""

    def __init__(self) -> None:
        command = [sys.executable, *sys.argv, "--serve"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the peer ended; see above")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def ask(self) -> dict:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def olmoe(args: argparse.Namespace) -> dict:
    command = [args.olmoe, "bench", "score", "-m", args.model, "--tokenizer", args.tokenizer]
    command += ["--requests", args.requests, "--limit", str(args.limit), "--rounds", "1", "--json"]
    command += ["--threads", str(args.threads), "--precision", args.precision, "--sharing", args.sharing]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}")
    return json.loads(done.stdout)


def compare(args: argparse.Namespace) -> dict:
    peer = Peer() if args.peer else None
    own: dict[str, list[dict]] = {}
    others: list[dict] = []
    if peer and args.warm:
        peer.ask()
    count = 0
    for number in range(args.rounds):
        if peer:
            others.append(peer.ask())
        found = olmoe(args)
        count = found["requests"]
        for row in found["rows"]:
            own.setdefault("shared" if row["sharing"] else "alone", []).append(row)
        speeds = {name: count / rows[-1]["seconds"][-1] for name, rows in own.items()}
        if others:
            speeds[args.peer] = count / others[-1]["seconds"]
        line = "  ".join(f"{name} {speed:.2f}" for name, speed in speeds.items())
        print(f"round {number + 1}: {line} requests/s", file=sys.stderr, flush=True)
    if peer:
        peer.close()
    result = {"requests": args.requests, "count": count, "model": args.model, "peer": args.peer, "threads": args.threads}
    for name, rows in own.items():
        speed = statistics.median(count / row["seconds"][0] for row in rows)
        tokens = {key: rows[0][key] for key in ("computed_tokens", "request_tokens", "sum")}
        result[name] = {"requests_per_second": speed, **tokens}
    if others:
        speed = statistics.median(count / one["seconds"] for one in others)
        result["other"] = {"requests_per_second": speed, "sum": others[0]["sum"]}
        result["ratio"] = {name: result[name]["requests_per_second"] / speed for name in own}
    return result


def table(path: str) -> None:
    print("| requests | model | olmoe, shared | olmoe, each alone | peer | ratio |\n|---|---|---|---|---|---|")
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        task = "/".join(Path(row["requests"]).parts[-3:-1])
        speeds = [row.get(name, {}).get("requests_per_second") for name in ("shared", "alone", "other")]
        cells = ["" if speed is None else f"{speed:.2f}" for speed in speeds]
        ratio = "" if "ratio" not in row else f"{max(row['ratio'].values()):.1f}"
        cells[2] = f"{row['peer']} {cells[2]}" if row["peer"] else ""
        print(f"| {task} ({row['count']}) | {Path(row['model']).name} | {' | '.join(cells)} | {ratio} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--olmoe", default="target/release/olmoe")
    parser.add_argument("--model", help="the GGUF file or checkpoint that olmoe and llama.cpp read")
    parser.add_argument("--hf-model", default="", help="the checkpoint for transformers; a random one without")
    parser.add_argument("--tokenizer", help="tokenizer.json")
    parser.add_argument("--requests", help="a file of requests, as OLMo's evaluation has them")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="requests of a batch of lm-eval")
    parser.add_argument("--precision", default="amp_bf16")
    parser.add_argument("--sharing", default="both", choices=["both", "on", "off"])
    parser.add_argument("--peer", default="", choices=["", *PEERS])
    parser.add_argument("--warm", action="store_true", help="one round of the peer before the first one that counts")
    parser.add_argument("--out", help="a file that the result is added to")
    parser.add_argument("--table", help="print the table of such a file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        return table(args.table)
    if args.serve:
        return serve(args)
    result = compare(args)
    print(json.dumps(result, indent=1))
    if args.out:
        with open(args.out, "a") as out:
            out.write(json.dumps(result) + "\n")
    return None


if __name__ == "__main__":
    main()
