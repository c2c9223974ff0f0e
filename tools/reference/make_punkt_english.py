"""`crates/olmoe-eval/src/answers/ifeval/punkt_english.txt`: the parameters of Punkt for English, sorted, and grouped by
their flags.

    python make_punkt_english.py <english.json of the crate punkt 1.0.5>

The crate (MIT or Apache-2.0, by Ferris Tseng) carries the parameters that NLTK distributes, trained by Jan Strunk on the
Wall Street Journal. `--tab FOLDER` writes them as NLTK 3.9 and later read them, for the golden files of IFEval."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

OUT = Path(__file__).resolve().parents[2] / "crates" / "olmoe-eval" / "src" / "answers" / "ifeval" / "punkt_english.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parameters", type=Path)
    parser.add_argument("--tab", type=Path)
    arguments = parser.parse_args()
    data = json.loads(arguments.parameters.read_text())
    if arguments.tab:
        folder = arguments.tab / "tokenizers" / "punkt_tab" / "english"
        folder.mkdir(parents=True, exist_ok=True)
        lines = {
            "collocations.tab": ["\t".join(pair) for pair in data["collocations"]],
            "sent_starters.txt": data["sentence_starters"],
            "abbrev_types.txt": data["abbrev_types"],
            "ortho_context.tab": [f"{word}\t{flags}" for word, flags in data["ortho_context"].items()],
        }
        for name, values in lines.items():
            (folder / name).write_text("\n".join(values))
        return
    groups = defaultdict(list)
    for word, flags in data["ortho_context"].items():
        groups[flags].append(word)
    lines = [
        "# The parameters of the sentence tokenizer Punkt (Kiss and Strunk 2006) for English, as NLTK distributes them, by way of",
        "# the crate punkt 1.0.5 (MIT or Apache-2.0, Copyright Ferris Tseng). Made by tools/reference/make_punkt_english.py.",
        "abbreviations\t" + "\t".join(sorted(data["abbrev_types"])),
        "starters\t" + "\t".join(sorted(data["sentence_starters"])),
        *("collocation\t" + "\t".join(pair) for pair in sorted(data["collocations"])),
        *(f"{flags}\t" + "\t".join(sorted(words)) for flags, words in sorted(groups.items())),
    ]
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
