"""The search for noise levels."""

import pytest

from cmjax.generation.search import ternary_search


@pytest.mark.parametrize("least", [1, 2, 7, 20, 37, 38])
def test_ternary_search_finds_the_least_in_few_tries(least):
    tried = []

    def value(place):
        tried.append(place)
        return abs(place - least) ** 1.5

    assert ternary_search(value, 1, 38) == least
    assert len(set(tried)) <= 18


def test_a_flat_stretch_does_not_mislead_it():
    assert ternary_search(lambda place: max(abs(place - 9), 2), 1, 38) in range(7, 12)
