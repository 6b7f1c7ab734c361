"""Lists the manifests of ``deploy/jobs`` and renders manifests as YAML."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from searchrl.jobs.batch_job import batch_job, resize
from searchrl.jobs.engine_flags import as_flag
from searchrl.jobs.job_settings import JobSettings
from searchrl.jobs.ray_job import indexed_ray_job, ray_job
from searchrl.jobs.rollout_engines import engine_objects
from searchrl.jobs.step import Step
from searchrl.jobs.steps import STEPS, WORLD

HEADER = "# {summary}\n# {command}\n"
ENGINES_HEADER = """\
# The engines end with the run. Only `searchrl submit` lets them belong to the first object, and be deleted with it:
# delete what kubectl has created by its label searchrl.io/run, also before you create it again.
"""
DEFAULTS = JobSettings()
RANKS = 2  # of the examples: the fewest that learn in parallel


def render(step: Step, settings: JobSettings, *, operator: bool = False) -> dict[str, Any]:
    """Render the manifest of a step; with ``operator`` as a RayJob for the KubeRay operator."""
    step = resize(step, settings)
    if operator:
        return ray_job(step, settings)
    return indexed_ray_job(step, settings) if step.workers else batch_job(step, settings)


def render_all(step: Step, settings: JobSettings, *, operator: bool = False) -> list[dict[str, Any]]:
    """Render the manifest of a step, and behind it those of the engines that sample for it."""
    return [render(step, settings, operator=operator), *engine_objects(step, settings)]


def to_yaml(manifests: Sequence[Mapping[str, Any]], summary: str = "", command: str = "") -> str:
    """Return manifests as text for ``kubectl create -f``."""
    header = HEADER.format(summary=summary, command=command) if summary else ""
    if len(manifests) > 1:
        header += ENGINES_HEADER
    return header + yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes equal parts in full instead of YAML anchors and aliases."""

    # An anchor is valid YAML, but a manifest is edited by people: a change at the anchor would change its aliases, too.
    def ignore_aliases(self, data: Any) -> bool:
        return True


class Entry(NamedTuple):
    """One file of ``deploy/jobs``: a step with its default settings, but for the flags in ``given``."""

    summary: str
    step: str
    given: Mapping[str, Any] = {}

    @property
    def submit(self) -> str:
        """The arguments with which ``searchrl submit`` prints the same."""
        return " ".join([self.step, *(f"{as_flag(flag)} {value}" for flag, value in self.given.items())])

    @property
    def manifests(self) -> list[dict[str, Any]]:
        step = STEPS[self.step].build(DEFAULTS, WORLD, self.given, ())
        return render_all(step, DEFAULTS, operator=self.given.get("backend") == "rayjob")

    @property
    def text(self) -> str:
        return to_yaml(self.manifests, self.summary, f"searchrl submit {self.submit} --dry-run")


CATALOG = {
    "small-world.yaml": Entry("Write a small world to practice on: corpus, questions and a searcher.", "small-world"),
    "index.yaml": Entry("Build an index from a corpus.", "index"),
    "baseline.yaml": Entry(
        "Answer the training questions with naive RAG, for rewards that are gains beyond it.", "baseline"
    ),
    "sft.yaml": Entry(
        "Teach a new model of the small world's size by scripted demonstrations of the small world.", "sft"
    ),
    "train.yaml": Entry("Train a searcher in one pod.", "train"),
    "train-ray.yaml": Entry(
        "Train a searcher with two learner ranks, Ray started by the pods themselves.", "train", {"ranks": RANKS}
    ),
    "train-rayjob.yaml": Entry(
        "Train a searcher with two learner ranks in a Ray cluster of the KubeRay operator.",
        "train",
        {"ranks": RANKS, "backend": "rayjob"},
    ),
    "train-engines.yaml": Entry(
        "Train a searcher whose rollouts are sampled by two vLLM servers, here on CPUs.",
        "train",
        {"engines": 2, "engine_gpus": 0},
    ),
    "evaluate.yaml": Entry("Compare a trained searcher with the other answering methods.", "evaluate"),
    "publish.yaml": Entry("Make a trained model one that the release can serve.", "publish"),
}
