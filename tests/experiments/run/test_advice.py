"""What a message advises works: every advice is followed here, and none is missing."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from experiments.base.device import choose_device
from experiments.base.errors import UserError
from experiments.run.build import build, check_parts
from experiments.run.config import check_config, explain, load_config, resolve
from experiments.run.multirun import Jobs
from experiments.run.tracking import make_tracker
from experiments.studies.execute import planned
from experiments.studies.sweep import Plan, parse

REPOSITORY = Path(__file__).resolve().parents[3]


def compose(arguments: Sequence[str]) -> None:
    """Do what a run does before it needs data."""
    config = resolve(load_config(arguments))
    check_config(config)
    check_parts(config)
    choose_device(config["device"])
    make_tracker(config, Path("nowhere"))


def prepare(arguments: Sequence[str]) -> None:
    """Do what a run does before its first step."""
    build(resolve(load_config(["model=conv_ode_small", *arguments])), torch.device("cpu"))


def multirun(arguments: Sequence[str]) -> None:
    """Do what scripts/train.py does with a list of values, with -m and without."""
    if arguments[0] == "-m":
        return Jobs(arguments[1:]).check()
    try:
        return compose(arguments)
    except UserError as error:
        raise explain(error.__cause__, arguments, lists="add -m to run them all") from error


def sweep(arguments: Sequence[str]) -> None:
    Plan(parse(arguments))


def study(arguments: Sequence[str]) -> None:
    planned("", "digits", "adam", [0], arguments, ())


SWEEP = ("search=adam", "dataset=digits", "trials=2")

WRONG: list[tuple[Callable[[Sequence[str]], None], list[str]]] = [
    *(
        (compose, arguments.split(" "))
        for arguments in (
            "task=imge",
            "optimzer=adam",
            "lr=0.1",
            "trainer.batchsize=3",
            "hydra/launcher=joblab",
            "+model.t1=2",
            "solver.options={first_step:0.1}",
            "dataset=uea",
            "dataset=japanese_vowels",
            "model=cnf_hyper",
            "task=cnf dataset=digits",
            "tracking=wandb tracking.mode=onlin",
            "device=cuda",
            "data_dir=2024",
            "output_dir=1.5",
            "output_dir=true",
            "task=time_series dataset=uea dataset.uea_name=123",
            "output_dir=/x/lr=0.1",
            "output_dir=/home/josé/x",
            "output_dir=~/runs",
            "output_dir=./a,b",
            "output_dir=[old",
            "data_dir=C:\\data\\(1)",
            "solver.gradient=direct solver.method=scipy_solver",
            "optimizer=adahessian optimizer.hvp=double_backward",
            "task=cnf +optimizer.curvature=mc",
        )
    ),
    (prepare, ["averaging=swa", "trainer.epochs=null", "trainer.max_seconds=5"]),
    (prepare, ["horizon=baseline", "optimizer=lbfgs"]),
    (prepare, ["horizon=baseline", "task=time_series", "model=ode_rnn"]),
    (multirun, ["seed=1,2"]),
    (multirun, ["output_dir=./a,b"]),
    (sweep, ["search=adam"]),
    (sweep, ["search=adm", *SWEEP[1:]]),
    (sweep, [*SWEEP, "trials=3"]),
    (sweep, [*SWEEP, "trainer.restart=true"]),
    (sweep, [*SWEEP, "optimizer.lr=1"]),
    (study, ["seed=5"]),
    (study, ["trainer.restart=True"]),
]

ELSEWHERE = {
    "a pickle of unknown origin": ["task=cnf", "dataset=gas", "dataset.allow_unverified=true"],
    "could not be verified": ["task=cnf", "dataset=gas", "dataset.allow_unverified=true"],
    "all have to have": ["experiment=japanese_vowels", "dataset.unequal_lengths=true"],
    "form=uci is known for": ["experiment=japanese_vowels"],
    "which several ranks do not have": ["horizon=none"],
    "ranks: change trainer.batch_size=": ["trainer.batch_size=64"],
    "not found, and download=false": ["dataset=mnist", "dataset.download=true"],
    "is one device for all ranks": ["device=auto"],
    "start fewer ranks": ["device=cpu"],
    "W&B refuses to start": ["tracking=none"],
    "is what the file of the space": ["optimizer=snopt"],
    "has what was tuned for": ["experiment=digits", "optimizer=snopt"],
    "no finished run of experiment=paper": ["experiment=paper/mnist-snopt", "seed=0"],
}
"""Messages that need data, ranks or W&B, with the arguments that they name."""


@cache
def refused(number: int) -> str:
    call, arguments = WRONG[number]
    with pytest.raises(UserError) as caught:
        call(arguments)
    return str(caught.value)


def followed(message: str, arguments: Sequence[str]) -> list[list[str]]:
    """Return the arguments after each advice of a message."""
    found = []

    def put(*new: str) -> None:
        kept = list(arguments)
        for one in new:
            key = one.partition("=")[0].lstrip("+")
            same = re.compile(rf"\+*{re.escape(key)}[.=]|{re.escape(key.rpartition('.')[0])}={{")
            kept = [old for old in kept if not same.match(old)] + [one]
        found.append(kept)

    for hint in re.findall(r"\(did you mean (.+?)\?\)", message):
        wrong = re.search(r"no option '(\w+)'|(\S+) is unknown|unknown \w+ '(\w+)'", message)
        assert wrong is not None
        word = next(filter(None, wrong.groups()))
        prefix = word.rpartition(".")[0]
        for name in hint.split(" or "):
            new = name if "." in name or not prefix else f"{prefix}.{name}"
            found.append([one.replace(word, new) for one in arguments])
    if quote := re.search(r"quote it: (.+)$", message):
        put(*shlex.split(quote[1]))
    if "without the +" in message:
        found.append([one.lstrip("+") for one in arguments])
    if "add -m" in message:
        found.append(["-m", *arguments])
    left_out = r"(\S+) cannot change|(\S+) would undo|(\S+) is what search|leave (\S+) out"
    if (out := re.search(left_out, message)) and out[out.lastindex or 0] != "it":
        word = out[out.lastindex or 0]
        found.append([one for one in arguments if not one.lstrip("+").startswith(word)])
    if "is given twice" in message:
        found.append(list(arguments)[:-1])
    verbs = r"\b(?:use|add|take|write|or|as in:|such as:) "
    for words in re.findall(rf"{verbs}((?:\+?[a-z][\w@.]*=[^\s;,)]+ ?)+)", message):
        put(*words.replace("…", "0.1").split())
    if gone := re.findall(r"(tracking=none) (?:switches|trains)", message):
        put(*gone)
    return found


@pytest.mark.parametrize("number", range(len(WRONG)), ids=lambda n: " ".join(WRONG[n][1]))
def test_what_a_message_advises_works(number):
    (call, arguments), message = WRONG[number], refused(number)
    ways = followed(message, arguments)
    assert ways, message
    for way in ways:
        call(way)


def test_no_advice_is_missing_above():
    """Every message in the code that names arguments is one of those above."""
    said = [*map(refused, range(len(WRONG))), *ELSEWHERE]
    advice = re.compile(
        r"[\s(](?!key=)\+?[a-z][\w.@]+=[^\s=);]|quote it:|eave \w+ out|did you mean"
    )
    for path in (REPOSITORY / "experiments").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not getattr(node.func, "id", "").endswith("Error"):
                continue
            parts = getattr(node.args[0], "values", node.args[:1]) if node.args else []
            text = "".join(str(getattr(part, "value", "")) for part in parts if is_text(part))
            if advice.search(text):
                words = max((part.value for part in parts if is_text(part)), key=len)
                assert any(words in one or one in text for one in said), f"{path}: {text}"
    for arguments in ELSEWHERE.values():
        compose(arguments)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
