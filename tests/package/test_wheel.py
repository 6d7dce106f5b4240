"""What is built, what is in it, and that it works where nothing else of ours is."""

import json
import re
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from helpers.fresh import PROJECT, ROOT, FreshEnvironment, build, copy_tree
from sgl_sparsekv.kernels.cpu.levels import GLIBC, machine_levels

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {PROJECT: ROOT / PROJECT, f"{PROJECT}.kernels": ROOT / "kernels"}
"""Where modules lie; the second is mapped below the first."""


def files_of(wheel: Path) -> set[str]:
    """Paths in a wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture
def metadata(fresh: FreshEnvironment) -> Message:
    """Of the wheel."""
    archive = zipfile.ZipFile(fresh.wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    return Parser().parsestr(archive.read(name).decode())


def test_every_folder_of_modules_is_a_package() -> None:
    """One that is forgotten in pyproject.toml works in a checkout and is missing in a wheel."""
    there = {PROJECT}
    for name, folder in FOLDERS.items():
        found = (path.parent.relative_to(folder).parts for path in folder.rglob("*.py"))
        there |= {".".join((name, *parts)) for parts in found if parts}
    assert there == set(SETTINGS["tool"]["setuptools"]["packages"])


def test_every_file_of_the_packages_is_in_the_wheel(fresh: FreshEnvironment) -> None:
    """Modules, templates, weights, C++ sources, `py.typed`."""
    wanted = {
        "/".join((*name.split("."), *path.relative_to(folder).parts))
        for name, folder in FOLDERS.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }
    assert len(wanted) > 150 and wanted <= files_of(fresh.wheel)


def test_the_wheel_has_the_kernels_of_every_cpu_of_its_machine_type(
    fresh: FreshEnvironment,
) -> None:
    """One library for each instruction set; its tag names machine and C library, no Python."""
    libraries = [name for name in files_of(fresh.wheel) if name.endswith(".so")]
    built = sorted(re.findall(r"kernels/cpu/kernels-(\w+)-", " ".join(libraries)))
    assert built == sorted(level.name for level in machine_levels()) and len(built) > 0
    assert f"-py3-none-manylinux_{GLIBC.replace('.', '_')}_" in fresh.wheel.name


def test_the_page_of_the_package_stands_alone(metadata: Message) -> None:
    """Licence, links, classifiers; nothing on it leads to a file that only the repository has."""
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    assert metadata["Author"] and metadata["Keywords"] and metadata.get_all("Classifier")
    assert all(", https://" in link for link in metadata.get_all("Project-URL", []))
    page = str(metadata.get_payload())
    assert page.lstrip().startswith("# sgl_sparsekv") and "--attention-backend sparsekv" in page
    targets = re.findall(r"\]\(([^)]*)\)", page)
    assert targets and all(target.startswith("https://") for target in targets)


def test_the_installed_package_is_the_wheels_and_the_doctor_finds_it_well(
    fresh: FreshEnvironment,
) -> None:
    """Not the checkout's: an environment that has never seen it."""
    where = fresh.run("python", "-c", f"import {PROJECT} as p; print(p.__file__)").stdout.strip()
    assert Path(where).is_relative_to(fresh.packages)
    done = fresh.run("sparsekv", "doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["healthy"], report
    named = {finding["name"]: finding["status"] for finding in report["findings"]}
    assert {named[name] for name in ("sglang", "device cpu", "device reference", "hooks")} == {"ok"}


@pytest.mark.soak
def test_a_wheel_from_the_sdist_has_the_same_files(fresh: FreshEnvironment, tmp_path: Path) -> None:
    """Built anew, kernels compiled: what an index serves as source lacks nothing."""
    tree = copy_tree(tmp_path / "tree")
    for library in (tree / "kernels" / "cpu").glob("*.so"):
        library.unlink()
    wheel, sdist = sorted(build(tree, tmp_path / "dist"), key=lambda path: path.suffix)[::-1]
    assert files_of(wheel) == files_of(fresh.wheel)
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "setup.py",
        "docs/options.md",
        "tests/run.py",
        "bench/report/__main__.py",
    } <= held
    assert not [name for name in held if name.endswith(".so")]
