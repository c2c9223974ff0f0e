"""Golden data of fine-tuning, `crates/olmoe-data/tests/golden/instruct.json`: the results of other programs for
conversations, lengths and indices.

- `masks`: ids and targets by the three encoders of open-instruct, and by the blocks that transformers finds. The functions of
  open-instruct are taken from its files, which are named on the command line and are not part of this project
  (https://github.com/allenai/open-instruct):

      git show f13c2d131:open_instruct/finetune.py > august.py                      # of the released SFT model
      git show 0b0b13f61:open_instruct/finetune.py > october.py
      git show 0b0b13f61:open_instruct/dataset_processor.py > templates.py          # CHAT_TEMPLATES["tulu"]
      git show 31aa05634:open_instruct/dataset_transformation.py > now.py           # offsets, with their fallback
      python make_golden_instruct.py --august august.py --october october.py --templates templates.py --now now.py \\
          --kto kto_trainer.py --tokenizer allenai_gpt-neox-olmo-dolma-v1_5.json

- `kto`: the part of long rows that trl 0.9.6 keeps, by a function of its `trl/trainer/kto_trainer.py` (`pip download --no-deps
  trl==0.9.6`), named with `--kto`: ids 2 to 999 are those of prompts, from 1000 on of answers, 1 begins and 0 ends.
- `packs`: trl's `pack_dataset` on rows of given lengths.
- `shuffles`: the indices of datasets' `Dataset.shuffle(seed)`.
- `parquet`: rows that pyarrow writes into `tests/golden/instruct/*.parquet`, one file a compression and page version.

`--check` compares with the files and writes nothing."""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
from pathlib import Path
from typing import Any, Callable

import datasets
import pyarrow
import pyarrow.parquet
import torch
import transformers
import trl

CRATE = Path(__file__).resolve().parents[2] / "crates" / "olmoe-data"
GOLDEN = CRATE / "tests" / "golden"
END = "<|endoftext|>"

# Ends an answer only at the end of the conversation, so a rendered prefix is not a prefix of the rendering.
END_LAST = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
# The same without a generation prompt, so the answer cannot be told from its header.
NO_PROMPT = END_LAST.split("{% if add_generation_prompt %}")[0]
# With the answers marked, as transformers' `return_assistant_tokens_mask` requires.
MARKED = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)
# A space before the answer, which the first token of the answer includes.
SPACED = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ':' }}{{ ' ' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return messages + [
        {"role": "assistant" if at % 2 else "user", "content": content} for at, content in enumerate(contents)
    ]


CHATS: dict[str, list[dict[str, str]]] = {
    "one turn": turns("Compute the modulus of 12/5 using a Lua function.", "print(12 % 5)"),
    "two turns": turns("Hi", "Hello! How can I help?", "Name a prime.", "7"),
    "five turns": turns("a", "b", "c c", "d\ne", "f", "g  h", "i?", "j.", "k", "The end."),
    "a system": turns("Who?", "Me.", "Why?", "Because.", system="Be brief."),
    "only a question": turns("Nobody answers"),
    "ends with a question": turns("One?", "Two.", "Three?"),
    "empty contents": turns("", "", "x", ""),
    "white space around": turns("  padded \n", "\n\n answer with space \n", " \t", "   "),
    "code": turns("Write it.", "def f(x):\n    if x:\n        return  x\n\n\n    return None\n"),
    "letters": turns(
        "Cafe\u0301 ou caf\u00e9? 真实 \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "은하 naïve ✓ \u00a0\u2003x \U0001f600",
    ),
    "end inside": turns(f"What is {END}?", f"A token, {END}, of texts."),
    "answers in a row": [*turns("Say two things.", "One."), {"role": "assistant", "content": "Two."}],
    "begins with an answer": [{"role": "assistant", "content": "Welcome."}, *turns("Thanks.", "Sure.")],
    "a system between": [*turns("One?", "1"), {"role": "system", "content": "In words."}, *turns("Two?", "two")],
    "digits and spaces": turns("1 2  3   4", "12345678 9\t\t10"),
}


def functions(path: Path, names: list[str], namespace: dict[str, Any]) -> dict[str, Any]:
    """The functions and assignments of a file by their names, without what the file imports."""
    tree = ast.parse(path.read_text())
    def name(node: ast.stmt) -> str | None:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            return node.name
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            return node.targets[0].id
        return None
    taken = [node for node in tree.body if name(node) in names]
    missing = set(names) - {name(node) for node in taken}
    if missing:
        sys.exit(f"{path}: {sorted(missing)} missing; is it the version that this script names?")
    module = ast.Module(
        [ast.ImportFrom("__future__", [ast.alias("annotations")], 0), *taken], type_ignores=[]
    )
    exec(compile(ast.fix_missing_locations(module), str(path), "exec"), namespace)
    return namespace


class Fast(transformers.PreTrainedTokenizerFast):
    """With the defaults of the versions that the functions were written for: a rendering is ids alone."""

    def apply_chat_template(self, *args, **kwargs):
        kwargs.setdefault("return_dict", False)
        return super().apply_chat_template(*args, **kwargs)


def tokenizer(path: Path, template: str) -> Fast:
    tokens = dict(bos_token=END, eos_token=END, pad_token="<|padding|>")
    return Fast(tokenizer_file=str(path), chat_template=template, **tokens)


def row(ids: Any, labels: Any) -> dict[str, Any]:
    ids, labels = [int(id) for id in ids], [int(label) for label in labels]
    assert all(label in (-100, id) for id, label in zip(ids, labels, strict=True))
    return {"ids": ids, "trained": "".join("1" if label != -100 else "0" for label in labels)}


def masks(args: argparse.Namespace) -> list[dict[str, Any]]:
    namespace = lambda: {"torch": torch, "Any": Any, "Callable": Callable}
    august = functions(args.august, ["encode_with_messages_format"], namespace())["encode_with_messages_format"]
    october = functions(args.october, ["encode_sft_example"], namespace())["encode_sft_example"]
    tulu = functions(args.templates, ["CHAT_TEMPLATES"], namespace())["CHAT_TEMPLATES"]["tulu"]
    now = functions(
        args.now,
        ["MASKED_TOKEN_VALUE", "INPUT_IDS_KEY", "ATTENTION_MASK_KEY", "AssistantSpanDerivationError", "mask_labels",
         "_trainable_assistant_indices", "_assistant_token_spans_from_prefix_lengths",
         "_verify_assistant_spans_cover_content", "_tokenize_tulu_sft_with_assistant_labels"],
        namespace() | {"PreTrainedTokenizer": transformers.PreTrainedTokenizer},
    )
    spans, unknown = now["_tokenize_tulu_sft_with_assistant_labels"], now["AssistantSpanDerivationError"]
    # As --add_bos has it.
    tulu = "{{ bos_token }}" + tulu
    templates = {"tulu": tulu, "end last": END_LAST, "no prompt": NO_PROMPT, "spaced": SPACED, "marked": MARKED}
    rows = []
    ready = tokenizer(args.tokenizer, MARKED)
    for chat, messages in CHATS.items():
        # A block that begins with spaces is lost there: those letters have no token.
        if chat == "white space around":
            continue
        encoded = ready.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, trained = encoded["input_ids"], encoded["assistant_masks"]
        labels = [id if mask else -100 for id, mask in zip(ids, trained, strict=True)]
        rows.append({"encoder": "blocks", "template": "marked", "chat": chat, "limit": 4096} | row(ids, labels))
    for name, template in templates.items():
        if name == "marked":
            continue
        ready = tokenizer(args.tokenizer, template)
        for chat, messages in CHATS.items():
            for limit in [4096, 24, 9]:
                def add(encoder: str, encoded: Any) -> None:
                    rows.append({"encoder": encoder, "template": name, "chat": chat, "limit": limit} | encoded)
                example = {"messages": messages}
                if name == "tulu":
                    encoded = august(example, ready, limit, add_bos=True)
                    add("august", row(encoded["input_ids"], encoded["labels"]))
                if name != "no prompt":
                    encoded = october(example, ready, limit)
                    add("october", row(encoded["input_ids"], encoded["labels"]))
                for encoder, last in [("now", False), ("now, last", True)]:
                    try:
                        ids, _, labels = spans(messages, ready, None, limit, last)
                        add(encoder, row(ids[0], labels[0]))
                    except unknown as error:
                        add(encoder, {"dropped": type(error).__name__})
    return [{"templates": templates, "chats": CHATS}, rows]


def kto(path: Path) -> list[dict[str, Any]]:
    process = functions(path, ["_process_tokens"], {"Dict": dict, "Any": Any})["_process_tokens"]
    class Tokens:
        bos_token_id, eos_token_id = 1, 0
    draw, rows = random.Random(512), []
    for limit, most in [(512, 128), (20, 6), (20, 6), (20, 6), (20, 17), (5, 2)] * 3:
        prompt, answer = draw.randrange(1, 2 * limit), draw.randrange(1, 2 * limit)
        ids = [list(range(2, 2 + prompt)), list(range(1000, 1000 + answer))]
        example = {
            "prompt": "", "completion": "", "label": True, "prompt_input_ids": ids[0], "prompt_attention_mask": ids[0],
            "answer_input_ids": ids[1], "answer_attention_mask": ids[1],
        }
        kept = process(
            example, tokenizer=Tokens, max_length=limit, max_prompt_length=most, truncation_mode="keep_end",
            prefix="", is_encoder_decoder=False, label_pad_token_id=-100,
        )
        ids = kept["completion_input_ids"]
        first = next(at for at, label in enumerate(kept["completion_labels"]) if label != -100)
        rows.append({"prompt": prompt, "answer": answer, "limit": limit, "most": most, "ids": ids, "first": first})
    return rows


def packs() -> list[dict[str, Any]]:
    draw = random.Random(6198)
    cases = [([5, 2, 3, 1], 4), ([], 8), ([3], 8), ([8, 8, 8], 8), ([9, 17, 0, 4], 8)]
    # Lengths that differ, since the order of equal ones is not guaranteed.
    cases += [(draw.sample(range(1, 64), draw.randrange(2, 40)), limit) for limit in [16, 33, 48, 63]]
    rows = []
    for lengths, limit in cases:
        starts = [sum(lengths[:at]) for at in range(len(lengths))]
        ids = [list(range(start, start + length)) for start, length in zip(starts, lengths)]
        for strategy in ["bfd", "bfd_split"]:
            if not ids:
                continue
            packed = trl.pack_dataset(datasets.Dataset.from_dict({"input_ids": ids}), limit, strategy)[:]
            rows.append({"lengths": lengths, "limit": limit, "strategy": strategy} | packed)
    return rows


def shuffles() -> list[dict[str, Any]]:
    rows = []
    for count, seed in [(1, 42), (2, 42), (10, 42), (100, 42), (37, 6198)]:
        numbers = datasets.Dataset.from_dict({"x": list(range(count))})
        rows.append({"rows": count, "seed": seed, "order": numbers.shuffle(seed=seed)["x"][:]})
    return rows


def said(*contents: str | None) -> list[dict[str, str | None]]:
    return [{"role": role, "content": content} for role, content in zip(["user", "assistant"], contents)]


PARQUET = [
    {"id": 1, "messages": said("café", "真实"), "score": 0.5, "kept": True, "note": None},
    {"id": 2, "messages": [], "score": None, "kept": False, "note": "a\nb"},
    {"id": None, "messages": said(None), "score": -1.25, "kept": None, "note": ""},
] + [
    {"id": at, "messages": said("again and again") * (at % 3), "score": at / 4, "kept": at % 2 == 0, "note": "x" * at}
    for at in range(3, 40)
]


def parquet(check: bool) -> list[dict[str, Any]]:
    table = pyarrow.Table.from_pylist(PARQUET)
    folder = GOLDEN / "instruct"
    files = [("none", "1.0"), ("snappy", "1.0"), ("gzip", "2.0"), ("zstd", "1.0"), ("zstd", "2.0"), ("lz4", "1.0")]
    for compression, version in files:
        path = folder / f"{compression}_{version[0]}.parquet"
        if not check:
            folder.mkdir(exist_ok=True)
            pyarrow.parquet.write_table(
                table, path, compression=compression, data_page_version=version, row_group_size=16,
                use_dictionary=compression != "gzip",
            )
        elif pyarrow.parquet.read_table(path).to_pylist() != PARQUET:
            sys.exit(f"{path} holds other rows")
    return PARQUET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["august", "october", "templates", "now", "kto", "tokenizer"]:
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    [inputs, rows] = masks(args)
    versions = {module.__name__: module.__version__ for module in [transformers, trl, datasets, pyarrow]}
    golden = {
        "made_by": "tools/reference/make_golden_instruct.py", "versions": versions, **inputs, "masks": rows,
        "kto": kto(args.kto), "packs": packs(), "shuffles": shuffles(), "parquet": parquet(args.check),
    }
    # A row of a list is a line.
    lines = []
    for key, value in golden.items():
        if isinstance(value, list):
            inner = ",\n".join(json.dumps(item, ensure_ascii=False) for item in value)
            lines.append(f"{json.dumps(key)}: [\n{inner}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    out = GOLDEN / "instruct.json"
    if args.check:
        if out.read_text() != text:
            sys.exit(f"{out} differs")
        return
    out.write_text(text)
    print(f"{out}: {len(text)} bytes, {len(rows)} masks")


if __name__ == "__main__":
    main()
