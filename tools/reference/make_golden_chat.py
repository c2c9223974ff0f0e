"""Golden chats, `crates/olmoe-data/tests/golden/chats.json`: conversations as transformers' `apply_chat_template`
renders them.

The templates are OLMoE's own (`crates/olmoe-data/src/chat_template/tulu.jinja`, also against the text that the
fine-tuning of OLMoE shows for it) and four in the style of other models, which together use the features of real templates: white
space control, namespaces, macros, loop controls, generation blocks, methods of strings, tojson, raise_exception. Beside
them are the snippets and templates of `chat_snippets.py`. `--check` compares with the file and writes nothing."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jinja2
import transformers
from chat_snippets import EXPRESSIONS, REFUSED, STATEMENTS, TEMPLATES
from tokenizers import Tokenizer, models
from transformers.utils import chat_template_utils

CRATE = Path(__file__).resolve().parents[2] / "crates" / "olmoe-data"
OUT = CRATE / "tests" / "golden" / "chats.json"

# Indented tags, so that trim_blocks and lstrip_blocks have an effect.
CHATML = """\
{% if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
{% endif %}
{% for message in messages %}
    {% if loop.first and bos_token is defined %}
{{ bos_token }}
    {% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

# Strict about the order of roles.
INST = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 %}{% set content = system + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' ~ content.strip() ~ ' [/INST]' }}"
    "{% else %}{{ ' ' ~ content.strip() ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
)

# Headers, a date that may be given, and generation blocks.
HEADERS = """\
{{- bos_token }}
{%- if not tools is defined or tools is none %}{% set tools = [] %}{% endif %}
{%- macro header(role) -%}
<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro %}
{%- set ns = namespace(count=0, last='') %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {{- header(message['role']) }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
{{- message['content'] | trim + '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ header('assistant') }}{% endif %}
{#- {{ ns.count }} is not shown #}
"""

# Other functions that a template may call.
WORDS = """\
{% set ns = namespace(n=0) %}
{% for message in messages %}
  {% set ns.n = ns.n + message.content.split() | length %}
{{ loop.index }}/{{ loop.length }} {{ message.role.upper() }} {{ message.content.lstrip().rstrip('!').capitalize() }} {{ message.role.title() }}
{{ message | tojson }} {{ {'a': [1, 2.5, true, none, "<&'>é\\n"], 'b': {}, 'c': []} | tojson(indent=2) }}
{{ [[1], {"x": "y"}] | tojson }} {{ {"b": 1, "a": 2} | tojson(sort_keys=true) }} {{ 'é' | tojson(ensure_ascii=true) }}
  {% if message.content.startswith('What') and 'is' in message.content %}
question {{ message.content.find('is') }} {{ message.content.replace('is', 'was') }} {{ message['content'][:4] }}
  {% endif %}
  {% for part in message.content.split(' ', 1) if part %}
    {%- if loop.index > 1 %}{% break %}{% endif %} [{{ part }}]
  {% endfor %}
{% endfor %}
{{ ns.n }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | map(attribute='role') | join(',') }}
{{ messages[-1].role }} {{ messages[-1]['nothing'] is defined }} {{ none is none }} {{ (messages | last).content | length }}
{{ '%s and %s' | format(1, 'two') }} {{ 'x' if add_generation_prompt else 'y' }} {{ undefined_name }}{{ undefined_name or 'z' }}
{% for key, value in messages[0].items() %}{{ key }}={{ value | length }};{% endfor %}
"""

SYSTEM = {"role": "system", "content": "You are helpful.\nAnd  brief. "}
ASK = {"role": "user", "content": "What is a mixture of experts?"}
ANSWER = {"role": "assistant", "content": " Several networks,\n\tone router — 真. "}
AGAIN = {"role": "user", "content": "Thanks!"}
LUA = [
    {"role": "user", "content": "Compute the modulus of 12/5 using a Lua function."},
    {
        "role": "assistant",
        "content": "function modulus(dividend, divisor)\n  return dividend % divisor\nend\n\nmodulus(12, 5)",
    },
]
LUA_TEXT = (
    "<|endoftext|><|user|>\nCompute the modulus of 12/5 using a Lua function.\n<|assistant|>\n"
    "function modulus(dividend, divisor)\n  return dividend % divisor\nend\n\nmodulus(12, 5)<|endoftext|>"
)
CHATS = {
    "one": [ASK],
    "system": [SYSTEM, ASK],
    "answered": [ASK, ANSWER],
    "turns": [ASK, ANSWER, AGAIN],
    "all": [SYSTEM, ASK, ANSWER, AGAIN, ANSWER, AGAIN],
    "twice": [ASK, ASK],
    "lua": LUA,
    "odd": [{"role": "user", "content": "{{ 7 * 7 }} {% if %} <b>&amp;</b> \"'\\ \u2028"}],
    "empty": [{"role": "user", "content": ""}],
    "tool": [ASK, {"role": "tool", "content": "4"}],
}


# Special tokens of the snippets.
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def special_tokens(bos: str | None, eos: str | None) -> dict[str, str]:
    given = {"bos_token": bos, "eos_token": eos, "pad_token": "<pad>", "unk_token": "<unk>"}
    return {key: token for key, token in given.items() if token is not None}


def render(source: str, messages: list, tokens: dict[str, str], prompt: bool) -> dict:
    """A conversation rendered by transformers: its text and the ranges of characters that the template marks as the
    assistant's, or the error."""
    try:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), chat_template=source, **tokens
        )
        row = {"text": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)}
        if "generation %" in source or "generation -%" in source:
            texts, ranges = chat_template_utils.render_jinja_template(
                [messages], chat_template=source, return_assistant_tokens_mask=True, add_generation_prompt=prompt,
                **tokens,
            )  # fmt: skip
            assert texts == [row["text"]]
            row["answers"] = ranges[0]
        return row
    except jinja2.exceptions.TemplateError as error:
        # raise_exception gives its message alone; a failure inside the template is an error of another type.
        return {"error": str(error)} if type(error) is jinja2.exceptions.TemplateError else {"error": None}
    except Exception:  # noqa: BLE001 Python's own errors end a rendering just so
        return {"error": None}


def snippets() -> list[str]:
    return ["{{ " + expression + " }}" for expression in EXPRESSIONS] + STATEMENTS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    templates = {
        "tulu": ((CRATE / "src" / "chat_template" / "tulu.jinja").read_text(), "<|endoftext|>", "<|endoftext|>"),
        "chatml": (CHATML, None, "<|im_end|>"),
        "inst": (INST, "<s>", "</s>"),
        "headers": (HEADERS, "<|begin_of_text|>", "<|eot_id|>"),
        "words": (WORDS, None, None),
    }
    out = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "chats": CHATS, "templates": []}
    written_after = {name: (source, bos, eos) for name, (bos, eos, source) in TEMPLATES.items()}
    for group, found in {"": templates, "after ": written_after}.items():
        for name, (source, bos, eos) in found.items():
            tokens = special_tokens(bos, eos)
            rows = []
            for chat in CHATS if not group else ["one", "all", "twice", "tool"]:
                for prompt in [False, True] if not group else [chat != "all"]:
                    rows.append({"chat": chat, "add_generation_prompt": prompt, **render(source, CHATS[chat], tokens, prompt)})
            if name == "tulu":
                assert next(row["text"] for row in rows if row["chat"] == "lua") == LUA_TEXT
            out["templates"].append({"name": group + name, "source": source, "tokens": tokens, "rows": rows})
    out["snippets"] = {
        "chat": "all",
        "tokens": TOKENS,
        "rows": [{"source": source, **render(source, CHATS["all"], TOKENS, True)} for source in snippets() if source not in REFUSED],
    }
    text = json.dumps(out, indent=1, ensure_ascii=False) + "\n"
    if check:
        same = OUT.read_text() == text
        print("the same" if same else f"{OUT} differs")
        return 0 if same else 1
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(text)
    print(f"{OUT}: {len(text)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
