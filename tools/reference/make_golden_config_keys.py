"""The keys of OLMo's configuration and their defaults, as its branches have them.

    git clone https://github.com/allenai/OLMo
    python tools/reference/make_golden_config_keys.py OLMo > tests/golden/olmo_config_keys.txt

Reads `olmo/config.py` of each branch as a syntax tree, so OLMo need not be installed.
"""

from __future__ import annotations

import ast
import subprocess
import sys

BRANCHES = {"main": "main", "MoE": "Muennighoff/MoE", "OLMoSE": "Muennighoff/OLMoSE"}
# A key that a branch does not have.
ABSENT = "-"


def git(repository: str, *arguments: str) -> str:
    return subprocess.run(["git", "-C", repository, *arguments], check=True, text=True, capture_output=True).stdout


def commit(repository: str, branch: str) -> str:
    for name in (branch, f"origin/{branch}"):
        try:
            return git(repository, "rev-parse", "--verify", "--quiet", name).strip()
        except subprocess.CalledProcessError:
            continue
    raise SystemExit(f"{repository} has no branch {branch}")


def classes(source: str) -> dict[str, list[ast.AnnAssign]]:
    tops = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {top.name: [node for node in top.body if isinstance(node, ast.AnnAssign)] for top in tops}


def default(node: ast.AnnAssign, sections: dict[str, list[ast.AnnAssign]]) -> str:
    """As YAML: names of enumerations by their last part."""
    if node.value is None:
        return "required"
    text = ast.unparse(node.value)
    if text.startswith("field("):
        made = text.partition("default_factory=")[2].removesuffix(")")
        body = made.removeprefix("lambda: ")
        # Every section can be made from its own defaults.
        return "section" if body.partition("(")[0] in sections else {"list": "[]"}.get(body, body)
    if isinstance(node.value, ast.Constant):
        named = {None: "null", True: "true", False: "false"}
        # In Python 0 and 1 equal False and True, but no two defaults are confused by that here.
        return named[node.value.value] if node.value.value is None or isinstance(node.value.value, bool) else str(node.value.value)
    return text.rpartition(".")[2] if isinstance(node.value, ast.Attribute) else text


def keys(sections: dict[str, list[ast.AnnAssign]], name: str, above: str) -> dict[str, str]:
    found = {}
    for node in sections[name]:
        path = above + node.target.id
        found[path] = default(node, sections)
        words = {word.id for word in ast.walk(node.annotation) if isinstance(word, ast.Name)}
        for inner in sorted(words & set(sections)):
            in_list = "List" in words
            found |= keys(sections, inner, path + ("[]." if in_list else "."))
    return found


def main(repository: str) -> None:
    commits = {label: commit(repository, branch) for label, branch in BRANCHES.items()}
    found = {}
    for label in BRANCHES:
        sections = classes(git(repository, "show", f"{commits[label]}:olmo/config.py"))
        sections = {name: body for name, body in sections.items() if name.endswith("Config")}
        found[label] = keys(sections, "TrainConfig", "")
    print("# Every key of OLMo's TrainConfig and the sections in it, with its default in each of three branches, - where a")
    print("# branch does not have it. Made by tools/reference/make_golden_config_keys.py of allenai/OLMo, olmo/config.py:")
    for label, branch in BRANCHES.items():
        print(f"# {label}: {branch}, commit {commits[label]}")
    print("\t".join(["# key", *BRANCHES]))
    order = list(dict.fromkeys(path for label in ("MoE", "main", "OLMoSE") for path in found[label]))
    for path in order:
        print("\t".join([path, *(found[label].get(path, ABSENT) for label in BRANCHES)]))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
