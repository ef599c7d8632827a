"""Calling a function in a fresh process, and getting its result as JSON.

Peak memory belongs to a process: what one measurement allocated would stay resident in the next
one. The child is ``python -m experiments.measure.process MODULE:FUNCTION`` with the arguments as
JSON on its standard input; its result is the last line of its standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch

from experiments.base import errors
from experiments.base.environment import REPOSITORY
from experiments.base.errors import RecordError, UserError

TIMEOUT_S = 900.0

_USER_ERROR = 2


def call(
    target: str,
    arguments: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_S,
) -> Any:
    """Call ``module:function`` in a process of its own, with as many threads as this one.

    Args:
        target: importable ``module:function``; its result must fit into JSON.
        arguments: keyword arguments that fit into JSON.
        environment: environment variables to set for it.
        timeout: seconds after which the process is killed.

    Raises:
        RecordError: it failed or took too long; the message has the last line of its traceback.
        UserError: the function raised one; of the same class.
    """
    request = {"arguments": dict(arguments), "threads": torch.get_num_threads()}
    command = [sys.executable, "-m", "experiments.measure.process", target]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **threads, **(environment or {})},
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise RecordError(f"{target} took longer than {timeout:g} s: {dict(arguments)}") from None
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == _USER_ERROR and last:
        error = json.loads(last)
        raise getattr(errors, error["kind"], UserError)(error["message"])
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise RecordError(f"{target} failed in its process: {reason} ({dict(arguments)})")
    return json.loads(last)


def main(target: str) -> int:
    """Run one call; return the exit status."""
    request = json.loads(sys.stdin.read())
    torch.set_num_threads(request["threads"])
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    try:
        result, status = function(**request["arguments"]), 0
    except UserError as error:
        result = {"kind": type(error).__name__, "message": str(error)}
        status = _USER_ERROR
    sys.stdout.write("\n" + json.dumps(result, allow_nan=False) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
