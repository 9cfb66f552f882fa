"""Whether a model can be spoken to: its chat template renders, and its marks are single special tokens.

After a surgery with a wrong map of special tokens a template still renders; but `<|im_end|>` is then eight tokens of
text, and no end token is ever met.
"""

from __future__ import annotations

import re
from datetime import date

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from tasks.modeling.template_date import rendered

_MARK = re.compile(r"<\|[^|<>\s]+\|>")
_MESSAGES = (
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "Another one."},
)


def template_fault(tokenizer: PreTrainedTokenizerFast, day: date) -> str | None:
    """What is wrong with the chat template, in a few words; None if nothing is."""
    if not tokenizer.chat_template:
        return "there is no chat template"
    try:
        text = rendered(tokenizer, _MESSAGES, day)
    except (TemplateError, TypeError, ValueError) as error:
        return f"the chat template does not render: {' '.join(str(error).split())}"
    for message in _MESSAGES:
        if message["content"] not in text:
            return f"the chat template leaves out the message {message['content']!r}"
    for mark in dict.fromkeys(_MARK.findall(text)):
        ids = tokenizer.encode(mark, add_special_tokens=False)
        if len(ids) != 1:
            return f"the template's {mark} is {len(ids)} tokens"
    return None
