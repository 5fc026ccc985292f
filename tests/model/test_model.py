"""The finality rule holds in every state of small networks, and the search sees when one does not (protocol §12)."""

from __future__ import annotations

import pytest

from tests.model.networks import BROKEN, QUICK
from tests.model.search import Network, Rule, search


@pytest.mark.parametrize("network", QUICK.values(), ids=QUICK.keys())
def test_no_two_rivals_are_final_and_an_honest_leader_makes_something_final(network: Network) -> None:
    result = search(network)
    assert result.broken is None, "\n".join(result.trace)
    assert result.states > 100


@pytest.mark.parametrize(("network", "rule"), BROKEN.values(), ids=BROKEN.keys())
def test_the_search_finds_what_breaks(network: Network, rule: Rule) -> None:
    result = search(network, rule)
    assert result.broken is not None
    assert result.trace
