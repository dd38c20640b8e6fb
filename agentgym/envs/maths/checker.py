"""The process that compares answers: ``python -m agentgym.envs.maths.checker`` reads JSON lines and answers each with one.

What a policy wrote is parsed here, apart from the run and under limits: an answer can be made to cost any time and memory. One that
costs more processor time ends this process by SIGXCPU.
"""

from __future__ import annotations

import json
import math
import resource
import sys

CPU_SECONDS = 2  # for one comparison
MEMORY = 3 * 2**30  # bytes of address space


def equal(answer: str, expected: str) -> bool:
    """Whether two answers in LaTeX or plain text are the same number, expression, set, interval or text."""
    from math_verify import parse, verify

    read = [parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=False) for text in (expected, answer)]
    return bool(verify(*read, timeout_seconds=None, raise_on_error=False))


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout
    sys.stdout = sys.stderr
    equal("(x + 1)^2", "x^2 + 2x + 1")  # what is imported for the first comparison is no cost of an answer
    for line in sys.stdin:
        answer, expected = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = math.ceil(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        try:
            found = equal(answer, expected)
        except (MemoryError, RecursionError):
            found = False
        out.write(json.dumps(found) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
