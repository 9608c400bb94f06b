"""Files of HDF5 on a disk that fills up at any byte: one error, nothing left, no crash."""

import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from attrib.store.writing import created

ROWS = 30_000


def write(path: Path) -> None:
    with created(path) as file:
        for number in range(3):
            group = file.create_group(f"group {number}")
            group.attrs["name"] = np.array(b"a text", h5py.string_dtype("utf-8", 6))
            group.create_dataset("column", data=np.arange(ROWS), chunks=(ROWS // 3,), compression="gzip", compression_opts=1)
            group.create_dataset("whole", data=np.arange(ROWS))


PROGRAM = """
import resource, sys
from pathlib import Path
from tests.store.test_created import write
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    write(Path(sys.argv[1]))
except OSError as error:
    print(error)
"""


def test_a_file_is_as_hdf5_itself_would_write_it(tmp_path: Path) -> None:
    write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert [*file] == ["group 0", "group 1", "group 2"]
        for group in file.values():
            assert group.attrs["name"] == b"a text"
            assert all(np.array_equal(group[name], np.arange(ROWS)) for name in ("column", "whole"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    write(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.few
@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.9, 0.999])
def test_a_disk_that_fills_up_is_one_error(tmp_path: Path, share: float) -> None:
    write(tmp_path / "a.h5")
    room = int(share * (tmp_path / "a.h5").stat().st_size)
    ran = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "b.h5", str(room)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", f"[Errno 27] File too large: '{tmp_path / 'b.h5'}'\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_what_goes_wrong_meanwhile_comes_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its own"), created(tmp_path / "a.h5"):
        raise ValueError("its own")
    assert [*tmp_path.iterdir()] == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY, "limits are those of other processes"
