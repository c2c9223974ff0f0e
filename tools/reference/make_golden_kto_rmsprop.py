"""Two steps of KTO with RMSprop by trl 0.9.6, which OLMoE's released models were aligned with.

    python3.12 -m venv venv-trl096
    venv-trl096/bin/pip install torch transformers==4.45.2 trl==0.9.6 peft==0.12.0 accelerate==0.34.2 datasets==2.21.0 \\
        tokenizers==0.20.3 huggingface-hub==0.25.2 numpy==1.26.4 pandas==2.2.3
    venv-trl096/bin/python tools/reference/make_golden_kto_rmsprop.py    # --check compares, writes nothing

Writes `tests/golden/finetune/kto_rmsprop.json`; see finetune_io.py. The rows are in the order that the trainer gives
them: it shuffles with `data_seed` first, whatever the sampler. `mismatched` is the row whose answer each row is scored
with: answers are reversed in blocks of a whole step, all its micro-batches together, while the estimate is the mean over
each micro-batch; with one micro-batch a step, as OLMoE's models had, that is one and the same.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
from pathlib import Path

import finetune_io as io

import datasets
import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback
from trl import KTOConfig, KTOTrainer

LEARNING_RATE = 3e-4
DATA_SEED = 123


class Recorded(KTOTrainer):
    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.__dict__.setdefault("micro_losses", []).append(loss.item())
        return loss

    def log(self, logs):
        super().log(logs)
        if "grad_norm" in logs:
            metrics = {key: value for key, value in logs.items() if key not in ("loss", "epoch", "grad_norm")}
            step = {"loss": sum(self.micro_losses), "grad_norm": float(logs["grad_norm"]), "metrics": metrics}
            self.__dict__.setdefault("recorded_steps", []).append(step)
            self.micro_losses.clear()


def run(work: Path, name: str, batch: tuple[int, int], settings: dict) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(work / "policy")
    # As OLMoE's: a document begins with what ends one.
    tokenizer.bos_token = tokenizer.eos_token
    model, reference = io.load(work / "policy"), io.load(work / "reference")
    margins = io.Margins(model)
    before = {key: value.clone() for key, value in io.canonical(dict(model.named_parameters())).items()}
    args = KTOConfig(
        output_dir=str(work / "run"), max_steps=2, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", logging_steps=1,
        per_device_train_batch_size=batch[0], gradient_accumulation_steps=batch[1], save_strategy="no", report_to=[],
        use_cpu=True, gradient_checkpointing=False, max_length=64, max_prompt_length=32, disable_tqdm=True, seed=1,
        data_seed=DATA_SEED, optim="rmsprop", remove_unused_columns=False, **settings,
    )
    rows = Dataset.from_list(io.as_text(io.answers(16)))
    trainer = Recorded(model=model, ref_model=reference, args=args, train_dataset=rows, tokenizer=tokenizer)
    trainer.remove_callback(PrinterCallback)
    made, mismatched = [], []
    for row in trainer.train_dataset:
        prompt = row["prompt_input_ids"]
        made.append({"prompt_ids": prompt, "completion_ids": row["completion_input_ids"][len(prompt) :], "label": row["label"]})
        mismatched.append(row["KL_completion_input_ids"][len(row["KL_prompt_input_ids"]) :])
        assert row["KL_prompt_input_ids"] == prompt
    answers = [row["completion_ids"] for row in made]
    assert len({tuple(answer) for answer in answers}) == len(answers)
    trainer.train()
    margins.check(name)
    print(name, [step["loss"] for step in trainer.recorded_steps], [step["metrics"]["kl"] for step in trainer.recorded_steps])
    return {
        "name": name, "by": "trl KTOTrainer", "settings": settings, "micro_batch": batch[0], "accumulation": batch[1],
        "rows": "shuffled", "mismatched": [answers.index(answer) for answer in mismatched], "steps": trainer.recorded_steps,
        "changes": io.changes(before, io.canonical(dict(model.named_parameters()))), "made": made,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp())
    io.save_models(work)
    cases = [
        run(work, "rmsprop", (4, 1), {}),
        run(work, "rmsprop_bent", (4, 1), dict(beta=0.7, desirable_weight=1.2, undesirable_weight=0.8)),
    ]
    rows = cases[0]["made"]
    assert all(case.pop("made") == rows for case in cases)
    versions = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0], "trl": trl.__version__,
                "transformers": transformers.__version__, "datasets": datasets.__version__}
    head = {"made_by": "tools/reference/make_golden_kto_rmsprop.py", "versions": versions, "learning_rate": LEARNING_RATE,
            "optimizer": "rmsprop", "data_seed": DATA_SEED, "rows": {"shuffled": rows}}
    path = io.DIRECTORY / "kto_rmsprop.json"
    if check:
        print(f"{path.name}: {io.differences(path, head, cases)[:10] or 'the same'}")
    else:
        io.write(path, head, cases)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
