"""What pyproject.toml cannot say: a wheel holds compiled kernels, and its page stands alone.

The kernels are C libraries that no Python ABI touches, one for each instruction set that the loader
chooses from, so one wheel serves every Python and every CPU of its machine type.
"""

import re
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))  # a build backend runs elsewhere

import sgl_sparsekv.kernels  # noqa: E402

sgl_sparsekv.kernels.__path__.append(str(ROOT / "kernels"))  # as `package-dir` will map it

from sgl_sparsekv.kernels.cpu.build import build_level  # noqa: E402
from sgl_sparsekv.kernels.cpu.levels import GLIBC, machine_levels  # noqa: E402

KERNELS = Path("sgl_sparsekv", "kernels", "cpu")
_PICTURE = re.compile(r"!\[[^\]]*\]\((?!https:)[^)]*\)\n+(?:\*[^*]+\*[ \n]*)?")
_LINK = re.compile(r"\[([^\]]+)\]\((?!https:)[^)]*\)")


class BuildWithKernels(build_py):
    """Modules, data, and the kernels of this machine type; an editable install builds its own."""

    def run(self) -> None:
        """Copy, then compile what the tree did not bring."""
        super().run()
        if not self.editable_mode:
            for level in machine_levels():
                build_level(level, Path(self.build_lib) / KERNELS)


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 of one machine type."""

    def get_tag(self) -> tuple[str, str, str]:
        """The oldest C library that the kernels were linked for, where there are kernels."""
        python, abi, platform = super().get_tag()
        if machine_levels():
            machine = platform.removeprefix("linux_")
            return "py3", "none", f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
        return python, abi, platform


class WithKernels(Distribution):
    """Tells setuptools that the package is not the same on every machine."""

    def has_ext_modules(self) -> bool:
        """True where kernels are built."""
        return bool(machine_levels())


def package_page(readme: str) -> str:
    """README without what leads nowhere outside the repository: its pictures and its own links."""
    return _LINK.sub(r"\1", _PICTURE.sub("", readme))


setup(
    distclass=WithKernels,
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
    long_description=package_page((ROOT / "README.md").read_text()),
    long_description_content_type="text/markdown",
)
