"""Make prepare.ptx from prepare.cu: pip install nvidia-cuda-nvrtc-cu11==11.8.89 && python -m clipsight.engines.compiled.nvrtc

PTX is what the driver compiles for its own GPU, so nobody needs nvcc to run clipsight. It is made by CUDA 11.8, whose PTX
every driver from 520 on reads (a newer compiler's PTX needs a newer driver), for compute capability 6.0 and later.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

from ..errors import BackendError, BackendMissing
from .kernels import PTX

SOURCE = PTX.with_suffix(".cu")
# No product is fused with its sum: level * gain + shift is then `prepare`'s to the last bit.
_OPTIONS = (b"--gpu-architecture=compute_60", b"--fmad=false", b"--device-as-default-execution-space")


def compile_ptx(source: Path = SOURCE) -> bytes:
    """The PTX of a CUDA file; raises `BackendMissing` without NVRTC, `BackendError` with the compiler's words."""
    lib = ctypes.CDLL(str(_library()))
    program = ctypes.c_void_p()
    made = lib.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    if made:
        raise BackendError(f"{source}: NVRTC does not start (error {made}); install it anew")
    try:
        options = (ctypes.c_char_p * len(_OPTIONS))(*_OPTIONS)
        failed = lib.nvrtcCompileProgram(program, len(_OPTIONS), options)
        size = ctypes.c_size_t()
        if failed:
            lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            said = ctypes.create_string_buffer(size.value)
            lib.nvrtcGetProgramLog(program, said)
            raise BackendError(f"{source}: does not compile ({' '.join(said.value.decode().split())}); mend it")
        lib.nvrtcGetPTXSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        lib.nvrtcGetPTX(program, text)
        return text.value
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _library() -> Path:
    try:
        found = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        found = None
    places = [] if found is None else list(found.submodule_search_locations or [])
    for place in places:
        for path in sorted(Path(place, "lib").glob("libnvrtc.so.11*")):
            return path
    raise BackendMissing("NVRTC of CUDA 11.8 is not installed; run: pip install nvidia-cuda-nvrtc-cu11==11.8.89")


if __name__ == "__main__":
    PTX.write_bytes(compile_ptx())
    print(f"{PTX}: written")
