"""What setup.cfg cannot say: a wheel holds the folder ``benchmarks`` as ``eventtrain.benchmarks``.

A ``package_dir`` for it would count for editable installs too, which could then
not be one path in a ``.pth`` file.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithBenchmarks(build_py):
    """Finds the benchmarks where they lie, and builds them inside the package."""

    def finalize_options(self) -> None:
        super().finalize_options()
        found = find_packages(include=["benchmarks", "benchmarks.*"])
        self.packages = [*self.packages, *(f"eventtrain.{name}" for name in found)]
        self.package_dir = {**self.package_dir, "eventtrain.benchmarks": "benchmarks"}


setup(cmdclass={"build_py": BuildWithBenchmarks})
