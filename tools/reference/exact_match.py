"""How many answers of a model are right to the letter: the program answers the rows of a file, always with the likeliest token.

    python tools/reference/exact_match.py --olmoe target/release/olmoe --model output/model --rows test.jsonl.gz
    python tools/reference/exact_match.py --olmoe target/release/olmoe --model base --adapter output/adapter --rows test.jsonl.gz

Rows are lines of JSON with `messages`; the last answer of each is the right one. Nothing but Python's own library is needed.
"""

import argparse
import gzip
import json
import subprocess
import sys


def rows(path, limit):
    opened = gzip.open(path, "rt") if path.endswith(".gz") else open(path)
    with opened as lines:
        found = [json.loads(line)["messages"] for line in lines if line.strip()]
    return found[:limit] if limit else found


def prompt(messages, begin):
    """What OLMoE's fine-tuning makes of a conversation, up to where the answer begins (the template tulu)."""
    text = begin
    for message in messages[:-1]:
        if message["role"] == "assistant":
            text += f"<|assistant|>\n{message['content']}{begin}\n"
        else:
            text += f"<|{message['role']}|>\n{message['content']}\n"
    return text + "<|assistant|>\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--olmoe", required=True, help="the program")
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", help="an adapter of it")
    parser.add_argument("--rows", required=True, help="a file of conversations, .jsonl or .jsonl.gz")
    parser.add_argument("--limit", type=int, default=0, help="the first so many rows")
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--begin", default="<|endoftext|>", help="the token that begins and ends a conversation")
    parser.add_argument("--show", type=int, default=0, help="print so many answers that are wrong")
    args = parser.parse_args()

    conversations = rows(args.rows, args.limit)
    lines = "".join(json.dumps({"prompt": prompt(one, args.begin)}) + "\n" for one in conversations)
    command = [args.olmoe, "generate", "-m", args.model, "--batch", "-", "--temp", "0", "--quiet"]
    command += ["-n", str(args.max_tokens), "--parallel", "64"]
    command += ["--adapter", args.adapter] if args.adapter else []
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    right = 0
    for conversation, line in zip(conversations, done.stdout.splitlines(), strict=True):
        answer = json.loads(line)["samples"][0]["text"]
        wanted = conversation[-1]["content"]
        right += answer == wanted
        if answer != wanted and args.show > 0:
            args.show -= 1
            print(f"{conversation[-2]['content']!r}: {answer!r}, not {wanted!r}")
    print(f"{right} of {len(conversations)} right: {right / len(conversations):.2%}")


if __name__ == "__main__":
    main()
