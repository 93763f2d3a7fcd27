"""Test cases chosen in pairs: every value of a setting meets every value of every other one, without all products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import combinations, product
from typing import Any

import pytest


def pairwise_cases(**settings: Collection[Any]) -> list[dict[str, Any]]:
    """Return cases, a value for each setting, that hold every pair of two settings' values at least once.

    Greedy, in the manner of AETG (Cohen et al., 1997): each case starts from a pair that no case holds yet; every
    further setting takes the value that adds the most pairs, and of equal ones the value that was used least.
    """
    values = {name: list(choices) for name, choices in settings.items()}
    missing = {
        frozenset(((one, i), (other, j))): None  # a dict keeps the order, so that the cases are the same every time
        for one, other in combinations(values, 2)
        for i, j in product(range(len(values[one])), range(len(values[other])))
    }
    used: Counter[tuple[str, int]] = Counter()
    cases = []
    while missing:
        case = dict(sorted(next(iter(missing))))
        for name in [name for name in values if name not in case]:
            gains = {
                i: sum(frozenset(((name, i), chosen)) in missing for chosen in case.items())
                for i in range(len(values[name]))
            }
            case[name] = max(gains, key=lambda i, name=name, gains=gains: (gains[i], -used[name, i]))
        used.update(case.items())
        for pair in combinations(case.items(), 2):
            missing.pop(frozenset(pair), None)
        cases.append({name: choices[case[name]] for name, choices in values.items()})
    return cases


def in_pairs(**settings: Collection[Any]) -> pytest.MarkDecorator:
    """Parametrise a test by `pairwise_cases`."""
    return pytest.mark.parametrize(list(settings), [tuple(case.values()) for case in pairwise_cases(**settings)])
