"""A BERT encoder on a CPU through OpenVINO: in bfloat16 where the processor multiplies it, float32 elsewhere, int8 on request.

Each core runs a batch of its own (the plug-in's throughput mode): batches of 1,024 padded tokens fit its caches, and shapes that were not
seen before cost nothing worth rounding lengths for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.retrieval.batching import TokenBatch, padded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dgpunet_dask.retrieval.bertfiles import BertFiles

    Vectors = NDArray[np.float32]

#: How a precision is called there. int8 weights are multiplied in float32 or, where the processor can, in int8.
_HINTS: Final = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
#: Inputs of int8 weights are quantised in groups of so many.
_GROUP: Final = 32
#: Padded tokens of one forward pass on one core.
BATCH_TOKENS: Final = 1024


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    OpenVINO's converter reports its use over the network unless a file in the user's home says no, and imports what does so with itself. With
    that package hidden it takes its own stub instead. The converter is not used here; this makes sure.

    Raises
    ------
    ImportError
        If it is not installed, or not made for this machine.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # how Python is told not to find a module
    import openvino

    return openvino


class OpenVinoEngine:
    """A BERT encoder, compiled for this machine's CPU.

    Parameters
    ----------
    files
        The model.
    precision
        ``fp32``, ``bf16`` or ``int8``.
    threads
        Cores to use; ``None`` for all.
    """

    name = "openvino"
    batch_tokens = BATCH_TOKENS

    def __init__(self, files: BertFiles, precision: str, threads: int | None = None) -> None:
        from dgpunet_dask.retrieval.bertfiles import float_weights
        from dgpunet_dask.retrieval.openvino_graph import bert_graph

        openvino = import_openvino()
        self.precision = precision
        self.dimension = files.hidden
        graph = bert_graph(files, float_weights(files), int8=precision == "int8")
        self._compiled = openvino.Core().compile_model(graph, "CPU", _settings(precision, threads))
        self.parallel = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._queue = openvino.AsyncInferQueue(self._compiled, self.parallel)
        self._one = threading.Lock()

    def pooled(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[list[int], Vectors]]:
        """Yield the rows and vectors ``(batch, hidden)`` of each batch, as they are done; vectors are not normalised.

        Threads take turns: all cores are busy with one caller's batches.
        """
        with self._one:
            yield from self._pooled(batches)

    def _pooled(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[list[int], Vectors]]:
        done: list[tuple[list[int], Vectors]] = []

        def finished(request: Any, rows: list[int]) -> None:
            done.append((rows, request.get_output_tensor(0).data.copy()))  # the request's own memory is used again

        self._queue.set_callback(finished)
        try:
            for batch in batches:
                ids, lengths = padded(batch.ids)
                self._queue.start_async({0: ids, 1: lengths}, batch.rows)  # waits for an idle request; other threads run meanwhile
                while done:
                    yield done.pop()
        finally:
            self._queue.wait_all()
        yield from done


def _settings(precision: str, threads: int | None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "THROUGHPUT",
        "ENABLE_CPU_PINNING": False,  # a process with a share of the cores would bind its threads to the first of them, as would all the others
    }
    if threads is not None:
        settings |= {"INFERENCE_NUM_THREADS": max(1, threads), "NUM_STREAMS": max(1, threads)}
    if precision == "int8":
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _GROUP
    return settings
