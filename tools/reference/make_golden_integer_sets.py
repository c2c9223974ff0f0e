"""Writes crates/olmoe-data/src/random/integer_sets.txt: the order of CPython's sets of integers.

    python tools/reference/make_golden_integer_sets.py

Run with CPython 3.11.7; 3.10 and later give the same.
"""

import pathlib
import random

CASES = [(1, 40, 5, 0), (2, 9, 9, 0), (3, 2376, 10, 0), (4, 2376, 10, 1), (5, 100, 0, 40), (6, 60, 12, 90),
         (7, 5000, 60, 300), (8, 1 << 40, 25, 30), (9, 570, 200, 1000), (10, 3, 3, 3), (11, 30, 5, 25)]

lines = ["# seed, population, size of the sample, steps; then the set in its order; make_golden_integer_sets.py"]
for seed, population, count, steps in CASES:
    generator = random.Random(seed)
    items = set(generator.sample(range(population), count))
    for _ in range(steps):
        item = generator.randrange(population)
        items.discard(item) if item in items else items.add(item)
    lines.append(" ".join(map(str, [seed, population, count, steps, *items])))

root = pathlib.Path(__file__).resolve().parents[2]
(root / "crates/olmoe-data/src/random/integer_sets.txt").write_text("\n".join(lines) + "\n")
