"""Many scenes to files, one after another, with one model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from geoseg.bars import counted
from geoseg.errors import GeosegError, OutputError, heard_warnings
from geoseg.inference.fusion import segmenter_of, vocabulary_of
from geoseg.model.loading import Model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options
from geoseg.pipeline.files import segment_to_files
from geoseg.run.manifest import Manifest
from geoseg.run.result import Batch, Outcome
from geoseg.run.scenes import OUT_NAME, Job, jobs_of, warn_of_neighbours
from geoseg.run.stored import output_folder
from geoseg.text.vocabulary import VocabularySource


def segment_many(
    scenes: Sequence[str | Path],
    classes: VocabularySource,
    out: str | Path,
    *,
    out_name: str = OUT_NAME,
    **settings: Any,
) -> Batch:
    """Map several scenes one after another with one model, a folder in ``out`` for each.

    Parameters
    ----------
    scenes
        Their paths.
    classes
        As for `segment_to_files`.
    out
        Folder for the folders.
    out_name
        Names of the folders: ``{stem}``, ``{name}`` and ``{parent}`` are what a scene is called
        without and with its suffix, and the folder it lies in.
    **settings
        Everything else that `segment_jobs` takes.

    Returns
    -------
    Batch
        A scene that fails, for whatever reason, does not stop the others.

    Raises
    ------
    GeosegError
        For what is wrong with all of them: options, classes, model, or names that two scenes have.
    """
    jobs = jobs_of(scenes, out, out_name)
    warn_of_neighbours(scenes)
    return segment_jobs(jobs, classes, **settings)


def segment_jobs(
    jobs: Sequence[Job],
    classes: VocabularySource,
    *,
    model: str | Model = DEFAULT_MODEL,
    scorer: Any = None,
    device: str = "auto",
    options: Options | None = None,
    on_scene: Callable[[str, Path | str, Exception | None], None] | None = None,
    manifest: str | Path | None = None,
    **settings: Any,
) -> Batch:
    """Map scenes one after another with one model, each into the folder that is given for it.

    Parameters
    ----------
    jobs
        Scenes, or files that make one, and their folders.
    classes, model, scorer, device, options
        As for `segment_to_files`.
    on_scene
        Called with scene, folder and None before a scene, and with its error if it fails.
    manifest
        File that gets a line of JSON as each scene ends, see `geoseg.run.manifest.Manifest`.
    **settings
        Everything else that `segment_to_files` takes.

    Returns
    -------
    Batch
        A scene that fails, for whatever reason, does not stop the others.

    Raises
    ------
    GeosegError
        For what is wrong with all of them: options, classes, or the model.
    """
    say = on_scene or (lambda scene, folder, error: None)
    outcomes: list[Outcome] = []
    with Manifest(manifest) as lines:
        try:
            with heard_warnings() as common:
                vocabulary = vocabulary_of(classes, scorer)
                if len(jobs) > 1 and any(_is_free(job, settings) for job in jobs):
                    # One model for all; and impossible options show before the first scene.
                    first = segmenter_of(model, vocabulary, options, device, scorer)
                    model = getattr(first, "model", model)  # a scorer alone has none
                    del first
        except GeosegError as error:
            for job in jobs:
                lines.add(Outcome(job.name, job.out, 0.0, tuple(common), error=error))
            raise
        settings |= {"model": model, "scorer": scorer, "device": device, "options": options}
        several = settings.get("progress") is True and len(jobs) > 1
        for job in counted(jobs, "scenes", "scene") if several else jobs:
            say(job.name, job.out, None)
            run, failure, clock = None, None, time.perf_counter()
            with heard_warnings() as heard:
                heard |= common
                try:
                    run = segment_to_files(job.scene, vocabulary, job.out, **settings)
                except Exception as error:  # whatever it is, the other scenes are not to blame
                    failure = error
            seconds = time.perf_counter() - clock
            outcomes.append(Outcome(job.name, job.out, seconds, tuple(heard), run, failure))
            lines.add(outcomes[-1])
            if failure is not None:
                say(job.name, job.out, failure)
    return Batch(tuple(outcomes))


def _is_free(job: Job, settings: Mapping[str, Any]) -> bool:
    """Whether a scene's folder can be written, as far as is known before its turn."""
    overwrite, resume, update = (
        settings.get(name, False) for name in ("overwrite", "resume", "update")
    )
    try:
        folder = output_folder(job.out)
        folder.check(overwrite=overwrite, resume=resume, update=update)
        folder.probe()
    except OutputError:
        return False
    return True
