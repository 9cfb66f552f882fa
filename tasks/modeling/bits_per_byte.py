"""Bits per byte on small fixed texts: what a change of vocabulary cost, in a unit that no tokenizer owns.

The four kinds are apart because they fail apart. English hardly touches the rows that surgery invents, while a
tokenizer that groups digits by three meets a thousand of them in arithmetic, and most of its scripts are new.
"""

from __future__ import annotations

import math

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.document_start import start_token
from tasks.modeling.model_files import vocabulary_weights
from tasks.modeling.tokenizer_files import real_vocab_size

TEXTS: dict[str, tuple[str, ...]] = {
    "prose": (
        "The river rose for three days before anyone in the village thought of moving the boats. By then the lower "
        "meadow was under water, and the children had stopped going to school.",
        "Most metals expand when they are heated. A bridge of steel is therefore built with small gaps between its "
        "parts, so that on a hot day the deck has room to grow.",
        "She asked whether the library would be open on Sunday, and he said that it never was, although the garden "
        "behind it could be visited at any hour.",
        "The council met again in the autumn to decide what should become of the old mill. Some of its members wanted "
        "to turn it into a museum; others pointed out that the roof alone would cost more than the town had spent on "
        "its schools in ten years.",
        "To make the dough, mix the flour with a little salt, add the warm water slowly and knead it until it no "
        "longer sticks to your hands. Cover the bowl with a cloth and leave it in a warm place for about an hour.",
        "Because light from distant stars takes so long to reach us, we see them as they were in the past. A telescope "
        "is in this sense also a machine for looking back in time.",
    ),
    "code": (
        "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
        "    return sum(values) / len(values)\n",
        "for (size_t i = 0; i + 1 < count; ++i) {\n    if (items[i] > items[i + 1]) {\n        return false;\n"
        "    }\n}\nreturn true;\n",
        "SELECT name, COUNT(*) AS orders\nFROM customers JOIN orders USING (customer_id)\nWHERE year = 2021\n"
        "GROUP BY name ORDER BY orders DESC;\n",
        "class Stack:\n    def __init__(self):\n        self._items = []\n\n    def push(self, item):\n"
        "        self._items.append(item)\n\n    def pop(self):\n        if not self._items:\n"
        "            raise IndexError('pop from an empty stack')\n        return self._items.pop()\n",
        "async function load(url) {\n  const response = await fetch(url);\n  if (!response.ok) {\n"
        "    throw new Error(`status ${response.status}`);\n  }\n  return response.json();\n}\n",
        '#!/bin/sh\nset -e\nfor file in *.txt; do\n    lines=$(wc -l < "$file")\n'
        '    echo "$file has $lines lines"\ndone\n',
    ),
    "digits": (
        "12 + 30 = 42\n125 + 250 = 375\n1024 + 2048 = 3072\n99999 + 1 = 100000\n7 * 8 = 56\n12 * 12 = 144\n",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20\n100 200 300 400 500 600 700 800 900 1000\n",
        "pi = 3.14159265358979, e = 2.71828182845905, 2^10 = 1024, 2^20 = 1048576, 1/8 = 0.125\n",
        "17 - 9 = 8\n250 - 125 = 125\n1000 - 1 = 999\n4096 - 2048 = 2048\n81 / 9 = 9\n144 / 12 = 12\n"
        "1000000 / 1000 = 1000\n15 * 15 = 225\n25 * 4 = 100\n99 * 99 = 9801\n",
        "1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196, 225\n"
        "2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97\n"
        "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584\n",
        "2024-01-31 09:15, 2024-02-29 23:59, 1999-12-31 00:00\n10 % of 250 = 25, 12.5 % of 800 = 100, "
        "0.1 + 0.2 = 0.3\n$1,250.00 + $3,750.00 = $5,000.00\n",
    ),
    "non_latin": (
        "Москва является столицей России и самым большим городом страны.",
        "東京は日本の首都であり、世界で最も人口の多い都市の一つです。水は零度で凍ります。",
        "القاهرة هي عاصمة مصر وأكبر مدنها. दिल्ली भारत की राजधानी है।",
        "서울은 대한민국의 수도이다. Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.",
        "Дети вернулись из школы и рассказали матери, что завтра уроков не будет.",
        "北京是中国的首都。春天来了，天气一天比一天暖和，公园里的花都开了。",
        "ירושלים היא עיר עתיקה. กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    ),
}
"""About a thousand bytes a kind: enough to see a broken vocabulary, at the cost of 1500 tokens of forward."""


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Mean bits for a UTF-8 byte of each kind in TEXTS, each scored whole after the token that documents begin with.

    Rows from the tokenizer's size on are padding and take no probability.

    Raises:
        BadInputError: the tokenizer has neither BOS nor end token, the model has fewer rows than the tokenizer has ids,
            or its logits are not finite.
    """
    result = {}
    for kind, bits in bits_per_byte_of_result(model, tokenizer).items():
        if bits is None:
            raise BadInputError(
                f"the model gives logits that are not finite on {kind.replace('_', '-')} text; look for NaN in its "
                f"weights, or for a dtype that they overflow"
            )
        result[kind] = bits
    return result


def bits_per_byte_of_result(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float | None]:
    """The same of a model that a stage has just made: None for a kind on which its logits are not finite.

    The stage can then commit what it made, and its gate fails.

    Raises:
        BadInputError: the tokenizer has neither BOS nor end token, or the model fewer rows than the tokenizer has ids.
    """
    num_real = real_vocab_size(tokenizer)
    num_rows = vocabulary_weights(model)[0].shape[0]
    if num_rows < num_real:
        raise BadInputError(
            f"the model has {num_rows} embedding rows and its tokenizer {num_real} ids; give it its own tokenizer"
        )
    start = start_token(model, tokenizer)
    result: dict[str, float | None] = {}
    for kind, texts in TEXTS.items():
        nats = 0.0
        for text in texts:
            ids_T = torch.tensor([start, *tokenizer.encode(text, add_special_tokens=False)], device=model.device)
            with torch.inference_mode():
                logits_PV = model(ids_T[None]).logits[0, :-1, :num_real].float()
            nats += float(torch.nn.functional.cross_entropy(logits_PV, ids_T[1:], reduction="sum"))
        num_bytes = sum(len(text.encode()) for text in texts)
        result[kind] = nats / math.log(2) / num_bytes if math.isfinite(nats) else None
    return result
