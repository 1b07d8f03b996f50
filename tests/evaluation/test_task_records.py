"""Local records of every task: what is wrong with one is told with file and line, before anything is scored."""

import json
import re

import pytest

from palimpsa.config.errors import ConfigError
from palimpsa.evaluation.harness_tasks import TASKS, write_definitions

RAW = {"ctx_a": "A man", "ctx_b": "", "activity_label": "Cooking", "endings": ["a", "b", "c"], "label": "2"}


EVERY_FIELD = [(task, name) for task, one in TASKS.items() for name in one.local_fields or one.fields]


@pytest.fixture
def told(tmp_path, task_data):
    """What is said of a file whose second record has other values: `told("piqa", {"label": 7})`."""

    def told(task: str, changes: dict, first: dict | None = None) -> str:
        first = first or json.loads((task_data / f"{task}.jsonl").read_text().splitlines()[0])
        lines = [json.dumps(first), json.dumps({**first, **changes})]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(lines))
        with pytest.raises(ConfigError) as caught:
            write_definitions([task], str(tmp_path), tmp_path)
        return str(caught.value)

    return told


@pytest.mark.parametrize(("task", "field"), EVERY_FIELD)
@pytest.mark.parametrize("value", [None, 7.5, 99, [], {}, True, [1], "\ud800"], ids=ascii)
def test_a_value_that_no_field_can_have_is_told_of_every_field_of_every_task(task, field, value, told):
    line = told(task, {field: value})
    assert re.search(rf"{task}\.jsonl:2: got .* in '{field}', expected ", line)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("task", "changes", "error"),
    [
        ("wikitext", {"page": " \n"}, "in 'page', expected text that is not blank"),
        ("lambada_openai", {"text": "He gave it to "}, "in 'text', expected text that ends with a word"),
        ("piqa", {"label": 2}, "got 2 in 'label', expected 0 or 1"),
        ("piqa", {"label": "1"}, "got \"1\" in 'label', expected 0 or 1"),
        ("piqa", {"sol2": ""}, "got \"\" in 'sol2', expected text that is not blank"),
        ("hellaswag", {"choices": ["a", ""]}, "in 'choices', expected a list of two texts or more, none of them blank"),
        ("hellaswag", {"choices": ["a"]}, "in 'choices', expected a list of two texts or more"),
        ("hellaswag", {"choices": "abcd"}, "got \"abcd\" in 'choices', expected a list"),
        ("hellaswag", {"label": 4}, "got 4 in 'label', expected the number of one of choices, from 0 on"),
        ("hellaswag", {"label": -1}, "got -1 in 'label', expected the number of one of choices"),
        (
            "hellaswag",
            {"label": "1"},
            "got \"1\" in 'label', expected one of the type of 3, which the first record has",
        ),
        ("winogrande", {"sentence": "No gap."}, "in 'sentence', expected text with a '_' to be filled"),
        ("winogrande", {"answer": "3"}, 'got "3" in \'answer\', expected "1" or "2"'),
        ("winogrande", {"answer": ""}, "got \"\" in 'answer'"),
        ("winogrande", {"answer": 1}, 'got 1 in \'answer\', expected "1" or "2"'),
        ("arc_easy", {"answerKey": "E"}, "got \"E\" in 'answerKey', expected one of choices.label"),
        ("arc_easy", {"choices": {"text": [], "label": []}}, "in 'choices', expected an object of two lists"),
        ("arc_easy", {"choices": {"text": ["a", "b"], "label": ["A"]}}, "in 'choices', expected an object of two"),
        ("arc_easy", {"choices": {"text": ["a", "b"], "label": ["A", "A"]}}, "in 'choices', expected an object"),
        ("arc_challenge", {"choices": ["a", "b"]}, "in 'choices', expected an object of two lists"),
        ("arc_challenge", {"answerKey": 1}, "got 1 in 'answerKey', expected one of choices.label"),
        ("social_iqa", {"label": "0"}, "got \"0\" in 'label', expected 1, 2 or 3"),
        ("social_iqa", {"answerC": 3}, "got 3 in 'answerC', expected text that is not blank"),
        ("boolq", {"label": True}, "got true in 'label', expected 0 or 1"),
        ("boolq", {"passage": 12}, "got 12 in 'passage', expected text"),
    ],
)
def test_a_value_that_this_field_cannot_have_says_what_was_expected(task, changes, error, told):
    assert f"{task}.jsonl:2: got " in (line := told(task, changes))
    assert error in line


@pytest.mark.parametrize("changes", [{"endings": 3}, {"label": "3"}, {"label": 2}, {"ctx_b": None}])
def test_raw_hellaswag_is_held_to_its_own_fields(changes, told):
    assert f"hellaswag.jsonl:2: got {json.dumps(next(iter(changes.values())))} in" in told("hellaswag", changes, RAW)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (
            '{"goal": "g", "sol1": "a", "label": 0}',
            r"piqa\.jsonl:2: has no field 'sol2', expected .*; its fields: goal",
        ),
        ("{", r"piqa\.jsonl:2: got a line that is no JSON"),
        ("[1]", r"piqa\.jsonl:2: got list, expected an object"),
    ],
)
def test_a_line_that_is_no_record_is_told_with_its_file_and_line(line, error, tmp_path, task_data):
    first = (task_data / "piqa.jsonl").read_text().splitlines()[0]
    (tmp_path / "piqa.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(ConfigError, match=error):
        write_definitions(["piqa"], str(tmp_path), tmp_path)


def test_all_real_records_are_taken(real_task_data, tmp_path):
    assert len(write_definitions(list(TASKS), str(real_task_data), tmp_path).files) == len(TASKS)
