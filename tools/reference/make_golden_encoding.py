"""Golden tokens of contexts and continuations, `tests/golden/evaluation/pairs.jsonl`: lm-evaluation-harness' own
`_encode_pair` and `loglikelihood`, with OLMoE's tokenizer and with one that puts a token before every text.

Each line has the texts, `joint` (context and continuation as lm-evaluation-harness scores them) and `joint_bos`; null
where it fails on the pair. `--check` compares with the file and writes nothing.

    python make_golden_encoding.py TOKENIZER.json      # allenai_gpt-neox-olmo-dolma-v1_5.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "evaluation" / "pairs.jsonl"
EOS = "<|endoftext|>"

CONTEXTS = [
    "Question: What is it?\nAnswer:", "Question: What is it?\nAnswer: ", "Question: What is it?\nAnswer:  ",
    "a\n", "a\n\n", "a \n ", "  ", " ", "", "\t", "x\u00a0", "x\u2003", "x\u200b", "x\x1c", "x\u0085",
    "def f(x):\n    return", "def f(x):\n    return ", "def f(x):\n    ", "1 + 1 =", "The capital of Fran", "ca",
    "e", "cafe", "\u00e9", "A.", "A.\n", "(", "{\"a\":", "Hello, wor", "\U0001f469\u200d", "\u65e5\u672c", EOS, EOS + "x",
    "x" + EOS, "The end." + EOS + " ", "            ", "x" + " " * 30, "don", "don'", "I", "co-", "http:", "3.", "-",
    "<|user|>\nHi\n<|assistant|>\n", "a" * 50, "\r\n", "x\r", "na\u00efve", "na\u0131", "e\u0301", "x\ufeff",
]
CONTINUATIONS = [
    " yes", "yes", " A", "A", "  two", "\n", "\n\n", " ", "   ", "ce", "n't", "'t", "t", "\u0301", "\u0301 x", "e", " the",
    "ld!", "\u200d\U0001f466", "\u8a9e", EOS, " " + EOS, "//x", "14", "\u00a0y", "a" * 20, "    return x\n", "\u0308 b", "1",
]


class Encoder(HFLM):
    """The harness' model without a model: it notes what it would score."""

    def __init__(self, tokenizer, add_bos):
        self.tokenizer = tokenizer
        self.backend = "causal"
        self.add_bos_token = add_bos
        self.custom_prefix_token_id = None
        self.enable_thinking = False

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        return [(context, continuation) for _, context, continuation in requests]


def tokenizers(path: Path):
    plain = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=EOS)
    bos = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=EOS, bos_token="<|padding|>")
    begin = [("<|padding|>", bos.convert_tokens_to_ids("<|padding|>"))]
    bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|padding|> $A", pair="<|padding|> $A $B", special_tokens=begin
    )
    return Encoder(plain, None), Encoder(bos, None)


def scored(model: Encoder, context: str, continuation: str):
    request = Instance("loglikelihood", {}, (context, continuation), 0)
    try:
        [(ids, more)] = model.loglikelihood([request], disable_tqdm=True)
    except (AssertionError, IndexError):
        return None
    # The harness refuses both when it scores.
    return [ids, more] if ids and more else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    plain, bos = tokenizers(arguments.tokenizer)
    pairs = [(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS]
    draw = random.Random(5)
    alphabet = list(" \n\te\u0301aAn't1.\u00e9\u65e5") + ["  ", "the", " the", EOS, "ing"]
    for _ in range(600):
        text = "".join(draw.choices(alphabet, k=draw.randint(2, 9)))
        at = draw.randint(0, len(text))
        pairs.append((text[:at], text[at:]))
    lines = []
    for context, continuation in pairs:
        line = {"context": context, "continuation": continuation}
        line["joint"] = scored(plain, context, continuation)
        line["joint_bos"] = scored(bos, context, continuation)
        lines.append(json.dumps(line, separators=(",", ":")) + "\n")
    text = "".join(lines)
    if arguments.check:
        sys.exit(0 if OUT.read_text() == text else f"{OUT} differs")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(text)
    print(f"{OUT}: {len(lines)} pairs, {len(text)} bytes")


if __name__ == "__main__":
    main()
