"""lm-eval's clients of OpenAI-compatible servers, made strict: what they would cut, drop or replace by an empty answer
in silence ends the evaluation with a sentence.

A server's error never counts as a wrong answer. Answers end where the task says, however many stops the server takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import aiohttp
import requests
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.models.utils import postprocess_generated_text
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError, MediusError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.evaluate.broken_numbers import broken_numbers
from tasks.evaluate.chat_text import chat_text
from tasks.evaluate.plain_text import PlainTextLM
from tasks.evaluate.served import ServedModel
from tasks.evaluate.served_probe import ServerError, is_refusal
from tasks.evaluate.stage import EvaluateRecipe
from tasks.modeling.document_start import likeliest_start
from tasks.modeling.tokenizer_files import tokenizer_digest
from tasks.runtime.endpoint import quoted
from tasks.worker.job import Job

T = TypeVar("T")
_REASONING = ("reasoning_content", "reasoning")
"""Where servers put what a model thinks before it answers: SGLang and vLLM, and vLLM since 0.11."""
_REMEDY = "lower num_fewshot or max_new_tokens, or leave out the task or the model"


class _EndError(BaseException):
    """Ends the work at once, as the harness tries again after any Exception. `cause` is None where a stop was asked."""

    def __init__(self, cause: MediusError | None) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ServedLM:
    """What both interfaces share; stands before lm-eval's class among the bases."""

    def set_up(self, name: str, served: ServedModel, recipe: EvaluateRecipe, key: str | None, job: Job) -> None:
        """To be called once, after the harness's own constructor."""
        self.name, self._served, self._recipe, self._key, self._job = name, served, recipe, key, job
        self.about: dict[str, Any] = {"served": served.model_dump(include={"model", "revision", "api"})}
        """Which model it was, for the results."""

    @property
    def api_key(self) -> str:
        return self._key or ""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers: list[str] = self._ending(lambda: super(ServedLM, self).generate_until(requests, disable_tqdm))  # type: ignore[misc]
        return [
            postprocess_generated_text(answer, stop=request.args[1].get("until"), think_end_token=None)
            for request, answer in zip(requests, answers, strict=True)
        ]

    def loglikelihood(self, requests: list[Instance], **kwargs: Any) -> list[tuple[float, bool]]:
        return self._ending(lambda: super(ServedLM, self).loglikelihood(requests, **kwargs))  # type: ignore[misc]

    def model_call(self, *args: Any, **kwargs: Any) -> Any:
        self._check_stop()
        try:
            return super().model_call(*args, **kwargs)  # type: ignore[misc]
        except requests.HTTPError as error:
            if error.response is not None:
                self._end_if_refused(error.response.status_code)
            raise

    async def amodel_call(self, *args: Any, **kwargs: Any) -> Any:
        self._check_stop()
        try:
            return await super().amodel_call(*args, **kwargs)  # type: ignore[misc]
        except aiohttp.ClientResponseError as error:
            self._end_if_refused(error.status)
            raise

    def _create_payload(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        payload: dict[str, Any] = super()._create_payload(*args, **kwargs)  # type: ignore[misc]
        if not payload.get("stop"):
            # An empty list makes some servers fail.
            payload.pop("stop", None)
        return {**payload, **self._more_payload()}

    def _more_payload(self) -> dict[str, Any]:
        return {}

    def parse_generations(self, outputs: Any, **_: Any) -> list[str]:
        """The answers in a response, in the order of its prompts. Raises ValueError for what is no completion."""
        try:
            choices = sorted(outputs["choices"], key=lambda choice: choice["index"])
            answers = [self._text_of(choice) for choice in choices]
            filtered = any(choice.get("finish_reason") == "content_filter" for choice in choices)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no completion: {json.dumps(outputs)[:200]}") from error
        if filtered:
            raise _EndError(
                BadInputError(
                    f"the server of {self.name} filtered an answer, which would count as wrong; switch its filter "
                    f"off, or leave out the task or the model"
                )
            )
        if len(answers) != 1 or not isinstance(answers[0], str):
            raise ValueError(f"no completion: {json.dumps(outputs)[:200]}")
        return answers

    def _text_of(self, choice: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def _check_stop(self) -> None:
        if self._job.stop_requested:
            raise _EndError(None)

    def _end_if_refused(self, status: int) -> None:
        if is_refusal(status):
            raise _EndError(
                BadInputError(
                    f"the server of {self.name} refuses a request with status {status} (its log says why; often a "
                    f"prompt beyond its context); mend the server, {_REMEDY}"
                )
            )

    def _ending(self, ask: Callable[[], T]) -> T:
        """What `ask` returns; what went wrong in it as one sentence."""
        try:
            return ask()
        except _EndError as end:
            if end.cause is None:
                self._job.preempted()
            raise end.cause from None
        except (requests.RequestException, aiohttp.ClientError, TimeoutError, ValueError) as error:
            what = quoted(f"{type(error).__name__} {error}", [self._key])
            raise ServerError(
                f"the server of {self.name} stayed out of order through all tries ({what}); entries that are measured "
                f"are kept: run again when it is well, or raise evaluate.runtime.servers.{self.name}.max_tries"
            ) from None


class ServedChat(ServedLM, LocalChatCompletion):  # type: ignore[misc, unused-ignore]
    """Messages, rendered by the server's template."""

    def _more_payload(self) -> dict[str, Any]:
        given = self._served.chat_template_kwargs
        return {"chat_template_kwargs": given} if given else {}

    def _text_of(self, choice: Mapping[str, Any]) -> Any:
        message = choice["message"]
        content = message["content"]
        # A server that parses reasoning hands over none of it as content: None, or of some servers an empty text.
        unsaid = content is None or (content == "" and any(message.get(name) for name in _REASONING))
        if unsaid and choice.get("finish_reason") == "length":
            raise _EndError(
                BadInputError(
                    f"{self.name} was cut off while it still reasoned, and its server hands over no text, which would "
                    f"count as a wrong answer; raise evaluate.recipe.max_new_tokens (a task of the harness sets its "
                    f"own limit), or start the server without a reasoning parser, or leave out the task or the model"
                )
            )
        return content


class ServedCompletions(PlainTextLM, ServedLM, LocalCompletionsAPI):  # type: ignore[misc, unused-ignore]
    """Token ids, made here by the tokenizer of a model of the comparison."""

    def read_with(self, tokenizer: PreTrainedTokenizerFast, config_bos: int | None) -> None:
        """Takes the tokenizer, loaded as everywhere else, and the BOS of its model's config."""
        self.tokenizer, self._config_bos = tokenizer, config_bos
        template = tokenizer.chat_template if self._recipe.apply_chat_template else None
        self.about["tokenizer"] = {
            "digest": tokenizer_digest(tokenizer),
            "template_sha256": sha256_hex(str(template).encode()) if template else None,
        }

    def find_document_start(self) -> int:
        return likeliest_start(self.tokenizer, self._config_bos, self._nats)

    def _nats(self, start: int, texts: Sequence[Sequence[int]]) -> float:
        asked = [(("", ""), [start], list(ids[: self.max_length - 1])) for ids in texts]
        return -sum(value for value, _ in self._loglikelihood_tokens(asked, disable_tqdm=True))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return chat_text(
            self.name, self.tokenizer, self._recipe, chat_history, add_generation_prompt=add_generation_prompt
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        for request in requests:
            room = request.args[1].get("max_gen_toks", self._max_gen_toks)
            self._check_fits(request.task_name, len(self.tok_encode(request.args[0])) + room)
        return super().generate_until(requests, disable_tqdm)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        for _, context, continuation in requests:
            self._check_fits(None, len(context) + len(continuation))
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **kwargs)
        for value, _ in answers:
            if not math.isfinite(value):
                raise _EndError(broken_numbers(self.name, "a prompt", "its server's numbers"))
        return answers

    def _check_fits(self, task: str | None, length: int) -> None:
        if length > self.max_length:
            asked_by = f"a prompt of task {task}" if task else "a prompt"
            raise _EndError(
                BadInputError(
                    f"{asked_by} of {length} tokens with its answer does not fit the context of {self.name}, "
                    f"{self.max_length} beside one that is generated, and would be cut at its start; {_REMEDY}"
                )
            )

    def parse_logprobs(self, outputs: Any, tokens: Any = None, ctxlens: Any = None, **_: Any) -> Any:
        """(log-probability, whether greedy) of each continuation. Raises ValueError for a response without them."""
        responses = outputs if isinstance(outputs, list) else [outputs]
        found = sum(len(response.get("choices") or []) for response in responses)
        if found != len(ctxlens):
            raise ValueError(f"{found} answers to {len(ctxlens)} prompts")
        for response in responses:
            for choice in response["choices"]:
                logprobs = choice.get("logprobs") or {}
                if len(logprobs.get("token_logprobs") or []) != len(tokens[choice["index"]]) + 1:
                    raise ValueError("a response without the log-probability of each token")
        return LocalCompletionsAPI.parse_logprobs(outputs=outputs, tokens=tokens, ctxlens=ctxlens)

    def _text_of(self, choice: Mapping[str, Any]) -> Any:
        return choice["text"]
