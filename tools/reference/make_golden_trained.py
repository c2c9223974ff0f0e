"""Numbers of the trained model glassllm-en, computed in f64 by its own package (PyPI glassllm, MIT).

    venv/bin/pip install --no-deps glassllm==0.1.0 && venv/bin/pip install numpy
    venv/bin/python tools/reference/make_golden_trained.py

Writes crates/olmoe-checkpoint/tests/golden/trained/glassllm.json: the surprise (negative log-probability) of every token of a paragraph, the first
64 logits after it, and 100 greedy tokens after a prompt, with the smallest distance between the best two printed.
"""

import json
import pathlib

import glassllm
import numpy as np
from glassllm.model import GlassLM
from glassllm.tokenizer import Tokenizer

OUT = pathlib.Path(__file__).parents[2] / "crates/olmoe-checkpoint/tests/golden/trained/glassllm.json"
TEXT = (
    "The little girl looked at the old man for some time, and then she said that she did not know the way to the house. "
    "He laughed at this, and told her that there was a great garden behind the wall, with a table and some very good tea."
)
PROMPT = "Alice was"

weights = pathlib.Path(glassllm.__file__).parent / "weights"
model = GlassLM.load(str(weights / "en.npz"), dtype=np.float64)
tokenizer = Tokenizer.load(str(weights / "en.tokenizer.json"))

ids = tokenizer.encode(TEXT)
logits = model.forward(ids).data[0]
shifted = logits - logits.max(-1, keepdims=True)
log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
surprise = -log_probs[np.arange(len(ids) - 1), ids[1:]]

continuation, margins = [], []
for step in model.generate(tokenizer.encode(PROMPT), 100, greedy=True):
    best = np.sort(step.probs)
    continuation.append(step.token)
    margins.append(float(np.log(best[-1] / best[-2])))
print("smallest distance between the best two:", min(margins))

golden = {
    "text": TEXT,
    "ids": ids,
    "surprise": [round(float(x), 9) for x in surprise],
    "last_logits": [round(float(x), 7) for x in logits[-1, :64]],
    "prompt": PROMPT,
    "prompt_ids": tokenizer.encode(PROMPT),
    "continuation_ids": continuation,
    "continuation": tokenizer.decode(continuation),
}
OUT.write_text(json.dumps(golden, ensure_ascii=False))
