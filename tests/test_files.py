"""Atomic writes."""

from pathlib import Path

import pytest

from cmjax.system.files import whole_folder, write_atomically


def test_a_write_makes_its_folder_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "folder" / "file"
    write_atomically(path, b"old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(self, content):
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "runs" / "x"

    def full_disk():
        with whole_folder(folder) as partial:
            (partial / "file").write_text("a part")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        full_disk()
    assert not [*folder.parent.iterdir()]
    folder.mkdir()
    (folder.parent / ".x.partial").mkdir()
    (folder.parent / ".x.partial" / "rest").write_text("of a kill")
    with whole_folder(folder) as partial:
        (partial / "file").write_text("all")
        assert not [*folder.iterdir()]
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert [path.name for path in folder.parent.iterdir()] == ["x"]
