"""What the models are told. A change of any word here changes the data: raise the stage's version with it.

The rules of form stand in fixed frames around the method, so that a method rewritten by the optimiser can change how an
instruction evolves but not how the reply is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.evolve.calls import Message

EVOLVED_TAG = "evolved_instruction"
FEEDBACK_TAG = "feedback"
METHOD_TAG = "method"
VERDICT_TAG = "verdict"
FOLLOWUP_TAG = "next_message"

INITIAL_METHOD = """\
Step 1. Name the skill that the instruction tests, and list at least four ways to make it ask more of that skill: one \
more condition that must hold, a rarer or more exact case, a further step of reasoning, a prescribed form of input or \
of output.
Step 2. Choose the two or three that fit together best. Say in one line each what they will add.
Step 3. Rewrite the instruction with them. All that is needed for an answer must stand in the text, in words as plain \
as those of the original; add at most 40 words.
Step 4. Read the rewriting as the one who must answer it. Remove what contradicts itself, what cannot be answered, and \
what only makes it longer."""


def evolve(method: str, instruction: str) -> tuple[Message, ...]:
    """Asks for a harder form of one instruction."""
    return _user(
        f"""\
You rewrite instructions so that a well-trained model learns more from answering them. Do not answer the instruction \
itself, and keep its language and its subject.

Work by this method:
[method]
{method}
[end of method]

The instruction to rewrite:
[instruction]
{instruction}
[end of instruction]

Go through the steps of the method briefly. Then give the final rewriting, complete and alone, exactly once between \
<{EVOLVED_TAG}> and </{EVOLVED_TAG}>."""
    )


def analyse(trajectories: Sequence[Sequence[str]]) -> tuple[Message, ...]:
    """Asks what went wrong in these evolutions; each trajectory is an instruction's forms, the first one first."""
    cases = "\n\n".join(
        f"Case {number}\n" + "\n".join(f"[form {stage}]\n{form}" for stage, form in enumerate(forms))
        for number, forms in enumerate(trajectories, 1)
    )
    return _user(
        f"""\
Below are instructions as they were rewritten step by step to become harder. Form 0 is the original of each case.

{cases}
[end of cases]

Judge the rewriting, not the subjects. For every case that went wrong, give its number and say what happened: it did \
not become harder, lost something needed for an answer, left its subject, became contradictory or impossible, or only \
grew in length. Then say what these cases have in common, and what a method of rewriting should do to avoid it. Put \
all of this exactly once between <{FEEDBACK_TAG}> and </{FEEDBACK_TAG}>."""
    )


def optimise(method: str, feedback: str) -> tuple[Message, ...]:
    """Asks for a better method."""
    return _user(
        f"""\
A model rewrites instructions into harder ones by this method:
[method]
{method}
[end of method]

A reviewer of its results wrote:
[review]
{feedback}
[end of review]

Improve the method so that these faults no longer occur. Keep it general: it must serve any instruction, so name none \
of the cases. Keep it a numbered list of steps that a model can follow in one reply. Leave out how the result is to be \
marked; that is told separately. Give the whole new method exactly once between <{METHOD_TAG}> and </{METHOD_TAG}>."""
    )


def question(instruction: str) -> tuple[Message, ...]:
    """The instruction itself: the answer is trained on as it is, so nothing else may shape it."""
    return _user(instruction)


def followup(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Asks for the user's next turn after an answer."""
    told = "\n".join(f"[{message.role}]\n{message.content}" for message in messages)
    return _user(
        f"""\
A user and an assistant talk:
{told}
[end of conversation]

Write what this user would say next: one message that builds on the last answer and asks for something new that the \
conversation makes possible, such as a consequence, an exception, an application or a correction. Do not answer it, do \
not thank, and keep the user's language. Give it exactly once between <{FOLLOWUP_TAG}> and </{FOLLOWUP_TAG}>."""
    )


def judge(instruction: str, reply: str) -> tuple[Message, ...]:
    """Asks whether a reply shows that its instruction can be answered."""
    return _user(
        f"""\
An instruction and a model's reply to it:
[instruction]
{instruction}
[end of instruction]
[reply]
{reply}
[end of reply]

Does the reply show that the instruction is defective: contradictory, impossible, without a real task, or lacking what \
an answer needs? An imperfect reply to a sound instruction is no defect. Give one word, pass for a sound instruction \
or fail for a defective one, exactly once between <{VERDICT_TAG}> and </{VERDICT_TAG}>."""
    )


def _user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)
