import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triplet.errors import KitError
from triplet.pretrain.config import Loss, Optimizer, Pretrain, Schedule, Views
from triplet.pretrain.data import Batches, ViewPairs, list_images, load


def settings(group=12, groups=1, accumulate=1, epochs=2, **others):
    return Pretrain(
        loss=Loss(group=group),
        optimizer=Optimizer(groups=groups, accumulate=accumulate),
        schedule=Schedule(epochs=epochs),
        views=Views(size=32),
        **others,
    )


@given(
    images=st.integers(12, 200), groups=st.integers(1, 3), accumulate=st.integers(1, 3),
    epochs=st.integers(0, 4), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_epoch_is_a_permutation_and_a_resume_continues_it(images, groups, accumulate, epochs, seed):
    config = settings(groups=groups, accumulate=accumulate, epochs=epochs, seed=seed)
    if images < config.micro_batch:
        with pytest.raises(KitError, match="fewer than one micro-batch"):
            Batches(images, config)
        return
    batches = Batches(images, config)
    everything = list(batches)
    assert len(everything) == len(batches) == batches.total
    assert len(everything) % accumulate == 0
    for epoch in range(epochs):
        items = [item for batch in everything for item in batch if item[0] == epoch]
        assert len(items) == len(set(items)) <= images
    middle = len(everything) // 2
    assert list(Batches(images, config, start=middle)) == everything[middle:]


def test_loader_gives_pairs_of_views_in_order(drawn):
    images = list_images(drawn / "unlabelled")
    config = settings(workers=0)
    plain = list(load(images, config, 0))
    assert plain[0].shape == (12, 2, 3, 32, 32)
    assert plain[0].dtype == torch.uint8
    parallel = list(load(images, config.model_copy(update={"workers": 2}), 3))
    assert all(torch.equal(a, b) for a, b in zip(plain[3:], parallel, strict=True))


def test_epochs_differ(drawn):
    data = ViewPairs(list_images(drawn / "unlabelled"), Views(size=32), seed=0)
    assert torch.equal(data[(0, 3)], data[(0, 3)])
    assert not torch.equal(data[(0, 3)], data[(1, 3)])


def test_missing_empty_and_damaged_folders_are_named(tmp_path):
    with pytest.raises(KitError, match="no folder of images"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(KitError, match="holds no image"):
        list_images(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    for workers in (0, 1):
        config = settings(workers=workers)
        with pytest.raises(KitError, match=r"^/\S+broken\.jpg cannot be read as an image: [^\n]*$"):
            next(load(list_images(tmp_path) * 12, config, 0))
