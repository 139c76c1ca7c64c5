"""What is submitted: stages, runs and resources become one description of jobs."""

import pytest

from triplet.errors import KitError
from triplet.published.methods import load_methods
from triplet.submit.jobs import STAGES, ClusterRun, Resources, ask, label, name_runs, plan_jobs

ASKED = Resources(gpus=8, nodes=2)


RUNS = (ClusterRun("triplet"),)


def planned(*stages, runs=RUNS, asked=ASKED):
    return plan_jobs([stage.split() for stage in stages], runs, asked)


def test_all_means_ten_methods_or_those_that_are_pretrained():
    every = [run.name for run in name_runs(["all"], None, [], ["finetune"])]
    assert every == list(load_methods())
    assert len(every) == 10
    pretrained = {run.name for run in name_runs(["all"], None, [], ["pretrain", "convert"])}
    assert set(every) - pretrained == {"supervised", "random"}


def test_each_seed_is_a_run_as_in_make_seeds():
    runs = name_runs(["moco", "byol"], None, [0, 3], ["finetune"])
    assert [run.name for run in runs] == ["seed0/moco", "seed0/byol", "seed3/moco", "seed3/byol"]
    commands = planned("convert", "finetune", runs=runs)[1].commands
    assert commands[3] == ("finetune", "--run", "seed3/byol", "--seed", "3")
    assert commands[0] == ("finetune", "--run", "seed0/moco", "--seed", "0")
    assert planned("convert", runs=runs, asked=Resources())[0].commands[0] == (
        "convert",
        "--run",
        "seed0/moco",
    )


def test_a_run_of_another_name_is_taken_as_it_is():
    assert name_runs(["triplet"], "mine/x", [2], ["eval"]) == [ClusterRun("seed2/mine/x", 2)]


def test_weights_are_pulled_of_the_methods_of_the_runs_and_once():
    runs = name_runs(["moco", "byol"], None, [0, 1], ["pull"])
    (job,) = planned("pull coco weights", runs=runs, asked=Resources())
    assert job.commands == (("pull", "coco", "weights", "--method", "moco", "byol"),)
    (job,) = planned("pull all", runs=runs, asked=Resources())
    assert job.commands == (("pull", "all", "--method", "moco", "byol"),)
    assert job.command(3) == job.commands[0]  # once for all runs
    (job,) = planned("pull coco", asked=Resources())
    assert job.commands == (("pull", "coco"),)
    (job,) = planned("pull weights --method npid", asked=Resources())
    assert job.commands == (("pull", "weights", "--method", "npid"),)


def test_a_stage_takes_no_more_than_it_can_use():
    shares = {job.stage: job.resources for job in planned("convert", "finetune", "svm", "report")}
    assert {name: (share.gpus, share.nodes) for name, share in shares.items()} == {
        "convert": (0, 1),
        "finetune": (8, 2),
        "svm": (1, 1),
        "report": (0, 1),
    }
    assert [shares[name].cores for name in ("convert", "finetune", "svm")] == [4, 64, 8]
    (job,) = planned("svm", asked=Resources(gpus=0))
    assert (job.resources.gpus, job.resources.processes, job.resources.cores) == (0, 1, 4)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["fintune"], "no stage that can be submitted: fintune; take chain"),
        (["plan"], "no stage that can be submitted: plan"),
        (["pull", "convert"], "pull, convert knows one process only, found NODES=2"),
        (["finetune --force"], "a job that is queued again must go on"),
        (["eval", "finetune", "eval"], "a stage stands once in a list: found eval again"),
    ],
)
def test_what_cannot_be_submitted_is_said(stages, message):
    with pytest.raises(KitError, match=message):
        planned(*stages)


@pytest.mark.parametrize(("script", "said"), [("echo a; echo b >&2; exit 3", "b"), ("echo a; exit 3", "a")])
def test_what_a_scheduler_refuses_is_said(script, said):
    with pytest.raises(KitError, match=f"^sh refuses x: {said}$"):
        ask(["sh", "-c", script], "refuses x")
    assert ask(["sh", "-c", "echo ' a '; echo b >&2"]) == "a"


def test_a_method_that_is_none_and_a_bad_name_are_refused():
    with pytest.raises(KitError, match="table of methods: mocco; take one of supervised, random"):
        name_runs(["mocco"], None, [], ["eval"])
    with pytest.raises(KitError, match="--run names a folder below checkpoints/"):
        planned("eval", runs=[ClusterRun("../x")])


def test_a_label_is_a_name_of_hosts_and_differs_from_run_to_run(places, monkeypatch):
    names = {label(stage, run) for stage in STAGES for run in ("a b", "a_b", "A" * 80, "seed0/é")}
    assert len(names) == 4 * len(STAGES)
    assert all(len(name) <= 43 and name.strip("-") == name for name in names)
    here = label("eval", "moco")
    monkeypatch.setenv("TRIPLET_CHECKPOINTS", str(places / "others"))
    assert label("eval", "moco") != here
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)
