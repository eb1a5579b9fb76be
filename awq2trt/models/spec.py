"""The description of a complete model, which rooms pass to each other and which goes into manifests.

In: the descriptions of its parts, which the families make from config.json. Out: a `ModelSpec`, and its record, which a
manifest holds for runtimes.
"""

from __future__ import annotations

from dataclasses import dataclass

from awq2trt.artifact.records import DecoderRecord, ModelRecord, RopeRecord
from awq2trt.models.families import DecoderSpec, SeeingSpec


@dataclass(frozen=True)
class ModelSpec:
    """The description of a model.

    Attributes:
        decoder: The decoder of text.
        vision: How the model sees images; None for a model of text.
    """

    decoder: DecoderSpec
    vision: SeeingSpec | None = None

    def record(self) -> ModelRecord:
        """What a runtime needs to know about the model, for the manifest."""
        spec, ropes = self.decoder, self.decoder.ropes
        return ModelRecord(
            decoder=DecoderRecord(
                hidden_size=spec.hidden_size,
                intermediate_size=spec.intermediate_size,
                num_layers=spec.num_layers,
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                vocab_size=spec.vocab_size,
                max_positions=spec.max_positions,
                tie_embeddings=spec.tie_embeddings,
                ropes=tuple(
                    RopeRecord(
                        inv_freq=rope.inv_freq,
                        factor=rope.magnitude,
                        sections=rope.sections,
                        interleaved=rope.interleaved,
                    )
                    for rope in ropes
                ),
                rope_of_layer=tuple(None if layer.rope is None else ropes.index(layer.rope) for layer in spec.layers),
                window_of_layer=tuple(layer.sliding_window for layer in spec.layers),
            ),
            vision=None if self.vision is None else self.vision.record(),
        )
