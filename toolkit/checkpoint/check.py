"""Is a checkpoint whole, and which is the newest that is."""

from __future__ import annotations

from pathlib import Path

from toolkit.checkpoint.files import STEP, sha256_of
from toolkit.checkpoint.manifest import STATE, CheckpointError, read_manifest, regular_file


def verify(path: str | Path) -> None:
    """Read every byte of a checkpoint; CheckpointError names the first file that is missing or not as it was written."""
    path = Path(path)
    for name, file in _sized(path).items():
        if sha256_of(path / name) != file:
            raise CheckpointError(f"{path / name} was changed after it was written; use an older checkpoint")


def complete(path: Path) -> bool:
    """Whether all files are there in full size; says nothing about their bytes."""
    try:
        _sized(path)
    except CheckpointError:
        return False
    return True


def newest(folder: str | Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint of a folder that verifies, or None; and what was passed over, each with the reason."""
    folder = Path(folder)
    skipped: list[tuple[Path, str]] = []
    for path in sorted(folder.glob("step-*.partial")):
        skipped.append((path, "saving it was cut off"))
    for _, path in steps(folder):
        try:
            verify(path)
        except (CheckpointError, OSError) as error:
            skipped.append((path, str(error)))
        else:
            return path, skipped
    return None, skipped


def steps(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint of a folder, newest first, whole or not."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = STEP.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            found.append((int(match[1]), path))
    # Of a replacement that was cut off, the new one comes first.
    return sorted(found, key=lambda item: (-item[0], item[1].name))


def _sized(path: Path) -> dict[str, str]:
    """Name to hash of the files that the manifest lists, after their sizes have been compared."""
    manifest = read_manifest(path)
    required = {STATE, *(f"rank-{r}.{end}" for r in range(manifest.world_size) for end in ("safetensors", "json"))}
    for name in sorted(required - set(manifest.files)):
        raise CheckpointError(f"{path}: the manifest does not list {name}; use an older checkpoint")
    for name, file in manifest.files.items():
        size = regular_file(path, name).stat().st_size
        if size != file.size:
            raise CheckpointError(f"{path / name} has {size} bytes, {file.size} were written; use an older checkpoint")
    return {name: file.sha256 for name, file in manifest.files.items()}
