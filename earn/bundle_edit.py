"""Changes of a bundle's small files, without a new export: the folder as a whole is exchanged for a changed one.

What stays is linked into the new folder, not copied, so a change costs little beside large graphs. Whoever loads the
bundle meanwhile gets the old one or the new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from earn.files import folder_written_whole
from earn.manifest import FileEntry, Manifest
from earn.tags import TAGS_FILE, Tags


@contextmanager
def bundle_changed(folder: Path) -> Iterator[Path]:
    """A folder with the bundle's files, which takes the bundle's place when the block ends; not if it raises.

    Files in it are replaced, never written to: they are the old bundle's too.
    """
    folder = folder.resolve()
    with folder_written_whole(folder) as beside:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target = beside / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path.resolve(), target)
                except OSError:  # a file system without links, or a link to another one
                    shutil.copy2(path, target)
        yield beside


def set_tags(folder: Path, tags: Tags) -> Manifest:
    """Gives a bundle these tags in place of those that it has; its saved sessions stay good.

    Raises:
        EarnError: no bundle, or it cannot be written.
    """
    manifest = Manifest.load(folder, verify=False)
    with bundle_changed(folder) as changed:
        tags.save(changed / TAGS_FILE)
        entry = FileEntry.of(changed / TAGS_FILE)
        manifest = replace(manifest, files={**manifest.files, TAGS_FILE: entry})
        manifest.save(changed)
    return manifest
