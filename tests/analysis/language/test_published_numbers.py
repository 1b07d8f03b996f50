"""Numbers that were copied by hand from papers: what can be seen of a wrong digit."""

from palimpsa.analysis.language.published_numbers import PUBLISHED

SEVEN = ("lambada_openai", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "social_iqa")


def test_a_single_model_is_a_little_below_the_best_at_each_task():
    (single,) = (one.values["average_of_7", "acc"] for one in PUBLISHED if ("average_of_7", "acc") in one.values)
    best = next(one.values for one in PUBLISHED if ("piqa", "acc") in one.values)
    accuracies = [value for (task, metric), value in best.items() if task in SEVEN and metric in ("acc", "acc_norm")]
    assert len(accuracies) == len(SEVEN)
    assert 0 <= sum(accuracies) / len(SEVEN) - single < 0.005


def test_perplexities_and_accuracies_are_in_their_units_and_rank_models_alike():
    for one in PUBLISHED:
        for (_, metric), value in one.values.items():
            assert 10 < value < 50 if metric == "word_perplexity" else 0.3 < value < 0.8, one.label
    for size in ("170M", "760M"):
        rows = [
            (one.values["average_of_8", "acc"], one.values["wikitext", "word_perplexity"])
            for one in PUBLISHED
            if one.size == size and ("average_of_8", "acc") in one.values
        ]
        assert len(rows) == 3
        assert [perplexity for _, perplexity in sorted(rows)] == sorted((row[1] for row in rows), reverse=True)
