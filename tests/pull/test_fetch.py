"""`triplet pull` of a data set from a server: whole or not there, whenever it is stopped."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.pull.conftest import tarred
from tests.support import http_server as s
from tests.support.archives import tar_bytes
from tests.support.archives import tarred as tars
from tests.support.imagenet_kit import SORTED, WNIDS, devkit
from triplet import cli, records
from triplet.pull import fetch, inspect

PULL = ["pull", "coco"]


def test_pull_twice(kit, capsys):
    assert cli.main(PULL) == 0
    assert kit.whole()
    record = records.read(kit.folder)
    assert record.results["images"] == {"train2017": 12, "val2017": 6}
    assert set(record.outputs) == {"train2017", "val2017", "annotations"}
    assert record.command == "triplet pull coco"
    asked = len(kit.server.asked)
    assert cli.main(PULL) == 0
    assert "pull: done already" in capsys.readouterr().out
    assert len(kit.server.asked) == asked


def test_another_mirror_is_no_other_data_set(kit, capsys):
    assert cli.main(PULL) == 0
    kit.content["datasets"]["coco"]["files"][0]["urls"] = ["http://127.0.0.1:9/x"]
    kit.write()
    assert cli.main(PULL) == 0
    assert "done already" in capsys.readouterr().out


def test_one_file_that_fails_costs_no_other(kit, capsys):
    kit.server.faults["/val2017.zip"] = [s.says(404)]
    assert cli.main(PULL) == 2
    error = capsys.readouterr().err
    assert (
        "val2017.zip answers 404; run the same command again, or fetch val2017.zip with a browser" in error
    )
    assert "triplet pull coco --from FOLDER" in error
    assert error.count("\n") == 1
    assert not (kit.folder / "train2017").exists()
    kit.server.asked.clear()
    assert cli.main(PULL) == 0
    assert [path for path, _ in kit.server.asked] == ["/val2017.zip"]
    assert kit.whole()


@pytest.mark.parametrize("which", [0, 2])
def test_a_wrong_checksum_is_never_unpacked(kit, capsys, which):
    file = kit.content["datasets"]["coco"]["files"][which]
    file["checksum"] = "md5:" + "0" * 32
    kit.write()
    assert cli.main(PULL) == 2
    assert "gave a file whose md5 is" in capsys.readouterr().err
    assert not list(kit.folder.glob(".unpacking/annotations"))
    assert not any((kit.folder / name).exists() for name in ("train2017", "annotations", "record.json"))


def test_archives_that_lack_something_show_nothing(kit, capsys):
    kit.content["datasets"]["coco"]["expect"]["images"]["train2017"] = 13
    kit.write()
    assert cli.main(PULL) == 2
    error = capsys.readouterr().err
    assert "train2017: 12 images, expected 13; start over with: triplet pull coco --force" in error
    assert not (kit.folder / "train2017").exists()


def spoil_image(drawn, folder):
    (folder / "train2017" / "000000000003.png").write_bytes(b"\x89PNG no more")


def lose_image(drawn, folder):
    (folder / "train2017" / "000000000003.png").unlink()


def empty_image(drawn, folder):
    (folder / "val2017" / "000000000001.png").write_bytes(b"")


def lose_annotation(drawn, folder):
    path = folder / "annotations" / "instances_val2017.json"
    truth = json.loads(path.read_text())
    truth["annotations"].pop()
    path.write_text(json.dumps(truth))


def lose_file(drawn, folder):
    (folder / "annotations" / "instances_val2017.json").unlink()


WRONG = {
    "spoilt": (spoil_image, "train2017: 1 of 12 images tried do not decode: 000000000003.png"),
    "lost": (lose_image, "train2017: 1 annotated images are missing: 000000000003.png"),
    "counted": (lose_image, "train2017: 11 images, expected 12"),
    "empty": (empty_image, "val2017: 1 empty images: 000000000001.png"),
    "annotation": (lose_annotation, "val2017: .* annotations, expected"),
    "no annotations": (lose_file, "instances_val2017.json is missing"),
}


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG)
def test_what_is_missing_or_wrong_is_reported(kit, tmp_path, capsys, damage, message):
    """By the sanity check after unpacking, here of the user's own folder, and by --check later."""
    mine = tmp_path / "mine"
    shutil.copytree(kit.drawn, mine)
    damage(kit.drawn, mine)
    assert cli.main([*PULL, "--from", str(mine)]) == 2
    assert re.search(message, capsys.readouterr().out)
    assert not (kit.folder / "train2017").exists()
    assert cli.main([*PULL, "--force"]) == 0
    damage(kit.drawn, kit.folder)
    assert cli.main([*PULL, "--check"]) == 2
    out = capsys.readouterr().out
    assert re.search(message, out)
    assert "is not what was recorded" in out


def test_check_needs_no_network(kit, capsys):
    assert cli.main([*PULL, "--check"]) == 2
    assert "train2017, val2017, annotations not there; run: triplet pull coco" in capsys.readouterr().out
    assert cli.main(PULL) == 0
    kit.server.asked.clear()
    assert cli.main([*PULL, "--check"]) == 0
    assert "coco: whole (datasets/coco)" in capsys.readouterr().out
    assert kit.server.asked == []


@pytest.mark.parametrize("kind", ["archives", "one archive", "unpacked"])
def test_what_the_user_has_is_used(kit, tmp_path, kind):
    mine = tmp_path / "mine"
    if kind == "unpacked":
        shutil.copytree(kit.drawn, mine)
    else:
        mine.mkdir()
        for name, data in kit.archives.items():
            if kind == "archives" or name == "val2017.zip":
                (mine / name).write_bytes(data)
    given = mine / "val2017.zip" if kind == "one archive" else mine
    before = sorted(p.name for p in mine.rglob("*"))
    assert cli.main([*PULL, "--from", str(given)]) == 0
    assert kit.whole()
    fetched = sorted(path for path, _ in kit.server.asked)
    assert fetched == (["/annotations.tar.gz", "/train2017.zip"] if kind == "one archive" else [])
    assert sorted(p.name for p in mine.rglob("*")) == before


def test_the_users_archive_is_verified(kit, tmp_path, capsys):
    for name, data in kit.archives.items():
        (tmp_path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert cli.main([*PULL, "--from", str(tmp_path)]) == 2
    assert "train2017.zip: its md5 is" in capsys.readouterr().err
    (tmp_path / "train2017.zip").write_bytes(b"short")
    assert cli.main([*PULL, "--from", str(tmp_path)]) == 2
    assert "train2017.zip has 5 bytes, train2017.zip as published has" in capsys.readouterr().err


def test_a_folder_that_was_put_there_is_verified_and_recorded(kit):
    shutil.copytree(kit.drawn, kit.folder)
    shutil.rmtree(kit.folder / "unlabelled")
    assert cli.main(PULL) == 0
    assert kit.server.asked == []
    assert kit.whole()


def test_a_part_of_a_data_set_that_was_put_there_is_left_alone(kit, capsys):
    shutil.copytree(kit.drawn / "train2017", kit.folder / "train2017")
    assert cli.main(PULL) == 2
    assert "holds train2017 but not all of train2017, val2017, annotations" in capsys.readouterr().err
    assert cli.main([*PULL, "--force"]) == 2
    assert "held files before the kit worked there, which --force would delete" in capsys.readouterr().err
    assert cli.main([*PULL, "--from", str(kit.folder / "train2017")]) == 2
    assert "which the pull makes; move it elsewhere" in capsys.readouterr().err
    assert len(list((kit.folder / "train2017").iterdir())) == 12


def test_too_little_disk_is_said_before(kit, monkeypatch, capsys):
    usage = shutil.disk_usage(kit.configs)._replace(free=1000)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)
    assert cli.main(PULL) == 2
    assert "coco needs" in (error := capsys.readouterr().err)
    assert "set TRIPLET_DATASETS to a larger disk" in error
    assert kit.server.asked == []


def test_the_plan_fetches_nothing_for_good(kit, monkeypatch, capsys):
    monkeypatch.setattr(inspect, "PROBE", 1)
    assert cli.main([*PULL, "--plan"]) == 0
    out = capsys.readouterr().out
    for name in kit.archives:
        assert name in out
    assert "free: enough" in out
    assert "measured now" in out
    assert not kit.folder.exists()
    assert cli.main(PULL) == 0
    assert cli.main([*PULL, "--plan"]) == 0
    assert "there already" in capsys.readouterr().out


@pytest.fixture
def imagenet(kit, tmp_path):
    """Three tars as ImageNet's, with two classes, in a folder of the user's and on a mirror."""
    png = (kit.drawn / "val2017" / "000000000001.png").read_bytes()
    devkit(tmp_path / "kit" / "ILSVRC2012_devkit_t12")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "kit.tar.gz").write_bytes(tarred(tmp_path / "kit", "ILSVRC2012_devkit_t12"))
    tars(
        mine / "train.tar",
        {f"{n}.tar": tar_bytes({f"{n}_{i}.JPEG": png for i in (1, 2)}) for n in WNIDS[:2]},
    )
    tars(mine / "val.tar", {f"ILSVRC2012_val_{i:08d}.JPEG": png for i in (1, 2, 3)})
    unpacked = {"kit.tar.gz": {"into": "devkit"}, "val.tar": {"into": "val"}}
    unpacked["train.tar"] = {"into": "train", "archives": True}
    kit.content["datasets"]["imagenet"] = {
        "about": "small",
        "licence": "none",
        "terms": "none",
        "by_hand": "ask them",
        "mirror": {"url": "TEST_MIRROR", "token": "TEST_TOKEN"},
        "files": [
            {"name": name, "unpack": how, "checksum": f"md5:{files_md5(mine / name)}"}
            for name, how in unpacked.items()
        ],
        "sort": {"images": "val", "devkit": "devkit/ILSVRC2012_devkit_t12"},
        "provides": ["train", "val", "devkit"],
        "expect": {"images": {"train": 4, "val": 3}, "folders": {"train": 2, "val": 2}},
    }
    kit.write()
    kit.mine, kit.folder = mine, kit.folder.with_name("imagenet")
    return kit


def files_md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def classes(folder):
    return {
        path.relative_to(folder).as_posix()
        for part in ("train", "val")
        for path in (folder / part).rglob("*.JPEG")
    }


CLASSES = {f"train/{n}/{n}_{i}.JPEG" for n in WNIDS[:2] for i in (1, 2)} | {
    f"val/{name}" for name in SORTED
}


def test_imagenet_from_the_users_tars(imagenet, capsys):
    assert cli.main(["pull", "imagenet"]) == 2
    error = capsys.readouterr().err
    assert "kit.tar.gz, val.tar, train.tar must be fetched by hand: ask them" in error
    assert "then run: triplet pull imagenet --from FOLDER" in error
    assert cli.main(["pull", "imagenet", "--from", str(imagenet.mine)]) == 0
    assert classes(imagenet.folder) == CLASSES
    assert len(list(imagenet.mine.iterdir())) == 3
    assert cli.main(["pull", "imagenet", "--check"]) == 0
    shutil.rmtree(imagenet.folder / "val" / WNIDS[0])
    assert cli.main(["pull", "imagenet", "--check"]) == 2
    assert "val: 1 folders, expected 2" in capsys.readouterr().out


HEADER = "ImageId,PredictionString"


@pytest.fixture
def kaggle(imagenet, tmp_path):
    """The same images as Kaggle's archive unpacks."""
    root = tmp_path / "kaggle"
    for name in sorted(CLASSES):
        part, label, image = name.split("/")
        path = root / "ILSVRC" / "Data" / "CLS-LOC" / part / (label if part == "train" else "") / image
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(imagenet.drawn / "val2017" / "000000000001.png", path)
    rows = [f"{Path(name).stem},{name[:9]} 1 2 3 4 {name[:9]} 5 6 7 8 " for name in SORTED]
    (root / "LOC_val_solution.csv").write_text("\n".join([HEADER, *reversed(rows)]))
    (root / "LOC_synset_mapping.txt").write_text(f"{WNIDS[0]} tench, Tinca tinca\n")
    imagenet.root = root
    return imagenet


@pytest.mark.parametrize("given", [".", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_as_kaggle_lays_it_out(kaggle, given):
    before = sorted(path.relative_to(kaggle.root) for path in kaggle.root.rglob("*"))
    assert cli.main(["pull", "imagenet", "--from", str(kaggle.root / given)]) == 0
    assert classes(kaggle.folder) == CLASSES
    assert sorted(p.name for p in (kaggle.folder / "devkit").iterdir()) == [
        "LOC_synset_mapping.txt",
        "LOC_val_solution.csv",
    ]
    assert sorted(path.relative_to(kaggle.root) for path in kaggle.root.rglob("*")) == before
    assert cli.main(["pull", "imagenet", "--check"]) == 0
    assert not records.read(kaggle.folder).results["verified"]


@pytest.mark.parametrize(
    ("line", "end"),
    [
        ("{0},{1}", "\r\n"),
        ("{1},{0}", "\n"),
        ("7,{0},{1},x", "\n"),
        ('"{0}","{1}"', "\n\n"),
        ("\ufeff{0},{1}", "\n  \n"),
    ],
)
def test_kaggles_table_as_programs_write_it_again(kaggle, line, end):
    table = kaggle.root / "LOC_val_solution.csv"
    header, *rows = [each.split(",") for each in table.read_text().splitlines()]
    lines = [line.format(*header), *(line.strip("\ufeff").format(*row) for row in rows)]
    table.write_text(end.join([*lines, " "]), encoding="utf-8", newline="")
    assert cli.main(["pull", "imagenet", "--from", str(kaggle.root)]) == 0
    assert classes(kaggle.folder) == CLASSES


def test_kaggles_images_without_their_table_are_one_line(kaggle, capsys):
    (kaggle.root / "LOC_val_solution.csv").unlink()
    assert cli.main(["pull", "imagenet", "--from", str(kaggle.root)]) == 2
    assert "Kaggle's ImageNet without LOC_val_solution.csv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("", "does not name ILSVRC2012_val_0000000"),
        ("ILSVRC2012_val_00000001,7 1 2", "found '7', expected a class such as"),
        ("ILSVRC2012_val_00000001,../../x 1", "expected a class such as"),
        ("ILSVRC2012_val_00000001", "is not Kaggle's table"),
        ("a\0b", "is not Kaggle's table"),
        ("a,n01440764 1\nb,n01440764 1\na,n01443537 1", "gives a two classes"),
    ],
)
def test_another_table_than_kaggles_is_one_line(kaggle, capsys, row, message):
    (kaggle.root / "LOC_val_solution.csv").write_text(f"{HEADER}\n{row}\n")
    assert cli.main(["pull", "imagenet", "--from", str(kaggle.root)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (kaggle.folder / "train").exists()


def test_imagenet_from_a_gated_mirror(imagenet, monkeypatch, capsys, places):
    def gate(handler):
        if handler.headers.get("Authorization") != "Bearer secret-token":
            handler.answer(401)
            return
        handler.answer(200, (imagenet.mine / handler.path.rpartition("/")[2]).read_bytes())

    for name in ("kit.tar.gz", "val.tar", "train.tar"):
        imagenet.server.pages[f"/gated/{name}"] = gate
    monkeypatch.setenv("TEST_MIRROR", imagenet.server.url("gated"))
    assert cli.main(["pull", "imagenet"]) == 2
    assert "answers 401" in capsys.readouterr().err
    monkeypatch.setenv("TEST_TOKEN", "secret-token")
    assert cli.main(["pull", "imagenet"]) == 0
    assert classes(imagenet.folder) == CLASSES
    out = capsys.readouterr()
    assert "secret-token" not in out.out + out.err
    assert not [p for p in places.rglob("*") if p.is_file() and b"secret-token" in p.read_bytes()]
