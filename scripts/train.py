"""Train one model, or a sweep of them with -m; see configs/train.yaml.

Exit status: 0 done (or skipped), 2 wrong input, 3 diverged, 130/143 interrupted by Ctrl-C/SIGTERM,
1 anything else. In a sweep a run that diverged is a result like any other: the sweep goes on and
ends with 0.
"""

from __future__ import annotations

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.errors import UserError
from experiments.explain import CONFIGS, ROOT, explain
from experiments.interrupts import Interrupted
from experiments.run import RunResult, run

WRONG_INPUT, DIVERGED = 2, 3

_outcomes: list[RunResult | UserError] = []


@hydra.main(config_path=str(CONFIGS), config_name=ROOT, version_base="1.3")
def _job(config: DictConfig) -> None:
    """Train one configuration; Hydra calls this, once for every point of a sweep."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        run(config)
        return
    # Outside a sweep Hydra would only decorate the message.
    try:
        _outcomes.append(run(config))
    except UserError as error:
        _outcomes.append(error)


def main() -> int:
    """Run the command line and return its exit status."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's exceptions reach us instead of its own printer.
    # argparse reads `a=1 -m b=2` as two lists of overrides and refuses the second one.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    try:
        _job()
    except UserError as error:
        return _refuse(error)
    except Interrupted as error:
        print(f"stopped by {error}; the same command goes on from here", file=sys.stderr)
        return 128 + error.signal
    except KeyboardInterrupt:
        return 130
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if not _from_composition(error):
            raise
        overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        return _refuse(explain(error, overrides))
    for outcome in _outcomes:
        if isinstance(outcome, UserError):
            return _refuse(outcome)
        if outcome.state == "diverged":
            return DIVERGED
    return 0


def _from_composition(error: Exception) -> bool:
    """Whether Hydra or OmegaConf raised this while composing, before any job ran."""
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name == "run":
            module = traceback.tb_frame.f_globals.get("__name__", "")
            if module.startswith("experiments."):
                return False
        traceback = traceback.tb_next
    return True


def _refuse(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
