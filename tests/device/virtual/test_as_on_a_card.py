"""What torch_npu refuses or replaces on a card, and would not on a CPU, is refused and replaced here."""

from __future__ import annotations

import warnings

import pytest
import torch

pytestmark = pytest.mark.virtual


def test_float64_of_a_device_tensor_is_float32():
    tensor = torch.full((3,), 1 + 2**-20, device="npu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for made in (tensor.double(), tensor.to(torch.float64), tensor.type(torch.float64)):
            assert made.dtype == torch.float32
    ones = torch.ones(3, dtype=torch.float64)
    for made in (ones.npu(), torch.zeros(3, dtype=torch.float64, device="npu"), tensor.to("npu", torch.float64)):
        assert made.dtype == torch.float64
    assert tensor.to("cpu", torch.float64).dtype == torch.float64
    assert ones.npu().to(torch.float64).dtype == torch.float64


def test_channels_last_is_refused():
    images = torch.arange(24.0).view(1, 2, 3, 4)
    on_device = images.npu()
    with pytest.raises(RuntimeError, match="NPU contiguous operator only supported contiguous memory format"):
        on_device.contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="Only contiguous_format or preserve_format is supported"):
        on_device.to(memory_format=torch.channels_last)
    turned = on_device.permute(0, 2, 3, 1)
    assert turned.contiguous().is_contiguous()
    assert torch.equal(turned.contiguous().cpu(), images.permute(0, 2, 3, 1))
    last = images.contiguous(memory_format=torch.channels_last).shape
    already = torch.empty_strided(last, (24, 1, 8, 2), device="npu")
    assert already.contiguous(memory_format=torch.channels_last) is already


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_the_cpu_has_not_in_16_bits_is_rounded_once(dtype):
    matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=dtype)
    with pytest.raises(NotImplementedError, match="not implemented for"):
        torch.linalg.det(matrix)
    found = torch.linalg.det(matrix.npu())
    assert (found.dtype, found.item()) == (dtype, 11)
    lower, wanted = torch.linalg.cholesky(matrix.npu()), torch.linalg.cholesky(matrix.float()).to(dtype)
    assert torch.equal(lower.cpu(), wanted)
    out = torch.empty(0, dtype=dtype, device="npu")
    torch.linalg.cholesky(matrix.npu(), out=out)
    assert torch.equal(out.cpu(), wanted)


@pytest.mark.parametrize(("first", "second"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_matrices_of_two_dtypes_are_promoted_and_the_result_is_as_the_first(first, second):
    one, other = torch.linspace(-2, 3, 24).view(1, 4, 6).to(first), torch.linspace(-1, 1, 30).view(1, 6, 5).to(second)
    exact = one.double() @ other.double()
    assert torch.equal((one.npu() @ other.npu()).cpu(), (one.float() @ other.float()).to(first))
    assert torch.equal((one[0].npu() @ other[0].npu()).cpu(), (one[0].float() @ other[0].float()).to(first))
    bias = torch.ones(5, dtype=first)
    for added in (
        torch.addmm(bias.npu(), one[0].npu(), other[0].npu()),
        torch.baddbmm(bias.npu(), one.npu(), other.npu()),
    ):
        assert added.dtype == first
        assert torch.allclose(added.cpu().double().view(4, 5), exact[0] + 1, atol=2**-5)
    with pytest.raises(RuntimeError):
        one @ other


def test_a_storage_that_was_resized_keeps_what_it_held():
    tensor = torch.arange(4.0, device="npu")
    tensor.untyped_storage().resize_(32)
    longer = torch.empty(0, device="npu").set_(tensor.untyped_storage(), 0, (8,))
    assert longer[:4].cpu().tolist() == [0, 1, 2, 3]
    longer[4:] = 7
    assert longer.cpu().tolist() == [0, 1, 2, 3, 7, 7, 7, 7]
    tensor.untyped_storage().resize_(8)
    shorter = torch.empty(0, device="npu").set_(tensor.untyped_storage(), 0, (2,))
    assert shorter.cpu().tolist() == [0, 1]
    tensor.untyped_storage().resize_(0)
    assert tensor.untyped_storage().nbytes() == 0


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
def test_tensors_that_torch_quantises_are_refused():
    with pytest.raises(RuntimeError, match="a tensor that torch has quantised: the virtual NPU has none"):
        torch.quantize_per_tensor(torch.ones(3, device="npu"), 0.1, 0, torch.qint8)
    host = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    with pytest.raises(RuntimeError, match="aten::empty_quantized"):
        host.npu()


def test_a_timeout_of_operators_is_taken():
    torch.npu.set_op_timeout_ms(1000)
    with pytest.raises(OverflowError, match="negative value"):
        torch.npu.set_op_timeout_ms(-1)


def test_limits_of_cores_are_kept():
    npu = torch.npu
    npu.set_device(0)
    stream = npu.Stream()
    with pytest.raises(RuntimeError):
        npu.set_stream_limit(stream, 1000, 20)
    npu.set_device_limit(0, 12, 20)  # once in a process
    assert npu.get_device_limit(0) == {"cube_core_num": 12, "vector_core_num": 20}
    assert npu.get_stream_limit(stream) == npu.get_device_limit(0)
    npu.set_stream_limit(stream, 4, 8)
    assert npu.get_stream_limit(stream) == {"cube_core_num": 4, "vector_core_num": 8}
    assert npu.get_stream_limit(npu.current_stream()) == npu.get_device_limit(0)
    npu.reset_stream_limit(stream)
    assert npu.get_stream_limit(stream) == npu.get_device_limit(0)


def test_the_old_form_of_files_takes_no_tensor_of_a_device(tmp_path):
    """torch copies it from a storage that it makes by itself, which torch_npu does not know."""
    with pytest.raises(RuntimeError, match="NPUStorageImpl"):
        torch.save(torch.ones(5, device="npu"), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.ones(5), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for place in ({"cpu": "npu:0"}, lambda storage, _: storage.to(device="npu:0")):
        loaded = torch.load(tmp_path / "old.pt", map_location=place, weights_only=False)
        assert loaded.device.type == "npu"
        assert torch.equal(loaded.cpu(), torch.ones(5))
    torch.save(torch.ones(5, device="npu"), tmp_path / "new.pt")
    assert torch.equal(torch.load(tmp_path / "new.pt", map_location="cpu"), torch.ones(5))


def test_memory_of_the_host_may_be_a_tensor_of_the_device():
    import torch_npu

    swapped = torch_npu.empty_with_swapped_memory([2, 2], dtype=torch.float32, device=torch.device("npu:0"))
    assert swapped.device.type == "npu"
    assert torch.empty_like(swapped).fill_(1).mul_(swapped.fill_(3.25)).cpu().tolist() == [[3.25] * 2] * 2
