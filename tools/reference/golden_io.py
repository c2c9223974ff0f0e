"""What both golden makers share: weights and inputs, the file format, and the `--check` comparison.

Inputs are chosen so that a comparison at reduced precision means something. Where two experts tie, or a
value lies at the clip's limit or at a ReLU's zero, rounding decides what is computed: there fp32 and
bf16 are different functions with unrelated gradients, and no bound on the
difference could hold. So no token of a golden state is near such a point (`clear_ids`), and no gradient
is a small difference of large numbers (`draw`)."""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open

import olmo_reference as reference

GOLDEN_DIR = Path(__file__).resolve().parents[2] / "tests" / "golden"

# The last chosen expert leads the first unchosen one by this share of its own probability. To first
# order that is the gap of their logits, which bf16 products upstream move by 2^-6, at most 2^-5.
MIN_MARGIN = 2.0**-4
# Gap inside the top k, absolute. `router.ids` has that order, too, but only fp32 has to reproduce it.
MIN_ORDER_GAP = 1e-5
# Distance from the clip's limit or a ReLU's zero, as `Output.kinks` counts it. bf16 rounds by 2^-9.
MIN_KINK = 2.0**-6
# Largest relative error (of the norm) that rounding every product's factors to bf16 may cause in a
# gradient: what an implementation in mixed precision can be expected to meet.
MAX_ROUNDING = 1.25e-2
# Tokens drawn for one set of weights before the next seed is tried.
MAX_DRAWS = 4000
MAX_BYTES = 1_000_000


@dataclass
class Golden:
    """The content of one file. `facts` are figures that are only printed."""

    name: str
    description: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    facts: dict[str, object] = field(default_factory=dict)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_parameter(name: str, shape: tuple[int, ...], gen: torch.Generator) -> torch.Tensor:
    """Weights of a well-conditioned model that still shows every mistake: activations of about 1, each
    layer adding less than the embedding to the residual stream, and norm weights far from all ones."""
    noise = torch.randn(shape, generator=gen)
    if name.endswith(".bias"):
        return 0.1 * noise
    if "norm" in name:
        return 1.0 + 0.3 * noise
    if "router" in name:
        return 0.3 * noise
    if "embed_tokens" in name:
        return noise
    return 0.7 / math.sqrt(shape[-1]) * noise


def random_ids(vocab: int, batch: int, length: int, gen: torch.Generator) -> torch.Tensor:
    """Token ids that skip id 1: HF's embedding has padding_idx=1 and drops that row's gradient."""
    ids = torch.randint(0, vocab - 1, (batch, length), generator=gen)
    return torch.where(ids >= 1, ids + 1, ids)


def router_tensors(probs: torch.Tensor, top_k: int) -> dict[str, torch.Tensor]:
    """`router.*` from the full softmax [L, tokens, E]."""
    values, ids = probs.topk(top_k + 1, dim=-1)
    margin = values[..., top_k - 1] - values[..., top_k]
    return {
        "router.ids": ids[..., :top_k].to(torch.int32),
        "router.probs": probs.to(torch.float32),
        "router.margin": margin.to(torch.float32),
    }


def clear_tokens(output: reference.Output, top_k: int) -> torch.Tensor:
    """[batch, time], whether rounding can neither change the token's experts nor carry it over a kink."""
    shape = output.logits.shape[:2]
    clear = torch.ones(shape, dtype=torch.bool)
    for router in output.routers:
        values = router.probs.topk(top_k + 1, dim=-1).values.view(*shape, top_k + 1)
        gaps = values[..., :-1] - values[..., 1:]
        clear &= (gaps >= MIN_ORDER_GAP).all(-1) & (gaps[..., -1] >= MIN_MARGIN * values[..., -2])
    for kink in output.kinks:
        clear &= kink >= MIN_KINK
    return clear


def clear_ids(
    run: Callable[[torch.Tensor], reference.Output],
    config: reference.Config,
    batch: int,
    time: int,
    gen: torch.Generator,
) -> torch.Tensor | None:
    """Random ids of clear tokens only. A token does not depend on later ones, so the first of each sequence
    that is not clear is drawn again until none is left; None if these weights allow that too rarely.
    (Padding at the start of a sequence does depend on later tokens, and is only drawn more often.)"""
    ids = random_ids(config.vocab_size, batch, time, gen)
    draws = 0
    while draws < MAX_DRAWS:
        with torch.no_grad():
            clear = clear_tokens(run(ids), config.moe_top_k)
        if clear.all():
            return ids
        for row in range(batch):
            if not clear[row].all():
                first = int((~clear[row]).int().argmax())
                ids[row, first] = random_ids(config.vocab_size, 1, 1, gen)
                draws += 1
    return None


@dataclass
class Drawn:
    seed: int
    params: dict[str, torch.Tensor]
    ids: torch.Tensor
    # What rounding the factors of every product to bf16 does to the gradient it changes most.
    rounding: float
    worst: str


def draw(
    config: reference.Config,
    batch: int,
    time: int,
    scale: dict[str, float],
    loss: Callable[[reference.Output, torch.Tensor], torch.Tensor],
    document_lengths: torch.Tensor | None = None,
    padding: torch.Tensor | None = None,
) -> Drawn:
    """Weights and ids of the first seed that is clear and well conditioned. `scale` multiplies the
    weights whose names hold a key. All in fp64, so that every machine chooses the same."""
    shapes = reference.parameter_shapes(config)

    def gradients(config: reference.Config, params: dict, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        loss(reference.forward(config, leaves, ids, document_lengths, padding), ids).backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    for seed in range(1000):
        gen = generator(seed)
        params = {}
        for name, shape in shapes.items():
            factor = math.prod(value for key, value in scale.items() if key in name)
            params[name] = factor * random_parameter(name, shape, gen)
        double = {name: value.double() for name, value in params.items()}
        ids = clear_ids(
            lambda ids: reference.forward(config, double, ids, document_lengths, padding), config, batch, time, gen
        )
        if ids is None:
            continue
        exact = gradients(config, double, ids)
        rounded = gradients(replace(config, bf16_factors=True), double, ids)
        errors = {name: ((rounded[name] - exact[name]).norm() / exact[name].norm()).item() for name in shapes}
        worst = max(errors, key=errors.get)
        if errors[worst] <= MAX_ROUNDING:
            return Drawn(seed, params, ids, errors[worst], worst)
    raise RuntimeError("no seed is clear and well conditioned")


def base_metadata(script: str, description: str, losses: dict[str, object]) -> dict[str, str]:
    import transformers

    versions = {
        "python": platform.python_version(),
        # Without the local part (+cpu, +cu130), which names how it was installed.
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }
    return {
        "description": description,
        "command": f"python tools/reference/{script}",
        "versions": json.dumps(versions),
        "losses": json.dumps(losses),
    }


def write(golden: Golden, directory: Path) -> Path:
    tensors = {}
    for name, tensor in golden.tensors.items():
        kind = torch.int32 if not tensor.is_floating_point() else torch.float32
        tensors[name] = tensor.detach().to(kind).clone().contiguous()
        if tensor.is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{golden.name}: {name} is not finite")
    path = directory / f"{golden.name}.safetensors"
    path.write_bytes(safetensors_bytes(tensors, golden.metadata))
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name} is {path.stat().st_size} bytes, more than {MAX_BYTES}")
    return path


def safetensors_bytes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Writes the format by hand, because the library orders the metadata at random, and a rerun that changes
    no value should change no byte."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    data = bytearray()
    for name in sorted(tensors):
        raw = tensors[name].numpy().tobytes()
        kind = {torch.float32: "F32", torch.int32: "I32"}[tensors[name].dtype]
        header[name] = {
            "dtype": kind,
            "shape": list(tensors[name].shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(data)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest magnitude of the tensor: near-zero entries do not count."""
    difference = (found.double() - expected.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    return difference / scale if scale > 0 else difference


def check(golden: Golden, directory: Path) -> list[str]:
    """What differs between the file and a fresh run. Weights, inputs and ids must be equal; computed
    tensors may differ by fp32 rounding, which changes with the CPU and the BLAS."""
    problems = []
    path = directory / f"{golden.name}.safetensors"
    if not path.exists():
        return [f"{path.name} is missing"]
    with safe_open(path, "pt") as file:
        if set(file.keys()) != set(golden.tensors):
            problems.append(f"tensor names differ: {sorted(set(file.keys()) ^ set(golden.tensors))}")
        for name in sorted(set(file.keys()) & set(golden.tensors)):
            stored, fresh = file.get_tensor(name), golden.tensors[name].detach()
            if stored.shape != fresh.shape:
                problems.append(f"{name}: shape {tuple(stored.shape)} != {tuple(fresh.shape)}")
            elif name.startswith("param.") or not stored.is_floating_point():
                if not torch.equal(stored, fresh.to(stored.dtype)):
                    problems.append(f"{name}: not equal")
            elif (error := relative_error(fresh, stored)) > 2e-5:
                problems.append(f"{name}: relative error {error:.1e}")
        stored_meta = file.metadata()
        for key, value in golden.metadata.items():
            if key != "versions" and stored_meta.get(key) != value:
                problems.append(f"metadata {key} differs")
    return problems


def main(make, names: list[str]) -> int:
    """The command line of both makers. `make(name)` returns a Golden."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help=f"which goldens (default: all): {', '.join(names)}")
    parser.add_argument("--check", action="store_true", help="regenerate and compare, write nothing")
    parser.add_argument("--dir", type=Path, default=GOLDEN_DIR, help="where the files are")
    args = parser.parse_args()
    if unknown := set(args.names) - set(names):
        parser.error(f"unknown: {sorted(unknown)}")
    # One thread: the sums are then in one order, and a run does not disturb others on the machine.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if not args.check:
        args.dir.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in args.names or names:
        golden = make(name)
        facts = " ".join(f"{key}={value}" for key, value in golden.facts.items())
        if args.check:
            problems = check(golden, args.dir)
            failed += bool(problems)
            print(f"{name}: {'; '.join(problems) if problems else 'ok'}  {facts}")
        else:
            size = write(golden, args.dir).stat().st_size
            print(f"{name}: {size} bytes  {facts}")
    return 1 if failed else 0
