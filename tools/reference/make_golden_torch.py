"""Small files of torch.save and tensor names of OLMo's safetensors files, with their contents.

torch_*.pt and torch.json: every type, shared storages, slices, parameters, nested dicts, by each pickle protocol.
olmo_keys.json: names as OLMo encodes them (urlsafe base64 of a pickle of a path and a bool).
"""

from __future__ import annotations

import base64
import json
import pickle
from collections import OrderedDict
from pathlib import Path

import torch

FOLDER = Path(__file__).parents[2] / "crates/olmoe-checkpoint/tests/golden"

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def state() -> OrderedDict:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 3, 2) - 7.25
    result = OrderedDict()
    for name, dtype in TYPES.items():
        result[f"type.{name}"] = torch.tensor([[0, 1, 2], [3, 0, 5]]).to(dtype)
    result["tied.a"] = base
    result["tied.b"] = base
    result["slice.rows"] = base[1:3]
    result["slice.last"] = base[3]
    result["slice.element"] = base[2, 1, 1]
    result["axis.of.one"] = base[:1].transpose(0, 1)
    result["empty"] = torch.zeros(0, 5)
    result["empty.slice"] = base[4:]
    result["scalar"] = torch.tensor(2.5)
    result["parameter"] = torch.nn.Parameter(base[0].bfloat16())
    result["nested"] = {"inner": {"weight": base[0].half()}, "step": 12, 3: torch.tensor([3])}
    result["step"] = 2**40
    result["seed"] = 2**64 - 1
    result["negative"] = -(2**33)
    result["rate"] = 4e-4
    result["on"] = True
    result["nothing"] = None
    result["label"] = "größe"
    result["list"] = [1, base[0]]
    result["tuple"] = (1, 2)
    result["size"] = base.shape
    result._metadata = OrderedDict({"": {"version": 1}})
    return result


def flat(values: dict, prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def describe(value: torch.Tensor) -> dict:
    value = value.detach().contiguous()
    dtype = next(name for name, dtype in TYPES.items() if dtype == value.dtype)
    data = bytes(value.reshape(-1).view(torch.uint8).tolist()) if value.numel() else b""
    return {"dtype": dtype, "shape": list(value.shape), "hex": data.hex()}


def torch_files() -> None:
    for protocol in range(2, 6):
        torch.save(state(), FOLDER / f"torch_protocol_{protocol}.pt", pickle_protocol=protocol)
    weights = {"weight": torch.arange(6.0).reshape(2, 3)}
    torch.save(weights, FOLDER / "torch_plain_dict.pt")
    torch.save({"mixed": weights["weight"].T}, FOLDER / "torch_transposed.pt")
    torch.save(weights["weight"], FOLDER / "torch_bare_tensor.pt")
    for protocol in (2, 4):
        path = FOLDER / f"torch_legacy_{protocol}.pt"
        torch.save(weights, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    items = list(flat(state()))
    tensors = [{"name": name, **describe(value)} for name, value in items if isinstance(value, torch.Tensor)]
    skipped = [name for name, value in items if not isinstance(value, torch.Tensor)]
    text = json.dumps({"tensors": tensors, "skipped": skipped}, indent=1)
    (FOLDER / "torch.json").write_text(text + "\n")


def olmo_keys() -> None:
    def case(parts: list, is_pickled: bool = False) -> dict:
        """Parts are [text, times]; of a long name only the beginning and the end are kept."""
        path = tuple(text * times for text, times in parts)
        name = base64.urlsafe_b64encode(pickle.dumps((path, is_pickled), protocol=4)).decode()
        return {"parts": parts, "is_pickled": is_pickled, "length": len(name), "start": name[:200], "end": name[-200:]}

    one = "transformer.blocks.15.ffn.experts.mlp.w1"
    cases = [case([["transformer.wte.weight", 1]]), case([[one, 1]]), case([["ÿ>?~größe", 1]])]
    cases += [case([["state", 1], [one, 1], ["exp_avg", 1]]), case([["param_groups", 1]], True)]
    cases += [case([[letter, 1] for letter in "abcdef"[:count]], True) for count in range(7)]
    lengths = [0, 1, 2, 3, 254, 255, 256, 257, 1000, 65_500, *range(65_520, 65_540), 70_000, 200_000]
    cases += [case([["x", length]]) for length in lengths]
    cases += [case([["ab", 32_764], ["y", length]]) for length in (0, 1, 2, 300, 65_535, 65_536)]
    cases += [case([["y", length], ["ab", 32_768], ["z", 9]]) for length in (0, 1, 2, 300, 65_535, 65_536)]
    cases += [case([["p", 30_000], ["q", 30_000], ["r", 30_000], ["s", 30_000]], True)]
    text = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (FOLDER / "olmo_keys.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch_files()
    olmo_keys()
