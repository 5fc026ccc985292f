"""Search everything, some minutes: `make model`."""

from __future__ import annotations

import time

from tests.model.networks import BROKEN, LONG, QUICK
from tests.model.search import Rule, search


def main() -> None:
    """Print a line a network; exit with 1 if the rule breaks, or if a search does not find what it must."""
    cases = [(name, network, Rule(), False) for name, network in (QUICK | LONG).items()]
    cases += [(name, network, rule, True) for name, (network, rule) in BROKEN.items()]
    wrong = 0
    for name, network, rule, breaks in cases:
        start = time.process_time()
        result = search(network, rule)
        wrong += breaks is (result.broken is None)
        seconds = time.process_time() - start
        said = result.broken or "holds"
        print(f"{name:48} {result.states:>9,} states {result.steps:>11,} steps {seconds:6.1f} s  {said}", flush=True)
        if result.broken and not breaks:
            print("\n".join(result.trace))
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
