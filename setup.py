"""Puts the configurations into the wheel, as the package data of `plasticity.configs`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# These train or judge the study in experiments/, which no wheel has.
_OF_EXPERIMENTS = ("experiment/reproduce", "experiment/tune")


class BuildWithConfigs(build_py):
    """Copies configs/ beside the modules that are built."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        source, target = Path("configs"), Path(self.build_lib, "plasticity", "configs")
        for path in source.rglob("*.yaml"):
            relative = path.relative_to(source)
            if not relative.as_posix().startswith(_OF_EXPERIMENTS):
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / relative)


setup(cmdclass={"build_py": BuildWithConfigs})
