"""A folder with copies of the leaderboard's data sets in the layouts of their repositories, with a few items each.

The items are made up. What NLTK would download for IFEval stands beside them, made by hand: enough to tell sentences.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GROUPS = {
    "leaderboard_ifeval": "prompt_level_strict_acc",
    "leaderboard_bbh": "acc_norm",
    "leaderboard_gpqa": "acc_norm",
    "leaderboard_mmlu_pro": "acc",
    "leaderboard_musr": "acc_norm",
    "leaderboard_math_hard": "exact_match_original",
}
"""The six entries, and the mean over items that is measured of each. Of IFEval the leaderboard shows another number:
the mean of this one and of inst_level_strict_acc, which is over instructions."""
ITEMS = 2
"""Of each task."""
_BBH = {
    "boolean_expressions": "True",
    "causal_judgement": "Yes",
    "date_understanding": "(A)",
    "disambiguation_qa": "(A)",
    "formal_fallacies": "valid",
    "geometric_shapes": "(A)",
    "hyperbaton": "(A)",
    "logical_deduction_five_objects": "(A)",
    "logical_deduction_seven_objects": "(A)",
    "logical_deduction_three_objects": "(A)",
    "movie_recommendation": "(A)",
    "navigate": "Yes",
    "object_counting": "2",
    "penguins_in_a_table": "(A)",
    "reasoning_about_colored_objects": "(A)",
    "ruin_names": "(A)",
    "salient_translation_error_detection": "(A)",
    "snarks": "(A)",
    "sports_understanding": "yes",
    "temporal_sequences": "(A)",
    "tracking_shuffled_objects_five_objects": "(A)",
    "tracking_shuffled_objects_seven_objects": "(A)",
    "tracking_shuffled_objects_three_objects": "(A)",
    "web_of_lies": "No",
}
"""Configuration → an answer that is among its choices."""
_MATH = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_MUSR = ("murder_mysteries", "object_placements", "team_allocation")


def write_leaderboard(folder: Path) -> Path:
    """Writes all of them into `folder` and returns it."""
    _write_ifeval(folder / "wis-k" / "instruction-following-eval")
    _write_bbh(folder / "SaylorTwift" / "bbh")
    write_gpqa(folder)
    _write_mmlu_pro(folder / "TIGER-Lab" / "MMLU-Pro")
    _write_musr(folder / "TAUR-Lab" / "MuSR")
    _write_math(folder / "DigitalLearningGmbH" / "MATH-lighteval")
    write_punkt(folder / "nltk_data")
    return folder


def write_gpqa(folder: Path, items: int = ITEMS) -> Path:
    """GPQA alone: diamond is a part of main, and main of extended."""
    repository = folder / "Idavidrein" / "gpqa"
    questions = [
        {
            "Record ID": f"rec{number}",
            "Question": f"What does the experiment with sample {number} show?",
            "Correct Answer": f"right {number}",
            **{f"Incorrect Answer {wrong}": f"wrong {number}.{wrong}" for wrong in (1, 2, 3)},
        }
        for number in range(items)
    ]
    names = ("gpqa_extended", "gpqa_main", "gpqa_diamond")
    for name in names:
        _write_csv(repository / f"{name}.csv", questions)
    _write_card(repository, {name: {"train": f"{name}.csv"} for name in names})
    return folder


def write_punkt(folder: Path) -> None:
    """tokenizers/punkt_tab/english as NLTK has it, with one abbreviation and nothing else that was learnt."""
    model = folder / "tokenizers" / "punkt_tab" / "english"
    model.mkdir(parents=True)
    for name, text in (("abbrev_types.txt", "dr\n"), ("collocations.tab", ""), ("sent_starters.txt", "")):
        (model / name).write_text(text)
    (model / "ortho_context.tab").write_text("")


def _write_ifeval(repository: Path) -> None:
    repository.mkdir(parents=True)
    asked = [
        ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}),
        ("detectable_format:title", {}),
    ]
    rows = [
        {
            "key": 1000 + number,
            "prompt": f"Write two sentences about lake {number}.",
            "instruction_id_list": [rule],
            "kwargs": [settings],
        }
        for number, (rule, settings) in enumerate(asked)
    ]
    (repository / "input_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_bbh(repository: Path) -> None:
    files = {}
    for name, answer in _BBH.items():
        rows = [{"input": f"Question {number} of {name}?", "target": answer} for number in range(ITEMS)]
        files[name] = {"test": _write_parquet(repository, f"{name}/test-00000-of-00001.parquet", rows)}
    _write_card(repository, files)


def _write_mmlu_pro(repository: Path) -> None:
    files = {}
    for split, count in (("test", ITEMS), ("validation", 5)):
        rows = [
            {
                "question_id": number,
                "question": f"Which {split} answer is number {number}?",
                "options": [f"answer {option}" for option in range(4 + number % 2)],
                "answer": "ABCD"[number % 4],
                "answer_index": number % 4,
                "category": "math",
            }
            for number in range(count)
        ]
        files[split] = _write_parquet(repository, f"data/{split}-00000-of-00001.parquet", rows)
    _write_card(repository, {"default": files})


def _write_musr(repository: Path) -> None:
    choices = ["Ann", "Bob", "Cem"]
    for name in _MUSR:
        rows = [
            {
                "narrative": f"Story {number}, a long one.\n\nIt goes on.",
                "question": f"Who was it in {name}?",
                "choices": str(choices),
                "answer_index": number,
                "answer_choice": choices[number],
            }
            for number in range(ITEMS)
        ]
        _write_csv(repository / f"{name}.csv", rows)
    _write_card(repository, {"default": {name: f"{name}.csv" for name in _MUSR}})


def _write_math(repository: Path) -> None:
    files = {}
    for name in _MATH:
        rows = [
            {
                "problem": f"What is ${number} + 1$?",
                # The easy one is none of the hard task's.
                "level": "Level 5" if number < ITEMS else "Level 1",
                "type": name,
                "solution": f"It is $\\boxed{{{number + 1}}}$.",
            }
            for number in range(ITEMS + 1)
        ]
        files[name] = {
            split: _write_parquet(repository, f"{name}/{split}-00000-of-00001.parquet", rows)
            for split in ("train", "test")
        }
    _write_card(repository, files)


def _write_parquet(repository: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    (repository / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), repository / name)
    return name


def _write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_card(repository: Path, files: Mapping[str, Mapping[str, str]]) -> None:
    """README.md with the configurations: name → split → file."""
    text = "---\nconfigs:\n"
    for name, splits in files.items():
        text += f"- config_name: {name}\n  data_files:\n"
        text += "".join(f"  - split: {split}\n    path: {path}\n" for split, path in splits.items())
    (repository / "README.md").write_text(f"{text}---\n# A copy\n")
