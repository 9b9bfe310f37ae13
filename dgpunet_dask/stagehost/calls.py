"""How a stage is called: its items split into batches, its results put back in order. Standard library only.

Both the stage host and the CPU worker (for light stages) call stages through here, so they behave alike.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgpunet_dask.model.stage import Stage
from dgpunet_dask.stagehost.frames import packed_size, read_frames, unpack
from dgpunet_dask.stagehost.spec import StageCallSpec

#: Called whenever the stage got on: after a batch, for an item that it yields or takes.
Progress = Callable[[], None]


def tokens_of(item: Any) -> int:
    """Return an item's length: its ``tokens`` (attribute or key; a number, or a sequence that is counted), else its `len`; at least 1."""
    tokens = item.get("tokens") if isinstance(item, Mapping) else getattr(item, "tokens", None)
    counts: tuple[tuple[Any, Any], ...] = ((operator.index, tokens), (len, tokens), (len, item))
    for count, value in counts:
        try:
            return max(1, int(count(value)))
        except TypeError:  # not a number, not a sequence
            continue
    return 1


def token_batches(lengths: Sequence[int], batch_tokens: int, batch_items: int | None = None) -> Iterator[list[int]]:
    """Yield batches of indices, longest items first, whose padded size ``longest × count`` stays within `batch_tokens`.

    An item that is longer than the budget is a batch of its own. Sorting by length keeps padding small, and the longest first shows at
    once whether memory suffices. Equal lengths keep their order.
    """
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = longest * (len(batch) + 1) > batch_tokens or len(batch) == batch_items
        if batch and full:
            yield batch
            batch = []
        if not batch:
            longest = lengths[index]
        batch.append(index)
    if batch:
        yield batch


def run_call(stage: Stage, spec: StageCallSpec, items: list[Any], progress: Progress) -> list[Any]:
    """Return the results of `stage` for one unit's `items`.

    Raises
    ------
    ValueError
        If the stage has a token budget and does not give one result for each item.
    """
    if spec.batch_tokens is None:
        step = spec.batch_items or max(1, len(items))
        batches = (items[start : start + step] for start in range(0, len(items), step))
        return [result for batch in batches for result in _results(stage, batch, progress)]
    ordered: list[Any] = [None] * len(items)
    for indices in token_batches([tokens_of(item) for item in items], spec.batch_tokens, spec.batch_items):
        results = _results(stage, [items[i] for i in indices], progress)
        if len(results) != len(indices):
            told = f"a batch of {len(indices)} items gave {len(results)} results"
            raise ValueError(f"{told}; with `batch: {{tokens: N}}` a stage must give one result for each item")
        for index, result in zip(indices, results, strict=True):
            ordered[index] = result
    return ordered


def _results(stage: Stage, batch: list[Any], progress: Progress) -> list[Any]:
    results = listed(stage(batch), progress)
    progress()
    return results


def listed(returned: Any, progress: Progress) -> list[Any]:
    """Return what a stage returned as a list; each item of an iterator is progress.

    Raises
    ------
    TypeError
        If it is no collection of results: a forgotten ``return`` must not pass for an empty result.
    """
    if isinstance(returned, list):
        return returned
    if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable):
        raise TypeError(f"the stage returned {type(returned).__name__}; return a list of results, or an iterator over them")
    results = []
    for result in returned:
        results.append(result)
        progress()
    return results


def run_gather(stage: Stage, files: Sequence[str], progress: Progress) -> list[Any]:
    """Call a gather `stage` once with an iterator over the items of `files`, read one file at a time; ``None`` means no results."""

    def items() -> Iterator[Any]:
        for file in files:
            for item in unpack(read_frames(Path(file))):
                progress()
                yield item

    returned = stage(items())  # type: ignore[arg-type]  # a gather stage takes an iterable
    return [] if returned is None else listed(returned, progress)


def source_units(stage: Stage, unit_items: int, unit_bytes: int, progress: Progress) -> Generator[list[Any], None, None]:
    """Yield the items of a source `stage` in units of at most `unit_items` items and `unit_bytes` packed bytes.

    An item above `unit_bytes` is a unit of its own.
    """
    unit: list[Any] = []
    size = 0
    returned = stage()  # type: ignore[call-arg]  # a source takes no batch
    if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable):
        raise TypeError(f"the source returned {type(returned).__name__}; return an iterable of items")
    for item in returned:
        progress()
        nbytes = packed_size(item)
        if unit and size + nbytes > unit_bytes:
            yield unit
            unit, size = [], 0
        unit.append(item)
        size += nbytes
        if len(unit) >= unit_items:
            yield unit
            unit, size = [], 0
    if unit:
        yield unit
