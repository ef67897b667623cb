"""The command line: parse, call, print, exit.

Exit status: 0 all clean, 1 damage or drift found, 2 wrong usage or no repository, 3 could not
tell (or nothing was checked), 130 interrupted. Damage wins over could-not-tell.

Everything heavy is imported inside the command that needs it, so that ``--help`` answers at
once; those imports carry PLC0415 for that reason.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import hashlib
import io
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click

from dvc_integrity.errors import (
    IntegrityError,
    ManifestError,
    NothingToVerify,
    RepositoryError,
    StoreError,
    printable,
)

if TYPE_CHECKING:
    from datetime import timedelta

    from dvc_integrity.diagnose import Diagnosis
    from dvc_integrity.formats import Outcome
    from dvc_integrity.manifest import Manifest, Place
    from dvc_integrity.report import Finding, Report
    from dvc_integrity.repository import Repository
    from dvc_integrity.restore import Plan, Restoration
    from dvc_integrity.stores import ObjectStore
    from dvc_integrity.survey import Item

__all__ = ["main"]

CLEAN, DAMAGED, USAGE, UNKNOWN, INTERRUPTED = 0, 1, 2, 3, 130

UNREACHABLE = 3
"""Dearer than any place that can be opened."""

MOST_JOBS = 256
"""More threads than that help no disk and no remote."""

LONGEST_STEM = 100
"""Characters of a receipt's name that its report keeps: file systems bound names."""

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
"""Set by GitHub Actions: the file that takes the Markdown summary of a step."""

FORMATS = ("text", "json", "junit", "sarif", "github", "prometheus")

ERROR_SCHEMA = "dvc-integrity/error/1"

_STATUS = {"clean": CLEAN, "damaged": DAMAGED, "incomplete": UNKNOWN}


def main() -> None:
    """Run the command line and end the process with its exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for the whole process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may not fit the locale
    try:
        status = commands(standalone_mode=False)
    except click.ClickException as error:
        if _json_is_wanted():
            status = _fail(RepositoryError(error.format_message()), as_json=True)
        else:
            error.show()
            status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        restoring = sys.argv[1:2] == ["restore"]
        what = "what was restored by now is proven" if restoring else "nothing was changed"
        with contextlib.suppress(OSError):  # nobody listens; the exit status still tells
            click.echo(f"Interrupted; {what}.", err=True)
        status = INTERRUPTED
    except Exception as error:  # noqa: BLE001 (a defect of ours must not look like damaged data)
        status = _fail(_unforeseen(error), as_json=_json_is_wanted())
    if "colorama" in sys.modules:  # DVC lets it write an escape sequence after our last word
        atexit.unregister(sys.modules["colorama"].initialise.reset_all)
    sys.exit(status)


def _json_is_wanted() -> bool:
    """Return whether a failure that comes before the options are read is to be a document."""
    words = sys.argv[1:]
    if any(word == "--output" or word.startswith("--output=") for word in words):
        return False
    pairs = itertools.pairwise(words)
    return "--json" in words or "--format=json" in words or ("--format", "json") in pairs


@dataclass(frozen=True, slots=True)
class _Output:
    """In which format the outcome goes where."""

    format: str
    file: str | None

    @property
    def as_json(self) -> bool:
        """Whether stdout is to hold one JSON document, of a failure too."""
        return self.format == "json" and self.file is None

    @property
    def quiet(self) -> bool:
        """Whether progress would disturb whoever reads this."""
        return self.format != "text"


def _output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--format``, ``--json`` and ``--output``, and it one ``output`` for them."""

    @functools.wraps(command)
    def call(*, form: str | None, as_json: bool, file: str | None, **rest: Any) -> int:
        if as_json and form not in (None, "json"):
            raise click.UsageError(f"'--json' is '--format json', and '--format {form}' another.")
        output = _Output(form or ("json" if as_json else "text"), file)
        return int(command(output=output, **rest))

    options = (
        click.option(
            "--format",
            "form",
            type=click.Choice(FORMATS),
            help="How the outcome is told; default text.",
        ),
        click.option("--json", "as_json", is_flag=True, help="The same as '--format json'."),
        click.option(
            "--output",
            "file",
            type=click.Path(),
            metavar="FILE",
            help="Write the outcome to FILE instead of stdout.",
        ),
    )
    decorated: Callable[..., Any] = call
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from dvc_integrity.kernel import kernel_name  # noqa: PLC0415

        click.echo(f"dvc-integrity, version {version('dvc-integrity')} (MD5 by {kernel_name()})")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, and what computes MD5 here.",
)
def commands() -> None:
    """Hold the data that DVC tracks to the hashes that are committed to Git."""


@commands.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option(
    "--rev",
    metavar="REV",
    help="Commit to hold data to; default HEAD, or the baseline of the running DVC experiment. "
    "'workspace': the metadata in the work tree.",
)
@click.option("--all", "all_outs", is_flag=True, help="Every output, those of stages too.")
@click.option(
    "--store",
    "store_name",
    default="workspace",
    show_default=True,
    metavar="workspace|cache|remote|remote:NAME",
    help="Where the bytes lie.",
)
@click.option(
    "--jobs", type=click.IntRange(1, MOST_JOBS), metavar="N", help="Reading threads, at most 256."
)
@_output_options
@click.option("--receipt", type=click.Path(), metavar="FILE", help="Write the verdict to FILE.")
@click.option("--cold", is_flag=True, help="Drop cached pages first: read from the device.")
@click.option(
    "--no-blocks",
    is_flag=True,
    help="Insist on DVC's own digest for large files too; no block digests.",
)
@click.option(
    "--attested",
    is_flag=True,
    help="Read nothing: take the checksums that the remote's service states.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress, and silence if all is clean.")
@click.option("-v", "--verbose", is_flag=True, help="Show every finding.")
def verify(
    targets: tuple[str, ...],
    rev: str | None,
    all_outs: bool,
    store_name: str,
    jobs: int | None,
    output: _Output,
    receipt: str | None,
    cold: bool,
    no_blocks: bool,
    attested: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Re-hash real bytes and compare them with the committed hashes.

    TARGETs are DVC outputs, paths inside them, or folders with outputs; without any, every
    source is verified: data tracked by a .dvc file, or imported.
    """
    if attested and (not store_name.startswith("remote") or receipt is not None):
        error = RepositoryError(
            "'--attested' goes with '--store remote' or 'remote:NAME', and without '--receipt': a "
            "receipt says that bytes were read."
        )
        return _fail(error, as_json=output.as_json)
    try:
        report, repository = _verified(targets, rev, all_outs, store_name, jobs, receipt, cold,
                                       not no_blocks, attested, quiet=quiet or output.quiet,
                                       output=output.file)  # fmt: skip
    except IntegrityError as error:
        return _fail(error, as_json=output.as_json)
    status = _STATUS[report.verdict.value]
    try:
        _show(report, repository, output, verbose=verbose, quiet=quiet)
        if receipt is not None:
            _write(repository, report, receipt)
    except IntegrityError as error:
        failure = _fail(error, as_json=False)
        return DAMAGED if status == DAMAGED else failure
    return status


@commands.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--rev", metavar="REV", help="Commit to hold data to; as for verify.")
@click.option("--all", "all_outs", is_flag=True, help="Every output, those of stages too.")
@click.option("--all-places", is_flag=True, help="Every file in workspace, cache and remotes.")
@click.option(
    "--jobs", type=click.IntRange(1, MOST_JOBS), metavar="N", help="Reading threads, at most 256."
)
@_output_options
@click.option("-q", "--quiet", is_flag=True, help="No progress, and silence if all is clean.")
def status(
    targets: tuple[str, ...],
    rev: str | None,
    all_outs: bool,
    all_places: bool,
    jobs: int | None,
    output: _Output,
    quiet: bool,
) -> int:
    """Show for each damaged or missing file which places hold a good copy."""
    with _importing():
        from dvc_integrity.survey import damaged_rows, judged, survey  # noqa: PLC0415

    try:
        report, repository = _verified(targets, rev, all_outs, "workspace", jobs, None, False, True,
                                       False, quiet=quiet or output.quiet,
                                       output=output.file)  # fmt: skip
        manifest = _expected(report)
        rows = range(len(manifest)) if all_places else damaged_rows(report, manifest)
        stores = _sources(repository)
        seen = survey(manifest, rows, stores, prove=True, listings=all_places, jobs=jobs)
        items = [item for item in judged(seen, report, manifest) if not item.good]
        about = {item.entry.path for item in items}
        rest = [each for each in report.findings if each.path not in about and not each.transient]
    except IntegrityError as error:
        return _fail(error, as_json=output.as_json)
    status = _status_of(report, items)
    try:
        _show_status(report, items, rest, repository, output, quiet=quiet)
    except IntegrityError as error:
        failure = _fail(error, as_json=False)
        return DAMAGED if status == DAMAGED else failure
    return status


def _show_status(
    report: Report,
    items: list[Item],
    others: list[Finding],
    repository: Repository,
    output: _Output,
    *,
    quiet: bool,
) -> None:
    from dvc_integrity.console import print_status  # noqa: PLC0415

    if output.format == "text":
        with _written_to(output.file):
            print_status(items, others, quiet=quiet)
    elif output.format == "json":
        document = {
            "schema": "dvc-integrity/status/1",
            "verdict": report.verdict.value,
            "rev": report.rev,
            "targets": list(report.targets),
            "items": [item.to_json() for item in items],
            "others": [each.to_json() for each in others],
        }
        with _written_to(output.file):
            print(json.dumps(document, indent=2))  # noqa: T201 (click would end the process)
    else:
        from dvc_integrity.formats import Outcome  # noqa: PLC0415

        outs = {item.out.path for item in items} | {each.out for each in others}
        places = _places(repository, outs, report.rev, output)
        _tell(Outcome.of_survey(report, items, others, places), output)


def _status_of(report: Report, items: list[Item]) -> int:
    from dvc_integrity.survey import State  # noqa: PLC0415

    states = {copy.state for item in items for copy in item.copies}
    verdict = _STATUS[report.verdict.value]
    if verdict == DAMAGED or states & {State.BAD, State.ABSENT}:
        return DAMAGED
    return UNKNOWN if State.UNREADABLE in states else verdict


@commands.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--rev", metavar="REV", help="Commit to hold data to; as for verify.")
@click.option("--all", "all_outs", is_flag=True, help="Every output, those of stages too.")
@click.option(
    "--store",
    "store_name",
    type=click.Choice(["workspace", "cache"]),
    default="workspace",
    show_default=True,
    help="What is to be good.",
)
@click.option("--from", "sources", multiple=True, metavar="STORE", help="Take copies only there.")
@click.option("--modified", is_flag=True, help="Also what was written since it was committed.")
@click.option("--push", is_flag=True, help="Also bad or absent objects of the remotes.")
@click.option("--all-places", is_flag=True, help="Every file in workspace, cache and remotes.")
@click.option("--dry-run", is_flag=True, help="Show the plan; change nothing.")
@click.option("--list-quarantine", is_flag=True, help="Show what was set aside, and end.")
@click.option("--purge-quarantine", is_flag=True, help="Delete what was set aside, and end.")
@click.option("--older-than", metavar="AGE", help="For --purge-quarantine: 30d, 12h.")
@click.option("--yes", is_flag=True, help="For --purge-quarantine: do not ask.")
@click.option(
    "--cold", is_flag=True, help="Read back all that is written, not only over something bad."
)
@click.option(
    "--jobs", type=click.IntRange(1, MOST_JOBS), metavar="N", help="Reading threads, at most 256."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, and silence if all is good.")
@click.option("-v", "--verbose", is_flag=True, help="Show every file.")
def restore(
    targets: tuple[str, ...],
    rev: str | None,
    all_outs: bool,
    store_name: str,
    sources: tuple[str, ...],
    modified: bool,
    push: bool,
    all_places: bool,
    dry_run: bool,
    list_quarantine: bool,
    purge_quarantine: bool,
    older_than: str | None,
    yes: bool,
    cold: bool,
    jobs: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Bring proven copies back, and keep what lay there in a quarantine.

    Missing and corrupt files are restored from the cache or a remote, and the cache is healed on
    the way; what somebody wrote since only with --modified.
    """
    with _importing():
        from dvc_integrity.console import (  # noqa: PLC0415
            print_plan,
            print_restoration,
            show_progress,
        )
        from dvc_integrity.restore import restore as planned  # noqa: PLC0415
        from dvc_integrity.stores import ObjectStore  # noqa: PLC0415

    try:
        if list_quarantine and purge_quarantine:
            raise RepositoryError(
                "'--list-quarantine' and '--purge-quarantine' exclude each other."
            )
        if list_quarantine or purge_quarantine:
            purging = purge_quarantine and not dry_run
            return _quarantine(purging, older_than, yes, as_json=as_json)
        report, repository = _verified(targets, rev, all_outs, store_name, jobs, None, False, True,
                                       False, quiet=quiet or as_json)  # fmt: skip
        stores = [repository.store(name) for name in sources] or _sources(repository)
        if report.store == "cache" and not any(store.name == "cache" for store in stores):
            stores.append(repository.cache)
        plan = planned(
            report,
            repository.workspace,
            [store for store in stores if isinstance(store, ObjectStore)],
            modified=modified,
            push=[store.name for store in repository.remotes] if push else (),
            everywhere=all_places,
            prove=dry_run,
            scratch=repository.scratch,
            jobs=jobs,
        )
        if dry_run:
            document: Plan | Restoration = plan
        else:
            with show_progress(len(plan.steps), None, quiet=quiet or as_json) as meter:
                document = done = plan.apply(jobs=jobs, meter=meter, cold=cold)
        if as_json:
            _print_document(document.to_json())
        elif dry_run:
            with _output():
                print_plan(plan)
        else:
            with _output():
                print_restoration(done, verbose=verbose, quiet=quiet)
    except IntegrityError as error:
        return _fail(error, as_json=as_json)
    if dry_run:
        return DAMAGED if plan.steps or plan.hopeless else _STATUS[report.verdict.value]
    return DAMAGED if done.damaged else UNKNOWN if done.unknown else CLEAN


@commands.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option("--target", "targets", multiple=True, metavar="TARGET", help="As for verify.")
@click.option("--rev", metavar="REV", help="Commit to hold data to; as for verify.")
@click.option("--all", "all_outs", is_flag=True, help="Every output, those of stages too.")
@click.option(
    "--on-damage",
    type=click.Choice(["refuse", "restore"]),
    default="refuse",
    help="Refuse to run (the default), or restore first what is missing or corrupt.",
)
@click.option("--recheck", is_flag=True, help="Hash every file again when the command has ended.")
@click.option("--cold", is_flag=True, help="Drop cached pages first: read from the device.")
@click.option(
    "--jobs", type=click.IntRange(1, MOST_JOBS), metavar="N", help="Reading threads, at most 256."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress, and silence if all is clean.")
def gate(
    command: tuple[str, ...],
    targets: tuple[str, ...],
    rev: str | None,
    all_outs: bool,
    on_damage: str,
    recheck: bool,
    cold: bool,
    jobs: int | None,
    quiet: bool,
) -> int:
    """Run COMMAND on verified data only, and keep a record of the run.

    Ends with the status of COMMAND; with 1, 2 or 3, as verify does, if it was not run, and with
    1 if it succeeded on data that changed meanwhile.
    """
    from datetime import datetime, timezone  # noqa: PLC0415

    with _importing():
        from dvc_integrity.child import CommandError, run  # noqa: PLC0415
        from dvc_integrity.gate import Run, appeared, changed, look, write_record  # noqa: PLC0415
        from dvc_integrity.repository import Repository  # noqa: PLC0415

    try:
        repository = Repository()
        manifest = repository.manifest(*targets, rev=rev, all_outs=all_outs)
        before = look(manifest, repository.workspace)
        report = _held(repository, manifest, "workspace", jobs, cold, quiet=quiet)
        if report.verdict.value == "damaged" and on_damage == "restore":
            _restored(report, repository, jobs)
            before = look(manifest, repository.workspace)
            report = _held(repository, manifest, "workspace", jobs, cold, quiet=quiet)
        if not report.ok:
            with _output():
                _refuse_to_run(report)
            return _STATUS[report.verdict.value]
        recorded = repository.manifest(*targets, rev="workspace", all_outs=all_outs)
        earlier = repository.experiments()
        variables = {
            name: value for name, value in os.environ.items() if name.startswith("DVC_EXP_")
        }
        started = datetime.now(timezone.utc)
        try:
            status = run(command)
        except CommandError as error:
            click.echo(f"Error: {error}", err=True)
            return error.status
        ended = datetime.now(timezone.utc)
        different = changed(manifest, repository.workspace, before, recheck=recheck, jobs=jobs)
        extra = appeared(manifest, repository.workspace)
        after = Repository()
        experiments = [
            replace(each, outs=tuple(after.outs(each.commit)))
            for each in sorted(after.experiments() - earlier, key=lambda each: each.name)
        ]
        record = write_record(
            Run(
                report,
                recorded.digest == manifest.digest,
                command,
                status,
                started,
                ended,
                variables,
                experiments,
                after.outs("workspace"),
                recheck,
                different,
                extra,
            ),
            repository.records,
        )
    except IntegrityError as error:
        return _fail(error, as_json=False)
    for path in [*(item.entry.path for item in different), *extra]:
        click.echo(f"changed while the command ran: {printable(path)}", err=True)
    if not quiet:
        click.echo(f"The record of this run is '{printable(record)}'.", err=True)
    return status or (DAMAGED if different or extra else CLEAN)


def _restored(report: Report, repository: Repository, jobs: int | None) -> None:
    """Restore what a report found bad, as ``restore`` does."""
    from dvc_integrity.console import print_restoration  # noqa: PLC0415
    from dvc_integrity.restore import restore as planned  # noqa: PLC0415

    plan = planned(
        report,
        repository.workspace,
        _sources(repository),
        scratch=repository.scratch,
        jobs=jobs,
    )
    done = plan.apply(jobs=jobs)
    with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the command
        print_restoration(done, verbose=False, quiet=True)


def _refuse_to_run(report: Report) -> None:
    """Tell why a command was not run, and what helps; on stderr, stdout belongs to it."""
    from dvc_integrity.console import print_report  # noqa: PLC0415

    with contextlib.redirect_stdout(sys.stderr):
        print_report(report, verbose=False, quiet=False)
    click.echo(
        "The command was not run. If the data were changed on purpose: 'dvc add' (or 'dvc "
        "commit'), 'git commit', and run this again; '--rev workspace' holds them to the metadata "
        "as it lies there, and the record says that it was not committed.",
        err=True,
    )


def _quarantine(purging: bool, older_than: str | None, yes: bool, *, as_json: bool) -> int:
    """List what was set aside, or delete what is older than an age."""
    from datetime import datetime, timezone  # noqa: PLC0415

    from dvc_integrity.console import print_quarantine  # noqa: PLC0415
    from dvc_integrity.durable import exclusive  # noqa: PLC0415
    from dvc_integrity.quarantine import Quarantine, purge  # noqa: PLC0415
    from dvc_integrity.repository import Repository  # noqa: PLC0415

    scratch = Repository().scratch
    folder = os.path.join(scratch, "quarantine")
    try:
        kept = Quarantine(folder).entries()
    except OSError as error:
        raise StoreError(f"The quarantine cannot be read: {error}.") from error
    if older_than is not None or purging:
        limit = datetime.now(timezone.utc) - _age(older_than)
        kept = [each for each in kept if each.time < limit]
    if purging and not yes and (as_json or sys.stdin is None or not sys.stdin.isatty()):
        raise RepositoryError("Nobody can be asked here: say '--yes' to delete these for good.")
    if not as_json:
        with _output():
            print_quarantine(kept)
    if purging and kept and (yes or click.confirm("Delete these for good?", err=True)):
        try:
            with exclusive(os.path.join(scratch, "restore.lock")):
                for each in kept:
                    purge(each)
        except OSError as error:
            raise StoreError(f"The quarantine cannot be purged: {error}.") from error
    if as_json:
        entries = [each.to_json() for each in kept]
        _print_document({"schema": "dvc-integrity/quarantine/1", "folder": folder,
                     "purged": purging, "entries": entries})  # fmt: skip
    return CLEAN


def _age(text: str | None) -> timedelta:
    from datetime import timedelta  # noqa: PLC0415

    units = {"d": "days", "h": "hours"}
    if not text or text[-1] not in units or not text[:-1].isdecimal():
        raise RepositoryError("'--purge-quarantine' needs '--older-than AGE', such as 30d or 12h.")
    try:
        return timedelta(**{units[text[-1]]: int(text[:-1])})
    except OverflowError as error:
        raise RepositoryError(f"'{text}' is longer than there is time.") from error


def _sources(repository: Repository) -> list[ObjectStore]:
    """Return the places that good copies may lie in, the cheapest first."""
    return sorted([repository.cache, *repository.remotes], key=_cost)


def _cost(store: ObjectStore) -> int:
    try:
        return store.cost
    except StoreError:
        return UNREACHABLE  # what is asked of it tells why


def _expected(report: Report) -> Manifest:
    if report.expected is None:
        raise IntegrityError("the report carries no manifest")
    return report.expected


def _verified(
    targets: tuple[str, ...],
    rev: str | None,
    all_outs: bool,
    store_name: str,
    jobs: int | None,
    receipt: str | None,
    cold: bool,
    blocks: bool,
    attested: bool,
    *,
    quiet: bool,
    output: str | None = None,
) -> tuple[Report, Repository]:
    with _importing():
        from dvc_integrity.repository import Repository  # noqa: PLC0415

    repository = Repository()
    repository.store(store_name)
    manifest = repository.manifest(*targets, rev=rev, all_outs=all_outs)
    if receipt is not None:
        _refuse_receipt(repository, manifest, receipt)
    if output is not None:
        _refuse_output(repository, manifest, output, receipt)
    report = _held(
        repository, manifest, store_name, jobs, cold, blocks=blocks, attested=attested, quiet=quiet
    )
    return report, repository


def _held(
    repository: Repository,
    manifest: Manifest,
    store_name: str,
    jobs: int | None,
    cold: bool,
    *,
    blocks: bool = True,
    attested: bool = False,
    quiet: bool,
) -> Report:
    """Hold a store to a manifest, and show how far it is."""
    with _importing():
        from dvc_integrity.console import show_progress  # noqa: PLC0415
        from dvc_integrity.verify import verify as hold  # noqa: PLC0415

    store = repository.store(store_name)
    held = manifest.of(store.holds)
    with show_progress(len(held), held.total_bytes, quiet=quiet) as meter:
        return hold(
            manifest, store, jobs=jobs, cold=cold, meter=meter, blocks=blocks, attested=attested
        )


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Keep the garbage collector from what imports make: it stays, and is a tenth of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _refuse_receipt(repository: Repository, manifest: Manifest, receipt: str) -> None:
    """Refuse to write over data that DVC tracks, or over any file that is no receipt."""
    from dvc_integrity.receipt import is_replaceable  # noqa: PLC0415

    _refuse_tracked(repository, manifest, receipt, "receipt", "receipts/data.json")
    if not receipt or not is_replaceable(receipt):
        raise RepositoryError(
            f"'{printable(receipt)}' is no receipt and will not be overwritten. Name another file."
        )


def _refuse_output(
    repository: Repository, manifest: Manifest, output: str, receipt: str | None
) -> None:
    """Refuse to write over data that DVC tracks, over what is no file, or over the receipt."""
    _refuse_tracked(repository, manifest, output, "output", "reports/data.xml")
    if not output or (os.path.exists(output) and not os.path.isfile(output)):
        raise RepositoryError(
            f"'{printable(output)}' is no file that the output could replace. Name another."
        )
    if receipt is not None and os.path.realpath(receipt) == os.path.realpath(output):
        raise RepositoryError("'--receipt' and '--output' name the same file. Name two.")


def _refuse_tracked(
    repository: Repository, manifest: Manifest, file: str, what: str, example: str
) -> None:
    """Refuse a place for a file of ours that lies in data that DVC tracks."""
    from dvc_integrity.repository import WORKSPACE  # noqa: PLC0415

    place = os.path.realpath(file)
    for rev in (manifest.rev, WORKSPACE):
        out = repository.out_at(place, rev)
        if out is None or not (out.directory or out.source):
            continue
        raise RepositoryError(
            f"The {what} '{printable(file)}' would lie in '{printable(out.path)}', which DVC "
            f"tracks. Name a file elsewhere, for example '{example}'."
        )


def _show(
    report: Report, repository: Repository, output: _Output, *, verbose: bool, quiet: bool
) -> None:
    from dvc_integrity.console import print_report  # noqa: PLC0415

    if output.format == "text":
        with _written_to(output.file):
            print_report(report, verbose=verbose, quiet=quiet)
    elif output.format == "json":
        with _written_to(output.file):
            print(json.dumps(report.to_json(), indent=2))  # noqa: T201 (click would end the process)
    else:
        from dvc_integrity.formats import Outcome  # noqa: PLC0415

        outs = {each.out for each in report.findings}
        places = _places(repository, outs, report.rev, output)
        _tell(Outcome.of_report(report, places), output)


def _places(repository: Repository, outs: set[str], rev: str, output: _Output) -> dict[str, Place]:
    """Return the lines of metadata that hold the hashes, for the formats that tell them."""
    return repository.places(outs, rev) if output.format in ("sarif", "github") else {}


def _tell(outcome: Outcome, output: _Output) -> None:
    """Write an outcome in the format that was asked for."""
    from dvc_integrity import formats  # noqa: PLC0415

    renderings: dict[str, Callable[[Outcome], str]] = {
        "junit": formats.junit,
        "sarif": formats.sarif,
        "github": formats.workflow_commands,
        "prometheus": formats.prometheus,
    }
    with _written_to(output.file):
        print(renderings[output.format](outcome), end="")  # noqa: T201 (click would end the process)
    summary = os.environ.get(SUMMARY_VARIABLE)
    if output.format == "github" and summary:
        try:
            with open(summary, "a", encoding="utf-8") as file:
                file.write(formats.summary(outcome))
        except OSError as error:
            raise StoreError(
                f"The summary '{printable(summary)}' that {SUMMARY_VARIABLE} names could not be "
                f"written: {error.strerror or error}."
            ) from error


@contextlib.contextmanager
def _written_to(file: str | None) -> Iterator[None]:
    """Let what the block prints go to a file, whole or not at all; None: to stdout."""
    if file is None:
        with _output():
            yield
        return
    from dvc_integrity.durable import write_file  # noqa: PLC0415

    kept = io.StringIO()
    with contextlib.redirect_stdout(kept):
        yield
    try:
        write_file(file, kept.getvalue().encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise StoreError(
            f"'{printable(file)}' could not be written: {error.strerror or error}. Nothing was "
            f"left half written. Free space or name another file, and run again."
        ) from error


def _print_document(document: dict[str, Any]) -> None:
    with _output():
        print(json.dumps(document, indent=2))  # noqa: T201 (click would end the process)


@contextlib.contextmanager
def _output() -> Iterator[None]:
    """Let the block write to stdout; say what became of it if that fails."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away, as 'head' does. The verdict stands; what is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StoreError(f"The output could not be written: {error.strerror or error}.") from error


def _write(repository: Repository, report: Report, receipt: str) -> None:
    """Write the stable receipt, and what varies from run to run beside DVC's temporary files."""
    from dvc_integrity.receipt import write_receipt, write_report  # noqa: PLC0415

    place = os.path.relpath(os.path.realpath(receipt), repository.root)
    stem = os.path.splitext(os.path.basename(place))[0][:LONGEST_STEM]
    name = f"{stem}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}.json"
    write_report(report, os.path.join(repository.scratch, "reports", name))
    write_receipt(report, receipt)  # last: it says clean, and nothing after it may fail


# diagnose ------------------------------------------------------------------------------------


@commands.command()
@click.argument("path", metavar="PATH")
@click.option(
    "--rev",
    metavar="REV",
    help="Commit to hold the file to; default HEAD, or the baseline of the running DVC "
    "experiment. 'workspace': the metadata in the work tree.",
)
@click.option(
    "--store",
    "store_name",
    default="workspace",
    show_default=True,
    metavar="workspace|cache|remote|remote:NAME",
    help="Where the bad bytes lie.",
)
@click.option("--svg", type=click.Path(), metavar="FILE", help="Draw the damage map to FILE.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def diagnose(path: str, rev: str | None, store_name: str, svg: str | None, as_json: bool) -> int:
    """Say what kind of damage a file has.

    Its bytes are compared with a proven good copy from the cache, a remote or the workspace:
    how much differs, where, which pattern that fits, what usually causes it, and what to check
    next. PATH is one tracked file, or one in a tracked folder.
    """
    try:
        diagnosis = _diagnosed(path, rev, store_name, svg)
    except IntegrityError as error:
        return _fail(error, as_json=as_json)
    status = _diagnosed_status(diagnosis)
    try:
        _show_diagnosis(diagnosis, as_json=as_json)
        if svg is not None:
            _draw(diagnosis, svg)
    except IntegrityError as error:
        failure = _fail(error, as_json=False)
        return DAMAGED if status == DAMAGED else failure
    return status


def _diagnosed(path: str, rev: str | None, store_name: str, svg: str | None) -> Diagnosis:
    from dvc_integrity.diagnose import examine  # noqa: PLC0415
    from dvc_integrity.repository import Repository  # noqa: PLC0415

    repository = Repository()
    store = repository.store(store_name)
    manifest = repository.manifest(path, rev=rev)
    if svg is not None:
        _refuse_picture(repository, manifest, svg)
    _refuse_others(manifest, path)
    if not all(map(store.holds, manifest.outs)):
        raise NothingToVerify(
            f"The {store.name} is not to hold '{printable(path)}'. Choose another store."
        )
    return examine(
        manifest,
        0,
        store,
        sources=(repository.cache, repository.workspace, *repository.remotes),
        scratch=repository.scratch,
        everything=lambda: repository.manifest(rev=manifest.rev, all_outs=True),
        versions=repository.versions,
    )


def _refuse_others(manifest: Manifest, path: str) -> None:
    """Refuse what is not one file with a content hash."""
    if len(manifest) != 1:
        raise RepositoryError(
            f"'{printable(path)}' stands for {len(manifest):,} files, and one is diagnosed at a "
            f"time. 'dvc-integrity verify {printable(path)}' names those that are damaged."
        )
    if not manifest.has_digest(0):
        why = manifest.outs[0].unverifiable or "no content hash is committed for it"
        raise ManifestError(f"'{printable(path)}' cannot be diagnosed: {why}.")


def _refuse_picture(repository: Repository, manifest: Manifest, svg: str) -> None:
    """Refuse to write over data that DVC tracks, or over any file that is no such picture."""
    from dvc_integrity.picture import is_replaceable  # noqa: PLC0415

    _refuse_tracked(repository, manifest, svg, "picture", "damage.svg")
    if not svg or not is_replaceable(svg):
        raise RepositoryError(
            f"'{printable(svg)}' is no picture of a diagnosis and will not be overwritten. Name "
            f"another file."
        )


def _diagnosed_status(diagnosis: Diagnosis) -> int:
    if diagnosis.finding.status.is_damage:
        return DAMAGED
    return CLEAN if diagnosis.finding.status.value == "ok" else UNKNOWN


def _show_diagnosis(diagnosis: Diagnosis, *, as_json: bool) -> None:
    from dvc_integrity.console import print_diagnosis  # noqa: PLC0415

    if as_json:
        _print_document(diagnosis.to_json())
        return
    with _output():
        print_diagnosis(diagnosis)


def _draw(diagnosis: Diagnosis, svg: str) -> None:
    from dvc_integrity.picture import write_picture  # noqa: PLC0415

    if diagnosis.damage is None:
        click.echo("dvc-integrity: no picture was drawn: nothing was compared.", err=True)
    else:
        write_picture(diagnosis, diagnosis.damage, svg)


# failures ------------------------------------------------------------------------------------


def _unforeseen(error: Exception) -> IntegrityError:
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "?"
    return IntegrityError(
        f"unforeseen {type(error).__name__} at {place}: {printable(str(error))}. Nothing is known "
        f"about the data. Please report this."
    )


def _fail(error: IntegrityError, *, as_json: bool) -> int:
    """Say what is wrong, on stderr or as a document, and return the exit status."""
    status = USAGE if isinstance(error, RepositoryError) else UNKNOWN
    if as_json:
        document: dict[str, Any] = {
            "schema": ERROR_SCHEMA,
            "error": type(error).__name__,
            "message": str(error),
            "exit_status": status,
        }
        text = json.dumps(document, indent=2)
    else:
        text = f"dvc-integrity: {error}"
    with contextlib.suppress(OSError):  # nobody listens; the exit status still tells
        click.echo(text, err=not as_json)
    return status
