"""Writes tests/golden/eval/in_loop_metrics.json: the metrics of ai2-olmo-eval's ICLMetric on random log-probabilities.

    python tools/reference/make_golden_eval_metrics.py PATH_OF_THE_UNPACKED_WHEEL

Versions: ai2-olmo-eval 0.9.0, torch 2.15.
"""

import importlib.util
import json
import pathlib
import random
import sys
import types

import torch

WORDS = [" yes", " no", " True", " naïve café", " 東京タワー", " the cell wall", " a", "Bern", " 3.5 × 10⁸", " fish and chips"]
VOCABULARY = 40


class Metric:
    """What ICLMetric uses of torchmetrics.Metric."""

    def __init__(self, **_):
        pass

    def add_state(self, name, default, dist_reduce_fx):
        setattr(self, name, list(default))


def icl_metric(folder):
    stub = types.ModuleType("torchmetrics")
    stub.Metric = Metric
    sys.modules["torchmetrics"] = stub
    package = types.ModuleType("olmo_eval")
    package.__path__ = [str(folder / "olmo_eval")]
    sys.modules["olmo_eval"] = package
    util = types.ModuleType("olmo_eval.util")
    util.all_gather_object = lambda x, group=None: [x]
    sys.modules["olmo_eval.util"] = util
    spec = importlib.util.spec_from_file_location("olmo_eval.metrics", folder / "olmo_eval/metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ICLMetric


def main():
    ICLMetric = icl_metric(pathlib.Path(sys.argv[1]))
    generator = random.Random(7)
    torch.manual_seed(7)
    samples = []
    questions = []
    for doc_id in range(240):
        label = generator.randrange(3)
        choices = []
        for cont_id in range(generator.choice([3, 4, 5])):
            text = generator.choice(WORDS) + generator.choice(["", " indeed", "é"])
            length = generator.randrange(1, 7)
            tokens = torch.randint(VOCABULARY, (length,))
            # Some choices are equal, so that the first has to win.
            if cont_id and generator.random() < 0.15:
                text, length, tokens, logits, dc_logits = choices[-1]
            else:
                logits, dc_logits = 2 * torch.randn(1, length + 1, VOCABULARY), torch.randn(1, length + 1, VOCABULARY)
            choices.append((text, length, tokens, logits, dc_logits))
            samples.append((doc_id, cont_id, label, *choices[-1]))
        questions.append({"gold": label, "choices": [{"continuation": c[0], "tokens": c[1]} for c in choices]})

    expected = {}
    for kind in ["acc", "f1", "len_norm", "pmi_dc", "ce_loss", "bpb"]:
        metric = ICLMetric(metric_type=kind)
        metric.reset()
        for doc_id, cont_id, label, text, length, tokens, logits, dc_logits in samples:
            single = kind in ["ce_loss", "bpb"]
            if single and cont_id:
                continue
            number = lambda value: torch.tensor([value])
            batch = {
                "doc_id": number(doc_id), "cont_id": number(cont_id), "label_id": number(0 if single else label),
                "continuation": tokens[None], "cont_len": number(length), "ctx_len": number(1), "dc_len": number(1),
                "cont_str_len": number(len(text)), "cont_byte_len": number(len(text.encode())),
                "cont_str_len_no_leading_space": number(len(text) - 1),
                "cont_byte_len_no_leading_space": number(len(text[1:].encode())),
            }
            metric.update(batch, logits, dc_logits)
            choice = questions[doc_id]["choices"][cont_id]
            value = metric.loglikelihoods[-1][2]
            if kind == "acc":
                choice["log_prob"] = value
            elif kind == "pmi_dc":
                choice["unconditional"] = choice["log_prob"] / value
        expected[kind] = {name: value.item() for name, value in metric.compute().items()}

    root = pathlib.Path(__file__).resolve().parents[2]
    text = json.dumps({"expected": expected, "questions": questions}, ensure_ascii=False)
    (root / "tests/golden/eval/in_loop_metrics.json").write_text(text + "\n")


main()
