"""Compares the checkpoints that olmoe reads and writes with those of other programs.

    venv/bin/python tools/reference/compare_checkpoints.py --olmoe target/release/olmoe --work /tmp/checkpoints

Small models are made on the spot. Sections (`--only` chooses): transformers, olmo, gguf, llamacpp, mixes. Prints a line
for each figure, with its bound; the exit status is 1 if a bound is missed."""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
import pickle
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import make_golden_checkpoints as made

MIXES = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"]
# The numbers that llama.cpp gives them.
FILE_TYPES = dict(zip(MIXES, [2, 3, 8, 9, 7, 14, 15, 16, 17, 18])) | {"f32": 0, "f16": 1, "bf16": 32}
# A logit may differ from transformers' by this much.
LOGITS = 1e-4

BASE = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "initializer_range": 0.1,
    "pad_token_id": 1,
    "eos_token_id": 98,
}
MODELS = {
    "8 experts": BASE,
    "release shape": BASE
    | {"hidden_size": 128, "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 64}
    | {"num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 3},
    "grouped heads": BASE
    | {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "rope_theta": 500.0},
    "tied": BASE | {"tie_word_embeddings": True},
    "attention bias": BASE | {"attention_bias": True},
    "clip, top-k sum": BASE | {"clip_qkv": 1.5, "norm_topk_prob": True, "num_experts_per_tok": 3},
}
DENSE = {key: BASE[key] for key in BASE if "experts" not in key} | {"num_key_value_heads": 2, "bos_token_id": 2}


class Report:
    """Figures and their bounds."""

    def __init__(self) -> None:
        self.missed = 0

    def line(self, section: str, what: str, figure: str, bound: str, ok: bool) -> None:
        self.missed += not ok
        print(f"{section:<13} {what:<58} {figure:>22} {bound:>12}  {'ok' if ok else 'MISSED'}", flush=True)

    def at_most(self, section: str, what: str, value: float, bound: float) -> None:
        self.line(section, what, f"{value:.2e}", f"<= {bound:.0e}", bool(value <= bound))

    def equal(self, section: str, what: str, differ: list[str] | int, of: int) -> None:
        count = differ if isinstance(differ, int) else len(differ)
        self.line(section, what, f"{of - count} of {of} equal", "all", count == 0 and of > 0)
        for text in ([] if isinstance(differ, int) else differ)[:8]:
            print(f"    {text}")


class Olmoe:
    def __init__(self, program: str, work: Path, report: Report) -> None:
        self.program, self.work, self.report = program, work, report

    def __call__(self, *arguments: object) -> str:
        command = [self.program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()}")
        self.notes = done.stderr
        return done.stdout

    def refused(self, *arguments: object) -> str:
        """The error of a command that fails; nothing if it does not."""
        try:
            self(*arguments)
        except RuntimeError as error:
            return str(error)
        return ""

    def path(self, *parts: str) -> Path:
        """A name that is not in use."""
        path = self.work.joinpath(*(part.replace(" ", "-").replace(",", "") for part in parts))
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def logits(self, model: Path, ids: list[int], routing: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
        out = self.path("logits.safetensors")
        flags = ["--routing"] if routing else []
        text = ",".join(map(str, ids))
        self("logits", "-m", model, "--ids", text, "--out", out, "--precision", "fp32", "--quiet", *flags)
        with safe_open(out, "np") as file:
            return file.get_tensor("logits"), file.get_tensor("routing.ids") if routing else None

    def compare(self, section: str, what: str, model: Path, reference: transformers.PreTrainedModel) -> None:
        """Logits, and routing where there is one, against transformers in fp32."""
        gen = np.random.default_rng(3)
        ids = gen.integers(2, reference.config.vocab_size, 40).tolist()
        logits, routing = made.run(reference, ids)
        ours, our_routing = self.logits(model, ids, routing is not None)
        self.report.at_most(section, f"{what}: logits", float(np.abs(ours - logits).max()), LOGITS)
        if routing is not None:
            self.report.equal(section, f"{what}: routing", int((our_routing != routing).sum()), routing.size)


def write_config(settings: dict, path: Path, dtype: str = "float32") -> Path:
    found = made.config(settings)
    found.dtype = dtype
    path.write_text(found.to_json_string(use_diff=False))
    return path


def differences(a: dict, b: dict) -> list[str]:
    """Names of arrays that differ in any bit."""
    out = [f"{name}: only on one side" for name in a.keys() ^ b.keys()]
    for name in sorted(a.keys() & b.keys()):
        x, y = a[name], b[name]
        if isinstance(x, np.ndarray):
            x, y = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y))
        x, y = x.contiguous(), y.contiguous()
        if x.dtype != y.dtype or x.shape != y.shape:
            out.append(f"{name}: {x.dtype} {tuple(x.shape)}, {y.dtype} {tuple(y.shape)}")
        elif not torch.equal(x.flatten().view(torch.uint8), y.flatten().view(torch.uint8)):
            out.append(f"{name}: other bits")
    return out


def hf_file_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for path in sorted(folder.glob("*.safetensors")) for name, x in load_file(path).items()}


# 1 and 2: transformers.


def from_pretrained(folder: Path) -> tuple[transformers.PreTrainedModel, int]:
    """The model in fp32, and how many keys did not fit."""
    kind = transformers.AutoModelForCausalLM
    model, info = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, local_files_only=True
    )
    wrong = sum(len(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval(), wrong + len(info.get("error_msgs") or ())


def transformers_section(olmoe: Olmoe) -> None:
    section, report = "transformers", olmoe.report
    for name, settings in (MODELS | {"dense llama": DENSE}).items():
        config = write_config(settings, olmoe.path("configs", name + ".json"))
        forms = [("f32", "separate"), ("bf16", "separate")]
        if name == "8 experts":
            forms.append(("bf16", "fused"))
        for dtype, experts in forms:
            what = f"init {name}, {dtype}" + (", fused" if experts == "fused" else "")
            folder = olmoe.path("init", f"{name}-{dtype}-{experts}")
            olmoe("init", "--config", config, "--seed", 1, folder, "--dtype", dtype, "--experts", experts, "--quiet")
            model, wrong = from_pretrained(folder)
            report.line(section, f"{what}: keys that do not fit", str(wrong), "0", wrong == 0)
            olmoe.compare(section, what, folder, model)
    for name, settings in (MODELS | {"dense llama": DENSE}).items():
        model = made.random_model(settings, 4)
        for form, shard in (("one file", "1GB"), ("shards", "100KB")):
            folder = olmoe.path("saved", f"{name}-{form}")
            model.save_pretrained(folder, max_shard_size=shard)
            one_file = folder if form == "one file" else one_file
            files = len(list(folder.glob("*.safetensors")))
            olmoe.compare(section, f"saved {name}, {files} file{'s' * (files > 1)}", folder, model)
        if "num_experts" in settings:
            folder = olmoe.path("saved", f"{name}-fused")
            folder.mkdir()
            save_file(made.fused_tensors(model), folder / "model.safetensors")
            write_config(settings, folder / "config.json")
            olmoe.compare(section, f"saved {name}, fused by hand", folder, model)
            again = olmoe.path("saved", f"{name}-separate")
            olmoe("convert", folder, again, "--to", "hf", "--quiet")
            ours, theirs = hf_file_tensors(again), hf_file_tensors(one_file)
            report.equal(section, f"fused {name} to separate: tensors as saved", differences(ours, theirs), len(theirs))


# 3: OLMo's trainer.


def olmo_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Names as OLMo's own loader takes them: base64, then Python's unpickler."""
    out = {}
    for key, tensor in load_file(path).items():
        (name,), is_pickled = pickle.loads(base64.urlsafe_b64decode(key))
        assert not is_pickled
        out[name] = tensor
    return out


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    kinds = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float16: torch.int16}
    return {name: x.view(kinds[x.dtype]).numpy() for name, x in tensors.items()}


def olmo_section(olmoe: Olmoe, converter: Path | None) -> None:
    section, report = "olmo", olmoe.report
    grouped = {"release shape, grouped": MODELS["release shape"] | {"num_key_value_heads": 4}}
    for name, settings in (MODELS | grouped).items():
        if name == "clip, top-k sum":
            continue  # Other functions there.
        settings = settings | {"num_hidden_layers": 4}
        for dtype in (torch.float32, torch.bfloat16):
            what = f"{name}, {str(dtype).split('.')[1]}"
            folder = olmoe.path("olmo", what, "hf")
            made.random_model(settings, 5, dtype).to(dtype).save_pretrained(folder, max_shard_size="400KB")
            original = hf_file_tensors(folder)
            native = olmoe.path("olmo", what, "native")
            if name == "attention bias":
                # OLMo has biases in all linear maps or in none.
                error = olmoe.refused("convert", folder, native, "--to", "olmo", "--quiet")
                report.line(section, f"{what}: refused", "yes" if error else "no", "yes", bool(error))
                continue
            olmoe("convert", folder, native, "--to", "olmo", "--quiet")
            found = olmo_tensors(native / "model.safetensors")
            ours = made.from_olmo(bits(found), settings)
            report.equal(section, f"{what}: read by Python", differences(ours, bits(original)), len(original))
            theirs = made.to_olmo(original, settings["num_hidden_layers"], settings["num_experts"])
            report.equal(section, f"{what}: native tensors", differences(found, theirs), len(theirs))
            for form, write in (("safetensors", made.write_olmo), ("groups.pt", made.write_olmo_pt)):
                source, back = olmoe.path("olmo", what, form), olmoe.path("olmo", what, form + "-hf")
                write(source, theirs, settings)
                olmoe("convert", source, back, "--to", "hf", "--quiet")
                differ = differences(hf_file_tensors(back), original)
                report.equal(section, f"{what}: {form} to hf", differ, len(original))
            # The script assumes 64 experts and 8 per token.
            if converter and settings["num_experts"] == 64:
                torch.save(found, native / "model.pt")
                out = olmoe.path("olmo", what, "converted")
                converted = run_converter(converter, native, out)
                wanted = {key: x.to(torch.bfloat16) for key, x in original.items()}
                report.equal(section, f"{what}: the published converter", differences(converted, wanted), len(wanted))


def run_converter(script: Path, source: Path, out: Path) -> dict[str, torch.Tensor]:
    """The tensors that the published script makes, in bf16. It needs an older transformers, of which only the
    tokenizer class is missing here, and no model needs that."""
    name = "transformers.models.gpt_neox.tokenization_gpt_neox_fast"
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].GPTNeoXTokenizerFast = None
    runpy.run_path(str(script))["write_model"](str(out), str(source), fix_eos_token_id=False)
    return hf_file_tensors(out)


# 4: gguf.


def read_gguf(path: Path) -> tuple[dict[str, tuple[Type, tuple[int, ...], np.ndarray]], dict[str, object]]:
    reader = gguf.GGUFReader(path)
    tensors = {t.name: (t.tensor_type, tuple(int(n) for n in t.shape[::-1]), t.data) for t in reader.tensors}
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return tensors, fields


def expected_metadata(settings: dict, mix: str) -> dict[str, object]:
    """What llama.cpp's converter writes of a configuration, by gguf's own names of the keys."""
    arch = "olmoe" if "num_experts" in settings else "llama"
    llm, attention, rope = gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope
    heads = settings["num_attention_heads"]
    keys = {
        llm.BLOCK_COUNT: settings["num_hidden_layers"],
        llm.CONTEXT_LENGTH: settings["max_position_embeddings"],
        llm.EMBEDDING_LENGTH: settings["hidden_size"],
        llm.FEED_FORWARD_LENGTH: settings["intermediate_size"],
        attention.HEAD_COUNT: heads,
        attention.HEAD_COUNT_KV: settings["num_key_value_heads"],
        attention.LAYERNORM_RMS_EPS: float(np.float32(1e-5)),
        rope.FREQ_BASE: settings["rope_theta"],
    }
    if arch == "olmoe":
        keys |= {llm.EXPERT_COUNT: settings["num_experts"], llm.EXPERT_USED_COUNT: settings["num_experts_per_tok"]}
    else:
        keys |= {llm.VOCAB_SIZE: settings["vocab_size"], rope.DIMENSION_COUNT: settings["hidden_size"] // heads}
    out = {key.format(arch=arch): value for key, value in keys.items()}
    out |= {gguf.Keys.General.ARCHITECTURE: arch, gguf.Keys.General.FILE_TYPE: FILE_TYPES[mix]}
    out |= {gguf.Keys.General.TYPE: "model", gguf.Keys.Tokenizer.MODEL: "no_vocab"}
    if mix not in ("f32", "f16", "bf16"):
        out[gguf.Keys.General.QUANTIZATION_VERSION] = gguf.GGML_QUANT_VERSION
    for key, name in (("eos", gguf.Keys.Tokenizer.EOS_ID), ("pad", gguf.Keys.Tokenizer.PAD_ID)):
        out[name] = settings[f"{key}_token_id"]
    return out


GGUF_MODELS = {
    "rows of 256": BASE | {"hidden_size": 256, "intermediate_size": 256},
    "rows of 96 and 32": BASE | {"hidden_size": 96, "intermediate_size": 32},
    "rows of 80 and 20": BASE | {"hidden_size": 80, "intermediate_size": 20},
    "dense, rows of 256 and 40": DENSE | {"hidden_size": 256, "intermediate_size": 40},
    "dense tied, rows of 64": DENSE | {"tie_word_embeddings": True},
}


def gguf_section(olmoe: Olmoe) -> None:
    section, report = "gguf", olmoe.report
    for name, settings in GGUF_MODELS.items():
        folder = olmoe.path("gguf", name, "hf")
        made.random_model(settings, 6).save_pretrained(folder)
        hf = made.stacked(hf_file_tensors(folder))
        moe, layers = "num_experts" in settings, settings["num_hidden_layers"]
        arch = gguf.MODEL_ARCH.OLMOE if moe else gguf.MODEL_ARCH.LLAMA
        names = {made.gguf_name(key, arch, layers): key for key in hf}
        for mix in ["f32", "f16", "bf16", *MIXES]:
            what = f"{name}, {mix}"
            path, back = olmoe.path("gguf", name, f"{mix}.gguf"), olmoe.path("gguf", name, f"{mix}-hf")
            olmoe("quantize", folder, path, "--type", mix, "--quiet")
            tensors, fields = read_gguf(path)
            shapes = {n: tuple(hf[key].shape) for n, key in names.items()}
            wrong = [n for n in shapes.keys() | tensors.keys() if n not in tensors or shapes.get(n) != tensors[n][1]]
            report.equal(section, f"{what}: names and shapes", wrong, len(shapes))
            wanted = expected_metadata(settings, mix)
            wrong = [f"{k}: {fields.get(k)!r}, expected {v!r}" for k, v in wanted.items() if fields.get(k) != v]
            report.equal(section, f"{what}: metadata", wrong, len(wanted))
            if mix == "q4_k_m":
                print(f"    more keys: {' '.join(sorted(fields.keys() - wanted.keys()))}")
            olmoe("convert", path, back, "--to", "hf", "--dtype", "f32", "--quiet")
            read = {key: x.numpy() for key, x in made.stacked(hf_file_tensors(back)).items()}
            values = {}
            for n, (kind, shape, data) in tensors.items():
                x = dequantize(data, kind).reshape(shape).astype(np.float32)
                if not moe and ("attn_q" in n or "attn_k" in n):
                    heads = settings["num_attention_heads" if "attn_q" in n else "num_key_value_heads"]
                    x = x.reshape(heads, shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(shape)
                values[names[n]] = x
            report.equal(section, f"{what}: dequantised bits", differences(read, values), len(values))
            if mix == "f32":
                exact = {key: x.numpy() for key, x in hf.items()}
                report.equal(section, f"{what}: as the original", differences(values, exact), len(exact))


# 5: llama.cpp.


def quiet_llama():
    import llama_cpp

    @llama_cpp.llama_log_callback
    def log(level, text, _data):
        if level >= 4:
            LOG.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    quiet_llama.keep = log
    return llama_cpp


LOG: list[str] = []


class Llama:
    """A model in llama.cpp, on the CPU, with keys and values in f32."""

    def __init__(self, path: Path, vocab_only: bool = False) -> None:
        self.cpp = quiet_llama()
        parameters = self.cpp.llama_model_default_params()
        parameters.vocab_only = vocab_only
        parameters.n_gpu_layers = 0
        LOG.clear()
        self.model = self.cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}: {' '.join(LOG)}")
        self.vocab = self.cpp.llama_model_get_vocab(self.model)
        if vocab_only:
            return
        context = self.cpp.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch, context.n_threads = 128, 128, 128, 2
        context.type_k = context.type_v = 0
        context.flash_attn_type = 0
        self.context = self.cpp.llama_init_from_model(self.model, context)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context for {path}: {' '.join(LOG)}")

    def greedy(self, ids: list[int], count: int, rows: int) -> tuple[list[int], np.ndarray]:
        """The continuation and the logits [count, V] that chose it."""
        out, logits, step = [], [], list(ids)
        for _ in range(count):
            array = (self.cpp.llama_token * len(step))(*step)
            if self.cpp.llama_decode(self.context, self.cpp.llama_batch_get_one(array, len(step))):
                raise RuntimeError("llama.cpp could not decode")
            found = np.ctypeslib.as_array(self.cpp.llama_get_logits_ith(self.context, -1), (rows,)).copy()
            logits.append(found)
            step = [int(found.argmax())]
            out += step
        return out, np.array(logits)

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        room = (self.cpp.llama_token * (len(data) + 8))()
        count = self.cpp.llama_tokenize(self.vocab, data, len(data), room, len(room), False, True)
        return list(room[:count])

    def close(self) -> None:
        if getattr(self, "context", None):
            self.cpp.llama_free(self.context)
        self.cpp.llama_model_free(self.model)


# How far llama.cpp may be from fp32, as a share of the largest logit: it multiplies bf16 with bf16 and blocks with
# activations in blocks of 8 bits.
ROUNDING = {"f32": 2e-6, "f16": 5e-4, "bf16": 4e-3}
BLOCK_ROUNDING = 1.5e-2


def llamacpp_section(olmoe: Olmoe, tokenizer: Path) -> None:
    section, report = "llama.cpp", olmoe.report
    variants = {**MODELS, "dense bias": DENSE | {"attention_bias": True}, "dense wide heads": DENSE | {"head_dim": 32}}
    for name, settings in variants.items():
        writable(olmoe, name, settings)
    rows = 50304
    shapes = {
        "olmoe": BASE | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 3},
        "release shape": MODELS["release shape"],
        "dense": DENSE | {"hidden_size": 256, "intermediate_size": 256},
        "dense tied": DENSE | {"hidden_size": 256, "intermediate_size": 256, "tie_word_embeddings": True},
    }
    prompt = [34, 3410, 1071, 12764, 50276, 12092, 17, 5]
    for name, settings in shapes.items():
        settings = settings | {"vocab_size": rows, "eos_token_id": 50279, "bos_token_id": None}
        folder = olmoe.path("llamacpp", name, "hf")
        made.random_model(settings, 8).save_pretrained(folder)
        for mix in ["f32", "f16", "bf16", *MIXES]:
            for with_tokenizer in (True, False) if mix in ("f32", "q4_0") else (True,):
                what = f"{name}, {mix}" + ("" if with_tokenizer else ", no tokenizer")
                path = olmoe.path("llamacpp", name, f"{mix}-{with_tokenizer}.gguf")
                beside = ["--tokenizer", tokenizer] if with_tokenizer else []
                olmoe("quantize", folder, path, "--type", mix, "--quiet", *beside)
                try:
                    model = Llama(path)
                except RuntimeError as error:
                    report.line(section, f"{what}: loads", str(error)[:200], "", False)
                    continue
                ids, logits = model.greedy(prompt, 32, rows)
                model.close()
                ours, _ = olmoe.logits(path, prompt + ids[:-1], False)
                ours = ours[len(prompt) - 1 :]
                rounding, largest = ROUNDING.get(mix, BLOCK_ROUNDING), float(np.abs(ours).max())
                error = np.abs(ours - logits).max(axis=1) / largest
                report.at_most(section, f"{what}: median error of logits", float(np.median(error)), rounding)
                # Tokens are compared only where the best one leads by more than rounding can change.
                top = np.sort(ours, axis=1)[:, -2:]
                clear = top[:, 1] - top[:, 0] > 2 * rounding * largest
                same = ours.argmax(axis=1) == np.array(ids)
                report.equal(section, f"{what}: clear tokens", int((clear & ~same).sum()), int(clear.sum()))
                print(f"    worst logit {error.max():.1e}; {same.sum()} of all 32 tokens equal")
                if name == "olmoe" and mix == "f32" and with_tokenizer:
                    tokens_section(olmoe, path, tokenizer)

def writable(olmoe: Olmoe, name: str, settings: dict) -> None:
    """llama.cpp loads every file that is written and computes the same from it, or the file is refused or noted."""
    folder, path = olmoe.path("llamacpp", name, "hf"), olmoe.path("llamacpp", name, "written.gguf")
    made.random_model(settings, 8).save_pretrained(folder)
    refusal = olmoe.refused("convert", folder, path, "--to", "gguf", "--quiet")
    notes = "" if refusal else olmoe.notes
    if refusal:
        olmoe.report.line("llama.cpp", f"{name}: refused", "yes", "or loads", True)
        print(f"    {refusal.split('error: ')[-1]}")
        return
    try:
        model = Llama(path)
        prompt = [5, 17, 42, 80, 3]
        ids, logits = model.greedy(prompt, 8, settings["vocab_size"])
        model.close()
    except RuntimeError as error:
        noted = "llama.cpp does not load this file" in notes
        olmoe.report.line("llama.cpp", f"{name}: not loaded, and said so", "yes" if noted else "no", "yes", noted)
        print(f"    {error}")
        return
    ours, _ = olmoe.logits(folder, prompt + ids[:-1], False)
    error = float(np.abs(ours[len(prompt) - 1 :] - logits).max() / np.abs(ours).max())
    olmoe.report.at_most("llama.cpp", f"{name}: loads; logits", error, ROUNDING["f32"])


def tokens_section(olmoe: Olmoe, path: Path, tokenizer: Path) -> None:
    import unicodedata

    from tokenizers import Tokenizer

    theirs, ours = Llama(path, vocab_only=True), Tokenizer.from_file(str(tokenizer))
    texts = ["A sample test", "生活的真谛是", "   ", "", " ", "Hi  Hello", "<|user|>\nHi<|endoftext|>", "x = [1, 2];\n\n\ty"]
    texts += [" " * n + "a" for n in range(1, 60)]
    golden = tokenizer.parent / "golden_encodings.jsonl"
    if golden.is_file():
        texts += [json.loads(line)["text"] for line in golden.read_text().splitlines()]
    # llama.cpp does not normalise.
    texts = [text for text in texts if unicodedata.normalize("NFC", text) == text and "\0" not in text]
    wrong = [t for t in texts if theirs.tokenize(t) != ours.encode(t, add_special_tokens=False).ids]
    shown = [f"{t!r}: {theirs.tokenize(t)}, {ours.encode(t, add_special_tokens=False).ids}" for t in wrong]
    olmoe.report.equal("llama.cpp", "tokens of texts in NFC, against tokenizers", shown, len(texts))
    theirs.close()


# 6: mixes.

MIX_MODELS = {
    "64 experts": BASE | {"hidden_size": 256, "intermediate_size": 256, "num_experts": 64, "num_experts_per_tok": 8},
    "8 experts": BASE | {"hidden_size": 256, "intermediate_size": 256},
    "8 experts, rows of 96": BASE | {"hidden_size": 96, "intermediate_size": 96},
    "8 experts, rows of 80": BASE | {"hidden_size": 80, "intermediate_size": 80},
    "dense": DENSE | {"hidden_size": 256, "intermediate_size": 512},
    "dense tied": DENSE | {"hidden_size": 256, "intermediate_size": 512, "tie_word_embeddings": True},
    "dense tied, rows of 96": DENSE | {"hidden_size": 96, "intermediate_size": 160, "tie_word_embeddings": True},
}
LAYERS = 16


def mix_source(settings: dict, path: Path) -> None:
    """A GGUF in f32, made by gguf, of normal numbers."""
    gen = torch.Generator().manual_seed(9)
    d, width = settings["hidden_size"], settings["intermediate_size"]
    kv = d // settings["num_attention_heads"] * settings["num_key_value_heads"]
    normal = lambda *shape: 0.02 * torch.randn(shape, generator=gen)  # noqa: E731
    hf = {"model.embed_tokens.weight": normal(settings["vocab_size"], d), "model.norm.weight": torch.ones(d)}
    if not settings.get("tie_word_embeddings"):
        hf["lm_head.weight"] = normal(settings["vocab_size"], d)
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            hf[layer + name + ".weight"] = torch.ones(d)
        for name, rows in (("q", d), ("k", kv), ("v", kv), ("o", d)):
            hf[layer + f"self_attn.{name}_proj.weight"] = normal(rows, d)
        experts = settings.get("num_experts")
        where, stack = ("mlp.experts.", (experts,)) if experts else ("mlp.", ())
        for name, shape in (("gate", (width, d)), ("up", (width, d)), ("down", (d, width))):
            hf[layer + where + f"{name}_proj.weight"] = normal(*stack, *shape)
        if experts:
            hf[layer + "mlp.gate.weight"] = normal(experts, d)
            hf[layer + "self_attn.q_norm.weight"], hf[layer + "self_attn.k_norm.weight"] = torch.ones(d), torch.ones(kv)
    made.write_gguf(path, hf, settings, Type.F32)


def rmse(kind: Type, data: np.ndarray, original: np.ndarray) -> float:
    error = dequantize(data, kind).reshape(-1).astype(np.float64) - original.reshape(-1)
    return float(np.sqrt(np.mean(error**2)))


def mixes_section(olmoe: Olmoe) -> None:
    section, report, cpp = "mixes", olmoe.report, quiet_llama()
    for name, settings in MIX_MODELS.items():
        settings = settings | {"num_hidden_layers": LAYERS}
        source = olmoe.path("mixes", name, "f32.gguf")
        mix_source(settings, source)
        original, _ = read_gguf(source)
        for mix in MIXES:
            ours_path, theirs_path = olmoe.path("mixes", "ours.gguf"), olmoe.path("mixes", "theirs.gguf")
            olmoe("quantize", source, ours_path, "--type", mix, "--quiet")
            parameters = cpp.llama_model_quantize_default_params()
            parameters.ftype, parameters.nthread = FILE_TYPES[mix], 2
            LOG.clear()
            if cpp.llama_model_quantize(str(source).encode(), str(theirs_path).encode(), ctypes.byref(parameters)):
                report.line(section, f"{name}, {mix}: llama.cpp refuses", " ".join(LOG)[:80], "", False)
                continue
            ours, our_fields = read_gguf(ours_path)
            theirs, their_fields = read_gguf(theirs_path)
            wrong = [
                f"{n}: {ours[n][0].name if n in ours else None}, llama.cpp {t[0].name}"
                for n, t in theirs.items()
                if n not in ours or ours[n][0] != t[0]
            ]
            report.equal(section, f"{name}, {mix}: types", wrong, len(theirs))
            same = our_fields["general.file_type"] == their_fields["general.file_type"]
            if not same:
                report.line(section, f"{name}, {mix}: file type", str(our_fields["general.file_type"]), "", False)
            ratios, worse = {}, []
            # The layers at the ends and in the middle have types of their own; the others are alike.
            chosen = [n for n in original if not n.startswith("blk.") or n.split(".")[1] in ("0", "2", "4", "15")]
            for n in chosen:
                kind = ours[n][0]
                if kind in (Type.F32, Type.F16) or kind != theirs[n][0]:
                    continue
                x = original[n][2]
                mine, other = rmse(kind, ours[n][2], x), rmse(kind, theirs[n][2], x)
                ratios.setdefault(kind.name, []).append(mine / other)
                if mine > other:
                    worse.append(f"{n} {kind.name}: {mine:.6e} against {other:.6e}, ratio {mine / other:.6f}")
            if all(kind in (Type.F32, Type.F16) for kind, _, _ in theirs.values()):
                continue  # No row is a multiple of a block.
            report.equal(section, f"{name}, {mix}: error at most llama.cpp's", worse, sum(map(len, ratios.values())))
            print("    ours / llama.cpp's: " + "  ".join(f"{k} {min(r):.4f}..{max(r):.4f}" for k, r in ratios.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--olmoe", required=True, help="the program")
    parser.add_argument("--work", required=True, type=Path, help="a folder for the models; 3 GB")
    parser.add_argument("--tokenizer", type=Path, help="the tokenizer.json of OLMoE; without it, no llama.cpp section")
    parser.add_argument("--converter", type=Path, help="convert_olmoe_weights_to_hf.py of transformers 4.45")
    parser.add_argument("--only", nargs="*", help="sections")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    report = Report()
    olmoe = Olmoe(args.olmoe, args.work, report)
    sections = {
        "transformers": lambda: transformers_section(olmoe),
        "olmo": lambda: olmo_section(olmoe, args.converter),
        "gguf": lambda: gguf_section(olmoe),
        "llamacpp": lambda: llamacpp_section(olmoe, args.tokenizer),
        "mixes": lambda: mixes_section(olmoe),
    }
    for name, run in sections.items():
        if args.only and name not in args.only or name == "llamacpp" and not args.tokenizer:
            continue
        run()
    print(f"{report.missed} missed")
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
