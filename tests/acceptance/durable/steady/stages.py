"""A source, a light stage, a heavy one and a gather, whose results are made of the seed alone, whoever computes them and how often."""

import hashlib
import json
import os
import time
from pathlib import Path

from dgpunet_dask import Demand, Stage


class Source(Stage):
    """The items: a number with text of its own, and what the notes tell them by."""

    def load(self, *, seed: int, count: int, tag: str, seconds: str) -> None:
        self.rows = [(number, hashlib.sha256(f"{seed}:{number}".encode()).hexdigest() * 8, tag, float(seconds)) for number in range(count)]

    def __call__(self):
        yield from self.rows


class Light(Stage):
    """Runs in a worker."""

    def __call__(self, batch):
        return [(number, hashlib.sha256(text.encode()).hexdigest(), tag, seconds) for number, text, tag, seconds in batch]


class Heavy(Stage):
    """Runs in a stage host, and leaves a note of each call: those that nobody got a result of too."""

    demand = Demand(vram="1GiB", resident="256MiB", cpu_ok=True)

    def load(self, *, notes: str) -> None:
        self.notes = Path(notes)

    def __call__(self, batch):
        done = []
        for number, text, tag, seconds in batch:
            with self.notes.open("a") as file:  # one write, so that the lines of several processes do not mix
                file.write(json.dumps({"tag": tag, "number": number, "device": self.device, "pid": os.getpid()}) + "\n")
            time.sleep(seconds)
            done.append((number, hashlib.sha512(text.encode()).hexdigest()))
        return done


class Total(Stage):
    """All rows in their order, and a digest over them."""

    def __call__(self, items):
        digest = hashlib.sha256()
        for number, text in items:
            digest.update(f"{number}:{text}\n".encode())
            yield number, text
        yield -1, digest.hexdigest()
