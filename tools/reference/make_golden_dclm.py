"""Golden data of DCLM's tasks, `tests/golden/eval/dclm/ids.json`: the token ids that LLM Foundry's own classes make.

    pip download --no-deps llm-foundry==0.22.0     # unpacked to FOLDER
    git clone https://github.com/mosaicml/llm-foundry; git clone https://github.com/mlfoundations/dclm
    python make_golden_dclm.py --foundry FOLDER --tasks dclm/eval/heavy.yaml --data llm-foundry/scripts/eval/local_data \\
        --tokenizer allenai_gpt-neox-olmo-dolma-v1_5.json

Of each task whose file is in `tests/golden/eval/dclm`, or with `--whole FOLDER` of each whose file is in `--data`, then into
`FOLDER/ids.json`: the first 200 questions (of a task with categories, the first 12 of each): a hash of the
ids of each question, and the ids of the first and the last one. Besides, what the class of its metric makes of texts (`generation`).
Composer is replaced by the few functions that the classes call."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import struct
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import transformers
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden" / "eval" / "dclm"
QUESTIONS = 200
QUESTIONS_OF_CATEGORY = 12


def module(name: str, **content: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(content)
    sys.modules[name] = made
    return made


def load_foundry(folder: Path) -> types.ModuleType:
    """The module with the classes, without the packages around it."""

    @contextlib.contextmanager
    def wait(_path: str):
        yield

    dist = types.SimpleNamespace(
        local_rank_zero_download_and_wait=wait,
        get_local_rank=lambda: 0,
        all_gather_object=lambda item: [item],
    )
    none = types.SimpleNamespace
    module("composer")
    module("composer.core", DataSpec=none)
    module("composer.core.data_spec", _default_split_batch=None, _split_list=None)
    get_file = lambda source, target, overwrite: shutil.copyfile(source, target)
    module("composer.utils", MissingConditionalImportError=ImportError, dist=dist, get_file=get_file)
    module("torchmetrics", Metric=object)
    registry = module("llmfoundry.registry")
    module("llmfoundry", registry=registry).__path__ = [str(folder / "llmfoundry")]
    for name in ["eval", "eval.datasets", "eval.metrics", "utils"]:
        module(f"llmfoundry.{name}").__path__ = [str(folder / "llmfoundry" / name.replace(".", "/"))]
    module("llmfoundry.utils.registry_utils", construct_from_registry=None)
    import llmfoundry.eval.datasets.in_context_learning_evaluation as foundry

    return foundry


def ids_of(example: dict[str, Any], context_key: str) -> list[list[list[int]]]:
    """Pairs of context and continuation, one a choice; a continuation is empty where text is generated."""
    rows = example[context_key]
    spans = example.get("continuation_indices")
    if spans is None:
        return [[rows, []]]
    if isinstance(rows[0], int):
        rows, spans = [rows], [spans]
    return [[row[: span[0]], row[span[0] :]] for row, span in zip(rows, spans)]


def hashed(pairs: list[list[list[int]]]) -> str:
    sha = hashlib.sha256()
    for pair in pairs:
        for ids in pair:
            sha.update(struct.pack(f"<{len(ids) + 1}I", len(ids), *ids))
    return sha.hexdigest()[:8]


def questions(foundry: Any, task: dict[str, Any], path: Path, tokenizer: Any, count: int) -> dict[str, Any]:
    """The questions of one file."""
    kind = {
        "multiple_choice": foundry.InContextLearningMultipleChoiceTaskDataset,
        "schema": foundry.InContextLearningSchemaTaskDataset,
        "language_modeling": foundry.InContextLearningLMTaskDataset,
        "generation_task_with_answers": foundry.InContextLearningGenerationTaskWithAnswersDataset,
    }[task["icl_task_type"]]
    settings = {"continuation_delimiter", "cot_delimiter", "early_stopping_criteria"}
    settings = {key: value for key, value in task.items() if key in settings}
    if "question_prelimiter" in task:
        settings["prelimiter"] = task["question_prelimiter"]
    with tempfile.TemporaryDirectory() as folder:
        data = kind(
            dataset_uri=str(path),
            tokenizer=tokenizer,
            max_seq_len=2048,
            pad_tok_id=1,
            num_fewshot=task["num_fewshot"][0],
            destination_path=f"{folder}/data.jsonl",
            **settings,
        )
        whole = data.dataset
        pairs = []
        # Shots come from the whole set; only the first questions are prepared.
        for index in range(min(count, len(whole))):
            example = data._prep_example(whole[index], index, data.num_fewshot, data.prompt_string, data.fewshot_rng)
            pairs.append(ids_of(example, data.context_key))
    out = {"rows": len(whole), "hashes": " ".join(map(hashed, pairs)), "first": pairs[0], "last": pairs[-1]}
    if "generate" in str(data.base_batch.get("mode")):
        out["max_new_tokens"] = data.base_batch["generation_kwargs"]["max_new_tokens"]
    return out


def task_golden(foundry: Any, task: dict[str, Any], data: Path, whole: bool, tokenizer: Any) -> dict[str, Any] | None:
    name = task["dataset_uri"].removeprefix("local_data/")
    path = data / name if whole else FOLDER / Path(name).name
    if not path.exists():
        return None
    if not task.get("has_categories"):
        return questions(foundry, task, path, tokenizer, QUESTIONS)
    parts: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        parts.setdefault(json.loads(line)["category"], []).append(line)
    out = {}
    for category in sorted(parts):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part.jsonl"
            part.write_text("\n".join(parts[category]) + "\n")
            of_category = questions(foundry, task, part, tokenizer, QUESTIONS_OF_CATEGORY)
            out[category] = {key: of_category[key] for key in ["rows", "hashes"]}
    return {"categories": out}


def generation() -> list[dict[str, Any]]:
    """What counts as a right answer."""
    import llmfoundry.eval.metrics.nlp as nlp

    metric = nlp.InContextLearningGenerationExactMatchAccuracy.__new__(nlp.InContextLearningGenerationExactMatchAccuracy)
    texts = [
        (" Onion\nQuestion: ", ["Onion", "Allium cepa"], ""),
        (" the onions of Spain", ["Onion"], ""),
        (" red onion", ["Onion"], ""),
        (" The_Beatles", ["Beatles"], ""),
        ("A. A. Milne", ["a a milne", "Alan Alexander Milne"], ""),
        ("A. Milne", ["Milne"], ""),
        ("9 * 2 = 18 #### 18", ["18"], " #### "),
        ("9 * 2 = 18 #### 180", ["18"], " #### "),
        ("9 * 2 = 18 #### 1", ["18"], " #### "),
        ("18", ["18"], " #### "),
        ("one #### 5 #### 18", ["18"], " #### "),
        ("so it is -18", ["18"], " #### "),
        ("#### -18", ["18"], " #### "),
        ("... #### 5(√3 + 1)", ["5(√3 + 1)"], " #### "),
        ("‘quoted’ ´text` !", ["quoted text"], ""),
        ("«guillemets»", ["guillemets"], ""),
        ("", ["anything"], ""),
        ("anything", ["", "x"], ""),
        ("anything", ["the"], ""),
        ("anthem", ["an them"], ""),
        ("ÉCOLE İstanbul", ["école i̇stanbul"], ""),
        ("the\u00a0theatre\u2003an\x1fapple", ["theatre apple"], ""),
        ("a'theory", ["theory"], ""),
        ("a\u0301 b", ["b"], ""),
        ("the2 one", ["2"], ""),
    ]
    import torch

    out = []
    for text, aliases, delimiter in texts:
        metric.correct = torch.tensor(0.0)
        metric.total = torch.tensor(0.0)
        empty = ["cleaned_output", "original_label", "cleaned_label", "result"]
        metric.metric_result_dict = {key: [] for key in empty}
        metric.update({"cot_delimiter": delimiter}, [text], [aliases])
        normal = metric.normalize_answer(text)
        row = {"text": text, "aliases": aliases, "delimiter": delimiter, "normal": normal, "right": int(metric.correct)}
        out.append(row)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--foundry", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--only", help="only these tasks, with commas between them")
    parser.add_argument("--whole", type=Path, help="the folder of the result, of all files in --data")
    parser.add_argument("--check", action="store_true", help="compare with the file and write nothing")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    foundry = load_foundry(arguments.foundry)
    # What is compared are the ids, without padding.
    foundry.make_padded_input = lambda context, continuation, *_: context + continuation
    foundry.get_continuation_span = lambda context, continuation: [len(context), len(context) + len(continuation)]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_file(str(arguments.tokenizer)),
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
    )
    tasks = yaml.safe_load(arguments.tasks.read_text())["icl_tasks"]
    made = {}
    for task in tasks:
        if arguments.only and task["label"] not in arguments.only.split(","):
            continue
        golden = task_golden(foundry, task, arguments.data, bool(arguments.whole), tokenizer)
        print(task["label"], "without data" if golden is None else "made", flush=True)
        if golden is not None:
            made[task["label"]] = golden
    versions = {"llm-foundry": "0.22.0", "transformers": transformers.__version__, "datasets": datasets.__version__}
    file = (arguments.whole or FOLDER) / "ids.json"
    out = {"versions": versions, "generation": generation(), "tasks": made}
    text = json.dumps(out, separators=(",", ":"), ensure_ascii=False) + "\n"
    if arguments.check:
        sys.exit(None if file.read_text() == text else f"{file} differs")
    file.write_text(text)


if __name__ == "__main__":
    main()
