from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner


class EAGLEDraftNpuGraphRunner(DecodeCudaGraphRunner):
    """Graphs of all passes of a model that drafts."""

    def _init_arch_map(self):
        pass

    def _replay_graph(self, key, forward_batch):
        return self.backend.replay(key)
