"""How texts become batches: cut into windows for the tokenizer, sorted by tokens within a padded budget, smaller after a lack of memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int32]

#: What allocators say in a RuntimeError or an OSError of their own: torch on a CPU, oneDNN, CUDA's libraries, C++.
_MEMORY_WORDS: Final = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc", "alloc_failed", "cannot allocate")

#: What one batch more costs, in parts of a batch's tokens: its call, and that small products are slower.
_CHARGE: Final = 1 / 64
#: Each of several batches that run at once should be followed by two more, so that none idles long at the end; none smaller than this.
_TURNS: Final = 3
_LEAST: Final = 256


class TokenBatch(NamedTuple):
    """Inputs of one forward pass: which rows of the answer they are, their token ids (longest first), and what these were made of."""

    rows: list[int]
    ids: list[list[int]]
    texts: list[str]
    prompt: str = ""
    task: str = "document"


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield batches of indices, longest first, each within `budget` padded tokens; one longer input is a batch of its own.

    The cuts cost least, in padded tokens and a small charge for each batch: full batches of inputs that differ much are padded by 6 % where a
    unit has 16,000 tokens, these by 2 %.
    """
    import numpy as np

    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    charge = budget * _CHARGE
    costs = np.zeros(len(order) + 1)  # of the inputs from here to the shortest
    sizes = np.zeros(len(order), np.int64)  # of the batch that begins here
    counts = np.arange(1, len(order) + 1)
    for start in reversed(range(len(order))):
        length = max(1, lengths[order[start]])
        most = min(max(1, budget // length), len(order) - start)
        choices = counts[:most] * length + costs[start + 1 : start + 1 + most]
        sizes[start] = best = most - int(choices[::-1].argmin())  # of equals the fullest
        costs[start] = choices[best - 1] + charge
    start = 0
    while start < len(order):
        yield order[start : start + int(sizes[start])]
        start += int(sizes[start])


def shared_budget(lengths: Sequence[int], budget: int, parallel: int) -> int:
    """Return the padded tokens of a batch where `parallel` of them run at once: less than `budget` where there would be too few for all."""
    return min(budget, max(_LEAST, sum(lengths) // (parallel * _TURNS))) if parallel > 1 else budget


def windows(texts: Sequence[str], characters: int) -> Iterator[range]:
    """Yield consecutive ranges of `texts`, of about `characters` each: while one is computed, the next is tokenised."""
    start = held = 0
    for index, text in enumerate(texts):
        if index > start and held + len(text) > characters:
            yield range(start, index)
            start, held = index, 0
        held += len(text)
    if start < len(texts):
        yield range(start, len(texts))


def padded(ids: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Return ids ``(batch, longest)`` filled up with zeros, and lengths ``(batch,)``, both int32."""
    import numpy as np

    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    filled = np.zeros((len(ids), int(lengths.max(initial=0))), np.int32)
    for row, tokens in zip(filled, ids, strict=True):
        row[: len(tokens)] = tokens
    return filled, lengths


def packed(ids: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Return all ids in one row ``(tokens,)`` without padding, and where each input begins, with the end ``(batch + 1,)``."""
    import numpy as np

    bounds = np.zeros(len(ids) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, ids), np.int32, len(ids)), out=bounds[1:])
    return np.concatenate([np.asarray(tokens, np.int32) for tokens in ids]), bounds


class Budget:
    """The padded tokens of a forward pass: halved when memory did not suffice, and kept so.

    Parameters
    ----------
    tokens
        What to begin with.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def halve(self, lengths: Sequence[int]) -> bool:
        """Halve for inputs of these lengths; false, and unchanged, where each of them is a batch of its own already."""
        if not lengths or self.tokens < 2 * min(lengths) or len(lengths) == 1:
            return False
        self.tokens = min(self.tokens, max(lengths) * len(lengths)) // 2
        return True


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an allocation failed, in whichever library: such a call may succeed with less."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(word in str(error).lower() for word in _MEMORY_WORDS)
