"""Lets ``python -m dynamorouter`` be the command line."""

from __future__ import annotations

from dynamorouter.cli.main import main

main()
