"""Compiles ``binning.cpp`` into the cache folder, under the hash of all that it is made from."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from ...cache import cache_folder

_SOURCE = Path(__file__).with_name("binning.cpp")
# No contraction: it would round otherwise than float64 arithmetic elsewhere does.
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off")
_COMPILERS = ("c++", "g++", "clang++")


def compiled_library() -> Path:
    """The library, compiled if it is not there yet; it appears only when it is whole.

    Raises:
        OSError: there is no compiler, or it fails, or the cache folder cannot be written.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    found = [path for path in map(shutil.which, named[:1] or _COMPILERS) if path]
    if not found:
        raise OSError(f"no C++ compiler: {', '.join(named[:1] or _COMPILERS)} not found")
    compiler = [found[0], *named[1:]]
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    # Also of the processor and the system: the folder may be shared by machines.
    made_for = (compiler, _FLAGS, platform.platform(), _cpu())
    parts = [_SOURCE.read_bytes(), version, repr(made_for).encode()]
    folder = cache_folder()
    library = folder / f"binning-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _compile(compiler, Path(scratch) / library.name)
            os.replace(Path(scratch) / library.name, library)
    return library


def _cpu() -> str:
    """What tells apart processors with different instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: list[str], library: Path) -> None:
    command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(library)]
    # Not every compiler has OpenMP, without which there is one thread, or knows its own processor.
    for more in (["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], []):
        made = subprocess.run([*command, *more], capture_output=True, text=True)
        if made.returncode == 0:
            return
    raise OSError(f"{compiler[0]} ended with {made.returncode}: {made.stderr.strip()[-300:]}")
