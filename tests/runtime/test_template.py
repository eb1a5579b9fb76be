"""Chat templates: rendered as by transformers, and stopped if they run too long or fill the memory."""

from __future__ import annotations

import time
from typing import Any

import pytest
from chat_templates import PUBLISHED
from transformers.utils.chat_template_utils import render_jinja_template

from awq2trt.errors import UsageError
from awq2trt.runtime import template as rendering
from awq2trt.runtime.template import render_template

CONVERSATION = [
    {"role": "system", "content": "Be brief. <&>"},
    {"role": "user", "content": "Grüße,\n\"quoted\" 'twice'"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]
OWN = {
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "{% generation %}{{ messages[2].content }}{% endgeneration %}|",
    "namespace": "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{% endfor %}{{ n.i }}",
    "json": "{{ messages | tojson(indent=2) }}{{ dict(a=1) }}{{ tools is none }}",
}


@pytest.mark.parametrize("name", [*PUBLISHED, *OWN])
def test_templates_are_rendered_as_transformers_does(name: str) -> None:
    template = OWN[name] if name in OWN else PUBLISHED[name].source
    variables: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    messages = CONVERSATION
    for start in (0, 1):  # not every template takes a system message
        try:
            expected = render_jinja_template(
                [messages[start:]], chat_template=template, add_generation_prompt=True, **variables
            )[0][0]
        except Exception:  # noqa: BLE001  (a template may raise anything)
            continue
        rest = {"messages": messages[start:], "tools": None, "documents": None, "add_generation_prompt": True}
        assert render_template(template, {**variables, **rest}) == expected
        return
    pytest.fail("transformers renders neither")


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3
DOUBLED = "{% set n = namespace(t='aaaaaaaa') %}{% for a in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (LOOP, "more than 1 s"),
        ("{{ 'a'.center(2500000000) }}", "memory"),  # as much as a machine may have, but not this process
        ("{{ 'a' * 99999999999 }}", "memory"),
        (DOUBLED, "memory"),
        ("{{ 'a' * 20000000 }}", "20000000 characters"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ namespace(__class__=1) }}", "no attribute"),
        ("{% for m in messages %}", "line 1"),
        ("{{ raise_exception('no  system\nmessage') }}", r"failed: no system message\."),
        ("{{ raise_exception('none.') }}", r"failed: none\. Fix"),
        ("{{ undefined.attribute }}", "undefined"),
    ],
)
def test_templates_that_run_on_are_stopped(template: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1.0 if template == LOOP else 60.0)
    started = time.monotonic()
    with pytest.raises(UsageError, match=match):
        render_template(template, {"messages": CONVERSATION})
    assert time.monotonic() - started < 60


def test_a_loop_on_the_processor_is_ended_by_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"took more than 10 s|more than 30 s"):
        render_template(LOOP, {})
