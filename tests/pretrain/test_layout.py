import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.small_pretrain import laid_out
from triplet.errors import KitError
from triplet.pretrain.layout import Order, make_layout, permutation


@given(
    images=st.integers(11, 200),
    groups=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    epochs=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_every_epoch_is_a_permutation(images, groups, accumulate, epochs, seed):
    config = laid_out(groups=groups, accumulate=accumulate, epochs=epochs, seed=seed)
    if images < config.micro_batch:
        with pytest.raises(KitError, match="fewer than one micro-batch"):
            Order(images, config)
        return
    order = Order(images, config)
    items = [item for i in range(order.iterations) for item in order.micro_batch(i)]
    assert len(items) == len(set(items)) == order.steps * config.batch
    for epoch in range(epochs):
        assert sum(e == epoch for e, _ in items) <= order.per_epoch * config.micro_batch <= images
    assert all(0 <= index < images for _, index in items)


@given(
    groups=st.sampled_from([1, 2, 3, 4, 8]),
    accumulate=st.sampled_from([1, 2, 4, 6]),
    data=st.data(),
)
def test_any_number_of_processes_does_the_same_step(groups, accumulate, data):
    """Together they see each image of a step once, groups stay whole, micro-batches keep their images."""
    limit = data.draw(st.sampled_from([None, 11, 22, 44]))
    config = laid_out(groups=groups, accumulate=accumulate, images_per_gpu=limit)
    order = Order(11 * groups * accumulate * 2, config)
    processes = data.draw(st.integers(1, groups * accumulate))
    whole = groups % processes == 0 or (processes % groups == 0 and accumulate % (processes // groups) == 0)
    if not whole:
        with pytest.raises(KitError, match=f"do not divide among {processes} processes; possible: 1"):
            make_layout(config, processes)
        return
    layout = make_layout(config, processes)
    assert layout.teams * layout.ranks == processes
    assert limit is None or layout.images <= limit
    assert layout.bn_images == config.micro_batch // layout.splits
    alone = make_layout(laid_out(groups=groups, accumulate=accumulate, batch_norm="group"), processes)
    assert alone.bn_images == 11
    for start in (0, 1):
        mine = [list(layout.steps(order, rank, start)) for rank in range(processes)]
        for number, step in enumerate(range(start, order.steps)):
            together: dict[int, list] = {}
            for rank in range(processes):
                assert len(mine[rank][number]) == layout.passes
                for place, each in enumerate(mine[rank][number]):
                    assert len(each.items) == layout.images
                    whole = order.micro_batch(each.iteration)
                    assert list(each.items) == whole[each.first : each.first + layout.images]
                    # Side by side: methods with a queue see the micro-batches of a step in this order.
                    done = each.iteration - step * accumulate
                    assert done // layout.teams == place // layout.splits
                    together.setdefault(each.iteration, []).extend(each.items)
            first = step * accumulate
            assert together.keys() == set(range(first, first + accumulate))
            # In order: so consecutive groups of 11 are the same groups in every layout.
            assert all(items == order.micro_batch(i) for i, items in together.items())


def test_an_epochs_end_draws_no_order_twice():
    """Teams, and loaders that read ahead, go to and fro between two epochs."""
    config = laid_out(epochs=9, accumulate=2)
    order = Order(23, config)
    permutation.cache_clear()
    for iteration in (1, 2, 1, 2, 3, 2, 3, 4):
        order.micro_batch(iteration)
    assert permutation.cache_info().misses == 3
    with pytest.raises(ValueError, match="read-only"):
        permutation(23, 0, 0)[0] = 1


def test_the_authors_recipe_on_other_machines():
    config = laid_out(group=196, groups=8, accumulate=4)

    def shape(processes, **changes):
        layout = make_layout(config.model_copy(update=changes), processes)
        return layout.passes, layout.images, layout.bn_images

    assert shape(8) == (4, 196, 1568)
    assert shape(1) == (4, 1568, 1568)
    assert shape(1, images_per_gpu=400) == (16, 392, 392)
    assert shape(4, images_per_gpu=196) == (8, 196, 784)
    assert shape(16) == (2, 196, 1568)
    assert shape(32) == (1, 196, 1568)
    assert (
        "BN over 392 (the config asks for 1568"
        in make_layout(config.model_copy(update={"images_per_gpu": 400}), 1).describe()
    )
    assert make_layout(config, 8).describe().endswith("BN over 1568")
    with pytest.raises(KitError, match="possible: 1, 2, 4, 8, 16, 32;"):
        make_layout(config, 6)
    with pytest.raises(KitError, match="less than a negative group of 196"):
        make_layout(config.model_copy(update={"images_per_gpu": 100}), 1)
