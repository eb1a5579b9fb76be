"""Ten thousand short answers from eight threads at once: each must be what one thread alone gets, and memory stay flat.

    make runtime && awq2trt build smollm2-135m-instruct --target cpu -o build/smollm2
    python tools/traffic.py build/smollm2/cpu

Every thread draws a prompt, a way to choose tokens, a length and a way to begin: in a new session, in the one that it
has, or in a fork of one that has run the prompt; some answers are ended by their callback. The traffic comes in rounds.
Between them no session is open, and the memory of the process and of the GPU is read. Exits with 1 if an answer is
wrong, or if memory grew by more than `GROWTH_BYTES` once `WARM_UP_ROUNDS` were over.
"""

from __future__ import annotations

import argparse
import gc
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from awq2trt.artifact.manifest import read_manifest
from awq2trt.runtime import Sampling, user_message
from awq2trt.runtime.native import GenerateOptions, NativeModel, NativeSession
from awq2trt.target import CUDA_TARGET

PROMPTS: Final = ("Hi!", "2 + 2?", "A bird?", "Sing 🙂", "Zürich?", "one two", "Why?", "Be brief.", "yes", "The end.")

SAMPLINGS: Final = (
    Sampling(),
    Sampling(0.8, top_k=50, seed=1),
    Sampling(1.2, top_p=0.9, min_p=0.02, seed=2),
    Sampling(0.7, repetition_penalty=1.2, seed=3),
)

ROUNDS: Final = 10

WARM_UP_ROUNDS: Final = 2
"""In which every thread gets memory of its own from malloc, and a GPU's sessions their graphs."""

GROWTH_BYTES: Final = 16 << 20
"""A leak of 2.1 KB an answer makes this of eight thousand; what malloc keeps varies by a few MiB."""

_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        prompt: What the user says.
        sampling: How tokens are chosen.
    """

    prompt: str
    sampling: Sampling


@dataclass
class Round:
    """One tenth of the traffic.

    Attributes:
        answers: Number of answers that came.
        wrong: What was asked, what was expected and what came instead.
        host_bytes: Memory of the process, once its sessions are closed.
        device_bytes: Memory in use on the GPU at that time; 0 on the CPU.
        seconds: Time that the round took.
    """

    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    host_bytes: int = 0
    device_bytes: int = 0
    seconds: float = 0.0


class Traffic:
    """Threads that ask one model.

    Args:
        model: What they ask.
        longest: Most tokens of an answer.
    """

    def __init__(self, model: NativeModel, longest: int) -> None:
        self._model = model
        self._longest = longest
        self._questions = [Question(prompt, how) for prompt in PROMPTS for how in SAMPLINGS]
        self._expected = [self._alone(question) for question in self._questions]

    def _alone(self, question: Question) -> list[int]:
        session = self._model.session()
        session.append([user_message(question.prompt)])
        return session.generate(GenerateOptions(max_tokens=self._longest, sampling=question.sampling)).tokens

    def round(self, number: int, answers: int, threads: int) -> Round:
        """Asks from so many threads at once.

        Args:
            number: Seeds what the threads draw.
            answers: Number of answers that all threads get together.
            threads: Number of threads.
        """
        result, failures = Round(), list[Exception]()
        left = iter(range(answers))
        lock = threading.Lock()

        def work(thread: int) -> None:
            draw = random.Random(f"{number} {thread}")
            session = self._model.session()
            try:
                while True:
                    with lock:
                        if next(left, None) is None:
                            return
                    session, wrong = self._ask(session, draw)
                    with lock:
                        result.answers += 1
                        result.wrong.extend(wrong)
            except Exception as error:  # noqa: BLE001 - raised below, in the thread that can report it
                failures.append(error)

        begin = time.perf_counter()
        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failures:
            raise failures[0]
        result.seconds = time.perf_counter() - begin
        gc.collect()
        result.host_bytes, result.device_bytes = _resident_bytes(), _device_bytes(self._model)
        return result

    def _ask(self, session: NativeSession, draw: random.Random) -> tuple[NativeSession, list[str]]:
        """One answer; the session to go on with, and what is wrong with it."""
        number = draw.randrange(len(self._questions))
        question, expected = self._questions[number], self._expected[number]
        begin = draw.choice(("new", "same", "fork"))
        if begin == "new":
            session = self._model.session()
        session.rewind(0)
        session.append([user_message(question.prompt)])
        if begin == "fork":
            session.logits()  # runs the prompt
            session = session.fork()
        length, pieces = draw.randint(1, self._longest), draw.choice((None, None, 1, 3))
        seen = list[str]()

        def receive(text: str) -> bool:
            seen.append(text)
            return pieces is None or len(seen) < pieces

        answer = session.generate(GenerateOptions(max_tokens=length, sampling=question.sampling), receive)
        expected = expected[: len(answer.tokens) if answer.finish_reason == "callback" else length]
        if answer.tokens == expected and answer.text.startswith("".join(seen)):
            return session, []
        return session, [f"{question}, {begin}, {length}: expected {expected}, got {answer.tokens}"]


def _resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) << 10


def _device_bytes(model: NativeModel) -> int:
    """What is in use on the model's GPU, by whomever; 0 for a model on the CPU."""
    lowered = read_manifest(model.directory, None).contents.lowered
    if lowered is None or lowered.target != CUDA_TARGET:
        return 0
    from awq2trt.machine.gpu import open_cuda

    free, total = open_cuda(CUDA_TARGET).read_info()
    return total - free


def growth_bytes(rounds: Sequence[Round]) -> int:
    """By how much memory grew, on the host or on the GPU, since the rounds that warm up were over."""
    first, last = rounds[WARM_UP_ROUNDS - 1], rounds[-1]
    return max(last.host_bytes - first.host_bytes, last.device_bytes - first.device_bytes)


def main(words: Sequence[str] | None = None) -> int:
    """Prints a line for each round; whether something is wrong.

    Args:
        words: Arguments of the command line; None for this process's own.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="what was built for cpu or cuda")
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--longest", type=int, default=16, help="most tokens of an answer")
    arguments = parser.parse_args(words)
    traffic = Traffic(NativeModel.load(arguments.directory), arguments.longest)
    rounds = []
    for number in range(ROUNDS):
        done = traffic.round(number, arguments.answers // ROUNDS, arguments.threads)
        rounds.append(done)
        for text in done.wrong:
            print(f"WRONG {text}")
        print(
            f"round {number + 1}: {done.answers} answers in {done.seconds:.1f} s, {len(done.wrong)} wrong, "
            f"host {done.host_bytes / _MIB:.1f} MiB, device {done.device_bytes / _MIB:.1f} MiB",
            flush=True,
        )
    answers, wrong, grown = sum(r.answers for r in rounds), sum(len(r.wrong) for r in rounds), growth_bytes(rounds)
    print(f"{answers} answers, {wrong} wrong; memory grew by {grown / _MIB:.1f} MiB since round {WARM_UP_ROUNDS}")
    return int(wrong > 0 or grown > GROWTH_BYTES)


if __name__ == "__main__":
    raise SystemExit(main())
