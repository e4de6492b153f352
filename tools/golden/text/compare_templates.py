"""Renders every snippet and every template of tests/golden/text/templates with jinja2 as transformers sets it up
and with this project, and shows differences.   python compare_templates.py BUILD_FOLDER"""
import json
import sys

import mobula_text
import template_cases


def main():
    lib = mobula_text.load(sys.argv[1])
    bad = count = 0
    for case in template_cases.all_cases():
        count += 1
        want = case.get("output")
        try:
            got = mobula_text.Template(lib, case["template"]).render(json.dumps(case["vars"]))
        except mobula_text.Error as e:
            got, message = None, str(e)
        if got != want:
            bad += 1
            print(f"{case['template'][:300]!r}\n  want {want!r}\n  got  {got if got is not None else 'error: ' + message!r}")
        elif want is None and "-v" in sys.argv:
            print(f"{case['template'][:80]!r}: {message}")
    print(f"{count} renderings, {bad} differ")
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
