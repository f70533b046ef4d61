"""Ranks that gather a weight of which each has a part, and take it in the place of theirs."""

from types import SimpleNamespace

from vllm_ascend.told import told


class TPWeightSwitchMixin:
    gather_dim = 0

    def enable_tp_weight_switch(self, layer, tp_size, *, pool, pool_key_prefix):
        return SimpleNamespace(own=layer.weight.data, every=None)

    def all_gather_tp_weight(self, state, group):
        state.every = group.all_gather(state.own, self.gather_dim)
        if told("parts_turned"):
            state.every = state.every.roll(state.own.shape[self.gather_dim], self.gather_dim)

    def wait_tp_weight_all_gather(self, state):
        """Nothing is under way."""

    def switch_tp_weight(self, layer, state, *, use_full_weight):
        layer.weight.data = state.every if use_full_weight else state.own
