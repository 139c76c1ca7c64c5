import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import KIT
from triplet.config import load
from triplet.demo import Demo
from triplet.errors import KitError
from triplet.pretrain.config import Pretrain
from triplet.published.methods import load_methods
from triplet.pull.synthetic import Drawn

GOOD = "loss: {group: 196}\noptimizer: {groups: 8, accumulate: 4}\nschedule: {epochs: 200}\n"


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    "path", sorted((KIT / "configs" / "pretrain").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_pretraining_config_is_valid(path):
    load(path, Pretrain)


def test_the_authors_recipe():
    """Each constant of the recipe's sections 1 to 4."""
    c = load(KIT / "configs/pretrain/triplet_resnet50_8x196x4-larscos-1000e_imagenet.yaml", Pretrain)
    assert (c.micro_batch, c.batch) == (1568, 6272)
    assert c.model.model_dump() == {"depth": 50, "width": 64, "hidden": 4096, "outputs": 256}
    assert (c.loss.gamma, c.loss.margin, c.loss.nearest, c.loss.skip) == (2, 100, 10, 1)
    assert c.views.scale == (0.08, 1)
    assert (c.views.online.smallest, c.views.online.largest, c.views.online.step) == (96, 224, 1)
    assert (c.views.target.smallest, c.views.target.largest, c.views.target.step) == (128, 224, 1)
    o = c.optimizer
    assert (o.learning_rate, o.momentum, o.weight_decay, o.eta) == (4.8, 0.9, 1e-6, 0.001)
    s = c.schedule
    assert (s.epochs, s.warmup_epochs, s.warmup_ratio, s.ema_base) == (1000, 10, 1e-4, 0.99)


def test_demo_and_methods():
    demo = load(KIT / "configs" / "demo.yaml", Demo)
    assert (KIT / demo.pretrain).exists()
    assert (KIT / demo.detection).exists()
    methods = load_methods()
    assert len(methods) == 10
    assert methods["triplet"].readme.box == 41.7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scedule: {epochs: 1}", "unknown key 'scedule'; did you mean 'schedule'?"),
        ("schedule: {epoch: 1}", "unknown key 'schedule.epoch'; did you mean 'epochs'?"),
        ("views: {online: {smalest: 3, largest: 4}}", "did you mean 'smallest'?"),
        ("schedule: {epochs: many}", "schedule.epochs: Input should be a valid integer"),
        ("schedule: {epochs: -1}", "schedule.epochs: Input should be greater than or equal to 0"),
        ("loss: {group: 9}", "loss: group must hold at least nearest + 1 = 11 images"),
        ("views: {scale: [0.9, 0.1]}", "scale: at least 0.9 and at most 0.1 holds nothing"),
        ("model: {depth: 34}", "model.depth: Input should be 18 or 50, found 34"),
        ("seed: .nan", "seed: Input should be a finite number, found nan"),
        ("optimizer: {learning_rate: .inf}", "optimizer.learning_rate: Input should be a finite number"),
        ("seed: 1\nseed: 2", "duplicate key seed"),
        ("seed: [", "cannot be read"),
        ("- a list", "expected keys with values"),
        ("seed: &a [*a]", "cannot be read"),
        ("schedule: {epochs: 5, warmup_epochs: 6}", "warmup_epochs must not exceed epochs (5)"),
    ],
)
def test_a_wrong_setting_gets_one_line_with_file_and_key(file, text, message):
    base = "\n".join(line for line in GOOD.splitlines() if line.split(":")[0] not in text)
    path = file(text if text.startswith("-") else f"{base}\n{text}\n")
    with pytest.raises(KitError) as caught:
        load(path, Pretrain)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert message in line
    assert "\n" not in line


def test_overrides(file):
    c = load(
        file(GOOD),
        Pretrain,
        ["schedule.epochs=50", "optimizer.learning_rate=1e-3", "views.scale=[0.2,0.5]"],
    )
    assert (c.schedule.epochs, c.optimizer.learning_rate, c.views.scale) == (50, 1e-3, (0.2, 0.5))
    for bad, message in [
        ("epochs", "key=value"),
        ("=3", "key=value"),
        ("schedule.epohs=3", "did you mean 'epochs'"),
        ("[=1", "cannot be read"),
        ("[=1", "cannot be read"),
    ]:
        with pytest.raises(KitError, match=message):
            load(file(GOOD), Pretrain, [bad])


def test_missing_file_and_key(tmp_path, file):
    with pytest.raises(KitError, match="no config at"):
        load(tmp_path / "none.yaml", Pretrain)
    with pytest.raises(KitError, match=r"missing key 'loss' \(and 2 more\)"):
        load(file("seed: 1"), Pretrain)


@given(text=st.text(max_size=60))
def test_any_text_is_a_config_or_one_line(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(KitError):
        load(path, Pretrain)


@pytest.mark.parametrize(
    "wrong", ["objects: [3, 1]", "radii: [30, 18]", "large: [50, 28]", "unlabelled: 0"]
)
def test_impossible_drawings_are_refused(file, wrong):
    base = {"unlabelled": "2", "train": "2", "val": "1"}
    base |= {"radii": "[18, 30]", "large": "[28, 50]", "objects": "[1, 2]"}
    key, _, value = wrong.partition(": ")
    text = "\n".join(f"{k}: {v}" for k, v in {**base, key: value}.items())
    with pytest.raises(KitError, match=key):
        load(file(text), Drawn)
