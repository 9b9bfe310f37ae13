"""A BERT encoder as an OpenVINO graph, built from its weights: no torch, no converter, and no file between the two.

Layer normalisation is written as OpenVINO's own exporters write it (MVN, then scale and shift), and attention as one operation, since
these are the forms that its CPU plug-in fuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dgpunet_dask.retrieval.bertfiles import BertFiles

    Weights = dict[str, NDArray[np.float32]]

#: Added to the scores of padding: far below any real one, and within what bfloat16 and float16 can hold.
_UNSEEN: Final = -60000.0
#: An int8 weight's largest number.
_INT8: Final = 127


def bert_graph(files: BertFiles, weights: Weights, *, int8: bool = False) -> Any:
    """Return the model: ids ``(batch, length)`` and lengths ``(batch,)``, both int32, to pooled float32 ``(batch, hidden)``.

    Parameters
    ----------
    int8
        Keep the weights of products as int8, with a scale for each output: the plug-in then quantises activations as it goes.
    """
    import openvino

    return openvino.Model(*_Builder(files, weights, int8=int8).build(), "bert")


class _Builder:
    def __init__(self, files: BertFiles, weights: Weights, *, int8: bool) -> None:
        from openvino import opset13

        self.op: Any = opset13
        self.files = files
        self.weights = weights
        self.int8 = int8

    def build(self) -> tuple[list[Any], list[Any]]:
        """Return results and parameters."""
        import numpy as np

        ids = self.op.parameter([-1, -1], np.int32, name="ids")
        lengths = self.op.parameter([-1], np.int32, name="lengths")
        length = self.op.gather(self.op.shape_of(ids), self._ints(1), self._ints(0))
        real = self.op.less(self._counted(length), self.op.unsqueeze(lengths, self._ints(1)))
        unseen = self.op.select(real, self._float(0.0), self._float(_UNSEEN))
        mask = self.op.unsqueeze(unseen, self._ints([1, 2]))
        hidden = self._embedded(ids, length)
        for number in range(self.files.layers):
            hidden = self._block(f"encoder.layer.{number}.", hidden, mask)
        pooled = self._pooled(hidden, real, lengths)
        return [self.op.result(self.op.convert(pooled, "f32"))], [ids, lengths]

    def _counted(self, length: Any) -> Any:
        """Return ``0, 1, …, length - 1`` as int32 ``(1, length)``."""
        numbers = self.op.range(self._ints(0), length, self._ints(1), "i64")
        return self.op.unsqueeze(self.op.convert(numbers, "i32"), self._ints(0))

    def _embedded(self, ids: Any, length: Any) -> Any:
        table = self.weights
        # token type 0 throughout: its row is added to the positions once
        positions = table["embeddings.position_embeddings.weight"] + table["embeddings.token_type_embeddings.weight"][0]
        places = self.op.range(self._ints(0), length, self._ints(1), "i64")
        words = self.op.gather(self._of("embeddings.word_embeddings.weight"), ids, self._ints(0))
        found = self.op.add(words, self.op.gather(self.op.constant(positions), places, self._ints(0)))
        return self._norm("embeddings.LayerNorm", found)

    def _block(self, prefix: str, hidden: Any, mask: Any) -> Any:
        heads = (self._heads(self._linear(f"{prefix}attention.self.{name}", hidden)) for name in ("query", "key", "value"))
        seen = self.op.transpose(self.op.scaled_dot_product_attention(*heads, mask), self._ints([0, 2, 1, 3]))
        seen = self.op.reshape(seen, self._ints([0, 0, self.files.hidden]), special_zero=True)
        attended = self.op.add(hidden, self._linear(f"{prefix}attention.output.dense", seen))
        hidden = self._norm(f"{prefix}attention.output.LayerNorm", attended)
        inner = self.op.gelu(self._linear(f"{prefix}intermediate.dense", hidden), "erf")
        return self._norm(f"{prefix}output.LayerNorm", self.op.add(hidden, self._linear(f"{prefix}output.dense", inner)))

    def _heads(self, values: Any) -> Any:
        shape = self._ints([0, 0, self.files.heads, self.files.hidden // self.files.heads])
        return self.op.transpose(self.op.reshape(values, shape, special_zero=True), self._ints([0, 2, 1, 3]))

    def _pooled(self, hidden: Any, real: Any, lengths: Any) -> Any:
        if self.files.pooling == "cls":
            return self.op.gather(hidden, self._ints(0), self._ints(1))
        # the mean as a product: a row of 1 / length at real tokens and 0 at padding
        share = self.op.divide(self.op.convert(real, "f32"), self.op.unsqueeze(self.op.convert(lengths, "f32"), self._ints(1)))
        summed = self.op.matmul(self.op.unsqueeze(share, self._ints(1)), hidden, transpose_a=False, transpose_b=False)
        return self.op.squeeze(summed, self._ints(1))

    def _linear(self, name: str, values: Any) -> Any:
        product = self.op.matmul(values, self._matrix(f"{name}.weight"), transpose_a=False, transpose_b=True)
        return self.op.add(product, self._of(f"{name}.bias"))

    def _matrix(self, name: str) -> Any:
        import numpy as np

        if not self.int8:
            return self._of(name)
        scale = np.maximum(np.abs(self.weights[name]).max(1, keepdims=True), np.finfo(np.float32).tiny) / _INT8
        whole = self.op.constant(np.rint(self.weights[name] / scale).astype(np.int8))
        return self.op.multiply(self.op.convert(whole, "f32"), self.op.constant(scale))

    def _norm(self, name: str, values: Any) -> Any:
        from openvino import opset6

        centred = opset6.mvn(values, self._ints([-1]), normalize_variance=True, eps=self.files.epsilon, eps_mode="inside_sqrt")
        return self.op.add(self.op.multiply(centred, self._of(f"{name}.weight")), self._of(f"{name}.bias"))

    def _of(self, name: str) -> Any:
        return self.op.constant(self.weights[name])

    def _ints(self, values: int | list[int]) -> Any:
        import numpy as np

        return self.op.constant(np.asarray(values, np.int64))

    def _float(self, value: float) -> Any:
        import numpy as np

        return self.op.constant(np.float32(value))
