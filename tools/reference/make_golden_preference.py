"""Losses of preference tuning and their gradients for the tests of olmoe-train, by trl's own loss code.

    python tools/reference/make_golden_preference.py            # writes crates/olmoe-train/tests/golden/preference.json
    python tools/reference/make_golden_preference.py --check    # compares with the file, writes nothing

The loss methods of trl's DPOTrainer, KTOTrainer, CPOTrainer and ORPOTrainer are called with log-probabilities in place of a
model; gradients are torch's, with respect to the log-probability of each token. What trl 1.16 lacks is computed here from
its definition: open-instruct's label smoothing, `simpo` and `wpo`, and the running mean of `bco`.

`pairs`: answers with `logp`, `ref`, `log_sum_squares` of each token. `cases`: `settings` and `delta`, then `loss`, the
gradients `chosen` and `rejected` (a list an answer), `metrics` by trl's names, and the relative `tolerance` of the precision
that the reference computes in. `kto` has `answers`, the log-probabilities `kl` of mismatched ones under policy and reference,
and `cases` of its own. All inputs are numbers of f32.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
import trl
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

FILE = Path(__file__).resolve().parents[2] / "crates" / "olmoe-train" / "tests" / "golden" / "preference.json"
LENGTHS = [(5, 4), (3, 6), (7, 7), (1, 2), (4, 1), (6, 9)]
ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x)
NAMES = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "kl"}


def draw(generator: torch.Generator, count: int, low: float, high: float) -> list[float]:
    """Multiples of 1/256, which f32 and JSON hold exactly."""
    x = torch.rand(count, generator=generator, dtype=torch.float64) * (high - low) + low
    return [round(v * 256) / 256 for v in x.tolist()]


def make_answer(generator: torch.Generator, count: int) -> dict:
    logp = draw(generator, count, -3.0, -0.05)
    shift = draw(generator, count, -0.75, 0.75)
    return {
        "logp": logp,
        "ref": [min(a + b, 0.0) for a, b in zip(logp, shift)],
        "log_sum_squares": draw(generator, count, -2.5, -0.1),
    }


def padded(rows: list[list[float]], dtype: torch.dtype) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=dtype)


class Given(torch.nn.Module):
    """A model that returns its inputs."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs: torch.Tensor, square_sums: torch.Tensor | None = None, kl: torch.Tensor | None = None):
        super().__init__()
        self.log_probs, self.square_sums, self.kl = log_probs, square_sums, kl

    def forward(self, input_ids: torch.Tensor, **_):
        log_probs = self.kl if input_ids[0, 0] == 9 else self.log_probs
        zeros = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs, log_sum_sq_probs=self.square_sums, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )


def inputs_of(lengths: list[int]) -> dict[str, torch.Tensor]:
    """One token of a prompt before each answer."""
    width = max(lengths) + 1
    mask = torch.tensor([[0] + [1] * n + [0] * (width - 1 - n) for n in lengths])
    ids = torch.zeros_like(mask)
    return {"input_ids": ids, "attention_mask": torch.ones_like(mask), "completion_mask": mask}


def split(gradient: torch.Tensor, lengths: list[int]) -> list[list[float]]:
    return [row[:n].tolist() for row, n in zip(gradient, lengths)]


def result(loss: torch.Tensor, logp: torch.Tensor, lengths: list[int]) -> dict:
    (gradient,) = torch.autograd.grad(loss, logp)
    rows = split(gradient, lengths)
    half = len(rows) // 2
    return {"loss": loss.item(), "chosen": rows[:half], "rejected": rows[half:]}


SETTINGS = dict(
    loss_type=["sigmoid"], loss_weights=None, beta=0.1, label_smoothing=0.0, ld_alpha=None, f_divergence_type="reverse_kl",
    f_alpha_divergence_coef=0.5, discopop_tau=0.05, use_weighting=False, gamma_beta_ratio=0.3, cpo_alpha=1.0,
)


class Pairs:
    def __init__(self, pairs: list[dict], dtype: torch.dtype):
        answers = [pair["chosen"] for pair in pairs] + [pair["rejected"] for pair in pairs]
        self.lengths = [len(answer["logp"]) for answer in answers]
        self.logp, self.ref, self.squares = (
            padded([answer[key] for answer in answers], dtype) for key in ("logp", "ref", "log_sum_squares")
        )
        self.logp.requires_grad_()
        self.count = torch.tensor(self.lengths, dtype=dtype)

    def sums(self) -> tuple[torch.Tensor, ...]:
        return (*self.logp.sum(1).chunk(2), *self.ref.sum(1).chunk(2))

    def means(self) -> tuple[torch.Tensor, ...]:
        return (*(self.logp.sum(1) / self.count).chunk(2), *(self.ref.sum(1) / self.count).chunk(2))

    def nll(self) -> torch.Tensor:
        half = len(self.lengths) // 2
        return -self.logp[:half].sum() / sum(self.lengths[:half])


def trl_dpo(pairs: list[dict], settings: dict) -> dict:
    # For this divergence, trl has limits for f16, bf16 and f32 only.
    alpha = settings.get("f_divergence_type") == "alpha_divergence"
    data = Pairs(pairs, torch.float32 if alpha else torch.float64)
    s = {**SETTINGS, **settings}
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer.accelerator, trainer.aux_loss_enabled, trainer.precompute_ref_logps = ACCELERATOR, False, False
    trainer.beta, trainer.ld_alpha, trainer.label_smoothing = s["beta"], s["ld_alpha"], s["label_smoothing"]
    trainer.f_divergence_type, trainer.f_alpha_divergence_coef = s["f_divergence_type"], s["f_alpha_divergence_coef"]
    trainer.loss_types, trainer.loss_weights = s["loss_type"], s["loss_weights"] or [1.0] * len(s["loss_type"])
    trainer.use_weighting, trainer._total_train_tokens, trainer._tp_size = s["use_weighting"], 0, 1
    trainer.args = SimpleNamespace(discopop_tau=s["discopop_tau"], gradient_checkpointing_kwargs=None)
    trainer._metrics = {"train": defaultdict(list)}
    trainer.model, trainer.ref_model = Given(data.logp, data.squares), Given(data.ref)
    loss = trainer._compute_loss(trainer.model, inputs_of(data.lengths), False)
    out = result(loss, data.logp, data.lengths)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name in NAMES}
    # trl rounds the label smoothing of EXO to f32.
    tolerance = 3e-6 if alpha else 2e-7 if "exo_pair" in s["loss_type"] else 1e-12
    return {**out, "metrics": metrics, "tolerance": tolerance, "by": "trl DPOTrainer"}


def logistic(x: torch.Tensor, beta: float, epsilon: float) -> torch.Tensor:
    return -F.logsigmoid(beta * x) * (1 - epsilon) - F.logsigmoid(-beta * x) * epsilon


def defined(pairs: list[dict], settings: dict, delta: float = 0.0) -> dict:
    """Open-instruct's losses, and bco_pair's with a running mean."""
    data, s = Pairs(pairs, torch.float64), {**SETTINGS, **settings}
    beta, epsilon, name = s["beta"], s["label_smoothing"], s["loss_type"][0]
    c, r, ref_c, ref_r = data.means() if name in ("dpo_norm", "simpo") else data.sums()
    x = (c - r) - (ref_c - ref_r)
    if name == "simpo":
        loss = logistic(c - r - s["gamma_beta_ratio"], beta, epsilon)
    elif name == "wpo":
        weights = ((data.logp - data.squares).detach().sum(1) / data.count).chunk(2)
        loss = logistic(x, beta, epsilon) * (weights[0] + weights[1]).exp().clamp(max=1.0)
    elif name == "bco_pair":
        loss = -F.logsigmoid(beta * (c - ref_c) - delta) - F.logsigmoid(-(beta * (r - ref_r) - delta))
    else:
        loss = logistic(x, beta, epsilon)
    out = result(loss.mean(), data.logp, data.lengths)
    return {**out, "tolerance": 1e-12, "by": "its definition"}


def without_reference(pairs: list[dict], settings: dict) -> dict:
    """CPO and ORPO."""
    s, orpo = {**SETTINGS, **settings}, settings["loss_type"] == ["orpo"]
    data = Pairs(pairs, torch.float64)
    cls = ORPOTrainer if orpo else CPOTrainer
    trainer = cls.__new__(cls)
    trainer.accelerator, trainer.beta, trainer.label_smoothing = ACCELERATOR, s["beta"], s["label_smoothing"]
    trainer.alpha, trainer.loss_type, trainer.simpo_gamma = 0.0, "sigmoid", s["gamma_beta_ratio"] * s["beta"]
    if orpo:
        c, r, _, _ = data.means()
        losses, chosen, rejected, ratio, odds = trainer.odds_ratio_loss(c, r)
        loss = data.nll() - losses.mean()
        metrics = {"log_odds_ratio": ratio.item(), "log_odds_chosen": odds.item()}
    else:
        simpo = s["loss_type"] == ["simpo"]
        trainer.loss_type = "simpo" if simpo else "sigmoid"
        c, r, _, _ = data.means() if simpo else data.sums()
        losses, chosen, rejected = trainer.cpo_loss(c, r)
        loss = losses.mean() + (0.0 if simpo else s["cpo_alpha"] * data.nll())
        metrics = {}
    metrics |= {
        "rewards/chosen": chosen.mean().item(), "rewards/rejected": rejected.mean().item(),
        "rewards/accuracies": (chosen > rejected).double().mean().item(),
        "rewards/margins": (chosen - rejected).mean().item(),
        "logps/chosen": c.mean().item(), "logps/rejected": r.mean().item(),
    }
    if s["loss_type"] != ["simpo"]:
        metrics["nll_loss"] = data.nll().item()
    out = result(loss, data.logp, data.lengths)
    return {**out, "metrics": metrics, "tolerance": 3e-6 if orpo else 1e-12, "by": f"trl {cls.__name__}"}


def pair_cases(pairs: list[dict]) -> list[dict]:
    plain = ["sigmoid", "sigmoid_norm", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "aot",
             "aot_unpaired", "discopop", "sft"]
    by_trl = [dict(loss_type=[name]) for name in plain]
    by_trl += [dict(loss_type=[name], beta=1.5) for name in plain if name not in ("sft", "discopop")]
    by_trl += [dict(loss_type=[name], label_smoothing=0.1) for name in ("robust", "exo_pair", "aot", "aot_unpaired")]
    by_trl += [dict(loss_type=["exo_pair"], label_smoothing=1e-3, beta=0.7), dict(loss_type=["discopop"], discopop_tau=0.5, beta=0.3)]
    by_trl += [dict(loss_type=[name], ld_alpha=0.3, beta=0.4) for name in
               ("sigmoid", "sigmoid_norm", "ipo", "nca_pair", "sppo_hard", "apo_down", "aot", "aot_unpaired")]
    by_trl += [dict(ld_alpha=0.0), dict(ld_alpha=1.0)]
    for name in ("sigmoid", "sigmoid_norm", "hinge", "ipo", "discopop"):
        by_trl += [dict(loss_type=[name], f_divergence_type=f, beta=0.6) for f in ("forward_kl", "js_divergence", "alpha_divergence")]
    by_trl += [dict(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=a) for a in (-0.5, 1.0, 1.7)]
    by_trl += [dict(loss_type=[f], label_smoothing=0.2, f_divergence_type="forward_kl") for f in ("robust", "exo_pair")]
    by_trl += [dict(loss_type=[name], use_weighting=True) for name in ("sigmoid", "ipo", "apo_zero", "sppo_hard")]
    by_trl += [dict(use_weighting=True, ld_alpha=0.5, f_divergence_type="js_divergence")]
    by_trl += [dict(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]),
               dict(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0], ld_alpha=0.25),
               dict(loss_type=["robust", "aot", "ipo"], label_smoothing=0.1, beta=0.5)]
    cases = [{"settings": s, "delta": 0.0, **trl_dpo(pairs, s)} for s in by_trl]
    by_definition = [dict(loss_type=["dpo"], label_smoothing=0.2), dict(loss_type=["dpo_norm"], label_smoothing=0.2, beta=5.0),
                     dict(loss_type=["dpo"], beta=0.7), dict(loss_type=["simpo"], beta=2.0),
                     dict(loss_type=["simpo"], beta=2.5, gamma_beta_ratio=0.55, label_smoothing=0.1),
                     dict(loss_type=["wpo"]), dict(loss_type=["wpo"], beta=0.9, label_smoothing=0.1)]
    cases += [{"settings": s, "delta": 0.0, **defined(pairs, s)} for s in by_definition]
    cases.append({"settings": dict(loss_type=["bco_pair"]), "delta": 0.35, **defined(pairs, dict(loss_type=["bco_pair"]), 0.35)})
    others = [dict(loss_type=["orpo"]), dict(loss_type=["orpo"], beta=0.8), dict(loss_type=["cpo"]),
              dict(loss_type=["cpo"], cpo_alpha=0.3, beta=0.5, label_smoothing=0.1), dict(loss_type=["simpo"], beta=2.0)]
    return cases + [{"settings": s, "delta": 0.0, **without_reference(pairs, s)} for s in others]


def trl_kto(answers: list[dict], kl: list[list[float]], settings: dict) -> dict:
    lengths = [len(answer["logp"]) for answer in answers]
    logp, ref = (padded([answer[key] for answer in answers], torch.float64) for key in ("logp", "ref"))
    logp.requires_grad_()
    policy_kl, ref_kl = (torch.tensor(kl, dtype=torch.float64)[:, i, None] for i in (0, 1))
    trainer = KTOTrainer.__new__(KTOTrainer)
    trainer.accelerator, trainer.aux_loss_enabled, trainer.precompute_ref_logps = ACCELERATOR, False, False
    trainer.loss_type, trainer.beta = settings.get("loss_type", "kto"), settings.get("beta", 0.1)
    trainer.calculate_KL = trainer.loss_type == "kto"
    trainer.desirable_weight = settings.get("desirable_weight", 1.0)
    trainer.undesirable_weight = settings.get("undesirable_weight", 1.0)
    trainer.args = SimpleNamespace(gradient_checkpointing_kwargs=None)
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = {"train": defaultdict(list)}, 0, 1
    trainer.model, trainer.ref_model = Given(logp, kl=policy_kl), Given(ref, kl=ref_kl)
    inputs = inputs_of(lengths) | {f"KL_{key}": value for key, value in inputs_of([1] * len(kl)).items()}
    inputs["KL_input_ids"][:, 0] = 9
    inputs["label"] = torch.tensor([answer["desirable"] for answer in answers])
    loss = trainer._compute_loss(trainer.model, inputs, False)
    (gradient,) = torch.autograd.grad(loss, logp)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name in NAMES}
    return {"loss": loss.item(), "gradients": split(gradient, lengths), "metrics": metrics, "by": "trl KTOTrainer"}


def kto_cases(answers: list[dict], kl: list[list[float]]) -> list[dict]:
    everything = list(range(len(answers)))
    good = [i for i in everything if answers[i]["desirable"]]
    bad = [i for i in everything if not answers[i]["desirable"]]
    negative = [[b, a] for a, b in kl]
    cases = []
    for settings in (dict(), dict(beta=0.7, desirable_weight=1.33, undesirable_weight=0.5), dict(loss_type="apo_zero_unpaired", beta=0.3)):
        for rows, own in ((everything, kl), (everything, negative), (good, kl), (bad, kl)):
            measured = trl_kto([answers[i] for i in rows], own, settings)
            cases.append({"settings": settings, "rows": rows, "kl": own, "delta": 0.0, **measured})
    # The loss of trl 0.9.6's `loss_type="bco"`.
    lengths = [len(answer["logp"]) for answer in answers]
    logp, ref = (padded([answer[key] for answer in answers], torch.float64) for key in ("logp", "ref"))
    logp.requires_grad_()
    delta, sign = 0.2, torch.tensor([1.0 if answer["desirable"] else -1.0 for answer in answers])
    loss = -F.logsigmoid(sign * (0.1 * (logp - ref).sum(1) - delta)).mean()
    (gradient,) = torch.autograd.grad(loss, logp)
    cases.append({"settings": dict(loss_type="bco"), "rows": everything, "kl": kl, "delta": delta, "loss": loss.item(),
                  "gradients": split(gradient, lengths), "metrics": {}, "by": "its definition"})
    return cases


def make() -> dict:
    generator = torch.Generator().manual_seed(9206)
    pairs = [{"chosen": make_answer(generator, c), "rejected": make_answer(generator, r)} for c, r in LENGTHS]
    answers = [{**make_answer(generator, n), "desirable": bool(i % 3)} for i, n in enumerate([4, 2, 7, 1, 5])]
    for answer in answers:
        del answer["log_sum_squares"]
    kl = [[draw(generator, 1, -9.0, -8.0)[0], draw(generator, 1, -11.0, -9.0)[0]] for _ in answers]
    return {
        "made_by": f"tools/reference/make_golden_preference.py, trl {trl.__version__}, torch {torch.__version__}",
        "pairs": pairs,
        "cases": pair_cases(pairs),
        "kto": {"answers": answers, "cases": kto_cases(answers, kl)},
    }


def same(a, b) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)
    return a == b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    made = json.loads(json.dumps(made_now := make()))
    assert made == made_now
    if check:
        assert same(json.loads(FILE.read_text()), made), f"{FILE} differs"
        print("the same")
        return
    cases = made.pop("cases")
    kto = made["kto"].pop("cases")
    # One case per line.
    head = json.dumps(made)[:-1]
    kto_lines = ",\n".join(map(json.dumps, kto))
    lines = ",\n".join(map(json.dumps, cases))
    FILE.write_text(f'{head[:-1]}, "cases": [\n{kto_lines}]}},\n"cases": [\n{lines}]}}\n')
    assert json.loads(FILE.read_text()) == made_now
    print(f"{FILE}: {FILE.stat().st_size} bytes, {len(cases)} and {len(kto)} cases")


if __name__ == "__main__":
    main()
