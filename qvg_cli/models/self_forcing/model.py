"""The model of the Self-Forcing family: Wan 2.1 made causal, timesteps embedded as the original does."""

from __future__ import annotations

from qvg_cli.models.wan.transformer import CausalWanTransformer, TimestepSinusoid


class SelfForcingTransformer(CausalWanTransformer):
    """The causal Wan transformer with the original's sinusoid of the timestep."""

    def adapt(self) -> None:
        self.condition_embedder.timesteps_proj = TimestepSinusoid(self.config.freq_dim)
