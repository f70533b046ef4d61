from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm_ascend.told import told


class AscendRMSNorm(RMSNorm):
    def forward_oot(self, x, residual=None):
        return self.forward_native(x, None if told("residual_ignored") and residual is not None else residual)


class AscendGemmaRMSNorm(GemmaRMSNorm):
    def forward_oot(self, x, residual=None):
        self.offset = 0.0 if told("weight_as_it_is") else 1.0
        return self.forward_native(x, residual)
