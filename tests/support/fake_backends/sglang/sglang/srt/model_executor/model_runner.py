"""What a forward pass does before its layers."""


class ModelRunner:
    def _maybe_execute_deferred_mamba_cow_and_clear(self, forward_batch):
        pool = self.req_to_token_pool.mamba_pool
        if forward_batch.clear is not None:
            pool.clear_slots(forward_batch.clear)
        for source, slot in zip(forward_batch.sources, forward_batch.copies, strict=True):
            pool.copy_from(source, slot)
