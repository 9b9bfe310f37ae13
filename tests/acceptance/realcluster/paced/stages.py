"""Units that take a stated time on a card, and leave a note of where they ran when they begin and when they end."""

import json
import os
import socket
import time
from pathlib import Path

from dgpunet_dask import Demand, Stage


class Numbers(Stage):
    """The source: the numbers of the units, with what each needs to know, so that all jobs share the loaded stages."""

    def load(self, *, tag: str, count: int, seconds: str) -> None:
        self.rows = [(tag, number, float(seconds)) for number in range(count)]

    def __call__(self):
        yield from self.rows


class Work(Stage):
    """Takes its time on a card."""

    demand = Demand(vram="2GiB", resident="1GiB")

    def load(self, *, notes: str) -> None:
        self.notes = Path(notes)

    def note(self, what: str, tag: str, number: int) -> dict:
        row = {"what": what, "tag": tag, "number": number, "host": socket.gethostname(), "device": self.device, "pid": os.getpid(), "at": time.time()}
        with self.notes.open("a") as file:  # one write, so that the lines of several processes do not mix
            file.write(json.dumps(row) + "\n")
        return row

    def __call__(self, batch):
        done = []
        for tag, number, seconds in batch:
            self.note("begun", tag, number)
            time.sleep(seconds)
            done.append(self.note("ended", tag, number))
        return done


class Collect(Stage):
    """Gathers what was committed."""

    def load(self, *, tag: str, notes: str) -> None:
        self.file = Path(notes).with_name(f"{tag}.json")

    def __call__(self, items):
        rows = list(items)
        self.file.write_text(json.dumps(rows))
        yield len(rows)
