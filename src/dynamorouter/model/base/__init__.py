"""The frozen base model: loading, its blocks, passes that stop and go on."""

from __future__ import annotations
