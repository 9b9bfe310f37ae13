"""The systemd unit of a host's part of a cluster. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

#: A Dask worker ends with status 0 when its scheduler dies, and so may anything above it: only `always` brings all of it back.
_TEMPLATE: Final = """\
# Written by `dgpunet-dask install-service`. Run it again after moving the environment or the home.
[Unit]
Description=DGPUNET-Dask {what}
Documentation=https://distributed.dask.org
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
{user}ExecStart={command}
{environment}
Restart=always
RestartSec=3
# A mistake in what it was told (status 2), or a machine that was removed from its cluster: starting again would not help.
RestartPreventExitStatus=2
# SIGTERM reaches the supervisor alone, which ends its daemons, their workers and their stages in order.
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec=45
LimitNOFILE=65536
UMask=0077
NoNewPrivileges=yes
ProtectSystem=full
ProtectControlGroups=yes
ProtectKernelTunables=yes
RestrictSUIDSGID=yes

[Install]
WantedBy={target}
"""


def unit_text(what: str, command: Sequence[str], environment: Mapping[str, str], *, system: bool, user: str | None = None) -> str:
    """Return the unit.

    Parameters
    ----------
    what
        ``head`` or ``agent``.
    command
        The command line, its program as an absolute path.
    environment
        Variables that the service needs.
    system
        Whether it is the machine's, started at boot; otherwise the user's.
    user
        As whom the machine's unit runs; ``None``: root.
    """
    return _TEMPLATE.format(
        what=what,
        command=" ".join((quoted(command[0]), *(quoted(word.replace("$", "$$")) for word in command[1:]))),
        environment="\n".join(f"Environment={quoted(f'{name}={value}')}" for name, value in sorted(environment.items())),
        user=f"User={user}\n" if user is not None else "",
        target="multi-user.target" if system else "default.target",
    )


def quoted(word: str) -> str:
    """Return a word as systemd reads it back: its quotes, backslashes, line ends and ``%`` mean themselves (systemd.syntax(7)).

    ``$`` has a meaning in the arguments of a command alone, neither in its program nor in ``Environment=`` (systemd.exec(5)).
    """
    escaped = re.sub(r"[\x01-\x1f\x7f]", lambda c: f"\\x{ord(c[0]):02x}", word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%"))
    return escaped if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", word) else f'"{escaped}"'
