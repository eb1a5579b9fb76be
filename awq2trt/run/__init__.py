"""Running an exported decoder: backends, sampling, generation, streamed text. No torch."""

from __future__ import annotations

from awq2trt.run.backend import Backend
from awq2trt.run.generation import generate
from awq2trt.run.ort_backend import OrtBackend
from awq2trt.run.sampling import Sampler, Sampling
from awq2trt.run.text import ChatTokenizer, stream_text

__all__ = ["Backend", "ChatTokenizer", "OrtBackend", "Sampler", "Sampling", "generate", "stream_text"]
