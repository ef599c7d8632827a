"""Train one model, or a sweep of them with -m; see configs/train.yaml.

Exit status: 0 done (or skipped), 2 wrong input, 3 diverged, 128 and the number of a signal that
stopped it (130: Ctrl-C, 143: SIGTERM), 1 anything else. In a sweep a run that diverged is a result
like any other: the sweep goes on and ends with 0. Several processes train one run under torchrun
--nproc-per-node=N, whose own exit status is 0 or 1.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.base.errors import ConfigError, UserError
from experiments.base.interrupts import Interrupted, as_worker, in_worker, passing_on
from experiments.base.say import keep_talking
from experiments.run.config import CONFIGS, ROOT, explain, tuned_experiments
from experiments.run.multirun import Jobs, Refused
from experiments.run.ranks import started_as
from experiments.run.run import RunResult, run

WRONG_INPUT, DIVERGED = 2, 3
GRACE_S = 3.0

_outcomes: list[RunResult | UserError] = []
_jobs: Jobs | None = None  # of a multirun


@hydra.main(config_path=str(CONFIGS), config_name=ROOT, version_base="1.3")
def _job(config: DictConfig) -> None:
    """Train one configuration; Hydra calls this, once for every point of a sweep."""
    keep_talking()  # a launcher may have started this process
    if in_worker():
        as_worker(lambda: _train(config))
    else:
        _train(config)


def _train(config: DictConfig) -> None:
    started = HydraConfig.get()
    title = _jobs.title(started.job.num) if _jobs else ""
    if title:
        print(title)
    try:
        outcome = run(config)
    except UserError as error:
        # Hydra would decorate the message, and names only the first of several jobs.
        _outcomes.append(error)
        _refuse(error, title.partition(":")[0])
        if started.runtime.choices["hydra/launcher"] != "basic":
            raise Refused from None  # from another process
    else:
        _outcomes.append(outcome)
        if _jobs:
            _jobs.skipped += not outcome.trained


def main() -> int:
    """Run the command line and return its exit status."""
    keep_talking()
    status = _main()
    if status and started_as()[0] > 0:
        # torchrun ends all ranks with the first one that fails: rank 0 has to have its say before.
        time.sleep(GRACE_S)
    return status


def _main() -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's exceptions reach us instead of its own printer.
    # argparse reads `a=1 -m b=2` as two lists of overrides and refuses the second one.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    global _jobs
    _jobs = None
    try:
        tuned_experiments()
        if {"-m", "--multirun"} & set(sys.argv[1:]):
            if started_as()[1] > 1:
                raise ConfigError("torchrun trains one run on its ranks: leave out -m")
            _jobs = Jobs(overrides)
            _jobs.check()
        several = any(one.startswith("hydra/launcher=joblib") for one in sys.argv)
        with passing_on() if several else nullcontext():
            _job()
    except Refused:
        return WRONG_INPUT
    except UserError as error:
        return _refuse(error)
    except Interrupted as error:
        restart = next((one for one in sys.argv if one.startswith("trainer.restart=")), "")
        but = f" without {restart}" if restart.lower().endswith("true") else ""
        _tell(f"stopped by {error}; the same command{but} goes on from here")
        return 128 + error.signal
    except KeyboardInterrupt:
        return 130
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        if not _from_composition(error):
            raise
        return _refuse(explain(error, overrides, lists="add -m to run them all"))
    if any(isinstance(outcome, UserError) for outcome in _outcomes):
        return WRONG_INPUT
    diverged = not _jobs and any(outcome.state == "diverged" for outcome in _outcomes)
    return DIVERGED if diverged else 0


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


def _refuse(error: UserError, job: str = "") -> int:
    _tell(f"error: {f'{job}: ' if job else ''}{error}")
    return WRONG_INPUT


def _tell(line: str) -> None:
    """Say something once, however many ranks there are."""
    if started_as()[0] == 0:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
