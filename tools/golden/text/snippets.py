"""Small templates that pin single rules of the language, with the variables they get."""

VARS = {
    "s": "Hello, wörld ñ 你好", "e": "", "n": 3, "z": 0, "f": 2.5, "t": True, "no": None, "l": [3, 1, 2],
    "names": ["b", "A", "c", "B"], "d": {"a": 1, "b": [1, 2], "items": "x", "k y": {"q": None}}, "nested": [[1, 2], [3, [4]]],
    "users": [{"name": "ann", "age": 3, "ok": True, "a": {"b": 1}}, {"name": "Bob", "age": 1, "ok": False, "a": {"b": 2}}, {"name": "cy", "age": 2}],
    "html": "<a href='x'>\"&\"</a>", "multi": "one\n  two\n\nthree\n", "bos_token": "<s>", "emoji": "a😀b\u0301",
    "mix": {"f": 1.0, "big": 12345678901234, "s": "q\"\\/\n\t\x01é😀\x7f", "n": None, "b": False, "l": [], "d": {}, "x": 1e-7, "y": 1e22, "w": 0.1},
}

SNIPPETS = r"""
{{ s }}|{{ n }}|{{ f }}|{{ t }}|{{ no }}|{{ l }}|{{ d }}|{{ missing }}|
{{ 1.0 }} {{ 1e16 }} {{ 1e15 }} {{ 123456789.125 }} {{ 0.0001 }} {{ 0.00001 }} {{ 1/3 }} {{ 100.0 }} {{ 1e100 }} {{ 5e-324 }}
{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2.0 ** 3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 1_000 }}
{{ -n }} {{ +n }} {{ - -n }} {{ -2 ** 2 }} {{ not t }} {{ not not t }} {{ t + t }}
{{ 1 == 1.0 }} {{ t == 1 }} {{ "a" < "b" }} {{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ [1, 2] == [1, 2] }} {{ (1, 2) == [1, 2] }} {{ {"a": 1} == {"a": 1} }} {{ no == none }} {{ missing == other_missing }} {{ missing != none }}
{{ "a" ~ 1 ~ none ~ true ~ missing ~ 1.5 ~ [1] }} {{ "a" + "b" }} {{ [1] + [2] }} {{ "ab" * 3 }} {{ [0] * 3 }} {{ 3 * "x" }} {{ "x" * -1 }}
{{ "a" if t else "b" }} {{ "a" if z else "b" }} {{ "a" if z }} {{ 1 if 0 else 2 if 0 else 3 }}
{{ t and "x" }} {{ z and "x" }} {{ z or "x" }} {{ e or no or "y" }} {{ not z and t }} {{ not (z or t) }}
{{ "ell" in s }} {{ "x" not in s }} {{ 3 in l }} {{ "a" in d }} {{ 1 in d }} {{ not 3 in l }} {{ 3 in missing }} {{ "" in s }}
{{ l[0] }} {{ l[-1] }} {{ l[9] }} {{ s[0] }} {{ s[-1] }} {{ s[7:12] }} {{ s[::-1] }} {{ s[::2] }} {{ l[1:] }} {{ l[:-1] }} {{ l[::-1] }} {{ l[5:] }} {{ l[-100:100] }} {{ l[2:0:-1] }} {{ emoji[1] }} {{ (1,2,3)[1:] }} {{ l[:] }} {{ l[none:2] }}
{{ d.a }} {{ d["a"] }} {{ d["items"] }} {{ d["k y"].q }} {{ d["k y"]["zz"] }} {{ d.zz }} {{ d.get("a") }} {{ d.get("zz") }} {{ d.get("zz", 5) }} {{ d.b.1 }} {{ nested.1.1.0 }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %} {% for k in d %}{{ k }},{% endfor %} {{ d.keys() | list }} {{ d.values() | list }} {{ d | items | list }} {{ d | list }} {{ d | length }}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle("o", "e") }}{{ loop.depth }};{% endfor %}
{% for x in [] %}x{% else %}empty{% endfor %}{% for x in missing %}x{% else %}none{% endfor %}{% for x in l if x > 1 %}{{ x }}{{ loop.index }}/{{ loop.length }} {% else %}no{% endfor %}
{% for c in "añ😀" %}[{{ c }}]{% endfor %}{% for a, b in [(1, 2), [3, 4]] %}{{ a }}-{{ b }} {% endfor %}{% for a, (b, c) in [] %}{% endfor %}
{% for x in range(3) %}{% for y in range(x) %}{{ loop.index }}{{ loop.length }} {% endfor %}{% endfor %} {{ range(5) | list }} {{ range(1, 10, 3) | list }} {{ range(5, 0, -2) | list }} {{ range(0) | list }}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in [1,1,2,2,1] %}{{ loop.changed(x) }} {% endfor %}
{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = x + i %}{{ x }}{% endfor %}{{ x }} {% if true %}{% set x = 9 %}{% endif %}{{ x }}
{% set ns = namespace(a=1, b="x") %}{% for i in [1, 2, 3] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.zz }}{{ ns["a"] }} {% set ns.zz = [1] %}{{ ns.zz }}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set (c, d2) = [3, 4] %}{{ c }}{{ d2 }} {% set t2 = 1, 2 %}{{ t2 }} {% set t3 = (1,) %}{{ t3 }} {{ () }} {{ (1) }} {{ 1, 2 }}
{% set block %}a {{ n }} b{% endset %}[{{ block }}]{% set up | upper | replace("A", "z") %}abc{% endset %}{{ up }} {{ block is string }} {{ block | length }}
{% macro m(a, b=2, c="x") %}<{{ a }}{{ b }}{{ c }}>{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c="y") }}{{ m(a=5) }}{{ m() }} {{ m(*[7, 8]) }} {{ m(**{"a": 1, "c": 2}) }} {{ m.name }}
{% macro outer(x) %}{{ x }}:{{ caller() }}{% endmacro %}{% call outer(1) %}body {{ n }}{% endcall %} {% macro each(l) %}{% for i in l %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(i) each([1,2]) %}[{{ i }}]{% endcall %}
{% macro fact(k) %}{% if k < 2 %}1{% else %}{{ k * (fact(k - 1) | int) }}{% endif %}{% endmacro %}{{ fact(10) }}
{% set v = 1 %}{% macro late() %}{{ v }}{% endmacro %}{{ late() }}{% set v = 2 %}{{ late() }}
{% with a = 1, b = n %}{{ a }}{{ b }}{% set q = 5 %}{% endwith %}{{ a }}{{ q }} {% filter upper %}abc {{ s }}{% endfilter %} {% filter replace("a", "b") | trim %}  aaa {% endfilter %}
{% raw %}{{ not }} {% evaluated %}{% endraw %} {# comment #}{#- c -#} x {#- y #} z
{% if n > 5 %}a{% elif n > 2 %}b{% elif n > 1 %}c{% else %}d{% endif %}{% if missing %}x{% elif missing is undefined %}y{% endif %}
{{ "  x ".strip() }}|{{ "xxaxx".strip("x") }}|{{ "xyax".lstrip("xy") }}|{{ "ab\n\n".rstrip("\n") }}|{{ "a,b,,c".split(",") }}|{{ " a  b ".split() }}|{{ "a b c d".split(" ", 2) }}|{{ "a b  c".split(none, 1) }}|{{ "a</t>b</t>c".split("</t>")[-1] }}|{{ "a.b.c".rsplit(".", 1) }}|{{ "a\nb\r\nc\n".splitlines() }}|{{ "ab".split("") if false }}
{{ "abc".startswith("ab") }}{{ "abc".endswith("bc") }}{{ "abc".startswith(("x", "a")) }}{{ "abc".startswith("") }}{{ "abc".find("c") }}{{ "abc".find("x") }}{{ "你好你".rfind("你") }}{{ "abcabc".count("bc") }}{{ "abc".index("b") }}
{{ "aXbX".replace("X", "-") }}{{ "aXbX".replace("X", "-", 1) }}{{ "abc".replace("", "-") }}{{ "hello world it's".title() }}{{ "hELLO wORLD".capitalize() }}{{ "Straße ÀÉ ǆ".upper() }}{{ "ÀÉİ".lower() }}{{ "aBc".swapcase() }}{{ "-".join(["a", "b"]) }}{{ "ab".removeprefix("a") }}{{ "ab".removesuffix("b") }}{{ "a=b=c".partition("=") }}
{{ "12".isdigit() }}{{ "a1".isalnum() }}{{ "".isdigit() }}{{ "ab".isalpha() }}{{ " ".isspace() }}{{ "AB".isupper() }}{{ "ab1".islower() }}{{ "A".islower() }} {{ "ab".ljust(4) }}|{{ "ab".rjust(4, ".") }}|{{ "ab".center(5) }}|{{ "abc".center(6) }}|
{{ "{} {} {}".format(1, "a", [1]) }} {{ "{0}{1}{0}".format("a", "b") }} {{ "{x} {y!r}".format(x=1, y="q") }} {{ "{:>5}|{:<5}|{:^5}|{:*^7}".format("a", "b", "c", "d") }} {{ "{:05d} {:,} {:.2f} {:x} {:+d} {:%} {:e}".format(42, 1234567, 3.14159, 255, 5, 0.25, 12345.678) }} {{ "{{}}" .format() }} {{ "{0[a]} {0[b][0]}".format(d) }}
{{ "%s is %d and %.2f %5s|%-5s|%05d %x %%" % ("a", 3, 2.5, "b", "c", 42, 255) }} {{ "%s" % "x" }} {{ "%s" | format("y") }} {{ "%(a)s" % d }} {{ "%r" % "it's" }}
{{ s | upper }}{{ s | lower }}{{ s | title }}{{ "foo bar-baz (qux) it's" | title }}{{ s | capitalize }}{{ "  x " | trim }}{{ "xxax" | trim("x") }}{{ s | length }}{{ s | replace("l", "L") }}{{ s | replace("l", "L", 1) }}{{ 123 | string }}{{ 12.5 | string | length }}{{ html | e }}{{ html | safe }}{{ s | wordcount }}{{ s | reverse }}{{ l | reverse | list }}{{ "ab" | center(6) }}|
{{ l | join }}{{ l | join(", ") }}{{ users | join("|", attribute="name") }}{{ l | first }}{{ l | last }}{{ [] | first }}{{ s | first }}{{ l | sum }}{{ users | sum(attribute="age") }}{{ l | min }}{{ l | max }}{{ names | min }}{{ "abc" | list }}{{ (1, 2) | list }}{{ -3 | abs }}{{ l | count }}
{{ missing | default("d") }}{{ missing | d }}{{ e | default("x") }}{{ e | default("x", true) }}{{ no | default("x") }}{{ no | default("x", boolean=true) }}{{ missing.zz | default("q") if missing is defined else "u" }}
{{ "42" | int }}{{ "4.9" | int }}{{ "x" | int }}{{ "x" | int(7) }}{{ 3.9 | int }}{{ " 12 " | int }}{{ "1.5" | float }}{{ "x" | float }}{{ 2.675 | round(2) }}{{ 2.5 | round }}{{ 3.5 | round }}{{ 2.1 | round(method="ceil") }}{{ 2.9 | round(0, "floor") }}{{ 7 | round }}{{ true | int }}
{{ names | sort }}{{ names | sort(reverse=true) }}{{ names | sort(case_sensitive=true) }}{{ users | sort(attribute="age") | map(attribute="name") | list }}{{ users | sort(attribute="name") | map(attribute="name") | join }}{{ {"b": 1, "A": 2} | dictsort }}{{ {"b": 1, "a": 2} | dictsort(by="value") }}{{ ["a", "A", "b", "a"] | unique | list }}{{ {"b": 2, "a": 1} | dictsort(reverse=true) }}
{{ users | selectattr("ok") | map(attribute="name") | list }}{{ users | rejectattr("ok") | map(attribute="name") | list }}{{ users | selectattr("age", "gt", 1) | map(attribute="name") | list }}{{ users | selectattr("name", "equalto", "ann") | list | length }}{{ l | select("odd") | list }}{{ l | reject("eq", 1) | list }}{{ l | select | list }}{{ names | map("upper") | list }}{{ users | map(attribute="a.b", default=0) | list }}{{ names | map("replace", "b", "x") | list }}{{ users | selectattr("ok", "defined") | list | length }}{{ ["a", "b"] | reject("equalto", "a") | join(", ") }}{{ users[:2] | selectattr("a.b", "==", 2) | map(attribute="name") | first }}
{{ mix | tojson }}|{{ mix | tojson(indent=2) }}|{{ mix | tojson(ensure_ascii=True) }}|{{ mix | tojson(sort_keys=true) }}|{{ mix | tojson(separators=(",", ":")) }}|{{ [] | tojson(indent=4) }}|{{ [1, [2, {"a": [] }]] | tojson(indent=1) }}|{{ "é<&>'" | tojson }}|{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}|{{ (1, 2) | tojson }}
{{ multi | indent }}|{{ multi | indent(2, true) }}|{{ multi | indent(2, blank=true) }}|{{ multi | indent("> ", first=True) }}|
{{ missing is defined }}{{ n is defined }}{{ missing is undefined }}{{ no is none }}{{ n is none }}{{ no is not none }}{{ s is string }}{{ d is mapping }}{{ l is mapping }}{{ l is iterable }}{{ n is iterable }}{{ s is iterable }}{{ l is sequence }}{{ d is sequence }}{{ n is number }}{{ t is number }}{{ f is number }}{{ n is integer }}{{ t is integer }}{{ f is float }}{{ t is boolean }}{{ n is boolean }}{{ t is true }}{{ t is false }}{{ n is sameas n }}{{ no is sameas none }}{{ 3 is in l }}{{ 3 is not in [1] }}{{ n is odd }}{{ n is even }}{{ 9 is divisibleby 3 }}{{ n is eq 3 }}{{ n is gt 2 }}{{ n is lessthan(3) }}{{ range is callable }}{{ "a" is lower }}{{ "A" is upper }}{{ "upper" is filter }}{{ d.missing is defined }}
{{ s is string and n is number }} {{ n is not string and not n is none }} {{ 1 if n is defined else 2 }} {{ (n is defined) == true }} {{ n is number | string }}
{{ [1, "a", none, true, 1.5, {"k": (1,)}, "it's", 'q"q', "both'\""] }} {{ {"a": "b\n\t\\\x00\u200b\u00a0é😀", 1: 2, none: 3} }} {{ "a\x41\u00e9\101\q" }} {{ 'it\'s' }} {{ "a" "b" 'c' }}
{{ dict(a=1, b=2) }} {{ dict([("x", 1)]) }} {{ dict(d, a=9).a }} {{ namespace(a=1).a }} {{ {"a": 1,} }} {{ [1, 2,] }} {{ [] }} {{ {} }} {{ {"a": {"b": 1}}.a.b }}
{{ "%d" % 3 }}{{ l.index(1) }}{{ l.count(3) }}{{ d.copy().a }}{{ (not t) | string }}{{ -l[0] }}{{ (l | length) - 1 }}{{ l | length - 1 }}{{ "a" ~ l | length }}{{ 2 + "3" | int }}
a{%- if true -%} b {%- endif -%} c {{- 1 -}} d {{ 2 }}	{{- 3 }}
{{ bos_token }}{% if t %}{{ "x" }}{% endif %}{{ "y" -}}   z
""".strip("\n").split("\n")

# White space: (template, what it shows)
SPACE = [
    "a\n{% if t %}\nb\n{% endif %}\nc\n", "  {% if t %}\n  b\n  {% endif %}\n  c", "  {%+ if t %}\n  b\n  {%+ endif %}\n", "{% if t +%}\nb\n{% endif %}",
    "x  {% if t %}  y  {% endif %}  z", "{{ 1 }}\n{{ 2 }}\n", "{{ 1 }}\n\n", "a\n\n\n", "\n\n{{ 1 -}}\n\n\n b", "a \n\t {#- c -#} \n b", "a\n  {# c #}\nb", "a\n  {# c +#}\nb", "a {# c #} b",
    "{% for x in l %}\n  - {{ x }}\n{% endfor %}\ndone", "{%- for x in l %}\n  - {{ x }}\n{%- endfor -%}\n  done", "\t{% set a = 1 %}\t\n\t{{ a }}\n", "{% set a = 1 %}{% set b = 2 %}\n{{ a + b }}",
    "a\r\nb\rc\r\n", "{% raw %}\n  {{ x }}\n  {% endraw %}\n y", "x {%- raw -%}  a  {%- endraw -%}  y", "  {% raw %} a {% endraw %}", "\u00a0\u2003{%- if t %}x{% endif %}", "\u00a0{% if t %}x{% endif %}", "{% if t %}\n\n  x{% endif %}  \n  \n {% if t %} y{% endif %}",
    "{#-#}x", "a{{ '}}' }}b{{ \"%}\" }}", "{{ {'a': {'b': 1}}['a']['b'] }}", "{ {{ 1 }} } {% if t %}{{{% endif %}" if False else "{ {{ 1 }} }", "}} %} #}", "{{ '{{' }}", "{%if t%}x{%endif%}{{n}}{{-n-}}", "x{{n}}\n", "", "\n", "text only {", "{{ 1 }}{% if t %}\n{% endif %}\n\nx",
    "{% for m in users %}{% if m.ok %}\n  {{ m.name }}\n  {% elif m.ok is defined %}\n  no\n  {% else %}\n ?\n  {% endif %}\n{% endfor %}", "  {{ 1 }}\n  {%- if t %}\n  x\n  {%- endif %}\n",
]

# Each fails, in Jinja too.
ERRORS = [
    "{{ raise_exception('no system role') }}", "{{ missing.attr }}", "{{ d.zz.y }}", "{{ no.x.y }}", "{{ missing() }}", "{{ missing + 1 }}", "{{ 'a' + 1 }}", "{{ 1 / 0 }}", "{{ 1 // 0 }}", "{{ 'a' < 1 }}",
    "{% for x in n %}{% endfor %}", "{% for x in no %}{% endfor %}", "{{ n | length }}", "{{ l.append(1) }}", "{{ 'x' in n }}", "{{ 1 in 'x' }}", "{{ {'a': l.append} | tojson }}", "{{ missing | tojson }}", "{{ n() }}", "{{ s.nope() }}",
    "{% set d.a = 1 %}", "{% set a, b = [1] %}", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro r() %}{{ r() }}{% endmacro %}{{ r() }}", "{{ range(1000000) | list }}", "{{ 'x' | map('nope') | list }}", "{{ d | sort(attribute='zz.y') }}",
    "{{", "{{ 1", "{% if %}", "{% if t %}", "{% endif %}", "{{ 1 + }}", "{{ (1 }}", "{{ [1 }}", "{{ 'a }}", "{% nope %}", "{{ 1 | nope }}", "{{ 1 is nope }}", "{% for x %}{% endfor %}", "{% for x in l %}", "{{ ] }}", "{# x", "{{ a b }}", "{% set x %}", "{{ 1 is }}", "{{ x. }}", "{{ $ }}", "{% set true = 1 %}", "{% break %}", "{{ m(a=1, 2) }}", "{% macro %}{% endmacro %}", "{{ {1} }}",
]
