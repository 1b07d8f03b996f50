"""The picture of strengths: what stands beside what, and how runs of one model are told apart."""

import pandas as pd
import pytest

from palimpsa.analysis.finetuning.controls import controls_text
from palimpsa.analysis.finetuning.strength import COLUMNS, run_labels, strength_figure, strength_panels

RUNS = (
    ("mamba2_44m_seed_1", "Mamba-2 44M", "L 4096", "perplexity", 60.0),
    ("mamba2_44m_seed_2", "Mamba-2 44M", "L 4096", "perplexity", 61.0),
    ("palimpsa_d_seed_1", "Palimpsa-D", "L 64", "accuracy", 0.5),
    ("palimpsa_d_seed_1", "Palimpsa-D", "L 128", "accuracy", 0.25),
)


def rows(*, with_variance):
    found = []
    for name, label, at, metric, value in RUNS:
        metrics = {metric: value, **({"variance": 0.1} if with_variance else {})}
        found += [
            {"name": name, "label": label, "at": at, "strength": strength, "metric": one, "value": number + strength}
            for one, number in metrics.items()
            for strength in (0.0, 1.0)
        ]
    return pd.DataFrame(found, columns=list(COLUMNS))


def test_recall_and_language_each_stand_beside_their_own_variance():
    recall, language = strength_panels(rows(with_variance=True))
    assert [list(group) for group in (recall, language)] == [
        ["queries answered rightly", "mean predictive variance, recall"],
        ["perplexity, validation", "mean predictive variance, language"],
    ]
    assert set(recall["mean predictive variance, recall"]["name"]) == {"palimpsa_d_seed_1"}
    assert len(language["mean predictive variance, language"]) == 4
    assert [len(group) for group in strength_panels(rows(with_variance=False))] == [1, 1]


@pytest.mark.parametrize("with_variance", [True, False])
def test_seeds_share_a_colour_and_a_line_of_the_legend_and_lengths_have_markers(with_variance):
    figure = strength_figure(rows(with_variance=with_variance))
    recall, language = (part.axes[0] for part in figure.subfigs)
    assert len(figure.axes) == (4 if with_variance else 2)
    assert len({line.get_color() for line in recall.lines}) == 1
    assert [line.get_marker() for line in recall.lines] == ["o", "s"]
    assert len({line.get_color() for line in language.lines}) == 1
    told = [[text.get_text() for text in part.legends[0].get_texts()] for part in figure.subfigs]
    assert told == [["Palimpsa-D, L 64", "Palimpsa-D, L 128"], ["Mamba-2 44M, L 4096"]]


def test_names_that_share_a_label_are_told_apart_by_their_seeds():
    assert run_labels(rows(with_variance=False)) == {
        "mamba2_44m_seed_1": "Mamba-2 44M, seed 1",
        "mamba2_44m_seed_2": "Mamba-2 44M, seed 2",
        "palimpsa_d_seed_1": "Palimpsa-D",
    }


def test_without_a_control_the_page_says_so(tmp_path):
    assert controls_text(tmp_path) == "Not measured yet."
