"""Logs of updates: what is in the file or at the writer, after interruptions too."""

# pyright: reportCallIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

import sparsity
from sparsity import CsvLog, RecordError, Rewiring, ScalarLog

UPDATE = Rewiring(
    10, 0.25, {"trunk.a": 3, "heads.0.b": 2, "heads.0.c": 1}, {"trunk.a": 2, "heads.0.b": 4, "heads.0.c": 0}
)


def test_rows_of_components_and_of_layers(tmp_path):
    CsvLog(tmp_path / "parts.csv")(UPDATE)
    assert (tmp_path / "parts.csv").read_bytes() == (
        b"step,fraction,component,dropped,grown\n10,0.25,trunk,3,2\n10,0.25,heads.0,3,4\n"
    )
    CsvLog(str(tmp_path / "layers.csv"), by_layer=True)(UPDATE)
    assert (tmp_path / "layers.csv").read_text() == (
        "step,fraction,component,path,dropped,grown\n"
        "10,0.25,trunk,trunk.a,3,2\n10,0.25,heads.0,heads.0.b,2,4\n10,0.25,heads.0,heads.0.c,1,0\n"
    )


def update(step: int, count: int) -> Rewiring:
    return Rewiring(step, 0.5, {"w": count}, {"w": count})


def steps(file) -> list[tuple[int, int]]:
    with file.open() as rows:
        return [(int(row["step"]), int(row["dropped"])) for row in csv.DictReader(rows)]


def test_resuming_replaces_what_is_done_again(tmp_path):
    file = tmp_path / "log.csv"
    log = CsvLog(file)
    for step in (100, 200, 300):
        log(update(step, 1))
    # From a checkpoint at step 150, so that 200 and 300 are done again.
    again = CsvLog(file, resume=True)
    assert steps(file) == [(100, 1), (200, 1), (300, 1)]
    again(update(200, 2))
    assert steps(file) == [(100, 1), (200, 2)]
    again(update(300, 2))
    again(update(400, 2))
    assert steps(file) == [(100, 1), (200, 2), (300, 2), (400, 2)]
    # Back to the checkpoint within one process.
    again(update(200, 3))
    assert steps(file) == [(100, 1), (200, 3)]
    # From a checkpoint after all updates.
    CsvLog(file, resume=True)(update(300, 4))
    assert steps(file) == [(100, 1), (200, 3), (300, 4)]
    assert [each.name for each in tmp_path.iterdir()] == ["log.csv"]


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    file = tmp_path / "log.csv"
    log = CsvLog(file)
    log(update(100, 12))
    log(update(200, 12))
    file.write_text(file.read_text()[:-1])
    CsvLog(file, resume=True)(update(300, 5))
    assert steps(file) == [(100, 12), (300, 5)]


def test_resume_without_a_file_starts_one(tmp_path):
    (tmp_path / "empty.csv").touch()
    for name in ("new.csv", "empty.csv"):
        CsvLog(tmp_path / name, resume=True)(update(100, 1))
        assert steps(tmp_path / name) == [(100, 1)]


def test_files_that_are_not_its_own(tmp_path):
    file = tmp_path / "log.csv"
    CsvLog(file)(update(100, 1))
    with pytest.raises(RecordError, match=r"is there already. Pass resume=True"):
        CsvLog(file)
    with pytest.raises(RecordError, match=r"columns step,fraction,component,dropped,grown, expected .*path"):
        CsvLog(file, by_layer=True, resume=True)
    file.write_text(file.read_text() + "notes of mine\n")
    with pytest.raises(RecordError, match=r"Line 3 of .*'notes of mine'. Remove it"):
        CsvLog(file, resume=True)
    file.write_text("half a header")
    with pytest.raises(RecordError, match="can't be gone on with"):
        CsvLog(file, resume=True)
    assert file.read_text() == "half a header"


class Writer:
    def __init__(self) -> None:
        self.calls: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.calls.append((tag, scalar_value, global_step))


def test_scalars():
    writer = Writer()
    ScalarLog(writer, prefix="masks")(UPDATE)
    assert writer.calls == [
        ("masks/fraction", 0.25, 10),
        ("masks/dropped/trunk", 3, 10),
        ("masks/dropped/heads.0", 3, 10),
        ("masks/grown/trunk", 2, 10),
        ("masks/grown/heads.0", 4, 10),
    ]


def test_scalars_with_a_history():
    torch.manual_seed(0)
    net = nn.Linear(8, 4)
    history = sparsity.History(sparsity.sparsify(net, 0.5), explored=True)
    writer = Writer()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsity.set_(net, optimizer, every=1, callback=[history, ScalarLog(writer, history)])
    for _ in range(3):
        net(torch.randn(5, 8)).square().mean().backward()
        optimizer.step()
    assert [tag for tag, _, step in writer.calls if step == 2] == [
        f"topology/{name}" for name in ("fraction", "dropped/model", "grown/model", "density/model", "explored/model")
    ]
    assert writer.calls[-1] == ("topology/explored/model", history.explored, 2)
    assert writer.calls[-2] == ("topology/density/model", 0.5, 2)


def test_the_history_comes_first():
    net = nn.Linear(8, 4)
    history = sparsity.History(sparsity.sparsify(net, 0.5))
    with pytest.raises(RecordError, match=r"callback=\[history, ScalarLog\(writer, history\)\]"):
        ScalarLog(Writer(), history)(update(3, 1))
