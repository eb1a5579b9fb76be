"""Running an exported decoder: backends, sampling, generation, streamed text. No torch."""

from __future__ import annotations

from awq2trt.runtime.backend import Backend
from awq2trt.runtime.chat import ChatTokenizer, stream_text
from awq2trt.runtime.generation import generate
from awq2trt.runtime.ort.cpu import OrtBackend
from awq2trt.runtime.sampling import Sampler, Sampling

__all__ = ["Backend", "ChatTokenizer", "OrtBackend", "Sampler", "Sampling", "generate", "stream_text"]
