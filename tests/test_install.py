"""Installing the package, and importing it where torch is missing or too old."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import venv

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory) -> pathlib.Path:
    """The Python of an empty virtual environment into which the package was installed."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", ROOT]
    # CUDA kernels would take minutes, and nothing here depends on them.
    environment = os.environ | {"SEQKERNELS_CUDA": "0"}
    result = subprocess.run(install, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return python


def import_error(python: pathlib.Path, folder: pathlib.Path, **environment: str) -> str:
    """The last line that `import seqkernels` prints on its way to a non-zero exit code."""
    result = subprocess.run(
        [python, "-c", "import seqkernels"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | environment,
    )
    assert result.returncode != 0
    return result.stderr.strip().splitlines()[-1]


def test_installs_without_torch_and_says_that_it_needs_it(empty_environment, tmp_path):
    line = import_error(empty_environment, tmp_path)
    assert line.startswith("ImportError: seqkernels needs PyTorch 2.10 or newer")
    assert "not installed" in line


def test_every_module_is_installed(empty_environment):
    (installed,) = empty_environment.parent.parent.glob("lib/python*/site-packages")
    for package, source in (
        ("seqkernels", ROOT / "seqkernels"),
        ("seqkernels_bench", ROOT / "bench"),
    ):
        expected = {path.relative_to(source) for path in source.rglob("*.py")}
        folder = installed / package
        assert {path.relative_to(folder) for path in folder.rglob("*.py")} == expected


def test_says_that_torch_is_too_old(empty_environment, tmp_path):
    (tmp_path / "torch.py").write_text('__version__ = "2.9.1+cpu"\n')
    line = import_error(empty_environment, tmp_path, PYTHONPATH=str(tmp_path))
    assert line == "ImportError: seqkernels needs PyTorch 2.10 or newer, and found 2.9.1+cpu."


def test_an_error_inside_torch_is_not_mistaken_for_its_absence(tmp_path):
    (tmp_path / "torch.py").write_text("import no_such_module\n")
    line = import_error(pathlib.Path(sys.executable), tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert line == "ModuleNotFoundError: No module named 'no_such_module'"
