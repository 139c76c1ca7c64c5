"""Records of made-up runs, left by the real ``records.perform``, and a data set to evaluate on."""

import json

import numpy as np
from PIL import Image

from triplet import paths, records
from triplet.analysis import ANALYSIS
from triplet.config import load
from triplet.paths import CONFIGS
from triplet.pretrain.config import Pretrain
from triplet.published.configs import nested, released
from triplet.scores import CocoGroundTruth

WROTE = {"pretrain": "checkpoint", "convert": "weights", "finetune": "model"}
AUTHORS, MOCO = "authors/coco_R_50_C4_2x_moco", "openselfsup/coco_R_50_C4_2x_moco"
VOC = "openselfsup/pascal_voc_R_50_C4_24k_moco"
NAMES = ["cat", "dog", "zebra"]
FINETUNE_LOG = [
    {"iteration": i, "total_loss": 3 - i / 50, "lr": 0.02, "time": 0.5} for i in range(0, 99, 20)
]


def settings(reference=MOCO, **changes):
    """A resolved config of Detectron2's: a released one with changes (``SOLVER__MAX_ITER=90000``)."""
    return nested(released()[reference] | {key.replace("__", "."): value for key, value in changes.items()})


def perform(name, stage, *, inputs=(), results=(), texts=(), config=None, **more):
    """A stage that writes these texts (output -> content) and has these results."""
    folder = paths.stage_folder(name, stage)

    def work(job):
        for output, text in dict(texts).items():
            path = job.folder / {"metrics": "metrics.jsonl"}.get(output, output)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            job.outputs[output] = path
        job.results.update(results)

    stage = stage.partition("/")[0]
    return records.perform(stage, folder, config=config or {}, inputs=dict(inputs), work=work, **more)


def as_lines(values):
    return "".join(json.dumps(each) + "\n" for each in values)


def pretrain(name, seed=0, *, force=False, config=None):
    lines = [
        {
            "iteration": 4 * i,
            "loss": 98 - i / 99,
            "positive_cosine": i / 99,
            "negative_cosine": 0.5,
            "feature_std": 0.9,
            "feature_rank": 100.0 + i,
            "learning_rate": 4.8 * (1 - i / 99),
            "images_per_second": 1500.0 + i,
        }
        for i in range(99)
    ]
    path = CONFIGS / "pretrain" / "triplet_resnet50_8x196x4-larscos-200e_imagenet.yaml"
    resolved = load(path, Pretrain).model_dump(mode="json") | (config or {})
    perform(
        name,
        "pretrain",
        seed=seed,
        force=force,
        config=resolved,
        texts={"checkpoint": f"pretrained {name}", "metrics": as_lines(lines)},
    )


def run(  # noqa: PLR0913 - a made-up run differs from the usual one by what a test is about
    name,
    box,
    mask,
    seed=0,
    reference=None,
    *,
    images=5000,
    engine="ultrafast",
    force=False,
    pictures=0,
    categories=None,
    precision="float32",
    processes=1,
    iterations=None,
    analysed=False,
    **changes,
):
    """Leave the records of a run with these results, each stage reading what the one before wrote."""
    detectron2 = settings(reference or (AUTHORS if name.endswith("triplet") else MOCO), **changes)
    solver = detectron2["SOLVER"]
    same = {"seed": seed, "force": force}
    pretrain(name, **same)
    folder = paths.stage_folder(name, "pretrain").parent
    perform(
        name,
        "convert",
        **same,
        inputs={"weights": folder / "pretrain" / "checkpoint"},
        texts={"weights": f"converted {name} {box}"},
        results={"format": "extracted"},
    )
    length, batch = iterations or solver["MAX_ITER"], solver["IMS_PER_BATCH"]
    epochs = round(length * batch / 117266, 3)
    perform(
        name,
        "finetune",
        **same,
        inputs={"weights": folder / "convert" / "weights"},
        texts={"model": f"model {box} {length}", "metrics": as_lines(FINETUNE_LOG)},
        results={"iterations": length, "images_per_batch": batch, "epochs": epochs, "classes": NAMES},
        config={"detectron2": detectron2, "precision": precision, "bn_images": 16},
        world_size=processes,
    )

    def work(job):
        job.results.update(images=images, engine=engine)
        known = categories or {category: box + i for i, category in enumerate(NAMES)}
        _fill_eval(job, {"bbox": box, "segm": mask}, known, pictures)
        if analysed:
            _keep_analysis(job, {"bbox": box, "segm": mask}, [*known], images, seed)

    records.perform(
        "eval",
        folder / "eval",
        config={},
        inputs={"model": folder / "finetune" / "model"},
        work=work,
        **same,
    )


def _keep_analysis(job, ap, names, images, seed):
    job.outputs[ANALYSIS] = job.folder / "analysis.json"
    kept = {task: analysis(value, names, images, seed) for task, value in ap.items() if value is not None}
    job.outputs[ANALYSIS].write_text(json.dumps(kept))


def finetune_again(name):
    """Leave the record of another finetuning of a run, from which its eval was not made."""
    perform(
        name,
        "finetune",
        force=True,
        texts={"model": "another"},
        inputs={"weights": paths.stage_folder(name, "convert") / "weights"},
    )


def analysis(ap, names, images, seed=0):
    """One task's analysis as eval leaves it: categories and draws around an AP."""
    rng = np.random.default_rng([seed, round(10 * ap)])
    common = np.random.default_rng(1).normal(0, 0.5, 1000)  # what the drawn images do to every run
    apart = rng.normal(0, min(6, ap / 4), len(names))
    categories = np.clip(ap + apart - apart.mean(), 0, 100)
    shifts = {"all": 0, "small": -12, "medium": 1, "large": 9}
    recall = np.linspace(0, 1, 101)
    return {
        "images": images,
        "draws": f"of {images}",
        "categories": names,
        "by_size": {
            size: [round(float(v), 3) for v in np.clip(categories + shift, 0, 100)]
            for size, shift in shifts.items()
        },
        "precision": {
            iou: [round(float(v), 3) for v in np.clip(100 * (1 - recall ** (0.05 + ap / way)), 0, 100)]
            for iou, way in (("0.5", 15), ("0.75", 25))
        },
        "resampled": [round(float(v), 3) for v in np.clip(ap + common + rng.normal(0, 0.3, 1000), 0, 100)],
    }


def _fill_eval(job, ap, categories, pictures):
    """Results as eval leaves them: AP by task, None for a task that was not evaluated."""
    for task, value in ap.items():
        if value is not None:
            job.results[task] = {"AP": value, "AP50": value + 20, "AP75": None}
    job.results["categories"] = {"bbox": categories}
    if pictures:
        (job.folder / "pictures").mkdir()
        job.results["pictures"] = [f"{i}.jpg" for i in range(pictures)]
        for file in job.results["pictures"]:
            image = Image.radial_gradient("L").resize((640, 320)).convert("RGB")
            image.save(job.folder / "pictures" / file)
        job.outputs["pictures"] = job.folder / "pictures"


def others(name):
    """The stages that judge by classification, with results as benchmarks/linear writes them."""
    best = {"epoch": 90, "top1": 75.8, "top5": 92.1}
    log = as_lines([{"iteration": i, "loss": 2.0, "learning_rate": 0.04} for i in range(9)])
    protocols = {
        "linear/resnet50_8x32-coslr0.04-100e_imagenet": {"best": best, "protocol": "published"},
        "linear/resnet50_fast-sweep-4crops-100e_imagenet": {"last": best, "protocol": "fast"},
        "knn/knn_imagenet": {"top1_20": 66.0, "top1_200": 64.0},
        "semi/semi_1percent": {"best": best, "percent": 1, "drawn": False},
        "semi/semi_10percent": {"best": best, "percent": 10, "drawn": True},
        "svm/svm_voc07": {
            "best_layer": "feat5",
            "feat5": {"mAP": 85.0, "low_shot": {k: {"mean": 40.0 + int(k) / 4} for k in ("1", "2", "96")}},
        },
    }
    for stage, results in protocols.items():
        perform(name, stage, results=results, texts={"metrics": log} if stage.startswith("linear") else {})


def evaluated(places, name="demo/seed0/triplet", shift=0.0):
    """A run whose predictions and truth are there, and whose numbers are those that the engine finds."""
    folder = places / "datasets" / "tiny"
    annotations = folder / "annotations.json"
    square = [10.0, 10.0, 40.0, 40.0]
    truth = {
        "images": [{"id": i, "width": 100, "height": 100, "file_name": f"{i}.jpg"} for i in range(4)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": square, "area": 1600.0, "iscrowd": 0}
            for i in range(4)
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(truth))
    found = [
        {"image_id": i, "category_id": 1, "bbox": [10.0 + 4 * i, 10.0, 40.0, 40.0], "score": 0.9 - i / 10}
        for i in range(4)
    ]
    numbers = CocoGroundTruth(annotations).score(found, "bbox").numbers

    def work(job):
        path = job.folder / "coco_instances_results.json"
        path.write_text(json.dumps(found))
        (job.folder / "log.txt").write_text("evaluated\n")
        job.outputs["predictions"] = path
        job.results.update(images=4, engine="ultrafast", bbox={**numbers, "AP": numbers["AP"] + shift})

    pretrain(name)
    records.perform(
        "eval",
        paths.stage_folder(name, "eval"),
        config={},
        inputs={"annotations": annotations},
        work=work,
    )
    return annotations
