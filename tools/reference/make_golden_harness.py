"""Writes tests/golden/eval/harness/requests.json: what lm-evaluation-harness asks for the YAML tasks beside it.

    python tools/reference/make_golden_harness.py

Versions: lm-eval 0.4.13, datasets 5.2.0.
"""

import json
import pathlib

import yaml
from lm_eval.api.task import ConfigurableTask

folder = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/eval/harness"
golden = {}
for path in sorted(folder.glob("*.yaml")):
    config = yaml.safe_load(path.read_text())
    files = config["dataset_kwargs"]["data_files"]
    config["dataset_kwargs"] = {"data_files": {split: str(folder / file) for split, file in files.items()}}
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=None, rank=0, world_size=1, cache_requests=False)
    golden[config["task"]] = [
        {"document": instance.doc_id, "choice": instance.idx, "arguments": list(instance.args)} for instance in task.instances
    ]
(folder / "requests.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
