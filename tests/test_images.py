"""One set of images three ways: as a folder, as a list, and as tar shards."""

import io
import os
import re
import signal
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.support.processes import run, start, wait_until
from triplet import cli, images
from triplet.errors import KitError
from triplet.images import open_images


@pytest.fixture
def classes(tmp_path):
    """Two classes of five small images, with names that need care."""
    folder = tmp_path / "source"
    for label, first in (("cat", 0), ("naïve dog", 5)):
        (folder / label).mkdir(parents=True)
        for i in range(first, first + 5):
            colour = Image.new("RGB", (40 + i, 30), (i * 20, 99, 255 - i * 20))
            colour.save(folder / label / f"photo {i}.{'jpg' if i % 2 else 'png'}")
    return folder


def content(found):
    return [(found.name(i), found.read(i)) for i in range(len(found))]


def pack(source, *extra):
    return cli.main(["pack", str(source), "--name", "packed", *extra])


def test_a_folder_gives_names_bytes_and_classes(classes):
    found = open_images(classes)
    assert found.names()[0] == "cat/photo 0.png"
    assert found.names()[9] == "naïve dog/photo 9.jpg"
    assert found.read(9) == (classes / "naïve dog" / "photo 9.jpg").read_bytes()
    assert found.labels.tolist() == [0] * 5 + [1] * 5
    assert found.classes == ["cat", "naïve dog"]


def test_a_flat_folder_has_no_classes(classes):
    assert open_images(classes / "cat").labels is None


def test_a_list_gives_the_same_in_its_own_order(classes):
    lines = [f"naïve dog/photo {i}.{'jpg' if i % 2 else 'png'} 7" for i in range(9, 4, -1)]
    (classes / "list.txt").write_text("\n".join([*lines, f"{classes}/cat/photo 0.png 2", ""]))
    found = open_images(classes / "list.txt")
    assert found.name(0) == "naïve dog/photo 9.jpg"
    assert found.read(5) == (classes / "cat" / "photo 0.png").read_bytes()
    assert found.labels.tolist() == [1] * 5 + [0]
    (classes / "list.txt").write_text("cat/photo 0.png\nnaïve dog/photo 5.jpg\n")
    found = open_images(classes / "list.txt")
    assert found.names() == ["cat/photo 0.png", "naïve dog/photo 5.jpg"]
    assert found.labels is None


def test_packed_shards_are_the_folder(classes, places):
    assert pack(classes, "--per-shard", "4") == 0
    folder = places / "datasets" / "packed"
    assert sorted(p.name for p in folder.glob("*.tar")) == [f"shard-00000{i}.tar" for i in range(3)]
    one, other = open_images(classes), open_images(folder)
    assert content(one) == content(other)
    assert np.array_equal(one.labels, other.labels)
    assert one.classes == other.classes
    with tarfile.open(folder / "shard-000001.tar") as tar:  # any tool reads them
        assert [member.name for member in tar] == one.names()[4:8]


def test_packing_twice_does_nothing_and_names_what_changed(classes, places, capsys):
    assert pack(classes) == 0
    before = (places / "datasets" / "packed" / "shard-000000.tar").stat().st_mtime_ns
    assert pack(classes) == 0
    assert "done already" in capsys.readouterr().out
    assert (places / "datasets" / "packed" / "shard-000000.tar").stat().st_mtime_ns == before
    assert pack(classes, "--per-shard", "3") == 2
    assert re.search(
        r"config\.per_shard 10000 -> 3\);.* or choose another --name\n", capsys.readouterr().err
    )
    assert pack(classes, "--per-shard", "3", "--force") == 0
    assert len(open_images(places / "datasets" / "packed")) == 10


def test_a_stopped_pack_goes_on_after_its_last_whole_shard(classes, places):
    """SIGTERM while it writes; the shards that were whole are not written again."""
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8))
    for i in range(150):
        big.save(classes / "cat" / f"z{i:03d}.png", compress_level=0)
    folder = places / "datasets" / "packed"
    command = ["pack", classes, "--name", "packed", "--per-shard", "8"]
    running = start(*command)
    wait_until((folder / "shard-000001.json").exists, running)
    running.send_signal(signal.SIGTERM)
    _, error = running.communicate()
    assert running.returncode == 143, error
    assert "are whole; run the same command to go on" in error
    assert not (folder / images.INDEX).exists()
    assert not list(folder.glob(".*.tmp"))
    with pytest.raises(KitError, match=r"shard-\d+\.tar but no shards\.json: .* again on the images"):
        open_images(folder)
    first = (folder / "shard-000000.tar").stat().st_mtime_ns
    (folder / "shard-000001.tar").write_bytes(b"damaged meanwhile")
    assert run(*command).returncode == 0
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == first
    assert content(open_images(folder)) == content(open_images(classes))


def test_bad_sources_get_one_line(classes, places, tmp_path, capsys):
    (tmp_path / "bad.txt").write_text("cat/photo 0.png 1\nsomething else\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    for source, message in (
        ("nowhere", "no folder or list of images at"),
        ("bad.txt", "bad.txt, line 2: expected 'path' or 'path class', found 'something else'"),
        ("empty.txt", "lists no image"),
        ("binary", "neither a folder nor a list of images in text"),
    ):
        assert pack(tmp_path / source) == 2
        assert message in capsys.readouterr().err
    assert pack(classes, "--per-shard", "0") == 2
    assert "--per-shard must be at least 1: found 0" in capsys.readouterr().err
    (classes / "cat" / "dangling.png").symlink_to("/nowhere.png")
    assert pack(classes) == 2
    assert "No such file" in capsys.readouterr().err


def test_images_beside_archives_are_read_and_the_archives_named(classes, capsys):
    for name in ("b.tar", "a.zip", "d.tgz", "c.tar.gz"):
        (classes / name).touch()
    assert len(open_images(classes)) == 10
    said = capsys.readouterr().out
    assert said.endswith(
        "a.zip, b.tar, c.tar.gz and 1 more beside the images: not looked into; unpack what "
        "belongs to them\n"
    )


def test_archives_alone_are_to_be_unpacked(tmp_path):
    (tmp_path / "photos.tar").touch()
    with pytest.raises(KitError, match=r"holds photos\.tar and no image; unpack it first") as caught:
        open_images(tmp_path)
    assert "triplet pack" not in str(caught.value)
    (tmp_path / "shard-000004.tar").touch()
    with pytest.raises(
        KitError, match=r"holds shard-000004\.tar but no shards\.json: .* again on the images"
    ):
        open_images(tmp_path)


def test_names_that_are_bytes_are_found_listed_and_packed(classes, places, capsys):
    """Latin-1, as old archives have it; the file beside says the same in UTF-8."""
    odd = os.fsdecode("chien/b\xeate.png".encode("latin-1"))
    (classes / "chien").mkdir()
    (classes / odd).write_bytes((classes / "cat" / "photo 0.png").read_bytes())
    found = open_images(classes)
    index = found.names().index(odd)
    assert found.read(index) == (classes / odd).read_bytes()
    (classes / "list.txt").write_bytes(
        b"\xef\xbb\xbf" + os.fsencode(f"{odd} 3\r\nna\xefve dog/photo 5.jpg 4\n")
    )
    listed = open_images(classes / "list.txt")
    assert listed.read(0) == (classes / odd).read_bytes()
    assert listed.labels.tolist() == [0, 1]
    assert pack(classes) == 0
    packed = open_images(places / "datasets" / "packed")
    assert packed.name(index) == "chien/b%EAte.png"
    assert packed.read(index) == found.read(index)
    assert packed.labels.tolist() == found.labels.tolist()


def test_a_link_to_nowhere_is_an_image_that_cannot_be_read(classes):
    (classes / "cat" / "dangling.png").symlink_to("/nowhere.png")
    (classes / "cat" / "loop").symlink_to(classes)
    found = open_images(classes)
    assert len(found) == 11
    with pytest.raises(OSError, match="No such file"):
        found.read(found.names().index("cat/dangling.png"))


def test_a_cut_shard_is_refused_and_a_read_beyond_it_fails(classes, places):
    assert pack(classes) == 0
    folder = places / "datasets" / "packed"
    shard = folder / "shard-000000.tar"
    found = open_images(folder)
    os.truncate(shard, shard.stat().st_size - 6000)
    with pytest.raises(KitError, match=r"expected \d+; make it again: triplet pack"):
        open_images(folder)
    os.truncate(shard, 600)
    with pytest.raises(OSError, match=r"photo 9.jpg: found 0 bytes, expected"):
        found.read(9)
    (folder / "shard-000000.json").write_text("{")
    with pytest.raises(KitError, match="its shards cannot be read"):
        open_images(folder)


WIDE = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(("dtype", "kind"), [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF")])
def test_pixels_of_16_bits_are_scaled_to_8(dtype, kind):
    """Pillow alone would make all above 255 white."""
    found = np.asarray(images.decode(encoded(WIDE.astype(dtype), kind)))
    assert found.shape == (32, 32, 3)
    assert np.abs(found[..., 1] * 257.0 - WIDE).max() <= 128
    narrow = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(np.asarray(images.decode(encoded(narrow * 257)))[..., 0], narrow)


def test_pixels_of_8_bits_stay_as_they_are():
    for mode in ("L", "RGB", "P", "RGBA", "1"):
        image = Image.new(mode, (4, 4))
        assert images.to_eight_bits(image) is image


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_pixels_of_32_bits_are_refused(tmp_path, dtype, mode):
    (tmp_path / "a.png").write_bytes(encoded(WIDE.astype(dtype), "TIFF"))
    message = rf"^a\.png has pixels of mode {mode} \(32 bits\), expected 8 or 16 bits; convert it$"
    with pytest.raises(KitError, match=message):
        images.pixel_formats(open_images(tmp_path))
    with pytest.raises(KitError, match=rf"^has pixels of mode {mode}"):
        images.decode((tmp_path / "a.png").read_bytes())


def test_pixels_of_16_bits_are_said(tmp_path, classes):
    assert images.pixel_formats(open_images(classes)) == ""
    (tmp_path / "mixed").mkdir()
    for i in range(200):
        content = encoded(WIDE if i < 100 else np.zeros((4, 4), np.uint8)) if i != 150 else b"none"
        (tmp_path / "mixed" / f"{i:03d}.png").write_bytes(content)
    assert images.pixel_formats(open_images(tmp_path / "mixed")) == (
        "34 of 67 images looked at have pixels of 16 bits, which are scaled to 8: 000.png (mode I;16)"
    )
