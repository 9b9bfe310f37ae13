"""What the wiretap hears: cleartext, names that are asked for, and whatever leaves the network."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dgpunet_dask.testing.netns import Lan, permitted
from tests.acceptance.realcluster.wire import Wiretap
from tests.helpers import until

pytestmark = pytest.mark.skipif(permitted() is not None, reason=f"hosts in namespaces: {permitted()}")

SERVE = "import socket; s = socket.create_server(('', 5000)); print('up', flush=True); s.accept()[0].recv(9)"
SAY = "import socket; socket.create_connection(('10.77.0.2', 5000)).sendall(b'in the clear')"
ASK = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'who is', ('9.9.9.9', 53))"
CALL = "import socket; s = socket.socket(); s.setblocking(False); s.connect_ex(('192.0.2.7', 443))"
ASK_HERE = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'who is', ('127.0.0.53', 53))"


def python(words):
    return [sys.executable, "-I", "-S", "-c", words]


def test_it_hears_what_is_said_in_the_clear_and_to_strangers():
    with Lan("a", "b") as lan, Wiretap(lan) as tap:
        a, heard = lan.host("a"), tap.heard
        server = lan.host("b").popen(python(SERVE), stdout=subprocess.PIPE)
        with server.stdout:
            assert server.stdout.readline() == "up\n"
        assert heard.strange == []
        a.run(python(SAY), check=True)
        until(heard.clear, 5, "the words in the clear")
        assert list(heard.clear().values()) == [b"in the c"]
        assert heard.ports() == {5000}
        for words, told in ((ASK, "to 9.9.9.9"), (CALL, "to 192.0.2.7"), (ASK_HERE, "loopback, UDP")):
            a.run(python(words), check=True)
            until(lambda: any(told in line for line in heard.strange), 5, told)  # noqa: B023  # called at once
