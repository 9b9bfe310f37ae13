"""Private files: their mode, whole or not at all, and one writer at a time."""

from __future__ import annotations

import stat
import threading

import pytest

from dgpunet_dask.errors import NewerFormat, UnreadablePath
from dgpunet_dask.security.files import PrivateJson, private_folder, signature, write_private


def test_a_file_is_private_and_replaced_whole(tmp_path):
    file = tmp_path / "x"
    file.write_text("anybody's")
    file.chmod(0o666)
    before = signature(file)
    write_private(file, "grüße")
    assert file.read_bytes() == "grüße".encode()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert signature(file) != before
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path):
    file = tmp_path / "x"
    write_private(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_private(file, "\udc00")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_was_open_is_closed(tmp_path):
    (tmp_path / "pki").mkdir(mode=0o755)
    private_folder(tmp_path / "pki")
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700


def test_a_failed_change_leaves_the_record_as_it_was(tmp_path):
    record = PrivateJson(tmp_path / "r.json")
    with record.change() as found:
        found["n"] = 1
    with pytest.raises(KeyError), record.change() as found:
        found["n"] = 2
        raise KeyError
    assert record.read() == {"n": 1}


def test_writers_wait_for_one_another(tmp_path):
    """Two objects on one file stand for two processes: they share nothing but the file."""

    def add() -> None:
        record = PrivateJson(tmp_path / "r.json")
        for _ in range(20):
            with record.change() as found:
                found["n"] = found.get("n", 0) + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert PrivateJson(tmp_path / "r.json").read() == {"n": 80}


def test_a_reader_sees_what_another_wrote_and_reads_no_more_than_that(tmp_path):
    reader, writer = PrivateJson(tmp_path / "r.json"), PrivateJson(tmp_path / "r.json")
    assert reader.read() == {}
    with writer.change() as found:
        found["n"] = 1
    first = reader.read()
    assert first == {"n": 1}
    assert reader.read() is first
    with writer.change() as found:
        found["n"] = 2
    assert reader.read() == {"n": 2}


@pytest.mark.parametrize(
    ("text", "error"),
    [("", UnreadablePath), ("[]", UnreadablePath), ("{}", UnreadablePath), ('{"version": "1"}', UnreadablePath), ('{"version": 2}', NewerFormat)],
)  # fmt: skip
def test_what_cannot_be_understood_is_neither_guessed_nor_overwritten(tmp_path, text, error):
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(error):
        PrivateJson(file).read()
    with pytest.raises(error), PrivateJson(file).change() as found:
        found["n"] = 1
    assert file.read_text() == text
