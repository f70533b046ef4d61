class EAGLEDraftNpuGraphRunner:
    """Graphs of all passes of a model that drafts."""

    def _init_arch_map(self):
        pass

    def _make_graph_key(self, batch_size):
        return batch_size

    def _replay_graph(self, key, forward_batch):
        return self.backend.replay(key)
