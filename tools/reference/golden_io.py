"""What both golden makers share: random tensors, the file format, and the `--check` comparison."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open

GOLDEN_DIR = Path(__file__).resolve().parents[2] / "tests" / "golden"

# A router margin below this could flip a chosen expert between two correct fp32 programs, so such a
# seed is thrown away and the next one tried.
MIN_MARGIN = 1e-4
# The same for the order inside the top k, which `router.ids` also states.
MIN_ORDER_GAP = 1e-5
MAX_BYTES = 1_000_000


@dataclass
class Golden:
    """The content of one file. `facts` are figures that only go to the terminal."""

    name: str
    description: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    facts: dict[str, object] = field(default_factory=dict)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_parameter(name: str, shape: tuple[int, ...], gen: torch.Generator) -> torch.Tensor:
    """A weight big enough that nothing is degenerate, and norms that a forgotten weight would show."""
    noise = torch.randn(shape, generator=gen)
    if name.endswith(".bias"):
        return 0.1 * noise
    if "norm" in name:
        return 1.0 + 0.3 * noise
    if "router" in name or "embed_tokens" in name:
        return 0.3 * noise
    return 0.15 * noise


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


def router_is_clear(probs: torch.Tensor, top_k: int) -> bool:
    """Whether rounding can neither change the chosen experts nor their order."""
    values = probs.topk(top_k + 1, dim=-1).values
    gaps = values[..., :-1] - values[..., 1:]
    return gaps.min().item() >= MIN_ORDER_GAP and gaps[..., -1].min().item() >= MIN_MARGIN


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
    """The format by hand, because the library orders the metadata at random: a rerun that changes no
    value should change no byte."""
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
