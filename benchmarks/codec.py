"""What SparseLoCo costs and keeps, against a straightforward chain of torch operations (`benchmarks.torch_chain`).

    python -m benchmarks.codec [--json] [--quick]

Cases are decoder layers of the presets 150m, 1b and 8b, as many as fit, with made-up heavy-tailed pseudo-gradients,
and the whole demo model with real ones. Both sides take turns in one process on the same two cores;
a ratio is the chain's time over ours, taken turn by turn, and printed as its median with its quartiles. There are two
rules of averaging, and both sides always follow the same: `aggregate` divides each element by how many peers sent
it (in torch, scatter_reduce with "mean"); `aggregate all` divides by the number of peers, which in torch is a
scatter_add, several times faster. `validated` begins with the 20 payloads as bytes: BLAKE3, every check, the norms.
`revert` is one payload applied and taken back, against nothing but a deep copy. `overlap` is all pairs of 20 peers:
against comparing lists of positions chunk by chunk, and `overlap sorted` against `np.intersect1d` of whole lists.
Extra memory is the peak beyond inputs and outputs, read from /proc. What `--json` calls quartiles is first quartile,
median, third quartile; above the shapes of a ratio they are geometric means over the shapes.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import torch_chain
from benchmarks.cases import PEERS, ZERO, Case, layout_of, made_up_case, real_case, run_of, signer
from protocol.run import SparseLoCo
from protocol.sealing import Seal, SealedShard
from protocol.sparseloco.aggregate import Trial, clip_factors, outer_step, shared_positions
from protocol.sparseloco.compress import SparseUpdate, compress
from protocol.sparseloco.payload import HEADER_BYTES, read_payload, shard_sizes
from protocol.sparseloco.plan import Group, plan_of
from protocol.sparseloco.records import unpack
from storage.seal import SEAL_OVERHEAD_BYTES

THREADS = 2
LAYERS = ("150m", "1b", "8b")
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_COUNTER_BYTES = 2**18
"""About how exactly Linux knows the resident size of a process."""
_GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes glibc give memory back when it is freed: else a call would find memory that an earlier one left behind."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done: elements of a layer at most, seconds and rounds for each measurement, windows of training."""

    elements: int
    seconds: float
    rounds: int
    windows: int


FULL = Scale(elements=110_000_000, seconds=4.0, rounds=5, windows=12)
QUICK = Scale(elements=8_000_000, seconds=0.3, rounds=3, windows=4)


@dataclass(frozen=True, slots=True, eq=False)
class Duel:
    """The same work done by the chain and by us; `before` runs ahead of both and is not timed."""

    torch: Callable[[], object]
    ours: Callable[[], object]
    before: Callable[[], object] = lambda: None
    rounds: int | None = None
    """How often, where the scale's rounds would take minutes."""


def duels(case: Case) -> Iterator[tuple[str, Duel]]:
    """What is compared, by name."""
    run, layout, scheme = case.run, case.layout, case.run.sparseloco
    pieces = plan_of(layout, scheme).groups
    theta, error = torch.from_numpy(case.theta), case.kept.copy()
    chain = partial(
        torch_chain.encode, pieces, torch.from_numpy(error), torch.from_numpy(case.delta), scheme.error_feedback
    )
    ours = partial(compress, layout, scheme, error, case.delta)
    yield "encode", Duel(chain, ours, before=partial(np.copyto, error, case.kept))
    read = partial(read_payload, run=run, layout=layout, hotkey=signer().ss58_address, window=0)
    updates = [read(data).update for data in case.payloads]
    norms = torch_chain.norms_of(pieces, case.packed)
    pool = ThreadPoolExecutor(THREADS)
    for name, average in (("aggregate", "contributors"), ("aggregate all", "all")):
        rule = scheme.model_copy(update={"average": average})
        chain = partial(torch_chain.aggregate, pieces, theta, case.packed, scheme.alpha(0), average == "contributors")
        # We know the norms of a payload since it was read, so the chain is told them, and takes them where we read.
        yield name, Duel(partial(chain, norms), partial(outer_step, case.theta, updates, rule, 0))
        yield f"{name} validated", Duel(chain, partial(_read_and_step, case, read, rule, pool))
    trial = Trial(updates[0], clip_factors(updates)[0], np.float32(run.gauntlet.step_share * scheme.alpha(0)))
    yield "revert", Duel(partial(torch_chain.deep_copy, pieces, theta), partial(_apply_and_revert, trial, case))
    compared = [[places(piece, update) for piece in pieces] for update in updates]
    yield "overlap", Duel(partial(torch_chain.overlap, compared), partial(shared_positions, updates), rounds=2)
    lists = [update.indices for update in updates]
    chain = partial(torch_chain.overlap_of_sorted, lists, THREADS)
    yield "overlap sorted", Duel(chain, partial(shared_positions, updates))


def places(piece: Group, update: SparseUpdate) -> torch.Tensor:
    """int16 [count, k]: the positions of an update in each chunk of a piece."""
    positions, _ = unpack(piece.format, piece.records(update.records))
    return torch.from_numpy(positions.astype(np.int16))


def _read_and_step(case: Case, read: Callable[[bytes], Any], rule: SparseLoCo, pool: ThreadPoolExecutor) -> None:
    each = -(-PEERS // THREADS)
    parts = [case.payloads[first : first + each] for first in range(0, PEERS, each)]
    updates = [update for part in pool.map(lambda part: [read(data).update for data in part], parts) for update in part]
    outer_step(case.theta, updates, rule, 0)


def _apply_and_revert(trial: Trial, case: Case) -> None:
    trial.revert(case.theta, trial.apply(case.theta))


def compare(duel: Duel, scale: Scale) -> tuple[list[float], list[float]]:
    """Seconds of the chain and ours, turn by turn, after one turn that warms up."""
    taken: tuple[list[float], list[float]] = [], []
    began = time.perf_counter()
    for turn in range(-1, duel.rounds or 200):
        for times, work in zip(taken, (duel.torch, duel.ours), strict=True):
            duel.before()
            started = time.perf_counter()
            work()
            if turn >= 0:
                times.append(time.perf_counter() - started)
        if duel.rounds is None and turn + 1 >= scale.rounds and time.perf_counter() - began > scale.seconds:
            break
    return taken


def extra_bytes(work: Callable[[], object], before: Callable[[], object], returned_bytes: int) -> int:
    """Peak resident memory during a call beyond what was there and what it returns."""
    before()
    gc.collect()
    _CLEAR_REFS.write_text("5")  # the peak restarts from here
    resident = _memory_bytes("VmRSS")
    result = work()
    peak = _memory_bytes("VmHWM")
    del result
    return max(0, peak - resident - returned_bytes)


def _memory_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def payload_cost(preset: str) -> dict[str, float]:
    """Everything that a miner of this preset uploads in a window: records, header, tags and the signed seal."""
    run = run_of(preset)
    layout = layout_of(run)
    sizes = shard_sizes(layout, run)
    shards = tuple(SealedShard(size_bytes=size + SEAL_OVERHEAD_BYTES, digest=ZERO) for size in sizes)
    digests = {"layout_digest": layout.digest, "base_root": ZERO, "payload_digest": ZERO, "key_digest": ZERO}
    seal = Seal(signer=signer().ss58_address, run_digest=run.digest(), window=10**6, shards=shards, **digests)
    parts = {
        "records_bytes": plan_of(layout, run.sparseloco).body_bytes,
        "header_bytes": HEADER_BYTES,
        "tags_bytes": SEAL_OVERHEAD_BYTES * len(sizes),
        "seal_bytes": len(seal.signed(signer()).canonical()),
    }
    total, values = sum(parts.values()), plan_of(layout, run.sparseloco).values
    return parts | {
        "payload_bytes": total,
        "parameters": layout.size,
        "values": values,
        "bits_per_value": round(8 * total / values, 4),
        "ratio_fp32": round(4 * layout.size / total, 2),
    }


def measure(scale: Scale, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that is printed."""
    costs = {preset: payload_cost(preset) for preset in ("1b", "demo")}
    say("training the demo model")
    real, errors = real_case(scale.windows)
    result: dict[str, Any] = {
        "bits_per_value": costs["1b"]["bits_per_value"],
        "bound_bits_per_value": round(math.log2(math.comb(4096, 64)) / 64 + 2, 4),
        "ratio_fp32": costs["1b"]["ratio_fp32"],
        "payloads": costs,
        "error_real": _summed_up(errors),
        "threads": THREADS,
        "peers": PEERS,
    }
    _time(real, scale, result, say)
    del real
    for preset in LAYERS:
        _time(made_up_case(preset, scale.elements), scale, result, say)
    for entry in (entry for name, entry in result.items() if name.endswith("_ratio")):
        each = zip(*(shape["quartiles"] for shape in entry["shapes"].values()), strict=True)
        entry["quartiles"] = [round(statistics.geometric_mean(column), 4) for column in each]
    say("memory")
    result["extra_bytes_per_param"] = memory(scale.elements)
    return result


def _summed_up(errors: Sequence[dict[str, float]]) -> dict[str, Any]:
    columns = {name: [row[name] for row in errors] for name in errors[0]}
    ours = columns.pop("two_bits")
    return {
        "quartiles": quartiles(ours),
        "first_window": round(ours[0], 4),
        "last_window": round(ours[-1], 4),
        "windows": len(ours),
    } | {name: quartiles(values) for name, values in columns.items()}


def _time(case: Case, scale: Scale, result: dict[str, Any], say: Callable[[str], None]) -> None:
    say(f"{case.name}: {case.layout.size:,} parameters")
    per = 1e9 / case.layout.size
    for name, duel in duels(case):
        chain, ours = compare(duel, scale)
        ratios = np.divide(chain, ours).tolist()
        entry = result.setdefault(name.replace(" ", "_") + "_ratio", {"quartiles": [], "shapes": {}})
        entry["shapes"][case.name] = {
            "parameters": case.layout.size,
            "rounds": len(ratios),
            "quartiles": quartiles(ratios),
            "torch_ns_per_param": quartiles([per * seconds for seconds in chain]),
            "our_ns_per_param": quartiles([per * seconds for seconds in ours]),
        }


def memory(elements: int) -> dict[str, dict[str, Any]] | None:
    """Extra bytes of `encode` and `aggregate` for layers of at most `elements`, from a process of its own; None where
    Linux's /proc is missing."""
    if not _CLEAR_REFS.exists():
        return None
    before = dict(os.environ)
    os.environ.update(_GIVE_BACK)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            return fresh.submit(memory_here, elements).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def memory_here(elements: int) -> dict[str, dict[str, Any]]:
    """A parameter and in all; for the chain also in largest tensors, since it works tensor by tensor."""
    torch.set_num_threads(THREADS)
    found: dict[str, dict[str, Any]] = {name: {"quartiles": [], "shapes": {}} for name in ("encode", "aggregate")}
    pooled: dict[str, list[float]] = {name: [] for name in found}
    for preset in LAYERS:
        case = made_up_case(preset, elements, distinct=1)
        size, largest = case.layout.size, max(p.size for p in case.layout.parameters)
        returned = {"encode": (sum(part.size_bytes for part in case.packed[0]), len(case.payloads[0]) - HEADER_BYTES)}
        for name, duel in itertools.islice(duels(case), len(found)):
            chain_returns, we_return = returned.get(name, (0, 0))
            chain = [extra_bytes(duel.torch, duel.before, chain_returns) for _ in range(4)][1:]  # the first warms up
            ours = [extra_bytes(duel.ours, duel.before, we_return) for _ in range(4)][1:]
            found[name]["shapes"][preset] = {
                "parameters": size,
                "quartiles": quartiles([peak / size for peak in ours]),
                "our_bytes": statistics.median(ours),
                "known_to": round(_COUNTER_BYTES / size, 4),
                "torch": quartiles([peak / size for peak in chain]),
                "torch_in_largest_tensors": quartiles([peak / (4 * largest) for peak in chain]),
            }
            pooled[name] += [peak / size for peak in ours]
    for name, values in pooled.items():
        found[name]["quartiles"] = quartiles(values)
    return found


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return [round(value, 4) for value in statistics.quantiles(values, n=4, method="inclusive")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="smaller tensors and fewer rounds: within a minute")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # the kernels use every core that they may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    torch.set_num_threads(THREADS)
    result = measure(QUICK if options.quick else FULL, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(result)) if options.json else show(result)


def show(result: dict[str, Any]) -> None:
    """The result as tables."""
    for preset, cost in result["payloads"].items():
        print(f"payload of {preset}: {cost['payload_bytes']:,} bytes for {cost['parameters']:,} parameters: ", end="")
        print(f"{cost['bits_per_value']:.3f} bits a value, {cost['ratio_fp32']:.1f}x under fp32")
    print(f"no fewer than {result['bound_bits_per_value']:.2f} bits a value for 64 of 4096, sign and level")
    error = result["error_real"]
    print(
        f"quantisation error over {error['windows']} windows of the demo model: {_spread(error['quartiles'])}; ", end=""
    )
    print(f"one bit {error['one_bit'][1]:.3f}, torch chain {error['torch_chain'][1]:.3f}")
    print(f"\n{'':28}{'parameters':>12}  {'torch ns':>9}{'our ns':>9}  ratio")
    for key in [key for key in result if key.endswith("_ratio")]:
        print(f"{key.removesuffix('_ratio').replace('_', ' '):<42}{'':18}  {_spread(result[key]['quartiles'])}")
        for name, row in result[key]["shapes"].items():
            times = row["torch_ns_per_param"][1], row["our_ns_per_param"][1]
            print(f"  {name:<26}{row['parameters']:>12,}  {times[0]:9.3f}{times[1]:9.3f}  {_spread(row['quartiles'])}")
    if result["extra_bytes_per_param"] is None:
        print("\nextra memory: not measured, there is no /proc/self/clear_refs here")
        return
    print(f"\n{'extra memory, bytes a parameter':<42}{'torch':>9}{'our':>9}  known to   torch in largest tensors")
    for name, entry in result["extra_bytes_per_param"].items():
        print(name)
        for shape, row in entry["shapes"].items():
            print(f"  {shape:<40}{row['torch'][1]:9.3f}{row['quartiles'][1]:9.3f}  {row['known_to']:8.3f}", end="")
            print(f"   {row['torch_in_largest_tensors'][1]:.1f}")


def _spread(values: list[float]) -> str:
    return f"{values[1]:8.3f}  ({values[0]:.3f} to {values[2]:.3f})"


if __name__ == "__main__":
    main()
