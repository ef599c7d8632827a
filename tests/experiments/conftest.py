"""Makes the stand-ins beside this file importable below, and trains without processes."""

from __future__ import annotations

import pytest


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch):
    """Put :class:`FakeTraining` in the place of the processes of runs."""
    from experiments.studies.execute import Training
    from tests.experiments.figures.asking import FakeTraining

    fake = FakeTraining()
    monkeypatch.setattr(Training, "launch", lambda self, run: fake.launch(run))
    return fake
