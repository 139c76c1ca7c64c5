"""A small stage for tests of records."""

from triplet import paths, records


class Stage:
    """A stage that copies its input and counts how often it worked."""

    def __init__(self, places):
        self.folder = paths.stage_folder("run", "copy")
        self.input = places / "input.txt"
        self.input.write_text("one")
        self.worked = 0

    def plan(self):
        inputs = {"text": records.Artifact.of(self.input)}
        config = {"rate": 1, "pair": [1, 2]}
        return records.Plan(stage="copy", config=config, inputs=inputs).model_dump()

    def perform(self, fail=None, **options):
        def work(job):
            self.worked += 1
            path = job.folder / "output.txt"
            path.write_text(self.input.read_text())
            if fail:
                raise fail
            job.outputs["copy"] = path
            job.results["length"] = len(path.read_text())

        options = {"config": {"rate": 1, "pair": (1, 2)}, **options}
        return records.perform("copy", self.folder, inputs={"text": self.input}, work=work, **options)
