"""Ask a candidate its questions piece by piece, until it is hopeless or has answered them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from consomme.evaluate.benchmark import Benchmark
from consomme.evaluate.early_stop import AskedQuestions, EarlyStop

CHOICE = 0
"""Number of the benchmark that chooses."""

Asker = Callable[[Sequence[int]], Mapping[int, str]]
"""Answers requests by their numbers; empty where there is no answer."""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """What is known of a candidate that was not asked to the end."""

    num_questions: int
    """Questions that it was asked."""

    gain: float
    """Its mean score on these, minus that of the best candidate so far."""


class Race:
    """Compares candidates with another one on the questions of a benchmark."""

    def __init__(self, benchmark: Benchmark, stop: EarlyStop) -> None:
        """Find the questions.

        Raises:
            RecipeError: Candidates cannot be compared by them.
        """
        self.benchmark, self.stop = benchmark, stop
        self.questions = AskedQuestions.of(benchmark)
        self.num_questions = len(self.questions.requests)
        self.order = stop.order(self.num_questions)
        self.looks = stop.looks(self.num_questions)

    def requests(self, start: int, stop: int) -> list[int]:
        """Return the requests of some questions in the order of asking."""
        return [one for k in self.order[start:stop] for one in self.questions.requests[k]]

    def run(self, ask: Asker, beat: Sequence[float]) -> Stopped | None:
        """Ask until the candidate is hopeless; None if it is not, before the questions are over.

        Args:
            ask: Answers requests; called with those before each look, and not those after the last.
            beat: Weighted scores of the candidate to beat.
        """
        answers = [""] * sum(map(len, self.questions.requests))
        before = 0
        for look in self.looks:
            for number, text in ask(self.requests(before, look)).items():
                answers[number] = text
            if stopped := self.judge(answers, look, beat):
                return stopped
            before = look
        return None

    def judge(
        self, answers: Sequence[str], num_asked: int, beat: Sequence[float]
    ) -> Stopped | None:
        """Return why a candidate is asked no more; None if it is.

        Args:
            answers: To all requests; those of the first questions count.
            num_asked: How many these are.
            beat: Weighted scores of the candidate to beat.
        """
        scores = self.questions.scores(self.benchmark, answers)
        gains = [scores[k] - beat[k] for k in self.order[:num_asked]]
        if not self.stop.is_hopeless(gains, len(self.looks)):
            return None
        return Stopped(num_questions=num_asked, gain=sum(gains) / num_asked)
