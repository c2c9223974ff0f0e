"""Renders snippets and whole chat templates by transformers and by olmoe and counts the differences.

    cargo build --example render_chat -p olmoe-data
    python tools/reference/compare_chat.py --render target/debug/examples/render_chat [--templates FOLDER]

The snippets and templates are those of `chat_snippets.py` and `make_golden_chat.py`, each template over every
conversation, with and without the beginning of an answer; then the templates that are in the sources of installed packages
(transformers, llama-cpp-python), and with `--templates` every `*.jinja` below a folder. Where transformers fails, olmoe has
to fail, too. Where olmoe alone fails, the refusal is listed: those in `REFUSED` of `chat_snippets.py` and in
`REFUSED_PARTS` are expected, each with its reason."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import make_golden_chat as golden
from chat_snippets import REFUSED as REFUSED_SNIPPETS, TEMPLATES

# Parts of templates that olmoe refuses, with the reason. None of them renders a different text.
REFUSED_PARTS: dict[str, str] = {
    "self.DEFAULT_SYSTEM_MESSAGE": "the program it is part of gives it a value; without one Jinja2 renders nothing for it",
}


def shipped() -> dict[str, str]:
    """Templates in the sources of packages: every string in them that iterates over messages."""
    found = {}
    for package in ["transformers", "llama_cpp"]:
        spec = importlib.util.find_spec(package)
        if spec is None:
            continue
        folder = Path(spec.submodule_search_locations[0])
        for path in sorted(folder.rglob("*.py")):
            text = path.read_text(errors="replace")
            if "%}" not in text:
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    if "in messages %}" in node.value or "in messages -%}" in node.value:
                        found[f"{path.relative_to(folder.parent)}:{node.lineno}"] = node.value
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", required=True, help="the example render_chat of olmoe-data")
    parser.add_argument("--templates", type=Path, help="a folder with more templates, *.jinja")
    args = parser.parse_args()
    cases = [(source, source, "all", golden.TOKENS, True) for source in golden.snippets()]
    num_snippets = len(cases)
    templates = {name: (source, golden.special_tokens(bos, eos)) for name, (bos, eos, source) in TEMPLATES.items()}
    for name, source in [("own chatml", golden.CHATML), ("own inst", golden.INST), ("own headers", golden.HEADERS), ("own words", golden.WORDS)]:
        templates[name] = (source, golden.TOKENS)
    templates |= {name: (source, golden.TOKENS) for name, source in shipped().items()}
    if args.templates:
        for path in sorted(args.templates.rglob("*.jinja")):
            # Read as bytes, so that Windows line breaks are kept.
            templates[str(path)] = (path.read_bytes().decode(), golden.TOKENS)
    for name, (source, tokens) in templates.items():
        cases += [(name, source, chat, tokens, prompt) for chat in golden.CHATS for prompt in [False, True]]
    lines = [
        json.dumps({"source": source, "messages": golden.CHATS[chat], "tokens": tokens, "add_generation_prompt": prompt})
        for _, source, chat, tokens, prompt in cases
    ]
    run = subprocess.run([args.render], input="\n".join(lines), capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in run.stdout.split("\n") if line]
    assert len(results) == len(cases), f"{len(results)} results of {len(cases)}"
    differences, refusals = 0, 0
    for (name, source, chat, tokens, prompt), got in zip(cases, results, strict=True):
        expected = golden.render(source, golden.CHATS[chat], tokens, prompt)
        if "error" in expected:
            same = "error" in got and (expected["error"] is None or expected["error"] in got["error"])
        elif "error" in got:
            refusals += 1
            if name not in REFUSED_SNIPPETS and not any(part in source for part in REFUSED_PARTS):
                print(f"refused, not listed: {name!r} {chat}: {got['error']}")
                differences += 1
            continue
        else:
            same = got["text"] == expected["text"] and got["answers"] == [list(r) for r in expected.get("answers", [])]
        if not same:
            differences += 1
            print(f"differs: {name!r} {chat} {prompt}\n    expected {expected}\n    found    {got}")
    print(f"{num_snippets} snippets, {len(templates)} templates, {len(cases)} renderings: {differences} differences, {refusals} refusals")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
