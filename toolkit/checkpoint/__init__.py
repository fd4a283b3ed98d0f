"""Checkpoints: one folder a step, safetensors shards and JSON, written whole or not at all, loaded into any sharding."""

from toolkit.checkpoint.check import newest, verify
from toolkit.checkpoint.choose import best, choose
from toolkit.checkpoint.load import load_into, read_rank_state, read_state
from toolkit.checkpoint.manifest import CheckpointError, Manifest, read_manifest
from toolkit.checkpoint.save import prune, save

__all__ = [
    "CheckpointError",
    "Manifest",
    "best",
    "choose",
    "load_into",
    "newest",
    "prune",
    "read_manifest",
    "read_rank_state",
    "read_state",
    "save",
    "verify",
]
