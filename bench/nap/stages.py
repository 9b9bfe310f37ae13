"""Units that take a millisecond, so that what is measured is all that is around them."""

import time

from dgpunet_dask import Stage


class Numbers(Stage):
    """The source."""

    def load(self, *, count: int) -> None:
        self.n = count

    def __call__(self):
        yield from range(self.n)


class Nap(Stage):
    """Waits, and tells when it began."""

    def __call__(self, batch):
        began = time.time()
        time.sleep(0.001)
        return [(number, began) for number in batch]
