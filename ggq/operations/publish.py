"""``ggq publish``: files of a folder, with a model card and checksums, in a repository of the Hub."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ggq.errors import CannotServe, HubProblem, OutputProblem, UsageProblem
from ggq.hub import upload as hub_upload
from ggq.hub.repository import RemoteModel, inspect
from ggq.hub.upload import LocalFile, Uploaded
from ggq.operations.report import measured_choices
from ggq.progress import Notice
from ggq.publishing import card, licences, release, shards
from ggq.publishing.card import Measurements, Words
from ggq.publishing.collection import gather
from ggq.publishing.release import Release
from ggq.records.manifest import BENCH_RECORD
from ggq.session import Session
from ggq.settings import Option, filled
from ggq.system import files
from ggq.units import parse_bytes

HUB_LIMIT_BYTES = 50 * 10**9  # of a file (huggingface.co/docs/hub/storage-limits)
CARD, SUMS = "README.md", "SHA256SUMS"
_WORK = ".ggq-publish"
State = Literal["new", "changed", "there", "to be split"]


@dataclass(frozen=True)
class PublishSettings:
    """What is published, and as what."""

    presets: Annotated[
        tuple[str, ...],
        Option("--preset", metavar="NAME", split=True, help="These alone. Default: all in DIR."),
    ] = ()
    model: Annotated[str | None, Option("--model", metavar="NAME", help="Of DIR's models this one.")] = None
    name: Annotated[str, Option("--name", help="The model's name on the card.")] = ""
    author: Annotated[str, Option("--author", help="Who made the model.")] = ""
    quantized_by: Annotated[
        str, Option("--quantized-by", help="Who quantized it. Default: the owner of the repository.")
    ] = ""
    base_model: Annotated[
        str,
        Option("--base-model", metavar="ORG/NAME", help="The model on the Hub. Default: as ggq recorded."),
    ] = ""
    license: Annotated[
        str, Option("--license", help="The Hub's word for the licence. Default: the model's.")
    ] = ""
    tags: Annotated[tuple[str, ...], Option("--tag", help="A further tag; repeatable.")] = ()
    split_max_bytes: Annotated[
        int,
        Option(
            "--split-max-size", parse=parse_bytes, metavar="SIZE", shown_default="50G, the Hub's limit",
            help="Larger files go up in shards of this size.",
        ),
    ] = HUB_LIMIT_BYTES  # fmt: skip
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False
    revision: Annotated[str | None, Option("--revision", help="A branch; made where it is missing.")] = None
    create_pr: Annotated[bool, Option("--create-pr", help="Open a pull request instead.")] = False
    force: Annotated[
        bool, Option("--force", help="Also over files of another model, and a card written by hand.")
    ] = False
    yes: Annotated[bool, Option("-y", "--yes", help="Answer yes to what the licence or a gate asks.")] = False


@dataclass(frozen=True)
class PlannedUpload:
    """A file of the repository. ``source``: None where it is still to be written."""

    path: str
    source: Path | None
    file_bytes: int
    sha256: str | None
    state: State


@dataclass(frozen=True)
class PublishPlan:
    """What would be done. ``questions``: to be answered with yes before anything is sent; ``remarks``: to be
    known; ``card``: the model card; ``private``: of a repository that is not there yet."""

    repo_id: str
    is_new: bool
    private: bool
    revision: str | None
    create_pr: bool
    files: tuple[PlannedUpload, ...]
    questions: tuple[str, ...]
    remarks: tuple[str, ...]
    card: str
    settings: PublishSettings = field(default_factory=PublishSettings)
    release: Release | None = None

    @property
    def upload_bytes(self) -> int:
        return sum(it.file_bytes for it in self.files if it.state != "there")


def publish(
    folder: str | Path,
    repo_id: str,
    settings: PublishSettings | None = None,
    session: Session | None = None,
    **keywords: Any,
) -> Uploaded:
    """Upload the files of a folder; what is there already is not sent again.

    ``keywords``: fields of the settings; ``yes`` answers what a licence or a gate asks.
    Raises CannotServe where such a question is open, UsageProblem, HubProblem, OutputProblem, GgufProblem.
    """
    settings = filled(PublishSettings, settings, keywords)
    session = session or Session()
    plan = prepare(folder, repo_id, settings, session)
    if plan.questions and not settings.yes:
        raise CannotServe(
            "This is not published without a word from you.",
            " ".join(plan.questions),
            "Add --yes (in Python: yes=True) if the answer is yes.",
        )
    return execute(plan, session)


def prepare(folder: str | Path, repo_id: str, settings: PublishSettings, session: Session) -> PublishPlan:
    """Look, refuse and decide; nothing is written or sent. Raises as ``publish``."""
    folder = Path(folder)
    _refuse(folder, repo_id, settings, session)
    found = release.look(folder, settings.model, settings.presets)
    release.require_sound(found)
    places_of = {it.stem: shards.place(it, settings.split_max_bytes) for it in found.quants}
    release.require_distinct([*places_of.values(), *(it.name for it in found.beside), CARD, SUMS])
    base = _base(found, settings, session)
    remote = hub_upload.current(repo_id, settings.revision, session.listener)
    if remote is not None and not settings.force:
        _refuse_to_overwrite(remote, found, settings)
    planned = [_planned(it, session, remote) for it in _sources(found, settings)]
    digests = {it.source: it.sha256 for it in planned}
    text = _card(found, repo_id, settings, places_of, digests)
    written = [PlannedUpload(it, None, 0, None, "changed" if remote else "new") for it in (CARD, SUMS)]
    questions, remarks = _questions(found, settings, base)
    if not repo_id.lower().endswith("-gguf"):
        remarks.append("Repositories of GGUFs are usually named Model-GGUF: programs find them by that.")
    return PublishPlan(
        repo_id=repo_id,
        is_new=remote is None,
        private=settings.private,
        revision=settings.revision,
        create_pr=settings.create_pr,
        files=(*planned, *written),
        questions=tuple(questions),
        remarks=tuple(remarks),
        card=text,
        settings=settings,
        release=found,
    )


def execute(plan: PublishPlan, session: Session, *, bars: bool = False) -> Uploaded:
    """Split what is to be split, write card and checksums, upload what changed, compare all digests.

    ``bars``: huggingface_hub draws its own, on stderr.
    Raises HubProblem, OutputProblem, DiskFull, ToolFailed, ToolchainProblem.
    """
    assert plan.release is not None, "prepare gives it"
    settings = plan.settings
    with files.lock(plan.release.folder, listener=session.listener), _work_folder(plan.release) as work:
        ready = [_local(it) for it in plan.files if it.source is not None and it.state != "to be split"]
        digests = {it.source: it.sha256 for it in plan.files}
        remote = hub_upload.current(plan.repo_id, settings.revision, session.listener)
        for quant in plan.release.quants:
            if shards.is_split_here(quant, settings.split_max_bytes):
                digest = str(digests[quant.paths[0]])
                ready += shards.shards(quant, digest, settings.split_max_bytes, work, session, remote)
        ready += [_written(work, SUMS, _sums(ready)), _written(work, CARD, plan.card)]
        target = hub_upload.Target(
            plan.repo_id, settings.revision, private=settings.private, create_pr=settings.create_pr
        )
        return hub_upload.upload(
            target,
            ready,
            message=f"{plan.release.origin.name}: {', '.join(it.preset for it in plan.release.quants)}",
            bars=bars,
            listener=session.listener,
        )


# --- what is refused, asked and said ---------------------------------------------------------------------


def _refuse(folder: Path, repo_id: str, settings: PublishSettings, session: Session) -> None:
    hub_upload.require_name(repo_id)
    if settings.create_pr and settings.revision not in (None, "main"):
        raise UsageProblem(
            "A pull request goes to the main branch.", "--revision names another.", "Leave one of them out."
        )
    if session.offline:
        raise UsageProblem("Nothing is published offline.", "", "Leave --offline out.")
    if not folder.is_dir():
        raise UsageProblem(f"There is no folder {folder}.", "", "Name a folder with GGUFs.")
    hub_upload.require_token()


def _base(found: Release, settings: PublishSettings, session: Session) -> RemoteModel | None:
    """The model that was quantized, as the Hub has it; None where it is not there."""
    repo_id = settings.base_model or found.origin.repo_id
    if repo_id is None:
        return None
    try:
        return inspect(repo_id, listener=session.listener)
    except HubProblem as problem:
        session.listener(Notice(f"The model's page was not read: {problem.what}", "warning"))
        return None


def _refuse_to_overwrite(remote: RemoteModel, found: Release, settings: PublishSettings) -> None:
    base = settings.base_model or found.origin.repo_id
    if remote.base_models and base and base not in remote.base_models:
        raise OutputProblem(
            f"{remote.repo_id} holds files of another model.",
            f"Its card names {', '.join(remote.base_models)}; these are of {base}.",
            "Choose another repository, or give --force.",
        )
    text = hub_upload.card_text(remote)
    if text is not None and card.MARKER not in text:
        raise OutputProblem(
            f"{remote.repo_id} has a model card that ggq did not write.",
            "It would be replaced.",
            "Choose another repository or --revision, or give --force to replace it.",
        )


def _questions(
    found: Release, settings: PublishSettings, base: RemoteModel | None
) -> tuple[list[str], list[str]]:
    """What the publisher must answer, and what he should know."""
    verdict = licences.judge(settings.license or found.origin.license, found.origin.license_name)
    questions = [verdict.question] if verdict.question else []
    remarks = [verdict.remark] if verdict.remark else []
    if base is not None and base.gated:
        questions.append(
            f"{base.repo_id} is gated: its owner gives it only to people who accept conditions."
            " Do these allow you to publish quantized files of it?"
        )
    if settings.base_model == "" and found.origin.repo_id is None:
        remarks.append("The card names no base model: --base-model org/name does.")
    if not (found.folder / BENCH_RECORD).is_file():
        remarks.append(
            f"The card has no figures: `ggq bench {shlex.quote(str(found.folder))}` measures them."
        )
    return questions, remarks


# --- files -----------------------------------------------------------------------------------------------


def _sources(found: Release, settings: PublishSettings) -> Iterator[tuple[str, Path, bool]]:
    """Every file's name in the repository and here, and whether it goes up as shards."""
    for quant in found.quants:
        folder = f"{quant.stem}/" if len(quant.paths) > 1 else ""
        for path in quant.paths:
            yield f"{folder}{path.name}", path, shards.is_split_here(quant, settings.split_max_bytes)
    for path in found.beside:
        yield path.name, path, False


def _planned(it: tuple[str, Path, bool], session: Session, remote: RemoteModel | None) -> PlannedUpload:
    name, path, is_split = it
    size = path.stat().st_size
    digest = files.sha256_file(path, session.listener, f"digest of {path.name}")
    if is_split:
        return PlannedUpload(name, path, size, digest, "to be split")
    local = LocalFile(name, path, size, digest)
    known = remote is not None and any(each.path == name for each in remote.files)
    return PlannedUpload(
        name, path, size, digest, "there" if local.is_in(remote) else "changed" if known else "new"
    )


def _local(it: PlannedUpload) -> LocalFile:
    assert it.source is not None and it.sha256 is not None
    return LocalFile(it.path, it.source, it.file_bytes, it.sha256)


@contextmanager
def _work_folder(found: Release) -> Iterator[Path]:
    """Shards, card and checksums, until they are uploaded: a run that is broken off finds them again."""
    work = found.folder / _WORK
    files.make_folder(work)
    yield work
    shutil.rmtree(work, ignore_errors=True)


def _sums(ready: Sequence[LocalFile]) -> str:
    """As ``sha256sum -c`` reads it."""
    return "".join(f"{it.sha256}  {it.path}\n" for it in sorted(ready, key=lambda it: it.path))


def _written(work: Path, name: str, text: str) -> LocalFile:
    path = work / name
    path.write_text(text, encoding="utf-8")
    return LocalFile(name, path, path.stat().st_size, files.sha256_file(path))


# --- the card --------------------------------------------------------------------------------------------


def _card(
    found: Release,
    repo_id: str,
    settings: PublishSettings,
    places_of: Mapping[str, str],
    digests: Mapping[Path | None, str | None],
) -> str:
    words = Words(
        title=settings.name,
        author=settings.author,
        quantized_by=settings.quantized_by,
        base_model=settings.base_model,
        license=settings.license,
        tags=settings.tags,
    )
    with_imatrix = any(it.step and it.step.options.get("imatrix_sha256") for it in found.quants)
    head = hub_upload.front_matter(card.matter(found, repo_id, words, with_imatrix=with_imatrix))
    collected = gather([found.folder]) if (found.folder / BENCH_RECORD).is_file() else None
    if collected is not None:
        # A figure of a file that was made again since is another file's.
        known = {"+".join(str(digests[path]) for path in quant.paths) for quant in found.quants}
        collected = replace(
            collected, measured=tuple(it for it in collected.measured if it.row.sha256 in known)
        )
    measured = Measurements(collected, measured_choices(collected) if collected else ())
    commands = _commands(found, settings, with_imatrix=with_imatrix)
    return head + card.body(found, repo_id, words, measured, places_of, commands)


def _commands(found: Release, settings: PublishSettings, *, with_imatrix: bool) -> list[str]:
    """What makes the same files again."""
    made = [it for it in found.quants if it.step is not None and "ftype" in it.step.options]
    model = settings.base_model or found.origin.typed
    if not made and not found.steps:
        return ["# ggq did not make these files."]
    if not made:
        return [shlex.join(["ggq", "convert", model])]
    command = ["ggq", "convert-and-quantize", model, "--preset", ",".join(it.preset for it in made)]
    command += ["--imatrix", "auto"] if with_imatrix else []
    command += ["--keep-base"] if len(made) < len(found.quants) else []
    for option, key in (("--output-tensor-type", "output_tensor_type"),
                        ("--token-embedding-type", "token_embedding_type")):  # fmt: skip
        values = {it.step.options.get(key) for it in made if it.step} - {None}
        command += [option, str(values.pop())] if len(values) == 1 else []
    first = made[0].step
    for override in (first.options.get("tensor_types") or ()) if first else ():
        command += ["--tensor-type", str(override)]
    return [shlex.join(command)]
