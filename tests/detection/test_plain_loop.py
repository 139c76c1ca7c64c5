"""Detectron2's training by the kit beside a plain loop over its model, and what each step leaves."""

import itertools
import signal
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.detection import evaluate, model, synthetic, trainer
from benchmarks.detection.trainer import CheckpointHook, GradAccumTrainer, Trainer
from tests.conftest import KIT
from tests.support.toy_detector import Toy
from triplet.artifacts import Job
from triplet.errors import Interrupted
from triplet.signals import Stop
from triplet.training import checkpoint
from triplet.training.distributed import Processes

from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

ALONE = Processes(0, 1, torch.device("cpu"))
DEMO = KIT / "configs/detection/demo.yaml"
TINY = ["INPUT.MIN_SIZE_TRAIN=(64,)", "INPUT.MAX_SIZE_TRAIN=80", "MODEL.RPN.POST_NMS_TOPK_TRAIN=30"]
TINY += ["SOLVER.IMS_PER_BATCH=2", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=16"]


def batches(steps, share=12):
    random = torch.Generator().manual_seed(1)
    return [[{"x": torch.randn(5, generator=random).double()} for _ in range(share)] for _ in range(steps)]


@pytest.mark.parametrize("images", [3, 4, 12])
def test_steps_in_passes_are_those_of_a_plain_loop(images):
    network, plain = Toy(), Toy()
    optimizer = torch.optim.SGD(network.parameters(), 0.07, momentum=0.8, weight_decay=0.05)
    steps = GradAccumTrainer(network, iter(batches(5)), optimizer, ALONE, images, "float32")
    other = torch.optim.SGD(plain.parameters(), 0.07, momentum=0.8, weight_decay=0.05)
    with EventStorage() as steps.storage:
        for steps.iter, batch in enumerate(batches(5)):
            losses = plain(batch)
            other.zero_grad()
            sum(losses.values()).backward()
            other.step()
            steps.run_step()
            assert steps.latest == pytest.approx(
                {name: value.item() for name, value in losses.items()}, rel=1e-6
            )
            scalars = steps.storage.latest()
            assert scalars["total_loss"][0] == pytest.approx(sum(losses.values()).item(), rel=1e-6)
            assert scalars["loss_b"][0] == pytest.approx(losses["loss_b"].item(), rel=1e-6)
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


class Second(Processes):
    """A process whose means are those with another one, which has other losses and may be told to stop."""

    other = torch.tensor([2.0, 5.0, 0.5, 1.0])

    def mean(self, values):
        return (values + self.other[: values.numel()].reshape(values.shape)) / 2


@pytest.mark.parametrize("stop", [0.0, 1.0])
def test_losses_times_and_stops_are_those_of_all_processes(monkeypatch, stop):
    monkeypatch.setattr(Second, "other", torch.tensor([2.0, 5.0, 0.5, stop]))
    network = Toy()
    optimizer = torch.optim.SGD(network.parameters(), 0.07)
    steps = GradAccumTrainer(network, iter(batches(1)), optimizer, Second(0, 2, ALONE.device), 4, "float32")
    own = {name: value.item() for name, value in Toy()(batches(1)[0]).items()}
    with EventStorage() as steps.storage:
        steps.iter = 0
        steps.run_step()
    assert steps.latest == pytest.approx(
        {"loss_a": (own["loss_a"] + 2) / 2, "loss_b": (own["loss_b"] + 5) / 2}
    )
    assert steps.stopping == bool(stop)
    assert 0.25 <= steps.storage.latest()["data_time"][0] < 1


def test_gradients_of_all_passes_go_once_through_all_processes(tmp_path):
    """In place of a sum over processes, twice the own gradients."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    plain, network = Toy(), nn.parallel.DistributedDataParallel(Toy())

    def done(value):
        future = torch.futures.Future()
        future.set_result(value)
        return future

    network.register_comm_hook(None, lambda _, bucket: done(2 * bucket.buffer()))
    steps = GradAccumTrainer(
        network, iter(()), torch.optim.SGD(network.parameters(), 1), ALONE, 4, "float32"
    )
    steps.backward(batches(1)[0])
    dist.destroy_process_group()
    sum(plain(batches(1)[0]).values()).backward()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, 2 * theirs.grad)


def test_float16_scales_the_loss_alone_and_lowers_its_scale():
    given = [[{"x": image["x"].float()} for image in batch] for batch in batches(2)]
    network, plain = Toy().float(), Toy().float()
    steps = GradAccumTrainer(
        network, iter(given), torch.optim.SGD(network.parameters(), 0.07), ALONE, 4, "float16"
    )
    steps.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    sum(plain(given[0]).values()).backward()
    with EventStorage() as steps.storage:
        steps.iter = 0
        steps.run_step()
        for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs - 0.07 * theirs.grad, rtol=0.01, atol=0.002)
        before = [each.clone() for each in network.parameters()]
        steps.scaler.update(new_scale=2.0**30)
        steps.run_step()
    assert steps.scaler.get_scale() == 2.0**29
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))


def test_training_equals_a_plain_loop_over_detectron2s_model(tmp_path, monkeypatch):
    """Warm-up, decay of the rate, two passes a step, BN of each pass: every tensor after three steps."""
    more = ["SOLVER.MAX_ITER=3", "SOLVER.STEPS=(2,)", "SOLVER.WARMUP_ITERS=1", "SOLVER.BASE_LR=0.01"]
    cfg = model.load_config(DEMO, [*TINY, *more, f"OUTPUT_DIR={tmp_path}"])
    given = [synthetic.images(cfg, 2, seed=step) for step in range(3)]
    started = []
    monkeypatch.setattr(trainer, "batches", lambda *asked: started.append(asked[3]) or iter(given))
    torch.manual_seed(5)
    ours = Trainer(cfg, ALONE, 1, "float32", 0, Stop())
    torch.manual_seed(5)
    plain = model.build(cfg).train()
    assert all(
        torch.equal(a, b) for a, b in zip(ours.network.parameters(), plain.parameters(), strict=True)
    )
    torch.manual_seed(6)  # the heads sample from their proposals
    ours.train(0, 3)
    optimizer = build_optimizer(cfg, plain)
    scheduler, rates = build_lr_scheduler(cfg, optimizer), []
    torch.manual_seed(6)
    with EventStorage():
        for batch in given:
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            for image in batch:
                (sum(plain([image]).values()) / 2).backward()
            optimizer.step()
            scheduler.step()
    assert len({*rates}) == 3
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    state = ours.state_dict()
    assert state["optimizer"]["param_groups"][0]["lr"] == optimizer.param_groups[0]["lr"]
    again = Trainer(cfg, ALONE, 1, "float32", 3, Stop())
    assert (started, again.start_iter, again.max_iter) == ([0, 3], 3, 3)
    again.restore({"model": ours.network.state_dict(), "trainer": state})
    for name, value in ours.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)
    for p, q in zip(again.network.parameters(), ours.network.parameters(), strict=True):
        if q in ours.optimizer.state:
            momentum = ours.optimizer.state[q]["momentum_buffer"]
            assert torch.equal(again.optimizer.state[p]["momentum_buffer"], momentum)


@pytest.mark.parametrize("norm", ["SyncBN", "FrozenBN", "BN"])
def test_every_norm_of_a_c4_detector_is_the_configs(norm):
    names = {"SyncBN": "SyncBatchNorm", "FrozenBN": "FrozenBatchNorm2d", "BN": "BatchNorm2d"}
    built = model.build(model.load_config(DEMO, [f"MODEL.RESNETS.NORM={norm}"]))
    kinds = {type(m) for m in built.modules() if "BatchNorm" in type(m).__name__}
    assert len(kinds) == 1
    extra = built.roi_heads.res5.norm
    assert type(extra) is type(built.backbone.stem.conv1.norm)
    assert type(extra).__name__ == names[norm]


@pytest.mark.parametrize(("norm", "kind"), [("SyncBN", "PooledBatchNorm"), ("BN", "BatchNorm2d")])
def test_processes_without_a_gpu_pool_bn_if_the_config_does(tmp_path, norm, kind):
    cfg = model.load_config(DEMO, [f"MODEL.RESNETS.NORM={norm}"])
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    built = trainer.build(cfg, Processes(0, 2, torch.device("cpu")), "float32")
    dist.destroy_process_group()
    assert isinstance(built, nn.parallel.DistributedDataParallel)
    assert not built.broadcast_buffers, "statistics of BN are each process's own, or pooled"
    assert {type(m).__name__ for m in built.modules() if "BatchNorm" in type(m).__name__} == {kind}
    assert norm == cfg.MODEL.RESNETS.NORM


@pytest.mark.parametrize("precision", trainer.PRECISIONS)
@pytest.mark.parametrize("search", [True, False])
def test_the_switches_of_cuda_are_the_configs_and_the_precisions(precision, search):
    cfg = model.load_config(DEMO, [f"CUDNN_BENCHMARK={search}"])
    before = torch.backends.cudnn.benchmark
    trainer.build(cfg, ALONE, precision)
    found = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.benchmark = before
    model.allow_tf32(False)
    assert found == (search, precision != "float32")


@pytest.fixture
def hooked(tmp_path, monkeypatch):
    """A hook of period 4 in a training of 10 iterations, whose clock and stop a test sets."""
    network, clock = Toy(), [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    said = []
    hook = CheckpointHook(SimpleNamespace(step=said.append), Job(tmp_path), 4)
    hook.trainer = SimpleNamespace(
        start_iter=2,
        max_iter=10,
        iter=0,
        latest={"a": 1.25, "b": 0.5},
        stopping=False,
        stop=SimpleNamespace(interrupted=Interrupted),
        processes=ALONE,
        network=network,
        state_dict=lambda: {"optimizer": "state"},
    )
    hook.before_train()
    return hook, clock, said


def saved(hook):
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(hook.job.folder)]


def test_a_training_saves_by_period_by_time_and_at_its_end(hooked):
    hook, clock, said = hooked
    assert hook.reached == 2
    seconds = {2: 650.0, 3: 300.0}
    kept = {}
    for iteration in range(10):
        clock[0] += seconds.get(iteration, 10.0)
        hook.trainer.iter = iteration
        hook.after_step()
        kept[iteration + 1] = saved(hook)
    assert kept == {
        1: [],
        2: [],
        3: [3],
        4: [4, 3],
        5: [4, 3],
        6: [4, 3],
        7: [4, 3],
        8: [8, 4],
        9: [8, 4],
        10: [10, 8],
    }
    assert (hook.steps, hook.seconds, hook.reached) == (10, 650 + 300 + 80, 10)
    assert said == ["loss 1.750"] * 10
    state = torch.load(hook.job.folder / "step_0000010.pth", weights_only=True)
    assert (state["step"], state["trainer"]) == (10, {"optimizer": "state"})
    assert all(torch.equal(v, state["model"][k]) for k, v in hook.trainer.network.state_dict().items())


def test_a_stop_saves_the_iteration_that_was_done(hooked):
    hook, *_ = hooked
    hook.trainer.iter = 5
    hook.after_step()
    assert saved(hook) == []
    hook.trainer.iter, hook.trainer.stopping = 6, True
    with pytest.raises(Interrupted, match="7 of 10 iterations"):
        hook.after_step()
    assert saved(hook) == [7]


class Normed(nn.Module):
    """A layer of BN that sees the images of a pass."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(2)

    def forward(self, images):
        return self.bn(torch.stack([image["x"] for image in images]))


def bare_trainer(network, images, stop=None, **changes):
    """A Trainer of which only precise BN is used."""
    made = Trainer.__new__(Trainer)
    made.cfg = model.load_config(DEMO, [f"{key}={value}" for key, value in changes.items()])
    made.model, made.images, made.processes = network, images, ALONE
    made.stop = stop or Stop()
    return made


def test_precise_bn_takes_the_mean_of_all_passes(monkeypatch):
    random = torch.Generator().manual_seed(0)
    given = [[{"x": torch.randn(2, generator=random) * 3 + 5} for _ in range(6)] for _ in range(9)]
    monkeypatch.setattr(trainer, "batches", lambda *_: (batch for batch in given))
    chosen = {"SOLVER.IMS_PER_BATCH": 6, "TEST.PRECISE_BN.NUM_ITER": 7, "TEST.PRECISE_BN.ENABLED": True}
    made = bare_trainer(Normed(), 2, **chosen)
    assert made.precise_passes == 7 * 3
    done = SimpleNamespace(done=0)
    done.step = lambda: setattr(done, "done", done.done + 1)
    made.precise_bn(done)
    used = torch.stack([image["x"] for batch in given[:7] for image in batch])
    torch.testing.assert_close(made.network.bn.running_mean, used.mean(0), rtol=1e-4, atol=1e-4)
    assert done.done in (20, 21)
    assert bare_trainer(Normed(), 2, **chosen | {"TEST.PRECISE_BN.ENABLED": False}).precise_passes == 0
    assert bare_trainer(Toy(), 2, **chosen).precise_passes == 0, "there is no BN"
    made.processes = Second(0, 3, ALONE.device)
    assert made.precise_passes == 7 * 1, "a third of the batch"
    with pytest.raises(Interrupted, match="precise BN was at 0 of 7"):  # another process is told to stop
        made.precise_bn(SimpleNamespace(done=0, step=lambda: None))
    stopped = bare_trainer(Normed(), 2, stop=Stop(), **chosen)
    stopped.stop.signal = signal.SIGTERM
    with pytest.raises(Interrupted, match="precise BN was at 0 of 21"):
        stopped.precise_bn(SimpleNamespace(done=0, step=lambda: None))
    assert not stopped.network.bn.running_mean.any()


class Finder(nn.Module):
    """Finds one box in each image, as large as its number; raises for one of them."""

    def __init__(self, broken=None):
        super().__init__()
        self.broken, self.modes = broken, []

    def forward(self, images):
        (image,) = images
        self.modes.append(self.training)
        if image["image_id"] == self.broken:
            raise RuntimeError("this image cannot be detected in")
        found = Instances((50, 60))
        size = float(image["image_id"])
        found.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 1 + size, 2 + 2 * size]]))
        found.scores, found.pred_classes = torch.tensor([size / 10]), torch.tensor([image["image_id"] % 3])
        return [{"instances": found}]


def test_each_image_is_detected_in_once_and_errors_surface():
    bar = SimpleNamespace(done=0)
    bar.step = lambda: setattr(bar, "done", bar.done + 1)
    images = [{"image_id": number} for number in (4, 7, 9)]
    network = Finder().train()
    found = evaluate._detect(network, images, None, bar, Stop())
    assert [(each["image_id"], each["category_id"], each["bbox"]) for each in found] == [
        (4, 1, [1, 2, 4, 8]),
        (7, 1, [1, 2, 7, 14]),
        (9, 0, [1, 2, 9, 18]),
    ]
    assert [each["score"] for each in found] == pytest.approx([0.4, 0.7, 0.9])
    assert (bar.done, network.modes) == (3, [False] * 3)
    with pytest.raises(RuntimeError, match="cannot be detected in"):
        evaluate._detect(Finder(broken=7), images, None, bar, Stop())
    stop = Stop()
    stop.signal = signal.SIGTERM
    assert evaluate._detect(Finder(), itertools.repeat(images[0]), None, bar, stop) == []
