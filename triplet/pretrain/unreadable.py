"""The images of a run that could not be read."""

import os
from pathlib import Path

from triplet import files, untrusted
from triplet.errors import KitError
from triplet.images import Images
from triplet.pretrain.config import Pretrain
from triplet.progress import say
from triplet.training.distributed import Processes


class Unreadable:
    """The unreadable images of all processes and sessions, listed in ``unreadable.txt``."""

    def __init__(self, folder: Path, images: Images, config: Pretrain, processes: Processes) -> None:
        self._file, self._images, self._config, self._processes = (
            folder / "unreadable.txt",
            images,
            config,
            processes,
        )
        known = self._known() if processes.is_main_process else []
        self.names: list[str] = processes.broadcast_object(known)

    def _known(self) -> list[str]:
        """Read the list of earlier sessions; a line that names no image is damaged."""
        there = self._file.exists()
        content = untrusted.read_bytes(self._file, untrusted.LISTING, "list of images") if there else b""
        lines = {os.fsdecode(line) for line in content.split(b"\n") if line}
        names = lines.intersection(self._images.names()) if lines else set[str]()
        files.say_damaged(self._file, len(lines - names))
        return sorted(names)

    def news(self, indices: set[int]) -> int:
        """Count the images among these that are not yet known."""
        return sum(self._images.name(index) not in self.names for index in indices)

    def add(self, indices: set[int]) -> None:
        """Add every process's unreadable images; KitError if there are more than the config allows."""
        found = set().union(*self._processes.gather(indices))
        new = sorted({self._images.name(index) for index in found} - {*self.names})
        self.names = sorted([*self.names, *new])
        if self._processes.is_main_process:
            files.write_text(self._file, "".join(f"{name}\n" for name in self.names))
            say(f"pretrain: cannot be read, replaced by another: {', '.join(new)}")
        if len(self.names) > self._config.unreadable * len(self._images):
            raise KitError(
                f"{len(self.names)} of {len(self._images)} images cannot be read, listed in {self._file}; "
                f"more than unreadable={self._config.unreadable} allows: mend the folder or raise it"
            )
