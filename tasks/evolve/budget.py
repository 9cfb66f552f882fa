"""What the calls of an artifact have cost, in tokens and in money, over all its launches."""

from __future__ import annotations

from tasks.artifacts.errors import BadInputError
from tasks.evolve.calls import CallLedger, Completion
from tasks.evolve.endpoint import Endpoint


class Spending:
    """Counts calls against the limits of the runtime block. A call without usage counts as nothing."""

    def __init__(self, settings: Endpoint, ledger: CallLedger) -> None:
        self._settings = settings
        self.calls = self.unanswered = self.tokens = 0
        self._millionths = 0.0
        for completion in ledger:
            self.add(completion)
        for spent in ledger.unanswered:
            self.add_unanswered(spent)

    def add(self, completion: Completion) -> None:
        """One more finished call."""
        self.calls += 1
        self._count(completion)

    def add_unanswered(self, spent: Completion) -> None:
        """One more reply that was no answer, and was paid for."""
        self.unanswered += 1
        self._count(spent)

    def _count(self, completion: Completion) -> None:
        self.tokens += completion.tokens
        price = self._settings.prices.get(completion.model)
        if price is not None:
            self._millionths += price.prompt * completion.prompt_tokens
            self._millionths += price.completion * completion.completion_tokens

    @property
    def dollars(self) -> float:
        """Of the calls whose models have a price."""
        return self._millionths / 1_000_000

    @property
    def needs_usage(self) -> bool:
        """Whether a limit can only be kept if the endpoint counts tokens."""
        return self._settings.token_budget is not None or self._settings.cost_budget is not None

    def check(self) -> None:
        """To be called before each call.

        Raises:
            BadInputError: a limit is reached. Finished calls are kept, and a larger limit goes on from them.
        """
        tokens, dollars = self._settings.token_budget, self._settings.cost_budget
        if tokens is not None and self.tokens >= tokens:
            raise BadInputError(
                f"the token budget of evolve is spent ({self.tokens} of {tokens} tokens in {self._calls()}); raise "
                f"runtime.endpoint.token_budget and run again to go on from there"
            )
        if dollars is not None and self.dollars >= dollars:
            raise BadInputError(
                f"the cost budget of evolve is spent (USD {self.dollars:.4f} of {dollars:g} in {self._calls()}); raise "
                f"runtime.endpoint.cost_budget and run again to go on from there"
            )

    def _calls(self) -> str:
        lost = f", and {self.unanswered} replies that were no answer" if self.unanswered else ""
        return f"{self.calls} calls, all kept{lost}"
