"""Snippets and whole templates of Jinja, in the style of those of published models, for
`make_golden_chat.py` and `compare_chat.py`."""

from __future__ import annotations

# One expression a line; each is rendered in `{{ }}`, over a conversation of several turns.
EXPRESSIONS = r"""
bos_token
eos_token
pad_token
unk_token
sep_token
sep_token is defined
mask_token is undefined
cls_token or 'none'
bos_token + messages[0].content
bos_token ~ eos_token ~ 1 ~ 2.5 ~ none ~ true
messages | length
messages|count
messages[0].tool_calls | length
nothing | length
nothing | count == 0
'真实' | length
{'a': 1, 'b': 2} | length
[1, 2, 3][1:] | length
messages[1:] | length
messages[1:][0].role
messages[1:][-1]['role']
messages[-1].role
messages[-2:] | map(attribute='role') | list
messages[::-1] | map(attribute='role') | join(' ')
messages[:-1] | length
messages[0]['content'][:4]
messages[0]['content'][-4:]
messages[0]['content'][::2]
messages[0]['content'][::-1]
(messages | first).role
(messages | last)['content']
messages[0].nothing
messages[0]['nothing'] is defined
messages[0].nothing is none
messages[0].get('content')
messages[0].get('nothing')
messages[0].get('nothing', 'x')
messages[0].keys() | list
messages[0].values() | list
messages[0].items() | list
messages[0] | items | list
messages[0] | dictsort
nothing | items | list
nothing | list
nothing | string
nothing | trim
nothing | upper
nothing | join
nothing | first
nothing | last
nothing | default('x')
nothing | d
nothing is sequence
nothing is iterable
nothing is callable
nothing is mapping
nothing is string
nothing is none
nothing == none
nothing == nothing2
nothing or 'x'
not nothing
nothing ~ 'x'
'x' if nothing
'x' if nothing else 'y'
'role' in messages[0]
'nothing' in messages[0]
'nothing' not in messages[0]
'is' in messages[0].content
2 in [1, 2]
3 not in (1, 2)
none in [none]
'%s-%d' % ('a', 3)
'%s' % 'a'
'%s' % 3
'%s' % none
'%s' % true
'%s' % 1.5
'%5s|%-5s|' % ('a', 'b')
'%05d|%+d|% d' % (42, 42, 42)
'%.2f|%8.3f|%e' % (3.14159, 2.71828, 12345.678)
'%x|%X|%o|%#x' % (255, 255, 8, 255)
'%d%%' % 50
'%(a)s and %(b)s' % {'a': 1, 'b': 'two'}
'%s and %s' | format('one', 2)
'%s %s' % ('a', 'b') ~ 'c'
('%s' % 'a') | upper
'%s' % messages[0].role
'%s' % (messages | length)
7 % 3
-7 % 3
7 % -3
7.5 % 2
-7.5 % 2
2 + 3 * 4 % 5 - 1
(messages | length) % 2 == 0
1 + 7 % 4 * 2
true % 2
10 // 3
-10 // 3
10 / 4
10 / 5
7.0 // 2
2 ** 10
2 ** -1
2 ** 0.5
-2 ** 2
+3
+3 - +2
- 3 + + 4
+1.5
[+1, -2]
3 * 'ab'
'ab' * 2
[1] * 3
[1] + [2, 3]
(1, 2) + (3,)
'a' 'b' "c"
1 < 2 < 3
1 < 3 < 2
1 == 1.0
'a' < 'b'
[1, 2] < [1, 3]
1 if true
true
false
none
True
None
1.0
1e3
0.1 + 0.2
1.5e300
100000000000000000.0
0.00001
1_000
0x1F
12345678901234567890
[1, 2.0, 'a', none, true]
(1, 2)
(1,)
()
{'a': 1, 'b': [1, 'x'], 'c': {'d': none}}
{1: 2, 'k': "it's"}
['a"b', "it's", 'both " and \'', 'a\nb', 'é真']
{}
[]
'a\nb\tc\\d'
'\x41\u00e9\101'
'\d\w'
"\""
'it''s'
'a b  c'.split()
'a b  c'.split(' ')
' a  b c '.split(none, 1)
'a.b.c'.split('.', 1)
'a.b.c'.split('.')[-1]
'a.b.c'.split(sep='.', maxsplit=1)
'a.b.c'.rsplit('.', 1)[0]
'a.b.c'.rsplit('.')
' a  b c '.rsplit(none, 1)
'a.b.c'.rsplit(maxsplit=1)
'</think>'.split('</think>')
'x</think>y</think>z'.split('</think>')[-1].lstrip('\n')
'a b'.partition(' ')[2]
'a b'.partition(' ')
'ab'.partition(' ')
'a b c'.rpartition(' ')
'ab'.rpartition(' ')
'abc'.removeprefix('a')
'abc'.removeprefix('b')
'abc'.removesuffix('c')
'abc'.removesuffix('')
'abcabc'.index('b')
'abcabc'.rindex('b')
'abcabc'.find('z')
'abcabc'.find('b', 2)
'abcabc'.rfind('b')
'abcabc'.find('c', 0, 2)
'真实x'.find('x')
'abcabc'.count('b')
'aaaa'.count('aa')
'abc'.count('')
'abc'.replace('b', 'x')
'aaa'.replace('a', 'b', 2)
'abc'.replace('', '-')
'Abc'.lower()
'Abc'.upper()
'hello wORLD'.capitalize()
"they're bill's friends".title()
"they're bill's friends" | title
'Hello World'.swapcase()
'Straße'.casefold()
'ß'.upper()
'ΑΣ'.lower()
'42'.zfill(5)
'-42'.zfill(5)
'+1'.zfill(4)
'abc'.zfill(2)
'a'.ljust(4) ~ '|'
'a'.rjust(4, '.')
'ab'.center(5, '*')
'abc'.center(6, '*')
'a' | center(5) ~ '|'
'a\tb'.expandtabs(4)
'a\nb\r\nc'.splitlines()
'a\nb\n'.splitlines(true)
'a\x0bb\u2028c'.splitlines()
'  x '.strip() ~ '|'
'xxabcxx'.strip('x')
'abc'.lstrip('ab')
'abc'.rstrip('bc')
'\x1c x \u3000'.strip()
'abc'.startswith('ab')
'abc'.startswith(('x', 'a'))
'abc'.startswith('b', 1)
'abc'.endswith('c')
'abc'.endswith(('x', 'y'))
','.join(['a', 'b'])
''.join([])
'{} {}'.format('a', 1)
'{0} {0} {1}'.format('a', 'b')
'{a:>4}|{b:<3}|{c:.2f}'.format(a='x', b='y', c=1.234)
'123'.isdigit()
'12a'.isdigit()
'²'.isdigit()
'²'.isdecimal()
'½'.isnumeric()
'abc'.isalpha()
'ab1'.isalnum()
''.isalpha()
'   '.isspace()
'abc'.islower()
'ABC1'.isupper()
'Abc Def'.istitle()
'abc'.isascii()
[1, 2, 1].count(1)
[3, 4].index(4)
{'a': 1}.copy()
'abc' is string
'abc' is sequence
[1] is sequence
(1, 2) is sequence
{'a': 1} is sequence
{} is sequence
range(3) is sequence
3 is sequence
messages[1:] is sequence
{} is mapping
[] is iterable
'a' is iterable
3 is iterable
3 is number
true is number
true is boolean
1 is boolean
3 is integer
true is integer
3.0 is integer
3.0 is float
none is none
3 is odd
3 is even
6 is divisibleby 3
6 is divisibleby(4)
'abc' is lower
'ABC' is upper
'a' is in ['a', 'b']
1 is eq 1
1 is ne 2
2 is gt 1
1 is lessthan 2
1 is equalto 1
true is sameas true
1 is sameas true
true is true
'x' is false
range is callable
raise_exception is callable
'x' is callable
messages is callable
'upper' is filter
'split' is filter
'none' is test
'startingwith' is test
x is not defined
not x is defined
range(3) | list
range(1, 10, 3) | list
range(5, 0, -2) | list
'abc' | list
{'a': 1} | list
'hello world foo bar' | truncate(10)
'hello world foo bar' | truncate(11, true)
'hello world foo bar' | truncate(9, false, '…', 0)
'hello world' | truncate(8)
'hello world' | truncate(length=5, killwords=true, end='', leeway=0)
'a b/c?d=é&' | urlencode
{'a b': 'c&d', 'e': 1} | urlencode
[('a', 1), ('b', 'x y')] | urlencode
'one two, three_four' | wordcount
'a\nb\n\nc' | indent
'a\nb\n\nc' | indent(2, true)
'a\nb\n\nc' | indent(2, first=true, blank=true)
'a\nb\n' | indent ~ '|'
'a\nb' | indent('> ')
' x ' | trim ~ '|'
'xxaxx' | trim('x')
'aaa' | replace('a', 'b', 2)
'a1b1' | replace(1, 'x')
'abc' | capitalize
'abc' | first
'abc' | last
'abc' | reverse
[1, 2, 3] | reverse | list
[] | first
[] | last
[3, 1, 2] | sort
[3, 1, 2] | sort(reverse=true)
[3, 1, 2] | sort(true)
['b', 'A', 'a'] | sort
['b', 'A', 'a'] | sort(case_sensitive=true)
messages | sort(attribute='role') | map(attribute='role') | join(',')
{'b': 1, 'a': 2} | dictsort
{'b': 1, 'a': 2} | dictsort(by='value')
{'b': 1, 'a': 2} | dictsort(false, 'key', true)
[3, 1, 2] | min
[3, 1, 2] | max
['b', 'A'] | min
[1, 2, 3] | sum
[{'n': 1}, {'n': 2}] | sum(attribute='n')
[1, 2] | sum(start=10)
[1, 2, 2, 1] | unique | list
['a', 'A', 'b'] | unique | list
[1, 2, 3, 4, 5] | batch(2) | list
[1, 2, 3] | batch(2, 0) | list
[1, 2, 3, 4, 5] | slice(2) | list
messages | groupby('role') | map('first') | list
messages | selectattr('role', 'equalto', 'user') | list | length
messages | selectattr('role', '==', 'user') | map(attribute='content') | first
messages | selectattr('nothing') | list
messages | selectattr('content', 'defined') | list | length
messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | list
messages | rejectattr('role', 'in', ['user', 'system']) | list | length
[1, 2, 3, 4] | select('odd') | list
[1, 2, 3, 4] | reject('odd') | list
[0, 1, '', 'a', none] | select | list
['a', 'b'] | map('upper') | list
['a', 'b'] | map('replace', 'a', 'x') | list
messages | map(attribute='nothing', default='-') | join
messages | map('length') | list
[' a ', 'b '] | map('trim') | join('|')
[1, 'a', none, 2.5] | join(', ')
[1, 2] | join(0)
messages | join('/', attribute='role')
3.7 | int
'42' | int
'4.9' | int
'x' | int
'x' | int(-1)
'x' | int(default=7)
'0x1A' | int(base=16)
'ff' | int(0, 16)
' 12 ' | int
none | int
true | int
'3.5' | float
'x' | float
'x' | float(1.5)
3 | float
2.5 | round
3.5 | round
2.567 | round(2)
2.567 | round(1, 'floor')
2.123 | round(2, 'ceil')
42 | round
-3 | abs
-3.5 | abs
1.0 | string
none | string
42 | string | length
'<a href="x">&' | e
'<b>' | escape
"it's" | e
'<' | e | e
'<' | e | forceescape
{'a': [1, {}]} | tojson(indent='\t')
[1, 'a'] | max
['b', none] | sort
[{'a': 1}, {'a': 'x'}] | sort(attribute='a')
[[2], [1, 3]] | sort
[true, 2, 0.5] | sort
'<b>' | safe
none | default('x')
'' | default('x')
'' | default('x', true)
'' | default('x', boolean=true)
'' | default('x', boolean=false)
false | default('x', true)
nothing | default(default_value='y')
messages[0] | tojson
messages | tojson
messages[0] | tojson(indent=4)
{'b': [1, {'c': "<'>"}], 'a': none} | tojson(indent=2, sort_keys=true)
[1.0, 1e20, 0.1, true, none, 'é\n'] | tojson
'é' | tojson(ensure_ascii=true)
{'a': 1} | tojson(separators=(',', ':'))
[] | tojson(indent=2)
dict(a=1, b='x')
dict(a=1).a
dict({'a': 1}, b=2) | tojson
namespace(a=1).a
cycler('a', 'b').next()
joiner('|')()
-1 | abs
-messages | length
(1, 2)[0]
{'a': {'b': 3}}.a.b
{'a': {'b': 3}}['a']['b']
[[1, 2], [3]][0][1]
[[1, 2], [3]].0.1
[1, 2, 3][-1]
[1, 2, 3][5]
[1, 2, 3][5] is defined
'abc'[1]
'abc'[9]
1 and 0 or 'x'
'a' and 'b'
not 'a' or not ''
0 or [] or 'x'
(1 > 2) ~ (2 > 1)
"a" != "b" and 1 <= 2
1 is odd and 2 is even
'a' if 1 > 2 else 'b' if 2 > 3 else 'c'
(messages | length > 2) and messages[1].role == 'user'
messages[0].role == 'system' and messages[0].content | trim | length > 3
messages[0].content is string
messages[0].content is not string and messages[0].content is iterable
messages | map(attribute='content') | map('length') | sum
messages | selectattr('role', 'ne', 'system') | list | last | attr('nothing')
raise_exception('no')
'a' + 1
nothing + 'a'
nothing.a
none.a.b
nothing()
messages[0].content.nothing()
messages.append('x')
messages[0].update({'a': 1})
'%s %s' % 'a'
'%s' % ('a', 'b')
'%d' % 'x'
'abc'.index('z')
','.join([1, 2])
'abc'.split('')
1 / 0
1 % 0
1 // 0
3 | length
none | length
nothing | int
[1] | nothing
1 is nothing
nothing[0]
nothing % 2
'a' - 'b'
[1, 'a'] | sort
[1] + 'a'
'a' in 3
'abc' | tojson(indent='x')
range(1000000) | length
""".strip("\n").split("\n")

# Whole snippets, over the same conversation.
STATEMENTS = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for m in messages %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }};{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}>{{ loop.nextitem.role if not loop.last }};{% endfor %}",
    "{% for m in messages %}{{ loop.cycle('a', 'b', 'c') }}{% endfor %}",
    "{% for m in messages %}{{ loop.changed(m.role) }} {% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% else %}none{% endfor %}",
    "{% for m in nothing %}x{% else %}none{% endfor %}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v | length }};{% endfor %}",
    "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}",
    "{% for k in {'b': 1, 'a': 2} %}{{ k }}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3)), (4, (5, 6))] %}{{ a + b + c }} {% endfor %}",
    "{% for a in [1, 2, 3, 4] %}{% if a == 2 %}{% continue %}{% endif %}{% if a == 4 %}{% break %}{% endif %}{{ a }}{% endfor %}",
    "{% for a in [1, [2, [3]]] recursive %}{% if a is iterable %}({{ loop(a) }}){% else %}{{ a }}{% endif %}{% endfor %}",
    "{% for a in [1, 2] recursive %}{{ loop.depth }}{{ loop.depth0 }}{% endfor %}",
    "{% set x = 1 %}{% for a in [1, 2] %}{% set x = x + a %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=0, found=false) %}{% for a in [1, 2] %}{% set ns.x = ns.x + a %}{% set ns.found = true %}{% endfor %}{{ ns.x }}{{ ns.found }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = b, a %}{{ a }}{{ b }}",
    "{% set x %}block {{ messages[0].role }}{% endset %}[{{ x }}]{{ x | length }}",
    "{% set x | upper %}block{% endset %}{{ x }}",
    "{% if x is defined %}a{% elif messages %}b{% else %}c{% endif %}",
    "{% if 0 %}a{% elif '' %}b{% elif [] %}c{% elif {} %}d{% elif none %}e{% else %}f{% endif %}",
    "{% macro f(a, b='x', c=none) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(c=3, a=1) }}",
    "{% macro f(a) %}{{ a }}{{ caller() }}{% endmacro %}{% call f(1) %}body{% endcall %}",
    "{% macro f() %}{{ caller('x', 2) }}{% endmacro %}{% call(a, b) f() %}{{ a }}{{ b }}{% endcall %}",
    "{% macro f(a) %}{% if a > 0 %}{{ a }}{{ f(a - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro f(m) -%}\n  <|{{ m.role }}|>\n{%- endmacro %}{% for m in messages %}{{ f(m) }}{% endfor %}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f is callable }}{{ f('x') | upper }}{{ f('x') ~ 'y' }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f() }}|{{ f(none) }}",
    "{% filter upper %}abc {{ messages[0].role }}{% endfilter %}",
    "{% filter trim | upper %}  abc  {% endfilter %}|",
    "{% with %}{% set y = 2 %}{{ y }}{% endwith %}{{ y }}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}",
    "{% raw %}{{ not }} {% rendered %}{% endraw %}",
    "{%- raw -%}  {{ x }}  {%- endraw -%}  |",
    "a {# comment {{ x }} {% if %} #} b",
    "a  {#- comment -#}  b",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a\n  {%+ if true %}\n  b\n  {%+ endif +%}\nc\n",
    "a\n  {%- if true -%}\n  b\n  {%- endif -%}\nc\n",
    "a\n  {{ 1 }}\n  {{- 2 -}}\n  {{ 3 }}\n\n",
    "  {# c #}\n  x\n",
    "x {% set y = 1 %}\n y\n",
    "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n",
    "a\rb\r\n\rc",
    "{{ 'a\r\nb' | length }}",
    "\n\n{{ 1 }}\n\n",
    "{{ '{{ x }}' }}{{ '{% if %}' }}{{ \"#}\" }}",
    "{{ {'a': {'b': 1}} }}{{ {'a': 1}}}",
    "{% set ns = namespace() %}{% set ns.a = 'x' %}{{ ns.a }}{{ ns.b }}{{ ns.b is defined }}",
    "{% set j = joiner(', ') %}{% for m in messages %}{{ j() }}{{ m.role }}{% endfor %}",
    "{% set c = cycler('odd', 'even') %}{% for m in messages %}{{ c.next() }} {% endfor %}{{ c.current }}{{ c.reset() }}{{ c.current }}",
    "{% for m in messages %}{% set last = loop.last %}{% generation %}{{ m.role }}{{ last }}{{ loop.index }}{% endgeneration %}{% endfor %}",
    "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x is defined }}",
    "a\n{%- generation -%}\n  b \n{%- endgeneration -%}\nc",
    "a\n  {% generation %}\n  b\n  {% endgeneration %}\nc",
    "é{% generation %}真{% endgeneration %}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% generation %}{% set ns.n = 5 %}x{% endgeneration %}{{ ns.n }}",
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ add_generation_prompt }}",
    "{% if tools is defined and tools is not none and tools | length > 0 %}tools{% else %}no tools{% endif %}",
    "{% if documents %}d{% endif %}{{ tools }}{{ documents is none }}",
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% set rest = messages[1:] if system else messages %}{{ rest | length }}{{ system | trim }}",
    "{% set content = messages[3].content %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}{{ content }}",
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}!{% else %}.{% endif %}{% endfor %}",
    "{% for m in messages %}{% if loop.index0 % 2 %}odd{% else %}even{% endif %}{% endfor %}",
    "{% set roles = {'user': 'USER', 'assistant': 'ASSISTANT'} %}{% for m in messages %}{{ roles[m.role] | default('?') }}{{ roles.get(m.role, m.role) }}{% endfor %}",
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}{{ '\\n' if m.role != 'assistant' }}{% endfor %}",
    "{% for i in range(messages | length) %}{{ messages[i].role }}{% endfor %}",
    "{% for i in range(messages | length - 1, -1, -1) %}{{ messages[i].role[0] }}{% endfor %}",
    "{% set x = [] %}{% for m in messages %}{% set x = x + [m.role] %}{% endfor %}{{ x }}",
    "{% set ns = namespace(list=[]) %}{% for m in messages %}{% set ns.list = ns.list + [m.role] %}{% endfor %}{{ ns.list }}{{ ns.list | length }}{{ ns.list[-1] }}",
    "{{ messages | map(attribute='role') | unique | list }}",
    "{% set x = messages | selectattr('role', 'equalto', 'system') | list %}{{ x | length }}{% if x %}{{ x[0].content }}{% endif %}",
    "{% block title %}x{% endblock %}",
    "{% set message = messages[0] %}{{ message.role }}{{ message['role'] }}{{ message.content.strip() }}",
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('bad role ' ~ m.role) }}{% endif %}{% endfor %}",
    "{% macro f(x) %}{% set ns.n = ns.n + x %}{% endmacro %}{% set ns = namespace(n=1) %}{{ f(2) }}{{ ns.n }}",
    "{% set ns = namespace(n=1) %}{% macro f(x) %}{% set ns.n = x, 2 %}{% endmacro %}{{ f(2) }}{{ ns.n }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% nothing %}",
    "{% if true %}",
    "{% endif %}",
    "{{ 1 +",
    "{{ }}",
    "{% for %}{% endfor %}",
    "{{ 'a }}",
]

ALTERNATE = "roles must alternate"

# Templates: name, beginning and end of texts, source.
TEMPLATES = {
    "chatml": (None, "<|im_end|>", "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"),
    "chatml-system": (None, "<|im_end|>", "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set others = messages[1:] %}{% else %}{% set system = 'Be helpful.' %}{% set others = messages %}{% endif %}<|im_start|>system\n{{ system }}<|im_end|>\n{% for m in others %}{% if loop.length > 0 %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endif %}{% endfor %}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif %}"),
    "zephyr": ("<s>", "</s>", "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"),
    "inst-old": ("<s>", "</s>", "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('" + ALTERNATE + "') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('who is this?') }}{% endif %}{% endfor %}"),
    "inst-new": ("<s>", "</s>", "{%- if messages[0][\"role\"] == \"system\" %}\n    {%- set instructions = messages[0][\"content\"] %}\n    {%- set others = messages[1:] %}\n{%- else %}\n    {%- set others = messages %}\n{%- endif %}\n{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n{%- set user_messages = others | selectattr(\"role\", \"equalto\", \"user\") | list %}\n\n{%- set ns = namespace() %}\n{%- set ns.index = 0 %}\n{%- for message in others %}\n    {%- if not (message.role == \"tool\" or message.role == \"tool_results\" or (message.tool_calls is defined and message.tool_calls is not none)) %}\n        {%- if (message[\"role\"] == \"user\") != (ns.index % 2 == 0) %}\n            {{- raise_exception(\"" + ALTERNATE + "\") }}\n        {%- endif %}\n        {%- set ns.index = ns.index + 1 %}\n    {%- endif %}\n{%- endfor %}\n\n{{- bos_token }}\n{%- for message in others %}\n    {%- if message[\"role\"] == \"user\" %}\n        {%- if loop.last and instructions is defined %}\n            {{- \"[INST]\" + instructions + \"\\n\\n\" + message[\"content\"] + \"[/INST]\" }}\n        {%- else %}\n            {{- \"[INST]\" + message[\"content\"] + \"[/INST]\" }}\n        {%- endif %}\n    {%- elif message[\"role\"] == \"assistant\" %}\n        {{- message[\"content\"] + eos_token }}\n    {%- else %}\n        {{- raise_exception(\"who is this?\") }}\n    {%- endif %}\n{%- endfor %}\n"),
    "sys-brackets": ("<s>", "</s>", "{% if messages[0]['role'] == 'system' %}{% set others = messages[1:] %}{% set instructions = messages[0]['content'] %}{% else %}{% set others = messages %}{% set instructions = false %}{% endif %}{% for message in others %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('" + ALTERNATE + "') }}{% endif %}{% if loop.index0 == 0 and instructions != false %}{% set content = '<<SYS>>\\n' + instructions + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"),
    "headers": ("<|begin_of_text|>", "<|eot_id|>", "{% set others = messages %}{% for message in others %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"),
    "headers-date": ("<|begin_of_text|>", "<|eot_id|>", "{{- bos_token }}\n{%- if own_tools is defined %}\n    {%- set tools = own_tools %}\n{%- endif %}\n{%- if not tools_of_user is defined %}\n    {%- set tools_of_user = true %}\n{%- endif %}\n{%- if not date_string is defined %}\n    {%- set date_string = \"1 May 2025\" %}\n{%- endif %}\n{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n\n{#- The system message comes first. #}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set instructions = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set instructions = \"\" %}\n{%- endif %}\n\n{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n{%- if builtin_tools is defined or tools is not none %}\n    {{- \"Tools: yes\\n\" }}\n{%- endif %}\n{{- \"Known until: 2023\\n\" }}\n{{- \"Today: \" + date_string + \"\\n\\n\" }}\n{{- instructions }}\n{{- \"<|eot_id|>\" }}\n{%- for message in messages %}\n    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\n        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}\n    {%- elif message.role == \"tool\" or message.role == \"ipython\" %}\n        {{- \"<|start_header_id|>ipython<|end_header_id|>\\n\\n\" }}\n        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}\n            {{- message.content | tojson }}\n        {%- else %}\n            {{- message.content }}\n        {%- endif %}\n        {{- \"<|eot_id|>\" }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"),
    "turns": ("<bos>", "<eos>", "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('" + ALTERNATE + "') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"),
    "turns-prefix": ("<bos>", "<eos>", "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n    {%- if messages[0]['content'] is string -%}\n        {%- set prefix = messages[0]['content'] + '\n\n' -%}\n    {%- else -%}\n        {%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}\n    {%- endif -%}\n    {%- set others = messages[1:] -%}\n{%- else -%}\n    {%- set prefix = \"\" -%}\n    {%- set others = messages -%}\n{%- endif -%}\n{%- for message in others -%}\n    {%- if (message['role'] == 'assistant') -%}\n        {%- set role = \"model\" -%}\n    {%- else -%}\n        {%- set role = message['role'] -%}\n    {%- endif -%}\n    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else \"\") }}\n    {%- if message['content'] is string -%}\n        {{ message['content'] | trim }}\n    {%- elif message['content'] is iterable -%}\n        {%- for item in message['content'] -%}\n            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}\n        {%- endfor -%}\n    {%- else -%}\n        {{ raise_exception(\"Invalid content type\") }}\n    {%- endif -%}\n    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n    {{'<start_of_turn>model\n'}}\n{%- endif -%}\n"),
    "thinking": (None, "<|im_end|>", "{%- if messages[0].role == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n{%- endif %}\n{%- set ns = namespace(searching=true, last_question=messages|length - 1) %}\n{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n    {%- if ns.searching and message.role == \"user\" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}\n        {%- set ns.searching = false %}\n        {%- set ns.last_question = index %}\n    {%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n    {%- if message.content is string %}\n        {%- set content = message.content %}\n    {%- else %}\n        {%- set content = '' %}\n    {%- endif %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) %}\n        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n    {%- elif message.role == \"assistant\" %}\n        {%- set thoughts = '' %}\n        {%- if message.thoughts is string %}\n            {%- set thoughts = message.thoughts %}\n        {%- else %}\n            {%- if '</think>' in content %}\n                {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n            {%- endif %}\n        {%- endif %}\n        {%- if loop.index0 > ns.last_question %}\n            {%- if loop.last or (not loop.last and thoughts) %}\n                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}\n            {%- else %}\n                {{- '<|im_start|>' + message.role + '\\n' + content }}\n            {%- endif %}\n        {%- else %}\n            {{- '<|im_start|>' + message.role + '\\n' + content }}\n        {%- endif %}\n        {{- '<|im_end|>\\n' }}\n    {%- elif message.role == \"tool\" %}\n        {%- if loop.first or (messages[loop.index0 - 1].role != \"tool\") %}\n            {{- '<|im_start|>user' }}\n        {%- endif %}\n        {{- '\\n<tool_response>\\n' }}\n        {{- content }}\n        {{- '\\n</tool_response>' }}\n        {%- if loop.last or (messages[loop.index0 + 1].role != \"tool\") %}\n            {{- '<|im_end|>\\n' }}\n        {%- endif %}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n    {%- if enable_thinking is defined and enable_thinking is false %}\n        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}\n"),
    "fullwidth": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}"),
    "phi": (None, "<|endoftext|>", "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"),
    "vicuna": ("<s>", "</s>", "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim ~ '\n\n' }}{% set messages = messages[1:] %}{% endif %}{% for message in messages %}{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: '}.get(message.role, '') ~ message.content.strip() ~ (eos_token if message.role == 'assistant' else ' ') }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"),
    "alpaca": ("<s>", "</s>", "{{ bos_token }}{% for message in messages %}\n{% if message.role == 'user' %}\n### Instruction:\n{{ message.content | trim }}\n\n{% elif message.role == 'assistant' %}\n### Response:\n{{ message.content | trim }}{{ eos_token }}\n\n{% else %}\n{{ message.content | trim }}\n\n{% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\n### Response:\n{% endif %}\n"),
    "command": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set others = messages[1:] %}{% set instructions = messages[0]['content'] %}{% elif false == true %}{% set others = messages %}{% set instructions = 'x' %}{% else %}{% set others = messages %}{% set instructions = false %}{% endif %}{% if instructions != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + instructions + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% for message in others %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% elif message['role'] == 'assistant' %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'  + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"),
    "generation": (None, "<|im_end|>", "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' }}\n    {%- if message.role == 'assistant' %}\n        {%- generation %}\n            {{- message.content + '<|im_end|>' }}\n        {%- endgeneration %}\n    {%- else %}\n        {{- message.content + '<|im_end|>' }}\n    {%- endif %}\n    {{- '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"),
    "generation-headers": ("<|begin_of_text|>", "<|eot_id|>", "{{- bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}{{ eos_token }}{% endgeneration %}{% else %}{{ message.content | trim }}{{ '<|eot_id|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"),
    "olmo": ("<|endoftext|>", "<|endoftext|>", "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"),
    "granite": (None, "<|end_of_text|>", "{%- if messages[0]['role'] == 'system' %}\n     {%- set instructions = messages[0]['content'] %}\n     {%- set others = messages[1:] %}\n{%- else %}\n     {%- set instructions = \"Be an assistant.\\nBe kind.\" %}\n     {%- if tools and documents %}\n         {%- set instructions = instructions + \"\\nUse them.\" %}\n     {%- elif thinking %}\n         {%- set instructions = instructions + \"\\nThink.\" %}\n     {%- endif %}\n     {%- set others = messages %}\n{%- endif %}\n{{- '<|start_of_role|>system<|end_of_role|>' + instructions + '<|end_of_text|>\\n' }}\n{%- if tools %}\n     {{- '<|start_of_role|>tools<|end_of_role|>' }}\n     {{- tools | tojson(indent=4) }}\n{%- endif %}\n{%- for message in others %}\n     {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}\n     {%- if loop.last and add_generation_prompt %}\n         {{- '<|start_of_role|>assistant' }}\n         {%- if controls %}\n             {{- ' ' + controls | tojson() }}\n         {%- endif %}\n         {{- '<|end_of_role|>' }}\n     {%- endif %}\n{%- endfor %}\n"),
    "harmony": ("<|startoftext|>", "<|return|>", "{%- macro render_role(role, channel=none) -%}\n    {{- '<|start|>' + role }}\n    {%- if channel %}{{- '<|channel|>' ~ channel }}{%- endif %}\n    {{- '<|message|>' }}\n{%- endmacro -%}\n{%- macro build_system() -%}\n    {{- 'You are a model.\\n' }}\n    {{- '\\nReasoning: ' + (reasoning_effort if reasoning_effort is defined else 'medium') + '\\n\\n' }}\n    {{- '# Valid channels: analysis, commentary, final.' }}\n{%- endmacro -%}\n{{- render_role('system') + build_system() + '<|end|>' }}\n{%- if messages[0].role == 'developer' or messages[0].role == 'system' %}\n    {%- set instructions_of_developer = messages[0].content %}\n    {%- set others = messages[1:] %}\n{%- else %}\n    {%- set instructions_of_developer = '' %}\n    {%- set others = messages %}\n{%- endif %}\n{%- if instructions_of_developer %}\n    {{- render_role('developer') + '# Instructions\\n\\n' + instructions_of_developer + '\\n\\n<|end|>' }}\n{%- endif %}\n{%- set last_tool_call = namespace(name=none) %}\n{%- for message in others -%}\n    {%- if message.role == 'assistant' -%}\n        {%- if 'tool_calls' in message %}\n            {{- 'tool' }}\n        {%- elif loop.last and not add_generation_prompt %}\n            {{- render_role('assistant', 'final') + message.content + '<|return|>' }}\n        {%- else %}\n            {{- render_role('assistant', channel='final') + message.content + '<|end|>' }}\n            {%- set last_tool_call.name = none %}\n        {%- endif %}\n    {%- elif message.role == 'tool' -%}\n        {%- if last_tool_call.name is none %}\n            {{- raise_exception('a tool speaks that nobody called') }}\n        {%- endif %}\n    {%- elif message.role == 'user' -%}\n        {{- render_role('user') + message.content + '<|end|>' }}\n    {%- endif -%}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n<|start|>assistant\n{%- endif -%}\n"),
    "falcon": (None, "<|endoftext|>", "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{% if message['role'] == 'system' %}{{ 'System: ' + message['content'].strip().replace('\\r\\n', '\\n').replace('\\n\\n', '\\n') }}{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'].strip().replace('\\r\\n', '\\n').replace('\\n\\n', '\\n') }}{% elif message['role'] == 'assistant' %}{{ 'Falcon: ' + message['content'].strip() }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\n\nFalcon:' }}{% endif %}"),
    "crlf": (None, "<|im_end|>", "{% for message in messages %}\r\n<|im_start|>{{ message.role }}\r\n{{ message.content }}<|im_end|>\r\n{% endfor %}\r\n{% if add_generation_prompt %}\r\n<|im_start|>assistant\r\n{% endif %}\r\n"),
    "formatted": ("<s>", "</s>", "{{ bos_token }}{% set sep = joiner('\\n') %}{% for m in messages %}{{ sep() }}{{ '%d. [%s] %s' % (loop.index, m.role.upper(), m.content | truncate(20)) }}{% endfor %}{{ pad_token ~ unk_token }}{% if add_generation_prompt %}{{ '\\n%d. [ASSISTANT]' % (messages | length + 1) }}{% endif %}"),
    "parts": ("<s>", "</s>", "{% macro text(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}{% endmacro %}{% for m in messages %}{% set role, _, rest = m.role.partition(':') %}[{{ role | capitalize }}]{{ text(m.content).removesuffix(' ').rsplit('\n', 1)[-1] | indent(2) }}{{ eos_token if m.role == 'assistant' }}\n{% endfor %}{{ '[Assistant]' if add_generation_prompt }}"),
    "nested-tools": (None, "<|im_end|>", "{%- set tools = tools or [{'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object', 'properties': {'x': {'type': 'number', 'description': 'it\\'s \"x\"'}}, 'required': ['x']}}}] %}\n{{- '<|im_start|>system\\n# Tools\\n' }}\n{%- for tool in tools %}\n    {{- '\\n' }}\n    {{- tool | tojson }}\n    {%- for name, spec in tool.function.parameters.properties.items() %}\n        {{- '\\n// ' ~ name ~ ': ' ~ spec.type ~ (' (required)' if name in tool.function.parameters.required else '') ~ ' ' ~ spec }}\n    {%- endfor %}\n{%- endfor %}\n{{- '<|im_end|>\\n' }}\n{%- for message in messages %}\n    {{- '<|im_start|>%s\\n%s<|im_end|>\\n' % (message.role, message.content) }}\n{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"),
    "ministral": ("<s>", "</s>", "{%- set today = '%s-%02d' % ('2025', 6) -%}\n{%- set usual = 'The date is {today}.'.replace('{today}', today) -%}\n{{- bos_token -}}\n{%- if messages[0]['role'] == 'system' -%}\n  {%- set instructions, others = messages[0]['content'], messages[1:] -%}\n{%- else -%}\n  {%- set instructions, others = usual, messages -%}\n{%- endif -%}\n{{- '[SYSTEM_PROMPT]' + instructions + '[/SYSTEM_PROMPT]' -}}\n{%- for message in others -%}\n  {%- if message['role'] == 'user' -%}\n    {{- '[INST]' + message['content'] + '[/INST]' -}}\n  {%- elif message['role'] == 'system' -%}\n    {{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' -}}\n  {%- elif message['role'] == 'assistant' -%}\n    {{- message['content'] + eos_token -}}\n  {%- else -%}\n    {{- raise_exception('who is this?') -}}\n  {%- endif -%}\n{%- endfor -%}\n"),
}

# Snippets that olmoe refuses, with the reason.
REFUSED: dict[str, str] = {
    "{{ [true, 2, 0.5] | sort }}": "booleans among numbers have an order in Python alone",
}
