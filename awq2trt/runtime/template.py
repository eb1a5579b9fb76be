"""Renders chat templates, which come with the model and are programs, in a process with limits.

In: a template in Jinja and its variables. Out: text, or what the template did wrong. Jinja's sandbox keeps a template
away from files and from Python's internals, but not from looping forever or from filling the memory, for which another
process is needed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from awq2trt.errors import UsageError
from awq2trt.runtime import template_process

SECONDS: Final = 30.0
"""Seconds after which the process is ended; more than its limit of CPU time, since a busy machine starts it late."""


def render_template(template: str, variables: Mapping[str, Any]) -> str:
    """Returns the text that a chat template makes from its variables, which are JSON values.

    Raises:
        UsageError: The template is not valid Jinja, refuses its variables, or takes too much time or memory.
    """
    request = json.dumps({"template": template, "variables": dict(variables)})
    try:
        done = subprocess.run(
            [sys.executable, template_process.__file__],
            input=request,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(f"it ran for more than {SECONDS:g} s") from error
    if done.returncode < 0:
        raise _refused(f"it took more than {template_process.CPU_SECONDS} s, or too much memory")
    if done.returncode:
        raise _refused(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise _refused(" ".join(str(answer["error"]).split()))
    return str(answer["text"])


def _refused(reason: str) -> UsageError:
    return UsageError(
        f"the model's chat template failed: {reason.rstrip('.')}.", where="chat template", fix="use --raw."
    )
