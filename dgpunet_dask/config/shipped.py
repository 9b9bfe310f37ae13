"""Where the workloads and policies that come with the product lie: beside the package in a checkout, inside it when installed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def shipped(kind: Literal["workloads", "policies"]) -> Path:
    """Return the folder of what is shipped."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_shipped" / kind
    return inside if inside.is_dir() else package.parent / kind
