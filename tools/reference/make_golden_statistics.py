"""Golden data of `crates/olmoe-eval/src/statistics.rs`, `tests/golden/eval/statistics.json`: errors, intervals and tests
of values per question, by NumPy, SciPy and statsmodels.

    pip install numpy==2.5.5 scipy==1.18.1 statsmodels==0.15.0
    python make_golden_statistics.py

- `estimates`: mean, standard error (`scipy.stats.sem`, which is lm-eval's `mean_stderr`), the standard error clustered by
  group (a regression on a constant of statsmodels, `cov_type="cluster"`), the macro average over groups with its standard
  error, and Wilson's interval (`proportion_confint`) of values that are 0 and 1.
- `mcnemar`: statsmodels' exact test, and the mid-p variant by its definition with `scipy.stats.binom`.
- `pairs`: `scipy.stats.ttest_rel` gives the standard error of a difference of pairs; beside it the one that would hold if
  both had been of different questions.
- `bootstrap`: means of resampled values with Python's generator, `int(random() * n)` a draw.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy
import scipy
import scipy.stats
import statsmodels
import statsmodels.api
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

FILE = Path(__file__).resolve().parents[2] / "tests" / "golden" / "eval" / "statistics.json"


def estimate(values: list[float], groups: list[str] | None) -> dict[str, object]:
    array = numpy.array(values)
    out: dict[str, object] = {"values": values, "mean": float(array.mean()), "error": float(scipy.stats.sem(array))}
    if set(values) <= {0.0, 1.0}:
        out["wilson"] = list(map(float, proportion_confint(int(array.sum()), len(array), method="wilson")))
    if groups:
        numbers = numpy.unique(groups, return_inverse=True)[1]
        model = statsmodels.api.OLS(array, numpy.ones(len(array)))
        fit = model.fit(cov_type="cluster", cov_kwds={"groups": numbers})
        parts = [array[numbers == number] for number in range(numbers.max() + 1)]
        out["groups"] = groups
        out["clustered"] = float(fit.bse[0])
        out["macro"] = float(numpy.mean([part.mean() for part in parts]))
        if min(map(len, parts)) > 1:
            variances = [float(scipy.stats.sem(part)) ** 2 for part in parts]
            out["macro_error"] = float(numpy.sqrt(sum(variances)) / len(parts))
    return out


def estimates() -> list[dict[str, object]]:
    rng = random.Random(7)
    half = [float(i < 4) for i in range(20)]
    binary = [float(rng.random() < 0.3) for _ in range(57)]
    sizes = [3, 9, 2, 14, 5, 2]
    groups = [f"group {i}" for i, size in enumerate(sizes) for _ in range(size)]
    rates = [rng.random() for _ in sizes]
    clustered = [float(rng.random() < rates[int(group.split()[1])]) for group in groups]
    order = list(range(len(groups)))
    rng.shuffle(order)
    return [
        estimate(half, None),
        estimate(binary, None),
        estimate([rng.gauss(1.1, 0.4) for _ in range(31)], None),
        estimate([clustered[i] for i in order], [groups[i] for i in order]),
        estimate([rng.gauss(0.0, 1.0) for _ in groups], groups),
        estimate([1.0, 0.0, 1.0, 1.0, 0.0], ["a", "b", "c", "d", "e"]),
    ]


def mcnemars() -> list[dict[str, object]]:
    out = []
    for lost, gained in [(0, 0), (1, 0), (0, 7), (3, 3), (5, 12), (12, 5), (40, 71), (410, 480), (2000, 2300), (3, 900)]:
        exact = float(mcnemar([[100, lost], [gained, 50]], exact=True).pvalue)
        # Twice the tail, with half of the probability of what was seen.
        smaller, both = min(lost, gained), lost + gained
        tail = float(scipy.stats.binom.cdf(smaller - 1, both, 0.5)) if smaller else 0.0
        mid = min(1.0, 2 * tail + float(scipy.stats.binom.pmf(smaller, both, 0.5)))
        out.append({"lost": lost, "gained": gained, "exact": exact, "mid_p": mid})
    return out


def pairs() -> list[dict[str, object]]:
    rng = random.Random(11)
    out = []
    # Both models are right about easy questions and wrong about hard ones: the difference varies little.
    for count, agreement in [(200, 0.95), (60, 0.5)]:
        first = [float(rng.random() < 0.6) for _ in range(count)]
        second = [a if rng.random() < agreement else float(rng.random() < 0.7) for a in first]
        test = scipy.stats.ttest_rel(second, first)
        difference = float(numpy.mean(second) - numpy.mean(first))
        error = difference / float(test.statistic)
        unpaired = float(numpy.hypot(scipy.stats.sem(first), scipy.stats.sem(second)))
        out.append({"first": first, "second": second, "difference": difference, "error": error, "unpaired": unpaired})
    return out


def bootstraps() -> list[dict[str, object]]:
    rng = random.Random(13)
    out = []
    for count, seed, resamples in [(40, 1234, 1000), (7, 5, 400)]:
        values = [rng.choice([-1.0, 0.0, 0.0, 0.0, 1.0, 1.0]) for _ in range(count)]
        draw = random.Random(seed)
        means = [sum(values[int(draw.random() * count)] for _ in range(count)) / count for _ in range(resamples)]
        low, high = map(float, numpy.percentile(means, [2.5, 97.5]))
        below = sum(mean <= 0 for mean in means)
        above = sum(mean >= 0 for mean in means)
        p = min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))
        out.append({"values": values, "seed": seed, "resamples": resamples, "interval": [low, high], "p": p})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file and write nothing")
    check = parser.parse_args().check
    versions = {"numpy": numpy.__version__, "scipy": scipy.__version__, "statsmodels": statsmodels.__version__}
    golden = {
        "versions": versions,
        "estimates": estimates(),
        "mcnemar": mcnemars(),
        "pairs": pairs(),
        "bootstrap": bootstraps(),
    }
    text = json.dumps(golden, indent=None, separators=(",", ":")) + "\n"
    if check:
        sys.exit(None if FILE.read_text() == text else f"{FILE} differs")
    FILE.write_text(text)


if __name__ == "__main__":
    main()
