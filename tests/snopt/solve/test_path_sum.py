"""The sum of parameter products over accepted steps, against the products summed by hand."""

import pytest
import torch
from torch.testing import assert_close

from snopt.solve.backward import PathSum
from snopt.solve.tableau import TABLEAUX

SHAPES = ((3, 2), (4,))


def products(used=(True, True)):
    pairs = zip(SHAPES, used, strict=True)
    return [torch.randn(s, dtype=torch.float64) if u else None for s, u in pairs]


def params():
    return [torch.zeros(s, dtype=torch.float64) for s in SHAPES]


@pytest.mark.parametrize("method", sorted(TABLEAUX))
@pytest.mark.parametrize("used", [(True, True), (True, False)])
def test_it_is_the_weighted_sum_over_accepted_attempts(method, used):
    torch.manual_seed(0)
    tableau = TABLEAUX[method]
    wanted = [i for i in range(tableau.stages) if tableau.needs_product(i)]
    total, expected = PathSum(params(), tableau), params()
    handed_on = None
    # (length, whether accepted): rejections first, in a row, and between.
    for dt, accepted in ((0.5, False), (0.1, True), (0.3, False), (0.2, False), (0.7, True)):
        if not tableau.adaptive and not accepted:
            continue
        kept = {}
        for i in wanted:
            if i == 0 and tableau.adaptive and handed_on is not None:
                kept[0] = handed_on
                continue
            kept[i] = products(used)
            total.add(i, kept[i])
        if tableau.adaptive:
            handed_on = kept[0] if not accepted else kept.get(tableau.stages - 1)
        if accepted:
            total.accept(dt)
            for i in wanted:
                for sums, product in zip(expected, kept[i], strict=True):
                    if product is not None:
                        sums += dt * tableau.b[i] * product
    for found, sums in zip(total.result(), expected, strict=True):
        assert_close(found, sums)


def test_products_stay_as_they_are():
    tableau = TABLEAUX["dopri5"]
    total, given = PathSum(params(), tableau), []
    for i in (0, 2, 3, 4, 5, 6):
        given.append(products())
        total.add(i, given[-1])
    before = [[p.clone() for p in one] for one in given]
    total.accept(0.3)
    total.add(2, products())
    total.accept(0.2)
    for one, other in zip(given, before, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def test_nothing_gives_zero():
    assert all(not r.any() for r in PathSum(params(), TABLEAUX["rk4"]).result())
    assert PathSum([], TABLEAUX["rk4"]).result() == []
