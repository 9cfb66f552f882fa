"""What counts as an evolved instruction, and what never does."""

from __future__ import annotations

import pytest

from tasks.evolve import parsing
from tasks.evolve.calls import Completion
from tasks.evolve.parsing import Rejection

TAG = "evolved_instruction"
SEED = "Name three rivers of Europe and the seas that they reach."
HARDER = "Name three rivers of Europe longer than 1000 km, the seas that they reach, and one capital on each of them."


def evolved(text: str, finish: str = "stop", earlier: tuple[str, ...] = (SEED,)) -> str | Rejection:
    completion = Completion.model_validate({"text": text, "finish": finish})
    return parsing.evolved_instruction(completion, TAG, earlier, 0.95)


def test_the_one_tagged_text_is_taken() -> None:
    assert evolved(f"Step 1: …\n<{TAG}>\n{HARDER}\n</{TAG}>\n") == HARDER


def test_reasoning_before_the_reply_is_no_part_of_it() -> None:
    assert evolved(f"<think>perhaps <{TAG}>no</{TAG}></think><{TAG}>{HARDER}</{TAG}>") == HARDER


def test_reasoning_that_began_in_the_prompt_is_no_part_of_the_reply() -> None:
    steps = f"The user wants rivers. Perhaps <{TAG}>no</{TAG}>?"
    assert evolved(f"{steps}\n</think>\n\n<{TAG}>{HARDER}</{TAG}>") == HARDER
    reply = Completion(text=f"{steps}\n</think>\n\nThe Danube, the Rhine, the Elbe.", finish="stop")
    assert parsing.answer(reply) == "The Danube, the Rhine, the Elbe."
    # Of a block in a block the outer end is left over.
    nested = Completion(text="<think>a <think>b</think> c</think>The Danube.", finish="stop")
    assert parsing.answer(nested) == "The Danube."


@pytest.mark.parametrize(
    "text",
    [
        "<think>The Danube reaches",
        "The Danube. <think>Or does it",
        "First the Danube </think> The Rhine </think> The Elbe.",
        "First the Danube </think> The Rhine <think> and more",
        "First the Danube </think>  ",
    ],
)
def test_reasoning_without_a_clear_end_is_unparsed(text: str) -> None:
    assert parsing.answer(Completion(text=text, finish="stop")) == Rejection("unparsed")


@pytest.mark.parametrize(
    "text",
    [
        "",
        HARDER,
        f"<{TAG}>{HARDER}",
        f"{HARDER}</{TAG}>",
        f"</{TAG}>{HARDER}<{TAG}>",
        f"<{TAG}>  </{TAG}>",
        f"<{TAG}>{HARDER}</{TAG}> or <{TAG}>another one</{TAG}>",
        f"<{TAG}><{TAG}>{HARDER}</{TAG}>",
        f"<{TAG}>{HARDER}</{TAG}></{TAG}>",
    ],
)
def test_any_other_form_is_unparsed(text: str) -> None:
    assert evolved(text) == Rejection("unparsed")


@pytest.mark.parametrize(
    "text",
    [SEED, SEED.upper(), f"  {SEED.rstrip('.')} !", SEED.replace("three", "three (3)"), SEED.replace("Name", "Names")],
)
def test_a_text_that_hardly_differs_has_not_evolved(text: str) -> None:
    assert evolved(f"<{TAG}>{text}</{TAG}>") == Rejection("unchanged")


def test_a_return_to_an_earlier_form_has_not_evolved() -> None:
    assert evolved(f"<{TAG}>{SEED}</{TAG}>", earlier=(SEED, HARDER)) == Rejection("unchanged")


def test_one_operator_may_make_another_instruction_of_a_short_one() -> None:
    assert not parsing.is_unchanged("Compute 2 + 3", "Compute 2 - 3", 0.95)


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "truncated"), ("content_filter", "refused"), ("error", "errored")]
)
def test_a_reply_that_did_not_end_by_itself_is_not_used(finish: str, reason: str) -> None:
    assert evolved(f"<{TAG}>{HARDER}</{TAG}>", finish).reason == reason  # type: ignore[union-attr]
    assert parsing.answer(Completion.model_validate({"text": "x", "finish": finish})).reason == reason  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "As an AI language model, I am unable to do this.",
        "Unfortunately, I must decline to write this.",
        "I’m not able to rewrite this instruction.",
    ],
)
def test_a_refusal_is_counted_as_one(text: str) -> None:
    assert parsing.is_refusal(text)
    assert parsing.answer(Completion(text=text, finish="stop")) == Rejection("refused")
    assert evolved(text) == Rejection("refused")
    assert evolved(f"<{TAG}>{text}</{TAG}>") == Rejection("refused")


@pytest.mark.parametrize(
    "text",
    [
        "I am sorry for your loss. She was a friend to all of us.",
        "I cannot overstate how much the canal changed the town.",
        "Explain why a model may say that it cannot help.",
    ],
)
def test_an_apology_that_was_asked_for_is_no_refusal(text: str) -> None:
    assert not parsing.is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Internal Server Error",
        "502 Bad Gateway",
        "Error: 503 Service Unavailable",
        "Error code: 429 - {'error': {'message': 'slow down'}}",
        "Rate limit reached for gpt-4 in organization x on tokens per min.",
        "Too many requests, please try again later.",
        "API error: rate limit exceeded. Please retry.",
        '{"error": {"message": "overloaded", "type": "server_error"}}',
        '{"detail": "Not Found"}',
        "<html><head><title>504 Gateway Time-out</title></head><body></body></html>",
        "openai.RateLimitError: slow down",
        "upstream connect error or disconnect/reset before headers",
        "The server is overloaded. Please try later.",
        "Model meta/llama is currently loading",
        "Connection reset by peer",
        "Request timed out.",
        "Unauthorized",
    ],
)
def test_the_messages_of_gateways_are_known(text: str) -> None:
    assert parsing.looks_like_endpoint_error(text)
    assert parsing.answer(Completion(text=text, finish="stop")) == Rejection("errored")
    assert evolved(f"<{TAG}>{text}</{TAG}>") == Rejection("errored")


@pytest.mark.parametrize(
    "text",
    [
        "Error: division by zero",
        "Bad gateway is the HTTP status 502: a proxy got an invalid response from the server behind it.",
        "Overloaded functions share a name and differ in their parameters.",
        "Rate limiting protects a service from too many requests.",
        "Loading a file takes 3 ms.",
        "Unauthorized access was the cause of the breach.",
        "The server answers 200 for every page.",
        "<html><head><title>My garden</title></head><body>Roses</body></html>",
        '{"name": "error", "value": 3}',
        "An API error handler should log the status and retry.",
        "404 visitors came on the first day.",
        "The model predicts rain.",
    ],
)
def test_an_answer_about_errors_is_an_answer(text: str) -> None:
    assert parsing.answer(Completion(text=text, finish="stop")) == text


@pytest.mark.parametrize(
    "text",
    [
        "Understood! Is there anything else?",
        "Sure, what would you like to know?",
        "Please provide the table that the question speaks of.",
        "I need more information about the route.",
        "Could you please clarify which year is meant?",
    ],
)
def test_the_failure_detector_knows_answers_to_broken_instructions(text: str) -> None:
    assert parsing.answer(Completion(text=text, finish="stop")) == Rejection("failed")


@pytest.mark.parametrize(
    "text",
    [
        "Sure. The Danube, the Rhine and the Elbe; the last two reach the North Sea.",
        "Dear Ms Lind,\n\nplease share your feedback on the draft by Friday.\n\nKind regards,\nAnn",
        "Subject: The move\n\nHello all, please provide your new address until May.",
        "Hi Tom,\ncould you share the photos of the trip?\nAnn",
        "An application form asks three things. "
        + "It names the person, the day and the reason, in this order. " * 8
        + "At its end it says: please provide a copy of your passport.",
    ],
)
def test_a_plain_answer_passes_the_failure_detector(text: str) -> None:
    assert not parsing.is_failed_answer(text)
