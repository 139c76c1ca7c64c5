"""The pack stage: write images into tar shards, a few large files that suit a shared file system."""

import hashlib
import io
import tarfile
from pathlib import Path

from triplet import files, images, paths, records, untrusted
from triplet.errors import KitError
from triplet.progress import Bar
from triplet.signals import Stop, graceful


def pack(name: str, source: Path, *, per_shard: int, force: bool = False) -> None:
    """Write the images of a source to ``datasets/<name>/shard-*.tar``, byte for byte.

    Each shard is a plain tar in the order of the source (readable by WebDataset), with a JSON file beside
    it that gives the position of each image. It is read back and compared before it gets its name; a
    pack that was stopped resumes after the last complete shard.

    Args:
        name: name of the new data set.
        source: see ``images.open_images``.
        per_shard: number of images in a shard.
        force: whether to start over.

    Raises:
        KitError: a bad source, an unreadable image, or shards that do not read back as written.
        Interrupted: a signal stopped the pack; complete shards are kept.
    """
    if per_shard < 1:
        raise KitError(f"--per-shard must be at least 1: found {per_shard}")
    found = images.open_images(source)
    folder = paths.dataset_folder(name)
    if folder.resolve() == source.resolve() or folder.resolve() in source.resolve().parents:
        raise KitError(f"--name {name} is where the images are; choose another name")
    starts = range(0, len(found), per_shard)

    def work(job: records.Job) -> None:
        shards: list[images.Shard] = []
        with graceful() as stop, Bar("pack", len(found)) as bar:
            for number, start in enumerate(starts):
                path = folder / f"shard-{number:06d}.tar"
                wanted = range(start, min(start + per_shard, len(found)))
                shard = _whole(path)
                if shard is None:
                    shard = _write(path, found, wanted, stop)
                shards.append(shard)
                job.outputs[path.stem] = path
                bar.step(path.name, len(wanted))
        index = images.Index(shards=[shard.name for shard in shards], images=len(found))
        files.write_text(folder / images.INDEX, index.model_dump_json(indent=1) + "\n")
        job.outputs["index"] = folder / images.INDEX
        job.results.update(images=len(found), shards=len(shards), bytes=sum(s.bytes for s in shards))

    records.perform(
        "pack",
        folder,
        config={"per_shard": per_shard},
        inputs={"images": source},
        work=work,
        force=force,
    )


def _whole(path: Path) -> images.Shard | None:
    """Return a shard that an earlier session finished; None unless its bytes are unchanged."""
    try:
        said = untrusted.read_bytes(images.side_car(path), untrusted.LISTING, "description of a shard")
        shard = images.Shard.model_validate_json(said)
    except (OSError, ValueError):
        return None
    return shard if path.is_file() and files.sha256(path) == shard.sha256 else None


def _write(path: Path, found: images.Images, wanted: range, stop: Stop) -> images.Shard:
    names, offsets, digests, sizes = [], [], [], []
    with files.atomic(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for index in wanted:
                if stop:
                    raise stop.interrupted(f"the shards before {path.name} are whole")
                data = _read(found, index)
                member = tarfile.TarInfo(found.name(index).lstrip("/"))
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                names.append(found.name(index))
                offsets.append(tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
                sizes.append(len(data))
                digests.append(hashlib.sha256(data).digest())
        with temporary.open("rb") as file:
            for name, offset, size, digest in zip(names, offsets, sizes, digests, strict=True):
                file.seek(offset)
                if hashlib.sha256(file.read(size)).digest() != digest:
                    raise KitError(f"{path}: {name} does not read back as written; check the disk")
        shard = images.Shard(
            name=path.name,
            sha256=files.sha256(temporary),
            bytes=temporary.stat().st_size,
            names=[paths.printable(name) for name in names],
            labels=None
            if found.labels is None
            else [paths.printable(found.classes[found.labels[i]]) for i in wanted],
            offsets=offsets,
            sizes=sizes,
        )
    files.write_text(images.side_car(path), shard.model_dump_json() + "\n")
    return shard


def _read(found: images.Images, index: int) -> bytes:
    try:
        return found.read(index)
    except OSError as error:
        raise KitError(
            f"{found.name(index)} cannot be read ({error.strerror}); mend or remove it"
        ) from None
