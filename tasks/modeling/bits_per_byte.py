"""Bits per byte on small fixed texts: what a change of vocabulary cost, in a unit that no tokenizer owns.

The four kinds are apart because they fail apart. English hardly touches the rows that surgery invents, while a
tokenizer that groups digits by three meets a thousand of them in arithmetic, and most of its scripts are new.
"""

from __future__ import annotations

import math

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
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
    ),
    "code": (
        "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
        "    return sum(values) / len(values)\n",
        "for (size_t i = 0; i + 1 < count; ++i) {\n    if (items[i] > items[i + 1]) {\n        return false;\n"
        "    }\n}\nreturn true;\n",
        "SELECT name, COUNT(*) AS orders\nFROM customers JOIN orders USING (customer_id)\nWHERE year = 2021\n"
        "GROUP BY name ORDER BY orders DESC;\n",
    ),
    "digits": (
        "12 + 30 = 42\n125 + 250 = 375\n1024 + 2048 = 3072\n99999 + 1 = 100000\n7 * 8 = 56\n12 * 12 = 144\n",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20\n100 200 300 400 500 600 700 800 900 1000\n",
        "pi = 3.14159265358979, e = 2.71828182845905, 2^10 = 1024, 2^20 = 1048576, 1/8 = 0.125\n",
    ),
    "non_latin": (
        "Москва является столицей России и самым большим городом страны.",
        "東京は日本の首都であり、世界で最も人口の多い都市の一つです。水は零度で凍ります。",
        "القاهرة هي عاصمة مصر وأكبر مدنها. दिल्ली भारत की राजधानी है।",
        "서울은 대한민국의 수도이다. Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.",
    ),
}
"""About 400 bytes a kind: enough to see a broken vocabulary, at the cost of a thousand tokens of forward."""


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Mean bits for a UTF-8 byte of each kind in TEXTS, each scored whole after the bos (see below) or eos.

    Rows from the tokenizer's size on are padding and take no probability.

    Raises:
        BadInputError: the tokenizer has neither bos nor eos, or the model has fewer rows than the tokenizer has ids.
    """
    # Qwen's tokenizers have no bos, but their config.json names the token that documents began with in training.
    candidates = (tokenizer.bos_token_id, model.config.bos_token_id, tokenizer.eos_token_id)
    start = next((token for token in candidates if token is not None), None)
    if start is None:
        raise BadInputError("the tokenizer has neither a bos nor an eos token; set one in its tokenizer_config.json")
    num_real = real_vocab_size(tokenizer)
    num_rows = vocabulary_weights(model)[0].shape[0]
    if num_rows < num_real:
        raise BadInputError(
            f"the model has {num_rows} embedding rows and its tokenizer {num_real} ids; give it its own tokenizer"
        )
    result = {}
    for kind, texts in TEXTS.items():
        nats = 0.0
        for text in texts:
            ids_T = torch.tensor([start, *tokenizer.encode(text, add_special_tokens=False)], device=model.device)
            with torch.inference_mode():
                logits_PV = model(ids_T[None]).logits[0, :-1, :num_real].float()
            nats += float(torch.nn.functional.cross_entropy(logits_PV, ids_T[1:], reduction="sum"))
        result[kind] = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    return result
