"""Renders one chat template in a process of its own with little memory and time, for `awq2trt.runtime.template`.

In, on stdin: JSON with the `template` and its `variables`. Out, on stdout: JSON with its `text`, or with the `error`.
The environment is that of transformers 5.24 (`utils/chat_template_utils.py`, `_cached_compile_jinja_template`), for
which templates are written. It imports nothing from awq2trt, so that the process starts in a tenth of a second.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any, Final

import jinja2
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY_BYTES: Final = 1 << 30
"""Memory of the process; the interpreter with jinja2 takes a tenth of it."""

CPU_SECONDS: Final = 10
"""A limit of CPU time: a thousand times what published templates take."""

LONGEST_TEXT: Final = 1 << 24
"""The most characters: more than any model has positions for."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here its content is kept unchanged."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own way)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> Any:
        return caller()


class _Dict:
    """`dict(...)` in templates, without the attributes of the type."""

    def __call__(self, *args: Any, **keywords: Any) -> dict[Any, Any]:
        return dict(*args, **keywords)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace(...)` in templates, without names that begin with an underscore."""

    def __init__(*args: Any, **keywords: Any) -> None:
        own, rest = args[0], args[1:]
        values = dict(*rest, **keywords)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(own, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may have no attribute {name!r}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Writes JSON; Jinja's own filter of this name would escape characters for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template: str, variables: dict[str, Any]) -> str:
    """Renders a template. It takes as much time and memory as the template makes it take."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda layout: datetime.now().strftime(layout),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(template).render(**variables)


def main() -> None:
    """Reads, renders and writes, as the process has to do."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    try:
        request = json.load(sys.stdin)
        text = render(request["template"], request["variables"])
        answer = {"text": text} if len(text) <= LONGEST_TEXT else {"error": f"it wrote {len(text)} characters"}
    except MemoryError:
        answer = {"error": f"it took more than {MEMORY_BYTES >> 20} MiB of memory"}
    except jinja2.TemplateSyntaxError as error:
        answer = {"error": f"line {error.lineno}: {error}"}
    except Exception as error:  # noqa: BLE001  (a template is a program and may raise anything)
        answer = {"error": str(error) or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
