"""Each method's step beside plain arithmetic, with settings of which no two are equal, one or a half."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.small_pretrain import settings
from triplet.pretrain.methods import METHODS, byol, moco, npid, relative_loc, simclr
from triplet.pretrain.methods.common import Batch, spread_and_rank, unit
from triplet.pretrain.trainer import average_statistics, make_optimizer
from triplet.training.distributed import Processes


class Linear(nn.Module):
    """An encoder without BN: (n, 3, h, w) -> (n, d), a function of each image alone."""

    def __init__(self, outputs=5, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, outputs, generator=generator, dtype=torch.double))

    def forward(self, images):
        return images.double().mean((2, 3)) @ self.weight


def batch(config, count, *, iteration=3, first=0, gather=lambda rows: rows, processes=1, indices=None):
    indices = torch.arange(count) if indices is None else torch.tensor(indices)
    return Batch(config, iteration, indices, first, gather, processes)


def pictures(*shape, seed=0):
    return torch.randn(*shape, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def whole(step):
    """The summed loss of a step, and its measures."""
    terms = []
    while True:
        try:
            terms.append(next(step))
        except StopIteration as end:
            return sum(terms), end.value


def test_simclr_takes_the_groups_share_of_the_whole_gradient():
    """As on the original's GPUs; DDP divides by the processes once more."""
    config = settings("simclr", optimizer={"groups": 3, "accumulate": 1}, contrastive={"temperature": 0.3})
    views = pictures(2, 6)
    found = {}
    for processes in (1, 2):
        encoder = Linear()
        networks = nn.ModuleDict({"online": encoder})
        loss, _ = whole(simclr.step(networks, views, batch(config, 6, processes=processes)))
        loss.backward()
        found[processes] = loss.item(), encoder.weight.grad
    plain = Linear()
    z = F.normalize(torch.stack([plain(views[0]), plain(views[1])], 1).flatten(0, 1), dim=1)
    logits = (z @ z.T / 0.3).masked_fill(torch.eye(12, dtype=torch.bool), -torch.inf)
    expected = F.cross_entropy(logits, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]))
    expected.backward()
    for processes, (value, gradient) in found.items():
        assert value == pytest.approx(expected.item())
        torch.testing.assert_close(gradient, plain.weight.grad * processes / 3)


def test_simclr_compares_with_the_images_of_all_processes():
    """The second of three processes, with two images of six; the gradient is that of its own."""
    config = settings("simclr", optimizer={"groups": 4, "accumulate": 1}, contrastive={"temperature": 0.3})
    views, encoder = pictures(2, 6), Linear()
    both = torch.stack([*views], 1).flatten(0, 1)
    others = F.normalize(encoder(both), dim=1).detach()
    rows = torch.cat([others[:4], F.normalize(encoder(both[4:8]), dim=1), others[8:]])
    logits = (rows @ rows.T / 0.3).masked_fill(torch.eye(12, dtype=torch.bool), -torch.inf)
    expected = F.cross_entropy(logits, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]))
    (gradient,) = torch.autograd.grad(expected, encoder.weight)

    def gather(own):
        return torch.cat([others[:4], own, others[8:]])

    networks, own = nn.ModuleDict({"online": encoder}), [view[2:4] for view in views]
    loss, _ = whole(simclr.step(networks, own, batch(config, 2, first=2, gather=gather, processes=3)))
    assert loss.item() == pytest.approx(expected.item())
    torch.testing.assert_close(torch.autograd.grad(loss, encoder.weight)[0], 0.75 * gradient)


class Scaled(nn.Module):
    """An encoder without a product that bfloat16 would round: (n, 3, 4, 4) -> (n, 48)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 48))

    def forward(self, images):
        return images.flatten(1) * self.weight


@pytest.mark.parametrize("method", ["simclr", "moco", "npid"])
def test_bfloat16_is_for_the_networks_and_not_for_the_loss(method):
    """The same loss to the last bit."""
    config = settings(
        method,
        contrastive={"momentum": 0.5, "queue": 48, "negatives": 10},
        model={"depth": 18, "width": 8, "hidden": 16, "outputs": 48},
    )
    losses = []
    for mixed in (False, True):
        torch.manual_seed(0)
        networks = METHODS[method].build(config, 12)
        networks.online = Scaled()
        networks.target = Scaled()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            losses.append(
                whole(METHODS[method].step(networks, pictures(2, 12).float(), batch(config, 12)))[0]
            )
    assert losses[0].dtype == losses[1].dtype == torch.float
    assert losses[0] == losses[1]


def test_npids_memory_moves_for_the_images_of_all_processes():
    config = settings("npid", contrastive={"momentum": 0.3, "negatives": 7, "temperature": 0.2})
    networks = npid.Npid(config, 40).double()
    networks.online = Linear(8)
    before, views, seen = networks.bank.clone(), [pictures(12)], [*range(5, 29, 2)]
    assert networks.bank.norm(dim=1).tolist() == pytest.approx([1] * 40)
    elsewhere, features = [39, 0], F.normalize(torch.randn(2, 8, dtype=torch.double), dim=1)

    def gather(rows):
        others = features if rows.is_floating_point() else torch.tensor(elsewhere)
        return torch.cat([others, rows])

    loss, _ = whole(npid.step(networks, views, batch(config, 12, first=2, indices=seen, gather=gather)))
    feature = F.normalize(networks.online(views[0]), dim=1)
    expected = before.clone()
    expected[elsewhere] = F.normalize(0.7 * before[elsewhere] + 0.3 * features, dim=1)
    expected[seen] = F.normalize(0.7 * before[seen] + 0.3 * feature.detach(), dim=1)
    torch.testing.assert_close(networks.bank, expected)
    drawn = npid.draw(40, batch(config, 12, first=2, indices=seen))
    rows = [
        torch.cat([before[i][None], before[row]]) @ f
        for i, row, f in zip(seen, drawn, feature, strict=True)
    ]
    torch.testing.assert_close(loss, F.cross_entropy(torch.stack(rows) / 0.2, torch.zeros(12).long()))


def test_draws_depend_on_seed_iteration_and_place_alone():
    config = settings("npid", contrastive={"negatives": 9})
    whole = npid.draw(1000, batch(config, 36))
    assert whole.shape == (36, 9)
    assert 0 <= whole.min() < 50 < 950 < whole.max() < 1000
    assert npid.draw(3, batch(config, 36)).unique().tolist() == [0, 1, 2]
    cut = [npid.draw(1000, batch(config, count, first=first)) for first, count in ((0, 12), (12, 24))]
    assert torch.equal(torch.cat(cut), whole)
    assert len({tuple(rows.flatten().tolist()) for rows in whole.split(12)}) == 3
    for other in (batch(config, 36, iteration=4), batch(config.model_copy(update={"seed": 1}), 36)):
        assert not torch.equal(npid.draw(1000, other), whole)
    mask = relative_loc.dropped(0.2, 50, batch(config, 36))
    assert mask.shape == (8 * 36, 50)
    assert mask.float().mean().item() == pytest.approx(0.2, abs=0.02)


def test_dropout_leaves_the_share_and_scales_the_rest():
    config = settings("relative-loc")
    networks = relative_loc.RelativeLoc(config).double().eval()
    networks.online, networks.dropout = Linear(4), 0.2
    networks.neck = nn.Identity()
    seen = []
    networks.head = nn.Linear(8, 8).double()
    networks.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    views, each = pictures(9, 12), batch(config, 12)
    loss, _ = whole(relative_loc.step(networks, views, each))
    around = [0, 1, 2, 3, 5, 6, 7, 8]
    pairs = [torch.cat([networks.online(views[a]), networks.online(views[4])], 1) for a in around]
    hidden = torch.stack(pairs, 1).flatten(0, 1)
    expected = hidden.masked_fill(relative_loc.dropped(0.2, 8, each), 0) / 0.8
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(loss, F.cross_entropy(networks.head(expected), torch.arange(8).repeat(12)))


def test_relative_locs_layers_begin_as_released():
    torch.manual_seed(0)
    config = settings("relative-loc", model={"depth": 18, "width": 16, "hidden": 96, "outputs": 8})
    networks = relative_loc.RelativeLoc(config)
    assert networks.dropout == 0.5
    assert networks.neck.bn.momentum == 0.003
    assert networks.neck.fc.in_features == 2 * 128
    for layer, bias in ((networks.neck.fc, 0.1), (networks.head, 0.0)):
        assert layer.weight.std().item() == pytest.approx(0.005, rel=0.1)
        assert (layer.bias == bias).all()


@pytest.mark.parametrize("first", [0, 4, 8])
def test_mocos_keys_are_shuffled_over_the_groups_and_put_back(first):
    """Three processes of four images: this one asks with its own, all keys join the queue in order."""
    config = settings("moco", contrastive={"queue": 24, "momentum": 0.9, "temperature": 0.3})
    networks = moco.Moco(config).double()
    networks.online, networks.target = Linear(8, seed=1), Linear(8, seed=2)
    queue, everyone = networks.queue.clone(), pictures(12, seed=3)
    assert queue.norm(dim=0).tolist() == pytest.approx([1] * 24)
    asked = pictures(12)[first : first + 4]
    target = 0.9 * networks.target.weight + 0.1 * networks.online.weight
    keys = F.normalize(everyone.mean((2, 3)) @ target, dim=1).detach()
    shown, gathered = [], []

    def gather(rows):
        gathered.append(rows)
        return everyone if rows.ndim == 4 else keys[order]

    order = torch.from_numpy(np.random.default_rng((0, 3, 0x5F1E)).permutation(12))
    networks.target.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    views = [asked, everyone[first : first + 4]]
    loss, (found,) = whole(moco.step(networks, views, batch(config, 4, first=first, gather=gather)))
    torch.testing.assert_close(networks.target.weight, target)
    assert torch.equal(gathered[0], views[1])
    assert torch.equal(shown[0], everyone[order[first : first + 4]])
    assert order.tolist() != [*range(12)]
    torch.testing.assert_close(gathered[1], keys[order[first : first + 4]])
    query = F.normalize(networks.online(asked), dim=1)
    positive = (query * keys[first : first + 4]).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ queue], 1) / 0.3
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.zeros(4).long()))
    assert found == (logits.argmax(1) == 0).float().mean()
    torch.testing.assert_close(networks.queue, torch.cat([keys.T, queue[:, 12:]], 1))
    assert networks.pointer.tolist() == [12]


def test_mocos_shuffle_is_another_one_each_time():
    config = settings("moco", contrastive={"queue": 24})
    orders = []
    for seed, iteration in ((0, 3), (0, 4), (1, 3), (0, 3)):
        networks = moco.Moco(config).double()
        networks.online, networks.target = Linear(8), Linear(8)
        networks.target.register_forward_pre_hook(
            lambda _, inputs: orders.append(inputs[0][:, 0, 0, 0].tolist())
        )
        views = pictures(2, 12)
        each = batch(config.model_copy(update={"seed": seed}), 12, iteration=iteration)
        whole(moco.step(networks, views, each))
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3


def test_byol_measures_the_cosine_of_both_directions():
    config = settings("byol")
    networks = byol.build(config, 12).eval()
    views = pictures(2, 12).float().repeat(1, 1, 1, 8, 8)
    with torch.no_grad():
        for parameter in networks.target.parameters():  # it begins as a copy of the online network
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        loss, (cosine,) = whole(byol.step(networks, views, batch(config, 12)))
        p1, p2 = (networks.predictor(networks.online(view)) for view in views)
        z1, z2 = (networks.target(view) for view in views)
    one, two = F.cosine_similarity(p1, z2).mean(), F.cosine_similarity(p2, z1).mean()
    torch.testing.assert_close(loss, -2 * (one + two))
    torch.testing.assert_close(cosine, (one + two) / 2)


def test_spread_and_rank_are_those_of_numpy():
    """Features that fill their dimensions unequally, far from 0."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(40, 5)) * [1, 2, 3, 5, 8] + [9, 0, 0, 4, 0]).astype(np.float32)
    z = features / np.linalg.norm(features, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(np.cov(z.T))
    spread, rank = spread_and_rank(torch.from_numpy(features))
    assert spread.item() == pytest.approx(z.std(0, ddof=1).mean() * 5**0.5, rel=1e-5)
    assert rank.item() == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-4)


def test_rows_of_length_one_are_at_least_float32():
    for given, expected in ((torch.half, torch.float), (torch.bfloat16, torch.float), (torch.double,) * 2):
        found = unit(torch.tensor([[3.0, 4.0]], dtype=given))
        assert found.dtype == expected
        assert found[0].tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("method", ["simclr", "moco", "npid", "rotation-pred", "byol", "triplet"])
def test_linear_layers_are_drawn_by_what_comes_in(method):
    """Kaiming normal by fan-in, as the authors' and OpenSelfSup's; no layer here has as many outputs."""
    torch.manual_seed(0)
    config = settings(method, model={"depth": 18, "width": 16, "hidden": 300, "outputs": 40})
    online = METHODS[method].build(config, 7).online
    linear = [layer for layer in online.projector.modules() if isinstance(layer, nn.Linear)]
    for layer in [online.projector] if isinstance(online.projector, nn.Linear) else linear:
        assert layer.in_features != layer.out_features
        assert layer.weight.std().item() == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.1)
        assert layer.bias is None or not layer.bias.any()
    for layer in online.backbone.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels != layer.out_channels:
            fan_in = layer.in_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)


def test_the_optimizer_has_the_configs_constants():
    chosen = {"groups": 2, "accumulate": 1, "learning_rate": 0.7, "momentum": 0.6, "weight_decay": 0.03}
    config = settings("triplet", optimizer={**chosen, "name": "lars", "eta": 0.02})
    networks = METHODS["triplet"].build(config, 24)
    one, two = make_optimizer(networks, config).param_groups
    assert [one[k] for k in ("lr", "momentum", "weight_decay", "eta")] == [0.7, 0.6, 0.03, 0.02]
    assert [two[k] for k in ("lr", "momentum", "weight_decay", "eta")] == [0.7, 0.6, 0.0, 0.02]
    sgd = config.model_copy(
        update={
            "optimizer": config.optimizer.model_copy(update={"name": "sgd", "head_weight_decay": 0.005})
        }
    )
    backbone, head = make_optimizer(networks, sgd).param_groups
    assert [backbone[k] for k in ("lr", "momentum", "weight_decay")] == [0.7, 0.6, 0.03]
    assert [head[k] for k in ("lr", "momentum", "weight_decay")] == [0.7, 0.6, 0.005]
    ids = {id(p) for group in (one, two) for p in group["params"]}
    assert ids == {id(p) for group in (backbone, head) for p in group["params"]}
    assert ids == {id(p) for part in (networks.online, networks.predictor) for p in part.parameters()}
    assert {id(p) for p in backbone["params"]} == {id(p) for p in networks.online.backbone.parameters()}


def test_only_statistics_are_averaged_over_teams():
    class Two(Processes):
        def mean(self, values):
            return values.add_(10)

    networks = nn.Sequential(nn.BatchNorm1d(3))
    networks[0].running_var.fill_(2.0)
    average_statistics(networks, Two(0, 2, torch.device("cpu")))
    assert networks[0].running_mean.tolist() == [10] * 3
    assert networks[0].running_var.tolist() == [12] * 3
    assert networks[0].num_batches_tracked == 0
    assert (networks[0].weight == 1).all()
