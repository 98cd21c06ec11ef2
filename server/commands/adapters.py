"""`readingroom adapters ...`: the LoRA adapters on this machine. Parses and prints; the work is in `rag/adapters.py`."""

from __future__ import annotations

import argparse

from rag.settings import Settings


def add_adapters(parser: argparse.ArgumentParser, common: argparse.ArgumentParser, as_json: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    parser.add_subparsers(dest="action", metavar="ACTION", required=True)


def run_adapters(args: argparse.Namespace, settings: Settings) -> int:
    """Run one; returns the exit status."""
    raise NotImplementedError
