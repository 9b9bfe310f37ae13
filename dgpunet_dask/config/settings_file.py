"""``$DGPUNET_HOME/config.yaml``: its shape and defaults, how it is read, and how a process follows it while it runs.

Use::

    watch = SettingsWatch(home.config)
    watch.load()                        # at the start: every mistake at once, as file:line:col
    watch.look()                        # now and then; a mistake leaves the last good settings in force
    watch.settings.disk.caches, watch.error
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.config.settings import Ask, Backup, Disk, Floor, PinnedModel, Quota, Quotas, Search, Settings
from dgpunet_dask.config.yamlfile import YamlModel, check_version, load, parsed, read_text, validate
from dgpunet_dask.errors import BadValue, DgpunetError, MissingPath
from dgpunet_dask.units import parse_bytes, parse_duration

log = logging.getLogger(__name__)

FORMAT_VERSION: Final = 1
#: A change is read once two looks, at least so long apart, have seen the same: editors write in several steps.
REST_S: Final = 0.2
#: Logs need room for a traceback or two.
LOGS_LEAST: Final = 1 << 20
MOST: Final = 10**12
DAYS_MOST: Final = 36_500
EVERY_LEAST_S: Final = 10.0

#: The parts of a size, as JSON schema's dialect of regular expressions has them.
_SIZE: Final = r"\d{1,18}(\.\d{1,18})?\s*([KkMmGgTt][Ii]?)?[Bb]"
_SIZE_SCHEMA: Final = {"type": "string", "pattern": rf"^\s*{_SIZE}\s*$", "examples": ["512MiB", "50GiB"]}
_FLOOR: Final = re.compile(r"\s*(?:(\d{1,3}(?:\.\d{1,18})?)\s*%)?\s*(?:(,)\s*at most\s+)?(.*?)\s*")
_FLOOR_SCHEMA: Final = {
    "type": "string",
    "pattern": rf"^\s*(\d{{1,3}}(\.\d{{1,18}})?\s*%(\s*,\s*at most\s+{_SIZE})?|{_SIZE})\s*$",
    "examples": ["5%", "20GiB", "5%, at most 20GiB"],
}
_EVERY_SCHEMA: Final = {"type": "string", "pattern": r"^\s*\d{1,18}(\.\d{1,18})?\s*(ms|s|m|h|d)\s*$", "examples": ["90s", "10m", "1h"]}
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_DIGEST: Final = "[0-9a-f]{64}"
_URL: Final = r"(https?://[^\s/?#@]+(/[^\s?#@]*)?)?"
_FLOOR_WHY: Final = 'write a share of the disk such as 5%, a size such as 20GiB, or "5%, at most 20GiB"'


def parse_floor(text: str) -> Floor:
    """Return the floor that ``5%``, ``20GiB`` or ``5%, at most 20GiB`` names.

    Raises
    ------
    BadValue
        For anything else, and for more than half of a disk.
    """
    found = _FLOOR.fullmatch(text)
    share, comma, size = found.groups() if found is not None else (None, None, text)
    if (share is None and (comma or not size)) or (share is not None and bool(comma) != bool(size)):
        raise BadValue(what="floor", value=text, why=_FLOOR_WHY)
    if share is not None and float(share) > 50:
        raise BadValue(what="floor", value=text, why="at most half of a disk can be kept free: write 50% or less")
    try:
        return Floor(None if share is None else float(share) / 100, parse_bytes(size) if size else None)
    except BadValue:
        raise BadValue(what="floor", value=text, why=_FLOOR_WHY) from None


def _log_size(text: str) -> int:
    size = parse_bytes(text)
    if size < LOGS_LEAST:
        raise BadValue(what="size", value=text, why="logs need at least 1MiB")
    return size


def _every(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < EVERY_LEAST_S:
        raise BadValue(what="interval", value=text, why="write at least 10s")
    return seconds


def _folder(text: str) -> str:
    if not text.startswith(("/", "~")) or "\0" in text:
        raise ValueError("write the whole path of a folder, from / or ~ on")
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise ValueError("there is no such user; write the whole path of a folder, from / on") from None


def _host(text: str) -> str:
    if not re.fullmatch(_NAME, text):
        raise ValueError("write auto, or the name of a host as `dgpunet-dask nodes` shows it")
    return text


def _user(text: str) -> str:
    if not text.strip():
        raise ValueError("write the name of a user, as `dgpunet-dask key list` shows it")
    return text


def _model_name(text: str) -> str:
    if not re.fullmatch(_NAME, text):
        raise ValueError("a name has letters, digits, dot, underscore and hyphen, and begins with a letter or digit")
    return text


def _digest(text: str) -> str:
    if not re.fullmatch(_DIGEST, text):
        raise ValueError("write the 64 hex digits that `dgpunet-dask model digest FOLDER` prints")
    return text


def _url(text: str) -> str:
    if not re.fullmatch(_URL, text):
        raise ValueError("write the bare address of a server, such as http://127.0.0.1:8000/v1; a key goes into $DGPUNET_ASK_KEY")
    return text


Size = Annotated[int, parsed(parse_bytes), WithJsonSchema(_SIZE_SCHEMA)]
LogSize = Annotated[int, parsed(_log_size), WithJsonSchema(_SIZE_SCHEMA)]
Every = Annotated[float, parsed(_every), WithJsonSchema(_EVERY_SCHEMA)]
Floors = Annotated[Floor, parsed(parse_floor), WithJsonSchema(_FLOOR_SCHEMA)]
Folder = Annotated[str, AfterValidator(_folder), Field(json_schema_extra={"pattern": "^[/~]"})]
Host = Annotated[str, AfterValidator(_host), Field(json_schema_extra={"pattern": f"^{_NAME}$"})]
User = Annotated[str, AfterValidator(_user)]
Url = Annotated[str, AfterValidator(_url), Field(json_schema_extra={"pattern": f"^{_URL}$"})]
ModelName = Annotated[str, AfterValidator(_model_name)]
Digest = Annotated[str, AfterValidator(_digest), Field(json_schema_extra={"pattern": f"^{_DIGEST}$"})]
Count = Annotated[int, Field(ge=0, le=MOST)]
Days = Annotated[float, Field(ge=0, le=DAYS_MOST)]
Percent = Annotated[float, Field(ge=0, le=50)]
Rate = Annotated[int, Field(ge=1, le=MOST)]


def _stated(description: str, default: Any = ...) -> Any:
    """Return a key's field. A default is written as in the file, and read like it; a class stands for its own defaults."""
    if isinstance(default, type):
        return Field(default_factory=default, description=description)
    return Field(default, description=description)


class Entry(YamlModel):
    """Base of the entries: defaults are written as in the file, and are read like it."""

    model_config = ConfigDict(validate_default=True)


class QuotaEntry(Entry):
    """How much of the cluster a user may ask for. Of users who are named, what is left out is as for everybody."""

    jobs: Count = _stated("jobs of a user that are queued or running at once", 100)
    units: Count = _stated("units of one job", 10_000_000)
    submissions_per_minute: Rate = _stated("jobs that a user submits within any minute", 600)


class QuotasEntry(QuotaEntry):
    """The quotas of everybody, and of users by name."""

    users: dict[User, QuotaEntry] = _stated("other figures for users by name; operators have none unless they are named here", dict)

    def value(self) -> Quotas:
        """Return them with what the named users have in common with everybody."""
        everybody = self.model_dump(exclude={"users"})
        users = {name: Quota(**everybody | entry.model_dump(exclude_unset=True)) for name, entry in self.users.items()}
        return Quotas(everybody=Quota(**everybody), users=users)


class BackupEntry(Entry):
    """Copies of the ledger."""

    host: Host = _stated("the host that keeps copies of the ledger; `auto`: the head chooses one, if there is another", "auto")
    every: Every = _stated("how often the ledger is copied, at least 10s apart", "10m")


class DiskEntry(Entry):
    """What may lie on a disk."""

    floor: Floors = _stated("what stays free on the disk: below it no unit is started until there is room again", "5%, at most 20GiB")
    logs: LogSize = _stated("logs of daemons and workers", "1GiB")
    stage_logs: LogSize = _stated("logs of stage hosts", "1GiB")
    spill: Size = _stated("what the Dask worker of one device may write of results that do not fit into memory", "20GiB")
    caches: Size = _stated("models, workloads, stage environments that nothing uses, and known vectors; the longest unused go first", "100GiB")
    results: Size = _stated("units' results of jobs that have ended; the oldest go first", "50GiB")
    results_days: Days = _stated("days for which units' results of a job that has ended are kept", 14)
    ledger_backup: BackupEntry = _stated("copies of the ledger on another host", BackupEntry)

    def value(self) -> Disk:
        """Return them as the product uses them."""
        backup = Backup(host=self.ledger_backup.host, every_s=self.ledger_backup.every)
        rest = {name: getattr(self, name) for name in type(self).model_fields if name != "ledger_backup"}
        return Disk(ledger_backup=backup, **rest)


class AskEntry(Entry):
    """Which language model answers."""

    endpoint: Url = _stated("address of the OpenAI-compatible server that `ask` sends to, such as http://127.0.0.1:8000/v1; no key stands in it", "")
    model: str = _stated("the model that `ask` names there; without one, the only one that the server has", "")

    def value(self) -> Ask:
        """Return it as the product uses it."""
        return Ask(endpoint=self.endpoint or None, model=self.model.strip() or None)


class SearchEntry(Entry):
    """How searches use the cluster."""

    resident_percent: Percent = _stated("of a host's memory, that its CPU worker may hold vectors of very large indexes in; 0: the head searches alone", 12.5)

    def value(self) -> Search:
        """Return it as the product uses it."""
        return Search(resident_percent=self.resident_percent)


class RerankerEntry(Entry):
    """A cross-encoder that searches may name."""

    folder: Folder = _stated("where its files lie")
    digest: Digest = _stated("what `dgpunet-dask model digest FOLDER` says of them; other files are not loaded")

    def value(self) -> PinnedModel:
        """Return it as the product uses it."""
        return PinnedModel(folder=Path(self.folder), digest=self.digest)


class SettingsEntry(Entry):
    """The whole file."""

    version: Literal[1] = _stated("of the file's format")
    roots: list[Folder] = _stated("folders on the head's host below which jobs of submitters may read; without any, they read nothing there", list)
    quotas: QuotasEntry = _stated("how much of the cluster one user may ask for", QuotasEntry)
    disk: DiskEntry = _stated("what may lie on the disk of a host", DiskEntry)
    ask: AskEntry = _stated("which language model answers", AskEntry)
    search: SearchEntry = _stated("how searches on the head use the cluster", SearchEntry)
    rerankers: dict[ModelName, RerankerEntry] = _stated("cross-encoders that `--rerank` may name, by name", dict)

    def value(self) -> Settings:
        """Return the settings."""
        roots = tuple(map(Path, self.roots))
        return Settings(
            roots=roots, quotas=self.quotas.value(), disk=self.disk.value(), ask=self.ask.value(), search=self.search.value(),
            rerankers={name: entry.value() for name, entry in self.rerankers.items()},
        )  # fmt: skip


DEFAULTS: Final = SettingsEntry(version=1).value()


def parse_settings(text: str, file: str) -> Settings:
    """Return the settings that a file's text states.

    Raises
    ------
    MalformedFile
        With every mistake.
    NewerFormat
        Of a later release.
    """
    document = load(text, file)
    check_version(document, FORMAT_VERSION)
    return validate(document, SettingsEntry).value()


def settings_path(root: Path) -> Path:
    """Return where the settings of a home lie."""
    return root / "config.yaml"


def read_settings(path: Path) -> Settings:
    """Return the settings of the file at `path`; the defaults where there is none.

    Raises
    ------
    MalformedFile, NewerFormat, UnreadablePath
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[Settings, str | None]:
    """Return the settings of a file and its text; the defaults and ``None`` where there is none."""
    try:
        text = read_text(path)
    except MissingPath:
        return DEFAULTS, None
    return parse_settings(text, str(path)), text


def schema() -> dict[str, Any]:
    """Return the JSON schema of the file, for editors and other programs."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **SettingsEntry.model_json_schema()}


class SettingsWatch:
    """The settings of a process that runs: those of the last good file, and what is wrong with the present one.

    Parameters
    ----------
    path
        The file. It need not exist.
    clock
        Tells how long a changed file has been at rest.
    changed
        Called with the new settings after each change of them.
    """

    def __init__(self, path: Path, clock: Clock | None = None, changed: Callable[[Settings], None] = lambda _: None) -> None:
        self.path, self.clock, self.changed = path, clock or SystemClock(), changed
        self.settings: Settings = DEFAULTS
        self.text: str | None = None  # of the file that the settings in force are from; None: there was none
        self.error: DgpunetError | None = None
        self._read = self._seen = _stamp(None)
        self._seen_s = 0.0

    def load(self) -> Settings:
        """Read the file for the first time.

        Raises
        ------
        MalformedFile, NewerFormat, UnreadablePath
        """
        self._read = self._seen = _stamp(self.path)
        self.settings, self.text = _read(self.path)
        return self.settings

    def go_on(self, text: str | None, error: DgpunetError) -> None:
        """Have the settings of an earlier process in force: what is wrong with the present file, which `load` refused, is `error`.

        Raises
        ------
        MalformedFile, NewerFormat
            If `text` is none of this release.
        """
        self.settings = DEFAULTS if text is None else parse_settings(text, str(self.path))
        self.text, self.error = text, error

    def look(self) -> Settings:
        """Return the settings in force, after a look at the file: one that has changed and come to rest is read."""
        now_s, found = self.clock.monotonic(), _stamp(self.path)
        if found != self._seen:
            self._seen, self._seen_s = found, now_s
        elif found != self._read and now_s - self._seen_s >= REST_S:
            self._read = found
            self._take()
        return self.settings

    def _take(self) -> None:
        try:
            settings, text = _read(self.path)
        except DgpunetError as error:
            self.error = error
            log.error("%s is not taken, the settings before it stay in force: %s", self.path, error)
            return
        self.error = None
        if settings != self.settings:
            self.settings, self.text = settings, text
            log.info("the settings of %s are in force", self.path)
            self.changed(settings)


def _stamp(path: Path | None) -> tuple[int, int, int]:
    """Return what tells one state of a file from another; all -1 where there is none."""
    try:
        found = None if path is None else os.stat(path)
    except OSError:
        found = None
    return (-1, -1, -1) if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)
