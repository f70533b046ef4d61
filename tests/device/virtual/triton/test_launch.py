"""A launch runs on the memory of the device, in the order of its stream, and reaches nothing else."""

from __future__ import annotations

import gc

import pytest
import torch

from npudiff.device.virtual import faults

pytestmark = [
    pytest.mark.triton,
    # torch_npu's empty_like says so, on hardware too
    pytest.mark.filterwarnings("ignore:Cannot create tensor with internal format:UserWarning"),
]


def captured(launch):
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        launch()
    return graph


def test_a_graph_runs_kernels_at_its_replay_and_with_the_numbers_of_its_capture(kernels):
    x, out = torch.arange(48.0, device="npu"), torch.full((48,), -1.0, device="npu")
    count = [30]

    def launch():
        x.mul_(2)
        kernels.add[(2,)](x, x, out, count[0], BLOCK=24)
        out.neg_()

    graph = captured(launch)
    assert (out == -1).all()
    count[0] = 48
    for times in (4, 8):
        out.fill_(1)
        graph.replay()
        assert torch.equal(out[:30].cpu(), -torch.arange(30.0) * times)
        assert (out[30:] == -1).all()


def test_a_launch_waits_for_the_event_that_its_stream_waits_for(kernels):
    x, out = torch.zeros(24, device="npu"), torch.zeros(24, device="npu")
    event, waiting = torch.npu.ExternalEvent(), torch.npu.Stream()
    with torch.npu.stream(waiting):
        event.wait(waiting)
        kernels.add[(1,)](x, x, out, 24, BLOCK=24)
    x.fill_(3)
    assert not out.any()
    event.record(torch.npu.current_stream())
    waiting.synchronize()
    assert (out == 6).all()


def test_memory_that_has_been_freed_since_the_capture_is_an_error(kernels):
    large = [torch.ones(1 << 22, device="npu")]
    out = torch.zeros(24, device="npu")
    graph = captured(lambda: kernels.add[(1,)](large[0], large[0], out, 24, BLOCK=24))
    graph.replay()
    assert (out == 2).all()
    large.clear()
    gc.collect()
    torch.npu.empty_cache()
    with pytest.raises(RuntimeError, match=r"triton::add: RuntimeError: memory that was there at the capture has been"):
        graph.replay()


def test_a_tensor_of_the_host_is_refused(kernels):
    x = torch.ones(24, device="npu")
    with pytest.raises(ValueError, match="triton::add: y is a tensor of cpu, which the device cannot read"):
        kernels.add[(1,)](x, x.cpu(), x, 24, BLOCK=24)


def test_addresses_in_a_tensor_are_followed(kernels):
    rows = [torch.full((8,), float(number), device="npu") for number in range(3)]
    addresses = torch.tensor([row.data_ptr() for row in rows], device="npu")
    out = torch.zeros(24, device="npu")
    kernels.through_addresses[(3,)](addresses, out, 8, BLOCK=16)
    assert torch.equal(out.cpu(), torch.arange(3.0).repeat_interleave(8))


@pytest.mark.parametrize("address", [0, 1 << 20])
def test_an_address_that_is_not_the_devices_is_an_error(kernels, address):
    from triton.runtime.errors import InterpreterError

    addresses, out = torch.tensor([address], device="npu"), torch.zeros(8, device="npu")
    with pytest.raises(InterpreterError, match=rf"DeviceFault: load: 4 bytes at {address:#x} are not in the device's"):
        kernels.through_addresses[(1,)](addresses, out, 8, BLOCK=8)


def test_a_store_beyond_the_devices_memory_is_an_error(kernels):
    from triton.runtime.errors import InterpreterError

    x = torch.ones(24, device="npu")
    beyond = (torch.npu.memory_reserved() // 4) + 1
    place = torch.tensor([beyond], dtype=torch.int32, device="npu")
    with pytest.raises(InterpreterError, match="DeviceFault: atomic: 4 bytes at "):
        kernels.atomically[(1,)](x, place, x, 1, OPERATION="add", BLOCK=1)


def test_a_mask_that_a_number_decides(kernels):
    x, out = torch.ones(8, device="npu"), torch.zeros(8, device="npu")
    kernels.masked_by_a_number[(1,)](x, out, 1, 6, BLOCK=8)
    assert out.tolist() == [1] * 6 + [5] * 2
    kernels.masked_by_a_number[(1,)](x, out, 7, 6, BLOCK=8)
    assert out.tolist() == [5] * 8


def test_a_kernel_reads_tiles_as_they_lie(kernels):
    torch.npu.config.allow_internal_format = True
    try:
        matrix = torch.arange(32 * 32.0).view(32, 32).half()
        tiles = torch.ops.npu.npu_format_cast(matrix.npu(), 29)
    finally:
        torch.npu.config.allow_internal_format = False
    out = torch.zeros(32 * 32, dtype=torch.half, device="npu")
    kernels.converted[(1,)](tiles, out, MODE="default", BLOCK=1024)
    assert torch.equal(out.cpu().view(2, 2, 16, 16), matrix.view(2, 16, 2, 16).permute(2, 0, 1, 3))


def test_an_exception_in_a_kernel_is_one_and_the_next_launch_runs(kernels):
    from triton.runtime.errors import InterpreterError

    x = torch.zeros(24, device="npu")
    with pytest.raises(InterpreterError, match="AssertionError: too small"):
        kernels.failing[(1,)](x, SIZE=3)
    kernels.add[(1,)](x, x, x, 24, BLOCK=24)
    assert x.tolist() == [2] + [0] * 23


def test_faults_strike_kernels_by_their_names(kernels):
    x = torch.zeros(24, device="npu")
    with faults.injected("triton::add:507015@2"):
        kernels.add[(1,)](x, x, x, 24, BLOCK=24)
        with pytest.raises(RuntimeError, match="507015"):
            kernels.add[(1,)](x, x, x, 24, BLOCK=24)


def test_programs_find_one_driver_which_knows_the_cores(kernels):
    import triton
    from triton.backends import backends

    active = [one.driver for one in backends.values() if one.driver.is_active()]
    assert [type(triton.runtime.driver.active)] == active
    driver, known = triton.runtime.driver.active, torch.npu.get_device_properties(0)
    assert driver.utils.get_device_properties(torch.npu.current_device()) == {
        "num_aicore": known.cube_core_num,
        "num_vectorcore": known.vector_core_num,
    }
    assert (driver.get_current_device(), driver.get_active_torch_device()) == (0, torch.device("npu:0"))
    assert driver.get_current_stream(0) == torch.npu.current_stream().npu_stream
    assert (driver.get_current_target().backend, driver.get_current_target().arch) == ("npu", "Ascend910B3")
    assert driver.get_device_interface() is torch.npu


def test_what_an_npus_triton_has_beside_tritons_own_is_asked_for_by_name(kernels):
    assert all(callable(getattr(kernels.cann, name)) for name in ("extract_slice", "insert_slice", "get_element"))
    assert not hasattr(kernels.cann, "sync_block_all")
    with pytest.raises(AttributeError, match=r"'triton\.language\.extra\.cann\.extension' has no attribute 'sync_bl"):
        _ = kernels.cann.sync_block_all
