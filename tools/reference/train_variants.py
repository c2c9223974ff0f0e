"""transformers' OlmoeForCausalLM as a trainer on the CPU, in several implementations.

All variants of one run share one set of weights, gradients and optimizer state, so any number of them
fits in the memory of one, and each continues training where the last one stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import resource
import sys
import time
from dataclasses import dataclass

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    experts: int
    top_k: int
    expert_width: int
    heads: int
    sequence: int
    batch: int
    steps: int  # in one timed block, unless told otherwise
    vocab: int = 50304

    @property
    def tokens(self) -> int:
        return self.sequence * self.batch


CONFIGS = {
    "tiny": Shape(hidden=256, layers=4, experts=16, top_k=4, expert_width=256, heads=4, sequence=256, batch=8, steps=4),
    "small": Shape(hidden=512, layers=8, experts=64, top_k=8, expert_width=256, heads=8, sequence=512, batch=4, steps=2),
}
PRECISIONS = ("fp32", "bf16")
# `experts_implementation` of transformers, each plain and under torch.compile. batched_mm copies the
# weights of an expert for every token that chose it, which is infeasible at these sizes.
IMPLEMENTATIONS = ("eager", "grouped_mm", "eager+compile", "grouped_mm+compile")


# glibc gives every freed block of this size back to the kernel, and a training step then spends much of
# its time in page faults (a quarter of a step at the tiny configuration). With these settings it keeps
# them, as jemalloc or tcmalloc would; they are read when a process starts.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
ALLOCATORS = ("kept", "default")


def use_allocator(kind: str) -> None:
    """Starts this program again with the settings, unless it already runs with the wanted ones."""
    wanted = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    if kind == "kept":
        wanted |= KEEP_MEMORY
    if wanted != dict(os.environ):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def plain_environment() -> dict[str, str]:
    """The environment without those settings, for a program that is not torch."""
    return {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}


def matmul_flops_per_token(shape: Shape) -> float:
    """Forward and backward, active experts only, causal attention, no embedding lookup."""
    d = shape.hidden
    layer = 4 * d * d + d * shape.experts + shape.top_k * 3 * d * shape.expert_width
    weights = shape.layers * layer + d * shape.vocab
    return 6.0 * weights + 6.0 * shape.layers * d * shape.sequence


def _build(shape: Shape, experts: str) -> OlmoeForCausalLM:
    config = OlmoeConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.expert_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        num_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        max_position_embeddings=shape.sequence,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        router_aux_loss_coef=0.01,
        output_router_logits=True,
        use_cache=False,
    )
    model = OlmoeForCausalLM._from_config(
        config, attn_implementation="sdpa", experts_implementation=experts, dtype=torch.float32
    )
    return model.train()


def _share_parameters(model: torch.nn.Module, source: torch.nn.Module) -> None:
    """Puts `source`'s parameter objects in the place of `model`'s own."""
    for name, parameter in source.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, parameter)


class Trainer:
    """The variants of one configuration and precision."""

    def __init__(self, shape: Shape, precision: str, seed: int = 0) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision}")
        torch.manual_seed(seed)
        self.shape, self.precision = shape, precision
        self.base = _build(shape, "eager")
        self.forwards: dict[str, object] = {}
        self.optimizer = torch.optim.AdamW(
            self.base.parameters(), lr=4e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
        )

    def add(self, name: str, warmup_steps: int = 2) -> float:
        """Makes a variant and runs it until it is warm; seconds of the warm-up (compiling included)."""
        experts, _, compiled = name.partition("+")
        if experts == "eager":
            model = self.base
        else:
            model = _build(self.shape, experts)
            _share_parameters(model, self.base)
        self.forwards[name] = torch.compile(model) if compiled else model
        try:
            return self.block(name, warmup_steps)
        except Exception:
            del self.forwards[name]
            raise

    def block(self, name: str, steps: int) -> float:
        """Seconds of that many whole training steps."""
        shape, forward = self.shape, self.forwards[name]
        batches = torch.randint(0, shape.vocab, (steps, shape.batch, shape.sequence))
        start = time.perf_counter()
        for ids in batches:
            with self._precision():
                loss = forward(input_ids=ids, labels=ids, output_router_logits=True).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.base.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if not torch.isfinite(loss):
                raise RuntimeError(f"{name}: the loss is {loss.item()}")
        return time.perf_counter() - start

    def tokens_per_second(self, name: str, steps: int) -> float:
        return steps * self.shape.tokens / self.block(name, steps)

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.precision == "bf16":
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()


def warm(trainer: Trainer, names: list[str]) -> list[str]:
    """Adds the variants that work; the others are named on stderr and left out."""
    working = []
    for name in names:
        gc.collect()
        try:
            seconds = trainer.add(name)
        # A compiler that is missing or fails must not end the comparison of the others.
        except Exception as error:
            first = str(error).strip().splitlines()[:1]
            print(f"{name}: left out, {type(error).__name__}: {' '.join(first)}", file=sys.stderr)
            continue
        print(f"{name}: warm after {seconds:.1f} s, peak memory {peak_bytes() / 2**30:.2f} GiB", file=sys.stderr)
        working.append(name)
    return working


def peak_bytes() -> int:
    """Peak resident memory of this process (Linux counts it in KiB), all variants together."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def parse_implementations(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(IMPLEMENTATIONS):
        raise SystemExit(f"unknown implementations {sorted(unknown)}; known: {', '.join(IMPLEMENTATIONS)}")
    return names


def common_arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options of every timing program in this folder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", choices=CONFIGS, default="tiny")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--implementations", default=",".join(IMPLEMENTATIONS))
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, help="steps in one timed block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=ALLOCATORS, default="kept", help="default: glibc as it is, slower")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, the rest on stderr")
    return parser


def prepare(args: argparse.Namespace) -> tuple[Trainer, list[str], int]:
    """A trainer, the implementations that work, warmed up, and the steps of a timed block."""
    use_allocator(args.allocator)
    torch.set_num_threads(args.threads)
    shape = CONFIGS[args.config]
    trainer = Trainer(shape, args.precision)
    names = warm(trainer, parse_implementations(args.implementations))
    if not names:
        raise SystemExit("no torch implementation works")
    return trainer, names, args.steps or shape.steps
