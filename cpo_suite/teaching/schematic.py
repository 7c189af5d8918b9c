"""The road of the method in one drawing, shared by notebook 00, the README and the site."""

from __future__ import annotations

from pathlib import Path

from IPython.display import SVG

FILE = Path(__file__).with_name("schematic.svg")


def schematic() -> SVG:
    """Data, reference, negatives, the two tables `[B, K]`, loss, decoding and judge."""
    return SVG(filename=str(FILE))
