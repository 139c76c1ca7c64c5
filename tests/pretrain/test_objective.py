"""The objective around a method that keeps what it is given."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.support.small_pretrain import ALONE, settings
from triplet.errors import KitError
from triplet.pretrain import objective
from triplet.pretrain.layout import Layout, MicroBatch
from triplet.pretrain.methods import METHODS
from triplet.pretrain.objective import make_objective
from triplet.pretrain.trainer import accumulate
from triplet.pretrain.views import draw_resolutions, normalize
from triplet.training.distributed import Processes


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Spy:
    """A method that keeps what its step is given."""

    TRAITS = METHODS["triplet"].TRAITS
    build = staticmethod(METHODS["triplet"].build)

    def __init__(self):
        self.seen, self.model, self.reduced, self.mixed = [], None, [], []

    def step(self, networks, views, batch):
        self.seen.append((views, batch))
        for share in (0.25, 0.75):
            self.notice()
            yield networks.predictor.fc0.weight.sum() * len(self.seen) * share
        self.notice()
        return [torch.tensor(float(i * len(self.seen))) for i in (1, 2, 3, 4)]

    def notice(self):
        """Whether gradients are to be averaged over processes, and computed in bfloat16, just now."""
        self.reduced.append(getattr(self.model, "require_backward_grad_sync", None))
        self.mixed.append((torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16)


@pytest.fixture
def spied(monkeypatch):
    spy = Spy()
    monkeypatch.setitem(METHODS, "triplet", spy)
    return spy


def test_a_step_is_told_which_images_of_what_micro_batch_it_has(spied):
    config = settings("triplet", seed=5, views={"size": 32, "online": {"smallest": 32, "largest": 90}})
    made = objective.Objective(config, 24, Processes(1, 3, torch.device("cpu"))).double()
    pixels = torch.randint(256, (12, 2, 3, 32, 32), dtype=torch.uint8)
    items = tuple((2, index) for index in range(40, 64, 2))
    values = objective.backward(made, made.begin(pixels, MicroBatch(7, items, 12)))
    ((views, each),) = spied.seen
    assert (each.iteration, each.first, each.processes) == (7, 12, 3)
    assert each.indices.tolist() == [index for _, index in items]
    assert each.own == slice(12, 24)
    assert each.resolutions == draw_resolutions(config.views, 5, 7)
    assert each.gather == made.processes.all_gather
    for number, view in enumerate(views):
        assert torch.equal(view, normalize(pixels[:, number], torch.double))
        assert view.is_contiguous(memory_format=torch.channels_last)
    assert values.tolist() == pytest.approx([made.networks.predictor.fc0.weight.sum().item(), 1, 2, 3, 4])
    given = draw_resolutions(config.views, 6, 8)
    objective.backward(made, made.begin(pixels, MicroBatch(7, items, 12), given))
    assert spied.seen[1][1].resolutions == given


def test_a_steps_losses_and_measures_are_means_over_its_passes(spied):
    """Three passes that give 1, 2 and 3 times the same; each waits and finds unreadable images."""
    config = settings("triplet")
    made = objective.Objective(config, 24, ALONE)
    pixels = torch.zeros((12, 2, 3, 32, 32), dtype=torch.uint8)
    passes = [MicroBatch(number, tuple((0, i) for i in range(12))) for number in range(3)]
    given = iter([(pixels, [4]), (pixels, [9, 4]), (pixels, [])])
    seen, waited, bad = accumulate(made, made, passes, given)
    total = made.networks.predictor.fc0.weight.sum().item()
    assert seen.tolist() == pytest.approx([2 * total, 2, 4, 6, 8], rel=1e-5)
    assert (made.networks.predictor.fc0.weight.grad == 2).all()
    assert bad == {4, 9}
    assert 0 <= waited < 1


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_what_sees_a_whole_batch_is_not_cut(method):
    config = settings(method)
    with pytest.raises(KitError, match="looks at its 24 images at once, so 24 must fit a GPU"):
        make_objective(config, 24, Layout(config, teams=1, ranks=1, splits=2), ALONE)
    make_objective(config, 24, Layout(config, teams=1, ranks=2, splits=1), ALONE)
    other = settings("byol")
    make_objective(other, 24, Layout(other, teams=1, ranks=1, splits=2), ALONE)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_losses_and_measures_are_of_the_configs_precision(spied, precision):
    config = settings("triplet", precision=precision)
    made = objective.Objective(config, 24, ALONE)
    pixels = torch.zeros((12, 2, 3, 32, 32), dtype=torch.uint8)
    objective.backward(made, made.begin(pixels, MicroBatch(0, tuple((0, i) for i in range(12)))))
    assert spied.mixed == [precision == "bfloat16"] * 3
    assert made.measures == ("loss", *spied.TRAITS.measures)


@pytest.mark.parametrize(("reduce", "averaged"), [(False, [False, False]), (True, [False, True])])
def test_only_the_last_term_averages_gradients(spied, alone, reduce, averaged):
    """The loss is that of the wrapped model, as no other pass averages them."""
    made = objective.Objective(settings("triplet"), 24, ALONE)
    spied.model = DistributedDataParallel(made)
    passes = []
    spied.model.register_forward_pre_hook(lambda *_: passes.append(len(spied.reduced)))
    pixels = torch.zeros((12, 2, 3, 32, 32), dtype=torch.uint8)
    step = made.begin(pixels, MicroBatch(0, tuple((0, i) for i in range(12))))
    objective.backward(made, step, model=spied.model, reduce=reduce)
    assert spied.reduced[:2] == averaged
    assert passes == [0, 1]
