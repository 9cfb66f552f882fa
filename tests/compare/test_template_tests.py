from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from tasks.modeling.template_tests import template_fault
from tasks.modeling.tokenizer_files import load_tokenizer

DAY = date(2024, 7, 26)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda template: template, None),
        (lambda _: None, "no chat template"),
        (lambda template: template.replace("<|im_end|>", "<|eot_id|>"), r"<\|eot_id\|> is \d+ tokens"),
        (lambda template: template + "{{ raise_exception('no system turn') }}", "does not render: no system turn"),
        (lambda template: template.replace("m['content']", "m['content'][:3]"), "leaves out the message"),
    ],
)
def test_what_is_wrong_with_a_template_is_said(
    model_folder: Callable[..., Path], change: Callable[[str], str | None], fault: str | None
) -> None:
    tokenizer = load_tokenizer(model_folder(1))
    tokenizer.chat_template = change(str(tokenizer.chat_template))
    found = template_fault(tokenizer, DAY)
    assert found is None if fault is None else re.search(fault, str(found))
