"""Reads text files and splits them into words. Light stages, run by our interpreter."""

from dataclasses import dataclass
from pathlib import Path

import helpers

from dgpunet_dask import Stage


@dataclass
class Words:
    """A class of the workload's own, which travels from stage to stage."""

    name: str
    words: list[str]


class Read(Stage):
    """The source: yields each file's name and text."""

    def load(self, *, path: list[str], explode: str) -> None:
        self.paths, self.explode = path, explode

    def __call__(self):
        for root in self.paths:
            for file in sorted(Path(root).glob("*.txt")):
                self.count("files")
                yield file.name, file.read_text()
        if self.explode == "source":
            raise RuntimeError("the source exploded")


class Split(Stage):
    """Splits a text into words."""

    def __call__(self, batch):
        return [Words(name, helpers.words_of(text)) for name, text in batch]
