"""What a captured graph needs for its update: by how many tokens it has."""

_graph_params = None


class GraphParams:
    def __init__(self, sizes):
        self.events = {size: [] for size in sizes}
        self.lengths = {size: [] for size in sizes}


def set_graph_params(capture_sizes):
    global _graph_params  # noqa: PLW0603 - one of a process
    _graph_params = GraphParams(capture_sizes)


def get_graph_params():
    return _graph_params


def updated(update_stream, num_tokens, lengths):
    """Hand over the lengths of a batch to the graph of so many tokens, which waits for them."""
    import torch
    from vllm_ascend.told import told

    npu = torch.get_device_module("npu")
    with npu.stream(update_stream):
        for buffer, event in zip(_graph_params.lengths[num_tokens], _graph_params.events[num_tokens], strict=True):
            if not told("lengths_of_capture"):
                buffer.zero_()
                buffer[: len(lengths)].copy_(torch.tensor(lengths))
            event.record(update_stream)


def awaited(num_tokens, lengths):
    """Have the graph that is being captured wait for an update, and return where that puts lengths."""
    import torch

    npu = torch.get_device_module("npu")
    event, stream = npu.ExternalEvent(), npu.current_stream()
    event.wait(stream)
    event.reset(stream)
    _graph_params.events[num_tokens].append(event)
    _graph_params.lengths[num_tokens].append(lengths)
    return lengths
