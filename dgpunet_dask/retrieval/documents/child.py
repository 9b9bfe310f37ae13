"""The process that reads made documents for another one: a request a line in, an answer a line out, both JSON.

A document may be anyone's, and the libraries that read it were not made for enemies: it may send them into endless loops, or have them ask
for all memory. So they run here, under a cap of memory and an alarm, and whoever asked ends this process when the time is over.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

from dgpunet_dask.retrieval.discover import open_regular
from dgpunet_dask.retrieval.documents.texts import Extracted, SkippedError

#: Address space, of which Python and the libraries take 0.3 GiB.
MEMORY_BYTES: Final = 2 << 30
#: The alarm comes so much later than whoever asks would end the process: it is for when they are gone.
_GRACE_S: Final = 5


def read_document(kind: str, file: BinaryIO, charset: str | None = None) -> Extracted:
    """Return the text of an open file of a made kind: ``html``, ``pdf``, ``docx``, ``notebook``.

    Raises
    ------
    SkippedError
        With the code that the document earns.
    """
    from dgpunet_dask.retrieval.documents.html import read_html
    from dgpunet_dask.retrieval.documents.notebook import read_notebook
    from dgpunet_dask.retrieval.documents.office import read_docx
    from dgpunet_dask.retrieval.documents.pdf import read_pdf

    try:
        if kind == "pdf":
            return read_pdf(file)
        if kind == "docx":
            return read_docx(file)
        data = file.read()
        return read_html(data, charset) if kind == "html" else read_notebook(data)
    except (SkippedError, MemoryError):
        raise
    except Exception as error:  # whatever a library stumbles over is the document's fault
        raise SkippedError("malformed", f"{type(error).__name__}: {error}"[:200]) from error


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a request: ``text``, ``language`` and ``title``, or ``skip`` with the reason."""
    try:
        with open_regular(os.fsencode(request["file"])) as file:
            found = read_document(request["kind"], file, request.get("charset"))
    except SkippedError as skip:
        return {"skip": skip.reason}
    except OSError:
        return {"skip": "unreadable"}
    return {"text": found.text, "language": found.language, "title": found.title}


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no answer
    warnings.simplefilter("ignore")
    memory = int(sys.argv[1])
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # a system that knows no such limit, or has set a lower one
            pass
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(int(request["seconds"]) + _GRACE_S)  # its default action ends the process, inside a library's loop too
        try:
            told = json.dumps(answer(request))
        except MemoryError:
            told = json.dumps({"skip": f"too_large: it takes more than {memory >> 20} MiB of memory to read"})
        signal.alarm(0)
        answers.write(told + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
