"""Learning rates, optimizer steps and clipping for the tests of olmoe-train, by numpy and torch.

    python tools/reference/make_golden_optimizer.py            # writes crates/olmoe-train/tests/golden
    python tools/reference/make_golden_optimizer.py --check    # compares with the files, writes nothing

`schedules.tsv`: a line `schedule <overrides> <start of a second warm-up or ->`, then its positions, the end
of the run there, and the learning rate, in f64.

`optimizers.safetensors`: ten steps of a model of three kinds of tensors. `start` and `gradients` (a row for a
step) are all parameters one after the other, in the order of the metadata `parameters` (name, extents, the
tensor of OLMo's they are a part of). For each case `<case>.param`, `.exp_avg`, `.exp_avg_sq` at the end,
`.norms` (a row for a step: the global norm, the smallest coefficient of clipping), with adaptive clipping
`.running` (the running means of OLMo's tensors), and where updates are measured `.metrics` of the last step (a
row for a parameter: norm and largest size of the update) or `.cosine`. `metrics.*` are those of the last step of
`adamw`: rows of min, max, mean, norm of each parameter. The metadata `cases` has their settings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parents[2] / "crates" / "olmoe-train" / "tests" / "golden"
STEPS = 10

# The parameters of a model with one layer, with the names and in the order of `ParameterSpec`.
D, V, E, F = 8, 40, 3, 6
PARAMETERS = [
    ("embed_tokens.weight", [V, D], "embedding", "wte"),
    ("layers.0.attention_norm.weight", [D], "norm", "attn_norm"),
    ("layers.0.attention.q_proj.weight", [D, D], "linear", "att_proj"),
    ("layers.0.attention.k_proj.weight", [D, D], "linear", "att_proj"),
    ("layers.0.attention.v_proj.weight", [D, D], "linear", "att_proj"),
    ("layers.0.attention.q_norm.weight", [D], "norm", "q_norm"),
    ("layers.0.attention.k_norm.weight", [D], "norm", "k_norm"),
    ("layers.0.attention.o_proj.weight", [D, D], "linear", "attn_out"),
    ("layers.0.mlp_norm.weight", [D], "norm", "ff_norm"),
    ("layers.0.moe.router.weight", [E, D], "router", "router"),
    ("layers.0.moe.experts.gate_proj.weight", [E, F, D], "expert", "w1"),
    ("layers.0.moe.experts.up_proj.weight", [E, F, D], "expert", "v1"),
    ("layers.0.moe.experts.down_proj.weight", [E, D, F], "expert", "w2"),
    ("norm.weight", [D], "norm", "ln_f"),
    ("lm_head.weight", [V, D], "linear", "ff_out"),
]
CASES = {
    "adamw": dict(name="adamw", eps=1e-8, weight_decay=0.1, decay_norm_and_bias=True, decay_embeddings=True, norm=1.0, updates=True),
    "adamw_groups": dict(name="adamw", betas=[0.3, 0.99], eps=1e-5, weight_decay=0.2, selective=True, norm=0.5, updates=True),
    "adamw_ratio": dict(name="adamw", eps=1e-8, weight_decay=0.1, decay_embeddings=True, ratio=1.5),
    "rmsprop": dict(name="rmsprop", betas=[0.0, 0.99], eps=1e-8, weight_decay=0.1, decay_embeddings=True, norm=1.0, updates=True),
    "rmsprop_groups": dict(name="rmsprop", betas=[0.5, 0.9], eps=1e-5, weight_decay=0.2, selective=True, ratio=1.5, updates=True),
    "lionw": dict(name="lionw", weight_decay=0.1, decay_norm_and_bias=True, norm=1.0, updates=True),
    "lionw_ratio": dict(name="lionw", betas=[0.95, 0.98], weight_decay=0.3, selective=True, ratio=1.2, updates=True),
}
DEFAULTS = dict(betas=[0.9, 0.95], eps=1e-5, decay_norm_and_bias=False, decay_embeddings=False, selective=False, norm=None, ratio=None, updates=False)


# Schedules.


def learning_rate(s: np.ndarray, c: dict, end: np.ndarray) -> np.ndarray:
    """Every formula over all positions; which one applies where is decided afterwards."""
    s, end = s.astype(np.float64), end.astype(np.float64)
    lr, w = c["lr"], float(c["warmup"])
    last = end if c["t_max"] is None else np.full_like(s, c["t_max"])
    low = c["alpha"] * lr
    start = 0.1 * lr if c["min"] is None else c["min"]
    with np.errstate(divide="ignore", invalid="ignore"):
        p = (s - w) / (last - w)
        cosine = np.where(s >= last, low, low + (lr - low) * 0.5 * (1 + np.cos(np.pi * p)))
        line = np.where(s >= last, low, lr - (lr - low) * p)
        product = np.where(s >= last, low, low + (1 - p) * (lr - low) * 0.5 * (1 + np.cos(np.pi * p)))
        root = lr * np.sqrt(w / np.maximum(np.maximum(s, w), 1))
        rising = start + (lr - start) * (s / w)
    warm = {"cosine_with_warmup": cosine, "linear_with_warmup": line, "cosine_linear_envelope": product,
            "inverse_sqrt_with_warmup": root, "constant_with_warmup": np.full_like(s, lr)}
    if c["name"] == "constant":
        return np.full_like(s, lr)
    after = np.maximum(cosine, root) if c["name"] == "max_scheduler" else warm[c["name"]]
    return np.where(s < w, rising, after)


def schedules() -> str:
    lines = ["# Written by tools/reference/make_golden_optimizer.py."]
    names = ["cosine_with_warmup", "linear_with_warmup", "inverse_sqrt_with_warmup", "max_scheduler", "constant",
             "cosine_linear_envelope", "constant_with_warmup"]
    shapes = [
        dict(lr=4e-4, warmup=100, t_max=None, alpha=0.1, min=None, units="steps", at=1, ends=[1000]),
        dict(lr=4e-4, warmup=10485760000, t_max=5_000_000_000_000, alpha=0.1, min=None, units="tokens", at=4194304, ends=[7]),
        dict(lr=3e-3, warmup=7, t_max=50, alpha=0.0, min=1e-5, units="steps", at=1, ends=[20, 80]),
        dict(lr=4e-5, warmup=0, t_max=None, alpha=0.0, min=None, units="steps", at=1, ends=[23842, 1]),
        dict(lr=1e-3, warmup=30, t_max=20, alpha=0.25, min=0.0, units="steps", at=1, ends=[100]),
    ]
    for name in names:
        for shape in shapes:
            for start in (None, 5 * shape["at"]) if shape["ends"][0] == 1000 else (None,):
                c = dict(shape, name=name)
                if name == "inverse_sqrt_with_warmup" and c["warmup"] == 0:
                    continue
                settings = [f"scheduler.name={name}", f"optimizer.learning_rate={c['lr']}", f"scheduler.units={c['units']}",
                            f"scheduler.t_warmup={c['warmup']}", f"scheduler.alpha_f={c['alpha']}"]
                if c["t_max"] is not None:
                    settings.append(f"scheduler.t_max={c['t_max']}")
                if c["min"] is not None:
                    settings.append(f"scheduler.warmup_min_lr={c['min']}")
                lines.append("schedule\t" + " ".join(settings) + "\t" + ("-" if start is None else str(start)))
                for end in c["ends"]:
                    last = c["t_max"] or end
                    w = c["warmup"]
                    at = {1, 2, 3, w // 2, w - 1, w, w + 1, (w + last) // 2, last // 3, last - 1, last, last + 1, 2 * last}
                    s = np.array(sorted(x * 1 for x in {c["at"], *at} if x > 0))
                    values = learning_rate(s, c, np.full(s.shape, end))
                    if start is not None:
                        until = start + w
                        there = learning_rate(np.array([until]), c, np.array([end]))[0]
                        ramp = there * (s - start) / max(w, 1)
                        values = np.where(s < start, 0.0, np.where(s < until, ramp, values))
                    lines += [f"{x}\t{end}\t{float(value)!r}" for x, value in zip(s, values)]
    return "\n".join(lines) + "\n"


# Optimizers.


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters, and gradients that grow and shrink and are often 0."""
    gen = torch.Generator().manual_seed(6198)
    n = sum(int(np.prod(shape)) for _, shape, _, _ in PARAMETERS)
    start = torch.randn(n, generator=gen) * 0.5
    sizes = torch.tensor([0.02, 0.02, 0.03, 0.5, 0.01, 0.02, 0.3, 0.02, 1e-3, 0.05])
    gradients = torch.randn(STEPS, n, generator=gen) * sizes[:, None]
    gradients *= torch.rand(STEPS, n, generator=gen) > 0.25
    return start, gradients


def split(flat: torch.Tensor) -> list[torch.Tensor]:
    sizes = [int(np.prod(shape)) for _, shape, _, _ in PARAMETERS]
    return [part.clone() for part in flat.split(sizes)]


def rate(step: int) -> float:
    return 1e-3 * step


def run(case: dict, start: torch.Tensor, gradients: torch.Tensor, metrics: dict | None) -> dict[str, torch.Tensor]:
    c = {**DEFAULTS, **case}
    parameters = [torch.nn.Parameter(p) for p in split(start)]
    decay = {"norm": c["decay_norm_and_bias"], "embedding": c["decay_embeddings"]}
    decays = [c["weight_decay"] if decay.get(kind, True) else 0.0 for _, _, kind, _ in PARAMETERS]
    beta1, beta2 = c["betas"]
    m, v = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    tensors = list(dict.fromkeys(tensor for *_, tensor in PARAMETERS))
    groups = [[i for i, (*_, tensor) in enumerate(PARAMETERS) if tensor == wanted] for wanted in tensors]
    means: torch.Tensor | None = None
    plain = torch.optim.AdamW(
        [{"params": [p], "weight_decay": wd} for p, wd in zip(parameters, decays)],
        lr=1.0, betas=(beta1, beta2), eps=c["eps"], foreach=False, fused=False,
    )
    if c["name"] == "rmsprop":
        plain = torch.optim.RMSprop(
            [{"params": [p], "weight_decay": wd} for p, wd in zip(parameters, decays)],
            lr=1.0, alpha=beta2, eps=c["eps"], foreach=False,
        )
    out: dict[str, torch.Tensor] = {}
    norms = []
    for step in range(1, STEPS + 1):
        lr = rate(step)
        for p, g in zip(parameters, split(gradients[step - 1])):
            p.grad = g
        before = [p.grad.clone() for p in parameters]
        sizes = torch.stack([torch.linalg.vector_norm(torch.cat([before[i] for i in group])) for group in groups])
        total = torch.linalg.vector_norm(torch.cat(before))
        if c["ratio"] is not None:
            mean = sizes.clone() if means is None else means
            factor = (c["ratio"] * mean / (sizes + 1e-6)).clamp(max=1.0)
            new = torch.lerp(mean, sizes * factor, 1 - max(beta1, beta2))
            if step > 1:
                means = new
            for group, f in zip(groups, factor):
                for i in group:
                    parameters[i].grad.mul_(f)
            least = factor.min()
        else:
            reported = torch.nn.utils.clip_grad_norm_(parameters, c["norm"], foreach=False)
            torch.testing.assert_close(reported, total)
            least = (c["norm"] / (total + 1e-6)).clamp(max=1.0)
        norms.append(torch.stack([total, least]))
        if step == STEPS and metrics is not None:
            state = [(plain.state[p]["exp_avg"], plain.state[p]["exp_avg_sq"]) for p in parameters]
            columns = {"grad": before, "param": [p.detach() for p in parameters],
                       "exp_avg": [a for a, _ in state], "exp_avg_sq": [b for _, b in state]}
            for name, values in columns.items():
                rows = [[x.abs().min(), x.abs().max(), x.mean(), torch.linalg.vector_norm(x)] for x in values]
                metrics[f"metrics.{name}"] = torch.tensor(rows)
        updates = []
        with torch.no_grad():
            if c["name"] == "adamw" and not c["selective"]:
                old = [p.detach().clone() for p in parameters]
                for group in plain.param_groups:
                    group["lr"] = lr
                plain.step()
                for i, p in enumerate(parameters):
                    m[i], v[i] = plain.state[p]["exp_avg"], plain.state[p]["exp_avg_sq"]
                    hat = (v[i] / (1 - beta2**step)).sqrt() + c["eps"]
                    updates.append(lr / (1 - beta1**step) * m[i].abs() / hat)
                    drift = p - old[i] * (1 - lr * decays[i])
                    torch.testing.assert_close(drift.abs(), updates[-1], rtol=1e-3, atol=1e-6)
            elif c["name"] == "rmsprop" and not c["selective"]:
                old = [p.detach().clone() for p in parameters]
                for group in plain.param_groups:
                    group["lr"] = lr
                plain.step()
                for i, p in enumerate(parameters):
                    v[i] = plain.state[p]["square_avg"]
                    updates.append(lr * (p.grad + decays[i] * old[i]).abs() / (v[i].sqrt() + c["eps"]))
                    torch.testing.assert_close((p - old[i]).abs(), updates[-1], rtol=1e-3, atol=1e-6)
            elif c["name"] == "rmsprop":
                for i, p in enumerate(parameters):
                    moves = p.grad != 0
                    g = p.grad + decays[i] * p
                    v[i][moves] = (beta2 * v[i] + (1 - beta2) * g * g)[moves]
                    u = torch.where(moves, -lr * g / (v[i].sqrt() + c["eps"]), torch.zeros_like(p))
                    p += u
                    updates.append(u)
            else:
                for i, p in enumerate(parameters):
                    g = p.grad
                    moves = g != 0 if c["selective"] else torch.ones_like(g, dtype=torch.bool)
                    p[moves] *= 1 - lr * decays[i]
                    if c["name"] == "adamw":
                        m[i][moves] = torch.lerp(m[i], g, 1 - beta1)[moves]
                        v[i][moves] = (beta2 * v[i] + (1 - beta2) * g * g)[moves]
                        hat = v[i].sqrt() / (1 - beta2**step) ** 0.5 + c["eps"]
                        u = torch.where(moves, -lr / (1 - beta1**step) * m[i] / hat, torch.zeros_like(p))
                        p += u
                    else:
                        u = torch.where(moves, beta1 * m[i] + (1 - beta1) * g, torch.zeros_like(p))
                        p -= lr * u.sign()
                        m[i][moves] = (beta2 * m[i] + (1 - beta2) * g)[moves]
                    updates.append(u)
        if c["updates"] and step == STEPS:
            if c["name"] != "lionw":
                out["metrics"] = torch.tensor([[torch.linalg.vector_norm(u), u.abs().max()] for u in updates])
            else:
                u = torch.cat(updates).double()
                out["cosine"] = (u @ u.sign() / (u.norm() * u.sign().norm()))[None].float()
    out |= {"param": torch.cat([p.detach() for p in parameters]), "norms": torch.stack(norms)}
    if c["name"] != "rmsprop":
        out["exp_avg"] = torch.cat(m)
    if c["name"] != "lionw":
        out["exp_avg_sq"] = torch.cat(v)
    if means is not None:
        out["running"] = means
    return out


def optimizers() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    start, gradients = data()
    tensors = {"start": start, "gradients": gradients}
    for name, case in CASES.items():
        measured = run(case, start, gradients, tensors if name == "adamw" else None)
        tensors |= {f"{name}.{what}": value.contiguous() for what, value in measured.items()}
    metadata = {
        "parameters": json.dumps([[name, shape, tensor] for name, shape, _, tensor in PARAMETERS]),
        "cases": json.dumps({name: {**DEFAULTS, **case} for name, case in CASES.items()}),
        "made_by": f"tools/reference/make_golden_optimizer.py, torch {torch.__version__}, numpy {np.__version__}",
    }
    return tensors, metadata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    text = schedules()
    tensors, metadata = optimizers()
    table, states = FOLDER / "schedules.tsv", FOLDER / "optimizers.safetensors"
    if not check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        table.write_text(text)
        save_file(tensors, states, metadata)
        print(f"{table}: {len(text)} bytes; {states}: {states.stat().st_size} bytes")
        return
    assert table.read_text() == text, f"{table} differs"
    with safe_open(states, framework="pt") as file:
        assert sorted(file.keys()) == sorted(tensors), f"{states} has other tensors"
        for name, expected in tensors.items():
            torch.testing.assert_close(file.get_tensor(name), expected, rtol=1e-6, atol=1e-8, msg=name)
    print("the same")


if __name__ == "__main__":
    main()
