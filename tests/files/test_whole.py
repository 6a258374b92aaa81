"""Files that are written whole or not at all, by several threads and processes at once."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.run.store import check_free, claimed
from vlmcompress.files import whole_file, write_json


def test_threads_that_write_one_file_leave_it_whole_at_every_moment(tmp_path):
    path, stop, torn = tmp_path / "run.json", threading.Event(), []
    write_json(path, [0] * 2000)

    def read() -> None:
        while not stop.is_set():
            try:
                torn.extend(
                    content for content in [json.loads(path.read_text())] if len(content) < 2000
                )
            except ValueError as error:
                torn.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write_json(path, [number] * 2000), range(60)))
    stop.set()
    reader.join()
    assert torn == []
    assert [one.name for one in tmp_path.iterdir()] == ["run.json"]


def test_a_file_has_the_permissions_and_the_ending_that_any_other_has(tmp_path):
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "new.png") as draft:
        assert draft.suffix == ".png"
        draft.touch()
    modes = {stat.S_IMODE(os.stat(path).st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_what_fails_half_way_leaves_nothing(tmp_path):
    def fail(draft) -> None:
        draft.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.json") as draft:
        fail(draft)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(VLMCompressError, match=r"cannot write .*No such file"):
        write_json(tmp_path / "no" / "a.json", {})


def test_a_folder_takes_one_run_at_a_time(tmp_path):
    check_free(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with claimed(tmp_path / "run"):
        for attempt in (check_free, lambda folder: claimed(folder).__enter__()):
            with pytest.raises(
                VLMCompressError, match="another eval is at work in folder"
            ) as found:
                attempt(tmp_path / "run")
            assert "\n" not in str(found.value)
    check_free(tmp_path / "run")


@pytest.mark.slow
def test_the_second_of_two_evals_on_one_folder_ends_with_one_line_and_code_2(tmp_path):
    command = [sys.executable, "-m", "vlmcompress", "eval", "--out", str(tmp_path / "run")]
    with claimed(tmp_path / "run"):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "another eval is at work" in done.stderr
