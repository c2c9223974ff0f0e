"""The programs that olmoe's speed is compared with: each loads a model once and then measures on request.

`compare_speed.py` starts this file as a process of its own, writes one JSON object a line to it and reads one answer
a line. A measurement is some steps; a step reads `width` tokens of each of `sequences` sequences after `depth` tokens.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    sequences: int
    depth: int
    steps: int
    width: int

    @property
    def length(self) -> int:
        return self.depth + self.steps * self.width

    @property
    def tokens(self) -> int:
        return self.sequences * self.steps * self.width

    def ids(self, sequence: int, start: int, count: int, vocabulary: int) -> list[int]:
        """As `olmoe bench` takes them: spread over the vocabulary, others for each sequence."""
        first = sequence * self.length + start
        return [(i + 1) * 0x9E3779B97F4A7C15 % 2**64 % vocabulary for i in range(first, first + count)]


class Llama:
    """llama.cpp by its C interface, with the defaults of its own programs."""

    variants = {"flash": 1, "no flash": 0}

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self.cpp, self.threads = llama_cpp, threads
        self.begun = time.perf_counter()
        self.log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def context(self, work: Work, flash: int) -> int:
        parameters = self.cpp.llama_context_default_params()
        parameters.n_seq_max = work.sequences
        parameters.n_ctx = work.sequences * (-(-work.length // 256) * 256)
        parameters.n_batch, parameters.n_ubatch = 2048, 512
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.flash_attn_type = flash
        parameters.no_perf = True
        context = self.cpp.llama_init_from_model(self.model, parameters)
        if not context:
            raise SystemExit(f"llama.cpp makes no context for {work}")
        return context

    def batch(self, work: Work, start: int, count: int, sequences: range) -> object:
        """Reads the next `count` tokens of some sequences and computes the logits of the last of each."""
        batch = self.cpp.llama_batch_init(count * len(sequences), 0, 1)
        at = 0
        for sequence in sequences:
            for i, token in enumerate(work.ids(sequence, start, count, self.vocabulary)):
                batch.token[at], batch.pos[at] = token, start + i
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = i + 1 == count
                at += 1
        batch.n_tokens = at
        return batch

    def decode(self, context: int, batch: object) -> None:
        if status := self.cpp.llama_decode(context, batch):
            raise SystemExit(f"llama_decode: status {status}")
        self.cpp.llama_synchronize(context)

    def prepare(self, work: Work, variant: str) -> object:
        context = self.context(work, self.variants[variant])
        for sequence in range(work.sequences):
            if work.depth:
                prompt = self.batch(work, 0, work.depth, range(sequence, sequence + 1))
                self.decode(context, prompt)
                self.cpp.llama_batch_free(prompt)
        starts = range(work.depth, work.length, work.width)
        return context, [self.batch(work, start, work.width, range(work.sequences)) for start in starts]

    def run(self, work: Work, prepared: object) -> float:
        context, batches = prepared
        memory = self.cpp.llama_get_memory(context)
        for sequence in range(work.sequences):
            self.cpp.llama_memory_seq_rm(memory, sequence, work.depth, -1)
        start = time.perf_counter()
        for batch in batches:
            self.decode(context, batch)
        return time.perf_counter() - start

    def release(self, prepared: object) -> None:
        context, batches = prepared
        for batch in batches:
            self.cpp.llama_batch_free(batch)
        self.cpp.llama_free(context)

    def first_token(self, work: Work) -> float:
        """Seconds from before loading to the first token, without imports, with the library's defaults."""
        context = self.context(work, -1)
        self.decode(context, self.batch(work, 0, work.width, range(1)))
        logits = self.cpp.llama_get_logits_ith(context, -1)
        max(range(self.vocabulary), key=lambda i: logits[i])
        return time.perf_counter() - self.begun


class Transformers:
    """transformers' OlmoeForCausalLM in bf16: a checkpoint, or a random model of the release's shape."""

    variants = {"grouped_mm": None, "eager": None}

    def __init__(self, path: str, threads: int) -> None:
        import torch
        import transformers
        import transformers.initialization

        self.torch, self.transformers = torch, transformers
        self.begun = time.perf_counter()
        torch.set_num_threads(threads)
        kind = transformers.OlmoeForCausalLM
        if path:
            self.model = kind.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa")
        else:
            self.model = self.random(transformers.OlmoeConfig(intermediate_size=1024))
        self.model.eval()
        self.vocabulary = self.model.config.vocab_size

    def random(self, config: object) -> object:
        """Drawing seven billion numbers takes minutes; large parameters repeat a random piece of odd length."""
        torch = self.torch
        with self.transformers.initialization.no_init_weights():
            model = self.transformers.OlmoeForCausalLM._from_config(
                config, dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        piece = torch.empty(4_000_037, dtype=torch.bfloat16).normal_(0, 0.02)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                flat = parameter.view(-1)
                if "norm" in name:
                    flat.fill_(1)
                elif flat.numel() <= piece.numel():
                    flat.normal_(0, 0.02)
                else:
                    for start in range(0, flat.numel(), piece.numel()):
                        part = flat[start : start + piece.numel()]
                        part.copy_(piece[: part.numel()])
        return model

    def prepare(self, work: Work, variant: str) -> object:
        self.model.set_experts_implementation(variant)
        rows = [work.ids(s, 0, work.length, self.vocabulary) for s in range(work.sequences)]
        ids = self.torch.tensor(rows)
        cache = self.transformers.DynamicCache(config=self.model.config)
        if work.depth:
            self.read(ids[:, : work.depth], cache)
        return variant, ids, cache

    def read(self, ids: object, cache: object) -> None:
        with self.torch.inference_mode():
            self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def run(self, work: Work, prepared: object) -> float:
        variant, ids, cache = prepared
        self.model.set_experts_implementation(variant)
        if not work.depth:
            cache = self.transformers.DynamicCache(config=self.model.config)
        else:
            cache.crop(work.depth - cache.get_seq_length())
        start = time.perf_counter()
        for at in range(work.depth, work.length, work.width):
            self.read(ids[:, at : at + work.width], cache)
        return time.perf_counter() - start

    def release(self, prepared: object) -> None:
        del prepared

    def first_token(self, work: Work) -> float:
        _, ids, cache = self.prepare(Work(1, 0, 1, work.width), "grouped_mm")
        with self.torch.inference_mode():
            self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits.argmax()
        return time.perf_counter() - self.begun


PEERS = {"llama.cpp": Llama, "transformers": Transformers}


def memory_bytes(field: str) -> int:
    """`VmHWM`, the peak resident memory with mapped files, or `RssAnon`, the process's present anonymous memory."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{field}:"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--model", default="")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    # PR_SET_PDEATHSIG: ends with the parent process, even while stopped.
    ctypes.CDLL(None).prctl(1, 9)
    # What the libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    peer = PEERS[args.peer](args.model, args.threads)
    prepared: dict[str, object] = {}
    work = None
    print(json.dumps({"variants": list(peer.variants)}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        asked = Work(**request["work"])
        if request["what"] == "first token":
            seconds = peer.first_token(asked)
            answer = {"seconds": seconds, "peak_bytes": memory_bytes("VmHWM"), "own_bytes": memory_bytes("RssAnon")}
        else:
            if asked != work:
                for one in prepared.values():
                    peer.release(one)
                prepared, work = {}, asked
            variant = request["variant"]
            if variant not in prepared:
                prepared[variant] = peer.prepare(work, variant)
                peer.run(work, prepared[variant])
            seconds = [peer.run(work, prepared[variant]) for _ in range(request["repeats"])]
            answer = {"tokens_per_second": [work.tokens / one for one in seconds]}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
