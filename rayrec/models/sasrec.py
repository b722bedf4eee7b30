"""SASRec, the collaborative encoder: Kang and McAuley 2018, https://arxiv.org/abs/1808.09781; paper section 4.2."""

from rayrec.models.transformer import Transformer


class SASRec(Transformer):
    """Each position sees the items up to its own; the user vector is the state of the newest."""

    causal = True
