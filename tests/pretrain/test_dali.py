"""DALI's views beside those of the CPU path. Where DALI is not installed, only its absence is tested."""

import io
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.processes import start, wait_until
from tests.support.small_pretrain import laid_out
from triplet import cli
from triplet.errors import KitError
from triplet.images import Images
from triplet.pretrain import dali, data
from triplet.pretrain.config import Views
from triplet.pretrain.layout import Order, make_layout
from triplet.signals import Stop

SIZE = 64
GEOMETRY = dict(jitter=0, grayscale=0, blur=(0, 0), solarize=(0, 0))
CPU = torch.device("cpu")


@pytest.fixture
def installed():
    pytest.importorskip("nvidia.dali")


class Memory(Images):
    """Encoded images that are held in memory."""

    def __init__(self, files):
        super().__init__([f"{i}.jpg" for i in range(len(files))], None)
        self.files = files

    def read(self, index):
        return self.files[index]


def picture(seed):
    """Smooth, as photographs are, of 60 to 400 pixels: most crops shrink, some grow."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(60, 400, 2)
    small = rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((int(width), int(height)), Image.Resampling.BICUBIC)


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def files():
    return [encode(picture(seed), quality=90) for seed in range(36)]


def load(source, files, start=0, workers=0, device=CPU, epochs=1, **views):
    """Every batch of 12, and who was unreadable."""
    config = laid_out(group=12, workers=workers, epochs=epochs)
    views = Views(size=SIZE, backend="dali" if source is dali else "pil", **views)
    config = config.model_copy(update={"views": views})
    images = Memory(files)
    return source.load(images, make_layout(config, 1), Order(len(images), config), 0, start, device, Stop())


def pixels(batches):
    return torch.cat([pairs for pairs, _ in batches])


def difference(one, other):
    return (one.int() - other.int()).abs()


def break_huffman(jpeg):
    """A header that Pillow opens, around tables that no decoder takes."""
    place = jpeg.index(b"\xff\xc4") + 5
    return jpeg[:place] + b"\xff" * 16 + jpeg[place + 16 :]


def test_without_dali_the_command_that_mends_it_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(KitError, match=r"^views.backend=dali needs nvidia-dali-cuda130; install it with: "):
        next(load(dali, files))


def test_crops_and_mirrors_are_those_of_the_cpu_path(installed, files):
    """Measured: 5 levels of 255 at most (PIL cuts to 8 bits between the two passes of a resize, DALI after
    both), 0.18 in the mean. A crop that is one pixel off is 7 away, a mirrored one 50."""
    ours, theirs = (list(load(source, files, **GEOMETRY)) for source in (dali, data))
    assert [(p.shape, p.dtype, bad) for p, bad in ours] == [(p.shape, p.dtype, bad) for p, bad in theirs]
    ours, theirs = pixels(ours), pixels(theirs)
    assert difference(ours, theirs).max() <= 8
    assert difference(ours, theirs).float().mean() < 0.25
    for other in (theirs.roll(1, -1), theirs.roll(1, -2), theirs.flip(-1), theirs.flip(1)):
        assert difference(ours, other).float().mean((1, 2, 3, 4)).min() > 4  # of any image


def test_whole_views_are_close_to_the_cpu_path(installed, files):
    """Measured over 216 views: mean difference 0.20, of any one view 0.43; mean and deviation within 0.001;
    total variation of the histograms 0.0024, Wasserstein distance 0.004 levels."""
    ours, theirs = (pixels(load(source, files, epochs=3)) for source in (dali, data))
    found = difference(ours, theirs).float()
    assert found.mean() < 0.3
    assert found.mean((2, 3, 4)).max() < 0.8
    for statistic in (torch.mean, torch.std):
        one, other = (statistic(p.float(), dim=(0, 1, 3, 4)) for p in (ours, theirs))
        torch.testing.assert_close(one, other, atol=0.01, rtol=0)
    one, other = (torch.bincount(p.flatten().int(), minlength=256) / p.numel() for p in (ours, theirs))
    assert (one - other).abs().sum() / 2 < 0.01
    assert (one.cumsum(0) - other.cumsum(0)).abs().sum() < 0.02


def test_a_resumed_run_and_any_number_of_workers_see_the_same(installed, files):
    whole = list(load(dali, files, epochs=3))
    assert len(whole) == 9
    for first, workers in ((4, 0), (2, 2), (8, 1)):
        rest = list(load(dali, files, first, workers, epochs=3))
        assert len(rest) == 9 - first
        assert torch.equal(pixels(rest), pixels(whole[first:]))
    assert list(load(dali, files, start=9, epochs=3)) == []


def test_other_formats_are_decoded_as_on_the_cpu_path(installed, files):
    image = picture(99)
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side: nobody turns it
    gray = image.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    others = [
        encode(image, exif=turned),
        encode(gray),
        encode(image.convert("CMYK")),
        encode(image) + b"junk",
        encode(image, progressive=True),
        encode(image, subsampling=0),
        encode(image, "PNG"),
        encode(deep, "PNG"),
        encode(image.convert("P"), "PNG"),
        encode(image.convert("P"), "GIF"),
        encode(Image.merge("RGBA", (*image.split(), gray)), "PNG"),
        encode(image, "WEBP"),
    ]
    ours, theirs = (pixels(load(source, others, **GEOMETRY)) for source in (dali, data))
    assert difference(ours, theirs).max() <= 8
    assert difference(ours, theirs).float().mean((1, 2, 3, 4)).max() < 0.4


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_replaced_as_on_the_cpu_path(installed, files, workers, capfd):
    """Two that the header tells, and three that only decoding does, in batches one after the other."""
    files = list(files)
    files[3], files[4] = b"not a picture", files[4][: len(files[4]) // 2]
    for index in (10, 11, 30):
        files[index] = break_huffman(files[index])
        Image.open(io.BytesIO(files[index]))  # the header is whole
    ours, theirs = (list(load(source, files, workers=workers, epochs=2)) for source in (dali, data))
    assert [bad for _, bad in ours] == [bad for _, bad in theirs]
    assert {index for _, bad in ours for index in bad} == {3, 4, 10, 11, 30}
    assert difference(pixels(ours), pixels(theirs)).float().mean() < 0.3
    assert "DALI failed on a batch of images, PIL decodes it; damaged: " in capfd.readouterr().out


def test_nothing_readable_stops_with_a_line(installed):
    for workers in (0, 1):
        with pytest.raises(KitError, match=r"^10 images in a row cannot be read, from \d+\.jpg on$"):
            list(load(dali, [b"not a picture"] * 12, workers=workers))


@pytest.mark.parametrize("good", [0, 1])
def test_a_failure_that_is_no_images_stops_with_a_line(installed, files, monkeypatch, good):
    run, calls = dali._run, iter(range(99))

    def fail(*arguments):
        if next(calls) < good:
            return run(*arguments)
        raise RuntimeError("Critical error:\nno memory")

    monkeypatch.setattr(dali, "_run", fail)
    with pytest.raises(KitError, match=r"^DALI fails \(Critical error: no memory\); do without it: views"):
        list(load(dali, files))


def test_closing_ends_every_process(installed, files):
    batches = load(dali, files, workers=2, epochs=50)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    began = time.monotonic()
    batches.close()
    assert multiprocessing.active_children() == []
    assert time.monotonic() - began < 10


CONFIG = """
model: {depth: 18, width: 8, hidden: 16, outputs: 8}
views: {size: 32, backend: dali, online: {smallest: 32, largest: 48}, target: {smallest: 32, largest: 48}}
loss: {group: 12}
optimizer: {learning_rate: 0.3, groups: 1, accumulate: 2}
schedule: {epochs: 20, warmup_epochs: 1}
workers: 2
checkpoint_every: 3
"""


@pytest.mark.slow
def test_a_stopped_run_leaves_no_process_and_goes_on(installed, places, drawn):
    """SIGTERM to the whole group, and again to the parent, as Slurm and `docker compose` send it."""
    (places / "dali.yaml").write_text(CONFIG)
    arguments = [
        "pretrain",
        "--run",
        "run",
        "--config",
        str(places / "dali.yaml"),
        "--data",
        str(drawn / "unlabelled"),
    ]
    process = start(*arguments, session=True)
    folder = places / "checkpoints" / "run" / "pretrain"
    wait_until(lambda: list(folder.glob("step_*.pth")), process)
    os.killpg(process.pid, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    assert "Traceback" not in error
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left in its group
    assert not (folder / "checkpoint.pth").exists()
    assert cli.main(arguments) == 0
    assert (folder / "checkpoint.pth").exists()
    assert multiprocessing.active_children() == []


@pytest.mark.gpu
def test_a_gpu_gives_the_views_of_the_cpu_path(installed, files):
    """nvJPEG rounds in its own way: the bound is a guess, to be measured. A wrong crop is 7 away."""
    here = pixels(load(data, files, **GEOMETRY))
    there, again = (pixels(load(dali, files, device=torch.device("cuda", 0), **GEOMETRY)) for _ in range(2))
    assert there.is_cuda
    assert difference(there.cpu(), here).float().mean() < 1
    assert torch.equal(there, again)


@pytest.mark.gpu
def test_a_cards_jpeg_engine_gives_nearly_the_same_views(installed, files):
    """The bound is a guess, to be measured."""
    here = pixels(load(data, files, **GEOMETRY))
    there = pixels(load(dali, files, device=torch.device("cuda", 0), jpeg_engine=1.0, **GEOMETRY))
    assert difference(there.cpu(), here).float().mean() < 3


@pytest.mark.gpu
def test_views_are_copied_before_dali_takes_their_memory_back(installed, files):
    """While the training's stream is busy, as it is in a real run, DALI works ahead."""
    device = torch.device("cuda", 0)

    def batches(wait):
        found = []
        for pairs, _ in load(dali, files, device=device, epochs=3, **GEOMETRY):
            found.append(pairs.clone())
            if wait:
                torch.cuda.synchronize(device)
            else:
                torch.cuda._sleep(10**9)
        return found

    for busy, still in zip(batches(wait=False), batches(wait=True), strict=True):
        assert torch.equal(busy, still)
