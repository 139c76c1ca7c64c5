"""Batches of two views per unlabelled image by NVIDIA DALI, which decodes, crops, resizes and mirrors on
the GPU; the colours are augmented there too.

Loader processes only read files, parse headers and draw the augmentations, so the draws are those of
``views`` with every backend. DALI gets the JPEGs, which are nearly all images. The loader processes decode
images that DALI would fail on or decode differently from PIL, and pass them on as plain pixels.

Pixels differ from the CPU path's by the rounding of DALI's resampling and, on a GPU, of nvJPEG's decoding.
One rule differs: PIL refuses a JPEG with an unknown marker inside; DALI decodes as much of it as it can.
"""

import contextlib
import io
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from triplet import untrusted
from triplet.errors import KitError, out_of_memory
from triplet.images import Images, to_eight_bits
from triplet.pretrain.config import Views
from triplet.pretrain.data import _Items, read_or_next
from triplet.pretrain.gpu_augment import gpu_augment
from triplet.pretrain.layout import Layout, Order
from triplet.pretrain.views import AugmentationParams, sample_augmentation, view_rng
from triplet.progress import say
from triplet.signals import Stop
from triplet.training.loading import load as load_items

AHEAD = 2
"""Number of batches that DALI prepares while one is in use."""
PART = 256
"""Number of views to augment in colour at a time; the blur takes about 30 bytes a value."""


class Sample(NamedTuple):
    """One image before decoding."""

    data: bytes
    draws: tuple[AugmentationParams, AugmentationParams]
    unreadable: list[int]
    """Indices of the unreadable images that this image replaces."""


class EncodedBatch(NamedTuple):
    """The images of one pass."""

    items: list[tuple[int, int]]
    """(epoch, index) of each requested image."""
    data: Tensor
    """Bytes of all files, concatenated into one piece of shared memory instead of hundreds."""
    sizes: list[int]
    draws: list[tuple[AugmentationParams, AugmentationParams]]
    unreadable: list[int]


class Encoded(Dataset[EncodedBatch]):
    """Data set that maps a list [(epoch, index), ...] to one EncodedBatch of those images.

    Unreadable images are replaced as in ``data.ViewPairs``.
    """

    def __init__(self, images: Images, config: Views, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed

    def __getitem__(self, items: list[tuple[int, int]]) -> EncodedBatch:
        return self.batch(items, plain=False)

    def batch(self, items: list[tuple[int, int]], plain: bool) -> EncodedBatch:
        """Load the images; with ``plain``, PIL decodes all of them."""
        samples = [self._sample(epoch, index, plain) for epoch, index in items]
        return EncodedBatch(
            items=items,
            data=torch.from_numpy(np.concatenate([np.frombuffer(s.data, dtype=np.uint8) for s in samples])),
            sizes=[len(s.data) for s in samples],
            draws=[s.draws for s in samples],
            unreadable=[index for s in samples for index in s.unreadable],
        )

    def _sample(self, epoch: int, index: int, plain: bool) -> Sample:
        (data, size), index, unreadable = read_or_next(
            self.images, index, lambda index: self._read(index, plain)
        )
        one, other = (
            sample_augmentation(self.config, size, view, view_rng(self.seed, epoch, index, view))
            for view in (0, 1)
        )
        return Sample(data, (one, other), unreadable)

    def _read(self, index: int, plain: bool) -> tuple[bytes, tuple[int, int]] | None:
        """Return the bytes for DALI and (width, height); None for an unreadable image."""
        try:
            data = self.images.read(index)
            with Image.open(io.BytesIO(data), formats=untrusted.IMAGE_FORMATS) as file:
                if plain or not _for_dali(file, data):
                    pixels = to_eight_bits(file).convert("RGB").tobytes()
                    data = b"P6 %d %d 255\n" % file.size + pixels  # PPM: a header and plain pixels
                return data, file.size
        except KitError as error:
            raise KitError(f"{self.images.name(index)} {error}") from None
        except Exception:  # whatever Pillow's plug-ins raise on a damaged file
            return None


def _for_dali(file: Image.Image, data: bytes) -> bool:
    """Return whether DALI decodes the file as PIL does, as it does a complete gray or YCbCr JPEG."""
    return (
        file.format == "JPEG"
        and file.mode in ("L", "RGB")
        and file.info.get("adobe_transform") != 0  # RGB without a transform
        and data.endswith(b"\xff\xd9")
    )


def load(
    images: Images, layout: Layout, order: Order, rank: int, start: int, device: torch.device, stop: Stop
) -> Generator[tuple[Tensor, list[int]], None, None]:
    """Yield the views of each pass of a process, from optimiser step ``start`` to the end of the run:
    (n, 2, 3, size, size) uint8 on ``device``, and the indices of unreadable images."""
    config = layout.config
    _dali()  # before processes are started
    encoded = Encoded(images, config.views, config.seed)
    items = _Items(layout, order, rank, start)
    with contextlib.closing(load_items(encoded, items, workers=config.loaders, stop=stop)) as batches:
        for batch, pixels in _decoded(encoded, batches, layout, device):
            draws = [each for pair in batch.draws for each in pair]
            parts = [
                gpu_augment(pixels[i : i + PART], draws[i : i + PART]) for i in range(0, len(draws), PART)
            ]
            yield torch.cat(parts).unflatten(0, (-1, 2)), batch.unreadable


def _decoded(
    encoded: Encoded, batches: Iterator[EncodedBatch], layout: Layout, device: torch.device
) -> Iterator[tuple[EncodedBatch, Tensor]]:
    """Yield each batch with its (2n, 3, size, size) uint8 views, before any augmentation of colour."""
    ready, inside = deque[EncodedBatch](), deque[EncodedBatch]()  # for DALI, and in DALI

    def source() -> tuple[list[NDArray[np.uint8]], NDArray[np.int32]]:
        if not ready:
            raise StopIteration
        inside.append(ready.popleft())
        return _arrays(inside[-1])

    pipeline, failed = _pipeline(layout, device, source), False
    held = deque[Held]()
    while True:
        ready.extend(itertools.islice(batches, AHEAD + 1 - len(inside) - len(ready)))
        if not ready and not inside:
            return
        try:
            pixels = _run(pipeline, device, held)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-300:]
            if out_of_memory(error):
                raise KitError(f"DALI finds the GPU full ({reason}); lower images_per_gpu") from None
            if failed or not inside:
                raise KitError(f"DALI fails ({reason}); do without it: views.backend=opencv") from None
            # An image with a good header is damaged. A pipeline cannot be used after an error.
            inside[0] = _plain(encoded, inside[0])
            ready.extendleft(reversed(inside))
            inside.clear()
            pipeline, failed = _pipeline(layout, device, source), True
            continue
        failed = False
        yield inside.popleft(), pixels


def _plain(encoded: Encoded, batch: EncodedBatch) -> EncodedBatch:
    """Load the same images again, decoded by PIL."""
    plain = encoded.batch(batch.items, plain=True)
    damaged = sorted({*plain.unreadable} - {*batch.unreadable})
    names = ", ".join(encoded.images.name(index) for index in damaged) or "none that PIL cannot read"
    say(f"views: DALI failed on a batch of images, PIL decodes it; damaged: {names}")
    return plain


def _dali() -> Any:
    try:
        return import_module("nvidia.dali")
    except ImportError:
        raise KitError(
            "views.backend=dali needs nvidia-dali-cuda130; install it with: make setup DALI=1; "
            "or choose views.backend=opencv"
        ) from None


def _arrays(batch: EncodedBatch) -> tuple[list[NDArray[np.uint8]], NDArray[np.int32]]:
    """Return the encoded images and the (n, 2, 5) left, top, width, height and mirroring of their views."""
    draws = [[[*view.box, view.flip] for view in pair] for pair in batch.draws]
    return [each.numpy() for each in batch.data.split(batch.sizes)], np.array(draws, dtype=np.int32)


def _pipeline(layout: Layout, device: torch.device, source: Callable[[], Any]) -> Any:
    """Turn the output of ``_arrays`` into two (size, size, 3) uint8 views of each image."""
    dali = _dali()
    fn, types = import_module("nvidia.dali.fn"), import_module("nvidia.dali.types")
    side, gpu = layout.config.views.size, device.type == "cuda"
    pipeline = dali.Pipeline(
        batch_size=layout.images,
        num_threads=max(1, layout.config.loaders),
        device_id=device.index,  # None for no GPU
        prefetch_queue_depth=AHEAD + 1,
    )
    with pipeline:
        kinds = [types.UINT8, types.INT32]
        data, draws = fn.external_source(source, num_outputs=2, dtype=kinds, ndim=[1, 2])
        image = fn.decoders.image(
            data,
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,  # PIL does not rotate by EXIF either
            jpeg_fancy_upsampling=True,  # chroma as in PIL's libjpeg; nvJPEG would repeat its pixels
            # With affinity, the processes of one node would share the same cores.
            **({"affine": False, "hw_decoder_load": layout.config.views.jpeg_engine} if gpu else {}),
        )
        views = []
        for view in (0, 1):
            # Crop first: resizing with a box would mix pixels outside the crop into its border.
            cropped = fn.slice(image, start=draws[view, 0:2], shape=draws[view, 2:4], axis_names="WH")
            resized = fn.resize(cropped, size=(side, side), interp_type=types.INTERP_CUBIC, antialias=True)
            views.append(fn.flip(resized, horizontal=draws[view, 4]))
        pipeline.set_outputs(*views)
    pipeline.build()
    return pipeline


class Held(NamedTuple):
    """References that keep DALI's memory alive until the training stream has copied it."""

    copied: torch.cuda.Event
    views: list[Tensor]


def _run(pipeline: Any, device: torch.device, held: deque[Held]) -> Tensor:
    """Return (2n, 3, size, size) uint8, an image's two views adjacent; RuntimeError when DALI fails.

    DALI makes the training stream wait for its own stream, but not the other way round: it reuses the
    memory of views as soon as nothing references them, even if their copy is only enqueued. ``held`` keeps
    the references until the device has made the copy.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    views = [torch.from_dlpack(view.as_tensor()) for view in pipeline.run(stream)]
    pixels = torch.stack(views, dim=1).flatten(0, 1).permute(0, 3, 1, 2)
    if stream is not None:
        while held and held[0].copied.query():
            held.popleft()
        held.append(Held(stream.record_event(), views))
    return pixels
