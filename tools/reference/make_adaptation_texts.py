"""Texts of the suites after adaptation that are not in their data sets, under `crates/olmoe-eval/src/suites/adaptation/`:
the eight demonstrations of GSM8K, and the prompts of the judges of AlpacaEval and XSTest.

    python make_adaptation_texts.py --open-instruct <git directory of allenai/open-instruct> --alpaca-eval <wheel>

Both are under the Apache License 2.0; the notice is in each file. `--check` compares and writes nothing."""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

OUT = Path(__file__).resolve().parents[2] / "crates" / "olmoe-eval" / "src" / "suites" / "adaptation"
COMMIT = "0b0b13f61eae3ceddeb0d25ec851ea5e9d36ebbe"
JUDGES = {
    "alpaca_eval": "alpaca_eval/evaluators_configs/alpaca_eval_gpt4/alpaca_eval.txt",
    "alpaca_eval_2": "alpaca_eval/evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
}


def shots(repository: Path) -> dict:
    command = ["git", "-C", str(repository), "show", f"{COMMIT}:eval/gsm/examplars.py"]
    tree = ast.parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (assigned,) = [node for node in tree.body if isinstance(node, ast.Assign)]
    rows = ast.literal_eval(assigned.value)
    return {
        "notice": "The demonstrations of Wei et al. 2022 (arXiv 2201.11903), table 20, as open-instruct has them at commit "
        f"{COMMIT[:9]}, eval/gsm/examplars.py. Copyright Allen Institute for AI, Apache License 2.0.",
        "shots": [{"question": row["question"], "answer": row["cot_answer"]} for row in rows],
    }


def refusals(repository: Path) -> list:
    """The prompt that open-instruct tells refusals with."""
    command = ["git", "-C", str(repository), "show", f"{COMMIT}:eval/xstest/classify_refusal.py"]
    tree = ast.parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "create_clf_prompt"]
    names: dict = {}
    exec(compile(ast.Module([found], []), "open-instruct", "exec"), names)
    return [{"role": "user", "content": names["create_clf_prompt"]("{instruction}", "{output_1}")}]


def judges(wheel: Path, repository: Path) -> dict:
    found = {
        "notice": f"Prompts of AlpacaEval, from {wheel.name}, Copyright The Alpaca Team, and of open-instruct, commit {COMMIT[:9]}, "
        "Copyright Allen Institute for AI; both Apache License 2.0.",
        "xstest": refusals(repository),
    }
    with zipfile.ZipFile(wheel) as archive:
        for name, path in JUDGES.items():
            text = archive.read(path).decode()
            messages = re.findall(r"<\|im_start\|>(\w+)\n(.*?)\n?<\|im_end\|>", text, re.DOTALL)
            assert [role for role, _ in messages] == ["system", "user"]
            found[name] = [{"role": role, "content": content} for role, content in messages]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-instruct", type=Path, required=True)
    parser.add_argument("--alpaca-eval", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    files = {"gsm8k_shots.json": shots(arguments.open_instruct), "judges.json": judges(arguments.alpaca_eval, arguments.open_instruct)}
    for name, value in files.items():
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        if arguments.check:
            if (OUT / name).read_text() != text:
                sys.exit(f"{name}: differs")
        else:
            (OUT / name).write_text(text)


if __name__ == "__main__":
    main()
