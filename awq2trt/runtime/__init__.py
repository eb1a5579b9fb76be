"""Runs an exported decoder: backends, sampling, generation, streamed text. It needs no torch."""

from __future__ import annotations

from awq2trt.runtime.backend import Backend
from awq2trt.runtime.chat import ChatTokenizer, Message, stream_text, system_message, user_message
from awq2trt.runtime.generation import generate
from awq2trt.runtime.loaded_model import Model
from awq2trt.runtime.ort.backend import OrtBackend
from awq2trt.runtime.sampling import Sampler, Sampling

__all__ = [
    "Backend",
    "ChatTokenizer",
    "Message",
    "Model",
    "OrtBackend",
    "Sampler",
    "Sampling",
    "generate",
    "stream_text",
    "system_message",
    "user_message",
]
