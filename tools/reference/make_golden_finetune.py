"""Two steps of fine-tuning a small OLMoE with all parameters, by trl's trainers, for the tests of olmoe-train.

    python tools/reference/make_golden_finetune.py            # writes tests/golden/finetune: see finetune_io.py
    python tools/reference/make_golden_finetune.py --check    # compares with the files, writes nothing

Wants trl 1.16.0, transformers 5.23.0, datasets 5.2.0, accelerate 1.15.0. `sft.json`, `preference.json` (DPO with every
loss, CPO, ORPO, SimPO; open-instruct's losses by their definitions) and `kto.json`. AdamW with torch's defaults but for
the learning rate, which is constant; the gradients' norm is clipped to 1, trl's default.

In all but the cases named so, the reference is another model than the policy, so that the first step already has
log-ratios other than 0. What trl logs of a step in parts is the mean over the parts of their means, so that parts of other
lengths would count the same: `whole` names a case without parts whose first step has the right ones. Trl's ORPO takes the cross-entropy over prompt and answer: its rows have prompts of one token,
which is no target, so that this is the cross-entropy of the answer.
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
import torch.nn.functional as F
import transformers
import trl
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

LEARNING_RATE = 3e-3
ROWS = {"sft": {"conversations": io.conversations(1)}, "preference": {"pairs": io.pairs(2), "short_prompts": io.pairs(3, 1)},
        "kto": {"answers": io.answers(16)}}
UNLOGGED = ("loss", "epoch", "grad_norm", "train_runtime", "train_loss")


def recorded(trainer_class: type) -> type:
    """The trainer, which keeps of every step what it differentiated and what it logged."""

    class Recorded(trainer_class):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset if dataset is None else dataset)

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            self.__dict__.setdefault("micro_losses", []).append(loss.item())
            return loss

        def log(self, logs, *args, **kwargs):
            super().log(logs, *args, **kwargs)
            if "grad_norm" in logs:
                metrics = {key: value for key, value in logs.items() if key not in UNLOGGED}
                step = {"loss": sum(self.micro_losses), "grad_norm": float(logs["grad_norm"]), "metrics": metrics}
                self.__dict__.setdefault("recorded_steps", []).append(step)
                self.micro_losses.clear()

    return Recorded


def arguments(config: type, work: Path, batch: tuple[int, int], settings: dict):
    common = dict(
        output_dir=str(work / "run"), max_steps=2, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", logging_steps=1,
        per_device_train_batch_size=batch[0], gradient_accumulation_steps=batch[1], save_strategy="no", report_to=[],
        use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None, disable_tqdm=True, seed=1, optim="adamw_torch",
    )
    return config(**{**common, **settings})


def check_rows(dataset: Dataset, given: list[dict]) -> None:
    """That the trainer has made the intended tokens of texts: an end of each answer, and no other."""
    for made, row in zip(dataset, given, strict=True):
        if "prompt" not in row:
            continue
        found = {answer: made.get(f"{answer}_input_ids") or made["prompt_ids"] + made[f"{answer}_ids"]
                 for answer in ("chosen", "rejected", "completion") if answer in row}
        for answer, ids in found.items():
            if io.words(ids) != row["prompt"] + row[answer]:
                raise RuntimeError(f"{row['prompt']}{row[answer]} has become {io.words(ids)}")


def run(trainer_class, config, work: Path, name: str, rows: list[dict], batch=(4, 1), settings={}, reference=None, shown=None):
    """Two steps. `settings` are given to the trainer, those in `shown` alone are written where they differ."""
    model = io.load(work / "policy")
    given = {} if reference is None else {"ref_model": io.load(work / reference)}
    margins = io.Margins(model)
    before = {key: value.clone() for key, value in io.canonical(dict(model.named_parameters())).items()}
    trainer = recorded(trainer_class)(
        model=model, args=arguments(config, work, batch, settings), train_dataset=Dataset.from_list(rows), **given
    )
    trainer.remove_callback(PrinterCallback)
    check_rows(trainer.train_dataset, rows)
    trainer.train()
    after = io.canonical(dict(model.named_parameters()))
    margins.check(name)
    if len(trainer.recorded_steps) != 2:
        raise RuntimeError(f"{name}: {len(trainer.recorded_steps)} steps")
    print(name, [round(step["loss"], 5) for step in trainer.recorded_steps], [round(step["grad_norm"], 3) for step in trainer.recorded_steps], f"margin {margins.least:.1e}")
    written = settings if shown is None else shown
    return {
        "name": name, "by": f"trl {trainer_class.__name__}", "settings": written, "micro_batch": batch[0],
        "accumulation": batch[1], "steps": trainer.recorded_steps, "changes": io.changes(before, after),
    }


def sft_cases(work: Path) -> list[dict]:
    rows, cases = ROWS["sft"]["conversations"], []
    plain = dict(router_aux_loss_coef=0.0)
    aux = dict(router_aux_loss_coef=0.01)
    for name, batch, settings in [
        ("whole_batch", (4, 1), plain),
        ("accumulated", (1, 4), plain),
        ("dft", (2, 2), plain | dict(loss_type="dft")),
        ("aux", (4, 1), aux),
        ("aux_accumulated", (2, 2), aux),
        ("padding_free", (4, 1), plain | dict(padding_free=True)),
        ("padding_free_aux", (4, 1), aux | dict(padding_free=True)),
        ("unclipped_decayed", (2, 2), plain | dict(max_grad_norm=0.0, weight_decay=0.1, adam_beta2=0.95)),
    ]:
        cases.append(run(SFTTrainer, SFTConfig, work, name, rows, batch, settings) | {"rows": "conversations"})
    return in_parts(cases, {"accumulated": "whole_batch", "dft": "whole_batch", "aux_accumulated": "aux", "unclipped_decayed": "whole_batch"})


def in_parts(cases: list[dict], whole: dict[str, str]) -> list[dict]:
    """Names the case whose first step has the metrics of one in parts."""
    assert {case["name"] for case in cases if case["accumulation"] > 1} == whole.keys()
    return [case | ({"whole": whole[case["name"]]} if case["name"] in whole else {}) for case in cases]


def dpo_settings() -> dict[str, dict]:
    plain = ["sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down",
             "discopop", "sigmoid_norm", "sft"]
    found = {name: dict(loss_type=[name]) for name in plain}
    found |= {name: dict(loss_type=[name], label_smoothing=0.1) for name in ("robust", "exo_pair")}
    # A beta with which losses are well bent.
    found["sigmoid_bent"] = dict(beta=0.7)
    found["aot_smoothed"] = dict(loss_type=["aot"], label_smoothing=0.1, beta=0.5)
    # With a beta of 0.5 two of these have a gradient below 1e-8 in the first step, which is mostly rounding, and AdamW a step of
    # its own.
    for name, beta in (("forward_kl", 0.6), ("js_divergence", 0.5), ("alpha_divergence", 0.6)):
        found[name] = dict(f_divergence_type=name, beta=beta)
    found["hinge_js"] = dict(loss_type=["hinge"], f_divergence_type="js_divergence", beta=0.5)
    found["ld_alpha"] = dict(ld_alpha=0.3, beta=0.5)
    found["ld_alpha_ipo"] = dict(loss_type=["ipo"], ld_alpha=0.3, beta=0.5)
    found["weighted"] = dict(use_weighting=True, beta=0.5)
    found["mix"] = dict(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    found["mix_weighted"] = dict(loss_type=["ipo", "apo_zero"], loss_weights=[0.5, 2.0], use_weighting=True)
    return found


def preference_cases(work: Path) -> list[dict]:
    rows = io.as_text(ROWS["preference"]["pairs"])
    cases = []
    for name, settings in dpo_settings().items():
        given = settings | dict(router_aux_loss_coef=0.0)
        cases.append(run(DPOTrainer, DPOConfig, work, name, rows, (4, 1), given, "reference", settings))
    for name, batch, settings, reference in [
        ("accumulated", (2, 2), dict(beta=0.5), "reference"),
        ("aux", (4, 1), dict(router_aux_loss_coef=0.01), "reference"),
        ("aux_accumulated", (2, 2), dict(router_aux_loss_coef=0.01), "reference"),
        ("start_is_reference", (4, 1), {}, None),
        ("start_is_reference_aux", (4, 1), dict(router_aux_loss_coef=0.01), None),
        ("precomputed", (4, 1), dict(precompute_ref_log_probs=True), None),
    ]:
        given = dict(router_aux_loss_coef=0.0) | settings
        cases.append(run(DPOTrainer, DPOConfig, work, name, rows, batch, given, reference, settings))
    cases = [case | {"rows": "pairs"} for case in in_parts(cases, {"accumulated": "weighted", "aux_accumulated": "aux"})]
    short = io.as_text(ROWS["preference"]["short_prompts"])
    orpo = run(ORPOTrainer, ORPOConfig, work, "orpo", short, settings=dict(max_length=64), shown=dict(beta=0.1))
    cpo = [
        run(CPOTrainer, CPOConfig, work, name, rows, settings=settings | dict(max_length=64), shown=shown)
        for name, settings, shown in [
            ("cpo", dict(), dict(beta=0.1, cpo_alpha=1.0)),
            ("cpo_smoothed", dict(label_smoothing=0.1, cpo_alpha=0.3, beta=0.5), dict(label_smoothing=0.1, cpo_alpha=0.3, beta=0.5)),
            ("simpo", dict(loss_type="simpo", beta=2.0, simpo_gamma=0.6, cpo_alpha=0.0), dict(beta=2.0, gamma_beta_ratio=0.3)),
        ]
    ]
    for case in cpo:
        case["settings"]["loss_type"] = ["simpo" if case["name"] == "simpo" else "cpo"]
    orpo["settings"]["loss_type"] = ["orpo"]
    return cases + [orpo | {"rows": "short_prompts"}] + [case | {"rows": "pairs"} for case in cpo] + open_instruct_cases(work)


def batch_of(rows: list[dict], keys: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask and labels, the answers of the first key before those of the second."""
    sequences = [(row["prompt_ids"], row[key]) for key in keys for row in rows]
    width = max(len(p) + len(a) for p, a in sequences)
    ids = torch.full((len(sequences), width), io.PAD)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for at, (prompt, answer) in enumerate(sequences):
        length = len(prompt) + len(answer)
        ids[at, :length] = torch.tensor(prompt + answer)
        mask[at, :length] = 1
        labels[at, len(prompt) : length] = torch.tensor(answer)
    return ids, mask, labels


def log_probs(model, ids, mask, labels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each target the log-probability and the logarithm of the sum of squared probabilities, [N, S]; and which count."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    counted = labels[:, 1:] != -100
    logp = logits.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return logp * counted, (2 * logits).logsumexp(-1) * counted, counted


def two_steps(model, loss_of, rate: float = LEARNING_RATE) -> list[dict]:
    """AdamW with clipping to 1; `loss_of(step)` gives the loss and the metrics of a step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    steps = []
    for step in range(2):
        loss, metrics = loss_of(step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps.append({"loss": loss.item(), "grad_norm": norm.item(), "metrics": metrics})
    return steps


def open_instruct_cases(work: Path) -> list[dict]:
    """Open-instruct's losses, its metrics' names, and its sum over tokens, from their definitions."""
    rows, cases = ROWS["preference"]["pairs"], []
    for name, settings in [
        ("dpo", dict(label_smoothing=0.1, beta=0.5)),
        ("dpo_norm", dict(beta=5.0)),
        ("dpo_norm", dict(beta=5.0, label_smoothing=0.1)),
        ("simpo", dict(beta=2.0, gamma_beta_ratio=0.3)),
        ("simpo", dict(beta=2.0, gamma_beta_ratio=0.5, label_smoothing=0.1)),
        ("wpo", dict(beta=0.5)),
    ]:
        beta, epsilon = settings["beta"], settings.get("label_smoothing", 0.0)
        model, reference = io.load(work / "policy"), io.load(work / "reference")
        margins = io.Margins(model)
        before = {key: value.clone() for key, value in io.canonical(dict(model.named_parameters())).items()}

        def loss_of(step: int):
            batch = batch_of(rows[4 * step : 4 * step + 4], ("chosen_ids", "rejected_ids"))
            logp, squares, counted = log_probs(model, *batch)
            with torch.no_grad():
                ref, _, _ = log_probs(reference, *batch)
            divisor = counted.sum(1) if name in ("dpo_norm", "simpo") else 1
            (c, r), (ref_c, ref_r) = (logp.sum(1) / divisor).chunk(2), (ref.sum(1) / divisor).chunk(2)
            x = c - r - settings["gamma_beta_ratio"] if name == "simpo" else (c - r) - (ref_c - ref_r)
            losses = -F.logsigmoid(beta * x) * (1 - epsilon) - F.logsigmoid(-beta * x) * epsilon
            if name == "wpo":
                weights = ((logp - squares).detach().sum(1) / counted.sum(1)).exp().chunk(2)
                losses = losses * (weights[0] * weights[1]).clamp(max=1.0)
            # Without a reference, SimPO's rewards are beta times the log-probabilities.
            rewards = [beta * (a if name == "simpo" else a - b).detach() for a, b in ((c, ref_c), (r, ref_r))]
            metrics = {
                "rewards/chosen": rewards[0].mean().item(), "rewards/rejected": rewards[1].mean().item(),
                "rewards/average": (rewards[0].mean() + rewards[1].mean()).item() / 2,
                "rewards/accuracy": (rewards[0] > rewards[1]).float().mean().item(),
                "rewards/margin": (rewards[0] - rewards[1]).mean().item(),
                "logps/chosen": c.mean().item(), "logps/rejected": r.mean().item(), "train_loss": losses.mean().item(),
            }
            return losses.mean(), metrics

        steps = two_steps(model, loss_of)
        margins.check(name)
        after = io.canonical(dict(model.named_parameters()))
        full = f"open_instruct_{name}" + ("_smoothed" if epsilon else "")
        print(full, [step["loss"] for step in steps])
        cases.append({
            "name": full, "by": "its definition", "settings": settings | {"loss_type": [name]}, "micro_batch": 4,
            "accumulation": 1, "steps": steps, "changes": io.changes(before, after), "rows": "pairs",
        })
    return cases


def reductions(work: Path) -> list[dict]:
    """SFT with the loss summed over tokens, mean over two micro-batches, as OLMoE's was tuned; and with mean losses of
    sequences and of micro-batches. Logged is what was differentiated."""
    rows, cases = ROWS["sft"]["conversations"], []
    for name in ("sum", "micro_mean", "sequence_mean"):
        model = io.load(work / "policy")
        margins = io.Margins(model)
        before = {key: value.clone() for key, value in io.canonical(dict(model.named_parameters())).items()}

        def loss_of(step: int):
            loss = 0.0
            for micro in range(2):
                some = rows[4 * step + 2 * micro :][:2]
                ids, mask, labels = batch_of([{"prompt_ids": [], "ids": row["input_ids"]} for row in some], ("ids",))
                for at, row in enumerate(some):
                    labels[at, : len(row["labels"])] = torch.tensor(row["labels"])
                logp, _, counted = log_probs(model, ids, mask, labels)
                divisor = {"sum": 2, "micro_mean": 2 * counted.sum(), "sequence_mean": 4 * counted.sum(1)}[name]
                loss = loss - (logp.sum(1) / divisor).sum()
            return loss, {}

        steps = two_steps(model, loss_of)
        margins.check(name)
        print(name, [step["loss"] for step in steps])
        cases.append({
            "name": f"reduce_{name}", "by": "its definition", "settings": {"reduce_loss": name}, "micro_batch": 2,
            "accumulation": 2, "steps": steps, "changes": io.changes(before, io.canonical(dict(model.named_parameters()))),
            "rows": "conversations",
        })
    return cases


def kto_cases(work: Path) -> list[dict]:
    rows, cases = io.as_text(ROWS["kto"]["answers"]), []
    for name, batch, settings, reference in [
        ("kto", (4, 1), {}, "reference"),
        ("kto_bent", (4, 1), dict(beta=0.7, desirable_weight=1.2, undesirable_weight=0.8), "reference"),
        # The estimate is of each micro-batch, some of which have answers of one kind alone.
        ("kto_accumulated", (2, 2), dict(beta=0.5), "reference"),
        ("kto_aux", (4, 1), dict(router_aux_loss_coef=0.01), "reference"),
        ("kto_start_is_reference", (4, 1), {}, None),
        ("kto_precomputed", (4, 1), dict(precompute_ref_log_probs=True), None),
        ("apo_zero_unpaired", (4, 1), dict(loss_type="apo_zero_unpaired", beta=0.5), "reference"),
    ]:
        given = dict(router_aux_loss_coef=0.0) | settings
        cases.append(run(KTOTrainer, KTOConfig, work, name, rows, batch, given, reference, settings) | {"rows": "answers"})
    return in_parts(cases, {"kto_accumulated": "apo_zero_unpaired"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    versions = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0], "trl": trl.__version__,
                "transformers": transformers.__version__, "datasets": datasets.__version__}
    work = Path(tempfile.mkdtemp())
    io.save_models(work)
    for kind, cases in [("sft", lambda: sft_cases(work) + reductions(work)), ("preference", lambda: preference_cases(work)), ("kto", lambda: kto_cases(work))]:
        head = {"made_by": "tools/reference/make_golden_finetune.py", "versions": versions, "learning_rate": LEARNING_RATE, "rows": ROWS[kind]}
        path = io.DIRECTORY / f"{kind}.json"
        if check:
            found = io.differences(path, head, cases())
            print(f"{path.name}: {found[:10] or 'the same'}")
        else:
            io.write(path, head, cases())
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
