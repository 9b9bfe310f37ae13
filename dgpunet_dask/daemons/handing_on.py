"""What a running head leaves for a successor or a scheduler that starts again: the policies and the settings in force."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings_file import SettingsWatch
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.placement.policy_file import Source
from dgpunet_dask.security.files import write_private

log = logging.getLogger(__name__)


def hand_on_policies(file: Path, sources: Sequence[Source]) -> None:
    """Write the policies in force where a scheduler that starts again finds them before anybody can give it work."""
    try:
        write_private(file, json.dumps(list(sources)))
    except OSError as error:  # a full disk; what is running is told all the same
        log.warning("a scheduler that starts again will have no policies until it is told: %s", error)


def followed_settings(home: Home) -> SettingsWatch:
    """Return the settings of a head, which are handed on whenever they change. `load_settings` reads them for the first time."""
    watch = SettingsWatch(home.config)
    watch.changed = lambda _: hand_on_settings(watch, home.settings_in_force)
    return watch


def hand_on_settings(watch: SettingsWatch, file: Path) -> None:
    """Write the settings in force where a head that goes on for this one finds them. Older ones must never be found instead."""
    try:
        write_private(file, json.dumps(watch.text))
    except OSError as error:
        file.unlink(missing_ok=True)
        log.warning("a head that is started again will not know the settings in force: %s", error)


def load_settings(watch: SettingsWatch, file: Path, *, resumes: bool) -> None:
    """Read the settings at a head's start, and hand them on.

    A head that goes on for a killed one (`resumes`) keeps what was in force under that where the file has become wrong meanwhile, as
    that would have. Defaults never take the place of what the owner has set.

    Raises
    ------
    MalformedFile, NewerFormat, UnreadablePath
        If the file is wrong, and this head is the first or what was in force is not known.
    """
    try:
        watch.load()
    except DgpunetError as error:
        if not (resumes and _went_on(watch, file, error)):
            raise
        log.error("%s is not taken, the settings of the head before stay in force: %s", watch.path, error)
    hand_on_settings(watch, file)


def _went_on(watch: SettingsWatch, file: Path, error: DgpunetError) -> bool:
    """Take what the head before left in `file`; return whether there was such."""
    try:
        text = json.loads(file.read_text(encoding="utf-8"))
        if text is None or isinstance(text, str):
            watch.go_on(text, error)
            return True
    except (OSError, ValueError, DgpunetError) as other:
        log.warning("the settings of the head before cannot be read: %s", other)
    return False
