"""The template goldens: every snippet, and every chat template with every conversation that suits it, rendered by
jinja2 in the environment of transformers' apply_chat_template."""
import json
import pathlib
from datetime import datetime

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

import conversations
import snippets

OUT = pathlib.Path(__file__).resolve().parents[3] / "tests" / "golden" / "text" / "templates"


class Generation(jinja2.ext.Extension):
    """{% generation %} as transformers has it, without the tracking."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.now().strftime(f)
    return env


def render(env, source, variables):
    case = {"template": source, "vars": variables}
    try:
        case["output"] = env.from_string(source).render(**variables)
    except Exception as e:  # whatever it is: ours must fail too
        case["error"] = f"{type(e).__name__}: {e}"
    return case


def snippet_cases():
    env = environment()
    return [render(env, source, snippets.VARS) for source in snippets.SNIPPETS + snippets.SPACE + snippets.ERRORS]


def chat_cases():
    env = environment()
    for path in sorted(OUT.glob("*.jinja")):
        for name, variables in conversations.CONVERSATIONS.items():
            case = render(env, path.read_text(), {"bos_token": "<bos>", "eos_token": "<eos>", **variables})
            case.update(file=path.name, conversation=name)
            yield case


def all_cases():
    return snippet_cases() + list(chat_cases())


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    snippet_list = [{k: v for k, v in c.items() if k != "vars"} for c in snippet_cases()]
    for case in snippet_list:
        if case["template"] in snippets.ERRORS and "output" in case:
            raise SystemExit(f"no error: {case['template']!r}")
        if case["template"] not in snippets.ERRORS and "error" in case:
            raise SystemExit(f"{case['error']}: {case['template']!r}")
    chats = [{k: c[k] for k in ("file", "conversation", "output", "error") if k in c} for c in chat_cases()]
    golden = {"vars": snippets.VARS, "snippets": snippet_list, "conversations": conversations.CONVERSATIONS, "chats": chats}
    (OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=0))


if __name__ == "__main__":
    main()
