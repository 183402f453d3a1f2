"""Which packages are built; everything else is in setup.cfg.

The folder ``benchmarks`` becomes the package ``eventtrain.benchmarks``: setup.cfg
can say where a package lies, but ``packages = find:`` finds it under its own
name only, and a list of all packages would have to be kept by hand.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["eventtrain", "eventtrain.*"]),
        *(f"eventtrain.{name}" for name in find_packages(include=["benchmarks", "benchmarks.*"])),
    ],
)
