"""A model's own tokenizer, without the model: how long a text is, where its tokens begin, and its token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dgpunet_dask.errors import ModelUnavailable
from dgpunet_dask.retrieval.modelfiles import MINILM, ModelFiles, find_model, first_line, transformer_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextTokens:
    """Counts in the tokens of one model.

    Parameters
    ----------
    files
        The model.
    tokenizer
        Its fast tokenizer, with truncation and padding off.
    """

    def __init__(self, files: ModelFiles, tokenizer: Tokenizer) -> None:
        self.files = files
        self.tokenizer = tokenizer

    @property
    def special(self) -> int:
        """How many special tokens an input gets."""
        return int(self.tokenizer.num_special_tokens_to_add(False))

    @property
    def budget(self) -> int:
        """The most tokens of a document's text that the model sees: its limit without special tokens and prompt."""
        prompt = self.count([self.files.document_prompt])[0] if self.files.document_prompt else 0
        return max(1, self.files.max_tokens - self.special - prompt)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without special tokens."""
        return [len(e) for e in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def starts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return for each text where its tokens begin, in characters."""
        return [[o[0] for o in e.offsets] for e in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def ids(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        """Return the token ids of ``prompt + text`` with special tokens, cut to the model's limit as the model itself would.

        The one special token at the end (BERT's ``[SEP]``) is kept when an input is cut.
        """
        limit = self.files.max_tokens
        found = [e.ids for e in self.tokenizer.encode_batch_fast([prompt + t for t in texts])]
        return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in found]


def load_tokens(model: str, files: ModelFiles | None = None) -> TextTokens:
    """Load the tokenizer of `model`, and nothing else of it.

    Raises
    ------
    ModelUnavailable
        If there is no such model, or it has no fast tokenizer (one that knows where its tokens lie in the text).
    """
    files = files or find_model(model)
    try:
        tokenizer = _fast(files)
    except Exception as error:  # whatever a broken model folder makes the library raise
        raise ModelUnavailable(model=model, why=f"its tokenizer cannot be loaded: {first_line(error)}") from error
    if tokenizer is None:
        raise ModelUnavailable(model=model, why="it has no fast tokenizer")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TextTokens(files, tokenizer)


def _fast(files: ModelFiles) -> Any:
    folder = transformer_folder(files.folder)
    if files.name == MINILM:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    return getattr(loaded, "backend_tokenizer", None)
