#!/usr/bin/env python3
"""Golden files of pretraining data: token files as dolma writes them, orders and repetitions as NumPy gives them.

Writes crates/olmoe-data/tests/golden; with --data FOLDER also the digests of the real corpora in FOLDER/pretrain.
dolma never seeds its generators and takes files in the order of the file system. Here they are seeded, files are
given one by one, and each group of files begins with the generator state after the shuffling of all files, as in
processes that are forked at that point.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

os.environ["TOKENIZERS_PARALLELISM"] = "false"
# dolma imports its taggers, which need a dozen packages that tokenising does not.
sys.modules["dolma.taggers"] = types.ModuleType("dolma.taggers")
import zstandard  # noqa: E402
from dolma.tokenizer import executor  # noqa: E402

CRATE = Path(__file__).resolve().parents[2] / "crates/olmoe-data"
GOLDEN = Path("tests/golden")
CORPUS = GOLDEN / "corpus"
TOKENIZER = GOLDEN / "tokenizer.json"


class Writer(executor.MemMapParallelWriter):
    """Groups one after the other, each from the same state of the generators."""

    def _debug_run_all(self, **kwargs):
        state = random.getstate()
        group = type(self)._process_single_and_save_status

        def seeded(**kwargs):
            random.setstate(state)
            np.random.seed(self.seed % 2**32)
            group(**kwargs)

        self._process_single_and_save_status = seeded
        super()._debug_run_all(**kwargs)


executor.MemMapParallelWriter = Writer


def tokenize(files, tokenizer, settings):
    """The output of dolma: name -> bytes, lists unpacked."""
    settings = dict(settings)
    seed = settings.pop("seed", 3920)
    random.seed(seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        executor.tokenize_in_parallel(
            sources=[str(file) for file in files], destination=folder, tokenizer_name_or_path=str(tokenizer),
            metadata_dir=folder + "/done", seed=seed, debug=True, pad_token_id=1,
            **{"max_size": 1 << 26, "bos_token_id": None, "eos_token_id": None, **settings})
        shutil.rmtree(folder + "/done")
        out = {}
        for path in sorted(Path(folder).iterdir()):
            data = path.read_bytes()
            out[path.name] = gzip.decompress(data) if path.name.endswith(".gz") else data
        lists = b"".join(data for name, data in out.items() if name.endswith(".csv.gz"))
        for file in files:
            # dolma logs a file that it cannot read and goes on.
            assert not file.stat().st_size or str(file).encode() in lists, f"dolma did not read {file}"
        # A group without a document leaves max_size zeros, which are not tokens.
        for name in [name for name, data in out.items() if name.endswith(".csv.gz") and not data]:
            del out[name], out[name.replace(".csv.gz", ".npy")]
        return out


def digests(output):
    return {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in output.items()}


def make_tokenizer():
    """A byte-level vocabulary with a few merges, a run of spaces and an end-of-text token."""
    printed = [b for b in range(256) if 33 <= b < 127 or 161 <= b and b != 173]
    letters, extra = [], 256
    for b in range(256):
        letters.append(chr(b) if b in printed else chr(extra))
        extra += b not in printed
    merges = ["t h", "th e", "\u0120 the", "l o", "lo w", "\u0120 \u0120"]
    vocab = letters + ["th", "the", "\u0120the", "lo", "low", "\u0120\u0120", "   ", "<|endoftext|>"]
    added = [{"id": i, "content": vocab[i], "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": i == 263} for i in (262, 263)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "vocab": {t: i for i, t in enumerate(vocab)}, "merges": merges}}


def make_corpus(draw):
    """Five files: plain with everything that can be wrong with a line, gzip of two members, plain gzip, zstd, empty."""
    words = "the low lowest thesis then   other é 生活 <|endoftext|> \t a\u0301 loth".split(" ") + ["  ", "\n", "\n\n"]

    def line(name, i):
        text = " ".join(draw.choice(words) for _ in range(draw.randint(1, 24)))
        row = {"id": f"{name}-{i}", "text": text, "source": name, "metadata": {"number": i, "body": {"text": text[::-1]}}}
        if i % 11 == 3:
            row["id"] = f'{name} "{i}", and more\nof it'
        return json.dumps(row, ensure_ascii=i % 2 == 0).encode()

    odd = [b"", b"{", b"[1, 2]", b'{"id": "no text"}', b'{"text": "no id"}', b'{"text": null, "id": "x"}',
           b'{"text": "number", "id": 5, "metadata": {"number": 5, "body": {"text": "number"}}}',
           b'{"text": " \\u001c\\u00a0\\n", "id": "blank", "metadata": {"number": 1, "body": {"text": ""}}}',
           b'{"text": "first", "text": "last counts", "id": "twice"}', b'{"text": "a", "id": "x"} more',
           b'{"text": "raw\ttab", "id": "x"}', b'{"text": "\\ud800", "id": "x"}', b"   ",
           '{"text": "\u2003stripped\x1f\u3000", "id": "spaces"}'.encode().replace(b"\x1f", b"\\u001f"),
           b'{"text": "ends<|endoftext|>", "id": "end"}', b'{"text": "<|endoftext|>begins", "id": "begin"}']
    lines = [line("plain", i) for i in range(40)]
    for i, row in enumerate(odd):
        lines.insert(2 * i + 1, row)
    ends = [b"\n", b"\r\n", b"\r"]
    plain = b"".join(row + ends[i % 3] for i, row in enumerate(lines)) + line("plain", 99)
    CORPUS.mkdir(parents=True, exist_ok=True)
    (CORPUS / "a.jsonl").write_bytes(plain)
    members = [b"\n".join(line("members", i) for i in range(*part)) + b"\n" for part in ((0, 20), (20, 55))]
    (CORPUS / "b.jsonl.gz").write_bytes(b"".join(gzip.compress(member, mtime=0) for member in members))
    packed = b"\n".join(line("packed", i) for i in range(17))
    (CORPUS / "c.json.gz").write_bytes(gzip.compress(packed, mtime=0))
    packed = b"\n".join(line("zstd", i) for i in range(70))
    (CORPUS / "d.jsonl.zst").write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(packed))
    (CORPUS / "e.jsonl").write_bytes(b"")


CASES = {
    "defaults": {},
    "another seed": {"seed": 0},
    "small files": {"max_size": 333},
    "small batches": {"local_shuffle": 7, "ring_size": 3},
    "a ring of one": {"ring_size": 1, "local_shuffle": 30, "max_size": 2000},
    "by size": {"sample_ring_prop": True, "ring_size": 3, "local_shuffle": 20},
    "two processes": {"num_writers": 2},
    "more processes than files": {"num_writers": 12},
    "two files each": {"num_readers": 2, "local_shuffle": 9},
    "paragraphs": {"segment_before_tokenization": True},
    "special as text": {"encode_special_tokens": True},
    "begin and end": {"bos_token_id": 263, "eos_token_id": 10},
    "begin only": {"bos_token_id": 263, "eos_token_id": None},
    "fields": {"text_field_name": "metadata.body.text", "id_field_name": "metadata.number", "id_field_type": "int"},
    "no names": {"id_field_name": None},
}


def make_tokens():
    TOKENIZER.parent.mkdir(parents=True, exist_ok=True)
    TOKENIZER.write_text(json.dumps(make_tokenizer(), separators=(",", ":")))
    make_corpus(random.Random(7))
    files = sorted(CORPUS.iterdir())
    cases = []
    for name, settings in CASES.items():
        settings = {"eos_token_id": 263, **settings}
        # dolma cannot draw by size when the files that are left are empty.
        inputs = [file for file in files if not settings.get("sample_ring_prop") or file.stat().st_size]
        output = tokenize(inputs, TOKENIZER, settings)
        inputs = [str(path) for path in inputs]
        cases.append({"name": name, "inputs": inputs, "settings": settings, "files": digests(output)})
    return cases


REAL = {
    "quick": ["tinystories/train_cased_2316.jsonl.gz", "domains/childrens_stories_asp.jsonl.gz",
              "domains/web_c4_demo.jsonl.gz", "domains/wiki_multilingual_olmoe.jsonl.gz"],
    "all": None,
}


def make_real(data):
    tokenizer = data.resolve() / "tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json"
    os.chdir(data)
    cases = []
    for name, files in REAL.items():
        paths = [Path("pretrain") / file for file in files] if files else sorted(Path("pretrain").rglob("*.jsonl.gz"))
        settings = {"eos_token_id": 50279, "local_shuffle": 1000}
        output = tokenize(paths, tokenizer, settings)
        cases.append({"name": name, "inputs": [str(p) for p in paths], "settings": settings, "files": digests(output)})
    os.chdir(CRATE)
    return cases


def global_indices(n, seed, epoch, drop_last, world):
    """OLMo's IterableDataset."""
    size = -(-(n - world) // world) * world if drop_last and n % world else -(-n // world) * world
    indices = np.arange(n, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed + epoch)).shuffle(indices)
    if drop_last:
        indices = indices[:max(size, 0)]
    while len(indices) < size:
        indices = np.concatenate([indices, indices[:min(size - len(indices), n)]])
    return indices


def make_orders():
    cases = []
    for n, seed, epoch, drop_last, world in [
            (0, 0, 0, False, 1), (1, 6198, 0, True, 1), (2, 6198, 1, True, 1), (20, 6198, 0, True, 1), (20, 42, 0, True, 1),
            (20, 0, 0, False, 1), (1000, 6198, 1, True, 1), (1001, 6198, 3, True, 8), (1001, 6198, 3, False, 8),
            (3, 5, 0, False, 8), (3, 5, 0, True, 8), (65_535, 1, 0, True, 1), (65_536, 1, 0, True, 1),
            (65_537, 1, 0, True, 1), (1_000_003, 2**32 + 5, 0, False, 2)]:
        indices = global_indices(n, seed, epoch, drop_last, world).astype("<u4")
        cases.append({"instances": n, "seed": seed, "epoch": epoch, "drop_last": drop_last, "world": world,
                      "len": len(indices), "first": indices[:20].tolist(),
                      "sha256": hashlib.sha256(indices.tobytes()).hexdigest()})
    return cases


def repetitions(ids, min_period, max_period):
    """By rows of a period's length, as OLMo's trainer looks for them."""
    def head(equal):
        return len(equal) if equal.all() else int(np.argmin(equal))
    found = []
    for period in range(min_period, min(max_period, len(ids) // 3) + 1):
        rows = np.pad(ids, (0, period - len(ids) % period), constant_values=-1).reshape(-1, period)
        equal = rows == np.roll(rows, 1, axis=0)
        whole = np.where(equal.all(axis=1))[0]
        if len(whole) == 0:
            continue
        for run in np.split(whole, np.where(np.diff(whole) != 1)[0] + 1):
            tail = head(equal[run[0] - 1][::-1])
            start = (int(run[0]) - 1) * period - (tail if tail < period else 0)
            end = (int(run[-1]) + 1) * period + head(equal[(run[-1] + 1) % len(rows)])
            if (end - start) // period > 2:
                found.append([start, end, period])
    return found


def make_repetitions(draw):
    cases = []
    for case in range(60):
        ids = [draw.randrange(2 + case) for _ in range(draw.randrange(80))]
        for _ in range(case % 4):
            unit = [draw.randrange(50) for _ in range(draw.randint(1, 14))]
            at = draw.randint(0, len(ids))
            ids[at:at] = unit * draw.randint(2, 40) + unit[:draw.randrange(len(unit))]
        low, high = draw.choice([(1, 13), (1, 13), (2, 5), (7, 20)])
        cases.append({"ids": ids, "min": low, "max": high, "found": repetitions(np.array(ids, dtype=np.int64), low, high)})
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the real corpora")
    args = parser.parse_args()
    data = args.data and args.data.resolve()
    logging.disable(logging.CRITICAL)
    os.chdir(CRATE)
    golden = {"tokens": make_tokens(), "orders": make_orders(), "repetitions": make_repetitions(random.Random(3))}
    for name, cases in golden.items():
        (GOLDEN / f"{name}.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    if data:
        (GOLDEN / "corpora.json").write_text(json.dumps(make_real(data), indent=1) + "\n")


if __name__ == "__main__":
    main()
