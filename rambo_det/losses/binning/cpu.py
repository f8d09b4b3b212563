"""bin_negatives on a CPU, in C++; ``binning.cpp`` is compiled when it is first needed.

Without a C++ compiler, or with RAMBO_DET_NATIVE=0, the slower :mod:`.reference` is used.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ...paths import cache_dir

_SOURCE = Path(__file__).with_name("binning.cpp")
# No fused multiply-add: it would round differently from the other backends.
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off")
_COMPILERS = ("c++", "g++", "clang++")
_P, _L, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


def bin_negatives(
    scores: Tensor,
    gt_classes: Tensor,
    edges: Tensor,
    values: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    max_score: float = float("inf"),
) -> tuple[Tensor, Tensor | None]:
    """See :func:`.binning.bin_negatives`."""
    native = library()
    assert native is not None
    scores, counts = scores.float().contiguous(), torch.zeros_like(edges)
    is_double = dtype == torch.float64
    grad = None if values is None else torch.empty_like(scores, dtype=dtype if is_double else None)
    if scores.shape[1]:
        native.rambo_bin_negatives(
            scores.data_ptr(), *scores.shape, gt_classes.data_ptr(), max_score, edges.data_ptr(),
            edges.shape[0], None if values is None else values.data_ptr(), is_double,
            None if grad is None else grad.data_ptr(), torch.get_num_threads(), counts.data_ptr(),
        )  # fmt: skip
    return counts, None if grad is None else grad.to(dtype)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Returns the compiled library; None, with one line in the log, if it cannot be loaded."""
    if os.environ.get("RAMBO_DET_NATIVE") == "0":
        return None
    try:
        native = ctypes.CDLL(str(_compiled_library()))
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).warning(
            "The loss is several times slower on a CPU than it could be: its C++ library cannot be "
            "compiled or loaded (%s). Install a C++ compiler (the variable CXX can name it). "
            "RAMBO_DET_NATIVE=0 silences this warning.",
            " ".join(str(error).split()),
        )
        return None
    native.rambo_bin_negatives.argtypes = [
        _P, _L, _L, _P, ctypes.c_float, _P, _L, _P, _I, _P, _I, _P
    ]  # fmt: skip
    native.rambo_bin_negatives.restype = None
    return native


def _compiled_library() -> Path:
    """Returns the path of the library; compiles the library if it does not exist yet.

    The file appears in the cache folder once it is complete; its name has a hash of all its inputs.
    Raises OSError if no compiler exists, compiling fails, or the folder cannot be written.
    """
    command = shlex.split(os.environ.get("CXX", ""))
    names = command[:1] or _COMPILERS
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise OSError(f"no C++ compiler: {', '.join(names)} not found")
    compiler = [path, *command[1:]]
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    # The hash includes the processor and the system: machines may share the folder.
    target = (compiler, _FLAGS, platform.platform(), _cpu())
    parts = [_SOURCE.read_bytes(), version, repr(target).encode()]
    folder = cache_dir()
    library = folder / f"binning-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _compile(compiler, Path(scratch) / library.name)
            os.replace(Path(scratch) / library.name, library)
    return library


def _cpu() -> str:
    """Returns a text that differs between processors with different instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: list[str], library: Path) -> None:
    command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(library)]
    # Some compilers lack OpenMP (the library then uses one thread) or -march=native.
    for flags in (["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], []):
        done = subprocess.run([*command, *flags], capture_output=True, text=True)
        if done.returncode == 0:
            return
    stderr = done.stderr.strip()[-300:]
    raise OSError(f"{compiler[0]} failed with exit status {done.returncode}: {stderr}")
