"""Records in the states in which a report finds a machine."""

import shutil

import pytest

from tests.support import run_records
from triplet import paths
from triplet.published.methods import load_methods


def demo():
    """What `make demo` leaves, with two seeds."""
    for seed, (random, triplet) in enumerate([(20.0, 25.0), (21.0, 24.4)]):
        for method, box in (("random", random), ("triplet", triplet)):
            shown = {"pictures": 2 * (seed == 0), "analysed": True}
            run_records.run(f"demo/seed{seed}/{method}", box, box / 2, seed, images=60, **shown)


def full():
    """Every kind of table filled, several seeds and recipes."""
    demo()
    names = [f"category {i}" for i in range(80)]
    for number, (name, method) in enumerate(load_methods().items()):
        box, mask = method.readme.box - number / 10, method.readme.mask
        known = {each: box + i % 7 for i, each in enumerate(names)}
        run_records.run(name, box, mask, pictures=2, analysed=True, categories=known)
    run_records.run(
        "seed1/triplet", 41.6, 36.1, seed=1, analysed=True, categories=dict.fromkeys(names, 41.0)
    )
    run_records.run("short/triplet", 30.0, 27.0, SOLVER__MAX_ITER=45_000, precision="bfloat16")
    run_records.run("like-for-like/triplet", 41.2, 35.9, reference=run_records.MOCO)
    run_records.run("voc/triplet", 56.8, None, reference=run_records.VOC, images=4952, engine="voc")
    run_records.others("triplet")


def failed():
    """Runs that fell short, stopped, were evaluated with nothing, or lost their files."""
    run_records.run("triplet", 26.4, 23.0, SOLVER__MAX_ITER=45_000)
    run_records.run("moco", 40.0, 35.0, pictures=2, analysed=True)
    run_records.finetune_again("moco")
    run_records.run("demo/seed0/triplet", 0.0, None, images=60, pictures=2, analysed=True)
    run_records.run("demo/seed0/random", 0.0, None, images=60)
    kept = paths.stage_folder("demo/seed0/triplet", "eval")
    shutil.rmtree(kept / "pictures")
    (kept / "analysis.json").write_text("damaged")
    run_records.pretrain("byol")
    (paths.stage_folder("byol", "pretrain") / "metrics.jsonl").write_text("no lines\n")
    with pytest.raises(RuntimeError):
        run_records.perform("byol", "convert", texts={"weights": "x"}, results=stopped())


def stopped():
    raise RuntimeError("stopped")
    yield


STATES = {"empty": lambda: None, "demo": demo, "full": full, "failed": failed}
