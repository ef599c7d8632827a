"""The jobs of a multirun: all of them are checked before the first one starts, and counted."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.base.errors import ConfigError
from experiments.base.say import duration
from experiments.run.build import check_parts
from experiments.run.config import CONFIGS, check_config, load_config, resolve


class Refused(Exception):  # noqa: N818 (it is told already)
    """A job was refused in another process, which has said why."""


class Jobs:
    """What a multirun trains: by number of the job, its arguments and what tells it from others.

    Args:
        arguments: those of the command line, ``key=value``; lists of values span the jobs.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Span the jobs as Hydra does; its own exceptions pass through."""
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
            [self.all] = BasicSweeper.split_arguments(parsed, None)
        self.began = time.time()
        self.skipped = 0

    def words(self, number: int) -> str:
        """Return what tells a job from the others."""
        varied = (own for own in zip(*self.all, strict=True) if len(set(own)) > 1)
        return ", ".join(own[number] for own in varied)

    def title(self, number: int) -> str:
        """Return the line that opens a job; the time left is what the others took."""
        line = f"job {number + 1} of {len(self.all)}: {self.words(number)}".rstrip(": ")
        if (trained := number - self.skipped) < 1:
            return line
        left = (time.time() - self.began) / trained * (len(self.all) - number)
        return f"{line} ({duration(left)} left)"

    def check(self) -> None:
        """Compose and check every job.

        Raises:
            ConfigError: jobs cannot run; all of them are named, each reason once.
        """
        wrong: dict[str, list[int]] = {}
        for number, arguments in enumerate(self.all):
            if any("${hydra" in one for one in arguments):
                continue  # known only once the job runs
            try:
                config = resolve(load_config(arguments))
                check_config(config)
                check_parts(config)
            except ConfigError as error:
                wrong.setdefault(str(error), []).append(number)
        if not wrong:
            return
        reasons = list(wrong)
        if len(wrong[reasons[0]]) == len(self.all):
            raise ConfigError(reasons[0])
        lines = (
            f"\n  {_numbers(own)} ({self.words(own[0])}{', …' * (len(own) > 1)}): {reason}"
            for reason, own in wrong.items()
        )
        count = sum(map(len, wrong.values()))
        raise ConfigError(f"{count} of {len(self.all)} jobs cannot run:{''.join(lines)}")


def _numbers(jobs: Sequence[int]) -> str:
    return f"job{'s' * (len(jobs) > 1)} {', '.join(str(number + 1) for number in jobs)}"
