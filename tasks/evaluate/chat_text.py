"""A conversation as the text that a model reads: the same date for every model, and no turn lost."""

from __future__ import annotations

from datetime import date
from typing import Any

from jinja2 import TemplateError

from tasks.artifacts.errors import BadInputError
from tasks.evaluate.stage import EvaluateRecipe
from tasks.modeling.template_date import rendered


def chat_text(
    name: str, tokenizer: Any, recipe: EvaluateRecipe, history: list[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    """The conversation through the tokenizer's template.

    Raises:
        BadInputError: the template of the model `name` refuses it, such as for a system turn.
    """
    try:
        return rendered(
            tokenizer,
            history,
            date.fromisoformat(recipe.template_date),
            ask=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in history)
        raise BadInputError(
            f"the chat template of {name} does not render a conversation of the roles {roles} "
            f"({' '.join(str(error).split())}), and without one of these turns the model would be asked another "
            f"question than the others; leave out the task that has it or this model, or set "
            f"evaluate.recipe.apply_chat_template to false"
        ) from error
