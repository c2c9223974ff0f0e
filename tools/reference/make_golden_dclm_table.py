"""Golden data of DCLM's numbers and tables, in `tests/golden/eval/dclm`: `evaluations.json`, what DCLM publishes of four
models (results per task, and Core and Extended by both tables of baselines), and `table.tsv` and `table.tex`, what the
script of OLMoE makes of them.

    git clone https://github.com/mlfoundations/dclm; git clone https://github.com/allenai/OLMoE
    pip install pandas==3.1.1 jinja2==3.1.6
    python make_golden_dclm_table.py --evaluations dclm/exp_data/evals --script OLMoE/scripts/make_table.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden" / "eval" / "dclm"
# The script takes these files; their content is that of other models here.
MODELS = {
    "OLMoE-7B-A1B-main": "evaluation_Qwen_Qwen2-7B.json",
    "OLMoE-7B-A1B-step1220000-tokens5117B": "gemma7b_heavy.json",
    "OLMoE-7B-A1B-step1223842-tokens5100B": "gemma2b_heavy.json",
    "OLMo-1B-0724-hf": "evaluation_falcon_7b_heavy.json",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=Path, required=True)
    parser.add_argument("--script", type=Path, required=True)
    arguments = parser.parse_args()
    golden = {}
    script = arguments.script.resolve()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results" / "dclm"
        results.mkdir(parents=True)
        for model, file in MODELS.items():
            whole = json.loads((arguments.evaluations / file).read_text())
            (results / f"heavy-{model}.json").write_text(json.dumps(whole))
            averages = {key: whole[key] for key in ["Core_v1", "Core_v2", "Extended_v1", "Extended_v2"]}
            tasks = dict(sorted(whole["eval_metrics"]["icl"].items()))
            golden[model] = {"tasks": tasks, **averages}
        subprocess.run([sys.executable, str(script)], cwd=folder, check=True, env=os.environ)
        for kind in ["tsv", "tex"]:
            text = (Path(folder) / "results" / f"dclm-table.{kind}").read_text()
            (FOLDER / f"table.{kind}").write_text(text)
    (FOLDER / "evaluations.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
