# SPDX-License-Identifier: Apache-2.0
"""Run by path, as a process of its own: render a stranger's chat template, in jinja2's sandbox and under limits.

A sandbox keeps a template from this machine, not from using up its time and memory: the limits do.
stdin: {"template", "runs": [{"messages", "variables"}]}; stdout: one {"text"} or {"error"} for each run.
"""

import json
import resource
import sys
from datetime import datetime

CPU_SECONDS, BYTES = 20, 2 << 30


def environment():
    """What templates of model hubs expect."""
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: object) -> None:
        raise TemplateError(str(message))

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return made


def main() -> None:
    """Each run fails by itself."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    question, results = json.load(sys.stdin), []
    for run in question["runs"]:
        try:
            template = environment().from_string(question["template"])
            results.append({"text": template.render(messages=run["messages"], **run["variables"])})
        except Exception as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
