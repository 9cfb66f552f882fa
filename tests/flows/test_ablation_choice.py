"""The rule by which a candidate is taken, the tables and the picture; and the commands around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.ablation_choice import choose
from flows.ablation_report import caveats, differences_table, measured_on, results_table, write_report
from flows.profiles import CONFIGS
from tasks.compare.measured import Measured
from tasks.compare.results import build_results
from tasks.modeling.item_bits import Bits
from tests.flows.conftest import Medius

NUM_ITEMS = 400
STOPS = (True,) * 8


def measured(bits: float, right: int, stopped: tuple[bool, ...] = STOPS, **fields: Any) -> Measured:
    """A model that takes about `bits` for a byte and answers the first `right` items."""
    noise = np.random.default_rng(round(bits * 1000)).normal(0, 0.01, 20)
    texts = tuple(Bits(document=f"{at}", bits=(bits + noise[at]) * 100, num_bytes=100) for at in range(20))
    kinds = dict.fromkeys(("prose", "code", "digits", "non_latin"), texts[:3])
    arithmetic = tuple(at < right for at in range(NUM_ITEMS))
    return Measured(tokenizer="x", documents=texts, texts=kinds, arithmetic=arithmetic, stopped=stopped, **fields)


def results(**models: Measured) -> dict[str, Any]:
    return build_results({"original": measured(2.0, 200), **models}, "original")


def test_the_lowest_bits_per_byte_is_taken_of_those_that_keep_their_arithmetic() -> None:
    # 400 items: 12 fewer are 0.030 ± 0.0086, beyond two errors; 3 fewer are 0.0075 ± 0.0043, within.
    found = results(best=measured(1.9, 160), near=measured(1.7, 157), lowest=measured(1.5, 148))
    choice = choose(found, ["best", "near", "lowest"])
    assert choice.taken == "near"
    assert choice.reasons["lowest"] == "arithmetic 0.030 ± 0.009 below that of best, the best"
    assert choice.reasons["best"].endswith("bits per byte")
    assert set(choice.reasons) == {"best", "lowest"}


def test_the_reference_is_no_candidate_and_ties_go_to_the_first() -> None:
    found = results(one=measured(2.5, 100), two=measured(2.5, 100))
    assert choose(found, ["one", "two"]).taken == "one"
    assert choose(found, ["two", "one"]).taken == "two"


def test_what_cannot_be_used_is_out_whatever_else_it_does() -> None:
    found = results(
        mute=measured(1.0, 400, stopped=(True,) * 7 + (False,)),
        split=measured(1.0, 400, template_fault="the template's <|im_end|> is 8 tokens"),
        broken=Measured(tokenizer="x", fault="it gives logits that are not finite"),
        sound=measured(2.5, 100),
    )
    choice = choose(found, ["mute", "split", "broken", "sound"])
    assert choice.taken == "sound", "the best at arithmetic is looked for among what can be used"
    assert choice.reasons == {
        "mute": "no longer stops on 1 of 8 prompts",
        "split": "the template's <|im_end|> is 8 tokens",
        "broken": "it gives logits that are not finite",
    }
    assert choice.stops_lost == 0
    assert choose(found, ["split", "broken"]).taken is None


def test_where_all_lose_stops_the_fewest_lost_come_first_and_are_told() -> None:
    found = results(
        two=measured(1.0, 400, stopped=(True,) * 6 + (False,) * 2),
        one=measured(2.5, 100, stopped=(False,) + (True,) * 7),
    )
    choice = choose(found, ["two", "one"])
    assert (choice.taken, choice.stops_lost) == ("one", 1)
    assert choice.reasons == {"two": "no longer stops on 2 of 8 prompts"}
    assert "no longer stops on 1 of the prompts" in caveats(choice)


def test_arithmetic_that_every_candidate_has_lost_is_told() -> None:
    found = results(one=measured(1.9, 160), two=measured(2.5, 158))
    choice = choose(found, ["one", "two"])
    assert (choice.taken, choice.below_reference) == ("one", "0.100 ± 0.015 below that of original")
    assert "Its arithmetic is 0.100 ± 0.015 below that of original; look for the cause" in caveats(choice)
    assert choose(results(one=measured(1.9, 199)), ["one"]).below_reference is None


NO_TEMPLATE = "there is no chat template"
UNBOUNDED = ("--set", "assessment.evaluate.recipe.max_documents=null", "--set", "fine_tuning.choose=null")
"""An evaluation of all held-out texts."""


def test_a_reference_without_a_chat_template_asks_for_none() -> None:
    mute = measured(2.0, 200, stopped=(), template_fault=NO_TEMPLATE)
    found = build_results({"original": mute, "one": mute, "two": measured(1.9, 200)}, "original")
    choice = choose(found, ["one", "two"])
    assert (choice.taken, choice.stops_lost) == ("two", 0)
    assert choose(found, ["one"]).taken == "one"
    cells = {row[0]: row[-2] for row in results_table(found, ["original"], ["one", "two"], choice).rows}
    assert cells == {"original": "–", "one": "–", "two": "8 of 8"}
    assert "8 prompts" in measured_on(found)
    # Where the reference was never measured, nobody knows that it has no template.
    broken = Measured(tokenizer="x", fault="it gives logits that are not finite")
    found = build_results({"original": broken, "one": mute, "two": measured(2.5, 100)}, "original")
    assert choose(found, ["one", "two"]).reasons == {"one": NO_TEMPLATE}


def test_tables_say_what_was_measured_and_what_became_of_each(tmp_path: Path) -> None:
    found = results(one=measured(1.9, 160), two=measured(1.7, 157), broken=Measured(tokenizer="x", fault="no numbers"))
    names = ["one", "two", "broken"]
    choice = choose(found, names)
    table = results_table(found, ["original"], names, choice)
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(cells) == ["original", "one", "two", "broken"]
    own = found["models"]["two"]
    assert cells["two"]["bits per byte"] == f"{own['bits_per_byte']['heldout']['value']:.4f} ± " + (
        f"{own['bits_per_byte']['heldout']['stderr']:.4f}"
    )
    assert cells["two"]["arithmetic"].startswith(f"{157 / NUM_ITEMS:.3f} ± ")
    assert cells["two"]["stops"] == "8 of 8"
    assert [row[-1] for row in table.rows] == ["reference", choice.reasons["one"], "chosen", "no numbers"]
    assert measured_on(found).startswith("Measured on 20 held-out texts (2000 bytes)")

    difference = found["paired"]["one"]["two"]
    [row] = differences_table(found, names, "two").rows
    assert row[0] == "one"
    assert f"{difference['bits_per_byte']['heldout']['difference']:+.4f} ± " in row[1]
    assert f"(z {difference['arithmetic']['z']:+.1f})" in row[2]

    report = write_report(tmp_path / "x", "A title", found, ["original"], names, choice)
    text = report.read_text()
    assert "Chosen: **two**." in text
    assert table.markdown() in text
    assert (tmp_path / "x" / "results.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "x" / "results.svg").read_bytes()
    write_report(tmp_path / "y", "A title", found, ["original"], names, choice)
    assert (tmp_path / "y" / "results.svg").read_bytes() == svg, "the same numbers, the same picture"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("fusion", "mikro"), "there is no profile 'mikro'"),
        (("fusion", "micro", *UNBOUNDED), "none is left to choose on"),
        (("recipe", "micro", *UNBOUNDED), "none is left to choose on"),
        (
            ("recipe", "medius", "--set", "ablations.recipe.tasks=[]"),
            "name tasks of their own in ablations.recipe.tasks",
        ),
        (("reversion", "micro", "--branch", "qwen"), "reverted with --branch: llama"),
        (("reversion",), "Missing argument"),
        (("recipes", "micro"), "recipes"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_started(
    medius: Medius, arguments: tuple[str, ...], what: str
) -> None:
    said = medius("ablate", *arguments)
    assert said.code == 2, said
    assert what in said.err
    assert not (Path.cwd() / ".medius").exists()


def test_a_choice_that_could_not_be_written_is_refused_before_the_work(medius: Medius, tmp_path: Path) -> None:
    text = (CONFIGS / "micro.yaml").read_text()
    text = text.replace("llama: {parameters: {density: 1.0, weight: 0.5}}", "llama: {parameters: &both {weight: 0.5}}")
    text = text.replace("qwen: {parameters: {density: 0.66, weight: 0.5}}", "qwen: {parameters: *both}")
    path = tmp_path / "shared.yaml"
    path.write_text(text)
    said = medius("ablate", "fusion", str(path))
    assert said.code == 2, said
    assert "an anchor shares that text with another place" in said.err
    assert not (Path.cwd() / ".medius").exists()
