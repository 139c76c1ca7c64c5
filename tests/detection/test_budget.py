import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.detection import budget, model
from benchmarks.detection.budget import Memory
from tests.conftest import KIT
from triplet.errors import KitError, out_of_memory

AUTHORS = model.load_config(KIT / "configs/detection/coco_r50_c4_2x_authors.yaml")
MOCO = model.load_config(KIT / "configs/detection/coco_r50_c4_2x_moco.yaml")


@pytest.mark.parametrize(
    ("schedule", "part"),
    [("2x", 1), ("1x", 0.5), ("1/2x", 0.25), ("1/4x", 0.125), ("1/8x", 0.0625), ("1/2", 0.5), ("0.3", 0.3)],
)
def test_schedules(schedule, part):
    assert budget.part(schedule, MOCO) == pytest.approx(part)


@pytest.mark.parametrize("schedule", ["", "x", "0x", "1/0", "-1x", "2 x", "two", "1e3"])
def test_no_schedules(schedule):
    with pytest.raises(KitError, match="a schedule is 2x, 1x"):
        budget.part(schedule, MOCO)


def test_compression_keeps_the_shape_of_the_schedule():
    steps = budget.compress(MOCO, 1 / 8).SOLVER
    assert (steps.MAX_ITER, steps.STEPS, steps.WARMUP_ITERS) == (22500, (15000, 20000), 125)
    assert steps.BASE_LR == MOCO.SOLVER.BASE_LR
    cosine = budget.compress(AUTHORS, 0.1).SOLVER
    assert (cosine.MAX_ITER, cosine.WARMUP_ITERS) == (18000, 1000)
    assert MOCO.SOLVER.MAX_ITER == 180000
    with pytest.raises(KitError, match="90 iterations are left of 180000"):
        budget.compress(MOCO, 0.0005)


@given(fraction=st.floats(0.002, 1))
def test_a_compressed_schedule_ends_decayed(fraction):
    solver = budget.compress(MOCO, fraction).SOLVER
    first, second = solver.STEPS
    assert 0 < solver.WARMUP_ITERS <= first <= second < solver.MAX_ITER
    assert abs(solver.MAX_ITER - fraction * 180000) <= 1


@given(
    one=st.floats(1e8, 2e10),
    more=st.floats(1e7, 2e10),
    limit=st.floats(1e9, 2e11),
    share=st.integers(1, 32),
)
def test_a_pass_is_the_largest_equal_part_that_fits(one, more, limit, share):
    memory = Memory.through(one, one + more)
    if memory.peak(1) > budget.MARGIN * limit:
        with pytest.raises(KitError, match="one image takes"):
            budget.images_in_a_pass(share, memory, limit)
        return
    images = budget.images_in_a_pass(share, memory, limit)
    assert share % images == 0
    assert memory.peak(images) <= budget.MARGIN * limit
    assert all(memory.peak(n) > budget.MARGIN * limit for n in budget.divisors(share) if n > images)


def test_memory_goes_through_what_was_measured():
    memory = Memory.through(6e9, 9e9)
    assert memory == Memory(one=6e9, more=3e9)
    assert (memory.peak(1), memory.peak(2), memory.peak(8)) == (6e9, 9e9, 27e9)
    assert budget.images_in_a_pass(16, memory, 24e9) == 4


def test_when_two_images_do_not_fit_one_is_taken():
    assert budget.images_in_a_pass(16, Memory.through(7e9, math.inf), 8e9) == 1
    with pytest.raises(KitError, match=r"one image takes more, the GPU has 4\.0 GB; train on smaller"):
        budget.images_in_a_pass(16, Memory.through(math.inf, math.inf), 4e9)


def test_out_of_memory_says_what_to_give():
    assert budget.full(8) == "the GPU is full with 8 images in a pass; add --images-per-gpu 4"
    assert "smaller images" in budget.full(1)
    assert "--images-per-gpu" not in budget.full(8, kept=True)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA runtime API error cudaErrorMemoryAllocation (2)"), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
    ],
)
def test_full_gpus_are_told_from_other_errors(error, full):
    assert out_of_memory(error) == full


def test_what_hours_allow():
    assert budget.part_in(1000, 0.5, MOCO) == 1
    precise = MOCO.TEST.PRECISE_BN.NUM_ITER / 3  # goes forward only
    assert budget.part_in(10, 0.95, MOCO) == pytest.approx(0.2 - precise / 180_000)
    assert budget.part_in(0.001, 0.95, MOCO) == 0
    frozen = MOCO.clone()
    frozen.MODEL.RESNETS.NORM = "FrozenBN"
    assert budget.part_in(10, 0.95, frozen) == pytest.approx(0.2)


@given(hours=st.floats(0.5, 100), seconds=st.floats(0.05, 5))
def test_a_schedule_compressed_to_hours_lasts_that_long(hours, seconds):
    part = budget.part_in(hours, seconds, MOCO)
    if part * MOCO.SOLVER.MAX_ITER < budget.FEWEST:
        return
    cfg = budget.compress(MOCO, part)
    lasts = budget.lasts(seconds, cfg)
    assert lasts <= hours * 3600 + seconds
    assert part == 1 or lasts == pytest.approx(hours * 3600, abs=seconds)
    assert budget.lasts(seconds, cfg, done=50) == pytest.approx(lasts - 50 * seconds / (1 - budget.RESERVE))


def test_a_batch_that_processes_cannot_share():
    assert budget.per_process(MOCO, 8) == 2
    with pytest.raises(KitError, match=r"3 processes cannot share a batch of 16 .* may be 1, 2, 4, 8, 16"):
        budget.per_process(MOCO, 3)


def test_bn_pool():
    assert budget.bn_images(MOCO, 8, 2) == 16
    demo = model.load_config(KIT / "configs/detection/demo.yaml")
    assert budget.bn_images(demo, 2, 2) == 2
    frozen = model.load_config(KIT / "configs/detection/demo.yaml", ["MODEL.RESNETS.NORM=FrozenBN"])
    assert budget.bn_images(frozen, 2, 2) == 0
    other = model.load_config(KIT / "configs/detection/demo.yaml", ["MODEL.RESNETS.NORM=GN"])
    with pytest.raises(KitError, match="NORM is 'GN'; finetuning knows SyncBN, BN, FrozenBN"):
        budget.bn_images(other, 2, 2)


def test_other_processes_keep_the_pool_or_say_who_can():
    assert [budget.images_of_pool(MOCO, n, 8) for n in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(KitError, match=r"16 processes cannot have: GPUS x NODES may be 1, 2, 4, 8; or"):
        budget.images_of_pool(MOCO, 16, 8)
    demo = model.load_config(KIT / "configs/detection/demo.yaml")  # BN: a process's own images
    batch = demo.SOLVER.IMS_PER_BATCH
    assert budget.images_of_pool(demo, 2, 2) == budget.images_of_pool(demo, 1, 2) == 2
    with pytest.raises(KitError, match="cannot have"):
        budget.images_of_pool(demo, batch, 2)
    assert budget.images_of_pool(demo, 3, 0) is None


@given(pool=st.sampled_from([1, 2, 4, 8, 16]), processes=st.sampled_from([1, 2, 4, 8, 16]))
def test_a_pool_that_is_kept_is_the_same(pool, processes):
    try:
        images = budget.images_of_pool(MOCO, processes, pool)
    except KitError:
        assert processes > pool
    else:
        assert budget.bn_images(MOCO, processes, images) == pool
