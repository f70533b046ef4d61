"""The proposer of Eagle."""

from vllm_ascend.spec_decode.llm_base_proposer import AscendSpecDecodeBaseProposer


class AscendEagleProposer(AscendSpecDecodeBaseProposer):
    """All of it is in the base."""
