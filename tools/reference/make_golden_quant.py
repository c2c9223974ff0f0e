"""Golden files of the block formats, `tests/golden/quant_*`: the results of gguf and llama.cpp.

- `quant_blocks.bin`: for each format in the order of FORMATS, `blocks(format)` blocks, then the numbers that
  `gguf.quants.dequantize` gives for them, f32. Two thirds of the blocks are random bytes (scales finite: of every
  size and sign, subnormal and zero among them), the rest are quantised normal numbers.
- `quant_data.f32`: the data sets in the order of DATA, NUMBERS f32 numbers each.
- `quant_rmse.tsv`: the root mean square error of the reference's quantiser for each data set and format. The
  reference is gguf for the formats of 32 numbers and llama.cpp, without an importance matrix, for those of 256.

`--check` compares with the files and writes nothing."""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

GOLDEN_DIR = Path(__file__).resolve().parents[2] / "tests" / "golden"

# By name: the type, and the positions of the f16 numbers in a block.
FORMATS = {
    "q4_0": (Type.Q4_0, [0]),
    "q4_1": (Type.Q4_1, [0, 2]),
    "q5_0": (Type.Q5_0, [0]),
    "q5_1": (Type.Q5_1, [0, 2]),
    "q8_0": (Type.Q8_0, [0]),
    "q4_k": (Type.Q4_K, [0, 2]),
    "q5_k": (Type.Q5_K, [0, 2]),
    "q6_k": (Type.Q6_K, [208]),
}
NUMBERS = 2048


def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    spike = np.zeros(NUMBERS)
    spike[777] = 3.7
    sets = {
        "normal": 0.02 * rng.standard_normal(NUMBERS),
        "heavy": 0.02 * rng.standard_t(3, NUMBERS),
        "uniform": rng.uniform(-1, 1, NUMBERS),
        "zero": np.zeros(NUMBERS),
        "constant": np.full(NUMBERS, 0.1),
        "spike": spike,
        "tiny": 1e-30 * rng.standard_normal(NUMBERS),
        "huge": 1e4 * rng.standard_normal(NUMBERS),
    }
    return {name: values.astype(np.float32) for name, values in sets.items()}


def ggml() -> ctypes.CDLL:
    import llama_cpp

    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointers = [ctypes.c_void_p, ctypes.c_void_p]
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, *pointers, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return library


def reference(library: ctypes.CDLL, kind: Type, x: np.ndarray) -> tuple[np.ndarray, str]:
    """The reference's quantised blocks of x, and its name."""
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if block_len == 32:
        with np.errstate(over="ignore", invalid="ignore"):
            return quantize(x, kind), "gguf"
    out = np.zeros(x.size // block_len * block_bytes, np.uint8)
    assert library.ggml_quantize_chunk(kind, x.ctypes.data, out.ctypes.data, 0, 1, x.size, None) == out.size
    return out, "llama.cpp"


def blocks(library: ctypes.CDLL, name: str, rng: np.random.Generator) -> np.ndarray:
    kind, halves = FORMATS[name]
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    count = 24 if block_len == 32 else 12
    real = count // 3
    random = rng.integers(0, 256, (count - real, block_bytes), np.uint8)
    for at in halves:
        bits = rng.integers(0, 1 << 16, count - real, np.uint16)
        bits = np.where(bits & 0x7C00 == 0x7C00, bits & 0x83FF, bits)
        # The first ones: subnormal, the smallest, negative zero, the largest.
        bits[:4] = rng.permutation(np.array([0x0123, 0x8001, 0x8000, 0xFBFF], np.uint16))
        random[:, at : at + 2] = bits.astype("<u2").reshape(-1, 1).view(np.uint8)
    x = (0.02 * rng.standard_normal(real * block_len)).astype(np.float32)
    return np.concatenate([random.ravel(), reference(library, kind, x)[0].ravel()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    check = parser.parse_args().check

    library, sets, rng = ggml(), data(), np.random.default_rng(11)
    content, rows = b"", ["data\tformat\trmse\treference"]
    for name, (kind, _) in FORMATS.items():
        made = blocks(library, name, rng)
        content += made.tobytes() + dequantize(made, kind).astype("<f4").tobytes()
    for data_name, x in sets.items():
        for name, (kind, _) in FORMATS.items():
            made, by = reference(library, kind, x)
            error = dequantize(made, kind).astype(np.float64) - x
            rows.append(f"{data_name}\t{name}\t{np.sqrt(np.mean(error**2)):.9e}\t{by}")
    files = {
        "quant_blocks.bin": content,
        "quant_data.f32": np.concatenate(list(sets.values())).astype("<f4").tobytes(),
        "quant_rmse.tsv": ("\n".join(rows) + "\n").encode(),
    }
    differ = 0
    for name, new in files.items():
        path = GOLDEN_DIR / name
        if not check:
            path.write_bytes(new)
        same = path.exists() and path.read_bytes() == new
        differ += not same
        print(f"{name}: {len(new)} bytes, {'as made' if same else 'differs'}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
