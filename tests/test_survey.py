"""A survey says of each place what was seen there, and calls good only what was read."""

from __future__ import annotations

import itertools
import os
from datetime import datetime, timezone

import faults
import pytest
from hypothesis import given
from hypothesis import strategies as st
from projects import Project, md5, object_path

import dvc_integrity as di
from dvc_integrity.restore import Choice, plan
from dvc_integrity.survey import Copy, Item, State, survey

FILES = {"data/a": b"a" * 100, "data/b": b"b" * 100, "data/c": b"c" * 100}
STORES = ("workspace", "cache", "remote:x", "remote:y")


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project with a folder, an output of Git, and an empty remote."""
    remote = project.top.parent / "remote"
    remote.mkdir()
    project.dvc("remote", "add", "-d", "disk", os.fspath(remote))
    project.add("data", FILES)
    project.commit("data")
    return project


@pytest.mark.parametrize("prove", [True, False])
def test_each_place_is_told_as_it_is(tracked: Project, prove: bool) -> None:
    """Good, bad, absent: where nothing was read, what is there is ``present``, never good."""
    object_path(tracked.cache, md5(FILES["data/b"])).unlink()
    faults.flip_bit(object_path(tracked.cache, md5(FILES["data/c"])))
    repository = di.Repository(tracked.root)
    manifest = repository.manifest("data")
    stores = [repository.cache, *repository.remotes]
    items = list(survey(manifest, range(3), stores, prove=prove))
    states = {item.entry.path: [copy.state for copy in item.copies] for item in items}
    seen = (State.GOOD, State.BAD) if prove else (State.PRESENT, State.PRESENT)
    assert {
        "data/a": [seen[0], State.ABSENT],
        "data/b": [State.ABSENT, State.ABSENT],
        "data/c": [seen[1], State.ABSENT],
        "data": [State.GOOD, State.ABSENT],
    } == states
    assert ["data"] == [item.entry.path for item in items if item.listing]


def test_a_place_that_cannot_be_used_is_unreadable_and_the_rest_goes_on(tracked: Project) -> None:
    """A remote that is not mounted ends nothing; its copies say why."""
    (tracked.top.parent / "remote").rmdir()
    repository = di.Repository(tracked.root)
    manifest = repository.manifest("data")
    stores = [repository.cache, *repository.remotes]
    for item in survey(manifest, range(3), stores, prove=True):
        cache, remote = item.copies
        assert (State.GOOD, State.UNREADABLE) == (cache.state, remote.state)
        assert "Is its disk mounted?" in remote.detail


def item_of(states: tuple[State, ...], status: di.Status) -> Item:
    """Return an entry with a copy in each place, and what was found in the work tree."""
    digest = di.Digest(di.Algorithm.MD5, bytes(16))
    entry = di.Entry("f", digest, None, executable=False, out="f")
    finding = di.Finding("f", "f", status, digest) if status is not di.Status.OK else None
    copies = tuple(Copy(*pair) for pair in zip(STORES, states, strict=True))
    return Item(entry, di.Out("f", digest=digest), 0, copies, finding)


@given(
    states=st.tuples(*[st.sampled_from(State)] * len(STORES)),
    status=st.sampled_from(di.Status),
    modified=st.booleans(),
    push=st.booleans(),
    everywhere=st.booleans(),
)
def test_a_plan_keeps_its_rules(
    states: tuple[State, ...], status: di.Status, modified: bool, push: bool, everywhere: bool
) -> None:
    """No bad source, no good target, sources in order, and what is not to be touched is not."""
    item = item_of(states, status)
    remotes = STORES[2:]
    choice = Choice("workspace", STORES[1:], modified, remotes if push else (), everywhere)
    made = plan([item], [], choice)
    assert made == plan([item], [], choice)
    told = [finding for finding, _ in made.untouched]
    assert len(made.steps) + len(made.hopeless) <= 1
    elsewhere = [finding for finding in told if finding is not item.finding]
    assert everywhere or not elsewhere  # what other places hold is told where all are looked at
    assert all("in the " in finding.detail for finding in elsewhere)
    kept = {di.Status.EXTRA, di.Status.UNSTABLE, di.Status.UNVERIFIABLE}
    left = status in kept or (status is di.Status.MODIFIED and not modified)
    assert told.count(item.finding) == (left and item.finding is not None)
    if status in kept:
        assert ((), ()) == (made.steps, made.hopeless)
    for step in made.steps:
        at = dict(zip(STORES, states, strict=True))
        assert not {State.BAD, State.ABSENT, State.NOT_KEPT} & {at[name] for name in step.sources}
        assert all(
            at[name] in (State.BAD, State.ABSENT) for name in step.targets if name != "workspace"
        )
        assert ("workspace" in step.targets) == (status is not di.Status.OK and not left)
        ordered = [name for name in step.sources if name != "workspace"]
        assert all(STORES.index(a) < STORES.index(b) for a, b in itertools.pairwise(ordered))
        assert push or not set(step.targets) & set(remotes)


def test_a_report_without_its_manifest_is_refused(tracked: Project) -> None:
    """What did not come from ``verify`` cannot be restored; the message says what can."""
    repository = di.Repository(tracked.root)
    report = di.Report(
        "HEAD", "workspace", (), None, di.Coverage(), (), datetime.now(timezone.utc), 0.0, {}
    )
    with pytest.raises(di.RestoreError, match="What 'verify' reports"):
        di.restore(report, repository.workspace, [repository.cache])
