"""Graphs: what is captured does not run, a replay runs it on the same memory, and what a card forbids is forbidden."""

from __future__ import annotations

import gc
import threading

import pytest

from shortest import shortest

pytestmark = [
    pytest.mark.virtual,
    # torch_npu's empty_like says so, on hardware too
    pytest.mark.filterwarnings("ignore:Cannot create tensor with internal format:UserWarning"),
]

SYNCHRONISED, UNSEEN, DEPENDENCY, UNJOINED, GROUP = 107027, 107030, 107024, 107025, 107033


def captured(function, **options):
    """Capture what a function launches; return the graph and what the function returned."""
    import torch

    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, **options):
        result = function()
    return graph, result


def test_a_capture_runs_nothing_and_a_replay_everything():
    import torch

    x = torch.arange(6.0, device="npu")
    total, kept = torch.full((2,), 7.0, device="npu"), torch.full((6,), 3.0, device="npu")
    before = x.cpu()

    def body():
        assert torch.npu.is_current_stream_capturing()
        torch.sum(x.view(2, 3), 1, out=total)
        kept[2:4].mul_(x[:2] + 10)  # in place, through a view
        x.add_(1)
        return x * 2

    graph, doubled = captured(body)
    assert not torch.npu.is_current_stream_capturing()
    assert torch.equal(x.cpu(), before)
    assert total.tolist() == [7, 7]
    assert kept.tolist() == [3] * 6
    doubled.fill_(-1)  # outputs hold whatever is there until a replay
    graph.replay()
    assert total.tolist() == [3, 12]
    assert kept.tolist() == [3, 3, 30, 33, 3, 3]
    assert torch.equal(doubled.cpu(), (before + 1) * 2)
    graph.replay()
    assert total.tolist() == [6, 15]
    assert torch.equal(doubled.cpu(), (before + 2) * 2)


def test_operators_of_torch_npu_are_captured_as_those_of_torch_are():
    import torch
    import torch_npu

    states, gamma = torch.randn(4, 16, device="npu"), torch.rand(16, device="npu")
    residual = torch.randn(4, 16, device="npu")

    def body():
        added, _, summed = torch_npu.npu_add_rms_norm(states, residual, gamma)
        return torch_npu.npu_swiglu(added), summed

    graph, outputs = captured(body)
    for seed in range(3):
        states.copy_(torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        assert all(torch.equal(found.cpu(), right.cpu()) for found, right in zip(outputs, body(), strict=True))


def test_what_a_card_does_not_know_when_it_captures_is_not_looked_at():
    """Indices and logits that would be refused by their values; the shapes of results do not depend on them."""
    import torch

    table = torch.arange(12.0, device="npu").view(4, 3)
    index = torch.full((2,), 1 << 40, device="npu")
    weights = torch.full((2, 4), float("nan"), device="npu")

    def body():
        chosen = torch.multinomial(weights, 1)
        return table[index], table.index_select(0, index), torch.nn.functional.embedding(index, table), chosen

    graph, (by_index, selected, embedded, chosen) = captured(body)
    index.copy_(torch.tensor([3, 1]))
    weights.copy_(torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0]]))
    graph.replay()
    assert by_index.tolist() == selected.tolist() == embedded.tolist() == [[9, 10, 11], [3, 4, 5]]
    assert chosen.tolist() == [[2], [0]]


def test_host_arguments_are_those_of_the_capture():
    import torch

    x = torch.zeros(4, device="npu")
    sizes, scalar, number = [1, 3], torch.tensor(5.0), 2
    graph, parts = captured(lambda: ((x + number) * scalar).split(sizes))
    sizes[:] = [2, 2]
    scalar.fill_(100)
    graph.replay()
    assert [part.tolist() for part in parts] == [[10], [10, 10, 10]]


def test_tiles_are_read_and_written_by_each_replay():
    import torch
    import torch_npu

    torch_npu.npu.config.allow_internal_format = True
    try:
        values = torch.randn(33, 65, dtype=torch.float16, device="npu")
        tiles = torch_npu.npu_format_cast(values, 29)

        def body():
            tiles.mul_(2)
            return tiles + 1, torch_npu.npu_format_cast(values, 29)

        graph, (more, cast) = captured(body)
        before = tiles.cpu()
        assert torch_npu.get_npu_format(cast) == 29
        for times in (2, 4):
            values.add_(1)
            graph.replay()
            assert torch.equal(tiles.cpu(), before * times)
            assert torch.equal(more.cpu(), before * times + 1)
            assert torch.equal(cast.cpu(), values.cpu())
    finally:
        torch_npu.npu.config.allow_internal_format = False


def test_a_graph_draws_from_the_state_that_a_generator_has_at_its_replay():
    import torch

    own = torch.Generator(device="npu")

    def body():
        x = torch.rand(5, device="npu")
        return x, torch.nn.functional.dropout(torch.ones(50, device="npu")), torch.randn(5, device="npu", generator=own)

    graph, outputs = captured(body)
    for seed in (1, 2):
        torch.npu.manual_seed(seed)
        own.manual_seed(seed + 100)
        torch.rand(1, device="npu")
        right = [one.cpu() for one in (*body(), *body())]
        after = torch.rand(3, device="npu").cpu()
        torch.npu.manual_seed(seed)
        own.manual_seed(seed + 100)
        torch.rand(1, device="npu")
        found = []
        for _ in range(2):
            graph.replay()
            found += [one.cpu() for one in outputs]
        assert all(map(torch.equal, found, right))
        assert torch.equal(torch.rand(3, device="npu").cpu(), after)
    with pytest.raises(RuntimeError, match="get_offset while in capture mode"):
        captured(own.get_offset)


def test_memory_of_a_pool_is_used_again_and_outputs_keep_their_addresses():
    import torch

    x = torch.ones(1 << 18, device="npu")  # 1 MiB

    def body():
        y = x + 1
        for _ in range(20):
            y = y * 2 - y  # each result is freed when the next is there
        return y

    pool = torch.npu.graph_pool_handle()
    first, kept = captured(body, pool=pool)
    one = torch.npu.memory_reserved()
    address = kept.data_ptr()
    assert torch.npu.memory_allocated() < 30 << 20
    graphs = [captured(body, pool=pool) for _ in range(3)]
    assert len({address, *(output.data_ptr() for _, output in graphs)}) == 4  # they all live
    assert torch.npu.memory_reserved() - one < 40 << 20
    del graphs
    addresses = [captured(body, pool=pool)[1].data_ptr() for _ in range(3)]
    assert len(set(addresses)) == 1, "what a graph before has freed is there for the next one"
    x.fill_(3)
    first.replay()
    assert kept.data_ptr() == address
    assert kept.unique().tolist() == [4]
    assert first.pool() == pool


def test_one_graph_of_a_pool_may_overwrite_what_another_left_there():
    """As on a card: results of the first graph are to be used before the second one runs."""
    import torch
    import torch_npu

    x = torch.ones(1 << 18, device="npu")
    pool = torch.npu.graph_pool_handle()
    first, result = captured(lambda: x + 1, pool=pool)
    alias = result.data_ptr()
    seen = torch_npu._C._weak_ref_tensor(result)
    del result
    second, other = captured(lambda: x + 10, pool=pool)
    assert other.data_ptr() == alias
    first.replay()
    assert seen[0].item() == 2
    second.replay()
    assert seen[0].item() == 11


def test_a_graph_reads_what_others_put_where_a_tensor_was():
    """A temporary that is captured: its memory has gone to somebody else."""
    import torch

    temporary = [torch.full((1 << 10,), 5.0, device="npu")]
    address = temporary[0].data_ptr()
    graph, doubled = captured(lambda: temporary[0] * 2)
    temporary.clear()
    other = torch.full((1 << 10,), 70.0, device="npu")
    assert other.data_ptr() == address
    graph.replay()
    assert doubled.unique().tolist() == [140]


def test_memory_that_was_given_back_is_an_error_of_the_device():
    import torch

    temporary = [torch.ones(30 << 20, dtype=torch.uint8, device="npu")]  # a segment of its own
    graph, _ = captured(lambda: temporary[0] + 1)
    temporary.clear()
    gc.collect()
    torch.npu.empty_cache()
    with pytest.raises(RuntimeError, match="507015"):
        graph.replay()
    assert (torch.ones(2, device="npu") + 1).tolist() == [2, 2]


def forbidden():
    import torch

    x = torch.arange(4.0, device="npu")
    mask = x > 1
    event = torch.npu.Event()
    return {
        "item": lambda: x.sum().item(),
        "cpu": x.cpu,
        "tolist": x.tolist,
        "bool": lambda: bool((x > 0).all()),
        "equal": lambda: torch.equal(x, x),
        "nonzero": x.nonzero,
        "mask": lambda: x[mask],
        "mask put": lambda: x.__setitem__(mask, 0.0),
        "unique": x.unique,
        "masked_select": lambda: x.masked_select(mask),
        "host to device": lambda: torch.ones(3).to("npu"),
        "pinned, but awaited": lambda: torch.ones(3).pin_memory().to("npu"),
        "copy from host": lambda: x.copy_(torch.ones(4)),
        "copy to host": lambda: torch.ones(4).copy_(x),
        "new tensor": lambda: torch.tensor([1.0], device="npu"),
        "stream": lambda: torch.npu.current_stream().synchronize(),
        "device": torch.npu.synchronize,
        "query": lambda: torch.npu.current_stream().query(),
        "event": lambda: (event.record(), event.synchronize()),
    }


@pytest.mark.parametrize("what", [
    "item", "cpu", "tolist", "bool", "equal", "nonzero", "mask", "mask put", "unique", "masked_select",
    "host to device", "pinned, but awaited", "copy from host", "copy to host", "new tensor", "stream", "device",
    "query", "event",
])  # fmt: skip
def test_what_a_card_forbids_while_it_captures_is_refused_and_nothing_breaks(what):
    import torch

    function = forbidden()[what]
    code = 107028 if what == "event" else SYNCHRONISED
    with pytest.raises(RuntimeError, match=f"error code is {code}"):
        captured(function)
    assert not torch.npu.is_current_stream_capturing()
    function()  # the device is as good as before
    x = torch.ones(3, device="npu")
    graph, y = captured(lambda: x + 1)
    graph.replay()
    assert y.tolist() == [2, 2, 2]


def test_a_refusal_does_not_end_the_capture():
    import torch

    x = torch.ones(3, device="npu")

    def body():
        y = x + 1
        with pytest.raises(RuntimeError, match=str(SYNCHRONISED)):
            y.sum().item()
        return y * 2

    graph, y = captured(body)
    graph.replay()
    assert y.tolist() == [4, 4, 4]


def test_errors_of_operators_are_those_of_the_call():
    import torch
    import torch_npu

    x = torch.ones(2, 3, device="npu")
    for wrong in (lambda: x + torch.ones(4, device="npu"), lambda: torch_npu.npu_swiglu(x), lambda: x @ x):
        with pytest.raises(RuntimeError) as eager:
            wrong()
        with pytest.raises(RuntimeError) as within:
            captured(wrong)
        assert str(within.value) == str(eager.value)


def test_other_threads_may_do_what_the_mode_allows():
    import torch

    x = torch.ones(3, device="npu")
    failed = []

    def other():
        torch.npu.set_device(0)
        try:
            x.cpu()
        except RuntimeError as error:
            failed.append(str(error))

    def body():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return x + 1

    for mode, refused in (("global", True), ("thread_local", False), ("relaxed", False)):
        failed.clear()
        captured(body, capture_error_mode=mode)
        assert [str(UNSEEN) in text for text in failed] == [True] * refused


def test_captures_do_not_nest_and_graphs_capture_once():
    import torch

    x = torch.ones(3, device="npu")
    graph, _ = captured(lambda: x + 1)
    with pytest.raises(RuntimeError, match="already owns a captured graph"):
        graph.capture_begin()

    def nested():
        torch.npu.NPUGraph().capture_begin()

    with pytest.raises(RuntimeError, match=f"error code is {SYNCHRONISED}"):
        captured(nested)
    with pytest.raises(RuntimeError, match=f"error code is {SYNCHRONISED}"):
        captured(graph.replay)
    default = torch.npu.stream(torch.npu.default_stream())
    with default, pytest.raises(RuntimeError, match="must be captured on a non-default stream"):
        torch.npu.NPUGraph().capture_begin()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        torch.npu.NPUGraph().replay()
    graph.replay()


def test_side_streams_join_by_events_and_have_to_come_back():
    import torch

    x, elsewhere = torch.ones(3, device="npu"), torch.zeros(3, device="npu")
    side, apart = torch.npu.Stream(), torch.npu.Stream()
    earlier = torch.npu.Event()
    earlier.record()

    def body(join):
        main = torch.npu.current_stream()
        y = x * 2
        side.wait_stream(main)
        with torch.npu.stream(side):
            assert torch.npu.is_current_stream_capturing()
            z = y + 1
        with torch.npu.stream(apart):  # nobody told it of the capture: it runs
            assert not torch.npu.is_current_stream_capturing()
            elsewhere.add_(1)
        if join:
            main.wait_stream(side)
        return y + z if join else None

    graph, total = captured(lambda: body(join=True))
    assert elsewhere.tolist() == [1, 1, 1]
    x.fill_(4)
    graph.replay()
    assert total.tolist() == [17, 17, 17]
    with pytest.raises(RuntimeError, match=f"error code is {UNJOINED}"):
        captured(lambda: body(join=False))
    with pytest.raises(RuntimeError, match=f"error code is {DEPENDENCY}"):
        captured(lambda: torch.npu.current_stream().wait_event(earlier))
    with torch.npu.stream(side):
        assert (x + 1).tolist() == [5, 5, 5]


def test_copies_of_pinned_memory_are_captured_and_read_it_at_each_replay():
    import torch

    source, target = torch.zeros(4).pin_memory(), torch.zeros(4).pin_memory()
    x = torch.ones(4, device="npu")

    def body():
        x.copy_(source, non_blocking=True)
        target.copy_(x * 2, non_blocking=True)
        return (x + 1).to("cpu", non_blocking=True)

    graph, on_host = captured(body)
    assert x.tolist() == [1] * 4
    for value in (3, 8):
        source.fill_(value)
        graph.replay()
        torch.npu.synchronize()
        assert (target[0], on_host[0]) == (2 * value, value + 1)


def test_host_functions_run_in_each_replay():
    import torch
    import torch_npu

    called, x = [], torch.ones(2, device="npu")
    torch_npu.npu._subscribe_report(torch.npu.current_stream())

    def body():
        x.add_(1)
        torch_npu.npu._launch_host_func(torch.npu.current_stream(), lambda values: called.append(len(values)), [x, x])

    graph, _ = captured(body)
    assert called == []
    graph.replay()
    graph.replay()
    assert called == [2, 2]
    torch_npu.npu._unsubscribe_report(torch.npu.current_stream())


def test_memory_that_is_freed_while_a_graph_runs_leaves_nothing_that_waits():
    """Its allocator records an event on each stream that has used it, and the graph's own is one of them."""
    import torch
    import torch_npu

    stream, x = torch.npu.Stream(), torch.ones(2, device="npu")
    kept = [torch.ones(2, device="npu")]
    kept[0].record_stream(stream)

    def body():
        torch_npu.npu._subscribe_report(torch.npu.current_stream())
        torch_npu.npu._launch_host_func(torch.npu.current_stream(), lambda values: kept.clear(), [x])
        return x + 1

    graph, result = captured(body)
    torch.npu.synchronize()
    with torch.npu.stream(stream):
        graph.replay()
    assert kept == []
    assert stream.query()  # not synchronised, which would not end
    assert result.tolist() == [2, 2]


def test_a_graph_prints_and_saves_what_a_tensor_holds_at_the_replay(capsys, tmp_path):
    import torch

    x = torch.ones(2, device="npu")

    def body():
        x.add_(1)
        torch.ops.npu.print_npugraph_tensor(x, tensor_name="x")
        torch.ops.npu.save_npugraph_tensor(x, save_path=str(tmp_path / "x.pt"))

    graph, _ = captured(body)
    for value in (2, 3):
        graph.replay()
        torch.npu.synchronize()
        for _ in range(1000):  # torch_npu calls both from the interpreter's loop
            pass
        assert f"x=tensor([{value}., {value}.])" in capsys.readouterr().out
    saved = sorted(tmp_path.iterdir())
    assert torch.load(saved[-1]).tolist() == [3, 3]


def test_the_body_of_a_condition_runs_where_the_condition_holds():
    import torch

    x, holds = torch.zeros(2, device="npu"), torch.zeros(1, dtype=torch.bool, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = x + 1
        graph.begin_capture_to_if_node(holds)
        y.mul_(10)
        graph.end_capture_to_conditional_node()
        z = y + 1
    for value, right in ((False, 2), (True, 11), (False, 2)):
        holds.fill_(value)
        graph.replay()
        assert z.tolist() == [right, right]


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream:UserWarning")  # of warm-up on another stream
def test_graphed_callables_train_as_the_module_does():
    import torch

    def trained(graphed):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).to("npu")
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).to("npu")
        called = torch.npu.make_graphed_callables(model, (inputs.clone(),)) if graphed else model
        losses = []
        for step in range(4):
            loss = called(inputs + step).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    assert trained(graphed=True) == trained(graphed=False)


def test_a_graph_goes_with_its_last_owner_and_nothing_of_it_stays():
    import torch

    from npudiff.device.virtual import tasks

    x = torch.ones(100, device="npu")
    captured(lambda: x + 1)
    gc.collect()
    captured(lambda: x + 1)
    kernels, memory = len(tasks._state.kernels), torch.npu.memory_allocated()
    for _ in range(20):
        captured(lambda: (x + 1) * torch.rand(100, device="npu"))
        gc.collect()
    captured(lambda: x + 1)
    assert len(tasks._state.kernels) <= kernels + 4
    assert torch.npu.memory_allocated() == memory


def test_a_dump_names_the_kernels(tmp_path):
    import torch

    x = torch.ones(3, device="npu")
    graph, _ = captured(lambda: (x + 1).mul_(2))
    path = tmp_path / "graph.json"
    with pytest.warns(UserWarning, match="debug_dump"):
        graph.debug_dump(str(path))
    text = path.read_text(encoding="utf-8")
    assert text.index("aten::add.Tensor") < text.index("aten::mul_.Tensor")
    assert path.with_suffix(".aligned.json").exists()


def test_an_injected_fault_strikes_at_the_replay():
    import torch
    import torch_npu

    from npudiff.device.virtual import faults

    x = torch.ones(2, 4, device="npu")
    graph, y = captured(lambda: torch_npu.npu_swiglu(x))
    with faults.injected("npu_swiglu:507015@2"):
        graph.replay()
        with pytest.raises(RuntimeError, match="507015"):
            graph.replay()
    graph.replay()
    assert torch.equal(y.cpu(), torch_npu.npu_swiglu(x).cpu())


def test_a_replayed_kernel_costs_no_more_than_an_eager_one():
    """Over a chain of 100 kernels that do next to nothing."""
    import torch

    x = torch.ones(8, 16, device="npu")
    weight = torch.ones(16, 16, device="npu")

    def chain():
        y = x
        for _ in range(25):
            y = ((y @ weight).softmax(-1) + x).mul_(0.5)
        return y

    graph, _ = captured(chain)

    ratio = shortest(graph.replay, 15) / shortest(chain, 15)
    print(f"replayed / eager: {ratio:.2f}")
    assert ratio <= 1
