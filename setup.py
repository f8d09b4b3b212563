"""Packaging of rambo_det. Settings of the tools are in pyproject.toml, tested pins in
requirements.txt."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
# Run alone: the package itself would import torch.
VERSION = runpy.run_path(str(HERE / "rambo_det" / "version.py"))["__version__"]

setup(
    name="rambo_det",
    version=VERSION,
    description="Train Detectron2 detectors directly for average precision (RaMBO)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The wheel carries configs/ as rambo_det/configs, the way Detectron2 ships its projects.
    packages=[*find_packages(include=["rambo_det", "rambo_det.*"]), "rambo_det.configs"],
    package_dir={"rambo_det.configs": "configs"},
    package_data={
        "rambo_det": ["py.typed", "losses/binning/binning.cpp", "compare/*.jinja"],
        "rambo_det.configs": ["**/*.yaml", "**/*.py"],
    },
    # Detectron2 is needed for training but is on no package index: see docs/getting-started.md.
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "fvcore",
        "pycocotools",
        "opencv-python",
        # What the tools take beside; all of them come with Detectron2 or torch too.
        "jinja2",
        "matplotlib",
        "scipy",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "mkdocs",
            "nbclient",
            "ipykernel",
        ]
    },
    entry_points={
        "console_scripts": [
            "rambo-train = rambo_det.cli.train:main",
            "rambo-compare = rambo_det.cli.compare:main",
            "rambo-predict = rambo_det.cli.predict:main",
            "rambo-calibrate = rambo_det.cli.calibrate:main",
        ]
    },
    zip_safe=False,
)
