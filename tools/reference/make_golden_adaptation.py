"""Golden prompts of the suites after adaptation, `crates/olmoe-eval/tests/golden/adaptation.json`: what open-instruct's own
statements make of the data, as CRC-32 of each prompt in UTF-8 and the first prompt of each set whole.

    python make_golden_adaptation.py --open-instruct <git directory> --data <folder with raw/ and datasets/>

The statements are taken out of `main` of its programs at commit 0b0b13f61, since those need a GPU. The files of BIG-Bench
Hard are given to it sorted. The template is that of Tulu, by its own function. `--check` compares and writes nothing."""

from __future__ import annotations

import argparse
import ast
import glob
import gzip
import json
import os
import random
import re
import shutil
import sys
import tarfile
import tempfile
import types
import zlib
from pathlib import Path

import pandas as pd
from make_golden_answers import COMMIT, functions, run, source

OUT = Path(__file__).resolve().parents[2] / "crates" / "olmoe-eval" / "tests" / "golden" / "adaptation.json"


def body(tree: ast.Module) -> list[ast.stmt]:
    """The statements of `main`."""
    (found,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    return [node for node in found.body if not isinstance(node, ast.Global)]


def program(statements: list[ast.stmt]) -> ast.Module:
    return ast.fix_missing_locations(ast.Module(statements, []))


def crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def golden(prompts: list[str]) -> dict:
    return {"first": prompts[0], "prompts": [crc(prompt) for prompt in prompts]}


def template(repository: Path):
    names = run(functions(source(repository, "eval/templates.py"), {"create_prompt_with_tulu_chat_format"}))
    return names["create_prompt_with_tulu_chat_format"]


def gsm8k(repository: Path, data: Path, folder: Path, chat) -> dict:
    (folder / "gsm").mkdir()
    with gzip.open(data / "raw" / "gsm8k_test.jsonl.gz") as packed, (folder / "gsm" / "test.jsonl").open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    statements = body(source(repository, "eval/gsm/run_eval.py"))
    end = next(at for at, node in enumerate(statements) if isinstance(node, ast.If) and ast.unparse(node.test) == "args.use_chat_format")
    exemplars = run(source(repository, "eval/gsm/examplars.py"))["EXAMPLARS"]
    args = types.SimpleNamespace(
        data_dir=str(folder / "gsm"), save_dir=str(folder / "out"), max_num_examples=200, n_shot=8, no_cot=False, use_chat_format=True,
        chat_formatting_function="",
    )
    names = run(
        program(statements[: end + 1]), args=args, os=os, re=re, json=json, random=random, GSM_EXAMPLARS=exemplars,
        dynamic_import_function=lambda _: chat,
    )
    prompts = [names["apply_chat_format"](example, None) for example in names["test_data"]]
    return {**golden(prompts), "golds": [example["answer"] for example in names["test_data"]]}


def bbh(repository: Path, data: Path, folder: Path, chat) -> dict:
    with tarfile.open(data / "raw" / "bbh.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    shutil.copytree(folder / "bbh" / "tasks", folder / "bbh" / "bbh")
    tree = source(repository, "eval/bbh/run_eval.py")
    statements = body(tree)
    end = next(at for at, node in enumerate(statements) if isinstance(node, ast.Assert))
    args = types.SimpleNamespace(
        data_dir=str(folder / "bbh"), max_num_examples_per_task=40, no_cot=False, use_chat_format=True, chat_formatting_function="",
    )
    listed = types.SimpleNamespace(glob=lambda pattern: sorted(glob.glob(pattern)))
    quiet = types.SimpleNamespace(tqdm=lambda values, **_: values)
    names = run(program(statements[:end]), args=args, os=os, json=json, random=random, glob=listed, tqdm=quiet)
    (ask,) = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "args.use_chat_format" and "task_prompt" in ast.unparse(node)
    ]
    result = {}
    for task, examples in names["all_tasks"].items():
        asked = run(
            program([ask]), args=args, task_prompt=names["all_prompts"][task], task_examples=examples, tokenizer=None,
            dynamic_import_function=lambda _: chat,
        )
        result[task] = {**golden(asked["prompts"]), "golds": [example["target"] for example in examples]}
    return result


def mmlu(repository: Path, data: Path, chat) -> dict:
    tree = source(repository, "eval/mmlu/run_eval.py")
    names = run(functions(tree, {"format_subject", "format_example", "gen_prompt"}), choices=["A", "B", "C", "D"])
    subjects: dict[str, list] = {}
    with gzip.open(data / "datasets" / "mmlu.test.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            subjects.setdefault(row["subject"], []).append([row["question"], *row["choices"], "ABCD"[row["answer"]]])
    result = {}
    for subject, rows in sorted(subjects.items()):
        test = pd.DataFrame(rows, dtype=object)
        beginning = names["gen_prompt"](None, subject, 0)
        prompts = []
        for at in range(len(rows)):
            content = beginning + names["format_example"](test, at, include_answer=False)
            prompt = chat([{"role": "user", "content": content}], None, add_bos=False)
            prompts.append(prompt + ("The answer is:" if prompt[-1] in ["\n", " "] else " The answer is:"))
        result[subject] = {"first": prompts[0], "count": len(prompts), "all": crc("\0".join(prompts))}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-instruct", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    chat = template(arguments.open_instruct)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "made_by": f"tools/reference/make_golden_adaptation.py: open-instruct {COMMIT[:9]}",
            "gsm8k": gsm8k(arguments.open_instruct, arguments.data, Path(folder), chat),
            "bbh": bbh(arguments.open_instruct, arguments.data, Path(folder), chat),
            "mmlu": mmlu(arguments.open_instruct, arguments.data, chat),
        }
    text = json.dumps(found, indent=0, ensure_ascii=False) + "\n"
    if arguments.check:
        sys.exit(0 if OUT.read_text() == text else f"{OUT}: differs")
    OUT.write_text(text)
    print(len(text.encode()))


if __name__ == "__main__":
    main()
