"""The licences whose terms are known here, and what each asks of a model that was made with something under it.

Bookkeeping, not advice. A licence that is not in the table is refused, since its terms cannot be known.
"""

from __future__ import annotations

from dataclasses import dataclass

OWN = "own"
"""Of whoever publishes, who owes nobody anything for it."""


@dataclass(frozen=True)
class License:
    """What one licence asks of a model made with a model, its outputs, or a data set under it."""

    strictness: int
    """The model carries the licence that is highest; the notices of all of them go with it."""
    link: str
    display: str = ""
    """Must stand where people see it: in the card's overview."""
    notice: str = ""
    """Must go along, in the card and in the file NOTICE; `{name}` is what is under this licence."""
    name_prefix: str = ""
    """Must begin the model's name."""
    wants_text: bool = False
    """Whether its own text must go along with what is passed on."""
    on_hub: bool = True
    """Whether the hub knows this identifier; else the card says `other` and names it."""
    limits_use: bool = False
    """Whether it forbids some uses of the model, which a share-alike licence does not allow."""
    share_alike: bool = False
    """Whether the model must be under this very licence, with no limit added."""
    own_models_only: bool = False
    """Whether it may improve no model but those under this licence."""
    forbids: str = ""
    """Why nothing that was made with it can be published at all."""


def _llama(version: str, path: str, *, name: str, display: str, prefix: str, own_models_only: bool = False) -> License:
    return License(
        strictness=9,
        link=f"https://www.llama.com/{path}/license/",
        display=display,
        notice=(
            f"{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights "
            f"Reserved. Use must comply with its Acceptable Use Policy (https://www.llama.com/{path}/use-policy/) and "
            f"the licence (https://www.llama.com/{path}/license/). Above 700 million monthly users Meta must be asked. "
            f"Made with {{name}} (Llama {version})."
        ),
        name_prefix=prefix,
        wants_text=True,
        limits_use=True,
        own_models_only=own_models_only,
    )


def _llama_since_3_1(version: str) -> License:
    path = f"llama{version.replace('.', '_')}"
    return _llama(version, path, name=f"Llama {version}", display="Built with Llama", prefix="Llama")


def _creative_commons(terms: str, strictness: int, **asked: bool) -> License:
    link = f"https://creativecommons.org/licenses/{terms}/4.0/"
    notice = f"Made with {{name}}, which is under CC {terms.upper()} 4.0 ({link}); its authors are to be credited."
    return License(strictness, link, notice=notice, **asked)  # type: ignore[arg-type]


_NO_DERIVATIVES = "nothing that was made of it may be passed on"

LICENSES: dict[str, License] = {
    OWN: License(-1, "", on_hub=False),
    "cc0-1.0": License(0, "https://creativecommons.org/publicdomain/zero/1.0/"),
    "mit": License(1, "https://opensource.org/license/mit", wants_text=True),
    "bsd-3-clause": License(2, "https://opensource.org/license/bsd-3-clause", wants_text=True),
    "psf-2.0": License(2, "https://docs.python.org/3/license.html", on_hub=False),
    "odc-by": License(
        strictness=3,
        link="https://opendatacommons.org/licenses/by/1-0/",
        notice="Contains information from {name}, which is made available under the ODC Attribution License "
        "(https://opendatacommons.org/licenses/by/1-0/).",
    ),
    "cc-by-4.0": _creative_commons("by", 4),
    "apache-2.0": License(5, "https://www.apache.org/licenses/LICENSE-2.0", wants_text=True),
    "cc-by-sa-4.0": _creative_commons("by-sa", 6, share_alike=True),
    "qwen": License(
        strictness=7,
        link="https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
        display="Improved using Qwen",
        notice=(
            "Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights Reserved. "
            "Above 100 million monthly users Alibaba Cloud must be asked. Made with {name}."
        ),
        wants_text=True,
        on_hub=False,
        limits_use=True,
    ),
    "llama2": _llama("2", "llama2", name="Llama 2", display="", prefix="", own_models_only=True),
    "llama3": _llama(
        "3", "llama3", name="Meta Llama 3", display="Built with Meta Llama 3", prefix="Llama 3", own_models_only=True
    ),
    "llama3.1": _llama_since_3_1("3.1"),
    "llama3.2": _llama_since_3_1("3.2"),
    "llama3.3": _llama_since_3_1("3.3"),
    "qwen-research": License(
        strictness=10,
        link="https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE",
        display="Improved using Qwen",
        notice=(
            "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights "
            "Reserved. For research and evaluation only, not for commercial use. Made with {name}."
        ),
        wants_text=True,
        on_hub=False,
        limits_use=True,
    ),
    "cc-by-nc-4.0": _creative_commons("by-nc", 11, limits_use=True),
    "cc-by-nc-sa-4.0": _creative_commons("by-nc-sa", 12, limits_use=True, share_alike=True),
    "cc-by-nd-4.0": License(13, "https://creativecommons.org/licenses/by-nd/4.0/", forbids=_NO_DERIVATIVES),
    "cc-by-nc-nd-4.0": License(13, "https://creativecommons.org/licenses/by-nc-nd/4.0/", forbids=_NO_DERIVATIVES),
}
