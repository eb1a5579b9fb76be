"""Our models in lm-evaluation-harness, if it is installed: `pip install lm-eval`.

    import lm_eval
    from awq2trt.evaluation.lm_eval import Awq2trtLM

    lm_eval.simple_evaluate(model=Awq2trtLM.open("build/demo/onnx"), tasks=["piqa"])

In: an original, a quantized checkpoint or an ONNX model. Out: a model for lm-eval. It scores continuations and complete
texts, but does not generate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lm_eval.api.model import TemplateLM

from awq2trt.errors import UnsupportedError
from awq2trt.evaluation.likelihood import TokenizedContinuation
from awq2trt.evaluation.opening import EvaluatedModel, open_evaluated
from awq2trt.progress import Progress, terminal_progress
from awq2trt.text.tokenizer import encode


class Awq2trtLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no type hints that mypy can read
    """One of our models, as lm-eval uses it; `open` makes one."""

    backend = "causal"

    def __init__(self, model: EvaluatedModel, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._model = model
        self._tokenizer = model.opened.tokenizer
        self._start = () if model.opened.bos is None else (model.opened.bos,)

    @classmethod
    def open(cls, model: str | Path, progress: Progress | None = None) -> Awq2trtLM:
        """Opens a model.

        Args:
            model: A model, as `awq2trt eval` takes it.
            progress: Counts the blocks or requests; None for bars on the terminal.

        Raises:
            Awq2trtError: Whatever `awq2trt eval` raises.
        """
        return cls(open_evaluated(str(model)), progress or terminal_progress())

    @property
    def eot_token_id(self) -> int:
        """The token before an empty context."""
        return int(self._tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for lm-eval's caches."""
        return str(self._tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Returns the tokens of a text, without special ones."""
        return encode(self._tokenizer, string)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """(texts, context tokens, continuation tokens) -> (log-probability, greedy)."""
        tokenized = [TokenizedContinuation((*self._start, *context, *text), len(text)) for _, context, text in requests]
        scores = self._model.scores(tokenized, self._progress, f"scoring in {self._model.opened.executor}")
        return [(score.log_probability, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns log-probabilities of complete texts, each after one end-of-text token."""
        whole = [(None, [self.eot_token_id], self.tok_encode(request.args[0])) for request in requests]
        return [score for score, _ in self._loglikelihood_tokens(whole)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Refused.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("this model class scores texts but does not generate any.", where="generate_until")
