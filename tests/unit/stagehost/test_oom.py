"""Out of memory as PyTorch, CuPy and ONNX Runtime tell it: recognised, read, and laid at the right door."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import DiskFull, ForeignMemory, StageFailed, StageOutOfMemory
from dgpunet_dask.stagehost.oom import MIB, Shortage, cause_of, oom_in, parse_shortage
from dgpunet_dask.stagehost.reports import error_from_json, error_to_json, failure_of
from dgpunet_dask.stagehost.spec import StageCallSpec

GIB = 1 << 30
CARD = StageCallSpec(stage="embed", run="stages:Embed", digest="ab", device="4090l", torch_device="cuda:0", vram_mib=4096)

TORCH_0_4 = "CUDA error: out of memory"
TORCH_1_0 = (
    "CUDA out of memory. Tried to allocate 12.50 MiB (GPU 0; 10.92 GiB total capacity; 8.57 MiB already allocated; 9.28 GiB free; "
    "4.68 MiB cached)"
)
TORCH_1_10 = (
    "CUDA out of memory. Tried to allocate 74.00 MiB (GPU 0; 11.91 GiB total capacity; 10.79 GiB already allocated; 12.94 MiB free; "
    "11.21 GiB reserved in total by PyTorch) If reserved memory is >> allocated memory try setting max_split_size_mb to avoid fragmentation."
)
TORCH_2_1 = (
    "CUDA out of memory. Tried to allocate 1.70 GiB. GPU 0 has a total capacty of 6.00 GiB of which 0 bytes is free. Of the allocated "
    "memory 2.93 GiB is allocated by PyTorch, and 2.30 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large"
)
TORCH_2_5_CAPPED = (
    "CUDA out of memory. Tried to allocate 996.00 MiB. GPU 0 has a total capacity of 44.43 GiB of which 9.06 GiB is free. Process 2102129 "
    "has 17.54 GiB memory in use. Including non-PyTorch memory, this process has 17.81 GiB memory in use. 17.69 GiB allowed; Of the "
    "allocated memory 17.44 GiB is allocated by PyTorch, and 59.88 MiB is reserved by PyTorch but unallocated."
)
TORCH_2_6_UNDERFLOW = (
    "CUDA out of memory. Tried to allocate 3.98 GiB. GPU 0 has a total capacity of 31.84 GiB of which 16.30 GiB is free. Including "
    "non-PyTorch memory, this process has 17179869184.00 GiB memory in use. 17.51 GiB allowed; Of the allocated memory 6.74 GiB is "
    "allocated by PyTorch, and 7.02 GiB is reserved by PyTorch but unallocated."
)
TORCH_2_4_FILLED = (
    "CUDA out of memory. Tried to allocate 32.00 MiB. GPU 0 has a total capacity of 23.65 GiB of which 11.06 MiB is free. Process 811 has "
    "20.10 GiB memory in use. Including non-PyTorch memory, this process has 3.40 GiB memory in use. Of the allocated memory 2.58 GiB is "
    "allocated by PyTorch, and 1.90 MiB is reserved by PyTorch but unallocated."
)
TORCH_2_4_FILLED_CAPPED = (
    "CUDA out of memory. Tried to allocate 32.00 MiB. GPU 0 has a total capacity of 191.69 GiB of which 0 bytes is free. 50.00 GiB "
    "allowed; Of the allocated memory 9.58 GiB is allocated by PyTorch, and 10.00 MiB is reserved by PyTorch but unallocated."
)
HIP = (
    "HIP out of memory. Tried to allocate 76.00 MiB. GPU 0 has a total capacity of 255.69 GiB of which 252.82 GiB is free. 1.20 GiB "
    "allowed; Of the allocated memory 1.14 GiB is allocated by PyTorch, and 18.63 MiB is reserved by PyTorch but unallocated."
)
CUPY = "Out of memory allocating 805,306,368 bytes (allocated so far: 536,870,912 bytes, limit set to: 1,073,741,824 bytes)."
CUPY_5 = "out of memory to allocate 1073741824 bytes (total 12373894656 bytes)"
ONNX = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Status Message: "
    "bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 939524096"
)
DRIVER = "failed to allocate 17.79G (19104890880 bytes) from device: CUDA_ERROR_OUT_OF_MEMORY: out of memory"
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"

#: Text, the charge in MiB, whose fault, and the peak in MiB (None: not told).
TABLE = [
    pytest.param(TORCH_0_4, 4096, "own", None, id="torch 0.4 tells nothing"),
    pytest.param(TORCH_1_0, 4096, "own", 26, id="torch 1.0, refused although there was room"),
    pytest.param(TORCH_1_10, 11700, "foreign", 11554, id="torch 1.10, within its charge"),
    pytest.param(TORCH_1_10, 11500, "own", 11554, id="torch 1.10, beyond its charge"),
    pytest.param(TORCH_2_1, 6000, "own", 7097, id="torch 2.1, beyond its charge"),
    pytest.param(TORCH_2_1, 8000, "foreign", 7097, id="torch 2.1, within its charge"),
    pytest.param(TORCH_2_5_CAPPED, 18700, "own", 19234, id="torch 2.5, at its cap"),
    pytest.param(TORCH_2_6_UNDERFLOW, 18500, "own", 18166, id="torch 2.6, at its cap, a senseless use"),
    pytest.param(TORCH_2_4_FILLED, 4096, "foreign", 3514, id="torch 2.4, the card is filled by another"),
    pytest.param(TORCH_2_4_FILLED, 3072, "own", 3514, id="torch 2.4, filled, but it wanted more than its charge"),
    pytest.param(TORCH_2_4_FILLED_CAPPED, 51200, "foreign", 9852, id="torch 2.4, filled, far below its cap"),
    pytest.param(HIP, 1800, "own", 1262, id="HIP, at its cap"),
    pytest.param(CUPY, 2048, "own", 1280, id="CuPy, at its limit"),
    pytest.param(CUPY_5, 12000, "own", 12825, id="CuPy 5"),
    pytest.param(ONNX, 4096, "own", None, id="ONNX Runtime"),
    pytest.param(DRIVER, 4096, "own", None, id="driver"),
    pytest.param(CUBLAS, 4096, "own", None, id="cuBLAS"),
]


@pytest.mark.parametrize(("text", "charge_mib", "cause", "peak_mib"), TABLE)
def test_an_error_s_text_says_whose_fault_it_was(text: str, charge_mib: int, cause: str, peak_mib: int | None) -> None:
    found = parse_shortage(text)
    assert cause_of(found, charge_mib) == cause
    assert (None if found.need is None else -(-found.need // MIB)) == peak_mib


def test_what_the_text_lacks_is_filled_in_from_the_card() -> None:
    measured = Shortage(total=24 * GIB, free=GIB // 4, reserved=GIB, in_use=GIB + 600 * MIB)
    found = parse_shortage("CUDA error: out of memory").filled(measured)
    assert found == measured
    assert cause_of(found, 4096) == "foreign"
    assert cause_of(found, 1500) == "own"
    assert parse_shortage(TORCH_2_4_FILLED).filled(measured).reserved != measured.reserved


def test_every_number_is_read() -> None:
    assert parse_shortage(TORCH_2_5_CAPPED) == Shortage(
        tried=996 * MIB,
        total=round(44.43 * GIB),
        free=round(9.06 * GIB),
        reserved=round(17.44 * GIB) + round(59.88 * MIB),
        in_use=round(17.81 * GIB),
        allowed=round(17.69 * GIB),
    )


sizes = st.none() | st.integers(0, 64 * GIB)


@given(tried=sizes, total=sizes, free=sizes, reserved=sizes, in_use=sizes, allowed=sizes, charge=st.none() | st.integers(1, 65536))
def test_others_are_blamed_only_where_too_little_was_free_within_the_charge(
    tried: int | None, total: int | None, free: int | None, reserved: int | None, in_use: int | None, allowed: int | None, charge: int | None
) -> None:
    found = Shortage(tried, total, free, reserved, in_use, allowed)
    if cause_of(found, charge) == "foreign":
        assert free is not None
        assert tried is None or free < tried
        assert charge is None or (found.need is not None and found.need <= charge * MIB)


def wrapped(cause: BaseException) -> BaseException:
    try:
        raise ValueError("the model failed") from cause
    except ValueError as error:
        return error


class OutOfMemoryError(RuntimeError):
    """As a library makes it."""


OutOfMemoryError.__module__ = "cupy.cuda.memory"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(TORCH_1_0),
        RuntimeError(DRIVER),
        RuntimeError(ONNX),
        OutOfMemoryError(CUPY_5),
        wrapped(RuntimeError(TORCH_2_1)),
        ExceptionGroup("two", [ValueError("x"), RuntimeError(CUBLAS)]),
    ],
    ids=repr,
)
def test_out_of_memory_is_recognised(error: BaseException) -> None:
    assert oom_in(error) is not None
    assert isinstance(failure_of(error, "embed", CARD), StageOutOfMemory)
    assert isinstance(failure_of(error, "embed"), StageFailed), "without a card it is a failure like any other"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of patience"), DiskFull(path="CUDA out of memory"), KeyError("CUDA")], ids=repr)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert oom_in(error) is None


def test_what_was_handled_on_the_way_is_not_the_cause() -> None:
    mistake = KeyError("a mistake in the handler")
    mistake.__context__ = RuntimeError(TORCH_1_0)
    assert oom_in(mistake) is None


def test_torch_s_own_class_is_recognised() -> None:
    torch = pytest.importorskip("torch")
    assert oom_in(torch.OutOfMemoryError("whatever it says")) is not None


def test_the_error_names_the_peak_the_charge_and_the_cure_and_crosses_a_border() -> None:
    error = failure_of(RuntimeError(TORCH_2_1), "embed", CARD)
    assert isinstance(error, StageOutOfMemory)
    assert (error.fields["peak_mib"], error.fields["charge_mib"]) == (7097, 4096)
    assert "7097MiB where 4GiB" in error.message
    assert "4090l" in error.message
    assert "`vram`" in error.message
    again = error_from_json(error_to_json(error))
    assert (type(again), again.message, again.exit_code) == (StageOutOfMemory, error.message, 100)


def test_the_error_of_a_filled_card_names_what_was_free() -> None:
    error = failure_of(RuntimeError(TORCH_2_4_FILLED), "embed", CARD)
    assert isinstance(error, ForeignMemory)
    assert "12MiB were free" in error.message
    assert "promised 4GiB" in error.message


def test_a_peak_that_nothing_tells_is_at_least_the_charge() -> None:
    error = failure_of(RuntimeError(TORCH_0_4), "embed", CARD)
    assert error.fields["peak_mib"] is None
    assert "at least 4GiB" in error.message
