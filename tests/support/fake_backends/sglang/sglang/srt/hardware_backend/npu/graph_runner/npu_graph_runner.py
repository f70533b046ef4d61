from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner


class NPUGraphRunner(DecodeCudaGraphRunner):
    def __init__(self, model_runner):
        super().__init__(model_runner)

    def execute(self, forward_batch, pp_proxy_tensors=None):
        """Replay the graph with a batch, and return the rows of its requests."""
        self.load_batch(forward_batch, pp_proxy_tensors)
        answer = self.backend.replay(self._make_graph_key(self.bs))
        if isinstance(answer, PPProxyTensors):
            return PPProxyTensors({name: rows[: self.raw_num_token] for name, rows in answer.tensors.items()})
        return LogitsProcessorOutput(answer.next_token_logits[: self.raw_num_token])
