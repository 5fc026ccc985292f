"""Checks of what a node shares with others: settings, wallet, run, chain, slot, dataset and own bucket."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from neurons.doctor import stores
from neurons.doctor.finding import Finding, Missing, fail, ok, skipped, warn
from neurons.doctor.patient import Patient
from neurons.doctor.words import duration, rate, size
from neurons.process import coldkey_address
from neurons.settings import BuiltInChain
from protocol.errors import ChainError
from protocol.window import deadlines, window_of
from storage.errors import StorageError
from storage.location import decode, encode

_LATE_BLOCKS = 4.0
_CLOCK_SECONDS = 2.0
_PAGES = 32


async def settings(patient: Patient) -> Finding:
    """Whether the settings are whole."""
    if patient.reading.problems:
        return fail("; ".join(patient.reading.problems), problems=len(patient.reading.problems))
    chosen = patient.settings
    where = "the built-in chain" if isinstance(chosen.chain, BuiltInChain) else "Bittensor"
    return ok(f"complete, for {where}; local state in {chosen.folder}")


async def wallet(patient: Patient) -> Finding:
    """Whether the hotkey opens."""
    hotkey = (await patient.hotkey.open()).ss58_address
    return ok(f"hotkey {hotkey} of wallet {patient.settings.wallet_name!r}", hotkey=hotkey)


async def run(patient: Patient) -> Finding:
    """Whether the run can be read."""
    published = await patient.published.open()
    return ok(
        f"{published.run.name}, digest {published.run.digest()}", name=published.run.name, digest=published.run.digest()
    )


async def chain(patient: Patient) -> Finding:
    """Whether the chain answers, and how old its newest block is."""
    opened = await patient.chain.open()
    began = time.perf_counter()
    head = await opened.head()
    answer, age = time.perf_counter() - began, time.time() - head.timestamp
    figures = {"block": head.number, "age_seconds": age, "answer_seconds": answer}
    if age > _LATE_BLOCKS * opened.block_seconds:
        advice = (
            "start it with `windrow up`"
            if isinstance(patient.settings.chain, BuiltInChain)
            else "wait, or name another endpoint with --subtensor.chain_endpoint"
        )
        return warn(
            f"block {head.number} is {duration(age)} old and one is due every {opened.block_seconds:g} s: the chain "
            f"stands still, or this endpoint lags behind it; {advice}",
            **figures,
        )
    return ok(f"block {head.number}, {max(age, 0.0):.1f} s old, answered in {1000 * answer:.0f} ms", **figures)


async def clock(patient: Patient) -> Finding:
    """Whether this machine's clock agrees with those of the chain and of the store."""
    found: dict[str, float] = {}
    with suppress(Missing, ChainError):
        ahead = (await (await patient.chain.need()).head()).timestamp - time.time()
        found["chain"] = ahead if ahead > _CLOCK_SECONDS else 0.0  # a block may be old, but not of the future
    with suppress(Missing, StorageError):
        found["store"] = await stores.seconds_ahead(await patient.store.need())
    if not found:
        raise Missing("a chain or a store to compare with")
    figures = {f"{name}_ahead_seconds": value for name, value in found.items()}
    worst = max(found, key=lambda name: abs(found[name]))
    if found[worst]:
        direction = "behind" if found[worst] > 0 else "ahead of"
        return warn(
            f"this machine's clock is {duration(abs(found[worst]))} {direction} that of the {worst}: "
            "let NTP set it; stores refuse requests from clocks that are 15 minutes off",
            **figures,
        )
    return ok(f"agrees with the {' and the '.join(found)}", **figures)


async def window(patient: Patient) -> Finding:
    """Whether the run goes on now."""
    times, opened = (await patient.published.need()).run.time, await patient.chain.need()
    head, first = (await opened.head()).number, deadlines(times.first_window, times).start_block
    if head < first:
        wait = duration((first - head) * opened.block_seconds)
        return ok(f"begins in block {first}, in about {wait}; a node that is started now waits", blocks=first - head)
    number = window_of(head, times)
    left = (deadlines(number, times).close_block - head) * opened.block_seconds
    return ok(f"window {number}, which closes in about {duration(left)}", window=number)


async def registration(patient: Patient) -> Finding:
    """Whether the hotkey has a slot, and one that the run deals pages to."""
    hotkey = (await patient.hotkey.need()).ss58_address
    neurons = await (await patient.chain.need()).neurons()
    own = next((neuron for neuron in neurons if neuron.hotkey == hotkey), None)
    if own is None:
        if patient.settings.register_hotkey:
            return warn("the hotkey has no slot yet; --register gets it one at the start")
        return fail("the hotkey has no slot on this subnet: start with --register, or register it with btcli")
    slots = (await patient.published.need()).run.dataset.slots
    if own.uid >= slots:
        return fail(f"uid {own.uid} has no slot: the run deals pages to {slots} uids; register another hotkey")
    permit = "with a validator's permit" if own.validator_permit else "without a validator's permit"
    return ok(
        f"uid {own.uid} of {len(neurons)}, stake {own.stake:.2f}, {permit}, incentive {own.incentive:.4f}",
        uid=own.uid,
        stake=own.stake,
        incentive=own.incentive,
    )


async def balance(patient: Patient) -> Finding:
    """What the coldkey owns."""
    opened, hotkey = await patient.chain.need(), (await patient.hotkey.need()).ss58_address
    owner = next((neuron.coldkey for neuron in await opened.neurons() if neuron.hotkey == hotkey), None)
    coldkey = owner or coldkey_address(patient.settings)
    if coldkey is None:
        return skipped("the address of the coldkey is not on this machine, and the hotkey is not registered")
    owned = await opened.balance(coldkey)
    sentence = f"coldkey {coldkey} owns {owned:.4f} TAO"
    if owned == 0 and owner is None:
        return warn(f"{sentence}: registering costs some, send it some", tao=owned)
    return ok(sentence, tao=owned)


async def commitment(patient: Patient) -> Finding:
    """Whether the chain says where the bucket is."""
    hotkey, store = (await patient.hotkey.need()).ss58_address, await patient.store.need()
    committed = (await (await patient.chain.need()).commitments()).get(hotkey)
    if committed == encode(store.location):
        return ok(f"on chain, {len(committed)} bytes")
    if committed is None:
        return ok("nothing on chain yet; the node commits where its bucket is when it starts")
    try:
        told = type(decode(committed)).__name__
    except StorageError:
        told = "what is no location"
    return warn(f"the chain names another bucket ({told}) than the settings; the node commits anew when it starts")


async def dataset(patient: Patient) -> Finding:
    """Whether pages of the dataset can be read, and how fast."""
    published = await patient.published.need()
    settings, ways = patient.settings, patient.ways
    opened = await published.open_dataset(settings.dataset, ways.own, ways.peers, settings.buckets)
    pages = min(_PAGES, published.run.pages_per_window, opened.index.pages)
    await opened.read_page(0)  # opens the connection, which stays open while a node runs
    began = time.perf_counter()
    await asyncio.gather(*(opened.read_page(number * (opened.index.pages // pages)) for number in range(pages)))
    speed = pages * opened.index.page_bytes / max(time.perf_counter() - began, 1e-6)
    needed = published.run.pages_needed
    if opened.index.pages < needed:
        return fail(f"it has {opened.index.pages} pages and the run deals out {needed}: name the run's own --dataset")
    return ok(
        f"{opened.index.pages:,} pages of {size(opened.index.page_bytes)}, read at {rate(speed)}",
        pages=opened.index.pages,
        dataset_bytes_per_second=speed,
    )


async def bucket_write(patient: Patient) -> Finding:
    """See `stores.write`."""
    return await stores.write(await patient.store.open())


async def bucket_read(patient: Patient) -> Finding:
    """See `stores.read`."""
    return await stores.read(await patient.store.need())


async def read_key(patient: Patient) -> Finding:
    """See `stores.refusal`."""
    return await stores.refusal(await patient.store.need())


async def bucket_speed(patient: Patient) -> Finding:
    """See `stores.speed`."""
    return await stores.speed(await patient.store.need())
