#!/bin/sh
# Jinja2 gives a slice of a constant another meaning than the same slice of a variable: `{{ (7)[:2] }}` prints nothing,
# `{{ n[:2] }}` with n = 7 raises. Constants are folded when a template is compiled, through `Environment.getitem`, which
# turns a TypeError into an undefined value; at run time a slice is Python's own. So a chat template that slices what is
# no sequence may pass or fail by how its value is written.
# usage: sh jinja2-slices-of-constants.sh     (python3 with venv and pip; exits 1 if the behaviour changes)
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "jinja2==3.1.6"
"$work/venv/bin/python" - <<'PY'
import jinja2, sys
environment = jinja2.Environment()


def result(template, **names):
    try:
        return repr(environment.from_string(template).render(**names))
    except Exception as error:
        return type(error).__name__


print("jinja2", jinja2.__version__)
found = [result("{{ (7)[:2] }}"), result("{{ n[:2] }}", n=7)]
print("{{ (7)[:2] }}:", found[0])
print("{{ n[:2] }} with n = 7:", found[1])
sys.exit(found != ["''", "TypeError"])
PY
